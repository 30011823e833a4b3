"""Value ranges, seeds that name images, precisions by device."""

import pytest
import torch

from diffit_lib.utils.tensors import (
    SeededNoise,
    autocast,
    best_precision,
    derive_seed,
    expand_like,
    seeded_generator,
    state_dtype,
    to_float,
    to_uint8,
)

BYTES = torch.arange(256, dtype=torch.uint8)


class TestRanges:
    def test_bytes_become_minus_one_to_one(self):
        values = to_float(BYTES)
        assert values.dtype == torch.float32
        assert (values[0].item(), values[255].item()) == (-1, 1)
        torch.testing.assert_close(values.diff(), torch.full((255,), 2 / 255))

    def test_every_byte_survives_the_way_there_and_back(self):
        assert torch.equal(to_uint8(to_float(BYTES)), BYTES)

    @pytest.mark.parametrize("step", [-0.49, 0.49])
    def test_values_between_bytes_are_rounded(self, step):
        assert torch.equal(to_uint8(to_float(BYTES).double() + step / 127.5), BYTES)

    def test_values_out_of_range_are_clamped(self):
        assert to_uint8(torch.tensor([-9.0, -1.01, 1.003, 1.01, 9.0])).tolist() == [0, 0, 255, 255, 255]


def test_expand_like_puts_a_number_on_every_image():
    scaled = expand_like(torch.tensor([2.0, 3.0]), torch.ones(2, 1, 4, 5)) * torch.ones(2, 1, 4, 5)
    assert scaled.flatten(1).unique(dim=1).tolist() == [[2], [3]]


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float64"), ("cuda", "float64"), ("mps", "float32")])
def test_state_is_float64_where_the_device_has_it(device, dtype):
    assert state_dtype(torch.device(device)) == getattr(torch, dtype)


class TestSeeds:
    def test_a_key_means_the_same_seed_in_every_process_on_every_machine(self):
        assert derive_seed("image", 0) == 3982628086804699052
        assert derive_seed(7, "training", 123_456) == 8103995517182180320

    def test_different_keys_have_different_seeds_of_63_bits(self):
        seeds = {derive_seed(word, number) for word in ("image", "label") for number in range(1000)}
        assert len(seeds) == 2000
        assert all(0 <= seed < 2**63 for seed in seeds)
        assert max(seeds) > 2**62

    def test_a_generator_leaves_the_global_state_alone(self):
        before = torch.get_rng_state()
        torch.rand(3, generator=seeded_generator("image", 0))
        assert torch.equal(torch.get_rng_state(), before)


class TestSeededNoise:
    shape = (3, 8, 8)

    def test_row_depends_on_its_seed_and_not_on_its_batch(self):
        batch, alone = SeededNoise([5, 6, 7], self.shape), SeededNoise([6], self.shape)
        for _ in range(3):
            assert torch.equal(batch()[1], alone()[0])

    def test_every_call_and_every_seed_gives_fresh_standard_normal_noise(self):
        noise = SeededNoise(range(50), self.shape)
        draws = torch.stack([noise(), noise()])
        assert draws.dtype == torch.float32
        assert draws.flatten(2).unique(dim=1).shape[1] == 50
        assert not torch.equal(draws[0], draws[1])
        assert abs(draws.mean()) < 4 / draws.numel() ** 0.5
        assert abs(draws.var() - 1) < 4 * (2 / draws.numel()) ** 0.5

    def test_seed_0_names_the_same_noise_in_every_release(self):
        expected = torch.tensor([[[[1.0696, -0.6711], [0.7482, 0.0374]]]])
        torch.testing.assert_close(SeededNoise([0], (1, 2, 2))(), expected, rtol=0, atol=1e-4)


class TestPrecision:
    @pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16-mixed"), (False, "16-mixed")])
    def test_best_on_cuda_is_bfloat16_where_it_is_real_and_float16_elsewhere(self, monkeypatch, bf16, precision):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
        assert best_precision(torch.device("cuda")) == precision

    @pytest.mark.parametrize("device", ["cpu", "mps"])
    def test_best_elsewhere_is_float32(self, device):
        assert best_precision(torch.device(device)) == "32-true"

    @pytest.mark.parametrize(
        ("precision", "dtype"), [("32-true", "float32"), ("bf16-mixed", "bfloat16"), ("16-mixed", "float16")]
    )
    def test_autocast_runs_linear_layers_in_the_precision_asked_for(self, precision, dtype):
        with autocast(torch.device("cpu"), precision):
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == getattr(torch, dtype)


def test_autocast_takes_no_precision_that_is_still_to_be_chosen():
    with pytest.raises(KeyError, match="auto"):
        autocast(torch.device("cpu"), "auto")
