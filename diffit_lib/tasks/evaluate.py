"""`evaluate`: draw images from weights and measure them, every number with its stamp."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffit_lib.data import Split, load_data
from diffit_lib.errors import DiffitError
from diffit_lib.extractors import train_classifier
from diffit_lib.metrics import Stamp, measure_small
from diffit_lib.pipeline import load
from diffit_lib.tensors import digest

FIRST_SEED = 10_000  # no setting was ever chosen by looking at these seeds or later ones


def evaluate(weights: str | Path, data: Split | None = None, *, per_class: int = 50) -> dict[str, Any]:
    """Class accuracy, Frechet distance beside its floor, and the copy check of freshly drawn images.

    `per_class` images of each class are drawn, in order of class, with seeds 10000, 10001, ... and the weights' own
    settings; none is rejected. The classifier is trained three times on the train part; the numbers are means over it.
    """
    if per_class < 1:
        raise DiffitError(f"per_class is {per_class}; give 1 or more")
    pipe = load(weights)
    card, sampling = pipe.card, pipe.card.recipe.sampling
    if card.recipe.network.num_classes == 0:
        raise DiffitError(
            f"{weights} are unconditional; `evaluate` asks for classes, so train with num_classes above 0"
        )
    data = data or load_data(card.recipe.data, card.recipe.network.image_size, card.recipe.network.in_channels)
    if card.recipe.network.num_classes != len(data.train.class_names):
        raise DiffitError(
            f"{weights} knows {card.recipe.network.num_classes} classes, {data.train.name} has "
            f"{len(data.train.class_names)}; measure against the data the weights were trained on, {card.recipe.data}"
        )
    labels = torch.arange(len(data.train.class_names)).repeat_interleave(per_class)
    seeds = range(FIRST_SEED, FIRST_SEED + len(labels))
    low, high = pipe.denoiser.sigma_min, pipe.denoiser.sigma_max
    stamp = Stamp(
        reference=data.train.name,
        reference_hash=data.train.fingerprint(),
        sampler=f"{sampling.method} sigma={high:g}..{low:g}",
        steps=sampling.steps,
        guidance=sampling.guidance,
        seeds=f"{seeds[0]}-{seeds[-1]}",
        precision=pipe.precision,
        weights_hash=digest(pipe.denoiser.state_dict()),
    )
    return measure_small(
        to_tensor(pipe(seeds, labels.tolist(), batch_size=100)),
        labels,
        train=data.train.images,
        test=data.test.images,
        test_labels=data.test.labels,
        classifiers=[train_classifier(data.train.images, data.train.labels, seed) for seed in range(3)],
        stamp=stamp,
    )


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (N, H, W, C) as the pipeline gives them -> uint8 (N, C, H, W)."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
