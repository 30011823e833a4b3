"""Editing: variations of an image (SDEdit), inpainting, inversion, and interpolation between two images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from diffit_lib.diffusion.denoiser import Denoiser
from diffit_lib.diffusion.guidance import Wrapper
from diffit_lib.models.latent_space import Space
from diffit_lib.utils.errors import check
from diffit_lib.utils.tensors import to_float

# (denoiser, standard normal noise, falling levels) -> the denoiser, state and levels that the sampler runs with
Start = Callable[[Denoiser, Tensor, Tensor], tuple[Denoiser, Tensor, Tensor]]


def from_noise(denoiser: Denoiser, noise: Tensor, sigmas: Tensor) -> tuple[Denoiser, Tensor, Tensor]:
    """Start at the highest noise level."""
    return denoiser, denoiser.initial(noise), sigmas


@dataclass(frozen=True)
class Edit:
    """Images to edit. Sampling starts from them, noised, and runs the last `strength` of the steps (SDEdit).

    SDEdit is Meng et al. 2022. Where `hole` is False the image is known: the denoiser answers with it (as in Song et
    al. 2021, section I.2), and at the end its own pixels take the place of what was drawn.
    """

    images: Tensor  # uint8 (B, C, H, W)
    hole: Tensor  # bool (B, 1, H, W)
    clean: Tensor  # the images as states, float (B, c, h, w): pixels or latents
    strength: float

    @classmethod
    def of(cls, image: Any, mask: Any, strength: float | None, space: Space, shape: Sequence[int], count: int) -> Self:
        """What `Pipeline.batches` takes, checked, for `count` images of `shape` (C, H, W)."""
        images, size = as_images(image, shape), tuple(shape[1:])
        holes = np.ones((1, *size), bool) if mask is None else np.asarray(mask)
        holes = holes[None] if holes.ndim == 2 else holes
        check(
            holes.shape[1:] == size and holes.dtype in (bool, np.uint8),
            f"mask is {holes.dtype} {np.shape(mask)}; give bool or uint8 (height, width) {size}, white where to draw",
        )
        for name, given in (("image", images), ("mask", holes)):
            check(len(given) in (1, count), f"{len(given)} {name}s for {count} seeds; give one, or one per seed")
        holes = holes > holes.max() / 2  # 0 and 1 as well as 0 to 255
        check(bool(holes.any((1, 2)).all()), "mask has no white pixel, so nothing would be drawn; mark what to draw")
        strength = (0.5 if mask is None else 1.0) if strength is None else strength
        check(0 <= strength <= 1, f"strength is {strength}; give a number from 0 (the image) to 1 (from noise alone)")
        return cls(images, torch.from_numpy(holes[:, None]), space.encode(images), strength)

    def take(self, first: int, count: int) -> Self:
        """Those of a batch; a single image or mask serves all."""
        images, hole, clean = (take(part, first, count) for part in (self.images, self.hole, self.clean))
        return replace(self, images=images, hole=hole, clean=clean)

    def begin(self, denoiser: Denoiser, noise: Tensor, sigmas: Tensor) -> tuple[Denoiser, Tensor, Tensor]:
        """Start from the noised images, or in the hole from noise alone at strength 1."""
        steps = len(sigmas) - 1
        sigmas = sigmas[steps - max(1, round(self.strength * steps)) :]
        clean = self.clean.to(noise)
        hole = nn.functional.adaptive_max_pool2d(self.hole.float(), clean.shape[2:]).to(noise.device) > 0
        x = clean + sigmas[0].item() * noise
        if len(sigmas) - 1 == steps:
            x = torch.where(hole, denoiser.initial(noise), x)
        return Inpainter(denoiser, clean, hole), x, sigmas

    def paste(self, drawn: Tensor) -> Tensor:
        """The drawn images, float (B, C, H, W), with the given ones' own pixels outside the hole."""
        rows = slice(len(drawn))  # the others pad
        hole = self.hole[rows] if self.strength else torch.zeros(())
        return torch.where(hole.to(drawn.device) > 0, drawn, to_float(self.images[rows]).to(drawn))


class Inpainter(Wrapper):
    """A denoiser that knows the clean image outside the hole."""

    def __init__(self, denoiser: Denoiser, clean: Tensor, hole: Tensor):
        super().__init__(denoiser)
        self.clean, self.hole = clean, hole

    def with_variance(self, x: Tensor, sigma: float, class_label: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The denoiser's image in the hole, the known one around it; the variance unchanged."""
        denoised, v = self.denoiser.with_variance(x, sigma, class_label)
        return torch.where(self.hole, denoised, self.clean), v


def as_images(image: Any, shape: Sequence[int]) -> Tensor:
    """uint8 (H, W, C) or (N, H, W, C), grey ones also (H, W), as array, tensor or PIL image -> (N, C, H, W)."""
    pixels, (channels, height, width) = np.asarray(image), shape
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    check(
        pixels.shape[1:] == (height, width, channels) and pixels.dtype == np.uint8 and len(pixels) > 0,
        f"image is {pixels.dtype} {np.shape(image)}; these weights take uint8 (height, width, channels) "
        f"{height, width, channels}, one or several",
    )
    return torch.from_numpy(pixels.copy()).movedim(-1, 1)


def upwards(clean: Tensor, denoiser: Denoiser, noise: Tensor, sigmas: Tensor) -> tuple[Denoiser, Tensor, Tensor]:
    """Start at clean images (B, c, h, w), taken as states of the lowest level, and rise (Song et al. 2021, DDIM)."""
    return denoiser, clean.to(noise), sigmas[:-1].flip(0)


def take(rows: Tensor, first: int, count: int) -> Tensor:
    """`count` rows from number `first` on; the last row is repeated beyond the end."""
    return rows[torch.arange(first, first + count, device=rows.device).clamp(max=len(rows) - 1)]


def slerp(ends: Tensor, shares: Tensor) -> Tensor:
    """Spherical interpolation of two standard normal tensors (2, ...) at S shares from 0 to 1: (S, ...).

    A straight line would pass through noise of too little variance in the middle.
    """
    start, end = ends.flatten(1)
    cosine = nn.functional.cosine_similarity(start, end, dim=0)
    angle = torch.arccos(cosine.clamp(-1, 1)).clamp(min=1e-6)  # of two equal ones the line is a point
    weights = torch.sin(torch.stack([1 - shares, shares], 1) * angle) / torch.sin(angle)  # exactly 0 and 1 at the ends
    return torch.einsum("se,e...->s...", weights, ends)


@contextmanager
def mixed_classes(network: Any, ends: Tensor, shares: Tensor) -> Iterator[None]:
    """Inside, the first S labels of a batch are embedded as mixtures of two classes, `ends` (2,), at shares (S,)."""
    table = network.time_token.classes
    start, end = table.weight.detach()[ends]
    mixed = torch.lerp(start, end, shares.to(start)[:, None])

    def mix(_: nn.Module, labels: tuple[Tensor], rows: Tensor) -> Tensor:
        """Guidance may have doubled the batch: its second half asks for no class and stays as it is."""
        return torch.cat([mixed.to(rows), rows[len(mixed) :]])

    with table.register_forward_hook(mix):
        yield
