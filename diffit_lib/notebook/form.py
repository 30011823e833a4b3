"""`plan`: a few settings, as a notebook's form has them, -> recipes that suit the machine, and their data."""

import ast
from pathlib import Path
from typing import Any, TypeVar

from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.presets import (
    IMAGE_SPACE,
    LATENT_SPACE,
    LONGEST,
    Choice,
    beside,
    preset,
)
from diffit_lib.data.datasets import Split, experiment_data
from diffit_lib.data.sources import NAMED
from diffit_lib.notebook.drive import in_colab, warn
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import PRETRAINED
from diffit_lib.utils.tensors import best_device

BETWEEN = 4.0  # minutes between two checkpoints, at most
VAE = "vae."  # begins the name of a field of the autoencoder's recipe

R = TypeVar("R", bound=BaseExperimentConfig)


def plan(
    dataset: str = "auto", preset_name: str = "auto", *, minutes: float = 0, seed: int = 0, overrides: str = ""
) -> tuple[ExperimentConfig, Split]:
    """A recipe on pixels and its data. "auto" and 0 leave the choice to the machine.

    The data set is the named preset's own, else CIFAR-10 on a GPU and the digits on a CPU. One that cannot be
    downloaded is told, and the digits and their own preset take its place. Raises a DiffitError for a path, preset or
    field that does not exist.
    """
    changes = {"seed": seed, **parse(overrides)}
    experiment = choose(dataset, preset_name, IMAGE_SPACE).override(**changes)
    data = within_reach(experiment, preset_name, overrides)
    if data is None:
        experiment = preset("digits").override(seed=seed)
        data = experiment_data(experiment)
    return settle(experiment, data, minutes, changes), data


def plan_latent(
    dataset: str = "auto",
    preset_name: str = "auto",
    vae: str = "train",
    *,
    block: str = "diffit",
    minutes: float = 0,
    vae_minutes: float = 0,
    seed: int = 0,
    overrides: str = "",
) -> tuple[ExperimentConfig, VAEExperimentConfig, Split]:
    """A recipe on latents, that of the autoencoder which makes them, and the data of both; else as `plan`.

    `vae` is "sd", Stable Diffusion's, or anything else, the preset's own. Fields of the autoencoder's recipe are
    written with "vae." before them in `overrides`: "lr=1e-4 vae.lr=1e-3". What the network sees follows from it.
    """
    changes = {"seed": seed, "block": block, **parse(overrides)}
    of_vae = {"seed": seed, **{name[len(VAE) :]: changes.pop(name) for name in list(changes) if name.startswith(VAE)}}
    experiment = choose(dataset, preset_name, LATENT_SPACE)
    check(
        experiment.vae != "",
        f"PRESET is {experiment.name}, which draws pixels; give one whose name begins with latent-",
    )
    autoencoder = beside(experiment, vae).override(**of_vae)
    experiment = experiment.override(**changes)
    data = within_reach(autoencoder, preset_name, overrides)
    if data is None:
        experiment = preset("latent-digits").override(seed=seed, block=block)
        autoencoder = beside(experiment, "train").override(seed=seed)
        data = experiment_data(autoencoder)
    channels, *size = autoencoder.network.latent_shape
    experiment = experiment.override(in_channels=channels, image_size=tuple(size))
    return settle(experiment, data, minutes, changes), settle(autoencoder, data, vae_minutes, of_vae), data


def within_reach(experiment: BaseExperimentConfig, preset_name: str, overrides: str) -> Split | None:
    """The data of a recipe; None, in one red line, where the digits must take their place."""
    try:
        return experiment_data(experiment)
    except DiffitError as error:
        if experiment.data == "digits" or experiment.data not in NAMED:
            raise
        given = {"PRESET": preset_name != "auto", "OVERRIDES": overrides.strip() != ""}
        dropped = " and ".join(name for name in given if given[name])
        warn(f"{error}: this goes on with the digits{', without ' + dropped if dropped else ''}")
        return None


def settle(experiment: R, data: Split, minutes: float, changes: dict[str, Any]) -> R:
    """What the data and the machine decide: classes, time between two checkpoints, an end."""
    settled: dict[str, Any] = {"report_minutes": min(experiment.training.report_minutes, BETWEEN)}
    if getattr(experiment.network, "num_classes", 0) and "num_classes" not in changes:
        settled["num_classes"] = len(data.train.class_names)
    if minutes or (experiment.training.minutes is None and experiment.training.max_steps is None):
        settled["minutes"] = float(minutes or LONGEST)
    return experiment.override(**settled)


def choose(dataset: str, preset_name: str, choice: Choice) -> ExperimentConfig:
    """The preset that is named, else the small one for these data: of a path, the one for photographs."""
    if in_colab() and best_device().type == "cpu":
        warn("no GPU: Runtime > Change runtime type > T4 GPU switches one on; until then this goes on with the CPU")
    if preset_name != "auto":
        experiment = preset(preset_name)
        return experiment if dataset == "auto" else experiment.override(data=dataset)
    dataset = suitable(dataset, choice)
    return preset(choice.presets.get(dataset, choice.otherwise)).override(data=dataset)


def parse(overrides: str) -> dict[str, Any]:
    """Fields of a recipe from "batch_size=64 lr=1e-4 channel_mult=1,2,2 flip=True"."""
    changes = {}
    for word in overrides.split():
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise DiffitError(f"OVERRIDES has {word!r}; give fields of a recipe, e.g. batch_size=64 lr=1e-4 width=96")
        try:
            changes[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            changes[name] = text  # a word, e.g. a path
    return changes


def pretrained(dataset: str, choice: Choice = IMAGE_SPACE) -> Path | None:
    """Our own weights for a data set, the machine's choice under "auto", if there are any: that draw in this space."""
    wanted = preset(choice.presets.get(suitable(dataset, choice), choice.otherwise))
    path = PRETRAINED / f"{wanted.name}.safetensors"
    return path if path.is_file() and wanted.data == suitable(dataset, choice) else None


def suitable(dataset: str, choice: Choice) -> str:
    """What "auto" means on this machine."""
    if dataset != "auto":
        return dataset
    return "digits" if best_device().type == "cpu" else choice.on_gpu
