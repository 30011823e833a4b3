"""The notebook on latents runs from top to bottom: all on and run again, all off, metric only."""

import re

import pytest
from notebooks import ROOT, SMALL_LATENT, client, printed, read, red, shown

from diffit_lib.notebook.drive import copy_number

LATENT = ROOT / "DiffiT_Latent_Space_Architecture.ipynb"
SETTINGS = {"DATASET": "digits", "METRIC_SAMPLES": 40, "STEPS": 4, "OVERRIDES": SMALL_LATENT}
RUNS = ["latent-digits", "vae-digits"]

pytestmark = pytest.mark.usefixtures("environment")


def run_names(folder):
    """The runs below a folder, without what tells recipes of one name apart."""
    return sorted(path.name.rpartition("-")[0] for path in (folder / "runs").iterdir())


class TestAllOn:
    """In Colab, with Drive granted."""

    @pytest.fixture(scope="class")
    @classmethod
    def ran(cls, tmp_path_factory, cache):
        """The notebook as it ran, and its folder."""
        base = tmp_path_factory.mktemp("latent")
        notebook = read(LATENT, base / "drive", **SETTINGS)
        return client(notebook, base / "first", cache, colab="granted").execute(), base

    def test_shows_pictures_numbers_and_one_card(self, ran):
        notebook, _ = ran
        assert len(shown(notebook, "image/png")) == 14
        tables = shown(notebook, "text/html")
        assert sum("FID of the paper on ImageNet-256" in html for html in tables) == 2  # in its section and on the card
        assert sum("before: an untrained network" in html for html in tables) == 1
        assert [line for line in red(notebook) if "no GPU" not in line] == []

    def test_says_what_the_autoencoder_kept_and_that_published_weights_are_not_here(self, ran):
        told = printed(ran[0])
        assert re.search(r"a classifier is right on 9\d\.\d% of the test images, and on \d", told)
        assert "nvidia/diffit-256 is not on this machine: set FILE to diffit_256.safetensors" in told

    def test_both_runs_have_copies_in_drive(self, ran):
        folder = ran[1] / "drive" / "MyDrive" / "diffit_weights"
        assert run_names(ran[1] / "first") == RUNS
        for name in RUNS:
            assert [path for path in folder.glob(f"{name}-*.zip") if copy_number(path, path.stem[:-2])]
            assert len([*folder.glob(f"{name}-*.safetensors")]) == 1

    def test_another_machine_goes_on_with_both_and_trains_nothing(self, ran, cache):
        again = read(LATENT, ran[1] / "drive", **SETTINGS)
        last = next(number for number, cell in enumerate(again.cells) if "train_live(experiment" in cell.source)
        again.cells = again.cells[: last + 1]
        folder = ran[1] / "second"
        client(again, folder, cache, colab="granted").execute()
        assert printed(again).count("brought back from") == 2
        assert run_names(folder) == RUNS
        for path in ran[1].glob("first/runs/*/metrics.csv"):
            assert (folder / path.relative_to(ran[1] / "first")).read_text() == path.read_text()


class TestAllOff:
    def test_ready_made_weights_do(self, tmp_path, cache):
        off = SETTINGS | {"IS_TRAIN": False, "IS_TEST": False, "IS_METRIC": False, "OVERRIDES": ""}
        notebook = client(read(LATENT, tmp_path / "drive", **off), tmp_path / "run", cache).execute()
        assert red(notebook) == []
        assert "pretrained/latent-digits.safetensors: " in printed(notebook)
        assert any("Not measured: IS_METRIC is off" in html for html in shown(notebook, "text/html"))


class TestMetricOnly:
    def test_samples_of_the_ready_made_weights_are_legible(self, tmp_path, cache):
        only = SETTINGS | {
            "IS_TRAIN": False,
            "IS_TEST": False,
            "VAE": "ready",
            "OVERRIDES": "",
            "STEPS": 0,
            "METRIC_SAMPLES": 250,
        }
        notebook = client(read(LATENT, tmp_path / "drive", **only), tmp_path / "run", cache).execute()
        assert red(notebook) == []
        numbers = next(html for html in shown(notebook, "text/html") if "class accuracy" in html)
        assert float(re.search(r"class accuracy</td><td>([\d.]+)", numbers)[1]) >= 0.9
