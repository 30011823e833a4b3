"""Pictures and files of them for the tests of data, and what a refusal looks like."""

import re
import shutil
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from diffit_lib.data.datasets import load_data
from diffit_lib.utils.errors import DiffitError

COLOURS = ("blue", "green", "red")


def plain(colour="red", size=(8, 8)):
    return Image.new("RGB", size, colour)


def noise(seed, height=8, width=8):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(picture):
    """The bytes of a PNG file."""
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def fill(folder, files):
    """Write pictures, or the bytes of other files, below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Image.Image):
            content.save(path)
        else:
            path.write_bytes(content)
    return folder


def zipped(folder):
    return shutil.make_archive(str(folder), "zip", folder)


def only_image(folder, **options):
    images = load_data(folder, **options).train.images
    assert len(images) == 1
    return images[0]


def one_line(caught):
    """The message, which has to be one line."""
    message = str(caught.value)
    assert "\n" not in message
    return message


def refused(source, pattern, **options):
    with pytest.raises(DiffitError) as caught:
        load_data(source, **options)
    assert re.search(pattern, one_line(caught))
