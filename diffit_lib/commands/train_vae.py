"""`diffit train-vae`."""

from typing import Any

from diffit_lib.presets_vae import vae_preset


def run_train_vae(name: str, run: str | None = None, **overrides: Any) -> None:
    """Train an autoencoder's preset; started again on the same folder, go on where it stopped.

    Args:
        name: preset
        run: run folder, runs/NAME unless given
    """
    recipe = vae_preset(name).override(**overrides)
    from diffit_lib.tasks.train_vae import train_vae

    print(f"weights: {train_vae(recipe, run or f'runs/{name}')}")
