"""Times of functions that take turns in one process, and the machine's ceilings to set beside them.

Times are the process's CPU seconds divided by its threads, because other programs may hold the cores.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

Functions = dict[str, Callable[[], Any]]
Times = dict[str, list[float]]  # seconds in each round
Rows = dict[str, dict[str, float]]


def interleaved(functions: Functions, rounds: int) -> Times:
    """Seconds of each function in each round; the first of a round rotates.

    Two rounds before them are not counted: a large network also allocates memory in its second step.
    """
    names, times = list(functions), {name: [] for name in functions}
    for turn in range(-2, rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            functions[name]()
            if turn >= 0:
                times[name].append((time.process_time() - start) / torch.get_num_threads())
    return times


def summary(times: Times, work: dict[str, float]) -> Rows:
    """Milliseconds of each (median, min, max) and `ratio`: the median over the rounds of the first's time over its own.

    Where `work` says how many GFLOP a call has: its rate, and the same ratio of the times per GFLOP.
    """
    rows, (first, times_of_first) = {}, next(iter(times.items()))
    for name, each in times.items():
        ratio = median(a / b for a, b in zip(times_of_first, each, strict=True))
        rows[name] = {"median_ms": 1e3 * median(each), "min_ms": 1e3 * min(each), "max_ms": 1e3 * max(each)}
        rows[name]["ratio"] = ratio
        if name in work:
            rows[name] |= {"gflop": work[name], "gflop_per_s": work[name] / median(each)}
            rows[name]["ratio_per_gflop"] = ratio * work[name] / work[first]
    return rows


def ceilings(precision: str, small: bool) -> tuple[Functions, dict[str, float]]:
    """A matrix product and a convolution in a precision, and their GFLOP: as fast as the machine gets."""
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    size, batch = (64, 1) if small else (1024, 16)
    a, x, w = (torch.randn(shape, dtype=dtype) for shape in ((size, size), (batch, 128, 32, 32), (128, 128, 3, 3)))
    x = x.to(memory_format=torch.channels_last)
    functions = {"a matrix product": lambda: a @ a, "a convolution": lambda: F.conv2d(x, w, padding=1)}
    flop = 2 * size**3, 2 * batch * 1024 * 128 * 128 * 9
    return functions, {name: value / 1e9 for name, value in zip(functions, flop, strict=True)}
