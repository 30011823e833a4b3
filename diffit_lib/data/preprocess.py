"""From a picture of any mode and size to pixels: over white, grey or RGB, cropped and resized."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import ThreadPool
from textwrap import shorten
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm.auto import tqdm

from diffit_lib.data.sources import Pictures
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.logging import say

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


ToPixels = Callable[[Image.Image], Tensor]  # -> uint8 (C, H, W)
T = TypeVar("T")

AHEAD = 32  # pictures that each thread may be ahead of whoever takes them


class UnreadableError(DiffitError):
    """A picture that cannot be decoded."""


def decode(pictures: Pictures, key: str, to_pixels: ToPixels) -> Tensor:
    """One picture's pixels, uint8 (C, H, W)."""
    try:
        return to_pixels(pictures.open(key))
    except Exception as error:  # a broken file may raise nearly anything
        reason = shorten(str(error) or type(error).__name__, 200)
        raise UnreadableError(
            f"{pictures.name}: {key} cannot be read ({reason}); mend or delete it, or leave such out "
            "(--skip-bad, skip_bad=True)"
        ) from error


def first_shape(pictures: Pictures, to_pixels: ToPixels, *, skip_bad: bool) -> tuple[int, ...]:
    """(C, H, W) of the first picture, or with `skip_bad` of the first that can be read."""
    for key in pictures.keys:
        try:
            return tuple(decode(pictures, key, to_pixels).shape)
        except UnreadableError:
            if not skip_bad:
                raise
    raise none_readable(pictures)


def none_readable(pictures: Pictures) -> DiffitError:
    """What is said where all are left out."""
    return DiffitError(
        f"{pictures.name}: none of {len(pictures)} images can be read, the first is {pictures.keys[0]}; give others"
    )


def tell_skipped(pictures: Pictures, bad: Sequence[int]) -> None:
    """Say how many are left out, and which is the first."""
    if bad:
        count, first = f"{len(bad)} of {len(pictures)}", pictures.keys[bad[0]]
        say(f"{pictures.name}: skipped {count} images that cannot be read, the first is {first}")


def each(pictures: Pictures, make: Callable[[str], T]) -> Iterator[T | UnreadableError]:
    """What is made of every picture's key, or why it cannot be read, in order.

    As many threads work ahead as may open these pictures, but not far: whoever takes slowly holds few results. A single
    thread is the caller's own.
    """

    def attempt(key: str) -> T | UnreadableError:
        try:
            return make(key)
        except UnreadableError as error:
            return error

    keys = pictures.keys
    threads = min(pictures.threads, len(keys))
    if threads <= 1:
        yield from map(attempt, keys)
        return
    with ThreadPool(threads) as pool:
        for first in range(0, len(keys), AHEAD * threads):
            yield from pool.imap(attempt, keys[first : first + AHEAD * threads], chunksize=4)


def or_raise(made: T | UnreadableError) -> T:
    """What was made; what cannot be read is an error."""
    if isinstance(made, UnreadableError):
        raise made
    return made


@dataclass(frozen=True)
class Decoder:
    """Pictures decoded when asked for: `decoder[indices]` is a uint8 tensor (B, C, H, W)."""

    pictures: Pictures
    to_pixels: ToPixels
    image_shape: tuple[int, ...]  # (C, H, W), one for all

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return len(self), *self.image_shape

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, indices: Any) -> Tensor:
        chosen = torch.arange(len(self))[indices].tolist()
        pictures = self.pictures.take(chosen)
        if get_worker_info():  # one of several processes that read at the same time
            pictures = replace(pictures, threads=1)
        return torch.stack([or_raise(pixels) for pixels in each(pictures, self.decode)])

    def decode(self, key: str) -> Tensor:
        """One picture's pixels, uint8 `image_shape`; of another shape they are refused."""
        pixels = decode(self.pictures, key, self.to_pixels)
        if pixels.shape != self.image_shape:
            raise DiffitError(
                f"{self.pictures.name}: {key} has (channels, height, width) {tuple(pixels.shape)}, the first image "
                f"{self.image_shape}; give image_size and in_channels, to make all alike"
            )
        return pixels

    def decode_all(self, out: Tensor | None, *, skip_bad: bool) -> list[int]:
        """Decode every picture, into `out` (N, C, H, W) if given, and return the indices of those that can be read.

        An unreadable one is an error, or with `skip_bad` counted, said and left out, without a gap in `out`.
        """
        read: list[int] = []
        bad: list[int] = []
        attempts = each(self.pictures, self.decode)
        bar = tqdm(attempts, self.pictures.name, len(self), leave=False, unit=" images", delay=3)
        for index, pixels in enumerate(bar):
            if isinstance(pixels, UnreadableError):
                if not skip_bad:
                    raise pixels
                bad.append(index)
                continue
            if out is not None:
                out[len(read)] = pixels
            read.append(index)
        if not read:
            raise none_readable(self.pictures)
        tell_skipped(self.pictures, bad)
        return read
