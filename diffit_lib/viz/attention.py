"""What one block of a trained DiffiT attends to at every noise level, and how much the time token has to do with it.

Shapes: S noise levels, H and W the block's map, h heads, N tokens of a window, C channels.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffit_lib.diffusion.denoiser import Preconditioned
from diffit_lib.models.blocks import TMSA
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.tensors import SeededNoise


@dataclass(frozen=True)
class Attention:
    """One block's attention at S noise levels, for one image."""

    sigmas: Tensor  # (S,)
    weights: Tensor  # (S, windows down, windows right, h, N, N): query by key, each row sums to 1
    window: tuple[int, int]  # height, width in tokens
    bias: Tensor  # (h, N, N): the learned relative position bias, added to the logits (paper, equation 6)
    space: Tensor  # (S, H, W, 3, C): the part of q, k, v that comes from the tokens (equations 3 to 5)
    time: Tensor  # (S, 3, C): the part that comes from the time token
    clean: Tensor  # (S, C, H, W): the denoiser's estimates of the clean images or latents

    @property
    def map_size(self) -> tuple[int, int]:
        """(H, W) of the block's map."""
        return self.space.shape[1], self.space.shape[2]

    def of_query(self, row: int, column: int, head: int | None = None) -> Tensor:
        """(S, H, W): where the token at (row, column) looks, 0 outside its window. Without a head: their mean."""
        (height, width), (wh, ww) = self.map_size, self.window
        there = 0 <= row < height and 0 <= column < width
        check(there, f"query is {row}, {column}; give a place on the {height}x{width} map")
        weights = self.weights[:, row // wh, column // ww, :, row % wh * ww + column % ww]  # (S, h, N)
        weights = weights.mean(1) if head is None else weights[:, head]
        out = weights.new_zeros(len(weights), height, width)
        top, left = row // wh * wh, column // ww * ww
        out[:, top : top + wh, left : left + ww] = weights.view(-1, wh, ww)
        return out

    def mean_distance(self) -> Tensor:
        """(S, h): how far a token looks, in tokens, on average over all queries."""
        height, width = self.window
        places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(self.weights.dtype)
        return (self.weights * torch.cdist(places, places)).sum(-1).mean((1, 2, 4))

    def time_share(self) -> Tensor:
        """(S, 3): the time token's part of the length of q, k and v, from 0 (none) to 1 (all)."""
        time, space = self.time.square().mean(-1).sqrt(), self.space.square().mean((1, 2, 4)).sqrt()
        return time / (time + space)

    def without_key_time(self) -> Tensor:
        """The weights with the time token's part taken out of the keys: the same ones, for softmax cancels it."""
        q, k = (self._heads(self.space[..., i, :]) for i in (0, 1))
        q = q + self._heads(self.time[:, None, None, 0].expand_as(self.space[..., 0, :]))
        return (q @ k.mT / q.shape[-1] ** 0.5 + self.bias).softmax(-1)

    def _heads(self, x: Tensor) -> Tensor:
        """(S, H, W, C) -> (S, windows down, windows right, h, N, C / h)."""
        (wh, ww), heads = self.window, self.weights.shape[3]
        x = x.unflatten(1, (-1, wh)).unflatten(3, (-1, ww)).unflatten(-1, (heads, -1))  # (S, down, wh, right, ww, h, d)
        return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5)


def attention_blocks(network: nn.Module) -> dict[str, TMSA]:
    """The time-dependent attention layers of a network, by the place of their block in it, in the order they run."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, TMSA)}
    if not layers:
        raise DiffitError("this network has no time-dependent attention (DiT has none); give weights of a DiffiT")
    # in the decoder the lowest level, that of the highest number, runs first
    order = sorted(layers, key=lambda name: -int(name.split(".")[1]) if name.startswith("decoder") else -len(layers))
    return {name.removesuffix(".attn").removesuffix(".block"): layers[name] for name in order}


@torch.no_grad()
def attention_at(
    pipe: Pipeline, block: str, x: Tensor, sigmas: Sequence[float], label: int | str | None = None
) -> Attention:
    """The attention of a block for S states of one image at S noise levels, in float32.

    `x` (S, C, H, W) is what the denoiser is given, pixels or latents with noise on them; `block` a name of
    `attention_blocks`; `label` a class by number or name. One forward pass for all levels.
    """
    layers = attention_blocks(pipe.denoiser.network)
    check(block in layers, f"block is {block!r}; give one of {', '.join(layers)}")
    layer, sigma = layers[block], torch.as_tensor(sigmas, dtype=torch.float64)
    classes = pipe.class_label([0] * len(x), None if label is None else [label] * len(x))
    seen: list[tuple[Tensor, Tensor]] = []
    with layer.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0], inputs[1]))):
        clean = pipe.denoiser(x.to(pipe.device).float(), sigma, None if classes is None else classes.to(pipe.device))
    tokens, time = (part.float() for part in seen[0])
    weights = layer.attention_map(tokens, time)
    (height, width), (wh, ww) = tokens.shape[1:3], layer.window
    return Attention(
        sigmas=sigma,
        weights=weights.unflatten(0, (len(x), height // wh, width // ww)).cpu(),
        window=layer.window,
        bias=layer.bias().cpu(),
        space=layer.qkv(tokens).unflatten(-1, (3, -1)).cpu(),
        time=layer.qkv_temb(time).unflatten(-1, (3, -1)).cpu(),
        clean=clean.cpu(),
    )


def noisy_states(clean: Tensor, sigmas: Sequence[float]) -> Tensor:
    """(S, C, H, W): one clean state (1, C, H, W) with the noise of seed 0 at every level."""
    noise = SeededNoise([0], clean.shape[1:])().to(clean)
    return torch.cat([clean + sigma * noise for sigma in sigmas])


@contextmanager
def frozen_time(denoiser: Preconditioned, sigma: float | Sequence[float]) -> Iterator[None]:
    """Inside, the time token says `sigma` at every noise level: attention is blind to the true one.

    Of several levels, each is told to one image of the batch. Everything else (c_skip, c_out, c_in, the sampler's
    steps) goes on with the true noise level. Outside, the network is as it was: no hook is left.
    """
    label = denoiser.noise_label(torch.as_tensor(sigma, dtype=torch.float64).reshape(-1)).float()

    def freeze(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return label.to(inputs[0]).expand_as(inputs[0]), *inputs[1:]

    with denoiser.network.time_token.register_forward_pre_hook(freeze):  # type: ignore[union-attr]
        yield
