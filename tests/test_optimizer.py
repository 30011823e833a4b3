"""Muon for the matrices of the blocks, Adam for the rest."""

import copy

import pytest
import torch

from diffit_lib.checkpoints.weights import build_denoiser
from diffit_lib.config.presets import preset
from diffit_lib.training.optimizer import MatrixMuon, Muon
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


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon to compare with")
@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (32, 32)])
def test_steps_are_those_of_torch_to_the_precision_of_bf16(shape):
    torch.manual_seed(0)
    ours = torch.randn(shape)
    theirs = ours.clone()
    one = MatrixMuon([ours], lr=1e-2)
    other = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = theirs.grad = torch.randn(shape)
        before = ours.clone(), theirs.clone()
        one.step()
        other.step()
        mine, its = ours - before[0], theirs - before[1]
        assert (mine - its).norm() < 0.04 * its.norm()
    resumed = MatrixMuon([ours.clone()], lr=1.0)
    resumed.load_state_dict(other.state_dict())  # of a run from before this class
    assert torch.equal(*(state.state_dict()["state"][0]["momentum_buffer"] for state in (resumed, other)))


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


def test_scaled_gradients_are_unscaled_for_both_and_one_that_is_not_finite_changes_nothing():
    denoiser = build_denoiser(IMAGE).to(memory_format=torch.channels_last)
    _, _, gradients = stepped(denoiser)
    plain = copy.deepcopy(denoiser)
    one = Muon(plain, lr=1e-3, muon=2e-3, fused=False)
    scaled = Muon(denoiser, lr=1e-3, muon=2e-3, fused=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # it makes its tensors at the first loss
    for factor, network in ((1.0, plain), (1024.0, denoiser)):
        for name, weight in network.named_parameters():
            weight.grad = gradients[0][name] * factor
    one.step()
    scaler.unscale_(scaled)
    scaler.step(scaled)
    scaler.update()
    for weight, other in zip(denoiser.parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight, other)
    before = copy.deepcopy(denoiser)
    scaled.zero_grad()
    for name, weight in denoiser.named_parameters():
        weight.grad = gradients[0][name] * float("nan")
    scaler.unscale_(scaled)
    scaler.step(scaled)
    assert all(torch.equal(*pair) for pair in zip(denoiser.parameters(), before.parameters(), strict=True))


def test_a_step_whose_gradient_was_dropped_leaves_weights_and_both_states():
    denoiser = build_denoiser(IMAGE).to(memory_format=torch.channels_last)
    _, optimizer, _ = stepped(denoiser)
    before, state = copy.deepcopy(denoiser), copy.deepcopy(optimizer.state_dict())
    optimizer.step()  # `stepped` forgot the gradients
    assert all(torch.equal(*pair) for pair in zip(denoiser.parameters(), before.parameters(), strict=True))
    for part, old in zip(optimizer.state_dict()["parts"], state["parts"], strict=True):
        for number, buffers in part["state"].items():
            assert all(torch.equal(value, old["state"][number][name]) for name, value in buffers.items())


def test_a_schedule_reaches_both():
    _, optimizer, _ = stepped(build_denoiser(IMAGE), steps=0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    optimizer.step()
    assert [part.param_groups[0]["lr"] for part in optimizer.parts] == [0.25e-3, 0.5e-3]


def test_a_run_with_muon_resumes_to_the_bit(data, tmp_path):
    experiment = IMAGE.override(muon=3e-3, batch_size=16, minutes=None)
    whole = train(experiment.override(max_steps=6), tmp_path / "whole", data, progress=False)
    train(experiment.override(max_steps=6, minutes=1e-9), tmp_path / "parts", data, progress=False)
    parts = train(experiment.override(max_steps=6), tmp_path / "parts", data, progress=False)
    assert whole.stat().st_size == parts.stat().st_size
    from safetensors.torch import load_file

    one, other = load_file(whole), load_file(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)
