"""The cost of networks, against torch's own counter."""

import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from test_image_network import SMALL as IMAGE
from test_transformer import SMALL as LATENT
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffit_lib.config.presets import vae_preset
from diffit_lib.models import build_network
from diffit_lib.models.cost import MACCounter, denoiser_cost, parameters
from diffit_lib.models.vae import KLAutoencoder


def torch_count(forward):
    """Multiply-accumulates by torch's counter, with attention in the one kernel that every version of it sees.

    With gradients, because it does not know oneDNN's linear layers; with the plain `Upsample`.
    """
    plain = patch("diffit_lib.models.layers.LEAST_PIXELS", math.inf)
    with plain, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    return counter.get_total_flops() / 2


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Small images are upsampled like large ones."""
    monkeypatch.setattr("diffit_lib.models.layers.LEAST_PIXELS", 0)


@pytest.mark.parametrize("config", [IMAGE, LATENT, replace(LATENT, block="dit")], ids=["image", "latent", "dit"])
def test_cost_is_what_torch_counts_operation_by_operation(config):
    network = build_network(config)
    expected = torch_count(lambda: network(torch.zeros(1, *config.shape), torch.zeros(1)))
    cost = denoiser_cost(config, batch=3)
    assert cost.parameters == cost.trained == parameters(network)
    assert cost.macs == expected
    with MACCounter() as counter, torch.no_grad():
        network(torch.zeros(1, *config.shape), torch.zeros(1))
    assert counter.total == expected


def test_counter_sees_autoencoders_too():
    network = KLAutoencoder(replace(vae_preset("vae-digits").network, mid_attn=True)).eval()
    images, noise = torch.zeros(2, *network.config.shape), torch.zeros(2, *network.config.latent_shape)
    with MACCounter() as counter, torch.no_grad():
        network(images, noise)
    assert counter.total == torch_count(lambda: network(images, noise))
