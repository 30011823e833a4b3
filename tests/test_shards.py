"""WebDataset's shards and data sets of the `datasets` library give the images and classes that a folder gives."""

import io
import sys
import tarfile

import pytest
import torch
from image_files import noise, png, refused

from diffit_lib.cli.estimate import describe_data
from diffit_lib.cli.info import are_images
from diffit_lib.data.datasets import load_data
from diffit_lib.data.sources import list_images


def pack(path, files, **member):
    """Write a tar of these files; `member` changes the header of each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in member.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(number, label=None, suffix="cls"):
    """The files of one sample."""
    files = {f"{number:05d}.png": png(noise(number))}
    content = {"cls": f"{label}", "json": f'{{"label": {label}, "caption": "a"}}'}[suffix]
    return files if label is None else {**files, f"{number:05d}.{suffix}": content.encode()}


def samples(numbers, suffix="cls"):
    """Samples in two classes in turn."""
    return {name: content for k in numbers for name, content in sample(k, k % 2, suffix).items()}


def check(data, train, test):
    """The images are `noise` of these seeds, in two classes in turn."""
    for part, seeds in zip(data, (train, test), strict=True):
        assert part.labels.tolist() == [seed % 2 for seed in seeds]
        expected = [torch.tensor(list(noise(seed).tobytes())).view(8, 8, 3).permute(2, 0, 1) for seed in seeds]
        assert torch.equal(part.images[torch.arange(len(part))], torch.stack(expected).byte())


@pytest.mark.parametrize("suffix", ["cls", "json"])
@pytest.mark.parametrize("name", ["train-{:03d}.tar", "train/{:03d}.tar"])
@pytest.mark.parametrize("memory_gb", [None, 1e-9])
def test_a_folder_of_shards_is_its_samples(tmp_path, suffix, name, memory_gb):
    pack(tmp_path / name.format(0), samples(range(4), suffix))
    pack(tmp_path / name.format(1), samples(range(4, 9), suffix))
    pack(tmp_path / name.format(0).replace("train", "val"), samples(range(9, 12), suffix))
    (tmp_path / "README.txt").write_text("words")
    check(load_data(tmp_path, memory_gb=memory_gb), range(9), range(9, 12))


def test_one_shard_is_divided_like_a_folder_and_described(tmp_path):
    shard = pack(tmp_path / "mine.tar", samples(range(80)) | {"00099.cls": b"0"})
    data = load_data(shard)
    assert (len(data.train) + len(data.test), data.test is data.train) == (80, False)
    assert data.train.class_names == ("0", "1")
    assert are_images(str(shard))
    assert "80 images" in describe_data(shard).splitlines()[0]
    assert load_data(pack(tmp_path / "none.tar", sample(0) | sample(1))).train.class_names == ()


def test_images_beside_a_tar_are_the_data(faces):
    pack(faces / "original.tar", samples(range(4)))
    assert list_images(faces).train.class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.write_bytes(b"no tar at all" * 100), r"is no whole tar"),
        (lambda path: path.write_bytes(pack(path, samples(range(3))).read_bytes()[:700]), r"is no whole tar"),
        (lambda path: pack(path, {"a.txt": b"words"}), r"holds no images"),
        (lambda path: pack(path, {"a.png": b""}, type=tarfile.SYMTYPE, linkname="/etc/passwd"), r"holds no images"),
        (lambda path: pack(path, {"a.png": b""}, type=tarfile.FIFOTYPE), r"holds no images"),
        (lambda path: pack(path, samples([0]) | sample(2)), r"00002\.png has no \.cls, others have; add it$"),
        (lambda path: pack(path, sample(0, "cat")), r"00000\.png: its \.cls cannot be read .*; write a number, as 3$"),
        (lambda path: pack(path, sample(0, "[" * 9999, "json")), r"00000\.png: its \.json cannot be read"),
        (lambda path: pack(path, samples([0])).write_bytes(header(2**40, b"x")), r"a header of 1099511627776 bytes"),
        (lambda path: path.write_bytes(header(-512, b"0") + bytes(4096)), r"is no whole tar"),
        (lambda path: path.write_bytes(pack(path, samples(range(3))).read_bytes()[:2048]), r"not end as a tar does"),
        (lambda path: path.write_bytes(spoil(pack(path, samples(range(3))).read_bytes())), r"not end as a tar does"),
        (lambda path: path.write_bytes(pack(path, samples([0])).read_bytes() * 2), r"not end as a tar does"),
        (lambda path: path.write_bytes(header(900_000, b"x") + b"1" * 901_000), r"a number of \d+ digits"),
        (lambda path: pack(path, sample(0, 0) | sample(0, 1, "json")), r"its \.cls says 0, its \.json 1; keep one$"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, make, problem):
    make(tmp_path / "a.tar")
    refused(tmp_path / "a.tar", problem)


def header(size, kind):
    """A tar header with a size that is not there."""
    info = tarfile.TarInfo("a.png")
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def spoil(content):
    """Break the checksum of the third header."""
    return content[:2048] + b"x" + content[2049:]


def test_what_is_left_out_of_a_shard_is_said(tmp_path, capsys):
    pack(tmp_path / "a.tar", {**samples(range(60)), "/00003.png": png(noise(99)), "00004.jpg": b"x", "alone.txt": b"x"})
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("passwords.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    data = list_images(tmp_path / "a.tar")
    assert sum(map(len, data)) == 60
    assert sum(len(part.labels) for part in data) == 60
    assert "left out 4 files (no image of that key, there twice, or no regular file), as " in capsys.readouterr().err


def test_a_member_that_is_vast_is_an_image_that_cannot_be_read(tmp_path, monkeypatch):
    shard = pack(tmp_path / "a.tar", samples(range(60)))
    monkeypatch.setattr("diffit_lib.data.shards.read.__defaults__", (100,))
    refused(shard, r"00000\.png.*MB are more than 0")


def test_without_the_datasets_library_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refused("hf:me/cats", r"^hf:me/cats needs the datasets library; pip install datasets, or give a folder$")


@pytest.fixture
def hub_data(tmp_path, monkeypatch):
    """A local data set of two splits, in parquet, as the hub has it: `hf:FOLDER`."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed; pip install 'datasets>=4'")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for part, numbers in {"train": range(9), "validation": range(9, 12), "extra": range(60)}.items():
        columns = {"caption": ["a"] * len(numbers), "img": [{"bytes": png(noise(k)), "path": None} for k in numbers]}
        columns["label"] = [k % 2 for k in numbers]
        kinds = {"caption": datasets.Value("string"), "img": datasets.Image()}
        features = datasets.Features(kinds | {"label": datasets.ClassLabel(names=["cat", "dog"])})
        data = datasets.Dataset.from_dict(columns, features=features)
        data.to_parquet(tmp_path / "cats" / "data" / f"{part}-00000-of-00001.parquet")
    return f"hf:{tmp_path / 'cats'}"


@pytest.mark.parametrize("memory_gb", [None, 1e-9])
def test_a_data_set_of_the_hub_has_its_splits_and_names(hub_data, memory_gb, capsys):
    data = load_data(hub_data, memory_gb=memory_gb)
    check(data, range(9), range(9, 12))
    assert data.train.class_names == ("cat", "dog")
    assert "left out extra" in capsys.readouterr().err


def test_a_test_split_that_keeps_its_classes_secret_is_left_out(hub_data, tmp_path, capsys):
    import datasets

    secret = datasets.load_dataset(hub_data[3:], split="validation")
    secret = secret.map(lambda row: row | {"label": -1}, features=secret.features)
    secret.to_parquet(tmp_path / "cats" / "data" / "test-00000-of-00001.parquet")
    check(load_data(hub_data), range(9), range(9, 12))
    assert f"left out test, extra; {hub_data}:extra takes it" in capsys.readouterr().err


def test_one_split_is_divided_and_described(hub_data):
    data = load_data(f"{hub_data}:extra")
    assert (len(data.train) + len(data.test), data.test is data.train) == (60, False)
    assert are_images(f"{hub_data}:extra")
    assert "60 images" in describe_data(f"{hub_data}:extra").splitlines()[0]


def test_what_the_library_cannot_load_is_one_line(hub_data, tmp_path):
    refused(f"{hub_data}:nothing", r"^hf:.*:nothing cannot be loaded \(.*nothing.*; check name, split and network$")
    refused(f"hf:{tmp_path / 'nowhere'}", r"^hf:.*nowhere cannot be loaded \(.*; check name, split and network$")
