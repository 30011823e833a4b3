"""Walks between two images: from one seed's noise to another's, or from one class to another."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.tensors import SeededNoise


def slerp(start: Tensor, end: Tensor, shares: Tensor) -> Tensor:
    """Spherical interpolation of two standard normal tensors (1, ...) at S shares from 0 to 1: (S, ...).

    A straight line would pass through noise of too little variance in the middle.
    """
    cosine = torch.nn.functional.cosine_similarity(start.flatten(), end.flatten(), dim=0)
    angle = torch.arccos(cosine.clamp(-1, 1)).clamp(min=1e-6)  # of two equal ones the line is a point
    shares = shares.view(-1, *[1] * (start.dim() - 1))
    return (torch.sin((1 - shares) * angle) * start + torch.sin(shares * angle) * end) / torch.sin(angle)


def walk_seeds(
    pipe: Pipeline, first: int, last: int, label: int | str | None = None, count: int = 9, **settings: Any
) -> np.ndarray:
    """`count` images from one seed to another, uint8 (count, H, W, C), all of one class; no fresh noise on the way."""
    shape = pipe.card.experiment.network.shape
    start, end = (SeededNoise([seed], shape)() for seed in (first, last))
    noise = slerp(start, end, torch.linspace(0, 1, count))
    return _draw(pipe, noise, [first] * count, label if label is not None else _class(pipe, first), settings)


def walk_classes(
    pipe: Pipeline, seed: int, first: int | str, last: int | str, count: int = 9, **settings: Any
) -> np.ndarray:
    """`count` images of one seed from one class to another, uint8 (count, H, W, C): their label embeddings mix."""
    noise = SeededNoise([seed], pipe.card.experiment.network.shape)().expand(count, -1, -1, -1)
    table: nn.Embedding = pipe.denoiser.network.time_token.classes  # type: ignore[assignment, union-attr]
    start, end = (table.weight[pipe.class_number(label)].detach() for label in (first, last))
    mixed = torch.lerp(start, end, torch.linspace(0, 1, count, device=start.device)[:, None])

    def mix(_: nn.Module, labels: tuple[Tensor], rows: Tensor) -> Tensor:
        """Guidance may have doubled the batch: its second half asks for no class and stays as it is."""
        return torch.cat([mixed.to(rows), rows[count:]])

    hook = table.register_forward_hook(mix)
    try:
        return _draw(pipe, noise, [seed] * count, first, settings)
    finally:
        hook.remove()


def _draw(
    pipe: Pipeline, noise: Tensor, seeds: list[int], label: int | str | None, settings: dict[str, Any]
) -> np.ndarray:
    if "churn" in pipe.sampling(**settings).options:
        settings = {**settings, "churn": 0.0}
    *_, last = pipe.stream(seeds, label, start=noise, **settings)
    return pipe.decode(last.x)


def _class(pipe: Pipeline, seed: int) -> int | None:
    drawn = pipe.class_label([seed], None)
    return None if drawn is None else int(drawn)
