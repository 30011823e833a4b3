"""Pictures of pictures, and curves."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from diffit_lib.utils.plots import captioned, enlargement, loss_curve, tile, write_figure, write_png

ROWS = [
    {"images": "16", "loss": "1.5", "test_loss": "2.0", "test_loss_0.1": "1.0", "test_loss_2": "3.0"},
    {"images": "32", "loss": "nan", "test_loss": "1.0", "test_loss_0.1": "0.5", "test_loss_2": "1.5"},
]


class TestTile:
    def test_puts_images_row_by_row_with_white_between(self):
        images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 1), np.uint8)
        sheet = tile(images, columns=2, scale=1)
        assert (sheet.dtype, sheet.shape) == (np.uint8, (3 * 3 + 1, 2 * 4 + 1, 1))
        expected = np.full((10, 9), 255)
        for number, (top, left) in enumerate([(1, 1), (1, 5), (4, 1), (4, 5), (7, 1)], start=1):
            expected[top : top + 2, left : left + 3] = number
        assert np.array_equal(sheet[..., 0], expected)

    def test_enlarges_pixels_into_crisp_squares(self):
        images = np.array([[0, 50], [100, 150]], np.uint8).reshape(1, 2, 2, 1).repeat(3, axis=3)
        sheet = tile(images, columns=1, scale=4)
        assert sheet.shape == (16, 16, 3)
        inside = sheet[4:-4, 4:-4]
        assert np.array_equal(inside, images[0].repeat(4, axis=0).repeat(4, axis=1))
        assert (sheet[:4] == 255).all()

    def test_without_a_gap_is_the_images_alone(self):
        images = np.arange(16, dtype=np.uint8).reshape(4, 2, 2, 1)
        expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
        assert np.array_equal(tile(images, 2, scale=1, gap=0)[..., 0], expected)

    @pytest.mark.parametrize(("side", "scale"), [(8, 8), (28, 2), (32, 2), (64, 1), (256, 1)])
    def test_enlargement_brings_images_to_about_64_pixels(self, side, scale):
        assert enlargement(np.zeros((1, side, side, 3))) == scale


class TestCaptions:
    def test_stand_over_columns_and_left_of_rows_and_the_picture_stays_as_it_is(self):
        images = np.random.default_rng(0).integers(256, size=(6, 64, 64, 3), dtype=np.uint8)
        sheet = tile(images, 3, scale=1)
        named = captioned(sheet, ["0.5", "", "80"], ["cat", ""], "σ")
        (height, width), (top, left) = sheet.shape[:2], np.subtract(named.shape[:2], sheet.shape[:2])
        assert np.array_equal(named[top:, left:], sheet)
        inked = named[..., 0] < 128
        thirds = [inked[:top, left + k * width // 3 : left + (k + 1) * width // 3].any() for k in range(3)]
        halves = [inked[top + k * height // 2 : top + (k + 1) * height // 2, :left].any() for k in range(2)]
        assert (thirds, halves, inked[:top, :left].any()) == ([True, False, True], [True, False], True)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_long_ones_shrink_until_they_stay_apart(self, channels):
        sheet = tile(np.zeros((4, 32, 32, channels), np.uint8), 4, scale=2)
        named = captioned(sheet, ["automobile"] * 4)
        inked = (named[: -sheet.shape[0], :, 0] < 128).any(0)
        assert named.shape[2] == channels
        assert not inked[[0, 66, 132, 198, -1]].any()
        assert all(inked[k * 66 : (k + 1) * 66].any() for k in range(4))

    def test_without_any_nothing_is_added(self):
        sheet = np.zeros((5, 7, 1), np.uint8)
        assert np.array_equal(captioned(sheet), sheet)


class TestWriting:
    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
    def test_png_holds_every_pixel(self, tmp_path, channels, mode):
        picture = np.random.default_rng(0).integers(256, size=(5, 7, channels), dtype=np.uint8)
        write_png(tmp_path / "new" / "a.png", picture)
        with Image.open(tmp_path / "new" / "a.png") as image:
            assert (image.format, image.mode, image.size) == ("PNG", mode, (7, 5))
            assert np.array_equal(np.asarray(image).reshape(picture.shape), picture)

    def test_figure_is_written_as_png_whole_or_not_at_all(self, tmp_path, monkeypatch):
        write_figure(tmp_path / "a.png", Figure(figsize=(2, 1)))
        with Image.open(tmp_path / "a.png") as image:
            assert (image.format, image.size) == ("PNG", (288, 144))
        before = (tmp_path / "a.png").read_bytes()

        def fail(self, path, **options):
            path.write_bytes(b"half")
            raise RuntimeError

        monkeypatch.setattr(Figure, "savefig", fail)
        with pytest.raises(RuntimeError):
            write_figure(tmp_path / "a.png", Figure())
        assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


class TestLossCurve:
    def test_shows_losses_over_images_and_over_noise_levels(self):
        left, right = loss_curve(ROWS).axes
        training, test = left.lines
        assert list(training.get_xdata()) == list(test.get_xdata()) == [16, 32]
        assert list(test.get_ydata()) == [2.0, 1.0]
        assert np.array_equal(training.get_ydata(), [1.5, np.nan], equal_nan=True)
        assert [list(line.get_xdata()) for line in right.lines] == [[0.1, 2], [0.1, 2]]
        assert [list(line.get_ydata()) for line in right.lines] == [[1, 3], [0.5, 1.5]]
        assert right.get_xscale() == "log"
        first, last = (line.get_alpha() for line in right.lines)
        assert first < last == 1

    def test_one_row_is_enough(self):
        assert len(loss_curve(ROWS[:1]).axes[1].lines) == 1

    def test_shows_the_frechet_distance_where_it_was_taken(self):
        rows = [ROWS[0] | {"frechet": "", "images": 16}, ROWS[0] | {"frechet": 0.0, "images": 32}]
        quality = loss_curve(rows, expected=[ROWS[0] | {"frechet": "2.5"}]).axes[2]
        expected, mine = quality.lines
        assert (list(expected.get_xdata()), list(expected.get_ydata())) == ([16], [2.5])
        assert (list(mine.get_xdata()), list(mine.get_ydata())) == ([32], [0.0])
        assert len(loss_curve(rows).axes) == len(loss_curve(ROWS).axes) == 2  # one point is no curve

    def test_shows_the_expected_curve_behind_when_there_is_one(self):
        left, right = loss_curve(ROWS, expected=ROWS[:1]).axes
        assert list(left.lines[0].get_ydata()) == [2.0]
        assert list(right.lines[0].get_ydata()) == [1, 3]
        assert left.lines[0].get_label() == "test, expected"
