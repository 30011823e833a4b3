"""What is kept of real images, so that others can be measured against them: taken, read and written.

Statistics of Inception's features are exchanged as `.npz` files: `mu`, `sigma` as EDM and pytorch-fid publish them, and
`mu_s`, `sigma_s` of sFID beside them in those of ADM, whose files hold images too.
"""

from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import replacing
from diffit_lib.utils.npz import array, names


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


class Seen(NamedTuple):
    """What Inception makes of N images, float32."""

    features: Tensor  # (N, 2048): FID, KID, precision and recall
    logits: Tensor  # (N, 1008): Inception Score
    spatial: Tensor  # (N, 2023): sFID


@runtime_checkable
class InceptionLike(Extractor, Protocol):
    """The extractor that FID, sFID, Inception Score, KID, precision and recall are defined by."""

    num_features: int
    num_spatial: int

    def __call__(self, images: Tensor) -> Seen:
        """(N, C, H, W) uint8 -> everything the numbers need."""
        ...


class Moments:
    """Mean and unbiased covariance, float64, of features that come in batches and are not kept."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, features: Tensor) -> None:
        """Take (N, D) more of them into account."""
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
        """(D, D)."""
        mean = self.total / self.count
        return (self.square - self.count * mean.outer(mean)) / (self.count - 1)


class Reference(NamedTuple):
    """What is kept of the real images; of statistics that others published only some of it is known."""

    mean: Tensor  # (D,) float64
    covariance: Tensor  # (D, D) float64
    features: Tensor | None = (
        None  # (M, D) float32 of at most 10,000 of them, evenly spread: for KID, precision, recall
    )
    spatial_mean: Tensor | None = None  # (S,) float64, for sFID
    spatial_covariance: Tensor | None = None  # (S, S) float64

    def tensors(self) -> dict[str, Tensor]:
        """Those that are known, by name."""
        return {name: tensor for name, tensor in self._asdict().items() if tensor is not None}


def evenly(labels: Tensor, n: int) -> Tensor:
    """Indices (n,) of a subset that keeps the shares of the classes (N,) and is spread evenly within each."""
    positions = torch.arange(n) * len(labels) // n
    return labels.argsort(stable=True)[positions]


def reference_statistics(images: Any, extractor: Extractor) -> Reference:
    """Statistics of real images: uint8 (N, C, H, W), or whatever has their `shape` and yields them by index.

    They are taken in one pass, 512 images at a time; those for sFID too where the extractor is Inception.
    """
    count = images.shape[0]
    if count < 2:
        raise DiffitError(f"a Frechet distance needs at least 2 images on each side and got {count}; give more")
    kept, found = evenly(torch.zeros(count), min(count, 10_000)), []
    moments, spatial_moments = Moments(), Moments()
    for indices in torch.arange(count).split(512):
        if isinstance(extractor, InceptionLike):
            features, _, spatial = extractor(images[indices])
            spatial_moments.add(spatial)
        else:
            features = extractor.features(images[indices])
        moments.add(features)
        found.append(features.cpu()[kept[(kept >= indices[0]) & (kept <= indices[-1])] - indices[0]])
    reference = Reference(moments.mean, moments.covariance, torch.cat(found))
    if not spatial_moments.count:
        return reference
    return reference._replace(spatial_mean=spatial_moments.mean, spatial_covariance=spatial_moments.covariance)


NAMES = {"mean": "mu", "covariance": "sigma", "spatial_mean": "mu_s", "spatial_covariance": "sigma_s"}  # in the files


def write_statistics(path: str | Path, reference: Reference) -> None:
    """Write an `.npz` of `mu`, `sigma`, and for sFID `mu_s`, `sigma_s`, float64, as public evaluators read it."""
    arrays = {NAMES[name]: tensor.numpy() for name, tensor in reference.tensors().items() if name in NAMES}
    with replacing(path) as beside:
        np.savez(beside, allow_pickle=False, **arrays)


def read_statistics(path: str | Path, inception: InceptionLike) -> Reference:
    """The statistics in an `.npz`, without features; of other dimensions than this network's they are refused."""
    found, tensors = names(path), {}
    for (mean, covariance), size in (
        (("mean", "covariance"), inception.num_features),
        (("spatial_mean", "spatial_covariance"), inception.num_spatial),
    ):
        if mean == "spatial_mean" and not {NAMES[mean], NAMES[covariance]} & found:
            continue  # most publish none
        for name, shape in ((mean, (size,)), (covariance, (size, size))):
            key = NAMES[name]
            check(
                key in found, f"{path} holds {', '.join(sorted(found))}, but no {key}; give statistics that are whole"
            )
            values = array(path, key)
            check(
                values.shape == shape and np.issubdtype(values.dtype, np.floating),
                f"{path}: {key} is {values.dtype} {values.shape}, and {inception.name} has float {shape}; "
                "give statistics of the same features",
            )
            check(bool(np.isfinite(values).all()), f"{path}: {key} is not finite; give statistics of sound features")
            tensors[name] = torch.from_numpy(values.astype(np.float64))
    return Reference(**tensors)
