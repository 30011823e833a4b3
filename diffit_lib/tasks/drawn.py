"""Images drawn for a measurement, kept on disk batch by batch: broken off, it goes on where it was."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffit_lib.files import replacing
from diffit_lib.pipeline import Labels, Pipeline, per_seed
from diffit_lib.tensors import derive_seed, digest, to_uint8


class Drawn:
    """A folder of drawn images; `after` is called once each batch is in it."""

    def __init__(self, folder: str | Path, after: Callable[[], None] = lambda: None):
        self.folder, self.after = Path(folder), after

    def batches(
        self, pipe: Pipeline, seeds: Sequence[int], labels: Labels, *, batch_size: int, **settings: Any
    ) -> Iterator[Tensor]:
        """The images of `Pipeline.batches`, uint8 (B, C, H, W): those in the folder are not drawn again.

        What other weights drew goes out of the folder.
        """
        each = per_seed(labels, len(seeds))
        sampling, weights = json.dumps(vars(pipe.sampling(**settings))), digest(pipe.denoiser.state_dict())
        for stale in set(self.folder.glob("*.safetensors")) - set(self.folder.glob(f"{weights}-*")):
            stale.unlink()
        for first in range(0, len(seeds), batch_size):
            part = slice(first, first + batch_size)
            key = derive_seed(sampling, pipe.precision, batch_size, str(seeds[part]), str(each and each[part]))
            path = self.folder / f"{weights}-{key:016x}.safetensors"
            if not path.is_file():
                drawn = pipe.batches(seeds[part], each and each[part], batch_size=batch_size, **settings)
                with replacing(path) as beside:
                    save_file({"images": torch.cat([to_uint8(images).cpu() for images in drawn])}, beside)
                self.after()
            yield load_file(path)["images"]
