"""How a notebook is written: short cells, one idea each, committed without outputs, no state but its variables."""

import ast
import re
import zipfile
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from pack_colab import pack

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted(ROOT.glob("*.ipynb"))
FIRST = ["DATASET", "IS_TRAIN", "TRAIN_MINUTES"]
MORE = {
    "DiffiT_Image_Space_Architecture": """
        IS_TEST IS_METRIC PRESET METRIC_SAMPLES DIR_WEIGHTS PATH_WEIGHTS SEED SAMPLER STEPS GUIDANCE USE_DRIVE REPO_URL
        OVERRIDES
    """,
    "DiffiT_Latent_Space_Architecture": """
        IS_TEST IS_METRIC PRESET BLOCK VAE VAE_MINUTES METRIC_SAMPLES DIR_WEIGHTS PATH_WEIGHTS SEED USE_DRIVE REPO_URL
        OVERRIDES
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
        "Answer five questions",
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
        "Answer five questions",
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
def forms(notebook):
    """Its two form cells: the first settings, and the rest."""
    first, more = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    return first, more


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


def test_its_page_has_every_cell_and_all_its_pictures(path, notebook):
    page = ROOT / "docs" / "notebooks" / f"{path.stem}.md"
    text, place = page.read_text(encoding="utf-8"), 0
    for cell in notebook.cells[1:]:
        place = text.find(cell.source, place) + 1
        assert place, f"docs/notebooks/{page.name} lacks {cell.source[:60]!r}: run `make pages`"
    pictures = re.findall(r'src="([^"]+)"', text)
    assert len(pictures) > 15
    assert sorted(pictures) == sorted(f"{path.stem}/{file.name}" for file in page.with_suffix("").iterdir())


def test_cells_are_short(notebook, code):
    assert len(code) <= 26
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 15


def test_set_up_is_the_same_in_all():
    codes = [[cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"] for path in PATHS]
    assert codes[0][2:4] == codes[1][2:4]
    assert "drive.mount" in codes[0][2]
    assert "unpack_archive" in codes[0][3]


def names(form):
    """The settings of a form."""
    return [statement.targets[0].id for statement in ast.parse(form.source).body]


def test_three_settings_come_first_and_the_rest_is_folded(path, forms):
    first, more = forms
    assert (names(first), names(more)) == (FIRST, MORE[path.stem].split())
    assert more.source.startswith("# @title More settings\n")
    assert more.metadata["jupyter"] == {"source_hidden": True}


def test_forms_are_one_line_a_setting_and_no_logic(forms):
    values = {}
    for form in forms:
        assert form.metadata["cellView"] == "form"
        lines = form.source.removeprefix("# @title More settings\n").splitlines()
        assert all(re.search(r"  # @param (\{.*\}|\[.*\])", line) for line in lines)
        values |= {each.targets[0].id: ast.literal_eval(each.value) for each in ast.parse(form.source).body}
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


def test_form_settings_are_all_used(notebook, forms):
    elsewhere = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code" and cell not in forms)
    assert [name for form in forms for name in names(form) if not re.search(rf"\b{name}\b", elsewhere)] == []


def test_the_method_by_hand_equals_the_librarys_own(path, code):
    """The loss and guidance in both notebooks; TMSA and Euler's method on pixels."""
    given = "from diffit_lib import load\nfrom diffit_lib.notebook import show_figures, tile_columns, to_float"
    names = {}
    exec(f"import torch\n{given}", names)
    cells = [source for source in code if "assert torch.allclose(" in source or "def euler_by_hand" in source]
    assert sum("assert" in source for source in cells) == (4 if "Image" in path.stem else 2)
    for source in cells:
        exec(source, names)


def test_five_questions_have_folded_answers(notebook):
    (questions,) = (cell.source for cell in notebook.cells if "<details>" in cell.source)
    assert re.findall(r"(?m)^(\d)\. .*\?<details><summary>Answer</summary>.+</details>$", questions) == list("12345")


def test_formulas_need_no_script_from_elsewhere(notebook):
    """MathJax is loaded from the network; HTML is not."""
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown" and "```" not in cell.source]
    assert not [text for text in prose if "$" in text]


def test_the_four_answers_stand_in_the_first_notebook():
    text = "\n".join(cell.source for cell in nbformat.read(PATHS[0], 4).cells if cell.cell_type == "markdown")
    for words in ("What is learned:", "The loss", "What the sampler does:", "What the time token does:"):
        assert f"**{words}**" in text


def test_the_zip_holds_both_notebooks_and_a_badge_only_with_an_address(tmp_path):
    def notebooks(*url):
        pack(tmp_path / "all.zip", *url)
        with zipfile.ZipFile(tmp_path / "all.zip") as archive:
            return {path.name: archive.read(path.name).decode() for path in PATHS}

    assert notebooks() == {path.name: path.read_text() for path in PATHS}
    for name, text in notebooks("https://github.com/someone/diffit.git").items():
        cells = nbformat.reads(text, 4).cells
        address = f"(https://colab.research.google.com/github/someone/diffit/blob/main/{name})"
        assert address in cells[0].source
        assert any('REPO_URL = "https://github.com/someone/diffit.git"' in cell.source for cell in cells)
    assert not [text for text in notebooks("https://example.org/diffit").values() if "colab-badge" in text]
