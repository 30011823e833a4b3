"""`diffit train`."""

from pathlib import Path
from typing import Any

from diffit_lib.errors import check
from diffit_lib.options import asked_for
from diffit_lib.presets import preset as named
from diffit_lib.recipe import Recipe
from diffit_lib.run_folder import OPTIONS


def run_train(
    preset: str | None = None, run: str | None = None, name: str | None = None, dry_run: bool = False, **overrides: Any
) -> None:
    """Train a preset, or what suits the pictures of --data, in a new folder, runs/00003-NAME; --run FOLDER goes on.

    Args:
        preset: its name; without one, and with --data, the pictures decide
        run: the very folder
        name: of a new run, that of the preset or of the pictures unless given
        dry_run: say what it takes
    """
    begun = run is not None and (Path(run) / OPTIONS).is_file()
    pictures = preset is None and "data" in overrides and not begun
    recipe = None if pictures else asked_for(Recipe, named, preset, run, overrides)
    if dry_run:
        from diffit_lib.tasks.describe_data import describe_data
        from diffit_lib.tasks.dry_run import dry_run_train

        if recipe is None:
            others = ", ".join(sorted(overrides.keys() - {"data"}))
            check(not others, f"--dry-run tells what the pictures alone decide, not {others}; name a preset too")
        print(dry_run_train(recipe) if recipe else describe_data(overrides["data"]))
        return
    from diffit_lib.processes import place
    from diffit_lib.tasks.page import write_page
    from diffit_lib.tasks.photos import train_photos
    from diffit_lib.tasks.train import train

    weights = train(recipe, run, name=name) if recipe else train_photos(run=run, name=name, **dict(overrides))
    page = write_page(weights.parent) if place().rank == 0 else None
    print(f"weights: {weights}" + (f"; report: {page}" if page else ""))
