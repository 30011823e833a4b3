"""A run that was stopped, however roughly, goes on as if it had not been."""

import csv
import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from together import FORKSERVER

from diffit_lib.checkpoints import safetensors_io as tensor_files
from diffit_lib.sampling.pipeline import load
from diffit_lib.training import module as training
from diffit_lib.training import online_metrics
from diffit_lib.training import train as task
from diffit_lib.training.steps import DiffusionModule
from diffit_lib.training.train import train
from diffit_lib.utils.errors import DiffitError


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def before(moment, function):
    """`function`, but dying where `moment(self, ...)` holds."""
    return lambda self, *args: die() if moment(self, *args) else function(self, *args)


def in_mid_step(step):
    """Die in the last micro-batch of a step."""

    def moment(module, batch, batch_idx):
        return module.global_step == step and (batch_idx + 1) % module.options.accumulate == 0

    DiffusionModule.training_step = before(moment, DiffusionModule.training_step)


def in_mid_checkpoint(step):
    """Die with half of a checkpoint written."""
    save = torch.save

    def half(checkpoint, file):
        save(checkpoint, file)
        if checkpoint["global_step"] == step:
            file.truncate(file.tell() // 2)
            die()

    torch.save = half


def after_checkpoint(step):
    """Die between a checkpoint and the weights that belong to it."""
    write = task.write_snapshot
    task.write_snapshot = lambda module, **options: die() if module.global_step == step else write(module, **options)


def in_mid_weights(step):
    """Die with half of a weights file written."""

    def half(tensors, path, metadata, save=tensor_files.save_file):
        save(tensors, path, metadata)
        if json.loads(metadata["card"])["images_seen"] == step * 16:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    tensor_files.save_file = half


def train_and_die(experiment, run, where: Callable[[int], None], step):
    """What the doomed process does: a checkpoint before every step, until it dies."""
    multiprocessing.set_start_method("fork", force=True)  # for the workers, as everywhere else
    where(step)
    task.write_figure = lambda path, figure: None  # slow, and not at stake
    online_metrics.SHARE = 0.0  # or a slow machine would have the time to measure, and write its best weights
    train(experiment.override(report_minutes=1e-9), run, progress=False)


def kill(experiment, run, where, step):
    """Train in another process until it is killed."""
    process = FORKSERVER.Process(target=train_and_die, args=(experiment, run, where, step))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def rows(run):
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


def images(run):
    return [int(row["images"]) for row in rows(run)]


def as_on_a_gpu(run):
    """Make a run look as if it had been trained in half precision, its loss scaled."""
    options = run / "options.yaml"
    options.write_text(options.read_text().replace("precision: 32-true", "precision: 16-mixed"))
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000}
    checkpoint["MixedPrecision"] = scaler | {"_growth_tracker": 4}
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        group["fused"] = False
    torch.save(checkpoint, run / "last.ckpt")


def assert_same_weights(run, unbroken):
    one, other = load_file(run / "weights.safetensors"), load_file(unbroken / "weights.safetensors")
    assert one.keys() == other.keys()
    assert {name.partition(".")[0] for name in one} == {"ema", "raw"}
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def experiment(tiny):
    """Two dozen steps in two micro-batches each, with dropout."""
    return tiny.override(max_steps=24, accumulate=2, dropout=0.1)


@pytest.fixture(scope="module")
def unbroken(experiment, data, tmp_path_factory):
    """A run of it that nothing stopped."""
    run = tmp_path_factory.mktemp("unbroken")
    train(experiment, run, data, progress=False)
    return run


@pytest.fixture
def stop(monkeypatch):
    """A function: end the run with an exception in this step and micro-batch, once."""
    step = DiffusionModule.training_step

    def stop(at, micro):
        def stopping(self, batch, batch_idx):
            if (self.global_step, batch_idx % self.options.accumulate) == (at, micro):
                monkeypatch.setattr(DiffusionModule, "training_step", step)
                raise InterruptedError
            return step(self, batch, batch_idx)

        monkeypatch.setattr(DiffusionModule, "training_step", stopping)

    return stop


@pytest.fixture
def clock(monkeypatch):
    """Time in which every look at it takes a second."""
    seconds = count()
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


class TestKilled:
    def test_run_ends_with_the_weights_of_an_unbroken_one(self, experiment, data, unbroken, tmp_path):
        kill(experiment, tmp_path, in_mid_step, 5)
        kept = rows(tmp_path)
        assert images(tmp_path) == [0, 16, 32, 48, 64, 80]
        train(experiment, tmp_path, data, progress=False)
        assert rows(tmp_path)[:-1] == kept  # gone on, not started over
        assert_same_weights(tmp_path, unbroken)

    def test_run_with_two_workers_ends_with_the_same_weights(self, experiment, data, unbroken, tmp_path):
        kill(experiment.override(workers=2), tmp_path, in_mid_step, 7)
        train(experiment.override(workers=2), tmp_path, data, progress=False)
        assert images(tmp_path) == [*range(0, 8 * 16, 16), 24 * 16]
        assert_same_weights(tmp_path, unbroken)

    def test_run_survives_several_kills_wherever_they_hit(self, experiment, data, unbroken, tmp_path, monkeypatch):
        monkeypatch.setattr(online_metrics, "SHARE", 0.0)  # in this process too
        kill(experiment, tmp_path, in_mid_checkpoint, 0)
        assert not (tmp_path / "last.ckpt").exists()
        for where, step in ((in_mid_step, 2), (in_mid_checkpoint, 4), (after_checkpoint, 5), (in_mid_weights, 7)):
            kill(experiment, tmp_path, where, step)
            load(tmp_path / "weights.safetensors")
        train(experiment, tmp_path, data, progress=False)
        assert images(tmp_path) == [*range(0, 7 * 16, 16), 24 * 16]
        assert_same_weights(tmp_path, unbroken)
        left = {path.name for path in tmp_path.iterdir()} - {"samples", "tensorboard"}
        newest = {f"weights-{step * 16:09d}.safetensors" for step in (5, 6, 24)}
        assert left - newest == {
            "last.ckpt", "previous.ckpt", "metrics.csv", "options.yaml", "weights.safetensors", "loss.png", "log.txt",
            "reals.png",
        }  # fmt: skip
        assert newest < left


class TestStopped:
    @pytest.mark.parametrize("micro", [0, 1])
    def test_run_resumes_from_any_step(self, fit, experiment, stop, micro):
        experiment = experiment.override(max_steps=6)
        expected = fit(experiment, run="unbroken").state_dict()
        for step in range(6):
            stop(step, micro)
            with pytest.raises(InterruptedError):
                fit(experiment.override(report_minutes=1e-9), run=str(step))
            actual = fit(experiment, run=str(step)).state_dict()
            assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []

    @pytest.mark.parametrize(
        ("number", "batch", "saved"),
        [
            (signal.SIGTERM, 6, 4),
            (signal.SIGTERM, 11, 6),  # of the last step
            (signal.SIGHUP, 7, 4),
            (signal.SIGINT, 7, 4),
        ],
    )
    def test_by_a_signal_run_finishes_its_step_and_says_that_it_goes_on(
        self, fit, experiment, tmp_path, monkeypatch, number, batch, saved, capsys
    ):
        experiment = experiment.override(max_steps=6)
        expected = fit(experiment, run="unbroken").state_dict()
        step = DiffusionModule.training_step

        def terminated(self, images, batch_idx):
            if batch_idx == batch:
                os.kill(os.getpid(), number)
            return step(self, images, batch_idx)

        expected_error = KeyboardInterrupt if number == signal.SIGINT else SystemExit
        with monkeypatch.context() as patch, pytest.raises(expected_error) as stopped:
            patch.setattr(DiffusionModule, "training_step", terminated)
            fit(experiment)
        assert stopped.value.args == (() if number == signal.SIGINT else (128 + number,))
        said = f"stopped after {16 * saved} images, and saved; the same command goes on"
        assert capsys.readouterr().err.splitlines()[-1] == said
        assert torch.load(tmp_path / "run" / "last.ckpt")["global_step"] == saved
        actual = fit(experiment).state_dict()
        assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []

    def test_by_a_second_ctrl_c_run_is_left_at_once(self, fit, experiment, tmp_path, monkeypatch):
        def interrupted(self, images, batch_idx):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")

        monkeypatch.setattr(DiffusionModule, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(experiment)
        assert not (tmp_path / "run" / "last.ckpt").exists()

    def test_as_nohup_has_it_a_run_does_not_hear_of_the_terminal(self, fit, experiment, monkeypatch):
        step, before = DiffusionModule.training_step, signal.signal(signal.SIGHUP, signal.SIG_IGN)

        def hung_up(self, images, batch_idx):
            os.kill(os.getpid(), signal.SIGHUP)
            return step(self, images, batch_idx)

        monkeypatch.setattr(DiffusionModule, "training_step", hung_up)
        try:
            assert fit(experiment.override(max_steps=2)).global_step == 2
        finally:
            signal.signal(signal.SIGHUP, before)


class TestFinished:
    def test_run_is_not_trained_further(self, experiment, data, unbroken, monkeypatch):
        before = {name: (unbroken / name).read_bytes() for name in ("metrics.csv", "options.yaml")}
        tensors = load_file(unbroken / "weights.safetensors")
        monkeypatch.setattr(DiffusionModule, "training_step", lambda *_: pytest.fail("trained further"))
        train(experiment, unbroken, data, progress=False)
        assert {name: (unbroken / name).read_bytes() for name in before} == before
        again = load_file(unbroken / "weights.safetensors")
        assert all(torch.equal(tensors[name], again[name]) for name in tensors)

    def test_run_whose_weights_were_lost_writes_them_again(self, experiment, data, unbroken, tmp_path):
        for name in ("last.ckpt", "options.yaml"):
            (tmp_path / name).write_bytes((unbroken / name).read_bytes())
        train(experiment, tmp_path, data, progress=False)
        assert images(tmp_path) == [24 * 16]
        assert_same_weights(tmp_path, unbroken)

    def test_run_goes_on_when_more_images_are_asked_for(self, tiny, data, tmp_path):
        train(tiny, tmp_path, data, progress=False)
        train(tiny.override(max_steps=6), tmp_path, data, progress=False)
        assert images(tmp_path) == [64, 96]
        assert load(tmp_path / "weights.safetensors").card.images_seen == 96

    def test_run_counts_the_minutes_it_had_before(self, fit, tiny, clock):
        experiment = tiny.override(max_steps=1000, minutes=0.5)
        first = fit(experiment)
        stopped_at, seconds = first.global_step, first.seconds
        again = fit(experiment)
        assert again.global_step == stopped_at
        assert again.seconds == pytest.approx(seconds, abs=2)
        longer = fit(experiment.override(minutes=1.0))
        assert longer.global_step == pytest.approx(2 * stopped_at, abs=2)
        assert 60 <= longer.seconds < 62


class TestSettings:
    @pytest.fixture(scope="class")
    @classmethod
    def begun(cls, tiny, data, tmp_path_factory):
        """A run of two steps."""
        run = tmp_path_factory.mktemp("begun")
        train(tiny.override(max_steps=2), run, data, progress=False)
        return run

    @pytest.mark.parametrize(
        ("field", "before", "now"),
        [
            ("width", 8, 12),
            ("dropout", 0.0, 0.2),
            ("seed", 0, 1),
            ("batch_size", 16, 8),
            ("accumulate", 1, 2),
            ("lr", 0.001, 0.002),
            ("label_dropout", 0.1, 0.0),
            ("p_std", 1.2, 1.0),
            ("precision", "32-true", "bf16-mixed"),
            ("denoiser", "edm", "vp"),
        ],
    )
    def test_what_shapes_the_run_cannot_change(self, tiny, data, begun, field, before, now):
        files = {path: path.read_bytes() for path in begun.iterdir() if path.is_file()}
        with pytest.raises(DiffitError) as error:
            train(tiny.override(**{field: now}), begun, data, progress=False)
        assert str(error.value).startswith(f"{begun} was trained with {field}={before}, not {now}; ")
        assert "\n" not in str(error.value)
        assert {path: path.read_bytes() for path in begun.iterdir() if path.is_file()} == files

    def test_what_does_not_shape_the_run_can_change(self, fit, tiny):
        fit(tiny)
        other = tiny.override(max_steps=5, workers=1, threads=None, checkpointing=True, report_minutes=9.0)
        assert fit(other).global_step == 5

    def test_precision_of_another_device_is_kept(self, fit, tiny, monkeypatch):
        fit(tiny.override(precision="bf16-mixed"))
        assert fit(tiny.override(max_steps=5)).trainer.precision == "bf16-mixed"

    def test_precision_that_a_cpu_does_not_have_is_left_and_told_once(self, fit, tiny, tmp_path, capsys):
        fit(tiny)
        as_on_a_gpu(tmp_path / "run")
        module = fit(tiny.override(max_steps=5))
        assert (module.global_step, module.trainer.precision) == (5, "32-true")
        assert capsys.readouterr().err == (
            f"{tmp_path / 'run'} was trained with precision 16-mixed and goes on, on a CPU, with 32-true\n"
        )
        fit(tiny.override(max_steps=6))
        assert capsys.readouterr().err == ""

    def test_precision_that_a_cpu_does_not_have_is_refused_where_it_is_asked_for(self, fit, tiny, tmp_path):
        fit(tiny)
        as_on_a_gpu(tmp_path / "run")
        with pytest.raises(DiffitError, match="precision is '16-mixed', which a CPU does not have"):
            fit(tiny.override(max_steps=5, precision="16-mixed"))

    def test_another_data_set_is_refused(self, tiny, data, begun):
        mirrored = replace(data.train, name="mirrored", images=data.train.images.flip(3))
        with pytest.raises(DiffitError, match=r"was trained on other images .*; give the same data, or "):
            train(tiny, begun, data._replace(train=mirrored), progress=False)

    def test_what_is_refused_for_its_data_leaves_the_run_as_it_was(self, tiny, data, begun):
        mirrored = replace(data.train, name="mirrored", images=data.train.images.flip(3))
        before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
        with pytest.raises(DiffitError, match="was trained on other images"):
            train(replace(tiny, data="elsewhere"), begun, data._replace(train=mirrored), progress=False)
        assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


@dataclass
class Payload:
    """Unpickled, it leaves a trace."""

    trace: Path

    def __reduce__(self):
        return Path.touch, (self.trace,)


class TestDamage:
    @pytest.fixture
    def run(self, tiny, data, tmp_path):
        """A run of four steps."""
        train(tiny, tmp_path / "run", data, progress=False)
        return tmp_path / "run"

    @pytest.mark.parametrize("name", ["last.ckpt", "options.yaml"])
    @pytest.mark.parametrize("damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"", lambda _: b"{}"])
    def test_is_told_in_one_line_and_nothing_is_written(self, tiny, data, run, snapshot, name, damage):
        (run / name).write_bytes(damage((run / name).read_bytes()))
        before = snapshot()
        with pytest.raises(DiffitError, match=rf"{name} .*; ") as error:
            train(tiny.override(max_steps=5), run, data, progress=False)
        assert "\n" not in str(error.value)
        assert snapshot() == before

    def test_of_the_last_checkpoint_costs_no_more_than_a_report(self, tiny, data, run, tmp_path):
        longer = tiny.override(max_steps=6)
        train(longer, run, data, progress=False)
        assert images(run) == [64, 96]
        (run / "last.ckpt").write_bytes(b"")
        with pytest.raises(DiffitError, match=r"put previous\.ckpt in its place, or delete it to start over"):
            train(longer, run, data, progress=False)
        (run / "previous.ckpt").replace(run / "last.ckpt")
        assert torch.load(run / "last.ckpt")["global_step"] == 4
        train(longer, run, data, progress=False)
        assert images(run) == [64, 96]
        train(longer, tmp_path / "unbroken", data, progress=False)
        assert_same_weights(run, tmp_path / "unbroken")

    @pytest.mark.parametrize("missing", ["pytorch-lightning_version", "diffit"])
    def test_of_a_checkpoint_that_lacks_something_is_told(self, tiny, data, run, missing):
        content = torch.load(run / "last.ckpt")
        del content[missing]
        torch.save(content, run / "last.ckpt")
        with pytest.raises(DiffitError, match=r"last.ckpt is damaged \(KeyError\)"):
            train(tiny.override(max_steps=5), run, data, progress=False)

    def test_a_checkpoint_that_would_run_code_does_not(self, tiny, data, run, tmp_path):
        trace = tmp_path / "trace"
        for save in (lambda thing, path: path.write_bytes(pickle.dumps(thing)), torch.save):
            save({"diffit": Payload(trace)}, run / "last.ckpt")
            with pytest.raises(DiffitError, match="is damaged"):
                train(tiny.override(max_steps=5), run, data, progress=False)
            assert not trace.exists()
