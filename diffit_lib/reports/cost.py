"""What a training run costs before it begins: memory and computation by count, time by a few timed steps."""

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diffit_lib.checkpoints.autoencoders import load_space
from diffit_lib.checkpoints.weights import build_denoiser
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.data.datasets import Images, experiment_data
from diffit_lib.data.stream import Batch, TrainingStream
from diffit_lib.models.cost import Cost, denoiser_cost, measure
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.models.vae_losses import PatchDiscriminator
from diffit_lib.training.autoencoder import AutoencoderModule
from diffit_lib.training.diffusion import DiffusionModule
from diffit_lib.training.encode import load_states
from diffit_lib.training.module import RunModule
from diffit_lib.training.train import resolve
from diffit_lib.training.train_vae import resolve_vae
from diffit_lib.utils.tensors import autocast, best_device, best_precision, cpu_threads, seeded_generator

ENOUGH = 5.0  # seconds of timed steps


def dry_run(experiment: ExperimentConfig | VAEExperimentConfig) -> str:
    """Lines on the cost of an experiment and on its data, resolved as training would; trains and writes nothing."""
    if isinstance(experiment, VAEExperimentConfig):
        train = experiment_data(experiment).train
        experiment = resolve_vae(experiment, None, train)
    else:
        space, vae = load_space(experiment.vae)
        train = load_states(experiment, space, vae).train
        experiment = resolve(experiment, train, vae)
    training, cost = experiment.training, training_cost(experiment)
    micro = training.batch_size // training.accumulate
    left_out = "one recomputed block at a time" if training.checkpointing else "the device's own working memory"
    if isinstance(experiment, VAEExperimentConfig):
        left_out += ", LPIPS" if experiment.loss.perceptual_weight else ""
    elif experiment.vae:
        left_out += ", the autoencoder"
    shape, classes = "x".join(map(str, train.images.shape[1:])), len(train.class_names)
    return "\n".join(
        [
            f"{experiment.name}: {cost.trained:,} parameters, {cost.macs / 1e9:.3g} GMAC an image forward, "
            "about three times that in training",
            f"  {training.total_images:,} images in {training.total_steps:,} steps of {training.batch_size}, "
            f"{training.precision} on {best_device()}: {3 * cost.macs * training.total_images / 1e15:.3g} PMAC",
            f"  memory: {size(cost.states + cost.activations)} = {size(cost.states)} for weights, gradients, Adam and "
            f"average + {size(cost.activations)} that {micro} images at once keep for the backward pass; "
            f"not counted: {left_out}",
            f"  data: {train.name}, {len(train):,} of {shape}, {f'{classes} classes' if classes else 'no classes'}",
        ]
    )


def size(count: int) -> str:
    """Bytes in GB, or MB below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def training_cost(experiment: BaseExperimentConfig) -> Cost:
    """Parameters, MAC and memory of training: of the denoiser's network, or of the autoencoder and its discriminator.

    The discriminator sees originals once and reconstructions twice, with and without a gradient.
    """
    training = experiment.training
    micro = training.batch_size // training.accumulate
    precision = best_precision(best_device()) if training.precision == "auto" else training.precision
    if isinstance(experiment, ExperimentConfig):
        return denoiser_cost(experiment.network, micro, precision, training.checkpointing)
    assert isinstance(experiment, VAEExperimentConfig)
    network, loss = experiment.network, experiment.loss

    def build() -> list[nn.Module]:
        adversarial = loss.disc_weight > 0
        return [KLAutoencoder(network), *[PatchDiscriminator(network.shape, loss.disc_width)] * adversarial]

    def forward(networks: list[nn.Module], x: Tensor) -> Iterable[Tensor]:
        again = networks[0](x, x.new_zeros(len(x), *network.latent_shape))[0]
        return again, *(discriminator(seen) for discriminator in networks[1:] for seen in (again, x, again.detach()))

    return measure(build, forward, network.shape, micro, precision)


def time_steps(experiment: BaseExperimentConfig, enough: float = ENOUGH) -> float:
    """Seconds of training for one image, from `enough` seconds of timed steps after one that does not count.

    A step is forward, backward and Adam, on noise of the network's input shape. It leaves out reading and encoding
    images, reports, LPIPS and the discriminator. Where a step of the whole batch would take too long, part of a batch
    is timed.
    """
    training, device = experiment.training, best_device()
    precision = best_precision(device) if training.precision == "auto" else training.precision
    with torch.random.fork_rng(devices=[]), cpu_threads(training.threads):
        module = timed(experiment).to(device)
        optimizer = torch.optim.Adam(module.model.parameters(), lr=0.0)

        def step(size: int) -> float:
            """Seconds of a step on this many images."""
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

        begun, size = time.monotonic(), min(2, training.batch_size)
        step(size)
        each = step(size) / size
        fits = int((enough + begun - time.monotonic()) / 3 / each)  # one of that size that does not count, then two
        if fits > size:
            size = min(fits, training.batch_size // training.accumulate)
            step(size)
            each = min(step(size), step(size)) / size
    return each


def timed(experiment: BaseExperimentConfig) -> RunModule:
    """The experiment's module, on noise in place of images."""
    shape = experiment.network.shape
    count = experiment.training.batch_size
    pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=seeded_generator("rehearsal"))
    noise = Images("noise", pixels, torch.zeros(count, dtype=torch.int64), ())
    if isinstance(experiment, VAEExperimentConfig):
        return AutoencoderModule(
            KLAutoencoder(experiment.network).to(memory_format=torch.channels_last), experiment, noise
        )
    assert isinstance(experiment, ExperimentConfig)
    known = experiment if getattr(experiment.denoiser, "sigma_data", 1.0) else experiment.override(sigma_data=0.5)
    denoiser = build_denoiser(known).to(memory_format=torch.channels_last)
    return DiffusionModule(denoiser, experiment.training, noise)
