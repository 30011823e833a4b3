"""How well an autoencoder reconstructs images: numbers and grids."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from diffit_lib.checkpoints.autoencoders import load_vae
from diffit_lib.checkpoints.hub import find_weights
from diffit_lib.checkpoints.safetensors_io import format_of, read_card
from diffit_lib.checkpoints.weights import ModelCard, load_own_space
from diffit_lib.config.experiment import BaseExperimentConfig
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.data.datasets import Split, experiment_data
from diffit_lib.data.latent_cache import CachedLatents, is_latents, open_split
from diffit_lib.evaluation.features import INCEPTION_URL, load_inception
from diffit_lib.evaluation.metrics import frechet_distance
from diffit_lib.models.latent_space import LatentSpace, Space
from diffit_lib.models.vae import SMALLEST, VGG_URL, load_perceptual
from diffit_lib.utils.distributed import any_rank, from_rank_zero, local_device, share_out
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import in_cache
from diffit_lib.utils.logging import say
from diffit_lib.utils.plots import enlargement, tile, write_png
from diffit_lib.utils.tensors import best_device, to_float, to_uint8


@torch.no_grad()
def reconstructions(space: Space, images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> encoded to the mean latents and decoded again; on the CPU. All processes must call."""

    def again(images: Tensor) -> Tensor:
        return torch.cat([to_uint8(space.decode(space.encode(part))).cpu() for part in images.split(64)])

    return torch.cat(share_out(again, images))


@torch.no_grad()
def measure_vae(space: Space, images: Tensor, *, vgg: str | Path | None = None, rfid: bool = True) -> dict[str, float]:
    """PSNR in dB, SSIM, LPIPS and rFID of the reconstructions of images (N, C, H, W), uint8, and their number.

    PSNR and SSIM are torchmetrics', means over images like LPIPS. rFID is the Frechet distance between reconstructions
    and originals in Inception's features. Nothing is downloaded: LPIPS is left out if VGG's weights are neither at
    `vgg` nor in the cache, rFID if Inception's are not in the cache. Processes share the images: all must call.
    """
    again, device = reconstructions(space, images), best_device()

    def mean(metric: Callable[[Tensor, Tensor], Any]) -> float:
        """The mean over images of a metric that takes images in [-1, 1]."""

        def each(chosen: Tensor) -> Tensor:
            pairs = ((to_float(kind[part].to(device)) for kind in (again, images)) for part in chosen.split(64))
            return torch.cat([metric(*pair).view(-1).cpu() for pair in pairs])

        return float(torch.cat(share_out(each, torch.arange(len(images)))).mean())

    numbers: dict[str, float] = {
        "images": len(images),
        "psnr": mean(partial(peak_signal_noise_ratio, data_range=2.0, reduction="none", dim=(1, 2, 3))),
        "ssim": mean(partial(structural_similarity_index_measure, data_range=2.0, reduction="none")),
    }
    if not any_rank(min(images.shape[2:]) < SMALLEST or (vgg is None and not in_cache(VGG_URL).is_file())):
        numbers["lpips"] = mean(load_perceptual(vgg).to(device))
    if not any_rank(not rfid or len(images) < 2 or not in_cache(INCEPTION_URL).is_file()):
        inception = load_inception().to(device)
        features = (torch.cat(share_out(inception.features, kind)) for kind in (again, images))
        numbers["rfid"] = frechet_distance(*features)
        say(f"rFID over {len(images):,} images (Inception {inception.checksum}): compare it at the same number only")
    elif rfid and images.shape[1] == 3:
        say(f"rFID is left out, since there are no Inception weights at {in_cache(INCEPTION_URL)}")
    return numbers


def comparison(originals: Tensor, again: Tensor) -> np.ndarray:
    """Rows of eight originals, each over their reconstructions, uint8 (N, C, H, W) -> one picture (H, W, C)."""
    white = originals.new_full((-len(originals) % 8, *originals.shape[1:]), 255)  # fills the last row
    pairs = torch.stack([torch.cat([images, white]).unflatten(0, (-1, 8)) for images in (originals, again)], dim=1)
    return tile(pairs.flatten(0, 2).permute(0, 2, 3, 1).numpy(), 8)


def reconstruct(
    vae: str | Path,
    data: str | Path | Dataset | Split | None = None,
    out: str | Path = "reconstructions",
    *,
    images: int = 32,
) -> dict[str, float]:
    """Write grids of test images, their latents and their reconstructions; return the numbers of `measure_vae`.

    `vae` is an autoencoder's weights, or a latent model's, which hold one. At most `images` are spread evenly over the
    test part of `data`, by default the autoencoder's own: `input.png`, `encoded.png` (the channels of each latent side
    by side, -3 black, 3 white), `reconstructed.png`, and `comparison.png`. There is no rFID. Of a cache of latents
    there are neither originals nor numbers.
    """
    check(images > 0, f"images is {images}; give 1 or more")
    out = Path(out)
    used = from_rank_zero(lambda: out.is_dir() and any(out.iterdir()))
    check(not used, f"{out} is not empty; give another folder")
    space, experiment, shape = load_any(vae)
    source = experiment.data if data is None else data
    check(source != "", f"{vae} does not say which images it was trained on; give some as --data")
    space.to(local_device())
    if isinstance(source, str | Path) and is_latents(Path(source) / "train"):
        source = open_split(source, space)
    test = source.test if isinstance(source, Split) else experiment_data(experiment, source, shape).test
    shown = test.images[test.spread(images)]
    latents = space.encode(shown)
    back = to_uint8(space.decode(latents)).cpu()
    maps = to_uint8(latents / 3).cpu().transpose(1, 2).flatten(2)[:, None]  # (N, 1, h, z w)
    scale = enlargement(back.permute(0, 2, 3, 1).numpy())
    latent_scale = max(1, scale * back.shape[2] // latents.shape[2])
    sheets = {"encoded.png": (maps, latent_scale), "reconstructed.png": (back, scale)}
    known = not isinstance(test, CachedLatents)
    if known:
        sheets["input.png"] = shown, scale
        write_png(out / "comparison.png", comparison(shown, back))
    for name, (pictures, size) in sheets.items():
        write_png(out / name, tile(pictures.permute(0, 2, 3, 1).numpy(), columns=8, scale=size))
    return measure_vae(space, shown, rfid=False) if known else {}


def load_any(vae: str | Path) -> tuple[LatentSpace, BaseExperimentConfig, tuple[int, int, int]]:
    """The autoencoder in weights of either kind, the experiment that names its data, and its image shape (C, H, W)."""
    if str(vae) in STABLE_DIFFUSION or format_of(path := find_weights(vae)) != ModelCard.FORMAT:
        space, own = load_vae(vae)
        return space, own.experiment, own.experiment.network.shape
    card = read_card(path, ModelCard)
    model_space = load_own_space(path, card)
    if not isinstance(model_space, LatentSpace):
        raise DiffitError(f"{vae} draws pixels, without an autoencoder; give weights that have one, or are one")
    return model_space, card.experiment, card.image_shape
