"""Copies of a run folder in another folder, such as Google Drive, that outlive the machine."""

import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from diffit_lib.utils.files import expanded, replacing, write_text

NUMBER = "copy.txt"  # in the run folder: the number of its latest copy
PAUSE = 10  # the next copy is due after so many times the seconds that the last one took,
LONGEST = 200.0  # but after so many seconds at most


def in_colab() -> bool:
    """Whether this is a notebook in Colab."""
    return "google.colab" in sys.modules


def warn(text: str) -> None:
    """Print one red line."""
    print(f"\033[31m{text}\033[0m")


def copies_folder(given: str, my_drive: str | Path, use_drive: bool) -> Path | None:
    """The folder for a run's copies: the given one, else one in the mounted Drive, else None.

    Warns if Drive is wanted but not mounted, and in Colab if the given folder is outside Drive.
    """
    drive = Path(my_drive)
    folder = expanded(given).absolute() if given else drive / "diffit_weights"
    if in_colab() and not folder.is_relative_to(drive.parent):
        warn(f"DIR_WEIGHTS is {folder}, which Colab deletes with its machine: give a folder below {drive}")
    if drive.is_dir() or not folder.is_relative_to(drive.parent):
        return folder if given or use_drive else None
    if given or (use_drive and in_colab()):
        warn(f"Drive is not connected, {folder} takes no copies: this run lies in ./runs alone, download its weights")
    return None


def offer_download(path: Path) -> None:
    """Show a button that downloads a file to the user's own machine; outside Colab, a link."""
    from IPython.display import FileLink, display

    if not in_colab():
        display(FileLink(path))
        return
    from google.colab import files
    from ipywidgets import Button

    button = Button(description=f"Download {path.name}", button_style="success", layout={"width": "auto"})
    button.on_click(lambda _: files.download(str(path)))
    display(button)


class Backup:
    """Copies of the folder `run` in `folder`, as NAME-a.zip and NAME-b.zip by turns; no copies if `folder` is None.

    A copy replaces the older of the two when it is whole, so the newer one survives a kill or a damaged upload. If the
    folder cannot be written, e.g. a full Drive, one red line says so and training goes on.
    """

    def __init__(self, run: str | Path, folder: str | Path | None):
        self.run, self.folder = Path(run), None if folder is None else Path(folder)
        self.due = 0.0  # when the next copy is made
        self.problem: str | None = None  # why the latest copy could not be made

    def __call__(self) -> None:
        """Copy the run folder, unless the last copy was made a short while ago."""
        if time.monotonic() >= self.due:
            self.save()

    def save(self) -> None:
        """Copy the run folder now."""
        if self.folder is not None and self.run.is_dir():
            start = time.monotonic()
            self._attempt(self._save)
            end = time.monotonic()
            self.due = end + min(PAUSE * (end - start), LONGEST)

    def hand_over(self, weights: Path) -> Path:
        """Copy finished weights to NAME.safetensors in `folder`; return that path, or `weights` if it failed."""
        if self.folder is None:
            return weights
        target = self.folder / f"{self.run.name}{weights.suffix}"
        self._attempt(lambda: place(target, lambda beside: shutil.copyfile(weights, beside)))
        return weights if self.problem else target

    def restore(self) -> bool:
        """Bring the newest whole copy back if it is newer than the run folder, and return whether it was.

        If a copy cannot be read now, or is not of this run, one red line says so; the copies are left as they are.
        """
        try:
            copies = self.copies()
            for path in self._paths():
                if path not in copies and path.exists():
                    warn(f"{path} is damaged: it is not used, and a later copy replaces it")
            newest = max(copies, key=lambda path: copies[path], default=None)
            if newest is None or copies[newest] <= self.number():
                return False
            if self.number() == 0 and (self.run / "last.ckpt").is_file():  # trained here without copies, since when?
                warn(f"{self.run} has a checkpoint that was never copied: it is kept, and {newest.name} is not used")
                return False
            with zipfile.ZipFile(newest) as archive:
                for name in archive.namelist():  # the checkpoint is the last but one, the number the last
                    with archive.open(name) as source, replacing(self.run / name) as beside, beside.open("wb") as file:
                        shutil.copyfileobj(source, file)
            return True
        except OSError as error:
            remedy = f"this run lies in {self.run} alone; run this cell again to go on from them"
            warn(f"the copies in {self.folder} are left as they are ({error.strerror or error}): {remedy}")
            self.folder = None
            return False

    def copies(self) -> dict[Path, int]:
        """The whole copies and their numbers: 1, 2, 3, ... in the order they were made."""
        numbers = {path: copy_number(path, self.run.name) for path in self._paths()}
        return {path: number for path, number in numbers.items() if number is not None}

    def number(self) -> int:
        """The number of the copy that the run folder was last copied to, or restored from; 0: none."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.run / NUMBER).read_text())
        return 0

    def _paths(self) -> list[Path]:
        return [] if self.folder is None else [self.folder / f"{self.run.name}-{turn}.zip" for turn in "ab"]

    def _attempt(self, action: Callable[[], object]) -> None:
        """Do it; of failures that follow one another, warn of the first."""
        try:
            action()
            self.problem = None
        except OSError as error:
            if self.problem is None:
                warn(f"{self.folder} takes no copy ({error.strerror or error}): this run lies in {self.run} alone")
            self.problem = str(error)

    def _save(self) -> None:
        copies = self.copies()
        number = max([self.number(), *copies.values()]) + 1
        write_text(self.run / NUMBER, str(number))
        files = [file for file in self.run.rglob("*") if file.is_file() and ".part" not in file.suffixes]
        files = [file for file in files if not file.name.startswith(("weights-", "previous."))]  # old ones
        files.sort(key=lambda file: (file.name == NUMBER, file.name == "last.ckpt", file))

        def write(beside: Path) -> None:
            with zipfile.ZipFile(beside, "w", strict_timestamps=False) as archive:
                for file in files:
                    archive.write(file, file.relative_to(self.run))
                archive.comment = f"{number} {self.run.name}".encode()

        place(min(self._paths(), key=lambda path: copies.get(path, -1)), write)


def copy_number(path: Path, run: str) -> int | None:
    """The number of a copy of this run; None if there is no whole copy.

    Raises an OSError for a copy that cannot be read just now, of another run, or with paths that lead outside the run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            number, _, name = archive.comment.decode().partition(" ")
            if name not in ("", run):  # early copies are without a name
                raise OSError(f"{path.name} is a copy of {name}, not of {run}")
            for member in archive.infolist():
                if not Path("/run", member.filename).resolve().is_relative_to("/run"):
                    raise OSError(f"{path.name} holds {member.filename!r}, which is outside of the run")
                if member.flag_bits & 1 or member.compress_type != zipfile.ZIP_STORED:  # a bomb, or not ours
                    raise OSError(f"{path.name} holds {member.filename!r} encrypted or compressed, as no copy is")
            whole = archive.namelist() and archive.testzip() is None
            return int(number) if whole and int(number) > 0 else None
    except (FileNotFoundError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None


def place(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path`, then rename it to `path`.

    Drive moves deleted files to its bin, where they still count against the quota. So whatever goes is emptied first:
    the file that is replaced, a file that could not be finished, one that a kill left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.part{path.suffix}")
    discard(beside)
    try:
        write(beside)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
    except BaseException:
        discard(beside)
        raise
    discard(path)
    beside.replace(path)


def discard(path: Path) -> None:
    """Empty a file and delete it, if it is there."""
    with suppress(FileNotFoundError):
        os.truncate(path, 0)
        path.unlink()
