"""`make pages`: runs both notebooks, and writes each with what it showed to docs/notebooks/, for reading on GitHub.

The notebooks themselves are committed without outputs.
"""

import base64
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "notebooks"
EMBEDDED = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=]+)")
NOTE = (
    "<!-- `make pages` wrote this page. Change the notebook instead. -->\n"
    "*This is [{name}](../../{name}) as it ran on a CPU, for reading. Run it yourself to change something.*"
)
EXPLORER = "[![The explorer](../../images/explorer_{view}.png)](../explorer.md)"
VIEWS = {"time": "frozen", "sample": "sample", "walk": "walk"}  # first view of an explorer -> its screenshot


def main() -> None:
    """Run and write both, or those that are named."""
    for path in map(Path, sys.argv[1:] or sorted(ROOT.glob("*.ipynb"))):
        folder = PAGES / path.stem
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        folder.with_suffix(".md").write_text(page(executed(path), path.name, folder), encoding="utf-8")


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook after a run in a new kernel, in an empty folder."""
    notebook = nbformat.read(path, 4)
    os.environ |= {
        "PYTHONPATH": str(ROOT),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": folder}}).execute()
    return notebook


def page(notebook: nbformat.NotebookNode, name: str, folder: Path) -> str:
    """An executed notebook as Markdown; its pictures are written to `folder`."""
    title, *cells = notebook.cells
    parts = [title.source.replace("\n", f"\n\n{NOTE.format(name=name)}\n", 1)]
    for cell in cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        parts += [text for output in cell.get("outputs", ()) if (text := shown(output, folder))]
        if view := re.search(r'^explore\(.*views=\("(\w+)"', cell.source, re.M):
            parts.append(EXPLORER.format(view=VIEWS[view[1]]))
    return "\n\n".join(parts) + "\n"


def shown(output: nbformat.NotebookNode, folder: Path) -> str:
    """What one output of a cell shows, as Markdown."""
    if output.output_type == "stream":
        return f"```text\n{output.text.rstrip()}\n```"
    data = output.data
    if "image/png" in data:
        width = output.metadata["image/png"]["width"]
        return f'<img src="{saved(data["image/png"], folder)}" width="{width}">'
    html = data.get("text/html", "")
    return EMBEDDED.sub(lambda match: saved(match[1], folder), html) if "<img" in html or "<table" in html else ""


def saved(content: str, folder: Path) -> str:
    """Write a PNG, given as base64, and return its address in the page."""
    path = folder / f"{len(list(folder.iterdir())):02}.png"
    path.write_bytes(base64.b64decode(content))
    return f"{folder.name}/{path.name}"


if __name__ == "__main__":
    main()
