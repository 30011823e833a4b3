"""Layers that DiffiT, DiT and the autoencoder share; on CPUs some take a faster way to the same result.

Images are (B, C, H, W), tokens (B, H, W, C) or (B, N, C).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffit_lib.utils.tensors import bf16_by_onednn


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear as a 1x1 convolution of 16 images that copies nothing: x (..., C) with a multiple of 16 rows."""
    images = x.reshape(16, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (16, C, 1, rows / 16), channels last
    return F.conv2d(images, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


AVX2 = torch.backends.cpu.get_cpu_capability() == "AVX2"  # without AVX-512, MKL's product was faster on an EPYC


def onednn_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """The dtype in which this CPU's oneDNN multiplies x (..., C) by a weight, autocast or not; None if it does not.

    PyTorch gives MKL a 1x1 convolution of fewer than 16 images, so x must have a multiple of 16 rows.
    """
    rows, autocast = x.numel() // x.shape[-1], torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    if x.device.type != "cpu" or AVX2 or not torch.backends.mkldnn.is_available() or rows == 0 or rows % 16:
        return None
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    known = dtype == torch.float32 or (dtype == torch.bfloat16 and bf16_by_onednn())
    return dtype if known and (autocast or dtype == weight.dtype) else None


class Linear(nn.Linear):
    """nn.Linear for tokens, computed as a convolution by oneDNN on CPUs where that is faster.

    With AVX-512 that beats MKL's product in float32 on AMD and equals it on Intel; in bf16, measured on AMD only, it
    saves the copy of the bias that F.linear makes first.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        return (pointwise if onednn_dtype(x, self.weight) else F.linear)(x, self.weight, self.bias)


linear_pointwise: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # missing where torch has no oneDNN


def linear_gelu(layer: Linear, x: Tensor) -> Tensor:
    """GELU (tanh form) of layer(x). Without gradients, oneDNN does both in one pass on CPUs with AVX-512."""
    dtype = None if torch.is_grad_enabled() else onednn_dtype(x, layer.weight)
    if dtype is None:
        return gelu(layer(x))
    return linear_pointwise(*(tensor.to(dtype) for tensor in (x, layer.weight, layer.bias)), "gelu", [], "tanh")


SLOPE = 2 * math.sqrt(2 / math.pi)  # tanh-GELU is x sigmoid(SLOPE (x + CUBIC x^3))
CUBIC = 0.044715
PART = 2**17  # elements; what is computed from so many fits into a core's cache
LEAST_ELEMENTS = 2**16 if AVX2 else math.inf  # for fewer, `GELU` costs more than F.gelu; with AVX-512, for any number


class GELU(torch.autograd.Function):
    """GELU (tanh form) by sigmoid, which with AVX2 takes PyTorch a quarter of tanh's time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """x times `gate(x)`."""
        ctx.save_for_backward(x)
        return in_parts(lambda x: gate(x).mul_(x), x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient times the slope."""
        return in_parts(lambda x, grad: gelu_slope(x) * grad, *ctx.saved_tensors, grad)


def gate(x: Tensor) -> Tensor:
    """g = sigmoid(u) for u = SLOPE (x + CUBIC x^3)."""
    return (x * x).mul_(CUBIC * SLOPE).add_(SLOPE).mul_(x).sigmoid_()


def gelu_slope(x: Tensor) -> Tensor:
    """The derivative of x g: g + x u' g (1 - g)."""
    g, x_slope = gate(x), (x * x).mul_(3 * CUBIC * SLOPE).add_(SLOPE).mul_(x)
    return torch.addcmul(g, g, g, value=-1).mul_(x_slope).add_(g)


def in_parts(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """An element-wise function of tensors of one shape, computed `PART` elements at a time."""
    flat, out = [tensor.reshape(-1) for tensor in tensors], torch.empty(tensors[0].shape, dtype=tensors[0].dtype)
    for start in range(0, out.numel(), PART):
        out.view(-1)[start : start + PART] = function(*(tensor[start : start + PART] for tensor in flat))
    return out


def gelu(x: Tensor) -> Tensor:
    """GELU (tanh form); with AVX2 by `GELU` for large tensors, but not within torch.compile and torch.func."""
    large = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel() >= LEAST_ELEMENTS
    if large and not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active():
        return GELU.apply(x)
    return F.gelu(x, approximate="tanh")


def dropout(x: Tensor, p: float) -> Tensor:
    """F.dropout in training; on a CPU one 64-bit random number serves four elements, and p is rounded to 2^-16."""
    if x.device.type != "cpu" or p == 0:
        return F.dropout(x, p)
    numbers = torch.empty(x.numel() // 4 + 1, dtype=torch.int64).random_(-(2**63), None)
    kept = numbers.view(torch.int16)[: x.numel()].view(x.shape) >= round(p * 2**16) - 2**15
    return x * (kept * torch.tensor(1 / (1 - p), dtype=x.dtype))


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v (equation 6) for q, k, v (B, h, N, d) and bias (h, N, N).

    On a CPU two plain products beat the fused kernel, but for float32 without gradients on many tokens. The kernel gets
    the bias in q's dtype, because CUDA mishandles a float32 mask for bf16 queries; on CUDA only those kernels may run
    that accept a mask.
    """
    kept = torch.is_grad_enabled() and q.requires_grad
    if q.device.type == "cpu" and (kept or q.dtype != torch.float32 or q.shape[2] <= 64):
        with torch.autocast("cpu", enabled=False):  # which would copy to float32 and back; softmax sums in float32
            logits = torch.matmul(q * q.shape[-1] ** -0.5, k.mT)
            return torch.matmul((logits if bias is None else logits + bias.to(q.dtype)).softmax(-1), v)
    mask = None if bias is None else bias.to(q.dtype)[None]
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


LEAST_PIXELS = 256  # of all images; for fewer, adding up the weights costs more than it saves
TAPS = ((0, 0, 1), (0, 1, 1), (1, 1, 0), (1, 0, 0))  # row a: the rows of a 3x3 kernel in row a of its 4x4 kernel


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution.

    On a CPU, `upsample_conv` replaces both for larger inputs; hooks of `conv` do not run then. In bf16 it does not,
    because a training step with it took longer.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        half = x.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled("cpu")
        if x.device.type == "cpu" and not half and x.numel() >= LEAST_PIXELS * x.shape[1]:
            return upsample_conv(x, self.conv.weight, self.conv.bias)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`Upsample` as one transposed convolution of 4x4 kernels: 4/9 of the multiplications, nothing upsampled in memory.

    A pixel that upsampling repeats meets several weights of the 3x3 kernel; these are added up first.
    """
    with torch.autocast("cpu", enabled=False):
        taps = torch.tensor(TAPS, dtype=weight.dtype)
        weight = torch.einsum("ar,bs,oirs->ioab", taps, taps, weight)
    return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)


class GroupNorm(nn.GroupNorm):
    """Computes in its own precision under autocast too: on a CPU a bf16 step is 7 to 16 % faster for it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return super().forward(x.to(self.weight.dtype))


def group_norm(channels: int) -> GroupNorm:
    """EDM's group normalisation: up to 32 groups of at least 4 channels."""
    return GroupNorm(math.gcd(channels, min(32, channels // 4)), channels, eps=1e-6)
