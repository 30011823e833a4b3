"""Runs a notebook in a kernel of its own, in an empty folder, as Colab or as any other machine."""

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
COLAB = ROOT / "tests" / "colab"
SMALL = (  # a run of a moment
    "width=8 channel_mult=1,2 num_blocks=1 num_heads=2 time_dim=16 max_steps=6 batch_size=16 steps=4 threads=1 "
    "report_minutes=1e-9"
)
SMALL_LATENT = (
    "width=16 depth=1 num_heads=2 max_steps=6 batch_size=16 steps=4 threads=1 report_minutes=1e-9 "
    "vae.channels=8,8 vae.max_steps=6 vae.batch_size=16 vae.report_minutes=1e-9"
)


TEACHING = ("time_token_figure(", 'explore(weights_here, views=("time",))', "student = ")


def read(path, drive, *, whole=False, **settings):
    """A notebook with settings replaced and Drive mounted somewhere else.

    Unless it is wanted `whole`, cells that only show how DiffiT works keep their imports alone.
    """
    notebook = nbformat.read(path, 4)
    if Path(path).name.startswith("DiffiT_Image"):
        assert all(any(text in cell.source for cell in notebook.cells) for text in TEACHING)
    for cell in notebook.cells if not whole else ():
        if any(text in cell.source for text in TEACHING):
            cell.source = "\n".join(line for line in cell.source.splitlines() if line.startswith("from "))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = cell.source.replace("/content/drive", str(drive))
            for name, value in settings.items():
                cell.source = re.sub(rf"(?m)^{name} = .*?(?=  # @param)", f"{name} = {value!r}", cell.source)
    return notebook


def client(notebook, folder, cache, *, colab=None, library="present", upload="", kernel="python3"):
    """Ready to run in `folder`; `colab` is how Drive behaves there, None: this is not Colab."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [str(COLAB)] * (colab is not None) + [str(ROOT)] * (library == "present")
    os.environ |= {  # nbclient hands its own environment on
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DIFFIT_CACHE": str(cache),
        "COLAB_DRIVE": colab or "",
        "COLAB_LIBRARY": library,
        "COLAB_UPLOAD": str(upload),
        "OMP_NUM_THREADS": "1",
    }
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=1800, kernel_name=kernel, resources=resources)


def printed(notebook):
    """All that was printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def red(notebook):
    """The red lines."""
    return re.findall(r"\033\[31m(.*?)\033\[0m", printed(notebook))


def shown(notebook, kind):
    """What was shown, of this MIME type."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]
