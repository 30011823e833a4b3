"""What a training run leaves in its folder every few minutes: weights, samples, numbers, curves."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from diffit_lib.checkpoints.autoencoders import VAECard
from diffit_lib.checkpoints.weights import ModelCard, save_weights
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import PRESETS
from diffit_lib.data.datasets import Images
from diffit_lib.models.latent_space import PIXEL_SPACE, Space
from diffit_lib.sampling.pipeline import Pipeline, in_turn
from diffit_lib.training.diffusion import DiffusionModule, loss_by_level
from diffit_lib.training.logs import MetricsLog, read_rows
from diffit_lib.training.online_metrics import OnlineMetric
from diffit_lib.training.run_dir import WEIGHTS
from diffit_lib.utils.files import PRETRAINED
from diffit_lib.utils.plots import enlargement, loss_curve, tile, write_figure, write_png
from diffit_lib.utils.tensors import device_name, to_uint8

GRID = 32  # images drawn at every report


def show(
    module: DiffusionModule,
    run: Path,
    experiment: ExperimentConfig,
    vae: VAECard | None,
    test: Images,
    watch: OnlineMetric,
    record: MetricsLog,
) -> None:
    """Write the run's weights, a grid of samples, a row of numbers and its curves; the best weights where these are."""
    card = ModelCard(
        experiment=experiment,
        class_names=module.data.class_names,
        vae=vae,
        trained_on=f"{module.data.name} {module.fingerprint}",
        images_seen=module.images_seen,
        minutes=round(module.seconds / 60, 2),
        device=device_name(module.device),
    )
    save_weights(run / WEIGHTS, card, module.average, module.denoiser, module.space)

    precision = experiment.training.precision
    pipe = Pipeline(module.average, card, module.space, device=module.device, precision=precision)
    start = time.monotonic()
    samples = pipe(seeds=range(GRID), labels=in_turn(card, GRID))
    each = (time.monotonic() - start) / GRID
    name = f"samples/{module.images_seen:09d}.png"
    write_png(run / name, tile(samples, columns=8, scale=enlargement(samples)))

    rows = read_rows(run / "metrics.csv")
    levels = loss_by_level(module.average, test, precision, module.space)
    row = {
        "images": module.images_seen,
        "seconds": round(module.seconds, 1),
        **module.mean_terms(),
        "test_loss": sum(levels.values()) / len(levels),
        "grad_norm": float(module.grad_norm),
        "skipped": module.skipped,
        **watch(pipe, rows, module.seconds, each),
        **{f"test_loss_{sigma:.3g}": loss for sigma, loss in levels.items()},
    }
    if watch.is_best(row, rows):
        best = replace(card, chosen_by=watch.kind)
        save_weights(run / "best.safetensors", best, module.average, module.denoiser, module.space)
    write_figure(run / "loss.png", loss_curve(record(row), expected_rows(experiment)))


def show_reals(run: Path, train: Images, space: Space = PIXEL_SPACE) -> None:
    """Write a grid of training images, as many of each class as samples are drawn; latents are decoded."""
    classes = max(1, len(train.class_names))
    found = [(train.labels == label).nonzero()[: -(-GRID // classes), 0] for label in range(min(classes, GRID))]
    turns = [int(each[turn]) for turn in range(max(map(len, found))) for each in found if turn < len(each)]
    images = train.images[torch.tensor(turns[:GRID] or [0])]
    if images.is_floating_point():  # moments of latents
        images = to_uint8(space.decode(space.encode(images))).cpu()
    pictures = images.permute(0, 2, 3, 1).numpy()
    write_png(run / "reals.png", tile(pictures, columns=8, scale=enlargement(pictures)))


def expected_rows(experiment: ExperimentConfig) -> list[dict[str, str]]:
    """The curve of the ready-made weights of the same preset, if data, network and kind of denoiser are the same."""
    usual = PRESETS.get(experiment.name)
    if usual is None or (experiment.data, experiment.network) != (usual.data, usual.network):
        return []
    if experiment.denoiser.kind != usual.denoiser.kind:
        return []
    return read_rows(PRETRAINED / f"{experiment.name}.csv")
