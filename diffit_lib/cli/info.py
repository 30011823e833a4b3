"""`info`: what a preset or a weights file is, and what there is."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from diffit_lib.checkpoints.hub import ALIASES, HUB_MODELS, TRANSFORMER, find_weights, hub_place, pretrained
from diffit_lib.checkpoints.weights import few, load_weights
from diffit_lib.cli.options import summary
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig
from diffit_lib.config.models import AutoencoderConfig, ImageNetworkConfig, TransformerConfig
from diffit_lib.config.presets import PRESETS, VAE_PRESETS
from diffit_lib.data.sources import NAMED
from diffit_lib.diffusion.samplers import SAMPLERS
from diffit_lib.models.cost import denoiser_cost, parameters
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.utils.errors import DiffitError, closest, printable
from diffit_lib.utils.files import WEIGHTS, expanded, siblings
from diffit_lib.utils.tensors import on_meta


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
        with on_meta():
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
