"""The verdict on a run: one made-up curve for each, and the rule that decides it."""

import pytest

from diffit_lib.reports.diagnosis import diagnose


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
        (FALLING[:2], 0.9, "too short to tell"),
        (FALLING[:2], 0.1, "copying"),
        (rows([0.6, 0.5, 0.4], images=[9000, 9500, 10_000]), None, "too short to tell"),  # nothing from the first half
        (FALLING, None, "still falling"),
    ],
)
def test_each_curve_has_its_verdict(curve, copy_ratio, word):
    verdict = diagnose(curve, copy_ratio)
    assert verdict.word == word
    assert verdict.says


@pytest.mark.parametrize(("copy_ratio", "word"), [(0.49, "copying"), (0.51, "done")])
def test_copies_begin_at_half_the_distance_of_real_images(copy_ratio, word):
    assert diagnose(LEVEL, copy_ratio).word == word


@pytest.mark.parametrize(("last", "word"), [(0.505, "done"), (0.515, "overfitting")])
def test_overfitting_begins_two_percent_above_the_lowest_test_loss(last, word):
    assert diagnose(rows([0.9, 0.6, 0.52, 0.5, 0.5, last])).word == word


@pytest.mark.parametrize(("train", "word"), [(0.41, "done"), (0.39, "overfitting")])
def test_overfitting_begins_a_quarter_above_the_training_loss(train, word):
    assert diagnose(rows([0.9, 0.6, 0.5, 0.5, 0.5, 0.5], loss=[0.9, 0.6, 0.5, train, train, train])).word == word


@pytest.mark.parametrize(("last", "word"), [(0.486, "done"), (0.484, "still falling")])
def test_it_falls_if_the_second_half_of_the_images_lowered_the_loss_by_three_percent(last, word):
    assert diagnose(rows([0.6, 0.5, 0.495, last], images=[1000, 2000, 3000, 4000])).word == word


@pytest.mark.parametrize(("training_images", "word"), [(6000, "done"), (6001, "too short to tell")])
def test_nothing_is_done_before_every_training_image_was_seen(training_images, word):
    assert diagnose(LEVEL, 0.9, training_images=training_images).word == word


def test_every_number_that_was_looked_at_is_told():
    reasons = diagnose(LEVEL, 0.9).reasons
    assert reasons[0] == "copy ratio 0.90 (copies below 0.5)"
    assert [reason.split(" ")[0] for reason in reasons[1:]] == ["test"] * 3


def test_without_held_out_images_neither_copies_nor_overfitting_are_claimed():
    verdict = diagnose(APART, 0.0, held_out=False)
    assert verdict.word == "done"
    assert "cannot be seen" in verdict.says
    assert len(verdict.reasons) == 1


def test_a_report_without_a_finite_loss_is_passed_over():
    assert diagnose([*rows([0.9]), *rows([float("nan")]), *LEVEL[1:]], 0.9).word == "done"
