"""A notebook's form: a few settings -> experiments and their data."""

import ast
from typing import Any, TypeVar

from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.presets import preset
from diffit_lib.data.datasets import Split, experiment_data
from diffit_lib.data.sources import NAMED
from diffit_lib.notebook.drive import in_colab, warn
from diffit_lib.reports.auto import (
    IMAGE_SPACE,
    LATENT_SPACE,
    LONGEST,
    Defaults,
    autoencoder_for,
    on_latents,
    with_classes,
)
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.tensors import best_device

BETWEEN = 4.0  # minutes between two checkpoints, at most
VAE = "vae."  # begins the name of a field of the autoencoder

R = TypeVar("R", bound=BaseExperimentConfig)


def plan(
    dataset: str = "auto", preset_name: str = "auto", *, minutes: float = 0, seed: int = 0, overrides: str = ""
) -> tuple[ExperimentConfig, Split]:
    """An experiment on pixels and its data. "auto" and 0 leave the choice to the machine.

    The data set is that of the named preset, else CIFAR-10 on a GPU and the digits on a CPU. If it cannot be
    downloaded, one red line says so, and the digits with their preset take its place.

    Raises:
        DiffitError: if a path, preset or field does not exist
    """
    changes = {"seed": seed, **parse(overrides)}
    experiment = choose(dataset, preset_name, IMAGE_SPACE).override(**changes)
    data = load_or_warn(experiment, preset_name, overrides)
    if data is None:
        experiment = preset("digits").override(seed=seed)
        data = experiment_data(experiment)
    return complete(experiment, data, minutes, changes), data


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
    """An experiment on latents, that of the autoencoder which makes them, and the images of both; else as `plan`.

    `vae` is "sd" for Stable Diffusion's autoencoder, else it is the preset's own. In `overrides`, "vae." stands before
    the fields of the autoencoder: "lr=1e-4 vae.lr=1e-3".
    """
    changes = {"seed": seed, "block": block, **parse(overrides)}
    of_vae = {"seed": seed, **{name[len(VAE) :]: changes.pop(name) for name in list(changes) if name.startswith(VAE)}}
    experiment = choose(dataset, preset_name, LATENT_SPACE)
    check(
        experiment.vae != "",
        f"PRESET is {experiment.name}, which draws pixels; give one whose name begins with latent-",
    )
    autoencoder = autoencoder_for(experiment, vae).override(**of_vae)
    data = load_or_warn(autoencoder, preset_name, overrides)
    if data is None:
        changes, of_vae = {"seed": seed, "block": block}, {"seed": seed}
        experiment = preset("latent-digits")
        autoencoder = autoencoder_for(experiment).override(**of_vae)
        data = experiment_data(autoencoder)
    experiment = on_latents(experiment, autoencoder.name, autoencoder.network, autoencoder.network.image_size)
    experiment = complete(experiment.override(**changes), data, minutes, changes)
    return experiment, complete(autoencoder, data, vae_minutes, of_vae), data


def choose(dataset: str, preset_name: str, space: Defaults) -> ExperimentConfig:
    """The named preset, else the small one for these data."""
    if in_colab() and best_device().type == "cpu":
        warn("no GPU: Runtime > Change runtime type > T4 GPU switches one on; until then this goes on with the CPU")
    if preset_name == "auto":
        return space.experiment(space.data(dataset))
    experiment = preset(preset_name)
    return experiment if dataset == "auto" else experiment.override(data=dataset)


def load_or_warn(experiment: BaseExperimentConfig, preset_name: str, overrides: str) -> Split | None:
    """The data of an experiment. None if they cannot be downloaded: one red line says that the digits replace them."""
    try:
        return experiment_data(experiment)
    except DiffitError as error:
        if experiment.data == "digits" or experiment.data not in NAMED:
            raise
        given = {"PRESET": preset_name != "auto", "OVERRIDES": overrides.strip() != ""}
        dropped = " and ".join(name for name in given if given[name])
        warn(f"{error}: this goes on with the digits{', without ' + dropped if dropped else ''}")
        return None


def complete(experiment: R, data: Split, minutes: float, changes: dict[str, Any]) -> R:
    """The experiment with what the data and the machine decide: classes, time between two checkpoints, an end."""
    if isinstance(experiment, ExperimentConfig) and experiment.network.num_classes and "num_classes" not in changes:
        experiment = with_classes(experiment, data.train.class_names)
    settled: dict[str, Any] = {"report_minutes": min(experiment.training.report_minutes, BETWEEN)}
    if minutes or (experiment.training.minutes is None and experiment.training.max_steps is None):
        settled["minutes"] = float(minutes or LONGEST)
    return experiment.override(**settled)


def parse(overrides: str) -> dict[str, Any]:
    """Fields of an experiment from "batch_size=64 lr=1e-4 channel_mult=1,2,2 flip=True"."""
    changes = {}
    for word in overrides.split():
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise DiffitError(f"OVERRIDES has {word!r}; give fields of a preset, e.g. batch_size=64 lr=1e-4 width=96")
        try:
            changes[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            changes[name] = text  # a word, e.g. a path
    return changes
