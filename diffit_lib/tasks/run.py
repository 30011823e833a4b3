"""What every training run does around its training: start anew or go on from a checkpoint, and fit."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch

from diffit_lib.config import Training
from diffit_lib.errors import DiffitError, check
from diffit_lib.files import write_text
from diffit_lib.pictures import say
from diffit_lib.recipe import AnyRecipe
from diffit_lib.tensors import best_device, best_precision, cpu_threads
from diffit_lib.training import Clock, Progress, Report, RunModule

CHECKPOINT = "last.ckpt"
FREE = {"images", "max_steps", "minutes", "report_minutes", "workers", "threads", "memory_gb", "checkpointing", "vgg"}
FREE |= {"sigma_min", "sigma_max"}  # these only matter in sampling; a run may change them as it goes on

R = TypeVar("R", bound=AnyRecipe)


def start(recipe: R, run: Path, settle: Callable[[R, R | None], R]) -> R:
    """Make the folder ready and return the settled recipe: where there is a checkpoint, it must be of the same one.

    `settle(recipe, before)` decides what depends on data and device; `before` is what the run began with, None at its
    beginning. The random state is that of the recipe's seed afterwards.
    """
    checkpoint = run / CHECKPOINT
    if checkpoint.is_file():
        recipe = resumed(recipe, run, settle)
        check_readable(checkpoint)
    else:
        recipe = settle(recipe, None)
        for name in ("metrics.csv", "best.safetensors"):  # of an earlier run, whose checkpoint was deleted
            (run / name).unlink(missing_ok=True)
    write_text(run / "options.json", json.dumps(recipe.to_dict(), indent=2))
    for stale in run.glob(".*.part.*"):  # what a kill left of a half-written file
        stale.unlink()
    torch.manual_seed(recipe.training.seed)
    return recipe


def fit(module: RunModule, run: Path, tell: Callable[[Any], None], *, progress: bool) -> None:
    """Train to the planned end, from the run's checkpoint if there is one; `tell` is called at every report."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # what it says at the start helps nobody here
    checkpoint, options = run / CHECKPOINT, module.options
    precision: Any = options.precision
    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
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
        try:
            trainer.fit(module, ckpt_path=checkpoint if checkpoint.is_file() else None, weights_only=True)
        except torch.OutOfMemoryError:
            more = range(options.accumulate + 1, options.batch_size + 1)
            parts = next((n for n in more if options.batch_size % n == 0), options.batch_size)
            raise DiffitError(
                f"batch_size {options.batch_size} in {options.accumulate} parts exceeds the memory of {module.device}; "
                f"train into another folder with accumulate={parts}"
            ) from None


def settled_precision(training: Training) -> str:
    """What "auto" means on this device; one it does not have is refused."""
    check(
        training.precision != "16-mixed" or best_device().type != "cpu",
        "precision is '16-mixed', which a CPU does not have; give bf16-mixed or 32-true",
    )
    return best_precision(best_device()) if training.precision == "auto" else training.precision


def resumed(recipe: R, run: Path, settle: Callable[[R, R | None], R]) -> R:
    """The recipe to go on with: what shapes the run must not have changed.

    "auto" precision stays what it was, unless the run is on a CPU now and was trained in one that a CPU does not have.
    """
    try:
        options: Any = type(recipe).from_dict(json.loads((run / "options.json").read_text()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DiffitError(f"{run}/options.json cannot be read ({error!r}); train into another folder") from error
    asked: Any = recipe
    if asked.training.precision == "auto":
        if options.training.precision == "16-mixed" and best_device().type == "cpu":
            options = options.override(precision=best_precision(best_device()))
            say(f"{run} was trained with precision 16-mixed and goes on, on a CPU, with {options.training.precision}")
        asked = asked.override(precision=options.training.precision)
    recipe = settle(asked, options)
    before, now = shaping(options), shaping(recipe)
    for name in before:
        if before[name] != now[name]:
            raise DiffitError(
                f"{run} was trained with {name}={before[name]}, not {now[name]}; "
                "set it back to go on, or train into another folder"
            )
    return recipe


def shaping(recipe: AnyRecipe) -> dict[str, Any]:
    """The fields that decide what a run becomes, and so may not change when it goes on."""
    parts = recipe.to_dict()
    return {
        part if name == "kind" else name: value
        for part in recipe.PARTS
        for name, value in parts[part].items()
        if part != "sampling" and name not in FREE
    }


def check_readable(checkpoint: Path) -> None:
    """Refuse a checkpoint that is damaged or not ours; nothing in it is run."""
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["diffit"]
    except Exception as error:  # torch has no exception of its own for this
        problem = type(error).__name__
        raise DiffitError(f"{checkpoint} is damaged ({problem}); delete it to start over from nothing") from error
