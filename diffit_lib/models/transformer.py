"""A transformer over patches, of latents or of small images: latent DiffiT (paper, appendix H.2) and DiT.

Both are alike but for their blocks and their last layer: patches, fixed positions, one time token, no levels. Latent
DiffiT attends in one window, the whole grid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffit_lib.config.models import TransformerConfig
from diffit_lib.models.blocks import AdaLNBlock, DiffiTBlock, TimeToken, modulate, sinusoid
from diffit_lib.utils.tensors import unpatchify

FREQUENCIES = 256  # of the time embedding: cosines first, no end point, no swish at its end


class FinalLayer(nn.Module):
    """Tokens to patches: norm, then a linear map, of the swish (DiffiT) or of what the time token makes of it (DiT)."""

    def __init__(self, width: int, out_features: int, *, conditioned: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width) if conditioned else None
        self.linear = nn.Linear(width, out_features)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, H, W, C), (B, T) -> (B, H, W, out_features)."""
        if self.modulation is None:
            return self.linear(F.silu(self.norm(x)))
        shift, scale = self.modulation(F.silu(time))[:, None, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))


class DiffusionTransformer(nn.Module):
    """Noisy image and its labels in, the network's raw output F out; knows nothing of noise schedules or training."""

    pos_embed: Tensor  # (1, N, width): fixed, yet part of the weights, since published ones bring their own

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False  # set while training: recompute each block in the backward pass
        self.time_token = TimeToken(
            config.width,
            FREQUENCIES,
            endpoint=False,
            cos_first=True,
            final_silu=False,
            num_classes=config.num_classes,
            augment_dim=config.augment_dim,
        )
        self.patch_embed = nn.Conv2d(config.in_channels, config.width, config.patch_size, stride=config.patch_size)
        self.register_buffer("pos_embed", positions(config.grid, config.width)[None])
        self.blocks = nn.ModuleList(block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(
            config.width, config.patch_size**2 * config.out_channels, conditioned=config.block == "dit"
        )
        init_transformer(self)

    def forward(
        self,
        x: Tensor,
        noise_label: Tensor,
        class_label: Tensor | None = None,
        augment_label: Tensor | None = None,
    ) -> Tensor:
        """(B, C, H, W), (B,), class (B,) int64, augment (B, 9) -> (B, C, H, W).

        With a learned variance the output is (B, 2C, H, W): the second half of the channels is the variance.
        """
        time = self.time_token(noise_label, class_label, augment_label)  # (B, width)
        tokens = self.patch_embed(x).permute(0, 2, 3, 1)  # (B, h, w, width)
        tokens = tokens + self.pos_embed.view(1, *self.config.grid, -1)
        for layer in self.blocks:
            if self.checkpointing and self.training:
                tokens = checkpoint(layer, tokens, time, use_reentrant=False)
            else:
                tokens = layer(tokens, time)
        return unpatchify(self.final_layer(tokens, time), self.config.patch_size)


def block(config: TransformerConfig) -> DiffiTBlock | AdaLNBlock:
    """One block of the configured kind, its time token as wide as its tokens."""
    width, heads, ratio, dropout = config.width, config.num_heads, config.mlp_ratio, config.dropout
    if config.block == "dit":
        return AdaLNBlock(width, heads, width, mlp_ratio=ratio, dropout=dropout)
    return DiffiTBlock(width, heads, config.grid, width, mlp_ratio=ratio, dropout=dropout)


def positions(grid: tuple[int, int], dim: int) -> Tensor:
    """(h w, dim) fixed embedding of the tokens' places in row-major order: half from the column, half from the row."""
    height, width = grid
    place = torch.arange(height * width)
    parts = (place % width, place // width)
    return torch.cat([sinusoid(part, dim // 2, endpoint=False, cos_first=False) for part in parts], dim=1)


def init_transformer(network: DiffusionTransformer) -> None:
    """Linears: Xavier, the patches' too; the time token's MLP: N(0, 0.02). The output starts at 0.

    So do DiT's modulations: each of its blocks starts as the identity. DiffiT's blocks have no gates.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))  # a view: a patch is one vector
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for layer in network.time_token.mlp:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
    zero = [network.final_layer.linear, network.final_layer.modulation]
    zero += [layer.modulation for layer in network.blocks if isinstance(layer, AdaLNBlock)]
    for layer in filter(None, zero):
        nn.init.zeros_(layer.weight)
