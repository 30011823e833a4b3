"""The explorer without a browser: its knobs, its background thread, and hundreds of random turns of its knobs."""

import base64
import io
import random
import re
import time

import ipywidgets as widgets
import pytest
import torch
from PIL import Image

from diffit_lib.checkpoints.weights import ModelCard, build_denoiser
from diffit_lib.cli.main import main
from diffit_lib.config.presets import preset
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.errors import DiffitError
from diffit_lib.viz.explorer import Explorer
from diffit_lib.viz.views import Worker


@pytest.fixture(scope="module")
def explorer():
    found = Explorer("digits")
    assert found.worker.wait(30)
    return found


def show(explorer, view):
    explorer.tabs.selected_index = list(explorer.views).index(view)
    assert explorer.worker.wait(30)
    return explorer.views[view]


class TestWorker:
    def test_a_new_job_cancels_the_one_that_runs(self):
        worker, seen = Worker(print), []

        def endless():
            while True:
                time.sleep(0.001)
                yield seen.append("old")

        worker.run(endless)
        time.sleep(0.05)
        worker.run(lambda: iter([seen.append("new")]))
        assert worker.wait(5)
        assert "old" in seen
        assert seen[-1] == "new"

    def test_stop_ends_it(self):
        worker, busy = Worker(print), []
        worker.busy = busy.append

        def endless():
            while True:
                time.sleep(0.001)
                yield

        worker.run(endless)
        time.sleep(0.05)
        worker.stop()
        assert worker.wait(5)
        assert busy == [True, False]

    @pytest.mark.parametrize("error", [DiffitError("seed is 'x'; give a number"), ZeroDivisionError("by zero")])
    def test_an_error_is_told_and_the_next_job_runs(self, error):
        told, seen = [], []
        worker = Worker(told.append)

        def fails():
            yield
            raise error

        worker.run(fails)
        assert worker.wait(5)
        worker.run(lambda: iter([seen.append(1)]))
        assert worker.wait(5)
        assert (len(told), seen) == (1, [1])
        assert str(error) in told[0]


class TestSample:
    def test_a_turned_knob_draws_anew(self, explorer):
        view = show(explorer, "sample")
        before = view.columns[0].guess.value
        view.columns[0].knobs.seed.value += 1
        assert explorer.worker.wait(30)
        assert view.columns[0].guess.value != before
        assert view.step.value == view.columns[0].knobs.steps.value

    def test_the_step_slider_goes_back_to_the_noise(self, explorer):
        view = show(explorer, "sample")
        last = view.columns[0].noisy.value
        view.step.value = 1
        assert view.columns[0].noisy.value != last

    def test_a_second_column_has_the_same_seed_and_its_own_settings(self, explorer):
        view = show(explorer, "sample")
        view.compare.value = True
        view.columns[1].knobs.sampler.value = "dpm++"
        assert explorer.worker.wait(30)
        assert view.columns[0].knobs.seed.value == view.columns[1].knobs.seed.value
        assert view.columns[0].guess.value != view.columns[1].guess.value
        view.compare.value = False
        assert explorer.worker.wait(30)

    def test_what_is_drawn_can_be_saved(self, explorer):
        view = show(explorer, "sample")
        for button, kind in ((view.save_png, "png"), (view.save_gif, "gif")):
            button.click()
            assert f'download="diffit_seed{view.columns[0].knobs.seed.value}.{kind}"' in view.saved.value

    def test_both_columns_are_saved(self, explorer):
        view = show(explorer, "sample")
        view.save_png.click()
        alone = view.saved.value
        view.compare.value = True
        view.columns[1].knobs.steps.value = 2
        assert explorer.worker.wait(30)
        sizes = []
        for button in (view.save_png, view.save_gif):
            button.click()
            link = re.search('base64,([^"]+)', view.saved.value)[1]
            sizes.append(Image.open(io.BytesIO(base64.b64decode(link))).size)
        assert sizes == [(2 * 256 + 4, 256), (4 * 256 + 3 * 4, 256)]
        assert len(view.saved.value) > len(alone)
        view.compare.value = False
        assert explorer.worker.wait(30)

    def test_stop_is_below_every_tab_and_messages_are_text(self, explorer):
        assert explorer.stop in explorer.box.children[-1].children
        explorer._tell("<b>no</b> class '<script>'")
        assert "<script>" not in explorer.message.value
        assert "&lt;script&gt;" in explorer.message.value


class TestTime:
    def test_the_attention_changes_with_level_query_block_and_head(self, explorer):
        view = show(explorer, "time")
        for knob, value in ((view.level, 9), (view.query[0], 1), (view.head, None), (view.block, "encoder.0.0")):
            before = view.looks.value
            knob.value = value
            assert explorer.worker.wait(30)
            assert view.looks.value != before

    def test_the_frozen_time_token_changes_the_sample(self, explorer):
        view = show(explorer, "time")
        view.sigma.value = 0.1
        view.freeze.value = True
        assert explorer.worker.wait(30)
        assert view.frozen.value != view.true.value
        view.freeze.value = False
        assert explorer.worker.wait(30)
        assert view.frozen.value == view.true.value

    def test_a_knob_turned_while_sampling_loses_nothing(self, explorer):
        view = show(explorer, "time")
        before = view.true.value
        view.knobs.seed.value += 1
        view.more.value = "mean distance"  # cancels the sampling
        view.block.value = "encoder.1.0"
        assert explorer.worker.wait(30)
        assert view.true.value != before
        assert not view.todo


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("explore nothing", "no weights file 'nothing'"),
        ("explore digits --port 99999", "port is 99999, which cannot be"),
    ],
)
def test_mistakes_are_told_before_a_page_is_served(command, says, capsys):
    assert main(command.split()) == 2
    assert says in capsys.readouterr().err


def test_random_turns_of_knobs_tell_no_error(explorer):
    rng = random.Random(0)
    for turn in range(150):
        if turn % 25 == 0:
            view = explorer.views[rng.choice(list(explorer.views))]
            explorer.tabs.selected_index = list(explorer.views.values()).index(view)
        knobs = [knob for knob in vars(view).values() if isinstance(knob, widgets.ValueWidget | widgets.Button)]
        knobs += list(view.knobs.by_name.values()) if hasattr(view, "knobs") else []
        knobs += list(view.columns[0].knobs.by_name.values()) if hasattr(view, "columns") else []
        knob = rng.choice(knobs)
        if isinstance(knob, widgets.Button):
            knob.click()
        elif isinstance(knob, widgets.Checkbox):
            knob.value = not knob.value
        elif isinstance(knob, widgets.IntSlider):
            knob.value = rng.randint(knob.min, min(knob.max, 20))
        elif isinstance(knob, widgets.FloatSlider):
            knob.value = rng.uniform(knob.min, knob.max)
        elif isinstance(knob, widgets.Dropdown | widgets.ToggleButtons):
            knob.index = rng.randrange(len(knob.options))
        time.sleep(0.005)
    assert explorer.worker.wait(60)
    assert explorer.message.value == ""


def test_latents_are_explored_too():
    explorer = Explorer("latent-digits")
    assert explorer.worker.wait(60)
    for name in explorer.views:
        show(explorer, name)
        assert explorer.message.value == ""


def test_without_time_dependent_attention_it_says_so_and_shows_the_rest():
    experiment = preset("digits-dit").override(depth=1, width=32, num_heads=2, sigma_data=0.5)
    pipe = Pipeline(build_denoiser(experiment).eval(), ModelCard(experiment), device=torch.device("cpu"))
    explorer = Explorer(pipe)
    assert explorer.worker.wait(30)
    assert list(explorer.views) == ["sample", "walk"]
    assert "attention" in explorer.message.value
    assert not Explorer(pipe, views=("time",)).views
