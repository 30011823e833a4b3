"""`evaluate`: which numbers are taken of which weights or images, and what their stamp says."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import fill
from PIL import Image

from diffit_lib.checkpoints.autoencoders import stable_diffusion_card
from diffit_lib.checkpoints.weights import ModelCard, build_denoiser, load_weights, save_weights
from diffit_lib.cli.main import main
from diffit_lib.config.presets import PRESETS
from diffit_lib.data.datasets import Images, Split
from diffit_lib.evaluation import evaluator as bench
from diffit_lib.evaluation.evaluate import (
    FIRST_SEED,
    combinations,
    evaluate,
    evaluate_each,
    sample_writers,
    with_decoder,
)
from diffit_lib.evaluation.evaluator import ClassifierEvaluator, NetworkEvaluator, cached_reference
from diffit_lib.evaluation.features import Seen
from diffit_lib.evaluation.metrics import reference_statistics
from diffit_lib.evaluation.provenance import PROTOCOLS, Provenance, paper_settings
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.utils import distributed
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import digest


class PixelInception(torch.nn.Module):
    """Stands in for Inception: eight pixels for features and logits, three for the spatial features."""

    name, checksum, num_features, num_spatial = "pixels", "none", 8, 3

    def forward(self, images):
        pixels = images.flatten(1).float() / 255
        return Seen(pixels[:, :8], pixels[:, :8], pixels[:, 8:11])

    def features(self, images):
        return self(images).features


@pytest.fixture
def inception(monkeypatch, tmp_path):
    """Measure by a stand-in, with an empty cache; what `load_inception` was asked for."""
    asked = []
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bench, "load_inception", lambda path: (asked.append(path), PixelInception())[1])
    return asked


@pytest.fixture(scope="module")
def coloured():
    """Forty images of 8 x 16 in colour, as the unconditional weights draw; half of them test images."""
    pixels = torch.randint(256, (40, 3, 8, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.arange(40) % 2
    return Split(*(Images(f"toy/{name}", pixels[k::2], labels[k // 2 :: 2][:20], ()) for k, name in enumerate("ab")))


def with_classes(split, *names):
    return Split(*(replace(part, labels=torch.arange(len(part)) % len(names), class_names=names) for part in split))


def test_numbers_by_the_classifier_carry_all_they_depend_on(weights, data):
    report = evaluate(weights, data, images=40)
    stamp = report["stamp"]
    assert (stamp["n"], stamp["drawn"], stamp["reference"]) == (40, 40, "digits/train")
    assert stamp["reference_hash"] == data.train.fingerprint()
    assert (stamp["steps"], stamp["guidance"], stamp["precision"]) == (8, "1", "32-true")
    assert stamp["sampler"] == "heun churn=0.0 sigma=10..0.03"
    assert stamp["weights_hash"] == digest(load_weights(weights)[0].state_dict())
    assert stamp["seeds"] == "10000-10039"
    assert not stamp["best_by_this_metric"]
    assert (stamp["labels"], stamp["seeds"]) == ("as many of each class", "10000-10039")
    assert all(report[f"{name}_plus_minus"] > 0 for name in ("frechet", "frechet_floor", "frechet_ratio"))
    assert report["copies"] == 0
    assert report["copies_floor"] <= 0.01
    assert evaluate(weights, data, images=40) == report


def test_copies_among_the_images_are_told_with_the_place_of_the_first(data, hasty, tmp_path):
    pictures = torch.cat([data.test.images[:60], data.train.images[:5].flip(-1)]).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "copied.npz", pictures)
    report = evaluate(tmp_path / "copied.npz", "digits")
    assert report["copies"] == pytest.approx(5 / 65)
    assert "5 of 65 images are copies of training images" in report["warnings"][-1]
    assert report["warnings"][-1].endswith("the first is number 60")


@pytest.mark.parametrize("moved", [0, 0.004, 0.5])
def test_numbers_other_than_the_cards_are_told_with_the_reason(weights, data, tmp_path, hasty, moved):
    denoiser, card = load_weights(weights)
    path = tmp_path / "own.safetensors"
    numbers = evaluate(weights, data, images=40)
    stamp = numbers["stamp"] | ({"extractor_checksum": "a+b+c"} if moved else {})
    numbers |= {
        "stamp": stamp,
        "frechet_ratio": numbers["frechet_ratio"] + moved * numbers["frechet_ratio_spread"] * 10,
    }
    save_weights(path, replace(card, numbers=numbers), denoiser)
    told = [line for line in evaluate(path, data, images=40)["warnings"] if "card says" in line]
    assert len(told) == (moved > 0)
    if moved:
        assert "by classifiers trained on another machine or by another version" in told[0]
        assert ("OUTSIDE" in told[0]) == (moved > 0.2)
        assert "card says" not in str(evaluate(path, data, images=20)["warnings"])  # numbers of other images


def test_protocol_of_a_paper_sets_all_that_its_number_needs(unconditional, coloured, weights, data, inception):
    found = evaluate(weights, data, images=30, protocol="edm", steps=3)["stamp"]  # what is given counts more
    assert (found["sampler"], found["steps"]) == ("heun churn=0.0 sigma=10..0.03", 3)
    assert (found["labels"], found["guidance"], found["rounding"], found["extractor"]) == (
        "random",
        "1",
        "round",
        "pixels",
    )
    assert evaluate(unconditional, coloured, images=20, protocol="edm", steps=2)["stamp"]["labels"] is None
    network = PRESETS["diffit-xl-2"].network
    assert paper_settings("dit", network) == {
        "sampler": "ddpm", "steps": 250, "variance": "learned",
        "guidance": 1.5, "guidance_schedule": "constant", "guidance_channels": 3,
    }  # fmt: skip
    for preset, guidance in (("diffit-xl-2", 4.4), ("diffit-xl-2-512", 1.49)):
        recipe = PRESETS[preset].sampling
        for name, value in paper_settings("diffit", PRESETS[preset].network).items():
            assert getattr(recipe, name) == value
        assert recipe.guidance == guidance
    assert [paper_settings("edm", PRESETS[name].network)["steps"] for name in ("cifar10", "ffhq64")] == [18, 40]
    assert {name: (paper.images, paper.rounding) for name, paper in PROTOCOLS.items()} == {
        "round": (500, "round"), "adm": (500, "adm"),
        "dit": (50_000, "round"), "diffit": (50_000, "adm"), "edm": (50_000, "round"),
    }  # fmt: skip


def test_random_labels_are_those_drawn_from_the_seeds(weights, tmp_path):
    pipe = load(weights)
    (writer,) = sample_writers(pipe, 12, [{}], 4, "edm", tmp_path, lambda: None)
    seeds = [image.seed for image in writer.images]
    assert seeds == list(range(FIRST_SEED, FIRST_SEED + 12))
    assert [image.label for image in writer.images] == pipe.class_label(seeds, None).tolist()


def test_protocol_takes_the_papers_decoder_for_weights_of_stable_diffusions_latents(monkeypatch):
    experiment = replace(PRESETS["diffit-s-2"], vae="stabilityai/sd-vae-ft-mse")
    experiment = experiment.override(width=32, depth=1, num_heads=2)
    pipe = Pipeline(build_denoiser(experiment), ModelCard(experiment, vae=stable_diffusion_card(experiment.vae)))
    assert with_decoder(pipe, "here", PROTOCOLS["dit"].vae).card.experiment.vae == "stabilityai/sd-vae-ft-ema"
    assert with_decoder(pipe, "here", "") is pipe


def test_settings_change_how_the_images_are_drawn_and_the_stamp_says_so(weights, data):
    settings = {"sampler": "euler", "steps": 4, "guidance": 2.0, "guidance_schedule": "power-cosine"}
    report = evaluate(weights, data, images=20, **settings)
    assert report["stamp"]["guidance"] == "2 power-cosine power=4.0"
    assert (report["stamp"]["steps"], report["stamp"]["sampler"].split()[0]) == (4, "euler")
    assert report["frechet"] != evaluate(weights, data, images=20)["frechet"]


def test_numbers_by_inception_are_those_of_the_weights_images(weights, data, inception):
    report = evaluate(weights, data, images=30, extractor="inception", extractor_file="local.pth")
    assert inception == ["local.pth"]
    pipe, network = load(weights), PixelInception()
    labels = [k // 3 for k in range(30)]
    pictures = torch.from_numpy(pipe(range(FIRST_SEED, FIRST_SEED + 30), labels, batch_size=100)).permute(0, 3, 1, 2)
    measure = NetworkEvaluator(
        reference_statistics(data.train.images, network), network, "digits/train", data.train.fingerprint()
    )
    expected = measure([pictures], None, Provenance(**report["stamp"]))
    assert report == expected
    assert [report["stamp"][key] for key in ("extractor", "rounding", "n", "drawn")] == ["pixels", "round", 30, 30]


def test_protocol_adm_truncates_what_the_weights_draw(weights, data, inception):
    rounded, truncated = (
        evaluate(weights, data, images=30, extractor="inception", protocol=protocol) for protocol in ("round", "adm")
    )
    assert truncated["stamp"]["rounding"] == "adm"
    assert truncated["fid"] != rounded["fid"]


def test_reference_is_taken_once_and_kept(weights, data, inception, monkeypatch):
    first = cached_reference(data.train, PixelInception())
    monkeypatch.setattr(bench.metrics, "reference_statistics", lambda *_: pytest.fail("taken again"))
    again = cached_reference(data.train, PixelInception())
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("other", ["images", "weights"])
def test_reference_of_other_images_or_another_extractor_is_another(data, inception, monkeypatch, other):
    first = cached_reference(data.train, PixelInception())
    network = PixelInception()
    if other == "weights":
        network.checksum = "other"
        monkeypatch.setattr(network, "forward", lambda images: PixelInception().forward(images // 2))
    again = cached_reference(data.test if other == "images" else data.train, network)
    assert not torch.equal(first.mean, again.mean)


def test_guidance_of_unconditional_weights_is_refused_and_not_stamped(unconditional, coloured, inception):
    assert evaluate(unconditional, coloured, images=20)["stamp"]["guidance"] is None
    with pytest.raises(DiffitError, match=r"guidance is 3\.0, but these weights are unconditional; leave guidance out"):
        evaluate(unconditional, coloured, images=20, guidance=3.0)


def test_what_an_extractor_cannot_measure_is_refused_before_anything_is_drawn(weights, unconditional, coloured, data):
    with pytest.raises(DiffitError, match=r"toy/a has no classes, which the classifier needs; give --extractor inc"):
        evaluate(unconditional, coloured, extractor="classifier")
    with pytest.raises(DiffitError, match="digits/train has no test images to compare with; give --extractor inc"):
        evaluate(weights, Split(data.train, data.train))
    with pytest.raises(
        DiffitError, match=r"extractor_file is 'a\.pth', which the classifier does not take; give --extractor inc"
    ):
        evaluate(weights, data, extractor_file="a.pth")


def test_data_without_classes_are_measured_by_inception(unconditional, coloured, inception):
    report = evaluate(unconditional, coloured, images=20)
    assert report["fid"] > 0
    assert report["stamp"]["reference"] == "toy/a"


def test_unconditional_weights_have_no_class_accuracy(unconditional, coloured):
    report = evaluate(unconditional, with_classes(coloured, "cat", "dog"), images=20)
    assert "class_accuracy" not in report
    assert {"classifier_test_accuracy", "frechet_ratio", "copy_ratio"} < report.keys()


@pytest.mark.parametrize(("kind", "flatters"), [("classifier", True), ("inception", False), ("", False)])
def test_best_weights_own_up_to_what_they_were_chosen_by(weights, data, tmp_path, kind, flatters):
    denoiser, card = load_weights(weights)
    save_weights(tmp_path / "best.safetensors", replace(card, chosen_by=kind), denoiser)
    report = evaluate(tmp_path / "best.safetensors", data, images=20)
    assert report["stamp"]["best_by_this_metric"] == flatters
    assert any("chosen by this very metric" in warning for warning in report["warnings"]) == flatters


@pytest.mark.parametrize("names", [("a", "b"), tuple("abcdefghij"), ()])
def test_data_with_other_classes_are_refused(weights, data, names):
    other = with_classes(data, *names) if names else Split(*(replace(part, class_names=()) for part in data))
    with pytest.raises(DiffitError, match=r"draws 10 classes \(0, 1, 2, ...\), digits/train has .*classes"):
        evaluate(weights, other)


def test_data_of_another_shape_are_refused(unconditional, data):
    expected = r"draws images of \(channels, height, width\) \(3, 8, 16\), digits/train has \(1, 8, 8\); give data"
    with pytest.raises(DiffitError, match=expected):
        evaluate(unconditional, data)


@pytest.mark.parametrize("images", [1, 0, -3])
def test_too_few_images_are_refused(weights, data, images):
    with pytest.raises(DiffitError, match=f"images is {images}; give 2 or more"):
        evaluate(weights, data, images=images)


@pytest.fixture
def hasty(monkeypatch, tmp_path):
    """The classifiers see the training images once; the cache is empty."""
    monkeypatch.setattr("diffit_lib.evaluation.features.TRAINING_IMAGES", 0)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def drawn(weights, tmp_path):
    """An `.npz` of what the weights draw to be measured: 20 images and their classes."""
    labels = [k // 2 for k in range(20)]
    images = load(weights)(range(FIRST_SEED, FIRST_SEED + 20), labels, batch_size=20)
    np.savez(tmp_path / "drawn.npz", images, np.array(labels))
    return tmp_path / "drawn.npz"


def numbers_of(report):
    return {name: value for name, value in report.items() if name not in ("stamp", "warnings")}


def test_given_images_measure_as_the_weights_that_drew_them(weights, data, drawn, hasty, monkeypatch):
    report = evaluate(drawn, "digits")
    monkeypatch.setattr(ClassifierEvaluator, "measure_real", lambda *_: pytest.fail("real images were looked at again"))
    assert numbers_of(report) == numbers_of(evaluate(weights, data, images=20))
    stamp = report["stamp"]
    assert (stamp["images"], stamp["n"], stamp["reference"]) == ("drawn.npz", 20, "digits/train")
    assert stamp["images_hash"]
    assert [stamp[name] for name in ("sampler", "steps", "seeds", "weights_hash", "rounding")] == [None] * 5


def test_of_given_images_so_many_are_measured_evenly_spread(data, drawn, inception):
    half = evaluate(drawn, data, extractor="inception", images=10)
    with np.load(drawn) as file:
        np.savez(drawn, file["arr_0"][::2])
    assert numbers_of(half) == numbers_of(evaluate(drawn, data, extractor="inception"))
    with pytest.raises(DiffitError, match=r"images is 11, but drawn\.npz holds 10; give 10 or fewer"):
        evaluate(drawn, data, extractor="inception", images=11)


def test_statistics_give_the_numbers_that_their_images_give(weights, data, inception, tmp_path):
    path = tmp_path / "statistics.npz"
    by_images = evaluate(weights, data, images=20, extractor="inception", save_statistics=path)
    by_statistics = evaluate(weights, path, images=20)
    known = ("fid", "sfid", "inception_score", "inception_score_std", "vendi_score")
    known += ("fid_plus_minus", "sfid_plus_minus")
    assert numbers_of(by_statistics) == {name: by_images[name] for name in known}
    assert "KID, precision, recall, density and coverage are left out" in by_statistics["warnings"][-1]
    assert (by_statistics["stamp"]["reference"], by_images["stamp"]["reference"]) == (path.name, "digits/train")

    with np.load(path) as file:  # as ADM publishes them: with some of the images
        pixels = data.train.images[:200].permute(0, 2, 3, 1).numpy()
        np.savez(path, arr_0=pixels, **file)
        np.savez(tmp_path / "bare.npz", mu=file["mu"], sigma=file["sigma"])
    both = evaluate(weights, path, images=20)
    assert both["fid"] == by_images["fid"]
    assert both.keys() == by_images.keys()
    assert both["kid"] != by_images["kid"]
    assert "sFID is left out" in evaluate(weights, tmp_path / "bare.npz", images=20)["warnings"][-2]


def test_inception_measures_against_all_images_of_a_folder(drawn, inception, tmp_path):
    pictures = torch.randint(256, (60, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    fill(tmp_path / "real", {f"{k}.png": Image.fromarray(picture.numpy()) for k, picture in enumerate(pictures)})
    np.savez(tmp_path / "real.npz", pictures[..., None].numpy())
    by_folder, by_file = (evaluate(drawn, tmp_path / name) for name in ("real", "real.npz"))
    assert by_folder["fid"] == pytest.approx(by_file["fid"])  # the order of the images is another
    assert by_folder["stamp"]["reference"] == "real"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, r"drawn\.npz holds images; give what to measure them against as --data"),
        ({"data": "digits", "steps": 5}, r"steps is for drawing, but .*drawn\.npz holds images; leave it out"),
        ({"data": "digits", "protocol": "adm"}, r"protocol is 'adm', but .*drawn\.npz holds whole numbers already"),
        ({"data": "nowhere"}, "no data set or path 'nowhere'"),
        ({"data": "digits", "save_statistics": "."}, r"save_statistics is \., a folder; give the name of a file"),
        ({"data": "nowhere.npz"}, r"there is no file nowhere\.npz"),
        (
            {"data": "digits", "save_statistics": "s.npz"},
            "save_statistics is 's.npz', which the classifier does not take; give",
        ),
    ],
)
def test_mistakes_with_given_images_are_told_in_one_line(drawn, inception, options, says):
    with pytest.raises(DiffitError, match=says) as error:
        evaluate(drawn, **options)
    assert "\n" not in str(error.value)


def test_no_classifier_learns_from_an_npz(drawn):
    with pytest.raises(DiffitError, match=r"no classifier can be trained on drawn\.npz; give a data set"):
        evaluate(drawn, drawn, extractor="classifier")


def test_given_images_of_another_shape_than_the_classifiers_are_refused(coloured, drawn):
    with pytest.raises(
        DiffitError, match=r"drawn\.npz has images of \(1, 8, 8\), toy/a of \(3, 8, 16\); give equal ones"
    ):
        evaluate(drawn, with_classes(coloured, "cat", "dog"))


def test_several_processes_draw_their_shares_and_the_first_one_measures(
    weights, data, inception, tmp_path, monkeypatch
):
    options = {"images": 50, "batch_size": 10, "extractor": "inception"}
    alone = evaluate(weights, data, **options)
    drew = []
    batches = Pipeline.batches
    monkeypatch.setattr(
        Pipeline, "batches", lambda self, seeds, *a, **k: drew.append(seeds[0]) or batches(self, seeds, *a, **k)
    )
    monkeypatch.setattr(distributed, "init_distributed", lambda: False)  # they run one after the other
    for rank, share in ((1, [10_010, 10_040]), (2, [10_020]), (0, [10_000, 10_030])):
        for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), (rank, 3, rank), strict=True):
            monkeypatch.setenv(name, str(value))
        drew.clear()
        report = evaluate(weights, data, **options)
        assert drew == share
        assert report == ({} if rank else alone)
    assert list((tmp_path / "cache" / "drawn").iterdir()) == []  # measured, and so no longer kept


def test_every_combination_of_several_settings_is_measured(weights, data, inception):
    settings = {"sampler": ("euler", "heun"), "steps": (3, 4), "guidance": (2.0,)}
    options = {"images": 20, "extractor": "inception"}
    reports = evaluate_each(weights, data, **options, **settings)
    assert [(r["stamp"]["sampler"].split()[0], r["stamp"]["steps"]) for r in reports] == [
        ("euler", 3), ("euler", 4), ("heun", 3), ("heun", 4),
    ]  # fmt: skip
    assert reports[2] == evaluate(weights, data, **options, sampler="heun", steps=3, guidance=2.0)
    with pytest.raises(DiffitError, match="steps is 1; give 2 or more"):  # before anything is drawn
        evaluate_each(weights, data, **options, steps=(3, 1), after_batch=pytest.fail)
    with pytest.raises(DiffitError, match=r"steps is \{'a': 1\}; give an integer"):
        evaluate_each(weights, data, **options, steps={"a": 1}, after_batch=pytest.fail)


def test_a_setting_given_twice_is_measured_once():
    assert combinations({"steps": (5, 5, 6), "churn": 1.0}) == [{"steps": 5, "churn": 1.0}, {"steps": 6, "churn": 1.0}]


def test_results_grow_in_a_list_with_a_table_and_a_plot_beside_it(weights, inception, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = f"evaluate {weights} --images=20 --extractor=inception --out=results.json"
    assert main([*command.split(), "--steps=3"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(Path("results.json").read_text()) == [{"measured": str(weights), **printed}]
    assert main([*command.split(), "--steps=3,4", "--sampler=euler,heun"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["steps", "sampler", "fid"]
    assert rows[1].split()[:2] == ["3", "heun"]
    results = json.loads(Path("results.json").read_text())
    assert [entry["stamp"]["steps"] for entry in results] == [3, 3, 3, 4, 4]
    with open("results.csv") as file:
        table = list(csv.DictReader(file))
    assert [(row["steps"], row["sampler"]) for row in table] == [
        ("3", "euler"),
        ("3", "heun"),
        ("4", "euler"),
        ("4", "heun"),
    ]
    assert [float(row["fid"]) for row in table] == [entry["fid"] for entry in results[1:]]
    assert table[0]["stamp_extractor"] == "pixels"
    assert Image.open("results.png").format == "PNG"


@pytest.mark.parametrize("name", ["sweep.csv", "sweep.png", "sweep"])
def test_a_name_that_the_table_or_the_plot_would_take_is_refused(tmp_path, name, capsys):
    assert main(["evaluate", "digits", "--steps=2,3", f"--out={tmp_path / name}"]) == 2
    assert f"{name}'; give a JSON file, e.g. results.json" in capsys.readouterr().err


def test_a_pipe_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "d.json")
    assert main(["evaluate", "digits", f"--out={tmp_path / 'd.json'}"]) == 2
    assert "d.json is no file; give a JSON file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"images": 3_000_000_000}, "images is 3000000000, and 10,000,000 is the most; give fewer"),
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"batch_size": -1}, "batch_size is -1; give 1 or more"),
    ],
)
def test_counts_that_no_images_have_are_refused_at_once(options, says, monkeypatch):
    monkeypatch.setattr("diffit_lib.evaluation.evaluate.load", pytest.fail)
    with pytest.raises(DiffitError, match=says):
        evaluate("digits", **options)


HOSTILE = ["{}", "[1]", '[{"fid": 1}', '[{"fid": 1}]', "", '[{"stamp": 5}]', '[{"stamp": {}, "warnings": 5}]']
HOSTILE += ['[{"stamp": {}, "fid": null}]', 100_000 * "["]


@pytest.mark.parametrize("content", HOSTILE)
def test_a_file_of_anything_else_is_not_appended_to(weights, tmp_path, content, capsys):
    path = tmp_path / "notes.json"
    path.write_text(content)
    assert main(["evaluate", str(weights), f"--out={path}"]) == 2
    assert "notes.json is not a JSON list of measurements that more can be appended to; give" in capsys.readouterr().err
    assert path.read_text() == content
