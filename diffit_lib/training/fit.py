"""What every training run does around its training: start or resume, fit, report."""

import logging
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import closing, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import SIGTERMException

from diffit_lib.config.experiment import BaseExperimentConfig, TrainingConfig
from diffit_lib.config.presets import read_options, verb, write_options
from diffit_lib.data.datasets import Images
from diffit_lib.training.cost import fastest_threads
from diffit_lib.training.module import CheckpointFile, Clock, Report, RunModule
from diffit_lib.training.run_dir import CHECKPOINT, PREVIOUS, MetricsLog, keep_newest, new_folder, set_aside
from diffit_lib.utils.distributed import from_rank_zero, local_world_size, rank_info
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import WEIGHTS, sweep
from diffit_lib.utils.logging import LOG, say
from diffit_lib.utils.tensors import best_device, best_precision, bf16_by_onednn, cpu_threads, reuse_freed_memory

# a resumed run may change these; sigma_min and sigma_max only matter in sampling
FREE = {"images", "max_steps", "minutes", "report_minutes", "workers", "threads", "memory_gb", "checkpointing", "vgg"}
FREE |= {"keep", "logger", "sigma_min", "sigma_max"}

R = TypeVar("R", bound=BaseExperimentConfig)


def start(
    experiment: R,
    run: str | Path | None,
    name: str | None,
    images: str,
    settle: Callable[[R, R | None], R],
    open_log: Callable[[Path], None],
) -> tuple[R, Path]:
    """Prepare the folder `run`, or a new one called `name`; return the settled experiment and the folder.

    If the folder holds a checkpoint, it must be of the same experiment and of the training images with the fingerprint
    `images`. `settle(experiment, before)` decides what depends on data and device; `before` is what the run was started
    with, None for a new run. Only the first process does this; what it refuses leaves no trace. Seeds torch.
    """

    def prepare() -> tuple[R, Path]:
        if run is not None and (Path(run) / CHECKPOINT).is_file():
            folder = Path(run)
            settled = resumed(experiment, folder, settle)
            check_readable(folder / CHECKPOINT, images)
        else:
            settled = settle(experiment, None)
            settled = settled.override(threads=settled.training.threads or fastest_threads(settled))
            folder = new_folder(name or experiment.name) if run is None else Path(run)
            if run is None:
                say(f"run: {folder}; if stopped, resume with `diffit {verb(settled)} --run {folder}`")
                if "SLURM_JOB_ID" in os.environ:
                    say("without --run a job that SLURM requeues begins a new run; give --run FOLDER")
            if aside := set_aside(folder):
                say(f"{folder} holds no checkpoint to resume from; the files of an earlier run are now in {aside}")
        write_options(settled, folder)
        open_log(folder)
        sweep(folder)
        return settled, folder

    experiment, folder = from_rank_zero(prepare)
    torch.manual_seed(experiment.training.seed)
    return experiment, folder


def fit(
    module: RunModule,
    experiment: BaseExperimentConfig,
    folder: Path,
    snapshot: Callable[..., None],
    progress: bool,
    after_save: Callable[[], None],
    after_report: Callable[[], None],
) -> Path:
    """Train to the planned end, from the run's checkpoint if there is one, and return the path of the weights.

    Each report calls `after_save`, `snapshot(module, terms=..., log=...)` and `after_report`; `snapshot` in all
    processes, of which the first alone gets a log and writes.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    checkpoint, options = folder / CHECKPOINT, module.options
    first, world = rank_info().rank == 0, rank_info().world
    ddp = DDPStrategy(find_unused_parameters=module.some_idle, broadcast_buffers=False)  # buffers are constants

    with closing(MetricsLog(folder, experiment)) if first else nullcontext() as log:

        def report(module: RunModule, terms: dict[str, float]) -> None:
            if first:
                write_options(experiment, folder)  # again: a drive that vanished may have come back without them
                after_save()
            snapshot(module, terms=terms, log=log)
            if first:
                keep_newest(folder, module.images_seen, options.keep)
                after_report()

        reports = Report(checkpoint, report)
        trainer = pl.Trainer(
            accelerator="auto",
            devices=local_world_size(),
            num_nodes=world // local_world_size(),
            strategy=ddp if world > 1 else "auto",
            plugins=[
                TorchElasticEnvironment() if world > 1 else LightningEnvironment(),  # not its own reading of srun
                CheckpointFile(),
            ],
            precision=options.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=options.accumulate,
            max_epochs=-1,
            callbacks=[Clock(progress), reports],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        reuse_freed_memory()
        with warnings.catch_warnings(), cpu_threads(options.threads):
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            LOG.info(first_line(module))
            try:
                trainer.fit(module, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
            except SystemExit as stop:
                if isinstance(stop, SIGTERMException):
                    say(f"stopped after {module.images_seen:,} images, and saved; the same command goes on")
                if stop.code == 128 + signal.SIGINT or isinstance(stop.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from None
                raise
            except torch.OutOfMemoryError:
                more = range(options.accumulate + 1, options.batch_size + 1)
                parts = next((n for n in more if options.batch_size % n == 0), options.batch_size)
                raise DiffitError(
                    f"batch_size {options.batch_size} in {options.accumulate} parts exceeds the memory of "
                    f"{module.device}; train into another folder with accumulate={parts}"
                ) from None
            except Exception as error:
                if isinstance(error, DiffitError) or hasattr(reports, "next") or not checkpoint.is_file():
                    raise
                raise damaged(checkpoint, error) from error  # it had not begun to train
    if module.skipped_in_a_row > 1:
        line = f"{folder}: the last {module.skipped_in_a_row} steps had no finite gradient, and changed nothing"
        say(f"{line}; train into another folder with a lower lr than {options.lr}")
    LOG.info(f"done: {module.images_seen:,} images in {module.seconds / 60:.1f} minutes of training")
    return folder / WEIGHTS


def first_line(module: RunModule) -> str:
    """Data, size and plan of a run, for its log."""
    data, options = module.data, module.options
    classes = f"{len(data.class_names)} classes" if data.class_names else "no classes"
    count = sum(parameter.numel() for parameter in module.model.parameters())
    return (
        f"training: {data.name} {module.fingerprint}, {len(data):,} images, {classes}; {count:,} parameters; "
        f"{options.total_images:,} images in batches of {options.batch_size}, {options.precision} on {best_device()}"
    )


def check_shape(experiment: BaseExperimentConfig, train: Images, wanted: tuple[int, ...], what: str = "images") -> None:
    """Refuse training data of another shape than the network takes."""
    shape = tuple(train.images.shape[1:])
    check(
        shape == wanted,
        f"{experiment.name} is built for {what} of (channels, height, width) {wanted}, but {train.name} has {shape}; "
        "set in_channels and image_size, or take other data",
    )


def check_device(training: TrainingConfig) -> str:
    """The precision that "auto" means on this device. Refuses a precision or a logger that is missing here."""
    check(
        training.precision != "16-mixed" or best_device().type != "cpu",
        "precision is '16-mixed', which a CPU does not have; give bf16-mixed or 32-true",
    )
    check(
        training.logger != "wandb" or find_spec("wandb") is not None,
        "logger is 'wandb', which is not installed. Run `pip install wandb`, or give --logger tensorboard",
    )
    if best_device().type == "cpu" and training.precision == "bf16-mixed" and not bf16_by_onednn():
        say("this CPU has no fast bf16: bf16-mixed takes several times as long as 32-true")
    return best_precision(best_device(), training.precision)


def resumed(experiment: R, run: Path, settle: Callable[[R, R | None], R]) -> R:
    """The experiment to resume with. Refuses changes to what shapes the run.

    "auto" precision stays what it was, unless the run was trained in half precision and is on a CPU now.
    """
    options: Any = read_options(type(experiment), run)
    asked: Any = experiment.override(threads=experiment.training.threads or options.training.threads)
    if asked.training.precision == "auto":
        if options.training.precision == "16-mixed" and best_device().type == "cpu":
            options = options.override(precision=best_precision(best_device()))
            say(f"{run} was trained with precision 16-mixed and goes on, on a CPU, with {options.training.precision}")
        asked = asked.override(precision=options.training.precision)
    experiment = settle(asked, options)
    before, now = ({"lora_rank": getattr(each, "lora_rank", 0), **shaping(each)} for each in (options, experiment))
    for name, value in before.items():
        what = f"{run} was trained with {name}={value}, not {now[name]}"
        check(now[name] == value, f"{what}; set it back to go on, or train into another folder")
    return experiment


def shaping(experiment: BaseExperimentConfig) -> dict[str, Any]:
    """The fields that decide what a run becomes, which a resumed run may not change."""
    parts = experiment.to_dict()
    return {
        part if name == "kind" else name: value
        for part in experiment.PARTS
        for name, value in parts[part].items()
        if part != "sampling" and name not in FREE
    }


def damaged(checkpoint: Path, error: Exception) -> DiffitError:
    """What to raise for a checkpoint that could not be loaded."""
    what = f"{checkpoint} is damaged ({type(error).__name__})"
    return DiffitError(f"{what}; put {PREVIOUS} in its place, or delete it to start over from nothing")


def check_readable(checkpoint: Path, images: str) -> None:
    """Refuse a checkpoint that is damaged, not ours, or of other training images; no code in it is run."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        trained_on, _ = content["diffit"]["fingerprint"], content["pytorch-lightning_version"]
    except Exception as error:  # torch has no exception of its own for this
        raise damaged(checkpoint, error) from error
    check(
        trained_on == images,
        f"{checkpoint.parent} was trained on other images ({trained_on}) than these ({images}); "
        "give the same data, or train into another folder",
    )
