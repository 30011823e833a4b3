"""The walks in docs/architecture.md: what they name exists, no file comes twice, and they are as short as they say."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MOST = {"From an image file to the loss": 10, "From a seed to a PNG": 9}  # files
SECTIONS = dict(
    re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", (ROOT / "docs/architecture.md").read_text(), flags=re.MULTILINE)
)


def steps(title):
    """The file and the text of each numbered line of a walk."""
    return re.findall(r"^\d+\. `([\w/]+\.py)`: (.+)$", SECTIONS[title], flags=re.MULTILINE)


def definitions(path):
    """Names of a file's functions and classes, and of their methods as Class.method."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
            yield from (f"{node.name}.{method.name}" for method in node.body if isinstance(method, ast.FunctionDef))


@pytest.mark.parametrize("title", MOST)
def test_a_walk_enters_few_files_and_none_twice(title):
    numbers = re.findall(r"^(\d+)\. ", SECTIONS[title], flags=re.MULTILINE)
    files = [file for file, _ in steps(title)]
    assert numbers == [str(number + 1) for number in range(len(files))]
    assert 0 < len(files) == len(set(files)) <= MOST[title]
    assert f"\n{len(files)} files." in SECTIONS[title]


@pytest.mark.parametrize("title", MOST)
def test_the_files_and_functions_of_a_walk_exist(title):
    for file, text in steps(title):
        named = re.findall(r"`([\w.]+)`", text)
        assert named, text
        assert set(named) <= set(definitions(ROOT / file)), file
