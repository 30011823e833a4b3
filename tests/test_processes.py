"""Which of several processes this one is."""

import threading
import time

import pytest

from diffit_lib.utils.distributed import rank_info, wait_for

STARTERS = {
    "alone": ({}, (0, 1, 0)),
    "torchrun": ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
    "srun": ({"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"}, (5, 8, 1)),
    "sbatch": ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, (0, 1, 0)),  # a script, before srun
}


@pytest.mark.parametrize("starter", STARTERS)
def test_a_process_knows_its_place(monkeypatch, starter):
    for variables, _ in STARTERS.values():
        for name in variables:
            monkeypatch.delenv(name, raising=False)
    variables, expected = STARTERS[starter]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert rank_info() == expected


def test_waiting_ends_with_the_last_file(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    paths = [tmp_path / "a", tmp_path / "b"]
    waiting = threading.Thread(target=wait_for, args=(paths, 0.01), daemon=True)
    waiting.start()
    paths[0].touch()
    time.sleep(0.05)
    assert waiting.is_alive()
    paths[1].touch()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
