"""The order of the house: who may import whom, how long a file is, what a public name says of itself."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffit_lib"
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
FLOORS = (
    "errors",
    "config networks stamp tensors files folders pictures crops colab imagenet npz",
    "blocks noise bound processes recipe augment sources decoding published backup tensor_files references",
    "models run_folder presets presets_vae perceptual denoiser samplers data extractors metrics codec",
    "autoencoders foreign inception given",
    "guidance weights plots latents",
    "pipeline",
    "training",
    "training_diffusion training_vae",
    "tasks",
    "explorer notebook options launch",
    "commands",
    "cli",
    "__main__",  # python -m diffit_lib
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
SHARED = (
    "models",
    "tasks",
    "commands",
)  # rooms of several files, which may import one another (demo trains, samples, evaluates)
MODULES = [name for name in FILES if name != "diffit_lib.__init__"]
UNKNOWN = len(FLOORS)


def imports(name, source):
    """Dotted names that a module's source imports, wherever in it; relative ones made absolute."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def breaches(name, source):
    """What a module imports from its own floor or from above it."""
    room = name.split(".")[1]
    for imported in imports(name, source):
        package, other, *_ = [*imported.split("."), ""]
        if package != "diffit_lib" or (other == room and room in SHARED):
            continue
        if FLOOR.get(other, UNKNOWN) >= FLOOR.get(room, UNKNOWN + 1):
            yield f"{room} on floor {FLOOR[room]} imports {imported} from floor {FLOOR.get(other, 'unknown')}"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_has_a_floor(name):
    room = name.split(".")[1]
    assert room in FLOOR, f"{room} stands on no floor: give it one in FLOORS here and in the design, or move it"


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_from_lower_floors(name):
    assert list(breaches(name, FILES[name].read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import diffit_lib.models",
        "from diffit_lib import noise",
        "from diffit_lib.blocks import TMSA",
        "from .data import digits",
        "from . import pipeline",
        "def later():\n    from diffit_lib.models.image import ImageDiffiT",
        "from diffit_lib.attic import old",
    ],
)
def test_a_breach_is_seen_in_every_form_of_import(source):
    assert len(list(breaches("diffit_lib.noise", source))) == 1


@pytest.mark.parametrize("name", ["diffit_lib.config", "diffit_lib.networks"])
def test_settings_need_the_standard_library_alone(name):
    top = {imported.split(".")[0] for imported in imports(name, FILES[name].read_text())}
    assert top - sys.stdlib_module_names == {"diffit_lib"}


@pytest.mark.parametrize("name", FILES)
def test_file_is_at_most_300_lines_long(name):
    lines = len(FILES[name].read_text().splitlines())
    assert lines <= 300


def undocumented(node, prefix=""):
    """Public classes, functions and methods below `node` without a docstring; names inside a function are private."""
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            if not ast.get_docstring(child):
                yield prefix + child.name
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, f"{prefix}{child.name}.")


@pytest.mark.parametrize("name", FILES)
def test_everything_public_says_what_it_is(name):
    assert list(undocumented(ast.parse(FILES[name].read_text()))) == []
