"""WebDataset's shards: tar files of `KEY.jpg` beside `KEY.cls` or `KEY.json`, read in place, never unpacked."""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

import torch

from diffit_lib.data.folders import MOST_BYTES, PARTS, SUFFIXES, check_bytes, version_of
from diffit_lib.data.listing import ImageList, Split, by_part, name_classes
from diffit_lib.utils.errors import DiffitError, check, printable, reason_of
from diffit_lib.utils.logging import say

MOST_HEADER = 1_000_000  # bytes of a member's header, and of a label
MOST_DIGITS = 100  # in a row in a long header: Python before 3.11.10 and 3.12.6 takes the square of that to read it
LABELS = (".cls", ".json")


class Member(NamedTuple):
    """Where a file lies in its shard."""

    shard: Path
    offset: int
    size: int


class Headers(io.FileIO):
    """A tar file whose headers alone are read: a header that says it is longer is refused."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As the standard library's, at most `MOST_HEADER` bytes."""
        if size is None or not 0 <= size <= MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        content = super().read(size)
        if size > tarfile.BLOCKSIZE and (most := max(map(len, re.findall(rb"\d+", content)), default=0)) > MOST_DIGITS:
            raise tarfile.ReadError(f"a header with a number of {most} digits")
        return content


def find_shards(source: Path) -> list[Path]:
    """The tar files that a path means: itself, or those in a folder, or in its parts, that holds no images beside."""
    if source.is_file():
        return [source] if source.suffix == ".tar" else []
    folders = [folder for folder in (source, *(source / part for part in PARTS)) if folder.is_dir()]
    entries = [entry for folder in folders for entry in os.scandir(folder) if not entry.name.startswith(".")]
    others = (e.name.lower().endswith(SUFFIXES) or (e.is_dir() and e.name not in PARTS) for e in entries)
    shards = sorted(Path(e.path) for e in entries if e.name.endswith(".tar") and e.is_file())
    return [] if any(others) else shards


def from_shards(source: Path, shards: list[Path]) -> Split[ImageList]:
    """List the images in shards; `train`, `test`, `val` or `valid` in a shard's path is its part, else one is drawn."""
    name = printable(source.resolve().name.removesuffix(".tar"))
    images: dict[str, Member] = {}
    labels, parts, left = list[object](), list[str](), list[str]()
    for shard in shards:
        where = "" if shard == source else f"{shard.relative_to(source).as_posix()}/"
        part = re.search(r"(?:^|[/_.-])(train|test|val|valid)(?=[/_.-])", where)
        samples: dict[str, dict[str, Member]] = {}
        for path, member in members(shard):
            folder, _, file = path.strip("/").rpartition("/")
            key, dot, suffix = file.partition(".")
            files = samples.setdefault(f"{folder}/{key}".lstrip("/"), {})
            if member is None or dot + suffix.lower() in files:
                left.append(path)
            else:
                files[dot + suffix.lower()] = member
        for key, files in sorted(samples.items()):
            suffixes = [suffix for suffix in SUFFIXES if suffix in files]
            left += [f"{key}{suffix}" for suffix in suffixes[1:] or ([] if suffixes else [*files][:1])]
            if not suffixes:
                continue
            path = f"{where}{key}{suffixes[0]}"
            images[path] = files[suffixes[0]]
            labels.append(label_of(path, {kind: files[kind] for kind in LABELS if kind in files}))
            parts.append(part[1] if part else "")
    check(bool(images), f"{source} holds no images (KEY.jpg, KEY.png, ...); give shards of WebDataset that do")
    if left:
        what = f"as {shorten(left[0], 200)}"
        say(f"{source}: left out {len(left)} files (no image of that key, there twice, or no regular file), {what}")
    paths = list(images)
    if None in labels:
        which = paths[labels.index(None)]
        check(not any(label is not None for label in labels), f"{source}: {which} has no .cls, others have; add it")
        classes: tuple[torch.Tensor, tuple[str, ...]] = torch.zeros(len(labels), dtype=torch.int64), ()
    else:
        classes = name_classes(name, labels, ())
    parts = parts if "train" in parts and "" not in parts else [""] * len(parts)
    state, threads = partial(state_of, images), os.cpu_count() or 1
    return by_part(ImageList(name, paths, partial(read, images), *classes, None, threads, state), parts)


def members(shard: Path) -> Iterator[tuple[str, Member | None]]:
    """Names of all in a tar but folders, with the places of regular files; a DiffitError for one that is not whole."""
    size, end = shard.stat().st_size, 0
    try:
        with Headers(shard) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # or they fill the memory
                if archive.offset <= end or info.size < 0 or info.offset_data + info.size > size:
                    raise tarfile.ReadError(f"{info.name} is not whole")
                end = archive.offset
                if not info.isdir():
                    plain = info.isreg() and not info.issparse()
                    yield info.name, Member(shard, info.offset_data, info.size) if plain else None
            rest = os.pread(file.fileno(), MOST_HEADER, archive.offset)  # tarfile takes a broken header as the end
            if not rest or rest.strip(b"\0"):
                raise tarfile.ReadError("it does not end as a tar does")
    except (tarfile.TarError, OSError, ValueError, RecursionError, OverflowError, EOFError, LookupError) as error:
        raise DiffitError(f"{shard} is no whole tar ({reason_of(error)}); copy or download it again") from error


def label_of(path: str, files: dict[str, Member]) -> object:
    """The class number in a sample's .cls, and under "label" or "cls" in its .json; None if there is neither."""
    labels = list[object]()
    for kind, member in files.items():
        try:
            text = read({path: member}, path, MOST_HEADER).decode()
            content = {"label": int(text)} if kind == ".cls" else json.loads(text)
            label = content.get("label", content.get("cls"))
        except (ValueError, AttributeError, RecursionError) as error:
            what = "a number, as 3" if kind == ".cls" else 'JSON, as {"label": 3}'
            why = reason_of(error, 100)
            raise DiffitError(f"{path}: its {kind} cannot be read ({why}); write {what}") from error
        if label is not None:
            labels.append(label)
    if len(labels) == 2 and isinstance(labels[1], int):  # text may name the class
        check(labels[0] == labels[1], f"{path}: its .cls says {labels[0]}, its .json {labels[1]}; keep one")
    return labels[0] if labels else None


def state_of(images: dict[str, Member], key: str) -> tuple[int, str]:
    """The bytes of an image, and where it lies in which shard."""
    return images[key].size, f"{images[key].offset} {version_of(images[key].shard)[1]}"


def read(images: dict[str, Member], key: str, most: int = MOST_BYTES) -> bytes:
    """The bytes of an image; a ValueError where there are more than `most`."""
    shard, offset, size = images[key]
    check_bytes(size, most)
    with open(shard, "rb") as file:
        file.seek(offset)
        return file.read(size)
