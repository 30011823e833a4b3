"""Standard output and error whose reader may be gone, as in `diffit info | head -1`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any


class Stream:
    """A text stream. What nobody reads any more is dropped, so that the work goes on; all characters can be written."""

    def __init__(self, stream: Any):
        self.stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for characters that its encoding lacks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write; to nowhere once the reader is gone."""
        with self.to_nowhere():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is written."""
        with self.to_nowhere():
            self.stream.flush()

    @contextmanager
    def to_nowhere(self) -> Iterator[None]:
        """After an error, e.g. of a full disk, what is left and what comes goes nowhere; a closed pipe is no error."""
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise


@contextmanager
def streams() -> Iterator[None]:
    """Make standard output and error `Stream`s; at the end nothing is left unwritten."""
    out: Any = Stream(sys.stdout)
    err: Any = Stream(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        try:
            yield
        finally:
            with suppress(OSError):
                out.flush()
