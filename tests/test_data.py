"""The digits, and the training stream as a pure function of (seed, global image number)."""

import hashlib
from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch.utils.data import DataLoader

from diffit_lib.config.experiment import TrainingConfig
from diffit_lib.data.datasets import Images, load_data
from diffit_lib.data.stream import TrainingStream, _permutation
from diffit_lib.utils.errors import DiffitError

COUNT = 10
PLAIN = TrainingConfig(batch_size=4, label_dropout=0.0)
BUSY = TrainingConfig(augment=0.5, batch_size=4, label_dropout=0.3, flip=True, seed=7)


@pytest.fixture
def data():
    """Ten 2 x 3 images that tell their number and whether they were mirrored: row k is k, k + 50, k + 100."""
    images = torch.arange(COUNT).view(-1, 1, 1, 1) + torch.tensor([0, 50, 100]).expand(COUNT, 1, 2, 3)
    return Images("ten", images.to(torch.uint8), torch.arange(COUNT) % 2, ("even", "odd"))


def read(stream, steps, workers=0):
    """The first batches, joined field by field, without the noise levels, which the module sets later."""
    loader = DataLoader(stream, batch_size=None, num_workers=workers)
    return [torch.cat(parts) for parts in zip(*(batch[:6] for batch in islice(loader, steps)), strict=True)]


def assert_same(actual, expected):
    assert len(actual) == 6
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.fixture(scope="module")
def split():
    return load_data("digits")


class TestDigits:
    def test_are_1437_and_360_grey_images_of_8x8(self, split):
        for part, count in zip(split, (1437, 360), strict=True):
            assert (part.images.shape, part.images.dtype) == ((count, 1, 8, 8), torch.uint8)
            assert (part.labels.shape, part.labels.dtype) == ((count,), torch.int64)
            assert part.class_names == tuple("0123456789")

    def test_use_the_whole_range_of_grey(self, split):
        assert split.train.images.unique().tolist() == [round(level * 255 / 16) for level in range(17)]

    def test_classes_have_the_same_share_of_both_parts(self, split):
        train, test = (part.labels.bincount(minlength=10) for part in split)
        assert ((train + test) * 360 / 1797 - test).abs().max() < 1

    def test_every_scan_is_in_one_part_alone(self, split):
        from sklearn.datasets import load_digits

        scans = torch.from_numpy(load_digits().images * 255 / 16).round().byte().flatten(1)
        rows = sorted(map(tuple, torch.cat([part.images.flatten(1) for part in split]).tolist()))
        assert rows == sorted(map(tuple, scans.tolist()))

    def test_split_is_the_one_all_published_numbers_are_measured_on(self, split):
        assert hashlib.sha256(split.test.images.numpy()).hexdigest()[:16] == "de85aee14a9506dd"

    def test_standard_deviation_is_three_quarters(self, split):
        values = split.train.images.double() / 127.5 - 1
        deviation = (values - values.mean()).square().mean().sqrt().item()
        assert split.train.standard_deviation() == pytest.approx(deviation, abs=1e-6)
        assert deviation == pytest.approx(0.75, abs=0.01)


class TestStream:
    def test_two_workers_change_nothing(self, data):
        assert_same(read(TrainingStream(data, BUSY), 9, workers=2), read(TrainingStream(data, BUSY), 9))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_starting_at_any_step_goes_on_as_if_never_stopped(self, data, workers):
        whole = read(TrainingStream(data, BUSY), 9)
        rest = read(TrainingStream(data, BUSY, start=5), 4, workers)
        assert_same(rest, [field[5 * 4 :] for field in whole])

    def test_two_processes_share_the_images_of_one(self, data):
        ranks = [read(TrainingStream(data, BUSY, rank=rank, world=2), 9) for rank in (0, 1)]
        fields = zip(*ranks, strict=True)
        merged = [torch.stack([p.unflatten(0, (9, 2)) for p in pair], 1).flatten(0, 2) for pair in fields]
        assert_same(merged, read(TrainingStream(data, BUSY), 9))

    @pytest.mark.parametrize("start", [0, 3])
    def test_a_step_in_two_parts_has_the_images_of_one_in_a_single_part(self, data, start):
        split = TrainingStream(data, replace(BUSY, accumulate=2), start=start)
        assert_same(read(split, 10), read(TrainingStream(data, BUSY, start=start), 5))

    def test_batch_size_moves_no_image(self, data):
        assert_same(read(TrainingStream(data, replace(BUSY, batch_size=6)), 2), read(TrainingStream(data, BUSY), 3))

    def test_another_seed_changes_order_and_noise(self, data):
        one, other = (read(TrainingStream(data, replace(PLAIN, seed=seed)), 5) for seed in (0, 1))
        assert not torch.equal(one[0], other[0])
        assert not (one[2] == other[2]).any()
        assert not (one[3] == other[3]).any()

    def test_the_global_generator_neither_matters_nor_moves(self, data):
        torch.manual_seed(0)
        state, one = torch.get_rng_state(), [*TrainingStream(data, BUSY).batch(3)][:6]
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(1)
        assert_same([*TrainingStream(data, BUSY).batch(3)][:6], one)

    def test_every_epoch_visits_each_image_once_in_another_order(self, data):
        images, labels, *_ = read(TrainingStream(data, PLAIN), 15)
        epochs = images[:, 0, 0, 0].view(6, COUNT)
        assert epochs.sort().values.tolist() == [list(range(COUNT))] * 6
        assert epochs.unique(dim=0).shape == (6, COUNT)
        assert torch.equal(labels, images[:, 0, 0, 0].long() % 2)

    def test_flips_mirror_half_of_the_images_and_keep_their_labels(self, data):
        images, labels, *_ = read(TrainingStream(data, replace(PLAIN, flip=True)), 500)
        number, mirrored = images.amin((1, 2, 3)).long(), images[:, 0, 0, 0] >= 100
        upright = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        assert torch.equal(upright, data.images[number])
        assert torch.equal(labels, number % 2)
        assert abs(mirrored.double().mean() - 0.5) < 4 * (0.25 / 2000) ** 0.5

    @pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
    def test_labels_are_dropped_in_the_share_asked_for(self, data, share):
        images, labels, *_ = read(TrainingStream(data, replace(PLAIN, label_dropout=share)), 500)
        dropped = labels == 2  # the number of classes means "no class"
        assert torch.equal(labels[~dropped], images[~dropped, 0, 0, 0].long() % 2)
        assert abs(dropped.double().mean() - share) <= 4 * (share * (1 - share) / 2000) ** 0.5

    def test_noise_is_standard_normal_and_all_draws_are_independent(self, data):
        images, labels, uniform, noise, *_ = read(TrainingStream(data, replace(BUSY, label_dropout=0.5)), 500)
        assert (uniform >= 0).all()
        assert (uniform < 1).all()
        mirrored, dropped = images[:, 0, 0, 0] >= 100, labels == 2
        coins = torch.stack([uniform, mirrored, dropped]) - 0.5
        draws = torch.cat([coins, noise[:, 0].flatten(1)[:, ::5].T])  # the first and the last pixel's noise
        assert draws.mean(1).abs().max() < 4 / 2000**0.5
        torch.testing.assert_close(draws.var(1), torch.tensor([1 / 12, 0.25, 0.25, 1, 1]), rtol=0.15, atol=0)
        assert (draws.corrcoef() - torch.eye(5)).abs().max() < 4 / 2000**0.5

    def test_a_batch_that_does_not_split_over_the_processes_is_refused(self, data):
        with pytest.raises(DiffitError, match=r"batch_size 4 in 2 parts .* 3 processes; give a multiple of 6"):
            TrainingStream(data, replace(PLAIN, accumulate=2), world=3)

    def test_many_data_in_runs_are_read_a_window_of_whole_runs_at_a_time(self, data, monkeypatch):
        few = read(TrainingStream(data, PLAIN), 15)
        monkeypatch.setattr(Images, "run", 2)
        assert_same(read(TrainingStream(data, PLAIN), 15), few)  # they fit into one window
        monkeypatch.setattr("diffit_lib.data.stream.WINDOW", 4)
        orders = [_permutation(0, epoch, 100, 2) for epoch in range(3)]
        assert [sorted(order) for order in orders] == [list(range(100))] * 3
        for order in orders:
            windows = [order[first : first + 4] for first in range(0, 100, 4)]
            assert {len({index // 2 for index in window}) for window in windows} == {2}
            assert windows != sorted(windows)
        assert len({tuple(order) for order in orders}) == 3
