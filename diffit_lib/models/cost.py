"""What a network costs: parameters, multiply-accumulates (MAC) of its forward pass, memory in training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig
from diffit_lib.models import build_network
from diffit_lib.utils.tensors import autocast


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


class Cost(NamedTuple):
    """What a network takes."""

    parameters: int  # of the network itself
    trained: int  # and of what is trained beside it
    macs: int  # of one forward pass for one image
    activations: int  # bytes that the forward pass of one batch keeps for the backward pass

    @property
    def states(self) -> int:
        """Bytes of what training holds in float32: weights, gradients, Adam's two moments and the network's average."""
        return 4 * (4 * self.trained + self.parameters)


def measure(
    build: Callable[[], list[nn.Module]],
    forward: Callable[[list[nn.Module], Tensor], object],
    shape: tuple[int, ...],
    batch: int = 1,
    precision: str = "32-true",
) -> Cost:
    """The cost of networks, the first of them the one that is wanted, whose forward pass takes images (batch, *shape).

    Counted on fake tensors, so that the largest network takes neither memory nor time. Activations that share memory
    count once; parameters do not count among them.
    """
    kept: dict[int, tuple[Tensor, int]] = {}  # holds the tensors, so that no two get one key

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor, storage.nbytes()
        return tensor

    with torch.device("meta"):
        networks = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in networks:
            network.to_empty(device="cpu")  # autocast and attention do not support the meta device
        images, hooks = torch.zeros(batch, *shape), saved_tensors_hooks(keep, lambda tensor: tensor)
        with MACCounter() as counter, hooks, autocast(torch.device("cpu"), precision):
            answer = forward(networks, images)
        for parameter in (parameter for network in networks for parameter in network.parameters()):
            kept.pop(parameter.untyped_storage()._cdata, None)
        del answer
    return Cost(
        parameters=parameters(networks[0]),
        trained=sum(map(parameters, networks)),
        macs=counter.total // batch,
        activations=sum(count for _, count in kept.values()),
    )


def denoiser_cost(
    config: ImageNetworkConfig | TransformerConfig,
    batch: int = 1,
    precision: str = "32-true",
    checkpointing: bool = False,
) -> Cost:
    """The cost of a denoiser's network, with or without recomputed activations."""

    def build() -> list[nn.Module]:
        network = build_network(config)
        network.checkpointing = checkpointing
        return [network]

    return measure(build, lambda networks, x: networks[0](x, torch.zeros(len(x))), config.shape, batch, precision)


def parameters(network: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(tensor.numel() for tensor in network.parameters())
