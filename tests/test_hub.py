"""Weights that others published: every tensor's place, their formulas, what is refused, what they are told with."""

import math
import resource
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from published_formulas import published_network
from safetensors.torch import save_file

from diffit_lib.checkpoints import hub as hub
from diffit_lib.checkpoints.hub import HUB_MODELS
from diffit_lib.checkpoints.published import our_name
from diffit_lib.checkpoints.weights import build_denoiser, load_weights, warm_start
from diffit_lib.cli.info import info
from diffit_lib.data.folders import imagenet_names
from diffit_lib.models import build_network
from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import SeededNoise

NVIDIA, META = "nvidia/diffit-256", "meta/dit-xl-2-256"


def published_shapes(block, tokens=256, width=1152, depth=28, heads=16, classes=1000, rows=32):
    """Name and shape of every tensor of a published file."""
    side = math.isqrt(tokens)
    shapes = {
        "pos_embed": (1, tokens, width),
        "x_embedder.proj.weight": (width, 4, 2, 2),
        "x_embedder.proj.bias": (width,),
        "t_embedder.mlp.0.weight": (width, 256),
        "t_embedder.mlp.0.bias": (width,),
        "t_embedder.mlp.2.weight": (width, width),
        "t_embedder.mlp.2.bias": (width,),
        "y_embedder.embedding_table.weight": (classes + 1, width),
        "final_layer.linear.weight": (rows, width),
        "final_layer.linear.bias": (rows,),
    }
    if block == "dit":
        shapes["final_layer.adaLN_modulation.1.weight"] = (2 * width, width)
        shapes["final_layer.adaLN_modulation.1.bias"] = (2 * width,)
    for number in range(depth):
        name = f"blocks.{number}"
        linears = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        linears |= {"adaLN_modulation.1": (6, 1)} if block == "dit" else {"attn.qkv_temb": (3, 1)}
        for linear, (out_features, in_features) in linears.items():
            shapes[f"{name}.{linear}.weight"] = (out_features * width, in_features * width)
            shapes[f"{name}.{linear}.bias"] = (out_features * width,)
        if block == "diffit":
            shapes[f"{name}.attn.relative_position_bias_table"] = ((2 * side - 1) ** 2, heads)
    return shapes


def published_tensors(shapes, indices=0):
    """Normal numbers of these shapes, and index buffers where the file is to have them."""
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.02 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in [name for name in shapes if name.endswith("bias_table")] * bool(indices):
        index = name.replace("bias_table", "index")
        tensors[index] = torch.zeros(indices, indices, dtype=torch.int64)
    return tensors


def check_answers(denoiser, tensors, heads, side, batch=2):
    """The network's answers are those of the formulas in float64."""
    x = torch.randn(batch, 4, side, side, generator=torch.Generator().manual_seed(1))
    t, label = torch.tensor([999.0, 250.0])[:batch], torch.tensor([207, 1000])[:batch]
    expected = published_network(tensors, x, t, label, heads)
    with torch.no_grad():
        answer = denoiser.network.eval()(x, t, label)
    assert (answer - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("name", HUB_MODELS)
def test_every_name_and_shape_is_the_published_files(name):
    network = HUB_MODELS[name].experiment.network
    with torch.device("meta"):
        state = build_network(network).state_dict()
    theirs = published_shapes(network.block, network.grid[0] ** 2, rows=4 * network.out_channels)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {our_name(n): s for n, s in theirs.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [NVIDIA, META])
def test_at_full_size_the_file_loads_and_answers_as_its_formulas(name, tmp_path):
    tensors = published_tensors(published_shapes(HUB_MODELS[name].experiment.network.block), indices=256)
    save_file(tensors, tmp_path / "full.safetensors")
    pipe = load(name, file=tmp_path / "full.safetensors", device="cpu")
    (tmp_path / "full.safetensors").unlink()  # it stays mapped, and not behind
    check_answers(pipe.denoiser, tensors, heads=16, side=32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 12e6  # kilobytes


@pytest.mark.parametrize("name", ["nvidia/diffit-512", "meta/dit-xl-2-512"])
def test_two_blocks_of_512_pixels_answer_as_their_formulas(name, tmp_path, monkeypatch):
    monkeypatch.setitem(
        HUB_MODELS, name, replace(HUB_MODELS[name], experiment=HUB_MODELS[name].experiment.override(depth=2))
    )
    tensors = published_tensors(published_shapes(HUB_MODELS[name].experiment.network.block, tokens=1024, depth=2))
    save_file(tensors, tmp_path / "two.safetensors")
    check_answers(load_weights(name, file=tmp_path / "two.safetensors")[0], tensors, heads=16, side=64, batch=1)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A function: published weights of two narrow blocks in a file, as tensors and as its path."""
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))

    def small(name, indices=16, change=lambda tensors: None, save=save_file, file="small.safetensors"):
        size = {"width": 16, "depth": 2, "num_heads": 2, "image_size": (8, 8)}
        monkeypatch.setitem(
            HUB_MODELS, name, replace(HUB_MODELS[name], experiment=HUB_MODELS[name].experiment.override(**size))
        )
        block = HUB_MODELS[name].experiment.network.block
        tensors = published_tensors(published_shapes(block, 16, width=16, depth=2, heads=2), indices)
        change(tensors)
        save(tensors, tmp_path / file)
        return tensors, tmp_path / file

    return small


class TestFiles:
    @pytest.mark.parametrize("name", [NVIDIA, META])
    @pytest.mark.parametrize("indices", [0, 16])
    def test_index_buffers_may_be_there_or_not(self, small, name, indices):
        tensors, file = small(name, indices)
        check_answers(load_weights(name, file=file)[0], tensors, heads=2, side=8)

    @pytest.mark.parametrize(
        "under",
        [
            lambda tensors: tensors,
            lambda tensors: {"ema": tensors, "model": {}},
            lambda tensors: {"ema": tensors, "args": Namespace(model="DiT-XL/2")},
        ],
    )
    def test_metas_torch_file_is_flat_or_a_checkpoint(self, small, under):
        tensors, file = small(META, save=lambda tensors, path: torch.save(under(tensors), path), file="small.pt")
        check_answers(load_weights(META, file=file)[0], tensors, heads=2, side=8)

    def test_positions_are_the_files(self, small):
        tensors, file = small(NVIDIA)
        assert torch.equal(load_weights(NVIDIA, file=file)[0].network.pos_embed, tensors["pos_embed"])

    def test_half_precision_becomes_float32(self, small):
        def halve(tensors):
            tensors.update({name: tensor.half() for name, tensor in tensors.items()})

        _, file = small(NVIDIA, change=halve)
        dtypes = {tensor.dtype for tensor in load_weights(NVIDIA, file=file)[0].state_dict().values()}
        assert dtypes == {torch.float32}

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda t: t.pop("blocks.1.mlp.fc2.bias"), r"lacks tensor 'blocks\.1\.mlp\.fc2\.bias' \(1 in all\)"),
            (lambda t: t.update(extra=torch.zeros(1)), r"has a spare tensor 'extra' \(1 in all\)"),
            (
                lambda t: t.update(pos_embed=torch.zeros(1, 4, 16)),
                r"has tensor 'pos_embed' of shape \(1, 4, 16\), not \(1, 16, 16\)",
            ),
        ],
    )
    @pytest.mark.parametrize("name", [NVIDIA, META])
    def test_a_wrong_tensor_is_named_in_one_line(self, small, name, change, problem):
        _, file = small(name, change=change)
        with pytest.raises(DiffitError, match=rf"^{file} {problem}; it fits another model$"):
            load(name, file=file)

    @pytest.mark.parametrize("name", [NVIDIA, META, ""])
    def test_a_pickle_runs_no_code(self, small, tmp_path, name):
        class Payload:
            def __reduce__(self):
                return (tmp_path / "trace").touch, ()

        _, file = small(META, save=lambda tensors, path: torch.save({"a": Payload()}, path), file="bad.pt")
        with pytest.raises(DiffitError, match=r"bad\.pt holds more or less than tensors \(UnpicklingError\); "):
            load_weights(name or file, file=file if name else None)
        assert not (tmp_path / "trace").exists()

    def test_a_number_that_stands_for_a_billion_is_refused(self, small):
        def save(tensors, path):
            torch.save({**tensors, "pos_embed": torch.zeros(1).expand(10**10)}, path)

        _, file = small(META, save=save, file="bomb.pt")
        with pytest.raises(DiffitError, match="holds more or less than tensors"):
            load_weights(META, file=file)

    def test_a_file_goes_with_a_published_name(self, weights):
        with pytest.raises(DiffitError, match=rf"file is '{weights}', which goes with nvidia/diffit-256, "):
            load_weights("digits", file=weights)


class TestFinding:
    @pytest.mark.parametrize(
        ("word", "name"),
        [
            ("nvidia/DiffiT", NVIDIA),
            ("diffit_512.safetensors", "nvidia/diffit-512"),
            ("DiT-XL-2-256x256.pt", META),
            ("SiT-XL-2-256.pt", "nyu/sit-xl-2-256"),
        ],
    )
    def test_a_name_as_it_is_published_is_that_file(self, word, name, tmp_path, monkeypatch):
        monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "weights").mkdir()
        file = tmp_path / "weights" / HUB_MODELS[name].file
        file.touch()
        assert hub.find_weights(word) == file

    def test_the_cache_folder_is_looked_at_first(self, small, tmp_path):
        tensors, file = small(META, save=lambda tensors, path: torch.save(tensors, path))
        target = tmp_path / "cache" / "weights" / "DiT-XL-2-256x256.pt"
        target.parent.mkdir(parents=True)
        file.rename(target)
        check_answers(load_weights(META)[0], tensors, heads=2, side=8)

    def test_then_the_hubs_cache(self, small, tmp_path, monkeypatch):
        tensors, file = small(NVIDIA)
        cached = {("nvidia/DiffiT", "diffit_256.safetensors"): str(file)}
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *asked: cached.get(asked))
        check_answers(load_weights(NVIDIA)[0], tensors, heads=2, side=8)

    def test_then_the_hubs_server_and_that_is_said(self, small, monkeypatch, capsys):
        asked = []

        def fail(repository, file):
            asked.append((repository, file))
            raise OSError("no network\nat all")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
        small(NVIDIA)
        failed = r"nvidia/DiffiT cannot be downloaded \(no network at all\)"
        remedy = r"get diffit_256\.safetensors from https://huggingface\.co/nvidia/DiffiT and give it as file=, or"
        with pytest.raises(DiffitError, match=rf"^{failed}; {remedy}[^\n]*$"):
            load(NVIDIA)
        assert asked == [("nvidia/DiffiT", "diffit_256.safetensors")]
        said = "downloading diffit_256.safetensors of nvidia/DiffiT from the Hugging Face hub"
        assert capsys.readouterr().err == f"{said}\n"

    @pytest.mark.parametrize("file", [None, "nowhere.pt"])
    def test_metas_file_that_is_not_here_is_one_line(self, small, file):
        small(META)
        with pytest.raises(DiffitError, match=r"^[^\n]*give .*DiT-XL-2-256x256\.pt|^[^\n]*get DiT-XL-2-256x256\.pt"):
            load(META, file=file)

    def test_an_unknown_name_is_refused_with_the_known_ones(self):
        with pytest.raises(DiffitError, match=r"nvidia/diffit-512, .*meta/dit-xl-2-256"):
            load("nvidia/diffit-1024")


class TestCards:
    @pytest.mark.parametrize(
        ("name", "guided"),
        [
            (NVIDIA, "4.4 power-cosine power=4.0 channels=3 tolerance=0.0"),
            ("nvidia/diffit-512", "1.49 channels=3 tolerance=0.0"),
            (META, "4 channels=3 tolerance=0.0"),
            ("meta/dit-xl-2-512", "1.5 channels=3 tolerance=0.0"),
        ],
    )
    def test_sampling_is_the_published_one(self, name, guided):
        sampling = HUB_MODELS[name].experiment.sampling
        assert (sampling.sampler, sampling.steps, sampling.variance) == ("ddpm", 250, "learned")
        assert sampling.guided == guided

    def test_classes_are_imagenets(self, small):
        names = load(NVIDIA, file=small(NVIDIA)[1], device="cpu").card.class_names
        assert len(names) == 1000
        assert (names[0], names[207], names[-1]) == ("tench", "golden retriever", "toilet tissue")
        assert names == tuple(imagenet_names().values())

    def test_a_label_outside_the_classes_is_one_line(self, small):
        pipe = load(NVIDIA, file=small(NVIDIA)[1], device="cpu")
        for label in (1000, -1, "unicorn"):
            with pytest.raises(
                DiffitError, match=rf"^no class {label!r}; [^\n]*give a number from 0 to 999, [^\n]*'none'$"
            ):
                pipe(seeds=[0], labels=label)

    def test_licence_is_said_once(self, small, capsys):
        _, file = small(META)
        hub.tell_licence.cache_clear()
        for _ in range(2):
            assert load(META, file=file, device="cpu").card.licence.startswith("CC-BY-NC-4.0")
        assert capsys.readouterr().err == f"{META}: weights by Meta, licence CC-BY-NC-4.0 (no commercial use)\n"

    def test_info_describes_them(self, small, tmp_path):
        _, file = small(META, save=lambda tensors, path: torch.save(tensors, path))
        target = tmp_path / "cache" / "weights" / "DiT-XL-2-256x256.pt"
        target.parent.mkdir(parents=True)
        file.rename(target)
        lines = info(META).splitlines()
        assert lines[0] == f"weights {target}: {META}, trained on ImageNet (Meta)"
        assert lines[1:3] == [
            "  licence CC-BY-NC-4.0 (no commercial use)",
            "  classes: 1000 classes (tench, goldfish, great white shark, ...)",
        ]
        assert lines[3].startswith(f"{META}: DiT for imagenet, ")

    def test_draws_latents_without_an_autoencoder_at_hand(self, small):
        pipe = load(NVIDIA, file=small(NVIDIA)[1], device="cpu")
        *_, state = pipe.stream(range(2), [207, 360], steps=3)
        assert state.x.shape == (2, 4, 8, 8)
        assert state.x.isfinite().all()


class TestWarmStart:
    @pytest.mark.parametrize("classes", [0, 10, 1000])
    def test_renews_the_label_table_alone_where_the_classes_differ(self, small, classes):
        _, file = small(NVIDIA)
        published = load_weights(NVIDIA, file=file)[0].state_dict()
        denoiser = build_denoiser(HUB_MODELS[NVIDIA].experiment.override(num_classes=classes))
        fresh = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
        warm_start(denoiser, NVIDIA, file=file)
        for name, tensor in denoiser.state_dict().items():
            renewed = "classes" in name and classes != 1000
            assert torch.equal(tensor, (fresh if renewed else published)[name]), name

    def test_starts_from_our_own_weights_too_and_names_what_does_not_fit(self, tiny, weights):
        experiment = tiny.override(sigma_data=0.75)
        denoiser = build_denoiser(experiment)
        warm_start(denoiser, weights)
        x, sigma = SeededNoise([1], experiment.network.shape)(), torch.ones(1)
        assert torch.equal(denoiser.eval()(x, sigma), load_weights(weights)[0].eval()(x, sigma))
        with pytest.raises(DiffitError, match=r"it fits another model$"):
            warm_start(build_denoiser(experiment.override(width=16)), weights)

    def test_training_starts_there_and_a_resumed_run_where_it_stopped(self, tiny, fit, weights):
        before = load_weights(weights)[0].state_dict()
        module = fit(tiny.override(init_weights=str(weights), lr=1e-9))
        for name, tensor in module.model.state_dict().items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
        again = fit(tiny.override(init_weights="of another name by now", lr=1e-9, max_steps=5))
        assert again.global_step == 5
