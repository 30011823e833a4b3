"""Arrays -> PNG and GIF bytes, crisp and fast: what the widgets show."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from diffit_lib.utils.plots import to_image

ORANGE = (255, 127, 14)


def enlarge(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 (H, W, C) -> (H', W', 3): each pixel repeated a whole number of times, to about `side` pixels a side."""
    scale = max(1, round(side / max(picture.shape[:2])))
    return np.repeat(np.repeat(picture, scale, 0), scale, 1).repeat(3 // picture.shape[2], 2)


def png(picture: np.ndarray | Figure) -> bytes:
    """A uint8 picture (H, W, C) or a Figure as PNG."""
    data = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(data, format="png", dpi=110)
    else:
        to_image(picture).save(data, "PNG", compress_level=1)
    return data.getvalue()


def gif(frames: Sequence[np.ndarray]) -> bytes:
    """uint8 pictures (H, W, C) as a GIF of 120 ms a frame that pauses on the last one."""
    images, data = [to_image(frame) for frame in frames], io.BytesIO()
    milliseconds = [120] * (len(images) - 1) + [1500]
    images[0].save(data, "GIF", save_all=True, append_images=images[1:], duration=milliseconds, loop=0)
    return data.getvalue()


def heat(values: np.ndarray, side: int, top: float) -> np.ndarray:
    """Values (H, W) from 0 to `top` -> a uint8 picture in the colours of matplotlib's magma."""
    colours = colormaps["magma"](values / max(top, 1e-9))[..., :3]
    return enlarge(np.round(255 * colours).astype(np.uint8), side)


def outline(picture: np.ndarray, row: int, column: int, rows: int, columns: int) -> np.ndarray:
    """The picture (H, W, 3) with a frame around one place of a grid of rows x columns."""
    picture, (height, width) = picture.copy(), picture.shape[:2]
    top, bottom = row * height // rows, (row + 1) * height // rows
    left, right = column * width // columns, (column + 1) * width // columns
    line = max(2, height // 96)
    for part in (
        np.s_[top : top + line, left:right],
        np.s_[bottom - line : bottom, left:right],
        np.s_[top:bottom, left : left + line],
        np.s_[top:bottom, right - line : right],
    ):
        picture[part] = ORANGE
    return picture


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` places, evenly spread, both ends among them."""
    return sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)})


def strip(pictures: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """uint8 pictures (H, W, 3) of one size side by side on white."""
    height = pictures[0].shape[0]
    white = np.full((height, gap, 3), 255, np.uint8)
    parts = [part for picture in pictures for part in (picture, white)]
    return np.concatenate(parts[:-1], axis=1)
