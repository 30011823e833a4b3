"""Many pictures in one file, written one by one: a zip of PNG files, or the .npz that public evaluators read."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from diffit_lib.files import replacing

# A ZipInfo without a time is of 1980, so that the same pictures make the same bytes.


def read_png(path: Path) -> np.ndarray:
    """A picture, uint8 (H, W, C), C 1 or 3."""
    with Image.open(path) as picture:
        return np.asarray(picture).reshape(picture.height, picture.width, -1)


def write_zip(path: Path, pictures: Sequence[Path], names: Sequence[str], index: str) -> None:
    """Pictures under their names, as they are, and the text of their `index.csv`."""
    with replacing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        for picture, name in zip(pictures, names, strict=True):
            archive.writestr(zipfile.ZipInfo(name), picture.read_bytes())
        archive.writestr(zipfile.ZipInfo("index.csv"), index)


def write_npz(path: Path, pictures: Sequence[Path], labels: Sequence[int] | None) -> None:
    """`arr_0`, all pictures as uint8 (N, H, W, C), and `arr_1`, their labels as int64 (N,), where there are any."""
    shape = (len(pictures), *read_png(pictures[0]).shape)
    with replacing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for picture in pictures:
                file.write(read_png(picture).tobytes())
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                npy.write_array(file, np.asarray(labels, np.int64))
