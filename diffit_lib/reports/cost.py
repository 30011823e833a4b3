"""`--dry-run`: what training a recipe takes, said before it is begun; nothing is trained and nothing written."""

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from diffit_lib.checkpoints.autoencoders import load_space
from diffit_lib.checkpoints.weights import build_denoiser
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.training import TrainingConfig
from diffit_lib.data.datasets import Images, experiment_data
from diffit_lib.data.stream import Batch, TrainingStream
from diffit_lib.models import build_network
from diffit_lib.models.cost import MACCounter, parameters
from diffit_lib.models.discriminator import PatchDiscriminator
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.training.autoencoder import AutoencoderModule
from diffit_lib.training.diffusion import DiffusionModule
from diffit_lib.training.encode import load_states
from diffit_lib.training.module import RunModule
from diffit_lib.training.train import resolve
from diffit_lib.training.train_vae import resolve_vae
from diffit_lib.utils.tensors import autocast, best_device, best_precision, cpu_threads, seeded_generator

COPIES = 5  # of the parameters in float32: weights, gradients, Adam's two moments, the average


class Cost(NamedTuple):
    """What a network takes in training."""

    parameters: int
    products: int  # of one forward pass for one image
    states: int  # bytes of parameters, gradients, optimizer and average
    activations: int  # bytes that the forward pass of one micro-batch keeps for the backward pass


def dry_run_train(experiment: ExperimentConfig) -> str:
    """Lines on a diffusion recipe and its data, everything resolved as `train` would."""
    space, vae = load_space(experiment.vae)
    data = load_states(experiment, space, vae)
    experiment = resolve(experiment, data.train, vae)
    return "\n".join([describe(experiment, diffusion_cost(experiment)), of_data(data.train)])


def dry_run_vae(experiment: VAEExperimentConfig) -> str:
    """Lines on an autoencoder's recipe and its data, everything resolved as `train_vae` would."""
    data = experiment_data(experiment)
    experiment = resolve_vae(experiment, None, data.train)
    return "\n".join([describe(experiment, autoencoder_cost(experiment)), of_data(data.train)])


def of_data(train: Images) -> str:
    """One line on the training images."""
    shape, classes = "x".join(map(str, train.images.shape[1:])), len(train.class_names)
    return f"  data: {train.name}, {len(train):,} of {shape}, {f'{classes} classes' if classes else 'no classes'}"


def describe(experiment: BaseExperimentConfig, cost: Cost) -> str:
    """What it takes, in lines."""
    training, micro = experiment.training, experiment.training.batch_size // experiment.training.accumulate
    total = cost.states + cost.activations
    left_out = "one recomputed block at a time" if training.checkpointing else "what the device itself works with"
    if isinstance(experiment, VAEExperimentConfig):
        left_out += ", LPIPS" if experiment.loss.perceptual_weight else ""
    elif getattr(experiment, "vae", ""):
        left_out += ", the autoencoder"
    return "\n".join(
        [
            f"{experiment.name}: {cost.parameters:,} parameters, {cost.products / 1e9:.3g} GMAC an image forward, "
            "about three times that in training",
            f"  {training.total_images:,} images in {training.total_steps:,} steps of {training.batch_size}, "
            f"{training.precision} on {best_device()}: {3 * cost.products * training.total_images / 1e15:.3g} PMAC",
            f"  memory: {size(total)} = {size(cost.states)} for weights, gradients, Adam and average + "
            f"{size(cost.activations)} that {micro} images at once keep for the backward pass; not counted: {left_out}",
        ]
    )


def size(count: int) -> str:
    """Bytes in GB, or MB below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def diffusion_cost(experiment: ExperimentConfig) -> Cost:
    """Of a denoiser's network."""

    def build() -> list[nn.Module]:
        network = build_network(experiment.network)
        network.checkpointing = experiment.training.checkpointing
        return [network]

    return measure(
        build, lambda networks, x: networks[0](x, torch.zeros(len(x))), experiment.network.shape, experiment.training
    )


def autoencoder_cost(experiment: VAEExperimentConfig) -> Cost:
    """Of an autoencoder, and of its discriminator where it has one, which sees originals and reconstructions."""
    adversarial = experiment.loss.disc_weight > 0

    def build() -> list[nn.Module]:
        discriminator = PatchDiscriminator(experiment.network.shape, experiment.loss.disc_width)
        return [KLAutoencoder(experiment.network), *[discriminator] * adversarial]

    def forward(networks: list[nn.Module], x: Tensor) -> Iterable[Tensor]:
        again = networks[0](x, x.new_zeros(len(x), *experiment.network.latent_shape))[0]
        return again, *(judge(seen) for judge in networks[1:] for seen in (again, x, again.detach()))

    return measure(build, forward, experiment.network.shape, experiment.training)


def measure(
    build: Callable[[], list[nn.Module]],
    forward: Callable[[list[nn.Module], Tensor], object],
    shape: tuple[int, ...],
    training: TrainingConfig,
) -> Cost:
    """Count on tensors that hold nothing: the largest network takes neither memory nor time.

    A tensor that is kept for the backward pass twice, or shares another's memory, counts once; parameters, which are
    there anyway, do not count.
    """
    precision = best_precision(best_device()) if training.precision == "auto" else training.precision
    kept: dict[int, tuple[Tensor, int]] = {}  # the tensors are held, so that no two get one name

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = tensor, storage.nbytes()
        return tensor

    with torch.device("meta"):
        networks = build()
    with FakeTensorMode(allow_non_fake_inputs=True):
        for network in networks:
            network.to_empty(device="cpu")  # autocast and attention know no meta device
        with MACCounter() as counter, torch.no_grad():
            forward(networks, torch.zeros(1, *shape))
        batch = torch.zeros(training.batch_size // training.accumulate, *shape)
        with saved_tensors_hooks(keep, lambda tensor: tensor), autocast(torch.device("cpu"), precision):
            answer = forward(networks, batch)
        for parameter in (parameter for network in networks for parameter in network.parameters()):
            kept.pop(parameter.untyped_storage()._cdata, None)
        del answer
    trained = sum(map(parameters, networks))
    averaged = parameters(networks[0])
    return Cost(
        parameters=trained,
        products=counter.total,
        states=4 * ((COPIES - 1) * trained + averaged),
        activations=sum(count for _, count in kept.values()),
    )


ENOUGH = 5.0  # seconds of steps


class Pace(NamedTuple):
    """What training takes on this device."""

    seconds: float  # for one image
    parameters: int


def time_steps(experiment: BaseExperimentConfig) -> Pace:
    """Time steps of the recipe's training for a few seconds, after a first one that is not counted.

    The step is forward, backward and Adam's, on noise of the shape that the network sees; what reads images, encodes
    them or reports is not in it, nor LPIPS and the discriminator. Where a step of the whole batch would take too long,
    one of part of it is timed.
    """
    training, device = experiment.training, best_device()
    precision = best_precision(device) if training.precision == "auto" else training.precision
    with torch.random.fork_rng(devices=[]), cpu_threads(training.threads):
        module = timed(experiment).to(device)
        optimizer = torch.optim.Adam(module.model.parameters(), lr=0.0)

        def step(size: int) -> float:
            """Seconds that a step of so many images takes."""
            options = experiment.override(batch_size=size, accumulate=1).training
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


def timed(experiment: BaseExperimentConfig) -> RunModule:
    """The recipe's module on noise in place of images."""
    shape = experiment.network.shape
    count = experiment.training.batch_size
    pixels = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=seeded_generator("rehearsal"))
    noise = Images("noise", pixels, torch.zeros(count, dtype=torch.int64), ())
    if isinstance(experiment, VAEExperimentConfig):
        return AutoencoderModule(
            KLAutoencoder(experiment.network).to(memory_format=torch.channels_last), experiment, noise
        )
    assert isinstance(experiment, ExperimentConfig)
    known = experiment if experiment.denoiser.sigma_data else experiment.override(sigma_data=0.5)
    denoiser = build_denoiser(known).to(memory_format=torch.channels_last)
    return DiffusionModule(denoiser, experiment.training, noise)
