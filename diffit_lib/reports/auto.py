"""`train` without a preset: a recipe for one's own pictures, its stages one after the other, each resumed."""

import math
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from diffit_lib.checkpoints.autoencoders import SD_FILE, load_vae
from diffit_lib.checkpoints.hub import in_hub_cache
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.models import AutoencoderConfig
from diffit_lib.config.presets import IMAGE_SPACE, LATENT_SPACE, LONGEST, STABLE_DIFFUSION, beside, preset
from diffit_lib.data.datasets import experiment_data
from diffit_lib.data.inspect import Inspection, look
from diffit_lib.data.sources import ImageList, Split, list_images
from diffit_lib.reports.cost import time_steps, training_cost
from diffit_lib.training.run_dir import OPTIONS, new_folder, read_options
from diffit_lib.training.train import train
from diffit_lib.training.train_vae import train_vae
from diffit_lib.utils.distributed import rank_info
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import best_device

R = TypeVar("R", bound=BaseExperimentConfig)

FEWEST = 10  # pictures, below which there is nothing to learn
LOOKED_AT = 64  # pictures that decide, evenly spread
SIDES = (8, 16, 32, 64, 128, 256)  # that images are made; the nearest in ratio to the median shorter side is taken
PIXEL_SPACE = 64  # the largest of them that is learned as pixels
LEVELS = (1, 2, 2, 2)  # channel_mult: the U-shape goes down to 8x8
SHARED = ("data", "crop", "skip_bad", "seed", "precision", "workers", "threads", "memory_gb", "max_steps")  # by both
REPORTS, OF_VAE = 6, 2  # in a run, at least: a diagnosis needs a curve; an autoencoder's take longer
TRAINED = 0.7  # share of the minutes that goes into steps; the rest draws samples and measures

IN_A_RUN = 56  # bytes for each parameter: checkpoint and weights, in float32, each also beside its old version

# What a CPU learns in an hour or a night: smaller networks, and a learning rate that falls at the end of the plan.
ON_CPU: dict[str, dict[str, Any]] = {
    "pixels": {"width": 32, "num_blocks": 1, "time_dim": 128, "batch_size": 32, "images": 200_000, "lr": 2e-3}
    | {"lr_decay": 0.5, "ema_halflife": 50_000, "workers": 0, "minutes": None},
    "latents": {"width": 256, "depth": 8, "num_heads": 4, "batch_size": 32, "images": 40_000, "lr": 5e-4}
    | {"lr_decay": 0.4, "ema_halflife": 8_000, "workers": 0, "minutes": None},
    "vae": {"patch": 4, "channels": (96, 192), "down": (True,), "attn": (False, False), "images": 44_000, "lr": 1e-3}
    | {"lr_decay": 0.4, "ema_halflife": 4_000, "workers": 0, "minutes": None},
}


class Choice(NamedTuple):
    """What to train on some pictures."""

    experiment: ExperimentConfig
    vae: (
        VAEExperimentConfig | None
    )  # to be trained first; None: pixels are learned, or the latents of one that is there
    why: str  # in a few words


def choose_recipe(source: str | Path, vae: str = "", *, download: bool = True) -> Choice:
    """The recipe for the pictures of a folder, a zip or a data set by name, and that of its autoencoder.

    A data set that has a small preset of its own takes that. Else the images are made squares of 8, 16, 32, 64, 128 or
    256 pixels, whichever is nearest in ratio to the median shorter side of 64 pictures; up to 64 they are learned as
    pixels. Above, as latents: on a GPU of the published autoencoder, if it is here or, with `download`, can be had;
    else, at 128, of one that is trained first. `vae` names another, by path or name, whatever the size.
    """
    if str(source) in IMAGE_SPACE.presets and not vae:
        experiment = preset(IMAGE_SPACE.presets[str(source)])
        return Choice(experiment, None, "a preset of its own")
    parts = list_images(source)
    check(
        len(parts.train) >= FEWEST,
        f"{source} has {len(parts.train)} image{'s' * (len(parts.train) != 1)} to learn from; "
        f"give {FEWEST} at least, some hundred to see anything",
    )
    return choose_for(str(source), look(parts.train, most=LOOKED_AT), parts, vae, download=download)


def choose_for(
    source: str, survey: Inspection, parts: Split[ImageList], vae: str = "", *, download: bool = True
) -> Choice:
    """`choose_recipe` for pictures that have been looked at."""
    side, classes = nearest_side(survey.side), parts.train.class_names
    on_cpu, channels = best_device().type == "cpu", 1 if survey.grey else 3
    if not vae and side <= PIXEL_SPACE:
        levels = max(2, int(math.log2(side)) - 2)
        experiment = preset(IMAGE_SPACE.otherwise).override(
            data=source, image_size=(side, side), in_channels=channels, channel_mult=LEVELS[:levels]
        )
        experiment = experiment.override(**ON_CPU["pixels"]) if on_cpu else experiment
        return Choice(with_classes(experiment, classes), None, f"pixels, {side}x{side}")
    if not vae and not on_cpu and channels == 3:
        vae = published_vae(download=download)
    base = preset(LATENT_SPACE.otherwise).override(data=source)
    base = with_classes(base.override(**ON_CPU["latents"]) if on_cpu else base, classes)
    if vae:
        network = load_vae(vae)[1].experiment.network
        size = (side, side) if vae in STABLE_DIFFUSION else network.image_size
        return Choice(on_latents(base, vae, network, size), None, f"latents of {vae}, {size[0]}x{size[1]}")
    own = beside(base, "train").override(in_channels=channels)
    own = own.override(**ON_CPU["vae"]) if on_cpu else own
    height, width = own.network.image_size
    return Choice(
        on_latents(base, own.name, own.network, own.network.image_size),
        own,
        f"latents of an autoencoder of its own, {height}x{width}",
    )


def nearest_side(side: float) -> int:
    """The side of `SIDES` nearest in ratio."""
    return min(SIDES, key=lambda candidate: abs(math.log(candidate / side)))


def with_classes(experiment: ExperimentConfig, class_names: tuple[str, ...]) -> ExperimentConfig:
    """As many classes as there are, and no guidance without any."""
    guidance = {} if class_names else {"guidance": 1.0}
    return experiment.override(num_classes=len(class_names), **guidance)


def on_latents(
    experiment: ExperimentConfig, vae: str, network: AutoencoderConfig, image_size: tuple[int, int]
) -> ExperimentConfig:
    """A recipe on the latents that an autoencoder makes of images of this size."""
    height, width = (side // network.factor for side in image_size)
    patch = 2 if height >= 16 and height % 2 == width % 2 == 0 else 1
    return experiment.override(vae=vae, in_channels=network.z_channels, image_size=(height, width), patch_size=patch)


def published_vae(*, download: bool) -> str:
    """The name of the published autoencoder, if it can be had; "" if not, and why is said."""
    name = STABLE_DIFFUSION[0]
    try:
        check(download or in_hub_cache(name, SD_FILE), f"{name} is not here; training tries to download it")
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
    """Train what `choose_recipe` says in the folder `run`, a new one unless given, and return the path of the weights.

    An autoencoder to be trained first gets `run`/vae, and half of the `minutes`. The plan of each stage is the number
    of images that its minutes suffice for. `overrides` are fields of the recipe. Started again on its folder, an
    unfinished autoencoder goes on where it stopped; once its latents are being learned, `train` with that folder's
    recipe goes on.
    """
    check(
        rank_info().world == 1,
        f"several processes train a preset; `diffit info {data}` names the one for these pictures",
    )
    changes = {"data": str(data), **overrides}
    experiment, own, why = choose_recipe(data, vae)
    name = name or re.sub(r"[^\w.+-]+", "-", Path(data).stem)
    say(f"{data}: {why}; {experiment.name}" + (f", after {own.name}" if own else ""))
    if str(data) in IMAGE_SPACE.presets and not vae:
        return train(experiment.override(**({"minutes": minutes} if minutes else {}), **changes), run, name=name)
    if own is None:
        return train(paced(experiment, run, minutes, changes), run, name=name)
    minutes = minutes and minutes / 2
    shared = {key: value for key, value in changes.items() if key in SHARED}
    own, experiment = paced(own, run and Path(run) / "vae", minutes, shared), paced(experiment, run, minutes, changes)
    images = experiment_data(own)
    folder = Path(run) if run else new_folder(name)
    say(f"run: {folder}; stopped, it goes on by `diffit train --data {data} --run {folder}`")
    say(f"1 of 2: {own.name}, {plan_of(own)}")
    file = train_vae(own, folder / "vae", images)
    say(f"2 of 2: {experiment.name}, {plan_of(experiment)}")
    return train(experiment.override(vae=str(file)), folder, images)


def plan_of(experiment: BaseExperimentConfig) -> str:
    """How long it trains, in words."""
    return f"{experiment.training.total_images:,} images in at most {experiment.training.minutes:g} minutes"


def paced(experiment: R, run: str | Path | None, minutes: float | None, changes: dict[str, Any]) -> R:
    """The recipe with these changes and a plan that its minutes suffice for on this device, as steps were timed.

    Where minutes are given the plan fills them, else it is the recipe's own at most. A run that goes on with as many
    minutes keeps its plan. Refuses a disk too small for the run's files.
    """
    training = experiment.override(**changes).training
    allowed = float(minutes or training.minutes or LONGEST)
    often = allowed / (OF_VAE if isinstance(experiment, VAEExperimentConfig) else REPORTS)
    plan = {"minutes": allowed, "report_minutes": min(training.report_minutes, often)}
    before = read_options(type(experiment), Path(run)).training if run and (Path(run) / OPTIONS).is_file() else None
    if before and before.minutes == allowed:
        plan["images"] = before.images
    else:
        check_room(Path(run or "."), IN_A_RUN * training_cost(experiment.override(**changes)).parameters)
        fit = max(training.batch_size, int(60 * allowed * TRAINED / time_steps(experiment.override(**changes))))
        plan["images"] = fit if minutes else min(fit, training.images)
    return experiment.override(**plan | changes)


def check_room(folder: Path, size: int) -> None:
    """Refuse a disk with less room than these bytes."""
    rank_info = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(rank_info).free
    check(size < free, f"a run takes {size / 1e9:.2g} GB, but {rank_info} has {free / 1e9:.2g} GB; give another --run")
