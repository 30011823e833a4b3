"""Cached latents: what an autoencoder's encoder says of a whole data set, written once, read at every training step.

A folder holds `index.safetensors` (labels, and what the latents are of) and shards 00000.safetensors, 00001..., each
with the moments of some images, (n, 2z, h, w) float16: mean and log-variance, of the images and of their mirror images.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffit_lib.data.datasets import Images, Split
from diffit_lib.models.latent_space import LatentSpace, Space
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import replacing
from diffit_lib.utils.logging import say

FORMAT = "diffit-latents-1"  # the one key of a file's metadata: several would come in any order
SHARD = 2048  # images in a file
INDEX = "index.safetensors"


@dataclass
class Shards:
    """All moments of a folder as one tensor would be: `shape`, a length, and rows by their indices."""

    folder: Path
    shape: tuple[int, ...]
    name: str  # of the tensor in each file
    opened: dict[int, Tensor] = field(default_factory=dict, repr=False)  # memory-mapped, by each process for itself

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Tensor | list[int]) -> Tensor:
        rows = torch.as_tensor(indices)
        return torch.stack([self.shard(number)[row] for number, row in zip(*divide(rows), strict=True)])

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


def divide(rows: Tensor) -> tuple[list[int], list[int]]:
    """The number of each row's file, and its place in there."""
    return (rows // SHARD).tolist(), (rows % SHARD).tolist()


@dataclass(frozen=True)
class CachedLatents(Images):
    """Images as the moments of their latents: `images` are float16 `Shards`."""

    mirror_images: Shards | None = None
    source: str = ""  # the images' fingerprint and the autoencoder's checksum

    run = 64  # 1 MB at 32x32 places: one page fault reads some of them, and all are asked for while it is in memory

    def fetch(self, indices: list[int], mirrored: list[bool]) -> Tensor:
        """Moments at these indices, (B, 2z, h, w), some of them of the mirror image."""
        moments = self.images[indices]
        if any(mirrored):
            assert self.mirror_images is not None, "mirrored latents are encoded where they are asked for"
            flips = [number for number, flip in enumerate(mirrored) if flip]
            moments[flips] = self.mirror_images[[indices[number] for number in flips]]
        return moments

    def fingerprint(self) -> str:
        """What the latents were made of."""
        return self.source


def write_latents(
    space: LatentSpace,
    images: Images,
    folder: str | Path,
    *,
    mirrored: bool = True,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Encode all images, and with `mirrored` their mirror images, into `folder`; what lies there already is kept.

    Process `rank` of `world` writes every world-th file; the folder is whole when the last of them has finished. Raises
    a DiffitError where the disk is too small, and where the folder holds latents of something else.
    """
    folder, count = Path(folder), len(images)
    source, shape = source_of(space, images), moments_shape(space, images)
    check_source(folder, source)
    numbers = range(ceil(count / SHARD))
    missing = [number for number in numbers[rank::world] if not whole(shard_path(folder, number), source, mirrored)]
    if not missing and is_latents(folder):
        return
    check_disk(folder, len(missing) * min(SHARD, count) * prod(shape) * 2 * (1 + mirrored), images.name)
    for number in missing:
        rows = torch.arange(number * SHARD, min((number + 1) * SHARD, count))
        parts: dict[str, list[Tensor]] = {"moments": [], "mirrored": []}
        for chunk in rows.split(64):
            pixels = images.images[chunk]
            parts["moments"].append(space.moments(pixels).half().cpu())
            if mirrored:
                parts["mirrored"].append(space.moments(pixels.flip(-1)).half().cpu())
            progress(int(chunk[-1]) + 1)
        with replacing(shard_path(folder, number)) as beside:
            tensors = {name: torch.cat(part).contiguous() for name, part in parts.items() if part}
            save_file(tensors, beside, {FORMAT: json.dumps({"source": source})})
    if all(shard_path(folder, number).is_file() for number in numbers):
        about = {"source": source, "name": images.name, "class_names": images.class_names, "shape": (count, *shape)}
        with replacing(folder / INDEX) as beside:
            save_file({"labels": images.labels}, beside, {FORMAT: json.dumps(about | {"mirrored": mirrored})})


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
    return CachedLatents(name, moments, labels, classes, mirror_images if about["mirrored"] else None, about["source"])


def is_latents(folder: str | Path) -> bool:
    """Whether a path is a folder of cached latents."""
    return (Path(folder) / INDEX).is_file()


def source_of(space: Space, images: Images) -> str:
    """What latents are made of: images, then the autoencoder."""
    return images.source if isinstance(images, CachedLatents) else f"{images.fingerprint()}-{space.checksum}"


def moments_shape(space: LatentSpace, images: Images) -> tuple[int, ...]:
    """Shape of one image's moments, (2z, h, w)."""
    return tuple(space.moments(images.images[torch.arange(1)]).shape[1:])


def shard_path(folder: Path, number: int) -> Path:
    """Where the moments of images number * SHARD and on lie."""
    return folder / f"{number:05d}.safetensors"


def whole(path: Path, source: str, mirrored: bool) -> bool:
    """Whether a shard is there, of the same images and autoencoder."""
    found, names = contents(path)
    return found == source and (not mirrored or "mirrored" in names)


def contents(path: Path) -> tuple[str, set[str]]:
    """What a file's latents are of, and the names of its tensors; nothing where it is not there or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()[FORMAT])["source"], set(file.keys())
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return "", set()


def check_source(folder: Path, source: str) -> None:
    """Refuse to write among latents of something else."""
    for path in folder.glob("*.safetensors"):
        found, _ = contents(path)
        check(found in ("", source), f"{folder} holds latents of {found}, not of {source}; give another folder")


def check_disk(folder: Path, size: int, name: str) -> None:
    """Say what is about to be written, and refuse what the disk does not hold."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    check(
        size < free,
        f"the latents of {name} take {size / 1e9:,.1f} GB, but {place} has {free / 1e9:,.1f} GB; give another folder",
    )
    if size > 1_000_000:
        say(f"{name}: {size / 1e6:,.1f} MB of latents into {folder}")


def open_split(folder: str | Path, space: LatentSpace) -> Split:
    """Both parts of a folder that `encode` wrote."""
    return Split(*(open_latents(Path(folder) / part, space) for part in ("train", "test")))
