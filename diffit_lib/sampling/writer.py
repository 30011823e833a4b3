"""A folder of drawn images, written one by one by one process or several; after a kill it goes on where it stopped."""

import csv
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from diffit_lib.sampling.grids import FOLLOWED, write_trajectory
from diffit_lib.sampling.pipeline import Labels, Pipeline, per_seed
from diffit_lib.sampling.selection import Selection
from diffit_lib.utils.distributed import rank_info, wait_for
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import replacing, sweep, write_text
from diffit_lib.utils.plots import enlargement, tile, write_png
from diffit_lib.utils.tensors import PROTOCOLS, derive_seed, digest

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


# Where the images end up; all but "images" are written from the files there, which then go.
PLACES = {"png": "images", "zip": "images.zip", "npz": "images.npz", "grid": "grid.png"}


@dataclass(frozen=True)
class SampleWriter:
    """What a folder shall hold; all that its files depend on is in `facts`, which are its `settings.json`."""

    pipe: Pipeline
    folder: Path
    images: list[Selection]
    columns: int  # of the grid, which shows the images of these numbers
    cells: list[int]
    batch_size: int
    settings: dict[str, Any]  # of the sampler
    facts: dict[str, Any]

    def check(self) -> None:
        """Refuse a folder in which something else lies."""
        path = self.folder / "settings.json"
        if not path.is_file():
            strangers = rank_info().rank == 0 and self.folder.is_dir() and any(self.folder.glob("[!.]*"))
            check(not strangers, f"{self.folder} is not empty, and `sample` did not begin it; give another folder")
            return
        try:
            found = dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DiffitError(f"{path} cannot be read ({error}); give another folder") from error
        for name in [*self.facts, *found]:
            there, here = found.get(name), self.facts.get(name)
            check(
                there == here,
                f"{self.folder} holds other images ({name} is {there!r} there, {here!r} here); give another folder",
            )

    def begin(self) -> None:
        """Write `settings.json`, or wait for it where that is another process's part."""
        path = self.folder / "settings.json"
        if rank_info().rank > 0:
            wait_for([path])
            self.check()
        elif not path.is_file():
            write_text(path, json.dumps(self.facts, indent=2) + "\n")

    def draw(self) -> None:
        """Draw this process's share of the images that are not there yet: every world-th batch."""
        rank, world, _ = rank_info()
        batches = [self.images[k : k + self.batch_size] for k in range(0, len(self.images), self.batch_size)]
        share = batches[rank::world]
        with tqdm(total=sum(map(len, share)), desc=f"drawing into {self.folder}", unit=" images", leave=False) as bar:
            for batch in share:
                missing = [image for image in batch if not self.path(image).is_file()]
                if missing and not self.joined():  # in this order: what is joined was there before it was taken away
                    for image, picture in zip(batch, self.pictures(batch), strict=True):
                        if image in missing:
                            write_png(self.path(image), picture)
                bar.update(len(batch))

    def pictures(self, batch: list[Selection]) -> np.ndarray:
        """The images of one batch, uint8 (B, H, W, C)."""
        seeds, labels = [image.seed for image in batch], self.labels(batch)
        (drawn,) = self.pipe.batches(seeds, labels, batch_size=self.batch_size, **self.settings)
        return PROTOCOLS[self.facts["protocol"]](drawn).permute(0, 2, 3, 1).cpu().numpy()

    def labels(self, batch: list[Selection]) -> list[int | str] | None:
        """The labels of these images as the pipeline takes them."""
        none = self.pipe.card.experiment.network.num_classes
        labels = ["none" if image.label == none else image.label for image in batch if image.label is not None]
        return labels or None

    def finish(self) -> None:
        """Once all images are there: the grid, the one file they go into, the trajectory, and last the index."""
        form, index = self.facts["format"], self.index()
        if not self.joined():
            paths = [self.path(image) for image in self.images]
            wait_for(paths)
            shown = np.stack([read_png(paths[cell]) for cell in self.cells])
            write_png(self.folder / "grid.png", tile(shown, self.columns, scale=enlargement(shown)))
            if form == "zip":
                write_zip(self.folder / PLACES[form], paths, [image.file for image in self.images], index)
            if form == "npz":
                numbers = [image.label for image in self.images if image.label is not None]
                write_npz(self.folder / PLACES[form], paths, numbers or None)
        if form != "png":
            shutil.rmtree(self.folder / "images", ignore_errors=True)
        if self.facts["trajectory"]:
            each = self.facts["per_class"] or 1
            followed = self.images[::each][:FOLLOWED]
            seeds, labels = [image.seed for image in followed], self.labels(followed)
            write_trajectory(self.folder / "trajectory", self.pipe, seeds, labels, **self.settings)
        sweep(self.folder)
        write_text(self.folder / "index.csv", index)

    def joined(self) -> bool:
        """Whether all images are in the one file already."""
        form = self.facts["format"]
        return form != "png" and (self.folder / "grid.png").is_file() and (self.folder / PLACES[form]).is_file()

    def path(self, image: Selection) -> Path:
        """Where an image lies, at least until all are drawn."""
        return self.folder / "images" / image.file

    def index(self) -> str:
        """The text of `index.csv`: one line for each image, in their order."""
        where, names = PLACES[self.facts["format"]], self.pipe.card.class_names
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["seed", "class", "name", "file"])
        for image in self.images:
            name = names[image.label] if image.label is not None and image.label < len(names) else ""
            file = f"{where}/{image.file}" if where in ("images", "images.zip") else where
            rows.writerow([image.seed, image.label, name, file])
        return text.getvalue()


class SampleCache:
    """A folder of drawn images; `after` is called once each batch is in it."""

    def __init__(self, folder: str | Path, after: Callable[[], None] = lambda: None):
        self.folder, self.after = Path(folder), after
        self.used: set[Path] = set()

    def draw(
        self,
        pipe: Pipeline,
        seeds: Sequence[int],
        labels: Labels,
        *,
        batch_size: int,
        protocol: str = "round",
        **settings: Any,
    ) -> list[Path]:
        """Draw this process's share of the images of `Pipeline.batches`; the files of all batches, in order.

        Those in the folder are not drawn again, and what other weights drew goes out of it.
        """
        each = per_seed(labels, len(seeds))
        sampling, weights = json.dumps(vars(pipe.sampling(**settings))), digest(pipe.denoiser.state_dict())
        for stale in set(self.folder.glob("*.safetensors")) - set(self.folder.glob(f"{weights}-*")):
            stale.unlink(missing_ok=True)
        rank, world, _ = rank_info()
        paths: list[Path] = []
        bar = tqdm(range(0, len(seeds), batch_size), "drawing", unit=" batches", leave=False, delay=3)
        for number, first in enumerate(bar):
            part = slice(first, first + batch_size)
            key = derive_seed(
                sampling, pipe.precision, protocol, batch_size, str(seeds[part]), str(each and each[part])
            )
            paths.append(self.folder / f"{weights}-{key:016x}.safetensors")
            if number % world != rank or paths[-1].is_file():
                continue
            drawn = pipe.batches(seeds[part], each and each[part], batch_size=batch_size, **settings)
            images = torch.cat([PROTOCOLS[protocol](batch).cpu() for batch in drawn])
            with replacing(paths[-1]) as beside:  # an autoencoder may answer channels last, which no file takes
                save_file({"images": images.contiguous()}, beside)
            self.after()
        self.used |= set(paths)
        return paths

    def read(self, paths: Sequence[Path]) -> Iterator[Tensor]:
        """What lies in these files, uint8 (B, C, H, W), each as soon as whoever draws it has written it."""
        for path in paths:
            wait_for([path])
            yield load_file(path)["images"]

    def clear(self) -> None:
        """Delete what was drawn or used, and what a kill left of it; the folder too where nothing else is in it."""
        for path in self.used:
            path.unlink(missing_ok=True)
        sweep(self.folder)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
