"""Transformers over patches of latents or small images: latent DiffiT (appendix H.2) and DiT.

They differ in their blocks and their last layer. Latent DiffiT's attention window is the whole grid. Tokens are
(B, H, W, C): batch, height, width, channels. T is the width of the time token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffit_lib.config.models import TransformerConfig
from diffit_lib.models.blocks import MLP, DiffiTBlock, TimeToken, run_blocks, sinusoid
from diffit_lib.models.layers import Linear, attention
from diffit_lib.utils.tensors import unpatchify

FREQUENCIES = 256  # width of the sinusoid of the noise label


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

    def __init__(self, channels: int, num_heads: int, time_dim: int, mlp_ratio: float, dropout: float, eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(channels, num_heads)
        self.norm2 = nn.LayerNorm(channels, eps=eps, elementwise_affine=False)
        self.mlp = MLP(channels, mlp_ratio, dropout)
        self.modulation = nn.Linear(time_dim, 6 * channels)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, H, W, C), (B, T) -> (B, H, W, C)."""
        modulation = self.modulation(F.silu(time))[:, None, None]  # (B, 1, 1, 6C)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class FinalLayer(nn.Module):
    """Tokens to patches: norm, then SiLU (DiffiT) or a shift and scale by the time token (DiT), then linear."""

    def __init__(self, width: int, out_features: int, *, conditioned: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width) if conditioned else None
        self.linear = Linear(width, out_features)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, H, W, C), (B, T) -> (B, H, W, out_features)."""
        if self.modulation is None:
            return self.linear(F.silu(self.norm(x)))
        shift, scale = self.modulation(F.silu(time))[:, None, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiffusionTransformer(nn.Module):
    """Predicts from a noisy image and its labels; the denoiser scales its input and output."""

    pos_embed: Tensor  # (1, N, width): fixed, but stored, because published weights contain their own

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False  # while training, recompute each block in the backward pass
        self.time_token = TimeToken(
            config.width, FREQUENCIES, edm=False, num_classes=config.num_classes, augment_dim=config.augment_dim
        )
        self.patch_embed = nn.Conv2d(config.in_channels, config.width, config.patch_size, stride=config.patch_size)
        self.register_buffer("pos_embed", positions(config.grid, config.width)[None])
        self.blocks = nn.ModuleList(block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(
            config.width, config.patch_size**2 * config.out_channels, conditioned=config.block == "dit"
        )
        self.time_token.endpoint = config.as_diffusers
        init_transformer(self)

    def forward(
        self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None, augment_label: Tensor | None = None
    ) -> Tensor:
        """Image (B, C, H, W), noise (B,), class (B,) int64, augmentation (B, 9) -> (B, C, H, W).

        With a learned variance the output is (B, 2C, H, W); the second half is the variance.
        """
        time = self.time_token(noise_label, class_label, augment_label)  # (B, width)
        tokens = self.patch_embed(x).permute(0, 2, 3, 1).contiguous()  # (B, h, w, width)
        tokens = tokens + self.pos_embed.view(1, *self.config.grid, -1)  # (B, h, w, width)
        tokens = run_blocks(self.blocks, tokens, time, recompute=self.checkpointing and self.training)
        patches = self.final_layer(tokens, time)  # (B, h, w, p p C)
        return unpatchify(patches, self.config.patch_size)  # (B, C, H, W)


def block(config: TransformerConfig) -> DiffiTBlock | AdaLNBlock:
    """One block of the configured kind."""
    width, heads, ratio, dropout = config.width, config.num_heads, config.mlp_ratio, config.dropout
    if config.block == "dit":
        return AdaLNBlock(width, heads, width, ratio, dropout, eps=1e-5 if config.as_diffusers else 1e-6)
    return DiffiTBlock(width, heads, config.grid, width, mlp_ratio=ratio, dropout=dropout)


def positions(grid: tuple[int, int], dim: int) -> Tensor:
    """Sinusoids of each token's column (first half) and row (second half), in row-major order: (h w, dim)."""
    height, width = grid
    place = torch.arange(height * width)
    parts = (place % width, place // width)
    return torch.cat([sinusoid(part, dim // 2, endpoint=False, cos_first=False) for part in parts], dim=1)


def init_transformer(network: DiffusionTransformer) -> None:
    """Xavier for linears and patches, N(0, 0.02) for the time token's MLP, 0 for biases, last layer and modulations."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))  # a patch counts as one vector
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layer in network.time_token.mlp:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    zero = [network.final_layer.linear, network.final_layer.modulation]
    zero += [layer.modulation for layer in network.blocks if isinstance(layer, AdaLNBlock)]
    for layer in filter(None, zero):
        nn.init.zeros_(layer.weight)
