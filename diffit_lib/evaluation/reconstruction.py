"""How much of a picture an autoencoder keeps."""

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
from diffit_lib.checkpoints.safetensors_io import is_checkpoint, read_card
from diffit_lib.checkpoints.weights import ModelCard, load_own_space
from diffit_lib.config.experiment import BaseExperimentConfig
from diffit_lib.config.presets import STABLE_DIFFUSION
from diffit_lib.data.datasets import Split, experiment_data
from diffit_lib.data.latent_cache import CachedLatents, is_latents, open_split
from diffit_lib.evaluation.evaluator import HELD
from diffit_lib.evaluation.features import inception_path, load_inception, train_classifier
from diffit_lib.evaluation.metrics import class_accuracy, frechet_distance
from diffit_lib.models.latent_space import LatentSpace, Space
from diffit_lib.models.lpips import SMALLEST, load_perceptual, vgg_path
from diffit_lib.utils.distributed import local_device
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.logging import say
from diffit_lib.utils.plots import enlargement, tile, write_png
from diffit_lib.utils.tensors import best_device, to_float, to_uint8


@torch.no_grad()
def reconstructions(space: Space, images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> the same once encoded, at the mean of their latents, and decoded; on the CPU."""
    return torch.cat([to_uint8(space.decode(space.encode(part))).cpu() for part in images.split(64)])


@torch.no_grad()
def measure_vae(space: Space, images: Tensor, *, vgg: str | Path | None = None, rfid: bool = True) -> dict[str, float]:
    """How near images (N, C, H, W), uint8, come back: how many they are, PSNR in dB, SSIM, LPIPS and rFID.

    The first three are means over images, as torchmetrics has them. rFID is the Frechet distance of the reconstructions
    from the originals in Inception's features. LPIPS and rFID are left out where the weights they need lie neither in
    the cache nor, for VGG, at `vgg`: nothing is downloaded.
    """
    again, device = reconstructions(space, images), best_device()

    def mean(metric: Callable[[Tensor, Tensor], Any]) -> float:
        """Of a metric's values for images in [-1, 1], one by one."""
        pairs = zip(again.split(64), images.split(64), strict=True)
        values = [metric(to_float(a.to(device)), to_float(b.to(device))) for a, b in pairs]
        return float(torch.cat([part.view(-1) for part in values]).mean())

    numbers: dict[str, float] = {
        "images": len(images),
        "psnr": mean(partial(peak_signal_noise_ratio, data_range=2.0, reduction="none", dim=(1, 2, 3))),
        "ssim": mean(partial(structural_similarity_index_measure, data_range=2.0, reduction="none")),
    }
    if min(images.shape[2:]) >= SMALLEST and (vgg is not None or vgg_path().is_file()):
        numbers["lpips"] = mean(load_perceptual(vgg).to(device))
    if rfid and len(images) > 1 and inception_path().is_file():
        inception = load_inception().to(device)
        numbers["rfid"] = frechet_distance(inception.features(again), inception.features(images))
        say(f"rFID over {len(images):,} images (Inception {inception.checksum}): compare it at the same number only")
    elif rfid and images.shape[1] == 3:
        say(f"rFID is left out, since there are no Inception weights at {inception_path()}")
    return numbers


def comparison(originals: Tensor, again: Tensor, columns: int = 8) -> np.ndarray:
    """Rows of originals, each over a row of what came back, uint8 (N, C, H, W) each -> one picture (H, W, C)."""
    rows = [part for pair in zip(originals.split(columns), again.split(columns), strict=True) for part in pair]
    images = torch.cat(rows).permute(0, 2, 3, 1).numpy()
    return tile(images, columns, scale=enlargement(images))


def legibility(space: Space, data: Split) -> tuple[float, float]:
    """Share of test images whose class a small classifier sees, and of their reconstructions."""
    train, test = data.train.held(HELD), data.test.held(HELD)
    classifier = train_classifier(train.images, train.labels, device=best_device())
    pair = (classifier.predict(images) for images in (test.images, reconstructions(space, test.images)))
    before, after = (class_accuracy(predicted, test.labels) for predicted in pair)
    return before, after


COLUMNS = 8  # of the grids
REACH = 3.0  # normalised latents from -3 to 3 are drawn from black to white


def reconstruct(
    vae: str | Path,
    data: str | Path | Dataset | Split | None = None,
    out: str | Path = "reconstructions",
    *,
    images: int = 32,
) -> dict[str, float]:
    """Write grids of held-out pictures, of their latents and of what comes back of them; return how near that is.

    `vae` is an autoencoder's weights, or a latent model's, which bring theirs along. At most `images` are spread evenly
    over the test part of `data`, which is the autoencoder's own unless given: `input.png`, `encoded.png` (the channels
    of a latent side by side, each latent in its picture's place), `reconstructed.png`, and `comparison.png` with rows
    of pictures over rows of what came back; numbers are those of `measure_vae` without rFID. Of latents that `encode`
    wrote there are no pictures to compare with, and no numbers.
    """
    check(images > 0, f"images is {images}; give 1 or more")
    space, experiment, shape = load_any(vae)
    source = experiment.data if data is None else data
    check(source != "", f"{vae} does not say which images it was trained on; give some as --data")
    space.to(local_device())
    if isinstance(source, str | Path) and is_latents(Path(source) / "train"):
        source = open_split(source, space)
    test = source.test if isinstance(source, Split) else experiment_data(experiment, source, shape).test
    count = min(images, len(test))
    shown = test.images[torch.arange(count) * len(test) // count]
    latents = space.encode(shown)
    out, back = Path(out), to_uint8(space.decode(latents)).cpu()
    scale = enlargement(pictures(back))
    write_png(
        out / "encoded.png", tile(maps(latents), COLUMNS, scale=max(1, scale * back.shape[2] // latents.shape[2]))
    )
    write_png(out / "reconstructed.png", tile(pictures(back), COLUMNS, scale=scale))
    if isinstance(test, CachedLatents):
        return {}
    write_png(out / "input.png", tile(pictures(shown), COLUMNS, scale=scale))
    write_png(out / "comparison.png", comparison(shown, back, COLUMNS))
    return measure_vae(space, shown, rfid=False)


def load_any(vae: str | Path) -> tuple[LatentSpace, BaseExperimentConfig, tuple[int, int, int]]:
    """The autoencoder of a weights file of either kind, the recipe that names its data, and its pictures' (C, H, W)."""
    if str(vae) in STABLE_DIFFUSION or not is_checkpoint(path := find_weights(vae), ModelCard):
        space, own = load_vae(vae)
        return space, own.experiment, own.experiment.network.shape
    card = read_card(path, ModelCard)
    model_codec = load_own_space(path, card)
    if not isinstance(model_codec, LatentSpace):
        raise DiffitError(
            f"{vae} draws pixels, without an autoencoder; give an autoencoder's weights, or a latent model's"
        )
    return model_codec, card.experiment, card.image_shape


def pictures(images: Tensor) -> np.ndarray:
    """uint8 (N, C, H, W) -> (N, H, W, C)."""
    return images.permute(0, 2, 3, 1).numpy()


def maps(latents: Tensor) -> np.ndarray:
    """Normalised latents (N, z, h, w) -> their channels side by side in grey, uint8 (N, h, z w, 1)."""
    return to_uint8(latents / REACH).cpu().transpose(1, 2).flatten(2).numpy()[..., None]
