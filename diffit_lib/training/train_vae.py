"""`train-vae`: an autoencoder's experiment in, a run folder with its weights out; started again, it resumes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from diffit_lib.checkpoints.autoencoders import VAECard
from diffit_lib.checkpoints.safetensors_io import write_checkpoint
from diffit_lib.config.experiment import VAEExperimentConfig
from diffit_lib.data.datasets import Images, Split, experiment_data
from diffit_lib.evaluation.reconstruction import comparison, measure_vae, reconstructions
from diffit_lib.models.latent_space import LatentSpace
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.models.vae_losses import SMALLEST, load_perceptual
from diffit_lib.training.autoencoder import AutoencoderModule, latent_statistics
from diffit_lib.training.fit import check_device, check_shape, fit, start
from diffit_lib.training.logs import MetricsLog, run_log
from diffit_lib.training.run_dir import WEIGHTS
from diffit_lib.training.train import write_reals
from diffit_lib.utils.distributed import rank_info, rank_zero_first
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.logging import say
from diffit_lib.utils.plots import vae_curves, write_figure, write_png

GRID = 16  # held-out images shown at every report
MEASURED = 256  # held-out images measured at every report
SOME, MOST = 2_048, 20_000  # training images whose latents are measured, at a report and at the end


def train_vae(
    experiment: VAEExperimentConfig,
    run: str | Path | None = None,
    data: Split | None = None,
    *,
    name: str | None = None,
    progress: bool = True,
    after_save: Callable[[], None] = lambda: None,
    after_report: Callable[[], None] = lambda: None,
) -> Path:
    """Train `experiment` in the folder `run` and return the path of the autoencoder's weights.

    Folder, name, checkpoint and the two hooks are as for `train`. If LPIPS is not available at the start, the run says
    so and trains without it to its end.
    """
    with run_log(run) as open_log:
        with rank_zero_first():
            data = data or experiment_data(experiment)
        settle = partial(resolve_vae, train=data.train)
        experiment, folder = start(experiment, run, name, data.train.fingerprint(), settle, open_log)
        with rank_zero_first():
            perceptual = load_perceptual(experiment.loss.vgg) if experiment.loss.perceptual_weight else None
        network = KLAutoencoder(experiment.network).to(memory_format=torch.channels_last)
        module = AutoencoderModule(network, experiment, data.train, perceptual)
        if rank_info().rank == 0:
            write_reals(folder, data.train)
        snapshot = partial(write_vae_snapshot, run=folder, experiment=experiment, data=data)
        return fit(module, experiment, folder, snapshot, progress, after_save, after_report)


def resolve_vae(
    experiment: VAEExperimentConfig, before: VAEExperimentConfig | None, train: Images
) -> VAEExperimentConfig:
    """Settle what depends on data and device; `before` is what the run was started with, None for a new run."""
    check_shape(experiment, train, experiment.network.shape)
    if experiment.loss.perceptual_weight:
        perceives = has_lpips(experiment) if before is None else before.loss.perceptual_weight > 0
        experiment = experiment if perceives else experiment.override(perceptual_weight=0.0)
    return experiment.override(precision=check_device(experiment.training))


def has_lpips(experiment: VAEExperimentConfig) -> bool:
    """Whether LPIPS is available; says why if not."""
    try:
        check(
            min(experiment.network.image_size) >= SMALLEST,
            f"LPIPS takes images of {SMALLEST} pixels a side or more, these are of {experiment.network.image_size}",
        )
        load_perceptual(experiment.loss.vgg)
    except DiffitError as error:
        say(f"{experiment.name} trains without the perceptual loss. {error}")
        return False
    return True


def write_vae_snapshot(
    module: AutoencoderModule,
    terms: dict[str, float],
    run: Path,
    experiment: VAEExperimentConfig,
    data: Split,
    log: MetricsLog | None,
) -> None:
    """Write the averaged weights, held-out images over their reconstructions, a row of numbers and its curves.

    The last report measures the latents of more training images, and rFID. All processes measure; the one with a log
    writes.
    """
    last, device = module.trainer.should_stop, module.device
    mean, std = latent_statistics(
        module.average, data.train, MOST if last else SOME, device, experiment.training.precision
    )
    space = LatentSpace(module.average, torch.tensor(mean, device=device), torch.tensor(std, device=device))
    held = data.test.images[data.test.spread(MEASURED)]
    numbers = measure_vae(space, held, vgg=experiment.loss.vgg, rfid=last)
    shown = data.test.images[data.test.spread(GRID)]  # evenly, so of all classes
    again = reconstructions(space, shown)
    if log is None:
        return
    card = VAECard(experiment=experiment, mean=mean, std=std, numbers=numbers, **module.facts())
    write_checkpoint(run / WEIGHTS, card, module.average.state_dict())
    write_png(run / f"samples/{module.images_seen:09d}.png", comparison(shown, again))
    measured = {name: value for name, value in numbers.items() if name != "images"}
    write_figure(run / "loss.png", vae_curves(log.add(module.row(terms, measured))))
