"""What a network costs: its parameters, and the multiply-accumulates (MAC) of its forward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig
from diffit_lib.models import build_network


class MACCounter(TorchFunctionMode):
    """Adds up the multiply-accumulates of linear layers, convolutions and attention while it is active.

    It counts by shapes, so that the total does not depend on the kernels of a device or a version of torch. As in the
    papers' tables, element-wise work and softmax do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function and add what it multiplies."""
        out = func(*args, **(kwargs or {}))
        if func in (F.linear, F.conv2d):
            self.total += out.numel() * args[1].shape[1:].numel()  # one dot product with the weight's row per output
        elif func is F.scaled_dot_product_attention:
            query, key, value = args[:3]  # (..., N, d): q k^T, then the weights times v
            self.total += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return out


def cost(config: ImageNetworkConfig | TransformerConfig) -> tuple[int, float]:
    """Trainable parameters, and the GMAC of one forward pass for one image.

    Counted on fake tensors: the largest network takes no memory.
    """
    with torch.device("meta"):
        network = build_network(config)
    with FakeTensorMode(allow_non_fake_inputs=True), MACCounter() as counter, torch.no_grad():
        network.to_empty(device="cpu")  # autocast and attention do not support the meta device
        network(torch.zeros(1, *config.shape), torch.zeros(1))
    return parameters(network), counter.total / 1e9


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(tensor.numel() for tensor in network.parameters())
