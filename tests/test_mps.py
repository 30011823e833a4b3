"""Apple's GPUs lack some of torch's operations: none of them is used where the device computes.

What they have is read from torch's own table of operations, which comes with every build, on any machine.
"""

from functools import cache
from importlib import resources

import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from diffit_lib.config.presets import PRESETS, vae_preset
from diffit_lib.data.stream import Batch, TrainingStream
from diffit_lib.diffusion.samplers import SAMPLERS
from diffit_lib.evaluation import features
from diffit_lib.sampling.pipeline import load
from diffit_lib.training.cost import on_noise


@cache
def table():
    """Every operation of torch, by its name and overload."""
    text = resources.files("torchgen").joinpath("packaged/ATen/native/native_functions.yaml").read_text("utf-8")
    return {entry["func"].partition("(")[0]: entry for entry in yaml.load(text, yaml.CSafeLoader)}


def is_on_mps(name):
    """Whether there is a kernel, or one made of other operations; names that are not in the table are made ones too."""
    entry = table().get(name.removesuffix(".default"))
    if entry is None or "structured_delegate" in entry:
        return entry is None or is_on_mps(entry["structured_delegate"])
    keys = {key for keys in entry.get("dispatch", {"Composite": ""}) for key in keys.split(", ")}
    return any(key == "MPS" or key.startswith("Composite") for key in keys)


class Missing(TorchDispatchMode):
    """Notes the operations that MPS lacks, but those with a generator, which is one of the CPU."""

    def __init__(self):
        super().__init__()
        self.count, self.names = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::")
        if not (kwargs or {}).get("generator"):
            self.count += 1
            if func.namespace == "aten" and not is_on_mps(name):
                self.names.add(name)
        return func(*args, **kwargs or {})


def test_the_table_knows_what_is_missing():
    with Missing() as missing:
        on_noise(PRESETS["digits"]).model.draw_sigma(torch.tensor([0.5]))
    assert missing.names == {"special_ndtri"}


@pytest.mark.parametrize(
    "experiment",
    [
        PRESETS["digits"].override(dropout=0.1, augment=0.5, augment_dim=9),
        PRESETS["digits"].override(muon=0.02),
        PRESETS["digits"].override(denoiser="flow"),
        PRESETS["digits"].override(denoiser="vp"),
        PRESETS["latent-digits"],
        vae_preset("vae-digits").override(disc_start=0),
    ],
    ids=["image", "muon", "flow", "vp", "latent", "vae"],
)
def test_a_step_of_training_misses_nothing(experiment):
    module = on_noise(experiment.override(batch_size=4, accumulate=1))
    batch = TrainingStream(module.data, module.options, module.state_shape).batch(0)
    batch = module.on_before_batch_transfer(Batch(*batch), 0)
    optimizer = torch.optim.Adam(module.model.parameters(), fused=True)
    with Missing() as missing:
        module.training_step(batch, 0).backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        module.update_average()
    assert missing.count > 100
    assert missing.names == set()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_drawing_misses_nothing(sampler, weights):
    with Missing() as missing:
        load(weights)([0, 1], steps=2, sampler=sampler, guidance=2.0)
    assert missing.count > 100
    assert missing.names == set()


def test_the_classifier_misses_nothing(monkeypatch):
    monkeypatch.setattr(features, "TRAINING_IMAGES", 64)
    monkeypatch.setattr(features, "cached", lambda name, make: make())
    images, labels = torch.arange(64 * 64).remainder(251).byte().view(64, 1, 8, 8), torch.arange(64) % 2
    with Missing() as missing:
        features.train_classifier(images, labels).predict(images)
    assert missing.names == set()
