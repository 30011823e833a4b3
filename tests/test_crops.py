"""From a picture of any mode and size to pixels."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from image_files import fill, noise, only_image, plain, refused
from PIL import Image

from diffit_lib.data.datasets import load_data
from diffit_lib.data.preprocess import CROPS, to_picture, to_pixels


class TestModes:
    def load(self, tmp_path, picture, suffix="png", **options):
        file = BytesIO()
        picture.save(file, {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix), **options)
        return only_image(fill(tmp_path / "pictures", {f"one.{suffix}": file.getvalue()}))

    def test_colour_is_three_channels_in_order_and_grey_is_one(self, tmp_path):
        picture = noise(0, 2, 3)
        assert torch.equal(self.load(tmp_path, picture), torch.tensor(np.array(picture)).permute(2, 0, 1))
        assert torch.equal(
            self.load(tmp_path, picture.convert("L")), torch.tensor(np.array(picture.convert("L")))[None]
        )

    @pytest.mark.parametrize("mode", ["1", "L", "LA"])
    def test_grey_modes_are_grey(self, tmp_path, mode):
        image = self.load(tmp_path, plain("white").convert(mode))
        assert image.tolist() == torch.full((1, 8, 8), 255).tolist()

    def test_sixteen_bits_are_scaled_to_eight(self, tmp_path):
        levels = np.array([[0, 128 * 257, 200 * 257 + 100, 65535]], dtype=np.uint16)
        assert self.load(tmp_path, Image.fromarray(levels)).tolist() == [[[0, 128, 200, 255]]]

    def test_palette_colours_are_looked_up(self, tmp_path):
        picture = plain("red")
        picture.paste("blue", (0, 0, 4, 8))
        image = self.load(tmp_path, picture.quantize(2))
        assert image[:, 0, 0].tolist() == [0, 0, 255]
        assert image[:, 0, 7].tolist() == [255, 0, 0]

    def test_cmyk_is_ink_not_light(self, tmp_path):
        image = self.load(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "tif")
        assert image[:, 0, 0].tolist() == [255, 0, 0]

    def test_transparency_is_laid_over_white(self, tmp_path):
        picture = plain("red").convert("RGBA")
        picture.putpixel((0, 0), (0, 0, 0, 0))
        picture.putpixel((1, 0), (0, 0, 0, 128))
        image = self.load(tmp_path, picture)
        assert image[:, 0, :3].T.tolist() == [[255, 255, 255], [127, 127, 127], [255, 0, 0]]

    def test_grey_and_palette_transparency_is_laid_over_white_too(self, tmp_path):
        assert self.load(tmp_path, Image.new("LA", (1, 1), (0, 0))).tolist() == [[[255]]]
        assert self.load(tmp_path, plain("red").quantize(2), transparency=0).flatten().unique().tolist() == [255]

    def test_a_photograph_taken_on_its_side_is_turned_upright(self, tmp_path):
        picture, exif = plain("red", (6, 4)), Image.Exif()
        picture.paste("blue", (0, 0, 6, 2))  # the upper half, which lies right once upright
        exif[0x0112] = 6  # turn by 90 degrees clockwise to show
        image = self.load(tmp_path, picture, exif=exif)
        assert image.shape == (3, 6, 4)
        assert image[:, 0, 3].tolist() == [0, 0, 255]
        assert image[:, 0, 0].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("suffix", ["gif", "webp", "tif"])
    def test_of_an_animation_the_first_frame_is_taken(self, tmp_path, suffix):
        image = self.load(tmp_path, plain("red"), suffix, save_all=True, append_images=[plain("blue")])
        torch.testing.assert_close(image[:, 4, 4].int(), torch.tensor([255, 0, 0], dtype=torch.int32), atol=4, rtol=0)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
    def test_all_eight_ways_a_camera_may_be_held_are_undone(self, tmp_path, suffix):
        upright = plain("red", (32, 16))
        upright.paste("blue", (0, 0, 32, 8))
        upright.paste("lime", (0, 0, 8, 8))
        turns = Image.Transpose
        undone_by = {2: turns.FLIP_LEFT_RIGHT, 3: turns.ROTATE_180, 4: turns.FLIP_TOP_BOTTOM, 5: turns.TRANSPOSE}
        undone_by |= {6: turns.ROTATE_270, 7: turns.TRANSVERSE, 8: turns.ROTATE_90}
        undo = {turns.ROTATE_270: turns.ROTATE_90, turns.ROTATE_90: turns.ROTATE_270}
        expected = to_pixels(upright).int()
        for orientation, turn in undone_by.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            image = self.load(tmp_path, upright.transpose(undo.get(turn, turn)), suffix, exif=exif, quality=100)
            torch.testing.assert_close(image[:, 4::8, 4::8].int(), expected[:, 4::8, 4::8], atol=12, rtol=0)

    @pytest.mark.parametrize("marked", [True, False])
    def test_inks_of_a_jpeg_are_inverted_where_adobe_wrote_them(self, tmp_path, marked):
        file = BytesIO()
        inks = (0, 255, 255, 0) if marked else (255, 0, 0, 255)  # Pillow inverts and marks what it writes
        Image.new("CMYK", (8, 8), inks).save(file, "jpeg", quality=100)
        content = file.getvalue()
        start = content.index(b"\xff\xee")
        if not marked:
            content = content[:start] + content[start + 2 + int.from_bytes(content[start + 2 : start + 4], "big") :]
        image = only_image(fill(tmp_path / "inks", {"one.jpg": content}))
        assert image.shape == (3, 8, 8)
        torch.testing.assert_close(image[:, 4, 4].int(), torch.tensor([255, 0, 0], dtype=torch.int32), atol=3, rtol=0)

    @pytest.mark.parametrize(
        ("kind", "channels", "shown"),
        [
            (0, [50], [50]),
            (2, [50, 100, 200], [50, 100, 200]),
            (4, [9, 51], [206]),
            (6, [9, 9, 9, 0], [255, 255, 255]),
        ],
    )
    def test_every_png_of_sixteen_bits_is_scaled_to_eight(self, tmp_path, kind, channels, shown):
        row = b"\0" + np.array(channels * 3, dtype=">u2").__mul__(257).astype(">u2").tobytes()
        header = struct.pack(">IIBBBBB", 3, 2, 16, kind, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row * 2)), (b"IEND", b"")]
        packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
        image = only_image(fill(tmp_path / "deep", {"one.png": b"\x89PNG\r\n\x1a\n" + b"".join(packed)}))
        assert image[:, 1, 2].tolist() == shown

    def test_a_level_that_stands_for_transparency_is_white(self, tmp_path):
        levels = np.array([[0, 257, 514]], dtype=np.uint16)
        assert self.load(tmp_path, Image.fromarray(levels), transparency=257).tolist() == [[[0, 255, 2]]]
        assert self.load(tmp_path, plain("red").convert("L"), transparency=76).unique().tolist() == [255]
        assert self.load(tmp_path, plain("red"), transparency=(255, 0, 0)).unique().tolist() == [255]

    def test_rarer_modes_are_shown_as_they_look(self):
        palette = Image.new("PA", (1, 1), (3, 51))
        palette.putpalette([0] * 768)
        faint = Image.new("RGBA", (1, 1), (0, 0, 0, 51)).convert("RGBa")
        looks = [(palette, [204] * 3), (faint, [204] * 3)]
        for picture, colour in [*looks, *((plain("red").convert(mode), [255, 0, 0]) for mode in ("YCbCr", "HSV"))]:
            assert to_pixels(picture)[:, 0, 0].tolist() == pytest.approx(colour, abs=1)

    def test_floats_have_no_known_range(self, tmp_path):
        folder = fill(tmp_path / "pictures", {"one.tif": Image.new("F", (2, 2), 0.5)})
        refused(folder, r"one\.tif cannot be read .*float")

    def test_comments_without_end_are_not_read_byte_by_byte(self):
        comment, pixels = b"P5\n#" + b"x" * 2**17, b"\n8 8 255\n" + bytes(64)
        to_picture(comment[:99] + pixels).load()
        with pytest.raises(ValueError, match="EOF while reading header"):
            to_picture(comment + pixels)

    def test_grey_becomes_rgb_and_rgb_grey_where_asked(self, tmp_path):
        folder = fill(tmp_path / "mixed", {"a.png": plain("white").convert("L"), "b.png": plain("lime")})
        colour = load_data(folder, in_channels=3).train.images
        assert colour[:, :, 0, 0].tolist() == [[255, 255, 255], [0, 255, 0]]
        grey = load_data(folder, in_channels=1).train.images
        assert grey[:, :, 0, 0].tolist() == [[255], [150]]  # ITU-R 601: 0.587 of 255


class TestCrops:
    def ramp(self, width, height, slope=2):
        """A picture as bright as its columns' number, counted from the left in steps of `slope`."""
        return Image.fromarray(np.tile(np.arange(width, dtype=np.uint8) * slope, (height, 1)))

    def columns(self, picture, crop, size=(32, 32)):
        image = to_pixels(picture, size, crop=crop)
        assert image.shape == (1, *size)
        assert (image == image[:, :1]).all()
        return image[0, 0].double()

    @pytest.mark.parametrize("crop", CROPS)
    def test_a_picture_of_the_right_size_keeps_its_very_pixels(self, crop):
        picture = noise(1, 24, 32)
        assert torch.equal(to_pixels(picture, (24, 32), 3, crop), to_pixels(picture))

    def test_center_takes_the_largest_box(self):
        expected = (12 + (torch.arange(32) + 0.5) * 72 / 32 - 0.5) * 2  # where each column's centre lay
        columns = self.columns(self.ramp(96, 72), "center")
        torch.testing.assert_close(columns[3:-3], expected.double()[3:-3], atol=0.75, rtol=0)

    def test_adm_crops_after_resizing(self):
        expected = ((5 + torch.arange(32) + 0.5) * 96 / 43 - 0.5) * 2  # 96x72, halved to 48x36, then 43x32
        columns = self.columns(self.ramp(96, 72), "adm")
        torch.testing.assert_close(columns, expected.double(), atol=0.75, rtol=0)

    def test_adm_halves_by_averaging_while_twice_too_large(self):
        pixels = torch.tensor(np.array(noise(2, 64, 64)), dtype=torch.float32).permute(2, 0, 1)
        for pair in ((1, 2), (2, 1), (1, 2), (2, 1)):
            pixels = torch.nn.functional.avg_pool2d(pixels, pair).add(0.5).floor()  # to whole numbers, halves upwards
        assert torch.equal(to_pixels(noise(2, 64, 64), (16, 16), crop="adm"), pixels.byte())

    def test_long_edge_shows_the_whole_picture_on_black(self):
        image = to_pixels(plain("white", (64, 32)), (32, 32), crop="long-edge")
        assert image[:, 8:24].unique().tolist() == [255]
        assert image[:, [*range(8), *range(24, 32)]].unique().tolist() == [0]
        image = to_pixels(self.ramp(96, 32), (32, 32), crop="long-edge")
        torch.testing.assert_close(
            image[0, 16, 2:-2].double(), (torch.arange(32).double() * 3 + 1)[2:-2] * 2, atol=1, rtol=0
        )

    @pytest.mark.parametrize("crop", CROPS)
    @pytest.mark.parametrize("size", [(1, 50), (50, 1), (3, 4), (200, 90)])
    def test_any_picture_gets_any_size(self, crop, size):
        assert to_pixels(plain(size=size), (16, 24), crop=crop).shape == (3, 16, 24)

    def test_mixed_sizes_become_one(self, tmp_path):
        folder = fill(tmp_path / "mixed", {"a.png": plain("red", (20, 10)), "b.png": plain("blue", (9, 30))})
        images = load_data(folder, (8, 12)).train.images
        assert images.shape == (2, 3, 8, 12)
        assert images[:, :, 4, 4].tolist() == [[255, 0, 0], [0, 0, 255]]

    def test_load_data_crops_as_told(self, tmp_path):
        folder = fill(tmp_path / "wide", {"a.png": plain("white", (32, 16))})
        assert only_image(folder, image_size=(8, 8)).min() == 255
        assert only_image(folder, image_size=(8, 8), crop="long-edge").min() == 0

    def test_an_unknown_crop_is_refused_with_the_known_ones(self, faces):
        refused(faces, "crop 'square'.*center, long-edge, adm", crop="square")
