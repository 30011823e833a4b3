"""The plain transformer of either kind of block: sizes, formulas, initialisation, labels and places."""

import math
from dataclasses import replace

import pytest
import torch
from published_formulas import published_network
from torch import nn

from diffit_lib.cli.info import describe
from diffit_lib.config.models import TransformerConfig
from diffit_lib.config.presets import preset
from diffit_lib.models import build_network
from diffit_lib.models.cost import denoiser_cost
from diffit_lib.models.transformer import AdaLNBlock
from diffit_lib.sampling.pipeline import load
from diffit_lib.training.train import train
from diffit_lib.utils.errors import DiffitError

SMALL = TransformerConfig(image_size=(4, 6), width=16, depth=2, num_heads=2, num_classes=3, learned_variance=True)
KINDS = ["diffit", "dit"]
SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
NAMES = {  # ours: theirs
    "patch_embed": "x_embedder.proj",
    "time_token.mlp": "t_embedder.mlp",
    "time_token.classes": "y_embedder.embedding_table",
    ".modulation": ".adaLN_modulation.1",
}


def published_size(block, size, side=32):
    """A network of the published sizes, for ImageNet latents."""
    depth, width, heads = SIZES[size]
    return TransformerConfig(
        image_size=(side, side),
        block=block,
        depth=depth,
        width=width,
        num_heads=heads,
        num_classes=1000,
        learned_variance=True,
    )


def awake(config):
    """A network in evaluation mode with every parameter drawn anew, so that none is too small to matter."""
    torch.manual_seed(0)
    network = build_network(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def inputs(config, batch=3):
    """Noisy images, times and classes."""
    x = torch.randn(batch, *config.shape, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([0.0, 313.5, 999.0])[:batch], torch.arange(batch) % 3


def under_published_names(network):
    """The network's tensors as the published files call them."""
    tensors = {}
    for name, tensor in network.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        tensors[name] = tensor
    return tensors


@pytest.fixture(params=KINDS)
def config(request):
    return replace(SMALL, block=request.param)


@pytest.fixture
def network(config):
    return awake(config)


class TestSizes:
    @pytest.mark.parametrize(
        ("block", "side", "trainable", "stored"),
        [
            ("diffit", 32, 561_035_232, 561_330_144),
            ("diffit", 64, 562_382_816, 563_562_464),
            ("dit", 32, 674_834_720, 675_129_632),
        ],
    )
    def test_published_networks_have_their_number_of_parameters(self, block, side, trainable, stored):
        with torch.device("meta"):
            network = build_network(published_size(block, "XL", side))
        assert sum(p.numel() for p in network.parameters()) == trainable
        assert sum(t.numel() for t in network.state_dict().values()) == stored  # and no index buffer

    @pytest.mark.parametrize(("size", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
    def test_dit_has_the_parameters_of_its_table(self, size, millions):
        with torch.device("meta"):
            network = build_network(published_size("dit", size))
        assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions

    @pytest.mark.parametrize(
        ("block", "size", "side", "gmac"),
        [
            ("dit", "S", 32, 6.06),
            ("dit", "B", 32, 23.01),
            ("dit", "L", 32, 80.71),
            ("dit", "XL", 32, 118.64),
            ("diffit", "XL", 32, 118.51),
            ("diffit", "XL", 64, 524.4),
        ],
    )
    def test_published_networks_cost_what_their_tables_say(self, block, size, side, gmac):
        assert denoiser_cost(published_size(block, size, side)).macs / 1e9 == pytest.approx(gmac, rel=2e-3)

    @pytest.mark.parametrize("in_channels", [1, 3, 4])
    @pytest.mark.parametrize("learned_variance", [False, True])
    @pytest.mark.parametrize(("image_size", "patch_size"), [((8, 8), 2), ((8, 24), 4), ((32, 16), 8), ((3, 5), 1)])
    def test_output_has_the_shape_of_the_input_or_twice_its_channels(
        self, config, in_channels, learned_variance, image_size, patch_size
    ):
        config = replace(
            config,
            in_channels=in_channels,
            learned_variance=learned_variance,
            image_size=image_size,
            patch_size=patch_size,
        )
        out = awake(config)(*inputs(config))
        assert out.shape == (3, in_channels * (1 + learned_variance), *image_size)
        assert out.isfinite().all()

    def test_without_classes_there_is_no_label_table(self, config):
        network = awake(replace(config, num_classes=0))
        assert not any("classes" in name for name in network.state_dict())
        x, t, label = inputs(config)
        assert torch.equal(network(x, t), network(x, t, label))


class TestFormulas:
    def test_in_float64_equals_the_formulas_written_out(self, config, network):
        x, t, label = inputs(config)
        out = network.double()(x.double(), t, label)
        expected = published_network(under_published_names(network), x, t, label, heads=2)
        assert (out - expected).norm() < 1e-5 * expected.norm()  # the time's embedding is float32

    def test_places_are_sines_and_cosines_of_the_column_then_of_the_row(self):
        place = build_network(replace(SMALL, image_size=(4, 10), width=12)).pos_embed[0, 8]  # row 1, column 3
        omega = [1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)]
        expected = [f(number * w) for number in (3, 1) for f in (math.sin, math.cos) for w in omega]
        torch.testing.assert_close(place, torch.tensor(expected))


class TestInitialisation:
    @torch.no_grad()
    def test_output_starts_at_0(self, config):
        assert build_network(config)(*inputs(config)).abs().max() == 0

    @torch.no_grad()
    def test_dits_blocks_start_as_the_identity(self):
        x, time = torch.randn(2, 3, 4, 16), torch.randn(2, 16)
        for block in build_network(replace(SMALL, block="dit")).blocks:
            assert isinstance(block, AdaLNBlock)
            assert torch.equal(block(x, time), x)

    @torch.no_grad()
    def test_diffits_blocks_have_no_gate(self):
        x, time = torch.randn(2, 2, 3, 16), torch.randn(2, 16)
        for block in build_network(SMALL).blocks:
            assert (block(x, time) - x).norm() > 0.1 * x.norm()

    def test_every_weight_has_its_spread_and_every_bias_is_0(self, config):
        torch.manual_seed(0)
        network = build_network(replace(config, width=128, num_classes=10))
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any(), name
                continue
            out_features, in_features = parameter.shape[0], parameter[0].numel()
            spread = math.sqrt(2 / (in_features + out_features))
            if "time_token" in name or "bias_table" in name:
                spread = 0.02
            if "modulation" in name or "final_layer" in name:
                spread = 0.0
            error = 4 / math.sqrt(2 * parameter.numel())  # four standard errors of a normal sample's deviation
            assert float(parameter.detach().std()) == pytest.approx(spread, rel=error), name


class TestLabels:
    @pytest.mark.parametrize("label", [0, 1], ids=["noise", "class"])
    @torch.no_grad()
    def test_every_label_matters_to_its_own_image_alone(self, config, network, label):
        x, *labels = inputs(config)
        out = network(x, *labels)
        labels[label] = labels[label].clone()
        labels[label][1] += 1
        change = (network(x, *labels) - out).abs().amax((1, 2, 3))
        assert change[1] > 1e-3
        assert change[[0, 2]].tolist() == [0, 0]

    @torch.no_grad()
    def test_no_class_label_means_the_last_row_of_the_table(self, config, network):
        x, t, _ = inputs(config)
        assert torch.equal(network(x, t), network(x, t, torch.full((3,), 3)))


class TestTokens:
    @torch.no_grad()
    def test_each_sees_all_of_the_image(self, config, network):
        x, t, label = inputs(config)
        moved = x.clone()
        moved[:, 0, 0, 0] += 1
        assert ((network(moved, t, label) - network(x, t, label)).abs().amax((0, 1)) > 1e-6).all()

    @torch.no_grad()
    def test_know_their_places_by_the_fixed_embedding_and_diffits_by_its_bias_too(self, config, network):
        """Without the embedding DiT's answer turns with the image; DiffiT's does not."""
        network.pos_embed.zero_()
        x, t, label = inputs(config)
        rolled = network(x.roll(2, dims=-1), t, label).roll(-2, dims=-1)  # by one patch
        assert torch.allclose(rolled, network(x, t, label), atol=1e-5) == (config.block == "dit")

    def test_checkpointing_recomputes_and_gives_equal_gradients(self, config):
        network, runs, gradients = awake(replace(config, dropout=0.5)).train(), [], []
        network.blocks[0].norm1.register_forward_hook(lambda *_: runs.append(network.checkpointing))
        for checkpointing in (False, True):
            network.checkpointing = checkpointing
            network.zero_grad()
            torch.manual_seed(0)
            network(*inputs(config)).square().sum().backward()
            gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
        assert runs == [False, True, True]
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


def small_recipe(tiny, **changes):
    """Four steps of training on the digits."""
    own = {"in_channels": 1, "image_size": (8, 8), "width": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    return tiny.override(network="transformer", **own, **changes)


@pytest.mark.parametrize("block", KINDS)
def test_trains_and_draws_as_any_other_network(tiny, data, tmp_path, block):
    experiment = small_recipe(tiny, block=block, augment_dim=9, augment=0.5)
    pipe = load(train(experiment, tmp_path, data, progress=False), device="cpu")
    assert pipe.card.experiment.network == experiment.network
    assert pipe(seeds=range(2), labels=3, guidance=2.0).shape == (2, 8, 8, 1)


def test_a_run_does_not_go_on_with_another_kind_of_network(tiny, fit):
    fit(tiny)
    with pytest.raises(DiffitError, match="was trained with network=image, not transformer; "):
        fit(small_recipe(tiny))


def test_info_tells_blocks_and_tokens():
    network = TransformerConfig(image_size=(32, 64), block="dit", num_classes=10)
    lines = describe(replace(preset("mnist"), network=network)).splitlines()
    assert lines[0].startswith("mnist: DiT for mnist, ")
    assert lines[1] == "  12 blocks on 16x32 tokens of 384 channels, 6 heads; a token is 2x2 of 32x64, 4 channels"
