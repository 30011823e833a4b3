"""The order of the packages: who may import whom, how long a file is, what a public name says of itself."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "diffit_lib"
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
ORDER = (
    "utils",
    "config",
    "models",
    "diffusion",
    "data",
    "checkpoints",
    "sampling",
    "evaluation",
    "training",
    "viz",
    "reports",
    "notebook cli",  # side by side: neither imports the other
)
LEVEL = {package: level for level, packages in enumerate(ORDER) for package in packages.split()}
MODULES = [name for name in FILES if name.count(".") > 1]


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
    """What a module imports from a package above its own, or beside it."""
    package = name.split(".")[1]
    for imported in imports(name, source):
        top, other, *_ = [*imported.split("."), ""]
        if (
            top == "diffit_lib"
            and other not in (package, "__version__")
            and LEVEL.get(other, len(ORDER)) >= LEVEL[package]
        ):
            yield f"{package} imports {imported}, which is not below it"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_is_in_a_package(name):
    assert name.split(".")[1] in LEVEL


def test_the_top_holds_the_public_names_alone():
    assert sorted(name for name in FILES if name.count(".") == 1) == ["diffit_lib.__init__", "diffit_lib.__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_from_packages_below(name):
    assert list(breaches(name, FILES[name].read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import diffit_lib.training.fit",
        "from diffit_lib import cli",
        "from diffit_lib.data.sources import find_pictures",
        "from ..data import datasets",
        "from .. import sampling",
        "def later():\n    from diffit_lib.sampling.pipeline import load",
        "from diffit_lib.attic import old",
    ],
)
def test_a_breach_is_seen_in_every_form_of_import(source):
    assert len(list(breaches("diffit_lib.diffusion.schedules", source))) == 1


@pytest.mark.parametrize("name", ["diffit_lib.config.diffusion", "diffit_lib.config.models"])
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
