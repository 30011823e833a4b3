"""A run folder's second home, which outlives the machine: two zip files, written by turns."""

import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffit_lib.utils.files import replacing, write_text


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


NUMBER = "copy.txt"  # in the run folder: the number of its latest copy
TENTH = 10  # copying takes at most a tenth of the time,
LONGEST = 200.0  # unless that would leave more seconds than these between two copies


class Backup:
    """Copies of the folder `run` as NAME-a.zip and NAME-b.zip in `folder`; without a folder there are none.

    A copy is written beside and renamed, and a zip ends in its directory, with a checksum of every file in it: a copy
    that was cut off is not taken for whole, and the one before it still lies under the other name. A folder that
    cannot be written, a full Drive say, is told once and stops nothing.
    """

    def __init__(self, run: str | Path, folder: str | Path | None):
        self.run, self.folder = Path(run), None if folder is None else Path(folder)
        self.next = 0.0  # when a copy is due
        self.problem: str | None = None  # why the latest copy could not be made

    def __call__(self) -> None:
        """Copy, unless the last copy is young for the time it took."""
        if time.monotonic() >= self.next:
            self.save()

    def save(self) -> None:
        """Copy the run folder over the older of the two copies, or the damaged one."""
        if self.folder is not None and self.run.is_dir():
            start = time.monotonic()
            self._attempt(self._save)
            now = time.monotonic()
            self.next = now + min(TENTH * (now - start), LONGEST)

    def hand_over(self, weights: Path) -> Path:
        """Copy finished weights to NAME.safetensors; where they lie now, which is where they were if that fails."""
        if self.folder is None:
            return weights
        target = self.folder / f"{self.run.name}{weights.suffix}"
        self._attempt(lambda: copy(weights, target))
        return weights if self.problem else target

    def restore(self) -> bool:
        """Bring the newest whole copy back, if it is newer than the run folder; whether it was.

        Copies that cannot be read just now may well be whole: they are told, and nothing is written over them.
        """
        try:
            return self._restore()
        except OSError as error:
            remedy = f"this run lies in {self.run} alone; run this cell again to go on from them"
            warn(f"the copies in {self.folder} are left as they are ({error.strerror or error}): {remedy}")
            self.folder = None
            return False

    def _restore(self) -> bool:
        whole = self.copies()
        newest = max(whole, key=lambda path: whole[path], default=None)
        if newest is None or whole[newest] <= self.number():
            return False
        if self.number() == 0 and (self.run / "last.ckpt").is_file():  # trained here without copies, since when?
            warn(
                f"{self.run} has a checkpoint that was never copied: it is kept, and {newest.name} is not brought back"
            )
            return False
        with zipfile.ZipFile(newest) as archive:
            for name in archive.namelist():  # the checkpoint is the last but one, the number the last
                with archive.open(name) as source, replacing(self.run / name) as beside, open(beside, "wb") as target:
                    shutil.copyfileobj(source, target)
        return True

    def names(self) -> list[Path]:
        """The two names, whether or not a copy lies there."""
        return [] if self.folder is None else [self.folder / f"{self.run.name}-{turn}.zip" for turn in "ab"]

    def copies(self) -> dict[Path, int]:
        """The whole copies and their numbers: 1, 2, 3, ... in the order they were made."""
        numbers = ((path, number_of(path)) for path in self.names())
        return {path: number for path, number in numbers if number is not None}

    def number(self) -> int:
        """The number of the copy that the run folder itself was last copied to, or restored from; 0: none."""
        path = self.run / NUMBER
        return int(path.read_text()) if path.is_file() else 0

    def _attempt(self, action: Callable[[], object]) -> None:
        """Tell a folder that cannot be written once, in one red line."""
        try:
            action()
            self.problem = None
        except OSError as error:
            if self.problem is None:
                warn(f"{self.folder} takes no copy ({error.strerror or error}): this run lies in {self.run} alone")
            self.problem = str(error)

    def _save(self) -> None:
        whole = self.copies()
        number = max([self.number(), *whole.values()]) + 1
        write_text(self.run / NUMBER, str(number))
        path = min(self.names(), key=lambda path: whole.get(path, -1))
        files = [file for file in self.run.rglob("*") if file.is_file() and ".part" not in file.suffixes]
        files = [file for file in files if not file.name.startswith("weights-")]  # nothing goes on from older ones
        files = [file for file in files if not file.name.startswith("weights-")]  # nothing goes on from older ones
        order = ["last.ckpt", NUMBER]
        files.sort(key=lambda file: (order.index(file.name) if file.name in order else -1, file))
        with placing(path) as beside, zipfile.ZipFile(beside, "w") as archive:
            for file in files:
                archive.write(file, file.relative_to(self.run))
            archive.comment = str(number).encode()


def copy(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with placing(target) as beside:
        shutil.copyfile(source, beside)


@contextmanager
def placing(path: Path) -> Iterator[Path]:
    """`replacing` for Drive, which keeps all that is deleted in its bin, where it goes on filling the quota.

    So whatever goes is emptied first: what is replaced, what could not be finished, what a kill left of either.
    """
    old = path.with_suffix(".old")
    for left in [old, *path.parent.glob(f".{path.stem}.*.part{path.suffix}")]:
        discard(left)
    with replacing(path) as beside:
        try:
            yield beside
            with open(beside, "rb") as written:
                os.fsync(written.fileno())
        except BaseException:
            discard(beside)
            raise
        if path.exists():
            discard(path.replace(old))


def discard(path: Path) -> None:
    """Empty a file and delete it, if it is there."""
    with suppress(FileNotFoundError):
        os.truncate(path, 0)
        path.unlink()


def number_of(path: Path) -> int | None:
    """The number of a copy; None where there is none, or not a whole one. An OSError says that nobody knows."""
    try:
        with zipfile.ZipFile(path) as archive:
            return int(archive.comment) if archive.testzip() is None else None
    except (FileNotFoundError, ValueError, zipfile.BadZipFile):
        return None
