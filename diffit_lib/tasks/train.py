"""`train`: a recipe in, a run folder with weights out; started again, it goes on where it stopped."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from diffit_lib.autoencoders import VAECard, load_codec
from diffit_lib.config import VP
from diffit_lib.data import Images, Split
from diffit_lib.errors import DiffitError, check
from diffit_lib.files import write_text
from diffit_lib.latents import CachedLatents
from diffit_lib.pictures import say
from diffit_lib.recipe import Recipe
from diffit_lib.tasks.encode import load_states, to_states
from diffit_lib.tasks.report import show
from diffit_lib.tasks.watch import Watch
from diffit_lib.tensors import best_device, best_precision, cpu_threads
from diffit_lib.training import Clock, Progress, Report
from diffit_lib.training_diffusion import DiffusionModule
from diffit_lib.weights import build_denoiser, image_shape, warm_start

FREE = {"images", "max_steps", "minutes", "report_minutes", "workers", "threads", "memory_gb", "checkpointing"}
FREE |= {"sigma_min", "sigma_max"}  # these only matter in sampling; a run may change them as it goes on


def train(
    recipe: Recipe,
    run: str | Path,
    data: Split | None = None,
    *,
    progress: bool = True,
    after_report: Callable[[], None] = lambda: None,
) -> Path:
    """Train `recipe` in the folder `run` and return the path of its weights.

    Where the folder holds a checkpoint of this recipe, training goes on from it, to the bit on a CPU. `after_report` is
    called whenever a checkpoint and all that belongs to it lie in the folder.
    """
    run = Path(run)
    codec, vae = load_codec(recipe.vae)
    codec.to(best_device())
    data = data or load_states(recipe, codec, vae)
    checkpoint = run / "last.ckpt"
    if checkpoint.is_file():
        recipe = resumed(recipe, data.train, vae, run)
        check_readable(checkpoint)
    else:
        recipe = resolve(recipe, data.train, vae)
        for name in ("metrics.csv", "best.safetensors"):  # of an earlier run, whose checkpoint was deleted
            (run / name).unlink(missing_ok=True)
    write_text(run / "options.json", json.dumps(recipe.to_dict(), indent=2))

    for stale in run.glob(".*.part.*"):  # what a kill left of a half-written file
        stale.unlink()
    torch.manual_seed(recipe.training.seed)
    denoiser = build_denoiser(recipe)
    if recipe.init_weights and not checkpoint.is_file():
        warm_start(denoiser, recipe.init_weights)
    denoiser = denoiser.to(memory_format=torch.channels_last)
    states = to_states(recipe, codec, data)
    module = DiffusionModule(denoiser, recipe.training, states.train, codec)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # what it says at the start helps nobody here
    precision: Any = recipe.training.precision
    watch = Watch(data.train, best_device())

    def tell(module: DiffusionModule) -> None:
        show(module, run=run, recipe=recipe, vae=vae, test=states.test, watch=watch)
        after_report()

    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
        precision=precision,
        accumulate_grad_batches=recipe.training.accumulate,
        max_epochs=-1,
        callbacks=[Clock(), *[Progress()] * progress, Report(checkpoint, tell)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run,
    )
    with warnings.catch_warnings(), cpu_threads(recipe.training.threads):
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        trainer.fit(module, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
    return run / "weights.safetensors"


def resolve(recipe: Recipe, train: Images, vae: VAECard | None = None) -> Recipe:
    """Settle what depends on the data and the device; a network that does not fit the data is refused."""
    network, shape, wanted = recipe.network, tuple(train.images.shape[1:]), image_shape(recipe, vae)
    if isinstance(train, CachedLatents):
        channels, height, width = network.shape
        wanted = 2 * channels, height, width
    if shape != wanted:
        what = "moments of latents" if isinstance(train, CachedLatents) else "images"
        raise DiffitError(
            f"{recipe.name} is built for {what} of (channels, height, width) {wanted}, but {train.name} has "
            f"{shape}; set in_channels and image_size, or take other data"
        )
    classes = len(train.class_names)
    if network.num_classes not in (0, classes):
        raise DiffitError(
            f"{recipe.name} has num_classes={network.num_classes}, but {train.name} has {classes} classes; "
            f"set num_classes to {f'{classes}, or to ' if classes else ''}0 for an unconditional network"
        )
    if isinstance(recipe.denoiser, VP):
        own_levels, most = not (recipe.denoiser.sigma_min or recipe.denoiser.sigma_max), recipe.denoiser.timesteps
        check(not own_levels or recipe.sampling.steps <= most, f"steps is {recipe.sampling.steps}; give at most {most}")
    if recipe.training.augment and network.augment_dim == 0:
        raise DiffitError(f"augment is {recipe.training.augment} but augment_dim 0; give augment_dim 9, or augment 0")
    if recipe.training.precision == "16-mixed" and best_device().type == "cpu":
        raise DiffitError("precision is '16-mixed', which a CPU does not have; give bf16-mixed or 32-true")
    changes: dict[str, Any] = {}
    if recipe.denoiser.sigma_data is None:
        changes["sigma_data"] = 1.0 if vae else round(train.standard_deviation(), 4)
    if recipe.training.precision == "auto":
        changes["precision"] = best_precision(best_device())
    return recipe.override(**changes)


def resumed(recipe: Recipe, train: Images, vae: VAECard | None, run: Path) -> Recipe:
    """The recipe to go on with: what shapes the run must not have changed.

    "auto" precision stays what it was, unless the run is on a CPU now and was trained in one that a CPU does not have.
    """
    try:
        options = Recipe.from_dict(json.loads((run / "options.json").read_text()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DiffitError(f"{run}/options.json cannot be read ({error!r}); train into another folder") from error
    if recipe.training.precision == "auto":
        if options.training.precision == "16-mixed" and best_device().type == "cpu":
            options = options.override(precision=best_precision(best_device()))
            say(f"{run} was trained with precision 16-mixed and goes on, on a CPU, with {options.training.precision}")
        recipe = recipe.override(precision=options.training.precision)
    recipe = resolve(recipe, train, vae)
    before, now = shaping(options), shaping(recipe)
    for name in before:
        if before[name] != now[name]:
            raise DiffitError(
                f"{run} was trained with {name}={before[name]}, not {now[name]}; "
                "set it back to go on, or train into another folder"
            )
    return recipe


def shaping(recipe: Recipe) -> dict[str, Any]:
    """The fields that decide what a run becomes, and so may not change when it goes on."""
    parts = recipe.to_dict()
    return {
        part if name == "kind" else name: value
        for part in ("network", "denoiser", "training")
        for name, value in parts[part].items()
        if name not in FREE
    }


def check_readable(checkpoint: Path) -> None:
    """Refuse a checkpoint that is damaged or not ours; nothing in it is run."""
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["diffit"]
    except Exception as error:  # torch has no exception of its own for this
        problem = type(error).__name__
        raise DiffitError(f"{checkpoint} is damaged ({problem}); delete it to start over from nothing") from error
