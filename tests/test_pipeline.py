"""Seeds and labels in, pictures out: whatever the batch."""

import numpy as np
import pytest
import torch
from conftest import write_weights

import diffit_lib
from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.errors import DiffitError


@pytest.fixture(scope="module")
def pipe(weights):
    return load(weights, device="cpu")


@pytest.fixture(scope="module")
def plain(unconditional):
    return load(unconditional, device="cpu")


@pytest.fixture(scope="module")
def pictures(pipe):
    """Seeds 0 to 63 in one batch."""
    return pipe(seeds=range(64))


def final(pipe, seeds, labels=None, **settings):
    """The last state of a batch, before it is rounded."""
    return list(pipe.stream(seeds, labels, **settings))[-1].x


def differing(one, other):
    """Share of pixels that differ at all, and the largest difference."""
    difference = np.abs(one.astype(int) - other.astype(int))
    return (difference > 0).mean(), difference.max()


class TestPictures:
    def test_are_uint8_height_width_channels(self, pictures, plain):
        assert (pictures.dtype, pictures.shape) == (np.uint8, (64, 8, 8, 1))
        assert plain(range(2)).shape == (2, 8, 16, 3)

    def test_are_the_last_state_rounded(self, pipe, pictures):
        x = final(pipe, range(64))
        expected = np.clip(np.round((x.permute(0, 2, 3, 1).numpy() + 1) * 127.5), 0, 255)
        assert np.array_equal(pictures, expected)
        assert ((pictures > 0) & (pictures < 255)).mean() > 0.2  # not so saturated that all would agree

    def test_of_one_seed_are_one_and_of_two_are_two(self, pipe, pictures):
        assert np.array_equal(pipe(range(64)), pictures)
        assert len(np.unique(pipe(range(64), labels=0).reshape(64, -1), axis=0)) == 64

    def test_are_drawn_without_dropout(self, tmp_path):
        pipe = load(write_weights(tmp_path / "dropout.safetensors", dropout=0.9))
        assert np.array_equal(pipe([0, 1], 3, steps=2), pipe([0, 1], 3, steps=2))

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_agree_whatever_the_batch(self, pipe, pictures, batch_size):
        share, largest = differing(pipe(range(64), batch_size=batch_size), pictures)
        assert share <= 0.001
        assert largest <= 1

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_agree_before_rounding_to_1e_4(self, pipe, batch_size):
        whole = final(pipe, range(12))
        parts = torch.cat([final(pipe, range(k, k + batch_size)) for k in range(0, 12, batch_size)])
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("guidance", [1.0, 2.5])
    def test_agree_to_the_bit_in_batches_of_one_size_whatever_their_neighbours(self, pipe, guidance):
        whole = final(pipe, [0, 1, 2, 3], [3, "none", 0, 9], guidance=guidance)
        others = final(pipe, [7, 1, 8, 3], [5, "none", 1, 9], guidance=guidance)
        padded = final(pipe, [0, 1], [3, "none"], pad_to=4, guidance=guidance)
        assert torch.equal(whole[[1, 3]], others[[1, 3]])
        assert torch.equal(whole[:2], padded)
        seeds, labels = list(range(7)), [3, "none", 0, 9, 4, 4, 1]
        pictures = pipe(seeds, labels, batch_size=3, guidance=guidance)
        assert np.array_equal(pipe(seeds[6:], labels[6:], batch_size=3, guidance=guidance), pictures[6:])

    def test_last_batch_is_padded_to_the_size_of_the_others(self, pipe, monkeypatch):
        sizes = []
        forward = pipe.denoiser.network.forward
        monkeypatch.setattr(pipe.denoiser.network, "forward", lambda x, *a: sizes.append(len(x)) or forward(x, *a))
        assert len(pipe(range(7), batch_size=3)) == 7
        assert set(sizes) == {3}
        sizes.clear()
        pipe(range(65))
        assert set(sizes) == {64}
        sizes.clear()
        pipe(range(2))
        assert set(sizes) == {2}

    def test_noise_of_a_seed_is_bit_equal_whatever_the_batch(self, pipe, monkeypatch):
        noises = []
        initial = pipe.denoiser.initial
        monkeypatch.setattr(pipe.denoiser, "initial", lambda noise: noises.append(noise) or initial(noise))
        for batch_size in (64, 3, 1):
            pipe(range(64), batch_size=batch_size, sampler="euler", steps=2)
        whole, threes, ones = noises[0], torch.cat(noises[1:23])[:64], torch.cat(noises[23:])
        assert torch.equal(whole, threes)
        assert torch.equal(whole, ones)

    def test_fresh_noise_while_sampling_is_the_seeds_own_too(self, pipe):
        whole = final(pipe, range(6), 3, churn=5.0)
        parts = torch.cat([final(pipe, [k], 3, churn=5.0) for k in range(6)])
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)
        assert not torch.allclose(whole, final(pipe, range(6), 3), atol=1e-2)

    def test_leave_the_global_random_state_alone(self, pipe):
        before = torch.get_rng_state()
        load("digits", device="cpu")
        pipe(range(3), churn=5.0)
        assert torch.equal(torch.get_rng_state(), before)

    def test_seeds_may_be_any_kind_of_whole_numbers(self, pipe, pictures):
        for seeds in ([0, 1, 2], (0, 1, 2), np.arange(3), torch.arange(3)):
            assert np.array_equal(pipe(seeds, batch_size=64), pictures[:3])

    def test_raw_weights_draw_others(self, weights, pictures):
        assert differing(load(weights, ema=False, device="cpu")(range(64)), pictures)[0] > 0.1

    def test_load_is_the_packages_own(self, weights, pictures):
        pipe = diffit_lib.load(weights, device="cpu", precision="32-true")
        assert np.array_equal(pipe(range(64)), pictures)

    def test_say_what_they_are_drawn_by(self, pipe, plain):
        assert repr(pipe) == (
            f"Pipeline tiny: ImageDiffiT, {sum(p.numel() for p in pipe.denoiser.parameters()):,} parameters, draws 8x8 "
            f"grey images of 10 classes (0, 1, 2, ...). Trained on {pipe.card.trained_on}, {pipe.card.images_seen:,} "
            "images seen. Samples with heun churn=0.0, 8 steps, guidance 1, on cpu in 32-true."
        )
        assert "draws 8x16 RGB images of no classes." in repr(plain)


class TestLabels:
    def test_are_numbers_names_or_one_for_each_seed(self, weights, tmp_path, pipe):
        expected = pipe([0, 1, 2], [7, 7, 7])
        for labels in (7, "7", [7, "7", np.int64(7)], torch.tensor([7, 7, 7])):
            assert np.array_equal(pipe([0, 1, 2], labels), expected)
        assert not np.array_equal(pipe([0, 1, 2], 8), expected)

    def test_names_come_before_numbers(self, pipe, monkeypatch):
        monkeypatch.setattr(
            pipe, "card", pipe.card.__class__(pipe.card.experiment, class_names=("cat", "dog", "0", *"cdefghi"))
        )
        assert [pipe.card.class_number(label) for label in ("cat", "dog", "0", 0, "9", "none")] == [0, 1, 2, 0, 9, 10]

    def test_names_in_any_case_and_digits_in_words_are_known(self, pipe, monkeypatch):
        assert [pipe.card.class_number(label) for label in ("two", "Seven ", "None", "7 ")] == [2, 7, 10, 7]
        names = ("Cardigan", "cardigan", "two", "2", *"pair")
        monkeypatch.setattr(pipe, "card", pipe.card.__class__(pipe.card.experiment, class_names=(*names, "owl", "owl")))
        assert [pipe.card.class_number(label) for label in ("cardigan", "Cardigan", "PAIR"[0], "two", "2", 2)] == [
            1,
            0,
            4,
            2,
            3,
            2,
        ]
        for label, says in (("CARDIGAN", "'CARDIGAN' is 0 or 1; give the number"), ("owl", "'owl' is 8 or 9; ")):
            with pytest.raises(DiffitError, match=says):
                pipe.card.class_number(label)

    def test_words_are_no_digits_where_classes_have_other_names(self, pipe, monkeypatch):
        monkeypatch.setattr(pipe, "card", pipe.card.__class__(pipe.card.experiment, class_names=tuple("abcdefghij")))
        with pytest.raises(DiffitError, match="no class 'two'; give a number"):
            pipe.card.class_number("two")

    def test_a_misspelt_name_is_told_the_likely_ones(self, pipe, monkeypatch):
        names = ("Tench", "French horn", *"abcdefgh")
        monkeypatch.setattr(pipe, "card", pipe.card.__class__(pipe.card.experiment, class_names=names))
        with pytest.raises(DiffitError, match=r"^no class 'tensh'; did you mean Tench[?] give a number from 0 to 9"):
            pipe.card.class_number("tensh")

    def test_none_in_words_asks_for_no_class(self, pipe):
        assert pipe.class_label([0, 1], "none").tolist() == [10, 10]
        assert not np.array_equal(pipe([0, 1], "none"), pipe([0, 1], 0))

    def test_left_out_are_drawn_from_each_seed(self, pipe):
        labels = pipe.class_label(range(200), None)
        assert set(labels.tolist()) == set(range(10))
        assert torch.equal(pipe.class_label(range(50, 60), None), labels[50:60])

    def test_follow_their_seeds_over_batches(self, pipe):
        labels = [k % 10 for k in range(7)]
        assert differing(pipe(range(7), labels, batch_size=3), pipe(range(7), labels))[1] <= 1

    @pytest.mark.parametrize(
        ("labels", "says"),
        [
            (10, "no class 10; give a number from 0 to 9"),
            (-1, "no class -1; "),
            ("sevn", "no class 'sevn'; give a number from 0 to 9, or 'none'"),
            ([0, 1], "2 labels for 3 seeds; give one label, or one per seed"),
            ([0, 1, 2, 3], "4 labels for 3 seeds"),
            ([0, 1, None], "no class None"),
            ([], "0 labels for 3 seeds"),
        ],
    )
    def test_wrong_ones_are_refused(self, pipe, labels, says):
        with pytest.raises(DiffitError, match=says):
            pipe([0, 1, 2], labels)

    def test_one_number_for_seeds_is_told_what_to_give(self, pipe):
        with pytest.raises(DiffitError, match=r"seeds is 2; give a list or a range, e\.g\. range\(8\)"):
            pipe(2)

    def test_wrong_ones_are_refused_before_the_first_image_is_drawn(self, pipe, monkeypatch):
        monkeypatch.setattr(pipe, "stream", None)
        with pytest.raises(DiffitError, match="no class 'sevn'"):
            pipe(range(65), [*[0] * 64, "sevn"])
        with pytest.raises(DiffitError, match="64 labels for 65 seeds"):
            pipe(range(65), [0] * 64)

    def test_are_refused_by_an_unconditional_network(self, plain):
        for labels in (3, "3", [3, 3]):
            with pytest.raises(DiffitError, match="these weights are unconditional; leave labels out"):
                plain([0, 1], labels)
        assert np.array_equal(plain([0, 1], "none"), plain([0, 1]))


class TestSettings:
    def test_not_given_follow_the_weights(self, pipe, pictures):
        assert np.array_equal(pipe(range(64), sampler="heun", steps=8, guidance=1.0, churn=None), pictures)
        assert len(list(pipe.stream([0]))) == 8

    @pytest.mark.parametrize(
        "settings", [{"steps": 5}, {"guidance": 3.0}, {"sampler": "euler"}, {"sampler": "ddpm"}, {"churn": 3.0}]
    )
    def test_given_ones_change_the_pictures(self, pipe, pictures, settings):
        assert differing(pipe(range(64), **settings), pictures)[0] > 0.05

    def test_another_sampler_leaves_the_options_of_the_weights_own(self, pipe, monkeypatch):
        card = pipe.card.__class__(pipe.card.experiment.override(churn=4.0), class_names=pipe.card.class_names)
        monkeypatch.setattr(pipe, "card", card)
        assert pipe.sampling().churn == 4.0
        assert pipe.sampling(sampler="euler").churn == 0.0
        assert pipe.sampling(sampler="ddim", guidance_schedule="interval", guidance_low=1.0).churn == 0.0
        assert (pipe.sampling(sampler="ddim").steps, pipe.sampling(steps=3).churn) == (8, 4.0)

    def test_guidance_follows_its_schedule(self, pipe):
        """Guided at the noise levels of the interval alone; not at all where the power-cosine schedule is near 1."""
        plain, constant, above, late = (
            [state.denoised for state in pipe.stream([0], 3, sampler="euler", steps=6, **settings)]
            for settings in (
                {},
                {"guidance": 3.0},
                {"guidance": 3.0, "guidance_schedule": "interval", "guidance_low": 1.0},
                {"guidance": 3.0, "guidance_schedule": "power-cosine"},
            )
        )
        sharper, below = (
            [state.denoised for state in pipe.stream([0], 3, sampler="euler", steps=6, guidance=3.0, **settings)]
            for settings in (
                {"guidance_schedule": "power-cosine", "guidance_power": 0.5},
                {"guidance_schedule": "interval", "guidance_high": 1.0},
            )
        )
        assert not torch.equal(sharper[1], late[1])
        assert torch.equal(below[0], plain[0])
        assert not torch.allclose(below[-1], plain[-1], atol=1e-3)
        assert torch.equal(above[0], constant[0])
        assert not torch.equal(above[0], plain[0])
        assert torch.equal(late[0], plain[0])
        assert not torch.allclose(late[-1], plain[-1], atol=1e-3)
        sigmas = [float(state.sigma) for state in pipe.stream([0], 3, sampler="euler", steps=6)]
        assert sum(sigma > 1.0 for sigma in sigmas[:-1]) in range(1, 5)

    def test_batches_are_the_same_images_before_rounding(self, pipe, pictures):
        batches = list(pipe.batches(range(64), batch_size=40))
        assert [len(batch) for batch in batches] == [40, 24]
        assert all(batch.is_floating_point() for batch in batches)
        assert differing(np.concatenate([pipe.decode(batch) for batch in batches]), pictures)[0] <= 0.001

    def test_guidance_leans_away_from_no_class(self, pipe):
        """In one Euler step from sigma_max the answer is linear in the scale."""
        none, single, triple = (
            next(pipe.stream([0, 1], label, sampler="euler", steps=2, guidance=scale)).denoised
            for label, scale in (("none", 1.0), (3, 1.0), (3, 3.0))
        )
        torch.testing.assert_close(triple, none + 3 * (single - none), rtol=0, atol=1e-4)
        assert not torch.allclose(triple, single, atol=1e-3)

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({"step": 5}, "unknown sampling setting 'step'; the settings are sampler, steps, guidance"),
            ({"steps": 1}, "steps is 1; give 2 or more"),
            ({"steps": 2.5}, "steps is 2.5"),
            ({"sampler": "heum"}, "sampler is 'heum'; give one of heun, euler"),
            ({"guidance": "strong"}, "guidance is 'strong'"),
            ({"churn": -1.0}, "churn is -1.0"),
            ({"sampler": "dpm++", "churn": 1.0}, "churn is an option of heun and euler"),
            (
                {"guidance_power": 2.0},
                "guidance_power is an option of power-cosine; leave it out with",
            ),
        ],
    )
    def test_wrong_ones_are_refused(self, pipe, settings, says):
        with pytest.raises(DiffitError, match=says):
            pipe([0], **settings)

    @pytest.mark.parametrize(("seeds", "batch_size"), [([], None), ([], 4), ([1], 0), ([1], -2)])
    def test_nothing_to_draw_is_refused(self, pipe, seeds, batch_size):
        with pytest.raises(DiffitError, match=rf"{len(seeds)} seeds, batch_size={batch_size}; give 1 or more"):
            pipe(seeds, batch_size=batch_size)


class TestStream:
    def test_yields_every_state_down_to_the_clean_image(self, pipe):
        states = list(pipe.stream([4, 5, 6], 2, steps=6))
        assert [state.step for state in states] == [1, 2, 3, 4, 5, 6]
        sigmas = [state.sigma for state in states]
        assert sigmas == sorted(sigmas, reverse=True)
        assert sigmas[-1] == 0
        for state in states:
            assert state.x.shape == state.denoised.shape == (3, 1, 8, 8)
            assert state.x.dtype == torch.float64
        assert np.array_equal(pipe.decode(states[-1].x), pipe([4, 5, 6], 2, steps=6))

    def test_hides_the_padding(self, pipe):
        padded = list(pipe.stream([4, 5], 2, pad_to=5))
        assert all(len(state.x) == len(state.denoised) == 2 for state in padded)
        torch.testing.assert_close(padded[-1].x, final(pipe, [4, 5], 2), rtol=0, atol=1e-4)

    def test_leaves_the_callers_own_code_out_of_autocast(self, weights):
        pipe = load(weights, device="cpu", precision="bf16-mixed")
        for state in pipe.stream([0], 1):
            assert not torch.is_autocast_enabled("cpu")
            assert (state.x @ state.x).dtype == torch.float64
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32

    def test_mixed_precision_reaches_the_network(self, weights, pipe):
        coarse = load(weights, device="cpu", precision="bf16-mixed")
        difference = (final(coarse, range(8), 1) - final(pipe, range(8), 1)).abs()
        assert 1e-4 < difference.mean() < 0.1
