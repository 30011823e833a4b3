"""How images come out of noise: every step as a picture, some of them side by side, all of them in motion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffit_lib.diffusion.samplers import State
from diffit_lib.sampling.pipeline import Labels, Pipeline
from diffit_lib.utils.files import replacing
from diffit_lib.utils.plots import enlargement, tile, write_png

FOLLOWED = 16  # images at most
FRAMES, FRAME_MS, LAST_MS = 60, 100, 2000  # of the moving picture: frames at most, how long each and the last one stand


def seen(pipe: Pipeline, state: State) -> np.ndarray:
    """What a state shows, uint8 (B, H, W, C).

    It is shown in the coordinate of a variance-preserving process, so that pure noise has unit variance. Latents are
    decoded, each as if it were without noise.
    """
    return pipe.decode(state.x / (1 + state.sigma**2) ** 0.5)


def every(steps: int, most: int, step: int) -> bool:
    """Whether a step is one of about `most` that are shown, the last one among them."""
    return (steps - step) % max(1, steps // most) == 0


def write_trajectory(folder: Path, pipe: Pipeline, seeds: list[int], labels: Labels, **settings: Any) -> None:
    """Write `step-0001.png`, ..., each with all images, `strip.png` with a row for each image, and `denoising.gif`."""
    steps = pipe.sampling(**settings).steps
    columns = max(1, round(len(seeds) ** 0.5))
    strip = []
    for state in pipe.stream(seeds, labels, **settings):
        pictures = seen(pipe, state)
        write_png(step_path(folder, state.step), tile(pictures, columns, scale=enlargement(pictures)))
        if every(steps, 9, state.step):
            strip.append(pictures)
    rows = np.stack(strip, axis=1)  # (images, states, H, W, C)
    write_png(
        folder / "strip.png", tile(rows.reshape(-1, *rows.shape[2:]), len(strip), scale=enlargement(strip[0], 48))
    )
    first, *rest = (step for step in range(1, steps + 1) if every(steps, FRAMES, step))
    with replacing(folder / "denoising.gif") as beside, Image.open(step_path(folder, first)) as picture:
        others = (Image.open(step_path(folder, step)) for step in rest)  # one by one
        times = [FRAME_MS] * len(rest) + [LAST_MS]
        picture.save(beside, "GIF", save_all=True, append_images=others, duration=times, loop=0)


def step_path(folder: Path, step: int) -> Path:
    """Where all images lie as they are after this step."""
    return folder / f"step-{step:04d}.png"


def draw_grid(pipe: Pipeline, **settings: Any) -> np.ndarray:
    """64 images in order of class, 8 to a row, seeds 0 to 63; one picture (H, W, C)."""
    classes = pipe.card.experiment.network.num_classes
    images = pipe(range(64), [k * classes // 64 for k in range(64)] if classes else None, **settings)
    return tile(images, columns=8, scale=enlargement(images))


def draw_strip(pipe: Pipeline, columns: int = 9, **settings: Any) -> np.ndarray:
    """From noise to image: one row per class, of at most ten, of ever later states; one picture (H, W, C).

    About `columns` states, the last one among them, are shown.
    """
    classes = pipe.card.experiment.network.num_classes
    seeds = list(range(min(classes, 10) or 6))
    steps = pipe.sampling(**settings).steps
    states = [
        seen(pipe, state)
        for state in pipe.stream(seeds, seeds if classes else None, **settings)
        if every(steps, columns, state.step)
    ]
    rows = np.stack(states, axis=1)  # (classes, states, H, W, C)
    return tile(rows.reshape(-1, *rows.shape[2:]), columns=len(states), scale=enlargement(states[0], 48))


def draw_sweep(pipe: Pipeline, scales: Sequence[float], **settings: Any) -> np.ndarray:
    """One row for each strength of guidance, one column for each class, of at most ten; one picture (H, W, C).

    A column starts from one noise throughout; 0 is guidance to no class at all.
    """
    columns = list(range(min(pipe.card.experiment.network.num_classes, 10)))
    rows = [pipe(columns, columns, **settings | {"guidance": float(scale)}) for scale in scales]
    return tile(np.concatenate(rows), columns=len(columns), scale=enlargement(rows[0]))
