"""The exported page: its JavaScript against the library, number by number, and the page itself in a browser."""

import json
import math
import shutil
import subprocess

import numpy as np
import pytest
import torch

from diffit_lib import load
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import SeededNoise
from diffit_lib.viz import export

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")

READ = """
const part = (id) => html.match(new RegExp(`<script id="${id}"[^>]*>([^]*?)</script>`))[1];
const model = readModel(JSON.parse(part("model")), part("weights"), part("noise"));
"""


@pytest.fixture(scope="module")
def pipe():
    return load("digits", device="cpu", precision="32-true")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return export.export_page(tmp_path_factory.mktemp("page") / "page.html")


def run_js(page, code):
    """Run code beside the page's own modules and model; what it passes to `answer`, as Python values."""
    prelude = f'import {{ readFileSync }} from "node:fs";\nconst html = readFileSync({json.dumps(str(page))}, "utf8");'
    answer = "const answer = (value) => console.log(JSON.stringify(value));"
    source = "\n".join([prelude, export.script(*export.MODULES), READ, answer, code])
    done = subprocess.run(
        [NODE, "--input-type=module", "-"], input=source, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def flat(tensor):
    """(1, C, H, W) -> the page's order, channels last, as a float64 vector."""
    return tensor[0].permute(1, 2, 0).flatten().double().numpy()


def library_activations(pipe, x, sigma, label):
    """What each part of the network answers, by its name in the library, and what each attention layer was given."""
    outputs, inputs, hooks = {}, {}, []
    for name, module in pipe.denoiser.network.named_modules():
        hooks.append(module.register_forward_hook(lambda m, i, out, name=name: outputs.update({name: out})))
        if name.endswith(".attn"):
            hooks.append(module.register_forward_hook(lambda m, i, out, name=name: inputs.update({name: i})))
    with torch.no_grad():
        outputs["denoised"] = pipe.denoiser(x, torch.tensor([sigma], dtype=torch.float64), torch.tensor([label]))
    for hook in hooks:
        hook.remove()
    return outputs, inputs


def watch_js(x, sigma, label):
    return f"""
    const seen = {{}};
    const x = Float64Array.from({json.dumps(flat(x).tolist())});
    const watch = (name, values) => (seen[name] = [...values]);
    seen.denoised = [...denoise(model, x, {sigma}, {label}, {sigma}, watch)];
    answer(seen);
    """


@needs_node
@pytest.mark.parametrize(("seed", "sigma", "label"), [(0, 10.0, 3), (1, 1.0, 7), (2, 0.05, 10)])
def test_every_part_of_the_network_answers_as_in_the_library(pipe, page, seed, sigma, label):
    x = sigma * SeededNoise([seed], (1, 8, 8))().double()
    seen = run_js(page, watch_js(x, sigma, label))
    outputs, _ = library_activations(pipe, x, sigma, label)
    parts = [name for name in seen if not name.endswith(".attention")]
    assert len(parts) == 8  # tokenizer, three ResBlocks, down, up, head; the denoiser around them
    for name in parts:
        expected = flat(outputs[name])
        assert np.abs(np.array(seen[name]) - expected).max() <= 1e-4 * np.abs(expected).max(), name


@needs_node
def test_attention_is_that_of_a_direct_computation_in_float64(pipe, page):
    x = SeededNoise([3], (1, 8, 8))().double()
    seen = run_js(page, watch_js(x, 1.0, 5))
    _, inputs = library_activations(pipe, x, 1.0, 5)
    for name, (tokens, time, *_) in inputs.items():
        layer = pipe.denoiser.network.get_submodule(name)
        maps = np.array(seen[name.removesuffix(".block.attn") + ".attention"])
        expected = direct_attention(layer, tokens[0].double(), time[0].double())
        assert np.abs(maps - np.concatenate([e.flatten() for e in expected])).max() <= 1e-4
        assert np.abs(maps.reshape(-1, math.prod(layer.window)).sum(1) - 1).max() <= 1e-6


def direct_attention(layer, tokens, time):
    """Equations 3 to 6 in NumPy float64, window by window and head by head: a list of (N, N)."""
    weights = {name: value.detach().double().numpy() for name, value in layer.state_dict().items()}
    qkv = tokens.numpy() @ weights["qkv.weight"].T + weights["qkv.bias"]
    qkv = qkv + weights["qkv_temb.weight"] @ time.numpy() + weights["qkv_temb.bias"]
    (height, width, channels), (wh, ww) = tokens.shape, layer.window
    size = channels // layer.num_heads
    for top in range(0, height, wh):
        for left in range(0, width, ww):
            inside = qkv[top : top + wh, left : left + ww].reshape(wh * ww, -1)
            for head in range(layer.num_heads):
                q = inside[:, head * size : (head + 1) * size]
                k = inside[:, channels + head * size : channels + (head + 1) * size]
                logits = q @ k.T / size**0.5
                for i, j in np.ndindex(logits.shape):
                    down, right = i // ww - j // ww + wh - 1, i % ww - j % ww + ww - 1
                    logits[i, j] += weights["relative_position_bias_table"][down * (2 * ww - 1) + right, head]
                shares = np.exp(logits)
                yield shares / shares.sum(1, keepdims=True)


@needs_node
@pytest.mark.parametrize(("steps", "guidance"), [(None, 1.0), (32, 1.0), (7, 2.5)])
def test_pictures_are_the_library_s_within_2_of_255(pipe, page, steps, guidance):
    seeds, labels = list(range(0, 64, 5)), [seed % 10 for seed in range(0, 64, 5)]
    steps = steps or pipe.sampling().steps
    finals = run_js(
        page,
        f"""
        const labels = {labels};
        answer({seeds}.map((seed, n) => {{
          const settings = {{ label: labels[n], steps: {steps}, guidance: {guidance} }};
          const states = [...heun(model, settings, (k) => model.noise(seed, k))];
          return [...states.at(-1).x];
        }}));
        """,
    )
    drawn = ((np.array(finals) + 1) * 127.5).round().clip(0, 255)
    expected = pipe(seeds, labels, steps=steps, guidance=guidance).reshape(len(seeds), -1).astype(float)
    assert (np.abs(drawn - expected) <= 2).mean() >= 0.99
