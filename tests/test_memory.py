"""Images in memory or decoded when used: the same images, and what is said of their size."""

import os
import pickle
import platform
import subprocess
import sys
import tarfile
import zipfile
from itertools import islice

import pytest
import torch
from image_files import fill, noise, zipped
from torch.utils.data import DataLoader, TensorDataset

from diffit_lib.config.experiment import TrainingConfig
from diffit_lib.data import preprocess
from diffit_lib.data.datasets import Images, load_data
from diffit_lib.data.sources import ImageList
from diffit_lib.data.stream import TrainingStream
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import total_memory


def test_what_images_take_is_said(capsys):
    load_data("digits", (64, 64), 3)
    said = [line for line in capsys.readouterr().err.splitlines() if "MB" in line]  # no progress bar of a busy machine
    assert said == [
        "digits/train: 1,437 images, 17.7 MB in memory",
        "digits/test: 360 images, 4.4 MB in memory",
    ]


def test_nothing_is_said_of_a_megabyte(capsys):
    load_data("digits")
    assert capsys.readouterr().err == ""


@pytest.fixture(params=["folder", "zip", "dataset"])
def source(request, faces):
    if request.param == "dataset":
        return [(noise(k), k % 3) for k in range(60)]
    return faces if request.param == "folder" else zipped(faces)


def test_images_too_many_for_memory_are_the_same_images(source, capsys):
    held, left = load_data(source), load_data(source, memory_gb=0)
    assert "exceed memory_gb=0, decoded when used" in capsys.readouterr().err
    for one, other in zip(held, left, strict=True):
        assert isinstance(one.images, torch.Tensor)
        assert not isinstance(other.images, torch.Tensor)
        assert (len(other), other.images.shape) == (len(one), tuple(one.images.shape))
        assert torch.equal(other.images[:], one.images)
        assert torch.equal(other.images[[-1, 0]], one.images[[-1, 0]])
        assert torch.equal(other.labels, one.labels)
        assert other.fingerprint() == one.fingerprint()
        assert other.standard_deviation() == one.standard_deviation()
        some = other.take(torch.tensor([0, 0]), "some")
        assert torch.equal(some.images, one.images[[0, 0]])


@pytest.mark.parametrize("workers", [0, 2])
def test_training_streams_them_with_any_number_of_workers(source, workers):
    training = TrainingConfig(batch_size=8, flip=True)
    held, left = (load_data(source, memory_gb=limit).train for limit in (1, 0))
    loader = DataLoader(TrainingStream(left, training), batch_size=None, num_workers=workers)
    for number, batch in enumerate(islice(loader, 6)):
        for one, other in zip(batch, TrainingStream(held, training).batch(number), strict=True):
            assert torch.equal(one, other)


def test_every_process_opens_a_zip_for_itself(faces, monkeypatch):
    images = load_data(zipped(faces), memory_gb=0).train.images
    opened, real = [], zipfile.ZipFile
    monkeypatch.setattr(zipfile, "ZipFile", lambda *args: opened.append(args) or real(*args))
    images[[0, 1]]
    assert not opened
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a worker: forked ones would share one file position
    images[[0, 1]]
    assert opened  # two threads that decode may both open it; neither takes the parent's


def test_they_can_be_sent_to_another_process(source):
    images = load_data(source, memory_gb=0).train.images
    assert torch.equal(pickle.loads(pickle.dumps(images))[[0, 5]], images[[0, 5]])


def test_an_unreadable_one_stops_with_its_name_when_it_is_met(faces):
    fill(faces, {"b/zzz.png": b"nonsense"})
    parts = load_data(faces, memory_gb=0)
    with pytest.raises(DiffitError, match=r"b/zzz\.png cannot be read"):
        [part.images[:] for part in parts]


def test_unreadable_ones_are_left_out_beforehand_where_asked(faces, capsys):
    whole = load_data(faces)
    fill(faces, {"b/zzz.png": b"nonsense"})
    left = load_data(faces, memory_gb=0, skip_bad=True)
    assert not any(isinstance(part.images, torch.Tensor) for part in left)
    assert [part.fingerprint() for part in left] == [part.fingerprint() for part in whole]
    assert "skipped 1 of" in capsys.readouterr().err


def test_every_image_counts_in_a_fingerprint_whatever_the_memory():
    pixels = torch.arange(2500).remainder(251).byte().view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    labels = torch.zeros(2500, dtype=torch.int64)
    held, left = (load_data(TensorDataset(pixels, labels), memory_gb=memory).train for memory in (1, 0))
    assert held.fingerprint() == left.fingerprint()
    assert held.standard_deviation() == left.standard_deviation()
    other = pixels.clone()
    other[1] += 1
    assert load_data(TensorDataset(other, labels), memory_gb=0).train.fingerprint() != held.fingerprint()


@pytest.mark.parametrize("zip_it", [False, True])
def test_files_are_looked_at_once_and_again_when_they_changed(zip_it, faces, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))

    source = zipped(faces) if zip_it else faces

    def look():
        return load_data(source, memory_gb=0).train.fingerprint()

    first, decode = look(), Images._look
    monkeypatch.setattr(Images, "_look", lambda self: pytest.fail("decoded all images again"))
    assert look() == first
    monkeypatch.setattr(Images, "_look", decode)
    for written in (tmp_path / "cache" / "fingerprints").iterdir():
        written.write_text("[1]")  # damaged ones count as none
    assert look() == first
    changed = next(faces.rglob("*.png"))
    fill(faces, {changed.relative_to(faces).as_posix(): noise(99)})
    source = zipped(faces) if zip_it else faces
    assert look() != first


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_other_files_of_the_same_names_sizes_and_times_are_looked_at_for_themselves(form, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))

    def look(name, seed):
        folder = fill(tmp_path / name / "photos", {f"{k}.bmp": noise(seed + k) for k in range(3)})
        for path in folder.iterdir():
            os.utime(path, (400_000_000, 400_000_000))
        source = folder
        if form == "zip":
            source = zipped(folder)
        elif form == "tar":
            source = folder.with_suffix(".tar")
            with tarfile.open(source, "w") as archive:
                for path in sorted(folder.iterdir()):
                    archive.add(path, path.name)
        os.utime(source, (400_000_000, 400_000_000))
        left, held = (load_data(source, memory_gb=memory).train for memory in (0, 1))
        assert left.fingerprint() == held.fingerprint()
        assert left.standard_deviation() == held.standard_deviation()
        return left.fingerprint()

    assert look("one", 0) != look("other", 50)
    assert look("one", 7) not in (look("other", 50), look("third", 0))  # written anew in place


def test_fingerprints_tell_pixels_labels_and_shapes_apart():
    def mark(values, labels, shape):
        pixels = torch.tensor(values, dtype=torch.uint8).view(2, *shape)
        return load_data(TensorDataset(pixels, torch.tensor(labels))).train.fingerprint()

    marks = [
        mark([1, 2, 3, 4], [0, 1], (1, 1, 2)),
        mark([1, 2, 3, 5], [0, 1], (1, 1, 2)),
        mark([1, 2, 3, 4], [1, 0], (1, 1, 2)),
        mark([1, 2, 3, 4], [0, 1], (1, 2, 1)),
    ]
    assert len(set(marks)) == 4


def test_whoever_takes_pictures_slowly_holds_few(monkeypatch):
    monkeypatch.setattr(preprocess, "AHEAD", 4)
    many = ImageList("many", list(map(str, range(100))), lambda key: None, torch.zeros(100), (), threads=3)
    made = []
    for taken, key in preprocess.decode_each(many, lambda key: made.append(key) or key):
        assert key == str(taken)
        assert len(made) - taken <= 12
    assert len(made) == 100


def test_a_picture_that_breaks_under_workers_is_told_in_one_line(faces):
    train = load_data(faces, memory_gb=0).train
    for path in faces.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(
        DiffitError, match=r"^faces: \w/\d+\.png cannot be read \(of no known image format\); .*True\)$"
    ):
        next(iter(DataLoader(TrainingStream(train, TrainingConfig(batch_size=8)), batch_size=None, num_workers=2)))


@pytest.mark.parametrize(
    ("line", "file"),
    [("0::/job/step", "job/memory.max"), ("9:memory:/docker/x", "memory/memory.limit_in_bytes")],
)
def test_memory_is_what_a_container_or_job_grants(tmp_path, line, file):
    groups = tmp_path / "cgroup"
    groups.write_text(f"3:cpu:/\n{line}\n")
    whole = total_memory(groups, tmp_path / "empty")
    fill(tmp_path, {file: b"max\n"})
    assert total_memory(groups, tmp_path) == whole
    fill(tmp_path, {file: b"1000000\n"})
    assert total_memory(groups, tmp_path) == 1_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told")
def test_freed_memory_is_used_again_without_new_pages():
    script = """
import resource, torch
from diffit_lib.utils.tensors import reuse_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(2**24)  # 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
before = faults()
reuse_freed_memory()
faults()
print(faults() < before / 10)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True"], done.stderr
