"""The verbs, from Python, on networks that learn nothing in no time."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from publish import publish
from safetensors.torch import load_file

from diffit_lib.cli.demo import demo, report_text
from diffit_lib.cli.info import info
from diffit_lib.config import presets
from diffit_lib.config.presets import PRESETS
from diffit_lib.evaluation.evaluate import evaluate
from diffit_lib.sampling.pipeline import load
from diffit_lib.training.steps import DiffusionModule
from diffit_lib.training.train import train
from diffit_lib.utils.errors import DiffitError


@pytest.fixture(scope="module", autouse=True)
def hasty_classifier(tmp_path_factory):
    """The classifiers see the training images once, and are kept for this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffit_lib.evaluation.features.TRAINING_IMAGES", 0)
        patch.setenv("DIFFIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def pixels(path):
    return np.asarray(Image.open(path))


def no_step(self, batch, batch_idx):
    raise AssertionError("a finished run was trained further")


class TestDemo:
    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, tiny, tmp_path_factory):
        """The demo of a tiny `digits` preset, twice: its folder, its first report, its second."""
        run = tmp_path_factory.mktemp("demo") / "run"
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(presets.PRESETS, "digits", tiny.override(name="digits", max_steps=20))
            patch.setenv("DIFFIT_INSTALL_SECONDS", "12")
            first = demo(run)
            patch.delenv("DIFFIT_INSTALL_SECONDS")
            patch.setattr(DiffusionModule, "training_step", no_step)
            rows = (run / "metrics.csv").read_text()
            second = demo(run)
            assert (run / "metrics.csv").read_text() == rows
        return run, first, second

    def test_leaves_weights_pictures_and_a_report(self, run):
        names = {path.name for path in run[0].iterdir()}
        assert names >= {"weights.safetensors", "samples.png", "denoising.png", "loss.png", "report.json"}
        assert load(run[0] / "weights.safetensors")([0]).shape == (1, 8, 8, 1)

    def test_grid_has_a_row_of_ten_enlarged_digits_for_each_class(self, run):
        grid = pixels(run[0] / "samples.png")
        assert grid.shape[0] == 10 * 72 + 8
        assert 10 * 72 + 8 < grid.shape[1] < 10 * 72 + 40  # the classes' names stand left of the rows
        images = load(run[0] / "weights.safetensors")(range(100), [k // 10 for k in range(100)])
        sheet = grid[:, -728:]
        assert np.array_equal(sheet[8::72][:10, 8::72][:, :10], images[:, 0, 0, 0].reshape(10, 10))

    def test_strip_shows_about_nine_states_of_every_class(self, run):
        strip = pixels(run[0] / "denoising.png")[24:]  # below the noise levels
        assert strip.shape[0] == 10 * 72 + 8
        assert 8 * 72 + 8 < strip.shape[1] < 8 * 72 + 40  # all of 8 steps
        last = load(run[0] / "weights.safetensors")(range(10), range(10))
        assert np.array_equal(strip[8::72, -72:-8:8][:10], last[:, 0, :, 0])

    def test_report_holds_finite_numbers(self, run):
        report = json.loads((run[0] / "report.json").read_text())
        assert report == run[1] | {"install_seconds": None, "train_seconds": report["train_seconds"]}
        for name in ("class_accuracy", "classifier_test_accuracy"):
            assert 0 <= report[name] <= 1
        for name in ("frechet_ratio", "copy_ratio", "train_seconds"):
            assert math.isfinite(report[name])
            assert report[name] >= 0
        assert report["images_seen"] == 20 * 16
        weights = load_file(run[0] / "weights.safetensors")
        assert report["parameters"] == sum(t.numel() for name, t in weights.items() if name.startswith("ema."))
        assert report["stamp"]["n"] == 360
        assert "n = 360 is small" in report["warnings"][0]

    def test_report_knows_how_long_the_installation_took(self, run):
        assert (run[1]["install_seconds"], run[2]["install_seconds"]) == (12.0, None)

    def test_second_call_trains_nothing_and_finds_the_same(self, run):
        same = run[1].keys() - {"train_seconds", "install_seconds"}
        assert {name: run[1][name] for name in same} == {name: run[2][name] for name in same}

    def test_table_shows_the_numbers_and_the_warnings(self, run):
        text = report_text(run[1])
        for name in ("class_accuracy", "classifier_test_accuracy", "frechet_ratio", "copy_ratio"):
            assert f"{run[1][name]:.3f}" in text
        assert f"{run[1]['parameters']:,} parameters, 320 images seen" in text
        assert "note: n = 360 is small" in text


class TestInfo:
    def test_describes_every_preset(self):
        """Of the large sisters one is enough."""
        titles = {"image": "image-space DiffiT", "diffit": "latent DiffiT", "dit": "DiT"}
        for name, experiment in (
            (name, PRESETS[name]) for name in PRESETS if name[-4:] not in ("-b-2", "-l-2", "xl-2")
        ):
            title = titles[getattr(experiment.network, "block", experiment.network.kind)]
            assert info(name).startswith(f"preset {name}: {title} for {experiment.data}, ")

    def test_describes_the_papers_network_level_by_level(self):
        lines = info("cifar10").splitlines()
        assert [line.split() for line in lines[2:5]] == [
            ["0", "32x32", "128", "4", "+", "4", "4x4", "4"],
            ["1", "16x16", "256", "4", "+", "4", "4x4", "4"],
            ["2", "8x8", "256", "4", "4x4", "4"],
        ]

    def test_describes_a_weights_file(self, weights, unconditional):
        text = info(weights)
        assert text.startswith(f"weights {weights}: tiny, trained on digits/train 0\n")
        assert "64 images in 0.5 minutes on cpu; licence MIT" in text
        assert "classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9\n" in text
        assert "classes: none\n" in info(unconditional)

    def test_a_file_named_like_a_preset_is_the_file(self, weights, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "cifar10").write_bytes(weights.read_bytes())
        assert info("cifar10").startswith("weights cifar10: tiny")


class TestPublish:
    def test_leaves_half_the_bytes_a_card_a_grid_and_the_curve(self, tiny, data, tmp_path):
        run, folder = tmp_path / "run", tmp_path / "weights"
        whole = train(tiny, run, data, progress=False)
        path = publish(run, "mine", "diffit train tiny", folder)
        assert {file.name for file in folder.iterdir()} == {
            "mine.safetensors", "mine.md", "mine.png", "mine.csv", "mine-loss.png",
        }  # fmt: skip
        tensors, trained = load_file(path), load_file(whole)
        assert tensors.keys() == {name for name in trained if name.startswith("ema.")}
        assert all(torch.equal(tensors[name], trained[name].half()) for name in tensors)
        numbers = load(path).card.numbers
        text = (folder / "mine.md").read_text()
        assert f"| frechet ratio | {numbers['frechet_ratio']:.3f} |" in text
        assert "```sh\ndiffit train tiny\n```" in text
        again = evaluate(path, data)  # on another number of threads, so equal but for rounding
        assert again["stamp"] == numbers["stamp"]
        for name in ("class_accuracy", "frechet", "frechet_floor", "frechet_ratio", "copy_ratio"):
            assert again[name] == pytest.approx(numbers[name], rel=1e-4)


class TestTrain:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            (
                {"denoiser": "vp", "noise_schedule": "cosine", "timesteps": 6, "sampler": "ddpm"},
                "steps is 8; give at most 6",
            ),
            (
                {"in_channels": 3},
                r"tiny is built for .* \(3, 8, 8\), but digits/train has \(1, 8, 8\); set in_channels",
            ),
            ({"image_size": (16, 8)}, r"\(1, 16, 8\), but digits/train has \(1, 8, 8\)"),
            ({"num_classes": 7}, "num_classes=7, but digits/train has 10 classes; set num_classes to 10, or to 0"),
        ],
    )
    def test_refuses_data_the_network_does_not_fit_and_writes_nothing(self, tiny, data, tmp_path, changes, says):
        with pytest.raises(DiffitError, match=says):
            train(tiny.override(**changes), tmp_path / "run", data, progress=False)
        assert not (tmp_path / "run").exists()

    def test_refuses_half_precision_where_there_is_none(self, tiny, data, tmp_path):
        with pytest.raises(DiffitError, match="precision is '16-mixed', which a CPU does not have; give bf16-mixed"):
            train(tiny.override(precision="16-mixed"), tmp_path / "run", data, progress=False)
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("fast", [True, False])
    def test_says_that_bf16_is_slow_where_it_is(self, tiny, data, tmp_path, capsys, monkeypatch, fast):
        monkeypatch.setattr("diffit_lib.training.fit.bf16_by_onednn", lambda: fast)
        train(tiny.override(precision="bf16-mixed", max_steps=1), tmp_path / "run", data, progress=False)
        assert ("bf16-mixed takes several times as long as 32-true" in capsys.readouterr().err) == (not fast)

    def test_takes_an_unconditional_network(self, tiny, data, tmp_path):
        weights = train(tiny.override(num_classes=0, max_steps=1), tmp_path, data, progress=False)
        assert load(weights)([0]).shape == (1, 8, 8, 1)

    def test_measures_sigma_data_and_keeps_a_given_one(self, fit, tiny, data):
        assert fit(tiny.override(max_steps=1), run="a").model.sigma_data == pytest.approx(
            data.train.standard_deviation(), abs=1e-4
        )
        assert fit(tiny.override(max_steps=1, sigma_data=0.6), run="b").model.sigma_data == 0.6

    def test_trains_a_denoiser_of_another_kind(self, fit, tiny):
        module = fit(tiny.override(denoiser="vp", prediction="v", sampler="ddim"))
        assert module.model.config.prediction == "v"
        assert all(parameter.isfinite().all() for parameter in module.parameters())

    def test_card_says_what_was_trained_on_what_for_how_long(self, tiny, data, tmp_path):
        card = load(train(tiny, tmp_path, data, progress=False)).card
        assert card.trained_on == f"digits/train {data.train.fingerprint()}"
        assert card.class_names == tuple("0123456789")
        assert (card.images_seen, card.device, card.licence) == (64, "cpu, 1 thread", "MIT")
        assert card.experiment == tiny.override(precision="32-true", sigma_data=card.experiment.denoiser.sigma_data)

    def test_a_new_run_in_a_used_folder_starts_its_metrics_anew(self, tiny, data, tmp_path):
        (tmp_path / "metrics.csv").write_text("images,loss\n99,1.0\n")
        train(tiny, tmp_path, data, progress=False)
        assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
