"""The benchmarks run at tiny sizes, keep what they measured and go on after a stop; their numbers are no verdict."""

import json

import bench
import gpu
import pytest
import torch


def test_first_place_of_a_round_rotates():
    calls = []
    times = bench.interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=2)
    assert "".join(calls) == "abcbcacab"
    assert {name: len(each) for name, each in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_summary_compares_within_each_round():
    rows = bench.summary({"ours": [1.0, 2.0, 8.0], "theirs": [2.0, 4.0, 4.0]})
    assert rows["theirs"] == {"median_ms": 4000, "min_ms": 2000, "max_ms": 4000, "ours_over_this": 0.5}


def test_bench_writes_machine_and_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    bench.main(["--small", "--rounds", "1", "--only", "latents-32-true", "data", "--out", str(tmp_path / "b.json")])
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["machine"]["versions"]["torch"] == torch.__version__.partition("+")[0]
    rows = found["step, latents, 32-true"]
    assert set(rows) == {"ours, DiffiT", "ours, DiT", "diffusers DiTTransformer2DModel"}
    assert all(row["median_ms"] > 0 and row["gflop_per_s"] > 0 for row in rows.values())
    assert found["data, images/s"]["batch"] > 0


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
