"""Images in files that are to be measured: a folder, a zip, or an `.npz` as public evaluators read it.

An `.npz` may also hold statistics of Inception's features: `mu`, `sigma` as EDM and pytorch-fid publish them, and
beside them `mu_s`, `sigma_s` for sFID in those of ADM, which hold images too. Nothing in it is unpickled, large arrays
are memory-mapped, and what it says of an array is compared with what it holds before any memory is taken.
"""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy

from diffit_lib.checkpoints.hub import TRANSFORMER, pretrained
from diffit_lib.data.datasets import Images, LazyImages, first_shape
from diffit_lib.data.folders import find_images
from diffit_lib.data.preprocess import to_pixels
from diffit_lib.data.sources import from_files, name_classes
from diffit_lib.evaluation.metrics import Reference
from diffit_lib.utils.errors import DiffitError, check, reason_of
from diffit_lib.utils.files import WEIGHTS, expanded, replacing
from diffit_lib.utils.logging import say

MOST_CLASSES = 1_000_000
NAMES = {"mean": "mu", "covariance": "sigma", "spatial_mean": "mu_s", "spatial_covariance": "sigma_s"}  # in the files
HEADER = 2**16  # bytes in which an array's own header has to end
LARGE, RATIO = 10**9, 100  # bytes; larger arrays must not be compressed to less than a hundredth


def is_image_files(what: str | Path) -> bool:
    """Whether this is a folder, a zip or an `.npz` of images; else it is weights: a file, a run folder, or a name.

    A folder of images that has the name of pretrained weights is given as `./NAME`.
    """
    path = Path(what)
    weights = str(what) in pretrained() or any((path / file).is_file() for file in (WEIGHTS, TRANSFORMER))
    return path.suffix.lower() in (".zip", ".npz") or (path.is_dir() and not weights)


def is_npz(what: object) -> bool:
    """Whether this names an `.npz`."""
    return isinstance(what, str | Path) and Path(what).suffix.lower() == ".npz"


def read_images(source: str | Path, image_shape: tuple[int, ...] | None = None) -> Images:
    """All images of a folder, a zip or an `.npz`, of both parts if it has two; they are decoded when used.

    Of a folder that `sample` wrote the images alone, without their grid. Images of a folder or zip are made
    `image_shape`, (C, H, W), by cropping at the centre; the default is their own, which must be one.
    """
    path = expanded(source)
    several = sorted(index.parent for index in path.glob("guidance-*/settings.json"))
    listed = ", ".join(map(str, several))
    check(not several, f"{path} holds a folder of images for each guidance; give one of them: {listed}")
    name = Path(os.path.realpath(path)).name.removesuffix(".zip")
    begun, whole = ((path / file).is_file() for file in ("settings.json", "index.csv"))
    check(whole or not begun, f"{path} is not complete; run its `diffit sample` command again, then measure it")
    if whole:
        there = [path / name for name in ("images", "images.zip", "images.npz") if (path / name).exists()]
        check(not begun or bool(there), f"{path} holds a grid of its images alone; draw them with --format png")
        path = there[0] if there else path
    if is_npz(path):
        return read_npz(path)
    check(path.exists(), f"there is no folder or zip {path}; give one, or an .npz")
    files = find_images(path)
    pictures = from_files(name, path, files.paths, *name_classes(name, files.labels, files.class_names))
    channels, *size = image_shape or (None,)
    form = partial(to_pixels, image_size=(size[0], size[1]) if size else None, in_channels=channels)
    images = LazyImages(pictures, form, first_shape(pictures, form))
    return Images(name, images, pictures.labels, pictures.class_names)


def read_npz(path: str | Path) -> Images:
    """The images of an `.npz`: `arr_0`, uint8 (N, H, W, C), and their class numbers, `arr_1`, (N,), if it is there.

    Three equal channels count as grey, since public evaluators read RGB alone.
    """
    found = array_names(path)
    check("arr_0" in found, f"{path} has {', '.join(sorted(found))}, but no arr_0; give images, uint8 (N, H, W, C)")
    if others := found - {"arr_0", "arr_1", *NAMES.values()}:
        say(f"{path}: skipped {', '.join(sorted(others))}, which are no images, labels (arr_1) or statistics")
    pixels = read_array(path, "arr_0")
    check(
        pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[-1] in (1, 3) and min(pixels.shape) > 0,
        f"{path}: arr_0 is {pixels.dtype} {pixels.shape}; give uint8 (N, H, W, C), C 1 or 3",
    )
    chunks = (pixels[first : first + 64] for first in range(0, len(pixels), 64))  # the first in colour ends the search
    if pixels.shape[-1] == 3 and all((chunk == chunk[..., :1]).all() for chunk in chunks):
        pixels = pixels[..., :1]
    labels, class_names = torch.zeros(len(pixels), dtype=torch.int64), tuple[str, ...]()
    if "arr_1" in found:
        classes = read_array(path, "arr_1")
        check(
            np.issubdtype(classes.dtype, np.integer)
            and classes.shape == pixels.shape[:1]
            and 0 <= classes.min() <= classes.max() < MOST_CLASSES,
            f"{path}: arr_1 is {classes.dtype} {classes.shape}; give a class, 0 or more, for each of {len(pixels)}",
        )
        labels = torch.from_numpy(classes.astype(np.int64))
        class_names = tuple(map(str, range(int(labels.max()) + 1)))
    return Images(Path(path).name, torch.from_numpy(pixels).permute(0, 3, 1, 2), labels, class_names)


def write_statistics(path: str | Path, reference: Reference) -> None:
    """Write an `.npz` of `mu`, `sigma`, and for sFID `mu_s`, `sigma_s`, float64, as public evaluators read it."""
    stored = reference.tensors()
    arrays: dict[str, Any] = {stored_as: stored[name].numpy() for name, stored_as in NAMES.items() if name in stored}
    with replacing(path) as beside, open(beside, "wb") as file:  # to a path numpy would append .npz
        np.savez(file, **arrays)


def read_statistics(path: str | Path, inception: Any) -> Reference:
    """The statistics in an `.npz`; raises a DiffitError if they are of other features than this network's."""
    found, tensors, size = array_names(path), {}, inception.num_features
    wanted: dict[str, tuple[int, ...]] = {"mean": (size,), "covariance": (size, size)}
    if {"mu_s", "sigma_s"} & found:  # most publish none
        size = inception.num_spatial
        wanted |= {"spatial_mean": (size,), "spatial_covariance": (size, size)}
    for name, shape in wanted.items():
        key = NAMES[name]
        check(key in found, f"{path} holds {', '.join(sorted(found))}, but no {key}; give complete statistics")
        values = read_array(path, key)
        check(
            values.shape == shape and np.issubdtype(values.dtype, np.floating),
            f"{path}: {key} is {values.dtype} {values.shape}, and {inception.name} has float {shape}; "
            "give statistics of the same features",
        )
        check(bool(np.isfinite(values).all()), f"{path}: {key} is not finite; give statistics of sound features")
        tensors[name] = torch.from_numpy(values.astype(np.float64))
    return Reference(**tensors)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file as a zip; any problem with it becomes an error of one line."""
    check(path.is_file(), f"there is no file {path}; give the path of an .npz")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except Exception as error:  # a broken file may raise nearly anything
        what = f"{path} is no whole .npz of plain arrays ({reason_of(error)})"
        raise DiffitError(f"{what}; write or download it anew") from error


def array_names(path: str | Path) -> set[str]:
    """The names of the arrays in a file."""
    with _opened(Path(path)) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def read_array(path: str | Path, name: str) -> np.ndarray:
    """One array of numbers of a file. An uncompressed one is memory-mapped: only what is used of it is read."""
    path = Path(path)
    with _opened(path) as archive, archive.open(f"{name}.npy") as entry:
        start = archive.fp.tell()  # of the entry's content: zipfile has just read its header
        stored, head = archive.getinfo(f"{name}.npy"), BytesIO(entry.read(HEADER))
        if (version := npy.read_magic(head)) not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"{name} is of version {version}, which nobody knows")
        shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(head)
        if dtype.kind not in "biuf" or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name} is {dtype} {shape}, no numbers or no shape; objects are never unpickled")
        if math.prod(shape) * dtype.itemsize != stored.file_size - head.tell():
            raise ValueError(f"{name} says it is {dtype} {shape}, and holds {stored.file_size - head.tell()} bytes")
        if stored.compress_type != zipfile.ZIP_STORED:
            if stored.file_size > max(LARGE, RATIO * stored.compress_size):
                raise ValueError(f"{name} would grow from {stored.compress_size} to {stored.file_size} bytes")
            entry.seek(0)
            return npy.read_array(entry, allow_pickle=False)
        # copy on write: torch takes no read-only memory
        return np.memmap(path, dtype, "c", start + head.tell(), shape, "F" if fortran else "C")
