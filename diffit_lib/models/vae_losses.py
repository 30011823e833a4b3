"""Losses of the autoencoder's training: LPIPS and a patch discriminator."""

import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS

from diffit_lib.models.blocks import group_norm
from diffit_lib.utils.files import cache_folder, download, published_file

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
SMALLEST = 16  # pixels a side: VGG halves four times


class Perceptual:
    """LPIPS (Zhang et al. 2018) with a frozen VGG-16; not a module, so optimizers and checkpoints do not include it."""

    def __init__(self, vgg: dict[str, Tensor]):
        """`vgg` holds the tensors of torchvision's VGG-16; the linear heads come with torchmetrics."""
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            self.network = _LPIPS(net="vgg", pnet_rand=True).eval().requires_grad_(False)  # random, replaced below
        for name, tensor in self.network.net.state_dict().items():  # "slice2.5.weight" is VGG's "features.5.weight"
            tensor.copy_(vgg["features." + name.partition(".")[2]])

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """Two batches (B, C, H, W) in [-1, 1], grey or RGB, at least 16 pixels a side -> distances (B,) >= 0."""
        return self.network(images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1)).flatten()

    def to(self, device: torch.device) -> "Perceptual":
        """The same, on this device."""
        self.network.to(device)
        return self


def vgg_path() -> Path:
    """The path of VGG's published file in the cache; it may not exist."""
    return cache_folder() / VGG_URL.rpartition("/")[2]


def load_perceptual(path: str | Path | None = None) -> Perceptual:
    """LPIPS with the VGG-16 of torchvision at `path`, by default in the cache, downloaded on first use (528 MB).

    Raises a DiffitError if the file is missing or has another checksum.
    """
    if path is None:
        path = download(VGG_URL, VGG_SHA256, "the weights of VGG-16, which LPIPS needs,", "or set perceptual_weight=0")
    path = published_file(Path(path), VGG_URL, VGG_SHA256, "VGG-16", "")
    return Perceptual(torch.load(path, map_location="cpu", weights_only=True))


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, section 6.1.2): 4x4 convolutions, one logit per patch.

    Up to three are strided, fewer if the map would be smaller than 4x4. Group instead of batch normalisation makes a
    logit independent of the other images.
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
    """The discriminator's hinge loss of its logits for real and for reconstructed images (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
