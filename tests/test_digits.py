"""The digits preset, trained in earnest under three kinds of denoiser, draws digits."""

import pytest

from diffit_lib.config.presets import preset
from diffit_lib.evaluation.evaluate import evaluate
from diffit_lib.training.train import train

VPConfig = {  # 1.5 times the preset's images, over EDM's noise levels with fresh noise
    "denoiser": "vp", "images": 144_000, "minutes": None,
    "sigma_min": 0.03, "sigma_max": 10.0, "steps": 25, "churn": 20.0,
}  # fmt: skip


@pytest.mark.slow  # trains for three to five minutes each on a quiet CPU core
@pytest.mark.parametrize(
    "changes",
    [
        {"minutes": None},
        VPConfig | {"prediction": "eps", "noise_schedule": "linear", "clip": True},
        VPConfig | {"prediction": "v", "noise_schedule": "cosine"},
    ],
    ids=["edm", "eps-linear", "v-cosine"],
)
def test_samples_are_of_their_class_as_close_as_real_ones_and_no_copies(data, tmp_path, changes):
    report = evaluate(train(preset("digits").override(**changes), tmp_path, data, progress=False), data)
    assert report["class_accuracy"] >= 0.95
    assert report["frechet_ratio"] <= 1.3
    assert 0.85 <= report["copy_ratio"] <= 1.35
