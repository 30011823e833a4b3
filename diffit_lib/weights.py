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

from diffit_lib.config import EDM
from diffit_lib.data import Images
from diffit_lib.denoiser import DENOISERS, Preconditioned
from diffit_lib.errors import DiffitError, check, check_types
from diffit_lib.files import READY_MADE
from diffit_lib.models import build_network
from diffit_lib.published import PUBLISHED, published_weights
from diffit_lib.recipe import Recipe
from diffit_lib.tensor_files import load_tensors, read_card, read_tensors, write_tensors

FORMAT = "diffit-1"


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
    chosen_by: str = ""  # the extractor whose Frechet distance made these the best of their run; "": not chosen

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({**vars(self), "recipe": self.recipe.to_dict()})

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.recipe.denoiser, EDM):
            check(self.recipe.denoiser.sigma_data is not None, "sigma_data is None; give a number")

    @classmethod
    def from_json(cls, text: str) -> "Card":
        """The inverse of `to_json`."""
        values = json.loads(text)
        recipe = Recipe.from_dict(values.pop("recipe"))
        return cls(recipe=recipe, class_names=tuple(values.pop("class_names")), **values)


def build_denoiser(recipe: Recipe) -> Preconditioned:
    """A fresh, randomly initialised denoiser around a fresh network."""
    network = build_network(recipe.network)
    network.checkpointing = recipe.training.checkpointing
    return DENOISERS[recipe.denoiser.kind](network, recipe.denoiser)


def save_weights(
    path: str | Path, card: Card, ema: nn.Module, raw: nn.Module | None = None, dtype: torch.dtype = torch.float32
) -> None:
    """Write a denoiser's averaged tensors, and the raw ones if given, as `dtype`, with their card."""
    tensors = {}
    for prefix, denoiser in (("ema.", ema), ("raw.", raw)):
        for name, tensor in denoiser.state_dict().items() if denoiser is not None else ():
            tensors[prefix + name] = tensor.to(dtype)
    write_tensors(path, tensors, FORMAT, card.to_json())


def load_weights(path_or_name: str | Path, *, ema: bool = True) -> tuple[Preconditioned, Card]:
    """Rebuild the denoiser from a file, or from our own ready-made weights by name, on the CPU in float32.

    `ema=False` takes the raw tensors instead of the averaged ones.
    """
    path = find_weights(path_or_name)
    prefix = "ema." if ema else "raw."
    text, tensors = read_tensors(path, FORMAT, "give a weights file that `diffit train` wrote", prefix)
    card = read_card(Card.from_json, text, path)
    if not tensors:
        raise DiffitError(f"{path} holds no {prefix[:-1]} tensors; load it with ema={not ema}")
    denoiser = build_denoiser(card.recipe)
    load_tensors(denoiser, tensors, str(path))
    return denoiser, card


def check_fits(card: Card, images: Images, source: str) -> None:
    """Refuse images of another shape, or of other classes, than the weights draw."""
    network, shape = card.recipe.network, tuple(images.images.shape[1:])
    check(
        shape == network.shape,
        f"{source} draws images of (channels, height, width) {network.shape}, {images.name} has {shape}; "
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
    """A path as it stands, or the file of our own weights with this name: in the package, or published elsewhere."""
    path = Path(path_or_name)
    ready_made = READY_MADE / f"{path_or_name}.safetensors"
    if path.is_file():
        return path
    if ready_made.is_file():
        return ready_made
    if str(path_or_name) in PUBLISHED:
        return published_weights(str(path_or_name))
    uploaded = {name for name, (drive_id, _) in PUBLISHED.items() if drive_id}
    names = ", ".join(sorted({file.stem for file in READY_MADE.glob("*.safetensors")} | uploaded)) or "none"
    raise DiffitError(f"no weights file {str(path_or_name)!r}; give a path, or one of the ready-made ones: {names}")
