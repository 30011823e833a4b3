"""Files that are never half-written, and where they live."""

import hashlib
import os
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from diffit_lib.utils.errors import DiffitError

MOST_IMAGES = 10_000_000  # drawn into one folder: more is a slip of the finger, and their list alone would fill memory
PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"  # our own weights and their cards


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it replaces `path` in one step, else it vanishes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{uuid4().hex[:8]}.part{path.suffix}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def sweep(folder: str | Path) -> None:
    """Remove what `replacing` left anywhere below a folder when it was killed; nobody may be writing there."""
    for left in Path(folder).rglob(".*.part*"):
        left.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a whole text file, or leave what was there."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where things that can be made again are kept: $DIFFIT_CACHE, else ~/.cache/diffit."""
    return Path(os.environ.get("DIFFIT_CACHE") or Path.home() / ".cache" / "diffit")


def fetched(url: str, checksum: str, name: str, otherwise: str) -> Path:
    """The file of this URL in the cache folder, downloaded first where it is not there yet.

    A download whose SHA-256 is not `checksum` is refused; `name` and `otherwise`, "or" another way out, are told then.
    """
    import torch.hub

    path = cache_folder() / url.rpartition("/")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:  # writes beside the path, checks, then renames
            torch.hub.download_url_to_file(url, str(path), hash_prefix=checksum)
        except (OSError, RuntimeError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise DiffitError(f"{name} could not be downloaded ({reason}); put {url} at {path}, {otherwise}") from None
    return path
