"""One file rebuilds everything, and no other file is taken for it."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffit_lib.checkpoints.autoencoders import load_vae
from diffit_lib.checkpoints.hub import find_weights
from diffit_lib.checkpoints.weights import ModelCard, build_denoiser, load_weights, save_weights
from diffit_lib.config.diffusion import VPConfig
from diffit_lib.evaluation.image_files import is_image_files
from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import PRETRAINED


def read(path):
    """Tensors and metadata."""
    with safe_open(path, "pt") as file:
        return load_file(path), dict(file.metadata())


def rewrite(source, path, change):
    """A copy of a weights file after `change(tensors, metadata)`."""
    tensors, metadata = read(source)
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def edit_card(**values):
    """A change of the card's JSON; None removes a key."""

    def change(tensors, metadata):
        card = {**json.loads(metadata["card"]), **values}
        metadata["card"] = json.dumps({key: value for key, value in card.items() if value is not None})

    return change


@pytest.fixture
def no_pickles(monkeypatch):
    """Any attempt to unpickle fails the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for target in ("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.serialization._load"):
        monkeypatch.setattr(target, refuse)


class TestRoundTrip:
    def test_file_rebuilds_the_denoiser_and_the_card(self, tmp_path):
        experiment = TINY.override(sigma_data=0.6, dropout=0.1, guidance=2.0)
        denoiser = build_denoiser(experiment)
        card = ModelCard(
            experiment,
            class_names=tuple("abcdefghij"),
            trained_on="some/train 1f",
            images_seen=48,
            minutes=1.5,
            device="cpu",
            licence="CC0",
            numbers={"frechet": 1.25, "stamp": {"n": 3}},
        )
        save_weights(tmp_path / "file", card, denoiser)
        again, read_card = load_weights(tmp_path / "file")
        assert read_card == card
        x, sigma, label = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0, 4, 10])
        with torch.no_grad():
            assert torch.equal(again.eval()(x, sigma, label), denoiser.eval()(x, sigma, label))

    def test_file_rebuilds_a_denoiser_of_another_kind(self, tmp_path):
        experiment = replace(TINY, denoiser=VPConfig(prediction="v", noise_schedule="cosine", timesteps=50, clip=True))
        save_weights(tmp_path / "file", ModelCard(experiment), build_denoiser(experiment))
        denoiser, card = load_weights(tmp_path / "file")
        assert card.experiment == experiment
        assert (denoiser.clip, len(denoiser.table)) == (True, 50)

    def test_raw_tensors_are_loaded_on_request(self, weights):
        tensors, _ = read(weights)
        for prefix, ema in (("ema.", True), ("raw.", False)):
            state = load_weights(weights, ema=ema)[0].state_dict()
            assert all(torch.equal(state[name], tensors[prefix + name]) for name in state)
        assert not torch.equal(tensors["ema.network.head.weight"], tensors["raw.network.head.weight"])

    def test_raw_tensors_that_were_not_kept_are_missed_in_a_clear_word(self, tmp_path):
        experiment = TINY.override(sigma_data=0.6)
        save_weights(tmp_path / "file", ModelCard(experiment), build_denoiser(experiment))
        with pytest.raises(DiffitError, match="holds no raw tensors; load it with ema=True"):
            load_weights(tmp_path / "file", ema=False)

    def test_float16_halves_the_file_and_loads_as_float32(self, weights, tmp_path):
        denoiser, card = load_weights(weights)
        save_weights(tmp_path / "half", card, denoiser, dtype=torch.float16)
        save_weights(tmp_path / "whole", card, denoiser)
        assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "whole").stat().st_size
        half = load_weights(tmp_path / "half")[0].state_dict()
        for name, tensor in denoiser.state_dict().items():
            assert half[name].dtype == torch.float32
            assert torch.equal(half[name], tensor.half().float())

    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, weights, tmp_path, monkeypatch):
        def fail(tensors, path, metadata):
            path.write_bytes(b"half")
            raise OSError("disk full")

        denoiser, card = load_weights(weights)
        (tmp_path / "file.safetensors").write_bytes(b"old")
        monkeypatch.setattr("diffit_lib.checkpoints.safetensors_io.save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            save_weights(tmp_path / "file.safetensors", card, denoiser)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def drop(tensors, metadata):
    del tensors["ema.network.head.bias"]


def add(tensors, metadata):
    tensors["ema.network.tail.bias"] = torch.zeros(3)


def reshape(tensors, metadata):
    tensors["ema.network.head.bias"] = torch.zeros(3)


def widen(tensors, metadata):
    card = json.loads(metadata["card"])
    card["recipe"]["network"]["width"] = 16
    metadata["card"] = json.dumps(card)


def forget(tensors, metadata):
    del metadata["card"]


def garble(tensors, metadata):
    metadata["card"] = metadata["card"][:50]


def from_the_future(tensors, metadata):
    metadata["format"] = "diffit-2"


def foreign(tensors, metadata):
    metadata.clear()


def ask(**values):
    """A change of parts of the card's recipe."""

    def change(tensors, metadata):
        card = json.loads(metadata["card"])
        for part, fields in values.items():
            card["recipe"][part] = fields and card["recipe"][part] | fields
        metadata["card"] = json.dumps(card)

    return change


def nest(tensors, metadata):
    metadata["card"] = metadata["card"][:-1] + ', "numbers": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}"


def infinite(tensors, metadata):
    tensors["ema.network.head.bias"][0] = torch.inf


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (drop, r"lacks tensor 'network\.head\.bias' \(1 in all\); it fits another model"),
            (add, r"has a spare tensor 'network\.tail\.bias' \(1 in all\); it fits another model"),
            (reshape, r"has tensor 'network\.head\.bias' of shape \(3,\), not \(1,\); it fits another model"),
            (widen, r"has tensor .* of shape .*, not .*; it fits another model"),
            (forget, "has a card this version cannot read .*; update diffit"),
            (garble, "has a card this version cannot read .*; update diffit"),
            (edit_card(recipe=None), "has a card this version cannot read .*; update diffit"),
            (edit_card(recipe=3), "has a card this version cannot read .*; update diffit"),
            (edit_card(mood="good"), "has a card this version cannot read .*; update diffit"),
            (from_the_future, r"format 'diffit-2', not 'diffit-1'.*; "),
            (foreign, r"holds no diffit model, nor published weights: it looks like \d+ tensors like 'ema\.network"),
            (
                edit_card(class_names=["a", "b"]),
                "class_names has 2 entries, but the network 10 classes; give one for each",
            ),
            (ask(network={"num_blocks": 10**6}), "num_blocks is 1000000; give 1,000 at most"),
            (
                ask(network={"window_size": 1 << 40, "image_size": [1 << 40, 1 << 40]}),
                "image_size is .*; give 100,000 at most",
            ),
            (ask(network={"num_classes": 10**7}), "num_classes is 10000000; give 100,000 at most"),
            (ask(network={"mlp_ratio": 1e300}), "mlp_ratio is 1e\\+300; give 100,000 at most"),
            (ask(network={"width": -8}), "cannot read"),
            (ask(network={"image_size": [1 << 4000, 8]}), "more than its|cannot read"),
            (ask(network={"channel_mult": 5}), "cannot read"),
            (ask(network=None), "cannot read"),
            (nest, "cannot read .*recursion"),
            (infinite, r"has tensor 'network\.head\.bias' of NaN or infinite numbers"),
        ],
    )
    def test_a_file_of_another_model_is_refused_in_one_line(self, weights, tmp_path, change, says):
        path = rewrite(weights, tmp_path / "changed.safetensors", change)
        with pytest.raises(DiffitError, match=says) as error:
            load_weights(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.999])
    def test_a_truncated_file_is_refused(self, weights, tmp_path, share):
        whole = weights.read_bytes()
        (tmp_path / "cut").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DiffitError, match=r"cut is not a complete safetensors file .*; copy or download it again"):
            load_weights(tmp_path / "cut")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_torch_file_of_ours_is_told_what_it_looks_like(self, weights, tmp_path, zipped):
        state = load_weights(weights)[0].state_dict()
        torch.save(state, tmp_path / "pickle.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(DiffitError, match="it looks like a denoiser without its card: give the weights"):
            load_weights(tmp_path / "pickle.pt")

    def test_a_plain_pickle_is_refused(self, tmp_path):
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"ema": [1.0]}))
        with pytest.raises(DiffitError, match="holds more or less than tensors"):
            load_weights(tmp_path / "plain.pkl")

    @pytest.mark.parametrize("nothing", [None, 5, [], "", " ", "\0", b"x", 1.5])
    def test_what_is_no_path_is_told(self, nothing):
        with pytest.raises(DiffitError, match=r"^weights is .*; give a path, or the name of pretrained weights$"):
            load_weights(nothing)

    def test_good_weights_are_loaded_without_unpickling(self, weights, no_pickles):
        load_weights(weights)


class TestFindWeights:
    def test_takes_a_path_and_else_a_name(self, weights, tmp_path, monkeypatch):
        monkeypatch.setattr("diffit_lib.checkpoints.hub.PRETRAINED", weights.parent)
        assert find_weights(weights) == weights
        assert find_weights("tiny") == weights
        monkeypatch.chdir(tmp_path)
        (tmp_path / "tiny").write_text("")
        assert find_weights("tiny").resolve() == tmp_path / "tiny"

    def test_says_which_names_there_are(self, weights, monkeypatch):
        monkeypatch.setattr("diffit_lib.checkpoints.hub.PRETRAINED", weights.parent)
        with pytest.raises(
            DiffitError,
            match=r"no weights file 'huge': .*/huge is no .*; give a path, hf://USER/REPOSITORY, or one of tiny",
        ):
            find_weights("huge")

    @pytest.mark.parametrize(
        ("name", "near"), [("digit", "digits"), ("nvidia/difit-256", "nvidia/diffit-256"), ("vae-digit", "vae-digits")]
    )
    def test_asks_whether_a_similar_name_was_meant(self, name, near):
        with pytest.raises(DiffitError, match=rf"did you mean ([\w/-]+ or )?{near}\b"):
            find_weights(name)

    def test_takes_a_run_folder_for_its_weights(self, weights, tmp_path):
        with pytest.raises(DiffitError, match=rf"no weights file in folder {tmp_path}: it has no weights\.safetensors"):
            find_weights(tmp_path)
        own = Path(shutil.copy(weights, tmp_path / "weights.safetensors"))
        assert find_weights(tmp_path) == find_weights(str(tmp_path)) == own
        assert not is_image_files(tmp_path)

    def test_a_name_goes_before_a_run_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "digits").mkdir()
        assert find_weights("digits") == PRETRAINED / "digits.safetensors"
        with pytest.raises(DiffitError, match="no weights file in folder digits"):
            find_weights("./digits")


class TestLoading:
    @pytest.mark.parametrize("name", ["digits", "latent-digits"])
    def test_leaves_the_global_random_state_alone(self, name):
        before = torch.get_rng_state()
        load(name, device="cpu")
        assert torch.equal(torch.get_rng_state(), before)

    def test_checks_shapes_before_it_allocates(self, weights, tmp_path):
        def enlarge(tensors, metadata):
            card = json.loads(metadata["card"])
            card["recipe"]["network"]["width"] = 1 << 16  # terabytes
            metadata["card"] = json.dumps(card)

        with pytest.raises(DiffitError, match="it fits another model"):
            load_weights(rewrite(weights, tmp_path / "huge.safetensors", enlarge))

    def test_file_may_go_once_it_is_loaded(self, weights, tmp_path):
        copy = Path(shutil.copy(weights, tmp_path / "copy.safetensors"))
        denoiser, _ = load_weights(copy)
        copy.write_bytes(bytes(copy.stat().st_size))
        kept, _ = load_weights(weights)
        assert all(map(torch.equal, denoiser.state_dict().values(), kept.state_dict().values()))

    @pytest.mark.parametrize("path", sorted(PRETRAINED.glob("*.safetensors")), ids=lambda path: path.stem)
    def test_pretrained_weights_load_by_name_and_are_float16(self, path):
        card = load_vae(path.stem)[1] if path.stem.startswith("vae-") else load_weights(path.stem)[1]
        assert card.numbers
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}
