"""`make figures` also draws what the pretrained weights make, for README and docs: the first seeds, none rejected."""

from pathlib import Path

from diffit_lib.sampling.grids import draw_grid, draw_strip, draw_sweep, show
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.utils.files import PRETRAINED, replacing
from diffit_lib.utils.plots import enlargement, tile, write_figure, write_png
from diffit_lib.utils.tensors import cpu_threads
from diffit_lib.viz.figures import gif, time_token_figure

IMAGES = Path(__file__).resolve().parent.parent / "images"


def moving(pipe: Pipeline, columns: int = 5, side: int = 128) -> bytes:
    """An image of each class on its way from noise, with guidance 2, as a GIF."""
    labels = range(min(10, pipe.card.experiment.network.num_classes))
    pictures = [show(pipe, state) for state in pipe.stream(labels, labels, guidance=2.0)]
    return gif([tile(images, columns, scale=enlargement(images, side)) for images in pictures])


if __name__ == "__main__":
    with cpu_threads(1):
        for path in PRETRAINED.glob("*.safetensors"):
            if not path.stem.startswith("vae-"):
                write_png(path.with_suffix(".png"), draw_grid(load(path)))
        mnist = load("mnist")
        with replacing(IMAGES / "denoising.gif") as beside:
            beside.write_bytes(moving(mnist))
        write_png(IMAGES / "denoising.png", draw_strip(mnist))
        write_png(IMAGES / "guidance.png", draw_sweep(mnist, (0, 1, 2, 4)))
        write_figure(IMAGES / "time_token.png", time_token_figure(mnist, 5, 5, sigma=1.0, query=(7, 5)))
