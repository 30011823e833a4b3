"""`diffit train`."""

from typing import Any

from diffit_lib.options import asked_for
from diffit_lib.presets import PRESETS


def run_train(
    preset: str | None = None, run: str | None = None, name: str | None = None, dry_run: bool = False, **overrides: Any
) -> None:
    """Train a preset in a new folder, runs/00003-NAME; --run FOLDER goes on where that one stopped.

    Args:
        preset: its name
        run: the very folder
        name: of a new run, the preset's unless given
        dry_run: say what it takes
    """
    recipe = asked_for(PRESETS, preset, run, overrides)
    if dry_run:
        from diffit_lib.tasks.dry_run import dry_run_train

        print(dry_run_train(recipe))
        return
    from diffit_lib.tasks.train import train

    print(f"weights: {train(recipe, run, name=name)}")
