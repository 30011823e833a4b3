"""Memory: what this machine grants, and how much of it threads take at once."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Condition


def total_memory(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process and its siblings may take: the machine's, or a container's or batch job's if fewer.

    Limits of a cgroup (v2: memory.max, v1: memory.limit_in_bytes) hold for all groups inside it.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, kinds, group = line.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        top, name = (root / "memory", "memory.limit_in_bytes") if kinds else (root, "memory.max")
        inner = top / group.strip("/")  # a container sees its own group at the top, whatever the line says
        for file in (folder / name for folder in (inner, *inner.parents) if folder.is_relative_to(top)):
            if file.is_file() and (text := file.read_text().strip()).isdecimal():  # else "max"
                limits.append(int(text))
    return min(limits)


def reuse_freed_memory() -> None:
    """Let glibc keep the large blocks that this process frees; nothing where there is no glibc.

    It gives them back to the system otherwise, and a training step on a CPU spends a tenth of its time getting new
    ones.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
            libc.mallopt(parameter, 2**31 - 1)


class Budget:
    """An amount that threads share: each waits for what it takes. One that wants more than all has it alone."""

    def __init__(self, total: int):
        self.total = self.free = total
        self.changed = Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Hold this much."""
        amount = min(amount, self.total)
        with self.changed:
            self.changed.wait_for(lambda: self.free >= amount)
            self.free -= amount
        try:
            yield
        finally:
            with self.changed:
                self.free += amount
                self.changed.notify_all()
