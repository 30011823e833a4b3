"""The real Inception graph with random weights, which needs no download, and pictures it can tell apart."""

from unittest.mock import patch

import torch

from diffit_lib.data import digits


def build_random_inception(input_size):
    """torch-fidelity's own network, giving features and logits; it resizes to `input_size` instead of 299 pixels."""
    import torch_fidelity.feature_extractor_inceptionv3 as module

    graph = module.FeatureExtractorInceptionV3
    with (
        patch.object(module, "load_state_dict_from_url", lambda *_, **__: None),
        patch.object(graph, "load_state_dict", lambda *_: None),
    ):
        network = graph("inception-v3-compat", ["2048", "logits_unbiased"])
    network.INPUT_IMAGE_SIZE = input_size
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0  # the statistics of one batch: else all images look alike by the last layer
    network.train()(tinted_digits(0, 64, noise=10, seed=0))
    return network.eval()


def tinted_digits(first, count, *, noise, seed):
    """Digits 8x8 in random colours, with noise of that deviation: uint8 (count, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(seed)
    tint = 0.3 + 0.7 * torch.rand(count, 3, 1, 1, generator=generator)
    images = digits().train.images[first : first + count] * tint
    return (images + noise * torch.randn(count, 3, 8, 8, generator=generator)).clamp(0, 255).to(torch.uint8)
