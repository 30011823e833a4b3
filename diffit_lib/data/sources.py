"""Where pictures come from: data sets by name, folders and zips of image files, any torch Dataset."""

import io
import operator
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from diffit_lib.data.folders import find_images, read, replace_wordnet_ids
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import cache_folder
from diffit_lib.utils.logging import say

FEWEST_TO_SPLIT, LARGEST_TEST_PART = 50, 10_000


@dataclass(frozen=True)
class Pictures:
    """Pictures and their classes; `open` gives them as they are, upright, of any mode and size."""

    name: str
    keys: Sequence[str]  # what names each: its path below a folder or in a zip, its number in a Dataset
    open: Callable[[str], Image.Image]  # by key
    labels: Tensor  # (N,) int64; all 0 where there are no classes
    class_names: tuple[str, ...]  # empty where there are no classes
    pixels: Tensor | None = None  # uint8 (N, C, H, W), where they are in memory already
    threads: int = 1  # how many may open pictures at once

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, indices: Sequence[int]) -> "Pictures":
        """The pictures at these indices."""
        rows = torch.tensor(indices, dtype=torch.int64)
        pixels = None if self.pixels is None else self.pixels[rows]
        return replace(self, keys=[self.keys[i] for i in indices], labels=self.labels[rows], pixels=pixels)


class Parts(NamedTuple):
    """The two parts of a data set."""

    train: Pictures
    test: Pictures


def split(pictures: Pictures) -> Parts:
    """Draw a test part: every picture whose key has a SHA-256 divisible by ten, whatever other pictures there are.

    At most 10,000 are taken, in the shares of their classes, and never all of a class. Fewer than 50 pictures are not
    divided: the train part is the test part too.
    """
    everything, labels = range(len(pictures)), pictures.labels.tolist()
    drawn = [i for i in everything if int.from_bytes(sha256(pictures.keys[i].encode()).digest(), "big") % 10 == 0]
    drawn.sort(key=lambda i: labels[i])
    size = min(len(drawn), LARGEST_TEST_PART)
    test = {drawn[k * len(drawn) // size] for k in range(size)}
    trained = {labels[i] for i in everything if i not in test}
    test -= {labels.index(label) for label in set(labels) - trained}
    if len(pictures) < FEWEST_TO_SPLIT or not test:
        say(f"{pictures.name}: too few images for a test part ({len(pictures)}); the train part is the test part too")
        return Parts(pictures, pictures)
    return Parts(pictures.take([i for i in everything if i not in test]), pictures.take(sorted(test)))


def name_classes(name: str, labels: Sequence[Any], class_names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (N,) int64 and class names, which are numbers where none are given; one class alone counts as none."""
    try:
        numbers = [operator.index(label) for label in labels]
    except TypeError as error:
        raise DiffitError(f"{name}: a label is no whole number ({error}); give class numbers 0, 1, 2, ...") from error
    if not class_names and max(numbers) >= len(numbers):  # then some class below has no image
        hole = min(set(range(len(numbers))) - set(numbers))
        raise DiffitError(f"{name} has no image of class {hole}, '{hole}'; number the classes without holes")
    names = tuple(class_names) or tuple(map(str, range(max(numbers) + 1)))
    for label in (min(numbers), max(numbers)):
        if not 0 <= label < len(names):
            raise DiffitError(f"{name} has the label {label}, but {len(names)} classes; number them from 0 on")
    if len(names) > 1:
        return torch.tensor(numbers), names
    if class_names:
        say(f"{name}: one class only, {names[0]!r}, which counts as no classes")
    return torch.tensor(numbers), ()


IMAGENETTE_IMAGES = 13_394
PATIENCE = 20  # seconds for a server to answer


def find_pictures(
    source: str | Path | Dataset, image_size: tuple[int, int] | None = None, *, skip_bad: bool = False
) -> Parts:
    """The pictures of a data set by name, of a folder or zip by path, or of a map-style Dataset of (image, label).

    `image_size`, (height, width), is that of the images to be made: some named data sets come in several sizes.
    `skip_bad` leaves out a Dataset's items that raise; what else cannot be read shows later.
    """
    if not isinstance(source, str | Path):
        return split(from_dataset(source, skip_bad=skip_bad))
    if str(source) in NAMED:
        return from_name(str(source), image_size)
    path = Path(source).expanduser()
    if path.exists():
        return from_folder(path)
    if str(source).lower() in NAMED:  # as torchvision writes it
        return from_name(str(source).lower(), image_size)
    raise DiffitError(f"unknown data {str(source)!r}; give {', '.join(NAMED)}, or the path of a folder or zip")


def from_name(name: str, image_size: tuple[int, int] | None) -> Parts:
    """A data set of `NAMED`, downloaded to the cache folder where it is not there yet."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        return NAMED[name](cache_folder() / "data", image_size)
    except Exception as error:  # torchvision, gdown and the network have no failure in common
        reason = shorten(str(error), 200)
        raise DiffitError(
            f"{name} cannot be had ({reason}); give the path of a folder or zip, or take digits"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def from_folder(source: Path) -> Parts:
    """A folder or zip of image files, divided by its folders `train` and `test` (or `val`), else by `split`."""
    files = find_images(source)
    name = source.resolve().name.removesuffix(".zip")
    pictures = from_files(
        name, source, files.paths, *name_classes(name, files.labels, replace_wordnet_ids(files.class_names))
    )
    if not any(files.parts):
        return split(pictures)
    test = "test" if "test" in files.parts else next(part for part in files.parts if part != "train")
    return Parts(*[pictures.take([i for i, p in enumerate(files.parts) if p == part]) for part in ("train", test)])


def from_files(name: str, source: Path, paths: Sequence[str], labels: Tensor, class_names: tuple[str, ...]) -> Pictures:
    """Image files below a folder or in a zip."""
    return Pictures(name, paths, partial(_open_file, source), labels, class_names, threads=os.cpu_count() or 1)


def from_pixels(name: str, pixels: Tensor, labels: Any, class_names: Sequence[str]) -> Pictures:
    """Pictures in memory, uint8 (N, C, H, W)."""
    labels = torch.as_tensor(labels, dtype=torch.int64)
    return Pictures(name, _numbers(pixels), partial(_open_pixels, pixels), labels, tuple(class_names), pixels)


def from_dataset(dataset: Any, *, skip_bad: bool = False) -> Pictures:
    """A Dataset's pictures, in any form that `to_picture` takes; every item is looked at once for its label.

    An item that raises is an error, or with `skip_bad` counted, said and left out.
    """
    name = type(dataset).__name__
    if not hasattr(dataset, "__len__") or not len(dataset):
        raise DiffitError(f"{name} has no items that can be counted; give a map-style Dataset of (image, label)")
    labels, readable = [], []
    for index in range(len(dataset)):
        try:
            item = dataset[index]
        except Exception as error:  # whatever a Dataset of the user's own raises
            if skip_bad:
                continue
            reason = shorten(str(error) or type(error).__name__, 200)
            raise DiffitError(
                f"item {index} of {name} cannot be read ({reason}); mend it, or leave such out by skip_bad=True"
            ) from error
        readable.append(index)
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DiffitError(f"item {index} of {name} is no (image, label); give a map-style Dataset of such pairs")
        labels.append(item[1])
    if not readable:
        raise DiffitError(f"{name}: none of {len(dataset)} items can be read; give others")
    if bad := len(dataset) - len(readable):
        say(f"{name}: skipped {bad} of {len(dataset)} items that cannot be read")
    names = getattr(dataset, "classes", ())
    classes = name_classes(name, labels, names if all(isinstance(n, str) for n in names) else ())
    return Pictures(name, list(map(str, readable)), partial(_open_item, dataset), *classes)


def to_picture(image: Any) -> Image.Image:
    """From a PIL image, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W), uint8 or float in [0, 1]."""
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    if isinstance(image, Tensor):
        image = image.movedim(0, -1) if image.ndim == 3 else image
    pixels = np.asarray(image)
    if np.issubdtype(pixels.dtype, np.floating):
        if pixels.min() < 0 or pixels.max() > 1:
            raise ValueError(f"its values go from {pixels.min():g} to {pixels.max():g}, not from 0 to 1")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"its values are {pixels.dtype}, not uint8 or float")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def _numbers(items: Any) -> list[str]:
    return [str(number) for number in range(len(items))]


def _open_file(source: Path, path: str) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(read(source, path)))
    except UnidentifiedImageError as error:
        raise ValueError("of no known image format") from error
    # Pillow takes every JPEG in four inks for one of Adobe's, whose values are inverted
    wrong = picture.format == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info
    return ImageChops.invert(to_picture(picture)) if wrong else to_picture(picture)


def _open_item(dataset: Any, number: str) -> Image.Image:
    return to_picture(dataset[int(number)][0])


def _open_pixels(pixels: Tensor, number: str) -> Image.Image:
    return to_picture(pixels[int(number)])


def digits(root: Path, image_size: tuple[int, int] | None) -> Parts:
    """scikit-learn's 1797 real handwritten digits, 8x8 grey scans: 1437 train and 360 test, stratified by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.round(scans * (255 / 16))).byte().view(-1, 1, 8, 8)  # of levels 0..16
    everything = from_pixels("digits", pixels, labels, "0123456789")
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    return Parts(everything.take(sorted(train)), everything.take(sorted(test)))


def mnist(root: Path, image_size: tuple[int, int] | None) -> Parts:
    """60,000 and 10,000 handwritten digits, 28x28 grey; for any other size in a black frame, 32x32."""
    from torchvision.datasets import MNIST

    frame = 0 if image_size in (None, (28, 28)) else 2
    parts = [MNIST(root, train=train, download=True) for train in (True, False)]
    pixels = [F.pad(part.data, [frame] * 4)[:, None] for part in parts]
    return Parts(*[from_pixels("mnist", p, part.targets, "0123456789") for p, part in zip(pixels, parts, strict=True)])


def cifar10(root: Path, image_size: tuple[int, int] | None) -> Parts:
    """50,000 and 10,000 photographs of ten kinds of animals and vehicles, 32x32."""
    from torchvision.datasets import CIFAR10

    parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]
    pixels = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
    return Parts(
        *[from_pixels("cifar10", p, part.targets, part.classes) for p, part in zip(pixels, parts, strict=True)]
    )


def imagenette(root: Path, image_size: tuple[int, int] | None) -> Parts:
    """9,469 and 3,925 photographs of ten of ImageNet's classes, from the smallest version that is large enough."""
    from torchvision.datasets import Imagenette

    side = max(image_size or (160, 160))
    version = "160px" if side <= 160 else "320px" if side <= 320 else "full"
    folder = root / {"160px": "imagenette2-160", "320px": "imagenette2-320", "full": "imagenette2"}[version]
    if not folder.exists():
        Imagenette(root, size=version, download=True)
    parts = from_folder(folder)
    if sum(map(len, parts)) != IMAGENETTE_IMAGES:
        raise RuntimeError(f"{folder} is not whole, delete it")
    return Parts(*[replace(part, name="imagenette") for part in parts])


def celeba(root: Path, image_size: tuple[int, int] | None) -> Parts:
    """162,770 and 19,962 photographs of famous people's faces, 178x218, without classes."""
    from torchvision.datasets import CelebA

    folder = root / "celeba" / "img_align_celeba"
    parts = [CelebA(root, split=part, download=True).filename for part in ("train", "test")]
    return Parts(
        *[from_files("celeba", folder, paths, torch.zeros(len(paths), dtype=torch.int64), ()) for paths in parts]
    )


def of_torchvision(kind: str, root: Path, image_size: tuple[int, int] | None) -> Parts:
    """Train and test part of one of torchvision's classification data sets, as they are."""
    datasets = import_module("torchvision.datasets")
    parts = [{"train": True}, {"train": False}] if kind in BY_TRAIN else [{"split": "train"}, {"split": "test"}]
    return Parts(*[from_dataset(getattr(datasets, kind)(root, **part, download=True)) for part in parts])


BY_TRAIN = ("FashionMNIST", "KMNIST", "CIFAR100")  # how torchvision wants to be told the part
BY_SPLIT = ("SVHN", "STL10", "GTSRB", "Flowers102", "Food101")
NAMED = {"digits": digits, "mnist": mnist, "cifar10": cifar10, "imagenette": imagenette, "celeba": celeba}
NAMED |= {kind.lower(): partial(of_torchvision, kind) for kind in BY_TRAIN + BY_SPLIT}
