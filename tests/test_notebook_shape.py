"""How a notebook is written: short cells, one idea each, committed without outputs, no state but its variables."""

import ast
import re
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted(ROOT.glob("*.ipynb"))
FORMS = {
    "DiffiT_Image_Space_Architecture": """
        IS_TRAIN IS_TEST IS_METRIC DATASET PRESET TRAIN_MINUTES METRIC_SAMPLES DIR_WEIGHTS PATH_WEIGHTS SEED SAMPLER
        STEPS GUIDANCE USE_DRIVE OVERRIDES
    """,
    "DiffiT_Latent_Space_Architecture": """
        IS_TRAIN IS_TEST IS_METRIC DATASET PRESET BLOCK VAE VAE_MINUTES TRAIN_MINUTES METRIC_SAMPLES DIR_WEIGHTS
        PATH_WEIGHTS SEED USE_DRIVE OVERRIDES
    """,
}
ORDER = {
    "DiffiT_Image_Space_Architecture": [
        "DiffiT in image space",
        "Choose what to do",
        "Set up",
        "Look at the data",
        "Add noise",
        "Meet time-dependent self-attention",
        "Build the network",
        "Train",
        "Test",
        "Sample",
        "Measure",
        "What you have now",
        "Your turn",
        "References",
    ],
    "DiffiT_Latent_Space_Architecture": [
        "DiffiT in latent space",
        "Choose what to do",
        "Set up",
        "Look at the data",
        "Train the autoencoder",
        "Look at the latents",
        "Build the network",
        "Train",
        "Test",
        "Sample",
        "Measure",
        "Run a published model",
        "What you have now",
        "Your turn",
        "References",
    ],
}


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    """One notebook."""
    return request.param


@pytest.fixture
def notebook(path):
    """The same, read."""
    return nbformat.read(path, 4)


@pytest.fixture
def code(notebook):
    """The sources of its code cells."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def form(notebook):
    """Its form cell."""
    return next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))


def python(source):
    """A cell without shell lines and magics, parsed."""
    return ast.parse(re.sub(r"(?m)^(\s*)[!%].*$", r"\1pass", source))


def test_there_is_a_notebook():
    assert [path.stem for path in PATHS] == sorted(ORDER)


def test_headings_are_in_order(path):
    text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    assert re.findall(r"(?m)^##? (.*)$", text) == ORDER[path.stem]
    assert text.startswith("# ")
    assert "@inproceedings" in text


def test_is_valid_and_keeps_no_outputs(notebook):
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_cells_are_short(notebook, code):
    assert len(code) <= 20
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 15


@pytest.fixture
def settings(path):
    """The names in its form."""
    return FORMS[path.stem].split()


def test_set_up_is_the_same_in_all():
    cells = [nbformat.read(path, 4).cells for path in PATHS]
    assert len({next(cell.source for cell in each if "REPO_URL = " in cell.source) for each in cells}) == 1


def test_form_is_one_line_a_setting_and_no_logic(form, settings):
    statements = ast.parse(form.source).body
    assert [statement.targets[0].id for statement in statements] == settings
    assert all(isinstance(statement.value, ast.Constant) for statement in statements)
    assert all(re.search(r"  # @param (\{.*\}|\[.*\])", line) for line in form.source.splitlines())
    values = {statement.targets[0].id: statement.value.value for statement in statements}
    assert all(values[name] is True for name in ("IS_TRAIN", "IS_TEST", "IS_METRIC", "USE_DRIVE"))


def test_no_address_is_invented(code):
    assert [line for source in code for line in source.splitlines() if re.match("REPO_URL = ", line)] == [
        'REPO_URL = ""  # @param {type: "string"}'
    ]


def test_exercise_on_the_key_shows_its_point(capsys):
    """Without the key's share of the time token the first token stays the same; without the query's it does not."""
    cells = nbformat.read(ROOT / "DiffiT_Image_Space_Architecture.ipynb", 4).cells
    text = next(cell.source for cell in cells if "Your turn" in cell.source)
    (line,) = re.findall(r"`(layer\.qkv_temb.*?)`", text)
    cell = next(cell.source for cell in cells if "by_hand = " in cell.source)
    after = cell.index("\n", cell.index("layer = "))

    def shown(*added):
        exec("\n".join(["import torch", cell[:after], *added, cell[after:]]), {})
        return re.search("first token becomes: (.*)", capsys.readouterr().out)[1]

    assert shown() == shown(line)
    assert shown() != shown(line.replace("[16:32]", "[:16]"))


def test_running_a_cell_again_is_harmless(code):
    """No global state, no change of folder, no variable changed in place: every cell builds anew what it names."""
    for source in code:
        tree = python(source)
        assert not any(isinstance(node, ast.Global | ast.AugAssign | ast.Delete) for node in ast.walk(tree))
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        assert not [name for name in called if name.endswith((".append", ".pop", ".update", ".extend", "chdir"))]
        assert not re.search(r"(?m)^\s*[!%]cd\b", source)


def test_only_public_names_of_the_library_are_used_and_they_are_there(code):
    for source in code:
        for node in ast.walk(python(source)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("diffit_lib"):
                names = [alias.name for alias in node.names]
                assert [name for name in names if name.startswith("_")] == []
                assert [name for name in names if not hasattr(import_module(node.module), name)] == []


def test_at_most_three_packages_of_the_library_are_used(code):
    modules = [node.module for source in code for node in ast.walk(python(source)) if isinstance(node, ast.ImportFrom)]
    packages = {module.split(".")[1] for module in modules if module.startswith("diffit_lib.")}
    assert "notebook" in packages
    assert len(packages) <= 3


def test_form_settings_are_all_used(notebook, form, settings):
    elsewhere = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code" and cell != form)
    assert [name for name in settings if not re.search(rf"\b{name}\b", elsewhere)] == []
