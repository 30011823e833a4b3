"""Several processes, started by torchrun or srun: which one this is, and what they do together."""

import atexit
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from diffit_lib.utils.errors import check
from diffit_lib.utils.logging import say
from diffit_lib.utils.tensors import best_device

HELD: set[int] = set()  # descriptors of the folders that this process has locked
LATE = 120.0  # seconds: a network drive may show another machine's new file that late

S = TypeVar("S", bound=Sequence[Any] | Tensor)
T = TypeVar("T")


class RankInfo(NamedTuple):
    """Process `rank` of `world`, the `local_rank`-th on its machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0


def rank_info() -> RankInfo:
    """This process's rank, from the variables that torchrun sets, else from srun's."""
    for names in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # sbatch does not set the second
    ):
        if all(name in os.environ for name in names):
            return RankInfo(*(int(os.environ[name]) for name in names))
    return RankInfo()


def export_rank() -> None:
    """Set torchrun's variables from srun's, for torch and Lightning."""
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
    """The number of processes on this machine, the same on every machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", rank_info().world))


def local_device() -> torch.device:
    """The best device of this machine; of several GPUs, the one of this process."""
    device = best_device()
    return torch.device("cuda", rank_info().local_rank % torch.cuda.device_count()) if device.type == "cuda" else device


def wait_for(paths: Iterable[Path], pause: float = 0.2) -> None:
    """Return once this process sees all these files. They have been written: call `barrier` before.

    Raises:
        DiffitError: if a file is missing, with several processes after `LATE` seconds
    """
    end = time.monotonic() + (LATE if rank_info().world > 1 else 0)
    for path in paths:
        while not path.is_file():
            why = f"{path} is missing: it was removed while this command ran; the same command makes it again"
            check(time.monotonic() < end, why)
            time.sleep(pause)


def init_distributed() -> bool:
    """Whether there are several processes. The first call waits until all have joined the process group."""
    if rank_info().world == 1:
        return False
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        export_rank()
        # a long timeout: the others wait while one downloads data or draws a larger share
        dist.init_process_group(backend, rank=rank_info().rank, world_size=rank_info().world, timeout=timedelta(days=7))
        atexit.register(dist.destroy_process_group)
    return True


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other commands out of a folder, which is made if need be; a killed process leaves no lock behind.

    Of the processes of one command the first holds the lock. A line says where a file system has no locks.

    Raises:
        DiffitError: if another command has the folder
    """
    folder = Path(folder)
    if rank_info().rank > 0:
        yield
        return
    while True:
        made, free = not folder.exists(), True
        folder.mkdir(parents=True, exist_ok=True)
        HELD.add(handle := os.open(folder, os.O_RDONLY))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError as error:  # such as some network drives
            say(f"{folder} cannot be locked ({error.strerror}): run no other command on it until this one ends")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(folder)):
                break
        _release(handle)  # whoever had it has deleted it meanwhile
    try:
        check(free, f"another diffit is at work in {folder}; wait until it ends, or give another folder")
        yield
    finally:
        _release(handle)
        if made:
            with suppress(OSError):  # it has been used
                folder.rmdir()


def _release(handle: int) -> None:
    if handle in HELD:
        HELD.remove(handle)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _let_go() -> None:
    """Close a forked process's copies, which would hold the locks for as long as it lives."""
    while HELD:
        os.close(HELD.pop())


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the block in the first process, then in the first of each machine, then in all others.

    The first run fills a cache that the others read, whether or not machines share it.
    """
    turn = 0 if rank_info().rank == 0 else 1 if rank_info().local_rank == 0 else 2
    for _ in range(turn):
        barrier()
    yield
    for _ in range(turn, 2):
        barrier()


def barrier() -> None:
    """Return once every process has called this."""
    if init_distributed():
        dist.barrier()


def from_rank_zero(make: Callable[[], T]) -> T:
    """Call `make` in the first process only, and return its result in all."""
    made = [make() if rank_info().rank == 0 else None]
    if init_distributed():
        dist.broadcast_object_list(made)
    return made[0]  # type: ignore[return-value]


def share_out(work: Callable[[S], T], items: S) -> list[T]:
    """Call `work` on this process's part of the items, and return the results of all parts, in order, in all processes.

    All must call. With fewer items than processes some have no part, and call nothing.
    """
    rank, world, _ = rank_info()
    part: Any = items[len(items) * rank // world : len(items) * (rank + 1) // world]
    results = [work(part) if len(part) else None]
    if init_distributed():
        mine, results = results[0], [None] * world
        dist.all_gather_object(results, mine)
    return [result for result in results if result is not None]


def any_rank(yes: bool) -> bool:
    """Whether it is true in any process; all must call, and get the same answer."""
    if not init_distributed():
        return yes
    flag = torch.tensor(int(yes))  # on the CPU, which does not wait for a GPU
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def mean_over_ranks(values: Tensor) -> Tensor:
    """The mean over all processes, without a gradient."""
    if init_distributed():
        values = values.detach().clone()
        dist.all_reduce(values)
        values /= rank_info().world
    return values
