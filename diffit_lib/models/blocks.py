"""The blocks of DiffiT: time token, time-dependent self-attention (TMSA), DiffiT block, ResBlock.

Shapes: B batch, C channels, H and W height and width, h heads, d width of a head, T width of the time token, N tokens
of a window. Tokens are (B, H, W, C). Images are (B, C, H, W) in channels-last memory, so converting copies nothing.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from diffit_lib.utils.tensors import bf16_by_onednn


def sinusoid(values: Tensor, dim: int, *, endpoint: bool, cos_first: bool) -> Tensor:
    """Positional embedding of (B,) values -> (B, dim); frequencies fall from 1 to 1e-4 (included with `endpoint`)."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device) / (half - endpoint)
    angles = values.float()[:, None] * torch.exp(-math.log(10_000.0) * steps)
    parts = (angles.cos(), angles.sin())
    return torch.cat(parts if cos_first else parts[::-1], dim=1)


class TimeToken(nn.Module):
    """Embeds noise level, class and augmentation in one token for all layers (section 3.1).

    An MLP over a sinusoid of the noise label plus the augmentation label; the class label is added to its output.
    `edm` selects EDM's form (sine first, last frequency 1e-4, final SiLU, classes of standard deviation 1), otherwise
    DiT's. Labels without a table are ignored. Autocast is off: half precision cannot separate near noise levels.
    """

    def __init__(self, dim: int, frequencies: int, *, edm: bool, num_classes: int = 0, augment_dim: int = 0):
        super().__init__()
        self.frequencies, self.edm, self.num_classes = frequencies, edm, num_classes
        self.endpoint = edm  # whether 1e-4 is among the frequencies
        layers = [nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim)]
        self.mlp = nn.Sequential(*layers, *[nn.SiLU()] * edm)
        self.classes = nn.Embedding(num_classes + 1, dim) if num_classes else None  # the last row is "no class"
        self.augment = nn.Linear(augment_dim, frequencies, bias=False) if augment_dim else None
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=1.0 if edm else 0.02)

    def forward(
        self, noise_label: Tensor, class_label: Tensor | None = None, augment_label: Tensor | None = None
    ) -> Tensor:
        """Noise (B,), class (B,) int64, augmentation (B, 9) -> (B, T)."""
        with torch.autocast(noise_label.device.type, enabled=False):
            embedding = sinusoid(noise_label, self.frequencies, endpoint=self.endpoint, cos_first=not self.edm)
            embedding = embedding.to(next(self.parameters()).dtype)  # (B, frequencies)
            if self.augment is not None and augment_label is not None:
                embedding = embedding + self.augment(augment_label.to(embedding.dtype))
            token = self.mlp(embedding)  # (B, T)
            if self.classes is not None:
                if class_label is None:
                    class_label = torch.full_like(noise_label, self.num_classes, dtype=torch.int64)
                token = token + self.classes(class_label)
            return token


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
    """GELU (tanh form) of layer(x). On a CPU oneDNN does both in one pass if no gradients are wanted."""
    dtype = None if torch.is_grad_enabled() else onednn_dtype(x, layer.weight)
    if dtype is None:
        return F.gelu(layer(x), approximate="tanh")
    return linear_pointwise(*(tensor.to(dtype) for tensor in (x, layer.weight, layer.bias)), "gelu", [], "tanh")


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


def relative_position_index(window: tuple[int, int]) -> Tensor:
    """For each pair of tokens, in row-major order, its row of the bias table: (N, N); always on the CPU."""
    height, width = window
    place = torch.arange(height * width, device="cpu")
    row, column = place // width, place % width
    down = row[:, None] - row[None, :] + height - 1
    right = column[:, None] - column[None, :] + width - 1
    return down * (2 * width - 1) + right


class TMSA(nn.Module):
    """Time-dependent multi-head self-attention in non-overlapping windows (equations 3 to 6).

    q, k and v are linear in the token and the time token. A learned relative position bias, as in Swin, is added to
    the logits. Softmax cancels the time token's part of k; it is kept because published weights contain it.
    """

    relative_position_index: Tensor

    def __init__(self, channels: int, num_heads: int, window: tuple[int, int], time_dim: int):
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.qkv = Linear(channels, 3 * channels)
        self.qkv_temb = nn.Linear(time_dim, 3 * channels)
        self.proj = Linear(channels, channels)
        height, width = window
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * height - 1) * (2 * width - 1), num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, H, W, C), (B, T) -> (B, H, W, C)."""
        (batch, height, width, channels), (wh, ww) = x.shape, self.window
        q, k, v = self.heads(x, time)
        out = attention(q, k, v, self.bias())  # (B * windows, h, N, d)
        out = out.view(batch, height // wh, width // ww, self.num_heads, wh, ww, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return self.proj(out.reshape(batch, height, width, channels))

    def bias(self) -> Tensor:
        """The relative position bias: (h, N, N)."""
        index, tokens = self.relative_position_index, self.relative_position_index.shape
        return self.relative_position_bias_table.t().index_select(1, index.flatten()).unflatten(1, tokens)

    def heads(self, x: Tensor, time: Tensor) -> Tensor:
        """q, k and v (equations 3 to 5): (B, H, W, C), (B, T) -> (3, B * windows, h, N, d)."""
        (batch, height, width, channels), (wh, ww) = x.shape, self.window
        rows, columns, heads = height // wh, width // ww, self.num_heads
        qkv = self.qkv(x) + self.qkv_temb(time)[:, None, None]  # (B, H, W, 3C)
        qkv = qkv.view(batch, rows, wh, columns, ww, 3, heads, channels // heads)
        return qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, batch * rows * columns, heads, wh * ww, -1)

    def attention_map(self, x: Tensor, time: Tensor) -> Tensor:
        """The attention weights (equation 6), for figures: (B, H, W, C), (B, T) -> (B * windows, h, N, N)."""
        q, k, _ = self.heads(x, time)
        return (q @ k.mT / q.shape[-1] ** 0.5 + self.bias()).softmax(-1)


class MLP(nn.Module):
    """Linear, GELU (tanh form), Linear, dropout."""

    def __init__(self, channels: int, ratio: float, dropout: float):
        super().__init__()
        self.fc1 = Linear(channels, int(channels * ratio))
        self.fc2 = Linear(int(channels * ratio), channels)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        x = self.fc2(linear_gelu(self.fc1, x))
        return dropout(x, self.dropout) if self.training else x


class DiffiTBlock(nn.Module):
    """x^ = TMSA(LN(x), x_t) + x, then MLP(LN(x^)) + x^ (equations 7 and 8)."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        window: tuple[int, int],
        time_dim: int,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        affine: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=affine)
        self.attn = TMSA(channels, num_heads, window, time_dim)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=affine)
        self.mlp = MLP(channels, mlp_ratio, dropout)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, H, W, C), (B, T) -> (B, H, W, C)."""
        x = x + self.attn(self.norm1(x), time)
        return x + self.mlp(self.norm2(x))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class GroupNorm(nn.GroupNorm):
    """Computes in its own precision under autocast too: on a CPU a bf16 step is 7 to 16 % faster for it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return super().forward(x.to(self.weight.dtype))


def group_norm(channels: int) -> GroupNorm:
    """EDM's group normalisation: up to 32 groups of at least 4 channels."""
    return GroupNorm(math.gcd(channels, min(32, channels // 4)), channels, eps=1e-6)


class DiffiTResBlock(nn.Module):
    """x^ = Conv3x3(Swish(GN(x))), then DiffiT-Block(x^, x_t) + x (equations 9 and 10).

    If the number of channels changes, a 1x1 convolution maps x before the sum.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_heads: int,
        window: tuple[int, int],
        time_dim: int,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm = group_norm(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.block = DiffiTBlock(
            out_channels, num_heads, window, time_dim, mlp_ratio=mlp_ratio, dropout=dropout, affine=True
        )
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, C_in, H, W), (B, T) -> (B, C_out, H, W)."""
        tokens = self.conv(F.silu(self.norm(x))).permute(0, 2, 3, 1)  # (B, H, W, C_out)
        return self.block(tokens, time).permute(0, 3, 1, 2) + self.skip(x)


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, time: Tensor, *, recompute: bool) -> Tensor:
    """Pass x through the blocks; `recompute` saves memory by computing each again in the backward pass."""
    for block in blocks:
        x = checkpoint(block, x, time, use_reentrant=False) if recompute else block(x, time)
    return x
