"""The scripts beside the library: the figures show what is built, the zip holds what Colab needs."""

import re
import shlex
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import figures
import pytest
from matplotlib.text import Text
from pack_colab import pack

import diffit_lib
from diffit_lib.cli.main import parser, with_underscores
from diffit_lib.config.presets import PRESETS
from diffit_lib.data.folders import SUFFIXES
from diffit_lib.data.preprocess import CROPS
from diffit_lib.data.sources import NAMED

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md")))
SHELL = [
    line.split("#")[0].strip() for block in re.findall(r"```sh\n(.*?)```", PAGES, re.S) for line in block.splitlines()
]


def words(figure):
    """All text in a figure."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("name", ["cifar10", "cifar10-t4", "ffhq64", "digits"])
def test_u_shape_shows_every_level_on_both_paths_but_the_lowest(name):
    network = PRESETS[name].network
    shown = words(figures.u_shape(name))
    for level, ((height, width), channels) in enumerate(zip(network.map_sizes, network.channels, strict=True)):
        text = f"{network.num_blocks} ResBlocks\n{height}$\\times${width}$\\times${channels}"
        assert shown.count(text) == (1 if level == len(network.channels) - 1 else 2)
    assert sum("skip" in text for text in shown) == len(network.channels) - 1


@pytest.mark.parametrize(
    ("draw", "parts"),
    [
        (figures.diffit_block, ["LN", "TMSA", "$+$", "LN", "MLP", "$+$"]),
        (figures.resblock, ["GN", "Swish", r"Conv $3\times3$", "DiffiT block", "$+$"]),
        (figures.latent, ["VAE\nencoder", "$+$", "noise", "DiffiT", "time, class", "VAE\ndecoder"]),
        (figures.latent_diffit, ["patches to\ntokens", "$+$", "DiffiT block", "DiffiT block", "$F$"]),
        (figures.tmsa, ["$W_{qs}$", "$W_{qt}$", "$W_{ks}$", "$W_{kt}$", "$W_{vs}$", "$W_{vt}$", "softmax"]),
    ],
)
def test_figure_names_the_parts_of_its_equations(draw, parts):
    shown = words(draw())
    assert all(shown.count(part) >= parts.count(part) for part in parts)


def test_zip_holds_library_figures_weights_and_requirements(tmp_path):
    pack(tmp_path / "dist" / "colab.zip")
    names = set(zipfile.ZipFile(tmp_path / "dist" / "colab.zip").namelist())
    needed = {
        "diffit_lib/__init__.py",
        "diffit_lib/training/train.py",
        "diffit_lib/notebook/figures/tmsa.png",
        "diffit_lib/pretrained/digits.safetensors",
    }
    assert needed | {"requirements.txt", "LICENSE"} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests")]


@pytest.mark.parametrize("command", [line for line in SHELL if line.startswith("diffit ")])
def test_command_parses(command):
    parser().parse_args([with_underscores(word) for word in shlex.split(command)[1:]])


def test_formats_are_all_told():
    page = (DOCS / "formats.md").read_text(encoding="utf-8")
    assert [name for name in (*NAMED, *CROPS) if f"`{name}`" not in page] == []
    assert " ".join(SUFFIXES) in page


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)#]+)", PAGES))
def test_link_leads_somewhere(link):
    assert (DOCS / link).exists()


@pytest.mark.parametrize("page", [*DOCS.glob("*.md"), *DOCS.parent.glob("*.md")], ids=lambda page: page.name)
def test_tables_fit_a_page_of_1300_pixels(page):
    """A column is as wide as its longest word and 4 letters of margin; code breaks anywhere; the theme holds 92."""
    for table in re.findall(r"(?m)(?:^\|.*\n)+", page.read_text(encoding="utf-8")):
        cells = [re.split(r"(?<!\\)\|", re.sub(r"`[^`]*`|\]\([^)]*\)", "", row))[1:-1] for row in table.splitlines()]
        columns = zip(cells[0], *cells[2:], strict=True)
        widths = [
            4 + max(len(word) for cell in column for word in ["", *re.split(r"\s|(?<=-)", cell)]) for column in columns
        ]
        assert sum(widths) <= 92, table.partition("\n")[0]


def test_what_pages_link_to_is_copied_to_the_site():
    copied = " ".join(re.findall(r"(?m)^\t@cp (?:-R )?(.*) build/docs", (DOCS.parent / "Makefile").read_text())).split()
    kept = {path for pattern in copied for path in DOCS.parent.glob(pattern)}
    for page in (*DOCS.rglob("*.md"), *DOCS.parent.glob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            assert kept & {target, *target.parents}, f"{page.name} links to {link}, which `make docs` leaves out"


@pytest.mark.parametrize("command", re.findall(r"`(diffit [^`]*)`", (DOCS / "features.md").read_text("utf-8")))
def test_command_in_the_list_of_features_parses(command):
    parser().parse_args([with_underscores(word) for word in shlex.split(command)[1:]])


def test_programs_of_contributors_are_installed():
    named = [DOCS.parent / "CONTRIBUTING.md", DOCS.parent / ".pre-commit-config.yaml"]
    programs = {name for file in named for name in re.findall(r"\.venv/bin/([\w-]+)", file.read_text("utf-8"))}
    extras = tomllib.loads((DOCS.parent / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert programs == {"ruff", "mypy", "pre-commit"} & {re.match(r"[\w-]+", each)[0] for each in extras["dev"]}


def test_every_public_name_is_in_the_reference():
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    names = (name for name in diffit_lib.__all__ if name != "__version__")
    assert [name for name in names if not re.search(rf"[.`]{name}\b", page)] == []
    for module, name in re.findall(r"(?m)^::: ([\w.]+)\.(\w+)$", page):
        assert hasattr(import_module(module), name)


def test_every_page_is_in_the_sites_menu():
    menu = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS.parent).as_posix() for page in DOCS.rglob("*.md")]
    assert [page for page in pages if f": {page}\n" not in menu] == []
