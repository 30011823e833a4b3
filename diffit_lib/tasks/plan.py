"""`plan`: a few settings, as a notebook's form has them, -> a recipe that suits the machine, and its data."""

import ast
from pathlib import Path
from typing import Any

from diffit_lib.colab import in_colab, warn
from diffit_lib.data import Split, recipe_data
from diffit_lib.errors import DiffitError
from diffit_lib.files import READY_MADE
from diffit_lib.presets import PRESETS, preset
from diffit_lib.recipe import Recipe
from diffit_lib.sources import NAMED
from diffit_lib.tensors import best_device

LONGEST = 30.0  # minutes of training, where neither the settings nor the preset name a number
BETWEEN = 4.0  # minutes between two checkpoints, at most


def plan(
    dataset: str = "auto", preset_name: str = "auto", *, minutes: float = 0, seed: int = 0, overrides: str = ""
) -> tuple[Recipe, Split]:
    """A recipe and its data. "auto" and 0 leave the choice to the machine.

    The data set is the named preset's own, else CIFAR-10 on a GPU and the digits on a CPU. One that cannot be
    downloaded is told, and the digits and their own preset take its place. Raises a DiffitError for a path, preset or
    field that does not exist.
    """
    if in_colab() and best_device().type == "cpu":
        warn("no GPU: Runtime > Change runtime type > T4 GPU switches one on; until then this goes on with the CPU")
    if dataset == "auto" and preset_name != "auto":
        dataset = preset(preset_name).data
    dataset = suitable(dataset)
    changes = {"seed": seed, **parse(overrides)}
    recipe = choose(dataset, preset_name).override(**changes)
    try:
        data = recipe_data(recipe)
    except DiffitError as error:
        if recipe.data == "digits" or recipe.data not in NAMED:
            raise
        given = {"PRESET": preset_name != "auto", "OVERRIDES": overrides.strip() != ""}
        dropped = " and ".join(name for name in given if given[name])
        warn(f"{error}: this goes on with the digits{', without ' + dropped if dropped else ''}")
        recipe = preset("digits").override(seed=seed)
        data = recipe_data(recipe)
    settled: dict[str, Any] = {"report_minutes": min(recipe.training.report_minutes, BETWEEN)}
    if recipe.network.num_classes and "num_classes" not in changes:
        settled["num_classes"] = len(data.train.class_names)
    if minutes or (recipe.training.minutes is None and recipe.training.max_steps is None):
        settled["minutes"] = float(minutes or LONGEST)
    return recipe.override(**settled), data


def choose(dataset: str, preset_name: str) -> Recipe:
    """The preset that is named, else the small one for these data: of a path, the one for small photographs."""
    if preset_name == "auto":
        preset_name = {"cifar10": "cifar10-t4"}.get(dataset, dataset if dataset in PRESETS else "cifar10-t4")
    return preset(preset_name).override(data=dataset)


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


def ready_made(dataset: str) -> Path | None:
    """Our own weights for a data set, the machine's choice under "auto", if there are any."""
    files = sorted(READY_MADE.glob("*.safetensors"))
    return next((path for path in files if path.stem in PRESETS and PRESETS[path.stem].data == suitable(dataset)), None)


def suitable(dataset: str) -> str:
    """What "auto" means on this machine."""
    if dataset != "auto":
        return dataset
    return "digits" if best_device().type == "cpu" else "cifar10"
