"""The explorer: widgets over a pipeline, in tabs; and the tab on attention, where the time token can be frozen."""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch

from diffit_lib.diffusion.samplers import State
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.plots import png
from diffit_lib.viz import figures
from diffit_lib.viz.attention import Attention, attention_at, attention_blocks, frozen_time
from diffit_lib.viz.views import SMALL_SIDE, Knobs, SamplerView, WalkView, Worker, blank_image

SMALL_NETWORK = 5_000_000  # parameters up to which one CPU thread is fastest
PARTS = ("sample", "look", "figure", "freeze")  # in the order in which they are drawn
LARGE = 200  # pixels of a picture; four of them stand side by side


class TimeView:
    """Attention of one block and head for one query at every noise level, and what the time token does to it."""

    def __init__(self, pipe: Pipeline, worker: Worker):
        self.pipe, self.worker, self.knobs = pipe, worker, Knobs(pipe)
        self.blocks = list(attention_blocks(pipe.denoiser.network))
        layer = next(iter(attention_blocks(pipe.denoiser.network).values()))
        self.block = widgets.Dropdown(options=self.blocks, value=self.blocks[-1], description="block")
        heads = [("mean of all", None), *((str(head + 1), head) for head in range(layer.num_heads))]
        self.head = widgets.Dropdown(options=heads, value=0, description="head")
        self.query = [widgets.IntSlider(min=0, max=1, description=name) for name in ("row", "column")]
        self.level = widgets.IntSlider(min=1, max=1, description="level")
        self.freeze = widgets.Checkbox(value=False, description="freeze the time token at σ =")
        self.sigma = widgets.FloatLogSlider(value=0.3, base=10, min=-1.5, max=1, step=0.05, readout_format=".2g")
        self.picture, self.looks, self.true, self.frozen = (blank_image(LARGE) for _ in range(4))
        self.strip = blank_image()
        self.more = widgets.Dropdown(
            options=["bias by relative position", "share of the time token", "mean distance", "the inert key"],
            description="also show",
        )
        self.figure = widgets.Image(format="png", layout=widgets.Layout(width="760px", max_width="100%"))
        self.seen: tuple[Attention, list[np.ndarray]] | None = None  # set at once: two threads read it
        self.states: list[State] = []
        self.frames: list[np.ndarray] = []
        self.knobs.observe(self.draw)
        self.block.observe(lambda _: self._run("look", "figure"), names="value")
        for knob in (self.head, *self.query, self.level):
            knob.observe(lambda _: self._show(), names="value")
        for knob in (self.freeze, self.sigma):
            knob.observe(lambda _: self._run("freeze"), names="value")
        for knob in (self.more, self.head, *self.query):
            knob.observe(lambda _: self._run("figure"), names="value")
        self.todo: set[str] = set()  # parts that wait to be drawn anew
        self.titles = [widgets.HTML() for _ in range(4)]
        pictures = (self.picture, self.looks, self.true, self.frozen)
        pairs = [widgets.VBox([title, image]) for title, image in zip(self.titles, pictures, strict=True)]
        knobs = widgets.VBox([self.knobs.box, self.block, self.head, *self.query, self.level])
        blind = widgets.HBox([self.freeze, self.sigma])
        caption = widgets.HTML("The same query at every noise level, from most noise to least:")
        views = widgets.VBox([widgets.HBox(pairs), blind, caption, self.strip])
        self.box = widgets.VBox([widgets.HBox([knobs, views]), self.more, self.figure])

    def draw(self) -> None:
        """Sample anew, then look at the attention."""
        self._run(*PARTS)

    def _run(self, *parts: str) -> None:
        """Draw these parts anew, and what this cancels too."""
        self.todo.update(parts)
        self.worker.run(self._job)

    def _job(self) -> Iterator[object]:
        for part in PARTS:
            if part in self.todo:
                self.todo.discard(part)
                try:
                    yield from getattr(self, f"_{part}")()
                except BaseException:  # cancelled, or it failed
                    self.todo.add(part)
                    raise

    def _sample(self) -> Iterator[object]:
        states, frames = [], []
        for state in self.knobs.stream(self.pipe):
            states.append(state)
            frames.append(figures.enlarge(self.pipe.decode(state.x / max(1.0, state.sigma))[0], LARGE))
            yield state
        self.states, self.frames = states[:-1], frames  # the last one is at noise level 0, which no network sees
        first, self.level.max = self.level.max == 1, len(self.states)
        if first:  # a level at which the image begins to show
            self.level.value = len(self.states) // 2

    def _look(self) -> Iterator[object]:
        if not self.states:
            return
        attention = self._attention(self.block.value)
        self.seen = attention, self.frames
        for knob, side in zip(self.query, attention.map_size, strict=True):
            if knob.max != side - 1:  # another block, another map: start in its middle
                knob.max, knob.value = side - 1, side // 2
        self._show()
        yield attention

    def _freeze(self) -> Iterator[object]:
        if self.frames:
            self.true.value = png(self.frames[-1])
        if self.freeze.value:
            with frozen_time(self.pipe.denoiser, self.sigma.value):
                for state in self.knobs.stream(self.pipe):
                    yield state
            self.frozen.value = png(figures.enlarge(self.pipe.decode(state.x)[0], LARGE))
            self.titles[3].value = f"time token frozen at σ = {self.sigma.value:.2g}"
        else:
            self.frozen.value = self.true.value
            self.titles[3].value = "freeze the time token below"

    def _figure(self) -> Iterator[object]:
        if self.seen is None:
            return
        query = self.query[0].value, self.query[1].value
        views: dict[str, Callable[[Attention], Any]] = {
            "bias by relative position": figures.position_bias_figure,
            "share of the time token": lambda _: figures.time_share_figure(self._every_block()),
            "mean distance": lambda _: figures.distance_figure(self._every_block()),
            "the inert key": lambda seen: figures.inert_key_figure(seen, query, self.head.value or 0),
        }
        self.figure.value = png(views[self.more.value](self.seen[0]))
        yield self.figure

    def _every_block(self) -> dict[str, Attention]:
        """The attention of all blocks, of a deep network of six."""
        return {self.blocks[k]: self._attention(self.blocks[k]) for k in figures.evenly(len(self.blocks), 6)}

    def _attention(self, block: str) -> Attention:
        """The attention of a block in all states of the sampler."""
        x, sigmas = torch.cat([state.x for state in self.states]), [state.sigma for state in self.states]
        return attention_at(self.pipe, block, x, sigmas, self.knobs.label.value)

    def _show(self) -> None:
        if self.seen is None:
            return
        attention, frames = self.seen
        (rows, columns), level = attention.map_size, min(self.level.value, len(attention.sigmas)) - 1
        row, column = (min(knob.value, side - 1) for knob, side in zip(self.query, attention.map_size, strict=True))
        looks = attention.of_query(row, column, self.head.value).numpy()
        top = float(looks.max())
        self.picture.value = png(figures.outline(frames[level], row, column, rows, columns))
        self.looks.value = png(figures.outline(figures.heat(looks[level], LARGE, top), row, column, rows, columns))
        levels = [figures.heat(looks[k], SMALL_SIDE, top) for k in figures.evenly(len(looks), 11)]
        self.strip.value = png(figures.side_by_side(levels))
        self.titles[0].value = f"image at σ = {attention.sigmas[level]:.2g}"
        self.titles[1].value = "where the query looks"
        self.titles[2].value = "the sample"


class Explorer:
    """All views over one pipeline, in tabs. `explorer.box` is the widget; `draw` fills the view on top."""

    def __init__(self, weights: str | Path | Pipeline = "digits", views: Sequence[str] = ("sample", "time", "walk")):
        pipe = weights if isinstance(weights, Pipeline) else load(weights)
        self.pipe, self.message, self.spinner = pipe, widgets.HTML(), widgets.HTML()
        small = sum(p.numel() for p in pipe.denoiser.parameters()) < SMALL_NETWORK
        self.worker = Worker(self._tell, self._busy, cpu_threads=1 if small else None)  # one is fastest for tiny ones
        makers = {"sample": SamplerView, "time": TimeView, "walk": WalkView}
        titles = {"sample": "Sample", "time": "Time and attention", "walk": "Walk"}
        self.views: dict[str, Any] = {}
        for name in views:
            try:
                self.views[name] = makers[name](pipe, self.worker)
            except DiffitError as error:  # DiT has no time-dependent attention to look at
                self._tell(str(error))
        self.tabs = widgets.Tab([view.box for view in self.views.values()])
        for place, name in enumerate(self.views):
            self.tabs.set_title(place, titles[name])
        self.tabs.observe(lambda change: self._turn(), names="selected_index")
        self.stop = widgets.Button(description="Stop", icon="stop")
        self.stop.on_click(lambda _: self.worker.stop())
        self.box = widgets.VBox([self.tabs, widgets.HBox([self.stop, self.spinner, self.message])])
        self.draw()

    def draw(self) -> None:
        """Draw the view on top."""
        if self.views:
            list(self.views.values())[self.tabs.selected_index or 0].draw()

    def _turn(self) -> None:
        self.message.value = ""
        self.draw()

    def _busy(self, busy: bool) -> None:
        self.spinner.value = "drawing ..." if busy else ""

    def _tell(self, message: str) -> None:
        self.message.value = f'<span style="color: #c33">{escape(message)}</span>'


def explore(
    weights: str | Path | Pipeline = "digits", views: Sequence[str] = ("sample", "time", "walk")
) -> widgets.Widget:
    """The explorer's widget for weights by name or path, or for a pipeline."""
    return Explorer(weights, views).box
