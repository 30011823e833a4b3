"""Weights by name from Google Drive: whole, checked and downloaded once, or one line that says what to do."""

import hashlib
import io
import re
import signal
import subprocess
import sys

import gdown
import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse

from diffit_lib.checkpoints import hub as published
from diffit_lib.checkpoints.hub import PUBLISHED, from_drive, published_weights
from diffit_lib.checkpoints.weights import find_weights
from diffit_lib.cli.main import main
from diffit_lib.sampling.pipeline import load
from diffit_lib.utils.errors import DiffitError
from diffit_lib.utils.files import sha256

CONTENT = b"not really weights" * 100_000
QUOTA = '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently.</p>'
PRIVATE = "<html><title>Google Drive: Sign-in</title></html>"


def answer(content, announced=None):
    """What Google Drive answers to every request: a file, of perhaps more bytes than it sends, or, as text, a page."""
    response = requests.Response()
    if isinstance(content, str):
        headers = {"Content-Type": "text/html"}
    else:
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Disposition": 'attachment; filename="x.safetensors"',
            "Content-Length": str(announced or len(content)),
        }
    body = io.BytesIO(content.encode() if isinstance(content, str) else content)
    response.raw = HTTPResponse(body, headers, preload_content=False)
    response.headers.update(headers)
    response.status_code, response.url = 200, "https://drive.google.com/"
    return response


@pytest.fixture
def drive(monkeypatch, tmp_path):
    """A function: Google Drive answers so, or fails so; it returns the addresses asked for. The cache is empty."""
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))

    def drive(content, **options):
        asked = []

        def send(self, request, **_):
            asked.append(request.url)
            if isinstance(content, Exception):
                raise content
            return answer(content, **options)

        monkeypatch.setattr(HTTPAdapter, "send", send)
        return asked

    return drive


@pytest.fixture
def uploaded(monkeypatch):
    """The name of weights that are on Google Drive under the id "an-id"."""
    monkeypatch.setitem(PUBLISHED, "large", ("an-id", hashlib.sha256(CONTENT).hexdigest()))
    return "large"


def refused(call, pattern):
    with pytest.raises(DiffitError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert re.fullmatch(pattern, message), message


class TestByName:
    def test_they_are_downloaded_once_into_the_cache_folder(self, drive, uploaded, tmp_path):
        asked = drive(CONTENT)
        path = published_weights(uploaded)
        assert path == tmp_path / "cache" / "weights" / "large.safetensors"
        assert path.read_bytes() == CONTENT
        assert asked == ["https://drive.google.com/uc?id=an-id"]
        assert published_weights(uploaded) == find_weights(uploaded) == path
        assert len(asked) == 1
        assert list(path.parent.iterdir()) == [path]

    def test_a_damaged_file_in_the_cache_is_downloaded_anew(self, drive, uploaded, tmp_path):
        drive(CONTENT)
        path = published_weights(uploaded)
        path.write_bytes(CONTENT[:-1])
        assert published_weights(uploaded).read_bytes() == CONTENT

    def test_a_file_of_another_checksum_is_refused_and_not_kept(self, drive, uploaded, snapshot):
        drive(CONTENT[:-1] + b"!")
        refused(
            lambda: published_weights(uploaded), r".*/an-id has the SHA-256 \w{64}, not \w{64}; try again, .* path .*"
        )
        assert not any(snapshot().values())

    def test_no_id_says_not_uploaded_yet(self, drive, monkeypatch):
        monkeypatch.setitem(PUBLISHED, "cifar10", ("", ""))
        asked = drive(CONTENT)
        remedy = "train them with `diffit train cifar10`, or give a path"
        refused(lambda: load("cifar10"), f"the weights 'cifar10' are not uploaded yet; {remedy}")
        assert asked == []

    def test_the_command_line_says_so_in_one_line(self, drive, monkeypatch, capsys):
        monkeypatch.setitem(PUBLISHED, "ffhq64", ("", ""))
        assert main(["sample", "ffhq64"]) == 2
        assert re.fullmatch(r"diffit: [^\n]*not uploaded yet[^\n]*\n", capsys.readouterr().err)

    def test_a_path_goes_before_a_name(self, drive, uploaded, tmp_path, monkeypatch):
        drive(CONTENT)
        monkeypatch.chdir(tmp_path)
        (tmp_path / uploaded).write_text("mine")
        assert find_weights(uploaded).read_text() == "mine"

    def test_an_unknown_name_is_told_those_that_are_there(self, uploaded, monkeypatch):
        monkeypatch.setitem(PUBLISHED, "not-yet", ("", ""))
        with pytest.raises(DiffitError, match=r"no weights file 'hug'; .*digits.*, large") as caught:
            find_weights("hug")
        assert "not-yet" not in str(caught.value)

    @pytest.mark.parametrize(("drive_id", "checksum"), PUBLISHED.values(), ids=PUBLISHED)
    def test_whatever_has_an_id_has_a_checksum(self, drive_id, checksum):
        assert re.fullmatch("[0-9a-f]{64}" if drive_id else "", checksum)


class TestDownload:
    @pytest.fixture
    def download(self, tmp_path):
        """A function: download to a path that holds an older file, which a failure leaves as it is."""
        target = tmp_path / "mine" / "file.zip"
        target.parent.mkdir()
        target.write_text("older")
        yield lambda: from_drive("an-id", target)
        assert list(target.parent.iterdir()) == [target]
        assert target.read_text() == "older"

    def test_an_id_of_ones_own_goes_where_it_is_told(self, drive, tmp_path, capsys):
        drive(CONTENT)
        target = tmp_path / "mine" / "file.zip"
        assert from_drive("an-id", target) == target
        assert sha256(target) == hashlib.sha256(CONTENT).hexdigest()
        assert f"To: {target}" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("page", "reason"),
        [(QUOTA, "Too many users"), (PRIVATE, "Cannot retrieve the public link")],
        ids=["quota", "permission"],
    )
    def test_quota_and_permission_are_one_line_with_the_remedy(self, drive, download, page, reason):
        drive(page)
        link = "https://drive.google.com/file/d/an-id"
        remedy = "make a copy in your Drive and give its path, in a notebook as PATH_WEIGHTS"
        refused(download, rf"{link} is refused \({reason}.*\); {remedy}")

    @pytest.mark.parametrize(
        "failure",
        [requests.ConnectionError("Failed to resolve 'drive.google.com'"), requests.Timeout("Failed to answer")],
    )
    def test_no_network_is_one_line_with_the_remedy(self, drive, download, failure):
        drive(failure)
        refused(
            download, r".*/an-id cannot be downloaded \(Failed to .*\); try again with the network up, or give a path"
        )

    def test_a_line_that_breaks_half_way_is_one_line_and_nothing_half_written(self, drive, download):
        drive(CONTENT, announced=2 * len(CONTENT))
        refused(download, r".*/an-id cannot be downloaded \(.*(incomplete|broken).*\); try again .*")

    def test_errors_are_told_where_gdown_has_fewer_of_its_own(self, drive, download, monkeypatch):
        monkeypatch.delattr(gdown.exceptions, "DownloadError", raising=False)  # as in gdown 5
        drive(requests.ConnectionError("no route"))
        refused(download, r".*/an-id cannot be downloaded \(no route\); .*")

    def test_stopped_by_the_user_leaves_nothing_half_written(self, download, monkeypatch):
        def half(output, **_):
            output.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(gdown, "download", half)
        with pytest.raises(KeyboardInterrupt):
            download()

    def test_killed_half_way_leaves_nothing_under_the_final_name(self, tmp_path):
        kill = (
            "import os, signal, sys, gdown\n"
            "from diffit_lib.checkpoints.hub import from_drive\n"
            "def half(output, **_):\n"
            "    output.write(b'half')\n"
            "    output.flush()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "gdown.download = half\n"
            "from_drive('an-id', sys.argv[1])\n"
        )
        target = tmp_path / "weights" / "large.safetensors"
        done = subprocess.run([sys.executable, "-c", kill, str(target)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert [path.read_bytes() for path in target.parent.iterdir()] == [b"half"]  # so it was killed half-way
        assert not target.exists()


def test_the_module_is_there_without_gdown():
    code = "import sys; sys.modules['gdown'] = sys.modules['requests'] = None; import diffit_lib.checkpoints.hub"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert published.PUBLISHED.keys() >= {"cifar10", "ffhq64"}
