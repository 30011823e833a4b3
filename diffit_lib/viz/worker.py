"""One background thread for everything that draws: a new job cancels the one that runs."""

import threading
from collections.abc import Callable, Iterator

import torch

from diffit_lib.utils.errors import DiffitError

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
