"""`train`: a recipe in, a run folder with weights out; started again, it goes on where it stopped."""

from collections.abc import Callable
from pathlib import Path

import torch

from diffit_lib.checkpoints.autoencoders import VAECard, load_space
from diffit_lib.checkpoints.weights import build_denoiser, image_shape, warm_start
from diffit_lib.config.diffusion import VPConfig
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.data.datasets import Images, Split
from diffit_lib.data.latent_cache import CachedLatents
from diffit_lib.training.diffusion import DiffusionModule
from diffit_lib.training.encode import fingerprint_of_states, load_states, to_states
from diffit_lib.training.fit import CHECKPOINT, fit, settled_precision, start
from diffit_lib.training.logs import MetricsLog, RunLog
from diffit_lib.training.online_metrics import OnlineMetric
from diffit_lib.training.run_dir import WEIGHTS, keep_newest
from diffit_lib.training.snapshot import show, show_reals
from diffit_lib.utils.distributed import in_turn, rank_info
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.tensors import best_device


def train(
    experiment: ExperimentConfig,
    run: str | Path | None = None,
    data: Split | None = None,
    *,
    name: str | None = None,
    progress: bool = True,
    after_save: Callable[[], None] = lambda: None,
    after_report: Callable[[], None] = lambda: None,
) -> Path:
    """Train `recipe` in the folder `run` and return the path of its weights.

    Without a folder it is a new one, `runs/00003-NAME`; `name` is the recipe's unless given. Where the folder
    holds a checkpoint of this recipe, training goes on from it, to the bit on a CPU. `after_save` is called whenever a
    new checkpoint lies in the folder, `after_report` once all that belongs to it does.
    """
    with RunLog() as log:
        with in_turn():
            space, vae = load_space(experiment.vae)
            space.to(best_device())
            data = data or load_states(experiment, space, vae)
        images = fingerprint_of_states(experiment, space, data.train)
        experiment, folder = start(
            experiment, run, name, images, lambda experiment, _: resolve(experiment, data.train, vae), log
        )
        denoiser = build_denoiser(experiment)
        if experiment.init_weights and not (folder / CHECKPOINT).is_file():
            with in_turn():
                warm_start(denoiser, experiment.init_weights)
        denoiser.to(memory_format=torch.channels_last)
        if rank_info().rank == 0:
            show_reals(folder, data.train, space)
        states = to_states(experiment, space, data)
        module = DiffusionModule(denoiser, experiment.training, states.train, space)
        watch, record = OnlineMetric(data.train, best_device()), MetricsLog(folder, experiment)

        def tell(module: DiffusionModule) -> None:
            after_save()
            show(module, run=folder, experiment=experiment, vae=vae, test=states.test, watch=watch, record=record)
            keep_newest(folder, module.images_seen, experiment.training.keep)
            after_report()

        with record:
            fit(module, folder, tell, progress=progress)
    return folder / WEIGHTS


def resolve(experiment: ExperimentConfig, train: Images, vae: VAECard | None = None) -> ExperimentConfig:
    """Settle what depends on the data and the device; a network that does not fit the data is refused."""
    network, shape, wanted = experiment.network, tuple(train.images.shape[1:]), image_shape(experiment, vae)
    if isinstance(train, CachedLatents):
        channels, height, width = network.shape
        wanted = 2 * channels, height, width
    if shape != wanted:
        what = "moments of latents" if isinstance(train, CachedLatents) else "images"
        raise DiffitError(
            f"{experiment.name} is built for {what} of (channels, height, width) {wanted}, but {train.name} has "
            f"{shape}; set in_channels and image_size, or take other data"
        )
    classes = len(train.class_names)
    if network.num_classes not in (0, classes):
        raise DiffitError(
            f"{experiment.name} has num_classes={network.num_classes}, but {train.name} has {classes} classes; "
            f"set num_classes to {f'{classes}, or to ' if classes else ''}0 for an unconditional network"
        )
    if isinstance(experiment.denoiser, VPConfig):
        own_levels, most = (
            not (experiment.denoiser.sigma_min or experiment.denoiser.sigma_max),
            experiment.denoiser.timesteps,
        )
        check(
            not own_levels or experiment.sampling.steps <= most,
            f"steps is {experiment.sampling.steps}; give at most {most}",
        )
    if experiment.training.augment and network.augment_dim == 0:
        raise DiffitError(
            f"augment is {experiment.training.augment} but augment_dim 0; give augment_dim 9, or augment 0"
        )
    if experiment.denoiser.sigma_data is None:
        experiment = experiment.override(sigma_data=1.0 if vae else round(train.standard_deviation(), 4))
    return experiment.override(precision=settled_precision(experiment.training))
