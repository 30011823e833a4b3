"""Statistics of Inception's features in `.npz` files, as others exchange them.

`mu`, `sigma` as EDM and pytorch-fid publish them, and beside them `mu_s`, `sigma_s` for sFID in those of ADM, which
hold images too.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffit_lib.evaluation.metrics import Reference
from diffit_lib.utils.errors import check
from diffit_lib.utils.files import replacing
from diffit_lib.utils.npz import array, names

NAMES = {"mean": "mu", "covariance": "sigma", "spatial_mean": "mu_s", "spatial_covariance": "sigma_s"}  # in the files


def write_statistics(path: str | Path, reference: Reference) -> None:
    """Write an `.npz` of `mu`, `sigma`, and for sFID `mu_s`, `sigma_s`, float64, as public evaluators read it."""
    stored = reference.tensors()
    arrays: dict[str, Any] = {stored_as: stored[name].numpy() for name, stored_as in NAMES.items() if name in stored}
    with replacing(path) as beside:
        np.savez(beside, **arrays)


def read_statistics(path: str | Path, inception: Any) -> Reference:
    """The statistics in an `.npz`; raises a DiffitError if they are of other features than this network's."""
    found, tensors, size = names(path), {}, inception.num_features
    wanted: dict[str, tuple[int, ...]] = {"mean": (size,), "covariance": (size, size)}
    if {"mu_s", "sigma_s"} & found:  # most publish none
        size = inception.num_spatial
        wanted |= {"spatial_mean": (size,), "spatial_covariance": (size, size)}
    for name, shape in wanted.items():
        key = NAMES[name]
        check(key in found, f"{path} holds {', '.join(sorted(found))}, but no {key}; give complete statistics")
        values = array(path, key)
        check(
            values.shape == shape and np.issubdtype(values.dtype, np.floating),
            f"{path}: {key} is {values.dtype} {values.shape}, and {inception.name} has float {shape}; "
            "give statistics of the same features",
        )
        check(bool(np.isfinite(values).all()), f"{path}: {key} is not finite; give statistics of sound features")
        tensors[name] = torch.from_numpy(values.astype(np.float64))
    return Reference(**tensors)
