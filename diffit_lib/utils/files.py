"""Files: written whole or not at all, downloaded, cached."""

import csv
import errno
import hashlib
import io
import os
import shutil
import urllib.error
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from diffit_lib.utils.errors import DiffitError, check

MOST_IMAGES = 10_000_000  # in one folder: more is a typing error, and the list of them would fill the memory
WEIGHTS = "weights.safetensors"  # in a run folder
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"  # our own weights and their cards
os.umask(UMASK := os.umask(0))  # it cannot be read without being set
PLAIN = 0o666 & ~UMASK  # the mode of a new file


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` atomically, on an error it is deleted.

    Its content is on the disk before it gets the name, so a loss of power leaves the old file or the new one, whole. A
    full disk is an OSError with `path`'s folder, whatever library wrote; any other OSError names `path`. Who may read
    it follows the umask, as for a plain file; safetensors alone would let its owner only.
    """
    path = Path(path)
    check(not path.is_dir(), f"{path} is a folder; give the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.diffit-{uuid4().hex[:8]}.part{path.suffix}")
    try:
        yield beside
        beside.chmod(PLAIN)
        with open(beside, "rb") as written:
            os.fsync(written.fileno())
        os.replace(beside, path)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in str(cause):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path.parent)) from error
            cause = cause.__context__
        if isinstance(error, OSError) and str(error.filename) == str(beside):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        beside.unlink(missing_ok=True)


def sweep(folder: str | Path) -> None:
    """Remove temporary files of `replacing` that a kill left below a folder; nobody may be writing there."""
    for left in Path(folder).rglob(".*.diffit-????????.part*"):
        left.unlink()


def link_or_copy(path: str | Path, to: str | Path) -> None:
    """Give a file a second name, `to`, in place of what has it: a hard link where the file system has them."""
    with replacing(to) as beside:
        try:
            os.link(path, beside)
        except OSError:
            shutil.copyfile(path, beside)


def check_disk(folder: Path, size: int, what: str, other: str) -> None:
    """Refuse a disk with fewer free bytes than `size`, which `what` takes."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    check(size < free, f"{what} takes {size / 1e9:.2g} GB, but {there} has {free / 1e9:.2g} GB; give another {other}")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole, or leave the old one."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of a CSV file: the columns of the last row first, then those that only others have."""
    text, columns = io.StringIO(), dict.fromkeys(name for row in (rows[-1], *rows) for name in row)
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, oldest first; none where there is no file."""
    try:
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))) if path.is_file() else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise DiffitError(f"{path} is no CSV file ({error}); delete it, or put the right one there") from error


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """The folder for files that can be made again: $DIFFIT_CACHE, else ~/.cache/diffit."""
    if folder := os.environ.get("DIFFIT_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "diffit"
    except RuntimeError as error:  # no HOME, and a user whom this machine does not know
        raise DiffitError("there is no home folder for the cache; set DIFFIT_CACHE to a folder") from error


def in_cache(url: str) -> Path:
    """Where the cache keeps the file of this URL once it is downloaded."""
    return cache_folder() / url.rpartition("/")[2]


def published_file(path: str | Path | None, url: str, checksum: str, name: str, otherwise: str) -> Path:
    """The file of published weights at `path`, else in the cache, downloaded if need be.

    With a `checksum`, its SHA-256, no other file is taken. The error message says what the weights are of, `name`, and
    what else to do, `otherwise`, which begins with "or".
    """
    import torch.hub

    path, given = Path(path or in_cache(url)), path
    if not given and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:  # writes beside the path, checks, then renames
            torch.hub.download_url_to_file(url, str(path), hash_prefix=checksum)
        except (OSError, RuntimeError) as error:
            what = f"the weights of {name} ({error.reason if isinstance(error, urllib.error.URLError) else error})"
            raise DiffitError(f"Could not download {what}. Put {url} at {path}, {otherwise}") from None
    check(path.is_file(), f"there are no {name} weights at {path}; download them from {url}")
    if checksum and (found := sha256(path)) != checksum:
        what = f"{path} is not the published {name} (SHA-256 {found[:8]}..., not {checksum[:8]}...)"
        raise DiffitError(f"{what}; delete it and download {url} anew")
    return path


def siblings(path: str | Path) -> list[str]:
    """The paths of the files and folders beside `path`, for "did you mean"."""
    path = expanded(path)
    there = path.parent.iterdir() if path.parent.is_dir() else ()
    return [str(found) for found in there if found.name != path.name]


def expanded(path: str | Path) -> Path:
    """This path with the home folder in place of "~" or "~USER"."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise DiffitError(f"{path} cannot be found ({error}); give the path without ~") from error
