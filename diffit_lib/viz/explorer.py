"""The explorer: widgets over a pipeline. Turn a knob and see the picture change."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.utils.errors import DiffitError
from diffit_lib.viz.time_view import TimeView
from diffit_lib.viz.views import SamplerView, WalkView, Worker

SMALL_NETWORK = 5_000_000  # parameters up to which one CPU thread is fastest


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
