"""How many CPU threads a run takes, and what is told before a long drawing."""

import pytest
import torch

from diffit_lib.config.presets import read_options
from diffit_lib.sampling import writer
from diffit_lib.sampling.pipeline import load
from diffit_lib.sampling.sample import sample
from diffit_lib.training import cost, fit
from diffit_lib.training.cost import fastest_threads, time_steps
from diffit_lib.utils.tensors import cpu_threads


@pytest.fixture
def two_threads():
    """As on a machine of two cores."""
    with cpu_threads(2):
        yield


class TestThreads:
    @pytest.mark.parametrize(("seconds", "threads"), [({1: 0.1, 2: 0.3}, 1), ({1: 0.3, 2: 0.1}, 2)])
    def test_are_those_of_the_shorter_steps(self, tiny, two_threads, monkeypatch, seconds, threads):
        monkeypatch.setattr(cost, "SHORT", 0.05)
        monkeypatch.setattr(cost, "rehearsal", lambda _: lambda size: seconds[torch.get_num_threads()])
        assert fastest_threads(tiny) == threads
        assert torch.get_num_threads() == 2

    def test_are_measured_by_real_steps_that_leave_no_trace(self, tiny, two_threads, monkeypatch):
        monkeypatch.setattr(cost, "SHORT", 0.05)
        before = torch.get_rng_state()
        assert fastest_threads(tiny) in (1, 2)
        assert time_steps(tiny, 0.01) > 0
        assert torch.equal(torch.get_rng_state(), before)

    def test_of_one_core_are_not_measured(self, tiny, monkeypatch):
        monkeypatch.setattr(cost, "rehearsal", lambda _: pytest.fail("measured"))
        with cpu_threads(1):
            assert fastest_threads(tiny) is None

    def test_are_measured_once_and_kept_in_the_options(self, tiny, fit_in, tmp_path, monkeypatch):
        monkeypatch.setattr(fit, "fastest_threads", lambda _: 1)
        fit_in(tiny.override(threads=None))
        assert read_options(type(tiny), tmp_path / "run").training.threads == 1
        monkeypatch.setattr(fit, "fastest_threads", lambda _: pytest.fail("measured again"))
        fit_in(tiny.override(threads=None, max_steps=5))
        assert read_options(type(tiny), tmp_path / "run").training.threads == 1

    def test_of_the_training_draw_too(self, weights, two_threads):
        pipe, seen = load(weights), []
        for module in pipe.denoiser.network.modules():
            module.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
        pipe(seeds=[0], labels=3, steps=2)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2


@pytest.fixture
def fit_in(fit):
    """The function that trains; `fit` is a module here."""
    return fit


class TestLongDrawing:
    def test_is_told_before(self, weights, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(writer, "LONG", 0.0)
        sample(weights, tmp_path / "out", range(6), batch_size=2, steps=2)
        said = capsys.readouterr().err
        assert said.count("drawing 6 images takes about 0 seconds; stopped, the same command goes on") == 1

    def test_is_not_told_of_a_short_one_or_one_that_is_done(self, weights, tmp_path, monkeypatch, capsys):
        sample(weights, tmp_path / "out", range(6), batch_size=2, steps=2)
        monkeypatch.setattr(writer, "LONG", 0.0)
        sample(weights, tmp_path / "out", range(6), batch_size=2, steps=2)
        said = capsys.readouterr().err
        assert f"{tmp_path / 'out'}: every image was drawn before" in said
        assert "takes about" not in said

    def test_of_many_images_is_hours(self, weights, tmp_path, monkeypatch, capsys):
        clock = iter(range(0, 100_000, 60))
        monkeypatch.setattr(writer, "time", type("Clock", (), {"monotonic": lambda: next(clock)}))
        sample(weights, tmp_path / "out", range(6), batch_size=1, steps=20)
        assert "drawing 6 images takes about 2.0 hours; " in capsys.readouterr().err
