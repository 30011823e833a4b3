"""Every view as a matplotlib Figure, returned and never shown; and the GIF bytes and pictures that widgets show."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import ImageDraw
from torch import Tensor

from diffit_lib.diffusion.denoiser import Preconditioned
from diffit_lib.diffusion.schedules import karras, respaced, sigma_table
from diffit_lib.sampling.pipeline import Pipeline, to_pictures
from diffit_lib.utils.plots import tile, to_image
from diffit_lib.viz.attention import Attention, attention_at, attention_blocks, frozen_time, noisy_states

ORANGE, GAP = (255, 127, 14), 4  # the colour of a frame, and pixels between pictures


def picture_rows(rows: Mapping[str, np.ndarray], columns: Sequence[str] = ()) -> Figure:
    """Rows of pictures, uint8 (N, H, W, C) by the row's name, with a caption over each column."""
    count = max(map(len, rows.values()))
    figure = Figure(figsize=(count + 1.2, len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), count, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        line[0].text(-0.1, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        for axes, picture in zip(line, pictures, strict=False):
            _show(axes, picture)
    for axes, caption in zip(grid[0], columns, strict=False):
        axes.set_title(caption, fontsize=9)
    return figure


def denoising_figure(
    pipe: Pipeline, seed: int = 0, label: int | str | None = None, columns: int = 9, **settings: Any
) -> Figure:
    """One image on its way from noise: the state above, what the denoiser takes it for below."""
    states = list(pipe.stream([seed], label, **settings))
    states = [states[i] for i in evenly(len(states), columns)]
    noisy = np.concatenate([pipe.decode(state.x / max(1.0, state.sigma)) for state in states])
    guess = np.concatenate([pipe.decode(state.denoised) for state in states])
    return picture_rows({"noisy image": noisy, "clean guess": guess}, [f"σ = {state.sigma:.2g}" for state in states])


def schedules_figure(clean: Tensor, noise: Tensor, columns: int = 9) -> Figure:
    """One image (1, C, H, W) in [-1, 1] under Karras, linear and cosine noise levels, from clean to noise."""
    levels = {
        "Karras (EDM)": karras(columns),
        "linear betas": respaced(sigma_table("linear", 1000), columns),
        "cosine betas": respaced(sigma_table("cosine", 1000), columns),
    }
    figure = Figure(figsize=(columns + 1.4, 3 * 1.25), layout="constrained")
    grid = figure.subplots(3, columns, squeeze=False)
    for line, (name, sigmas) in zip(grid, levels.items(), strict=True):
        line[0].text(-0.1, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
        for axes, sigma in zip(line, sigmas[:-1].flip(0).tolist(), strict=True):
            axes.set_axis_off()
            _show(axes, to_pictures((clean + sigma * noise) / (1 + sigma**2) ** 0.5)[0])
            axes.set_title(f"σ = {sigma:.2g}", fontsize=8)
    return figure


def preconditioning_figure(denoiser: Preconditioned) -> Figure:
    """c_skip, c_out and c_in over the noise level (Karras et al. 2022, table 1)."""
    sigma = torch.logspace(np.log10(denoiser.sigma_min), np.log10(denoiser.sigma_max), 200)
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, values in zip(("c_skip", "c_out", "c_in"), denoiser.coefficients(sigma), strict=True):
        axes.plot(sigma.numpy(), values.numpy(), label=name)
    axes.set(xscale="log", xlabel="noise level σ", title="How much of input and network makes the clean image")
    axes.legend()
    return figure


def time_token_figure(
    pipe: Pipeline,
    seed: int,
    label: int | str | None = None,
    *,
    sigma: float = 0.7,
    query: tuple[int, int] | None = None,
) -> Figure:
    """One noisy image, seen with the time tokens of seven noise levels: nothing else differs between the columns.

    The image of `seed` gets noise of level `sigma`; the time token says `sigma` in the middle column, other levels
    beside it. Above, the denoiser's estimates of the clean image. Below, where the token at `query`, by default in the
    middle, looks in the first block: its window, which the input shows too, as a mean of all heads.
    """
    told = [sigma * factor for factor in (16, 4, 2, 1, 1 / 2, 1 / 4, 1 / 16)]
    block, (*_, drawn) = next(iter(attention_blocks(pipe.denoiser.network))), pipe.stream([seed], label)
    x = noisy_states(drawn.x, [sigma])
    with frozen_time(pipe.denoiser, told):
        seen = attention_at(pipe, block, x.expand(len(told), -1, -1, -1), [sigma] * len(told), label)
    (high, wide), (rows, cols) = seen.window, seen.map_size
    row, column = query or (rows // 2, cols // 2)
    top, left = row // high * high, column // wide * wide
    looks = seen.of_query(row, column)[:, top : top + high, left : left + wide].numpy()
    pictures = [*pipe.decode(x / max(sigma, 1)), *pipe.decode(seen.clean.to(x))]
    figure = Figure(figsize=(len(pictures) + 1.2, 2.5), layout="constrained")
    grid = figure.subplots(2, len(pictures), squeeze=False)
    for axes, picture, title in zip(grid[0], pictures, ["input", *(f"σ = {level:.2g}" for level in told)], strict=True):
        _show(axes, picture)
        axes.set_title(title, fontsize=9)
    for axes, look in zip(grid[1, 1:], looks, strict=True):
        axes.imshow(look, cmap="magma", vmin=0)
        _mark(axes, (row - top, column - left))
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    grid[1, 0].set_axis_off()
    down, right = pictures[0].shape[0] / rows, pictures[0].shape[1] / cols
    _mark(grid[0, 0], (row, column), (right, down))
    _mark(grid[0, 0], (top // high, left // wide), (wide * right, high * down))
    grid[0, 1].set_ylabel("estimate", fontsize=9)
    grid[1, 1].set_ylabel("attention", fontsize=9)
    return figure


def position_bias_figure(attention: Attention) -> Figure:
    """The learned bias by relative position, one field a head: the middle token's view of its window."""
    (height, width), bias = attention.window, attention.bias
    middle = height // 2 * width + width // 2
    figure = Figure(figsize=(1.9 * len(bias) + 0.8, 2.3), layout="constrained")
    grid = figure.subplots(1, len(bias), squeeze=False)[0]
    top = float(bias.abs().max())
    for head, axes in enumerate(grid):
        shown = axes.imshow(bias[head, middle].view(height, width).numpy(), cmap="RdBu_r", vmin=-top, vmax=top)
        axes.set(xticks=[], yticks=[], title=f"head {head + 1}")
        axes.plot(width // 2, height // 2, "k+")
    figure.colorbar(shown, ax=list(grid), shrink=0.8, label="bias")
    return figure


def time_share_figure(blocks: Mapping[str, Attention]) -> Figure:
    """How much of q, k and v comes from the time token, over the noise level, a field for each block."""
    figure = Figure(figsize=(3.2 * len(blocks) + 0.6, 3), layout="constrained")
    grid = figure.subplots(1, len(blocks), squeeze=False, sharey=True)[0]
    for axes, (name, attention) in zip(grid, blocks.items(), strict=True):
        for part, share in zip(("query", "key", "value"), attention.time_share().T, strict=True):
            axes.plot(attention.sigmas.numpy(), share.numpy(), marker=".", label=part)
        axes.set(xscale="log", ylim=(0, 1), xlabel="noise level σ", title=name)
    grid[0].set_ylabel("share of the time token")
    grid[0].legend()
    return figure


def distance_figure(blocks: Mapping[str, Attention]) -> Figure:
    """How far tokens look on average, over the noise level: one line a head, a field for each block."""
    figure = Figure(figsize=(3.2 * len(blocks) + 0.6, 3), layout="constrained")
    grid = figure.subplots(1, len(blocks), squeeze=False)[0]
    for axes, (name, attention) in zip(grid, blocks.items(), strict=True):
        for head, distance in enumerate(attention.mean_distance().T, start=1):
            axes.plot(attention.sigmas.numpy(), distance.numpy(), marker=".", label=f"head {head}")
        axes.set(xscale="log", xlabel="noise level σ", title=name)
    grid[0].set_ylabel("mean distance in tokens")
    grid[0].legend()
    return figure


def inert_key_figure(attention: Attention, query: tuple[int, int], head: int = 0) -> Figure:
    """One token's attention with and without the time token's part of the keys: the same, for softmax cancels it."""
    (rows, cols), (wh, ww) = query, attention.window
    place = rows // wh, cols // ww, head, rows % wh * ww + cols % ww
    levels = evenly(len(attention.sigmas), 3)
    without = attention.without_key_time()
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, step in zip(figure.subplots(1, len(levels), squeeze=False)[0], levels, strict=True):
        one, other = (weights[(step, *place)] for weights in (attention.weights, without))
        axes.bar(range(len(one)), one.numpy(), color="0.75", width=1.0, label="as it is")
        dots = {"color": "tab:orange", "markersize": 4, "label": "without the key's time part"}
        axes.plot(range(len(other)), other.numpy(), "o", **dots)
        axes.set(xlabel="token of the window", title=f"σ = {attention.sigmas[step]:.2g}")
    figure.axes[0].set_ylabel("attention")
    figure.axes[0].legend(fontsize=8)
    return figure


def frozen_time_figure(
    pipe: Pipeline, seeds: Sequence[int], sigmas: Sequence[float], label: int | str | None = None, **settings: Any
) -> Figure:
    """The same seeds with the true time token, and with the time token frozen at each noise level."""
    rows = {"true time token": pipe(seeds, label, **settings)}
    for sigma in sigmas:
        with frozen_time(pipe.denoiser, sigma):
            rows[f"frozen at σ = {sigma:g}"] = pipe(seeds, label, **settings)
    return picture_rows(rows, [f"seed {seed}" for seed in seeds])


def _mark(axes: Axes, query: tuple[int, int], scale: tuple[float, float] = (1, 1)) -> None:
    place = query[1] * scale[0] - 0.5, query[0] * scale[1] - 0.5
    axes.add_patch(Rectangle(place, *scale, fill=False, edgecolor="tab:orange", linewidth=2))


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(to_image(picture), cmap="gray", vmin=0, vmax=255, interpolation="nearest")


def enlarge(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, C) -> (H', W', 3): each pixel repeated a whole number of times, to about `side` pixels a side."""
    scale = max(1, round(side / max(picture.shape[:2])))
    return np.repeat(np.repeat(picture, scale, 0), scale, 1).repeat(3 // picture.shape[2], 2)


def gif(frames: Sequence[np.ndarray]) -> bytes:
    """uint8 pictures (H, W, C) as a GIF of 120 ms a frame that pauses on the last one."""
    images, data = [to_image(frame) for frame in frames], io.BytesIO()
    milliseconds = [120] * (len(images) - 1) + [1500]
    images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return data.getvalue()


def heat(values: np.ndarray, side: int, top: float) -> np.ndarray:
    """Values (H, W) from 0 to `top` -> a uint8 picture in the colours of matplotlib's magma."""
    colours = colormaps["magma"](values / max(top, 1e-9))[..., :3]
    return enlarge(np.round(255 * colours).astype(np.uint8), side)


def outline(picture: np.ndarray, row: int, column: int, rows: int, columns: int) -> np.ndarray:
    """The picture (H, W, 3) with a frame around one place of a grid of rows x columns."""
    image, (height, width) = to_image(picture), picture.shape[:2]
    start = column * width // columns, row * height // rows
    end = (column + 1) * width // columns - 1, (row + 1) * height // rows - 1
    ImageDraw.Draw(image).rectangle((*start, *end), outline=ORANGE, width=max(2, height // 96))
    return np.asarray(image)


def evenly(count: int, most: int) -> list[int]:
    """At most so many of `count` places, evenly spread, both ends among them."""
    return sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """uint8 pictures (H, W, 3) of one size side by side on white."""
    return tile(np.stack(pictures), len(pictures), scale=1, gap=GAP)[GAP:-GAP, GAP:-GAP]
