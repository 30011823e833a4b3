"""Each fast path on a CPU equals the plain formula: values and gradients."""

import pytest
import torch
import torch.nn.functional as F

from diffit_lib.models.layers import Linear, Upsample, attention, dropout, gelu, linear_gelu, pointwise, upsample_conv

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
PRECISIONS = pytest.mark.parametrize("dtype", TOLERANCE)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """The fast paths are taken on every CPU that can, also where they are not the faster ones."""
    monkeypatch.setattr("diffit_lib.models.layers.AVX2", False)
    monkeypatch.setattr("diffit_lib.models.layers.LEAST_ELEMENTS", 0)
    monkeypatch.setattr("diffit_lib.models.layers.PART", 1000)


def plain_upsample_conv(x, weight, bias):
    """What `upsample_conv` stands for."""
    return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)


def assert_same_with_gradients(ours, plain, *inputs):
    """Both functions of the inputs (None stays None), and the gradients of a random sum of their values."""
    answers = []
    for function in (ours, plain):
        leaves = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
        out = function(*leaves)
        (out * torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))).sum().backward()
        answers.append([out, *(leaf.grad for leaf in leaves if leaf is not None)])
    for actual, expected in zip(*answers, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[out.dtype] * expected.abs().max().item())


@PRECISIONS
@pytest.mark.parametrize("rows", [(2, 4, 4), (3, 16), (16, 1, 2)])
def test_pointwise_convolution_is_the_linear_layer(dtype, rows):
    torch.manual_seed(0)
    assert_same_with_gradients(
        pointwise, F.linear, *(torch.randn(size, dtype=dtype) for size in ((*rows, 12), (20, 12), (20,)))
    )


@pytest.mark.parametrize("shape", [(5, 8), (16, 8), (3, 5, 8), (4, 4, 8), (0, 4, 8)])
def test_linear_takes_every_shape_and_strides(shape):
    torch.manual_seed(0)
    layer = Linear(8, 6)
    for x in (torch.randn(shape), torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))):
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=0, atol=1e-6)


def plain_gelu(x):
    """What `gelu` stands for."""
    return F.gelu(x, approximate="tanh")


@PRECISIONS
def test_gelu_is_that_of_torch_at_every_size_of_its_input(dtype):
    x = torch.cat([torch.linspace(-8, 8, 1001), torch.tensor([-1e12, -100.0, 0.0, 100.0])]).to(dtype)
    assert_same_with_gradients(gelu, plain_gelu, x)
    torch.testing.assert_close(gelu(1e12 * x), plain_gelu(1e12 * x), rtol=1e-6, atol=1e-6)
    assert_same_with_gradients(gelu, plain_gelu, torch.randn(9, 4, 200, dtype=dtype).transpose(0, 1))


def test_gelu_has_second_derivatives_and_may_be_changed_in_place():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(gelu, x)
    torch.testing.assert_close(gelu(x).add_(1), plain_gelu(x) + 1)


def test_gelu_is_torchs_own_in_half_precision_and_within_transforms():
    x = torch.randn(3, 5)
    for half in (x.bfloat16(), x.half()):
        assert torch.equal(gelu(half), plain_gelu(half))
    second = torch.func.jacfwd(torch.func.jacfwd(gelu))(x[0])
    torch.testing.assert_close(second, torch.func.hessian(plain_gelu)(x[0]))
    compiled = torch.compile(gelu, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), plain_gelu(x))


@PRECISIONS
@pytest.mark.parametrize("rows", [(2, 4, 4), (3, 5)])
def test_gelu_within_the_linear_layer_is_gelu_after_it(dtype, rows):
    torch.manual_seed(0)
    layer, x = Linear(12, 20).to(dtype), torch.randn(*rows, 12, dtype=dtype, requires_grad=True)
    expected = F.gelu(F.linear(x, layer.weight, layer.bias), approximate="tanh")
    with torch.no_grad():
        torch.testing.assert_close(linear_gelu(layer, x), expected, rtol=0, atol=TOLERANCE[dtype])
    found = linear_gelu(layer, x)  # with gradients
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])
    gradients = [torch.autograd.grad(out.sum(), [x, *layer.parameters()]) for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=100 * TOLERANCE[dtype])


def test_linear_layers_in_bf16_are_as_exact_as_bf16():
    torch.manual_seed(0)
    layer, x = Linear(12, 20), torch.randn(4, 16, 12, requires_grad=True)
    exact = F.linear(x, layer.weight, layer.bias)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        with torch.no_grad():
            activated = linear_gelu(layer, x)
    assert found.dtype == activated.dtype == torch.bfloat16
    answers = [(out, *torch.autograd.grad(out.float().sum(), [x, *layer.parameters()])) for out in (found, exact)]
    for actual, expected in zip(
        (activated, *answers[0]), (F.gelu(exact, approximate="tanh"), *answers[1]), strict=True
    ):
        assert (
            actual - expected
        ).abs().max() < 2**-7 * expected.abs().max()  # the next bf16 number after 1 is 1 + 2^-7


@PRECISIONS
@pytest.mark.parametrize("tokens", [16, 100])
@pytest.mark.parametrize("biased", [True, False])
def test_attention_is_the_fused_kernel_of_torch(dtype, tokens, biased):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, tokens, 8, dtype=dtype) for _ in range(3))
    bias = torch.randn(2, tokens, tokens, dtype=dtype) if biased else None

    def fused(q, k, v, bias):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias[None])

    assert_same_with_gradients(attention, fused, q, k, v, bias)
    with torch.no_grad():
        expected = fused(q, k, v, bias)
        torch.testing.assert_close(attention(q, k, v, bias), expected, rtol=0, atol=TOLERANCE[dtype])


def test_attention_in_bf16_is_as_exact_as_bf16():
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 100, 8).bfloat16().requires_grad_() for _ in range(3))
    bias = torch.randn(2, 100, 100)
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=bias.double()[None])
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(q, k, v, bias)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 2**-8  # the step from 1 to the next bf16 number is 2^-7


@PRECISIONS
@pytest.mark.parametrize("biased", [True, False])
def test_transposed_convolution_is_upsampling_and_a_convolution(dtype, biased):
    torch.manual_seed(0)
    sizes = (2, 5, 3, 4), (7, 5, 3, 3), (7,) if biased else None
    tensors = (None if size is None else torch.randn(size, dtype=dtype) for size in sizes)
    assert_same_with_gradients(upsample_conv, plain_upsample_conv, *tensors)


def test_upsampling_takes_the_fast_path_for_many_pixels_in_float32_and_keeps_the_order_in_memory(monkeypatch):
    torch.manual_seed(0)
    layer, x = Upsample(8), torch.randn(4, 8, 8, 8).to(memory_format=torch.channels_last)
    calls = []
    monkeypatch.setattr(
        "diffit_lib.models.layers.upsample_conv", lambda *inputs: calls.append(inputs) or upsample_conv(*inputs)
    )
    exact = plain_upsample_conv(x, layer.conv.weight, layer.conv.bias)
    torch.testing.assert_close(layer(x[:1]), exact[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert not calls  # few pixels; bf16
    assert layer(x).is_contiguous(memory_format=torch.channels_last)
    assert len(calls) == 1


@pytest.mark.parametrize("p", [0.13, 0.5])
def test_dropout_keeps_its_share_and_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1000, 1001, requires_grad=True)
    out = dropout(x, p)
    out.sum().backward()
    kept = out.detach() != 0
    assert kept.float().mean() == pytest.approx(1 - p, abs=0.002)  # 4 standard errors
    assert (kept.float().mean(0) - (1 - p)).abs().max() < 0.08  # in every column
    torch.testing.assert_close(out.detach(), kept / (1 - p))
    assert torch.equal(x.grad, out.detach())
    torch.manual_seed(0)
    assert torch.equal(dropout(x, p), out)
