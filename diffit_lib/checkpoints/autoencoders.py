"""Autoencoders as files: our own, with a card and diffusers' names, and Stable Diffusion's as they were published."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffit_lib.checkpoints.hub import find_weights, from_hub, tell_licence
from diffit_lib.checkpoints.safetensors_io import Card, load_tensors, read_card, read_tensors
from diffit_lib.config.experiment import VAEExperimentConfig
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.models.latent_space import PIXEL_SPACE, LatentSpace, Space
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.utils.errors import check
from diffit_lib.utils.tensors import on_meta

SD_SCALE = 0.18215  # Stable Diffusion's latents are multiplied by it
SD_FILE = "diffusion_pytorch_model.safetensors"
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # of attention, before 2023


@dataclass(frozen=True)
class VAECard(Card):
    """What an autoencoder's file says about it."""

    experiment: VAEExperimentConfig
    mean: tuple[float, ...]  # of each channel of the latents over the training set, for normalisation
    std: tuple[float, ...]

    FORMAT = "diffit-vae-1"
    WRITER = "an autoencoder that `diffit train-vae` wrote"
    EXPERIMENT = VAEExperimentConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        z = self.experiment.network.z_channels
        for name in ("mean", "std"):
            count = len(getattr(self, name))
            check(count == z, f"{name} has {count} entries, but the latents {z} channels; give one for each")
        check(min(self.std) > 0, f"std is {self.std}; give numbers above 0")


def build_latent_space(card: VAECard, tensors: dict[str, Tensor], source: str | Path) -> LatentSpace:
    """The latent space of these tensors, on the CPU; errors name `source`."""
    with on_meta():
        network = KLAutoencoder(card.experiment.network)
    load_tensors(network, tensors, source)
    network = network.to(memory_format=torch.channels_last)
    return LatentSpace(network, torch.tensor(card.mean), torch.tensor(card.std))


def load_vae(path_or_name: str | Path, *, file: str | Path | None = None) -> tuple[LatentSpace, VAECard]:
    """An autoencoder's latent space and card, on the CPU in float32.

    `path_or_name` is a file, a run folder, the name of a pretrained one, or Stable Diffusion's name on the Hugging
    Face hub. The latter's safetensors file is `file` if given, else from the hub's cache, else downloaded.
    """
    name = str(path_or_name)
    if name in STABLE_DIFFUSION:
        return load_stable_diffusion(name, file)
    check(file is None, f"file is {str(file)!r}, which goes with {' and '.join(STABLE_DIFFUSION)}; give its path first")
    path = find_weights(path_or_name)
    card = read_card(path, VAECard)
    return build_latent_space(card, read_tensors(path), path), card


def load_space(vae: str) -> tuple[Space, VAECard | None]:
    """The space that diffusion works in: an autoencoder's latents, or pixels where `vae` is ""."""
    return load_vae(vae) if vae else (PIXEL_SPACE, None)


def load_stable_diffusion(name: str, file: str | Path | None = None) -> tuple[LatentSpace, VAECard]:
    """Stable Diffusion's autoencoder with the scale it was published with, from a file or from the hub."""
    remedy = f"download {SD_FILE} from https://huggingface.co/{name} and give it: load_vae(file=...) or load(vae=...)"
    path = Path(file) if file is not None else from_hub(name, SD_FILE, remedy)
    check(path.is_file(), f"there is no file {path}; give that of {name}, {SD_FILE}")
    tensors = read_tensors(path)
    for key in [key for key in tensors if ".attentions." in key]:
        tensors[".".join(OLD_NAMES.get(part, part) for part in key.split("."))] = tensors.pop(key)
    tell_licence(f"{name}: autoencoder by Stability AI, licence MIT")
    card = stable_diffusion_card(name)
    return build_latent_space(card, tensors, path), card


def stable_diffusion_card(name: str) -> VAECard:
    """The card of Stable Diffusion's autoencoder; its own file has none."""
    experiment = VAEExperimentConfig(name=name, data="")
    z = experiment.network.z_channels
    return VAECard(experiment, mean=(0.0,) * z, std=(1 / SD_SCALE,) * z, trained_on="LAION (Stability AI)")
