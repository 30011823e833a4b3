"""A measurement that was broken off goes on: what was drawn is not drawn again, and the numbers are the same."""

import pytest
import torch

from diffit_lib.evaluation.evaluate import evaluate, sample_writers
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.sampling.writer import SampleWriter, Selection
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import to_uint8


@pytest.fixture
def count(monkeypatch):
    """The seeds that have been drawn."""
    drawn = []
    batches = Pipeline.batches
    monkeypatch.setattr(
        Pipeline, "batches", lambda self, seeds, *a, **k: drawn.extend(seeds) or batches(self, seeds, *a, **k)
    )
    return drawn


@pytest.fixture
def hasty(monkeypatch, tmp_path):
    """The classifiers see the training images once."""
    monkeypatch.setattr("diffit_lib.evaluation.features.TRAINING_IMAGES", 0)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))


def images(pipe, folder, seeds, label=None):
    writer = SampleWriter(pipe, folder, [Selection(seed, label, f"{seed}.png") for seed in seeds], batch_size=4)
    writer.draw()
    return torch.cat(list(writer.read()))


@pytest.mark.parametrize("label", [3, 10])
def test_what_is_read_back_is_what_the_pipeline_draws(weights, tmp_path, label, count):
    pipe = load(weights)
    expected = torch.cat([to_uint8(x) for x in pipe.batches(range(10), "none" if label == 10 else 3, batch_size=4)])
    count.clear()
    for _ in range(2):
        assert torch.equal(images(pipe, tmp_path, range(10), label), expected)
    assert count == list(range(10))


def test_colour_images_in_the_layout_of_an_autoencoder_are_kept(unconditional, tmp_path, monkeypatch):
    pipe, batches = load(unconditional), Pipeline.batches
    expected = images(pipe, tmp_path / "usual", range(5))
    assert expected.shape == (5, 3, 8, 16)
    assert expected.is_contiguous()

    def channels_last(*args, **settings):
        return (batch.to(memory_format=torch.channels_last) for batch in batches(*args, **settings))

    monkeypatch.setattr(Pipeline, "batches", channels_last)
    assert torch.equal(images(pipe, tmp_path / "other", range(5)), expected)


def test_broken_off_measurement_goes_on(weights, data, tmp_path, hasty, count):
    unbroken = evaluate(weights, data, images=250)
    count.clear()

    def break_off():
        if len(count) >= 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(weights, data, images=250, drawn=tmp_path / "drawn", after_batch=break_off)
    assert len(count) == 200
    count.clear()
    again = evaluate(weights, data, images=250, drawn=tmp_path / "drawn")
    assert len(count) == 50
    assert again == unbroken


def draw(pipe, parent, *, images=4, steps=2, after_batch=lambda: None, **settings):
    """Draw as `evaluate` does, with its own batch size."""
    each = [{"steps": steps, "sampler": "euler", **settings}]
    (writer,) = sample_writers(pipe, images, each, 4, "round", parent, after_batch)
    writer.draw()


def test_other_weights_settings_or_numbers_of_images_draw_anew(weights, unconditional, tmp_path, count):
    pipe, other = load(weights), load(weights, ema=False)
    for number, (which, options) in enumerate(
        [
            (pipe, {}),
            (pipe, {"steps": 5}),
            (pipe, {"guidance": 2.0}),
            (pipe, {"images": 3}),
            (other, {}),
            (load(unconditional), {}),
        ],
        start=1,
    ):
        for _ in range(2):
            draw(which, tmp_path, **options)
        assert len(count) == 4 * number - (number > 3)


def test_after_batch_is_called_once_for_each_new_batch(weights, tmp_path):
    calls = []
    for _ in range(2):
        draw(load(weights), tmp_path, images=10, after_batch=lambda: calls.append(len(list(tmp_path.rglob("*.png")))))
    assert calls == [4, 8, 10]


def test_what_other_weights_drew_is_deleted_and_nothing_else(weights, tmp_path):
    (tmp_path / "holiday").mkdir()
    draw(load(weights, ema=False), tmp_path)
    for steps in (4, 5):
        draw(load(weights), tmp_path, steps=steps)
    assert len(list(tmp_path.iterdir())) == 1 + 2


def test_a_removed_file_is_named(weights, tmp_path):
    writer = SampleWriter(
        load(weights), tmp_path, [Selection(seed, 3, f"{seed}.png") for seed in range(4)], batch_size=4
    )
    writer.draw()
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(DiffitError, match=r"2\.png is missing: it was removed"):
        writer.finish(2, range(4))
    with pytest.raises(DiffitError, match=r"2\.png is missing: it was removed"):
        list(writer.read())
