"""One's own pictures: the recipe they get, the stages it is trained in, what `info` says of them, and mistakes."""

import re
import shutil

import pytest
import torch
from image_files import fill, noise, one_line, plain
from PIL import Image
from safetensors.torch import load_file

from diffit_lib.checkpoints.autoencoders import stable_diffusion_card
from diffit_lib.cli.main import main
from diffit_lib.config.diffusion import FlowConfig
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import preset, vae_preset
from diffit_lib.data.preprocess import look
from diffit_lib.data.sources import list_images
from diffit_lib.reports import auto as photos
from diffit_lib.reports import diagnosis
from diffit_lib.reports.auto import choose_experiment
from diffit_lib.training import cost
from diffit_lib.training.train import train as train_recipe
from diffit_lib.utils.errors import DiffitError

TINY = {"width": 8, "batch_size": 4, "max_steps": 2, "num_heads": 2, "steps": 2}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A CPU's recipes made tiny, no time spent on timing, few samples, and an empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(photos, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(cost, "ENOUGH", 0.0)
    monkeypatch.setattr("diffit_lib.cli.estimate.SECONDS", 0.5)
    monkeypatch.setattr(diagnosis, "MOST", 32)
    monkeypatch.setattr("diffit_lib.evaluation.features.TRAINING_IMAGES", 64)
    monkeypatch.setattr("diffit_lib.training.train.GRID", 4)
    pixels = photos.ON_CPU["pixels"] | TINY | {"num_blocks": 1, "time_dim": 16}
    monkeypatch.setitem(photos.ON_CPU, "pixels", pixels)
    monkeypatch.setitem(photos.ON_CPU, "latents", TINY | {"depth": 1, "minutes": None, "workers": 0})
    vae = {"channels": (8, 8), "patch": 4, "down": (True,), "attn": (False, False), "batch_size": 4, "max_steps": 2}
    monkeypatch.setitem(photos.ON_CPU, "vae", vae | {"minutes": None, "workers": 0})


def pictures(tmp_path, side, count=60, classes="abc"):
    """Noise images of this side in class folders."""
    files = {f"{classes[k % len(classes)]}/{k}.png": noise(k, side, side) for k in range(count)}
    return fill(tmp_path / f"photos{side}", files)


class TestChoice:
    @pytest.mark.parametrize(
        ("side", "made"), [(7, 8), (11, 8), (12, 16), (28, 32), (45, 32), (46, 64), (64, 64), (90, 64)]
    )
    def test_small_pictures_are_learned_as_pixels_of_the_nearest_size(self, tmp_path, side, made):
        experiment, vae, _ = choose_experiment(pictures(tmp_path, side, 12))
        assert vae is None
        assert experiment.vae == ""
        assert experiment.network.shape == (3, made, made)
        assert experiment.network.num_classes == 3
        assert experiment.network.map_sizes[-1] == (4 if made < 32 else 8,) * 2
        assert experiment.denoiser == FlowConfig(prediction="x0", times="logit-normal")

    @pytest.mark.parametrize("side", [8, 16, 32, 64])
    def test_on_a_gpu_by_the_network_for_it(self, tmp_path, monkeypatch, side):
        monkeypatch.setattr(photos, "best_device", lambda: torch.device("cuda"))
        experiment = choose_experiment(pictures(tmp_path, side, 12)).experiment
        assert experiment.name == "cifar10-t4"
        assert experiment.network.patch == 1
        assert experiment.network.map_sizes[-1] == (min(side // 2, 8),) * 2

    def test_larger_ones_as_latents_of_an_autoencoder_that_is_trained_first(self, tmp_path):
        experiment, vae, _ = choose_experiment(pictures(tmp_path, 91, 12))
        assert vae.network.image_size == (128, 128)
        assert experiment.network.shape == vae.network.latent_shape == (4, 16, 16)
        assert experiment.data == vae.data == str(tmp_path / "photos91")

    def test_on_a_gpu_of_the_published_autoencoder_where_it_can_be_had(self, tmp_path, monkeypatch):
        monkeypatch.setattr(photos, "best_device", lambda: torch.device("cuda"))
        monkeypatch.setattr(photos, "published_vae", lambda *, download: "stabilityai/sd-vae-ft-ema")
        monkeypatch.setattr(photos, "load_vae", lambda name: (None, stable_diffusion_card(name)))
        for side, latent in ((128, 16), (200, 32)):
            experiment, vae, _ = choose_experiment(pictures(tmp_path, side, 12))
            assert vae is None
            assert experiment.vae == "stabilityai/sd-vae-ft-ema"
            assert experiment.network.shape == (4, latent, latent)

    def test_else_of_its_own_there_too(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(photos, "best_device", lambda: torch.device("cuda"))
        experiment, vae, _ = choose_experiment(pictures(tmp_path, 128, 12), download=False)
        assert vae.name == experiment.vae == "vae-imagenette128"
        assert vae.network == vae_preset("vae-imagenette128").network
        assert "sd-vae-ft-ema is not here" in capsys.readouterr().err

    def test_an_autoencoder_that_is_named_is_taken_whatever_the_size(self, tmp_path):
        experiment, vae, _ = choose_experiment("digits", "vae-digits")
        assert vae is None
        assert experiment.vae == "vae-digits"
        assert experiment.network.shape == (2, 4, 4)

    @pytest.mark.parametrize(("network", "block"), [("latent", "diffit"), ("dit", "dit")])
    def test_another_network_is_one_for_the_same_pictures(self, tmp_path, network, block):
        experiment = choose_experiment(pictures(tmp_path, 16, 12), network=network, width=96).experiment
        assert experiment.network.block == block
        assert experiment.network.shape == (3, 16, 16)
        assert experiment.network.num_classes == 3
        assert experiment.network.width == 96

    def test_data_with_a_preset_of_their_own_take_that(self):
        assert choose_experiment("digits").experiment == preset("digits")

    def test_grey_pictures_have_one_channel_and_one_class_counts_as_none(self, tmp_path):
        folder = fill(tmp_path / "grey", {f"{k}.png": noise(k, 32, 32).convert("L") for k in range(12)})
        experiment = choose_experiment(folder).experiment
        assert experiment.network.shape == (1, 32, 32)
        assert experiment.network.num_classes == 0
        assert experiment.sampling.guidance == 1


class TestTraining:
    def test_pixels_to_a_report(self, tmp_path, capsys):
        pictures(tmp_path, 16)
        assert main(["train", "--data", "photos16"]) == 0
        run = tmp_path / "runs/00000-photos16"
        assert capsys.readouterr().out == (
            "weights: runs/00000-photos16/weights.safetensors; report: runs/00000-photos16/report.html\n"
        )
        page = (run / "report.html").read_text()
        for title in ("Samples", "Real", "Copy check", "Numbers", "Curves", "Go on", "Cannot say yet"):
            assert f"<h2>{title}</h2>" in page
        assert "<script" not in page
        assert not re.search(r'(src|href)="(?!data:)', page)  # nothing from elsewhere
        assert "Frechet distance, small classifier" in page
        assert "No Inception" in page

    def test_of_the_current_folder_has_its_name(self, tmp_path, monkeypatch):
        monkeypatch.setattr(photos, "train", lambda *_, name: name)
        monkeypatch.chdir(pictures(tmp_path, 8))
        assert photos.train_photos(".", minutes=1) == "photos8"

    def test_latents_each_stage_going_on_where_it_stopped(self, tmp_path, capsys, monkeypatch):
        folder = pictures(tmp_path, 100)
        monkeypatch.setattr(photos, "train", interrupted)
        assert main(["train", "--data", str(folder), "--run", "run"]) == 130
        vae = load_file("run/vae/weights.safetensors")
        monkeypatch.setattr(photos, "train", train_recipe)
        assert main(["train", "--data", str(folder), "--run", "run"]) == 0
        again = load_file("run/vae/weights.safetensors")
        assert all(torch.equal(vae[name], again[name]) for name in vae)
        assert "Autoencoder" in (tmp_path / "run/report.html").read_text()

    @pytest.mark.parametrize(("minutes", "training"), [(2.0, 1.6), (60.0, 59.0), (None, 30.0)])
    def test_the_minutes_have_room_for_the_report(self, tmp_path, monkeypatch, minutes, training):
        monkeypatch.setattr(photos, "time_steps", lambda *_: 0.5)
        monkeypatch.setattr(photos, "train", lambda experiment, *_, **__: experiment)
        assert photos.train_photos(pictures(tmp_path, 8), minutes=minutes).training.minutes == training

    def test_what_it_takes_is_told_with_other_options_too(self, tmp_path, capsys):
        pictures(tmp_path, 8, 20)
        assert main(["train", "--data", "photos8", "--skip-bad", "--width", "16", "--dry-run"]) == 0
        assert "pixels, 8x8: cifar10-16" in capsys.readouterr().out
        assert main(["train", "--data", "photos8", "--skip-bad", "--width", "16", "--print-config"]) == 0
        lines = [line.split("#")[0].strip() for line in capsys.readouterr().out.splitlines()]
        assert {"data: photos8", "skip_bad: true", "width: 16"} <= {*lines}

    @pytest.mark.parametrize(("data", "stops"), [("digits", False), ("photos8", True)])
    def test_only_data_without_a_preset_of_their_own_are_told_a_limit(self, tmp_path, capsys, data, stops):
        pictures(tmp_path, 8, 20)
        assert main(["train", "--data", data, "--minutes", "null", "--dry-run"]) == 0
        assert ("stops after 30 minutes" in capsys.readouterr().out) == stops

    def test_a_plan_fills_the_minutes_and_a_run_that_goes_on_keeps_it(self, tmp_path, monkeypatch):
        monkeypatch.setattr(photos, "time_steps", lambda *_: 0.5)
        experiment = preset("digits").override(max_steps=None, batch_size=1)
        planned = photos.paced(experiment, None, 10, {})
        assert planned.training.total_images == 60 * 10 * photos.TRAINED / 0.5
        assert planned.training.minutes == 10
        assert photos.paced(experiment.override(images=100), None, None, {}).training.total_images == 100
        assert photos.paced(experiment.override(images=7), None, 10, {"images"}).training.total_images == 7

    def test_fewer_than_fifty_pictures_have_a_report_that_says_what_it_cannot_know(self, tmp_path):
        pictures(tmp_path, 8, 20)
        assert main(["train", "--data", "photos8"]) == 0
        page = (tmp_path / "runs/00000-photos8/report.html").read_text()
        assert "too few images for a test part" in page
        assert "cannot be seen" in page

    def test_the_report_of_a_finished_run_is_made_anew_without_training(self, tmp_path):
        pictures(tmp_path, 8, 20)
        assert main(["train", "--data", "photos8", "--run", "run"]) == 0
        page, numbers = (tmp_path / "run" / name for name in ("report.html", "metrics.csv"))
        before = page.read_bytes(), numbers.read_bytes()
        page.unlink()
        assert main(["train", "--run", "run"]) == 0
        assert (page.read_bytes(), numbers.read_bytes()) == before


def interrupted(experiment, *args, **options):
    """Ctrl-C in the second stage."""
    if isinstance(experiment, ExperimentConfig):
        raise KeyboardInterrupt
    return train_recipe(experiment, *args, **options)


class TestInfo:
    def test_says_what_pictures_are_and_what_is_trained_on_them(self, tmp_path, capsys):
        folder = pictures(tmp_path, 20, 59)
        noise(99, 30, 40).convert("L").save(folder / "a" / "wide.png")
        (folder / "b" / "bad.png").write_bytes(b"no image")
        assert main(["info", str(folder)]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"{folder}: 61 images\n")
        assert "sizes    20x20 to 40x30, most often 20x20 (" in text
        assert re.search(r"modes    RGB \d+", text)
        assert "classes  3: a " in text
        assert "broken   1, as b/bad.png; --skip-bad" in text
        assert "train    pixels, 16x16: cifar10-16" in text
        assert re.search(r"memory   [\d.]+ MB in training, and 0\.0 MB for the images", text)
        assert "an estimate" in text
        assert f"start    diffit train --data {folder}" in text

    def test_a_zip_as_its_folder(self, tmp_path, capsys):
        folder = pictures(tmp_path, 20)
        shutil.make_archive(str(folder), "zip", folder)
        assert main(["info", f"{folder}.zip"]) == 0
        assert ": 60 images\n" in capsys.readouterr().out

    def test_broken_files_of_the_test_part_and_what_training_refuses_are_counted(self, tmp_path, capsys):
        folder = pictures(tmp_path, 8)
        shutil.copytree(folder, folder / "train")
        shutil.copytree(folder / "train", folder / "test")
        for name in "abc":
            shutil.rmtree(folder / name)
        (folder / "test" / "b" / "1.png").write_bytes(b"no image")
        Image.new("F", (8, 8)).save(folder / "train" / "a" / "floats.tif")
        assert main(["info", str(folder)]) == 0
        text = capsys.readouterr().out
        assert ": 121 images\n" in text
        assert re.search(r"broken   2, as (train/a/floats.tif, test/b/1.png);", text)
        assert "classes  3: a 41, b 40, c 40" in text

    def test_the_digits_are_told_of_beside_their_preset(self, capsys):
        assert main(["info", "digits"]) == 0
        text = capsys.readouterr().out
        assert "preset digits: image-space DiffiT" in text
        assert "digits: 1,797 images" in text
        assert "test     360 of them" in text

    def test_when_time_is_short_fewer_are_opened_and_that_is_said(self, tmp_path):
        survey = look(list_images(pictures(tmp_path, 8)).train, seconds=0.0)
        assert survey.looked == 1


class TestMistakes:
    @pytest.mark.parametrize(
        ("files", "says"),
        [
            ({}, "holds no images"),
            ({"a.png": plain()}, "has 1 image to learn from; give 10 at least"),
            ({f"{k}.png": b"no image" for k in range(12)}, "none of 12 images can be read, the first is 0.png"),
        ],
    )
    def test_of_folders_are_one_line(self, tmp_path, files, says):
        folder = fill(tmp_path / "mine", files)
        folder.mkdir(exist_ok=True)
        with pytest.raises(DiffitError) as caught:
            photos.train_photos(folder)
        assert says in one_line(caught)
        assert not (tmp_path / "runs").exists()

    def test_a_full_disk_is_told_before_anything_is_trained(self, tmp_path, monkeypatch):
        folder = pictures(tmp_path, 16)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
        with pytest.raises(DiffitError) as caught:
            photos.train_photos(folder)
        assert re.search(r"a run takes .* GB, but .* has 1e-06 GB; give another --run", one_line(caught))
        assert not (tmp_path / "runs").exists()
