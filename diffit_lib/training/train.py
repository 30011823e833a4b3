"""`train`: an experiment in, of a denoiser or an autoencoder, a run folder with weights out; it resumes."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from diffit_lib.checkpoints.autoencoders import VAECard, load_space
from diffit_lib.checkpoints.safetensors_io import write_checkpoint
from diffit_lib.checkpoints.weights import ModelCard, build_denoiser, image_shape, save_weights, warm_start
from diffit_lib.config.diffusion import VPConfig
from diffit_lib.config.experiment import BaseExperimentConfig, ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.presets import PRESETS
from diffit_lib.data.datasets import Images, Split
from diffit_lib.data.latent_cache import CachedLatents, source_of
from diffit_lib.evaluation.reconstruction import comparison, measure_vae, reconstructions
from diffit_lib.models.latent_space import PIXEL_SPACE, LatentSpace, Space
from diffit_lib.models.lora import add_lora
from diffit_lib.models.vae import SMALLEST, KLAutoencoder, load_perceptual
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.training.encode import load_states, to_states
from diffit_lib.training.fit import check_device, check_shape, fit, start
from diffit_lib.training.module import RunModule
from diffit_lib.training.online_metrics import OnlineMetric
from diffit_lib.training.run_dir import CHECKPOINT, METRICS, MetricsLog, run_log
from diffit_lib.training.steps import AutoencoderModule, DiffusionModule, latent_statistics, loss_by_level
from diffit_lib.utils.distributed import from_rank_zero, rank_info, rank_zero_first, share_out
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import PRETRAINED, WEIGHTS, read_rows
from diffit_lib.utils.logging import say
from diffit_lib.utils.plots import loss_curve, tile, vae_curves, write_figure, write_png
from diffit_lib.utils.tensors import best_device, to_uint8

R = TypeVar("R", bound=BaseExperimentConfig)

GRID, ROW = 32, 8  # images drawn at every report, of which a row is drawn in any case,
SHARE = 1 / 8  # and the others if they take less than this share of the time between two reports
SHOWN, MEASURED = 16, 256  # held-out images that an autoencoder's reports show and measure
SOME, MOST = 2_048, 20_000  # training images whose latents are measured, at a report and at the end


def train(
    experiment: ExperimentConfig | VAEExperimentConfig,
    run: str | Path | None = None,
    data: Split | None = None,
    *,
    name: str | None = None,
    progress: bool = True,
    after_save: Callable[[], None] = lambda: None,
    after_report: Callable[[], None] = lambda: None,
) -> Path:
    """Train `experiment`, of a diffusion network or an autoencoder, in the folder `run`; return its weights' path.

    Without `run` the folder is new, `runs/00003-NAME`; `name` defaults to the experiment's. If the folder holds a
    checkpoint of this experiment, training resumes from it, bit-exactly on a CPU. `after_save` is called when a new
    checkpoint is in the folder, `after_report` when all that belongs to it is. If an autoencoder's LPIPS is not
    available at the start, the run says so and trains without it to its end.
    """
    with run_log(run) as open_log:
        with rank_zero_first():
            space, vae = load_space(getattr(experiment, "vae", ""))
            space.to(best_device())
            data = data or load_states(experiment, space, vae)
        images = source_of(space, data.train)
        settle = partial(resolve, train=data.train, vae=vae)
        experiment, folder = start(experiment, run, name, images, settle, open_log)
        if rank_info().rank == 0:
            write_reals(folder, data.train, space)
        if isinstance(experiment, ExperimentConfig):
            module, snapshot = of_denoiser(experiment, folder, data, space, vae)
        else:
            module, snapshot = of_autoencoder(experiment, data)
        snapshot = partial(snapshot, run=folder, experiment=experiment)
        return fit(module, experiment, folder, snapshot, progress, after_save, after_report)


train_vae = train  # by the name it has for autoencoders


def of_denoiser(
    experiment: ExperimentConfig, folder: Path, data: Split, space: Space, vae: VAECard | None
) -> tuple[RunModule, Callable[..., None]]:
    """A denoiser in training, fresh or from other weights, and what its reports write."""
    denoiser, licence = build_denoiser(experiment), ""
    if experiment.init_weights and not (folder / CHECKPOINT).is_file():
        with rank_zero_first():
            licence = warm_start(denoiser, experiment.init_weights).licence
    if experiment.lora_rank:
        add_lora(denoiser.network, experiment.lora_rank)
    denoiser.to(memory_format=torch.channels_last)
    states = to_states(experiment, space, data)
    module = DiffusionModule(denoiser, experiment.training, states.train, space)
    module.licence = licence or module.licence
    metric = OnlineMetric(data.train, best_device())
    return module, partial(write_snapshot, vae=vae, test=states.test, metric=metric)


def of_autoencoder(experiment: VAEExperimentConfig, data: Split) -> tuple[RunModule, Callable[..., None]]:
    """An autoencoder in training, and what its reports write."""
    with rank_zero_first():
        perceptual = load_perceptual(experiment.loss.vgg) if experiment.loss.perceptual_weight else None
    network = KLAutoencoder(experiment.network).to(memory_format=torch.channels_last)
    return AutoencoderModule(network, experiment, data.train, perceptual), partial(write_vae_snapshot, data=data)


def resolve(experiment: R, before: Any, train: Images, vae: VAECard | None = None) -> R:
    """Settle what depends on data and device; refuse data that do not fit. `before`: the options it was begun with."""
    network: Any = experiment.network
    if isinstance(experiment, VAEExperimentConfig):
        check_shape(experiment, train, network.shape)
        if experiment.loss.perceptual_weight:
            perceives = has_lpips(experiment) if before is None else before.loss.perceptual_weight > 0
            experiment = experiment if perceives else experiment.override(perceptual_weight=0.0)
        return experiment.override(precision=check_device(experiment.training))
    assert isinstance(experiment, ExperimentConfig)
    wanted = image_shape(experiment, vae)
    if isinstance(train, CachedLatents):
        channels, height, width = network.shape
        check_shape(experiment, train, (2 * channels, height, width), "moments of latents")
    else:
        check_shape(experiment, train, wanted)
    classes = len(train.class_names)
    check(
        network.num_classes in (0, classes),
        f"{experiment.name} has num_classes={network.num_classes}, but {train.name} has {classes} classes; "
        f"set num_classes to {f'{classes}, or to ' if classes else ''}0 for an unconditional network",
    )
    denoiser, steps = experiment.denoiser, experiment.sampling.steps
    if isinstance(denoiser, VPConfig) and not (denoiser.sigma_min or denoiser.sigma_max):
        check(steps <= denoiser.timesteps, f"steps is {steps}; give at most {denoiser.timesteps}")
    check(
        not experiment.training.augment or network.augment_dim > 0,
        f"augment is {experiment.training.augment} but augment_dim 0; give augment_dim 9, or augment 0",
    )
    if getattr(denoiser, "sigma_data", 1.0) is None:
        experiment = experiment.override(sigma_data=1.0 if vae else round(train.standard_deviation(), 4))
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


def write_snapshot(
    module: DiffusionModule,
    terms: dict[str, float],
    run: Path,
    experiment: ExperimentConfig,
    vae: VAECard | None,
    test: Images,
    metric: OnlineMetric,
    log: MetricsLog | None,
) -> None:
    """Write the weights, a grid of samples, a row of numbers and its curves; the best weights if these are the best.

    All processes draw and measure; the one with a log writes.
    """
    card = ModelCard(experiment=experiment, class_names=module.data.class_names, vae=vae, **module.facts())
    if log is not None:
        save_weights(run / WEIGHTS, card, module.average, module.model, module.space)

    precision = experiment.training.precision
    pipe = Pipeline(module.average, card, module.space, device=module.device, precision=precision)
    labels, start = card.classes_in_turn(GRID), time.monotonic()

    def draw(seeds: range) -> np.ndarray:
        return pipe(seeds, labels and labels[seeds.start : seeds.stop])

    first = range(GRID)[:ROW]
    drawn = share_out(draw, first)
    each = from_rank_zero(lambda: (time.monotonic() - start) / len(first))
    if 0 < each * (GRID - ROW) < 60 * experiment.training.report_minutes * SHARE:
        drawn += share_out(draw, range(ROW, GRID))
    rows = read_rows(run / METRICS)
    levels = loss_by_level(module.average, test, precision, module.space)
    distance = metric(pipe, rows, module.seconds, each)
    if log is None:
        return

    samples, name = np.concatenate(drawn), f"samples/{module.images_seen:09d}.png"
    write_png(run / name, tile(samples, columns=ROW))
    row = {
        **module.row(terms, {"test_loss": sum(levels.values()) / len(levels)}),
        **distance,
        **{f"test_loss_{sigma:.3g}": loss for sigma, loss in levels.items()},
    }
    if metric.is_best(row, rows):
        best = replace(card, chosen_by=metric.kind)
        save_weights(run / "best.safetensors", best, module.average, module.model, module.space)
    write_figure(run / "loss.png", loss_curve(log.add(row), expected_rows(experiment)))


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
    last, device, precision = module.trainer.should_stop, module.device, experiment.training.precision
    mean, std = latent_statistics(module.average, data.train, MOST if last else SOME, device, precision)
    space = LatentSpace(module.average, torch.tensor(mean, device=device), torch.tensor(std, device=device))
    held = data.test.images[data.test.spread(MEASURED)]
    numbers = measure_vae(space, held, vgg=experiment.loss.vgg, rfid=last)
    shown = data.test.images[data.test.spread(SHOWN)]  # evenly, so of all classes
    again = reconstructions(space, shown)
    if log is None:
        return
    card = VAECard(experiment=experiment, mean=mean, std=std, numbers=numbers, **module.facts())
    write_checkpoint(run / WEIGHTS, card, module.average.state_dict())
    write_png(run / f"samples/{module.images_seen:09d}.png", comparison(shown, again))
    measured = {name: value for name, value in numbers.items() if name != "images"}
    write_figure(run / "loss.png", vae_curves(log.add(module.row(terms, measured))))


def write_reals(run: Path, train: Images, space: Space = PIXEL_SPACE) -> None:
    """Write a grid of training images, decoded from latents if need be, as many of each class as are drawn."""
    classes = max(1, len(train.class_names))
    found = [(train.labels == label).nonzero()[: -(-GRID // classes), 0] for label in range(min(classes, GRID))]
    turns = [int(each[turn]) for turn in range(max(map(len, found))) for each in found if turn < len(each)]
    images = train.images[torch.tensor(turns[:GRID] or [0])]
    if images.is_floating_point():  # moments of latents
        images = to_uint8(space.decode(space.encode(images))).cpu()
    pictures = images.permute(0, 2, 3, 1).numpy()
    write_png(run / "reals.png", tile(pictures, columns=ROW))


def expected_rows(experiment: ExperimentConfig) -> list[dict[str, str]]:
    """The rows of the pretrained weights of the same preset, if data, network and kind of denoiser are the same."""
    usual, mine = PRESETS.get(experiment.name), (experiment.data, experiment.network, experiment.denoiser.kind)
    same = usual is not None and (usual.data, usual.network, usual.denoiser.kind) == mine
    return read_rows(PRETRAINED / f"{experiment.name}.csv") if same else []
