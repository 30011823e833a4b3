"""`make figures` draws the paper's blocks for the notebooks and the README's comparison of training curves."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from diffit_lib.config.presets import preset
from diffit_lib.notebook.cells import FIGURES
from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.files import read_rows
from diffit_lib.utils.plots import new_figure, plot_column, plot_levels, test_levels, write_figure
from diffit_lib.viz.figures import picture_rows

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "images"
RESULTS = ROOT / "docs" / "results"  # metrics.csv of runs that the README tells of
SPACE, TIME, PLAIN, INK = "#4c78a8", "#e07b39", "#f1efe9", "#2b2b2b"  # spatial tokens, the time token, operations
SOFT = {SPACE: "#dbe6f2", TIME: "#fbe5d6", PLAIN: PLAIN}


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure whose units are inches."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def box(
    axes: Axes, x: float, y: float, text: str, color: str = PLAIN, width: float = 1.0, height: float = 0.56
) -> None:
    """A named operation, centred at (x, y)."""
    corner = (x - width / 2, y - height / 2)
    edge = INK if color == PLAIN else color
    shape = FancyBboxPatch(
        corner, width, height, boxstyle="round,pad=0,rounding_size=0.09", facecolor=SOFT[color], edgecolor=edge, lw=1.3
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=11, color=INK)


def plus(axes: Axes, x: float, y: float, sign: str = "$+$") -> None:
    """A sum."""
    axes.add_patch(Circle((x, y), 0.15, facecolor="white", edgecolor=INK, lw=1.3, zorder=3))
    axes.text(x, y - 0.005, sign, ha="center", va="center", fontsize=12, color=INK, zorder=4)


def arrow(axes: Axes, *points: tuple[float, float], color: str = INK) -> None:
    """A line through points; the last piece ends in an arrow head."""
    for start, end in pairwise(points[:-1]):
        axes.plot(*zip(start, end, strict=True), color=color, lw=1.3, solid_capstyle="round")
    style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(points[-2], points[-1], color=color, lw=1.3, **style))


def token(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    """The name of a tensor that goes in or comes out."""
    axes.text(x, y, text, ha="center", va="center", fontsize=14, color=color)


def diffit_block() -> Figure:
    """Equations 7 and 8."""
    figure, axes = canvas(9.2, 2.3)
    y, over = 0.95, 1.75
    places = {"LN": 1.65, "TMSA": 3.0, "+1": 4.15, "LN ": 5.2, "MLP": 6.45, "+2": 7.55}
    token(axes, 0.35, y, r"$\mathbf{x}_s$", SPACE)
    token(axes, 3.0, 0.18, r"time token $\mathbf{x}_t$", TIME)
    token(axes, 8.65, y, r"$\mathbf{x}_s'$", SPACE)
    for name, x in places.items():
        if name[0] == "+":
            plus(axes, x, y)
        else:
            box(axes, x, y, name.strip(), TIME if name == "TMSA" else PLAIN, width=0.95)
    arrow(axes, (0.6, y), (1.17, y))
    arrow(axes, (2.13, y), (2.52, y))
    arrow(axes, (3.48, y), (4.0, y))
    arrow(axes, (4.3, y), (4.72, y))
    arrow(axes, (5.68, y), (5.97, y))
    arrow(axes, (6.93, y), (7.4, y))
    arrow(axes, (7.7, y), (8.35, y))
    arrow(axes, (3.0, 0.36), (3.0, 0.66), color=TIME)
    for start, end in ((0.85, 4.15), (4.5, 7.55)):
        arrow(axes, (start, y), (start, over), (end, over), (end, y + 0.16))
    axes.text(4.57, y - 0.27, r"$\hat{\mathbf{x}}_s$", fontsize=12, color=SPACE, ha="center")
    return figure


def tmsa() -> Figure:
    """Equations 3 to 6."""
    figure, axes = canvas(10.2, 4.3)
    rows = {"q": 3.35, "k": 2.25, "v": 1.15}
    left = Rectangle((0.25, 1.75), 1.0, 1.0, facecolor=SOFT[SPACE], edgecolor=SPACE, lw=1.3)
    axes.add_patch(left)
    for k in range(1, 4):
        axes.plot([0.25 + k / 4] * 2, [1.75, 2.75], color=SPACE, lw=0.8)
        axes.plot([0.25, 1.25], [1.75 + k / 4] * 2, color=SPACE, lw=0.8)
    token(axes, 0.75, 3.0, r"$\mathbf{x}_s$", SPACE)
    axes.text(0.75, 1.55, "tokens of\none window", ha="center", va="top", fontsize=9, color=SPACE)
    axes.add_patch(Rectangle((4.13, 0.12), 0.25, 0.25, facecolor=SOFT[TIME], edgecolor=TIME, lw=1.3))
    axes.text(4.5, 0.24, r"$\mathbf{x}_t$, one time token for all", va="center", fontsize=11, color=TIME)
    axes.plot([1.25, 1.55], [2.25, 2.25], color=SPACE, lw=1.3)
    axes.plot([1.55, 1.55], [rows["v"], rows["q"]], color=SPACE, lw=1.3)
    axes.plot([4.25, 4.25], [0.37, rows["q"] - 0.42], color=TIME, lw=1.3)
    for name, y in rows.items():
        box(axes, 2.25, y, f"$W_{{{name}s}}$", SPACE, width=0.8)
        box(axes, 3.55, y - 0.42, f"$W_{{{name}t}}$", TIME, width=0.8, height=0.4)
        arrow(axes, (1.55, y), (1.85, y), color=SPACE)
        arrow(axes, (4.25, y - 0.42), (3.95, y - 0.42), color=TIME)
        plus(axes, 2.98, y)
        axes.plot([2.65, 2.83], [y, y], color=SPACE, lw=1.3)
        arrow(axes, (3.15, y - 0.42), (2.98, y - 0.42), (2.98, y - 0.15), color=TIME)
        axes.plot([3.13, 4.75], [y, y], color=INK, lw=1.3)
        axes.text(4.62, y + 0.16, f"$\\mathbf{{{name}}}_s$", fontsize=13, ha="center", color=INK)
    middle = (rows["q"] + rows["k"]) / 2
    box(axes, 5.95, middle, r"$QK^\top/\sqrt{d}$", width=1.3)
    arrow(axes, (4.75, rows["q"]), (5.95, rows["q"]), (5.95, middle + 0.28))
    arrow(axes, (4.75, rows["k"]), (5.95, rows["k"]), (5.95, middle - 0.28))
    plus(axes, 7.0, middle)
    arrow(axes, (6.6, middle), (6.85, middle))
    axes.text(7.0, middle + 0.78, "$B$, by relative\nposition", ha="center", va="center", fontsize=9.5, color=INK)
    arrow(axes, (7.0, middle + 0.52), (7.0, middle + 0.15))
    box(axes, 7.95, middle, "softmax", width=1.05)
    arrow(axes, (7.15, middle), (7.42, middle))
    plus(axes, 8.8, rows["v"], r"$\times$")
    arrow(axes, (8.48, middle), (8.8, middle), (8.8, rows["v"] + 0.15))
    arrow(axes, (4.75, rows["v"]), (8.65, rows["v"]))
    arrow(axes, (8.95, rows["v"]), (9.35, rows["v"]))
    axes.text(9.42, rows["v"], "output", va="center", fontsize=11, color=INK)
    return figure


def resblock() -> Figure:
    """Equations 9 and 10."""
    figure, axes = canvas(9.2, 2.3)
    y, over = 0.95, 1.75
    token(axes, 0.35, y, r"$\mathbf{x}_s$", SPACE)
    token(axes, 8.8, y, r"$\mathbf{x}_s'$", SPACE)
    token(axes, 6.25, 0.18, r"time token $\mathbf{x}_t$", TIME)
    for x, text in ((1.65, "GN"), (2.95, "Swish"), (4.3, r"Conv $3\times3$")):
        box(axes, x, y, text, width=0.9 if x < 4 else 1.2)
    box(axes, 6.25, y, "DiffiT block", TIME, width=1.5)
    plus(axes, 7.75, y)
    for start, end in ((0.6, 1.2), (2.1, 2.5), (3.4, 3.7), (4.9, 5.5), (7.0, 7.6), (7.9, 8.5)):
        arrow(axes, (start, y), (end, y))
    axes.text(5.2, y + 0.17, r"$\hat{\mathbf{x}}_s$", fontsize=12, color=SPACE, ha="center")
    arrow(axes, (6.25, 0.36), (6.25, 0.66), color=TIME)
    arrow(axes, (0.85, y), (0.85, over), (7.75, over), (7.75, y + 0.16))
    axes.text(
        4.3, over + 0.12, r"a $1\times1$ convolution where the channels change", fontsize=9.5, ha="center", color=INK
    )
    return figure


def u_shape(name: str = "cifar10") -> Figure:
    """Figure 4 with the levels of a preset."""
    network = preset(name).network
    sizes = zip(network.map_sizes, network.channels, strict=True)
    step, middle, half = 1.35, 5.95, 1.0  # between levels; of the figure; of a box's width
    bottom = len(network.channels) - 1
    top = step * bottom + 0.9
    figure, axes = canvas(2 * middle, top + 0.6)
    for level, ((height, width), channels) in enumerate(sizes):
        y, reach = top - level * step, 0 if level == bottom else 2.6 - 0.45 * level
        text = f"{network.num_blocks} ResBlocks\n{height}$\\times${width}$\\times${channels}"
        for x in {middle - reach, middle + reach}:
            box(axes, x, y, text, TIME, width=2 * half, height=0.75)
        if level == bottom:
            break
        left, right = middle - reach, middle + reach
        arrow(axes, (left + half, y), (right - half, y), color=SPACE)
        axes.text(middle, y + 0.1, "skip, concatenated", ha="center", fontsize=9.5, color=SPACE)
        axes.text(left - 0.12, y - step / 2, "down", ha="right", va="center", fontsize=9.5, color=INK)
        axes.text(right + 0.12, y - step / 2, "up", va="center", fontsize=9.5, color=INK)
        if level + 1 < bottom:
            arrow(axes, (left, y - 0.375), (left, y - step + 0.375))
            arrow(axes, (right, y - step + 0.375), (right, y - 0.375))
        else:
            arrow(axes, (left, y - 0.375), (left, y - step), (middle - half, y - step))
            arrow(axes, (middle + half, y - step), (right, y - step), (right, y - 0.375))
    box(axes, 1.45, top, "tokenizer\nConv $3\\times3$", width=1.2, height=0.62)
    box(axes, 10.45, top, "GN, Swish,\nConv $3\\times3$", width=1.2, height=0.62)
    for start, end in ((0.6, 0.85), (2.05, 2.35), (9.55, 9.85), (11.05, 11.3)):
        arrow(axes, (start, top), (end, top))
    axes.text(0.32, top, "noisy\nimage", ha="center", va="center", fontsize=9.5, color=SPACE)
    token(axes, 11.5, top, "$F$", SPACE)
    axes.text(
        0.1, 0.4, "one time token, from the noise level,\nenters every ResBlock", fontsize=10, color=TIME, va="center"
    )
    return figure


def latent() -> Figure:
    """Latent diffusion: an autoencoder outside, diffusion inside."""
    figure, axes = canvas(10.6, 2.6)
    y, low = 1.75, 0.6
    for x, side, color, text in (
        (0.65, 1.0, PLAIN, r"image $\mathbf{x}$"),
        (3.5, 0.5, SPACE, r"latent $\mathbf{z}$"),
        (7.1, 0.5, SPACE, "clean latent"),
        (9.95, 1.0, PLAIN, "image"),
    ):
        grid(axes, x, y, side, 8 if side == 1.0 else 4, color)
        axes.text(x, y - side / 2 - 0.17, text, ha="center", va="center", fontsize=10.5, color=INK)
    box(axes, 2.1, y, "VAE\nencoder", width=1.15, height=0.75)
    box(axes, 8.5, y, "VAE\ndecoder", width=1.15, height=0.75)
    box(axes, 5.6, y, "DiffiT", TIME, width=1.4, height=0.75)
    plus(axes, 4.35, y)
    for start, end in ((1.15, 1.52), (2.68, 3.24), (3.76, 4.2), (4.5, 4.9), (6.3, 6.84), (7.36, 7.92), (9.08, 9.44)):
        arrow(axes, (start, y), (end, y))
    for x, text, end in ((4.35, "noise", y - 0.15), (5.6, "time, class", y - 0.375)):
        token(axes, x, low, text, TIME)
        arrow(axes, (x, low + 0.2), (x, end), color=TIME)
    axes.text(5.0, 0.15, "training begins at the left, sampling with noise alone", fontsize=10, ha="center", color=INK)
    return figure


def grid(axes: Axes, x: float, y: float, side: float, cells: int, color: str) -> None:
    """A square of pixels or places, centred at (x, y)."""
    edge = INK if color == PLAIN else color
    left, bottom = x - side / 2, y - side / 2
    axes.add_patch(Rectangle((left, bottom), side, side, facecolor=SOFT[color], edgecolor=edge, lw=1.3))
    for k in range(1, cells):
        axes.plot([left + side * k / cells] * 2, [bottom, bottom + side], color=edge, lw=0.5)
        axes.plot([left, left + side], [bottom + side * k / cells] * 2, color=edge, lw=0.5)


def latent_diffit() -> Figure:
    """Appendix H.2: DiffiT blocks on the patches of a latent."""
    figure, axes = canvas(10.6, 2.3)
    y = 1.3
    parts = (
        (1.85, "patches to\ntokens"),
        (4.55, "DiffiT block"),
        (6.55, "DiffiT block"),
        (8.55, "LN, Swish,\nlinear, patches"),
    )
    token(axes, 0.4, y, "$\\mathbf{z}$", SPACE)
    for x, text in parts:
        box(axes, x, y, text, TIME if "DiffiT" in text else PLAIN, width=1.4, height=0.75)
    plus(axes, 3.15, y)
    axes.text(3.15, 2.0, "fixed embedding of places", ha="center", va="center", fontsize=10, color=INK)
    arrow(axes, (3.15, 1.85), (3.15, y + 0.15))
    for start, end in ((0.6, 1.15), (2.55, 3.0), (3.3, 3.85), (7.25, 7.85), (9.25, 9.75)):
        arrow(axes, (start, y), (end, y))
    axes.text(5.55, y, "...", ha="center", va="center", fontsize=14, color=INK)
    token(axes, 10.0, y, "$F$", SPACE)
    token(axes, 5.55, 0.2, r"time token $\mathbf{x}_t$, from noise level and class", TIME)
    for x in (4.55, 6.55):
        arrow(axes, (x, 0.4), (x, y - 0.375), color=TIME)
    return figure


def diffit_and_dit() -> Figure:
    """Training curves of both blocks on the latents of Imagenette, as the README tells of them."""
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    for name in ("DiffiT", "DiT"):
        rows = read_rows(RESULTS / f"latent-{name.lower()}.csv")
        plot_column(left, rows, "test_loss", marker=".", label=name)
        plot_levels(right, test_levels(rows[-1]), marker=".", label=name)
    left.set_title("Test loss, averaged weights")
    right.set_title("Test loss by noise level, last report")
    for axes in (left, right):
        axes.legend()
    return figure


def editing() -> Figure:
    """Variations, inpainting and interpolation of an image that `mnist` drew, as docs/editing.md shows them."""
    pipe = load("mnist")
    image = pipe([5], 4)[0]
    strengths = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
    side = image.shape[0]
    lower = np.arange(side)[:, None].repeat(side, 1) >= side // 2
    rows = {
        "class 9, strength": np.concatenate([pipe([0], 9, image=image, strength=share) for share in strengths]),
        "lower half, class 4": pipe(range(7), 4, image=image, mask=lower),
        "lower half, class 9": pipe(range(7), 9, image=image, mask=lower),
        "seed 0 to 1": pipe.interpolate((0, 1), 3, count=7),
        "class 3 to 8": pipe.interpolate((0, 0), (3, 8), count=7),
        "image to image": pipe.interpolate((0, 1), (4, 9), 7, noise=pipe.invert(pipe((5, 2), (4, 9)), (4, 9))),
    }
    return picture_rows(rows, [f"{share:g}" for share in strengths])


if __name__ == "__main__":
    for draw in (diffit_block, tmsa, resblock, u_shape, latent, latent_diffit):
        write_figure(FIGURES / f"{draw.__name__}.png", draw())
    write_figure(IMAGES / "diffit_and_dit.png", diffit_and_dit())
    write_figure(IMAGES / "editing.png", editing())
