"""How much of a picture an autoencoder keeps."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from diffit_lib.codec import Codec
from diffit_lib.data import Split
from diffit_lib.extractors import inception_path, load_inception, train_classifier
from diffit_lib.metrics import class_accuracy, frechet_distance
from diffit_lib.perceptual import SMALLEST, load_perceptual, vgg_path
from diffit_lib.pictures import say
from diffit_lib.plots import enlargement, tile
from diffit_lib.tasks.bench import HELD
from diffit_lib.tensors import best_device, to_float, to_uint8


@torch.no_grad()
def reconstructions(codec: Codec, images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) -> the same once encoded, at the mean of their latents, and decoded; on the CPU."""
    return torch.cat([to_uint8(codec.decode(codec.clean(part))).cpu() for part in images.split(64)])


@torch.no_grad()
def measure_vae(codec: Codec, images: Tensor, *, vgg: str | Path | None = None, rfid: bool = True) -> dict[str, float]:
    """How near images (N, C, H, W), uint8, come back: how many they are, PSNR in dB, SSIM, LPIPS and rFID.

    The first three are means over images, as torchmetrics has them. rFID is the Frechet distance of the reconstructions
    from the originals in Inception's features. LPIPS and rFID are left out where the weights they need lie neither in
    the cache nor, for VGG, at `vgg`: nothing is downloaded.
    """
    again, device = reconstructions(codec, images), best_device()

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


def legibility(codec: Codec, data: Split) -> tuple[float, float]:
    """Share of test images whose class a small classifier sees, and of their reconstructions."""
    train, test = data.train.held(HELD), data.test.held(HELD)
    classifier = train_classifier(train.images, train.labels, device=best_device())
    pair = (classifier.predict(images) for images in (test.images, reconstructions(codec, test.images)))
    before, after = (class_accuracy(predicted, test.labels) for predicted in pair)
    return before, after
