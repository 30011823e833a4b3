"""The KL autoencoder (Rombach et al. 2022), and the losses of its training: LPIPS and a patch discriminator.

It encodes images to a normal distribution of latents, and decodes latents. Its tensors have the names and shapes of
diffusers' AutoencoderKL, so Stable Diffusion's weights load unchanged.
"""

import warnings
from collections import OrderedDict
from itertools import zip_longest
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffit_lib.config.models import AutoencoderConfig
from diffit_lib.models.layers import Upsample, group_norm
from diffit_lib.utils.files import published_file

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
SMALLEST = 16  # pixels a side: VGG halves four times


class ResBlock(nn.Module):
    """x + Conv3x3(SiLU(GN(Conv3x3(SiLU(GN(x)))))); a 1x1 convolution maps x if the channels change."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.norm1, self.norm2 = group_norm(in_channels), group_norm(channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, channels, 1) if in_channels != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H, W)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(hidden)))


class Attention(nn.Module):
    """Single-head self-attention over all positions, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.group_norm = group_norm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1, H W, C)
        attended = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](attended).squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])


def downsample(channels: int) -> nn.Sequential:
    """A 3x3 convolution with stride 2, after one row and column of zeros at the bottom and right."""
    pad, conv = nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)
    return nn.Sequential(OrderedDict(pad=pad, conv=conv))


class Level(nn.Module):
    """`layers` ResBlocks, the first `attentions` of them followed by attention, then a Downsample or Upsample."""

    def __init__(
        self, in_channels: int, channels: int, layers: int, attentions: int, *, down: bool = False, up: bool = False
    ):
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(c, channels) for c in (in_channels, *[channels] * (layers - 1)))
        self.attentions = nn.ModuleList(Attention(channels) for _ in range(attentions))
        self.downsamplers = nn.Sequential(*(downsample(channels) for _ in range(down)))
        self.upsamplers = nn.Sequential(*(Upsample(channels) for _ in range(up)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        for resnet, attention in zip_longest(self.resnets, self.attentions, fillvalue=nn.Identity()):
            x = attention(resnet(x))
        return self.upsamplers(self.downsamplers(x))


class Encoder(nn.Module):
    """The levels from fine to coarse, then the middle."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        first, last, layers = config.channels[0], config.channels[-1], config.num_layers
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, first, 3, padding=1)
        levels = zip((first, *config.channels[:-1]), config.channels, config.attn, (*config.down, False), strict=True)
        self.down_blocks = nn.Sequential(
            *(Level(c, to, layers, attn * layers, down=halve) for c, to, attn, halve in levels)
        )
        self.mid_block = Level(last, last, 2, config.mid_attn)
        self.conv_norm_out = group_norm(last)
        self.conv_out = nn.Conv2d(last, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C p^2, H/p, W/p) -> (B, 2z, h, w)."""
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """The mirrored encoder, with one more ResBlock per level."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        first, last, layers = config.channels[0], config.channels[-1], config.num_layers + 1
        self.conv_in = nn.Conv2d(config.z_channels, last, 3, padding=1)
        self.mid_block = Level(last, last, 2, config.mid_attn)
        levels = zip((*config.channels[1:], last), config.channels, config.attn, (False, *config.down), strict=True)
        self.up_blocks = nn.Sequential(
            *(Level(c, to, layers, attn * layers, up=double) for c, to, attn, double in reversed(list(levels)))
        )
        self.conv_norm_out = group_norm(first)
        self.conv_out = nn.Conv2d(first, config.in_channels * config.patch**2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, z, h, w) -> (B, C p^2, H/p, W/p)."""
        x = self.up_blocks(self.mid_block(self.conv_in(x)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class KLAutoencoder(nn.Module):
    """Encoder and decoder, with a 1x1 convolution before and after the latents."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> moments (B, 2z, h, w): mean, and log-variance from -30 to 20.

        Raises a DiffitError if the factor does not divide H and W.
        """
        self.config.check_size(*images.shape[2:])
        x = F.pixel_unshuffle(images, self.config.patch).contiguous(memory_format=torch.channels_last)
        mean, log_variance = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return torch.cat([mean, log_variance.clamp(-30, 20)], dim=1)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, z, h, w) -> images (B, C, H, W), about [-1, 1]."""
        x = self.post_quant_conv(latents.contiguous(memory_format=torch.channels_last))
        return F.pixel_shuffle(self.decoder(x), self.config.patch)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W), standard normal noise (B, z, h, w) -> reconstructions of sampled latents, moments."""
        moments = self.encode(images)
        mean, log_variance = moments.chunk(2, dim=1)
        return self.decode(mean + (0.5 * log_variance).exp() * noise), moments


class Perceptual:
    """LPIPS (Zhang et al. 2018) with a frozen VGG-16; not a module, so optimizers and checkpoints do not include it."""

    def __init__(self, vgg: dict[str, Tensor]):
        """`vgg` holds the tensors of torchvision's VGG-16; the linear heads come with torchmetrics."""
        from torchmetrics.functional.image.lpips import _LPIPS  # takes a while, and only training needs it

        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            self.network = _LPIPS(net="vgg", pnet_rand=True).eval().requires_grad_(False)  # random, replaced below
        for name, tensor in self.network.net.state_dict().items():  # "slice2.5.weight" is VGG's "features.5.weight"
            tensor.copy_(vgg["features." + name.partition(".")[2]])

    def __call__(self, images: Tensor, others: Tensor) -> Tensor:
        """Two batches (B, C, H, W) in [-1, 1], grey or RGB, at least 16 pixels a side -> distances (B,) >= 0."""
        return self.network(images.expand(-1, 3, -1, -1), others.expand(-1, 3, -1, -1)).flatten()

    def to(self, device: torch.device) -> "Perceptual":
        """The same, on this device."""
        self.network.to(device)
        return self


def load_perceptual(path: str | Path | None = None) -> Perceptual:
    """LPIPS with the VGG-16 of torchvision at `path`, by default in the cache, downloaded on first use (528 MB).

    Raises a DiffitError if the file is missing or has another checksum.
    """
    path = published_file(path, VGG_URL, VGG_SHA256, "VGG-16", "or set perceptual_weight=0")
    return Perceptual(torch.load(path, map_location="cpu", weights_only=True))


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, section 6.1.2): 4x4 convolutions, one logit per patch.

    Up to three are strided, fewer if the map would be smaller than 4x4. Group instead of batch normalisation makes a
    logit independent of the other images.
    """

    def __init__(self, shape: tuple[int, int, int], width: int = 64):
        super().__init__()
        channels, height, width_in_pixels = shape
        strides = min(3, max(1, min(height, width_in_pixels) // 4).bit_length() - 1)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, stride=2 if strides else 1, padding=1)]
        channels = width
        for stride in [2] * (strides - 1) + [1]:
            layers += [nn.LeakyReLU(0.2), nn.Conv2d(channels, 2 * channels, 4, stride, padding=1, bias=False)]
            channels *= 2
            layers += [group_norm(channels)]
        self.body = nn.Sequential(*layers, nn.LeakyReLU(0.2), nn.Conv2d(channels, 1, 4, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> logits (B, 1, h, w)."""
        return self.body(images.contiguous(memory_format=torch.channels_last))


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's hinge loss of its logits for real and for reconstructed images (Lim and Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
