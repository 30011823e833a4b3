"""`pack`: any data set as one zip of PNG files with `dataset.json`, decoded, cropped and resized once."""

import hashlib
import json
import os
import shutil
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from torch.utils.data import Dataset
from tqdm.auto import tqdm

from diffit_lib.data.datasets import check_classes
from diffit_lib.data.preprocess import (
    ToPixels,
    check_crop,
    decode,
    each,
    none_readable,
    or_raise,
    tell_skipped,
    to_pixels,
)
from diffit_lib.data.sources import Parts, Pictures, find_pictures, to_picture
from diffit_lib.utils.errors import check
from diffit_lib.utils.files import replacing
from diffit_lib.utils.logging import say

PIECE = 1024  # images that lie in a file of their own until the end: as many a stopped run may have to do again


class Piece(NamedTuple):
    """Some of the images."""

    path: Path  # of their file
    pictures: Pictures
    names: list[str]  # in the zip


def pack(
    source: str | Path | Dataset,
    out: str | Path,
    image_size: tuple[int, int] | None = None,
    *,
    crop: str = "center",
    max_images: int | None = None,
    skip_bad: bool = False,
) -> Path:
    """Write a data set, of any form that `load_data` takes, as one zip that it takes too; return the zip's path.

    It holds 8-bit grey or RGB pictures of `image_size`, (height, width), by `crop`; None keeps the size of each. They
    are numbered in their order, in folders `train` and `test` where `load_data` finds or draws two parts: so the zip
    trains as its source does. Of more than `max_images` pictures that many are taken, evenly spread. One that cannot be
    read is an error, or left out and counted by `skip_bad`.

    Started again after a stop, it goes on: until the end finished pieces lie in a folder beside the zip. The same
    pictures and settings make the same bytes. A file at `out` is never overwritten: it is either what is asked for, as
    far as names and settings tell, or an error.
    """
    check_crop(crop)
    parts = at_most(find_pictures(source, image_size, skip_bad=skip_bad), max_images)
    check_classes(parts.train)
    folders = {"": parts.train} if parts.test is parts.train else {"train/": parts.train, "test/": parts.test}
    out = Path(out)
    beside = out.with_name(f"{out.name}.pieces")
    stamp = stamp_of(folders, image_size, crop)
    if out.exists():
        check(is_of(out, stamp), f"{out} is there already and holds something else; delete it, or give another path")
        say(f"{out} was packed before, from pictures of the same names; delete it to pack them anew")
    else:
        pieces = divide(folders, beside)
        write_pieces(pieces, partial(to_pixels, image_size=image_size, crop=crop), stamp, skip_bad=skip_bad)
        join(pieces, folders, beside / "whole.zip", stamp)
        os.replace(beside / "whole.zip", out)
    shutil.rmtree(beside, ignore_errors=True)
    return out


def at_most(parts: Parts, most: int | None) -> Parts:
    """These parts, or so many pictures of both together, evenly spread."""
    train, test = parts
    total = len(train) if test is train else len(train) + len(test)
    if most is None or most >= total:
        return parts
    check(most > 0, f"max_images is {most}; give 1 or more")
    chosen = [k * total // most for k in range(most)]
    few = train.take([k for k in chosen if k < len(train)])
    rest = [k - len(train) for k in chosen if k >= len(train)]
    return Parts(few, test.take(rest) if rest else few)


def file_name(folder: str, row: int) -> str:
    """What a picture is called in the zip: by its number, since data are read in order of their names."""
    return f"{folder}{row // 1000:05d}/{row:08d}.png"


def divide(folders: dict[str, Pictures], beside: Path) -> list[Piece]:
    """The pieces of all folders, in order."""
    pieces: list[Piece] = []
    for folder, pictures in folders.items():
        for first in range(0, len(pictures), PIECE):
            rows = range(first, min(first + PIECE, len(pictures)))
            names = [file_name(folder, row) for row in rows]
            pieces.append(Piece(beside / f"{len(pieces):05d}.zip", pictures.take(rows), names))
    return pieces


def stamp_of(folders: dict[str, Pictures], image_size: tuple[int, int] | None, crop: str) -> bytes:
    """What tells a zip of these pictures in this form from others, as far as is known without opening them."""
    known = {name: (list(p.keys), p.labels.tolist(), p.class_names) for name, p in folders.items()}
    return hashlib.sha256(json.dumps([known, image_size, crop]).encode()).hexdigest().encode()


def is_of(path: Path, stamp: bytes) -> bool:
    """Whether a whole zip of this stamp is there."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == stamp
    except (OSError, zipfile.BadZipFile):
        return False


def write_pieces(pieces: list[Piece], form: ToPixels, stamp: bytes, *, skip_bad: bool) -> None:
    """Every piece that is not there yet, under one bar for all."""
    total = sum(len(piece.names) for piece in pieces)
    with tqdm(total=total, desc=f"packing {pieces[0].pictures.name}", unit=" images", leave=False) as bar:
        for path, pictures, names in pieces:
            if is_of(path, stamp):
                bar.update(len(names))
                continue
            with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
                archive.comment = stamp
                for name, png in zip(names, each(pictures, partial(to_png, pictures, form)), strict=True):
                    if not skip_bad or isinstance(png, bytes):
                        add(archive, name, or_raise(png))
                    bar.update()


def to_png(pictures: Pictures, form: ToPixels, key: str) -> bytes:
    """One picture as a PNG file; compressed quickly, which is hardly larger."""
    file = BytesIO()
    to_picture(decode(pictures, key, form)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """A file that tells nothing of when and where it was packed."""
    info = zipfile.ZipInfo(name)  # of 1 January 1980
    info.create_system, info.external_attr = 3, 0o644 << 16
    archive.writestr(info, content)


def join(pieces: list[Piece], folders: dict[str, Pictures], whole: Path, stamp: bytes) -> None:
    """The zip, from all pieces."""
    with zipfile.ZipFile(whole, "w") as archive:
        archive.comment = stamp
        for path, *_ in pieces:
            with zipfile.ZipFile(path) as piece:
                for name in piece.namelist():
                    add(archive, name, piece.read(name))
        add(archive, "dataset.json", json.dumps(table(folders, set(archive.namelist()))).encode())


def table(folders: dict[str, Pictures], packed: set[str]) -> dict[str, list | None]:
    """What `dataset.json` says of the packed files; a part or a class of which none could be read is an error."""
    labels: list[list[str | int]] = []
    for folder, pictures in folders.items():
        rows = [row for row in range(len(pictures)) if file_name(folder, row) in packed]
        if not rows:
            raise none_readable(pictures)
        left = pictures.take(rows)
        if folder != "test/":
            check_classes(left)
        tell_skipped(pictures, sorted(set(range(len(pictures))) - set(rows)))
        labels += [[file_name(folder, row), label] for row, label in zip(rows, left.labels.tolist(), strict=True)]
    names = list(folders.popitem()[1].class_names)
    return {"labels": labels, "class_names": names} if names else {"labels": None}
