"""Weights pushed to a stand-in of the hub come back by name to the bit; the folder is the same bytes each time."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from browser import chromium, needs_chromium, serving, wait_for
from hub_server import hub, sha
from PIL import Image

from diffit_lib.checkpoints.hub import hub_place
from diffit_lib.checkpoints.safetensors_io import read_card
from diffit_lib.checkpoints.weights import ModelCard, load_weights, save_weights
from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import write_text
from diffit_lib.utils.plots import enlargement, tile
from diffit_lib.utils.tensors import digest

pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
LOAD = """
import json, sys
from diffit_lib.checkpoints.weights import load_weights
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import digest
for name in sys.argv[1:]:
    try:
        print(json.dumps(digest(load_weights(name)[0].state_dict())))
    except DiffitError as error:
        print(json.dumps(str(error)))
"""
NUMBERS = {"frechet": 1.5, "frechet_ratio": 2.25, "stamp": {"n": 500, "sampler": "heun"}, "warnings": ["n is small"]}
METRICS = "images,seconds,loss,test_loss\n64,1.0,0.5,0.6\n128,2.0,0.4,0.5\n"


@pytest.fixture
def run(weights, tmp_path):
    """The folder of a run with numbers and curves."""
    denoiser, card = load_weights(weights)
    save_weights(tmp_path / "run" / "weights.safetensors", replace(card, numbers=NUMBERS), denoiser)
    write_text(tmp_path / "run" / "metrics.csv", METRICS)
    return tmp_path / "run"


@pytest.fixture
def server(tmp_path):
    """A stand-in of the hub."""
    with hub() as server:
        yield server


@pytest.fixture
def python(server, tmp_path):
    """A function: run Python with the stand-in for the hub; what it printed, and its errors."""
    environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_TOKEN": "hf_standin", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def python(*words, **more):
        return subprocess.run(
            [sys.executable, *map(str, words)], env=environment | more, capture_output=True, text=True, cwd=tmp_path
        )

    return python


def test_what_is_pushed_comes_back_by_name_to_the_bit(python, server, run):
    done = python("-m", "diffit_lib", "push", run, "me/tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"me/tiny: {server.address}/me/tiny\n"
    (files,) = server.repositories["me/tiny"]
    assert sorted(files) == ["README.md", "app.py", "loss.png", "samples.png", "weights.safetensors"]
    server.repositories["me/tiny"].append({**files, "weights.safetensors": b"another revision"})
    names = [f"me/tiny@{sha(0)}", f"hf://me/tiny@{sha(0)}/weights.safetensors", "me/tiny"]
    first, second, newest = map(json.loads, python("-c", LOAD, *names).stdout.splitlines())
    assert first == second == digest(load_weights(run)[0].state_dict())
    assert "is not a complete safetensors file" in newest
    again = python("-m", "diffit_lib", "push", run, "me/tiny", HF_TOKEN="hf_wrong")
    assert again.returncode == 2
    assert "\ndiffit: me/tiny is not uploaded (Client error '401 Unauthorized' " in again.stderr
    assert again.stderr.endswith("; log in by `hf auth login`, or write a folder by --dry-run FOLDER\n")


def test_what_is_refused_is_one_line_and_nothing_is_downloaded(python, server, run):
    files = {"a.pt": b"pickle", "b.safetensors": b"tensors"}
    server.repositories |= {"me/other": [files], "me/vast": [{"weights.safetensors": b"tensors"}]}
    server.lies = {"weights.safetensors": 2 * 10**10 + 1}
    (vast,) = map(json.loads, python("-c", LOAD, "me/vast").stdout.splitlines())
    server.lies = {}
    names = ["me/nowhere", "me/other", "hf://me/other/a.pt", "hf://me/other/c.safetensors", "hf://../x"]
    nowhere, other, pickle, missing, above = map(json.loads, python("-c", LOAD, *names).stdout.splitlines())
    assert vast.startswith("weights.safetensors of me/vast has 20 GB, more than 20; ")
    assert nowhere.startswith("me/nowhere cannot be downloaded (404 Client Error. Repository Not Found")
    assert other == "me/other has no weights.safetensors, but b.safetensors; give hf://me/other/FILE"
    assert pickle == "a.pt of me/other is no safetensors file; give one that is"
    assert missing == "me/other has no c.safetensors, but b.safetensors; give hf://me/other/FILE"
    assert above.startswith("../x cannot be downloaded (")
    assert server.given == []


def test_without_the_hub_what_was_downloaded_before_is_taken_and_that_is_said(python, server, run):
    server.repositories["me/tiny"] = [{"weights.safetensors": (run / "weights.safetensors").read_bytes()}]
    before = python("-c", LOAD, "me/tiny")
    assert "me/tiny: weights.safetensors, 0." in before.stderr
    assert "me/tiny: weights trained on digits/train 0, licence MIT" in before.stderr
    after = python("-c", LOAD, "me/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert "taking what was downloaded before" in after.stderr
    assert after.stdout == before.stdout


def test_a_folder_of_diffusers_comes_whole(python, server):
    files = {f"transformer/{name}": b"x" for name in ("diffusion_pytorch_model.safetensors", "config.json")}
    server.repositories["me/dit"] = [{**files, "transformer/other.bin": b"x"}]
    python("-c", LOAD, "me/dit")
    assert {name.partition(" ")[2] for name in server.given} == set(files)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("me/tiny", ("me/tiny", None, None)),
        ("me/tiny@v1", ("me/tiny", "v1", None)),
        ("hf://me/tiny@refs/pr/2/a/b.safetensors", ("me/tiny", "refs/pr/2", "a/b.safetensors")),
        ("hf://nvidia/other", ("nvidia/other", None, None)),
        ("nvidia/other", None),
        ("runs/tiny.safetensors", None),
        ("here/tiny", None),
        ("./tiny", None),
        ("/tmp/tiny", None),
        ("a/b/c", None),
        ("digits", None),
    ],
)
def test_names_of_the_hub_are_told_from_paths(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert hub_place(name) == place


def test_the_folder_is_the_same_bytes_each_time(run, tmp_path):
    for name in ("one", "two"):  # in a process of its own: the order of a hash's keys is drawn anew in each
        subprocess.run([sys.executable, "-m", "diffit_lib", "push", run, "me/tiny", "--dry-run", tmp_path / name])
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert len(one) == 5
    assert one == two
    head, text = one["README.md"].decode().removeprefix("---\n").split("---\n", 1)
    head = yaml.safe_load(head)
    assert (head["library_name"], head["license"], head["model-index"][0]["name"]) == ("diffit", "mit", "tiny")
    metrics = head["model-index"][0]["results"][0]["metrics"]
    assert metrics == [{"type": "frechet", "value": 1.5}, {"type": "frechet_ratio", "value": 2.25}]
    assert {"| frechet | 1.500 |", "Stamp: n=500 sampler=heun.", "Note: n is small."} <= set(text.splitlines())
    assert "![The training run's curves](loss.png)" in text
    assert "@article{diffit2023," in text


def test_a_weights_file_is_the_same_to_the_byte(weights, tmp_path):
    denoiser, card = load_weights(weights)
    files = set()
    for _ in range(8):  # the library itself would write the two keys of the metadata in any order
        save_weights(tmp_path / "w.safetensors", card, denoiser)
        files.add((tmp_path / "w.safetensors").read_bytes())
    assert len(files) == 1


def test_numbers_of_other_weights_are_refused(run, weights, tmp_path):
    from diffit_lib.cli.main import main

    entry = NUMBERS | {"frechet": 0.5, "stamp": {"weights_hash": digest(load_weights(run)[0].state_dict())}}
    write_text(tmp_path / "ours.json", json.dumps([entry]))
    write_text(tmp_path / "theirs.json", json.dumps([NUMBERS]))
    push = ["push", str(run), "me/tiny", "--dry-run", str(tmp_path / "out"), "--numbers"]
    assert main([*push, str(tmp_path / "theirs.json")]) == 2
    assert not (tmp_path / "out").exists()
    assert main([*push, str(tmp_path / "ours.json")]) == 0
    assert "| frechet | 0.500 |" in (tmp_path / "out" / "README.md").read_text()


def test_what_was_not_measured_and_another_licence_are_said(weights, tmp_path):
    pipe = load(weights, device="cpu")
    pipe.card = replace(pipe.card, licence="my own")
    pipe.push_to_hub("me/tiny", dry_run=tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: other\nlicense_name: my own\n" in text
    assert "None. `diffit evaluate me/tiny` measures" in text
    assert not (tmp_path / "out" / "loss.png").exists()
    assert read_card(tmp_path / "out" / "weights.safetensors", ModelCard) == pipe.card
    with pytest.raises(DiffitError, match="out is not empty; give another folder"):
        pipe.push_to_hub("me/tiny", dry_run=tmp_path / "out")
    with pytest.raises(DiffitError, match="repository is 'tiny'; give USER/NAME"):
        pipe.push_to_hub("tiny")


def test_the_app_imports_gradio_and_the_library_alone(weights, tmp_path):
    load(weights, device="cpu").push_to_hub("me/tiny", dry_run=tmp_path / "out")
    tree = ast.parse((tmp_path / "out" / "app.py").read_text())
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.partition(".")[0] for name in modules} == {"pathlib", "gradio", "diffit_lib"}


def test_a_strangers_card_puts_no_code_in_the_app_and_no_line_in_the_readme(weights, tmp_path):
    pipe, hostile = load(weights, device="cpu"), 'x", "a": open("stolen", "w"), "b": "\n---\nlicense: mit\n# \x1b[31m'
    pipe.push_to_hub("me/tiny", dry_run=tmp_path / "plain")
    words = dict.fromkeys(("trained_on", "device", "licence"), hostile)
    numbers = NUMBERS | {hostile: 0.5, "stamp": {hostile: hostile}, "warnings": [hostile]}
    experiment = replace(pipe.card.experiment, name=hostile)
    names = (hostile, *map(str, range(9)))
    pipe.card = replace(pipe.card, experiment=experiment, class_names=names, numbers=numbers, **words)
    pipe.push_to_hub("me/tiny", dry_run=tmp_path / "out")
    assert (tmp_path / "out" / "app.py").read_bytes() == (tmp_path / "plain" / "app.py").read_bytes()
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    assert lines.count("---") == 2
    assert "license: mit" not in lines
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("numbers", [{"stamp": 5}, {"warnings": 5}, {"class_accuracy": None}, {"frechet": "x"}])
def test_a_card_whose_numbers_are_none_is_refused(weights, numbers):
    _, card = load_weights(weights)
    with pytest.raises(DiffitError, match=f"{next(iter(numbers))} is .*; give a"):
        replace(card, numbers=numbers)


@needs_chromium
def test_the_app_draws_in_a_browser(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed; pip install gradio")
    pipe = load("digits", device="cpu")
    pipe.push_to_hub("me/digits", dry_run=tmp_path / "out")
    with (
        serving(tmp_path / "out" / "app.py", log=tmp_path / "log") as (_, address),
        chromium(width=1100, height=900) as driver,
    ):
        driver.get(address)
        (submit,) = wait_for(lambda: [b for b in driver.find_elements("css selector", "button") if b.text == "Submit"])
        submit.click()
        find = "return [...document.images].map(i => i.src).filter(s => s.includes('/file='))"
        (source,) = wait_for(lambda: driver.execute_script(find), 60)
        if folder := os.environ.get("DIFFIT_SCREENSHOTS"):
            driver.save_screenshot(f"{folder}/app.png")
        with urlopen(source) as file:
            shown = np.asarray(Image.open(file).convert("L"))
    images = pipe(range(4))
    assert np.array_equal(shown, tile(images, columns=4, scale=enlargement(images, 128)).squeeze(-1))
