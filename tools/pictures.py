"""`make figures` also draws what the pretrained weights make, for README and docs: the first seeds, none rejected."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from diffit_lib.sampling.grids import draw_grid, draw_strip, draw_sweep, show
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.utils.files import PRETRAINED, replacing
from diffit_lib.utils.plots import enlargement, tile, write_figure, write_png
from diffit_lib.utils.tensors import cpu_threads
from diffit_lib.viz.attention import attention_at, attention_blocks
from diffit_lib.viz.figures import attention_figure, gif

IMAGES = Path(__file__).resolve().parent.parent / "images"


def moving(pipe: Pipeline, columns: int = 5, side: int = 128) -> bytes:
    """An image of each class on its way from noise, with guidance 2, as a GIF."""
    labels = range(min(10, pipe.card.experiment.network.num_classes))
    pictures = [show(pipe, state) for state in pipe.stream(labels, labels, guidance=2.0)]
    return gif([tile(images, columns, scale=enlargement(images, side)) for images in pictures])


def looks(pipe: Pipeline, label: int = 5) -> Figure:
    """Where the middle of an image looks in the coarsest block, at the noise levels on its way from noise."""
    states = list(pipe.stream([label], label))[:-1]
    block = [name for name in attention_blocks(pipe.denoiser.network) if name.startswith("encoder")][-1]
    x, sigmas = torch.cat([state.x for state in states]), [state.sigma for state in states]
    seen = attention_at(pipe, block, x, sigmas, label)
    height, width = seen.map_size
    return attention_figure(seen, np.concatenate([show(pipe, state) for state in states]), (height // 2, width // 2))


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
        write_figure(IMAGES / "attention.png", looks(mnist))
