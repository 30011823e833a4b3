"""Grids of images, strips of the steps from noise to image, and GIFs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffit_lib.diffusion.samplers import State
from diffit_lib.sampling.pipeline import Labels, Pipeline
from diffit_lib.utils.errors import check
from diffit_lib.utils.files import replacing
from diffit_lib.utils.plots import captioned, enlargement, tile, write_png

SHOWN = 64  # images in a grid at most, unless one of another size is asked for
FOLLOWED = 16  # images in a trajectory at most
FRAMES, FRAME_MS, LAST_MS = 60, 100, 2000  # of a GIF: frames at most, milliseconds of each frame and of the last


def grid_cells(count: int, per_class: int | None, grid: tuple[int, int] | None) -> tuple[int, list[int]]:
    """Columns of a grid, and the numbers of the images it shows, row by row, of `count` images.

    With `per_class` each row is a class. `grid` is (columns, rows); None shows at most 64 images in about a square, or
    8 of each of at most 16 classes.
    """
    if per_class is not None:
        classes = count // per_class
        columns, rows = grid or (min(per_class, 8), min(classes, 16))
        check(
            columns <= per_class and rows <= classes,
            f"a grid of {columns}x{rows} has a class in each row, but {classes} classes have {per_class} images each; "
            f"give {per_class}x{classes} at most",
        )
        return columns, [row * per_class + column for row in range(rows) for column in range(columns)]
    if grid is None:
        return max(1, round(min(count, SHOWN) ** 0.5)), list(range(min(count, SHOWN)))
    columns, rows = grid
    shown = columns * rows
    check(shown <= count, f"a grid of {columns}x{rows} shows {shown} images, but {count} are drawn; give more seeds")
    return columns, list(range(shown))


def draw_grid(pipe: Pipeline, **settings: Any) -> np.ndarray:
    """Ten rows of ten images, a row for each class (of more than ten: evenly spread ones); uint8 (H, W, C).

    The seeds are 0 to 99. Without classes there are no names beside the rows.
    """
    classes = pipe.card.num_classes
    rows = min(classes, 10) or 10
    shown = [row * classes // rows for row in range(rows)]
    images = pipe(range(10 * rows), [label for label in shown for _ in range(10)] if classes else None, **settings)
    scale = max(enlargement(images), -(-60 // (images.shape[2] + 1)))  # 600 pixels wide at least
    sheet = tile(images, columns=10, scale=scale)
    return captioned(sheet, rows=class_names(pipe, shown)) if classes else sheet


def draw_strip(pipe: Pipeline, columns: int = 9, **settings: Any) -> np.ndarray:
    """From noise to image in about `columns` steps, a row for each class (10 at most); one picture, uint8 (H, W, C)."""
    classes = pipe.card.num_classes
    seeds = list(range(min(classes, 10) or 6))
    steps = pipe.sampling(**settings).steps
    states = pipe.stream(seeds, seeds if classes else None, **settings)
    shown = [(state.sigma, show(pipe, state)) for state in states if is_shown(state.step, steps, columns)]
    return strip(shown, class_names(pipe, seeds) if classes else ())


def draw_sweep(pipe: Pipeline, scales: Sequence[float], **settings: Any) -> np.ndarray:
    """A row for each guidance scale w, a column for each class (10 at most); one picture, uint8 (H, W, C).

    All images of a column start from the same noise. Scale 0 ignores the class.
    """
    columns = list(range(min(pipe.card.num_classes, 10)))
    rows = [pipe(columns, columns, **settings | {"guidance": float(scale)}) for scale in scales]
    sheet = tile(np.concatenate(rows), columns=len(columns))
    return captioned(sheet, class_names(pipe, columns), [f"w = {scale:g}" for scale in scales])


def write_trajectory(folder: Path, pipe: Pipeline, seeds: list[int], labels: Labels, **settings: Any) -> None:
    """Write `step-0001.png`, ..., each with all images, `strip.png` with a row for each image, and `denoising.gif`."""
    steps = pipe.sampling(**settings).steps
    columns = max(1, round(len(seeds) ** 0.5))
    paths = [folder / f"step-{step:04d}.png" for step in range(1, steps + 1)]
    shown: list[tuple[float, np.ndarray]] = []
    for path, state in zip(paths, pipe.stream(seeds, labels, **settings), strict=True):
        pictures = show(pipe, state)
        scale = max(enlargement(pictures), -(-256 // (columns * pictures.shape[2])))  # 256 pixels a side at least
        write_png(path, tile(pictures, columns, scale=scale))
        if is_shown(state.step, steps, 9):
            shown.append((state.sigma, pictures))
    write_png(folder / "strip.png", strip(shown))
    first, *rest = (path for step, path in enumerate(paths, 1) if is_shown(step, steps, FRAMES))
    with replacing(folder / "denoising.gif") as beside, Image.open(first) as picture:
        times = [FRAME_MS] * len(rest) + [LAST_MS]
        others = map(Image.open, rest)  # one at a time in memory
        picture.save(beside, "GIF", save_all=True, append_images=others, duration=times, loop=0)


def show(pipe: Pipeline, state: State) -> np.ndarray:
    """A sampler's state as pictures, uint8 (B, H, W, C).

    x / sqrt(1 + sigma^2) keeps pure noise at unit variance. Latents are decoded, noise and all.
    """
    return pipe.decode(state.x / (1 + state.sigma**2) ** 0.5)


def is_shown(step: int, steps: int, most: int) -> bool:
    """Whether a step is one of about `most` that are shown; the last one is."""
    return (steps - step) % max(1, steps // most) == 0


def strip(states: list[tuple[float, np.ndarray]], names: Sequence[str] = ()) -> np.ndarray:
    """One picture: a row for each image, named at its left, and a column for each (noise level, (B, H, W, C))."""
    sigmas, pictures = zip(*states, strict=True)
    rows = np.stack(pictures, axis=1)
    sheet = tile(rows.reshape(-1, *rows.shape[2:]), len(states))
    return captioned(sheet, [f"{sigma:.2g}" for sigma in sigmas], names, "σ")


def class_names(pipe: Pipeline, classes: Sequence[int]) -> list[str]:
    """The classes by name, where they have one, else by number; the first of several words for the same thing."""
    names = pipe.card.class_names
    return [names[label].split(",")[0] if label < len(names) else str(label) for label in classes]
