"""What a run leaves in its folder: a number of its own, options that train again, a log, curves, the newest weights."""

import re
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from diffit_lib.cli.main import main
from diffit_lib.cli.options import experiment_for
from diffit_lib.config import presets
from diffit_lib.config.experiment import ExperimentConfig, VAEExperimentConfig
from diffit_lib.config.presets import PRESETS, VAE_PRESETS, preset, read_options, write_options
from diffit_lib.data.datasets import Images, Split
from diffit_lib.training import run_dir as run_folder
from diffit_lib.training import train as task
from diffit_lib.training.run_dir import MetricsLog, keep_newest, new_folder, numbers, run_log
from diffit_lib.training.train import train, write_reals
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import write_text


class TestNumber:
    def test_is_the_next_free_one(self, tmp_path):
        runs = tmp_path / "runs"
        with pytest.raises(DiffitError, match=r"^name is aaaaaaaaaaaaaaaaaaaa\.\.\. \(.*\); give a shorter --name$"):
            new_folder("a" * 300, runs)
        assert list(runs.iterdir()) == []
        assert new_folder("digits", runs).name == "00000-digits"
        (runs / "00007-old").mkdir()
        (runs / "mine").mkdir()
        assert new_folder("digits", runs).name == "00008-digits"
        assert new_folder("stabilityai/sd-vae-ft-ema", runs).name == "00009-sd-vae-ft-ema"

    def test_is_never_shared_by_runs_that_start_at_once(self, tmp_path):
        with ThreadPoolExecutor(16) as pool:
            folders = list(pool.map(lambda k: new_folder(f"run{k % 3}", tmp_path), range(64)))
        assert sorted(int(folder.name[:5]) for folder in folders) == list(range(64))
        assert all(folder.is_dir() for folder in folders)
        assert len(list(tmp_path.iterdir())) == 64

    def test_that_was_given_away_after_it_was_looked_up_is_not_taken(self, tmp_path, monkeypatch):
        (tmp_path / "00000-other").mkdir()
        found = iter([[]])  # at the first look it was still free
        monkeypatch.setattr(run_folder, "numbers", lambda runs: next(found, numbers(runs)))
        assert new_folder("mine", tmp_path).name == "00001-mine"
        assert {path.name for path in tmp_path.iterdir()} == {"00000-other", "00001-mine"}

    @pytest.mark.parametrize("name", ["", "a b", "a:b", "a/"])
    def test_has_a_name_that_can_be_typed(self, tmp_path, name):
        with pytest.raises(DiffitError, match="give letters, digits, dots and dashes"):
            new_folder(name, tmp_path)


class TestOptions:
    @pytest.mark.parametrize(
        "experiment", [*PRESETS.values(), *VAE_PRESETS.values()], ids=lambda experiment: experiment.name
    )
    def test_are_every_field_and_come_back(self, tmp_path, experiment):
        write_options(experiment, tmp_path)
        assert read_options(type(experiment), tmp_path) == experiment

    def test_cut_off_are_refused(self, tmp_path):
        write_options(preset("digits"), tmp_path)
        path = tmp_path / "options.yaml"
        whole = path.read_text().splitlines(keepends=True)
        for lines in range(len(whole)):
            path.write_text("".join(whole[:lines]))
            with pytest.raises(DiffitError, match=r"options.yaml cannot be read \(.*\); train into another folder"):
                read_options(ExperimentConfig, tmp_path)

    def test_of_an_earlier_run_need_no_preset(self, tmp_path):
        write_options(preset("digits").override(width=48, sigma_data=0.75), tmp_path)
        again = experiment_for(PRESETS, None, str(tmp_path), {"max_steps": 9})
        assert again == preset("digits").override(width=48, sigma_data=0.75, max_steps=9)
        with pytest.raises(DiffitError, match="no preset is named"):
            experiment_for(PRESETS, None, str(tmp_path / "nowhere"), {})

    @pytest.mark.parametrize(
        ("name", "options", "fields"),
        [
            ("digits", {"network": "dit", "depth": 3}, {"block": "dit", "depth": 3}),
            ("digits", {"network": "latent"}, {"block": "diffit", "depth": 12}),
            ("mnist-dit", {"network": "latent"}, {"block": "diffit", "depth": 8, "patch_size": 4}),
            ("latent-digits", {"network": "image"}, {"num_blocks": 4}),
        ],
    )
    def test_another_network_sees_the_same_images(self, name, options, fields):
        before = preset(name).network
        if before.in_channels == 2:
            options = options | {"in_channels": 1}
        network = experiment_for(PRESETS, name, None, options).network
        assert {field: getattr(network, field) for field in fields} == fields
        assert (network.image_size, network.num_classes) == (before.image_size, before.num_classes)
        assert network.in_channels == options.get("in_channels", before.in_channels)


class TestNewest:
    def test_weights_stay_and_older_ones_go(self, tmp_path):
        for images in (8, 16, 1_000_000_000, 32):
            write_text(tmp_path / "weights.safetensors", str(images))
            keep_newest(tmp_path, images, 2)
        kept = {path.name: path.read_text() for path in tmp_path.glob("weights-*")}
        assert kept == {"weights-1000000000.safetensors": "1000000000", "weights-000000032.safetensors": "32"}

    def test_none_are_kept_where_none_are_wanted(self, tmp_path):
        (tmp_path / "weights.safetensors").write_text("now")
        (tmp_path / "weights-000000008.safetensors").write_text("before")
        keep_newest(tmp_path, 16, 0)
        assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]

    def test_weights_cost_no_second_copy(self, tmp_path):
        (tmp_path / "weights.safetensors").write_text("now")
        keep_newest(tmp_path, 16, 1)
        assert (tmp_path / "weights-000000016.safetensors").samefile(tmp_path / "weights.safetensors")


def events(run):
    """Tag and step of every scalar in a run's TensorBoard files, and the names of its hyper-parameters."""
    points, options = [], set()
    for path in (run / "tensorboard").iterdir():
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    points.append((value.tag, event.step, value.simple_value))
                elif value.tag == "_hparams_/session_start_info":
                    options |= set(re.findall(rb"[a-z_]{2,}", value.metadata.plugin_data.content))
    return sorted(points), options


def test_a_run_whose_checkpoint_was_deleted_is_set_aside_not_written_over(tmp_path, tiny, fit, capsys):
    for number, name in enumerate(("weights.safetensors", "weights-000000016.safetensors"), start=1):
        write_text(tmp_path / "run" / name, "of an earlier run")
        write_text(tmp_path / "run/metrics.csv", "its numbers")
        fit(tiny.override(max_steps=1))
        (tmp_path / "run/last.ckpt").unlink()
        assert (tmp_path / "run" / f"earlier-{number}" / name).read_text() == "of an earlier run"
        assert (tmp_path / "run" / f"earlier-{number}" / "metrics.csv").read_text() == "its numbers"
        assert capsys.readouterr().err.count("are now in") == 1


def test_options_that_vanished_with_a_drive_are_written_again(tmp_path, tiny, data, monkeypatch):
    options, found = tmp_path / "run/options.yaml", []

    def lose(module, **_):
        found.append(options.is_file())
        options.unlink()

    monkeypatch.setattr("diffit_lib.training.train.write_snapshot", lose)
    train(tiny.override(report_minutes=0.0001), tmp_path / "run", data, progress=False)
    assert len(found) > 1
    assert all(found)


def test_numbers_of_a_run_that_saved_no_weights_are_taken_again(tmp_path, tiny, fit, capsys):
    write_text(tmp_path / "run/metrics.csv", "images,seconds,loss\n8,1.0,0.5\n")
    fit(tiny.override(max_steps=1))
    assert not {"metrics.csv", "earlier-1"} & {path.name for path in (tmp_path / "run").iterdir()}
    assert "are now in" not in capsys.readouterr().err


class TestRecord:
    def row(self, images, loss):
        return {"images": images, "seconds": images / 10, "loss": loss, "test_loss_0.3": 2.0, "frechet": ""}

    def test_numbers_that_are_not_finite_are_in_the_table_only(self, tmp_path, tiny):
        with closing(MetricsLog(tmp_path, tiny)) as log:
            assert len(log.add(self.row(16, float("nan")))) == 1
        assert "16,1.6,nan," in (tmp_path / "metrics.csv").read_text()
        assert {tag for tag, *_ in events(tmp_path)[0]} & {"loss", "seconds"} == {"seconds"}

    def test_of_a_run_that_went_back_is_in_the_curves(self, tmp_path, tiny):
        with closing(MetricsLog(tmp_path, tiny)) as log:
            for images in (16, 32, 48):
                log.add(self.row(images, 1.0))
            assert [row["images"] for row in log.add(self.row(40, 0.5))][-1] == 40
        assert ("loss", 40, 0.5) in events(tmp_path)[0]

    def test_stands_once_in_table_and_curves_however_often_a_run_is_started(self, tmp_path, tiny):
        with closing(MetricsLog(tmp_path, tiny)) as log:
            assert len(log.add(self.row(16, 1.0))) == 1
        (file,) = (tmp_path / "tensorboard").iterdir()
        file.rename(file.with_name("events.out.tfevents.1.elsewhere"))  # names count seconds: two in one would be one
        with closing(MetricsLog(tmp_path, tiny)) as log:
            log.add(self.row(16, 9.0))
            assert len(log.add(self.row(32, 0.5))) == 2
        assert (tmp_path / "metrics.csv").read_text() == (
            "images,seconds,loss,test_loss_0.3,frechet\n16,1.6,1.0,2.0,\n32,3.2,0.5,2.0,\n"
        )
        points, options = events(tmp_path)
        assert [point for point in points if point[0] == "loss"] == [("loss", 16, 1.0), ("loss", 32, 0.5)]
        assert {tag for tag, _, _ in points} == {"loss", "seconds", "test_loss_by_level/0.3"}
        assert options >= {b"batch_size", b"lr", b"width", b"preset", b"tiny"}


class TestLog:
    def said(self, run):
        return [line[20:] for line in (run / "log.txt").read_text().splitlines()]

    def test_holds_what_was_said_before_the_run_had_a_folder_and_why_it_ended(self, tmp_path, capsys):
        from diffit_lib.utils.logging import say

        with pytest.raises(KeyError), run_log() as open_log:
            say("the data are small")
            assert not (tmp_path / "log.txt").exists()
            open_log(tmp_path)
            say("it goes on")
            assert self.said(tmp_path) == ["the data are small", "it goes on"]  # at once: a kill loses nothing
            raise KeyError("width")
        say("nothing to do with it")
        assert self.said(tmp_path)[2:] == ["stopped by KeyError 'width'"]
        with run_log() as open_log:
            open_log(tmp_path)
            say("started again")
        assert self.said(tmp_path)[3:] == ["started again"]
        assert capsys.readouterr().err.count("the data are small") == 1

    def test_of_a_run_that_never_had_a_folder_is_nowhere(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DiffitError), run_log():
            raise DiffitError("no data")
        assert list(tmp_path.iterdir()) == []


class TestReals:
    def test_are_of_every_class_in_turn(self, tmp_path):
        labels = torch.tensor([0] * 50 + [1] * 50)
        pixels = (labels * 200).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        write_reals(tmp_path, Images("two", pixels, labels, ("a", "b")))
        picture = Image.open(tmp_path / "reals.png")
        side = picture.width // 8
        row = [picture.getpixel((side * k + side // 2, side // 2)) for k in range(8)]
        assert row == [0, 200] * 4
        assert picture.height == pytest.approx(side * 4, abs=16)


class TestFolder:
    @pytest.fixture
    def quick(self, monkeypatch, tmp_path, tiny):
        """In an empty folder, where `digits` is a tiny preset whose reports are skipped."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setitem(presets.PRESETS, "digits", tiny.override(name="digits", max_steps=1))
        monkeypatch.setattr(task, "write_snapshot", lambda module, **_: None)
        monkeypatch.setattr("diffit_lib.reports.html_report.write_report", lambda run: None)

    def test_is_new_at_every_start_and_gone_on_with_by_name(self, quick, tmp_path, capsys):
        for command in ("train digits", "train digits --name second", "train --run runs/00001-second --max-steps=3"):
            assert main(command.split()) == 0
        runs = tmp_path / "runs"
        assert sorted(path.name for path in runs.iterdir()) == ["00000-digits", "00001-second"]
        steps = [torch.load(runs / name / "last.ckpt")["global_step"] for name in ("00000-digits", "00001-second")]
        assert steps == [1, 3]
        err = capsys.readouterr().err
        assert "run: runs/00001-second; if stopped, resume with `diffit train --run runs/00001-second`\n" in err
        log = (runs / "00001-second" / "log.txt").read_text()
        assert re.findall(r"(training|done): (\S+)", log) == [
            ("training", "digits/train"), ("done", "16"), ("training", "digits/train"), ("done", "48"),
        ]  # fmt: skip

    def test_trains_again_from_its_own_options(self, quick, tmp_path):
        assert main(["train", "digits", "--lr=0.5", "--run=first"]) == 0
        assert main(["train", "--config", "first/options.yaml", "--name", "again", "--max_steps", "2"]) == 0
        first, again = (yaml.safe_load((tmp_path / run / "options.yaml").read_text()) for run in
                        ("first", "runs/00000-again"))  # fmt: skip
        assert {name for name in first if first[name] != again[name]} == {"max_steps"}
        assert (again["preset"], again["lr"]) == ("digits", 0.5)

    def test_is_not_made_for_what_is_refused(self, quick, data, tiny, tmp_path, snapshot):
        before = snapshot()
        small = Split(*(replace(part, images=part.images[:, :, :4]) for part in data))
        with pytest.raises(DiffitError, match="is built for images of"):
            train(tiny, data=small, progress=False)
        assert snapshot() == before


def test_recipes_of_autoencoders_offer_what_they_take():
    assert set(VAEExperimentConfig.NOT_KNOWN).isdisjoint(VAE_PRESETS["vae-digits"].to_options())
