"""Images given as files, to be measured as they lie; arrays that others wrote are read and never unpickled."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from diffit_lib.evaluation.image_files import NAMES, is_image_files, read_images, read_statistics, write_statistics
from diffit_lib.evaluation.metrics import Reference
from diffit_lib.utils.errors import DiffitError

PIXEL_SPACE = np.random.default_rng(0).integers(256, size=(6, 4, 5, 3)).astype(np.uint8)


class Tiny:
    """What is asked of an extractor whose statistics are read."""

    name, num_features, num_spatial = "tiny", 3, 2


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_holds_images_and_their_classes(tmp_path, save):
    save(tmp_path / "a.npz", PIXEL_SPACE, np.array([2, 0, 1, 2, 0, 1]))
    given = read_images(tmp_path / "a.npz")
    assert torch.equal(given.images, torch.from_numpy(PIXEL_SPACE).permute(0, 3, 1, 2))
    assert (given.name, given.labels.tolist(), given.class_names) == ("a.npz", [2, 0, 1, 2, 0, 1], ("0", "1", "2"))


def test_npz_of_labels_under_another_name_is_not_taken_in_silence(tmp_path, capsys):
    path = saved(tmp_path / "a.npz", arr_0=PIXEL_SPACE, labels=np.arange(6), mu=np.zeros(3))
    assert read_images(path).class_names == ()
    assert "a.npz: skipped labels, which are no images" in capsys.readouterr().err


def test_npz_of_a_version_that_nobody_knows_is_refused(tmp_path):
    path = saved(tmp_path / "a.npz", arr_0=PIXEL_SPACE)
    path.write_bytes(path.read_bytes().replace(b"NUMPY\x01\x00", b"NUMPY\x04\x00"))
    with pytest.raises(DiffitError, match=r"is of version \(4, 0\)|Bad CRC"):
        read_images(path)


def test_npz_that_is_not_compressed_stays_on_disk(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.npz", arr_0=PIXEL_SPACE)
    monkeypatch.setattr("numpy.lib.format.read_array", lambda *_, **__: pytest.fail("read as a whole"))
    given = read_images(path)
    assert torch.equal(given.images[2:4], torch.from_numpy(PIXEL_SPACE[2:4]).permute(0, 3, 1, 2))
    given.images[:] = 0  # a copy in memory alone
    assert torch.equal(read_images(path).images, torch.from_numpy(PIXEL_SPACE).permute(0, 3, 1, 2))


def test_npz_of_grey_images_has_one_channel_however_it_is_written(tmp_path):
    grey = PIXEL_SPACE[..., :1]
    one, three = (read_images(saved(tmp_path / f"{k}.npz", arr_0=grey.repeat(k, axis=-1))) for k in (1, 3))
    assert one.images.shape == (6, 1, 4, 5)
    assert torch.equal(one.images, three.images)


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": PIXEL_SPACE}, "a.npz has images, but no arr_0; give images, uint8"),
        ({"arr_0": PIXEL_SPACE / 255}, r"arr_0 is float64 \(6, 4, 5, 3\); give uint8 \(N, H, W, C\)"),
        ({"arr_0": PIXEL_SPACE.transpose(0, 3, 1, 2)}, r"arr_0 is uint8 \(6, 3, 4, 5\); give uint8 \(N, H, W, C\)"),
        ({"arr_0": PIXEL_SPACE[0]}, r"arr_0 is uint8 \(4, 5, 3\)"),
        ({"arr_0": PIXEL_SPACE[:0]}, r"arr_0 is uint8 \(0, 4, 5, 3\)"),
        ({"arr_0": np.array([Bomb()], object)}, "a.npz is no whole .npz of plain arrays .*; write or download it anew"),
        (
            {"arr_0": PIXEL_SPACE, "arr_1": np.arange(5)},
            r"arr_1 is int64 \(5,\); give a class, 0 or more, for each of 6",
        ),
        ({"arr_0": PIXEL_SPACE, "arr_1": np.eye(6)}, r"arr_1 is float64 \(6, 6\)"),
    ],
)
def test_npz_of_anything_else_is_refused_in_one_line(tmp_path, arrays, says):
    with pytest.raises(DiffitError, match=says) as error:
        read_images(saved(tmp_path / "a.npz", **arrays))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_that_was_cut_is_refused_in_one_line(tmp_path, save):
    save(tmp_path / "a.npz", PIXEL_SPACE)
    whole = (tmp_path / "a.npz").read_bytes()
    for length in (0, 100, len(whole) - 30, len(whole) - 1):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(DiffitError, match="of plain arrays") as error:
            read_images(tmp_path / "a.npz")
        assert "\n" not in str(error.value)
    with pytest.raises(DiffitError, match=r"there is no file .*b\.npz"):
        read_images(tmp_path / "b.npz")


def test_all_images_of_a_folder_count_whatever_part_they_lie_in(tmp_path):
    folder = tmp_path / "set"
    for k, place in enumerate(("train/a", "train/b", "val/a")):
        (folder / place).mkdir(parents=True)
        Image.fromarray(PIXEL_SPACE[k]).save(folder / place / "x.png")
    given = read_images(folder)
    assert (len(given), given.class_names, given.labels.tolist()) == (3, ("a", "b"), [0, 1, 0])
    assert torch.equal(given.images[torch.arange(3)], torch.from_numpy(PIXEL_SPACE[:3]).permute(0, 3, 1, 2))
    assert read_images(folder, (1, 2, 2)).images[torch.arange(2)].shape == (2, 1, 2, 2)


def test_of_a_folder_that_sample_made_the_images_alone_count(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(PIXEL_SPACE[0]).save(tmp_path / "images" / "000000.png")
    Image.fromarray(PIXEL_SPACE.reshape(24, 5, 3)).save(tmp_path / "grid.png")
    (tmp_path / "index.csv").touch()
    assert len(read_images(tmp_path)) == 1


def test_what_sample_made_without_images_is_refused(tmp_path):
    one = tmp_path / "guidance-2"
    one.mkdir()
    for name in ("index.csv", "settings.json"):
        (one / name).touch()
    Image.fromarray(PIXEL_SPACE.reshape(24, 5, 3)).save(one / "grid.png")
    with pytest.raises(DiffitError, match="guidance-2 holds a grid of its images alone"):
        read_images(one)
    with pytest.raises(DiffitError, match=r"for each guidance; give one of them: .*guidance-2"):
        read_images(tmp_path)


def test_a_folder_called_like_ready_made_weights_is_given_with_a_dot(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "drawn"):
        (tmp_path / name).mkdir()
    assert (is_image_files("digits"), is_image_files("./digits"), is_image_files("drawn")) == (False, True, True)


def test_images_of_several_sizes_are_refused(tmp_path):
    for k in (4, 5):
        Image.fromarray(np.zeros((k, 4), np.uint8)).save(tmp_path / f"{k}.png")
    given = read_images(tmp_path)
    with pytest.raises(DiffitError, match=r"5\.png has .* \(1, 5, 4\), the first image \(1, 4, 4\)"):
        given.images[torch.arange(2)]


def statistics(size):
    return {"mu": np.arange(size) / 2, "sigma": np.eye(size)}


def test_statistics_are_read_as_they_were_written(tmp_path):
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in ((3,), (3, 3), (2,), (2, 2))]
    reference = Reference(tensors[0], tensors[1], torch.zeros(9, 3), tensors[2], tensors[3])
    write_statistics(tmp_path / "a.npz", reference)
    assert zipfile.ZipFile(tmp_path / "a.npz").namelist() == [f"{name}.npy" for name in NAMES.values()]
    again = read_statistics(tmp_path / "a.npz", Tiny())
    assert again.features is None
    for name in NAMES:
        assert torch.equal(getattr(again, name), getattr(reference, name))


def test_statistics_of_others_may_be_float32_and_without_those_of_sfid(tmp_path):
    arrays = {name: values.astype(np.float32) for name, values in statistics(3).items()}
    found = read_statistics(saved(tmp_path / "a.npz", **arrays), Tiny())
    assert (found.mean.tolist(), found.mean.dtype, found.spatial_mean) == ([0, 0.5, 1], torch.float64, None)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            statistics(4),
            r"a.npz: mu is float64 \(4,\), and tiny has float \(3,\); give statistics of the same features",
        ),
        (statistics(3) | {"sigma": np.eye(4)}, r"sigma is float64 \(4, 4\), and tiny has float \(3, 3\)"),
        ({"mu": np.zeros(3)}, "holds mu, but no sigma; give complete statistics"),
        (statistics(3) | {"mu_s": np.zeros(2)}, "but no sigma_s"),
        (
            statistics(3) | {"mu_s": np.zeros(3), "sigma_s": np.eye(3)},
            r"mu_s is float64 \(3,\), and tiny has float \(2,\)",
        ),
        (statistics(3) | {"mu": np.array([0, np.nan, 0])}, "mu is not finite"),
        ({"mu": np.array([Bomb()] * 3, object), "sigma": np.eye(3)}, "no whole .npz of plain arrays"),
    ],
)
def test_statistics_that_do_not_fit_are_refused_in_one_line(tmp_path, arrays, says):
    with pytest.raises(DiffitError, match=says) as error:
        read_statistics(saved(tmp_path / "a.npz", **arrays), Tiny())
    assert "\n" not in str(error.value)


def test_a_folder_that_sample_has_not_drawn_to_its_end_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(DiffitError, match="is not complete; run its `diffit sample` command again"):
        read_images(tmp_path)
