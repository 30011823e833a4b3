"""The benchmarks run at tiny sizes, keep what they measured and go on after a stop; their numbers are no verdict."""

import json

import bench
import gpu
import loops
import pytest
import timing
import torch


def test_first_place_of_a_round_rotates():
    calls = []
    times = timing.interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=2)
    assert "".join(calls) == "bcacababcbca"
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_summary_compares_within_each_round_and_per_gflop():
    rows = timing.summary({"ours": [1.0, 2.0, 8.0], "theirs": [2.0, 4.0, 4.0]}, {"ours": 10.0, "theirs": 30.0})
    assert rows["theirs"] == {
        "median_ms": 4000,
        "min_ms": 2000,
        "max_ms": 4000,
        "ratio": 0.5,
        "gflop": 30,
        "gflop_per_s": 7.5,
        "ratio_per_gflop": 1.5,
    }


def test_bench_writes_machine_and_numbers_and_keeps_earlier_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    arguments = ["--small", "--rounds", "1", "--out", str(tmp_path / "b.json"), "--only"]
    bench.main([*arguments, "latents-32-true", "data"])
    bench.main([*arguments, "samplers", "drawing", "shortcuts", "optimizers", "start"])
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    rows = found["step, latents, 32-true"]
    networks = {"ours, DiffiT", "ours, DiT", "diffusers DiTTransformer2DModel"}
    assert set(rows) == networks | {"a matrix product", "a convolution"}
    assert all(row["median_ms"] > 0 and row["gflop_per_s"] > 0 for row in rows.values())
    assert all(found["data, images/s"][name] > 0 for name in ("memory", "zip", "latents"))
    assert found["samplers, us a step"]["ours, euler"] > 0
    assert found["optimizers, ms a step"]["digits, Muon"] > 0
    assert found["shortcuts, step of digits"]["plain"]["ratio"] > 0
    assert found["start, ms after import torch"]["load('digits')"] > 0
    assert set(found["2 guided steps, latents"]) == networks
    assert "| diffusers UNet2DModel |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main([*arguments, "nothing"])


def test_growth_compares_with_the_smallest():
    results = loops.growth(1, True)
    rows = results["growth, latents, batch"]
    assert rows["batch 1"]["ratio"] == 1
    assert rows["batch 4"]["gflop"] == 4 * rows["batch 1"]["gflop"]
    axes = bench.growth_figure(results).axes[0]
    assert len(axes.lines) == len(results) + 1
    assert axes.lines[0].get_xdata()[1] == pytest.approx(4)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Every part of the GPU script but the training run, tiny, and its file."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.json"
    names = [name for name in gpu.parts(True) if "minutes" not in name]
    return gpu.main(["--small", "--out", str(out), "--only", *names]), out


def test_gpu_script_measures_every_part(measured):
    results, out = measured
    assert json.loads(out.read_text()) == results
    assert not [value for value in results.values() if "error" in value]
    assert max(error for name, error in results["attention, error against float64"].items() if "float32" in name) < 1e-5


def test_gpu_script_goes_on_and_tries_again_what_failed(measured, monkeypatch):
    results, out = measured
    calls = []
    names = ("losses by precision", "sampling loop")
    out.write_text(json.dumps(results | {names[0]: {"error": "out of memory"}}))
    monkeypatch.setattr(
        gpu, "parts", lambda small: {name: lambda name=name: calls.append(name) or {} for name in names}
    )
    again = gpu.main(["--small", "--out", str(out)])
    assert calls == [names[0]]
    assert again[names[0]] == {}
    assert again[names[1]] == results[names[1]]
