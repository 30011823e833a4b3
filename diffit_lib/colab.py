"""What differs in Google Colab: its Drive, its downloads, its missing GPU."""

import sys
from pathlib import Path


def in_colab() -> bool:
    """Whether this is a notebook in Colab, whose kernel brings its own package along."""
    return "google.colab" in sys.modules


def warn(text: str) -> None:
    """One red line."""
    print(f"\033[31m{text}\033[0m")


def copies_folder(given: str, my_drive: str | Path, use_drive: bool) -> Path | None:
    """Where copies of a run go: the folder that is given, else one in the mounted Drive, else nowhere.

    A Drive that was asked for and refused is told in one red line.
    """
    if given:
        return Path(given)
    if Path(my_drive).is_dir() and use_drive:
        return Path(my_drive) / "diffit_weights"
    if in_colab() and use_drive:
        warn("Drive is not connected: the run lies in ./runs alone, download its weights at the end")
    return None


def offer_download(path: Path) -> None:
    """A button that downloads a file to the user's own machine; outside Colab, a link."""
    from IPython.display import FileLink, display

    if not in_colab():
        display(FileLink(path))
        return
    from google.colab import files
    from ipywidgets import Button

    button = Button(description=f"Download {path.name}", button_style="success", layout={"width": "auto"})
    button.on_click(lambda _: files.download(str(path)))
    display(button)
