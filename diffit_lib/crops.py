"""From a picture of any mode and size to pixels: over white, grey or RGB, cropped and resized."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffit_lib.errors import DiffitError

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")


def to_pixels(
    picture: Image.Image,
    image_size: tuple[int, int] | None = None,
    in_channels: int | None = None,
    crop: str = "center",
) -> Tensor:
    """A picture's pixels, uint8 (C, H, W).

    `image_size` is (height, width) and `crop` one of `CROPS`, which leave a picture of this very size as it is. None
    keeps the picture's own size, and its own channels: 1 where its mode is grey, else 3.
    """
    picture = flatten(picture)
    if in_channels is not None:
        picture = picture.convert("L" if in_channels == 1 else "RGB")
    if image_size is not None:
        picture = CROPS[crop](picture, *image_size)
    pixels = np.array(picture).reshape(picture.height, picture.width, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def flatten(picture: Image.Image) -> Image.Image:
    """Mode L or RGB for any other: 16 bits scaled to 8, transparency laid over white; the first frame of several."""
    grey = picture.mode in GREY_MODES
    if picture.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    if picture.mode.startswith("I"):
        levels = np.asarray(picture)
        pixels = np.rint(np.clip(levels, 0, 65535) / 257).astype(np.uint8)
        pixels[levels == picture.info.get("transparency", -1)] = 255
        picture = Image.fromarray(pixels)
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("L" if grey else "RGB")


def center_crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The largest box of this shape around the centre, resized (Lanczos)."""
    scale = min(picture.height / height, picture.width / width)
    box = centred(picture, max(1, round(height * scale)), max(1, round(width * scale)))
    return box.resize((width, height), Image.Resampling.LANCZOS)


def long_edge(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The whole picture, resized (Lanczos) until its long edge fits, on black."""
    scale = min(height / picture.height, width / picture.width)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return centred(picture.resize(size, Image.Resampling.LANCZOS), height, width)


def adm_crop(picture: Image.Image, height: int, width: int) -> Image.Image:
    """The crop of ADM (Dhariwal and Nichol 2021) and of ImageNet's published numbers.

    Halved by averaging while twice too large, resized (bicubic) until its short edge fits, cropped around the centre.
    """
    while picture.height >= 2 * height and picture.width >= 2 * width:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(height / picture.height, width / picture.width)
    size = round(picture.width * scale), round(picture.height * scale)
    return centred(picture.resize(size, Image.Resampling.BICUBIC), height, width)


def centred(picture: Image.Image, height: int, width: int) -> Image.Image:
    """A box around the centre; where it is larger than the picture, there is black around."""
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


CROPS = {"center": center_crop, "long-edge": long_edge, "adm": adm_crop}


def check_crop(crop: str) -> None:
    """Refuse the name of a crop that is none."""
    if crop not in CROPS:
        raise DiffitError(f"unknown crop {crop!r}; the crops are {', '.join(CROPS)}")
