"""The small Frechet distance while training: when it is taken, what of, and which weights it calls the best."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from diffit_lib.checkpoints.weights import load_weights
from diffit_lib.data.datasets import Images
from diffit_lib.evaluation.metrics import frechet_distance
from diffit_lib.sampling.pipeline import load
from diffit_lib.training import online_metrics as watch
from diffit_lib.training.online_metrics import ONLINE_SAMPLES, SHARE, OnlineMetric
from diffit_lib.training.run_dir import append_row
from diffit_lib.training.train import train
from diffit_lib.utils.files import read_rows

CPU = torch.device("cpu")
UNKNOWN = Images("photos/train", torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), ())


@pytest.fixture(scope="module")
def watching(data):
    """Watches the digits."""
    return OnlineMetric(data.train, CPU)


def test_distance_is_that_of_images_of_fixed_seeds_to_the_train_part(weights, data, watching):
    row = watching(load(weights), [], seconds=1e9, each=0.1)
    images = torch.from_numpy(load(weights)(range(ONLINE_SAMPLES), [k % 10 for k in range(ONLINE_SAMPLES)])).permute(
        0, 3, 1, 2
    )
    features = watching.extractor.features
    assert row["frechet"] == pytest.approx(frechet_distance(features(images), features(data.train.images)), rel=1e-6)
    assert row["metric_seconds"] > 0


@pytest.mark.parametrize(
    ("spent", "each", "taken"),
    [
        ([], 0.99 * SHARE * 1000 / ONLINE_SAMPLES, True),
        ([], 1.01 * SHARE * 1000 / ONLINE_SAMPLES, False),
        (["20.0", "", "29.0"], 0.5 / ONLINE_SAMPLES, True),
        (["20.0", "", "29.9"], 0.5 / ONLINE_SAMPLES, False),
    ],
)
def test_drawing_and_measuring_take_a_twentieth_of_the_time_at_most(weights, watching, monkeypatch, spent, each, taken):
    rows = [{"metric_seconds": seconds} for seconds in spent]
    monkeypatch.setattr(watch, "frechet_from_moments", lambda *_: 3.0)
    row = watching(load(weights), rows, seconds=1000, each=each)
    assert row["frechet"] == (3.0 if taken else "")


@pytest.mark.parametrize(
    ("new", "earlier", "best"), [(2.0, ["3.0", ""], True), (3.5, ["", "3.0"], False), (2.0, [], True), ("", [], False)]
)
def test_best_is_below_all_before(watching, new, earlier, best):
    assert watching.is_best({"frechet": new}, [{"frechet": value} for value in earlier] + [{"images": 1}]) == best


def test_data_without_classes_are_watched_by_inception_where_it_is_at_hand(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(watch, "in_cache", lambda url: tmp_path / "inception.pth")
    without = OnlineMetric(UNKNOWN, CPU)
    (said,) = capsys.readouterr().err.splitlines()
    assert "photos/train has no classes; no Frechet distance" in said
    assert f"there are no Inception weights at {tmp_path / 'inception.pth'}" in said
    assert without(SimpleNamespace(), [], 1e9, 0.0) == {"fid": "", "metric_seconds": ""}
    (tmp_path / "inception.pth").touch()
    assert OnlineMetric(UNKNOWN, CPU).kind == ""
    assert "is not the published Inception" in capsys.readouterr().err
    monkeypatch.setattr(watch, "load_inception", lambda path: torch.nn.Identity())
    assert (OnlineMetric(UNKNOWN, CPU).kind, OnlineMetric(UNKNOWN, CPU).column) == ("inception", "fid")
    one = Images("photo/train", UNKNOWN.images[:1], UNKNOWN.labels[:1], ())
    assert OnlineMetric(one, CPU).kind == ""
    assert "there is one image only" in capsys.readouterr().err


def test_large_images_are_not_for_the_classifier(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(watch, "in_cache", lambda url: tmp_path / "inception.pth")
    two = Images("photos/train", torch.zeros(4, 3, 128, 128, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    assert OnlineMetric(two, CPU).kind == ""
    assert "photos/train is of large images; no Frechet distance" in capsys.readouterr().err


def test_run_keeps_its_best_weights_apart_from_its_last(tiny, data, tmp_path, monkeypatch):
    distances, averages = iter([5.0, 4.0, 4.5]), []
    monkeypatch.setattr(watch, "SHARE", 1e9)
    monkeypatch.setattr(watch, "frechet_from_moments", lambda *_: next(distances))
    (tmp_path / "best.safetensors").write_bytes(b"of an earlier run")
    for steps in (2, 3, 4):
        train(tiny.override(max_steps=steps), tmp_path, data, progress=False)
        averages.append(load_file(tmp_path / "weights.safetensors")["ema.network.head.weight"])
    assert [row["frechet"] for row in read_rows(tmp_path / "metrics.csv")] == ["5.0", "4.0", "4.5"]
    best, last = (load_weights(tmp_path / f"{name}.safetensors")[1] for name in ("best", "weights"))
    assert (best.images_seen, best.chosen_by) == (48, "classifier")
    both = load_file(tmp_path / "best.safetensors")
    assert {name.partition(".")[0] for name in both} == {"ema", "raw"}
    assert torch.equal(both["ema.network.head.weight"], averages[1])
    assert (last.images_seen, last.chosen_by) == (64, "")


def test_run_begun_before_there_was_a_distance_goes_on(tiny, data, tmp_path, monkeypatch):
    def old_row(module, run, **_):
        append_row(run / "metrics.csv", {"images": module.images_seen, "test_loss_0.1": 1.0})

    with monkeypatch.context() as patched:
        patched.setattr("diffit_lib.training.train.write_snapshot", old_row)
        train(tiny.override(max_steps=2), tmp_path, data, progress=False)
    monkeypatch.setattr(watch, "SHARE", 1e9)
    train(tiny, tmp_path, data, progress=False)
    old, new = read_rows(tmp_path / "metrics.csv")
    assert (old["frechet"], old["images"], new["images"]) == ("", "32", "64")
    assert float(new["frechet"]) > 0


def test_measuring_changes_nothing_in_training(tiny, data, tmp_path, monkeypatch):
    train(tiny, tmp_path / "unwatched", data, progress=False)
    monkeypatch.setattr(watch, "SHARE", 1e9)
    train(tiny.override(report_minutes=1e-6), tmp_path / "watched", data, progress=False)
    one, other = (load_file(tmp_path / name / "weights.safetensors") for name in ("unwatched", "watched"))
    assert all(torch.equal(one[name], other[name]) for name in one)
