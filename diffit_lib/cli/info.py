"""`info`: what a preset, a weights file or a data set is, what there is, and what a training would take."""

import math
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffit_lib.checkpoints.autoencoders import load_space, load_vae
from diffit_lib.checkpoints.hub import ALIASES, HUB_MODELS, TRANSFORMER, find_weights, hub_place, pretrained
from diffit_lib.checkpoints.weights import few, image_shape, load_weights
from diffit_lib.cli.options import summary
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.models import AutoencoderConfig, ImageNetworkConfig, TransformerConfig
from diffit_lib.config.presets import PRESETS, VAE_PRESETS
from diffit_lib.data.preprocess import Inspection, look
from diffit_lib.data.sources import NAMED, ImageList, Split, list_images
from diffit_lib.diffusion.samplers import SAMPLERS
from diffit_lib.models.cost import denoiser_cost, parameters
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.reports.auto import LONGEST, Choice, choose_experiment
from diffit_lib.training.cost import time_steps, training_cost
from diffit_lib.training.encode import load_states
from diffit_lib.training.train import resolve
from diffit_lib.utils.errors import DiffitError, closest, printable
from diffit_lib.utils.files import WEIGHTS, expanded, siblings
from diffit_lib.utils.logging import duration
from diffit_lib.utils.tensors import best_device, device_name


def list_all(verbs: dict[str, str]) -> str:
    """Verbs, presets, samplers, data sets and pretrained weights, each in one line."""
    cards = {name: path.with_suffix(".md").read_text("utf-8") for name, path in pretrained().items()}
    weights = {name: re.split("[;.] ", card.split("\n\n")[2])[0] for name, card in cards.items()}
    for name, model in HUB_MODELS.items():
        got = "needs its file" if "://" in model.source else "downloaded at first use"
        weights[name] = f"of {model.by}, {model.licence}; {got}"
    sections = {
        "Verbs: diffit VERB --help": verbs,
        "Presets: diffit train NAME": {name: PRESETS.about(name) for name in PRESETS},
        "Autoencoder presets: diffit train-vae NAME": {name: VAE_PRESETS.about(name) for name in VAE_PRESETS},
        "Samplers: --sampler NAME": {name: first_line(sampler) for name, sampler in SAMPLERS.items()}
        | {"ddim": "The same as euler: DDIM without noise is Euler's method."},
        "Data sets: --data NAME": {name: first_line(images) for name, images in NAMED.items()},
        "Pretrained weights: diffit sample NAME, diffit evaluate NAME": weights,
    }
    width = max(len(name) for rows in sections.values() for name in rows)
    lines = []
    for title, rows in sections.items():
        lines += [title, *(f"  {name:<{width}}  {line}" for name, line in rows.items()), ""]
    return "\n".join(lines[:-1])


def first_line(function: Any) -> str:
    """The first line of a function's docstring; of torchvision's data sets their name."""
    return f"torchvision's {function.args[0]}." if isinstance(function, partial) else summary(function)


def info(name: str | Path) -> str:
    """A few lines on a preset and the pretrained weights of its name, or on a weights file."""
    name, path = str(name), expanded(name)
    known = [*PRESETS, *VAE_PRESETS, *NAMED, *pretrained(), *HUB_MODELS, *ALIASES]
    if not path.exists() and name not in known and not hub_place(name):
        near = closest(name, [*known, *siblings(path)]) or "`diffit info` lists the names"
        raise DiffitError(
            f"nothing is called {name!r}: no preset, data set or weights, no file or folder {path.absolute()}; {near}"
        )
    if path.is_file() or name not in (*PRESETS, *VAE_PRESETS):
        return describe_weights(name)
    if name in VAE_PRESETS:
        return describe(VAE_PRESETS[name])
    weights = [describe_weights(name)] if name in pretrained() else []
    return "\n".join([f"preset {describe(PRESETS[name])}", *weights])


def describe_weights(name: str | Path) -> str:
    """What a weights file says of itself, and its network."""
    _, card = load_weights(name)
    seen = f"{card.images_seen:,} images in {card.minutes:.1f} minutes on {card.device}; " if card.images_seen else ""
    classes = few(card.class_names) if len(card.class_names) > 100 else ", ".join(card.class_names) or "none"
    facts = [
        f"weights {find_weights(name)}: {card.experiment.name}, trained on {card.trained_on}",
        f"  {seen}licence {card.licence}",
        f"  classes: {classes}",
    ]
    return "\n".join([*map(printable, facts), describe(card.experiment)])


def describe(experiment: BaseExperimentConfig) -> str:
    """The network level by level, and how it is trained and sampled."""
    network, training = experiment.network, experiment.training
    if isinstance(network, AutoencoderConfig):
        with torch.device("meta"):
            cost = f"{parameters(KLAutoencoder(network)):,} parameters"
        pixels, latents = (f"{h}x{w}x{c}" for c, h, w in (network.shape, network.latent_shape))
        levels = f"  {pixels} pixels to {latents} latents, channels {', '.join(map(str, network.channels))}"
    else:
        counted = denoiser_cost(network)
        cost = f"{counted.parameters:,} parameters, {counted.macs / 1e9:.3g} GMAC an image"
        levels = levels_table(network) if isinstance(network, ImageNetworkConfig) else one_level(network)
    lines = [
        printable(f"{experiment.name}: {title(network)} for {experiment.data}, {cost}"),
        levels,
        f"  training: {training.total_images:,} images in batches of {training.batch_size}, lr {training.lr:g}",
    ]
    if isinstance(experiment, ExperimentConfig):
        sampling = experiment.sampling
        lines.append(f"  sampling: {sampling.method}, {sampling.steps} steps, guidance {sampling.guidance:g}")
    return "\n".join(lines)


def title(network: ImageNetworkConfig | TransformerConfig | AutoencoderConfig) -> str:
    """What kind of network it is."""
    if isinstance(network, TransformerConfig):
        return "DiT" if network.block == "dit" else "latent DiffiT"
    return "image-space DiffiT" if isinstance(network, ImageNetworkConfig) else "KL autoencoder"


def one_level(network: TransformerConfig) -> str:
    """One line: blocks, tokens, channels, heads."""
    (channels, height, width), (rows, columns), patch = network.shape, network.grid, network.patch_size
    return (
        f"  {network.depth} blocks on {rows}x{columns} tokens of {network.width} channels, {network.num_heads} heads; "
        f"a token is {patch}x{patch} of {height}x{width}, {channels} channels"
    )


def levels_table(network: ImageNetworkConfig) -> str:
    """One line per level: map, channels, ResBlocks on each path, window, heads."""
    lines = ["  level  map      channels  ResBlocks  window  heads"]
    for level, ((height, width), channels, window) in enumerate(
        zip(network.map_sizes, network.channels, network.windows, strict=True)
    ):
        bottom = level == len(network.channels) - 1
        blocks = f"{network.num_blocks}" if bottom else f"{network.num_blocks} + {network.num_blocks}"
        size, tile = f"{height}x{width}", f"{window[0]}x{window[1]}"
        lines.append(f"  {level:<5}  {size:<7}  {channels:<8}  {blocks:<9}  {tile:<6}  {network.num_heads}")
    return "\n".join(lines)


SECONDS = 4.0  # for opening images
NAMED_FILES, NAMED_CLASSES, NAMED_SIZES = 3, 12, 3  # how many are named before "..."


def are_images(name: str) -> bool:
    """Whether it is a folder other than a run's, a zip, a tar, or a data set by a name that no preset has."""
    path = Path(name)
    folder = name != "" and path.is_dir() and not any((path / file).is_file() for file in (WEIGHTS, TRANSFORMER))
    return (
        folder
        or path.suffix in (".zip", ".tar")
        or (name.startswith("hf:") and name[3:5] != "//")
        or (name in NAMED and name not in PRESETS)
    )


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
    limits = " and ".join(f"{stage.training.minutes or LONGEST:g}" for stage in stages)
    return [
        f"  train    {choice.why}: {', then '.join(names)}",
        f"  memory   {size(most)} in training, and {size(held)} for the images",
        f"  time     {', '.join(times)}; an estimate, of some steps on {device_name(best_device())} as busy as now",
        f"  start    diffit train --data {source}   (stops after {limits} minutes; --minutes 600 for a night)",
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
