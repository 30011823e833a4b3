"""Muon for the matrices of the blocks, Adam for the rest."""

import copy

import pytest
import torch

from diffit_lib.checkpoints.weights import build_denoiser
from diffit_lib.config.presets import preset
from diffit_lib.training.optimizer import Muon
from diffit_lib.training.train import train

IMAGE = preset("digits").override(width=8, channel_mult=(1, 2), time_dim=8, sigma_data=0.7)
DIT = preset("digits-dit").override(width=16, depth=1, num_heads=2, sigma_data=0.7)


def stepped(denoiser, steps=2):
    """The optimizer after some steps on fixed images."""
    torch.manual_seed(0)
    for parameter in denoiser.parameters():  # a gradient for each, also past layers that begin near zero
        torch.nn.init.normal_(parameter, std=0.1)
    before, optimizer = copy.deepcopy(denoiser), Muon(denoiser, lr=1e-3, muon=2e-3, fused=True)
    x, sigma, label = torch.randn(4, 1, 8, 8), torch.rand(4) + 0.1, torch.arange(4)
    gradients = []
    for _ in range(steps):
        denoiser(x, sigma, label).square().mean().backward()
        gradients.append({name: weight.grad.clone() for name, weight in denoiser.named_parameters()})
        optimizer.step()
        optimizer.zero_grad()
    return before, optimizer, gradients


@pytest.mark.parametrize("experiment", [IMAGE, DIT], ids=["image", "dit"])
def test_matrices_of_the_blocks_move_as_muon_says_and_the_rest_as_adam(experiment):
    denoiser = build_denoiser(experiment).to(memory_format=torch.channels_last)
    before, _, gradients = stepped(denoiser, steps=1)
    first = ("time_token", "tokenizer", "head", "patch_embed", "final_layer")
    for (name, weight), old in zip(denoiser.named_parameters(), before.parameters(), strict=True):
        gradient, moved = gradients[0][name], weight.detach() - old.detach()
        if weight.ndim in (2, 4) and not any(part in name for part in (*first, "bias_table")):
            u, s, v = torch.linalg.svd(gradient.flatten(1).double(), full_matrices=False)
            rank = int((s > 1e-3 * s[0]).sum())  # Newton's iteration does not raise tiny singular values to 1
            along = torch.einsum("ik,ij,kj->k", u, moved.flatten(1).double(), v)[:rank]
            scale = 2e-3 * 0.2 * max(weight.flatten(1).shape) ** 0.5
            assert (-along / scale).min() > 0.3, name
            assert (-along / scale).max() < 1.3, name  # Jordan's coefficients leave them between 0.7 and 1.2
        else:
            used = gradient.abs() > 1e-5
            torch.testing.assert_close(moved[used], -1e-3 * gradient[used].sign(), rtol=2e-2, atol=0)


def test_goes_on_from_its_state_as_if_never_stopped():
    denoiser = build_denoiser(IMAGE).to(memory_format=torch.channels_last)
    _, optimizer, gradients = stepped(denoiser)
    again = copy.deepcopy(denoiser)
    resumed = Muon(again, lr=0.5, muon=0.5, fused=True)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for network, one in ((denoiser, optimizer), (again, resumed)):
        for name, weight in network.named_parameters():
            weight.grad = gradients[0][name].clone()
        one.step()
    assert all(torch.equal(*pair) for pair in zip(denoiser.parameters(), again.parameters(), strict=True))


def test_a_run_with_muon_resumes_to_the_bit(data, tmp_path):
    experiment = IMAGE.override(muon=3e-3, batch_size=16, minutes=None)
    whole = train(experiment.override(max_steps=6), tmp_path / "whole", data, progress=False)
    train(experiment.override(max_steps=6, minutes=1e-9), tmp_path / "parts", data, progress=False)
    parts = train(experiment.override(max_steps=6), tmp_path / "parts", data, progress=False)
    assert whole.stat().st_size == parts.stat().st_size
    from safetensors.torch import load_file

    one, other = load_file(whole), load_file(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)
