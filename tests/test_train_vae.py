"""Training an autoencoder: what it minimises, what it leaves behind, and that a broken-off run loses nothing."""

import csv
import time

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from diffit_lib.checkpoints.autoencoders import load_vae
from diffit_lib.config.presets import VAE_PRESETS, vae_preset
from diffit_lib.data.datasets import Split
from diffit_lib.data.stream import TrainingStream
from diffit_lib.evaluation.features import train_classifier
from diffit_lib.evaluation.metrics import class_accuracy
from diffit_lib.evaluation.reconstruction import measure_vae, reconstructions
from diffit_lib.models import vae
from diffit_lib.models.latent_space import LatentSpace
from diffit_lib.models.vae import KLAutoencoder, PatchDiscriminator, Perceptual, hinge, load_perceptual
from diffit_lib.training import train as task
from diffit_lib.training.steps import AutoencoderModule, divergence, latent_statistics
from diffit_lib.training.train import train_vae
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import sha256

TINY = VAE_PRESETS["vae-digits"].override(
    name="tiny", channels=(8, 8), down=(True,), attn=(False, False), patch=1, max_steps=4, minutes=None,
    batch_size=16, z_channels=4, lr_decay=0.0, report_minutes=60.0, disc_weight=0.5, disc_start=32, disc_width=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def vgg():
    """Random tensors of VGG-16, of those layers that LPIPS asks for."""
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = vgg16().features.state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        f"features.{name}": 0.05 * torch.randn(tensor.shape, generator=generator) for name, tensor in shapes.items()
    }


@pytest.fixture(scope="module")
def lpips(vgg):
    """LPIPS over these."""
    return Perceptual(vgg)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache, and no network; how often it was tried."""
    tried = []

    def fail(*_, **__):
        tried.append(True)
        raise OSError("no network")

    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    return tried


def module_of(experiment, data):
    torch.manual_seed(0)
    module = AutoencoderModule(KLAutoencoder(experiment.network), experiment, data.train)
    return module, TrainingStream(data.train, experiment.training, experiment.network.latent_shape).batch(0)


def at(module, monkeypatch, images):
    """The module as if it had seen so many images."""
    monkeypatch.setattr(AutoencoderModule, "images_seen", images)
    return module


def rows(run):
    return list(csv.DictReader((run / "metrics.csv").open()))


class TestLoss:
    def test_divergence_is_that_of_two_normal_distributions(self):
        mean, log_variance = torch.randn(2, 3, 4, 5, 5)
        posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
        wanted = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
        torch.testing.assert_close(divergence(torch.cat([mean, log_variance], dim=1)), wanted)

    @pytest.mark.parametrize(("kind", "difference"), [("l1", F.l1_loss), ("l2", F.mse_loss)])
    def test_it_is_the_weighted_sum_of_its_terms(self, data, monkeypatch, kind, difference):
        module, batch = module_of(TINY.override(reconstruction=kind, kl_weight=0.3), data)
        loss = at(module, monkeypatch, 0).training_step(batch, 0)
        again, moments = module.model(batch.images / 127.5 - 1, batch.noise)
        wanted = difference(again, batch.images / 127.5 - 1) + 0.3 * divergence(moments)
        torch.testing.assert_close(loss, wanted)
        assert module.mean_terms()["loss"] == pytest.approx(wanted.item())

    def test_noise_draws_the_latents(self, data):
        module, batch = module_of(TINY, data)
        images = batch.images / 127.5 - 1
        mean, log_variance = module.model.encode(images).chunk(2, dim=1)
        drawn = module.model.decode(mean + (0.5 * log_variance).exp() * batch.noise)
        torch.testing.assert_close(module.model(images, batch.noise)[0], drawn)

    def test_perceptual_term_is_weighed_in(self, data, monkeypatch):
        module, batch = module_of(TINY.override(perceptual_weight=2.0), data)
        without = float(at(module, monkeypatch, 0).training_step(batch, 0))

        class Three:
            def to(self, device):
                return self

            def __call__(self, images, others):
                return torch.full((len(images),), 3.0)

        module.perceptual = Three()
        assert float(module.training_step(batch, 0)) == pytest.approx(without + 6.0)


class TestDiscriminator:
    @pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (3, 32, 16), (3, 64, 64)])
    def test_it_takes_small_images_and_large_ones(self, shape):
        logits = PatchDiscriminator(shape, 8)(torch.zeros(2, *shape))
        assert logits.shape[:2] == (2, 1)
        assert logits.numel() >= 2

    def test_hinge_lets_go_of_what_is_told_apart_clearly(self):
        far = torch.full((4, 1, 2, 2), 1.5)
        assert hinge(far, -far) == 0
        assert hinge(-far, far) == 2.5
        assert hinge(torch.zeros(4), torch.zeros(4)) == 1

    def test_until_its_start_it_is_not_even_run(self, data, monkeypatch):
        module, batch = module_of(TINY, data)
        monkeypatch.setattr(module.discriminator, "forward", lambda *_: pytest.fail("it was run"))
        at(module, monkeypatch, 31).training_step(batch, 0).backward()
        assert all(parameter.grad is None for parameter in module.discriminator.parameters())

    def test_each_learns_from_its_own_term_alone(self, data, monkeypatch):
        module, batch = module_of(TINY, data)
        at(module, monkeypatch, 32).training_step(batch, 0).backward()
        found = [parameter.grad.clone() for group in module.parameter_groups() for parameter in group]

        images = batch.images / 127.5 - 1
        again, moments = module.model(images, batch.noise)
        judge = module.discriminator
        likeness, deceit = F.l1_loss(again, images), -judge(again).mean()
        last = module.model.decoder.conv_out.weight
        norms = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (likeness, deceit)]
        loss = likeness + TINY.loss.kl_weight * divergence(moments) + 0.5 * norms[0] / norms[1] * deceit
        wanted = torch.autograd.grad(loss, list(module.model.parameters()))
        wanted += torch.autograd.grad(hinge(judge(images), judge(again.detach())), list(judge.parameters()))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)

    def test_weight_zero_does_without_it(self, data, monkeypatch):
        module, batch = module_of(TINY.override(disc_weight=0.0), data)
        at(module, monkeypatch, 1000).training_step(batch, 0).backward()
        assert all(parameter.grad is None for parameter in module.discriminator.parameters())
        assert "adversarial" not in module.mean_terms()


class TestStatistics:
    def test_they_are_those_of_drawn_latents(self, data):
        network, _ = module_of(TINY, data)[0].model, None
        with torch.no_grad():
            mean, log_variance = network.encode(data.train.images / 127.5 - 1).chunk(2, dim=1)
            drawn = torch.cat([mean + (0.5 * log_variance).exp() * torch.randn_like(mean) for _ in range(20)])
        found = latent_statistics(network, data.train, 20_000, torch.device("cpu"), "32-true")
        torch.testing.assert_close(torch.tensor(found[0]), drawn.mean((0, 2, 3)), atol=0.01, rtol=0)
        torch.testing.assert_close(torch.tensor(found[1]), drawn.std((0, 2, 3)), atol=0.01, rtol=0)

    def test_latents_normalised_by_them_have_unit_variance(self, data, tmp_path):
        space, card = load_vae(train_vae(TINY, tmp_path, data, progress=False))
        latents = space.encode(data.train.images, torch.randn(len(data.train), *TINY.network.latent_shape))
        assert latents.mean((0, 2, 3)).abs().max() < 0.05
        assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.05
        assert len(card.std) == TINY.network.z_channels


class TestRun:
    def test_it_leaves_weights_pictures_and_numbers(self, data, tmp_path):
        weights = train_vae(TINY, tmp_path, data, progress=False)
        assert weights == tmp_path / "weights.safetensors"
        _, card = load_vae(weights)
        assert (card.images_seen, card.experiment.name, card.licence) == (64, "tiny", "MIT")
        assert card.trained_on == f"digits/train {data.train.fingerprint()}"
        (row,) = rows(tmp_path)
        assert float(row["psnr"]) == pytest.approx(card.numbers["psnr"])
        assert {"loss", "reconstruction", "kl", "adversarial", "discriminator", "ssim", "grad_norm"} <= row.keys()
        picture = Image.open(tmp_path / "samples" / "000000064.png")
        assert picture.width == 2 * picture.height - 8  # two rows of eight over two rows
        assert (tmp_path / "loss.png").is_file()

    def test_a_run_that_goes_on_ends_as_an_unbroken_one(self, data, tmp_path):
        experiment = TINY.override(accumulate=2, flip=True)
        whole = train_vae(experiment, tmp_path / "whole", data, progress=False)
        for steps in (1, 3, 4):  # before the discriminator joins, after, the end
            part = train_vae(experiment.override(max_steps=steps), tmp_path / "parts", data, progress=False)
        one, other = load_file(whole), load_file(part)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert [int(row["images"]) for row in rows(tmp_path / "parts")] == [16, 48, 64]
        states = [
            torch.load(tmp_path / run / "last.ckpt", weights_only=True)["state_dict"] for run in ("whole", "parts")
        ]
        assert any(name.startswith("discriminator.") for name in states[0])
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_another_loss_is_another_run(self, data, tmp_path):
        train_vae(TINY.override(max_steps=1), tmp_path, data, progress=False)
        with pytest.raises(DiffitError, match=r"was trained with kl_weight=.*, not 0\.5; set it back"):
            train_vae(TINY.override(kl_weight=0.5), tmp_path, data, progress=False)

    def test_images_of_another_size_are_refused(self, data, tmp_path):
        with pytest.raises(DiffitError, match=r"\(1, 16, 8\), but digits/train has \(1, 8, 8\); set in_channels and"):
            train_vae(TINY.override(image_size=(16, 8)), tmp_path, data, progress=False)

    def test_what_an_autoencoder_does_not_know_is_refused(self):
        with pytest.raises(DiffitError, match=r"^augment is 0\.5, which an autoencoder's training does not know"):
            TINY.override(augment=0.5)

    def test_all_training_images_are_looked_at_in_the_end_alone(self, data, tmp_path, monkeypatch):
        asked = []
        monkeypatch.setattr(task, "latent_statistics", lambda *args: asked.append(args[2]) or latent_statistics(*args))
        train_vae(TINY.override(report_minutes=1e-6), tmp_path, data, progress=False)
        assert asked == [2_048] * (len(asked) - 1) + [20_000]
        assert len(asked) > 1


class TestWithoutVGG:
    RECIPE = TINY.override(image_size=(16, 16), perceptual_weight=1.0, max_steps=2)

    @pytest.fixture
    def larger(self, data):
        from dataclasses import replace

        return Split(*(replace(p, images=p.images.repeat_interleave(2, 2).repeat_interleave(2, 3)) for p in data))

    def test_that_is_said_once_and_training_goes_on_without(self, larger, tmp_path, offline, capsys):
        run = tmp_path / "run"
        train_vae(self.RECIPE, run, larger, progress=False)
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "tiny trains without the perceptual loss. Could not download the weights of VGG-16" in err
        assert "(no network)" in err and "https://download.pytorch.org/models/vgg16-397923af.pth" in err  # noqa: PT018
        assert "\nperceptual_weight: 0.0\n" in (run / "options.yaml").read_text()
        train_vae(self.RECIPE.override(max_steps=3), run, larger, progress=False)
        assert len(offline) == 1
        assert load_vae(run / "weights.safetensors")[1].images_seen == 48

    def test_images_too_small_for_it_do_without(self, data, tmp_path, offline, capsys):
        train_vae(TINY.override(perceptual_weight=1.0), tmp_path / "run", data, progress=False)
        assert "LPIPS takes images of 16 pixels a side or more" in capsys.readouterr().err
        assert not offline

    def test_a_run_that_had_it_does_not_go_on_without(self, larger, tmp_path, offline, monkeypatch, lpips):
        monkeypatch.setattr(task, "load_perceptual", lambda path: lpips)
        train_vae(self.RECIPE.override(max_steps=1), tmp_path / "run", larger, progress=False)
        assert float(rows(tmp_path / "run")[0]["perceptual"]) > 0
        assert not [n for n in torch.load(tmp_path / "run" / "last.ckpt")["state_dict"] if "perceptual" in n]
        monkeypatch.undo()
        monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("torch.hub.download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("none")))
        with pytest.raises(DiffitError, match="VGG-16"):
            train_vae(self.RECIPE, tmp_path / "run", larger, progress=False)


class TestPerceptual:
    def test_it_is_torchmetrics_lpips_over_these_weights(self, vgg, lpips):
        network = lpips.network.net
        assert torch.equal(network.slice1[0].weight, vgg["features.0.weight"])
        assert torch.equal(network.slice5[-2].bias, vgg["features.28.bias"])
        a, b = torch.rand(2, 2, 3, 32, 32) * 2 - 1
        assert lpips(a, a).tolist() == [0, 0]
        assert (lpips(a, b) > 0).all()
        assert torch.equal(lpips(a, b), network_distance(lpips, a, b))

    def test_grey_counts_as_three_equal_channels_and_gradients_pass(self, lpips):
        a, b = torch.rand(2, 2, 1, 16, 16) * 2 - 1
        assert torch.equal(lpips(a, b), lpips(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)))
        b.requires_grad_()
        lpips(a, b).sum().backward()
        assert b.grad.abs().max() > 0

    def test_the_published_file_is_read(self, vgg, lpips, tmp_path, monkeypatch):
        torch.save(vgg, tmp_path / "vgg.pth")
        with pytest.raises(DiffitError, match=r"vgg\.pth is not the published VGG-16 \(SHA-256 .*; delete it and down"):
            load_perceptual(tmp_path / "vgg.pth")
        monkeypatch.setattr(vae, "VGG_SHA256", sha256(tmp_path / "vgg.pth"))
        a, b = torch.rand(2, 1, 3, 16, 16)
        assert torch.equal(load_perceptual(tmp_path / "vgg.pth")(a, b), lpips(a, b))

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(DiffitError, match=r"there are no VGG-16 weights at .*nowhere; download them from https"):
            load_perceptual(tmp_path / "nowhere")


def network_distance(found, a, b):
    """torchmetrics' own answer."""
    from torchmetrics.functional.image.lpips import _lpips_update

    return _lpips_update(a, b, found.network, normalize=False)


class TestMeasures:
    @pytest.fixture
    def space(self, data):
        return LatentSpace(module_of(TINY, data)[0].model, torch.zeros(4), torch.ones(4))

    def test_reconstructions_are_pictures_of_the_means(self, space, data):
        images = data.test.images[:70]
        again = reconstructions(space, images)
        assert (again.dtype, again.shape) == (torch.uint8, images.shape)
        with torch.no_grad():
            wanted = space.network.decode(space.network.encode(images / 127.5 - 1)[:, :4])
        assert ((wanted + 1) * 127.5 - again).clamp(-0.5, 0.5).abs().max() <= 0.5
        assert ((again / 127.5 - 1) - wanted.clamp(-1, 1)).abs().max() < 0.005

    def test_psnr_is_a_mean_over_images(self, space, data, offline):
        images = data.test.images[:70]
        numbers = measure_vae(space, images)
        square = (reconstructions(space, images).float() - images.float()).square().mean((1, 2, 3))
        assert numbers["psnr"] == pytest.approx(float((10 * (255**2 / square).log10()).mean()), rel=1e-5)
        assert numbers.keys() == {"images", "psnr", "ssim"}
        assert numbers["images"] == 70

    def test_an_identity_loses_nothing(self, data, offline):
        class Identity:
            def encode(self, images):
                return images / 127.5 - 1

            def decode(self, x):
                return x

        numbers = measure_vae(Identity(), data.test.images)
        assert numbers["ssim"] == pytest.approx(1)
        assert numbers["psnr"] > 80

    def test_lpips_is_taken_where_vgg_is_at_hand(self, lpips, tmp_path, monkeypatch, offline):
        monkeypatch.setattr("diffit_lib.evaluation.reconstruction.load_perceptual", lambda path: lpips)
        space = LatentSpace(KLAutoencoder(TestWithoutVGG.RECIPE.network), torch.zeros(4), torch.ones(4))
        images = torch.randint(256, (3, 1, 16, 16), dtype=torch.uint8)
        assert measure_vae(space, images, vgg=tmp_path / "vgg.pth")["lpips"] > 0


class TestPresets:
    @pytest.mark.parametrize(
        ("name", "factor", "most"),
        [("kl-f8", 8, 84e6), ("kl-f4", 4, 70e6), ("vae-imagenette128", 8, 10e6), ("vae-cifar10", 2, 10e6),
         ("vae-digits", 2, 0.5e6)],
    )  # fmt: skip
    def test_it_is_of_its_size(self, name, factor, most):
        experiment = vae_preset(name)
        assert experiment.name == name
        assert experiment.network.factor == factor
        with torch.device("meta"):
            network = KLAutoencoder(experiment.network)
        assert sum(parameter.numel() for parameter in network.parameters()) <= most

    def test_latents_of_the_seeds_faces(self):
        assert vae_preset("kl-f4").network.shape == (3, 128, 128)
        assert vae_preset("kl-f4").network.latent_shape == (4, 32, 32)

    def test_an_unknown_one_is_refused(self):
        with pytest.raises(DiffitError, match="unknown autoencoder preset 'kl-f16'; did you mean kl-f"):
            vae_preset("kl-f16")

    @pytest.mark.slow
    def test_a_minute_on_one_core_keeps_the_digits_readable(self, data, tmp_path):
        begun = time.process_time()  # a busy machine does not slow this clock
        space, _ = load_vae(train_vae(vae_preset("vae-digits").override(threads=1), tmp_path, data, progress=False))
        assert time.process_time() - begun <= 60
        classifier = train_classifier(data.train.images, data.train.labels)
        accuracy = class_accuracy(classifier.predict(reconstructions(space, data.test.images)), data.test.labels)
        assert accuracy >= 0.95
