"""Images drawn for a measurement, kept on disk batch by batch: broken off, it goes on where it was.

Several processes share the folder: batch k of the seeds is drawn by process k mod world.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from diffit_lib.files import replacing, sweep
from diffit_lib.metrics import PROTOCOLS
from diffit_lib.pipeline import Labels, Pipeline, per_seed
from diffit_lib.processes import place, wait_for
from diffit_lib.tensors import derive_seed, digest


class Drawn:
    """A folder of drawn images; `after` is called once each batch is in it."""

    def __init__(self, folder: str | Path, after: Callable[[], None] = lambda: None):
        self.folder, self.after = Path(folder), after
        self.used: set[Path] = set()

    def draw(
        self,
        pipe: Pipeline,
        seeds: Sequence[int],
        labels: Labels,
        *,
        batch_size: int,
        protocol: str = "round",
        **settings: Any,
    ) -> list[Path]:
        """Draw this process's share of the images of `Pipeline.batches`; the files of all batches, in order.

        Those in the folder are not drawn again, and what other weights drew goes out of it.
        """
        each = per_seed(labels, len(seeds))
        sampling, weights = json.dumps(vars(pipe.sampling(**settings))), digest(pipe.denoiser.state_dict())
        for stale in set(self.folder.glob("*.safetensors")) - set(self.folder.glob(f"{weights}-*")):
            stale.unlink(missing_ok=True)
        rank, world, _ = place()
        paths: list[Path] = []
        bar = tqdm(range(0, len(seeds), batch_size), "drawing", unit=" batches", leave=False, delay=3)
        for number, first in enumerate(bar):
            part = slice(first, first + batch_size)
            key = derive_seed(
                sampling, pipe.precision, protocol, batch_size, str(seeds[part]), str(each and each[part])
            )
            paths.append(self.folder / f"{weights}-{key:016x}.safetensors")
            if number % world != rank or paths[-1].is_file():
                continue
            drawn = pipe.batches(seeds[part], each and each[part], batch_size=batch_size, **settings)
            images = torch.cat([PROTOCOLS[protocol](batch).cpu() for batch in drawn])
            with replacing(paths[-1]) as beside:  # an autoencoder may answer channels last, which no file takes
                save_file({"images": images.contiguous()}, beside)
            self.after()
        self.used |= set(paths)
        return paths

    def read(self, paths: Sequence[Path]) -> Iterator[Tensor]:
        """What lies in these files, uint8 (B, C, H, W), each as soon as whoever draws it has written it."""
        for path in paths:
            wait_for([path])
            yield load_file(path)["images"]

    def clear(self) -> None:
        """Delete what was drawn or used, and what a kill left of it; the folder too where nothing else is in it."""
        for path in self.used:
            path.unlink(missing_ok=True)
        sweep(self.folder)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()
