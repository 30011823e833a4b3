"""Which of several processes this one is, and how they wait for each other's files."""

import shutil
import threading
import time
from functools import partial

import pytest
import torch
from together import together

from diffit_lib.data import latent_cache
from diffit_lib.data.datasets import Split, load_data
from diffit_lib.sampling.sample import sample
from diffit_lib.sampling.writer import SampleWriter
from diffit_lib.training import encode as task
from diffit_lib.utils import distributed
from diffit_lib.utils.distributed import rank_info, wait_for
from diffit_lib.utils.errors import DiffitError

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


@pytest.fixture
def first_of_two(monkeypatch):
    """This process is the first of two."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)


def test_waiting_ends_with_the_last_file(tmp_path, first_of_two):
    paths = [tmp_path / "a", tmp_path / "b"]
    waiting = threading.Thread(target=wait_for, args=(paths, 0.01), daemon=True)
    waiting.start()
    paths[0].touch()
    time.sleep(0.05)
    assert waiting.is_alive()
    paths[1].touch()
    waiting.join(timeout=10)
    assert not waiting.is_alive()


def test_a_missing_file_is_named_after_a_while(tmp_path, first_of_two, monkeypatch):
    monkeypatch.setattr(distributed, "LATE", 0.1)
    with pytest.raises(DiffitError, match=f"{tmp_path}/a is missing: it was removed .* the same command makes"):
        wait_for([tmp_path / "a"], 0.01)


def drawing(weights, out, removes):
    """Draw; the second process is slow, or the first waits for all its images and removes them. The error, if any."""
    distributed.LATE = 0.2
    pictures = SampleWriter.pictures

    def slowly(writer, batch):
        if not removes and rank_info().rank == 1:
            time.sleep(0.5)
        if removes and batch[0].seed == 2:
            while not (out / "images" / "000003.png").is_file():
                time.sleep(0.01)
            shutil.rmtree(out)
        return pictures(writer, batch)

    SampleWriter.pictures = slowly
    return error_of(partial(sample, weights, out, range(4), batch_size=1, steps=2))


def encoding(folder, removes):
    """Encode; the second process begins half a second after the first has written its files."""
    distributed.LATE, latent_cache.SHARD = 0.2, 8
    few = load_data("digits").train.take(torch.arange(32), "few")
    write = task.write_latents

    def slowly(space, images, folder, **options):
        if rank_info().rank == 1:
            while not latent_cache.shard_path(folder, 2).is_file():
                time.sleep(0.01)
            time.sleep(0.5)
            if removes:
                latent_cache.shard_path(folder, 0).unlink()
        write(space, images, folder, **options)

    task.write_latents = slowly
    return error_of(partial(task.encode, "vae-digits", Split(few, few), folder))


def error_of(work):
    """The message of the error that `work` ends with; "" if it does not."""
    try:
        work()
    except DiffitError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("work", ["sample", "encode"])
def test_a_slow_process_is_waited_for(weights, tmp_path, work):
    out = tmp_path / "out"
    arguments = (drawing, weights, out, False) if work == "sample" else (encoding, out, False)
    assert together(tmp_path, *arguments) == (["", ""], [0, 0])


def test_a_removed_folder_of_drawn_images_is_not_waited_for(weights, tmp_path):
    (one, other), status = together(tmp_path, drawing, weights, tmp_path / "out", True)
    assert one.startswith(f"{tmp_path}/out/images/000000.png is missing: ")
    assert (other, status) == ("", [0, 0])


def test_a_removed_file_of_latents_is_not_waited_for(tmp_path):
    (one, other), status = together(tmp_path, encoding, tmp_path / "out", True)
    assert one == other
    assert one.startswith(f"{tmp_path}/out/train/index.safetensors is missing: ")
    assert status == [0, 0]
