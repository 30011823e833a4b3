"""The digits preset, trained in earnest under three kinds of denoiser, draws digits."""

import pytest

from diffit_lib.presets import preset
from diffit_lib.tasks.evaluate import evaluate
from diffit_lib.tasks.train import train

VP = {"denoiser": "vp", "images": 144_000, "minutes": None, "sampler": "ddpm"}  # 1.5 times the preset's images


@pytest.mark.slow  # trains for three to five minutes each on a quiet CPU core
@pytest.mark.parametrize(
    "changes",
    [
        {"minutes": None},
        VP | {"prediction": "eps", "noise_schedule": "linear", "clip": True, "steps": 100},
        VP | {"prediction": "v", "noise_schedule": "cosine", "steps": 50},
    ],
    ids=["edm", "eps-linear", "v-cosine"],
)
def test_samples_are_of_their_class_as_close_as_real_ones_and_no_copies(data, tmp_path, changes):
    report = evaluate(train(preset("digits").override(**changes), tmp_path, data, progress=False), data)
    assert report["class_accuracy"] >= 0.95
    assert report["frechet_ratio"] <= 1.3
    assert 0.85 <= report["copy_ratio"] <= 1.35
