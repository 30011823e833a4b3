"""Codecs, and latents written once and read at every step."""

import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from diffit_lib.config.experiment import TrainingConfig
from diffit_lib.data import latent_cache as latents
from diffit_lib.data.datasets import Images
from diffit_lib.data.latent_cache import open_latents, write_latents
from diffit_lib.data.stream import TrainingStream
from diffit_lib.models.latent_space import PIXEL_SPACE, LatentSpace
from diffit_lib.utils.distributed import RankInfo
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.tensors import to_float


class Halving(nn.Module):
    """An autoencoder one sees through: the mean of each 2x2 square; log-variance -2; decoding doubles."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift))

    def encode(self, x):
        mean = nn.functional.avg_pool2d(x, 2) + self.shift
        return torch.cat([mean, torch.full_like(mean, -2.0)], dim=1)

    def decode(self, z):
        return nn.functional.interpolate(z - self.shift, scale_factor=2)


def space(shift=0.0):
    return LatentSpace(Halving(shift), torch.tensor([0.5]), torch.tensor([2.0]))


@pytest.fixture
def images(monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 8)
    pixels = torch.randint(0, 256, (20, 1, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images("noise/train", pixels, torch.arange(20) % 3, ("a", "b", "c"))


class TestCodec:
    def test_pixels_are_only_made_float(self):
        pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
        assert torch.equal(PIXEL_SPACE.encode(pixels), to_float(pixels))
        assert torch.equal(PIXEL_SPACE.decode(to_float(pixels)), to_float(pixels))

    def test_latents_are_normalised_and_decoding_undoes_it(self, images):
        clean = space().encode(images.images)
        assert torch.allclose(clean, (nn.functional.avg_pool2d(to_float(images.images), 2) - 0.5) / 2)
        flat = torch.full((2, 1, 4, 4), 200, dtype=torch.uint8)
        assert torch.allclose(space().decode(space().encode(flat)), to_float(flat), atol=1e-6)

    def test_noise_draws_from_the_posterior(self):
        flat, noise = torch.full((1, 1, 4, 4), 200, dtype=torch.uint8), torch.randn(1, 1, 2, 2)
        drawn = space().encode(flat, noise) - space().encode(flat)
        assert torch.allclose(drawn, torch.exp(torch.tensor(-1.0)) * noise / 2)

    def test_cached_moments_and_images_make_the_same_state(self, images):
        moments = space().moments(images.images)
        assert torch.equal(space().encode(moments), space().encode(images.images))

    def test_checksum_names_weights_and_statistics(self):
        assert space().checksum == space().checksum != space(0.1).checksum
        assert space().checksum != LatentSpace(Halving(), torch.tensor([0.4]), torch.tensor([2.0])).checksum

    def test_out_of_memory_goes_on_with_smaller_slices_and_is_said_and_met_once(self, capsys):
        small_card, sizes = space(), []

        def greedy(part):
            sizes.append(len(part))
            if len(part) > 3:
                raise torch.OutOfMemoryError
            return part + 1

        for _ in range(2):
            assert torch.equal(small_card.in_slices(greedy, torch.arange(8), on_cpu=8), torch.arange(8) + 1)
        assert sizes == [8, 4, *[2] * 8]
        assert capsys.readouterr().err.count("2 images at once") == 1

    def test_one_image_that_exceeds_the_memory_is_told(self):
        def hungry(part):
            raise torch.OutOfMemoryError

        with pytest.raises(DiffitError, match="one image alone"):
            space().in_slices(hungry, torch.arange(8), on_cpu=8)


class TestWriting:
    def test_written_moments_are_those_of_the_encoder(self, images, tmp_path):
        write_latents(space(), images, tmp_path)
        cached = open_latents(tmp_path, space())
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            *(f"{number:05d}.safetensors" for number in range(3)),
            "index.safetensors",
        ]
        assert len(cached) == 20
        assert cached.images.shape == (20, 2, 2, 3)
        assert cached.class_names == images.class_names
        assert torch.equal(cached.labels, images.labels)
        expected = space().moments(images.images).half()
        assert torch.equal(cached.images[torch.arange(20)], expected)
        mirrored = space().moments(images.images.flip(-1)).half()
        got = cached.fetch([0, 9, 19], [True, False, True])
        assert torch.equal(got, torch.stack([mirrored[0], expected[9], mirrored[19]]))

    def test_started_again_it_writes_only_what_is_missing(self, images, tmp_path, monkeypatch):
        write_latents(space(), images, tmp_path)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        (tmp_path / "00001.safetensors").unlink()
        (tmp_path / "index.safetensors").unlink()
        (tmp_path / "00002.safetensors").write_bytes(before["00002.safetensors"][:100])  # damaged
        counted = space()
        moments, seen = counted.moments, []
        monkeypatch.setattr(counted, "moments", lambda pixels: seen.append(len(pixels)) or moments(pixels))
        write_latents(counted, images, tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        assert sum(seen) == 1 + 2 * (8 + 4)  # one image tells the shape

    def test_two_processes_write_what_one_does(self, images, tmp_path, monkeypatch):
        write_latents(space(), images, tmp_path / "one")
        for rank in (1, 0):
            monkeypatch.setattr(latents, "rank_info", lambda rank=rank: RankInfo(rank, 2))
            write_latents(space(), images, tmp_path / "two")
        for path in (tmp_path / "one").iterdir():
            assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()

    def test_half_a_set_has_no_index(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr(latents, "rank_info", lambda: RankInfo(0, 2))
        write_latents(space(), images, tmp_path)
        with pytest.raises(DiffitError, match="encode the images again"):
            open_latents(tmp_path, space())

    def test_mirrored_ones_are_added_where_they_were_left_out(self, images, tmp_path):
        write_latents(space(), images, tmp_path, mirrored=False)
        assert set(load_file(tmp_path / "00000.safetensors")) == {"moments"}
        write_latents(space(), images, tmp_path)
        assert open_latents(tmp_path, space()).fetch([0], [True]).shape == (1, 2, 2, 3)

    def test_latents_of_another_autoencoder_are_refused(self, images, tmp_path):
        write_latents(space(), images, tmp_path)
        with pytest.raises(DiffitError, match="latents of the autoencoder") as error:
            open_latents(tmp_path, space(0.5))
        assert space(0.5).checksum in str(error.value)
        with pytest.raises(DiffitError, match="give another folder"):
            write_latents(space(0.5), images, tmp_path)

    @pytest.mark.parametrize("name", ["00000.safetensors", "index.safetensors"])
    def test_a_file_of_the_users_own_is_left_alone(self, name, images, tmp_path):
        save_file({"mine": torch.ones(3)}, tmp_path / name)
        with pytest.raises(DiffitError, match=f"{name} holds no latents that `encode` wrote; give another folder"):
            write_latents(space(), images, tmp_path)
        assert set(load_file(tmp_path / name)) == {"mine"}

    def test_a_full_disk_is_told_before_anything_is_written(self, images, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
        with pytest.raises(DiffitError, match=r"encoding .* takes .* GB, but .* has 1e-08 GB; give another folder"):
            write_latents(space(), images, tmp_path / "new")
        assert not (tmp_path / "new").exists()


class TestReading:
    def test_the_stream_reads_latents_and_noise_of_their_shape(self, images, tmp_path):
        write_latents(space(), images, tmp_path)
        cached = open_latents(tmp_path, space())
        options = TrainingConfig(batch_size=8, flip=True)
        batch = TrainingStream(cached, options, (1, 2, 3), latent=True).batch(0)
        assert batch.images.dtype == torch.float16
        assert batch.noise.shape == batch.posterior.shape == (8, 1, 2, 3)
        assert not torch.equal(batch.noise, batch.posterior)
        straight = TrainingStream(images, options, (1, 2, 3), latent=True).batch(0)
        assert torch.equal(straight.noise, batch.noise)
        assert torch.equal(straight.labels, batch.labels)
        one, other = (space().encode(part.images, part.posterior) for part in (batch, straight))
        assert torch.allclose(one, other, atol=2e-3)  # float16

    def test_workers_map_the_files_themselves(self, images, tmp_path):
        write_latents(space(), images, tmp_path)
        cached = open_latents(tmp_path, space())
        cached.fetch([0], [False])
        assert not pickle.loads(pickle.dumps(cached)).images.opened
        stream = TrainingStream(cached, TrainingConfig(batch_size=4), (1, 2, 3), latent=True)
        loader = iter(DataLoader(stream, batch_size=None, num_workers=2))
        for number in range(3):
            assert torch.equal(next(loader).images, stream.batch(number).images)
