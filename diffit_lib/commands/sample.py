"""`diffit sample`."""

from typing import Any

from diffit_lib.options import parse_seeds


def run_sample(
    weights: str,
    out: str = "samples",
    seeds: str = "0-63",
    labels: str | None = None,
    **settings: Any,
) -> None:
    """Draw images from weights.

    Args:
        weights: weights file, or the name of ready-made weights
        out: folder for the PNG files and their grid
        seeds: one image each, e.g. 0-63,100
        labels: classes by number or name: 3 for all images, or one per seed, e.g. 0,1,2
    """
    numbers = parse_seeds(seeds)
    chosen = labels.split(",") if labels and "," in labels else labels
    from diffit_lib.tasks.sample import sample

    sample(weights, out, numbers, chosen, **dict(settings))
    print(f"{len(numbers)} images and grid.png: {out}/")
