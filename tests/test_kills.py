"""Commands that meet trouble at random moments and are started again end with the bytes of those that met none."""

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
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
IMAGE = f"train digits --channel-mult=1,2 --num-heads=2 --time-dim=16 {TINY}"
WORKS = {
    "image": IMAGE,
    "latent": f"train latent-digits --depth=1 --num-heads=2 {TINY}",
    "vae": f"train-vae vae-digits --channels=8,8 {TINY.replace('--width=8', '').partition('--steps')[0]} --run=out",
    "encode": "encode vae-digits --out=out",
    "sample": "sample digits --seeds=0-63 --steps=4 --batch-size=8 --out=out",
    "pack": "pack photos --out=out/photos.zip --resolution=12x8",
    "evaluate": "evaluate digits --images=40 --steps=4 --batch-size=8 --out=out/numbers.json",
}
PAIR = f"{IMAGE} --devices=2"
ENDS = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {143, -signal.SIGTERM}, signal.SIGINT: {130}}
ROUNDS = int(os.environ.get("DIFFIT_KILLS", 200))
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000


def command(words, folder, said, prepare):
    """What a process does: one command in this folder, its words in a file whose existence says that it began."""
    from diffit_lib.data import pack
    from diffit_lib.evaluation import features
    from diffit_lib.training import online_metrics, train

    os.chdir(folder)
    os.environ |= {"TMPDIR": str(folder / "tmp"), "DIFFIT_CACHE": str(folder / "cache")}
    tempfile.tempdir = None
    pack.PIECE = 16
    features.TRAINING_IMAGES = 640
    online_metrics.SHARE = 0.0
    train.write_figure = lambda path, figure: None  # slow, and not at stake
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    prepare()
    status = main(words.split())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os._exit(status)


def furnish(folder):
    """The folder of a command: photos, and a place for temporary files."""
    fill(folder / "photos", {f"{'abc'[k % 3]}/{k}.png": noise(k, 12, 16) for k in range(60)})
    (folder / "tmp").mkdir()


def begin(words, folder, number=0, prepare=int):
    """Start a command; returns the process, and the file of what it says, once it has begun."""
    if not folder.is_dir():
        furnish(folder)
    said = folder.with_name(f"{folder.name}-{number}.txt")
    process = FORKSERVER.Process(target=command, args=(words, folder, said, prepare))
    process.start()
    while not said.exists():
        assert process.exitcode is None
        time.sleep(0.005)
    return process, said


def finish(process, said):
    """Wait for a command; its status and the lines it said."""
    process.join(300)
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
    if work == "evaluate":  # once more if it was killed between its end and its exit
        found["out/numbers.json"] = json.dumps(json.loads(found["out/numbers.json"])[-1]).encode()
    return found


def compare(found, expected):
    """The names of files and tensors that differ."""
    return {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A function: what a command leaves that nothing stops, the seconds it takes, and the bytes on the disk."""
    known = {}

    def unbroken(work):
        if work not in known:
            folder, start = tmp_path_factory.mktemp("unbroken") / work, time.monotonic()
            status, lines = finish(*begin(WORKS[work], folder))
            assert status == 0, lines
            seconds = time.monotonic() - start
            known[work] = content(work, folder), seconds, on_disk(folder)
        return known[work]

    return unbroken


def check_words(lines):
    """What a command that ended badly may say."""
    assert not any("Traceback" in line for line in lines), lines


def kill(number, words, folder, random, seconds, size):
    """A signal, once or twice."""
    for _ in range(random.randint(1, 2)):
        process, said = begin(words, folder)
        process.join(random.uniform(0, seconds))
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
        status, lines = finish(process, said)
        assert status in ENDS[number] | {0}, lines
        check_words(lines)


def second(words, folder, random, seconds, size):
    """Another one in the same folder."""
    both = []
    for number in range(2):
        both.append(begin(words, folder, number))
        time.sleep(random.uniform(0, seconds / 2) * (1 - number))
    ends = sorted((finish(*each) for each in both), key=lambda end: end[0])
    if ends[1][0]:  # else the first had ended before the second came
        assert [status for status, _ in ends] == [0, 2], ends
        assert "another diffit is at work in " in ends[1][1][-1]


def vanish(words, folder, random, seconds, size):
    """The folder goes and returns, as a drive does; what is written there meanwhile goes."""
    process, said = begin(words, folder)
    process.join(random.uniform(0, seconds))
    with suppress(FileNotFoundError):
        (folder / "out").rename(folder / "away")
        process.join(random.uniform(0, seconds))
        while (folder / "away").exists():
            shutil.rmtree(folder / "out", ignore_errors=True)
            with suppress(OSError):  # something was written there just now
                (folder / "away").rename(folder / "out")
    status, lines = finish(process, said)
    assert status in (0, 2), (status, lines)
    check_words(lines)


def leap(after, by):
    """The clock of the day jumps; that which only goes forwards does not."""
    now, start = time.time, time.monotonic()
    time.time = lambda: now() + by * (time.monotonic() - start > after)


def jump(words, folder, random, seconds, size):
    """The clock jumps by up to a year, and the process is killed."""
    prepare = partial(leap, random.uniform(0, seconds), random.uniform(-3e7, 3e7))
    process, said = begin(words, folder, prepare=prepare)
    if random.random() < 0.5:
        process.join(random.uniform(0, seconds))
        process.kill()
    status, lines = finish(process, said)
    assert status in (0, -signal.SIGKILL), (status, lines)


def in_little_room(words, folder, said, room, copy):
    """Run a command on a disk of so many bytes, in a namespace of its own, and copy what it left to another disk."""
    libc, user = ctypes.CDLL(None, use_errno=True), f"0 {os.getuid()} 1"
    if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if os.getuid() else 0)) == 0 and os.getuid():
        Path("/proc/self/uid_map").write_text(user)
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", folder], capture_output=True)
    if mount.returncode:
        os._exit(77)
    furnish(folder)
    if not os.fork():
        command(words, folder, said, int)
    _, status = os.wait()
    shutil.copytree(folder, copy)
    os._exit(os.waitstatus_to_exitcode(status))


def full(words, folder, random, seconds, size):
    """The disk is full before the end, and there is a larger one then."""
    furnish(empty := folder.with_name("empty"))
    room, copy, said = random.randint(on_disk(empty), size), folder.with_name("copy"), folder.with_name("full.txt")
    process = FORKSERVER.Process(target=in_little_room, args=(words, folder, said, room, copy))
    process.start()
    process.join(300)
    if process.exitcode == 77:
        pytest.skip("this machine mounts no small disk for a user")
    lines = said.read_text().splitlines()
    assert process.exitcode in (0, 2), lines
    assert process.exitcode == 0 or re.search(r"No space left|takes .* GB, but .* has", lines[-1]), lines
    check_words(lines)
    folder.rmdir()
    copy.rename(folder)


def on_disk(folder):
    """Bytes of whole pages below a folder."""
    return sum(-(-path.lstat().st_size // 4096) * 4096 or 4096 for path in folder.rglob("*"))


TROUBLES = {number.name: partial(kill, number) for number in ENDS}
TROUBLES |= {"second": second, "gone": vanish, "clock": jump, "full": full}


def survives(seed, work, trouble, folder, unbroken):
    """Let a command meet trouble, then end, and compare."""
    expected, seconds, size = unbroken(work)
    TROUBLES[trouble](WORKS[work], folder, Random(seed), seconds, size)
    status, lines = finish(*begin(WORKS[work], folder))
    assert status == 0, lines
    assert compare(content(work, folder), expected) == set()


@pytest.mark.parametrize(
    ("work", "trouble"),
    [("image", "SIGKILL"), ("encode", "SIGTERM"), ("sample", "SIGINT"), ("pack", "SIGKILL"), ("image", "second")],
)
def test_trouble_changes_nothing_in_the_end(work, trouble, tmp_path, unbroken):
    survives(0, work, trouble, tmp_path / "here", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 1 + ROUNDS))
def test_no_command_is_changed_by_any_trouble(seed, tmp_path, unbroken):
    work, trouble = list(WORKS)[seed % len(WORKS)], list(TROUBLES)[seed // len(WORKS) % len(TROUBLES)]
    survives(seed, work, trouble, tmp_path / "here", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 1 + ROUNDS // 50))
def test_two_processes_of_which_one_is_killed_go_on(seed, tmp_path):
    random, who = Random(seed), ("worker", "launcher", "both")[seed % 3]
    whole, folder, start = tmp_path / "whole", tmp_path / "here", time.monotonic()
    assert finish(*begin(PAIR, whole))[0] == 0
    seconds = time.monotonic() - start
    process, said = begin(PAIR, folder)
    process.join(random.uniform(seconds / 3, seconds))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = list(map(int, children.read_text().split())) if children.exists() else []
    with suppress(ProcessLookupError):
        for pid in {"worker": workers[-1:], "launcher": [process.pid], "both": [process.pid, *workers]}[who]:
            os.kill(pid, signal.SIGKILL)
    check_words(finish(process, said)[1])
    for _ in range(100):  # the launcher's death may leave the others at work for a while
        status, lines = finish(*begin(PAIR, folder))
        if status == 0:
            break
        assert "another diffit is at work in " in lines[-1], lines
        time.sleep(1)
    assert compare(content("image", folder), content("image", whole)) == set()
