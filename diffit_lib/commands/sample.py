"""`diffit sample`."""

from typing import Any, Literal

from diffit_lib.options import parse_grid, parse_numbers, parse_seeds


def run_sample(
    weights: str,
    out: str = "samples",
    seeds: str | int | None = None,
    classes: str | int | list[str | int] | None = None,
    per_class: int | None = None,
    guidance: float | list[float] | str | None = None,
    grid: str | None = None,
    format: Literal["png", "zip", "npz", "grid"] = "png",
    trajectory: bool = False,
    batch_size: int = 64,
    protocol: Literal["round", "adm"] = "round",
    **settings: Any,
) -> None:
    """Draw images from weights; started again on the same folder, go on where it stopped.

    Args:
        weights: weights file, or the name of ready-made weights
        out: folder for the images, their grid, index.csv and settings.json
        seeds: one image each, e.g. 0-63,100; 0-63 unless given
        classes: by name or number, e.g. 3 or cat,dog; the seeds get several in turn; drawn from the seed unless given
        per_class: images of each class, the seeds used anew for each; without --seeds all have noise of their own
        guidance: strength of classifier-free guidance, or several, e.g. 1,2,4, each in a folder of its own
        grid: columns and rows of grid.png, e.g. 8x8; with --per-class each row is a class
        format: PNG files, one zip, the npz that public evaluators read, or the grid alone
        trajectory: show how the first images come out of noise, as a PNG for each step, a strip and a GIF
        batch_size: images drawn at once; small ones divide better among several processes
        protocol: adm truncates to whole numbers, as the published evaluators do
    """
    numbers = None if seeds is None else parse_seeds(str(seeds))
    scales = parse_numbers("guidance", guidance) if isinstance(guidance, str) else guidance
    shape = None if grid is None else parse_grid(grid)
    from diffit_lib.tasks.album import PLACES
    from diffit_lib.tasks.sample import sample

    folders = sample(
        weights,
        out,
        numbers,
        classes,
        per_class=per_class,
        guidance=scales,
        grid=shape,
        format=format,
        trajectory=trajectory,
        batch_size=batch_size,
        protocol=protocol,
        **dict(settings),
    )
    for folder in folders:
        print(f"images: {folder / PLACES[format]}; which is which: {folder}/index.csv")
