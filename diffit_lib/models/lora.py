"""Low-rank adaptation (Hu et al. 2022): W + B A in each linear layer, of which only A and B are trained."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

ORIGINAL = ".parametrizations.weight.original"


class LowRank(nn.Module):
    """Adds B A to a weight (out, in): A is (rank, in) and random, B (out, rank) and 0 at first."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(torch.randn(rank, inputs) * inputs**-0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with what was learned."""
        return weight + self.up @ self.down


def add_lora(network: nn.Module, rank: int) -> None:
    """Freeze a network but for a `LowRank` in each linear layer, and its embeddings of classes, which may be new."""
    network.requires_grad_(False)
    for layer in list(network.modules()):
        if isinstance(layer, nn.Linear):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
        if isinstance(layer, nn.Embedding):
            layer.requires_grad_(True)


def merged(module: nn.Module) -> dict[str, Tensor]:
    """The module's tensors, with what `LowRank` learned added to the weights; other modules' as they are."""
    tensors = module.state_dict()
    layers = [name.removesuffix(ORIGINAL) for name in tensors if name.endswith(ORIGINAL)]
    plain = {name: tensor for name, tensor in tensors.items() if ".parametrizations." not in name}
    weights: dict[str, Any] = {f"{name}.weight": module.get_submodule(name).weight for name in layers}
    return plain | {name: weight.detach() for name, weight in weights.items()}
