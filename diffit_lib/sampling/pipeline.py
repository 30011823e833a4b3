"""From weights and seeds to pictures: `pipe = load("digits"); pipe(seeds=range(64))`."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffit_lib.checkpoints.weights import ModelCard, few, load_own_space, load_weights
from diffit_lib.config.diffusion import SamplingConfig
from diffit_lib.diffusion.denoiser import Denoiser, Preconditioned
from diffit_lib.diffusion.guidance import Clipped, Guided
from diffit_lib.diffusion.samplers import SAMPLERS, State
from diffit_lib.models.latent_space import PIXEL_SPACE, Space
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.tensors import (
    SeededNoise,
    autocast,
    best_device,
    best_precision,
    seeded_generator,
    state_dtype,
    to_uint8,
)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Labels = None | int | str | Sequence[int | str]


class Pipeline:
    """Draws images. Image k depends on its seed, its label and the settings, not on the batch it is drawn in."""

    def __init__(
        self,
        denoiser: Preconditioned,
        card: ModelCard,
        space: Space = PIXEL_SPACE,
        *,
        device: torch.device | None = None,
        precision: str = "auto",
    ):
        self.device = device or best_device()
        self.precision = best_precision(self.device) if precision == "auto" else precision
        check(self.precision in PRECISIONS, f"precision is {precision!r}; give auto, {', '.join(PRECISIONS)}")
        self.denoiser = denoiser.to(self.device).to(memory_format=torch.channels_last).eval()
        self.card, self.space = card, space.to(self.device)

    def __repr__(self) -> str:
        """What it draws, with what, and what it was trained on, in one paragraph."""
        experiment, (channels, height, width) = self.card.experiment, self.card.image_shape
        size = sum(parameter.numel() for parameter in self.denoiser.network.parameters())
        return (
            f"Pipeline {experiment.name}: {type(self.denoiser.network).__name__}, {size:,} parameters, "
            f"draws {height}x{width} {'grey' if channels == 1 else 'RGB'} images of {few(self.card.class_names)}. "
            f"Trained on {self.card.trained_on or experiment.data}, {self.card.images_seen:,} images seen. "
            f"Samples with {experiment.sampling.method}, {experiment.sampling.steps} steps, guidance "
            f"{experiment.sampling.guided}, on {self.device} in {self.precision}."
        )

    def __call__(
        self, seeds: Sequence[int], labels: Labels = None, *, batch_size: int | None = None, **settings: Any
    ) -> np.ndarray:
        """Images for these seeds, uint8 (N, H, W, C).

        `labels` is one class for all or one per seed, by number or name; None draws each image's class from its seed,
        and "none" asks for no class. `settings` are fields of `SamplingConfig` (sampler, steps, guidance, churn); the
        others follow the weights. At most `batch_size` images (64) are drawn at once; if it is given, the last batch is
        padded to it. At one batch size the k-th image of a batch is the same to the bit whatever its neighbours are.
        """
        batches = self.batches(seeds, labels, batch_size=batch_size, **settings)
        return np.concatenate([to_pictures(batch) for batch in batches])

    def batches(
        self, seeds: Sequence[int], labels: Labels = None, *, batch_size: int | None = None, **settings: Any
    ) -> Iterator[Tensor]:
        """The same images before rounding, batch by batch: float (B, C, H, W), about [-1, 1]."""
        check(hasattr(seeds, "__len__"), f"seeds is {seeds!r}; give a list or a range, e.g. range(8)")
        size = min(len(seeds), 64) if batch_size is None else batch_size
        if size < 1 or len(seeds) < 1:
            raise DiffitError(f"nothing to draw: {len(seeds)} seeds, batch_size={batch_size}; give 1 or more of each")
        # all mistakes are found before anything is drawn; the checksum loads the autoencoder
        _ = self.sampling(**settings), self.class_label(seeds, labels), self.space.checksum
        for first in range(0, len(seeds), size):
            part = slice(first, first + size)
            each: Any = labels
            each = each if np.ndim(each) == 0 else each[part]  # None and words are of dimension 0
            try:
                for state in self.stream(seeds[part], each, pad_to=size, **settings):
                    last = state
            except torch.OutOfMemoryError:
                raise DiffitError(
                    f"{size} images at once exceed the memory of {self.device}; give batch_size={max(1, size // 2)}"
                ) from None
            yield self.space.decode(last.x)

    def stream(
        self,
        seeds: Sequence[int],
        labels: Labels = None,
        *,
        pad_to: int = 0,
        start: Tensor | None = None,
        **settings: Any,
    ) -> Iterator[State]:
        """Every state of the sampler for one batch: x and denoised, (B, C, H, W), pixels or latents.

        `start` is standard normal noise (B, C, H, W) that takes the place of the seeds' own.
        """
        sampling, class_label, count = self.sampling(**settings), self.class_label(seeds, labels), len(seeds)
        padding, network = max(pad_to - count, 0), self.card.experiment.network
        noise = SeededNoise([*map(int, seeds), *[0] * padding], network.shape)  # int: tensor(3) is seed 3
        denoiser: Denoiser = self.denoiser
        if class_label is not None:
            class_label = torch.cat([class_label, class_label.new_zeros(padding)]).to(self.device)
            denoiser = Guided(self.denoiser, sampling, no_class=network.num_classes)
        if self.denoiser.clip:
            denoiser = Clipped(denoiser)
        x = denoiser.initial((noise() if start is None else start).to(self.device, state_dtype(self.device)))
        sigmas = denoiser.levels(sampling.steps)
        states = SAMPLERS[sampling.sampler](denoiser, x, sigmas, class_label, noise, **sampling.options)
        while True:
            with autocast(self.device, self.precision):  # closed before the yield: the caller's code is not cast
                state = next(states, None)
            if state is None:
                return
            yield state._replace(x=state.x[:count], denoised=state.denoised[:count])

    def decode(self, x: Tensor) -> np.ndarray:
        """A state without noise, (B, C, H, W), pixels or latents -> uint8 (B, H, W, C)."""
        return to_pictures(self.space.decode(x))

    def sampling(self, **settings: Any) -> SamplingConfig:
        """The weights' own sampling settings with these changed; None changes nothing."""
        given = {name: value for name, value in settings.items() if value is not None}
        names = [field.name for field in fields(SamplingConfig)]
        for name in given.keys() - set(names):
            raise DiffitError(f"unknown sampling setting {name!r}; the settings are {', '.join(names)}")
        experiment = self.card.experiment
        check(
            given.get("guidance", 1) == 1 or experiment.network.num_classes > 0,
            f"guidance is {given.get('guidance')}, but these weights are unconditional; leave guidance out",
        )
        # the experiment refuses what its network cannot do
        return replace(experiment, sampling=experiment.sampling.change(**given)).sampling

    def class_label(self, seeds: Sequence[int], labels: Labels) -> Tensor | None:
        """(B,) int64 on the CPU, or None for an unconditional network."""
        num_classes, count = self.card.experiment.network.num_classes, len(seeds)
        if labels is None and num_classes == 0:
            return None
        if labels is None:
            draws = [torch.randint(num_classes, (), generator=seeded_generator("label", int(seed))) for seed in seeds]
            return torch.stack(draws)
        each: Any = [labels] * count if np.ndim(labels) == 0 else labels
        check(len(each) == count, f"{len(each)} labels for {count} seeds; give one label, or one per seed")
        if num_classes:
            return torch.tensor([self.class_number(label) for label in each])
        for label in each:
            check(label == "none", f"no label {label!r}: these weights are unconditional; leave labels out")
        return None

    def class_number(self, label: int | str) -> int:
        """The number of a class by its name or number; "none" is the last row of the label table, "no class".

        Words are names first, also in another case, then digits ("two" is the class called 2), then numbers. A name
        that several classes have is an error, and so is an unknown one.
        """
        num_classes, names = self.card.experiment.network.num_classes, self.card.class_names
        word = label.strip().casefold() if isinstance(label, str) else ""
        known = [*names, *[""] * (num_classes - len(names)), "none"]
        folded = [name.casefold() for name in known]
        digit = str(WORDS.index(word)) if word in WORDS else ""
        for wanted, spellings in ((label, known), (word, folded), (digit, known)):
            numbers = [number for number, name in enumerate(spellings) if name and name == wanted]
            check(len(numbers) < 2, f"class {label!r} is {' or '.join(map(str, numbers))}; give the number")
            if numbers:
                return numbers[0]
        try:
            number = int(label) if isinstance(label, str) else index(label)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number < num_classes:
            near = [known[folded.index(name)] for name in get_close_matches(word, folded)]
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            named = [name for name in names if not name.isdecimal()]
            known_names = f", {', '.join(named[:12])}{', ...' if len(named) > 12 else ''}" if named else ""
            raise DiffitError(
                f"no class {label!r}; {hint}give a number from 0 to {num_classes - 1}{known_names}, or 'none'"
            )
        return number


def in_turn(card: ModelCard, count: int) -> list[int | str] | None:
    """Labels 0, 1, 2, ... over and over, one for each of `count` images; None for unconditional weights."""
    classes = card.experiment.network.num_classes
    return [k % classes for k in range(count)] if classes else None


def to_pictures(images: Tensor) -> np.ndarray:
    """float (B, C, H, W), about [-1, 1] -> uint8 (B, H, W, C)."""
    return to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()


def load(
    path_or_name: str | Path,
    *,
    ema: bool = True,
    file: str | Path | None = None,
    vae: str | Path | None = None,
    device: str | torch.device | None = None,
    precision: str = "auto",
) -> Pipeline:
    """A pipeline from a weights file or run folder, or from pretrained weights by name: ours, or those of `HUB_MODELS`.

    `ema=False` takes the raw tensors instead of the averaged ones. `file` holds the tensors of weights that others
    published, `vae` those of their autoencoder. `precision` is "auto" (the device's best), "32-true", "bf16-mixed" or
    "16-mixed".
    """
    denoiser, card = load_weights(path_or_name, ema=ema, file=file)
    space = load_own_space(path_or_name, card, vae)
    try:
        place = torch.device(device) if device else best_device()
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError) as error:
        raise DiffitError(f"no device {str(device)!r} here; give cpu, or leave it out for {best_device()}") from error
    return Pipeline(denoiser, card, space, device=place, precision=precision)
