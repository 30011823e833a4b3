"""Image-space DiffiT: a symmetric U-shape of DiffiT ResBlocks (section 3.2, figure 4, tables S.2 and S.3).

Our choices where the paper is silent: one concatenated skip connection per level, strided 3x3 convolutions down,
nearest-neighbour upsampling and a 3x3 convolution up, EDM's time embedding and its head. With a patch p above 1,
p x p pixels are folded into channels before the tokenizer and unfolded after the head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffit_lib.config.models import ImageNetworkConfig
from diffit_lib.models.blocks import DiffiTResBlock, TimeToken, run_blocks
from diffit_lib.models.layers import Upsample, group_norm


class ImageDiffiT(nn.Module):
    """Predicts from a noisy image and its labels; the denoiser scales its input and output."""

    def __init__(self, config: ImageNetworkConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False  # while training, recompute each ResBlock in the backward pass
        channels, levels = config.channels, range(len(config.channels))

        def resblocks(level: int, in_channels: int) -> nn.ModuleList:
            """L ResBlocks; the first changes the number of channels."""
            out, heads, window, time_dim = channels[level], config.num_heads, config.windows[level], config.time_dim
            return nn.ModuleList(
                DiffiTResBlock(c, out, heads, window, time_dim, mlp_ratio=config.mlp_ratio, dropout=config.dropout)
                for c in (in_channels, *[out] * (config.num_blocks - 1))
            )

        self.time_token = TimeToken(
            config.time_dim, config.width, edm=True, num_classes=config.num_classes, augment_dim=config.augment_dim
        )
        folded = config.in_channels * config.patch**2
        self.tokenizer = nn.Conv2d(folded, config.width, 3, padding=1)
        self.encoder = nn.ModuleList(resblocks(level, (config.width, *channels)[level]) for level in levels)
        self.down = nn.ModuleList(nn.Conv2d(c, c, 3, stride=2, padding=1) for c in channels[:-1])
        self.up = nn.ModuleList(Upsample(c) for c in channels[1:])
        self.decoder = nn.ModuleList(resblocks(level, channels[level + 1] + channels[level]) for level in levels[:-1])
        self.head_norm = group_norm(channels[0])
        self.head = nn.Conv2d(channels[0], folded, 3, padding=1)
        init_image_diffit(self)

    def forward(
        self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None, augment_label: Tensor | None = None
    ) -> Tensor:
        """Image (B, C, H, W), noise (B,), class (B,) int64, augmentation (B, 9) -> (B, C, H, W)."""
        recompute = self.checkpointing and self.training
        time = self.time_token(noise_label, class_label, augment_label)  # (B, T)
        x = F.pixel_unshuffle(x, self.config.patch)  # (B, C p^2, H/p, W/p); below, H and W stand for these
        x = self.tokenizer(x.contiguous(memory_format=torch.channels_last))  # (B, width, H, W)
        skips = []
        for level, blocks in enumerate(self.encoder):
            x = run_blocks(blocks.children(), x, time, recompute=recompute)  # (B, C_level, H/2^level, ...)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)  # (B, C_level, H/2^(level+1), ...)
        for level in reversed(range(len(self.decoder))):
            x = torch.cat([self.up[level](x), skips[level]], dim=1)  # (B, C_(level+1) + C_level, ...)
            x = run_blocks(self.decoder[level].children(), x, time, recompute=recompute)
        return F.pixel_shuffle(self.head(F.silu(self.head_norm(x))), self.config.patch)  # (B, C, H p, W p)


def init_image_diffit(network: ImageDiffiT) -> None:
    """Xavier for linears and convolutions, times 1e-5 (EDM) for the last layers of residual branches; biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    near_zero: list[nn.Conv2d | nn.Linear] = [network.head]
    for layer in network.modules():
        if isinstance(layer, DiffiTResBlock):
            near_zero += [layer.block.attn.proj, layer.block.mlp.fc2]
    for layer in near_zero:
        nn.init.xavier_uniform_(layer.weight, gain=1e-5)
