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

    A Drive that was asked for and refused, or is to hold the folder that is given, is told in one red line: what is
    written where Drive is not mounted lies on this machine alone, and stands in the way of mounting it. So is a given
    folder outside of Drive, in Colab.
    """
    drive = Path(my_drive)
    folder = Path(given).expanduser().absolute() if given else drive / "diffit_weights"
    if in_colab() and not folder.is_relative_to(drive.parent):
        warn(f"DIR_WEIGHTS is {folder}, which Colab deletes with its machine: give a folder below {drive}")
    if drive.is_dir() or not folder.is_relative_to(drive.parent):
        return folder if given or use_drive else None
    if given or (use_drive and in_colab()):
        warn(f"Drive is not connected, {folder} takes no copies: this run lies in ./runs alone, download its weights")
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
