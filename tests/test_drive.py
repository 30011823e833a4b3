"""A run's copies: by turns, never half, found again, and no reason to stop when they cannot be made."""

import errno
import os
import shutil
import zipfile
from contextlib import contextmanager

import pytest

from diffit_lib.notebook import drive as module
from diffit_lib.notebook.drive import Backup


def write(run, text):
    """A run folder whose files all hold `text`."""
    for name in ("last.ckpt", "metrics.csv", "samples/1.png"):
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(run):
    """What the files of a run hold."""
    return {path.relative_to(run).as_posix(): path.read_text() for path in run.rglob("*") if path.is_file()}


def of(text, number):
    """What they hold once `write(run, text)` was copied as this number."""
    return {"last.ckpt": text, "metrics.csv": text, "samples/1.png": text, "copy.txt": str(number)}


@pytest.fixture
def run(tmp_path):
    """A run folder."""
    write(tmp_path / "local" / "run", "one")
    return tmp_path / "local" / "run"


@pytest.fixture
def drive(tmp_path):
    """Where copies go."""
    return tmp_path / "drive"


@pytest.fixture
def saved(run, drive):
    """Copies of a run that held "one", then "two", then "three"; the machine is lost."""
    for text in ("one", "two", "three"):
        write(run, text)
        Backup(run, drive).save()
    shutil.rmtree(run.parent)
    return Backup(run, drive)


@pytest.fixture
def unreadable(monkeypatch):
    """A function: the context in which reading the copy of this name fails."""

    @contextmanager
    def unreadable(name):
        whole = module.zipfile.ZipFile

        def opened(path, *mode):
            if path.name == name and not mode:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return whole(path, *mode)

        with monkeypatch.context() as patch:
            patch.setattr(module.zipfile, "ZipFile", opened)
            yield

    return unreadable


class TestSaving:
    def test_sweeps_up_what_a_kill_left_emptied_first(self, run, drive):
        drive.mkdir()
        left = [".run-a.part.zip", ".run.part.ckpt"]
        for number, name in enumerate(left):
            (drive / name).write_bytes(b"left")
            os.link(drive / name, drive.parent / f"bin{number}")
        Backup(run, drive).save()
        Backup(run, drive).hand_over(run / "last.ckpt")
        assert {path.name for path in drive.iterdir()} == {"run-a.zip", "run.ckpt"}
        assert [(drive.parent / f"bin{number}").stat().st_size for number in range(2)] == [0] * 2

    def test_takes_two_names_by_turns(self, run, drive):
        backup = Backup(run, drive)
        seen = []
        for _ in range(4):
            backup.save()
            seen.append(sorted((path.name, number) for path, number in backup.copies().items()))
        assert seen == [
            [("run-a.zip", 1)],
            [("run-a.zip", 1), ("run-b.zip", 2)],
            [("run-a.zip", 3), ("run-b.zip", 2)],
            [("run-a.zip", 3), ("run-b.zip", 4)],
        ]
        assert {path.name for path in drive.iterdir()} == {"run-a.zip", "run-b.zip"}

    @pytest.mark.parametrize(("takes", "due"), [(0, 0), (3, 30), (600, 200)])
    def test_copy_is_made_at_once_and_then_after_ten_times_its_own_time(self, run, drive, monkeypatch, takes, due):
        now, backup = 1000.0, Backup(run, drive)
        monkeypatch.setattr(module.time, "monotonic", lambda: now)
        copy = backup._save

        def slow():
            nonlocal now
            copy()
            now += takes

        monkeypatch.setattr(backup, "_save", slow)
        backup()
        numbers = []
        for later in (due - 1, 1):
            now += later
            backup()
            numbers.append(backup.number())
        assert numbers == [1, 2]

    def test_what_is_replaced_is_emptied_before_it_goes_to_the_bin(self, run, drive):
        backup = Backup(run, drive)
        backup.save()
        os.link(drive / "run-a.zip", drive / "bin")
        backup.save()
        assert (drive / "bin").stat().st_size > 0
        backup.save()
        assert (drive / "bin").stat().st_size == 0

    def test_without_a_folder_nothing_is_copied(self, run):
        backup = Backup(run, None)
        backup()
        assert not backup.restore()
        assert backup.hand_over(run / "last.ckpt") == run / "last.ckpt"
        assert "copy.txt" not in content(run)

    def test_files_older_than_a_zip_can_say_are_copied(self, run, drive):
        os.utime(run / "metrics.csv", (1e8, 1e8))
        Backup(run, drive).save()
        assert "metrics.csv" in zipfile.ZipFile(next(drive.glob("*.zip"))).namelist()

    def test_half_written_files_of_the_run_are_left_out(self, run, drive):
        (run / ".weights.1234.part.safetensors").write_text("half")
        Backup(run, drive).save()
        shutil.rmtree(run)
        assert Backup(run, drive).restore()
        assert content(run) == of("one", 1)


class TestRestoring:
    def test_brings_back_the_newest(self, saved):
        assert saved.restore()
        assert content(saved.run) == of("three", 3)
        assert not saved.restore()

    def test_a_run_that_was_trained_here_and_never_copied_is_kept(self, saved, capsys):
        write(saved.run, "trained without Drive")
        assert not saved.restore()
        assert (saved.run / "last.ckpt").read_text() == "trained without Drive"
        assert "was never copied: it is kept" in capsys.readouterr().out

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
    def test_copy_that_was_cut_off_is_not_taken_for_whole(self, saved, share):
        newest = saved.folder / "run-a.zip"
        os.truncate(newest, int(newest.stat().st_size * share))
        assert saved.restore()
        assert content(saved.run) == of("two", 2)
        saved.save()
        assert set(saved.copies().values()) == {2, 3}  # over the damaged one

    def test_copy_with_a_changed_byte_is_not_taken_for_whole(self, saved):
        newest = saved.folder / "run-a.zip"
        data = newest.read_bytes()
        newest.write_bytes(data.replace(b"three", b"thr3e", 1))
        assert saved.restore()
        assert content(saved.run) == of("two", 2)

    def test_two_damaged_copies_are_none(self, saved, capsys):
        for path in saved._paths():
            path.write_bytes(b"PK")
        assert not saved.restore()
        assert capsys.readouterr().out.count("is damaged: it is not used, and a later copy replaces it") == 2
        assert not saved.run.exists()

    @pytest.mark.parametrize("which", ["run-a.zip", "run-b.zip"])
    def test_copies_that_cannot_be_read_just_now_are_told_and_kept(self, saved, drive, unreadable, capsys, which):
        before = {path: path.read_bytes() for path in drive.iterdir()}
        with unreadable(which):
            assert not saved.restore()
        told = capsys.readouterr().out
        assert told.startswith("\033[31mthe copies in ")
        assert told.count("are left as they are (Input/output error)") == told.count("\n") == 1
        write(saved.run, "anew")
        for _ in range(2):
            saved.save()
            assert saved.hand_over(saved.run / "last.ckpt") == saved.run / "last.ckpt"
        assert {path: path.read_bytes() for path in drive.iterdir()} == before

    @pytest.mark.parametrize("member", ["../../escaped.txt", "/abs/path", "samples/../../escaped.txt"])
    def test_copy_with_a_path_that_leads_outside_is_refused_before_unpacking(self, saved, drive, capsys, member):
        with zipfile.ZipFile(drive / "run-a.zip", "a") as archive:
            archive.writestr(member, "escaped")
        before = {path: path.read_bytes() for path in drive.iterdir()}
        assert not saved.restore()
        assert f"run-a.zip holds '{member}', which is outside of the run" in capsys.readouterr().out
        assert not saved.run.exists()
        assert {path: path.read_bytes() for path in drive.iterdir()} == before
        assert not list(drive.parent.rglob("escaped.txt"))

    @pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, "encrypted"])
    def test_copy_that_is_encrypted_or_compressed_is_not_taken_nor_written_over(self, saved, drive, capsys, how):
        newest = drive / "run-a.zip"
        if how == "encrypted":
            data = newest.read_bytes()
            flags = data.rindex(b"PK\x01\x02") + 8  # of a member, in the archive's directory
            newest.write_bytes(data[:flags] + b"\x01" + data[flags + 1 :])
        else:
            with zipfile.ZipFile(newest, "a") as archive:
                archive.writestr("bomb", bytes(10**6), compress_type=how)
        before = {path: path.read_bytes() for path in drive.iterdir()}
        assert not saved.restore()
        assert "encrypted or compressed, as no copy is" in capsys.readouterr().out
        assert not saved.run.exists()
        assert {path: path.read_bytes() for path in drive.iterdir()} == before

    def test_copy_of_another_run_is_not_taken(self, saved, drive, capsys):
        other = Backup(saved.run.with_name("other"), drive)
        shutil.copy(drive / "run-a.zip", drive / "other-a.zip")
        assert not other.restore()
        assert "other-a.zip is a copy of run, not of other" in capsys.readouterr().out
        assert not other.run.exists()

    def test_early_copy_without_the_name_of_its_run_is_taken(self, saved):
        with zipfile.ZipFile(saved.folder / "run-a.zip", "a") as archive:
            archive.comment = b"3"
        assert saved.restore()
        assert content(saved.run) == of("three", 3)

    def test_number_that_is_none_counts_as_never_copied(self, saved, capsys):
        write(saved.run, "here")
        (saved.run / "copy.txt").write_text("junk")
        assert not saved.restore()
        assert "was never copied: it is kept" in capsys.readouterr().out

    def test_run_that_went_on_after_its_copy_is_left_alone(self, run, drive):
        Backup(run, drive).save()
        write(run, "later")
        assert not Backup(run, drive).restore()
        assert content(run) == of("later", 1)

    def test_run_that_went_on_elsewhere_is_brought_up_to_date(self, run, drive, tmp_path):
        Backup(run, drive).save()
        elsewhere = Backup(tmp_path / "elsewhere" / "run", drive)
        elsewhere.restore()
        write(elsewhere.run, "later")
        elsewhere.save()
        assert Backup(run, drive).restore()
        assert content(run) == of("later", 2)

    def test_checkpoint_comes_last_but_the_number(self, saved, monkeypatch):
        order = []
        replacing = module.replacing
        monkeypatch.setattr(module, "replacing", lambda path: order.append(path.name) or replacing(path))
        saved.restore()
        assert order[-2:] == ["last.ckpt", "copy.txt"]


class TestTrouble:
    def test_kill_in_mid_copy_leaves_the_copies_before(self, saved, monkeypatch):
        saved.restore()
        write(saved.run, "four")

        def die(fd):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module.os, "fsync", die)
            saved.save()
        assert set(saved.copies().values()) == {2, 3}
        shutil.rmtree(saved.run)
        Backup(saved.run, saved.folder).restore()
        assert content(saved.run) == of("three", 3)

    def test_copy_that_cannot_be_read_just_now_is_not_written_over(self, saved, unreadable, capsys):
        saved.restore()
        before = {path: path.read_bytes() for path in saved.folder.iterdir()}
        with unreadable("run-a.zip"):
            saved.save()
        assert {path: path.read_bytes() for path in saved.folder.iterdir()} == before
        assert "takes no copy (Input/output error)" in capsys.readouterr().out

    def test_copy_that_finds_no_room_is_emptied_before_it_goes_to_the_bin(self, run, drive, monkeypatch):
        def full(fd):
            if not (halves := [*drive.glob(".*")]):  # a file of the run itself
                return
            (half,) = halves
            os.link(half, drive.parent / "bin")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(module.os, "fsync", full)
        Backup(run, drive).save()
        assert list(drive.iterdir()) == []
        assert (drive.parent / "bin").stat().st_size == 0

    def test_full_folder_is_told_once_in_red_and_stops_nothing(self, saved, monkeypatch, capsys):
        saved.restore()

        def full(fd):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(module.os, "fsync", full)
            saved.save()
            saved.save()
            assert saved.hand_over(saved.run / "last.ckpt") == saved.run / "last.ckpt"
        told = capsys.readouterr().out
        assert told.startswith("\033[31m")
        assert told.count("No space left on device") == told.count("\n") == 1
        assert {path.name for path in saved.folder.iterdir()} == {"run-a.zip", "run-b.zip"}
        saved.save()
        assert saved.problem is None
        assert saved.hand_over(saved.run / "last.ckpt") == saved.folder / "run.ckpt"
        assert (saved.folder / "run.ckpt").read_text() == "three"
