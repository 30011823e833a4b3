"""`diffit train`."""

from typing import Any

from diffit_lib.presets import preset


def run_train(name: str, run: str | None = None, **overrides: Any) -> None:
    """Train a preset; started again on the same folder, go on where it stopped.

    Args:
        name: preset
        run: run folder, runs/NAME unless given
    """
    recipe = preset(name).override(**overrides)
    from diffit_lib.tasks.train import train

    print(f"weights: {train(recipe, run or f'runs/{name}')}")
