"""`diffit edit`: an image file drawn anew, all of it or where a mask is white, into a folder."""

from pathlib import Path
from typing import Any

from diffit_lib.cli import options
from diffit_lib.utils.errors import DiffitError, check


def run_edit(
    weights: str,
    image: str,
    mask: str | None = None,
    strength: float | None = None,
    seeds: str | int = "0-7",
    classes: str | int | list[str | int] | None = None,
    out: str = "edits",
    **settings: Any,
) -> None:
    """Draw an image anew: variations of all of it, or only what is white in a mask.

    Args:
        weights: Weights file, run folder, or the name of pretrained weights.
        image: Image file; cropped and resized as the training data were.
        mask: Image file of the same size; only where it is white is the image drawn.
        strength: Share of the sampling steps that run, from 0 (the image) to 1; by default 0.5, or 1 with a mask.
        seeds: One image for each seed, e.g. 0-63,100.
        classes: Classes by name or number, e.g. 3 or cat,dog, in turn for the seeds; by default none.
        out: New folder for the images, and grid.png, in which the given image comes first.
    """
    import numpy as np

    from diffit_lib.data.preprocess import to_pixels
    from diffit_lib.sampling.pipeline import load
    from diffit_lib.sampling.sample import class_numbers
    from diffit_lib.utils.plots import enlargement, tile, write_png

    folder, numbers = Path(out), options.parse_seeds(str(seeds))
    check(not folder.exists() or not any(folder.iterdir()), f"{folder} is not empty; give another folder")
    pipe, picture = load(weights), read(image)
    (channels, height, width), crop = pipe.card.image_shape, pipe.card.experiment.crop
    known, hole = to_pixels(picture, (height, width), channels, crop).movedim(0, -1).numpy(), None
    if mask is not None:
        white = read(mask)
        sizes = f"{white.width}x{white.height} pixels, {image} has {picture.width}x{picture.height}"
        check(white.size == picture.size, f"{mask} has {sizes}; give a mask of the image's size")
        hole = to_pixels(white, (height, width), 1, crop)[0].numpy()
    words = class_numbers(pipe, classes) or ["none"]
    words = ["none" if word == pipe.card.experiment.network.num_classes else word for word in words]
    labels = [words[k % len(words)] for k in range(len(numbers))]
    images = pipe(numbers, labels, image=known, mask=hole, strength=strength, **dict(settings))
    for seed, drawn in zip(numbers, images, strict=True):
        write_png(folder / f"{seed:06d}.png", drawn)
    shown = np.concatenate([known[None], images])
    write_png(folder / "grid.png", tile(shown, min(len(shown), 9), scale=enlargement(shown)))
    print(f"images: {folder}; the image and all edits: {folder}/grid.png")


def read(path: str) -> Any:
    """The picture in a file, a PIL image."""
    from diffit_lib.data.preprocess import to_picture

    try:
        return to_picture(Path(path).read_bytes())
    except ValueError as error:
        raise DiffitError(f"{path} cannot be read ({error}); give an image, e.g. a PNG or JPEG file") from error
