"""What the notebooks' cells call, by name. The names are imported when they are first used."""

from importlib import import_module
from typing import Any

_NAMES = {
    "notebook.cells": "class_examples closing_card count_images legibility load_published measure_samples open_weights "
    "results_table sampling_settings show_figures tile_columns train_live untrained",
    "notebook.drive": "copies_folder",
    "notebook.form": "choose_vae choose_weights open_run start start_latent weights_for",
    "diffusion.schedules": "karras",
    "evaluation.reconstruction": "comparison reconstructions",
    "models.blocks": "DiffiTBlock TMSA",
    "models.cost": "parameters",
    "sampling.grids": "draw_grid draw_strip draw_sweep",
    "training.steps": "loss_by_level",
    "utils.plots": "latent_maps level_curves tile",
    "utils.tensors": "SeededNoise best_device to_float",
    "viz.explorer": "explore",
    "viz.figures": "denoising_figure frozen_time_figure picture_rows preconditioning_figure schedules_figure "
    "time_token_figure",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"diffit_lib.{_HOMES[name]}"), name)
