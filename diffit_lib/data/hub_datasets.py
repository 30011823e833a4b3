"""Data sets of the Hugging Face hub, and local ones of the same form, through the `datasets` library."""

import os
import re
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from diffit_lib.data import folders as files
from diffit_lib.data.folders import MOST_BYTES
from diffit_lib.data.listing import ImageList, Split, name_classes, split
from diffit_lib.utils.errors import DiffitError, check, printable
from diffit_lib.utils.logging import say

IMAGE, LABEL = ("image", "img"), ("label", "labels", "fine_label")  # usual names of columns, the first that is there
TEST = ("test", "validation", "val", "valid")


def from_hub_dataset(source: str) -> Split[ImageList]:
    """List `hf:NAME`, its splits `train` and `test` (or `validation`), or `hf:NAME:split`, of which a part is drawn."""
    name, _, part = re.sub(r"^hf:", "", source).partition(":")
    try:
        import datasets

        check(int(datasets.__version__.partition(".")[0]) >= 4, f"{source} needs datasets 4, which runs no scripts")
        splits = datasets.load_dataset(name, split=part or None)
    except ImportError:
        raise DiffitError(f"{source} needs the datasets library; pip install datasets, or give a folder") from None
    except DiffitError:
        raise
    except Exception as error:  # of many kinds: offline, no such name, no such split
        reason = shorten(str(error) or type(error).__name__, 200)
        raise DiffitError(f"{source} cannot be loaded ({reason}); check name, split and network") from error
    if part:
        return split(listed(source, splits))
    train = "train" if "train" in splits else next(iter(splits))
    test = next((name for name in TEST if name in splits and name != train), None)
    if others := [name for name in splits if name not in (train, test)]:
        say(f"{source}: left out {', '.join(others)}; {source}:{others[0]} takes it")
    if test is None:
        return split(listed(source, splits[train]))
    return Split(listed(source, splits[train]), listed(source, splits[test]))


def listed(source: str, data: Any) -> ImageList:
    """List one split: its column of images, and of classes if there is one; images stay encoded until they are used."""
    from datasets import ClassLabel, Image

    images = [column for column, feature in data.features.items() if isinstance(feature, Image)]
    classes = [column for column, feature in data.features.items() if isinstance(feature, ClassLabel)]
    classes += [column for column in LABEL if str(getattr(data.features.get(column), "dtype", ""))[:3] == "int"]
    columns = ", ".join(data.features)
    check(images != [] and len(data) > 0, f"{source} has no column of images, but {columns}; give another data set")
    image = next((column for column in IMAGE if column in images), images[0])
    name, labels = printable(source.removeprefix("hf:")), torch.zeros(len(data), dtype=torch.int64)
    names: tuple[str, ...] = ()
    if classes:
        label = next((column for column in LABEL if column in classes), classes[0])
        labels, names = name_classes(name, list(data[label]), getattr(data.features[label], "names", ()))
    reader = partial(read, data.cast_column(image, Image(decode=False)), image)
    return ImageList(name, list(map(str, range(len(data)))), reader, labels, names, None, os.cpu_count() or 1)


def read(data: Any, column: str, key: str) -> bytes:
    """The bytes of an image file, in the data set or beside it; a ValueError for more than `MOST_BYTES`."""
    found = data[int(key)][column]
    if found["bytes"] is None:
        path = Path(found["path"])
        return files.read(path.parent, path.name)
    if (size := len(found["bytes"])) > MOST_BYTES:
        raise ValueError(f"{size / 1e6:,.0f} MB are more than {MOST_BYTES / 1e6:,.0f}")
    return found["bytes"]
