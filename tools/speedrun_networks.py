"""The networks of `speedrun.py` that the library does not have: tricks that have not won, and rivals."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffit_lib.models.blocks import DiffiTBlock


def alter(denoiser: nn.Module, trick: dict[str, Any]) -> None:
    """Change the network as the trick says."""
    if trick["rival"]:
        denoiser.network = Rival(denoiser.network.config, trick["rival"])
    for block in [module for module in denoiser.modules() if isinstance(module, DiffiTBlock)]:
        if trick["qk_norm"]:
            block.attn.heads = normed(block.attn.heads)  # type: ignore[method-assign]
        if trick["time"] != "tmsa":
            retime(block, trick["time"])


def retime(block: DiffiTBlock, where: str) -> None:
    """Let the time token enter the block's MLP or its relative position bias only, or not at all (paper, table 6)."""
    attn, (channels, time_dim) = block.attn, (block.attn.proj.out_features, block.attn.qkv_temb.in_features)
    attn.qkv_temb = nn.Identity()
    if where == "bias":
        block.into = nn.Linear(time_dim, attn.relative_position_bias_table.numel())
    elif where == "mlp":
        block.into = nn.Linear(time_dim, channels)
    count, (wh, ww), zero = attn.num_heads, attn.window, torch.zeros(1)

    def forward(x: Tensor, time: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        tokens = block.norm1(x)
        attn.qkv_temb.forward = lambda _: zero[None]  # type: ignore[method-assign]
        q, k, v = attn.heads(tokens, time)
        windows, bias = len(q) // batch, attn.bias()[None]
        if where == "bias":
            table = block.into(time).view(batch, -1, count)[:, attn.relative_position_index]  # (B, N, N, h)
            bias = (bias + table.permute(0, 3, 1, 2)).repeat_interleave(windows, 0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).expand(len(q), -1, -1, -1))
        out = out.view(batch, height // wh, width // ww, count, wh, ww, -1).permute(0, 1, 4, 2, 5, 3, 6)
        x = x + attn.proj(out.reshape(x.shape))
        normed = block.norm2(x)
        if where == "mlp":
            normed = normed + block.into(time)[:, None, None]
        return x + block.mlp(normed)

    block.forward = forward  # type: ignore[method-assign]


def normed(heads: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`TMSA.heads` with queries and keys of unit root mean square."""

    def wrapped(x: Tensor, time: Tensor) -> Tensor:
        q, k, v = heads(x, time)
        return torch.stack([F.rms_norm(q, q.shape[-1:]), F.rms_norm(k, k.shape[-1:]), v])

    return wrapped


class Rival(nn.Module):
    """A U-Net of diffusers or lucidrains, with its widths, behind our networks' call."""

    def __init__(self, config: Any, name: str):
        super().__init__()
        library, widths = name.split()
        channels, classes = tuple(map(int, widths.split(","))), config.num_classes + 1
        self.config = config
        self.network, self.label = RIVALS[library](config, channels, classes)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """As ours; their sinusoids are for times up to 1000."""
        out = self.network(x.contiguous(), 250 * noise, **{self.label: label})
        return getattr(out, "sample", out)


def diffusers_unet(config: Any, channels: tuple[int, ...], classes: int) -> tuple[nn.Module, str]:
    """UNet2DModel, with attention at the lowest resolution."""
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=config.image_size[0], in_channels=config.in_channels, out_channels=config.in_channels,
        block_out_channels=channels, layers_per_block=1, norm_num_groups=8, attention_head_dim=channels[-1] // 4,
        down_block_types=("DownBlock2D",) * (len(channels) - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(channels) - 1),
        num_class_embeds=classes,
    )  # fmt: skip
    return network, "class_labels"


def lucidrains_unet(config: Any, channels: tuple[int, ...], classes: int) -> tuple[nn.Module, str]:
    """The class-conditional Unet; the stream drops labels, so it drops none itself."""
    from denoising_diffusion_pytorch.classifier_free_guidance import Unet

    multiples = tuple(width // channels[0] for width in channels)
    return Unet(channels[0], classes, 0.0, channels=config.in_channels, dim_mults=multiples), "classes"


RIVALS = {"diffusers": diffusers_unet, "lucidrains": lucidrains_unet}
