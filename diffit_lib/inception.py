"""Inception as all published numbers need it: pooled features, logits, and the map that sFID is taken over."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffit_lib.extractors import Inception, load_inception
from diffit_lib.references import Seen


class SpatialInception(nn.Module):
    """Inception, and of each image also the spatial features of sFID (Nash et al. 2021), in ADM's choice of layer.

    ADM takes the tensor "mixed_6/conv:0" of the TensorFlow graph of 2015 and keeps its first 7 channels, 17 x 17 each,
    channels last: 2023 numbers. The graph numbers its mixed blocks from "mixed" on in the order in which they come:
    "mixed", "mixed_1", "mixed_2" are Mixed_5b, 5c, 5d here, "mixed_3" is Mixed_6a, and so "mixed_6" is Mixed_6d. In a
    block, "conv" is the branch of a single 1x1 convolution (the others are called "tower"), and a scope's bare name is
    its last operation, the ReLU after batch norm. So the layer is what `Mixed_6d.branch1x1` returns. torch-fidelity
    converts that graph's weights by the same names. The numbers have not been compared with published ones.
    """

    name = Inception.name
    num_features = Inception.num_features
    CHANNELS = 7
    num_spatial = CHANNELS * 17 * 17

    def __init__(self, inception: Inception):
        super().__init__()
        self.inception, self.checksum = inception, inception.checksum
        self._maps: list[Tensor] = []
        layer: Any = inception.network.Mixed_6d
        layer.branch1x1.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self._maps.append(output[:, : self.CHANNELS].permute(0, 2, 3, 1).flatten(1).cpu())

    def forward(self, images: Tensor) -> Seen:
        """uint8 (N, C, H, W), grey or RGB -> features, logits and spatial features, float32 on the CPU."""
        self._maps.clear()
        features, logits = self.inception(images)
        return Seen(features, logits, torch.cat(self._maps))

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W), grey or RGB -> features (N, 2048), float32 on the CPU."""
        return self(images).features


def load_spatial_inception(path: str | Path | None = None) -> SpatialInception:
    """Inception from its published file, as `load_inception` finds it."""
    return SpatialInception(load_inception(path))
