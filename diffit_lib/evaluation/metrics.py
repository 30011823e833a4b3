"""How good generated images are: numbers over the features of an injected extractor, and the stamp they travel with.

A Frechet distance over any features but Inception's 2048 is a Frechet distance, never an FID.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from diffit_lib.evaluation.provenance import Provenance
from diffit_lib.evaluation.reference import Extractor, InceptionLike, Moments, Reference, evenly
from diffit_lib.utils.errors import DiffitError


class ClassifierLike(Extractor, Protocol):
    """An extractor trained on the classes of the data itself."""

    def predict(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> (N,) int64."""
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
    return nearest(samples, train)[0].median().item() / real_distance(train, test)


def real_distance(train: Tensor, test: Tensor) -> float:
    """Median distance of test images to their nearest training image; none at all is refused."""
    real = nearest(test, train)[0].median().item()
    if real == 0:
        raise DiffitError("more than half of the test part are copies of training images; split the data anew")
    return real


def real_side(
    train: Tensor, test: Tensor, test_labels: Tensor, classifiers: Sequence[ClassifierLike]
) -> dict[str, Tensor]:
    """What `measure_small` needs of real images alone, whatever is measured: float64, in the classifiers' order."""
    pairs = [moments(classifier.features(train)) for classifier in classifiers]
    return {
        "means": torch.from_numpy(np.stack([mean for mean, _ in pairs])),
        "covariances": torch.from_numpy(np.stack([covariance for _, covariance in pairs])),
        "accuracies": torch.tensor(
            [class_accuracy(c.predict(test), test_labels) for c in classifiers], dtype=torch.float64
        ),
        "distance": torch.tensor(real_distance(train, test), dtype=torch.float64),
    }


def measure_small(
    samples: Tensor,
    labels: Tensor | None,
    *,
    train: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classifiers: Sequence[ClassifierLike],
    stamp: Provenance,
    real: dict[str, Tensor] | None = None,
) -> dict[str, Any]:
    """All numbers for small or grey data, ready for JSON; images are uint8 (N, C, H, W), labels (N,) int64.

    `labels` are the classes asked for; without any there is no class accuracy.
    The Frechet distances to the train part are taken at equal n, over generated images and over real ones of the test
    part (the floor); their ratio is 1 for images as good as new real ones. Every number but the copy ratio is the mean
    over the classifiers, the ratio the mean of their ratios. `real` is what `real_side` found, if it is known.
    """
    real = real or real_side(train, test, test_labels, classifiers)
    n = min(len(samples), len(test))
    drawn = samples[evenly(torch.zeros(len(samples)) if labels is None else labels, n)]
    held_out = test[evenly(test_labels, n)]
    generated, floor = [], []
    for classifier, mean, covariance in zip(classifiers, real["means"], real["covariances"], strict=True):
        reference = mean.numpy(), covariance.numpy()
        generated.append(frechet_from_moments(*moments(classifier.features(drawn)), *reference))
        floor.append(frechet_from_moments(*moments(classifier.features(held_out)), *reference))
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
        "classifier_test_accuracy": fmean(real["accuracies"].tolist()),
        "frechet": fmean(generated),
        "frechet_floor": fmean(floor),
        "frechet_ratio": fmean(g / f for g, f in zip(generated, floor, strict=True)),
        "copy_ratio": nearest(samples, train)[0].median().item() / real["distance"].item(),
        "stamp": stamp.to_dict(),
        "warnings": stamp.warnings(),
    }


def measure_inception(
    batches: Iterable[Tensor], reference: Reference, inception: InceptionLike, stamp: Provenance
) -> dict[str, Any]:
    """FID, sFID, Inception Score, KID, precision and recall of images that come in batches, ready for JSON.

    Batches are uint8, (B, C, H, W), and are not kept. What the reference does not tell is left out, and the warnings
    say so: statistics alone have no features for KID, precision and recall. Settings are torch-fidelity's: 10 splits,
    100 subsets of 1000 images (of all where there are fewer), 3 neighbours, random seed 2020.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    found, spatial = [], Moments()
    for images in batches:
        seen = inception(images)
        found.append(seen[:2])
        spatial.add(seen.spatial)
    if not found:
        raise DiffitError("there are no images to measure")
    features, logits = (torch.cat(part) for part in zip(*found, strict=True))
    n = len(features) if reference.features is None else min(len(features), len(reference.features))
    if n < 10:
        raise DiffitError(f"Inception metrics need at least 10 images on each side and got {n}; give more")
    numbers = {"fid": frechet_from_moments(*moments(features), reference.mean.numpy(), reference.covariance.numpy())}
    left_out = []
    if reference.spatial_mean is not None and reference.spatial_covariance is not None:
        real = reference.spatial_mean.numpy(), reference.spatial_covariance.numpy()
        numbers["sfid"] = frechet_from_moments(spatial.mean.numpy(), spatial.covariance.numpy(), *real)
    else:
        left_out.append("sFID is left out: the reference has no mu_s and sigma_s")
    score = isc_features_to_metric(logits)
    numbers["inception_score"] = score["inception_score_mean"]
    numbers["inception_score_std"] = score["inception_score_std"]
    if reference.features is not None:
        numbers |= neighbourhoods(features, reference.features)
    else:
        left_out.append("KID, precision and recall are left out: the reference is statistics alone, without images")
    stamp = replace(
        stamp,
        n=len(features),
        drawn=len(features),
        extractor=inception.name,
        extractor_checksum=inception.checksum,
    )
    return numbers | {"stamp": stamp.to_dict(), "warnings": stamp.warnings() + left_out}


def neighbourhoods(features: Tensor, real: Tensor) -> dict[str, float]:
    """KID, precision and recall, which need features (N, D) and (M, D) of single images on both sides."""
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    n = min(len(features), len(real))
    kid = kid_features_to_metric(features, real, kid_subset_size=min(n, 1000), verbose=False)
    manifold = prc_features_to_metric(features, real, save_cpu_ram=True, prc_batch_size=2000, verbose=False)
    return {
        "kid": kid["kernel_inception_distance_mean"],
        "kid_std": kid["kernel_inception_distance_std"],
        "precision": manifold["precision"],
        "recall": manifold["recall"],
    }


def _root(sigma: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance; eigenvalues that rounding made negative count as 0."""
    values, vectors = scipy.linalg.eigh(sigma)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
