"""A folder of drawn images: written one by one, by one process or several, and read back."""

import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.distributed import barrier, rank_info, wait_for
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import csv_text, replacing, sweep, write_text
from diffit_lib.utils.logging import duration, progress, say
from diffit_lib.utils.plots import tile, write_png
from diffit_lib.utils.tensors import PROTOCOLS, seeded_generator

# Where the images end up. The zip, the npz and the grid are made from the PNG files, which are then deleted.
PLACES = {"png": "images", "zip": "images.zip", "npz": "images.npz", "grid": "grid.png"}
LONG = 2.0  # minutes of drawing, from which on they are told before


class Selection(NamedTuple):
    """One image to draw."""

    seed: int
    label: int | None  # the number of classes means "no class"; None: the network is unconditional
    file: str  # below `images/`


@dataclass(frozen=True)
class SampleWriter:
    """Draws `images` into `folder` and reads them back.

    Process r of n draws the batches r, r + n, ... and writes each image to a PNG file. Images that are already there
    are not drawn again, so a stopped run continues and ends with the same files to the byte.
    """

    pipe: Pipeline
    folder: Path
    images: Sequence[Selection]
    batch_size: int
    settings: dict[str, Any] = field(default_factory=dict)  # of the sampler
    protocol: str = "round"  # from float to uint8, a key of `PROTOCOLS`
    format: str = "png"  # a key of `PLACES`
    after_batch: Callable[[], object] = lambda: None

    def check(self, facts: dict[str, Any]) -> None:
        """Refuse a folder whose `settings.json` is not `facts`, or that holds files but no `settings.json`."""
        path = self.folder / "settings.json"
        if not path.is_file():
            others = rank_info().rank == 0 and self.folder.is_dir() and any(self.folder.glob("[!.]*"))
            check(not others, f"{self.folder} is not empty, and `sample` did not begin it; give another folder")
            return
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DiffitError(f"{path} cannot be read ({error}); give another folder") from error
        for name in [*facts, *found]:
            there, here = found.get(name), facts.get(name)
            what = f"other images ({name} is {there!r} there, {here!r} here)"
            check(there == here, f"{self.folder} holds {what}; give another folder")

    def begin(self, facts: dict[str, Any]) -> None:
        """Write `settings.json`; processes other than the first wait for it."""
        path = self.folder / "settings.json"
        if rank_info().rank == 0 and not path.is_file():
            write_text(path, json.dumps(facts, indent=2) + "\n")
        barrier()
        if rank_info().rank > 0:
            wait_for([path])
            self.check(facts)

    def draw(self) -> None:
        """Draw this process's share of the images that are missing; return once all processes have."""
        rank, world, _ = rank_info()
        share = self.batches()[rank::world]
        left = [batch for batch in share if not all(self.path(image).is_file() for image in batch)]
        if self.joined():  # asked in this order: an archive is whole before its PNG files go
            left = []
        if len(left) > 1 and rank == 0:
            self.foretell(left)
        elif not left and world == 1:
            say(f"{self.folder}: every image was drawn before")
        with progress(total=sum(map(len, left)), desc=f"drawing into {self.folder}", unit=" images") as bar:
            for batch in left:
                for image, picture in zip(batch, self.pictures(batch), strict=True):
                    if not self.path(image).is_file():
                        with replacing(self.path(image)) as beside:
                            Image.fromarray(picture).save(beside, "PNG")
                self.after_batch()
                bar.update(len(batch))
        barrier()

    def foretell(self, batches: Sequence[Sequence[Selection]]) -> None:
        """Say how long drawing these takes, by the time of one step, if that is long."""
        batch, sampling = batches[0], self.pipe.sampling(**self.settings)
        seeds, labels = [image.seed for image in batch], self.labels(batch)
        states = self.pipe.stream(seeds, labels, pad_to=self.batch_size, **self.settings)
        next(states)
        start = time.monotonic()
        next(states, None)
        seconds = (time.monotonic() - start) * sampling.steps * len(batches)
        if seconds > 60 * LONG:
            count, long = sum(map(len, batches)), duration(seconds)
            say(f"drawing {count:,} images takes about {long}; stopped, the same command goes on")

    def read(self) -> Iterator[Tensor]:
        """All drawn images in order, uint8 (B, C, H, W). A DiffitError names a file that was removed."""
        for batch in self.batches():
            wait_for(self.path(image) for image in batch)
            pictures = torch.from_numpy(np.stack([read_png(self.path(image)) for image in batch]))
            # A layout of its own: convolutions round differently in channels-last, which a mere view of it keeps.
            yield pictures.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)

    def batches(self) -> list[Sequence[Selection]]:
        """The images that are drawn at once."""
        return [self.images[k : k + self.batch_size] for k in range(0, len(self.images), self.batch_size)]

    def pictures(self, batch: Sequence[Selection]) -> np.ndarray:
        """The images of one batch, uint8 (B, H, W, 3), or (B, H, W) if they are grey."""
        seeds, labels = [image.seed for image in batch], self.labels(batch)
        (drawn,) = self.pipe.batches(seeds, labels, batch_size=self.batch_size, **self.settings)
        return PROTOCOLS[self.protocol](drawn).permute(0, 2, 3, 1).squeeze(-1).cpu().numpy()

    def labels(self, images: Sequence[Selection]) -> list[int | str] | None:
        """The labels of these images as the pipeline takes them."""
        no_class = self.pipe.card.num_classes
        labels = ["none" if image.label == no_class else image.label for image in images if image.label is not None]
        return labels or None

    def finish(self, columns: int, cells: Sequence[int]) -> None:
        """Of the drawn images, write the grid of images number `cells`, the archive, and last the index."""
        index = self.index()
        if not self.joined():
            paths = [self.path(image) for image in self.images]
            wait_for(paths)
            shown = np.stack([read_png(paths[cell]) for cell in cells])
            write_png(self.folder / "grid.png", tile(shown, columns))
            if self.format == "zip":
                write_zip(self.folder / PLACES["zip"], paths, [image.file for image in self.images], index)
            if self.format == "npz":
                labels = [image.label for image in self.archived() if image.label is not None]
                write_npz(self.folder / PLACES["npz"], list(map(self.path, self.archived())), labels or None)
        if self.format != "png":
            shutil.rmtree(self.folder / "images", ignore_errors=True)
        sweep(self.folder)
        write_text(self.folder / "index.csv", index)

    def joined(self) -> bool:
        """Whether the archive, or the grid where it is all that was asked for, is whole."""
        places = {"grid.png", PLACES[self.format]}
        return self.format != "png" and all((self.folder / name).is_file() for name in places)

    def path(self, image: Selection) -> Path:
        """The PNG file of an image."""
        return self.folder / "images" / image.file

    def archived(self) -> list[Selection]:
        """The images in the order of the archive: shuffled in an `.npz`, of which evaluators split rows in order."""
        order = torch.randperm(len(self.images), generator=seeded_generator("npz")).tolist()
        return [self.images[k] for k in order] if self.format == "npz" else list(self.images)

    def index(self) -> str:
        """The text of `index.csv`: seed, class, class name and file of each image, in the order of the archive."""
        place, names = PLACES[self.format], self.pipe.card.class_names
        rows = []
        for image in self.archived():
            name = names[image.label] if image.label is not None and image.label < len(names) else ""
            file = f"{place}/{image.file}" if self.format in ("png", "zip") else place
            rows.append({"seed": image.seed, "class": image.label, "name": name, "file": file})
        return csv_text(rows)


def read_png(path: Path) -> np.ndarray:
    """A picture, uint8 (H, W, C), C 1 or 3."""
    with Image.open(path) as picture:
        return np.asarray(picture).reshape(picture.height, picture.width, -1)


def write_zip(path: Path, pictures: Sequence[Path], names: Sequence[str], index: str) -> None:
    """Write PNG files under `names`, and the text of their `index.csv`; without times, so that the bytes repeat."""
    with replacing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        for picture, name in zip(pictures, names, strict=True):
            archive.writestr(zipfile.ZipInfo(name), picture.read_bytes())
        archive.writestr(zipfile.ZipInfo("index.csv"), index)


def write_npz(path: Path, pictures: Sequence[Path], labels: Sequence[int] | None) -> None:
    """Write `arr_0`, the pictures one by one as uint8 (N, H, W, C), and `arr_1`, the labels if any as int64 (N,)."""
    shape = (len(pictures), *read_png(pictures[0]).shape)
    with replacing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for picture in pictures:
                file.write(read_png(picture).tobytes())
        if labels is not None:
            with archive.open(zipfile.ZipInfo("arr_1.npy"), "w") as file:
                npy.write_array(file, np.asarray(labels, np.int64))
