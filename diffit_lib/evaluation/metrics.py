"""Distances between sets of images, and the statistics of real images that they are measured against.

A Frechet distance over any features but Inception's 2048 is a Frechet distance, never an FID. Inception Score, KID,
precision and recall are torch-fidelity's own functions: torchmetrics draws random subsets and splits from the global
generator, so its numbers vary. The Frechet distance is ours: one side may be published statistics, and few images make
covariances singular.
"""

from collections.abc import Callable, Iterable
from statistics import stdev
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from diffit_lib.utils.errors import check
from diffit_lib.utils.tensors import seeded_generator


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) in float64 of features (N, D); N is at least 2."""
    found = Moments()
    found.add(features)
    return found.mean, found.covariance


def frechet_from_moments(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), squared distance of two Gaussians, float64.

    Dowson and Landau 1982. The trace of the root is the sum of the singular values of sigma1^(1/2) sigma2^(1/2), which
    is real and finite for singular covariances too.
    """
    overlap = scipy.linalg.svdvals(_root(sigma1) @ _root(sigma2)).sum()
    distance = (mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * overlap
    return max(0.0, float(distance))


def _root(sigma: Tensor) -> np.ndarray:
    """The symmetric square root of a covariance; eigenvalues that rounding made negative count as 0."""
    values, vectors = scipy.linalg.eigh(sigma.numpy())
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def resamples(count: int, rounds: int = 20, classes: Tensor | None = None) -> list[Tensor]:
    """Indices of so many samples drawn with replacement, for the bootstrap; the same ones each time.

    Each sample takes the place of one of its own of the `classes` (N,), if their numbers were fixed.
    """
    generator = seeded_generator("bootstrap", count)
    classes = torch.zeros(count, dtype=torch.int64) if classes is None else classes
    order, sizes = classes.argsort(stable=True), classes.bincount()
    first, size = (sizes.cumsum(0) - sizes)[classes], sizes[classes]
    draws = (torch.rand(count, generator=generator, dtype=torch.float64) for _ in range(rounds))
    return [order[first + (draw * size).long()] for draw in draws]


def plus_minus(values: Iterable[float]) -> float:
    """Half of a 95 % interval, from a number taken on each of the `resamples`: 1.96 standard deviations."""
    return 1.96 * stdev(values)


def frechet_numbers(name: str, features: Tensor, mean: Tensor, covariance: Tensor) -> dict[str, float]:
    """The Frechet distance of features (N, D) to statistics, and half of its interval as far as N images go.

    The trace of the root is the sum of the roots of the eigenvalues of X C X^T, X being the centred features, C the
    covariance of the statistics; or of (X C^(1/2))^T (X C^(1/2)), where there are more images than features.
    """
    x, few = features.double(), len(features) <= features.shape[1]
    y = x @ covariance @ x.T if few else x @ torch.from_numpy(_root(covariance))

    def distance(part: Tensor) -> float:
        rows, sample = y[part], x[part]
        square = rows[:, part] if few else rows
        square = square - square.mean(0)
        square = square - square.mean(1, keepdim=True) if few else square.T @ square
        values = torch.linalg.eigvalsh(square / (len(part) - 1)).clamp(min=0)
        traces = sample.var(0).sum() + covariance.trace()
        return float((sample.mean(0) - mean).square().sum() + traces - 2 * values.sqrt().sum())

    found = frechet_from_moments(*moments(features), mean, covariance)
    return {name: found, f"{name}_plus_minus": plus_minus(distance(part) for part in resamples(len(features)))}


def mmd(features: Tensor, real: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
    """Squared maximum mean discrepancy of (N, D) and (M, D), diagonals counted, and half of its interval.

    `kernel` maps (A, D) and (B, D), float64, to (A, B). The interval resamples the N images.
    """
    x, y, count = features.double(), real.double(), len(features)
    shares = [torch.ones(count), *(part.bincount(minlength=count) for part in resamples(count))]
    weights = torch.stack(shares, 1).double() / count  # (N, rounds + 1)
    pairs = list(zip(x.split(1000), weights.split(1000), strict=True))
    among = sum((part * (kernel(rows, x) @ weights)).sum(0) for rows, part in pairs)
    across = sum(part.T @ kernel(rows, y).mean(1) for rows, part in pairs)
    among_real = torch.cat([kernel(rows, y).mean(1) for rows in y.split(1000)]).mean()
    found = among + among_real - 2 * across
    return float(found[0]), plus_minus(found[1:].tolist())


def cmmd(features: Tensor, real: Tensor) -> dict[str, float]:
    """CMMD of CLIP's embeddings of length 1 (Jayasumana et al. 2024, section 4): Gaussian kernel, sigma 10, x 1000."""
    value, interval = mmd(features, real, lambda a, b: (-torch.cdist(a, b).square() / (2 * 10**2)).exp())
    return {"cmmd": 1000 * value, "cmmd_plus_minus": 1000 * interval}


def density_coverage(features: Tensor, real: Tensor) -> dict[str, float]:
    """Density and coverage of (N, D) against (M, D), M > 5 (Naeem et al. 2020, equations 3 and 4).

    Density: balls to the fifth neighbour of a real image that hold a sample, by 5 N. Coverage: balls with a sample.
    """
    inside, covered = torch.zeros(()), torch.zeros(())
    for part in real.split(1000):
        radius = torch.cdist(part, real).kthvalue(5 + 1, dim=1, keepdim=True).values
        within = torch.cdist(part, features) < radius
        inside, covered = inside + within.sum(), covered + within.any(1).sum()
    return {"density": inside.item() / (5 * len(features)), "coverage": covered.item() / len(real)}


def vendi_score(features: Tensor) -> float:
    """How many different images there are, 1 to N: exp of the entropy of the eigenvalues of K / N, K of cosines.

    Friedman and Dieng 2023, equation 1. The D x D matrix of the features has the same ones.
    """
    unit = torch.nn.functional.normalize(features.double())
    square = unit @ unit.T if len(unit) < unit.shape[1] else unit.T @ unit
    values = torch.linalg.eigvalsh(square / len(unit)).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features (N, D) and (M, D)."""
    return frechet_from_moments(*moments(features_a), *moments(features_b))


def class_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of predicted classes (N,) that equal the labels (N,)."""
    return (predicted == labels).double().mean().item()


def nearest(images: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel L2 distance (N,) float64, in units of 0..255, to the nearest image of `train`, and its index there.

    Exact: the squares are whole numbers, and float64 holds them.
    """
    squared = torch.full((len(images),), torch.inf, dtype=torch.float64)
    index = torch.zeros(len(images), dtype=torch.int64)
    rows = max(1, min(5000, 2**21 // train[0].numel()))  # at most 17 MB as float64
    for first in range(0, len(train), rows):
        others = train[first : first + rows].flatten(1).double()
        parts = (x.split(min(rows, 500)) for x in (images.flatten(1), squared, index))
        for chunk, best, where in zip(*parts, strict=True):
            values, places = torch.cdist(chunk.double(), others).square().round().min(1)
            where[values < best] = first + places[values < best]
            best.copy_(values.minimum(best))
    return squared.sqrt(), index


def real_distance(train: Tensor, test: Tensor) -> float:
    """Median distance of test images to their nearest training image; raises a DiffitError if it is 0."""
    real = nearest(test, train)[0].median().item()
    check(real > 0, "more than half of the test part are copies of training images; split the data anew")
    return real


def inception_score(logits: Tensor) -> dict[str, float]:
    """Inception Score of logits (N, 1008), shuffled with seed 2020, and its standard deviation over splits.

    As ADM, a split is of 5,000 images, or of all: ten splits of fewer images would lower the score.
    """
    from torch_fidelity.metric_isc import isc_features_to_metric

    score = isc_features_to_metric(logits, splits=max(1, len(logits) // 5_000))
    return {"inception_score": score["inception_score_mean"], "inception_score_std": score["inception_score_std"]}


def neighbourhoods(features: Tensor, real: Tensor, kid: bool = True) -> dict[str, float]:
    """Precision, recall, density, coverage, and KID if asked for, of features (N, D) against real ones (M, D).

    Distances are float32. ADM takes them in float16, whose rounding moves precision and recall by some thousandths.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    n, size, numbers = min(len(features), len(real)), features.shape[1], {}
    if kid:
        found = kid_features_to_metric(features, real, kid_subset_size=min(n, 1000), verbose=False)
        numbers["kid"] = found["kernel_inception_distance_mean"]
        numbers["kid_std"] = found["kernel_inception_distance_std"]
        numbers["kid_plus_minus"] = mmd(features, real, lambda a, b: (a @ b.T / size + 1) ** 3)[1]
    manifold = prc_features_to_metric(features, real, save_cpu_ram=True, prc_batch_size=2000, verbose=False)
    named = {"precision": manifold["precision"], "recall": manifold["recall"]}
    return numbers | named | density_coverage(features, real)


def evenly(labels: Tensor, n: int) -> Tensor:
    """Indices (n,) of a subset that keeps the shares of the classes (N,) and is spread evenly within each."""
    positions = torch.arange(n) * len(labels) // n
    return labels.argsort(stable=True)[positions]


class Moments:
    """Mean and unbiased covariance, float64, of features that arrive in batches and are not kept."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: Tensor) -> None:
        """Count in features (N, D)."""
        values = features.double().cpu()
        if not self.count:  # squares around a point near the mean cancel least
            self.origin = values.mean(0)
            self.total, self.square = torch.zeros_like(self.origin), torch.zeros_like(self.origin.outer(self.origin))
        values = values - self.origin
        self.count += len(values)
        self.total += values.sum(0)
        self.square += values.T @ values

    @property
    def mean(self) -> Tensor:
        """(D,)."""
        return self.origin + self.total / self.count

    @property
    def covariance(self) -> Tensor:
        """(D, D); a DiffitError for fewer than 2 images."""
        count = self.count
        check(count > 1, f"a Frechet distance needs at least 2 images on each side and got {count}; give more")
        mean = self.total / self.count
        return (self.square - count * mean.outer(mean)) / (count - 1)


class Reference(NamedTuple):
    """Statistics of real images; published ones lack some."""

    mean: Tensor  # (D,) float64
    covariance: Tensor  # (D, D) float64
    features: Tensor | None = None  # (M, D) float32, of 10,000 images at most: for KID, precision, recall
    spatial_mean: Tensor | None = None  # (S,) float64, for sFID
    spatial_covariance: Tensor | None = None  # (S, S) float64

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}


def reference_statistics(images: Any, extractor: Any) -> Reference:
    """Statistics of real images, uint8 (N, C, H, W) or anything with that `shape` that gives them by index.

    Takes one pass, 512 images at a time. Inception's include those for sFID. `extractor` is the classifier, Inception,
    DINOv2 or CLIP.
    """
    count = images.shape[0]
    kept, found = evenly(torch.zeros(count), min(count, 10_000)), []
    moments, spatial = Moments(), Moments()
    for indices in torch.arange(count).split(512):
        if extractor.num_spatial:
            features, _, maps = extractor(images[indices])
            spatial.add(maps)
        else:
            features = extractor.features(images[indices])
        moments.add(features)
        found.append(features.cpu()[kept[(kept >= indices[0]) & (kept <= indices[-1])] - indices[0]])
    for_sfid = (spatial.mean, spatial.covariance) if spatial.count else ()
    return Reference(moments.mean, moments.covariance, torch.cat(found), *for_sfid)
