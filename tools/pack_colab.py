"""Packs what the notebooks need in Colab into dist/diffit_colab.zip: `make colab`."""

import sys
import zipfile
from pathlib import Path

from diffit_lib.utils.files import replacing

ROOT = Path(__file__).resolve().parent.parent
WANTED = ("diffit_lib/**/*", "images/*.png", "requirements.txt", "LICENSE", "README.md")
LEFT_OUT = {"__pycache__", ".DS_Store"}


def pack(path: Path) -> None:
    """Write the zip."""
    with replacing(path) as beside, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(file for pattern in WANTED for file in ROOT.glob(pattern)):
            if file.is_file() and not LEFT_OUT & set(file.parts):
                archive.write(file, file.relative_to(ROOT))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    pack(target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
