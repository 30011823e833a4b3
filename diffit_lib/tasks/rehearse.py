"""`rehearse`: a few steps of a recipe's training on noise, to see what a step takes."""

import time
from typing import Any, NamedTuple

import torch

from diffit_lib.data import Batch, Images, TrainingStream
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.recipe import AnyRecipe, Recipe, VAERecipe
from diffit_lib.tensors import autocast, best_device, best_precision, cpu_threads, seeded_generator
from diffit_lib.training import RunModule
from diffit_lib.training_diffusion import DiffusionModule
from diffit_lib.training_vae import AutoencoderModule
from diffit_lib.weights import build_denoiser

ENOUGH = 5.0  # seconds of steps


class Pace(NamedTuple):
    """What training takes on this device."""

    seconds: float  # for one image
    parameters: int


def rehearse(recipe: AnyRecipe) -> Pace:
    """Time steps of the recipe's training for a few seconds, after a first one that is not counted.

    The step is forward, backward and Adam's, on noise of the shape that the network sees; what reads images, encodes
    them or reports is not in it, nor LPIPS and the discriminator. Where a step of the whole batch would take too long,
    one of part of it is timed.
    """
    training, device = recipe.training, best_device()
    precision = best_precision(device) if training.precision == "auto" else training.precision
    with torch.random.fork_rng(devices=[]), cpu_threads(training.threads):
        module = rehearsed(recipe).to(device)
        optimizer = torch.optim.Adam(module.model.parameters(), lr=0.0)

        def step(size: int) -> float:
            """Seconds that a step of so many images takes."""
            options = recipe.override(batch_size=size, accumulate=1).training
            stream = TrainingStream(module.data, options, module.state_shape)
            start = time.monotonic()
            batch = Batch(*(tensor.to(device) for tensor in stream.batch(0)))
            with autocast(device, precision):
                loss: Any = module.training_step(batch, 0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            return time.monotonic() - start

        begun, size = time.monotonic(), min(2, training.batch_size)
        step(size)
        each = step(size) / size
        fits = int((ENOUGH + begun - time.monotonic()) / 3 / each)  # one of that size that does not count, then two
        if fits > size:
            size = min(fits, training.batch_size // training.accumulate)
            step(size)
            each = min(step(size), step(size)) / size
    return Pace(each, sum(tensor.numel() for tensor in module.model.parameters()))


def rehearsed(recipe: AnyRecipe) -> RunModule:
    """The recipe's module on noise in place of images."""
    shape = recipe.network.shape
    count = recipe.training.batch_size
    pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=seeded_generator("rehearsal"))
    noise = Images("noise", pixels, torch.zeros(count, dtype=torch.int64), ())
    if isinstance(recipe, VAERecipe):
        return AutoencoderModule(KLAutoencoder(recipe.network).to(memory_format=torch.channels_last), recipe, noise)
    assert isinstance(recipe, Recipe)
    known = recipe if recipe.denoiser.sigma_data else recipe.override(sigma_data=0.5)
    denoiser = build_denoiser(known).to(memory_format=torch.channels_last)
    return DiffusionModule(denoiser, recipe.training, noise)
