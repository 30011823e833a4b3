"""The blocks of DiffiT: time token, time-dependent self-attention (TMSA), DiffiT block, ResBlock.

Shapes: B batch, C channels, H and W height and width, h heads, d width of a head, T width of the time token, N tokens
of a window. Tokens are (B, H, W, C). Images are (B, C, H, W) in channels-last memory, so converting copies nothing.
"""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffit_lib.models.layers import Linear, attention, dropout, group_norm, linear_gelu


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
