"""Weights as one self-describing safetensors file: tensors, and a card that rebuilds everything around them.

Averaged tensors are under "ema.", raw ones, if they were kept, under "raw.", an autoencoder's under "vae.".
"""

from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from operator import index
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffit_lib.checkpoints.autoencoders import VAECard, build_latent_space, load_vae, stable_diffusion_card
from diffit_lib.checkpoints.hub import ALIASES, HUB_MODELS, find_weights, hub_place, tell_licence
from diffit_lib.checkpoints.published import MARKS, HubModel, open_published, to_ours
from diffit_lib.checkpoints.safetensors_io import (
    Card,
    format_of,
    load_tensors,
    read_card,
    read_tensors,
    write_checkpoint,
)
from diffit_lib.config.diffusion import EDMConfig
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig
from diffit_lib.config.models import ImageNetworkConfig
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.data.datasets import Images
from diffit_lib.data.folders import imagenet_names
from diffit_lib.diffusion.denoiser import DENOISERS, Preconditioned
from diffit_lib.models import build_network
from diffit_lib.models.latent_space import PIXEL_SPACE, LatentSpace, LazyLatentSpace, Space
from diffit_lib.models.lora import merged
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.tensors import on_meta

SIDE = "diffit.safetensors"  # beside diffusers' tensors: our card, and what their layout cannot hold as it is
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LABEL_TABLE = "network.time_token.classes.weight"


@dataclass(frozen=True)
class ModelCard(Card):
    """What a weights file says about its model."""

    experiment: ExperimentConfig
    class_names: tuple[str, ...] = ()
    vae: VAECard | None = None  # the autoencoder whose latents the model draws; None: it draws pixels
    chosen_by: str = ""  # the extractor whose Frechet distance chose these as the best of their run; "": not chosen

    FORMAT = "diffit-1"
    WRITER = "a weights file that `diffit train` wrote"
    EXPERIMENT = ExperimentConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.experiment.denoiser, EDMConfig):
            sigma = self.experiment.denoiser.sigma_data
            check(sigma is not None and sigma < 1e6, f"sigma_data is {sigma}; give a number below 1e6")
        classes, names = self.num_classes, len(self.class_names)
        what = f"class_names has {names} entries, but the network {classes} classes"
        check(not classes or names in (0, classes), f"{what}; give one for each")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        vae = values.get("vae")
        return super().from_dict(values | {"vae": vae and VAECard.from_dict(vae)})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the model draws."""
        return image_shape(self.experiment, self.vae)

    @property
    def num_classes(self) -> int:
        """How many classes can be asked for; 0: the model is unconditional."""
        return self.experiment.network.num_classes

    def classes_in_turn(self, count: int) -> list[int | str] | None:
        """Labels 0, 1, 2, ... over and over, one for each of `count` images; None for unconditional weights."""
        return [k % self.num_classes for k in range(count)] if self.num_classes else None

    def class_number(self, label: int | str) -> int:
        """The number of a class by its name or number; "none" is the last row of the label table, "no class".

        Words are names first, also in another case, then digits ("two" is the class called 2), then numbers. A name
        that several classes have is an error, and so is an unknown one.
        """
        num_classes, names = self.num_classes, self.class_names
        word = label.strip().casefold() if isinstance(label, str) else ""
        known = [*names, *[""] * (num_classes - len(names)), "none"]
        folded = [name.casefold() for name in known]
        digit = str(WORDS.index(word)) if word in WORDS else ""
        for wanted, spellings in ((label, known), (word, folded), (digit, known)):
            numbers = [number for number, name in enumerate(spellings) if name and name == wanted]
            check(len(numbers) < 2, f"class {label!r} is {' or '.join(map(str, numbers))}; give the number")
            if numbers:
                return numbers[0]
        with suppress(TypeError, ValueError):
            number = int(label) if isinstance(label, str) else index(label)
            if 0 <= number < num_classes:
                return number
        near = [known[folded.index(name)] for name in get_close_matches(word, folded)]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        named = [name for name in names if not name.isdecimal()]
        some = f", {', '.join(named[:12])}{', ...' if len(named) > 12 else ''}" if named else ""
        raise DiffitError(f"no class {label!r}; {hint}give a number from 0 to {num_classes - 1}{some}, or 'none'")


def image_shape(experiment: BaseExperimentConfig, vae: VAECard | None) -> tuple[int, int, int]:
    """(C, H, W) of the images an experiment's model draws: those of its network, or of the autoencoder's decoder."""
    if vae is None:
        return experiment.network.shape
    channels, height, width = experiment.network.shape
    network = vae.experiment.network
    check(
        channels == network.z_channels,
        f"{experiment.name} has in_channels={channels}, but the latents of {vae.experiment.name} have "
        f"{network.z_channels} channels; set in_channels to {network.z_channels}, or take another vae",
    )
    return network.in_channels, height * network.factor, width * network.factor


def build_denoiser(experiment: ExperimentConfig, *, meta: bool = False) -> Preconditioned:
    """A fresh denoiser; with `meta` its network takes no memory and draws no random numbers."""
    with on_meta() if meta else nullcontext():
        network = build_network(experiment.network)
    network.checkpointing = experiment.training.checkpointing
    return DENOISERS[experiment.denoiser.kind](network, experiment.denoiser)


def save_weights(
    path: str | Path,
    card: ModelCard,
    ema: nn.Module,
    raw: nn.Module | None = None,
    space: Space = PIXEL_SPACE,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a denoiser's averaged tensors, the raw ones if given, and the autoencoder of `space` unless published."""
    own = space.network if isinstance(space, LatentSpace) and card.experiment.vae not in STABLE_DIFFUSION else None
    modules = {prefix: m for prefix, m in (("ema.", ema), ("raw.", raw), ("vae.", own)) if m is not None}
    tensors = {prefix + name: t for prefix, module in modules.items() for name, t in merged(module).items()}
    write_checkpoint(path, card, tensors, dtype)


def load_weights(
    path_or_name: str | Path, *, ema: bool = True, file: str | Path | None = None
) -> tuple[Preconditioned, ModelCard]:
    """The denoiser and the card of a weights file, on the CPU in float32; draws no random numbers.

    `path_or_name` is what `find_weights` takes. `ema=False` takes the raw tensors instead of the averaged ones. `file`
    holds the tensors of one of `HUB_MODELS`.
    """
    name, prefix = str(path_or_name), "ema." if ema else "raw."
    name = ALIASES.get(name, name)
    known = name in HUB_MODELS
    check(name not in STABLE_DIFFUSION, f"{name} is an autoencoder; give it as vae=, or open it by load_vae({name!r})")
    check(file is None or known, f"file is {str(file)!r}, which goes with {', '.join(HUB_MODELS)}; give it first")
    path = find_weights(path_or_name) if file is None else Path(file)
    check(path.is_file(), f"there is no file {str(path)!r}; give that of {name}, {known and HUB_MODELS[name].file}")
    if (side := path.with_name(SIDE)).is_file() and side != path:
        card, tensors = read_card(side, ModelCard), exported_tensors(path, side)
    elif not format_of(path).startswith("diffit"):  # of whatever version and kind
        given = known and name == str(path_or_name) and not Path(name).is_file()
        model, tensors = open_published(path, name if given else "")
        denoiser = build_denoiser(model.experiment, meta=True)
        load_tensors(denoiser.network, tensors, path)
        return denoiser, published_card(model)
    else:
        card, tensors = read_card(path, ModelCard), read_tensors(path, prefix)
    if hub_place(name):
        tell_licence(f"{name}: weights trained on {card.trained_on}, licence {card.licence}")
    check(bool(tensors), f"{path} holds no {prefix[:-1]} tensors; load it with ema={not ema}")
    check_size(card, tensors, path)
    try:
        denoiser = build_denoiser(card.experiment, meta=True)
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        raise DiffitError(f"{path} has a card whose network cannot be built; it fits another model") from error
    load_tensors(denoiser, tensors, path)
    return denoiser, card


def exported_tensors(path: Path, side: Path) -> dict[str, Tensor]:
    """The denoiser's tensors in a folder that `export` wrote."""
    network: Any = read_card(side, ModelCard).experiment.network
    found = read_tensors(path)
    if MARKS["diffusers"] in found:
        hints = {"num_attention_heads": network.num_heads, "sample_size": network.image_size[0]}
        found = {f"network.{name}": tensor for name, tensor in to_ours(found, "diffusers", path, hints).items()}
    if not network.num_classes:
        found.pop(LABEL_TABLE, None)
    return found | read_tensors(side, "ema.")


def published_card(model: HubModel) -> ModelCard:
    """The card of published weights, whose file has none; says who published them under which licence, once."""
    experiment = model.experiment
    known = experiment.name in HUB_MODELS
    tell_licence(f"{experiment.name}: weights by {model.by}, licence {model.licence}")
    return ModelCard(
        experiment=experiment,
        class_names=tuple(imagenet_names().values()) if experiment.network.num_classes == 1000 else (),
        trained_on=f"ImageNet ({model.by})" if known else "",
        licence=model.licence,
        vae=stable_diffusion_card(experiment.vae),
    )


def check_size(card: ModelCard, tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse a card that asks for more than its file holds, before anything of that size is built."""
    network = card.experiment.network
    held = sum(tensor.numel() for tensor in tensors.values())
    if isinstance(network, ImageNetworkConfig):
        blocks, windows = network.num_blocks * len(network.channel_mult), network.windows
    else:
        blocks, windows = network.depth, (network.grid,)
    tables = [len(tensor) for name, tensor in tensors.items() if name.endswith("bias_table") and tensor.ndim]
    pairs = max((2 * h - 1) * (2 * w - 1) for h, w in windows)
    fits = blocks <= len(tensors) and (not tables or pairs <= max(tables)) and max(network.shape) <= held
    check(fits, f"{path} has a card that asks for more than its {len(tensors)} tensors; it fits another model")


def warm_start(denoiser: Preconditioned, path_or_name: str | Path, *, file: str | Path | None = None) -> ModelCard:
    """Start a fresh denoiser from other weights; return their card. For other classes it keeps its own label table."""
    given, card = load_weights(path_or_name, file=file)
    tensors, fresh = given.state_dict(), denoiser.state_dict()
    table = tensors.pop(LABEL_TABLE, None)
    if LABEL_TABLE in fresh:
        fits = table is not None and table.shape == fresh[LABEL_TABLE].shape
        tensors[LABEL_TABLE] = table if fits else fresh[LABEL_TABLE]
    load_tensors(denoiser, tensors, str(path_or_name))
    return card


def load_own_space(path_or_name: str | Path, card: ModelCard, file: str | Path | None = None) -> Space:
    """The space that a model draws in; a published autoencoder is loaded, from `file` or the hub, at its first use."""
    published = card.vae is not None and card.experiment.vae in STABLE_DIFFUSION
    check(file is None or published, f"vae is {str(file)!r}, but {path_or_name} has its own; leave it out")
    if card.vae is None:
        return PIXEL_SPACE
    path = find_weights(path_or_name) if not published or Path(path_or_name).exists() else Path()
    beside = path.parent.parent / "vae" / path.name  # of a folder of diffusers
    if published:
        file = beside if file is None and path.parent.name == "transformer" and beside.is_file() else file
        return LazyLatentSpace(lambda: load_vae(card.experiment.vae, file=file)[0])
    side = path.with_name(SIDE)
    tensors = read_tensors(beside) | read_tensors(side, "vae.") if side.is_file() else read_tensors(path, "vae.")
    return build_latent_space(card.vae, tensors, path) if tensors else load_vae(card.experiment.vae)[0]


def check_fits(card: ModelCard, images: Images, source: str) -> None:
    """Raise a DiffitError for images of another shape, or of other classes, than the model draws."""
    network, shape = card.experiment.network, tuple(images.images.shape[1:])
    check(
        shape == card.image_shape,
        f"{source} draws images of (channels, height, width) {card.image_shape}, {images.name} has {shape}; "
        f"give data like the weights' own, {card.experiment.data}",
    )
    check(
        network.num_classes == 0 or card.class_names == images.class_names,
        f"{source} draws {few(card.class_names)}, {images.name} has {few(images.class_names)}; "
        f"give data like the weights' own, {card.experiment.data}",
    )


def few(class_names: Sequence[str]) -> str:
    """The number of classes and the first three names."""
    if not class_names:
        return "no classes"
    return f"{len(class_names)} classes ({', '.join(class_names[:3])}{', ...' if len(class_names) > 3 else ''})"
