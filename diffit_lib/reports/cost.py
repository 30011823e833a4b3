"""What a training run costs before it begins: memory and computation, by count."""

from collections.abc import Iterable

from torch import Tensor, nn

from diffit_lib.checkpoints.autoencoders import load_space
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.models.cost import Cost, denoiser_cost, measure
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.models.vae_losses import PatchDiscriminator
from diffit_lib.training.encode import load_states
from diffit_lib.training.train import resolve
from diffit_lib.utils.tensors import best_device, best_precision


def dry_run(experiment: ExperimentConfig | VAEExperimentConfig) -> str:
    """Lines on the cost of an experiment and on its data, resolved as training would; trains and writes nothing."""
    space, vae = load_space(getattr(experiment, "vae", ""))
    train = load_states(experiment, space, vae).train
    experiment = resolve(experiment, None, train, vae)
    if isinstance(experiment, VAEExperimentConfig):
        frozen = ", LPIPS" if experiment.loss.perceptual_weight else ""
    else:
        frozen = ", the autoencoder" if vae else ""
    training, cost = experiment.training, training_cost(experiment)
    micro = training.batch_size // training.accumulate
    left_out = "one recomputed block at a time" if training.checkpointing else "the device's own working memory"
    shape, classes = "x".join(map(str, train.images.shape[1:])), len(train.class_names)
    return "\n".join(
        [
            f"{experiment.name}: {cost.trained:,} parameters, {cost.macs / 1e9:.3g} GMAC an image forward, "
            "about three times that in training",
            f"  {training.total_images:,} images in {training.total_steps:,} steps of {training.batch_size}, "
            f"{training.precision} on {best_device()}: {3 * cost.macs * training.total_images / 1e15:.3g} PMAC",
            f"  memory: {size(cost.states + cost.activations)} = {size(cost.states)} for weights, gradients, Adam and "
            f"average + {size(cost.activations)} that {micro} images at once keep for the backward pass; "
            f"not counted: {left_out}{frozen}",
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
