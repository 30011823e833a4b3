"""Files that are never half-written, and where they live."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

READY_MADE = Path(__file__).resolve().parent.parent / "weights"  # our own weights, beside the package


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
