"""What a folder, a zip or a data set holds, what would be trained on it, and what that takes here."""

import math
from collections import Counter
from pathlib import Path
from typing import cast

from diffit_lib.autoencoders import load_vae
from diffit_lib.errors import DiffitError
from diffit_lib.pictures import Parts
from diffit_lib.presets import PRESETS
from diffit_lib.recipe import AnyRecipe, Recipe, VAERecipe
from diffit_lib.sources import NAMED, find_pictures
from diffit_lib.tasks.dry_run import autoencoder_cost, diffusion_cost, size
from diffit_lib.tasks.photos import Choice, choose_recipe
from diffit_lib.tasks.plan import LONGEST
from diffit_lib.tasks.rehearse import Pace, rehearse
from diffit_lib.tasks.report import device_name
from diffit_lib.tasks.survey import Survey, look_at_all
from diffit_lib.tensors import best_device
from diffit_lib.weights import image_shape as shape_of

SECONDS = 4.0  # of opening pictures
NAMED_FILES, NAMED_CLASSES, NAMED_SIZES = 3, 12, 3  # that are named before "..."


def are_pictures(name: str) -> bool:
    """Whether it is a folder, a zip, or a data set by a name that no preset has."""
    return Path(name).is_dir() or Path(name).suffix == ".zip" or (name in NAMED and name not in PRESETS)


def describe_data(source: str | Path) -> str:
    """Pictures, sizes, modes, classes, unreadable files, test part; then recipe, memory and hours, in about 20 seconds.

    Of many pictures as many are opened as there is time for, in random order, and it is said how many. Time is
    that of a few steps of training here.
    """
    parts = find_pictures(source)
    survey, labels = look_at_all(parts, SECONDS), labels_of_all(parts)
    lines = [f"{source}: {len(labels):,} images", *describe_pictures(survey, parts, labels)]
    try:
        choice = choose_recipe(source, download=False)
    except DiffitError as error:
        return "\n".join([*lines, f"  nothing to train: {error}"])
    return "\n".join([*lines, *describe_choice(source, choice, parts)])


def labels_of_all(parts: Parts) -> list[int]:
    """The class numbers of both parts' pictures."""
    return [label for part in (parts if parts.test is not parts.train else parts[:1]) for label in part.labels.tolist()]


def describe_pictures(survey: Survey, parts: Parts, labels: list[int]) -> list[str]:
    """Lines on what is there; sizes, modes and broken ones are of the pictures that were opened."""
    train, classes = parts.train, parts.train.class_names
    opened = survey.sizes.total()
    widths, heights = zip(*survey.sizes, strict=True)
    smallest, largest = f"{min(widths)}x{min(heights)}", f"{max(widths)}x{max(heights)}"
    common = [f"{w}x{h} ({n / opened:.0%})" for (w, h), n in survey.sizes.most_common(NAMED_SIZES)]
    sizes = f"{smallest} to {largest}, most often {', '.join(common)}" if len(survey.sizes) > 1 else f"{smallest}, all"
    modes = ", ".join(f"{mode} {n:,}" for mode, n in survey.modes.most_common())
    bad = f"{len(survey.unreadable):,}"
    if survey.unreadable:
        bad += f", as {some(survey.unreadable, NAMED_FILES)}; --skip-bad leaves such out"
    lines = [f"  sizes    {sizes}", f"  modes    {modes}", f"  broken   {bad}"]
    if survey.looked < len(labels):
        lines.append(f"           (of {survey.looked:,} of {len(labels):,} images, opened in random order)")
    counts = Counter(labels)
    named = [f"{name} {counts[number]:,}" for number, name in enumerate(classes)]
    lines.append(f"  classes  {len(classes)}: {some(named, NAMED_CLASSES)}" if classes else "  classes  none")
    test = f"{len(parts.test):,} of them, never trained on" if parts.test is not train else "none: too few images"
    return [*lines, f"  test     {test}"]


def describe_choice(source: str | Path, choice: Choice, parts: Parts) -> list[str]:
    """Lines on what `train --data` would do, and what that takes here."""
    stages: list[AnyRecipe] = [*([choice.vae] if choice.vae else []), choice.recipe]
    paces = [rehearse(stage) for stage in stages]
    names = [
        f"{stage.name} ({pace.parameters / 1e6:.2g} M parameters)" for stage, pace in zip(stages, paces, strict=True)
    ]
    held = len(parts.train) * math.prod(image_shape(choice))
    hours = [hours_of(stage, pace) for stage, pace in zip(stages, paces, strict=True)]
    limits = " and ".join(f"{stage.training.minutes or LONGEST:g}" for stage in stages)
    return [
        f"  train    {choice.why}: {', then '.join(names)}",
        f"  memory   {size(max(map(memory, stages)))} in training, and {size(held)} for the images",
        f"  hours    {', '.join(hours)}; an estimate, of some steps on {device_name(best_device())} as busy as now",
        f"  start    diffit train --data {source}   (stops after {limits} minutes; --minutes 600 for a night)",
    ]


def memory(recipe: AnyRecipe) -> int:
    """Bytes that training takes, by count."""
    cost = autoencoder_cost(recipe) if isinstance(recipe, VAERecipe) else diffusion_cost(cast(Recipe, recipe))
    return cost.states + cost.activations


def hours_of(recipe: AnyRecipe, pace: Pace) -> str:
    """How long the recipe's whole plan takes, in words."""
    images = recipe.training.total_images
    return f"{images * pace.seconds / 3600:.2g} for {images:,} images of {recipe.name}"


def image_shape(choice: Choice) -> tuple[int, ...]:
    """(C, H, W) of the images that are held in memory."""
    if choice.vae or not choice.recipe.vae:
        return (choice.vae or choice.recipe).network.shape
    return shape_of(choice.recipe, load_vae(choice.recipe.vae)[1])


def some(names: list[str], most: int) -> str:
    """The first few of these."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
