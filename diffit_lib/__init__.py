"""DiffiT (Diffusion Vision Transformers, arXiv 2312.02139): learn it, train it, trust its numbers.

`diffit_lib.load("digits")` opens pretrained weights. The names below are imported when they are first used, so that
`import diffit_lib` and `diffit --help` answer at once.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "sampling.pipeline",
    "Pipeline": "sampling.pipeline",
    "PRESETS": "config.presets",
    "ExperimentConfig": "config.experiment",
    "preset": "config.presets",
    "DiffitError": "utils.errors",
    "load_data": "data.datasets",
    "train": "training.train",
    "train_vae": "training.train",
    "load_vae": "checkpoints.autoencoders",
    "vae_preset": "config.presets",
    "evaluate": "evaluation.evaluate",
    "sample": "sampling.sample",
    "reconstruct": "evaluation.reconstruction",
    "info": "cli.info",
    "demo": "cli.demo",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
