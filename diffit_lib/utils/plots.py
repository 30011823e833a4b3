"""Tensors and tables -> pictures: arrays and matplotlib Figures, returned, never shown."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from PIL import Image

from diffit_lib.utils.files import replacing


def tile(images: np.ndarray, columns: int, *, scale: int = 1, gap: int = 1) -> np.ndarray:
    """uint8 (N, H, W, C) -> one uint8 picture (H', W', C), row by row, each pixel enlarged `scale` times, crisp."""
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = images.shape
    rows, gap = -(-count // columns), gap * scale
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + gap) + gap, (number % columns) * (width + gap) + gap
        sheet[top : top + height, left : left + width] = image
    return sheet


def enlargement(images: np.ndarray, target: int = 64) -> int:
    """The whole factor that brings images (N, H, W, C) to about `target` pixels a side."""
    return max(1, round(target / images.shape[1]))


def to_image(picture: np.ndarray) -> Image.Image:
    """A uint8 picture (H, W, C), C 1 or 3, as Pillow's."""
    return Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a uint8 picture (H, W, C), C 1 or 3."""
    with replacing(path) as beside:
        to_image(picture).save(beside, "PNG")


def write_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG."""
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=144)


def loss_curve(rows: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]] = ()) -> Figure:
    """Rows of `metrics.csv` -> training and test loss over images, and the test loss at each noise level.

    Where a Frechet distance was taken it gets a third field. `expected`, the rows of a run known to be good, lie behind
    in grey: is my loss normal?
    """
    distance = next((name for name in ("fid", "frechet") if _columns(rows, name)[0]), "")
    fields = 3 if distance else 2
    figure = Figure(figsize=(5 * fields, 4), layout="constrained")
    left, right, *rest = figure.subplots(1, fields)
    if expected:
        left.plot(*_columns(expected, "images", "test_loss"), color="0.7", linewidth=5, label="test, expected")
    left.plot(*_columns(rows, "images", "loss"), marker=".", label="training, raw weights")
    left.plot(*_columns(rows, "images", "test_loss"), marker=".", label="test, averaged weights")
    left.set(xlabel="images seen", ylabel="weighted denoising loss", title="Loss")
    left.legend()
    if expected:
        right.plot(*_levels(expected[-1]), color="0.7", linewidth=5, label="expected, last")
        right.legend()
    for row, shade in zip(rows, np.linspace(1, 0.15, len(rows))[::-1], strict=True):
        right.plot(*_levels(row), color="tab:blue", alpha=shade, marker=".")
    right.set(xscale="log", xlabel="noise level sigma", title="Test loss by noise level, first to last report")
    for quality in rest:
        if _columns(expected, distance)[0]:
            quality.plot(*_columns(expected, "images", distance), color="0.7", linewidth=5, label="expected")
            quality.legend()
        quality.plot(*_columns(rows, "images", distance), marker=".")
        name = "small FID" if distance == "fid" else "Frechet distance"
        quality.set(xlabel="images seen", title=f"{name} of samples, averaged weights", ylim=(0, None))
    for axes in (left, *rest):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k: long numbers would run into one another
    return figure


def vae_curves(rows: Sequence[dict[str, Any]]) -> Figure:
    """Rows of an autoencoder's `metrics.csv` -> the terms of its loss and its held-out PSNR, over images."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for term in ("loss", "reconstruction", "kl", "perceptual", "adversarial", "discriminator"):
        if _columns(rows, term)[0]:
            left.plot(*_columns(rows, "images", term), marker=".", label=term)
    left.set(xlabel="images seen", title="Training loss and its terms")
    left.set_yscale("symlog", linthresh=0.01)
    left.legend()
    right.plot(*_columns(rows, "images", "psnr"), marker=".")
    right.set(xlabel="images seen", ylabel="dB", title="PSNR of held-out images, averaged weights")
    for axes in (left, right):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def compare_runs(runs: dict[str, Sequence[dict[str, Any]]]) -> Figure:
    """Rows of `metrics.csv` by the run's name -> their test losses over images, and the last ones by noise level."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, rows in runs.items():
        left.plot(*_columns(rows, "images", "test_loss"), marker=".", label=name)
        right.plot(*_levels(rows[-1]), marker=".", label=name)
    left.set(xlabel="images seen", title="Test loss, averaged weights")
    left.xaxis.set_major_formatter(EngFormatter(sep=""))
    right.set(xscale="log", xlabel="noise level sigma", title="Test loss by noise level, last report")
    for axes in (left, right):
        axes.legend()
    return figure


def level_curves(losses: dict[str, dict[float, float]]) -> Figure:
    """Denoising loss by noise level, sigma -> loss, one curve for each name."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, curve in losses.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    axes.set(xscale="log", ylim=(0, None), xlabel="noise level sigma", ylabel="weighted denoising loss")
    axes.legend()
    return figure


def sweep_curves(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> Figure:
    """Measured numbers over what was varied, a field for each number that differs.

    Along x goes what has most values that are numbers, if any; there is a curve for each combination of the rest.
    """
    counts = {name: len({row[name] for row in rows}) for name in rows[0]}
    measured = [name for name in rows[0] if name not in varied and not name.endswith("_std")]
    numbers = [name for name in measured if counts[name] > 1] or measured
    along = max(varied, key=lambda name: (not isinstance(rows[0][name], str), counts[name]))
    height, width = -(-len(numbers) // 4), min(len(numbers), 4)
    figure = Figure(figsize=(4 * width, 3.4 * height), layout="constrained")
    grid = list(figure.subplots(height, width, squeeze=False).flat)
    curves: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        curves.setdefault(" ".join(f"{name}={row[name]}" for name in varied if name != along), []).append(row)
    for axes, number in zip(grid, numbers, strict=False):
        for label, curve in curves.items():
            axes.plot([row[along] for row in curve], [row[number] for row in curve], marker="o", label=label)
        axes.set(xlabel=along, title=number.replace("_", " "))
    for axes in grid[len(numbers) :]:
        axes.set_axis_off()
    if len(curves) > 1:
        grid[0].legend()
    return figure


def attention_figure(maps: dict[str, Any]) -> Figure:
    """Attention of one window, (h, N, N) for each name: a row of heads, every token's view of all tokens as a row."""
    heads = max(len(each) for each in maps.values())
    figure = Figure(figsize=(2.3 * heads + 0.6, 2.3 * len(maps)), layout="constrained")
    grid = figure.subplots(len(maps), heads, squeeze=False)
    top = max(float(each.max()) for each in maps.values())
    for row, (name, each) in zip(grid, maps.items(), strict=True):
        for axes, weights in zip(row, each, strict=True):
            shown = axes.imshow(weights, vmin=0, vmax=top, cmap="magma")
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name)
    for head, axes in enumerate(grid[0], start=1):
        axes.set_title(f"head {head}")
    figure.colorbar(shown, ax=grid, shrink=0.8, label="attention")
    return figure


def latent_maps(images: np.ndarray, latents: Any) -> Figure:
    """Pictures, uint8 (N, H, W, C), a row each, and beside each the channels of its latent, (N, z, h, w)."""
    figure = Figure(figsize=(1.7 * (1 + latents.shape[1]) + 0.8, 1.7 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), 1 + latents.shape[1], squeeze=False)
    for row, image, latent in zip(grid, images, latents, strict=True):
        row[0].imshow(to_image(image), cmap="gray", vmin=0, vmax=255)
        for axes, channel in zip(row[1:], latent, strict=True):
            shown = axes.imshow(channel, vmin=-3, vmax=3, cmap="RdBu_r")
        for axes in row:
            axes.set(xticks=[], yticks=[])
    for number, axes in enumerate(grid[0]):
        axes.set_title(f"channel {number}" if number else "image")
    figure.colorbar(shown, ax=grid, shrink=0.8)
    return figure


def _columns(rows: Sequence[dict[str, Any]], *names: str) -> list[list[float]]:
    """The columns of these names, over the rows that have them all."""
    whole = [row for row in rows if all(row.get(name, "") != "" for name in names)]
    return [[float(row[name]) for row in whole] for name in names]


def _levels(row: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Noise levels and the test loss at each."""
    losses = {key: value for key, value in row.items() if key.startswith("test_loss_")}
    return [float(key.removeprefix("test_loss_")) for key in losses], [float(value) for value in losses.values()]
