"""An installed wheel does what a checkout does: it is built, installed into an empty environment and used there."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 25_000_000
SHORT_DEMO = """
from diffit_lib.cli import demo
from diffit_lib.config.presets import preset
demo.preset = lambda name: preset(name).override(max_steps=2)
assert demo.demo()["images_seen"] == 64
"""
FIGURES = """
from pathlib import Path
import diffit_lib
from diffit_lib.notebook.cells import FIGURES
assert "site-packages" in diffit_lib.__file__, diffit_lib.__file__
for name in ("tmsa", "diffit_block", "resblock", "u_shape", "latent", "latent_diffit"):
    assert (FIGURES / f"{name}.png").read_bytes().startswith(b"\\x89PNG")
"""


def run(*command, **options):
    """Run a command; its output is shown if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources without the network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "diffit_lib", source / "diffit_lib", ignore=shutil.ignore_patterns("__pycache__"))
    try:
        import setuptools
    except ImportError:
        pytest.skip("setuptools is not installed, which builds wheels")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is too old to build the wheel; it takes 77")
    build = (sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist")
    run(*build, cwd=source)
    [path] = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function: run a command of an environment with the wheel and our dependencies, in an empty folder."""
    place = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", place / "env")
    python = place / "env" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    [own] = (place / "env").glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # an editable diffit there is not seen
    (place / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "DIFFIT_CACHE": str(place / "cache")}
    return lambda name, *words: run(
        place / "env" / "bin" / name, *words, cwd=place / "empty", env=environment, timeout=600
    )


@pytest.mark.slow
def test_wheel_holds_pretrained_weights_and_is_small(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"diffit_lib/pretrained/{name}.safetensors" for name in ("digits", "mnist", "latent-digits")} <= names
    assert not [name for name in names if not name.startswith(("diffit_lib/", "diffit-"))]
    assert wheel.stat().st_size < MOST_BYTES


@pytest.mark.slow
def test_pretrained_weights_load_and_draw(installed):
    for name in ("digits", "mnist", "latent-digits"):
        code = f"import diffit_lib; print(diffit_lib.load({name!r})(seeds=[0], steps=2).shape)"
        assert installed("python", "-c", code).splitlines()[-1].startswith("(1, ")


@pytest.mark.slow
def test_commands_work(installed):
    assert "preset digits" in installed("diffit", "info", "digits")
    assert "weights:" in installed("diffit", "train", "digits", "--run", "run", "--max-steps", "2")
    assert "weights run/weights.safetensors: digits" in installed("diffit", "info", "run")


@pytest.mark.slow
def test_demo_works(installed):
    installed("python", "-c", SHORT_DEMO)


@pytest.mark.slow
def test_notebooks_find_their_figures(installed):
    installed("python", "-c", FIGURES)
