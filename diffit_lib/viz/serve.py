"""`diffit explore`: the explorer as a page in a browser, served by Voila on this machine alone."""

import secrets
import socket
import tempfile
import webbrowser
from importlib.util import find_spec
from pathlib import Path

import nbformat

from diffit_lib.checkpoints.hub import find_weights
from diffit_lib.utils.errors import DiffitError

CELL = """from diffit_lib.viz.explorer import explore

explore({weights!r})"""


def write_app(folder: str | Path, weights: str) -> Path:
    """Write the one-cell notebook that Voila runs for each visitor."""
    path = Path(folder) / "diffit_explorer.ipynb"
    cells = [nbformat.v4.new_code_cell(CELL.format(weights=weights))]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def serve(weights: str, port: int = 8866, browser: bool = True) -> None:
    """Serve the explorer on 127.0.0.1 until Ctrl-C; who opens the page needs the token that the printed URL holds."""
    if find_spec("voila") is None:
        raise DiffitError("explore needs voila, which is not installed; run: pip install voila")
    find_weights(weights)  # a wrong name is told here, not in the browser
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise DiffitError(f"port is {port}, which cannot be used ({error}); give another --port") from None
    try:
        webbrowser.get()
    except webbrowser.Error:  # Voila would say so in a line of its own; the printed address is enough
        browser = False
    from voila.app import Voila

    token = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory() as folder:
        app = write_app(folder, weights)
        print(f"explorer: http://127.0.0.1:{port}/?token={token}   (Ctrl-C ends it)", flush=True)
        options = ["--Voila.ip=127.0.0.1", f"--port={port}", f"--token={token}", "--Voila.log_level=WARN"]
        Voila.launch_instance([str(app), *options, *([] if browser else ["--no-browser"])])
