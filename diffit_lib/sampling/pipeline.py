"""From weights and seeds to pictures: `pipe = load("digits"); pipe(seeds=range(64))`."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffit_lib.checkpoints.weights import ModelCard, few, load_own_space, load_weights
from diffit_lib.config.diffusion import SamplingConfig
from diffit_lib.diffusion.denoiser import Denoiser, Preconditioned
from diffit_lib.diffusion.guidance import Clipped, Guided
from diffit_lib.diffusion.samplers import SAMPLERS, Noise, State
from diffit_lib.models.latent_space import PIXEL_SPACE, Space
from diffit_lib.sampling.edit import Edit, Start, as_images, from_noise, mixed_classes, slerp, take, upwards
from diffit_lib.utils.errors import DiffitError, check, printable
from diffit_lib.utils.tensors import (
    SeededNoise,
    autocast,
    best_device,
    best_precision,
    cpu_threads,
    seeded_generator,
    state_dtype,
    to_uint8,
)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
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
        self.precision = best_precision(self.device, precision)
        check(self.precision in PRECISIONS, f"precision is {precision!r}; give auto, {', '.join(PRECISIONS)}")
        self.denoiser = denoiser.to(self.device).to(memory_format=torch.channels_last).eval()
        self.card, self.space = card, space.to(self.device)
        self.source = ""  # of the weights: a path or a name
        self.threads = card.experiment.training.threads  # on a CPU; a tiny network is faster on one

    def __repr__(self) -> str:
        """What it is, and where it draws."""
        return f"Pipeline {self.summary}, on {self.device} in {self.precision}."

    @property
    def summary(self) -> str:
        """What it draws, with what, and what it was trained on, in one paragraph without its full stop."""
        experiment, (channels, height, width) = self.card.experiment, self.card.image_shape
        size = sum(parameter.numel() for parameter in self.denoiser.network.parameters())
        return printable(
            f"{experiment.name}: {type(self.denoiser.network).__name__}, {size:,} parameters, "
            f"draws {height}x{width} {'grey' if channels == 1 else 'RGB'} images of {few(self.card.class_names)}. "
            f"Trained on {self.card.trained_on or experiment.data}, {self.card.images_seen:,} images seen. "
            f"Samples with {experiment.sampling.method}, {experiment.sampling.steps} steps, guidance "
            f"{experiment.sampling.guided}"
        )

    def __call__(self, seeds: Sequence[int], labels: Labels = None, **options: Any) -> np.ndarray:
        """Images for these seeds, uint8 (N, H, W, C); the options are those of `batches`."""
        batches = self.batches(seeds, labels, **options)
        return np.concatenate([to_pictures(batch) for batch in batches])

    def batches(
        self,
        seeds: Sequence[int],
        labels: Labels = None,
        *,
        image: Any = None,
        mask: Any = None,
        strength: float | None = None,
        noise: Tensor | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> Iterator[Tensor]:
        """The same images before rounding, batch by batch: float (B, C, H, W), about [-1, 1].

        `labels` is one class for all or one per seed, by number or name; None draws each image's class from its seed,
        and "none" asks for no class. `settings` are fields of `SamplingConfig` (sampler, steps, guidance, churn); the
        others are the weights' own, but another sampler or schedule starts from its default options (churn 0). At most
        `batch_size` images (64) are drawn at once; if it is given, the last batch is padded to it. At one batch size
        the k-th image of a batch is the same to the bit whatever its neighbours are.

        With an `image`, uint8 (H, W, C) or one per seed, sampling starts from it, noised, and runs the last `strength`
        of the steps (0.5): 0 gives the image back, 1 draws from noise alone. With a `mask`, (H, W) or one per seed,
        only its white pixels (True, or 255) are drawn, at strength 1 by default; all others stay as they are to the
        bit. `noise`, of `invert`, takes the place of the seeds' own, and no fresh noise is added while sampling.
        """
        check(hasattr(seeds, "__len__"), f"seeds is {seeds!r}; give a list or a range, e.g. range(8)")
        size = min(len(seeds), 64) if batch_size is None else batch_size
        if size < 1 or len(seeds) < 1:
            raise DiffitError(f"nothing to draw: {len(seeds)} seeds, batch_size={batch_size}; give 1 or more of each")
        # all mistakes are found before anything is drawn; the checksum loads the autoencoder
        _ = self.sampling(**settings), self.class_label(seeds, labels), self.space.checksum
        check(image is not None or mask is None is strength, "mask and strength need an image; give image too")
        edit = None if image is None else Edit.of(image, mask, strength, self.space, self.card.image_shape, len(seeds))
        if noise is not None:
            settings = self._for_given(noise, len(seeds), settings)
        for first in range(0, len(seeds), size):
            part = slice(first, first + size)
            each: Any = labels
            each = each if np.ndim(each) == 0 else each[part]  # None and words are of dimension 0
            batch = edit and edit.take(first, size)
            start = batch.begin if batch else from_noise
            given = None if noise is None else partial(take, noise, first, size)
            try:
                for state in self.stream(seeds[part], each, pad_to=size, noise=given, start=start, **settings):
                    x = state.x
            except torch.OutOfMemoryError:
                what = f"{size} images at once exceed the memory of {self.device}"
                raise DiffitError(f"{what}; give batch_size={max(1, size // 2)}") from None
            with cpu_threads(self.threads):
                images = finite(self.space.decode(x), settings.get("guidance"))
            yield batch.paste(images) if batch else images

    def stream(
        self,
        seeds: Sequence[int],
        labels: Labels = None,
        *,
        pad_to: int = 0,
        noise: Noise | None = None,
        start: Start = from_noise,
        **settings: Any,
    ) -> Iterator[State]:
        """Every state of the sampler for one batch: x and denoised, (B, C, H, W), pixels or latents.

        `noise` returns standard normal noise (B, C, H, W) at each call, in the place of the seeds' own. `start` says
        where sampling starts (`edit.py`).
        """
        sampling, class_label, count = self.sampling(**settings), self.class_label(seeds, labels), len(seeds)
        padding, shape = max(pad_to - count, 0), self.card.experiment.network.shape
        noise = noise or SeededNoise([*map(int, seeds), *[0] * padding], shape)  # int: tensor(3) is seed 3
        denoiser: Denoiser = self.denoiser
        if class_label is not None:
            class_label = torch.cat([class_label, class_label.new_zeros(padding)]).to(self.device)
            denoiser = Guided(self.denoiser, sampling, no_class=self.card.num_classes)
        if self.denoiser.clip:
            denoiser = Clipped(denoiser)
        first = noise().to(self.device, state_dtype(self.device))
        denoiser, x, sigmas = start(denoiser, first, denoiser.levels(sampling.steps))
        options = sampling.options
        if "churn" in options:  # the same at each step, however many there are
            options["churn"] *= (len(sigmas) - 1) / sampling.steps
        states = SAMPLERS[sampling.sampler](denoiser, x, sigmas, class_label, noise, **options)
        while True:
            with autocast(self.device, self.precision), cpu_threads(self.threads):  # closed before the yield
                state = next(states, None)
            if state is None:
                return
            yield state._replace(x=state.x[:count], denoised=state.denoised[:count])

    def invert(self, image: Any, labels: Labels = "none", **settings: Any) -> Tensor:
        """The noise from which the sampler draws these images, float (N, C, H, W), about standard normal.

        `image` is uint8 (H, W, C) or (N, H, W, C). `pipe(seeds, labels, noise=noise)` with the same labels and settings
        draws the images again, the more exactly the more steps there are. `heun`, `euler` and `dpm++` go backwards
        from the lowest noise level to the highest, `ddim` as in Song et al. 2021; none of them adds fresh noise.
        """
        clean = self.space.encode(as_images(image, self.card.image_shape))
        settings = self._without_fresh_noise(settings)
        *_, last = self.stream(range(len(clean)), labels, start=partial(upwards, clean), **settings)
        return (last.x / self.denoiser.initial(torch.ones(()))).float().cpu()

    def interpolate(
        self, seeds: Sequence[int], labels: Labels = None, count: int = 9, noise: Tensor | None = None, **settings: Any
    ) -> np.ndarray:
        """`count` images on the way from one to another, uint8 (count, H, W, C).

        The first and the last are `self(seeds, labels, noise=noise)`, of two seeds, or of two noises from `invert`. The
        noise is interpolated spherically, the embedding of the class linearly.
        """
        check(len(seeds) == 2 and count > 1, f"{len(seeds)} seeds, count={count}; give 2 seeds, count 2 or more")
        ends, shares = self.class_label(seeds, labels), torch.linspace(0, 1, count)
        draw: Noise = SeededNoise([*map(int, seeds)], self.card.experiment.network.shape)
        if noise is not None:
            settings, draw = self._for_given(noise, 2, settings), lambda: noise
        with nullcontext() if ends is None else mixed_classes(self.denoiser.network, ends, shares):
            label = None if ends is None else 0  # any, as the mixtures take its place
            *_, last = self.stream([0] * count, label, noise=lambda: slerp(draw(), shares), **settings)
        return self.decode(last.x)

    def _for_given(self, noise: Tensor, count: int, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings for this noise in place of that of `count` seeds; refuse another shape."""
        wanted = (count, *self.card.experiment.network.shape)
        check(noise.shape == wanted, f"noise is {tuple(noise.shape)}; give {wanted}, as `invert` returns it")
        return self._without_fresh_noise(settings)

    def _without_fresh_noise(self, settings: dict[str, Any]) -> dict[str, Any]:
        """These settings with the sampler's churn or eta at 0."""
        options = self.sampling(**settings).options
        return settings | {name: 0.0 for name in ("churn", "eta") if name in options}

    def decode(self, x: Tensor) -> np.ndarray:
        """A state without noise, (B, C, H, W), pixels or latents -> uint8 (B, H, W, C)."""
        return to_pictures(finite(self.space.decode(x)))

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
        num_classes, count = self.card.num_classes, len(seeds)
        if labels is None and num_classes == 0:
            return None
        if labels is None:
            draws = [torch.randint(num_classes, (), generator=seeded_generator("label", int(seed))) for seed in seeds]
            return torch.stack(draws)
        each: Any = [labels] * count if np.ndim(labels) == 0 else labels
        check(len(each) == count, f"{len(each)} labels for {count} seeds; give one label, or one per seed")
        if num_classes:
            return torch.tensor([self.card.class_number(label) for label in each])
        for label in each:
            check(label == "none", f"no label {label!r}: these weights are unconditional; leave labels out")
        return None

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Upload weights, model card and a small Gradio app to the Hugging Face hub; `options` are those of `push`."""
        from diffit_lib.sampling.push import push

        return push(self, repository, **options)


def finite(images: Tensor, guidance: float | None = None) -> Tensor:
    """The images; refuses NaN and infinity, which would become black pictures."""
    cause = "" if guidance is None else f" at guidance {guidance:g}"
    ok = bool(images.isfinite().all())
    check(ok, f"the images{cause} are NaN or infinite; give a lower guidance or other weights")
    return images


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
    """A pipeline from a weights file or run folder, or from weights by name: ours, those of `HUB_MODELS`, or user/repo.

    `user/repo@revision` and `hf://user/repo/file` are of the Hugging Face hub. `ema=False` takes the raw tensors
    instead of the averaged ones. `file` holds the tensors of weights that others published, `vae` those of their
    autoencoder. `precision` is "auto" (the device's best), "32-true", "bf16-mixed" or "16-mixed".
    """
    denoiser, card = load_weights(path_or_name, ema=ema, file=file)
    space = load_own_space(path_or_name, card, vae)
    try:
        place = torch.device(device) if device else best_device()
        torch.empty(0, device=place)
    except (AssertionError, RuntimeError) as error:
        raise DiffitError(f"no device {str(device)!r} here; give cpu, or leave it out for {best_device()}") from error
    pipe = Pipeline(denoiser, card, space, device=place, precision=precision)
    pipe.source = str(path_or_name)
    return pipe
