"""`diffit explore`: the explorer in a browser, served on this machine alone; or one HTML file that runs by itself.

That file needs no server, no Python and no network connection. Its parts lie in `page/`: plain JavaScript modules, a
style sheet and a template. Here they become one, with the weights in float16 and the library's own noise for the seeds
on offer.
"""

import base64
import json
import re
import secrets
import socket
import tempfile
import webbrowser
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import Tensor

from diffit_lib.checkpoints.hub import find_weights
from diffit_lib.config.models import ImageNetworkConfig
from diffit_lib.diffusion.denoiser import EDMDenoiser
from diffit_lib.sampling.pipeline import Pipeline, load
from diffit_lib.utils.errors import DiffitError, check
from diffit_lib.utils.files import write_text
from diffit_lib.utils.tensors import SeededNoise

MODULES = ("tensor.js", "attention.js", "network.js", "model.js", "sampler.js")  # each imports only those before it
VIEWS = ("trajectory.js", "draw.js", "page.js")  # these need a browser
SEEDS, MAX_STEPS = 64, 32  # on offer in the page
MOST_BYTES = 5_000_000


def export_page(path: str | Path, weights: str | Path = "digits") -> Path:
    """Write the page for these weights, at most 5 MB of HTML, and return its path.

    The weights are those of a class-conditional image-space DiffiT with EDM's denoiser and Heun's sampler. The page
    draws the library's pictures for the same seed, class, steps and guidance, up to rounding.
    """
    pipe = load(weights, device="cpu", precision="32-true")
    experiment = pipe.card.experiment
    check(
        isinstance(experiment.network, ImageNetworkConfig)
        and isinstance(pipe.denoiser, EDMDenoiser)
        and experiment.network.num_classes > 0
        and experiment.sampling.sampler == "heun"
        and experiment.sampling.guidance_schedule == "constant"
        and experiment.sampling.guidance_channels is None,
        f"{weights} cannot run in a page, which has an image-space DiffiT with classes, EDM's denoiser and "
        "Heun's sampler; give digits, or weights of that kind",
    )
    tensors = {  # those of convolutions channels last, (out, height, width, in)
        name: tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
        for name, tensor in pipe.denoiser.network.state_dict().items()
    }
    draw = SeededNoise(range(SEEDS), experiment.network.shape)
    noise = torch.stack([draw() for _ in range(MAX_STEPS + 1)], dim=1)  # (SEEDS, MAX_STEPS + 1, C, H, W)
    html = Template(_part("page.html")).substitute(
        style=_part("page.css"),
        size=f"{experiment.network.shape[2]}×{experiment.network.shape[1]}",
        script=script(*MODULES, *VIEWS),
        model=json.dumps(page_card(pipe, tensors)).replace("<", "\\u003c"),
        weights=_base64(torch.cat([tensor.flatten() for tensor in tensors.values()]), torch.float16),
        noise=_base64(noise.movedim(2, -1), torch.float32),
    )
    check(
        len(html.encode()) <= MOST_BYTES,
        f"the page of {weights} would have {len(html) / 1e6:.1f} MB, at most {MOST_BYTES / 1e6:g} MB are sensible; "
        "give smaller weights, such as digits",
    )
    write_text(path, html)
    return Path(path)


def script(*modules: str) -> str:
    """Modules of `page/` as one: in this order, without their imports and exports."""
    joined = "\n".join(_part(module) for module in modules)
    return re.sub(r"^export ", "", re.sub(r"^import .*;\n", "", joined, flags=re.MULTILINE), flags=re.MULTILINE)


def page_card(pipe: Pipeline, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What the page knows of the model besides its numbers."""
    experiment = pipe.card.experiment
    network, sampling, denoiser = experiment.network, experiment.sampling, pipe.denoiser
    assert isinstance(network, ImageNetworkConfig)
    assert isinstance(denoiser, EDMDenoiser)
    return {
        "name": experiment.name,
        "network": {
            "size": network.shape[1:],
            "patch": network.patch,
            "windows": network.windows,
            "heads": network.num_heads,
            "blocks": network.num_blocks,
            "width": network.width,
        },
        "tensors": [(name, list(tensor.shape)) for name, tensor in tensors.items()],
        "numClasses": network.num_classes,
        "classNames": pipe.card.class_names,
        "sigmaData": denoiser.sigma_data,
        "sigmaMin": denoiser.sigma_min,
        "sigmaMax": denoiser.sigma_max,
        "steps": min(sampling.steps, MAX_STEPS),
        "guidance": sampling.guidance,
        "guidanceTolerance": sampling.guidance_tolerance,
        "churn": sampling.churn,
        "seeds": SEEDS,
        "maxSteps": MAX_STEPS,
    }


def _base64(tensor: Tensor, dtype: torch.dtype) -> str:
    return base64.b64encode(tensor.to(dtype).contiguous().numpy().tobytes()).decode()


def _part(name: str) -> str:
    return (files("diffit_lib.viz") / "page" / name).read_text(encoding="utf-8")


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
    import nbformat  # which Voila brings
    from nbformat import v4
    from voila.app import Voila

    token = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory() as folder:
        app = Path(folder) / "diffit_explorer.ipynb"
        code = f"from diffit_lib.viz.explorer import explore\nexplore({weights!r})"
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        write_text(app, nbformat.writes(v4.new_notebook(cells=[v4.new_code_cell(code)], metadata=kernel)))
        print(f"explorer: http://127.0.0.1:{port}/?token={token}   (Ctrl-C ends it)", flush=True)
        options = ["--Voila.ip=127.0.0.1", f"--port={port}", f"--token={token}", "--Voila.log_level=WARN"]
        Voila.launch_instance([str(app), *options, *([] if browser else ["--no-browser"])])
