"""LPIPS: how far apart two images look to a network that knows photographs (Zhang et al. 2018)."""

import warnings
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.image.lpips import _LPIPS

from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import cache_folder, download, sha256

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
SMALLEST = 16  # pixels a side that VGG's four halvings take


class Perceptual:
    """LPIPS over VGG-16, frozen; no module, so that no optimizer, average or checkpoint sees it."""

    def __init__(self, network: _LPIPS):
        self.network = network.eval().requires_grad_(False)

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1], grey or RGB, 16 pixels a side or more -> distances (B,) of 0 or more."""
        return self.network(images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1)).flatten()

    def to(self, device: torch.device) -> "Perceptual":
        """The same, on this device."""
        self.network.to(device)
        return self


def vgg_path() -> Path:
    """Where the cache keeps VGG's published file, if it has been downloaded."""
    return cache_folder() / VGG_URL.rpartition("/")[2]


def load_perceptual(path: str | Path | None = None) -> Perceptual:
    """LPIPS with VGG-16 from its published file: at `path`, else in the cache, else downloaded there (528 MB).

    The linear heads come with torchmetrics. Raises a DiffitError where the file cannot be had, or is another one.
    """
    if path is None:
        path = download(VGG_URL, VGG_SHA256, "the weights of VGG-16, which LPIPS needs,", "or set perceptual_weight=0")
    path = Path(path)
    check(path.is_file(), f"there are no VGG-16 weights at {path}; download them from {VGG_URL}")
    if (found := sha256(path)) != VGG_SHA256:
        raise DiffitError(
            f"{path} is not the published VGG-16 (SHA-256 {found[:8]}..., not {VGG_SHA256[:8]}...); "
            f"delete it and download {VGG_URL} anew"
        )
    return perceptual_from(torch.load(path, map_location="cpu", weights_only=True))


def perceptual_from(vgg: dict[str, Tensor]) -> Perceptual:
    """LPIPS around these tensors of torchvision's VGG-16."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        network = _LPIPS(net="vgg", pnet_rand=True)  # random, for the real ones come now
    for name, tensor in network.net.state_dict().items():  # "slice2.5.weight" is torchvision's "features.5.weight"
        tensor.copy_(vgg["features." + name.partition(".")[2]])
    return Perceptual(network)
