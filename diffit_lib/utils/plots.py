"""Images and tables -> pictures: arrays and matplotlib Figures, returned, never shown."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ticker import EngFormatter
from PIL import Image, ImageDraw, ImageFont

from diffit_lib.utils.files import replacing

GREY = {"color": "0.7", "linewidth": 5}  # the curve of a run known to be good


def tile(images: np.ndarray, columns: int, *, scale: int | None = None, gap: int = 1) -> np.ndarray:
    """uint8 images (N, H, W, C) -> one picture (H', W', C), row by row, each pixel a square of side `scale`.

    By default small images are enlarged to about 64 pixels a side.
    """
    scale = scale or enlargement(images)
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = images.shape
    rows, gap = -(-count // columns), gap * scale
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = (number // columns) * (height + gap) + gap, (number % columns) * (width + gap) + gap
        sheet[top : top + height, left : left + width] = image
    return sheet


def captioned(
    picture: np.ndarray, columns: Sequence[str] = (), rows: Sequence[str] = (), corner: str = ""
) -> np.ndarray:
    """A `tile` (H, W, C) with a caption over each column, a name left of each row, and in the corner what they are."""
    path, (height, width, channels) = findfont("DejaVu Sans"), picture.shape
    lengths = [ImageFont.truetype(path, 100).getlength(text) / 100 for text in columns]  # in units of the font's size
    sizes = [width / len(columns) * 0.92 / length for length in lengths if length]
    font = ImageFont.truetype(path, min([15.0, *sizes]))
    left = int(max([0.0, *(font.getlength(text) + 10 for text in [corner, *rows] if text)]))
    top = 24 if columns else 0
    sheet = np.full((height + top, width + left, channels), 255, np.uint8)
    sheet[top:, left:] = picture
    image = to_image(sheet)
    draw = ImageDraw.Draw(image)
    for number, text in enumerate(columns):
        draw.text((left + (number + 0.5) * width / len(columns), top / 2), text, "black", font, "mm")
    for number, text in enumerate(rows):
        draw.text((left - 6, top + (number + 0.5) * height / len(rows)), text, "black", font, "rm")
    draw.text((left - 6, top / 2), corner, "black", font, "rm")
    return np.asarray(image).reshape(sheet.shape)


def enlargement(images: np.ndarray, target: int = 64) -> int:
    """The whole factor that enlarges images (N, H, W, C) to about `target` pixels a side."""
    return max(1, round(target / images.shape[1]))


def to_image(picture: np.ndarray) -> Image.Image:
    """A uint8 picture (H, W, C), C 1 or 3, as a Pillow image."""
    return Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)


def png(picture: np.ndarray | Figure, dpi: int = 110) -> bytes:
    """A uint8 picture (H, W, C), C 1 or 3, or a Figure, as the content of a PNG file."""
    data = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(data, format="png", dpi=dpi)
    else:
        to_image(picture).save(data, "PNG", compress_level=1)
    return data.getvalue()


def write_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a uint8 picture (H, W, C), C 1 or 3."""
    with replacing(path) as beside:
        to_image(picture).save(beside, "PNG")


def write_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG."""
    with replacing(path) as beside:
        figure.savefig(beside, format="png", dpi=144)  # also one made elsewhere


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches: white, so that it reads on a dark page too, at 144 dots per inch."""
    return Figure(figsize=(width, height), dpi=144, facecolor="white", layout="constrained")


def loss_curve(rows: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]] = ()) -> Figure:
    """Rows of `metrics.csv` -> training and test loss over images, and the test loss by noise level.

    A third field shows the Frechet distance, if two points of it are known. `expected`, rows of a good run, is grey.
    """
    known = {name: (len(_columns(rows, name)[0]), len(_columns(expected, name)[0])) for name in ("fid", "frechet")}
    distance = next(
        (name for name, counts in known.items() if counts[0] and sum(counts) > 1), ""
    )  # one point is no curve
    fields = 3 if distance else 2
    figure = new_figure(5 * fields, 4)
    left, right, *rest = figure.subplots(1, fields)
    if expected:
        plot_column(left, expected, "test_loss", label="test, expected", **GREY)
        plot_levels(right, test_levels(expected[-1]), label="expected, last", **GREY)
        right.legend()
    plot_column(left, rows, "loss", marker=".", label="training, raw weights")
    plot_column(left, rows, "test_loss", marker=".", label="test, averaged weights")
    left.set(ylabel="weighted denoising loss", title="Loss")
    left.legend()
    for row, shade in zip(rows, np.linspace(1, 0.15, len(rows))[::-1], strict=True):
        plot_levels(right, test_levels(row), color="tab:blue", alpha=shade, marker=".")
    right.set_title("Test loss by noise level, first to last report")
    for quality in rest:
        if _columns(expected, distance)[0]:
            plot_column(quality, expected, distance, label="expected", **GREY)
            quality.legend()
        plot_column(quality, rows, distance, marker=".")
        name = "small FID" if distance == "fid" else "Frechet distance"
        quality.set(title=f"{name} of samples, averaged weights", ylim=(0, None))
    return figure


def vae_curves(rows: Sequence[dict[str, Any]]) -> Figure:
    """Rows of an autoencoder's `metrics.csv` -> the terms of its loss and its held-out PSNR, over images."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for term in ("loss", "reconstruction", "kl", "perceptual", "adversarial", "discriminator"):
        if _columns(rows, term)[0]:
            plot_column(left, rows, term, marker=".", label=term)
    left.set(title="Training loss and its terms")
    left.set_yscale("symlog", linthresh=0.01)
    left.legend()
    plot_column(right, rows, "psnr", marker=".")
    right.set(ylabel="dB", title="PSNR of held-out images, averaged weights")
    return figure


def level_curves(losses: dict[str, dict[float, float]]) -> Figure:
    """Denoising loss by noise level, sigma -> loss, one curve for each name."""
    figure = new_figure(6, 3.6)
    axes = figure.subplots()
    for name, curve in losses.items():
        plot_levels(axes, curve, marker="o", label=name)
    axes.set(ylim=(0, None), ylabel="weighted denoising loss")
    axes.legend()
    return figure


def sweep_curves(rows: Sequence[dict[str, Any]], varied: Sequence[str]) -> Figure:
    """Measured numbers over the settings `varied`, a field for each number that differs.

    The x axis is the numeric setting with most values, if any; each combination of the others is a curve.
    """
    counts = {name: len({row[name] for row in rows}) for name in rows[0]}
    measured = [name for name in rows[0] if name not in varied and not name.endswith("_std")]
    numbers = [name for name in measured if counts[name] > 1] or measured
    along = max(varied, key=lambda name: (not isinstance(rows[0][name], str), counts[name]))
    height, width = -(-len(numbers) // 4), min(len(numbers), 4)
    figure = new_figure(4 * width, 3.4 * height)
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


def latent_maps(images: np.ndarray, latents: Any) -> Figure:
    """Pictures, uint8 (N, H, W, C), a row each, and beside each the channels of its latent, (N, z, h, w)."""
    figure = new_figure(1.7 * (1 + latents.shape[1]) + 0.8, 1.7 * len(images))
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


def plot_column(axes: Any, rows: Sequence[dict[str, Any]], column: str, **options: Any) -> None:
    """Plot a column over images."""
    axes.plot(*_columns(rows, "images", column), **options)
    axes.set_xlabel("images seen")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 100k: long numbers would overlap


def _columns(rows: Sequence[dict[str, Any]], *names: str) -> list[list[float]]:
    """The columns with these names, over the rows that have them all."""
    whole = [row for row in rows if all(row.get(name, "") != "" for name in names)]
    return [[float(row[name]) for row in whole] for name in names]


def plot_levels(axes: Any, losses: dict[float, float], **options: Any) -> None:
    """Plot losses over noise levels."""
    axes.plot(list(losses), list(losses.values()), **options)
    axes.set(xscale="log", xlabel="noise level sigma")
    axes.set_xticks([], minor=True)
    axes.set_xticks(list(losses), [f"{sigma:.2g}" for sigma in losses])


def test_levels(row: dict[str, Any]) -> dict[float, float]:
    """The test loss by noise level, from a row of `metrics.csv`."""
    prefix = "test_loss_"
    return {float(key.removeprefix(prefix)): float(value) for key, value in row.items() if key.startswith(prefix)}
