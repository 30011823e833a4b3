"""What is timed: training steps and forward passes of our networks and of those that people use instead."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from diffit_lib.config.models import ImageNetworkConfig, TransformerConfig
from diffit_lib.models import build_network
from diffit_lib.models.cost import MACCounter
from diffit_lib.utils.tensors import autocast

Network = Callable[[Tensor, Tensor], Tensor]  # images (B, C, H, W), times (B,) -> like the images


def pixel_networks(small: bool) -> dict[str, tuple[nn.Module, Network]]:
    """Networks for 32x32x3 images; ours is the `cifar10` preset's first, and DiT-S/2 stands for plain transformers.

    denoising-diffusion-pytorch is left out where it is not installed; the versions in the file say so.
    """
    from diffusers import UNet2DModel

    width = 32 if small else 128
    ours = build_network(ImageNetworkConfig(width=width, num_blocks=1 if small else 4, dropout=0.0 if small else 0.13))
    theirs = UNet2DModel(
        sample_size=32,
        block_out_channels=(width, 2 * width, 2 * width, 2 * width),  # google/ddpm-cifar10-32
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        dropout=0.1,
    )
    dit = transformer("dit", small, in_channels=3)
    found: dict[str, tuple[nn.Module, Network]] = {
        "ours, cifar10": (ours, ours),
        "diffusers UNet2DModel": (theirs, lambda x, t: theirs(x, t).sample),
        "ours, DiT-S/2": (dit, dit),
        "diffusers DiT-S/2": their_dit(small, 3),
    }
    with suppress(ImportError):
        from denoising_diffusion_pytorch import Unet

        unet = Unet(dim=width, flash_attn=False)
        found["denoising-diffusion-pytorch Unet"] = unet, unet
    return found


def latent_networks(small: bool, num_classes: int = 0) -> dict[str, tuple[nn.Module, Network]]:
    """Transformers for 32x32x4 latents: patch 2, width 384, depth 12, 6 heads."""
    ours, dit = (transformer(block, small, num_classes=num_classes) for block in ("diffit", "dit"))
    return {
        "ours, DiffiT": (ours, ours),
        "ours, DiT": (dit, dit),
        "diffusers DiTTransformer2DModel": their_dit(small, 4),
    }


def their_dit(small: bool, in_channels: int) -> tuple[nn.Module, Network]:
    """The DiT of diffusers in the size of ours; it always has 1000 classes."""
    from diffusers import DiTTransformer2DModel

    depth, size = (1, 16) if small else (12, 64)
    sizes = {"in_channels": in_channels, "out_channels": in_channels, "sample_size": 32, "patch_size": 2}
    module = DiTTransformer2DModel(num_attention_heads=6, attention_head_dim=size, num_layers=depth, **sizes)

    def call(x: Tensor, t: Tensor) -> Tensor:
        return module(x, timestep=t.long(), class_labels=torch.zeros(len(x), dtype=torch.int64)).sample

    return module, call


def transformer(block: str, small: bool, in_channels: int = 4, num_classes: int = 0) -> nn.Module:
    """Our transformer of width 384 and depth 12."""
    width, depth = (96, 1) if small else (384, 12)
    return build_network(TransformerConfig((32, 32), in_channels, block, 2, width, depth, num_classes=num_classes))


def passes(networks: dict[str, tuple[nn.Module, Network]], x: Tensor, precision: str) -> dict[str, dict[str, Callable]]:
    """For "forward" and "step" (forward, backward, fused Adam): a function of each network."""
    t, found = torch.rand(len(x)), {"forward": {}, "step": {}}
    for name, (module, call) in networks.items():
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)
        found["forward"][name] = partial(forward, module, call, x, t, precision)
        found["step"][name] = partial(step, module, call, x, t, precision, optimizer)
    return found


@torch.no_grad()
def forward(module: nn.Module, call: Network, x: Tensor, t: Tensor, precision: str) -> None:
    """A forward pass without gradients."""
    module.eval()
    with autocast(x.device, precision):
        call(x, t)


def step(
    module: nn.Module, call: Network, x: Tensor, t: Tensor, precision: str, optimizer: torch.optim.Optimizer
) -> None:
    """A training step on one batch."""
    module.train()
    with autocast(x.device, precision):
        loss = (call(x, t).float() - x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def gflop(networks: dict[str, tuple[nn.Module, Network]], x: Tensor) -> dict[str, float]:
    """GFLOP of a forward pass of one image: 2 x multiply-accumulates of linears, convolutions and attention."""
    counts = {}
    for name, (module, call) in networks.items():
        with MACCounter() as counter, torch.no_grad():
            module.eval()
            call(x[:1], torch.rand(1))
        counts[name] = 2 * counter.total / 1e9
    return counts
