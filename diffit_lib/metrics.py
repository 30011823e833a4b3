"""How good generated images are: numbers over the features of an injected extractor, and the stamp they travel with.

A Frechet distance over any features but Inception's 2048 is a Frechet distance, never an FID.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple, Protocol

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from diffit_lib.errors import DiffitError
from diffit_lib.stamp import Stamp
from diffit_lib.tensors import to_uint8


class Extractor(Protocol):
    """Images to features."""

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N, D) float32."""
        ...

    @property
    def name(self) -> str:
        """What to call it."""
        ...

    @property
    def checksum(self) -> str:
        """Names the very weights."""
        ...


class ClassifierLike(Extractor, Protocol):
    """An extractor trained on the classes of the data itself."""

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N,) int64."""
        ...


class InceptionLike(Extractor, Protocol):
    """The extractor that FID, Inception Score, KID, precision and recall are defined by."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) uint8 -> features (N, 2048) and logits (N, 1008), float32."""
        ...


def moments(features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) in float64 of features (N, D); N is at least 2."""
    if len(features) < 2:
        raise DiffitError(f"a Frechet distance needs at least 2 images on each side and got {len(features)}; give more")
    values = features.double().cpu().numpy()
    return values.mean(0), np.atleast_2d(np.cov(values, rowvar=False))


def frechet_from_moments(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), squared distance of two Gaussians.

    Dowson and Landau 1982. The trace of the root is the sum of the singular values of sigma1^(1/2) sigma2^(1/2), which
    is real and finite for singular covariances too.
    """
    overlap = scipy.linalg.svdvals(_root(sigma1) @ _root(sigma2)).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap
    return max(0.0, float(distance))


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features (N, D) and (M, D)."""
    return frechet_from_moments(*moments(features_a), *moments(features_b))


def class_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of images whose predicted class is the one asked for, both (N,) int64."""
    return (predicted == labels).double().mean().item()


def nearest(images: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel L2 distance (N,) float64, in units of 0..255, to the nearest image of `train`, and its index there.

    Exact: the squares are whole numbers, and float64 holds them.
    """
    others = train.flatten(1).double()
    square = others.square().sum(1)
    found = []
    for chunk in images.flatten(1).double().split(500):
        squared_distance = chunk.square().sum(1, keepdim=True) - 2 * chunk @ others.T + square
        found.append(squared_distance.min(1))
    return torch.cat([f.values for f in found]).sqrt(), torch.cat([f.indices for f in found])


def copy_ratio(samples: Tensor, train: Tensor, test: Tensor) -> float:
    """Median distance of samples to their nearest training image, over that of test images; uint8 (N, C, H, W).

    Near 1 for new images, near 0 for copies of the training set.
    """
    real = nearest(test, train)[0].median().item()
    if real == 0:
        raise DiffitError("more than half of the test part are copies of training images; split the data anew")
    return nearest(samples, train)[0].median().item() / real


def evenly(labels: Tensor, n: int) -> Tensor:
    """Indices (n,) of a subset that keeps the shares of the classes (N,) and is spread evenly within each."""
    positions = torch.arange(n) * len(labels) // n
    return labels.argsort(stable=True)[positions]


def measure_small(
    samples: Tensor,
    labels: Tensor | None,
    *,
    train: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classifiers: Sequence[ClassifierLike],
    stamp: Stamp,
) -> dict[str, Any]:
    """All numbers for small or grey data, ready for JSON; images are uint8 (N, C, H, W), labels (N,) int64.

    `labels` are the classes asked for; without any there is no class accuracy.
    The Frechet distances to the train part are taken at equal n, over generated images and over real ones of the test
    part (the floor); their ratio is 1 for images as good as new real ones. Every number but the copy ratio is the mean
    over the classifiers, the ratio the mean of their ratios.
    """
    n = min(len(samples), len(test))
    drawn = samples[evenly(torch.zeros(len(samples)) if labels is None else labels, n)]
    real = test[evenly(test_labels, n)]
    generated, floor = [], []
    for classifier in classifiers:
        reference = moments(classifier.features(train))
        generated.append(frechet_from_moments(*moments(classifier.features(drawn)), *reference))
        floor.append(frechet_from_moments(*moments(classifier.features(real)), *reference))
    stamp = replace(
        stamp,
        n=n,
        drawn=len(samples),
        extractor=f"{len(classifiers)} x {classifiers[0].name}",
        extractor_checksum="+".join(c.checksum for c in classifiers),
    )
    accuracy = {}
    if labels is not None:
        accuracy = {"class_accuracy": fmean(class_accuracy(c.predict(samples), labels) for c in classifiers)}
    return accuracy | {
        "classifier_test_accuracy": fmean(class_accuracy(c.predict(test), test_labels) for c in classifiers),
        "frechet": fmean(generated),
        "frechet_floor": fmean(floor),
        "frechet_ratio": fmean(g / f for g, f in zip(generated, floor, strict=True)),
        "copy_ratio": copy_ratio(samples, train, test),
        "stamp": stamp.to_dict(),
        "warnings": stamp.warnings(),
    }


class Reference(NamedTuple):
    """What is kept of the real images."""

    mean: Tensor  # (D,) float64
    covariance: Tensor  # (D, D) float64
    features: Tensor  # (M, D) float32 of at most 10,000 of them, evenly spread: for KID, precision and recall


def reference_statistics(images: Any, extractor: Extractor) -> Reference:
    """Statistics of real images: uint8 (N, C, H, W), or whatever has their `shape` and yields them by index.

    They are taken in one pass, 512 images at a time.
    """
    count = images.shape[0]
    if count < 2:
        raise DiffitError(f"a Frechet distance needs at least 2 images on each side and got {count}; give more")
    kept = evenly(torch.zeros(count), min(count, 10_000))
    first = extractor.features(images[torch.arange(min(count, 512))]).double().cpu()
    origin, found = first.mean(0), []  # squares around a point near the mean cancel least
    total, square = torch.zeros_like(origin), torch.zeros_like(origin.outer(origin))
    for indices in torch.arange(count).split(512):
        features = extractor.features(images[indices]).cpu()
        found.append(features[kept[(kept >= indices[0]) & (kept <= indices[-1])] - indices[0]])
        values = features.double() - origin
        total, square = total + values.sum(0), square + values.T @ values
    mean = total / count
    return Reference(mean + origin, (square - count * mean.outer(mean)) / (count - 1), torch.cat(found))


def measure_inception(
    batches: Iterable[Tensor], reference: Reference, inception: InceptionLike, stamp: Stamp, protocol: str = "round"
) -> dict[str, Any]:
    """FID, Inception Score, KID, precision and recall of images that come in batches, ready for JSON.

    Batches are float in [-1, 1] or uint8, (B, C, H, W), and are not kept. `protocol` turns floats into uint8: "round",
    or "adm", which truncates as the published evaluators do. Settings are torch-fidelity's: 10 splits, 100 subsets of
    1000 images (of all where there are fewer), 3 neighbours, random seed 2020.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    if protocol not in PROTOCOLS:
        raise DiffitError(f"unknown protocol {protocol!r}; the protocols are {', '.join(PROTOCOLS)}")
    features, logits = _extract(batches, inception, protocol)
    n = min(len(features), len(reference.features))
    if n < 10:
        raise DiffitError(f"Inception metrics need at least 10 images on each side and got {n}; give more")
    score = isc_features_to_metric(logits)
    kid = kid_features_to_metric(features, reference.features, kid_subset_size=min(n, 1000), verbose=False)
    manifold = prc_features_to_metric(
        features, reference.features, save_cpu_ram=True, prc_batch_size=2000, verbose=False
    )
    stamp = replace(
        stamp,
        n=len(features),
        drawn=len(features),
        extractor=inception.name,
        extractor_checksum=inception.checksum,
        rounding=protocol,
    )
    return {
        "fid": frechet_from_moments(*moments(features), reference.mean.numpy(), reference.covariance.numpy()),
        "inception_score": score["inception_score_mean"],
        "inception_score_std": score["inception_score_std"],
        "kid": kid["kernel_inception_distance_mean"],
        "kid_std": kid["kernel_inception_distance_std"],
        "precision": manifold["precision"],
        "recall": manifold["recall"],
        "stamp": stamp.to_dict(),
        "warnings": stamp.warnings(),
    }


def _extract(batches: Iterable[Tensor], inception: InceptionLike, protocol: str) -> tuple[Tensor, Tensor]:
    """Features and logits of all batches."""
    found = []
    for images in batches:
        if images.is_floating_point():
            images = PROTOCOLS[protocol](images)
        elif protocol == "adm":
            raise DiffitError("protocol adm truncates float images and got uint8 ones, rounded before; give floats")
        found.append(inception(images))
    if not found:
        raise DiffitError("there are no images to measure")
    features, logits = (torch.cat(part) for part in zip(*found, strict=True))
    return features, logits


def _truncate(images: Tensor) -> Tensor:
    """float in [-1, 1] -> uint8, rounded towards 0."""
    return ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)


PROTOCOLS = {"round": to_uint8, "adm": _truncate}


def _root(sigma: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance; eigenvalues that rounding made negative count as 0."""
    values, vectors = scipy.linalg.eigh(sigma)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
