"""The published latent networks written out in float64, straight from their tensors by their published names."""

import math

import torch


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].double().T + tensors[f"{name}.bias"].double()


def norm(x):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def silu(x):
    return x / (1 + (-x).exp())


def gelu(x):
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def condition(tensors, t, label):
    """t (B,), label (B,) -> c (B, C): the time MLP over cosines and sines, plus a row of the label table."""
    frequency = 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    angle = t.double()[:, None] * frequency
    time = linear(tensors, "t_embedder.mlp.0", torch.cat([angle.cos(), angle.sin()], dim=1))
    time = linear(tensors, "t_embedder.mlp.2", silu(time))
    return time + tensors["y_embedder.embedding_table.weight"].double()[label]


def relative_bias(table, rows, columns):
    """((2 rows - 1)(2 columns - 1), h) -> (h, N, N), pair by pair."""
    row, column = torch.arange(rows * columns) // columns, torch.arange(rows * columns) % columns
    down, right = row[:, None] - row + rows - 1, column[:, None] - column + columns - 1
    return table.double()[down * (2 * columns - 1) + right].movedim(-1, 0)


def attention(tensors, name, x, heads, shift, bias):
    """x (B, N, C), shift of q, k and v (B, 1, 3C) or 0, bias (h, N, N) or 0 -> (B, N, C), head by head."""
    q, k, v = (linear(tensors, f"{name}.qkv", x) + shift).chunk(3, dim=-1)
    size, out = x.shape[-1] // heads, []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)
        logits = logits + (bias[head] if torch.is_tensor(bias) else bias)
        out.append(logits.softmax(-1) @ v[..., part])
    return linear(tensors, f"{name}.proj", torch.cat(out, dim=-1))


def mlp(tensors, name, x):
    return linear(tensors, f"{name}.fc2", gelu(linear(tensors, f"{name}.fc1", x)))


def diffit_block(tensors, name, x, c, heads, grid):
    shift = linear(tensors, f"{name}.attn.qkv_temb", c)[:, None]
    bias = relative_bias(tensors[f"{name}.attn.relative_position_bias_table"], *grid)
    x = x + attention(tensors, f"{name}.attn", norm(x), heads, shift, bias)
    return x + mlp(tensors, f"{name}.mlp", norm(x))


def dit_block(tensors, name, x, c, heads, grid):
    modulation = linear(tensors, f"{name}.adaLN_modulation.1", silu(c))[:, None]
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
    x = x + gate1 * attention(tensors, f"{name}.attn", norm(x) * (1 + scale1) + shift1, heads, 0.0, 0.0)
    return x + gate2 * mlp(tensors, f"{name}.mlp", norm(x) * (1 + scale2) + shift2)


@torch.no_grad()
def published_network(tensors, x, t, label, heads):
    """x (B, C, H, W), t (B,), label (B,) -> (B, 2C, H, W), all in float64; DiT where there is an adaLN."""
    kernel = tensors["x_embedder.proj.weight"].double()
    patch, (batch, _, height, width) = kernel.shape[-1], x.shape
    rows, columns = height // patch, width // patch
    tokens = []
    for row in range(rows):
        for column in range(columns):
            square = x.double()[:, :, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
            tokens.append(torch.einsum("bchw,ochw->bo", square, kernel))
    x = torch.stack(tokens, dim=1) + tensors["x_embedder.proj.bias"].double() + tensors["pos_embed"].double()
    c = condition(tensors, t, label)
    dit = "final_layer.adaLN_modulation.1.weight" in tensors
    for number in range(sum(name.endswith("mlp.fc1.weight") for name in tensors)):
        x = (dit_block if dit else diffit_block)(tensors, f"blocks.{number}", x, c, heads, (rows, columns))
    if dit:
        shift, scale = linear(tensors, "final_layer.adaLN_modulation.1", silu(c))[:, None].chunk(2, dim=-1)
        x = norm(x) * (1 + scale) + shift
    else:
        x = silu(norm(x))
    x = linear(tensors, "final_layer.linear", x)
    channels = x.shape[-1] // patch**2
    out = torch.zeros(batch, channels, height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            token, place = row // patch * columns + column // patch, row % patch * patch + column % patch
            out[:, :, row, column] = x[:, token, place * channels : (place + 1) * channels]
    return out
