"""One command in several processes: torch's launcher starts them, and only the first one prints."""

import logging
import os
import sys
import tempfile
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

from diffit_lib.utils.errors import DiffitError, check

GRACE = "300"  # seconds a process has for its last checkpoint after SIGTERM, before it is killed
PATIENCE = 3.0  # seconds for the launcher to end all processes after one printed an error
TOLD = "DIFFIT_TOLD"  # environment variable: the file by which the first process to fail silences the others


class NoNumber(ArgumentTypeError, ValueError):
    """For argparse, and for jsonargparse, which reads files of options."""


def number(words: str | int) -> int:
    """`--num-nodes`."""
    if str(words).isdecimal() and int(words) > 0:
        return int(words)
    raise NoNumber(f"{words!r} is no number above 0")


def number_or_auto(words: str | int) -> str | int:
    """`--devices`; `count` looks up "auto", with torch."""
    return words if words == "auto" else number(words)


def is_distributed() -> bool:
    """Whether torchrun, srun or `launch` has started this process, as one of several or alone."""
    return "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def launch(words: Sequence[str], processes: int, num_nodes: int) -> int:
    """Run `diffit WORDS` in so many processes on this machine, one for each device; return the exit status.

    The status is that of the first process to fail; 143: SIGTERM stopped the run, and the same command resumes it.
    """
    import torch
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    gpus = torch.cuda.device_count()
    check(processes <= gpus or not gpus, f"devices is {processes}, but this machine has {gpus} GPUs; give auto for all")
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "29400")
    check(
        num_nodes == 1 or address != "",
        f"num_nodes is {num_nodes}, and nobody says where they meet; set MASTER_ADDR to the first one's name, and give "
        "the same command on each",
    )
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    config = LaunchConfig(
        min_nodes=num_nodes,
        max_nodes=num_nodes,
        nproc_per_node=processes,
        run_id="diffit",
        rdzv_backend="c10d",
        rdzv_endpoint=f"{address}:{port}" if num_nodes > 1 else "localhost:0",
        max_restarts=0,
    )
    logging.disable()  # of the launcher's own words: the processes have told what is wrong
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ[TOLD] = f"{folder}/told"
            elastic_launch(config, sys.executable)("-m", "diffit_lib", *words)
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return 128 - status if status < 0 else status  # ended by a signal, as a shell has it
    except SignalException as signal:
        return 128 + signal.sigval
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop(TOLD, None)
    return 0


def count(given: int | str) -> int:
    """A number of devices; "auto" are all GPUs here, or one CPU."""
    if given != "auto":
        return int(given)
    import torch

    return max(1, torch.cuda.device_count())


@contextmanager
def join_group(given: int | str, num_nodes: int) -> Iterator[None]:
    """Make this process one of several: it takes its own GPU, and only the first one prints.

    An error is printed once, by the first process to see it; the others fail of the same, or because that one ended.
    """
    if not is_distributed():
        yield
        return
    import torch

    from diffit_lib.utils.distributed import export_rank, local_device, rank_info

    export_rank()
    rank, world, _ = rank_info()
    if local_device().type == "cuda":
        torch.cuda.set_device(local_device())
    with open(os.devnull, "w") as nobody:
        try:
            check(
                given == num_nodes == 1 or count(given) * num_nodes == world,
                f"devices {given} times num_nodes {num_nodes} is not the number of processes, {world}; leave both out, "
                "for whoever starts the processes counts them",
            )
            with redirect_stdout(nobody) if rank else nullcontext(), redirect_stderr(nobody) if rank else nullcontext():
                yield
        except Exception as error:
            if world > 1 and not speaks_first(rank == 0 and isinstance(error, DiffitError)):
                raise SystemExit(1) from None
            raise


def speaks_first(surely: bool) -> bool:
    """Whether this process prints the error; without our own launcher it waits first, unless `surely` the first."""
    if TOLD not in os.environ:
        time.sleep(0 if surely else PATIENCE)
        return True
    try:
        os.close(os.open(os.environ[TOLD], os.O_CREAT | os.O_EXCL))
    except OSError:  # another one has; or the launcher is gone
        time.sleep(PATIENCE)
        return False
    return True
