"""`demo`: trains DiffiT on real handwritten digits, in minutes on a CPU, and shows what it draws, with numbers."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffit_lib.data import load_data
from diffit_lib.extractors import train_classifier
from diffit_lib.files import write_text
from diffit_lib.pipeline import Pipeline, load
from diffit_lib.plots import enlargement, tile, write_png
from diffit_lib.presets import preset
from diffit_lib.stamp import Stamp
from diffit_lib.tasks.evaluate import evaluate
from diffit_lib.tasks.info import parameters
from diffit_lib.tasks.train import train
from diffit_lib.tasks.trajectory import every, seen
from diffit_lib.tensors import cpu_threads


def demo(run: str | Path = "runs/demo") -> dict[str, Any]:
    """Train the `digits` preset in the folder `run`, draw, measure, and return what `report.json` holds.

    A run that is already there is finished, not trained anew; delete the folder to start over.
    """
    run, recipe = Path(run), preset("digits")
    data = load_data(recipe.data)
    with cpu_threads(recipe.training.threads):
        train_classifier(data.train.images, data.train.labels)  # into the cache: training's minutes are for training
    weights = train(recipe, run, data)
    with cpu_threads(recipe.training.threads):
        pipe = load(weights)
        write_png(run / "samples.png", draw_grid(pipe))
        write_png(run / "denoising.png", draw_strip(pipe))
        numbers = evaluate(weights, data)
    install_seconds = os.environ.get("DIFFIT_INSTALL_SECONDS")
    report = {
        **numbers,
        "train_seconds": round(60 * pipe.card.minutes, 1),
        "install_seconds": float(install_seconds) if install_seconds else None,
        "images_seen": pipe.card.images_seen,
        "parameters": parameters(pipe.denoiser.network),
        "device": pipe.card.device,
    }
    write_text(run / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def draw_grid(pipe: Pipeline, **settings: Any) -> np.ndarray:
    """64 images in order of class, 8 to a row, seeds 0 to 63; one picture (H, W, C)."""
    classes = pipe.card.recipe.network.num_classes
    images = pipe(range(64), [k * classes // 64 for k in range(64)] if classes else None, **settings)
    return tile(images, columns=8, scale=enlargement(images))


def draw_strip(pipe: Pipeline, columns: int = 9, **settings: Any) -> np.ndarray:
    """From noise to image: one row per class, of at most ten, of ever later states; one picture (H, W, C).

    About `columns` states, the last one among them, are shown.
    """
    classes = pipe.card.recipe.network.num_classes
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
    columns = list(range(min(pipe.card.recipe.network.num_classes, 10)))
    rows = [pipe(columns, columns, **settings | {"guidance": float(scale)}) for scale in scales]
    return tile(np.concatenate(rows), columns=len(columns), scale=enlargement(rows[0]))


def table(report: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    seconds = report["train_seconds"]
    rows = [
        ("class accuracy of samples", report["class_accuracy"], "the classifier sees the digit that was asked for"),
        ("classifier on real digits", report["classifier_test_accuracy"], "its accuracy on the test part"),
        ("Frechet ratio", report["frechet_ratio"], "1: as close to the train part as real test digits are"),
        ("copy ratio", report["copy_ratio"], "1: as far from training images as test digits; 0: copies"),
    ]
    lines = [f"  {name:<26} {value:6.3f}   {meaning}" for name, value, meaning in rows]
    lines.append(f"  stamp: {Stamp(**report['stamp'])}")
    lines.append(f"  {report['parameters']:,} parameters, {report['images_seen']:,} images seen in {seconds:.0f} s")
    return "\n".join(lines + [f"  note: {warning}" for warning in report["warnings"]])
