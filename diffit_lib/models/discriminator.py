"""The judge of an autoencoder's training: which patches of an image are real?"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffit_lib.models.blocks import group_norm


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, section 6.1.2): 4x4 convolutions, the first of them strided, one logit per patch.

    Strided as often, up to three times, as leaves a map of four places a side. Groups take the place of its batch
    normalisation, so that a logit depends on its own image alone.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 64):
        super().__init__()
        channels, height, width_in_pixels = shape
        strides = min(3, max(1, min(height, width_in_pixels) // 4).bit_length() - 1)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2 if strides else 1, padding=1)]
        channels = width
        for stride in [2] * (strides - 1) + [1]:
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(channels, 2 * channels, 4, stride, padding=1, bias=False)]
            channels *= 2
            layers += [group_norm(channels)]
        self.body = nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Conv2d(channels, 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> logits (B, 1, h, w)."""
        return self.body(images.contiguous(memory_format=torch.channels_last))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of its logits for real images and for others (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
