"""Arrays in `.npz` files of other programs: nothing is unpickled, and large arrays are memory-mapped.

What a file says of an array is compared with what it holds before any memory is taken.
"""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from diffit_lib.utils.errors import DiffitError, check

LOCAL_HEADER = 30  # bytes before an entry's name in a zip
HEADER = 2**16  # bytes in which an array's own header has to end
LARGE, RATIO = 10**9, 100  # bytes; larger arrays must not be compressed to less than a hundredth


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The file as a zip; any problem with it becomes an error of one line."""
    check(path.is_file(), f"there is no file {path}; give the path of an .npz")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except Exception as error:  # a broken file may raise nearly anything
        reason = str(error) or type(error).__name__
        raise DiffitError(f"{path} is no whole .npz of plain arrays ({reason}); write or download it anew") from error


def names(path: str | Path) -> set[str]:
    """The names of the arrays in a file."""
    with _opened(Path(path)) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def array(path: str | Path, name: str) -> np.ndarray:
    """One array of numbers of a file. An uncompressed one is memory-mapped: only what is used of it is read."""
    path = Path(path)
    with _opened(path) as archive, archive.open(f"{name}.npy") as entry:
        stored, head = archive.getinfo(f"{name}.npy"), BytesIO(entry.read(HEADER))
        if (version := npy.read_magic(head)) not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"{name} is of version {version}, which nobody knows")
        shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(head)
        if dtype.kind not in "biuf" or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{name} is {dtype} {shape}, no numbers or no shape; objects are never unpickled")
        if math.prod(shape) * dtype.itemsize != stored.file_size - head.tell():
            raise ValueError(
                f"{name} says that it is {dtype} {shape}, and holds {stored.file_size - head.tell()} bytes"
            )
        if stored.compress_type != zipfile.ZIP_STORED:
            if stored.file_size > max(LARGE, RATIO * stored.compress_size):
                raise ValueError(f"{name} would grow from {stored.compress_size} to {stored.file_size} bytes")
            entry.seek(0)
            return npy.read_array(entry, allow_pickle=False)
        with open(path, "rb") as file:
            file.seek(stored.header_offset)
            local = file.read(LOCAL_HEADER)
        lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        start = stored.header_offset + LOCAL_HEADER + lengths + head.tell()
        # copy on write: torch takes no read-only memory
        return np.memmap(path, dtype, "c", start, shape, "F" if fortran else "C")
