"""Which of several processes this one is, started by torchrun, by srun, or alone, and what they do together."""

import atexit
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffit_lib.utils.tensors import best_device

T = TypeVar("T")


class RankInfo(NamedTuple):
    """Process `rank` of `world`, the `local_rank`-th on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def rank_info() -> RankInfo:
    """This process's place, from what torchrun sets, else srun."""
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # the second stands in steps of srun alone
    ):
        if all(name in os.environ for name in names):
            return RankInfo(*(int(os.environ[name]) for name in names))
    return RankInfo()


def export_rank() -> None:
    """Say in torchrun's words, which torch and Lightning know, what srun said in its own."""
    if "RANK" in os.environ or rank_info().world == 1:
        return
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    rank, world, local_rank = rank_info()
    per_node = world // int(os.environ["SLURM_STEP_NUM_NODES"])
    numbers = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": per_node}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    first = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_STEP_NODELIST"])  # "gpu[07-08]" -> "gpu07"
    os.environ.setdefault("MASTER_ADDR", first)
    os.environ.setdefault("MASTER_PORT", str(15000 + int(os.environ["SLURM_JOB_ID"]) % 10000))


def local_world_size() -> int:
    """How many of the processes are on this machine, as many as on any other."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", rank_info().world))


def local_device() -> torch.device:
    """The best device here; of several GPUs, that of this process."""
    device = best_device()
    return torch.device("cuda", rank_info().local_rank % torch.cuda.device_count()) if device.type == "cuda" else device


def wait_for(paths: Iterable[Path], pause: float = 0.2) -> None:
    """Return once all files are there, which other processes write; whoever started them ends all if one fails."""
    for path in paths:
        while not path.is_file():
            time.sleep(pause)


def init_distributed() -> bool:
    """Whether there are several processes; the first time, wait until all are here, ready to talk to each other."""
    if rank_info().world == 1:
        return False
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        # the others wait while the first downloads data or draws samples: who hangs is ended by whoever started all
        dist.init_process_group(backend, rank=rank_info().rank, world_size=rank_info().world, timeout=timedelta(days=1))
        atexit.register(dist.destroy_process_group)
    return True


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """First the first process does what follows, then the first on each machine, then all others.

    For what is downloaded or computed once and then lies in a cache, whether machines share it or not.
    """
    turn = 0 if rank_info().rank == 0 else 1 if rank_info().local_rank == 0 else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(turn, 2):
        barrier()


def barrier() -> None:
    """Return once every process is here."""
    if init_distributed():
        dist.barrier()


def from_rank_zero(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in all of them; called there alone."""
    made = [make() if rank_info().rank == 0 else None]
    if init_distributed():
        dist.broadcast_object_list(made)
    return made[0]  # type: ignore[return-value]


def any_rank(yes: bool) -> bool:
    """True in every process if it is in one: clocks differ, and all must stop at the same step."""
    if not init_distributed():
        return yes
    flag = torch.tensor(int(yes))  # on the CPU: no GPU is waited for
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over all processes, of values without a gradient."""
    if init_distributed():
        values = values.detach().clone()
        dist.all_reduce(values)
        values /= rank_info().world
    return values
