"""Publish a finished run: pretrained weights of half the size, with their card and a grid of samples."""

from dataclasses import replace
from pathlib import Path

import torch

from diffit_lib.checkpoints.autoencoders import VAECard, load_vae
from diffit_lib.checkpoints.safetensors_io import write_checkpoint
from diffit_lib.checkpoints.weights import ModelCard, load_own_space, load_weights, save_weights
from diffit_lib.cli.info import title
from diffit_lib.data.datasets import experiment_data
from diffit_lib.evaluation.evaluate import evaluate
from diffit_lib.evaluation.evaluator import HELD
from diffit_lib.evaluation.reconstruction import comparison, measure_vae, reconstructions
from diffit_lib.models.cost import parameters
from diffit_lib.notebook.cells import legibility
from diffit_lib.sampling.grids import draw_grid
from diffit_lib.sampling.pipeline import load
from diffit_lib.sampling.push import numbers_table
from diffit_lib.utils.files import PRETRAINED, read_rows, write_text
from diffit_lib.utils.plots import loss_curve, write_figure, write_png
from diffit_lib.utils.tensors import cpu_threads


def publish(run: str | Path, name: str, command: str, folder: str | Path = PRETRAINED) -> Path:
    """Write the averaged weights of `run` as float16, measure those very weights, and describe them in a card.

    The card names `command`, which made the run. The run's curves are published too, as what to expect of such a run.
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
    write_text(path.with_suffix(".md"), model_text(name, command, replace(card, numbers=numbers), parameters(denoiser)))
    return path


def publish_vae(run: str | Path, name: str, command: str, folder: str | Path = PRETRAINED) -> Path:
    """As `publish`, for a finished autoencoder; its numbers and its picture are of test images."""
    space, card = load_vae(Path(run) / "weights.safetensors")
    path = Path(folder) / f"{name}.safetensors"
    write_checkpoint(path, card, space.network.state_dict(), torch.float16)
    space, data = load_vae(path)[0], experiment_data(card.experiment)
    with cpu_threads(card.experiment.training.threads):
        numbers = measure_vae(space, data.test.held(HELD).images)
        if len(data.train.class_names) > 1:
            numbers["classifier_on_originals"], numbers["classifier_on_reconstructions"] = legibility(space, data)
        held = data.test.images[torch.arange(64) * len(data.test) // 64]
        write_png(path.with_suffix(".png"), comparison(held, reconstructions(space, held)))
    write_checkpoint(path, replace(card, numbers=numbers), space.network.state_dict(), torch.float16)
    count = parameters(space.network.requires_grad_())
    write_text(path.with_suffix(".md"), vae_text(name, command, replace(card, numbers=numbers), count))
    return path


def model_text(name: str, command: str, card: ModelCard, count: int) -> str:
    """The card of weights as Markdown."""
    latents = f", on the latents of {card.vae.experiment.name}, which this file contains" if card.vae else ""
    return "\n".join(
        [
            f"# {name}",
            "",
            f"![Samples, a row for each class, seeds 0 to 99]({name}.png)",
            f"![The training run's curves]({name}-loss.png)",
            "",
            *origin(
                f"Network: {title(card.experiment.network)}, {count:,} parameters, float16{latents}", card, command
            ),
            f"`diffit_lib.load({name!r})` opens it; `diffit evaluate {name}` measures it again:",
            "",
            numbers_table(card.numbers),
            "",
        ]
    )


def vae_text(name: str, command: str, card: VAECard, count: int) -> str:
    """The card of an autoencoder as Markdown."""
    return "\n".join(
        [
            f"# {name}",
            "",
            f"![Test images, each row over its reconstructions]({name}.png)",
            "",
            *origin(f"KL autoencoder, {count:,} parameters, float16", card, command),
            f"`diffit_lib.load_vae({name!r})` opens it. Over {card.numbers['images']} test images:",
            "",
            numbers_table(card.numbers),
            "",
        ]
    )


def origin(network: str, card: ModelCard | VAECard, command: str) -> list[str]:
    """What was trained, on what, and by which command."""
    return [
        f"{network}. Trained on {card.trained_on}: {card.images_seen:,} images in {card.minutes:.1f} minutes on "
        f"{card.device}. Licence: {card.licence}. Made by",
        "",
        f"```sh\n{command}\n```",
        "",
    ]
