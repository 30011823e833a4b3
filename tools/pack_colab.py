"""Packs what the notebooks need in Colab, and the notebooks, into dist/diffit_colab.zip: `make colab`.

`make colab REPO_URL=https://github.com/OWNER/NAME` also fills in REPO_URL and adds a badge that opens the notebook in
Colab.
"""

import re
import sys
import zipfile
from pathlib import Path

import nbformat

from diffit_lib.utils.files import replacing

ROOT = Path(__file__).resolve().parent.parent
WANTED = ("diffit_lib/**/*", "images/*", "requirements.txt", "LICENSE", "README.md", "*.ipynb")
LEFT_OUT = {"__pycache__", ".DS_Store"}
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})\n\n"


def pack(path: Path, repo_url: str = "") -> None:
    """Write the zip."""
    with replacing(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(file for pattern in WANTED for file in ROOT.glob(pattern)):
            if repo_url and file.suffix == ".ipynb":
                archive.writestr(file.name, with_address(file, repo_url))
            elif file.is_file() and not LEFT_OUT & set(file.parts):
                archive.write(file, file.relative_to(ROOT))


def with_address(path: Path, repo_url: str) -> str:
    """A notebook with REPO_URL filled in and, if it is on GitHub, a badge on top that opens its main branch."""
    notebook = nbformat.read(path, 4)
    if match := re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?", repo_url):
        address = f"https://colab.research.google.com/github/{match[1]}/blob/main/{path.name}"
        notebook.cells[0].source = BADGE.format(address=address) + notebook.cells[0].source
    for cell in notebook.cells:
        cell.source = cell.source.replace('REPO_URL = ""', f'REPO_URL = "{repo_url}"')
    return nbformat.writes(notebook)


if __name__ == "__main__":
    target, *url = sys.argv[1:]
    pack(Path(target), *url)
    print(f"{target}: {Path(target).stat().st_size / 1e6:.1f} MB")
