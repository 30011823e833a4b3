"""A notebook's form: a few settings -> experiments, their data, their run folders, and weights to go on with."""

import ast
import re
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open

from diffit_lib.checkpoints.autoencoders import load_space
from diffit_lib.checkpoints.hub import find_weights, from_drive
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.presets import STABLE_DIFFUSION, preset
from diffit_lib.data.datasets import Split, experiment_data
from diffit_lib.data.sources import NAMED
from diffit_lib.notebook.drive import Backup, in_colab, warn
from diffit_lib.reports.auto import (
    IMAGE_SPACE,
    LATENT_SPACE,
    LONGEST,
    Defaults,
    autoencoder_for,
    class_options,
    on_latents,
)
from diffit_lib.training.fit import shaping
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import PRETRAINED, WEIGHTS, cache_folder
from diffit_lib.utils.tensors import best_device, derive_seed

BETWEEN = 4.0  # minutes between two checkpoints, at most
VAE = "vae."  # begins the name of a field of the autoencoder
ID = r"(?:1|0B)[\w-]{24,}"  # of a file in Google Drive; other long words are names
LINK = r"https://(?:drive|docs|drive\.usercontent)\.google\.com/\S*?(?:/d/|[?&]id=)"

R = TypeVar("R", bound=BaseExperimentConfig)


def start(
    dataset: str, preset_name: str, copies: Path | None, *, train: bool, weights: str = "", **settings: Any
) -> tuple[ExperimentConfig, Split, Backup]:
    """An experiment on pixels, its data and its run; see `plan` and `open_run`.

    If nothing is to be trained and there are no weights for these data, the digits take their place.
    """
    experiment, data = plan(dataset, preset_name, **settings)
    run = open_run(experiment, data, copies)
    if train or weights or has_weights(experiment, run):
        return experiment, data, run
    return start("digits", "auto", copies, train=True)


def start_latent(
    dataset: str, preset_name: str, copies: Path | None, *, train: bool, weights: str = "", block: str, **settings: Any
) -> tuple[ExperimentConfig, VAEExperimentConfig, Split, Backup]:
    """An experiment on latents, that of its autoencoder, the images, and the autoencoder's run; else as `start`."""
    experiment, vae_experiment, data = plan_latent(dataset, preset_name, block=block, **settings)
    run = open_run(vae_experiment, data, copies)
    if train or weights or has_weights(experiment, run):
        return experiment, vae_experiment, data, run
    return start_latent("digits", "auto", copies, train=True, block=block)


def open_run(
    experiment: BaseExperimentConfig, data: Split, copies: Path | None, *, runs: str | Path = "runs"
) -> Backup:
    """The run folder of an experiment and its data, brought back from its copies if these are newer.

    Its name depends on what shapes the run: other settings, images or latents give another run, the same ones the same
    run again.
    """
    shape = [data.train.fingerprint(), str(shaping(experiment))]
    if vae := getattr(experiment, "vae", ""):
        shape.append(load_space(vae)[0].checksum)
    run = Backup(Path(runs) / f"{experiment.name.rpartition('/')[2]}-{derive_seed(*shape) % 16**6:06x}", copies)
    restored = f", brought back from {copies}" if run.restore() else ""
    print(f"run: {run.run}{restored}; copies: {run.folder or 'none'}")
    return run


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
    if (data := load_or_warn(experiment, preset_name, overrides)) is None:
        return plan("digits", minutes=minutes, seed=seed)
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
    check(experiment.vae != "", f"PRESET is {experiment.name}, which draws pixels; give one called latent-...")
    autoencoder = autoencoder_for(experiment, vae).override(**of_vae)
    if (data := load_or_warn(autoencoder, preset_name, overrides)) is None:
        return plan_latent("digits", block=block, minutes=minutes, vae_minutes=vae_minutes, seed=seed)
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
    settled: dict[str, Any] = {"report_minutes": min(experiment.training.report_minutes, BETWEEN)}
    if getattr(experiment.network, "num_classes", 0) and "num_classes" not in changes:
        settled |= class_options(data.train.class_names)
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


def weights_for(dataset: str, latent: bool = False) -> Path | None:
    """The weights that come with the library for a data set, which draw pixels or latents; None if there are none."""
    space = LATENT_SPACE if latent else IMAGE_SPACE
    wanted = space.experiment(space.data(dataset))
    path = PRETRAINED / f"{wanted.name}.safetensors"
    return path if path.is_file() and preset(wanted.name).data == wanted.data else None


def choose_vae(experiment: VAEExperimentConfig, run: Backup, vae: str = "train") -> str:
    """The path or name of the autoencoder to go on with where none is trained.

    Stable Diffusion's, if the experiment is of it; else the run's own from another day, unless `vae` is "ready"; else
    the pretrained one of this name.
    """
    own, ours = run.run / WEIGHTS, PRETRAINED / f"{experiment.name}.safetensors"
    if experiment.name in STABLE_DIFFUSION:
        return experiment.name
    if own.is_file() and vae != "ready":
        return str(own)
    check(ours.is_file(), f"there is no pretrained autoencoder for {experiment.data}; set VAE to train, and IS_TRAIN")
    return experiment.name


def choose_weights(experiment: ExperimentConfig, run: Backup, given: str = "") -> Path:
    """The weights to go on with where nothing is trained.

    The given ones, by path, name, or the id or link of a file in Google Drive; else the run's own from another day;
    else pretrained ones for the same data.
    """
    if given:
        try:
            return from_drive_link(given) or find_weights(expanduser(given))
        except DiffitError as error:
            raise DiffitError(f"PATH_WEIGHTS: {error}") from error
    if (own := run.run / WEIGHTS).is_file():
        return own
    if ours := weights_for(experiment.data, latent=bool(experiment.vae)):
        return ours
    raise DiffitError(f"there are no weights for {experiment.data}; set IS_TRAIN, or PATH_WEIGHTS to a file of weights")


def has_weights(experiment: ExperimentConfig, run: Backup) -> bool:
    """Whether `choose_weights` finds any; if not, one red line says that the digits take the data's place."""
    try:
        choose_weights(experiment, run)
    except DiffitError as error:
        warn(f"{error}: this goes on with the digits")
        return False
    return True


def from_drive_link(given: str) -> Path | None:
    """The file of a Google Drive id or link, downloaded once; None where this is neither, but a path or a name."""
    match = re.fullmatch(rf"(?:{LINK})([\w-]{{25,}})(?:[/?&#]\S*)?|({ID})", given)
    if Path(given).exists() or not match:
        return None
    drive_id = match[1] or match[2]
    path = cache_folder() / "weights" / f"{drive_id}.safetensors"
    try:
        with safe_open(path if path.is_file() else from_drive(drive_id, path), "pt"):
            return path
    except SafetensorError as error:
        path.unlink()
        raise DiffitError(
            f"https://drive.google.com/file/d/{drive_id} is not a complete safetensors file ({error}); "
            "give the link of a weights file that diffit wrote"
        ) from error
