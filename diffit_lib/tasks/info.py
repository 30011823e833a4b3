"""`info`: what a preset or a weights file is."""

from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from diffit_lib.files import READY_MADE
from diffit_lib.models import build_network
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.networks import ImageNetwork, Transformer
from diffit_lib.presets import PRESETS
from diffit_lib.presets_vae import VAE_PRESETS
from diffit_lib.recipe import Recipe, VAERecipe
from diffit_lib.weights import few, find_weights, load_weights


def info(name: str | Path) -> str:
    """A few lines on a preset and the ready-made weights of its name, or on a weights file."""
    if str(name) in VAE_PRESETS and not Path(name).is_file():
        return describe_vae(VAE_PRESETS[str(name)])
    if str(name) not in PRESETS or Path(name).is_file():
        return describe_weights(name)
    lines = [f"preset {describe(PRESETS[str(name)])}"]
    if (READY_MADE / f"{name}.safetensors").is_file():
        lines.append(describe_weights(name))
    return "\n".join(lines)


def describe_vae(recipe: VAERecipe) -> str:
    """An autoencoder's preset: what goes in, what its latents are, how large it is."""
    network, training = recipe.network, recipe.training
    with torch.device("meta"):
        count = parameters(KLAutoencoder(network))
    shapes = (network.shape, network.latent_shape)
    sizes = [f"{height}x{width}x{channels}" for channels, height, width in shapes]
    return "\n".join(
        [
            f"{recipe.name}: KL autoencoder for {recipe.data}, {count:,} parameters",
            f"  {sizes[0]} pixels to {sizes[1]} latents, channels {', '.join(map(str, network.channels))}",
            f"  training: {training.total_images:,} images in batches of {training.batch_size}, lr {training.lr:g}",
        ]
    )


def describe_weights(name: str | Path) -> str:
    """What a weights file says of itself, and its network."""
    _, card = load_weights(name)
    seen = f"{card.images_seen:,} images in {card.minutes:.1f} minutes on {card.device}; " if card.images_seen else ""
    classes = few(card.class_names) if len(card.class_names) > 100 else ", ".join(card.class_names) or "none"
    facts = [
        f"weights {find_weights(name)}: {card.recipe.name}, trained on {card.trained_on}",
        f"  {seen}licence {card.licence}",
        f"  classes: {classes}",
    ]
    return "\n".join([*facts, describe(card.recipe)])


def describe(recipe: Recipe) -> str:
    """The network level by level, and how it is trained and sampled."""
    network, training, sampling = recipe.network, recipe.training, recipe.sampling
    count, products = cost(network)
    return "\n".join(
        [
            f"{recipe.name}: {title(network)} for {recipe.data}, {count:,} parameters, {products:.3g} GMAC an image",
            levels_table(network) if isinstance(network, ImageNetwork) else one_level(network),
            f"  training: {training.total_images:,} images in batches of {training.batch_size}, lr {training.lr:g}",
            f"  sampling: {sampling.method}, {sampling.steps} steps, guidance {sampling.guidance:g}",
        ]
    )


def title(network: ImageNetwork | Transformer) -> str:
    """What kind of network it is."""
    if isinstance(network, ImageNetwork):
        return "image-space DiffiT"
    return "DiT" if network.block == "dit" else "DiffiT without levels"


def one_level(network: Transformer) -> str:
    """One line: blocks, tokens, channels, heads."""
    (channels, height, width), (rows, columns), patch = network.shape, network.grid, network.patch_size
    return (
        f"  {network.depth} blocks on {rows}x{columns} tokens of {network.width} channels, {network.num_heads} heads; "
        f"a token is {patch}x{patch} of {height}x{width}, {channels} channels"
    )


def levels_table(network: ImageNetwork) -> str:
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


def cost(config: ImageNetwork | Transformer) -> tuple[int, float]:
    """Trainable parameters, and the 10^9 products that one answer for one image takes, attention's among them.

    Counted on tensors that hold nothing: the largest network takes no memory.
    """
    with torch.device("meta"):
        network = build_network(config)
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to_empty(device="cpu")  # autocast and attention know no meta device
        network(torch.zeros(1, *config.shape), torch.zeros(1))
    return parameters(network), counter.get_total_flops() / 2e9


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(tensor.numel() for tensor in network.parameters())
