"""Which of several processes this one is: started by torchrun, by srun, or alone."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from diffit_lib.tensors import best_device


class Place(NamedTuple):
    """Process `rank` of `world`, the `local_rank`-th on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def place() -> Place:
    """This process's place, from what torchrun sets, else srun."""
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # the second stands in steps of srun alone
    ):
        if all(name in os.environ for name in names):
            return Place(*(int(os.environ[name]) for name in names))
    return Place()


def own_device() -> torch.device:
    """The best device here; of several GPUs, that of this process."""
    device = best_device()
    return torch.device("cuda", place().local_rank) if device.type == "cuda" else device


def wait_for(paths: Iterable[Path], pause: float = 0.2) -> None:
    """Return once all files are there, which other processes write; whoever started them ends all if one fails."""
    for path in paths:
        while not path.is_file():
            time.sleep(pause)
