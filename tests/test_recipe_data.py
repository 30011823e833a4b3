"""What a recipe says of its data reaches whoever loads them, and which curve a run is compared with."""

import pytest

from diffit_lib.config.presets import preset
from diffit_lib.data import datasets as data
from diffit_lib.training.train import expected_rows


def test_all_that_a_recipe_says_of_its_images_is_passed_on(monkeypatch):
    monkeypatch.setattr(data, "load_data", lambda *args, **options: (args, options))
    experiment = preset("ffhq64").override(crop="adm", skip_bad=True, memory_gb=2.0)
    options = {"crop": "adm", "skip_bad": True, "memory_gb": 2.0}
    assert data.experiment_data(experiment) == (("ffhq64", (64, 64), 3), options)
    assert data.experiment_data(experiment, "photos") == (("photos", (64, 64), 3), options)


def test_a_run_of_a_preset_is_compared_with_its_ready_made_weights():
    assert int(expected_rows(preset("digits"))[-1]["images"]) == 96_000


@pytest.mark.parametrize("changes", [{"data": "photos"}, {"width": 48}, {"denoiser": "vp"}, {"name": "mine"}])
def test_another_run_is_not(changes):
    assert expected_rows(preset("digits").override(**changes)) == []
