"""`pack`: any data set as one zip of PNG files with `dataset.json`, decoded, cropped and resized once."""

import hashlib
import json
import os
import re
import shutil
import zipfile
import zlib
from functools import partial
from io import BytesIO
from pathlib import Path

from torch.utils.data import Dataset

from diffit_lib.data.datasets import check_classes
from diffit_lib.data.preprocess import ToPixels, check_form, decode, decode_each, report_skipped, to_picture, to_pixels
from diffit_lib.data.sources import ImageList, Split, list_images
from diffit_lib.utils.distributed import locked
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import replacing
from diffit_lib.utils.logging import progress, say

PIECE_NAME = re.compile(r"\.?(\d{5}|whole)(\.diffit-[0-9a-f]{8}\.part)?\.zip")
PIECE = 1024  # images in a file of its own until the end: a stopped run repeats at most one such piece


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

    The zip holds 8-bit grey or RGB images of `image_size`, (height, width), by `crop`; None keeps each image's size.
    They are numbered in their order, in folders `train` and `test` where `load_data` finds or draws two parts, so the
    zip trains as its source does. `max_images` takes that many, evenly spread. An unreadable image is an error, or with
    `skip_bad` left out and counted.

    Started again after a stop, it continues: finished pieces lie in a folder beside the zip until the end. The same
    images and settings give the same bytes. A file at `out` is never overwritten: if it was packed from other names or
    with other settings, that is an error.
    """
    check_form(crop, image_size)
    parts = at_most(list_images(source, image_size, skip_bad=skip_bad), max_images)
    check_classes(parts.train)
    folders = dict(zip(("train/", "test/") if len(parts.distinct) > 1 else ("",), parts.distinct, strict=True))
    out = Path(out)
    check(not out.is_dir(), f"{out} is a folder; give the path of a zip")
    beside = out.with_name(f"{out.name}.pieces")
    known = {name: (list(p.keys), p.labels.tolist(), p.class_names) for name, p in folders.items()}
    stamp = hashlib.sha256(json.dumps([known, image_size, crop]).encode()).hexdigest().encode()
    with locked(beside):
        if others := [path.name for path in beside.iterdir() if not is_piece(path)]:
            raise DiffitError(f"{beside} holds {others[0]}, which `pack` did not write; give another path than {out}")
        if out.exists():
            check(is_of(out, stamp), f"{out} is there, damaged or something else; delete it, or give another path")
            say(f"{out} was packed before, from images of the same names; delete it to pack them anew")
        else:
            make = partial(to_pixels, image_size=image_size, crop=crop)
            pieces = write_pieces(folders, beside, make, stamp, skip_bad=skip_bad)
            with replacing(beside / "whole.zip") as whole, zipfile.ZipFile(whole, "w") as archive:
                archive.comment = stamp
                for path in pieces:
                    with zipfile.ZipFile(path) as piece:
                        for name in piece.namelist():
                            add(archive, name, piece.read(name))
                add(archive, "dataset.json", json.dumps(label_table(folders, set(archive.namelist()))).encode())
            os.replace(beside / "whole.zip", out)
        shutil.rmtree(beside, ignore_errors=True)
    return out


def at_most(parts: Split[ImageList], most: int | None) -> Split[ImageList]:
    """These parts, or `most` images of both together, evenly spread."""
    train, total = parts.train, sum(map(len, parts.distinct))
    if most is None or most >= total:
        return parts
    check(most > 0, f"max_images is {most}; give 1 or more")
    chosen = [k * total // most for k in range(most)]
    few = train.take([k for k in chosen if k < len(train)])
    rest = [k - len(train) for k in chosen if k >= len(train)]
    return Split(few, parts.test.take(rest) if rest else few)


def file_name(folder: str, row: int) -> str:
    """An image's path in the zip: its number, since data are read in the order of their names."""
    return f"{folder}{row // 1000:05d}/{row:08d}.png"


def is_of(path: Path, stamp: bytes) -> bool:
    """Whether there is a whole zip with this stamp."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == stamp and archive.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def is_piece(path: Path) -> bool:
    """Whether `pack` wrote this: a zip with a stamp, or one that a kill or a bad disk damaged; by a name of ours."""
    if not PIECE_NAME.fullmatch(path.name) or not path.is_file():
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return re.fullmatch(rb"[0-9a-f]{64}", archive.comment) is not None
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return True


def write_pieces(
    folders: dict[str, ImageList], beside: Path, make: ToPixels, stamp: bytes, *, skip_bad: bool
) -> list[Path]:
    """Write all images in pieces, except for pieces that are there already; the paths of all."""
    paths: list[Path] = []
    name, total = next(iter(folders.values())).name, sum(map(len, folders.values()))
    with progress(total=total, desc=f"packing {name}", unit=" images") as bar:
        for folder, images in folders.items():
            for first in range(0, len(images), PIECE):
                before, piece = bar.n, images.take(range(first, min(first + PIECE, len(images))))
                paths.append(beside / f"{len(paths):05d}.zip")
                if not is_of(paths[-1], stamp):
                    pngs = decode_each(piece, partial(to_png, piece, make), skip_bad=skip_bad)
                    with replacing(paths[-1]) as unfinished, zipfile.ZipFile(unfinished, "w") as archive:
                        archive.comment = stamp
                        for index, png in pngs:
                            add(archive, file_name(folder, first + index), png)
                            bar.update(before + index + 1 - bar.n)
                bar.update(before + len(piece) - bar.n)
    return paths


def to_png(images: ImageList, make: ToPixels, key: str) -> bytes:
    """One image as a PNG file; compressed quickly, which makes it hardly larger."""
    file = BytesIO()
    to_picture(decode(images, key, make)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Add a file, without time or machine."""
    info = zipfile.ZipInfo(name)  # of 1 January 1980
    info.create_system, info.external_attr = 3, 0o644 << 16
    archive.writestr(info, content)


def label_table(folders: dict[str, ImageList], packed: set[str]) -> dict[str, list | None]:
    """The content of `dataset.json`; a DiffitError where no image of a part, or of a class, could be read."""
    labels: list[list[str | int]] = []
    for folder, images in folders.items():
        rows = [row for row in range(len(images)) if file_name(folder, row) in packed]
        report_skipped(images, rows)
        left = images.take(rows)
        if folder != "test/":
            check_classes(left)
        labels += [[file_name(folder, row), label] for row, label in zip(rows, left.labels.tolist(), strict=True)]
    names = list(folders.popitem()[1].class_names)
    return {"labels": labels, "class_names": names} if names else {"labels": None}
