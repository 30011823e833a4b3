"""Weights as one self-describing safetensors file: tensors, and a card that rebuilds everything around them.

The averaged tensors lie under "ema.", the raw ones, where they were kept, under "raw.". No pickle is ever opened.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffit_lib.checkpoints.autoencoders import VAECard, build_latents, load_vae, stable_diffusion_card
from diffit_lib.checkpoints.hub import (
    FOREIGN,
    PUBLISHED,
    find_foreign,
    foreign_tensors,
    published_name,
    published_weights,
)
from diffit_lib.checkpoints.safetensors_io import load_tensors, read_card, read_tensors, write_tensors
from diffit_lib.config.diffusion import EDM
from diffit_lib.config.experiment import Recipe
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.data.datasets import Images
from diffit_lib.data.imagenet import imagenet_classes
from diffit_lib.diffusion.denoiser import DENOISERS, Preconditioned
from diffit_lib.models import build_network
from diffit_lib.models.latent_space import PIXELS, Codec, Deferred, Latents
from diffit_lib.utils.errors import DiffitError, check, check_types
from diffit_lib.utils.files import READY_MADE

FORMAT = "diffit-1"
LABEL_TABLE = "network.time_token.classes.weight"


@dataclass(frozen=True)
class Card:
    """What a weights file says of itself."""

    recipe: Recipe
    class_names: tuple[str, ...] = ()
    trained_on: str = ""  # name and fingerprint of the training images
    images_seen: int = 0
    minutes: float = 0.0  # of training
    device: str = ""
    licence: str = "MIT"
    numbers: dict[str, Any] = field(default_factory=dict)  # measured and stamped, if they were
    vae: VAECard | None = None  # of the autoencoder whose latents they draw; None: they draw pixels
    chosen_by: str = ""  # the extractor whose Frechet distance made these the best of their run; "": not chosen

    def to_json(self) -> str:
        """One line of JSON."""
        vae = self.vae and json.loads(self.vae.to_json())
        return json.dumps({**vars(self), "recipe": self.recipe.to_dict(), "vae": vae})

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.recipe.denoiser, EDM):
            check(self.recipe.denoiser.sigma_data is not None, "sigma_data is None; give a number")

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """The inverse of `to_json`."""
        values = json.loads(text)
        recipe, vae = Recipe.from_dict(values.pop("recipe")), values.pop("vae", None)
        names = tuple(values.pop("class_names"))
        return cls(recipe=recipe, vae=vae and VAECard.from_json(json.dumps(vae)), class_names=names, **values)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images they draw."""
        return image_shape(self.recipe, self.vae)


def image_shape(recipe: Recipe, vae: VAECard | None) -> tuple[int, int, int]:
    """(C, H, W) of the images a recipe draws: what its network sees, or what the autoencoder makes of that."""
    if vae is None:
        return recipe.network.shape
    channels, height, width = recipe.network.shape
    network = vae.recipe.network
    check(
        channels == network.z_channels,
        f"{recipe.name} has in_channels={channels}, but the latents of {vae.recipe.name} have {network.z_channels} "
        f"channels; set in_channels to {network.z_channels}, or take another vae",
    )
    return network.in_channels, height * network.factor, width * network.factor


def build_denoiser(recipe: Recipe) -> Preconditioned:
    """A fresh, randomly initialised denoiser around a fresh network."""
    network = build_network(recipe.network)
    network.checkpointing = recipe.training.checkpointing
    return DENOISERS[recipe.denoiser.kind](network, recipe.denoiser)


def save_weights(
    path: str | Path,
    card: Card,
    ema: nn.Module,
    raw: nn.Module | None = None,
    codec: Codec = PIXELS,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a denoiser's averaged tensors, and the raw ones if given, as `dtype`, with their card.

    An autoencoder of one's own goes with them; a published one is named by the card alone.
    """
    tensors = {}
    own = codec.network if isinstance(codec, Latents) and card.recipe.vae not in STABLE_DIFFUSION else None
    for prefix, module in (("ema.", ema), ("raw.", raw), ("vae.", own)):
        for name, tensor in module.state_dict().items() if module is not None else ():
            tensors[prefix + name] = tensor.to(dtype)
    write_tensors(path, tensors, FORMAT, card.to_json())


def load_weights(
    path_or_name: str | Path, *, ema: bool = True, file: str | Path | None = None
) -> tuple[Preconditioned, Card]:
    """Rebuild the denoiser from a file, or from ready-made weights by name, on the CPU in float32.

    `ema=False` takes the raw tensors instead of the averaged ones. Weights that others published (`FOREIGN`) are read
    from `file`, where that is given.
    """
    if str(path_or_name) in FOREIGN:
        return load_foreign(str(path_or_name), file)
    check(file is None, f"file is {str(file)!r}, which goes with {', '.join(FOREIGN)}; give it in the first place")
    path = find_weights(path_or_name)
    prefix = "ema." if ema else "raw."
    text, tensors = read_tensors(path, FORMAT, "give a weights file that `diffit train` wrote", prefix)
    card = read_card(Card.from_json, text, path)
    if not tensors:
        raise DiffitError(f"{path} holds no {prefix[:-1]} tensors; load it with ema={not ema}")
    denoiser = build_denoiser(card.recipe)
    load_tensors(denoiser, tensors, str(path))
    return denoiser, card


def load_foreign(name: str, file: str | Path | None) -> tuple[Preconditioned, Card]:
    """Weights that others published, with the card their own file lacks; every tensor's name and shape is checked."""
    foreign = FOREIGN[name]
    tensors, path = foreign_tensors(name, file)
    with torch.device("meta"):  # no time or memory lost on random numbers
        network = build_network(foreign.recipe.network)
    load_tensors(network, tensors, str(path), known_as=published_name, assign=True)
    card = Card(
        recipe=foreign.recipe,
        class_names=imagenet_classes(),
        trained_on=f"ImageNet ({foreign.by})",
        licence=foreign.licence,
        vae=stable_diffusion_card(foreign.recipe.vae),
    )
    return DENOISERS[foreign.recipe.denoiser.kind](network, foreign.recipe.denoiser), card


def warm_start(denoiser: Preconditioned, path_or_name: str | Path, *, file: str | Path | None = None) -> None:
    """Let a fresh denoiser begin as other weights end; another number of classes keeps its own fresh label table."""
    tensors, fresh = load_weights(path_or_name, file=file)[0].state_dict(), denoiser.state_dict()
    table = tensors.pop(LABEL_TABLE, None)
    if LABEL_TABLE in fresh:
        fits = table is not None and table.shape == fresh[LABEL_TABLE].shape
        tensors[LABEL_TABLE] = table if fits else fresh[LABEL_TABLE]
    load_tensors(denoiser, tensors, str(path_or_name))


def load_own_codec(path_or_name: str | Path, card: Card, file: str | Path | None = None) -> Codec:
    """What makes pictures of what these weights draw: an autoencoder from their own file, or a published one.

    `file` holds the published one's tensors; without it they come from the hub.
    """
    published = card.vae is not None and card.recipe.vae in STABLE_DIFFUSION
    check(file is None or published, f"vae is {str(file)!r}, but {path_or_name} has its own; leave it out")
    if card.vae is None:
        return PIXELS
    if published:
        return Deferred(lambda: load_vae(card.recipe.vae, file=file)[0])
    path = find_weights(path_or_name)
    _, tensors = read_tensors(path, FORMAT, "give a weights file that `diffit train` wrote", "vae.")
    if tensors:
        return build_latents(card.vae, tensors, str(path))
    return load_vae(card.recipe.vae)[0]


def check_fits(card: Card, images: Images, source: str) -> None:
    """Refuse images of another shape, or of other classes, than the weights draw."""
    network, shape = card.recipe.network, tuple(images.images.shape[1:])
    check(
        shape == card.image_shape,
        f"{source} draws images of (channels, height, width) {card.image_shape}, {images.name} has {shape}; "
        f"give data like the weights' own, {card.recipe.data}",
    )
    check(
        network.num_classes == 0 or card.class_names == images.class_names,
        f"{source} draws {few(card.class_names)}, {images.name} has {few(images.class_names)}; "
        f"give data like the weights' own, {card.recipe.data}",
    )


def few(class_names: Sequence[str]) -> str:
    """How many classes, and the first of them."""
    if not class_names:
        return "no classes"
    return f"{len(class_names)} classes ({', '.join(class_names[:3])}{', ...' if len(class_names) > 3 else ''})"


def find_weights(path_or_name: str | Path) -> Path:
    """A path as it stands, or the file of the weights with this name: in the package, or published elsewhere."""
    path = Path(path_or_name)
    ready_made = READY_MADE / f"{path_or_name}.safetensors"
    if path.is_file():
        return path
    if ready_made.is_file():
        return ready_made
    if str(path_or_name) in PUBLISHED:
        return published_weights(str(path_or_name))
    if str(path_or_name) in FOREIGN:
        return find_foreign(FOREIGN[str(path_or_name)])
    ours = {file.stem for file in READY_MADE.glob("*.safetensors") if not file.stem.startswith("vae-")}
    ours |= {name for name, (drive_id, _) in PUBLISHED.items() if drive_id}
    names = ", ".join([*sorted(ours), *FOREIGN])
    raise DiffitError(f"no weights file {str(path_or_name)!r}; give a path, or one of the ready-made ones: {names}")
