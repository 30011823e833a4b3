"""Cached latents: an autoencoder's moments of a whole data set, written once and read at every training step.

A folder holds `index.safetensors` (labels, and what the latents were made of) and shards 00000.safetensors, 00001...,
each with the moments of some images, (n, 2z, h, w) float16: mean and log-variance, also of the mirrored images.
"""

import json
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffit_lib.data.datasets import Images
from diffit_lib.data.sources import Split
from diffit_lib.models.latent_space import LatentSpace, Space
from diffit_lib.utils.distributed import rank_info
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import check_disk, replacing
from diffit_lib.utils.logging import progress, say

FORMAT = "diffit-latents-1"  # the only key of a file's metadata: several would be written in any order
SHARD = 2048  # images in a file
INDEX = "index.safetensors"


@dataclass
class Shards:
    """All moments of a folder, to be used like one tensor: `shape`, a length, and rows by their indices."""

    folder: Path
    shape: tuple[int, ...]
    name: str  # of the tensor in each file
    opened: dict[int, Tensor] = field(default_factory=dict, repr=False)  # memory-mapped, by each process for itself

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Tensor | list[int]) -> Tensor:
        rows = torch.as_tensor(indices).tolist()
        return torch.stack([self.shard(row // SHARD)[row % SHARD] for row in rows])

    def shard(self, number: int) -> Tensor:
        """The moments of one file."""
        if number not in self.opened:
            path = shard_path(self.folder, number)
            try:
                with safe_open(path, "pt") as file:
                    self.opened[number] = file.get_tensor(self.name)
            except (OSError, SafetensorError) as error:
                raise DiffitError(f"{path} cannot be read ({error}); delete it and encode again") from error
        return self.opened[number]

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"opened": {}}  # a worker maps the files itself


@dataclass(frozen=True)
class CachedLatents(Images):
    """Images as the moments of their latents: `images` are float16 `Shards`."""

    mirror_images: Shards  # of which files have none where nobody asked for them
    source: str = ""  # the images' fingerprint and the autoencoder's checksum

    run = 64  # 1 MB at 32x32 places: one page fault reads several of them, and all are used while in memory

    def fetch(self, indices: list[int], mirrored: list[bool]) -> Tensor:
        """Moments at these indices, (B, 2z, h, w) float16, some of them of the mirrored image."""
        moments = self.images[indices]
        if any(mirrored):
            flips = [number for number, flip in enumerate(mirrored) if flip]
            moments[flips] = self.mirror_images[[indices[number] for number in flips]]
        return moments

    def fingerprint(self) -> str:
        """The images' fingerprint and the autoencoder's checksum."""
        return self.source


def write_latents(space: LatentSpace, images: Images, folder: str | Path, *, mirrored: bool = True) -> None:
    """Encode all images, and with `mirrored` their mirrored copies, into `folder`; complete files there are kept.

    One of several processes writes its share of the files; the folder is complete when the last one has finished.
    Raises a DiffitError where the disk is too small, and where the folder holds latents of something else.
    """
    folder, count, (rank, world, _) = Path(folder), len(images), rank_info()
    source, names = source_of(space, images), {"moments", *["mirrored"] * mirrored}
    found = {path: contents(path) for path in folder.glob("*.safetensors")}
    for other, _ in found.values():
        check(other in ("", source), f"{folder} holds latents of {other}, not of {source}; give another folder")
    paths = [shard_path(folder, number) for number in range(ceil(count / SHARD))]
    complete = {path for path, (_, stored) in found.items() if names <= stored}
    missing = [number for number, path in enumerate(paths) if number % world == rank and path not in complete]
    if not missing and found.get(folder / INDEX, ("",))[0]:
        return
    shape = tuple(space.moments(images.images[torch.arange(1)]).shape[1:])
    size = len(missing) * min(SHARD, count) * prod(shape) * 2 * len(names)  # bytes
    check_disk(folder, size, f"encoding {images.name}", "folder")
    if size > 1_000_000:
        say(f"{images.name}: {size / 1e6:,.1f} MB of latents into {folder}")
    with progress(total=count, desc=f"encoding {images.name}", unit=" images") as bar:
        for number in missing:
            rows = torch.arange(number * SHARD, min((number + 1) * SHARD, count))
            parts: dict[str, list[Tensor]] = {name: [] for name in sorted(names)}
            for chunk in rows.split(64):
                pixels = images.images[chunk]
                parts["moments"].append(space.moments(pixels).half().cpu())
                if mirrored:
                    parts["mirrored"].append(space.moments(pixels.flip(-1)).half().cpu())
                bar.update(int(chunk[-1]) + 1 - bar.n)
            with replacing(paths[number]) as beside:
                tensors = {name: torch.cat(part).contiguous() for name, part in parts.items()}
                save_file(tensors, beside, {FORMAT: json.dumps({"source": source})})
    if all(path.is_file() for path in paths):
        about = {"source": source, "name": images.name, "class_names": images.class_names, "shape": (count, *shape)}
        with replacing(folder / INDEX) as beside:
            save_file({"labels": images.labels}, beside, {FORMAT: json.dumps(about)})


def open_latents(folder: str | Path, space: LatentSpace) -> CachedLatents:
    """The latents of a folder; those of another autoencoder are refused."""
    path = Path(folder) / INDEX
    try:
        with safe_open(path, "pt") as file:
            about, labels = json.loads(file.metadata()[FORMAT]), file.get_tensor("labels")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DiffitError(f"{path} is no index of latents ({error!r}); encode the images again") from error
    made_by = about["source"].partition("-")[2]
    check(
        made_by == space.checksum,
        f"{folder} holds latents of the autoencoder {made_by}, not of {space.checksum}; encode the images again, "
        "into another folder",
    )
    name, shape, classes = about["name"], tuple(about["shape"]), tuple(about["class_names"])
    moments, mirror_images = (Shards(Path(folder), shape, tensor) for tensor in ("moments", "mirrored"))
    return CachedLatents(name, moments, labels, classes, mirror_images, about["source"])


def open_split(folder: str | Path, space: LatentSpace) -> Split[Images]:
    """Both parts of a folder that `encode` wrote."""
    return Split(*(open_latents(Path(folder) / part, space) for part in ("train", "test")))


def is_latents(folder: str | Path) -> bool:
    """Whether a path is a folder of cached latents."""
    return (Path(folder) / INDEX).is_file()


def source_of(space: Space, images: Images) -> str:
    """What training sees: the images' fingerprint and, on latents, the autoencoder's checksum."""
    if isinstance(images, CachedLatents):
        return images.source
    return f"{images.fingerprint()}-{space.checksum}" if space.latent else images.fingerprint()


def shard_path(folder: Path, number: int) -> Path:
    """The file with the moments of images number * SHARD and on."""
    return folder / f"{number:05d}.safetensors"


def contents(path: Path) -> tuple[str, set[str]]:
    """What a file's latents were made of, and the names of its tensors; "" and none where it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            about, names = file.metadata() or {}, set(file.keys())
    except (OSError, SafetensorError):
        return "", set()
    check(FORMAT in about, f"{path} holds no latents that `encode` wrote; give another folder")
    try:
        return json.loads(about[FORMAT])["source"], names
    except (KeyError, TypeError, ValueError):
        return "", set()
