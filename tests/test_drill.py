"""The whole way on two devices: encode, train, SIGTERM, the queue again, sample, evaluate. Two CPU processes stand in
for GPUs, scripts for SLURM, a small network for diffit-xl-2, and digits for ImageNet."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
SLURM = ROOT / "docs" / "slurm.sh"
SMALL = (
    "diffit-xl-2 --vae vae-digits --data latents --in-channels 2 --image-size 4,4 --num-classes 10 --width 32 "
    "--depth 2 --num-heads 2 --batch-size 16 --ema-halflife 500 --lr 1e-3 --max-steps 80 --workers 1 --threads 1 "
    "--report-minutes 0.1 --steps 5 --guidance-channels 2 --precision 32-true"
)
STAND_INS = {
    "diffit": f'exec {sys.executable} -m diffit_lib "$@"',
    "scontrol": 'echo "$@" >> queue',
    "srun": """shift
for task in 0 1; do
    export SLURM_PROCID=$task SLURM_LOCALID=$task
    SLURM_STEP_NUM_TASKS=2 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NODELIST=localhost "$@" & tasks[$task]=$!
done
echo "${tasks[@]}" > tasks
for task in 0 1; do
    wait "${tasks[$task]}"; one=$?
    [ "$one" -gt "${status:-0}" ] && status=$one
done
exit "${status:-0}"
""",
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all of it happens, with scripts in SLURM's place."""
    folder = tmp_path_factory.mktemp("drill")
    for name, script in STAND_INS.items():
        (folder / "bin").mkdir(exist_ok=True)
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def start(folder):
    """A function: a command in the background, by its words; with `slurm` as a job of two tasks."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER"))}
    environment |= {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DIFFIT_CACHE": str(folder / "cache"),
        "SLURM_JOB_ID": "4242",
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }

    def start(words, slurm=False):
        command = ["bash", str(SLURM), *words.split()] if slurm else ["diffit", *words.split()]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=folder, env=environment, **pipes)

    return start


@pytest.fixture(scope="module")
def diffit(start):
    """A function: run a command, which must succeed; its standard output."""

    def diffit(words, slurm=False):
        process = start(words, slurm)
        out, err = process.communicate(timeout=1200)
        assert process.returncode == 0, err
        return out

    return diffit


def wait_until(there, process):
    while not there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def step(run):
    return torch.load(run / "last.ckpt", weights_only=True)["global_step"]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_drill(folder, start, diffit):
    assert diffit("encode vae-digits --data digits --out latents", slurm=True).startswith("latents: latents, ")

    run = folder / "run"
    job = start(f"train {SMALL} --run run", slurm=True)
    wait_until((run / "last.ckpt").is_file, job)
    for task in (folder / "tasks").read_text().split():
        os.kill(int(task), signal.SIGTERM)
    job.communicate(timeout=600)
    assert job.returncode == 143
    assert (folder / "queue").read_text() == "requeue 4242\n"
    assert 0 < (first := step(run)) < 80

    own = start(f"train {SMALL} --run run --devices 2")  # the same run, by our own launcher now
    before = (run / "last.ckpt").stat().st_mtime_ns
    wait_until(lambda: (run / "last.ckpt").stat().st_mtime_ns > before, own)
    own.send_signal(signal.SIGTERM)
    out, err = own.communicate(timeout=600)
    assert (own.returncode, out) == (143, "")
    assert "Traceback" not in err
    assert "signal" not in err
    assert first <= step(run) < 80

    for name in ("run", "unbroken"):
        out = diffit(f"train {SMALL} --run {name}", slurm=True)
        assert out.startswith(f"weights: {name}/weights.safetensors")
        assert out.count("\n") == 1  # the second process says nothing
    assert (folder / "queue").read_text() == "requeue 4242\n"
    one, other = (load_file(folder / name / "weights.safetensors") for name in ("run", "unbroken"))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []

    for devices in (1, 2):
        words = f"sample run/weights.safetensors --seeds 0-15 --steps 50 --batch-size 4 --devices {devices}"
        diffit(f"{words} --out drawn{devices}")
    assert len(files(folder / "drawn2")) > 16
    assert files(folder / "drawn1") == files(folder / "drawn2")

    words = "evaluate run/weights.safetensors --data digits --images 40 --batch-size 10"
    one, other = (diffit(f"{words} --devices {devices}") for devices in (1, 2))
    assert one == other != ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (f"train {SMALL} --run odd --batch-size 15", "batch_size 15 in 1 parts does not split over 2 processes; "),
        ("sample nothing", "no weights file 'nothing': "),
    ],
)
def test_a_mistake_is_told_once(start, folder, diffit, words, says):
    if not (folder / "latents").exists():
        diffit("encode vae-digits --data digits --out latents")
    process = start(f"{words} --devices 2")
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (2, "")
    assert [line for line in err.splitlines() if line.startswith("diffit: ")] == err.splitlines()[-1:]
    assert err.count(says) == 1


def test_ctrl_c_is_quiet(start, folder):
    process = start("train digits --run stopped --devices 2 --threads 1 --report-minutes 0.05")
    wait_until((folder / "stopped" / "last.ckpt").is_file, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
