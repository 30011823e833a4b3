"""What the cells call: where something cannot be had, one red line says so, and the notebook goes on."""

import re
from dataclasses import replace

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from diffit_lib.config.presets import preset
from diffit_lib.data.datasets import Images, Split
from diffit_lib.evaluation import evaluator as task
from diffit_lib.notebook.cells import closing_card, load_published, measure_samples, sampling_settings
from diffit_lib.notebook.drive import Backup
from diffit_lib.notebook.form import choose_weights
from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.errors import DiffitError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run without copies, an empty cache, and classifiers that hardly learn."""
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("diffit_lib.evaluation.features.TRAINING_IMAGES", 64)
    return Backup(tmp_path / "run", None)


@pytest.fixture
def loaded(monkeypatch):
    """How often Inception was asked for, which cannot be had."""
    times = []

    def load_inception(path):
        times.append(path)
        raise DiffitError("no network")

    monkeypatch.setattr(task, "load_inception", load_inception)
    return times


def coloured(class_names):
    """Forty images as the unconditional weights draw them, half of them test images."""
    pixels = torch.randint(256, (40, 3, 8, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(40) % max(1, len(class_names))
    return Split(*(Images("toy", pixels[part], labels[part], class_names) for part in (slice(20), slice(20, 40))))


def told(capsys):
    """The lines printed, which must all be red."""
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("\033[31m") and line.endswith("\033[0m") for line in lines)
    return [line[5:-4] for line in lines]


def test_a_users_mistake_is_one_red_line_and_no_traceback(capsys):
    shell = InteractiveShell()
    shell.user_ns["wrong"] = lambda: choose_weights(preset("digits"), Backup("nowhere", None), "gone")
    shell.run_cell("wrong()")
    (line,) = told(capsys)
    assert line.startswith("PATH_WEIGHTS: no weights file 'gone': ")


@pytest.mark.parametrize(("name", "told"), [("meta/nothing", "meta/nothing"), ("nvidia/DiffiT", "set FILE to diffit")])
def test_published_weights_that_are_not_here_are_told_in_one_line(name, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
    assert load_published(name) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert told in line


class TestMeasure:
    def test_photographs_with_classes_are_left_to_the_classifier_where_inception_cannot_be_had(
        self, unconditional, run, loaded, capsys
    ):
        numbers = measure_samples(unconditional, coloured(("cat", "dog")), run, 20)
        assert numbers["stamp"]["extractor"] == "3 x classifier"
        assert told(capsys) == ["no numbers by the inception network: no network"]
        assert len(loaded) == 1

    def test_without_classes_too_there_are_no_numbers_and_one_red_line(self, unconditional, run, loaded, capsys):
        assert measure_samples(unconditional, coloured(()), run, 20) is None
        assert told(capsys) == ["no numbers by the inception network: no network"]

    def test_without_a_test_part_there_are_no_numbers_and_one_red_line(self, weights, data, run, loaded, capsys):
        few = data.train.take(torch.arange(40), "few")
        assert measure_samples(weights, Split(few, few), run, 20) is None
        assert told(capsys) == ["no numbers by the inception network: no network"]

    def test_small_images_with_classes_ask_for_no_inception(self, weights, data, run, loaded, capsys):
        assert measure_samples(weights, data, run, 40, steps=2)["stamp"]["steps"] == 2
        assert (told(capsys), loaded) == ([], [])

    @pytest.mark.parametrize("images", [1, -5])
    def test_a_number_that_makes_no_sense_is_told_by_the_forms_name(self, weights, data, run, capsys, images):
        assert measure_samples(weights, data, run, images) is None
        (line,) = told(capsys)
        assert line.startswith(f"not measured: METRIC_SAMPLES is {images}; give 2 or more")


class TestSamplingSettings:
    def test_auto_and_0_follow_the_weights(self, weights):
        pipe = load(weights)
        assert pipe.sampling(**sampling_settings(pipe, "auto", 0, 0.0)) == pipe.card.experiment.sampling
        given = pipe.sampling(**sampling_settings(pipe, "euler", 5, 2.0))
        assert (given.sampler, given.steps, given.guidance) == ("euler", 5, 2.0)

    def test_guidance_of_weights_without_classes_is_told_and_left_out(self, weights, unconditional, capsys):
        assert sampling_settings(load(weights), "auto", 0, 2.0)["guidance"] == 2.0
        assert sampling_settings(load(unconditional), "auto", 0, 1.0)["guidance"] == 1.0
        assert told(capsys) == []
        pipe = load(unconditional)
        assert pipe.sampling(**sampling_settings(pipe, "auto", 0, 2.0)) == pipe.card.experiment.sampling
        assert told(capsys) == ["GUIDANCE is 2, but these weights know no classes to guide to: this goes on without"]


class TestClosingCard:
    @pytest.mark.parametrize(("source", "digits"), [("digits", True), ("mnist", False)])
    def test_next_step_on_a_cpu_speaks_of_digits_only_where_they_are_the_data(
        self, weights, run, monkeypatch, source, digits
    ):
        shown = []
        monkeypatch.setattr("diffit_lib.notebook.cells.display", lambda html: shown.append(html.data))
        pipe = load(weights, device="cpu")
        pipe.card = replace(pipe.card, experiment=pipe.card.experiment.override(data=source))
        (run.run / "weights.safetensors").parent.mkdir()
        closing_card(pipe, run.run / "weights.safetensors", run, None, steps=2)
        step = re.search("Next:</b> (.*?)</p>", shown[0])[1]
        assert step.startswith("a GPU")
        assert ("digits" in step) == digits
