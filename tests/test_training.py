"""Optimization, the average, and what stops, shows and keeps a run."""

import math
import re
from itertools import count, pairwise
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from diffit_lib.checkpoints.weights import build_denoiser
from diffit_lib.config.diffusion import EDMConfig
from diffit_lib.config.experiment import TrainingConfig
from diffit_lib.data.datasets import Images
from diffit_lib.data.stream import TrainingStream
from diffit_lib.diffusion.denoiser import EDMDenoiser
from diffit_lib.models import blocks
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.training import module as training
from diffit_lib.training import steps as training_steps
from diffit_lib.training.module import ema_decay
from diffit_lib.training.run_dir import append_row
from diffit_lib.training.steps import DiffusionModule, loss_by_level
from diffit_lib.training.train import resolve, train
from diffit_lib.utils.errors import DiffitError


def state(module):
    """Copies of weights, average and Adam's state, each a list of tensors."""
    adam = module.optimizers().state.values()
    parts = (module.model.parameters(), module.ema.parameters(), [t for slots in adam for t in slots.values()])
    return [[tensor.detach().clone() for tensor in part] for part in parts]


def same(one, other):
    """Whether two lists of tensors are equal to the bit."""
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.fixture
def around_steps(monkeypatch):
    """A list that gets (lr, gradients, state before, state after) of every optimizer step."""
    steps = []
    step, clip = DiffusionModule.optimizer_step, DiffusionModule.configure_gradient_clipping
    gradients = []

    def spied_clip(self, *args, **kwargs):
        clip(self, *args, **kwargs)
        gradients[:] = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]

    def spied_step(self, epoch, batch_idx, optimizer, *args, **kwargs):
        before, lr = state(self), optimizer.param_groups[0]["lr"]
        step(self, epoch, batch_idx, optimizer, *args, **kwargs)
        steps.append(SimpleNamespace(lr=lr, gradients=list(gradients), before=before, after=state(self)))

    monkeypatch.setattr(DiffusionModule, "configure_gradient_clipping", spied_clip)
    monkeypatch.setattr(DiffusionModule, "optimizer_step", spied_step)
    return steps


@pytest.fixture
def spoil(monkeypatch):
    """A function: from now on, the losses of these micro-batches, counted from 0, are `value`."""
    loss = training_steps.denoising_loss

    def spoil(micro_batches, value=math.nan):
        number = count()

        def spoiled(*args):
            return loss(*args) * (value if next(number) in micro_batches else 1)

        monkeypatch.setattr(training_steps, "denoising_loss", spoiled)

    return spoil


@pytest.fixture
def clock(monkeypatch):
    """Time in which every look at it takes a second."""
    seconds = count()
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


def norm(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()


class Operations(TorchDispatchMode):
    """Notes the names of operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **kwargs or {})


class TestAverage:
    @pytest.mark.parametrize("rampup", [0.05, 0.5, None])
    def test_equals_its_closed_form(self, fit, tiny, around_steps, rampup):
        halflife = 40
        module = fit(tiny.override(max_steps=8, lr=0.01, ema_halflife=halflife, ema_rampup=rampup))
        keep = [0.0]  # the first average is the first weights
        for images in range(16, 8 * 16, 16):
            keep.append(0.5 ** (16 / min(halflife, math.inf if rampup is None else images * rampup)))
        shares = [(1 - keep[k]) * math.prod(keep[k + 1 :]) for k in range(8)]
        assert sum(shares) == pytest.approx(1)
        weights = [step.after[0] for step in around_steps]
        for number, average in enumerate(module.average.parameters()):
            expected = sum(share * w[number].double() for share, w in zip(shares, weights, strict=True))
            torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-7)

    def test_waits_for_no_device(self, fit, tiny):
        module = fit(tiny)
        with Operations() as seen:
            module.update_average()
        assert "aten::_foreach_lerp_.Scalar" in seen.names
        assert "aten::_local_scalar_dense" not in seen.names  # a number is read from the device

    def test_forgets_half_within_a_half_life_of_images_whatever_the_batch(self):
        for batch_size in (1, 10, 100):
            options = TrainingConfig(batch_size=batch_size, ema_halflife=1000, ema_rampup=None)
            assert ema_decay(options, 7) ** (1000 / batch_size) == pytest.approx(0.5)

    def test_half_life_grows_to_its_full_length(self):
        options = TrainingConfig(batch_size=100, ema_halflife=1000, ema_rampup=0.05)
        assert [ema_decay(options, step) for step in (10, 100)] == [0.5 ** (100 / 50), 0.5 ** (100 / 500)]
        assert ema_decay(options, 200) == ema_decay(options, 10**9) == 0.5 ** (100 / 1000)

    def test_is_not_trained_itself(self, fit, tiny):
        module = fit(tiny)
        assert not any(parameter.requires_grad for parameter in module.ema.parameters())
        assert sum(map(len, (group["params"] for group in module.optimizers().param_groups))) == len(
            list(module.model.parameters())
        )


class TestAugmentation:
    def test_reaches_the_network_and_is_told_to_it(self, tiny, data):
        experiment = resolve(tiny.override(augment_dim=9, augment=0.5), None, data.train)
        module = DiffusionModule(build_denoiser(experiment), experiment.training, data.train)
        batch = module.on_before_batch_transfer(TrainingStream(data.train, experiment.training).batch(0), 0)
        label = module.model.network.time_token.augment
        with torch.no_grad():
            label.weight.normal_()
            module.model.network.head.weight.normal_()
        plain = module.training_step(batch._replace(augmentation=torch.zeros(len(batch.images), 8)), 0)
        loss = module.training_step(batch, 0)
        loss.backward()
        assert float(loss.detach()) != pytest.approx(float(plain.detach()), rel=1e-3)
        assert label.weight.grad.abs().max() > 0

    def test_without_its_label_is_refused(self, tiny, data):
        with pytest.raises(DiffitError, match=r"augment is 0\.5 but augment_dim 0; give augment_dim 9"):
            resolve(tiny.override(augment=0.5), None, data.train)


def test_noise_levels_are_drawn_on_the_cpu_whatever_the_device(tiny, data):
    """Apple's MPS has no inverse of the normal distribution."""
    experiment = resolve(tiny, None, data.train)
    module = DiffusionModule(build_denoiser(experiment), experiment.training, data.train)
    batch = module.on_before_batch_transfer(TrainingStream(data.train, experiment.training).batch(0), 0)
    assert torch.equal(batch.sigma, module.model.draw_sigma(batch.uniform))
    module.model.draw_sigma = lambda _: pytest.fail("drawn once more, where the batch is")
    module.training_step(batch, 0)


class TestOptimizer:
    def test_is_adam(self, fit, tiny, around_steps):
        """The first step of Adam moves every weight by lr g / (|g| + 1e-8)."""
        fit(tiny.override(max_steps=1, lr=0.25))
        (step,) = around_steps
        for before, after, gradient in zip(step.before[0], step.after[0], step.gradients, strict=True):
            expected = before - 0.25 * gradient / (gradient.abs() + 1e-8)
            torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)

    def test_learning_rate_warms_up_over_a_twentieth_of_the_run(self, fit, tiny, around_steps):
        fit(tiny.override(max_steps=80, batch_size=2, lr=0.01))
        expected = [0.0025, 0.005, 0.0075, *[0.01] * 77]
        assert [step.lr for step in around_steps] == pytest.approx(expected)

    def test_loss_is_a_mean_over_pixels_or_their_sum(self, fit, tiny, around_steps):
        for reduction in ("mean", "sum"):
            fit(tiny.override(max_steps=1, grad_clip=0.0, loss_reduction=reduction), run=reduction)
        mean, total = (step.gradients for step in around_steps)
        for one, other in zip(mean, total, strict=True):
            torch.testing.assert_close(64 * one, other, rtol=1e-4, atol=1e-6)

    def test_gradient_is_clipped_at_norm_1_and_at_0_left_alone(self, fit, tiny, around_steps):
        for grad_clip in (1.0, 0.0):
            fit(tiny.override(max_steps=1, loss_reduction="sum", grad_clip=grad_clip), run=str(grad_clip))
        clipped, whole = (norm(step.gradients) for step in around_steps)
        assert clipped == pytest.approx(1, abs=1e-3)
        assert whole > 5

    def test_a_small_gradient_is_not_clipped(self, fit, tiny, around_steps):
        module = fit(tiny.override(max_steps=1, grad_clip=1e6))
        assert norm(around_steps[0].gradients) == pytest.approx(module.grad_norm.item(), rel=1e-5)

    def test_two_micro_batches_of_8_are_one_batch_of_16(self, fit, tiny, around_steps):
        for accumulate in (1, 2):
            fit(tiny.override(max_steps=1, grad_clip=0.0, accumulate=accumulate), run=str(accumulate))
        whole, split = (step.gradients for step in around_steps)
        for one, other in zip(whole, split, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

    def test_checkpointing_recomputes_activations_and_changes_no_bit(self, fit, tiny, monkeypatch):
        recomputed = []
        checkpoint = torch.utils.checkpoint.checkpoint
        monkeypatch.setattr(
            "diffit_lib.models.blocks.checkpoint", lambda *a, **k: recomputed.append(a) or checkpoint(*a, **k)
        )
        plain = fit(tiny.override(dropout=0.2), run="plain")
        assert not recomputed
        thrifty = fit(tiny.override(dropout=0.2, checkpointing=True), run="thrifty")
        assert len(recomputed) == 4 * 3  # steps, ResBlocks
        assert same(list(plain.model.parameters()), list(thrifty.model.parameters()))

    def test_dropout_differs_from_step_to_step_and_between_micro_batches(self, fit, tiny, monkeypatch):
        masks = []
        dropout = blocks.dropout
        monkeypatch.setattr(blocks, "dropout", lambda x, p: masks.append(dropout(torch.ones_like(x), p)) or x)
        fit(tiny.override(max_steps=2, accumulate=2, dropout=0.5))
        first_of_each = masks[:: len(masks) // 4]
        assert len({tuple(mask.flatten().tolist()) for mask in first_of_each}) == 4

    def test_overfits_four_images(self, fit, tiny, data):
        four = data.train.take(torch.tensor([0, 1, 2, 3]), "four")
        experiment = tiny.override(width=16, max_steps=200, batch_size=4, lr=3e-3, label_dropout=0.0)
        module = fit(experiment, four)
        torch.manual_seed(experiment.training.seed)
        fresh = build_denoiser(experiment.override(sigma_data=four.standard_deviation()))
        before, after = (sum(loss_by_level(d, four, "32-true").values()) / 8 for d in (fresh, module.model))
        assert after < 0.4 * before


class TestSkippedSteps:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_change_neither_weights_nor_average_nor_adam_and_are_counted(self, fit, tiny, spoil, around_steps, value):
        spoil({0, 2}, value)
        module = fit(tiny)
        for step, skipped in zip(around_steps, (True, False, True, False), strict=True):
            assert [same(*pair) for pair in zip(step.before, step.after, strict=True)] == [skipped] * 3
        assert (module.skipped, module.skipped_in_a_row, module.images_seen) == (2, 0, 64)
        assert all(parameter.isfinite().all() for part in state(module) for parameter in part)

    def test_at_the_end_of_training_are_told(self, fit, tiny, spoil, capsys):
        spoil({2, 3})
        fit(tiny)
        assert "the last 2 steps had no finite gradient" in capsys.readouterr().err

    def test_one_bad_micro_batch_spoils_its_whole_step_and_no_other(self, fit, tiny, spoil, around_steps):
        spoil({3})
        module = fit(tiny.override(accumulate=2))
        assert [same(step.before[0], step.after[0]) for step in around_steps] == [False, True, False, False]
        assert module.skipped == 1

    def test_one_bad_parameter_is_enough(self, fit, tiny, around_steps, monkeypatch):
        def poison(self):
            next(self.model.parameters()).register_hook(lambda gradient: gradient * math.nan)

        monkeypatch.setattr(DiffusionModule, "on_fit_start", poison)
        assert fit(tiny).skipped == 4
        assert same(around_steps[0].before[0], around_steps[-1].after[0])

    def test_are_skipped_without_clipping_too(self, fit, tiny, spoil):
        spoil({1})
        assert fit(tiny.override(grad_clip=0.0)).skipped == 1

    def test_hundred_in_a_row_end_the_run_with_a_clear_word(self, fit, tiny, spoil):
        spoil(range(1000))
        with pytest.raises(DiffitError, match=r"100 steps in a row had no finite gradient, at image 198; .*lower lr"):
            fit(tiny.override(max_steps=400, batch_size=2))

    def test_a_good_step_starts_the_count_anew(self, fit, tiny, spoil, monkeypatch):
        monkeypatch.setattr(training, "MAX_SKIPPED", 3)
        spoil({0, 1, 3, 4, 6, 7})
        module = fit(tiny.override(max_steps=8))
        assert (module.skipped, module.skipped_in_a_row) == (6, 2)


class TestStop:
    def test_comes_after_whole_steps_of_the_planned_images(self, fit, tiny):
        module = fit(tiny.override(max_steps=None, images=50))
        assert (module.global_step, module.images_seen) == (4, 64)

    def test_max_steps_replaces_images(self, fit, tiny):
        assert fit(tiny.override(max_steps=3, images=10**6, accumulate=4)).global_step == 3

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_minutes_end_a_run_between_two_steps(self, fit, tiny, clock, tmp_path, accumulate):
        module = fit(tiny.override(max_steps=1000, minutes=0.5, accumulate=accumulate))
        assert 4 < module.global_step < 30
        assert 30 <= module.seconds < 32
        batches = torch.load(tmp_path / "run" / "last.ckpt")["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        assert batches["current"]["completed"] == accumulate * module.global_step


class TestReport:
    def test_comes_every_few_minutes_and_at_the_end(self, tiny, data, clock, tmp_path, monkeypatch):
        seen = []
        monkeypatch.setattr(
            "diffit_lib.training.train.write_snapshot", lambda module, **_: seen.append(module.global_step)
        )
        train(tiny.override(max_steps=50, report_minutes=0.5, accumulate=2), tmp_path, data, progress=False)
        assert 3 <= len(seen) < 10
        assert seen[-1] == 50
        assert len({later - earlier for earlier, later in pairwise(seen[:-1])}) == 1

    @pytest.mark.parametrize(("takes", "apart"), [(10, 30), (30, 46)])
    def test_come_from_start_to_start_but_leave_half_an_interval_to_training(
        self, tiny, data, clock, tmp_path, monkeypatch, takes, apart
    ):
        starts = []

        def show(module, **_):
            for _ in range(takes):
                training.time.monotonic()

        begin = training.time.monotonic()
        monkeypatch.setattr("diffit_lib.training.train.write_snapshot", show)
        told = {"progress": False, "after_save": lambda: starts.append(training.time.monotonic())}
        train(tiny.override(max_steps=80, report_minutes=0.5), tmp_path, data, **told)
        assert starts[0] - begin < 20  # the first picture comes early
        assert all(apart <= later - earlier < apart + 6 for earlier, later in pairwise(starts[:-1]))
        assert len(starts) > 3

    def test_checkpoint_can_be_copied_before_and_after_it_is_shown(self, tiny, data, tmp_path, monkeypatch):
        order = []
        monkeypatch.setattr("diffit_lib.training.train.write_snapshot", lambda module, **_: order.append("shown"))
        hooks = {"after_save": lambda: order.append((tmp_path / "last.ckpt").is_file())}
        hooks["after_report"] = lambda: order.append("reported")
        train(tiny, tmp_path, data, progress=False, **hooks)
        assert order == [True, "shown", "reported"]

    def test_keeps_the_checkpoint_when_showing_fails(self, tiny, data, tmp_path, monkeypatch):
        def fail(module, **_):
            raise RuntimeError("no display")

        monkeypatch.setattr("diffit_lib.training.train.write_snapshot", fail)
        with pytest.raises(RuntimeError, match="no display"):
            train(tiny, tmp_path, data, progress=False)
        assert torch.load(tmp_path / "last.ckpt")["global_step"] == 4

    def test_leaves_weights_samples_losses_and_a_row(self, tiny, data, tmp_path):
        weights = train(tiny, tmp_path, data, progress=False)
        names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert names == {
            "last.ckpt", "log.txt", "loss.png", "metrics.csv", "options.yaml", "reals.png", "samples/000000064.png",
            "weights-000000064.safetensors", "weights.safetensors", *(name for name in names if "tfevents" in name),
        }  # fmt: skip
        assert weights == tmp_path / "weights.safetensors"
        header, row = (line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines())
        assert header.count("frechet") == row.count("") - 1 == 1  # no time to measure: that and its seconds are empty
        values = {name: float(value) for name, value in zip(header, row, strict=True) if value}
        assert values["images"] == 64
        assert 0.5 < values["loss"] < 2
        by_level = [value for name, value in values.items() if name.startswith("test_loss_")]
        assert len(by_level) == 8
        assert values["test_loss"] == pytest.approx(sum(by_level) / 8)

    def test_loss_in_a_row_is_the_mean_since_the_row_before(self, tiny, data, tmp_path, monkeypatch):
        losses = iter([1.0, 3.0, 5.0, 11.0])
        denoising_loss = training_steps.denoising_loss

        def spied(denoiser, *args):
            loss = denoising_loss(denoiser, *args)
            return loss - loss.detach() + next(losses) if denoiser.training else loss

        monkeypatch.setattr(training_steps, "denoising_loss", spied)
        train(tiny.override(max_steps=2), tmp_path, data, progress=False)
        train(tiny, tmp_path, data, progress=False)
        rows = [line.split(",")[:3] for line in (tmp_path / "metrics.csv").read_text().splitlines()[1:]]
        assert [(images, loss) for images, _, loss in rows] == [("32", "2.0"), ("64", "8.0")]

    def test_samples_are_the_averages_with_fixed_seeds(self, tiny, data, tmp_path, monkeypatch):
        drawn, modules = [], []
        call = Pipeline.__call__

        def spied(self, seeds, labels=None, **settings):
            drawn.append((self.denoiser, list(seeds), list(labels)))
            return call(self, seeds, labels, **settings)

        monkeypatch.setattr(Pipeline, "__call__", spied)
        report = training.Report.report
        monkeypatch.setattr(training.Report, "report", lambda *a: modules.append(a[2]) or report(*a))
        train(tiny, tmp_path, data, progress=False)
        assert {denoiser for denoiser, _, _ in drawn} == {modules[0].average}
        assert [seed for _, seeds, _ in drawn for seed in seeds] == list(
            range(32)
        )  # a row first, to know what it takes
        assert [label for _, _, labels in drawn for label in labels] == [k % 10 for k in range(32)]

    def test_weights_are_the_averages_and_the_raw_ones(self, tiny, data, tmp_path, monkeypatch):
        modules = []
        report = training.Report.report
        monkeypatch.setattr(training.Report, "report", lambda *a: modules.append(a[2]) or report(*a))
        tensors = load_file(train(tiny, tmp_path, data, progress=False))
        for prefix, denoiser in (("ema.", modules[0].average), ("raw.", modules[0].model)):
            assert all(torch.equal(tensors[prefix + name], tensor) for name, tensor in denoiser.state_dict().items())
        assert not torch.equal(tensors["ema.network.head.weight"], tensors["raw.network.head.weight"])

    @pytest.fixture
    def bar(self, tiny, data, tmp_path, capsys, monkeypatch):
        """A function: train, and return the lines of the bar, one for every step."""

        def bar(**changes):
            monkeypatch.setattr("diffit_lib.training.train.write_snapshot", lambda module, **_: None)
            monkeypatch.setattr("diffit_lib.utils.logging.LINE_EVERY", 0.0)
            train(tiny.override(**changes), tmp_path, data)
            out, err = capsys.readouterr()
            assert out == ""
            return err.splitlines()

        return bar

    def test_bar_shows_images_their_rate_and_the_time_left(self, bar):
        *_, last = bar()
        assert last.startswith("training 100%|")
        assert re.search(r"\| 64 images, \d+ images/s, 00:00 left$", last)

    def test_bar_shows_the_share_of_minutes_where_they_end_the_run(self, bar, clock):
        shares = [int(re.match(r"training +(\d+)%", line)[1]) for line in bar(max_steps=1000, minutes=0.5)]
        assert shares == sorted(shares)
        assert 0 < shares[len(shares) // 2] < 90
        assert shares[-1] == 100


class TestPrecision:
    def test_is_picked_for_the_device_and_written_into_the_options(self, fit, tiny, tmp_path, monkeypatch):
        monkeypatch.setattr(
            "diffit_lib.training.fit.best_precision", lambda _, asked: asked.replace("auto", "bf16-mixed")
        )
        module = fit(tiny)
        assert "\nprecision: bf16-mixed\n" in (tmp_path / "run" / "options.yaml").read_text()
        assert module.trainer.precision == "bf16-mixed"
        assert all(parameter.dtype == torch.float32 for parameter in module.parameters())

    def test_given_one_is_taken(self, fit, tiny, monkeypatch):
        monkeypatch.setattr(
            "diffit_lib.training.fit.best_precision", lambda _, asked: asked.replace("auto", "bf16-mixed")
        )
        assert fit(tiny.override(precision="32-true")).trainer.precision == "32-true"


class TestLossByLevel:
    def part(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (300, 1, 8, 8), generator=generator).to(torch.uint8)
        return Images("noise", images, torch.zeros(300, dtype=torch.int64), ())

    def denoiser(self, answer):
        """An EDM denoiser whose raw network answers `answer` everywhere."""
        network = torch.nn.Conv2d(1, 1, 1)
        network.forward = lambda x, *labels: torch.full_like(x, answer)
        return EDMDenoiser(network, EDMConfig(sigma_data=0.5))

    def test_is_taken_at_eight_quantiles_of_the_training_noise(self):
        levels = list(loss_by_level(self.denoiser(0.0), self.part(), "32-true"))
        normal = torch.distributions.Normal(-1.2, 1.2)
        assert [normal.cdf(torch.tensor(math.log(sigma))).item() for sigma in levels] == pytest.approx(
            [(k + 0.5) / 8 for k in range(8)], abs=1e-4
        )

    def test_is_the_weighted_error_on_256_images_spread_over_all(self):
        """F = 0 answers c_skip x: its error is known in closed form from the images' second moment."""
        images = (128 + torch.arange(512) // 4).byte().view(-1, 1, 1, 1).expand(-1, 1, 8, 8)  # in order, as folders are
        part = Images("ramp", images.contiguous(), torch.zeros(512, dtype=torch.int64), ())
        losses = loss_by_level(self.denoiser(0.0), part, "32-true")
        second_moment = (part.images[part.spread(256)].double() / 127.5 - 1).square().mean().item()
        for sigma, loss in losses.items():
            c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / math.sqrt(sigma**2 + 0.25)
            expected = ((c_skip - 1) ** 2 * second_moment + (c_skip * sigma) ** 2) / c_out**2
            assert loss == pytest.approx(expected, rel=0.03)

    def test_is_the_same_at_every_call_and_tells_denoisers_apart(self):
        part = self.part()
        first = loss_by_level(self.denoiser(0.0), part, "32-true")
        torch.rand(5)
        assert loss_by_level(self.denoiser(0.0), part, "32-true") == first
        assert loss_by_level(self.denoiser(0.1), part, "32-true") != first


class TestAppendRow:
    def test_returns_all_rows_and_keeps_the_file_whole(self, tmp_path):
        path = tmp_path / "metrics.csv"
        append_row(path, {"images": 16, "loss": 0.5})
        rows = append_row(path, {"images": 32, "loss": 0.25})
        assert [float(row["loss"]) for row in rows] == [0.5, 0.25]
        assert path.read_text() == "images,loss\n16,0.5\n32,0.25\n"

    def test_keeps_the_first_of_two_rows_of_as_many_images(self, tmp_path):
        path = tmp_path / "metrics.csv"
        append_row(path, {"images": 16, "loss": 0.5})
        append_row(path, {"images": 16, "loss": math.nan})
        assert path.read_text() == "images,loss\n16,0.5\n"


@pytest.mark.parametrize(("accumulate", "advice"), [(1, 2), (2, 4), (8, 8)])
def test_too_large_a_batch_is_told_with_one_that_fits(accumulate, advice, tiny, data, tmp_path, monkeypatch):
    def greedy(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(DiffusionModule, "training_step", greedy)
    with pytest.raises(DiffitError, match=f"batch_size 8 in {accumulate} parts exceeds .* accumulate={advice}$"):
        train(tiny.override(batch_size=8, accumulate=accumulate), tmp_path, data, progress=False)
