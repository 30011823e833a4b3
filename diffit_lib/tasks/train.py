"""`train`: a recipe in, a run folder with weights out; started again, it goes on where it stopped."""

import json
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from diffit_lib.data import Images, Split, load_data
from diffit_lib.errors import DiffitError
from diffit_lib.files import READY_MADE, write_text
from diffit_lib.pipeline import Pipeline
from diffit_lib.plots import enlargement, loss_curve, tile, write_figure, write_png
from diffit_lib.presets import PRESETS
from diffit_lib.recipe import Recipe
from diffit_lib.tensors import best_device, best_precision, cpu_threads
from diffit_lib.training import Clock, DiffusionModule, Progress, Report, append_row, loss_by_level, read_rows
from diffit_lib.weights import Card, build_denoiser, save_weights


def train(recipe: Recipe, run: str | Path, data: Split | None = None, *, progress: bool = True) -> Path:
    """Train `recipe` in the folder `run` and return the path of its weights.

    Where the folder holds a checkpoint of this recipe, training goes on from it, to the bit on a CPU.
    """
    run = Path(run)
    data = data or load_data(recipe.data, recipe.network.image_size, recipe.network.in_channels)
    checkpoint = run / "last.ckpt"
    if checkpoint.is_file():
        recipe = resumed(recipe, data.train, run)
        check_readable(checkpoint)
    else:
        recipe = resolve(recipe, data.train)
        (run / "metrics.csv").unlink(missing_ok=True)
    write_text(run / "options.json", json.dumps(recipe.to_dict(), indent=2))

    for stale in run.glob(".*.part.*"):  # what a kill left of a half-written file
        stale.unlink()
    torch.manual_seed(recipe.training.seed)
    denoiser = build_denoiser(recipe).to(memory_format=torch.channels_last)
    module = DiffusionModule(denoiser, recipe.training, data.train)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # what it says at the start helps nobody here
    precision: Any = recipe.training.precision
    report = Report(checkpoint, partial(show, run=run, recipe=recipe, data=data))
    trainer = pl.Trainer(
        accelerator="auto",
        devices=1,
        precision=precision,
        accumulate_grad_batches=recipe.training.accumulate,
        max_epochs=-1,
        callbacks=[Clock(), *[Progress()] * progress, report],
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


def resolve(recipe: Recipe, train: Images) -> Recipe:
    """Settle what depends on the data and the device; a network that does not fit the data is refused."""
    network, shape = recipe.network, tuple(train.images.shape[1:])
    if shape != network.shape:
        raise DiffitError(
            f"{recipe.name} is built for images of (channels, height, width) {network.shape}, but {train.name} has "
            f"{shape}; set in_channels and image_size, or take other data"
        )
    classes = len(train.class_names)
    if network.num_classes not in (0, classes):
        raise DiffitError(
            f"{recipe.name} has num_classes={network.num_classes}, but {train.name} has {classes} classes; "
            f"set num_classes to {classes}, or to 0 for an unconditional network"
        )
    if recipe.training.augment and network.augment_dim == 0:
        raise DiffitError(f"augment is {recipe.training.augment} but augment_dim 0; give augment_dim 9, or augment 0")
    if recipe.training.precision == "16-mixed" and best_device().type == "cpu":
        raise DiffitError("precision is '16-mixed', which a CPU does not have; give bf16-mixed or 32-true")
    changes: dict[str, Any] = {}
    if recipe.denoiser.sigma_data is None:
        changes["sigma_data"] = round(train.standard_deviation(), 4)
    if recipe.training.precision == "auto":
        changes["precision"] = best_precision(best_device())
    return recipe.override(**changes)


def resumed(recipe: Recipe, train: Images, run: Path) -> Recipe:
    """The recipe to go on with: "auto" precision stays what it was; what shapes the run must not have changed."""
    try:
        options = Recipe.from_dict(json.loads((run / "options.json").read_text()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DiffitError(f"{run}/options.json cannot be read ({error!r}); train into another folder") from error
    if recipe.training.precision == "auto":
        recipe = recipe.override(precision=options.training.precision)
    recipe = resolve(recipe, train)
    free = {"images", "max_steps", "minutes", "report_minutes", "workers", "threads", "checkpointing"}
    free |= {"sigma_min", "sigma_max"}  # these only matter in sampling
    for part in ("network", "denoiser", "training"):
        before, now = options.to_dict()[part], recipe.to_dict()[part]
        for name in before:
            if name not in free and before[name] != now[name]:
                raise DiffitError(
                    f"{run} was trained with {name}={before[name]}, not {now[name]}; "
                    "set it back to go on, or train into another folder"
                )
    return recipe


def check_readable(checkpoint: Path) -> None:
    """Refuse a checkpoint that is damaged or not ours; nothing in it is run."""
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["diffit"]
    except Exception as error:  # torch has no exception of its own for this
        problem = type(error).__name__
        raise DiffitError(f"{checkpoint} is damaged ({problem}); delete it to start over from nothing") from error


def show(module: DiffusionModule, run: Path, recipe: Recipe, data: Split) -> None:
    """What a report leaves in the run folder: weights, a grid of samples, test loss by noise level, the loss curve."""
    card = Card(
        recipe=recipe,
        class_names=data.train.class_names,
        trained_on=f"{data.train.name} {module.fingerprint}",
        images_seen=module.images_seen,
        minutes=round(module.seconds / 60, 2),
        device=device_name(module.device),
    )
    save_weights(run / "weights.safetensors", card, module.average, module.denoiser)

    pipe = Pipeline(module.average, card, device=module.device, precision=recipe.training.precision)
    classes = recipe.network.num_classes
    samples = pipe(seeds=range(32), labels=[k % classes for k in range(32)] if classes else None)
    name = f"samples/{module.images_seen:09d}.png"
    write_png(run / name, tile(samples, columns=8, scale=enlargement(samples)))

    levels = loss_by_level(module.average, data.test, recipe.training.precision)
    row = {
        "images": module.images_seen,
        "seconds": round(module.seconds, 1),
        "loss": float(module.loss_sum) / module.loss_count if module.loss_count else float("nan"),
        "test_loss": sum(levels.values()) / len(levels),
        "grad_norm": float(module.grad_norm),
        "skipped": module.skipped,
        **{f"test_loss_{sigma:.3g}": loss for sigma, loss in levels.items()},
    }
    usual = PRESETS.get(recipe.name)
    alike = usual is not None and recipe.network == usual.network and recipe.denoiser.kind == usual.denoiser.kind
    expected = read_rows(READY_MADE / f"{recipe.name}.csv") if alike else []
    write_figure(run / "loss.png", loss_curve(append_row(run / "metrics.csv", row), expected))
    module.loss_sum, module.loss_count = torch.zeros(()), 0


def device_name(device: torch.device) -> str:
    """What the card says of the machine: the GPU's name, or the kind and number of CPU threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"
