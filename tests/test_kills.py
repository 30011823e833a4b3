"""Commands killed at random moments and started again end with the bytes of those that nothing stopped."""

import os
import signal
import tempfile
import time
from contextlib import suppress
from random import Random

import pytest
from image_files import fill, noise
from safetensors.torch import load_file
from together import FORKSERVER

from diffit_lib.cli.main import main

TINY = (
    "--width=8 --max-steps=12 --batch-size=16 --lr-decay=0 --minutes=null --report-minutes=0.02 --precision=32-true "
    "--logger=csv --steps=2 --run=out --no-report"
)
WORKS = {
    "image": f"train digits --channel-mult=1,2 --num-heads=2 --time-dim=16 {TINY}",
    "latent": f"train latent-digits --depth=1 --num-heads=2 {TINY}",
    "vae": f"train-vae vae-digits --channels=8,8 {TINY.replace('--width=8', '').partition('--steps')[0]} --run=out",
    "encode": "encode vae-digits --out=out",
    "sample": "sample digits --seeds=0-63 --steps=4 --batch-size=8 --out=out",
    "pack": "pack photos --out=out/photos.zip --resolution=12x8",
}
ENDS = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {143, -signal.SIGTERM}, signal.SIGINT: {130}}


def command(words, folder, said):
    """What a process does: one command in this folder, its words in a file whose existence says that it began."""
    from diffit_lib.data import pack
    from diffit_lib.training import online_metrics, train

    os.chdir(folder)
    os.environ |= {"TMPDIR": str(folder / "tmp"), "DIFFIT_CACHE": str(folder / "cache")}
    tempfile.tempdir = None
    pack.PIECE = 16
    online_metrics.SHARE = 0.0
    train.write_figure = lambda path, figure: None  # slow, and not at stake
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
    status = main(words.split())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os._exit(status)


def begin(work, folder, number=0):
    """Start a command; returns the process, and the file of what it says, once it has begun."""
    if not folder.is_dir():
        fill(folder / "photos", {f"{'abc'[k % 3]}/{k}.png": noise(k, 12, 16) for k in range(60)})
        (folder / "tmp").mkdir()
    said = folder.with_name(f"{folder.name}-{number}.txt")
    process = FORKSERVER.Process(target=command, args=(WORKS[work], folder, said))
    process.start()
    while not said.exists():
        assert process.exitcode is None
        time.sleep(0.005)
    return process, said


def finish(process, said):
    """Wait for a command; its status and the lines it said."""
    process.join(120)
    lines = said.read_text().splitlines()
    said.unlink()
    return process.exitcode, lines


def content(work, folder):
    """What a command left: every file, of a training those whose number does not depend on the clock, and weights."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert [name for name in files if ".part" in name or ".pieces" in name or name.startswith("tmp/")] == []
    found = {name: path.read_bytes() for name, path in files.items()}
    if work in ("image", "latent", "vae"):
        drawn = {name for name in files if name.startswith(("out/samples", "out/weights-", "out/reconstructions"))}
        moody = {"out/previous.ckpt", "out/best.safetensors"}  # whether there are any, the clock decides
        found = {name: b"" if name.startswith("out/") else found[name] for name in files.keys() - drawn - moody}
        tensors = load_file(files["out/weights.safetensors"])
        found |= {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A function: what a command leaves that nothing stops, and the seconds it takes."""
    known = {}

    def unbroken(work):
        if work not in known:
            folder, start = tmp_path_factory.mktemp("unbroken") / work, time.monotonic()
            assert finish(*begin(work, folder))[0] == 0
            known[work] = content(work, folder), time.monotonic() - start
        return known[work]

    return unbroken


def kill(work, number, random, folder, seconds):
    """Begin a command, send it a signal at a random moment; how it ended."""
    process, said = begin(work, folder)
    process.join(random.uniform(0, seconds))
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)
    status, lines = finish(process, said)
    assert status in ENDS[number] | {0}, lines
    assert not any("Traceback" in line for line in lines), lines
    return status


def survives(seed, work, number, folder, unbroken):
    """Kill a command once or twice, then let it end, and compare."""
    expected, seconds = unbroken(work)
    random = Random(seed)
    for _ in range(random.randint(1, 2)):
        kill(work, number, random, folder, seconds)
    status, lines = finish(*begin(work, folder))
    assert status == 0, lines
    found = content(work, folder)
    assert {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)} == set()


@pytest.mark.parametrize(
    ("work", "number"),
    [("image", signal.SIGKILL), ("encode", signal.SIGTERM), ("sample", signal.SIGINT), ("pack", signal.SIGKILL)],
)
def test_killed_command_ends_as_if_it_had_not_been(work, number, tmp_path, unbroken):
    survives(0, work, number, tmp_path / "here", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 1 + int(os.environ.get("DIFFIT_KILLS", 200))))
def test_any_command_killed_by_any_signal_ends_as_if_it_had_not_been(seed, tmp_path, unbroken):
    work, number = list(WORKS)[seed % len(WORKS)], list(ENDS)[seed // len(WORKS) % len(ENDS)]
    survives(seed, work, number, tmp_path / "here", unbroken)


@pytest.mark.parametrize("work", [pytest.param(work, marks=[pytest.mark.slow] * (work != "image")) for work in WORKS])
def test_of_two_in_one_folder_the_second_gets_one_line(work, tmp_path, unbroken):
    expected, _ = unbroken(work)
    both = [begin(work, tmp_path / "here", number) for number in range(2)]
    ends = sorted((finish(*each) for each in both), key=lambda end: end[0])
    if ends[1][0]:  # else the first had ended before the second came
        assert [status for status, _ in ends] == [0, 2], ends
        assert "another diffit is at work in " in ends[1][1][-1]
    assert content(work, tmp_path / "here") == expected
