"""`train-vae`: an autoencoder's recipe in, a run folder with its weights out; started again, it goes on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from diffit_lib.checkpoints.autoencoders import VAECard, save_vae
from diffit_lib.config.experiment import VAEExperimentConfig
from diffit_lib.data.datasets import Images, Split, experiment_data
from diffit_lib.evaluation.reconstruction import comparison, measure_vae, reconstructions
from diffit_lib.models.latent_space import LatentSpace
from diffit_lib.models.lpips import SMALLEST, load_perceptual
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.training.autoencoder import AutoencoderModule, latent_statistics
from diffit_lib.training.fit import fit, settled_precision, start
from diffit_lib.training.logs import MetricsLog, RunLog
from diffit_lib.training.run_dir import WEIGHTS, keep_newest
from diffit_lib.training.snapshot import show_reals
from diffit_lib.utils.distributed import in_turn, rank_info
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.logging import say
from diffit_lib.utils.plots import vae_curves, write_figure, write_png
from diffit_lib.utils.tensors import device_name

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
    """Train `recipe` in the folder `run` and return the path of the autoencoder's weights.

    Folder, name, checkpoint and the two hooks are as for `train`. Where LPIPS cannot be had at the start, that is said,
    and the run does without it for good.
    """
    with RunLog() as log:
        with in_turn():
            data = data or experiment_data(experiment)
        settle = partial(resolve_vae, train=data.train)
        experiment, folder = start(experiment, run, name, data.train.fingerprint(), settle, log)
        with in_turn():
            perceptual = load_perceptual(experiment.loss.vgg) if experiment.loss.perceptual_weight else None
        network = KLAutoencoder(experiment.network).to(memory_format=torch.channels_last)
        module = AutoencoderModule(network, experiment, data.train, perceptual)
        if rank_info().rank == 0:
            show_reals(folder, data.train)
        record = MetricsLog(folder, experiment)

        def tell(module: AutoencoderModule) -> None:
            after_save()
            show(module, run=folder, experiment=experiment, data=data, record=record)
            keep_newest(folder, module.images_seen, experiment.training.keep)
            after_report()

        with record:
            fit(module, folder, tell, progress=progress)
    return folder / WEIGHTS


def resolve_vae(
    experiment: VAEExperimentConfig, before: VAEExperimentConfig | None, train: Images
) -> VAEExperimentConfig:
    """Settle what depends on the data and the device; `before` is what the run began with, None at its beginning."""
    shape = tuple(train.images.shape[1:])
    check(
        shape == experiment.network.shape,
        f"{experiment.name} is built for images of (channels, height, width) {experiment.network.shape}, "
        f"but {train.name} has {shape}; set in_channels and image_size, or take other data",
    )
    if experiment.loss.perceptual_weight:
        perceives = can_perceive(experiment) if before is None else before.loss.perceptual_weight > 0
        experiment = experiment if perceives else experiment.override(perceptual_weight=0.0)
    return experiment.override(precision=settled_precision(experiment.training))


def can_perceive(experiment: VAEExperimentConfig) -> bool:
    """Whether LPIPS can be had; why it cannot is said."""
    try:
        check(
            min(experiment.network.image_size) >= SMALLEST,
            f"LPIPS takes images of {SMALLEST} pixels a side or more, these are of {experiment.network.image_size}",
        )
        load_perceptual(experiment.loss.vgg)
    except DiffitError as error:
        say(f"{experiment.name} trains without the perceptual loss, since {error}")
        return False
    return True


def show(
    module: AutoencoderModule, run: Path, experiment: VAEExperimentConfig, data: Split, record: MetricsLog
) -> None:
    """Write the averaged weights, held-out originals over their reconstructions, a row of numbers and its curves.

    In the last report, more training images' latents are measured, and rFID is taken.
    """
    last, device = module.trainer.should_stop, module.device
    mean, std = latent_statistics(
        module.average, data.train, MOST if last else SOME, device, experiment.training.precision
    )
    space = LatentSpace(module.average, torch.tensor(mean, device=device), torch.tensor(std, device=device))
    count = min(MEASURED, len(data.test))
    held = data.test.images[torch.arange(count) * len(data.test) // count]
    numbers = measure_vae(space, held, vgg=experiment.loss.vgg, rfid=last)
    card = VAECard(
        experiment=experiment,
        mean=mean,
        std=std,
        trained_on=f"{data.train.name} {module.fingerprint}",
        images_seen=module.images_seen,
        minutes=round(module.seconds / 60, 2),
        device=device_name(device),
        numbers=numbers,
    )
    save_vae(run / WEIGHTS, card, module.average)
    shown = held[torch.arange(min(GRID, count)) * count // min(GRID, count)]  # spread as evenly, so of all classes
    write_png(run / f"samples/{module.images_seen:09d}.png", comparison(shown, reconstructions(space, shown)))
    row = {
        "images": module.images_seen,
        "seconds": round(module.seconds, 1),
        **module.mean_terms(),
        **{name: value for name, value in numbers.items() if name != "images"},
        "grad_norm": float(module.grad_norm),
        "skipped": module.skipped,
    }
    write_figure(run / "loss.png", vae_curves(record(row)))
