"""From a form's settings to a recipe that suits the machine, and its data."""

import sys
from dataclasses import replace
from pathlib import Path

import gdown
import pytest
import torch
from PIL import Image

from diffit_lib.checkpoints.autoencoders import load_vae
from diffit_lib.checkpoints.safetensors_io import write_checkpoint
from diffit_lib.config.presets import STABLE_DIFFUSION, preset, vae_preset
from diffit_lib.data import sources
from diffit_lib.data.datasets import Images, load_data
from diffit_lib.notebook.cells import class_examples
from diffit_lib.notebook.drive import Backup, copies_folder
from diffit_lib.notebook.form import (
    choose_vae,
    choose_weights,
    open_run,
    parse,
    plan,
    plan_latent,
    weights_for,
)
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import PRETRAINED


@pytest.fixture
def offline(monkeypatch):
    """Nothing can be downloaded."""

    def fail(root, image_size):
        raise OSError("no network")

    for name in ("cifar10", "imagenette"):
        monkeypatch.setitem(sources.NAMED, name, fail)


@pytest.fixture
def gpu(monkeypatch):
    """The plan is made for a GPU."""
    monkeypatch.setattr("diffit_lib.reports.auto.best_device", lambda: type("Device", (), {"type": "cuda"}))


@pytest.fixture
def folder(tmp_path):
    """Small photographs of three classes."""
    for number in range(60):
        path = tmp_path / "pictures" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(path)
    return tmp_path / "pictures"


class TestPlan:
    def test_auto_means_the_data_of_the_preset_that_is_named(self, monkeypatch):
        asked = []
        monkeypatch.setattr(
            "diffit_lib.notebook.form.experiment_data",
            lambda experiment: (asked.append(experiment.data), load_data("digits"))[1],
        )
        plan("auto", "mnist")
        assert asked == ["mnist"]

    def test_on_a_cpu_auto_means_the_digits(self):
        experiment, data = plan(seed=3)
        assert experiment == preset("digits").override(seed=3)
        assert data.train.name == "digits/train"

    def test_on_a_gpu_it_means_cifar10_and_without_network_the_digits_in_one_red_line(self, gpu, offline, capsys):
        experiment, data = plan()
        assert (experiment.name, data.train.name) == ("digits", "digits/train")
        told = capsys.readouterr().out
        assert told.startswith("\033[31mCould not download cifar10 (no network)")
        assert told.endswith("this goes on with the digits\033[0m\n")
        assert told.count("\n") == 1

    @pytest.mark.parametrize(
        ("preset_name", "overrides", "without"),
        [
            ("cifar10", "", "without PRESET"),
            ("auto", "width=96", "without OVERRIDES"),
            ("cifar10", "width=96", "without PRESET and OVERRIDES"),
        ],
    )
    def test_what_the_digits_do_without_is_named(self, offline, capsys, preset_name, overrides, without):
        experiment, _ = plan("cifar10", preset_name, minutes=7, overrides=overrides)
        assert experiment == preset("digits").override(minutes=7.0)
        assert capsys.readouterr().out.endswith(f": this goes on with the digits, {without}\033[0m\n")

    def test_path_takes_the_preset_for_small_photographs_and_its_own_classes(self, folder):
        experiment, data = plan(str(folder))
        assert (experiment.name, experiment.data) == ("cifar10-16", str(folder))
        assert experiment.network.num_classes == len(data.train.class_names) == 3
        assert data.train.images.shape[1:] == (3, 16, 16)

    def test_minutes_are_given_or_the_presets_own_or_half_an_hour_at_most(self, folder):
        assert plan("digits", minutes=7)[0].training.minutes == 7
        assert plan("digits")[0].training.minutes == preset("digits").training.minutes
        assert plan(str(folder), "cifar10")[0].training.minutes == 30
        assert plan(str(folder), overrides="max_steps=9 minutes=None")[0].training.minutes is None

    def test_copies_are_at_most_five_minutes_apart(self, folder):
        assert preset("cifar10-t4").training.report_minutes == 5
        assert plan(str(folder))[0].training.report_minutes == 4

    @pytest.mark.parametrize("dataset", ["no/such/folder", "cifar11"])
    def test_what_is_not_there_is_an_error(self, dataset):
        with pytest.raises(DiffitError, match="no data set or path"):
            plan(dataset)

    def test_without_a_gpu_colab_is_told_how_to_switch_one_on(self, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "google.colab", None)
        plan()
        assert "Change runtime type > T4 GPU" in capsys.readouterr().out


class TestPlanLatent:
    def test_on_a_cpu_auto_means_the_digits_and_their_autoencoder(self):
        experiment, vae, data = plan_latent(seed=3)
        assert experiment == preset("latent-digits").override(seed=3)
        assert vae == vae_preset("vae-digits").override(seed=3)
        assert data.train.name == "digits/train"

    def test_what_the_network_sees_follows_from_the_autoencoder(self):
        experiment, vae, _ = plan_latent("digits", block="dit", overrides="lr=1e-4 vae.lr=1e-3 vae.z_channels=3")
        assert experiment.network.shape == vae.network.latent_shape == (3, 4, 4)
        assert (experiment.network.block, experiment.training.lr, vae.training.lr) == ("dit", 1e-4, 1e-3)

    def test_minutes_of_one_are_not_those_of_the_other(self):
        experiment, vae, _ = plan_latent("digits", minutes=7, vae_minutes=2)
        assert (experiment.training.minutes, vae.training.minutes) == (7, 2)

    def test_stable_diffusions_autoencoder_takes_photographs_alone(self, folder):
        experiment, vae, data = plan_latent(str(folder), vae="sd")
        assert (experiment.name, vae.name) == ("latent-imagenette128", STABLE_DIFFUSION[0])
        assert experiment.network.shape == (4, 16, 16)
        assert experiment.network.num_classes == 3
        assert data.train.images.shape[1:] == (3, 128, 128)
        with pytest.raises(DiffitError, match=r"VAE is sd, .* not digits; set VAE to train or ready"):
            plan_latent("digits", vae="sd")

    def test_a_preset_on_pixels_is_refused(self):
        with pytest.raises(DiffitError, match="PRESET is mnist, which draws pixels; give one called latent-"):
            plan_latent("auto", "mnist")

    def test_on_a_gpu_auto_means_imagenette_and_without_network_the_digits(self, gpu, offline, capsys):
        experiment, vae, data = plan_latent(block="dit", vae="sd")
        assert (experiment.name, experiment.network.block, vae.name) == ("latent-digits", "dit", "vae-digits")
        assert data.train.name == "digits/train"
        assert capsys.readouterr().out.startswith("\033[31mCould not download imagenette (no network)")


class TestChooseVAE:
    def test_own_one_then_ready_made_one_unless_that_is_asked_for(self, tmp_path):
        experiment, own = vae_preset("vae-digits"), tmp_path / "weights.safetensors"
        assert choose_vae(experiment, Backup(tmp_path, None)) == "vae-digits"
        own.touch()
        assert choose_vae(experiment, Backup(tmp_path, None)) == str(own)
        assert choose_vae(experiment, Backup(tmp_path, None), "ready") == "vae-digits"
        assert choose_vae(replace(experiment, name=STABLE_DIFFUSION[0]), Backup(tmp_path, None)) == STABLE_DIFFUSION[0]
        with pytest.raises(DiffitError, match="no pretrained autoencoder for imagenette; set VAE to train"):
            choose_vae(vae_preset("vae-imagenette128"), Backup(tmp_path / "run", None))


class TestParse:
    def test_reads_numbers_tuples_truth_and_words(self):
        text = "batch_size=64 lr=1e-4 channel_mult=1,2,2 flip=True minutes=None denoiser=vp"
        assert parse(text) == {
            "batch_size": 64,
            "lr": 1e-4,
            "channel_mult": (1, 2, 2),
            "flip": True,
            "minutes": None,
            "denoiser": "vp",
        }
        assert parse("  ") == {}

    @pytest.mark.parametrize("text", ["batch_size", "batch_size=", "=64", "batch_size = 64"])
    def test_anything_else_is_told(self, text):
        with pytest.raises(DiffitError, match=r"OVERRIDES has .*; give fields of a preset"):
            parse(text)

    def test_field_that_is_none_or_of_another_type_is_told(self):
        with pytest.raises(DiffitError, match="did you mean batch_size"):
            plan("digits", overrides="batchsize=64")
        with pytest.raises(DiffitError, match="batch_size is 'many'; give an integer"):
            plan("digits", overrides="batch_size=many")


class TestWeights:
    def test_given_ones_come_first_then_the_runs_own_then_ready_made_ones(self, tmp_path, monkeypatch):
        experiment, own = preset("digits"), tmp_path / "weights.safetensors"
        ours = PRETRAINED / "digits.safetensors"
        assert weights_for("auto") == weights_for("digits") == ours
        assert choose_weights(experiment, Backup(tmp_path, None)) == ours
        latent, none = PRETRAINED / "latent-digits.safetensors", Backup(tmp_path, None)
        assert weights_for("auto", latent=True) == choose_weights(preset("latent-digits"), none) == latent
        own.touch()
        assert choose_weights(experiment, Backup(tmp_path, None)) == own
        assert choose_weights(experiment, Backup(tmp_path, None), "digits") == ours
        monkeypatch.setenv("HOME", str(tmp_path))
        assert choose_weights(experiment, Backup(tmp_path / "run", None), "~/weights.safetensors") == own
        with pytest.raises(DiffitError, match=r"^PATH_WEIGHTS: no weights file 'gone'"):
            choose_weights(experiment, Backup(tmp_path, None), "gone")

    def test_where_there_are_none_two_remedies_are_named(self, tmp_path):
        with pytest.raises(DiffitError, match="set IS_TRAIN, or PATH_WEIGHTS"):
            choose_weights(preset("ffhq64"), Backup(tmp_path, None))


WEIGHTS = (PRETRAINED / "digits.safetensors").read_bytes()
ID = "1AbCdEfGhIjKlMnOpQrStUvWxYz_01234"


class TestDrive:
    @pytest.fixture
    def asked(self, monkeypatch, tmp_path):
        """The ids that were downloaded, into an empty cache."""
        ids = []

        def download(id, output, **options):
            ids.append(id)
            output.write(WEIGHTS)

        monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("gdown.download", download)
        return ids

    @pytest.mark.parametrize(
        "given",
        [
            ID,
            f"https://drive.google.com/file/d/{ID}/view?usp=drive_link",
            f"https://drive.google.com/uc?id={ID}",
            f"https://drive.google.com/open?id={ID}&usp=sharing",
            f"https://drive.google.com/file/u/0/d/{ID}/view",
            f"https://drive.usercontent.google.com/download?id={ID}&export=download&confirm=t",
            f"https://drive.usercontent.google.com/download?export=download&id={ID}",
            f"https://docs.google.com/uc?export=download&id={ID}",
        ],
    )
    def test_id_or_link_is_downloaded_once(self, given, asked, tmp_path):
        for _ in range(2):
            assert choose_weights(preset("digits"), Backup(tmp_path, None), given).read_bytes() == WEIGHTS
        assert asked == [ID]

    @pytest.mark.parametrize("name", ["weights_of_last_tuesday_evening", "digits-long-2026-11-20-evening-run"])
    def test_long_name_that_is_not_there_is_no_id(self, name, asked, tmp_path):
        with pytest.raises(DiffitError, match=f"no weights file '{name}'"):
            choose_weights(preset("digits"), Backup(tmp_path, None), name)
        assert asked == []

    def test_file_that_is_none_of_weights_is_told_and_not_kept(self, asked, monkeypatch, tmp_path):
        monkeypatch.setattr("gdown.download", lambda id, output, **options: output.write(b"<html>another file</html>"))
        for _ in range(2):
            with pytest.raises(DiffitError, match=rf"^PATH_WEIGHTS: .*/{ID} is not .*; give the link of .*$"):
                choose_weights(preset("digits"), Backup(tmp_path, None), ID)
            assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    def test_refusal_is_one_line_with_the_remedy(self, asked, monkeypatch, tmp_path):
        def refuse(**options):
            raise gdown.exceptions.FileURLRetrievalError("Too many users have viewed\nthis file")

        monkeypatch.setattr("gdown.download", refuse)
        with pytest.raises(
            DiffitError, match=r"^PATH_WEIGHTS: .*; make a copy in your Drive .* as PATH_WEIGHTS$"
        ) as error:
            choose_weights(preset("digits"), Backup(tmp_path, None), ID)
        assert "\n" not in str(error.value)


class TestRun:
    def test_other_latents_are_another_run(self, tmp_path, data):
        space, card = load_vae("vae-digits")
        write_checkpoint(tmp_path / "other.safetensors", replace(card, mean=(1.0, 1.0)), space.network.state_dict())
        recipes = [
            preset("latent-digits").override(vae=str(vae)) for vae in ("vae-digits", tmp_path / "other.safetensors")
        ]
        assert len({open_run(experiment, data, None, runs=tmp_path).run.name for experiment in recipes}) == 2

    def test_same_recipe_and_images_find_their_run_again_and_others_are_another_run(self, tmp_path, data):
        def name(data=data, **changes):
            return open_run(preset("digits").override(**changes), data, None, runs=tmp_path).run.name

        assert name() == name(minutes=60, report_minutes=1.0, threads=2, steps=9)
        one_less = data._replace(train=data.train.take(torch.arange(1, len(data.train)), data.train.name))
        assert len({name(), name(width=16), name(seed=1), name(lr=1e-4), name(one_less)}) == 5

    def test_copies_go_where_they_should_or_into_drive_or_nowhere(self, tmp_path, monkeypatch, capsys):
        assert copies_folder("mine", tmp_path, True) == Path.cwd() / "mine"
        assert copies_folder("~/mine", tmp_path / "gone", False) == Path.home() / "mine"
        assert copies_folder(f"{tmp_path}/mine", tmp_path, False) == tmp_path / "mine"
        assert copies_folder("", tmp_path, True) == tmp_path / "diffit_weights"
        assert copies_folder("", tmp_path, False) is None
        assert copies_folder("", tmp_path / "gone", True) is None
        assert capsys.readouterr().out == ""
        monkeypatch.setitem(sys.modules, "google.colab", None)
        assert copies_folder("", tmp_path / "gone", True) is None
        assert "Drive is not connected" in capsys.readouterr().out

    def test_in_colab_a_given_folder_outside_of_drive_is_told_and_used(self, tmp_path, monkeypatch, capsys):
        my_drive = tmp_path / "drive" / "MyDrive"
        my_drive.mkdir(parents=True)
        monkeypatch.setitem(sys.modules, "google.colab", None)
        assert copies_folder(str(my_drive / "mine"), my_drive, True) == my_drive / "mine"
        assert capsys.readouterr().out == ""
        assert copies_folder("mine", my_drive, True) == Path.cwd() / "mine"
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"\033[31mDIR_WEIGHTS is {Path.cwd()}/mine, which Colab deletes")

    @pytest.mark.parametrize("use_drive", [True, False])
    def test_a_given_folder_in_a_drive_that_is_not_mounted_is_told_and_not_made(self, tmp_path, capsys, use_drive):
        my_drive = tmp_path / "drive" / "MyDrive"
        for given in (my_drive, my_drive / "runs", tmp_path / "drive" / "Shareddrives" / "lab"):
            assert copies_folder(str(given), my_drive, use_drive) is None
            assert f"Drive is not connected, {given} takes no copies" in capsys.readouterr().out


def test_examples_of_classes_of_unequal_size_are_rows_of_one_length():
    images = Images(
        "pets", torch.zeros(15, 3, 4, 4, dtype=torch.uint8), torch.tensor([0] * 9 + [1] * 6), ("cat", "dog")
    )
    wide, narrow = class_examples(images), class_examples(images.take(torch.arange(5, 12), "few"))
    assert wide.shape[1] > narrow.shape[1]
    assert wide.shape[0] == narrow.shape[0]
