"""`diffit train-vae`."""

from typing import Any

from diffit_lib.options import asked_for
from diffit_lib.presets_vae import vae_preset
from diffit_lib.recipe import VAERecipe


def run_train_vae(
    preset: str | None = None, run: str | None = None, name: str | None = None, dry_run: bool = False, **overrides: Any
) -> None:
    """Train an autoencoder's preset in a new folder, runs/00003-NAME; --run FOLDER goes on where that one stopped.

    Args:
        preset: its name
        run: the very folder
        name: of a new run, the preset's unless given
        dry_run: say what it takes
    """
    recipe = asked_for(VAERecipe, vae_preset, preset, run, overrides)
    if dry_run:
        from diffit_lib.tasks.dry_run import dry_run_vae

        print(dry_run_vae(recipe))
        return
    from diffit_lib.tasks.train_vae import train_vae

    print(f"weights: {train_vae(recipe, run, name=name)}")
