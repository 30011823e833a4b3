"""Automatic configuration: which experiment suits these data and this machine; `train --data` without a preset."""

import math
import os
import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from diffit_lib.checkpoints.autoencoders import SD_FILE, load_vae
from diffit_lib.checkpoints.hub import in_hub_cache
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.models import AutoencoderConfig
from diffit_lib.config.presets import OPTIONS, STABLE_DIFFUSION, change, preset, read_options, vae_preset
from diffit_lib.data.datasets import experiment_data
from diffit_lib.data.preprocess import look
from diffit_lib.data.sources import list_images
from diffit_lib.training.cost import fastest_threads, time_steps, training_cost
from diffit_lib.training.run_dir import new_folder
from diffit_lib.training.train import train
from diffit_lib.utils.distributed import rank_info
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import check_disk
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import best_device

R = TypeVar("R", bound=BaseExperimentConfig)

LONGEST = 30.0  # minutes of training, where neither the user nor the preset names a number
FEWEST = 10  # images to learn from
LOOKED_AT = 64  # images that are opened to choose a size, evenly spread
SIDES = (8, 16, 32, 64, 128, 256)  # pixels; images are resized to the one nearest in ratio to their median shorter side
LARGEST = 64  # pixels a side; larger images are learned as latents
LEVELS = (1, 2, 2, 2)  # channel_mult: the U-shape goes down to 8x8
SHARED = ("data", "crop", "skip_bad", "seed", "precision", "workers", "threads", "memory_gb", "max_steps")  # by stages
REPORTS, REPORTS_VAE = 6, 2  # at least, in a run: a diagnosis needs a curve; an autoencoder's reports take longer
TRAINED = 0.7  # share of the minutes that is left for steps; samples and metrics take the rest
LAST, LAST_SHARE = 1.0, 0.2  # minutes for what comes after the training, and the share of a short run's
RUN_BYTES = 72  # on disk for each parameter: weights in float32 beside their old version, and three checkpoints

# What a CPU learns in an hour or a night: smaller networks, and a learning rate that falls at the end of the plan.
ON_CPU: dict[str, dict[str, Any]] = {
    "pixels": {"denoiser": "flow", "prediction": "x0", "times": "logit-normal", "threads": None, "precision": "auto"},
    "latents": {"width": 256, "depth": 8, "num_heads": 4, "batch_size": 32, "images": 40_000, "lr": 5e-4}
    | {"lr_decay": 0.4, "ema_halflife": 8_000, "workers": 0, "minutes": None},
    "vae": {"patch": 4, "channels": (96, 192), "down": (True,), "attn": (False, False), "images": 44_000, "lr": 1e-3}
    | {"lr_decay": 0.4, "ema_halflife": 4_000, "workers": 0, "minutes": None},
}

# Fields that depend on the side of the images, on a CPU.
NARROW: dict[str, Any] = {"width": 48, "channel_mult": (1, 3), "num_blocks": 1}  # for 16x16 tokens
OF_SIDE: dict[int, dict[str, Any]] = {
    8: {"patch": 1},
    16: {"patch": 2},
    32: {"patch": 2} | NARROW,
    64: {"patch": 4} | NARROW,
}


class Defaults(NamedTuple):
    """The defaults of one space, pixels or latents."""

    on_gpu: str  # the data set on a GPU; on a CPU it is the digits
    presets: dict[str, str]  # data set -> its small preset
    otherwise: str  # the preset for all other data, such as a folder of photographs
    on_cpu: str  # the same for a CPU

    def data(self, name: str = "auto") -> str:
        """The data set of this name; "auto" is the one that suits this machine."""
        if name != "auto":
            return name
        return "digits" if best_device().type == "cpu" else self.on_gpu

    def experiment(self, data: str) -> ExperimentConfig:
        """The small preset for these data."""
        otherwise = self.on_cpu if best_device().type == "cpu" else self.otherwise
        return preset(self.presets.get(data, otherwise)).override(data=data)


IMAGE_SPACE = Defaults("cifar10", {name: name for name in ("digits", "mnist", "ffhq64")}, "cifar10-t4", "cifar10-16")
LATENT_SPACE = Defaults(
    "imagenette", {"digits": "latent-digits", "cifar10": "latent-cifar10"}, *["latent-imagenette128"] * 2
)


def autoencoder_for(experiment: ExperimentConfig, vae: str = "train") -> VAEExperimentConfig:
    """The experiment of the autoencoder whose latents this one learns, on the same images.

    It is the one that the preset names; Stable Diffusion's if `vae` is "sd".
    """
    images: dict[str, Any] = {"data": experiment.data, "crop": experiment.crop, "skip_bad": experiment.skip_bad}
    published = VAEExperimentConfig(name=STABLE_DIFFUSION[0], **images)
    if experiment.vae in STABLE_DIFFUSION:
        return published
    own = vae_preset(experiment.vae).override(**images)
    if vae != "sd":
        return own
    known = own.network.in_channels == 3
    check(known, f"VAE is sd, which knows photographs, not {experiment.data}; set VAE to train or ready")
    return replace(published, network=AutoencoderConfig(image_size=own.network.image_size))


def class_options(class_names: tuple[str, ...]) -> dict[str, Any]:
    """The fields that depend on the classes: how many there are; without any, there is no guidance."""
    return {"num_classes": len(class_names)} | ({} if class_names else {"guidance": 1.0})


def on_latents(
    experiment: ExperimentConfig, vae: str, network: AutoencoderConfig, image_size: tuple[int, int]
) -> ExperimentConfig:
    """The experiment on the latents that the autoencoder `vae` makes of images of this (height, width)."""
    height, width = (side // network.factor for side in image_size)
    patch = 2 if height >= 16 and height % 2 == width % 2 == 0 else 1
    return experiment.override(vae=vae, in_channels=network.z_channels, image_size=(height, width), patch_size=patch)


class Choice(NamedTuple):
    """What to train on some images."""

    experiment: ExperimentConfig
    vae: VAEExperimentConfig | None  # trained first; None: pixels are learned, or the latents of one that exists
    why: str  # in a few words


def choose_experiment(data: str | Path, vae: str = "", *, download: bool = True, **changes: Any) -> Choice:
    """Choose what to train on a folder, a zip or a data set by name, with some fields changed.

    A data set with a small preset of its own gets that preset. All other images are resized to squares of 8, 16, 32,
    64, 128 or 256 pixels, the nearest in ratio to the median shorter side of 64 of them. Up to 64 pixels are learned
    directly. Larger images are learned as latents: on a GPU those of the published autoencoder, if it is on this
    machine or, with `download`, can be fetched; else, at 128 pixels, those of an autoencoder that is trained first.
    `vae` is the path or name of another autoencoder, for images of any size.
    """
    experiment, own, why = choose_preset(str(data), vae, download)
    shared = {key: value for key, value in changes.items() if key in SHARED}
    return Choice(change(experiment, {"data": str(data), **changes}), own and own.override(**shared), why)


def choose_preset(source: str, vae: str, download: bool) -> Choice:
    """What `choose_experiment` changes the fields of."""
    if source in IMAGE_SPACE.presets and not vae:
        return Choice(IMAGE_SPACE.experiment(source), None, "a preset of its own")
    images = list_images(source).train
    check(
        len(images) >= FEWEST,
        f"{source} has {len(images)} image{'s' * (len(images) != 1)} to learn from; "
        f"give {FEWEST} at least, some hundred to see anything",
    )
    survey, on_cpu = look(images, most=LOOKED_AT), best_device().type == "cpu"
    side, channels = min(SIDES, key=lambda each: abs(math.log(each / survey.side))), 1 if survey.grey else 3
    classes = class_options(images.class_names)
    if not vae and side <= LARGEST:
        levels = LEVELS[: max(2, int(math.log2(side)) - 2)]
        smaller = OF_SIDE[side] | ON_CPU["pixels"] if on_cpu else {"channel_mult": levels}
        experiment = IMAGE_SPACE.experiment(source).override(
            image_size=(side, side), in_channels=channels, **smaller, **classes
        )
        return Choice(experiment, None, f"pixels, {side}x{side}")
    if not vae and not on_cpu and channels == 3:
        vae = published_vae(download=download)
    base = preset(LATENT_SPACE.otherwise).override(data=source, **(ON_CPU["latents"] if on_cpu else {}), **classes)
    if vae:
        network = load_vae(vae)[1].experiment.network
        size = (side, side) if vae in STABLE_DIFFUSION else network.image_size
        return Choice(on_latents(base, vae, network, size), None, f"latents of {vae}, {size[0]}x{size[1]}")
    own = autoencoder_for(base).override(in_channels=channels)
    own = own.override(**ON_CPU["vae"]) if on_cpu else own
    height, width = own.network.image_size
    experiment = on_latents(base, own.name, own.network, own.network.image_size)
    return Choice(experiment, own, f"latents of an autoencoder of its own, {height}x{width}")


def published_vae(*, download: bool) -> str:
    """The name of the published autoencoder; "" if it cannot be loaded, and a line says why."""
    name = STABLE_DIFFUSION[0]
    try:
        check(download or bool(in_hub_cache(name, SD_FILE)), f"{name} is not here; training tries to download it")
        load_vae(name)
    except DiffitError as error:
        say(str(error))
        return ""
    return name


def train_photos(
    data: str | Path,
    run: str | Path | None = None,
    *,
    name: str | None = None,
    vae: str = "",
    minutes: float | None = None,
    **overrides: Any,
) -> Path:
    """Train what `choose_experiment` says, in the folder `run` or a new one, and return the path of the weights.

    An autoencoder that is trained first gets the folder `run`/vae and half of the time. The plan of each stage is the
    number of images that its time suffices for. Of the `minutes` a fifth, one at most, is left for the report.
    `overrides` are fields of the experiment. Started again on its folder, an unfinished autoencoder goes on where it
    stopped; after that, `train --run` goes on with the latents.
    """
    check(rank_info().world == 1, f"several processes train a preset; `diffit info {data}` names the one for these")
    experiment, own, why = choose_experiment(data, vae, **overrides)
    name = name or re.sub(r"[^\w.+-]+", "-", Path(os.path.abspath(data)).stem)
    say(f"{data}: {why}; {experiment.name}" + (f", after {own.name}" if own else ""))
    if str(data) in IMAGE_SPACE.presets and not vae:
        return train(experiment.override(**({"minutes": minutes} if minutes else {})), run, name=name)
    minutes = minutes and max(minutes - LAST, (1 - LAST_SHARE) * minutes)
    if own is None:
        return train(paced(experiment, run, minutes, overrides), run, name=name)
    minutes = minutes and minutes / 2
    own = paced(own, run and Path(run) / "vae", minutes, ())
    experiment = paced(experiment, run, minutes, overrides)
    images = experiment_data(own)
    folder = Path(run) if run else new_folder(name)
    say(f"run: {folder}; stopped, it goes on by `diffit train --data {data} --run {folder}`")
    say(f"1 of 2: {own.name}, {plan_of(own)}")
    file = train(own, folder / "vae", images)
    say(f"2 of 2: {experiment.name}, {plan_of(experiment)}")
    return train(experiment.override(vae=str(file)), folder, images)


def plan_of(experiment: BaseExperimentConfig) -> str:
    """How long it trains, in words."""
    return f"{experiment.training.total_images:,} images in at most {experiment.training.minutes:g} minutes"


def paced(experiment: R, run: str | Path | None, minutes: float | None, given: Collection[str]) -> R:
    """The experiment with as many images as its minutes suffice for; some steps are timed for that.

    If minutes are given the images fill them; else there are at most as many as the preset says. A run that goes on
    with the same minutes keeps its plan; fields that are `given` stay. Refuses a disk that is too small for the run.
    """
    training = experiment.training
    allowed = float(minutes or training.minutes or LONGEST)
    often = allowed / (REPORTS_VAE if isinstance(experiment, VAEExperimentConfig) else REPORTS)
    plan: dict[str, Any] = {"minutes": allowed, "report_minutes": min(training.report_minutes, often)}
    before = read_options(type(experiment), Path(run)).training if run and (Path(run) / OPTIONS).is_file() else None
    if before and before.minutes == allowed:
        plan["images"] = before.images
    else:
        plan["threads"] = training.threads or fastest_threads(experiment)
        experiment = experiment.override(threads=plan["threads"])
        check_disk(Path(run or "."), RUN_BYTES * training_cost(experiment).parameters, "a run", "--run")
        fit = max(training.batch_size, int(60 * allowed * TRAINED / time_steps(experiment, 3 * allowed)))
        plan["images"] = fit if minutes else min(fit, training.images)
    return experiment.override(**{name: value for name, value in plan.items() if name not in given})
