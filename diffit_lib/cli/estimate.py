"""What training on some images, or of an experiment, takes: `diffit info FOLDER` and `--dry-run`."""

import math
from collections import Counter
from pathlib import Path

from diffit_lib.checkpoints.autoencoders import load_space, load_vae
from diffit_lib.checkpoints.weights import image_shape
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.data.preprocess import Inspection, look
from diffit_lib.data.sources import ImageList, Split, list_images
from diffit_lib.reports.auto import IMAGE_SPACE, LONGEST, Choice, choose_experiment
from diffit_lib.training.cost import time_steps, training_cost
from diffit_lib.training.encode import load_states
from diffit_lib.training.train import resolve
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.logging import duration
from diffit_lib.utils.tensors import best_device, device_name

SECONDS = 4.0  # for opening images
NAMED_FILES, NAMED_CLASSES, NAMED_SIZES = 3, 12, 3  # how many are named before "..."


def describe_data(source: str | Path, choice: Choice | None = None) -> str:
    """Describe images (sizes, modes, classes, unreadable files, test part) and their training, in about 20 seconds.

    Without a `choice` it is what `choose_experiment` says.
    """
    parts = list_images(source)
    survey = look(*parts.distinct, seconds=SECONDS)
    labels = [label for part in parts.distinct for label in part.labels.tolist()]
    lines = [f"{source}: {len(labels):,} images", *describe_images(survey, parts, labels)]
    try:
        choice = choice or choose_experiment(source, download=False)
    except DiffitError as error:
        return "\n".join([*lines, f"  nothing to train: {error}"])
    return "\n".join([*lines, *describe_choice(source, choice, parts)])


def describe_images(survey: Inspection, parts: Split[ImageList], labels: list[int]) -> list[str]:
    """Lines on the images; sizes, modes and broken files are those of the opened ones."""
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


def describe_choice(source: str | Path, choice: Choice, parts: Split[ImageList]) -> list[str]:
    """Lines on what `train --data` would do, and what that takes here."""
    stages: list[BaseExperimentConfig] = [*([choice.vae] if choice.vae else []), choice.experiment]
    costs = [training_cost(stage) for stage in stages]
    pairs = zip(stages, costs, strict=True)
    names = [f"{stage.name} ({cost.parameters / 1e6:.2g} M parameters)" for stage, cost in pairs]
    shape = stages[0].network.shape
    if choice.experiment.vae and not choice.vae:
        shape = image_shape(choice.experiment, load_vae(choice.experiment.vae)[1])
    held = len(parts.train) * math.prod(shape)
    most = max(cost.states + cost.activations for cost in costs)
    times = []
    for stage in stages:
        images = stage.training.total_images
        times.append(f"{duration(images * time_steps(stage))} for {images:,} images of {stage.name}")
    named = None if str(source) in IMAGE_SPACE.presets and not choice.experiment.vae else LONGEST
    limits = [f"{stage.training.minutes or named:g}" for stage in stages if stage.training.minutes or named]
    stops = f"stops after {' and '.join(limits)} minutes; " if limits else ""
    return [
        f"  train    {choice.why}: {', then '.join(names)}",
        f"  memory   {size(most)} in training, and {size(held)} for the images",
        f"  time     {', '.join(times)}; an estimate, of some steps on {device_name(best_device())} as busy as now",
        f"  start    diffit train --data {source}   ({stops}--minutes 600 for a night)",
    ]


def dry_run(experiment: ExperimentConfig | VAEExperimentConfig) -> str:
    """Lines on the cost of an experiment and on its data, resolved as training would; trains and writes nothing."""
    space, vae = load_space(getattr(experiment, "vae", ""))
    train = load_states(experiment, space, vae).train
    experiment = resolve(experiment, None, train, vae)
    if isinstance(experiment, VAEExperimentConfig):
        frozen = ", LPIPS" if experiment.loss.perceptual_weight else ""
    else:
        frozen = ", the autoencoder" if vae else ""
    training, cost = experiment.training, training_cost(experiment)
    left_out = "one recomputed block at a time" if training.checkpointing else "the device's own working memory"
    shape, classes = "x".join(map(str, train.images.shape[1:])), len(train.class_names)
    return "\n".join(
        [
            f"{experiment.name}: {cost.trained:,} parameters, {cost.macs / 1e9:.3g} GMAC an image forward, "
            "about three times that in training",
            f"  {training.total_images:,} images in {training.total_steps:,} steps of {training.batch_size}, "
            f"{training.precision} on {best_device()}: {3 * cost.macs * training.total_images / 1e15:.3g} PMAC",
            f"  memory: {size(cost.states + cost.activations)} = {size(cost.states)} for weights, gradients, Adam and "
            f"average + {size(cost.activations)} that {training.micro_batch} images at once keep for the backward "
            f"pass; not counted: {left_out}{frozen}",
            f"  data: {train.name}, {len(train):,} of {shape}, {f'{classes} classes' if classes else 'no classes'}",
        ]
    )


def size(count: int) -> str:
    """Bytes in GB, or MB below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def some(names: list[str], most: int) -> str:
    """The first few of these."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
