"""The cost of a network: parameters, multiply-accumulates (MAC) of a forward pass, memory in training."""

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
from diffit_lib.models.layers import linear_pointwise
from diffit_lib.utils.tensors import autocast, on_meta


class MACCounter(TorchFunctionMode):
    """Counts the multiply-accumulates of linear layers, convolutions and attention while it is active.

    As in the papers' tables, element-wise operations and softmax do not count. torch's FlopCounterMode misses the
    attention kernel of CPUs. An `Upsample` counts as the 3x3 convolution it stands for, also where it computes less.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function and add its multiply-accumulates."""
        out = func(*args, **(kwargs or {}))
        if func is torch.matmul:
            self.total += out.numel() * args[0].shape[-1]
        elif func in (F.linear, F.conv2d, linear_pointwise):
            self.total += out.numel() * args[1].shape[1:].numel()  # a dot product for each output
        elif func is F.conv_transpose2d:
            self.total += out.numel() * args[1].shape[0] * 9  # only `Upsample` calls it
        elif func is F.scaled_dot_product_attention:
            query, key, value = args[:3]  # (..., N, d)
            self.total += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return out


class Cost(NamedTuple):
    """The cost of a network and of those trained with it."""

    parameters: int  # of the network
    trained: int  # of all networks in training
    macs: int  # of the forward pass of one image
    activations: int  # bytes that the forward pass of one batch keeps for the backward pass

    @property
    def states(self) -> int:
        """Bytes that training holds in float32: weights, gradients, Adam's two moments, the network's average."""
        return 4 * (4 * self.trained + self.parameters)


def measure(
    networks: list[nn.Module],
    forward: Callable[[Tensor], object],
    shape: tuple[int, ...],
    batch: int = 1,
    precision: str = "32-true",
) -> Cost:
    """Cost of `forward(images)`, (batch, *shape), by networks on "meta", the main one first.

    It runs on fake tensors, so it needs neither the memory nor the time of the network. Activations that share memory
    count once; parameters are not activations.
    """
    kept: dict[int, tuple[Tensor, int]] = {}  # keeps the tensors alive, so that their keys stay unique

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor, storage.nbytes()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in networks:
            network.to_empty(device="cpu")  # autocast and attention do not run on "meta"
        images, hooks = torch.zeros(batch, *shape), saved_tensors_hooks(keep, lambda tensor: tensor)
        with MACCounter() as counter, hooks, autocast(torch.device("cpu"), precision):
            answer = forward(images)
        for parameter in nn.ModuleList(networks).parameters():
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
    """The cost of a denoiser's network; `checkpointing` recomputes activations in the backward pass."""
    with on_meta():
        network = build_network(config)
    network.checkpointing = checkpointing
    return measure([network], lambda x: network(x, torch.zeros(len(x))), config.shape, batch, precision)


def parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
