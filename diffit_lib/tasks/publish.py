"""`publish`: a finished run -> ready-made weights, half the size, with their card and a grid of samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffit_lib.files import READY_MADE, write_text
from diffit_lib.pipeline import load
from diffit_lib.plots import loss_curve, write_figure, write_png
from diffit_lib.stamp import Stamp
from diffit_lib.tasks.demo import draw_grid
from diffit_lib.tasks.evaluate import evaluate
from diffit_lib.tasks.info import parameters
from diffit_lib.tensors import cpu_threads
from diffit_lib.training import read_rows
from diffit_lib.weights import Card, load_own_codec, load_weights, save_weights


def publish(run: str | Path, name: str, command: str, folder: str | Path = READY_MADE) -> Path:
    """Write the averaged weights of `run` as float16, measure those very weights, and describe them in a card.

    `command` is what made the run, for the card. The run's curves go with them, as what to expect of such a run.
    """
    denoiser, card = load_weights(Path(run) / "weights.safetensors")
    codec = load_own_codec(Path(run) / "weights.safetensors", card)
    path = Path(folder) / f"{name}.safetensors"
    save_weights(path, card, denoiser, codec=codec, dtype=torch.float16)
    with cpu_threads(card.recipe.training.threads):
        numbers = evaluate(path)
        write_png(path.with_suffix(".png"), draw_grid(load(path)))
    save_weights(path, replace(card, numbers=numbers), denoiser, codec=codec, dtype=torch.float16)
    write_text(path.with_suffix(".csv"), (Path(run) / "metrics.csv").read_text())  # the curve to expect
    write_figure(path.with_name(f"{name}-loss.png"), loss_curve(read_rows(path.with_suffix(".csv"))))
    write_text(path.with_suffix(".md"), describe(name, command, replace(card, numbers=numbers), parameters(denoiser)))
    return path


def describe(name: str, command: str, card: Card, count: int) -> str:
    """The card as Markdown."""
    numbers: dict[str, Any] = card.numbers
    rows = [f"| {key.replace('_', ' ')} | {value:.3f} |" for key, value in numbers.items() if isinstance(value, float)]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"![64 samples in order of class, seeds 0 to 63]({name}.png)",
            f"![The training run's curves]({name}-loss.png)",
            "",
            f"Image-space DiffiT, {count:,} parameters, float16; trained on {card.trained_on}: {card.images_seen:,} "
            f"images in {card.minutes:.1f} minutes on {card.device}. Licence: {card.licence}. Made by",
            "",
            f"```sh\n{command}\n```",
            "",
            f"`diffit_lib.load({name!r})` opens it; `diffit evaluate {name}` measures it again:",
            "",
            "| number | value |",
            "|---|---|",
            *rows,
            "",
            f"Stamp: {Stamp(**numbers['stamp'])}.",
            *[f"Note: {warning}." for warning in numbers["warnings"]],
            "",
        ]
    )
