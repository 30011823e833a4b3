"""EDM's augmentation: geometric changes of training images, which the network receives as a label of nine numbers.

Karras et al. 2022, appendix F.2 and table 6. A label of zeros means no change; sampling uses it. Eight numbers for each
image define its change, where 0 is no change:

a0, a1  mirror in x, in y
a2      scale by 2^(a2 / 5)
a3      rotate by a3
a4, a5  stretch by 2^(a5 / 5) along the direction a4, and shrink by as much across it
a6, a7  shift by a6 eighths of the width and a7 eighths of the height
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from diffit_lib.utils.tensors import expand_like


def draw_augmentation(generator: torch.Generator, probability: float) -> Tensor:
    """The numbers a0 to a7 of one image, float32 (8,).

    Each kind of change happens with this probability, except mirroring in x: if augmentation is on, half of the images
    are mirrored.
    """
    happens = torch.rand(6, generator=generator) < probability
    happens[0] = probability > 0
    mirrors = torch.randint(2, (2,), generator=generator)
    angles = (2 * torch.rand(2, generator=generator) - 1) * math.pi
    scale, stretch, *shift = torch.randn(4, generator=generator)
    numbers = torch.stack([*mirrors, scale, *angles, stretch, *shift])
    return numbers * happens[[0, 1, 2, 3, 4, 4, 5, 5]]


def augment(images: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1], (B, C, H, W), and their a0 to a7, (B, 8) -> changed images in [-1, 1], labels (B, 9).

    Images are mirrored, then scaled, rotated, stretched and shifted in one bicubic resampling, with reflection beyond
    the edges. An image whose numbers are all zero is returned unchanged, bit for bit.
    """
    mirror_x, mirror_y, scale, rotation, direction, stretch, *_ = numbers.unbind(1)
    images = torch.where(expand_like(mirror_x > 0, images), images.flip(3), images)
    images = torch.where(expand_like(mirror_y > 0, images), images.flip(2), images)
    grid = F.affine_grid(_output_to_input(numbers, images.shape[2:]), list(images.shape), align_corners=False)
    warped = F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(-1, 1)
    images = torch.where(expand_like((numbers[:, 2:] == 0).all(1), images), images, warped)
    label = [mirror_x, mirror_y, scale, rotation.cos() - 1, rotation.sin()]
    label += [stretch * direction.cos(), stretch * direction.sin(), *numbers[:, 6:].unbind(1)]
    return images, torch.stack(label, dim=1)


def _output_to_input(numbers: Tensor, size: torch.Size) -> Tensor:
    """Affine maps (B, 2, 3) from output to input positions (x, y, 1), in units of half the image, from its centre."""
    scale, angle, direction, stretch, *shift = numbers[:, 2:].unbind(1)
    unscaled = torch.exp2(-scale / 5)[:, None, None] * _rotation(-angle)
    unstretched = _rotation(direction) @ torch.exp2(torch.stack([-stretch, stretch], 1) / 5).diag_embed()
    matrix = unscaled @ unstretched @ _rotation(-direction)  # (B, 2, 2)
    half = numbers.new_tensor([size[1] / 2, size[0] / 2])  # a rotation in pixels, also where H is not W
    matrix = matrix * half / half[:, None]
    return torch.cat([matrix, matrix @ (torch.stack(shift, 1)[:, :, None] / -4)], dim=2)


def _rotation(angle: Tensor) -> Tensor:
    """(B,) -> (B, 2, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
