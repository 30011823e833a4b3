"""What a network costs: parameters and multiply-accumulates."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig
from diffit_lib.models import build_network


def cost(config: ImageNetworkConfig | TransformerConfig) -> tuple[int, float]:
    """Trainable parameters, and the 10^9 products that one answer for one image takes, attention's among them.

    Counted on tensors that hold nothing: the largest network takes no memory.
    """
    with torch.device("meta"):
        network = build_network(config)
    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to_empty(device="cpu")  # autocast and attention know no meta device
        network(torch.zeros(1, *config.shape), torch.zeros(1))
    return parameters(network), counter.get_total_flops() / 2e9


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(tensor.numel() for tensor in network.parameters())
