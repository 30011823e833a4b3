"""DiT's block. Tokens are (B, H, W, C): batch, height, width, channels. T is the width of the time token."""

import torch.nn.functional as F
from torch import Tensor, nn

from diffit_lib.models.blocks import MLP, Linear, attention


class SelfAttention(nn.Module):
    """Multi-head self-attention over all tokens, without time or position."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, h, d)
        out = attention(*qkv.permute(2, 0, 3, 1, 4))  # (B, h, N, d)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return x * (1 + scale) + shift


class AdaLNBlock(nn.Module):
    """DiT's block (Peebles and Xie 2023, section 3.2): the time token shifts, scales and gates both branches."""

    def __init__(self, channels: int, num_heads: int, time_dim: int, *, mlp_ratio: float = 4.0, dropout: float = 0.0):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.mlp = MLP(channels, mlp_ratio, dropout)
        self.modulation = nn.Linear(time_dim, 6 * channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, H, W, C), (B, T) -> (B, H, W, C)."""
        modulation = self.modulation(F.silu(time))[:, None, None]  # (B, 1, 1, 6C)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))
