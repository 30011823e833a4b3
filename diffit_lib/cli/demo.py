"""`demo`: trains DiffiT on real handwritten digits, in minutes on a CPU, and shows what it draws, with numbers."""

import json
import os
from pathlib import Path
from typing import Any

from diffit_lib.config.presets import preset
from diffit_lib.data.datasets import load_data
from diffit_lib.evaluation.evaluate import evaluate
from diffit_lib.evaluation.features import train_classifier
from diffit_lib.evaluation.provenance import in_words
from diffit_lib.models.cost import parameters
from diffit_lib.sampling.grids import draw_grid, draw_strip
from diffit_lib.sampling.pipeline import load
from diffit_lib.training.train import train
from diffit_lib.utils.files import write_text
from diffit_lib.utils.plots import write_png
from diffit_lib.utils.tensors import cpu_threads


def demo(run: str | Path = "runs/demo") -> dict[str, Any]:
    """Train the `digits` preset in the folder `run`, draw, measure, and return what `report.json` holds.

    A run that is already there is finished, not trained anew; delete the folder to start over.
    """
    run, experiment = Path(run), preset("digits")
    data = load_data(experiment.data)
    with cpu_threads(experiment.training.threads):
        train_classifier(data.train.images, data.train.labels)  # into the cache: training's minutes are for training
    weights = train(experiment, run, data)
    with cpu_threads(experiment.training.threads):
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


def report_text(report: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    seconds = report["train_seconds"]
    rows = [
        ("class accuracy of samples", report["class_accuracy"], "the classifier sees the digit that was asked for"),
        ("classifier on real digits", report["classifier_test_accuracy"], "its accuracy on the test part"),
        ("Frechet ratio", report["frechet_ratio"], "1: as close to the train part as real test digits are"),
        ("copy ratio", report["copy_ratio"], "1: as far from training images as test digits; 0: copies"),
    ]
    lines = [f"  {name:<26} {value:6.3f}   {meaning}" for name, value, meaning in rows]
    lines.append(f"  stamp: {in_words(report['stamp'])}")
    lines.append(f"  {report['parameters']:,} parameters, {report['images_seen']:,} images seen in {seconds:.0f} s")
    return "\n".join(lines + [f"  note: {warning}" for warning in report["warnings"]])
