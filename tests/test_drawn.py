"""A measurement that was broken off goes on: what was drawn is not drawn again, and the numbers are the same."""

import pytest
import torch

from diffit_lib.evaluation.evaluate import evaluate
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.sampling.writer import SampleCache
from diffit_lib.utils.tensors import to_uint8


@pytest.fixture
def count(monkeypatch):
    """How many images have been drawn."""
    drawn = []
    stream = Pipeline.stream
    monkeypatch.setattr(
        Pipeline, "stream", lambda self, seeds, *a, **k: drawn.extend(seeds) or stream(self, seeds, *a, **k)
    )
    return drawn


@pytest.fixture
def hasty(monkeypatch, tmp_path):
    """The classifiers see the training images once."""
    monkeypatch.setattr("diffit_lib.evaluation.features.TRAINING_IMAGES", 0)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))


def images(drawn, pipe, seeds, labels=None, **settings):
    return torch.cat(list(drawn.read(drawn.draw(pipe, seeds, labels, batch_size=4, **settings))))


def test_images_are_those_of_the_pipeline(weights, tmp_path):
    pipe = load(weights)
    expected = torch.cat([to_uint8(x) for x in pipe.batches(range(10), 3, batch_size=4)])
    assert torch.equal(images(SampleCache(tmp_path), pipe, range(10), 3), expected)
    assert torch.equal(images(SampleCache(tmp_path), pipe, range(10), 3), expected)


def test_colour_images_in_the_layout_of_an_autoencoder_are_kept(unconditional, tmp_path, monkeypatch):
    pipe, batches = load(unconditional), Pipeline.batches
    expected = images(SampleCache(tmp_path / "usual"), pipe, range(5))

    def channels_last(*args, **settings):
        return (batch.to(memory_format=torch.channels_last) for batch in batches(*args, **settings))

    monkeypatch.setattr(Pipeline, "batches", channels_last)
    assert torch.equal(images(SampleCache(tmp_path / "other"), pipe, range(5)), expected)


def test_broken_off_measurement_goes_on(weights, data, tmp_path, hasty, count):
    unbroken = evaluate(weights, data, images=250)
    count.clear()

    def break_off():
        if len(count) >= 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(weights, data, images=250, drawn=SampleCache(tmp_path / "drawn", break_off))
    assert len(count) == 200
    count.clear()
    again = evaluate(weights, data, images=250, drawn=SampleCache(tmp_path / "drawn"))
    assert len(count) == 50
    assert again == unbroken


def test_other_weights_settings_or_labels_draw_anew(weights, unconditional, tmp_path, count):
    pipe, other = load(weights), load(weights, ema=False)
    for number, draw in enumerate(
        [
            lambda: images(SampleCache(tmp_path), pipe, range(4), 3),
            lambda: images(SampleCache(tmp_path), pipe, range(4), 4),
            lambda: images(SampleCache(tmp_path), pipe, range(1, 5), 3),
            lambda: images(SampleCache(tmp_path), pipe, range(4), 3, steps=5),
            lambda: images(SampleCache(tmp_path), pipe, range(4), 3, guidance=2.0),
            lambda: images(SampleCache(tmp_path), other, range(4), 3),
            lambda: images(SampleCache(tmp_path), load(unconditional), range(4)),
        ],
        start=1,
    ):
        draw(), draw()
        assert len(count) == 4 * number


def test_after_is_called_once_for_each_new_batch(weights, tmp_path):
    calls = []
    drawn = SampleCache(tmp_path, lambda: calls.append(len(list(tmp_path.iterdir()))))
    images(drawn, load(weights), range(10))
    images(drawn, load(weights), range(12))
    assert calls == [1, 2, 3, 4]


def test_what_other_weights_drew_is_swept_out_and_nothing_else(weights, tmp_path):
    images(SampleCache(tmp_path), load(weights, ema=False), range(4))
    for steps in (4, 5):
        images(SampleCache(tmp_path), load(weights), range(8), steps=steps)
    assert len(list(tmp_path.iterdir())) == 2 * 2
