"""Whether memory, open files, threads or logs grow: 10,000 steps of training, then 1,000 drawings, in one process.

    python tests/leaks.py [FIGURE.png]    three minutes on a free core; Linux only

Draws what was counted along the way, and prints how much each count grew from a quarter of the way to the end.
"""

import gc
import os
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure

os.environ.setdefault("OMP_NUM_THREADS", "1")

from conftest import TINY

from diffit_lib.data.datasets import load_data
from diffit_lib.sampling.pipeline import load
from diffit_lib.training import online_metrics
from diffit_lib.training.module import Report
from diffit_lib.training.steps import DiffusionModule
from diffit_lib.training.train import train

STEPS, DRAWINGS, SAMPLES, REPORTS = 10_000, 1_000, 100, 10
BOUNDS = {"memory, MB": 8.0, "open files": 0, "threads": 0, "logs, KB": 64.0}  # growth from a quarter to the end
RECIPE = TINY.override(channel_mult=(1,), batch_size=4, steps=2, max_steps=STEPS, keep=2)


def counts(run):
    """What this process holds now, in the order of `BOUNDS`, without the garbage that waits for Python's collector."""
    gc.collect()
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    logs = [*run.glob("*.txt"), *run.glob("*.csv"), *run.glob("tensorboard/*")]
    files, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    return int(status["VmRSS"].split()[0]) / 1024, files, threads, sum(path.stat().st_size for path in logs) / 1024


def measure(folder):
    """The counts along the training, and along the drawings: lists of `SAMPLES` tuples."""
    trained, drawn, begin = [], [], DiffusionModule.on_train_batch_start

    def count(module, batch, number):
        begin(module, batch, number)
        if (module.global_step + 1) % (STEPS // SAMPLES) == 0:
            trained.append(counts(folder))
        if module.global_step % (STEPS // REPORTS) == STEPS // REPORTS // 2:
            next(each for each in module.trainer.callbacks if isinstance(each, Report)).next = 0.0

    DiffusionModule.on_train_batch_start, online_metrics.SHARE = count, 1e9  # every report measures everything
    pipe = load(train(RECIPE, folder, load_data("digits"), progress=False))
    for number in range(DRAWINGS):
        pipe([number], number % 10, steps=2)
        if (number + 1) % (DRAWINGS // SAMPLES) == 0:
            drawn.append(counts(folder))
    return {f"{STEPS:,} steps": trained, f"{DRAWINGS:,} drawings": drawn}


def growth(found):
    """(what, count, at a quarter of the way, at the end, bound) of each."""
    return [
        (what, name, samples[SAMPLES // 4 - 1][k], samples[-1][k], bound)
        for what, samples in found.items()
        for k, (name, bound) in enumerate(BOUNDS.items())
    ]


def draw(found, path):
    """A row of curves for each kind of work, a column for each count."""
    figure = Figure((12, 4), layout="constrained")
    for row, (axes, (what, samples)) in enumerate(zip(figure.subplots(2, len(BOUNDS)), found.items(), strict=True)):
        for axis, name, values in zip(axes, BOUNDS, zip(*samples, strict=True), strict=True):
            axis.plot(range(1, SAMPLES + 1), values)
            axis.set(ylim=(0, 1.2 * max(values)), xlabel=f"% of {what}", title=name if row == 0 else "")
    figure.savefig(path)


def main(figure="leaks.png"):
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder) / "run")
    draw(found, figure)
    print("| in | count | at a quarter | at the end | may grow by |\n|---|---|---|---|---|")
    for what, name, *numbers in growth(found):
        print(f"| {what} | {name} | {' | '.join(f'{number:.1f}' for number in numbers)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
