"""`sample`: seeds in, PNG files out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffit_lib.errors import check
from diffit_lib.pipeline import Labels, load
from diffit_lib.plots import enlargement, tile, write_png


def sample(
    weights: str | Path, out: str | Path, seeds: Sequence[int], labels: Labels = None, **settings: Any
) -> list[Path]:
    """Draw one image per seed into the folder `out`, one PNG each and all of them in `grid.png`; return the paths.

    `labels` and `settings` are those of `Pipeline.__call__`.
    """
    twice = [seed for seed, times in Counter(seeds).items() if times > 1]
    check(not twice, f"seed {twice and twice[0]} is given more than once, and names one file; give each seed once")
    images = load(weights)(seeds, labels, **settings)
    paths = [Path(out) / f"{seed:06d}.png" for seed in seeds]
    for path, image in zip(paths, images, strict=True):
        write_png(path, image)
    columns = max(1, round(len(images) ** 0.5))
    write_png(Path(out) / "grid.png", tile(images, columns, scale=enlargement(images)))
    return paths
