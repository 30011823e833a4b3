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

from diffit_lib.checkpoints.autoencoders import VAECard, build_latent_space, load_vae, stable_diffusion_card
from diffit_lib.checkpoints.hub import (
    HUB_MODELS,
    PUBLISHED,
    find_hub_file,
    hub_tensors,
    published_name,
    published_weights,
)
from diffit_lib.checkpoints.safetensors_io import load_tensors, read_card, read_tensors, write_tensors
from diffit_lib.config.diffusion import EDMConfig
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.data.datasets import Images
from diffit_lib.data.folders import imagenet_names
from diffit_lib.diffusion.denoiser import DENOISERS, Preconditioned
from diffit_lib.models import build_network
from diffit_lib.models.latent_space import PIXEL_SPACE, DeferredLatentSpace, LatentSpace, Space
from diffit_lib.utils.errors import DiffitError, check, check_types
from diffit_lib.utils.files import PRETRAINED

FORMAT = "diffit-1"
LABEL_TABLE = "network.time_token.classes.weight"


@dataclass(frozen=True)
class ModelCard:
    """What a weights file says of itself."""

    experiment: ExperimentConfig
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
        values = vars(self) | {"vae": self.vae and json.loads(self.vae.to_json())}
        return json.dumps({"recipe": values.pop("experiment").to_dict()} | values)

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.experiment.denoiser, EDMConfig):
            check(self.experiment.denoiser.sigma_data is not None, "sigma_data is None; give a number")

    @classmethod
    def from_json(cls, text: str) -> "ModelCard":
        """The inverse of `to_json`."""
        values = json.loads(text)
        experiment, vae = ExperimentConfig.from_dict(values.pop("recipe")), values.pop("vae", None)
        names = tuple(values.pop("class_names"))
        return cls(experiment=experiment, vae=vae and VAECard.from_json(json.dumps(vae)), class_names=names, **values)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images they draw."""
        return image_shape(self.experiment, self.vae)


def image_shape(experiment: ExperimentConfig, vae: VAECard | None) -> tuple[int, int, int]:
    """(C, H, W) of the images a recipe draws: what its network sees, or what the autoencoder makes of that."""
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


def build_denoiser(experiment: ExperimentConfig) -> Preconditioned:
    """A fresh, randomly initialised denoiser around a fresh network."""
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
    """Write a denoiser's averaged tensors, and the raw ones if given, as `dtype`, with their card.

    An autoencoder of one's own goes with them; a published one is named by the card alone.
    """
    tensors = {}
    own = space.network if isinstance(space, LatentSpace) and card.experiment.vae not in STABLE_DIFFUSION else None
    for prefix, module in (("ema.", ema), ("raw.", raw), ("vae.", own)):
        for name, tensor in module.state_dict().items() if module is not None else ():
            tensors[prefix + name] = tensor.to(dtype)
    write_tensors(path, tensors, FORMAT, card.to_json())


def load_weights(
    path_or_name: str | Path, *, ema: bool = True, file: str | Path | None = None
) -> tuple[Preconditioned, ModelCard]:
    """Rebuild the denoiser from a file, or from ready-made weights by name, on the CPU in float32.

    `ema=False` takes the raw tensors instead of the averaged ones. Weights that others published (`HUB_MODELS`) are
    read from `file`, where that is given.
    """
    if str(path_or_name) in HUB_MODELS:
        return load_hub_weights(str(path_or_name), file)
    check(file is None, f"file is {str(file)!r}, which goes with {', '.join(HUB_MODELS)}; give it in the first place")
    path = find_weights(path_or_name)
    prefix = "ema." if ema else "raw."
    text, tensors = read_tensors(path, FORMAT, "give a weights file that `diffit train` wrote", prefix)
    card = read_card(ModelCard.from_json, text, path)
    if not tensors:
        raise DiffitError(f"{path} holds no {prefix[:-1]} tensors; load it with ema={not ema}")
    denoiser = build_denoiser(card.experiment)
    load_tensors(denoiser, tensors, str(path))
    return denoiser, card


def load_hub_weights(name: str, file: str | Path | None) -> tuple[Preconditioned, ModelCard]:
    """Weights that others published, with the card their own file lacks; every tensor's name and shape is checked."""
    foreign = HUB_MODELS[name]
    tensors, path = hub_tensors(name, file)
    with torch.device("meta"):  # no time or memory lost on random numbers
        network = build_network(foreign.experiment.network)
    load_tensors(network, tensors, str(path), known_as=published_name, assign=True)
    card = ModelCard(
        experiment=foreign.experiment,
        class_names=tuple(imagenet_names().values()),
        trained_on=f"ImageNet ({foreign.by})",
        licence=foreign.licence,
        vae=stable_diffusion_card(foreign.experiment.vae),
    )
    return DENOISERS[foreign.experiment.denoiser.kind](network, foreign.experiment.denoiser), card


def warm_start(denoiser: Preconditioned, path_or_name: str | Path, *, file: str | Path | None = None) -> None:
    """Let a fresh denoiser begin as other weights end; another number of classes keeps its own fresh label table."""
    tensors, fresh = load_weights(path_or_name, file=file)[0].state_dict(), denoiser.state_dict()
    table = tensors.pop(LABEL_TABLE, None)
    if LABEL_TABLE in fresh:
        fits = table is not None and table.shape == fresh[LABEL_TABLE].shape
        tensors[LABEL_TABLE] = table if fits else fresh[LABEL_TABLE]
    load_tensors(denoiser, tensors, str(path_or_name))


def load_own_space(path_or_name: str | Path, card: ModelCard, file: str | Path | None = None) -> Space:
    """What makes pictures of what these weights draw: an autoencoder from their own file, or a published one.

    `file` holds the published one's tensors; without it they come from the hub.
    """
    published = card.vae is not None and card.experiment.vae in STABLE_DIFFUSION
    check(file is None or published, f"vae is {str(file)!r}, but {path_or_name} has its own; leave it out")
    if card.vae is None:
        return PIXEL_SPACE
    if published:
        return DeferredLatentSpace(lambda: load_vae(card.experiment.vae, file=file)[0])
    path = find_weights(path_or_name)
    _, tensors = read_tensors(path, FORMAT, "give a weights file that `diffit train` wrote", "vae.")
    if tensors:
        return build_latent_space(card.vae, tensors, str(path))
    return load_vae(card.experiment.vae)[0]


def check_fits(card: ModelCard, images: Images, source: str) -> None:
    """Refuse images of another shape, or of other classes, than the weights draw."""
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
    """How many classes, and the first of them."""
    if not class_names:
        return "no classes"
    return f"{len(class_names)} classes ({', '.join(class_names[:3])}{', ...' if len(class_names) > 3 else ''})"


def find_weights(path_or_name: str | Path) -> Path:
    """A path as it stands, or the file of the weights with this name: in the package, or published elsewhere."""
    path = Path(path_or_name)
    pretrained = PRETRAINED / f"{path_or_name}.safetensors"
    if path.is_file():
        return path
    if pretrained.is_file():
        return pretrained
    if str(path_or_name) in PUBLISHED:
        return published_weights(str(path_or_name))
    if str(path_or_name) in HUB_MODELS:
        return find_hub_file(HUB_MODELS[str(path_or_name)])
    ours = {file.stem for file in PRETRAINED.glob("*.safetensors") if not file.stem.startswith("vae-")}
    ours |= {name for name, (drive_id, _) in PUBLISHED.items() if drive_id}
    names = ", ".join([*sorted(ours), *HUB_MODELS])
    raise DiffitError(f"no weights file {str(path_or_name)!r}; give a path, or one of the ready-made ones: {names}")
