"""What training costs before it begins: memory and computation by count, time by a few steps on noise."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from diffit_lib.checkpoints.weights import build_denoiser
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.data.datasets import Images
from diffit_lib.data.stream import Batch, TrainingStream
from diffit_lib.models.cost import Cost, denoiser_cost, measure
from diffit_lib.models.vae import KLAutoencoder, PatchDiscriminator
from diffit_lib.training.module import RunModule
from diffit_lib.training.steps import AutoencoderModule, DiffusionModule
from diffit_lib.utils.distributed import rank_info
from diffit_lib.utils.tensors import autocast, best_device, best_precision, cpu_threads, on_meta, seeded_generator

ENOUGH = 5.0  # seconds of timed steps
SHORT = 0.5  # seconds on each number of threads; where one step takes longer, all threads are taken


def training_cost(experiment: BaseExperimentConfig) -> Cost:
    """Parameters, MAC and memory of training: of the denoiser's network, or of the autoencoder and its discriminator.

    The discriminator sees originals once and reconstructions twice, with and without a gradient.
    """
    training = experiment.training
    micro, precision = training.micro_batch, best_precision(best_device(), training.precision)
    if isinstance(experiment, ExperimentConfig):
        return denoiser_cost(experiment.network, micro, precision, training.checkpointing)
    assert isinstance(experiment, VAEExperimentConfig)
    network, loss = experiment.network, experiment.loss
    with on_meta():
        vae = KLAutoencoder(network)
        critics = [PatchDiscriminator(network.shape, loss.disc_width)] * (loss.disc_weight > 0)

    def forward(x: Tensor) -> Iterable[Tensor]:
        again = vae(x, x.new_zeros(len(x), *network.latent_shape))[0]
        return again, *(critic(seen) for critic in critics for seen in (again, x, again.detach()))

    return measure([vae, *critics], forward, network.shape, micro, precision)


def time_steps(experiment: BaseExperimentConfig, most: float = ENOUGH) -> float:
    """Seconds of training for one image, by steps that are timed for 5 seconds, or for `most` if that is less.

    A step is forward, backward and Adam, on noise of the network's input shape. It leaves out reading and encoding
    images, reports, LPIPS and the discriminator. Where a step of the whole batch would take too long, part of a batch
    is timed.
    """
    training = experiment.training
    with torch.random.fork_rng(devices=[]), cpu_threads(training.threads):
        step = rehearsal(experiment)
        begun, size = time.monotonic(), min(2, training.batch_size)
        step(size)
        each = step(size) / size
        fits = int((min(most, ENOUGH) + begun - time.monotonic()) / 3 / each)  # one that does not count, then two
        if fits > size:
            size = min(fits, training.micro_batch)
            step(size)
            each = min(step(size), step(size)) / size
    return each


def fastest_threads(experiment: BaseExperimentConfig) -> int | None:
    """1 or all CPU threads, whichever takes the shorter steps, measured for a second or so.

    None, which is all, where there is nothing to measure: one thread only, a GPU, several processes.
    """
    most = torch.get_num_threads()
    if most == 1 or best_device().type != "cpu" or rank_info().world > 1:
        return None
    times = {}
    with torch.random.fork_rng(devices=[]):
        step = rehearsal(experiment)
        size = min(8, experiment.training.micro_batch)
        for count in (most, 1):
            with cpu_threads(count):
                begun = time.monotonic()
                step(size)
                times[count] = step(size)
                while (left := SHORT + begun - time.monotonic()) > 0:
                    times[count] = min(times[count], step(size))
            if left < -2 * SHORT:
                return most
    return min(times, key=times.__getitem__)


def rehearsal(experiment: BaseExperimentConfig) -> Callable[[int], float]:
    """A function that takes a step of the experiment on so many images of noise, and returns its seconds."""
    training, device = experiment.training, best_device()
    precision = best_precision(device, training.precision)
    module = on_noise(experiment).to(device)
    optimizer = torch.optim.Adam(module.model.parameters(), lr=0.0)

    def step(size: int) -> float:
        options = experiment.override(batch_size=size, accumulate=1).training
        stream = TrainingStream(module.data, options, module.state_shape)
        start = time.monotonic()
        batch = Batch(*(tensor.to(device) for tensor in module.on_before_batch_transfer(stream.batch(0), 0)))
        with autocast(device, precision):
            loss: Any = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.monotonic() - start

    return step


def on_noise(experiment: BaseExperimentConfig) -> RunModule:
    """The experiment's module, on noise in place of images."""
    shape = experiment.network.shape
    count = experiment.training.batch_size
    pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=seeded_generator("rehearsal"))
    noise = Images("noise", pixels, torch.zeros(count, dtype=torch.int64), ())
    if isinstance(experiment, VAEExperimentConfig):
        network = KLAutoencoder(experiment.network).to(memory_format=torch.channels_last)
        return AutoencoderModule(network, experiment, noise)
    assert isinstance(experiment, ExperimentConfig)
    known = experiment if getattr(experiment.denoiser, "sigma_data", 1.0) else experiment.override(sigma_data=0.5)
    denoiser = build_denoiser(known).to(memory_format=torch.channels_last)
    return DiffusionModule(denoiser, experiment.training, noise)
