"""From pictures to pixels: each when it is asked for, or all at once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from textwrap import shorten
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from diffit_lib.errors import DiffitError
from diffit_lib.pictures import Pictures, say

ToPixels = Callable[[Image.Image], Tensor]  # -> uint8 (C, H, W)


class UnreadableError(DiffitError):
    """A picture that cannot be decoded."""


def decode(pictures: Pictures, key: str, to_pixels: ToPixels) -> Tensor:
    """One picture's pixels, uint8 (C, H, W)."""
    try:
        return to_pixels(pictures.open(key))
    except Exception as error:  # a broken file may raise nearly anything
        reason = shorten(str(error) or type(error).__name__, 200)
        raise UnreadableError(
            f"{pictures.name}: {key} cannot be read ({reason}); mend or delete it, or leave such out by skip_bad=True"
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
        return torch.stack([self.decode(self.pictures.keys[index]) for index in chosen])

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
        for index, pixels in enumerate(self._attempts()):
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
        if bad:
            name, first = self.pictures.name, self.pictures.keys[bad[0]]
            say(f"{name}: skipped {len(bad)} of {len(self)} images that cannot be read, the first is {first}")
        return read

    def _attempts(self) -> Iterator[Tensor | UnreadableError]:
        """Every picture's pixels, or why there are none, in order; a single thread is the caller's own."""
        keys, threads = self.pictures.keys, self.pictures.threads
        with ThreadPool(threads) as pool:
            attempts = pool.imap(self._attempt, keys, chunksize=32) if threads > 1 else map(self._attempt, keys)
            yield from tqdm(attempts, self.pictures.name, len(keys), leave=False, unit=" images", delay=3)

    def _attempt(self, key: str) -> Tensor | UnreadableError:
        try:
            return self.decode(key)
        except UnreadableError as error:
            return error
