"""The diagnosis of a run: one made-up curve for each word, and the rule that decides it."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffit_lib.checkpoints.weights import load_weights
from diffit_lib.reports.diagnosis import Diagnosis, diagnose
from diffit_lib.reports.html_report import next_commands


def rows(test, loss=None, images=None):
    """Rows of metrics.csv, as text, as they are read."""
    loss = loss or [value + 0.05 for value in test]
    images = images or [1000 * (number + 1) for number in range(len(test))]
    return [{"images": str(n), "loss": str(a), "test_loss": str(b)} for n, a, b in zip(images, loss, test, strict=True)]


FALLING = rows([0.9, 0.8, 0.7, 0.65, 0.6, 0.55])
LEVEL = rows([0.9, 0.6, 0.5, 0.495, 0.494, 0.493])
RISING = rows([0.9, 0.6, 0.5, 0.52, 0.55, 0.6], loss=[0.9, 0.7, 0.6, 0.6, 0.6, 0.6])
APART = rows([0.9, 0.6, 0.5, 0.495, 0.494, 0.493], loss=[0.9, 0.6, 0.5, 0.4, 0.35, 0.3])


@pytest.mark.parametrize(
    ("curve", "copy_ratio", "word"),
    [
        (FALLING, 0.9, "still falling"),
        (LEVEL, 0.9, "done"),
        (RISING, 0.9, "overfitting"),
        (APART, 0.9, "overfitting"),
        (LEVEL, 0.3, "copying"),
        (RISING, 0.3, "copying"),  # the worse fault is told
        (FALLING[:2], 0.9, "cannot say yet"),
        (FALLING[:2], 0.1, "copying"),
        (rows([0.6, 0.5, 0.4], images=[9000, 9500, 10_000]), None, "cannot say yet"),  # nothing from the first half
        (FALLING, None, "still falling"),
        (rows([0.9, 0.6, float("nan")]), 0.9, "diverged"),
        (rows([0.9, 0.6, 0.5, 0.495, 0.494, float("inf")]), 0.1, "diverged"),
    ],
)
def test_each_curve_has_its_diagnosis(curve, copy_ratio, word):
    diagnosis = diagnose(curve, {} if copy_ratio is None else {"copy_ratio": copy_ratio})
    assert diagnosis.word == word
    assert diagnosis.meaning


@pytest.mark.parametrize(("copy_ratio", "word"), [(0.49, "copying"), (0.51, "done")])
def test_copies_begin_at_half_the_distance_of_real_images(copy_ratio, word):
    assert diagnose(LEVEL, {"copy_ratio": copy_ratio}).word == word


@pytest.mark.parametrize(("last", "word"), [(0.505, "done"), (0.515, "overfitting")])
def test_overfitting_begins_two_percent_above_the_lowest_test_loss(last, word):
    assert diagnose(rows([0.9, 0.6, 0.52, 0.5, 0.5, last])).word == word


@pytest.mark.parametrize(("train", "word"), [(0.41, "done"), (0.39, "overfitting")])
def test_overfitting_begins_a_quarter_above_the_training_loss(train, word):
    assert diagnose(rows([0.9, 0.6, 0.5, 0.5, 0.5, 0.5], loss=[0.9, 0.6, 0.5, train, train, train])).word == word


@pytest.mark.parametrize(("last", "word"), [(0.486, "done"), (0.484, "still falling")])
def test_it_falls_if_the_second_half_of_the_images_lowered_the_loss_by_three_percent(last, word):
    assert diagnose(rows([0.6, 0.5, 0.495, last], images=[1000, 2000, 3000, 4000])).word == word


@pytest.mark.parametrize(("training_images", "word"), [(6000, "done"), (6001, "cannot say yet")])
def test_nothing_is_done_before_every_training_image_was_seen(training_images, word):
    assert diagnose(LEVEL, {"copy_ratio": 0.9}, training_images=training_images).word == word


def test_every_number_that_was_looked_at_is_told():
    reasons = diagnose(LEVEL, {"copy_ratio": 0.9}).reasons
    assert reasons[0] == "copy ratio 0.90 (copies below 0.5)"
    assert [reason.split(" ")[0] for reason in reasons[1:]] == ["test"] * 3


def test_without_held_out_images_neither_copies_nor_overfitting_are_claimed():
    diagnosis = diagnose(APART, {"copy_ratio": 0.0}, held_out=False)
    assert diagnosis.word == "done"
    assert "cannot be seen" in diagnosis.meaning
    assert len(diagnosis.reasons) == 1


def test_a_report_without_a_finite_loss_is_passed_over():
    assert diagnose([*rows([0.9]), *rows([float("nan")]), *LEVEL[1:]], {"copy_ratio": 0.9}).word == "done"


GOOD = {
    "copy_ratio": 1.0,
    "class_accuracy": 0.9,
    "classifier_test_accuracy": 0.95,
    "frechet": 4.0,
    "frechet_floor": 2.0,
}


def test_a_run_that_drew_fog_a_quarter_into_its_plan_is_not_done():
    """Seen in a run on 300 photographs: the loss was level, the samples were fog."""
    fog = GOOD | {"class_accuracy": 0.03, "frechet": 300.0}
    curve = rows([0.9, 0.6, 0.5, 0.495, 0.494, 0.493], images=[170, 340, 510, 680, 850, 1024])
    stopped = diagnose(curve, fog, training_images=270, planned_images=4224, classes=10)
    assert stopped.word == "cannot say yet"
    assert "24% of the planned images were seen (finished from 90% on)" in stopped.reasons
    assert diagnose(curve, fog, training_images=270, planned_images=1024, classes=10).word == "poor samples"
    assert diagnose(curve, fog, planned_images=4224, classes=10, psnr=15.8).word == "poor autoencoder"


def test_fog_near_the_training_images_is_no_copy():
    """Seen in two minutes on 300 photographs: 32 images seen, an autoencoder of 11 dB, a copy ratio of 0.45."""
    fog = rows([1.0], images=[32])
    assert diagnose(fog, {"copy_ratio": 0.45}, training_images=267, planned_images=32, psnr=11.0).word == (
        "poor autoencoder"
    )
    assert diagnose(fog, {"copy_ratio": 0.45}, training_images=267, planned_images=32).word == "cannot say yet"
    assert diagnose(fog, {"copy_ratio": 0.45}, training_images=32, planned_images=32).word == "copying"


@pytest.mark.parametrize(("planned", "word"), [(6600, "done"), (6700, "cannot say yet")])
def test_a_plan_is_finished_from_nine_tenths_on(planned, word):
    assert diagnose(LEVEL, GOOD, planned_images=planned, classes=10).word == word


@pytest.mark.parametrize(("accuracy", "word"), [(0.53, "done"), (0.52, "poor samples")])
def test_samples_are_poor_while_class_accuracy_is_nearer_to_chance_than_to_real_images(accuracy, word):
    diagnosis = diagnose(LEVEL, GOOD | {"class_accuracy": accuracy}, classes=10)
    assert diagnosis.word == word
    assert f"class accuracy {accuracy:.2f} (chance 0.10, real images 0.95, poor below 0.53)" in diagnosis.reasons


def test_a_classifier_that_sees_no_more_than_chance_in_real_images_decides_nothing():
    blind = GOOD | {"class_accuracy": 0.0, "classifier_test_accuracy": 0.19}
    assert diagnose(LEVEL, blind, classes=10).word == "done"


@pytest.mark.parametrize(("distance", "word"), [(59.9, "done"), (60.0, "poor samples")])
def test_samples_are_poor_from_thirty_times_the_distance_of_real_images_on(distance, word):
    assert diagnose(LEVEL, GOOD | {"frechet": distance}, classes=10).word == word


@pytest.mark.parametrize(("psnr", "word"), [(None, "done"), (20.1, "done"), (19.9, "poor autoencoder")])
def test_an_autoencoder_is_poor_below_20_db(psnr, word):
    assert diagnose(LEVEL, GOOD, classes=10, psnr=psnr).word == word


@pytest.mark.parametrize(
    ("word", "images_seen", "commands"),
    [
        ("done", 96_000, []),
        ("overfitting", 96_000, []),
        ("still falling", 96_000, ["diffit train --run run --images 192000 --minutes 4"]),
        ("cannot say yet", 24_000, ["diffit train --run run --images 96000 --minutes 8"]),
    ],
)
def test_what_to_go_on_with_agrees_with_the_diagnosis(word, images_seen, commands):
    card = replace(load_weights("digits")[1], images_seen=images_seen, minutes=2.0)
    lines = next_commands(Path("run"), card, Diagnosis(word, "", ()))
    assert [line for line in lines if line.startswith("diffit train")] == commands
    assert len(lines) == len(commands) + 2


def test_a_run_by_steps_goes_on_by_steps():
    card = load_weights("digits")[1]
    card = replace(card, experiment=card.experiment.override(max_steps=100), images_seen=6400, minutes=2.0)
    first, *_ = next_commands(Path("run"), card, Diagnosis("still falling", "", ()))
    assert first == "diffit train --run run --max-steps 200 --minutes 4"


def test_a_poor_autoencoder_of_the_runs_own_is_trained_for_longer(tmp_path):
    card = load_weights("latent-digits")[1]
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "weights.safetensors").touch()
    first, second, *_ = next_commands(tmp_path, card, Diagnosis("poor autoencoder", "", ()))
    assert first.startswith(f"diffit train-vae --run {tmp_path}/vae --images 48000 --minutes ")
    assert second == f"diffit train --data digits --vae {tmp_path}/vae/weights.safetensors"
