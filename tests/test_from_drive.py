"""Downloads from Google Drive: a whole file, or one line that says what to do."""

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

from diffit_lib.checkpoints.hub import from_drive
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


def refused(call, pattern):
    with pytest.raises(DiffitError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert re.fullmatch(pattern, message), message


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
