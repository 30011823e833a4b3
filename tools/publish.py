"""`publish`: a finished run -> ready-made weights, half the size, with their card and a grid of samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffit_lib.checkpoints.autoencoders import VAECard, load_vae, save_vae
from diffit_lib.checkpoints.weights import ModelCard, load_own_space, load_weights, save_weights
from diffit_lib.cli.info import title
from diffit_lib.data.datasets import Split, experiment_data
from diffit_lib.evaluation.evaluate import evaluate
from diffit_lib.evaluation.evaluator import HELD
from diffit_lib.evaluation.features import train_classifier
from diffit_lib.evaluation.metrics import class_accuracy
from diffit_lib.evaluation.provenance import Provenance
from diffit_lib.evaluation.reconstruction import comparison, measure_vae, reconstructions
from diffit_lib.models.cost import parameters
from diffit_lib.models.latent_space import Space
from diffit_lib.sampling.grids import draw_grid
from diffit_lib.sampling.pipeline import load
from diffit_lib.training.logs import read_rows
from diffit_lib.utils.files import PRETRAINED, write_text
from diffit_lib.utils.plots import loss_curve, write_figure, write_png
from diffit_lib.utils.tensors import best_device, cpu_threads


def publish(run: str | Path, name: str, command: str, folder: str | Path = PRETRAINED) -> Path:
    """Write the averaged weights of `run` as float16, measure those very weights, and describe them in a card.

    `command` is what made the run, for the card. The run's curves go with them, as what to expect of such a run.
    """
    denoiser, card = load_weights(Path(run) / "weights.safetensors")
    space = load_own_space(Path(run) / "weights.safetensors", card)
    path = Path(folder) / f"{name}.safetensors"
    save_weights(path, card, denoiser, space=space, dtype=torch.float16)
    with cpu_threads(card.experiment.training.threads):
        numbers = evaluate(path)
        write_png(path.with_suffix(".png"), draw_grid(load(path)))
    save_weights(path, replace(card, numbers=numbers), denoiser, space=space, dtype=torch.float16)
    write_text(path.with_suffix(".csv"), (Path(run) / "metrics.csv").read_text())  # the curve to expect
    write_figure(path.with_name(f"{name}-loss.png"), loss_curve(read_rows(path.with_suffix(".csv"))))
    write_text(path.with_suffix(".md"), describe(name, command, replace(card, numbers=numbers), parameters(denoiser)))
    return path


def publish_vae(run: str | Path, name: str, command: str, folder: str | Path = PRETRAINED) -> Path:
    """The same for a finished autoencoder; its numbers and its picture are of test images."""
    space, card = load_vae(Path(run) / "weights.safetensors")
    path = Path(folder) / f"{name}.safetensors"
    save_vae(path, card, space.network, torch.float16)
    space, data = load_vae(path)[0], experiment_data(card.experiment)
    with cpu_threads(card.experiment.training.threads):
        numbers = measure_vae(space, data.test.held(HELD).images)
        if len(data.train.class_names) > 1:
            numbers["classifier_on_originals"], numbers["classifier_on_reconstructions"] = legibility(space, data)
        held = data.test.images[torch.arange(64) * len(data.test) // 64]
        write_png(path.with_suffix(".png"), comparison(held, reconstructions(space, held)))
    save_vae(path, replace(card, numbers=numbers), space.network, torch.float16)
    count = parameters(space.network.requires_grad_())
    write_text(path.with_suffix(".md"), describe_vae(name, command, replace(card, numbers=numbers), count))
    return path


def describe_vae(name: str, command: str, card: VAECard, count: int) -> str:
    """The autoencoder's card as Markdown."""
    rows = [f"| {key.replace('_', ' ')} | {value:.3f} |" for key, value in card.numbers.items() if key != "images"]
    return "\n".join(
        [
            f"# {name}",
            "",
            f"![Test images, each row over its reconstructions]({name}.png)",
            "",
            f"KL autoencoder, {count:,} parameters, float16; trained on {card.trained_on}: {card.images_seen:,} images "
            f"in {card.minutes:.1f} minutes on {card.device}. Licence: {card.licence}. Made by",
            "",
            f"```sh\n{command}\n```",
            "",
            f"`diffit_lib.load_vae({name!r})` opens it. Over {card.numbers['images']} test images:",
            "",
            "| number | value |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def describe(name: str, command: str, card: ModelCard, count: int) -> str:
    """The card as Markdown."""
    numbers: dict[str, Any] = card.numbers
    rows = [f"| {key.replace('_', ' ')} | {value:.3f} |" for key, value in numbers.items() if isinstance(value, float)]
    latents = f", on the latents of {card.vae.experiment.name}, which this file brings along" if card.vae else ""
    return "\n".join(
        [
            f"# {name}",
            "",
            f"![64 samples in order of class, seeds 0 to 63]({name}.png)",
            f"![The training run's curves]({name}-loss.png)",
            "",
            f"Network: {title(card.experiment.network)}, {count:,} parameters, float16{latents}. Trained on "
            f"{card.trained_on}: {card.images_seen:,} images in {card.minutes:.1f} minutes on {card.device}. "
            f"Licence: {card.licence}. Made by",
            "",
            f"```sh\n{command}\n```",
            "",
            f"`diffit_lib.load({name!r})` opens it; `diffit evaluate {name}` measures it again:",
            "",
            "| number | value |",
            "|---|---|",
            *rows,
            "",
            f"Stamp: {Provenance(**numbers['stamp'])}.",
            *[f"Note: {warning}." for warning in numbers["warnings"]],
            "",
        ]
    )


def legibility(space: Space, data: Split) -> tuple[float, float]:
    """Accuracy of a small classifier on test images, and on their reconstructions."""
    train, test = data.train.held(HELD), data.test.held(HELD)
    classifier = train_classifier(train.images, train.labels, device=best_device())
    pair = (classifier.predict(images) for images in (test.images, reconstructions(space, test.images)))
    before, after = (class_accuracy(predicted, test.labels) for predicted in pair)
    return before, after
