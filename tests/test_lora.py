"""Fine-tuning by low-rank changes: starts at the base, trains nothing else, and is merged in the weights file."""

from dataclasses import replace

import pytest
import torch

from diffit_lib.checkpoints.weights import build_denoiser, load_weights, save_weights, warm_start
from diffit_lib.models.lora import add_lora, merged
from diffit_lib.sampling.pipeline import load
from diffit_lib.training.train import train
from diffit_lib.utils.errors import DiffitError


@pytest.fixture
def recipe(tiny, weights):
    """Four steps from the weights of the tests."""
    return tiny.override(sigma_data=0.75, precision="32-true", init_weights=str(weights), lora_rank=2, lr=0.05)


def changed(before, after):
    """Names of the tensors that differ."""
    return {name for name in before if not torch.equal(before[name], after[name])}


def answer(denoiser):
    """What it makes of one input."""
    x = torch.linspace(-3, 3, 128).view(2, 1, 8, 8)
    with torch.no_grad():
        return denoiser(x, torch.tensor([0.5, 2.0]), torch.tensor([3, 10]))


def test_equals_the_base_at_first_and_merged_when_trained(recipe, weights, tmp_path):
    base, card = load_weights(weights)
    denoiser = build_denoiser(recipe)
    warm_start(denoiser, weights)
    add_lora(denoiser.network, 2)
    assert torch.equal(answer(denoiser), answer(base))
    assert merged(denoiser).keys() == base.state_dict().keys()
    assert changed(base.state_dict(), merged(denoiser)) == set()
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_weights(tmp_path / "merged.safetensors", card, denoiser)
    loaded, _ = load_weights(tmp_path / "merged.safetensors")
    assert (answer(loaded) - answer(base)).abs().max() > 0.02
    torch.testing.assert_close(answer(loaded), answer(denoiser), rtol=0, atol=1e-6)


def test_only_the_low_rank_changes_and_the_label_embedding_train(recipe, weights, fit):
    module = fit(recipe)
    base = load_weights(weights)[0].state_dict()
    trained, frozen = {}, {}
    for name, parameter in module.model.named_parameters():
        plain = name.replace(".parametrizations.weight.original", ".weight")
        (trained if parameter.requires_grad else frozen)[plain] = parameter
    assert {name.rsplit(".", 1)[1] for name in trained} == {"down", "up", "weight"}
    assert [name for name in trained if name.endswith("weight")] == ["network.time_token.classes.weight"]
    assert changed({name: base[name] for name in frozen}, frozen) == set()
    after = merged(module.average)
    linear = {name for name, tensor in base.items() if name.endswith("weight") and tensor.ndim == 2}
    assert changed(base, after) <= linear
    assert len(changed(base, after)) > 5
    assert sum(map(torch.numel, trained.values())) < sum(map(torch.numel, frozen.values())) / 2


def test_a_run_resumes_and_draws_from_its_file(recipe, tmp_path, data):
    once = train(recipe, tmp_path / "once", data, progress=False)
    train(recipe.override(max_steps=2), tmp_path / "twice", data, progress=False)
    twice = train(recipe, tmp_path / "twice", data, progress=False)
    one, other = (load_weights(path)[0].state_dict() for path in (once, twice))
    assert changed(one, other) == set()
    assert load(once)(range(2)).shape == (2, 8, 8, 1)


def test_a_run_does_not_resume_with_another_rank(recipe, tmp_path, data):
    train(recipe.override(max_steps=1), tmp_path / "run", data, progress=False)
    with pytest.raises(DiffitError, match="was trained with lora_rank=2, not 3; set it back to go on"):
        train(recipe.override(lora_rank=3), tmp_path / "run", data, progress=False)
    train(recipe.override(max_steps=2), tmp_path / "run", data, progress=False)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_licence_of_the_weights_it_starts_from_stays_after_a_restart_too(recipe, weights, tmp_path, data, rank):
    denoiser, card = load_weights(weights)
    save_weights(tmp_path / "theirs.safetensors", replace(card, licence="CC-BY-NC-4.0 (no commercial use)"), denoiser)
    recipe = recipe.override(init_weights=str(tmp_path / "theirs.safetensors"), lora_rank=rank)
    train(recipe.override(max_steps=1), tmp_path / "run", data, progress=False)
    made = train(recipe.override(max_steps=2), tmp_path / "run", data, progress=False)
    assert load_weights(made)[1].licence == "CC-BY-NC-4.0 (no commercial use)"


@pytest.mark.parametrize("changes", [{"lora_rank": -1}, {"init_weights": ""}])
def test_a_rank_needs_weights_to_start_from(recipe, changes):
    with pytest.raises(DiffitError, match=r"lora_rank is .*; give 1 or more with init_weights"):
        recipe.override(**changes)


def test_adam_alone_trains_it(recipe):
    with pytest.raises(DiffitError, match=r"muon is 0\.01 with lora_rank 2, which Adam alone trains; give muon 0"):
        recipe.override(muon=0.01)
