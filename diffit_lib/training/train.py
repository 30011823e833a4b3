"""`train`: an experiment in, a run folder with weights out; started again, it resumes."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from diffit_lib.checkpoints.autoencoders import VAECard, load_space
from diffit_lib.checkpoints.weights import ModelCard, build_denoiser, image_shape, save_weights, warm_start
from diffit_lib.config.diffusion import VPConfig
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import PRESETS
from diffit_lib.data.datasets import Images, Split
from diffit_lib.data.latent_cache import CachedLatents
from diffit_lib.models.latent_space import PIXEL_SPACE, Space
from diffit_lib.models.lora import add_lora
from diffit_lib.sampling.classes import in_turn
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.training.diffusion import DiffusionModule, loss_by_level
from diffit_lib.training.encode import fingerprint_of_states, load_states, to_states
from diffit_lib.training.fit import check_device, check_shape, fit, start
from diffit_lib.training.logs import MetricsLog, read_rows, run_log
from diffit_lib.training.online_metrics import OnlineMetric
from diffit_lib.training.run_dir import CHECKPOINT, METRICS, WEIGHTS
from diffit_lib.utils.distributed import from_rank_zero, rank_info, rank_zero_first, share_out
from diffit_lib.utils.errors import check
from diffit_lib.utils.files import PRETRAINED
from diffit_lib.utils.plots import enlargement, loss_curve, tile, write_figure, write_png
from diffit_lib.utils.tensors import best_device, to_uint8

GRID, ROW = 32, 8  # images drawn at every report, of which a row is drawn in any case,
SHARE = 1 / 8  # and the others if they take less than this share of the time between two reports


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
    """Train `experiment` in the folder `run` and return the path of its weights.

    Without `run` the folder is new, `runs/00003-NAME`; `name` defaults to the experiment's. If the folder holds a
    checkpoint of this experiment, training resumes from it, bit-exactly on a CPU. `after_save` is called when a new
    checkpoint is in the folder, `after_report` when all that belongs to it is.
    """
    with run_log(run) as open_log:
        with rank_zero_first():
            space, vae = load_space(experiment.vae)
            space.to(best_device())
            data = data or load_states(experiment, space, vae)
        images = fingerprint_of_states(experiment, space, data.train)
        experiment, folder = start(
            experiment, run, name, images, lambda asked, _: resolve(asked, data.train, vae), open_log
        )
        denoiser, licence = build_denoiser(experiment), ""
        if experiment.init_weights and not (folder / CHECKPOINT).is_file():
            with rank_zero_first():
                licence = warm_start(denoiser, experiment.init_weights).licence
        if experiment.lora_rank:
            add_lora(denoiser.network, experiment.lora_rank)
        denoiser.to(memory_format=torch.channels_last)
        if rank_info().rank == 0:
            write_reals(folder, data.train, space)
        states = to_states(experiment, space, data)
        module = DiffusionModule(denoiser, experiment.training, states.train, space)
        module.licence = licence or module.licence
        metric = OnlineMetric(data.train, best_device())
        snapshot = partial(write_snapshot, run=folder, experiment=experiment, vae=vae, test=states.test, metric=metric)
        return fit(module, experiment, folder, snapshot, progress, after_save, after_report)


def resolve(experiment: ExperimentConfig, train: Images, vae: VAECard | None = None) -> ExperimentConfig:
    """Settle what depends on data and device; refuse a network that does not fit the data."""
    network, wanted = experiment.network, image_shape(experiment, vae)
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
    labels, start = in_turn(card, GRID), time.monotonic()

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
    write_png(run / name, tile(samples, columns=ROW, scale=enlargement(samples)))
    row = {
        **module.row(terms, {"test_loss": sum(levels.values()) / len(levels)}),
        **distance,
        **{f"test_loss_{sigma:.3g}": loss for sigma, loss in levels.items()},
    }
    if metric.is_best(row, rows):
        best = replace(card, chosen_by=metric.kind)
        save_weights(run / "best.safetensors", best, module.average, module.model, module.space)
    write_figure(run / "loss.png", loss_curve(log.add(row), expected_rows(experiment)))


def write_reals(run: Path, train: Images, space: Space = PIXEL_SPACE) -> None:
    """Write a grid of training images, decoded from latents if need be, as many of each class as are drawn."""
    classes = max(1, len(train.class_names))
    found = [(train.labels == label).nonzero()[: -(-GRID // classes), 0] for label in range(min(classes, GRID))]
    turns = [int(each[turn]) for turn in range(max(map(len, found))) for each in found if turn < len(each)]
    images = train.images[torch.tensor(turns[:GRID] or [0])]
    if images.is_floating_point():  # moments of latents
        images = to_uint8(space.decode(space.encode(images))).cpu()
    pictures = images.permute(0, 2, 3, 1).numpy()
    write_png(run / "reals.png", tile(pictures, columns=ROW, scale=enlargement(pictures)))


def expected_rows(experiment: ExperimentConfig) -> list[dict[str, str]]:
    """The rows of the pretrained weights of the same preset, if data, network and kind of denoiser are the same."""
    usual, mine = PRESETS.get(experiment.name), (experiment.data, experiment.network, experiment.denoiser.kind)
    same = usual is not None and (usual.data, usual.network, usual.denoiser.kind) == mine
    return read_rows(PRETRAINED / f"{experiment.name}.csv") if same else []
