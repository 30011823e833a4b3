"""Autoencoders as files: our own, which say everything of themselves, and Stable Diffusion's as they were published.

A file of ours holds the averaged tensors, the mean and standard deviation of each channel of the latents over the
training set, and a card. Its tensors' names are diffusers'.
"""

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffit_lib.checkpoints.hub import from_hub
from diffit_lib.checkpoints.safetensors_io import load_tensors, read_card, read_tensors, write_tensors
from diffit_lib.config.experiment import VAEExperimentConfig
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.models.latent_space import PIXEL_SPACE, LatentSpace, Space
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.utils.errors import DiffitError, check, check_types
from diffit_lib.utils.files import PRETRAINED
from diffit_lib.utils.logging import say

FORMAT = "diffit-vae-1"
SD_SCALE = 0.18215  # Stable Diffusion's latents are multiplied by it
SD_FILE = "diffusion_pytorch_model.safetensors"
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention, before 2023


@dataclass(frozen=True)
class VAECard:
    """What an autoencoder's file says of itself."""

    experiment: VAEExperimentConfig
    mean: tuple[float, ...]  # of each channel of the latents; they are normalised by it
    std: tuple[float, ...]
    trained_on: str = ""  # name and fingerprint of the training images
    images_seen: int = 0
    minutes: float = 0.0  # of training
    device: str = ""
    licence: str = "MIT"
    numbers: dict[str, Any] = field(default_factory=dict)  # measured on held-out images, if they were

    def __post_init__(self) -> None:
        check_types(self)
        z = self.experiment.network.z_channels
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            check(count == z, f"{name} has {count} entries, but the latents {z} channels; give one for each")
        check(min(self.std) > 0, f"std is {self.std}; give numbers above 0")

    def to_json(self) -> str:
        """One line of JSON."""
        values = dict(vars(self))
        return json.dumps({"recipe": values.pop("experiment").to_dict()} | values)

    @classmethod
    def from_json(cls, text: str) -> "VAECard":
        """The inverse of `to_json`."""
        values = json.loads(text)
        return cls(experiment=VAEExperimentConfig.from_dict(values.pop("recipe")), **values)


def build_latent_space(card: VAECard, tensors: dict[str, Tensor], source: str) -> LatentSpace:
    """The codec of these tensors; where they do not fit the card's network, `source` is named."""
    with torch.device("meta"):  # no time lost on random numbers
        network = KLAutoencoder(card.experiment.network)
    network = network.to_empty(device="cpu")
    load_tensors(network, tensors, source)
    network = network.to(memory_format=torch.channels_last)
    return LatentSpace(network, torch.tensor(card.mean), torch.tensor(card.std))


def save_vae(path: str | Path, card: VAECard, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Write an autoencoder's tensors as `dtype`, with its card."""
    tensors = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    write_tensors(path, tensors, FORMAT, card.to_json())


def load_vae(path_or_name: str | Path, *, file: str | Path | None = None) -> tuple[LatentSpace, VAECard]:
    """The codec of an autoencoder's file and its card, on the CPU in float32.

    By path, by the name of a ready-made one, or Stable Diffusion's by its name on the Hugging Face hub, from the
    safetensors file at `file`, else from the hub's own cache, else downloaded. Raises a DiffitError where there is no
    such file, or where it holds something else.
    """
    if str(path_or_name) in STABLE_DIFFUSION:
        return load_stable_diffusion(str(path_or_name), file)
    check(file is None, f"file is {str(file)!r}, which goes with {' and '.join(STABLE_DIFFUSION)}; give its path first")
    path = Path(path_or_name)
    if not path.is_file():
        path = PRETRAINED / f"{path_or_name}.safetensors"
    if not path.is_file():
        names = ", ".join(STABLE_DIFFUSION)
        raise DiffitError(f"no autoencoder {str(path_or_name)!r}; give the path of one, or a published one: {names}")
    text, tensors = read_tensors(path, FORMAT, "give an autoencoder that `diffit train-vae` wrote")
    card = read_card(VAECard.from_json, text, path)
    return build_latent_space(card, tensors, str(path)), card


def load_space(vae: str) -> tuple[Space, VAECard | None]:
    """What stands between pictures and diffusion on the latents of `vae`, and its card; "" is pixels."""
    return load_vae(vae) if vae else (PIXEL_SPACE, None)


def load_stable_diffusion(name: str, file: str | Path | None = None) -> tuple[LatentSpace, VAECard]:
    """Stable Diffusion's autoencoder at the scale it was published with, from a file or from the hub."""
    remedy = f"download {SD_FILE} from https://huggingface.co/{name} and give it: load_vae(file=...) or load(vae=...)"
    path = Path(file) if file is not None else from_hub(name, SD_FILE, remedy)
    check(path.is_file(), f"there is no file {path}; give that of {name}, {SD_FILE}")
    _, tensors = read_tensors(path, None, "")
    tell_licence(name)
    card = stable_diffusion_card(name)
    return build_latent_space(card, {present_name(key): tensor for key, tensor in tensors.items()}, str(path)), card


@cache
def tell_licence(name: str) -> None:
    """Say under which licence it was published; a second time nothing is said."""
    say(f"{name}: autoencoder by Stability AI, licence MIT")


def stable_diffusion_card(name: str) -> VAECard:
    """The card of Stable Diffusion's autoencoder of this name, for its own file has none."""
    experiment = VAEExperimentConfig(name=name, data="")
    z = experiment.network.z_channels
    return VAECard(experiment, mean=(0.0,) * z, std=(1 / SD_SCALE,) * z, trained_on="LAION (Stability AI)")


def present_name(name: str) -> str:
    """A tensor's name in diffusers, where an older version wrote it."""
    return ".".join(OLD_NAMES.get(part, part) for part in name.split(".")) if ".attentions." in name else name
