"""The notebooks run from top to bottom: with everything on and off, in Colab and out of it, through disconnects."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from image_files import fill, noise
from nbclient.exceptions import DeadKernelError
from notebooks import ROOT, SMALL, client, printed, read, red, shown
from pack_colab import pack
from PIL import Image
from safetensors.torch import load_file

from diffit_lib.evaluation.features import INCEPTION_URL
from diffit_lib.notebook.drive import Backup, copy_number

IMAGE = ROOT / "DiffiT_Image_Space_Architecture.ipynb"
SETTINGS = {"DATASET": "digits", "TRAIN_MINUTES": 60, "METRIC_SAMPLES": 40, "STEPS": 4, "OVERRIDES": SMALL}

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache):
    """All on, on a machine that is not Colab: the notebook as it ran, and its folder."""
    folder = tmp_path_factory.mktemp("unbroken")
    notebook = client(read(IMAGE, folder / "drive", whole=True, **SETTINGS), folder, cache).execute()
    return notebook, folder


@pytest.fixture(scope="module")
def colab_kernel(tmp_path_factory):
    """The name of a kernel with IPython 7.34, ipywidgets 7.7.1 and gdown 5.2.2, as Colab has them.

    Torch and the rest are this machine's. DIFFIT_COLAB_ENV is a folder to keep that environment in.
    """
    folder = Path(os.environ.get("DIFFIT_COLAB_ENV") or tmp_path_factory.mktemp("environment"))
    python, outer = folder / "bin" / "python", Path(torch.__file__).parents[1]
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
        wanted = ["ipython==7.34.0", "ipywidgets==7.7.1", "gdown==5.2.2", "ipykernel"]
        subprocess.run([*pip, *wanted], check=True)
    (path,) = folder.glob("lib/python*/site-packages")
    (path / "zz_outer.pth").write_text(f"{outer}\n")
    kernels = tmp_path_factory.mktemp("jupyter")
    spec = {"argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Colab"}
    (kernels / "kernels" / "colab").mkdir(parents=True)
    (kernels / "kernels" / "colab" / "kernel.json").write_text(json.dumps(spec))
    os.environ["JUPYTER_PATH"] = str(kernels)
    return "colab"


@pytest.fixture(scope="module", params=["here", pytest.param("colab", marks=pytest.mark.slow)])  # minutes
def kernel(request):
    """The name of a kernel with this machine's versions, and of one with Colab's."""
    return "python3" if request.param == "here" else request.getfixturevalue("colab_kernel")


def weights(folder):
    """The tensors of the only run below a folder."""
    (path,) = folder.glob("runs/*/weights.safetensors")
    return load_file(path)


def copies(drive):
    """The copies of runs in Drive that are whole, oldest first."""
    numbers = {path: copy_number(path, path.stem[:-2]) or 0 for path in drive.glob("MyDrive/diffit_weights/[!.]*.zip")}
    return sorted((path for path in numbers if numbers[path]), key=lambda path: numbers[path])


def run_until(moment, running):
    """Run a notebook until `moment()`, when its machine is lost."""

    def kill():
        while not moment():
            time.sleep(0.02)
        os.kill(running.km.provisioner.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(DeadKernelError):
        running.execute()


class TestAllOn:
    def test_shows_pictures_numbers_and_one_card(self, unbroken):
        notebook, folder = unbroken
        assert len(shown(notebook, "image/png")) == 17
        assert red(notebook) == []
        tables = shown(notebook, "text/html")
        assert sum("FID of the paper on CIFAR-10" in html for html in tables) == 2  # in its section and on the card
        card = next(html for html in tables if "before: an untrained network" in html)
        assert card.count("<img") == 2
        (run,) = (folder / "runs").iterdir()
        assert f"<code>runs/{run.name}/weights.safetensors</code>" in card
        assert "n = 40 is small" in card

    def test_the_loop_by_hand_learns(self, unbroken):
        losses = re.search(r"mean loss of 50 steps each: (.*)", printed(unbroken[0]))[1].split()
        assert float(losses[-1]) < 0.75 * float(losses[0])

    def test_both_explorers_draw_a_widget(self, unbroken):
        assert len(shown(unbroken[0], "application/vnd.jupyter.widget-view+json")) >= 2

    def test_live_curve_and_grid_follow_the_training(self, unbroken):
        live = next(html for html in shown(unbroken[0], "text/html") if html.count("<img") == 2 and "card" not in html)
        assert "data:image/png;base64" in live

    def test_run_again_trains_nothing(self, unbroken, cache):
        folder = unbroken[1]
        before = weights(folder)
        rows = next(folder.glob("runs/*/metrics.csv")).read_text()
        again = read(IMAGE, folder / "drive", **SETTINGS)
        cell = next(cell for cell in again.cells if "train_live(" in cell.source)
        again.cells = again.cells[: again.cells.index(cell) + 1]
        client(again, folder, cache).execute()
        assert next(folder.glob("runs/*/metrics.csv")).read_text() == rows
        assert all((tensor == before[name]).all() for name, tensor in weights(folder).items())


class TestDisconnect:
    """In Colab, with Drive granted and the library in a zip there: killed in mid-training, run again on a new one."""

    @pytest.fixture(scope="class")
    @classmethod
    def resumed(cls, tmp_path_factory, cache, kernel):
        """The second run, its folder, Drive, and the numbers that lay there when the first run was killed."""
        base = tmp_path_factory.mktemp("colab")
        drive = base / "drive"
        mine = drive / "MyDrive"
        mine.mkdir(parents=True)
        pack(mine / "diffit_colab.zip")
        colab = {"colab": "granted", "library": "absent", "kernel": kernel}
        first = client(read(IMAGE, drive, **SETTINGS), base / "first", cache, **colab)

        run_until(lambda: [copy_number(path, path.stem[:-2]) for path in copies(drive)[-1:]] >= [3], first)
        assert "weights.safetensors" in {path.name for path in base.glob("first/runs/*/*")}
        kept = zipfile.ZipFile(copies(drive)[-1]).read("metrics.csv").decode()
        last = read(IMAGE, drive, **SETTINGS)
        client(last, base / "second", cache, **colab).execute()
        return last, base / "second", drive, kept

    def test_final_weights_are_bit_equal_to_those_of_an_unbroken_run(self, resumed, unbroken):
        one, other = weights(resumed[1]), weights(unbroken[1])
        assert one.keys() == other.keys()
        assert [name for name in one if not (one[name] == other[name]).all()] == []

    def test_it_went_on_where_the_copy_stood(self, resumed):
        assert "brought back from" in printed(resumed[0])
        rows = next(resumed[1].glob("runs/*/metrics.csv")).read_text()
        assert rows.startswith(resumed[3])
        assert rows.count("\n") == 1 + 7 > resumed[3].count("\n")

    def test_copies_and_finished_weights_lie_in_drive(self, resumed):
        folder = resumed[2] / "MyDrive" / "diffit_weights"
        (run,) = (resumed[1] / "runs").iterdir()
        names = {f"{run.name}-a.zip", f"{run.name}-b.zip", f"{run.name}.safetensors"}
        assert {path.name for path in folder.iterdir()} == names
        finished = load_file(folder / f"{run.name}.safetensors")
        assert all((finished[name] == tensor).all() for name, tensor in weights(resumed[1]).items())

    def test_drive_is_asked_for_once_and_a_button_downloads(self, resumed):
        assert (resumed[1] / "asked").read_text() == "asked\n"
        assert any("Button" in view for view in shown(resumed[0], "text/plain"))
        assert red(resumed[0]) == [line for line in red(resumed[0]) if line.startswith("no GPU")]


class TestDisconnectWhileMeasuring:
    def test_what_was_drawn_is_not_drawn_again(self, tmp_path, cache):
        """The second machine finds the images of the first, blackened here, and draws the rest."""
        settings = SETTINGS | {"IS_TRAIN": False, "IS_TEST": False, "METRIC_SAMPLES": 250}
        drive = tmp_path / "drive"

        def drawn(folder):
            return {path.name: path for path in folder.glob("**/drawn/**/*.png")}

        def one_is_copied():
            names = [name for path in copies(drive) for name in zipfile.ZipFile(path).namelist()]
            return any(name.startswith("drawn/") and name.endswith(".png") for name in names)

        run_until(one_is_copied, client(read(IMAGE, drive, **settings), tmp_path / "first", cache, colab="granted"))
        (first,) = (tmp_path / "first" / "runs").iterdir()
        kept = Backup(tmp_path / "marked" / first.name, drive / "MyDrive" / "diffit_weights")
        assert kept.restore()
        marked = drawn(kept.run)
        assert 0 < len(marked) < 250
        for path in marked.values():
            Image.new("L", (8, 8)).save(path)
        kept.save()
        notebook = client(read(IMAGE, drive, **settings), tmp_path / "second", cache, colab="granted").execute()
        assert "brought back from" in printed(notebook)
        images = drawn(tmp_path / "second")
        assert len(images) == 250
        assert {name for name, path in images.items() if not np.asarray(Image.open(path)).any()} == set(marked)
        assert any("class accuracy" in html for html in shown(notebook, "text/html"))


@pytest.mark.parametrize("drive", ["refused", "full"])
class TestTrainingWithoutDrive:
    def test_the_weights_are_the_same_and_lie_here_in_one_red_line(self, unbroken, tmp_path, cache, drive, kernel):
        notebook = read(IMAGE, tmp_path / "drive", **SETTINGS | {"IS_TEST": False, "IS_METRIC": False})
        client(notebook, tmp_path / "run", cache, colab=drive, kernel=kernel).execute()
        told = [line for line in red(notebook) if "GPU" not in line]
        assert len(told) == 1
        assert {"refused": "Drive is not connected", "full": "takes no copy (No space left on device)"}[drive] in told[
            0
        ]
        one, other = weights(tmp_path / "run"), weights(unbroken[1])
        assert [name for name in one if not (one[name] == other[name]).all()] == []
        card = next(html for html in shown(notebook, "text/html") if "before: an untrained network" in html)
        (run,) = (tmp_path / "run" / "runs").iterdir()
        assert f"<code>runs/{run.name}/weights.safetensors</code>" in card
        assert any("Button" in view for view in shown(notebook, "text/plain"))
        assert not [path for path in (tmp_path / "drive").rglob("*") if path.is_file()]


class TestAllOff:
    def test_drive_refused_is_one_red_line_and_ready_made_weights_do(self, tmp_path, cache):
        off = SETTINGS | {"IS_TRAIN": False, "IS_TEST": False, "IS_METRIC": False}
        notebook = client(read(IMAGE, tmp_path / "drive", **off), tmp_path / "run", cache, colab="refused").execute()
        assert [line for line in red(notebook) if "GPU" not in line] == [
            f"Drive is not connected, {tmp_path}/drive/MyDrive/diffit_weights takes no copies: "
            "this run lies in ./runs alone, download its weights"
        ]
        assert (tmp_path / "run" / "asked").read_text() == "asked\n"
        assert "pretrained/digits.safetensors: " in printed(notebook)
        assert any("Not measured: IS_METRIC is off" in html for html in shown(notebook, "text/html"))


class TestNothingToDrawWith:
    def test_all_off_without_weights_for_the_data_goes_on_with_the_digits_in_one_red_line(self, tmp_path, cache):
        fill(tmp_path / "photographs", {f"{k}.png": noise(k) for k in range(40)})
        off = SETTINGS | {"IS_TRAIN": False, "IS_TEST": False, "IS_METRIC": False, "OVERRIDES": ""}
        off["DATASET"] = str(tmp_path / "photographs")
        notebook = client(read(IMAGE, tmp_path / "drive", **off), tmp_path / "run", cache).execute()
        (line,) = red(notebook)
        assert line.startswith(f"there are no weights for {tmp_path}/photographs; set IS_TRAIN, or PATH_WEIGHTS")
        assert line.endswith("this goes on with the digits")
        assert "360 to test on; 10 classes (0, 1, 2, ...)" in printed(notebook)
        assert "pretrained/digits.safetensors: " in printed(notebook)


class TestFewPhotographsWithoutClasses:
    """Of which there is no test part; Inception cannot be had, and the form asks for guidance."""

    def test_two_red_lines_and_the_card(self, tmp_path):
        fill(tmp_path / "photographs", {f"{k}.png": noise(k) for k in range(40)})
        wrong = tmp_path / "cache" / INCEPTION_URL.rpartition("/")[2]
        wrong.parent.mkdir()
        wrong.write_text("not the published one, so that nothing is downloaded")
        settings = SETTINGS | {"DATASET": str(tmp_path / "photographs"), "GUIDANCE": 2.0}
        run = client(read(IMAGE, tmp_path / "drive", **settings), tmp_path / "run", tmp_path / "cache")
        notebook = run.execute()
        guidance, numbers = red(notebook)
        assert guidance.startswith("GUIDANCE is 2, but these weights know no classes")
        assert numbers.startswith("no numbers by the inception network: ")
        (card,) = (html for html in shown(notebook, "text/html") if "before: an untrained network" in html)
        assert "Not measured" in card


class TestSetUp:
    """Where the library is looked for; here it is a small one that says where it came from."""

    @pytest.fixture
    def make(self, tmp_path):
        """A function: a folder with the library, as a zip too, and under git."""

        def make(folder):
            (folder / "diffit_lib").mkdir(parents=True)
            (folder / "diffit_lib" / "__init__.py").write_text(f"home = {folder.name!r}\n")
            (folder / "requirements.txt").write_text("")
            shutil.make_archive(str(folder), "zip", folder)
            return folder

        return make

    def found(self, base, cache, repository="", upload="", again=""):
        """Run the set-up cell alone, in a new folder: where the library came from, and what was printed.

        `again` is run afterwards, and the cell once more.
        """
        notebook = read(IMAGE, base / "drive", REPO_URL=str(repository))
        first, more_settings, connect, find, *_ = (cell for cell in notebook.cells if cell.cell_type == "code")
        ask = "print('home:', __import__('diffit_lib').home if find_spec('diffit_lib') else 0)"
        more = [nbformat.v4.new_code_cell(again), nbformat.from_dict(find)] if again else []
        notebook.cells = [first, more_settings, connect, find, *more, nbformat.v4.new_code_cell(ask)]
        folder = base / f"run{len(list(base.glob('run*')))}"
        client(notebook, folder, cache, colab="granted", library="absent", upload=upload).execute()
        return re.search("home: (.*)", printed(notebook))[1], printed(notebook)

    def test_zip_in_drive_then_folder_then_repository_then_upload_then_a_word(self, tmp_path, cache, make):
        mine = tmp_path / "drive" / "MyDrive"
        repository, picked = make(tmp_path / "repository"), make(tmp_path / "picked").with_suffix(".zip")
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
        for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
            subprocess.run([*git, *command], cwd=repository, check=True)
        make(mine / "diffit_colab")
        make(mine / "diffit")
        assert self.found(tmp_path, cache, repository, picked)[0] == "diffit_colab"
        (mine / "diffit_colab.zip").unlink()
        assert self.found(tmp_path, cache, repository, picked)[0] == "diffit"
        shutil.rmtree(mine / "diffit")
        assert self.found(tmp_path, cache, repository, picked)[0] == "repository"
        assert self.found(tmp_path, cache, "", picked)[0] == "picked"
        home, told = self.found(tmp_path, cache)
        assert home == "0"
        assert "no diffit/diffit_lib: put diffit_colab.zip in MyDrive" in told
        assert "ERROR" not in told

    @pytest.mark.parametrize("first", ["", "wrong.zip"])
    def test_run_again_after_no_upload_or_a_wrong_one_it_mends_itself(self, tmp_path, cache, make, first):
        picked = make(tmp_path / "picked").with_suffix(".zip")
        shutil.make_archive(str(tmp_path / "wrong"), "zip", ROOT / "images")
        again = f"__import__('os').environ['COLAB_UPLOAD'] = {str(picked)!r}"
        home, told = self.found(tmp_path, cache, "", first and tmp_path / first, again)
        assert home == "picked"
        assert told.count("no diffit/diffit_lib: ") == 1

    def test_what_pip_could_not_install_is_told_by_pip_alone(self, tmp_path, cache, make):
        (make(tmp_path / "drive" / "MyDrive" / "diffit") / "requirements.txt").write_text("-r gone.txt\n")
        home, told = self.found(tmp_path, cache)
        assert home == "diffit"
        assert "gone.txt" in told
        assert "no diffit" not in told


@pytest.mark.slow
class TestColabsVersions:
    def test_all_on_runs_with_the_same_weights(self, colab_kernel, unbroken, tmp_path, cache):
        notebook = read(IMAGE, tmp_path / "drive", whole=True, **SETTINGS)
        ask = "import gdown, IPython, ipywidgets\nprint(IPython.__version__, ipywidgets.__version__, gdown.__version__)"
        notebook.cells.append(nbformat.v4.new_code_cell(ask))
        client(notebook, tmp_path / "run", cache, colab="granted", kernel=colab_kernel).execute()
        assert "7.34.0 7.7.1 5.2.2" in printed(notebook)
        one, other = weights(tmp_path / "run"), weights(unbroken[1])
        assert [name for name in one if not (one[name] == other[name]).all()] == []
        assert any("Button" in view for view in shown(notebook, "text/plain"))
