"""More than one device: two processes on a CPU do what one does, and stop, speak and fail as one."""

import os
import re
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from together import together

from diffit_lib.checkpoints.autoencoders import VAECard
from diffit_lib.checkpoints.safetensors_io import read_card
from diffit_lib.checkpoints.weights import ModelCard
from diffit_lib.cli.launch import TOLD, join_group
from diffit_lib.cli.main import main
from diffit_lib.config.presets import vae_preset
from diffit_lib.evaluation import features, reconstruction
from diffit_lib.models.latent_space import LatentSpace, PixelSpace
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.training import online_metrics
from diffit_lib.training import train as task
from diffit_lib.training.module import CheckpointFile
from diffit_lib.training.online_metrics import ONLINE_SAMPLES
from diffit_lib.training.steps import DiffusionModule
from diffit_lib.training.train import GRID
from diffit_lib.utils.distributed import (
    any_rank,
    export_rank,
    from_rank_zero,
    local_world_size,
    mean_over_ranks,
    rank_info,
    rank_zero_first,
)
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import read_rows

EVERY_STEP = 1e-9  # minutes between two reports
VAE = vae_preset("vae-digits").override(
    channels=(8,), down=(), attn=(False,), patch=2, disc_width=8, perceptual_weight=0.0, batch_size=8, threads=1,
    precision="32-true",
)  # fmt: skip


def losses(experiment, run):
    """The terms of the loss of every step, as the first process tells them."""
    terms = []
    task.write_snapshot = task.write_vae_snapshot = lambda module, **options: terms.append(options["terms"])
    CheckpointFile.save_checkpoint = lambda *_, **__: None
    task.train(experiment.override(report_minutes=EVERY_STEP), run, progress=False)
    return terms[1:]  # the first report is before the first step


def terminated(experiment, run, step):
    """Train; in mid-step SIGTERM comes to the last process and its workers, and to no other."""
    task.write_figure = lambda path, figure: None  # slow, and not at stake
    training_step = DiffusionModule.training_step

    def hit(self, batch, batch_idx):
        if (self.global_step, batch_idx % self.options.accumulate) == (step, 0) and self.global_rank == 1:
            os.killpg(0, signal.SIGTERM)
        return training_step(self, batch, batch_idx)

    DiffusionModule.training_step = hit
    task.train(experiment, run, progress=False)


def reporting(experiment, run):
    """Train; the seeds that this process draws, the images that it encodes after training, and the last report."""
    os.environ["DIFFIT_CACHE"] = str(run.with_name("cache"))
    features.TRAINING_IMAGES, task.write_figure = 640, lambda path, figure: None  # slow, and not at stake
    task.SHARE = online_metrics.SHARE = 1e9  # time enough to draw and measure everything
    seeds, encoded = [], []
    stream, encode = Pipeline.stream, LatentSpace.encode
    Pipeline.stream = lambda pipe, part, *args, **kwargs: seeds.extend(part) or stream(pipe, part, *args, **kwargs)
    LatentSpace.encode = lambda space, images, *args: encoded.append(len(images)) or encode(space, images, *args)
    card = read_card(task.train(experiment, run, progress=False), VAECard if hasattr(experiment, "loss") else ModelCard)
    latents = (*card.mean, *card.std) if hasattr(experiment, "loss") else ()
    row = {name: float(value) for name, value in read_rows(run / "metrics.csv")[-1].items()}
    return seeds, sum(encoded), {name: row[name] for name in row if "seconds" not in name} | dict(enumerate(latents))


def judging():
    """Reconstruct five images; how many of them the stand-ins for VGG and Inception see, and the numbers."""
    seen = {"vgg": 0, "inception": 0}

    class Perceptual:
        def to(self, device):
            return self

        def __call__(self, images, others):
            seen["vgg"] += len(images)
            return (images - others).abs().mean((1, 2, 3))

    class Inception(Perceptual):
        checksum = "0"

        def features(self, images):
            seen["inception"] += len(images)
            return images.flatten(1)[:, ::200].float()

    class Halving(PixelSpace):
        def decode(self, x):
            return x / 2

    reconstruction.load_perceptual, reconstruction.load_inception = lambda path: Perceptual(), Inception
    reconstruction.in_cache = lambda url: Path(__file__)
    images = torch.randint(256, (5, 3, 16, 16), generator=torch.Generator().manual_seed(0)).byte()
    return seen, reconstruction.measure_vae(Halving(), images, vgg="vgg.pth")


def failing(experiment, run, rank):
    """Train; the first process cannot plot, or the second one not draw."""

    def fail(*_, **__):
        raise OSError("no display")

    if rank_info().rank == rank:
        task.write_figure, Pipeline.stream = (fail, Pipeline.stream) if rank == 0 else (task.write_figure, fail)
    task.train(experiment.override(report_minutes=EVERY_STEP), run, progress=False)


def doings(folder):
    """What the processes find out about each other."""
    with rank_zero_first():
        before = len(list(folder.iterdir()))
        (folder / str(rank_info().rank)).touch()
    made = from_rank_zero(lambda: rank_info().rank + 10)
    mean = mean_over_ranks(torch.tensor([float(rank_info().rank), 4.0])).tolist()
    return [before, made, any_rank(rank_info().rank == 1), any_rank(False), mean, local_world_size()]


def close(one, other):
    """Whether two lists of terms agree to rounding."""
    return [list(terms) for terms in one] == [list(terms) for terms in other] and all(
        terms[name] == pytest.approx(also[name], rel=1e-5, abs=1e-7)
        for terms, also in zip(one, other, strict=True)
        for name in terms
    )


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A function: `losses` in this process."""
    for home, name in ((task, "write_snapshot"), (task, "write_vae_snapshot"), (CheckpointFile, "save_checkpoint")):
        monkeypatch.setattr(home, name, None)
    return lambda experiment: losses(experiment, tmp_path / "alone")


class TestTogether:
    def test_two_processes_do_what_one_does(self, tmp_path):
        (tmp_path / "turns").mkdir()
        results, status = together(tmp_path, doings, tmp_path / "turns")
        assert status == [0, 0]
        assert results == [[0, 10, True, False, [0.5, 4.0], 2], [1, 10, True, False, [0.5, 4.0], 2]]

    def test_losses_of_50_steps_are_those_of_one_process(self, tiny, alone, tmp_path):
        experiment = tiny.override(max_steps=50, accumulate=2)
        (told, silent), status = together(tmp_path, losses, experiment, tmp_path / "two")
        assert (status, silent) == ([0, 0], told)
        assert len(told) == 50
        assert close(told, alone(experiment))

    def test_an_autoencoder_and_its_judge_learn_as_in_one_process(self, alone, tmp_path):
        experiment = VAE.override(max_steps=8, disc_weight=0.5, disc_start=24)
        (told, _), status = together(tmp_path, losses, experiment, tmp_path / "two")
        assert status == [0, 0]
        assert [terms["discriminator"] > 0 for terms in told] == [False] * 3 + [True] * 5
        assert close(told, alone(experiment))

    @pytest.mark.parametrize("kind", ["image", "vae"])
    def test_a_report_is_that_of_one_process_and_each_draws_its_part(self, tiny, kind, tmp_path):
        experiment = VAE.override(max_steps=2, minutes=None) if kind == "vae" else tiny.override(steps=2)
        ((seeds, images, row),), _ = together(tmp_path, reporting, experiment, tmp_path / "one", world=1)
        both, status = together(tmp_path, reporting, experiment, tmp_path / "two")
        assert status == [0, 0]
        assert len(seeds) == (0 if kind == "vae" else GRID + ONLINE_SAMPLES)
        assert [len(part) for part, _, _ in both] == [len(seeds) / 2] * 2
        assert sorted(both[0][0] + both[1][0]) == sorted(seeds)
        assert [part for _, part, _ in both] == [images / 2] * 2
        assert both[0][2] == both[1][2] == pytest.approx(row, rel=1e-3)

    def test_an_autoencoders_images_are_judged_in_parts(self, tmp_path):
        ((_, row),), _ = together(tmp_path, judging, world=1)
        ((seen, numbers), (also_seen, same)), status = together(tmp_path, judging)
        assert status == [0, 0]
        assert (seen, also_seen) == ({"vgg": 2, "inception": 4}, {"vgg": 3, "inception": 6})
        assert numbers == same == pytest.approx(row, rel=1e-3)
        assert row.keys() == {"images", "psnr", "ssim", "lpips", "rfid"}

    @pytest.mark.parametrize("rank", [0, 1])
    def test_an_error_in_the_report_of_one_ends_both(self, tiny, rank, tmp_path):
        assert together(tmp_path, failing, tiny, tmp_path / "run", rank)[1] == [1, 1]

    def test_a_sigterm_to_one_stops_both_at_the_end_of_its_step_and_the_run_goes_on(self, tiny, tmp_path):
        experiment = tiny.override(max_steps=6, accumulate=2, dropout=0.1, workers=1)
        assert together(tmp_path, terminated, experiment, tmp_path / "run", 3)[1] == [143, 143]
        assert torch.load(tmp_path / "run" / "last.ckpt")["global_step"] == 4
        for run in ("run", "unbroken"):
            assert together(tmp_path, terminated, experiment, tmp_path / run, 99)[1] == [0, 0]
        one, other = (load_file(tmp_path / run / "weights.safetensors") for run in ("run", "unbroken"))
        assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture
def seat(monkeypatch):
    """A function: this process is that rank of two."""

    def seat(rank):
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))

    return seat


class TestSpeaking:
    @pytest.mark.parametrize("rank", [0, 1])
    def test_the_first_process_alone_speaks(self, seat, weights, capsys, rank):
        seat(rank)
        assert main(["info", str(weights)]) == 0
        assert (capsys.readouterr().out == "") == (rank == 1)

    def test_what_goes_wrong_is_told_once_by_whoever_sees_it_first(self, seat, capsys, monkeypatch, tmp_path):
        monkeypatch.setenv(TOLD, str(tmp_path / "told"))
        monkeypatch.setattr("diffit_lib.cli.launch.PATIENCE", 0)
        seat(1)
        assert main(["sample", "nothing"]) == 2
        assert capsys.readouterr().err.startswith("diffit: no weights file 'nothing'")
        seat(0)
        with pytest.raises(SystemExit):
            main(["sample", "nothing"])
        assert capsys.readouterr().err == ""

    def test_devices_that_are_not_as_many_as_the_processes_are_refused(self, seat):
        seat(0)
        with pytest.raises(DiffitError, match="devices 4 times num_nodes 1 is not the number of processes, 2; "):
            join_group(4, 1).__enter__()

    @pytest.mark.parametrize(
        ("command", "says"),
        [
            ("train digits --devices=0", "devices: '0' is no number above 0"),
            ("sample digits --devices=all", "devices: 'all' is no number above 0"),
            ("encode vae-digits --num-nodes=auto", "num_nodes: 'auto' is no number above 0"),
            ("evaluate digits --num-nodes=2", "num_nodes is 2, and nobody says where they meet; set MASTER_ADDR"),
        ],
    )
    def test_mistakes_are_told_before_anything_is_started(self, capsys, monkeypatch, command, says):
        monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", None)
        assert main(command.split()) == 2
        assert re.fullmatch(f"diffit: .*{says}.*\n", capsys.readouterr().err)


class TestSlurm:
    def test_what_srun_says_is_said_in_torchruns_words(self, monkeypatch):
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, "")  # so that what is set below is undone
            monkeypatch.delenv(name)
        srun = {"PROCID": "9", "STEP_NUM_TASKS": "16", "LOCALID": "1", "STEP_NUM_NODES": "2"}
        for name, value in (srun | {"STEP_NODELIST": "gpu[07-08]", "JOB_ID": "123456"}).items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        export_rank()
        assert {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")} == {
            "RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8",
        }  # fmt: skip
        assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", "18456")
        assert local_world_size() == 8
