"""The image-space network: sizes, wiring, labels, gradients, and what must not change its output."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diffit_lib.config.models import ImageNetworkConfig
from diffit_lib.config.presets import PRESETS, preset
from diffit_lib.models import build_network
from diffit_lib.models.blocks import TMSA, DiffiTBlock
from diffit_lib.models.cost import denoiser_cost

SMALL = ImageNetworkConfig(
    image_size=(8, 16),
    in_channels=3,
    width=8,
    channel_mult=(1, 2, 4),
    num_blocks=2,
    num_heads=2,
    window_size=2,
    time_dim=16,
    num_classes=3,
    augment_dim=9,
)


def awake(config):
    """A network in evaluation mode with every parameter drawn anew, so that none is too small to matter."""
    torch.manual_seed(0)
    network = build_network(config)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return network.eval()


def inputs(config, batch=3):
    """Noisy images and their three labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *config.shape, generator=generator)
    augment = torch.randn(batch, 9, generator=generator)
    return x, torch.linspace(-1.5, 1.1, batch), torch.arange(batch) % 3, augment


def response(config, row, column):
    """(H, W): which output pixels feel a change of one input pixel, were there no statistics over whole maps."""
    network = awake(config).double()
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.forward = lambda maps: maps
    x, *labels = inputs(config)
    changed = x.clone()
    changed[:, 1, row, column] += 1
    return (network(changed.double(), *labels) - network(x.double(), *labels)).abs().amax((0, 1)) > 1e-12


def on_meta(config):
    """The network's shapes without its numbers: full size costs nothing."""
    with torch.device("meta"):
        return build_network(config)


@pytest.fixture
def network():
    return awake(SMALL)


@pytest.fixture
def out(network):
    with torch.no_grad():
        return network(*inputs(SMALL))


class TestSizes:
    @pytest.mark.parametrize("in_channels", [1, 3])
    @pytest.mark.parametrize(("image_size", "window_size"), [((8, 8), 4), ((8, 24), 2), ((24, 8), 2), ((4, 4), 8)])
    def test_output_has_the_shape_of_the_input(self, in_channels, image_size, window_size):
        config = replace(SMALL, in_channels=in_channels, image_size=image_size, window_size=window_size)
        x, *labels = inputs(config)
        out = awake(config)(x, *labels)
        assert out.shape == x.shape
        assert out.isfinite().all()

    @pytest.mark.parametrize(("patch", "image_size"), [(2, (8, 16)), (4, (32, 16)), (3, (12, 24))])
    def test_a_patch_changes_the_first_and_last_tensors_alone_and_the_maps(self, patch, image_size):
        folded = replace(SMALL, patch=patch, image_size=image_size, window_size=1)
        x, *labels = inputs(folded)
        assert awake(folded)(x, *labels).shape == x.shape
        shapes = (
            {n: p.shape for n, p in build_network(c).named_parameters()} for c in (replace(folded, patch=1), folded)
        )
        plain, other = shapes
        assert {n for n in plain if plain[n] != other[n]} == {"tokenizer.weight", "head.weight", "head.bias"}
        assert plain.keys() == other.keys()
        assert other["tokenizer.weight"][1] == other["head.bias"][0] == 3 * patch**2
        assert folded.map_sizes[0] == (image_size[0] // patch, image_size[1] // patch)

    def test_a_patch_of_2_makes_the_blocks_four_times_cheaper(self):
        config = replace(SMALL, image_size=(16, 16))
        cost, folded = (denoiser_cost(replace(config, patch=patch)).macs for patch in (1, 2))
        assert 0.22 < folded / cost < 0.3

    @torch.no_grad()
    def test_ffhq64_has_every_map_of_table_s2(self):
        config = replace(preset("ffhq64").network, width=8, num_blocks=1)  # a sixteenth of the channels
        network, sizes = build_network(config), []
        rows = [network.tokenizer, *network.down, *network.up]
        rows += [blocks[-1] for blocks in (*network.encoder, *network.decoder)]
        for row in rows:
            row.register_forward_hook(lambda _, __, out: sizes.append((16 * out.shape[1], *out.shape[2:])))
        assert network(torch.zeros(1, 3, 64, 64), torch.zeros(1)).shape == (1, 3, 64, 64)
        assert sizes == [
            (128, 64, 64),  # tokenizer
            (128, 64, 64),
            (128, 32, 32),  # downsampler
            (256, 32, 32),
            (256, 16, 16),  # downsampler; the table's 128 is a slip, since it follows a level of 256
            (256, 16, 16),
            (256, 8, 8),  # downsampler
            (256, 8, 8),
            (256, 16, 16),  # upsampler
            (256, 16, 16),
            (256, 32, 32),  # upsampler
            (256, 32, 32),
            (256, 64, 64),  # upsampler
            (128, 64, 64),
        ]

    @pytest.mark.parametrize(("name", "levels"), [("ffhq64", 4), ("cifar10", 3)])
    def test_papers_presets_have_four_resblocks_per_level_and_path(self, name, levels):
        network = on_meta(preset(name).network)
        assert [len(blocks) for blocks in network.encoder] == [4] * levels
        assert [len(blocks) for blocks in network.decoder] == [4] * (levels - 1)

    @pytest.mark.parametrize(
        ("name", "low", "high"),
        [("cifar10", 28.65, 31.45), ("ffhq64", 44.75, 49.75), ("digits", 0, 1.2), ("mnist", 0, 4)],
    )
    def test_millions_of_parameters_lie_in_their_range(self, name, low, high):
        assert low <= sum(p.numel() for p in on_meta(preset(name).network).parameters()) / 1e6 <= high

    @pytest.mark.parametrize(
        "name", [name for name, experiment in PRESETS.items() if experiment.network.kind == "image"]
    )
    def test_attention_windows_are_those_of_the_configuration(self, name):
        network, windows = on_meta(preset(name).network), preset(name).network.windows
        for blocks, window in zip((*network.encoder, *network.decoder), (*windows, *windows[:-1]), strict=True):
            assert {layer.window for layer in blocks.modules() if isinstance(layer, TMSA)} == {window}


class TestInitialisation:
    def test_output_starts_near_zero(self):
        assert build_network(SMALL)(*inputs(SMALL)).abs().max() < 1e-3

    def test_every_diffit_block_starts_near_the_identity(self):
        blocks = [module for module in build_network(SMALL).modules() if isinstance(module, DiffiTBlock)]
        assert len(blocks) == 10
        for block in blocks:
            x = torch.randn(2, 4, 8, block.norm1.normalized_shape[0])
            torch.testing.assert_close(block(x, torch.randn(2, 16)), x, rtol=0, atol=1e-3)


class TestWiring:
    @pytest.mark.parametrize("label", [0, 1, 2], ids=["noise", "class", "augment"])
    @torch.no_grad()
    def test_every_label_matters_to_its_own_image_alone(self, network, out, label):
        x, *labels = inputs(SMALL)
        labels[label] = labels[label].clone()
        labels[label][1] += 1
        change = (network(x, *labels) - out).abs().amax((1, 2, 3))
        assert change[1] > 1e-2
        assert change[[0, 2]].tolist() == [0, 0]

    @torch.no_grad()
    def test_no_class_label_means_the_last_row_of_the_table(self, network):
        x, noise, *_ = inputs(SMALL)
        assert torch.equal(network(x, noise), network(x, noise, torch.full((3,), 3)))

    @torch.no_grad()
    def test_a_pixel_reaches_its_neighbourhood_and_no_further_on_one_level(self):
        """It sees, to each side: tokenizer 1 pixel, ResBlock 1, window 1, head 1."""
        moved = response(replace(SMALL, image_size=(12, 16), channel_mult=(1,), num_blocks=1), row=5, column=9)
        assert moved[3:8, 7:12].all()
        moved[1:10, 5:14] = False
        assert not moved.any()

    @torch.no_grad()
    def test_with_a_patch_of_2_a_pixel_reaches_its_patchs_neighbourhood(self):
        """Patches of 2x2: tokenizer, ResBlock, window 1 and head make 3 patches to each side."""
        network = replace(SMALL, image_size=(24, 32), channel_mult=(1,), num_blocks=1, window_size=1, patch=2)
        moved = response(network, row=11, column=17)  # in the patch of rows 10, 11 and columns 16, 17
        assert moved[4:18, 10:24].all()
        moved[4:18, 10:24] = False
        assert not moved.any()

    @torch.no_grad()
    def test_a_pixel_reaches_every_other_through_the_levels(self):
        assert response(SMALL, row=0, column=0).all()

    def test_every_tensor_gets_a_gradient_but_the_key_third_of_the_time_projection(self):
        network = awake(SMALL).double().train()
        x, noise, classes, augment = inputs(SMALL, batch=4)
        classes[3] = 3  # "no class" has a row of its own
        out = network(x.double(), noise, classes, augment)
        (out * torch.randn_like(out)).sum().backward()
        for name, parameter in network.named_parameters():
            inert = torch.zeros_like(parameter, dtype=torch.bool)
            if "qkv_temb" in name or name.endswith("qkv.bias"):
                inert.chunk(3)[1].fill_(True)
            assert (parameter.grad[inert].abs() < 1e-12).all(), name
            assert (parameter.grad[~inert] != 0).all(), name

    def test_checkpointing_recomputes_and_gives_equal_gradients(self):
        network, runs, gradients = awake(replace(SMALL, dropout=0.5)).train(), [], []
        network.encoder[0][0].conv.register_forward_hook(lambda *_: runs.append(network.checkpointing))
        for checkpointing in (False, True):
            network.checkpointing = checkpointing
            network.zero_grad()
            torch.manual_seed(0)
            network(*inputs(SMALL)).square().sum().backward()
            gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
        assert runs == [False, True, True]
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


class TestEvaluation:
    @torch.no_grad()
    def test_two_calls_are_equal_to_the_bit_and_dropout_is_off(self, out):
        dropping = awake(replace(SMALL, dropout=0.5))
        assert torch.equal(dropping(*inputs(SMALL)), out)
        assert torch.equal(dropping(*inputs(SMALL)), out)
        assert not torch.equal(dropping.train()(*inputs(SMALL)), out)

    @torch.no_grad()
    def test_a_batch_equals_its_images_one_by_one(self, network, out):
        rows = zip(*(part.split(1) for part in inputs(SMALL)), strict=True)
        torch.testing.assert_close(out, torch.cat([network(*row) for row in rows]))

    @torch.no_grad()
    def test_memory_layout_of_the_images_changes_nothing(self, network, out):
        x, *labels = inputs(SMALL)
        assert torch.equal(network(x.contiguous(memory_format=torch.channels_last), *labels), out)

    @torch.no_grad()
    def test_autocast_stays_near_float32(self, network, out):
        with torch.autocast("cpu", torch.bfloat16):
            cast = network(*inputs(SMALL))
        assert (cast - out).square().mean() < 0.02**2 * out.square().mean()


class TestWhatTheSpecificationFixes:
    def test_the_head_is_norm_swish_convolution(self):
        network = build_network(preset("digits").network).eval()
        seen = {}
        network.head_norm.register_forward_hook(lambda _, inputs, output: seen.update(norm=output))
        network.head.register_forward_hook(lambda _, inputs, output: seen.update(head=inputs[0]))
        network(torch.randn(2, 1, 8, 8), torch.zeros(2))
        assert torch.allclose(seen["head"], seen["norm"] * seen["norm"].sigmoid(), atol=1e-6)

    def test_the_time_token_ends_in_swish_as_edms(self):
        network = build_network(preset("digits").network)
        assert isinstance(network.time_token.mlp[-1], torch.nn.SiLU)

    def test_the_mlp_has_the_configured_ratio(self):
        network = build_network(replace(preset("digits").network, mlp_ratio=2.0))
        assert {m.fc1.out_features / m.fc1.in_features for m in network.modules() if hasattr(m, "fc1")} == {2.0}
