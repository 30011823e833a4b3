"""Arrays in `.npz` files of other programs: nothing is unpickled, and large arrays are memory-mapped."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from diffit_lib.utils.errors import DiffitError

LOCAL_HEADER = 30  # bytes before an entry's name in a zip


@contextmanager
def npz_errors(path: Path) -> Iterator[None]:
    """Turn any problem with the file into an error of one line."""
    try:
        yield
    except FileNotFoundError:
        raise DiffitError(f"there is no file {path}; give the path of an .npz") from None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise DiffitError(f"{path} is no whole .npz of plain arrays ({reason}); write or download it anew") from error


def names(path: str | Path) -> set[str]:
    """The names of the arrays in a file."""
    path = Path(path)
    with npz_errors(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def array(path: str | Path, name: str) -> np.ndarray:
    """One array of a file. An uncompressed one is memory-mapped: only what is used of it is read."""
    path = Path(path)
    with npz_errors(path), zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as entry:
        stored = archive.getinfo(f"{name}.npy")
        if stored.compress_type != zipfile.ZIP_STORED:
            return npy.read_array(entry, allow_pickle=False)
        version = npy.read_magic(entry)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = header(entry)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, which are never unpickled")
        with open(path, "rb") as file:
            file.seek(stored.header_offset)
            local = file.read(LOCAL_HEADER)
        lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
        start = stored.header_offset + LOCAL_HEADER + lengths + entry.tell()
        # copy on write: torch takes no read-only memory
        return np.memmap(path, dtype, "c", start, shape, "F" if fortran else "C")
