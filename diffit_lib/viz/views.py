"""The explorer's views of sampling, and the background thread in which every view draws."""

import base64
import threading
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch

from diffit_lib.config.diffusion import GUIDANCE_OPTIONS, SAMPLER_OPTIONS
from diffit_lib.diffusion.samplers import State
from diffit_lib.sampling.pipeline import Pipeline
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.plots import png
from diffit_lib.viz.figures import enlarge, gif, side_by_side

SIDE, SMALL_SIDE = 256, 72  # pixels of a large and of a small picture
WALK = 9  # pictures of a walk
Job = Callable[[], Iterator[object]]


class Worker:
    """Runs the latest job it was given; a job is a generator function and can be cancelled at each of its yields."""

    def __init__(
        self,
        show_error: Callable[[str], None],
        busy: Callable[[bool], None] = lambda _: None,
        cpu_threads: int | None = None,
    ):
        self.show_error, self.busy, self.cpu_threads = show_error, busy, cpu_threads
        self._changed = threading.Condition()
        self._next: Job | None = None
        self._cancelled = False
        self._idle = threading.Event()
        self._idle.set()
        threading.Thread(target=self._loop, daemon=True).start()

    def run(self, job: Job) -> None:
        """Cancel what runs and run this."""
        with self._changed:
            self._next, self._cancelled = job, True
            self._idle.clear()
            self._changed.notify()

    def stop(self) -> None:
        """Cancel what runs and what waits."""
        with self._changed:
            self._next, self._cancelled = None, True

    def wait(self, timeout: float | None = None) -> bool:
        """Return once nothing runs, or False after `timeout` seconds."""
        return self._idle.wait(timeout)

    def _loop(self) -> None:
        if self.cpu_threads:
            torch.set_num_threads(self.cpu_threads)
        while True:
            with self._changed:
                while self._next is None:
                    self._idle.set()
                    self._changed.wait()
                job, self._next, self._cancelled = self._next, None, False
            self.busy(True)
            try:
                for _ in job():
                    if self._cancelled:
                        break
            except DiffitError as error:
                self.show_error(str(error))
            except Exception as error:  # a view that fails must not end the thread that draws all others
                self.show_error(f"{type(error).__name__}: {error}; run the cell again, and report it if it comes back")
            finally:
                self.busy(False)


def blank_image(side: int | None = None) -> widgets.Image:
    """An empty picture, `side` pixels wide."""
    layout = widgets.Layout(margin="2px", width=f"{side}px" if side else None, max_width="100%")
    return widgets.Image(format="png", layout=layout)


def class_options(pipe: Pipeline) -> list[tuple[str, Any]]:
    """Classes by name and number, for a dropdown."""
    names, classes = pipe.card.class_names, pipe.card.num_classes
    return [(names[k] if names else str(k), k) for k in range(classes)] or [("none", None)]


class Knobs:
    """The settings of one column: class, seed, sampler, steps, guidance."""

    def __init__(self, pipe: Pipeline, title: str = ""):
        sampling, classes = pipe.card.experiment.sampling, pipe.card.num_classes
        self.label = widgets.Dropdown(options=class_options(pipe))
        self.seed = widgets.IntSlider(value=0, min=0, max=99)
        self.sampler = widgets.Dropdown(options=list(SAMPLER_OPTIONS), value=sampling.sampler)
        self.steps = widgets.IntSlider(value=sampling.steps, min=2, max=max(64, sampling.steps))
        self.guidance = widgets.FloatSlider(value=sampling.guidance, min=0, max=8, step=0.25, disabled=classes == 0)
        schedule = {"options": list(GUIDANCE_OPTIONS), "value": sampling.guidance_schedule}
        self.schedule = widgets.Dropdown(**schedule, disabled=classes == 0)
        self.by_name = {
            "class": self.label,
            "seed": self.seed,
            "sampler": self.sampler,
            "steps": self.steps,
            "guidance": self.guidance,
            "schedule": self.schedule,
        }
        for name, knob in self.by_name.items():
            knob.description, knob.layout = name, widgets.Layout(width="310px")
        self.box = widgets.VBox([*([widgets.HTML(f"<b>{title}</b>")] if title else []), *self.by_name.values()])

    def stream(self, pipe: Pipeline) -> Iterator[State]:
        """Every state of the sampler with these settings."""
        settings: dict[str, Any] = {"sampler": self.sampler.value, "steps": self.steps.value}
        if not self.guidance.disabled:
            settings |= {"guidance": self.guidance.value, "guidance_schedule": self.schedule.value}
        return pipe.stream([self.seed.value], self.label.value, **settings)

    def observe(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever a knob turns."""
        for knob in self.by_name.values():
            knob.observe(lambda _: changed(), names="value")


class Column:
    """One trajectory: its knobs, the noisy image and the denoiser's guess at one step."""

    def __init__(self, pipe: Pipeline, title: str):
        self.pipe, self.knobs = pipe, Knobs(pipe, title)
        self.frames: list[tuple[float, np.ndarray, np.ndarray]] = []  # sigma, noisy image, guess
        self.noisy, self.guess, self.caption = blank_image(SIDE), blank_image(SIDE), widgets.HTML()
        self.box = widgets.VBox([self.knobs.box, widgets.HBox([self.noisy, self.guess]), self.caption])

    def draw(self) -> Iterator[State]:
        """Sample, keeping a frame for each step."""
        self.frames = []
        for state in self.knobs.stream(self.pipe):
            noisy = self.pipe.decode(state.x / max(1.0, state.sigma))[0]
            self.frames.append((state.sigma, enlarge(noisy, SIDE), enlarge(self.pipe.decode(state.denoised)[0], SIDE)))
            yield state

    def show(self, step: int) -> None:
        """Show the frame after this many steps, or the last one there is."""
        if self.frames:
            sigma, noisy, guess = self.frames[min(step, len(self.frames)) - 1]
            self.noisy.value, self.guess.value = png(noisy), png(guess)
            self.caption.value = f"left: the noisy image, right: what the denoiser takes it for; σ = {sigma:.3g}"


class SamplerView:
    """Sampling step by step, one column or two to compare."""

    def __init__(self, pipe: Pipeline, worker: Worker):
        self.worker = worker
        self.columns = [Column(pipe, "A"), Column(pipe, "B")]
        self.compare = widgets.Checkbox(value=False, description="compare with B")
        self.step = widgets.IntSlider(description="step", min=1, layout=widgets.Layout(width="420px"))
        self.play = widgets.Play(min=1, interval=150)
        self.progress = widgets.IntProgress(min=0, layout=widgets.Layout(width="180px"))
        self.save_png, self.save_gif = (widgets.Button(description=f"Save {kind}") for kind in ("PNG", "GIF"))
        self.saved = widgets.HTML()
        widgets.jslink((self.play, "value"), (self.step, "value"))
        self.step.observe(lambda _: self._show(), names="value")
        self.save_png.on_click(lambda _: self._offer("png"))
        self.save_gif.on_click(lambda _: self._offer("gif"))
        self.compare.observe(lambda _: self._arrange(), names="value")
        for column in self.columns:
            column.knobs.observe(self.draw)
        self.row = widgets.HBox()
        bar = widgets.HBox([self.play, self.step, self.progress])
        self.box = widgets.VBox([self.compare, self.row, bar, widgets.HBox([self.save_png, self.save_gif, self.saved])])
        self._arrange()

    @property
    def shown(self) -> list[Column]:
        """The columns on the screen."""
        return self.columns if self.compare.value else self.columns[:1]

    def draw(self) -> None:
        """Sample anew in the background; the pictures follow step by step."""
        self.worker.run(self._job)

    def _job(self) -> Iterator[State]:
        steps = max(column.knobs.steps.value for column in self.shown)
        self.progress.max, self.step.max, self.play.max = steps, steps, steps
        for column in self.shown:
            for state in column.draw():
                self.progress.value = state.step
                if state.step in (1, len(column.frames) // 4 * 4):  # a picture every few steps: the first at once
                    column.show(state.step)
                yield state
            column.show(steps)
        self.play.value = self.step.value = steps

    def _arrange(self) -> None:
        self.row.children = [column.box for column in self.shown]
        if self.compare.value:
            for name, knob in self.columns[0].knobs.by_name.items():  # B starts as A
                self.columns[1].knobs.by_name[name].value = knob.value
        self.draw()

    def _show(self) -> None:
        for column in self.shown:
            column.show(self.step.value)

    def _offer(self, kind: str) -> None:
        columns = [column.frames for column in self.shown if column.frames]
        if columns:  # the shorter one waits at its end
            steps = [[each[min(k, len(each) - 1)] for each in columns] for k in range(max(map(len, columns)))]
            last = side_by_side([guess for _, _, guess in steps[-1]])
            frames = ([picture for column in step for picture in column[1:]] for step in steps)
            data = png(last) if kind == "png" else gif([side_by_side(frame) for frame in frames])
            name = f"diffit_seed{'_'.join(str(column.knobs.seed.value) for column in self.shown)}.{kind}"
            link = base64.b64encode(data).decode()
            self.saved.value = f'<a download="{name}" href="data:image/{kind};base64,{link}">download {name}</a>'


class WalkView:
    """A walk between two seeds or two classes."""

    def __init__(self, pipe: Pipeline, worker: Worker):
        self.pipe, self.worker, self.pictures = pipe, worker, np.zeros((0, 1, 1, 1), np.uint8)
        classes = class_options(pipe)
        self.kind = widgets.ToggleButtons(options=["seeds", "classes"] if len(classes) > 1 else ["seeds"])
        self.seeds = [widgets.IntSlider(value=k, min=0, max=99, description=f"seed {'AB'[k]}") for k in range(2)]
        self.classes = [widgets.Dropdown(options=classes, description=f"class {'AB'[k]}") for k in range(2)]
        if len(classes) > 1:
            self.classes[1].value = 1
        self.place = widgets.IntSlider(min=1, max=WALK, description="place")
        self.large, self.strip = blank_image(SIDE), blank_image()
        for knob in (self.kind, *self.seeds, *self.classes):
            knob.observe(lambda _: self.draw(), names="value")
        self.place.observe(lambda _: self._show(), names="value")
        knobs = widgets.HBox([widgets.VBox([self.kind, *self.seeds]), widgets.VBox(self.classes)])
        self.box = widgets.VBox([knobs, self.strip, self.place, self.large])

    def draw(self) -> None:
        """Draw the walk in the background."""
        self.worker.run(self._job)

    def _job(self) -> Iterator[None]:
        seeds, classes = ([knob.value for knob in knobs] for knobs in (self.seeds, self.classes))
        if self.kind.value == "seeds":
            self.pictures = self.pipe.interpolate(seeds, classes[0], WALK)
        else:
            self.pictures = self.pipe.interpolate(seeds[:1] * 2, classes, WALK)
        self.strip.value = png(side_by_side([enlarge(picture, SMALL_SIDE) for picture in self.pictures]))
        self._show()
        yield

    def _show(self) -> None:
        if len(self.pictures):
            self.large.value = png(enlarge(self.pictures[self.place.value - 1], SIDE))
