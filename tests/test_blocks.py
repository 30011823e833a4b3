"""The bricks of DiffiT against loops over the paper's equations, in float64."""

import math

import pytest
import torch
from torch import nn

from diffit_lib.models.blocks import (
    MLP,
    TMSA,
    DiffiTBlock,
    DiffiTResBlock,
    TimeToken,
    relative_position_index,
    sinusoid,
)
from diffit_lib.models.layers import group_norm

WINDOW, CHANNELS, HEADS, TIME = (2, 4), 6, 3, 5


@pytest.fixture(autouse=True)
def _double():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def awake(module):
    """The module with every parameter drawn anew, so that none is too small to matter."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.fixture
def layer():
    return awake(TMSA(CHANNELS, HEADS, WINDOW, TIME))


@pytest.fixture
def x():
    """Two maps of 2 x 3 windows."""
    return torch.randn(2, 4, 12, CHANNELS)


@pytest.fixture
def time():
    return torch.randn(2, TIME)


def tmsa_by_loops(layer, x, time):
    """Equations 3 to 6 one image, window, head and token at a time; q, k and v lie below one another in a matrix."""
    (height, width), size = layer.window, x.shape[-1] // layer.num_heads
    thirds = [[p.chunk(3)[i] for m in (layer.qkv, layer.qkv_temb) for p in (m.weight, m.bias)] for i in range(3)]
    cells = [(row, column) for row in range(height) for column in range(width)]
    out = torch.empty_like(x)
    for b in range(x.shape[0]):
        for top in range(0, x.shape[1], height):
            for left in range(0, x.shape[2], width):
                for head in range(layer.num_heads):
                    own = slice(head * size, (head + 1) * size)
                    q, k, v = (
                        [ws[own] @ x[b, top + r, left + c] + bs[own] + wt[own] @ time[b] + bt[own] for r, c in cells]
                        for ws, bs, wt, bt in thirds
                    )
                    for i, (row, column) in enumerate(cells):
                        logits = []
                        for j, (r, c) in enumerate(cells):
                            offset = (row - r + height - 1) * (2 * width - 1) + column - c + width - 1
                            bias = layer.relative_position_bias_table[offset, head]
                            logits.append(q[i] @ k[j] / math.sqrt(size) + bias)
                        out[b, top + row, left + column, own] = torch.stack(logits).softmax(0) @ torch.stack(v)
    return out @ layer.proj.weight.T + layer.proj.bias


def block_by_equations(block, x, time):
    """Equations 7 and 8, with the normalisation and the activation written out."""

    def norm(tokens, layer):
        centred = tokens - tokens.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * layer.weight + layer.bias if layer.elementwise_affine else scaled

    x_hat = tmsa_by_loops(block.attn, norm(x, block.norm1), time) + x
    hidden = norm(x_hat, block.norm2) @ block.mlp.fc1.weight.T + block.mlp.fc1.bias
    hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ block.mlp.fc2.weight.T + block.mlp.fc2.bias + x_hat


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


class TestTMSA:
    @pytest.mark.parametrize("num_heads", [1, HEADS])
    def test_equals_a_loop_over_windows_heads_and_tokens(self, x, time, num_heads):
        layer = awake(TMSA(CHANNELS, num_heads, WINDOW, TIME))
        assert_same(layer(x, time), tmsa_by_loops(layer, x, time))

    def test_memory_layout_of_the_map_changes_nothing(self, layer, x, time):
        channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        assert_same(layer(channels_first, time), layer(x, time))  # not to the bit: kernels sum each layout in its order

    @pytest.mark.parametrize(("part", "matters"), [("query", True), ("key", False), ("value", True)])
    @torch.no_grad()
    def test_key_third_of_time_projection_changes_nothing_and_the_others_do(self, layer, x, time, part, matters):
        before, third = layer(x, time), ["query", "key", "value"].index(part)
        for parameter in (layer.qkv_temb.weight, layer.qkv_temb.bias):
            parameter.chunk(3)[third].normal_(std=3.0)
        change = (layer(x, time) - before).abs().max()
        assert change > 0.1 if matters else change < 1e-12

    def test_every_number_gets_a_gradient_but_those_added_to_all_keys_alike(self, layer, x, time):
        (layer(x, time) * torch.randn_like(x)).sum().backward()
        for name, parameter in layer.named_parameters():
            inert = torch.zeros_like(parameter, dtype=torch.bool)
            if name in ("qkv_temb.weight", "qkv_temb.bias", "qkv.bias"):
                inert.chunk(3)[1].fill_(True)
            assert (parameter.grad[inert].abs() < 1e-12).all(), name
            assert (parameter.grad[~inert].abs() > 1e-9).all(), name

    def test_last_token_reaches_the_first_of_its_window_and_no_other_window(self, layer, x, time):
        changed = x.clone()
        changed[0, 1, 7] += 1  # the last token of the second window
        moved = (layer(changed, time) != layer(x, time)).any(-1)  # (B, H, W)
        own = torch.zeros_like(moved)
        own[0, 0:2, 4:8] = True
        assert torch.equal(moved, own)

    def test_shifting_the_map_by_whole_windows_shifts_the_output(self, layer, x, time):
        shift = {"shifts": WINDOW, "dims": (1, 2)}
        assert_same(layer(x.roll(**shift), time), layer(x, time).roll(**shift))

    def test_windows_of_one_token_leave_every_pixel_to_itself(self, x, time):
        layer = awake(TMSA(CHANNELS, HEADS, (1, 1), TIME))
        order = torch.randperm(4 * 12)
        shuffled = x.flatten(1, 2)[:, order].view_as(x)
        assert_same(layer(shuffled, time).flatten(1, 2), layer(x, time).flatten(1, 2)[:, order])

    @pytest.mark.parametrize("window", [(4, 4), (2, 3), (1, 4), (1, 1)])
    def test_relative_position_index_is_swins(self, window):
        height, width = window
        cells = [(row, column) for row in range(height) for column in range(width)]
        expected = [
            [(row - r + height - 1) * (2 * width - 1) + (column - c + width - 1) for r, c in cells]
            for row, column in cells
        ]
        assert relative_position_index(window).tolist() == expected

    def test_bias_of_the_state_dict_is_its_table_alone(self, layer):
        names = [name for name in layer.state_dict() if "position" in name]
        assert names == ["relative_position_bias_table"]
        assert layer.relative_position_bias_table.shape == (3 * 7, HEADS)


class TestBlocks:
    @pytest.mark.parametrize("affine", [False, True])
    def test_diffit_block_is_equations_7_and_8(self, x, time, affine):
        block = awake(DiffiTBlock(CHANNELS, HEADS, WINDOW, TIME, mlp_ratio=2, affine=affine))
        assert_same(block(x, time), block_by_equations(block, x, time))

    @pytest.mark.parametrize("out_channels", [12, 24])
    def test_resblock_is_equations_9_and_10_with_a_projection_where_channels_change(self, time, out_channels):
        block = awake(DiffiTResBlock(12, out_channels, HEADS, WINDOW, TIME, mlp_ratio=1))
        x = torch.randn(2, 12, 4, 8)
        groups = x.view(2, 3, 4, 4, 8)  # 3 groups of 4 channels
        centred = groups - groups.mean((2, 3, 4), keepdim=True)
        normed = (centred / (centred.square().mean((2, 3, 4), keepdim=True) + 1e-6).sqrt()).view_as(x)
        normed = normed * block.norm.weight.view(-1, 1, 1) + block.norm.bias.view(-1, 1, 1)
        x_hat = nn.functional.conv2d(normed / (1 + (-normed).exp()), block.conv.weight, block.conv.bias, padding=1)
        tokens = torch.stack([torch.stack([x_hat[:, :, r, c] for c in range(8)], 1) for r in range(4)], 1)
        skip = x
        if out_channels != 12:
            skip = torch.einsum("oi,bihw->bohw", block.skip.weight[:, :, 0, 0], x) + block.skip.bias.view(-1, 1, 1)
        expected = torch.einsum("bhwc->bchw", block_by_equations(block.block, tokens, time)) + skip
        assert_same(block(x, time), expected)

    def test_resblock_projects_only_where_channels_change(self):
        assert not list(DiffiTResBlock(8, 8, 2, WINDOW, TIME).skip.parameters())
        assert DiffiTResBlock(8, 12, 2, WINDOW, TIME).skip.weight.shape == (12, 8, 1, 1)

    @pytest.mark.parametrize(("channels", "groups"), [(128, 32), (256, 32), (384, 32), (48, 12), (144, 16), (8, 2)])
    def test_groups_are_edms_where_those_divide_the_channels(self, channels, groups):
        norm = group_norm(channels)
        assert (norm.num_groups, norm.eps) == (groups, 1e-6)

    def test_group_norm_is_exact_under_autocast(self):
        norm, x = group_norm(8), torch.randn(2, 8, 4, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(norm(x.bfloat16()), norm(x.bfloat16().float()))

    def test_dropout_acts_in_training_and_not_in_evaluation(self, x):
        torch.manual_seed(0)
        dropping = awake(MLP(CHANNELS, 4.0, 0.5))
        plain = MLP(CHANNELS, 4.0, 0.0)
        plain.load_state_dict(dropping.state_dict())
        assert not torch.equal(dropping(x), plain(x))
        assert torch.equal(dropping.eval()(x), plain(x))


class TestSinusoid:
    values = torch.tensor([-1.55, 0.0, 1.1, 37.5, 999.0])

    def test_edm_order_is_sine_then_cosine_down_to_exactly_one_ten_thousandth(self):
        frequencies = [1e4 ** -(i / 63) for i in range(64)]
        expected = [[f(v * w) for f in (math.sin, math.cos) for w in frequencies] for v in self.values.tolist()]
        embedding = sinusoid(self.values, 128, endpoint=True, cos_first=False).double()
        torch.testing.assert_close(embedding, torch.tensor(expected), rtol=0, atol=1e-4)  # float32 of up to 999

    def test_latent_order_is_cosine_then_sine_without_the_end_point(self):
        frequencies = [math.exp(-math.log(1e4) * i / 128) for i in range(128)]
        expected = [[f(v * w) for f in (math.cos, math.sin) for w in frequencies] for v in self.values.tolist()]
        embedding = sinusoid(self.values, 256, endpoint=False, cos_first=True).double()
        torch.testing.assert_close(embedding, torch.tensor(expected), rtol=0, atol=1e-4)


class TestTimeToken:
    noise, classes, augment = torch.tensor([-1.55, 1.1]), torch.tensor([0, 2]), torch.arange(18.0).view(2, 9) / 18

    def make(self, edm=True):
        return awake(TimeToken(TIME, 8, edm=edm, num_classes=3, augment_dim=9))

    @pytest.mark.parametrize(("edm", "std"), [(True, 1.0), (False, 0.02)])
    def test_classes_begin_at_edms_or_dits_deviation(self, edm, std):
        torch.manual_seed(0)
        assert TimeToken(64, 8, edm=edm, num_classes=99).classes.weight.std().item() == pytest.approx(std, rel=0.05)

    @pytest.mark.parametrize("edm", [True, False])
    def test_is_an_mlp_over_embedding_plus_augmentation_and_the_class_is_added_last(self, edm):
        token = self.make(edm)
        embedding = sinusoid(self.noise, 8, endpoint=edm, cos_first=not edm).double()
        hidden = (embedding + self.augment.double() @ token.augment.weight.T) @ token.mlp[0].weight.T
        hidden = nn.functional.silu(hidden + token.mlp[0].bias) @ token.mlp[2].weight.T + token.mlp[2].bias
        expected = (nn.functional.silu(hidden) if edm else hidden) + token.classes.weight[self.classes]
        assert_same(token(self.noise, self.classes, self.augment), expected)

    def test_no_label_means_the_last_row_of_the_table(self):
        token = self.make()
        assert torch.equal(token(self.noise), token(self.noise, torch.tensor([3, 3])))

    def test_is_float32_and_the_same_to_the_bit_under_autocast(self):
        token = self.make().float()
        with torch.autocast("cpu", torch.bfloat16):
            cast = token(self.noise, self.classes, self.augment)
        assert cast.dtype == torch.float32
        assert torch.equal(cast, token(self.noise, self.classes, self.augment))
