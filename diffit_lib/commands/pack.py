"""`diffit pack`."""

from pathlib import Path
from typing import Literal

from diffit_lib.options import parse_resolution


def run_pack(
    source: str,
    out: str | None = None,
    resolution: str | None = None,
    crop: Literal["center", "long-edge", "adm"] = "center",
    max_images: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Write a data set as one zip of PNG files with dataset.json; stopped and started again, go on.

    Args:
        source: data set by name, or the path of a folder or zip
        out: the zip; SOURCE-WxH.zip here unless given
        resolution: width and height, e.g. 64x48, or 64 for both; every image's own unless given
        crop: largest box; whole image on black; ImageNet's usual one
        max_images: most images to take, evenly spread over all
        skip_bad: leave out and count images that cannot be read, instead of stopping at the first
    """
    size = parse_resolution(resolution)
    suffix = f"-{size[1]}x{size[0]}" if size else ""
    target = out or f"{Path(source).resolve().name.removesuffix('.zip')}{suffix}.zip"
    from diffit_lib.tasks.pack import pack

    path = pack(source, target, size, crop=crop, max_images=max_images, skip_bad=skip_bad)
    print(f"packed: {path}, {path.stat().st_size / 1e6:,.1f} MB")
