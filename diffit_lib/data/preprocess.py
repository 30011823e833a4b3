"""From an image as it comes, of any mode and size, to uint8 pixels: decoded, over white, cropped, resized; `look`."""

import io
import logging
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from torch import Tensor

from diffit_lib.data.folders import MOST_BYTES
from diffit_lib.data.sources import ImageList
from diffit_lib.utils.errors import DiffitError, check, printable, reason_of
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import Budget

warnings.filterwarnings("ignore", module=r"PIL\.")  # on damaged metadata, of every image that has some
logging.getLogger("PIL").setLevel(logging.CRITICAL)

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")
# Pillow's names. Others are not opened, whatever a file is called: for EPS, Pillow starts Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
AHEAD = 4  # images that each thread may be ahead of the reader
STRIP = 256  # rows that change their mode at once
MOST_PIXELS = 64_000_000  # of one image: about 800 MB while it is decoded
MOST_HEADER = 65_536  # bytes of a PPM's
FILES, PIXELS = Budget(MOST_BYTES), Budget(MOST_PIXELS)  # of all images that are decoded at once

ToPixels = Callable[[Image.Image], Tensor]  # -> uint8 (C, H, W)
T = TypeVar("T")


class UnreadableError(DiffitError):
    """An image that cannot be decoded."""


def to_picture(image: Any) -> Image.Image:
    """A PIL image from what a source reads; of a file only the header is decoded.

    That is the bytes of a file, a PIL image, an array (H, W) or (H, W, C), or a tensor (H, W) or (C, H, W); arrays and
    tensors are uint8, or float in [0, 1]. Raises a ValueError for anything else, and for more than `MOST_PIXELS`.
    """
    if isinstance(image, bytes):
        Image.init()
        try:
            if image[:1] == b"P":  # a PPM, whose header Pillow reads byte by byte, comments and all
                Image.open(io.BytesIO(image[:MOST_HEADER]), formats=["PPM"])
            picture = Image.open(io.BytesIO(image), formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError as error:
            raise ValueError("of no known image format") from error
        if picture.width * picture.height > MOST_PIXELS:
            raise ValueError(f"{picture.width:,}x{picture.height:,} pixels are more than {MOST_PIXELS:,}")
        return picture
    if isinstance(image, Image.Image):
        return image.copy()  # `flatten` turns it upright
    if isinstance(image, Tensor):
        image = image.movedim(0, -1) if image.ndim == 3 else image
    pixels = np.asarray(image)
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"its values go from {pixels.min():g} to {pixels.max():g}, not from 0 to 1")
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"its values are {pixels.dtype}, not uint8 or float")
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


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
    """Upright, and of mode L or RGB: more bits scaled to 8, transparency laid over white; the first frame of several.

    Takes little more memory than the picture and its result, since strips of it are changed one by one.
    """
    deep_grey = bool(picture.tile) and picture.tile[0][3] == "LA;16B" if isinstance(picture, ImageFile) else False
    # Pillow takes every CMYK JPEG for one of Adobe's, whose values are inverted
    inverted = picture.format == "JPEG" and picture.mode == "CMYK" and "adobe" not in picture.info
    highest = 65535
    if picture.format == "TIFF" and picture.mode.startswith("I"):
        tags = getattr(picture, "tag_v2", {})
        bits, signed = tags.get(258, (1,))[0], tags.get(339, (1,))[0] == 2
        if bits > 16 or signed:
            raise ValueError(f"its pixels are {'signed ' * signed}integers of {bits} bits, of unknown range")
        highest, inverted = 2**bits - 1, tags.get(262) == 0  # white is zero
    if picture.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in ("L", "RGB") and not picture.has_transparency_data:
        return picture
    flat = Image.new("L" if deep_grey or picture.mode in GREY_MODES else "RGB", picture.size)
    for top in range(0, picture.height, STRIP):
        box = (0, top, picture.width, min(top + STRIP, picture.height))
        strip = picture.crop(box)
        if strip.mode.startswith("I"):
            levels = np.asarray(strip)
            if levels.min() < 0 or levels.max() > highest:
                raise ValueError(f"its values go from {levels.min()} to {levels.max()}, not from 0 to {highest}")
            pixels = np.rint(levels / (highest / 255)).astype(np.uint8)
            pixels[levels == picture.info.get("transparency", -1)] = 255
            strip = Image.fromarray(pixels)
        strip = ImageChops.invert(strip) if inverted else strip
        if strip.has_transparency_data:
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip.convert("RGBA"))
        flat.paste(strip.convert(flat.mode), box)
    return flat


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


def check_form(crop: str, image_size: tuple[int, int] | None) -> None:
    """Refuse an unknown crop, and more pixels than an image may have."""
    check(crop in CROPS, f"unknown crop {crop!r}; the crops are {', '.join(CROPS)}")
    height, width = image_size or (1, 1)
    many = f"{width:,}x{height:,} pixels an image are too many"
    check(height * width <= MOST_PIXELS, f"{many}; give {MOST_PIXELS:,} at most")


def decode(images: ImageList, key: str, to_pixels: ToPixels) -> Tensor:
    """One image's pixels, uint8 (C, H, W); an UnreadableError where it cannot be decoded."""
    try:
        with FILES.take(images.state(key)[0] if images.state else 0):
            picture = to_picture(images.read(key))
            with PIXELS.take(picture.width * picture.height):
                picture = flatten(picture)  # lets go of the other
                return to_pixels(picture)
    except Exception as error:  # a broken file may raise nearly anything
        raise UnreadableError(
            f"{images.name}: {key} cannot be read ({reason_of(error)}); mend or delete it, or leave out such images "
            "(--skip-bad, skip_bad=True)"
        ) from error


def decode_each(
    images: ImageList, make: Callable[[str], T], *, skip_bad: bool = False, threads: int | None = None
) -> Iterator[tuple[int, T]]:
    """The index and `make(key)` of every image, in order; an unreadable one raises, or with `skip_bad` is left out.

    As many threads as the source allows (`threads` unless None) work ahead, but not far: a slow reader holds few
    results. A single thread is the caller's own.
    """

    def calls() -> Iterator[Callable[[], T]]:
        workers = min(threads or images.threads, len(images))
        if workers <= 1:
            yield from (partial(make, key) for key in images.keys)
            return
        pool, ahead = ThreadPoolExecutor(workers), deque[Future[T]]()
        try:
            for key in images.keys:
                ahead.append(pool.submit(make, key))
                if len(ahead) == AHEAD * workers:
                    yield ahead.popleft().result
            yield from (future.result for future in ahead)
        finally:
            pool.shutdown(cancel_futures=True)

    for index, call in enumerate(calls()):
        with suppress(*[UnreadableError] * skip_bad):
            yield index, call()


def none_readable(images: ImageList) -> DiffitError:
    """The error where no image can be decoded."""
    which = f"{len(images)} images can be read, the first is {images.keys[0]}"
    return DiffitError(f"{images.name}: none of {which}; give others")


def report_skipped(images: ImageList, readable: Sequence[int]) -> None:
    """Say how many images are left out, and which is the first; raise a DiffitError where none is left."""
    if not readable:
        raise none_readable(images)
    if bad := sorted(set(range(len(images))) - set(readable)):
        count, first = f"{len(bad)} of {len(images)}", images.keys[bad[0]]
        say(f"{images.name}: skipped {count} images that cannot be read, the first is {first}")


@dataclass
class Inspection:
    """What the opened images are."""

    looked: int = 0  # how many were opened
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height), upright -> how many
    modes: Counter[str] = field(default_factory=Counter)  # Pillow's names -> how many
    unreadable: list[str] = field(default_factory=list)  # their keys
    grey: bool = True  # whether none has colour

    @property
    def side(self) -> float:
        """The median of the shorter sides, in pixels."""
        return median(min(size) for size in self.sizes.elements())


def look(*parts: ImageList, most: int | None = None, seconds: float = float("inf")) -> Inspection:
    """Decode at most `most` images of each part for about so many seconds, shared out by the parts' sizes.

    The order is random, and the same every time. Raises a DiffitError where no image of a part can be read.
    """
    found, total = Inspection(), sum(map(len, parts))
    for part in parts:
        start, before = time.monotonic(), found.sizes.total()
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        for index in order[:most].tolist():
            found.looked += 1
            try:
                picture = to_picture(part.read(part.keys[index]))
                mode, flat = picture.mode, flatten(picture)  # decodes the whole file, which may be damaged at its end
            except Exception:  # a broken file may raise nearly anything
                found.unreadable.append(printable(part.keys[index]))
            else:
                found.sizes[flat.size] += 1
                found.modes[mode] += 1
                found.grey &= flat.mode == "L"
            if time.monotonic() - start > seconds * len(part) / total:
                break
        if found.sizes.total() == before:
            raise none_readable(part)
    return found
