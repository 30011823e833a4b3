"""What every training run does around its training: start anew or go on from a checkpoint, and fit."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy

from diffit_lib.config.experiment import BaseExperimentConfig
from diffit_lib.config.training import TrainingConfig
from diffit_lib.training.callbacks import Clock, Progress, Report
from diffit_lib.training.logs import RunLog
from diffit_lib.training.module import RunModule
from diffit_lib.training.run_dir import new_folder, read_options, set_aside, verb, write_options
from diffit_lib.utils.distributed import from_rank_zero, local_world_size, rank_info
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.logging import LOG, say
from diffit_lib.utils.tensors import best_device, best_precision, cpu_threads

CHECKPOINT = "last.ckpt"
FREE = {"images", "max_steps", "minutes", "report_minutes", "workers", "threads", "memory_gb", "checkpointing", "vgg"}
FREE |= {"keep", "sigma_min", "sigma_max"}  # the last two only matter in sampling; a run may change them as it goes on

R = TypeVar("R", bound=BaseExperimentConfig)


def start(
    experiment: R,
    run: str | Path | None,
    name: str | None,
    images: str,
    settle: Callable[[R, R | None], R],
    log: RunLog,
) -> tuple[R, Path]:
    """Make the folder ready, a new one of this name unless one is given; the settled recipe, and the folder.

    Where it holds a checkpoint, that must be of the same recipe, and of `images`, the training part's fingerprint.
    `settle(recipe, before)` decides what depends on data and device; `before` is what the run began with, None at its
    beginning. Of several processes the first does all that. The random state is that of the recipe's seed afterwards.
    What is refused leaves no trace.
    """
    experiment, folder = from_rank_zero(lambda: ready(experiment, run, name, images, settle, log))
    torch.manual_seed(experiment.training.seed)
    return experiment, folder


def ready(
    experiment: R,
    run: str | Path | None,
    name: str | None,
    images: str,
    settle: Callable[[R, R | None], R],
    log: RunLog,
) -> tuple[R, Path]:
    """`start` in the first process."""
    if run is not None and (Path(run) / CHECKPOINT).is_file():
        run = Path(run)
        experiment = resumed(experiment, run, settle)
        check_readable(run / CHECKPOINT, images)
    else:
        experiment = settle(experiment, None)
        if run is None:
            run = new_folder(name or experiment.name)
            say(f"run: {run}; stopped, it goes on by `diffit {verb(experiment)} --run {run}`")
        run = Path(run)
        if aside := set_aside(run):
            say(f"{run} holds no checkpoint to go on from; what an earlier run left there is now in {aside}")
    write_options(experiment, run)
    log.open(run)
    for stale in run.glob(".*.part.*"):  # what a kill left of a half-written file
        stale.unlink()
    return experiment, run


def fit(module: RunModule, run: Path, tell: Callable[[Any], None], *, progress: bool) -> None:
    """Train to the planned end, from the run's checkpoint if there is one; `tell` is called at every report."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # what it says at the start helps nobody here
    checkpoint, options = run / CHECKPOINT, module.options
    precision: Any = options.precision
    world = rank_info().world
    spread = DDPStrategy(find_unused_parameters=module.some_idle, broadcast_buffers=False)  # buffers are constants
    trainer = pl.Trainer(
        accelerator="auto",
        devices=local_world_size(),
        num_nodes=world // local_world_size(),
        strategy=spread if world > 1 else "auto",
        plugins=TorchElasticEnvironment() if world > 1 else LightningEnvironment(),  # not what it would make of srun
        precision=precision,
        accumulate_grad_batches=options.accumulate,
        max_epochs=-1,
        callbacks=[Clock(), *[Progress()] * progress, Report(checkpoint, tell)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=run,
    )
    with warnings.catch_warnings(), cpu_threads(options.threads):
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        LOG.info(beginning(module))
        try:
            trainer.fit(module, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
        except torch.OutOfMemoryError:
            more = range(options.accumulate + 1, options.batch_size + 1)
            parts = next((n for n in more if options.batch_size % n == 0), options.batch_size)
            raise DiffitError(
                f"batch_size {options.batch_size} in {options.accumulate} parts exceeds the memory of {module.device}; "
                f"train into another folder with accumulate={parts}"
            ) from None
    LOG.info(f"done: {module.images_seen:,} images in {module.seconds / 60:.1f} minutes of training")


def beginning(module: RunModule) -> str:
    """What begins, in one line."""
    data, options = module.data, module.options
    classes = f"{len(data.class_names)} classes" if data.class_names else "no classes"
    count = sum(parameter.numel() for parameter in module.model.parameters())
    return (
        f"training: {data.name} {module.fingerprint}, {len(data):,} images, {classes}; {count:,} parameters; "
        f"{options.total_images:,} images in batches of {options.batch_size}, {options.precision} on {best_device()}"
    )


def settled_precision(training: TrainingConfig) -> str:
    """What "auto" means on this device; one it does not have is refused."""
    check(
        training.precision != "16-mixed" or best_device().type != "cpu",
        "precision is '16-mixed', which a CPU does not have; give bf16-mixed or 32-true",
    )
    return best_precision(best_device()) if training.precision == "auto" else training.precision


def resumed(experiment: R, run: Path, settle: Callable[[R, R | None], R]) -> R:
    """The recipe to go on with: what shapes the run must not have changed.

    "auto" precision stays what it was, unless the run is on a CPU now and was trained in one that a CPU does not have.
    """
    options: Any = read_options(type(experiment), run)
    asked: Any = experiment
    if asked.training.precision == "auto":
        if options.training.precision == "16-mixed" and best_device().type == "cpu":
            options = options.override(precision=best_precision(best_device()))
            say(f"{run} was trained with precision 16-mixed and goes on, on a CPU, with {options.training.precision}")
        asked = asked.override(precision=options.training.precision)
    experiment = settle(asked, options)
    before, now = shaping(options), shaping(experiment)
    for name in before:
        if before[name] != now[name]:
            raise DiffitError(
                f"{run} was trained with {name}={before[name]}, not {now[name]}; "
                "set it back to go on, or train into another folder"
            )
    return experiment


def shaping(experiment: BaseExperimentConfig) -> dict[str, Any]:
    """The fields that decide what a run becomes, and so may not change when it goes on."""
    parts = experiment.to_dict()
    return {
        part if name == "kind" else name: value
        for part in experiment.PARTS
        for name, value in parts[part].items()
        if part != "sampling" and name not in FREE
    }


def check_readable(checkpoint: Path, images: str) -> None:
    """Refuse a checkpoint that is damaged, not ours, or of other training images; nothing in it is run."""
    try:
        trained_on = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["diffit"]["fingerprint"]
    except Exception as error:  # torch has no exception of its own for this
        problem = type(error).__name__
        raise DiffitError(f"{checkpoint} is damaged ({problem}); delete it to start over from nothing") from error
    check(
        trained_on == images,
        f"{checkpoint.parent} was trained on other images ({trained_on}) than these ({images}); "
        "give the same data, or train into another folder",
    )
