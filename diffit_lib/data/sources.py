"""Where images come from: data sets by name, folders and zips, the Hugging Face hub, any torch Dataset.

A source is listed first: references and labels. Images are decoded later, by `preprocess`.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from diffit_lib.data import shards
from diffit_lib.data.folders import check_bytes, file_state, find_images, read
from diffit_lib.data.listing import ImageList, Split, by_part, name_classes, split
from diffit_lib.utils.errors import DiffitError, check, closest, printable, reason_of
from diffit_lib.utils.files import cache_folder, expanded, siblings
from diffit_lib.utils.logging import say

IMAGENETTE_IMAGES = 13_394
TIMEOUT = 20  # seconds to wait for a server's answer
IMAGE, LABEL = ("image", "img"), ("label", "labels", "fine_label")  # usual names of columns, the first that is there
TEST = ("test", "validation", "val", "valid")  # of the hub's splits


def list_images(
    source: str | Path | Dataset, image_size: tuple[int, int] | None = None, *, skip_bad: bool = False
) -> Split[ImageList]:
    """List a data set by name, a folder, zip or shards by path, `hf:NAME`, or a map-style Dataset of (image, label).

    `image_size`, (height, width), is the size wanted later: some named data sets come in several. `skip_bad` leaves out
    a Dataset's items that raise; other unreadable images are found when they are decoded.
    """
    if not isinstance(source, str | Path):
        return split(from_dataset(source, skip_bad=skip_bad))
    if str(source) in NAMED:
        return from_name(str(source), image_size)
    check(bool(str(source)), "no data are named; give a data set by name, or the path of a folder or zip")
    if str(source).startswith("hf:"):
        return from_hub_dataset(str(source))
    path = expanded(source)
    if found := shards.find_shards(path):
        return shards.from_shards(path, found)
    if path.exists():
        return from_folder(path)
    if str(source).lower() in NAMED:  # as torchvision writes it
        return from_name(str(source).lower(), image_size)
    near = closest(str(source).lower(), NAMED) or closest(path.name, (Path(other).name for other in siblings(path)))
    where = path if path.is_absolute() else f"./{path}"
    raise DiffitError(
        f"no data set or path {str(source)!r}: looked for a data set by that name ({', '.join([*NAMED][:5])}, ...; see "
        f"`diffit info`) and for {where}; {near or 'give one that is there'}"
    )


def from_name(name: str, image_size: tuple[int, int] | None) -> Split[ImageList]:
    """List a data set of `NAMED`; it is downloaded to the cache folder the first time."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        return NAMED[name](cache_folder() / "data", image_size)
    except Exception as error:  # torchvision, gdown and the network have no exception in common
        remedy = "Use a folder, a zip or --data digits."
        raise DiffitError(f"Could not download {name} ({reason_of(error)}). {remedy}") from error
    finally:
        socket.setdefaulttimeout(before)


def from_folder(source: Path) -> Split[ImageList]:
    """List a folder or zip; its folders `train` and `test` (or `val`) are the parts, else `split` draws them."""
    files = find_images(source)
    name = printable(source.resolve().name.removesuffix(".zip"))
    classes = name_classes(name, files.labels, files.class_names)
    return by_part(from_files(name, source, files.paths, *classes), files.parts)


def from_files(
    name: str, source: Path, paths: Sequence[str], labels: Tensor, class_names: tuple[str, ...]
) -> ImageList:
    """List these image files below a folder or in a zip."""
    state, threads = partial(file_state, source), os.cpu_count() or 1
    return ImageList(name, paths, partial(read, source), labels, class_names, None, threads, state)


def from_hub_dataset(source: str) -> Split[ImageList]:
    """List `hf:NAME`, its splits `train` and `test` (or `validation`), or `hf:NAME:split`, of which a part is drawn."""
    name, _, part = source.removeprefix("hf:").partition(":")
    try:
        import datasets

        check(int(datasets.__version__.partition(".")[0]) >= 4, f"{source} needs datasets 4, which runs no scripts")
        splits = datasets.load_dataset(name, split=part or None)
    except ImportError:
        raise DiffitError(f"{source} needs the datasets library; pip install datasets, or give a folder") from None
    except DiffitError:
        raise
    except Exception as error:  # of many kinds: offline, no such name, no such split
        why = reason_of(error)
        raise DiffitError(f"{source} cannot be loaded ({why}); check name, split and network") from error
    if part:
        return split(from_hub_split(source, splits))
    train = "train" if "train" in splits else next(iter(splits))
    test = next((name for name in TEST if name in splits and name != train and is_labelled(splits[name])), None)
    if others := [name for name in splits if name not in (train, test)]:
        takes = [f"; {source}:{name} takes it" for name in others if is_labelled(splits[name])]
        say(f"{source}: left out {', '.join(others)}{''.join(takes[:1])}")
    if test is None:
        return split(from_hub_split(source, splits[train]))
    return Split(from_hub_split(source, splits[train]), from_hub_split(source, splits[test]))


def from_hub_split(source: str, data: Any) -> ImageList:
    """List one split: its column of images, and of classes if there is one; images stay encoded until they are used."""
    from datasets import Image

    images = [column for column, feature in data.features.items() if isinstance(feature, Image)]
    columns = ", ".join(data.features)
    check(images != [] and len(data) > 0, f"{source} has no column of images, but {columns}; give another data set")
    image = next((column for column in IMAGE if column in images), images[0])
    name, labels = printable(source.removeprefix("hf:")), torch.zeros(len(data), dtype=torch.int64)
    names: tuple[str, ...] = ()
    if label := label_column(data):
        labels, names = name_classes(name, list(data[label]), getattr(data.features[label], "names", ()))
    reader = partial(read_hub_image, data.cast_column(image, Image(decode=False)), image)
    return ImageList(name, list(map(str, range(len(data)))), reader, labels, names, None, os.cpu_count() or 1)


def label_column(data: Any) -> str | None:
    """The column of a split's classes: of class labels or whole numbers by a usual name, else any of class labels."""
    from datasets import ClassLabel

    classes = [column for column, feature in data.features.items() if isinstance(feature, ClassLabel)]
    whole = [column for column in LABEL if str(getattr(data.features.get(column), "dtype", ""))[:3] == "int"]
    return next((column for column in [*LABEL, *classes] if column in [*classes, *whole]), None)


def is_labelled(data: Any) -> bool:
    """Whether a split has no classes or tells those of its images; -1 stands for classes that are kept secret."""
    column = label_column(data)
    return column is None or len(data) == 0 or data[column][0] not in (-1, None)


def read_hub_image(data: Any, column: str, key: str) -> bytes:
    """The bytes of an image file, in the data set or beside it; a ValueError for more than `MOST_BYTES`."""
    found = data[int(key)][column]
    if found["bytes"] is None:
        path = Path(found["path"])
        return read(path.parent, path.name)
    check_bytes(len(found["bytes"]))
    return found["bytes"]


def from_pixels(name: str, pixels: Tensor, labels: Any, class_names: Sequence[str]) -> ImageList:
    """List images in memory, uint8 (N, C, H, W)."""
    labels = torch.as_tensor(labels, dtype=torch.int64)
    keys = list(map(str, range(len(pixels))))
    return ImageList(name, keys, partial(_image, TensorDataset(pixels)), labels, tuple(class_names), pixels)


def from_dataset(dataset: Any, *, skip_bad: bool = False) -> ImageList:
    """List a Dataset's images, in any form that `preprocess.to_picture` takes.

    torchvision's data sets know their labels. Of others every item is read once for its label; one that raises is an
    error, or with `skip_bad` left out and counted.
    """
    name = type(dataset).__name__
    if not hasattr(dataset, "__len__") or not len(dataset):
        raise DiffitError(f"{name} has no items that can be counted; give a map-style Dataset of (image, label)")
    names = getattr(dataset, "classes", ())
    labels = torchvision_labels(dataset) or read_labels(dataset, skip_bad=skip_bad)
    classes = name_classes(name, list(labels.values()), names if all(isinstance(n, str) for n in names) else ())
    return ImageList(name, list(map(str, labels)), partial(_image, dataset), *classes)


def torchvision_labels(dataset: Any) -> dict[int, int]:
    """Item -> label in torchvision's data sets, without decoding an image; empty for any other Dataset."""
    kind = type(dataset)
    ours = kind.__module__.startswith("torchvision.") and kind.__name__ in ("ImageFolder", *BY_TRAIN, *BY_SPLIT)
    if not ours or getattr(dataset, "target_transform", None):
        return {}
    if kind.__name__ == "GTSRB":
        return {item: label for item, (_, label) in enumerate(dataset._samples)}
    attribute = next(name for name in ("targets", "labels", "_labels") if hasattr(dataset, name))
    return dict(enumerate(np.asarray(getattr(dataset, attribute)).tolist()))


def read_labels(dataset: Any, *, skip_bad: bool) -> dict[int, Any]:
    """Item -> label, of every item that can be read."""
    name, labels = type(dataset).__name__, {}
    for index in range(len(dataset)):
        try:
            item = dataset[index]
        except Exception as error:  # a Dataset of the user's own may raise anything
            if skip_bad:
                continue
            what = f"item {index} of {name} cannot be read ({reason_of(error)})"
            raise DiffitError(f"{what}; fix it, or leave out such items by skip_bad=True") from error
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DiffitError(f"item {index} of {name} is no (image, label); give a map-style Dataset of such pairs")
        labels[index] = item[1]
    check(bool(labels), f"{name}: none of {len(dataset)} items can be read; give others")
    if bad := len(dataset) - len(labels):
        say(f"{name}: skipped {bad} of {len(dataset)} items that cannot be read")
    return labels


def _image(dataset: Any, number: str) -> Any:
    return dataset[int(number)][0]


def digits(root: Path, image_size: tuple[int, int] | None) -> Split[ImageList]:
    """scikit-learn's 1797 real handwritten digits, 8x8 grey scans: 1437 train and 360 test, stratified by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.round(scans * (255 / 16))).byte().view(-1, 1, 8, 8)  # of levels 0..16
    everything = from_pixels("digits", pixels, labels, "0123456789")
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    return Split(everything.take(sorted(train)), everything.take(sorted(test)))


def mnist(root: Path, image_size: tuple[int, int] | None) -> Split[ImageList]:
    """60,000 and 10,000 handwritten digits, 28x28 grey; for any other size in a black frame, 32x32."""
    from torchvision.datasets import MNIST

    frame = 0 if image_size in (None, (28, 28)) else 2
    parts = [MNIST(root, train=train, download=True) for train in (True, False)]
    pixels = [F.pad(part.data, [frame] * 4)[:, None] for part in parts]
    return Split(*[from_pixels("mnist", p, part.targets, "0123456789") for p, part in zip(pixels, parts, strict=True)])


def cifar10(root: Path, image_size: tuple[int, int] | None) -> Split[ImageList]:
    """50,000 and 10,000 photographs of ten kinds of animals and vehicles, 32x32."""
    from torchvision.datasets import CIFAR10

    parts = [CIFAR10(root, train=train, download=True) for train in (True, False)]
    pixels = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in parts]
    return Split(*[from_pixels("cifar10", p, t.targets, t.classes) for p, t in zip(pixels, parts, strict=True)])


def imagenette(root: Path, image_size: tuple[int, int] | None) -> Split[ImageList]:
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
    return Split(*[replace(part, name="imagenette") for part in parts])


def celeba(root: Path, image_size: tuple[int, int] | None) -> Split[ImageList]:
    """162,770 and 19,962 photographs of famous people's faces, 178x218, without classes."""
    from torchvision.datasets import CelebA

    folder = root / "celeba" / "img_align_celeba"
    parts = [CelebA(root, split=part, download=True).filename for part in ("train", "test")]
    labels = [torch.zeros(len(paths), dtype=torch.int64) for paths in parts]
    return Split(*[from_files("celeba", folder, *part, ()) for part in zip(parts, labels, strict=True)])


def from_torchvision(kind: str, root: Path, image_size: tuple[int, int] | None) -> Split[ImageList]:
    """Train and test part of one of torchvision's classification data sets, as they are."""
    datasets = import_module("torchvision.datasets")
    parts = [{"train": True}, {"train": False}] if kind in BY_TRAIN else [{"split": "train"}, {"split": "test"}]
    return Split(*[from_dataset(getattr(datasets, kind)(root, **part, download=True)) for part in parts])


BY_TRAIN = ("FashionMNIST", "KMNIST", "CIFAR100")  # whose constructor takes train=True
BY_SPLIT = ("SVHN", "STL10", "GTSRB", "Flowers102", "Food101")  # and split="train"
NAMED = {"digits": digits, "mnist": mnist, "cifar10": cifar10, "imagenette": imagenette, "celeba": celeba}
NAMED |= {kind.lower(): partial(from_torchvision, kind) for kind in BY_TRAIN + BY_SPLIT}
