"""DINOv2 and CLIP at random weights, and the numbers in their features, against the published formulas in NumPy."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from diffit_lib.evaluation import vision
from diffit_lib.evaluation.evaluator import NetworkEvaluator
from diffit_lib.evaluation.metrics import (
    cmmd,
    density_coverage,
    frechet_numbers,
    mmd,
    moments,
    reference_statistics,
    resamples,
    vendi_score,
)
from diffit_lib.evaluation.provenance import Provenance
from diffit_lib.evaluation.vision import VisionExtractor, clip_network, dinov2_network, load_vision
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import sha256

WIDTH, DEPTH = 128, 2


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(count, size=(40, 48), seed=0):
    return torch.randint(256, (count, 3, *size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def dinov2_tensors():
    """Random tensors by DINOv2's published names."""
    shapes = {"cls_token": (1, 1, WIDTH), "mask_token": (1, WIDTH), "pos_embed": (1, 37 * 37 + 1, WIDTH)}
    shapes |= {"patch_embed.proj.weight": (WIDTH, 3, 14, 14), "patch_embed.proj.bias": (WIDTH,)}
    for block in range(DEPTH):
        layers = {"attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH)}
        layers |= {"mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH)}
        for layer, shape in layers.items():
            shapes |= {f"blocks.{block}.{layer}.weight": shape, f"blocks.{block}.{layer}.bias": shape[:1]}
        shapes |= {f"blocks.{block}.norm{k}.{kind}": (WIDTH,) for k in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"blocks.{block}.ls{k}.gamma": (WIDTH,) for k in (1, 2)}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    return {name: random(*shape, seed=k, scale=0.2) for k, (name, shape) in enumerate(shapes.items())}


def clip_tensors(patch=14, grid=24):
    """Random tensors by CLIP's published names, its image half and one of the text's."""
    shapes = {"class_embedding": (WIDTH,), "positional_embedding": (grid**2 + 1, WIDTH), "proj": (WIDTH, 48)}
    shapes |= {"conv1.weight": (WIDTH, 3, patch, patch)}
    shapes |= {f"{norm}.{kind}": (WIDTH,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    for block in range(DEPTH):
        name = f"transformer.resblocks.{block}"
        shapes |= {f"{name}.ln_{k}.{kind}": (WIDTH,) for k in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"{name}.attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{name}.attn.in_proj_bias": (3 * WIDTH,)}
        layers = {"attn.out_proj": (WIDTH, WIDTH), "mlp.c_fc": (4 * WIDTH, WIDTH), "mlp.c_proj": (WIDTH, 4 * WIDTH)}
        for layer, shape in layers.items():
            shapes |= {f"{name}.{layer}.weight": shape, f"{name}.{layer}.bias": shape[:1]}
    tensors = {f"visual.{name}": random(*shape, seed=k, scale=0.2) for k, (name, shape) in enumerate(shapes.items())}
    return tensors | {"token_embedding.weight": random(5, 8)}


def norm(x, t, name, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * t[f"{name}.weight"] + t[f"{name}.bias"]


def attention(x, weight, bias, heads=WIDTH // 64):
    q, k, v = np.split(x @ weight.T + bias, 3, axis=-1)
    parts = []
    for part in (slice(64 * h, 64 * h + 64) for h in range(heads)):
        logits = q[..., part] @ k[..., part].swapaxes(-1, -2) / 8
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        parts.append(weights / weights.sum(-1, keepdims=True) @ v[..., part])
    return np.concatenate(parts, -1)


def patches(images, kernel):
    """(B, 3, H, W) -> tokens, row by row."""
    size, (batch, _, height, width) = kernel.shape[-1], images.shape
    cut = images.reshape(batch, 3, height // size, size, width // size, size).transpose(0, 2, 4, 1, 3, 5)
    return cut.reshape(batch, -1, 3 * size * size) @ kernel.reshape(len(kernel), -1).T


def scaled(images, mean, std):
    return (images / 255 - np.array(mean).reshape(3, 1, 1)) / np.array(std).reshape(3, 1, 1)


def published_dinov2(tensors, images):
    """DINOv2 with its layer scales, float64, of images that Pillow resizes."""
    t = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    small = [Image.fromarray(x.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC) for x in images]
    pixels = scaled(np.stack([np.asarray(x) for x in small]).transpose(0, 3, 1, 2), *vision.IMAGENET)
    x = patches(pixels, t["patch_embed.proj.weight"]) + t["patch_embed.proj.bias"]
    table = tensors["pos_embed"][:, 1:].double().view(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
    places = torch.nn.functional.interpolate(table, scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic")
    x = x + places.flatten(2).transpose(1, 2).numpy()
    first = (t["cls_token"] + t["pos_embed"][:, :1]).repeat(len(x), 0)
    x = np.concatenate([first, x], 1)
    for block in (f"blocks.{k}" for k in range(DEPTH)):
        inside = norm(x, t, f"{block}.norm1", 1e-6)
        seen = attention(inside, t[f"{block}.attn.qkv.weight"], t[f"{block}.attn.qkv.bias"])
        seen = seen @ t[f"{block}.attn.proj.weight"].T + t[f"{block}.attn.proj.bias"]
        x = x + seen * t[f"{block}.ls1.gamma"]
        inside = norm(x, t, f"{block}.norm2", 1e-6) @ t[f"{block}.mlp.fc1.weight"].T + t[f"{block}.mlp.fc1.bias"]
        inside = inside / 2 * (1 + np.vectorize(math.erf)(inside / math.sqrt(2)))
        x = x + (inside @ t[f"{block}.mlp.fc2.weight"].T + t[f"{block}.mlp.fc2.bias"]) * t[f"{block}.ls2.gamma"]
    return norm(x, t, "norm", 1e-6)[:, 0]


def published_clip(tensors, images):
    """CLIP's image embeddings of length 1, float64."""
    t = {name.removeprefix("visual."): tensor.double().numpy() for name, tensor in tensors.items()}
    large = torch.nn.functional.interpolate(images.double(), (336, 336), mode="bicubic").numpy()
    x = patches(scaled(large, *vision.LAION), t["conv1.weight"])
    first = np.broadcast_to(t["class_embedding"], (len(x), 1, WIDTH))
    x = norm(np.concatenate([first, x], 1) + t["positional_embedding"], t, "ln_pre", 1e-5)
    for block in (f"transformer.resblocks.{k}" for k in range(DEPTH)):
        inside = norm(x, t, f"{block}.ln_1", 1e-5)
        seen = attention(inside, t[f"{block}.attn.in_proj_weight"], t[f"{block}.attn.in_proj_bias"])
        x = x + seen @ t[f"{block}.attn.out_proj.weight"].T + t[f"{block}.attn.out_proj.bias"]
        inside = norm(x, t, f"{block}.ln_2", 1e-5) @ t[f"{block}.mlp.c_fc.weight"].T + t[f"{block}.mlp.c_fc.bias"]
        inside = inside / (1 + np.exp(-1.702 * inside))
        x = x + inside @ t[f"{block}.mlp.c_proj.weight"].T + t[f"{block}.mlp.c_proj.bias"]
    x = norm(x[:, 0], t, "ln_post", 1e-5) @ t["proj"]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_dinov2_is_the_published_network():
    network = VisionExtractor(dinov2_network(dinov2_tensors(), "here"), "dinov2", WIDTH, "random")
    expected = published_dinov2(dinov2_tensors(), pictures(3))
    error = np.abs(network.features(pictures(3)).numpy() - expected).max() / np.abs(expected).max()
    assert error < 1e-3
    grey = pictures(3)[:, :1]
    assert torch.equal(network.features(grey), network.features(grey.expand(-1, 3, -1, -1)))


def test_clip_is_the_published_network():
    network = VisionExtractor(clip_network(clip_tensors()), "clip", 48, "random")
    found = network.features(pictures(2))
    np.testing.assert_allclose(found.numpy(), published_clip(clip_tensors(), pictures(2)), atol=1e-3 * 48**-0.5)


def test_dinov2_is_read_from_its_file_alone(tmp_path, monkeypatch):
    path, whole = tmp_path / "dinov2.pth", dinov2_tensors()
    torch.save(whole, path)
    with pytest.raises(DiffitError, match=r"has \(blocks, width\) \(2, 128\), dinov2 \(24, 1024\); download https"):
        load_vision("dinov2", path)
    monkeypatch.setitem(vision.DINOV2, "dinov2", ("vitl14", WIDTH, DEPTH))
    assert load_vision("dinov2", path).checksum == sha256(path)[:16]
    for change, says in (
        ({"norm.bias": None}, "lacks tensor 'encoder.ln.bias'"),
        ({"pos_embed": None}, "lacks tensor 'pos_embed'"),
        ({"cls_token": None}, "lacks tensor 'cls_token'"),
        ({"extra": torch.ones(1)}, "has a spare tensor 'extra'"),
        ({"norm.bias": torch.ones(3)}, r"tensor 'encoder.ln.bias' of shape \(3,\)"),
    ):
        torch.save({k: v for k, v in (whole | change).items() if v is not None}, path)
        with pytest.raises(DiffitError, match=says) as error:
            load_vision("dinov2", path)
        assert "\n" not in str(error.value)
    with pytest.raises(DiffitError, match="there are no DINOv2 weights at"):
        load_vision("dinov2-b", tmp_path / "absent.pth")


def test_clip_of_another_checksum_is_never_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / "clip.pt").write_bytes(b"other")
    says = r"clip\.pt is not the published CLIP \(SHA-256 d9298a10\.\.\., not 3035c92b\.\.\.\); delete it and download"
    with pytest.raises(DiffitError, match=says):
        load_vision("clip", tmp_path / "clip.pt")


X, Y = random(70, 12, seed=1), 1.3 * random(90, 12, seed=2) + 0.2


def test_cmmd_is_the_published_formula():
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (X.double().numpy(), Y.double().numpy()))

    def kernel(a, b):
        return np.mean([[math.exp(-((p - q) ** 2).sum() / 200) for q in b] for p in a])

    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert cmmd(torch.from_numpy(x), torch.from_numpy(y))["cmmd"] == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_and_its_interval_are_those_of_the_formula():
    mean, covariance = moments(Y)
    for features in (X, X[:10]):  # more and fewer images than features

        def by_hand(x):
            mu, sigma = x.mean(0), np.cov(x.T)
            root = scipy.linalg.sqrtm(sigma @ np.cov(Y.double().numpy().T)).real
            other = np.cov(Y.double().numpy().T)
            return ((mu - Y.double().numpy().mean(0)) ** 2).sum() + np.trace(sigma + other - 2 * root)

        found, x = frechet_numbers("fd", features, mean, covariance), features.double().numpy()
        again = [by_hand(x[part.numpy()]) for part in resamples(len(x))]
        assert found["fd"] == pytest.approx(by_hand(x), rel=1e-3)
        assert found["fd_plus_minus"] == pytest.approx(1.96 * np.std(again, ddof=1), rel=1e-3)


def test_interval_of_a_distance_holds_95_of_100_new_samples():
    mean, covariance = moments(1.2 * random(5000, 16, seed=3))
    values = [frechet_numbers("fd", random(300, 16, seed=k), mean, covariance) for k in range(10, 60)]
    spread = 1.96 * np.std([value["fd"] for value in values])
    assert np.mean([value["fd_plus_minus"] for value in values]) == pytest.approx(spread, rel=0.35)


def test_interval_of_a_discrepancy_is_that_of_resampling():
    def kernel(a, b):
        return (a @ b.T / 12 + 1) ** 3

    value, interval = mmd(X, Y, kernel)
    x, y = X.double(), Y.double()
    again = [
        float(kernel(x[p], x[p]).mean() + kernel(y, y).mean() - 2 * kernel(x[p], y).mean())
        for p in (torch.arange(70), *resamples(70))
    ]
    assert value == pytest.approx(again[0], rel=1e-9)
    assert interval == pytest.approx(1.96 * np.std(again[1:], ddof=1), rel=1e-6)


def test_density_and_coverage_are_the_published_formulas():
    def distance(a, b):
        return np.sqrt(((a - b) ** 2).sum())

    x, y = X.double().numpy(), Y.double().numpy()
    radius = [sorted(distance(a, b) for b in y)[5] for a in y]
    inside = np.array([[distance(a, b) < r for b in x] for a, r in zip(y, radius, strict=True)])
    found = density_coverage(X, Y)
    assert found["density"] == pytest.approx(inside.sum() / (5 * 70), rel=1e-3)
    assert found["coverage"] == pytest.approx(inside.any(1).mean(), rel=1e-3)


def test_vendi_score_is_the_published_formula_and_counts_different_images():
    for features in (X, X[:8]):  # more and fewer than features
        unit = features.double().numpy()
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        values = np.linalg.eigvalsh(unit @ unit.T / len(unit))
        values = values[values > 1e-12]
        assert vendi_score(features) == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-3)
    assert vendi_score(torch.eye(6).repeat(5, 1)) == pytest.approx(6)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("dinov2", {"fd_dinov2", "precision", "recall", "density", "coverage", "vendi_score"}),
        ("dinov2-b", {"fd_dinov2_b", "precision", "recall", "density", "coverage", "vendi_score"}),
        ("clip", {"cmmd"}),
    ],
)
def test_each_network_gives_its_own_numbers(name, keys, monkeypatch):
    monkeypatch.setitem(vision.PREPARE, name, lambda images: images[:, :, ::8, ::8].float())
    network = VisionExtractor(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(90, 8)), name, 8, "random")
    reference = reference_statistics(pictures(30, seed=4), network)
    numbers = NetworkEvaluator(reference, network)([pictures(30)], None, Provenance())
    assert {key for key in numbers if not key.endswith("_plus_minus")} - {"stamp", "warnings"} == keys
    assert all(f"{key}_plus_minus" in numbers for key in keys & {"fd_dinov2", "fd_dinov2_b", "cmmd"})
    if name == "clip":
        with pytest.raises(DiffitError, match="CMMD needs images, and a holds statistics alone"):
            NetworkEvaluator(reference._replace(features=None), network, "a")([pictures(30)], None, Provenance())


def test_a_file_of_other_shapes_is_one_line(tmp_path):
    tensors = {"cls_token": torch.zeros(1, 1, 768), "pos_embed": torch.zeros(1, 4, 768)}
    tensors |= {"patch_embed.proj.weight": torch.zeros(768, 3, 14, 14)}
    tensors |= {f"blocks.{block}.ls1.gamma": torch.ones(768) for block in range(12)}
    torch.save(tensors, tmp_path / "dino.pth")
    with pytest.raises(DiffitError, match=r"dino\.pth has tensors of other shapes than dinov2-b; download https://"):
        load_vision("dinov2-b", tmp_path / "dino.pth")
