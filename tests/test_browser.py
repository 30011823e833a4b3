"""The explorer in a real browser: Chromium against Voila, and once against JupyterLab."""

import base64
import os
import random
import shutil
import time
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from browser import SCREENSHOTS, chromium, free_port, needs_chromium, serving, wait_for
from PIL import Image, ImageChops

pytestmark = needs_chromium
PIXELS = """
const shown = [...document.querySelectorAll('img.widget-image')].filter(image => image.offsetParent);
const image = shown[arguments[0]];
if (!image || !image.complete || !image.naturalWidth) return null;
const canvas = document.createElement('canvas');
canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
canvas.getContext('2d').drawImage(image, 0, 0);
return canvas.toDataURL('image/png').split(',')[1];
"""
STOP = "[...document.querySelectorAll('button')].find(b => b.textContent.includes('Stop')).click()"
LATENCY = """
const [image, done] = [arguments[0], arguments[arguments.length - 1]];
let start;
document.addEventListener('keydown', () => { start ??= performance.now(); }, {capture: true, once: true});
const observer = new MutationObserver(() => {
  if (image.complete) finish(); else image.addEventListener('load', finish, {once: true});
});
const finish = () => requestAnimationFrame(() => {
  observer.disconnect(); window.latency = performance.now() - start;
});
window.latency = 0;
observer.observe(image, {attributes: true, attributeFilter: ['src']});
done();
"""


class Page:
    """The explorer as a browser shows it."""

    def __init__(self, driver, log):
        self.driver, self.log = driver, log

    def all(self, css):
        return [found for found in self.driver.find_elements("css selector", css) if found.is_displayed()]

    def knob(self, name):
        """The widget with this description."""
        for found in self.all(".widget-inline-hbox, .widget-hbox-single, .widget-dropdown, .widget-slider"):
            labels = found.find_elements("css selector", ".widget-label")
            if labels and labels[0].text == name:
                return found
        raise AssertionError(f"no knob {name!r}")

    def turn(self, name, times=1):
        """Move a slider by keys, as a person does."""
        handle = self.knob(name).find_element("css selector", ".noUi-handle")
        handle.send_keys(("\ue014" if times > 0 else "\ue012") * abs(times))

    def choose(self, name, option):
        """Pick from a dropdown."""
        select = self.knob(name).find_element("css selector", "select")
        select.find_element("xpath", f"option[normalize-space()='{option}']").click()

    def button(self, text):
        next(found for found in self.all("button") if text in found.text).click()

    def click_text(self, css, text):
        """Click what starts with this text, once it is there."""
        wait_for(lambda: [found for found in self.all(css) if found.text.startswith(text)], 60)[0].click()

    def check(self, text):
        next(box for box in self.all(".widget-checkbox") if text in box.text).find_element(
            "css selector", "input"
        ).click()

    def tab(self, text):
        next(tab for tab in self.all(".lm-TabBar-tab") if text in tab.text).click()
        self.quiet()

    def pictures(self):
        return [image for image in self.all("img.widget-image") if image.get_attribute("naturalWidth") != "0"]

    def pixels(self, number):
        """What the picture shows, uint8 (H, W, 3)."""
        data = base64.b64decode(wait_for(lambda: self.driver.execute_script(PIXELS, number)))  # null while it loads
        return np.asarray(Image.open(BytesIO(data)).convert("RGB"))

    def quiet(self):
        """Wait until nothing is being drawn: the pictures stay for a while."""

        def state():
            return [image.get_attribute("src") for image in self.pictures()]

        def same():
            before = state()
            time.sleep(0.3)
            return before and state() == before and not any("drawing" in t.text for t in self.all(".widget-html"))

        wait_for(same, 30)

    def errors(self):
        """Red lines on the page and tracebacks in the server's log."""
        red = self.driver.execute_script(
            'return [...document.querySelectorAll(\'span[style*="#c33"], '
            "span[style*=\"rgb(204, 51, 51)\"]')].map(e => e.textContent).join(' ')"
        )
        return red + "".join(line for line in Path(self.log).read_text().splitlines() if "Traceback" in line)

    def shoot(self, name, folder):
        path = Path(SCREENSHOTS or folder) / f"explorer_{name}.png"
        picture = Image.open(BytesIO(self.driver.get_screenshot_as_png())).convert("RGB")
        right, bottom = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()[2:]
        picture.crop((0, 0, min(right + 16, picture.width), min(bottom + 16, picture.height))).save(path)
        assert path.stat().st_size > 10_000


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    log = tmp_path_factory.mktemp("voila") / "log.txt"
    command = ("-m", "diffit_lib", "explore", "digits", "--port", str(free_port()), "--no-browser")
    with serving(*command, log=log) as (_, address), chromium() as driver:
        driver.get(address)
        page = Page(driver, log)
        wait_for(page.pictures, 60)
        page.quiet()
        yield page


def shown_digit(page):
    """The clean guess as the 8x8 picture it is an enlargement of."""
    large = page.pixels(1)[..., 0]
    side = large.shape[0] // 8
    return large[side // 2 :: side, side // 2 :: side]


def test_opens_with_pretrained_weights_and_draws(page, tmp_path):
    page.tab("Sample")
    assert page.pixels(0).shape == page.pixels(1).shape == (256, 256, 3)
    page.turn("step", -8)  # half-way, the noisy image and the guess differ
    page.quiet()
    page.shoot("sample", tmp_path)
    page.turn("step", 8)


def test_a_moved_seed_changes_the_picture_within_a_blink(page):
    page.tab("Sample")
    times = []
    for _ in range(10):
        page.quiet()
        page.driver.execute_async_script(LATENCY, page.pictures()[1])
        page.turn("seed")
        times.append(wait_for(lambda: page.driver.execute_script("return window.latency"), 10))
    print("milliseconds from the key to the changed pixel:", *(f"{ms:.0f}" for ms in sorted(times)))
    assert sorted(times)[5] <= 300


def test_the_step_slider_shows_the_way_and_play_runs(page):
    page.tab("Sample")
    last = page.pixels(0)
    page.turn("step", -17)
    wait_for(lambda: not np.array_equal(page.pixels(0), last))
    first = page.pixels(0)
    page.all(".jupyter-button.mod-primary, .widget-play button")[0].click()
    wait_for(lambda: not np.array_equal(page.pixels(0), first))
    page.quiet()


def test_stop_ends_a_long_sampling(page):
    page.tab("Sample")
    page.turn("steps", 46)
    page.quiet()
    bar = page.all(".progress-bar")[0]
    page.turn("seed")
    page.driver.execute_script(
        "[...document.querySelectorAll('button')].find(b => b.textContent.includes('Stop')).click()"
    )
    page.quiet()
    width = float(bar.value_of_css_property("width").removesuffix("px"))
    full = float(page.all(".progress")[0].value_of_css_property("width").removesuffix("px"))
    assert width < full
    page.turn("steps", -46)
    page.quiet()


def test_a_changed_class_draws_that_class(page):
    import torch

    from diffit_lib.data.datasets import load_data
    from diffit_lib.evaluation.features import train_classifier

    train = load_data("digits").train
    classifier = train_classifier(train.images, train.labels)
    page.tab("Sample")
    right = 0
    for digit in (3, 7, 0, 4, 9, 1):
        page.choose("class", str(digit))
        page.quiet()
        right += int(classifier.predict(torch.tensor(shown_digit(page))[None, None])) == digit
    assert right >= 5


def test_a_second_column_compares(page, tmp_path):
    page.tab("Sample")
    page.check("compare")
    page.quiet()
    wait_for(lambda: len(page.pictures()) == 4)
    page.turn("guidance", -4)  # of A: at 0 the class is ignored
    page.quiet()
    page.shoot("compare", tmp_path)
    page.turn("guidance", 4)
    page.check("compare")
    page.quiet()


def test_attention_changes_with_the_noise_level(page, tmp_path):
    page.tab("Time")
    before = page.pixels(1)
    page.turn("level", 4)
    wait_for(lambda: not np.array_equal(page.pixels(1), before))
    page.quiet()
    page.shoot("time", tmp_path)


def test_the_frozen_time_token_changes_the_sample(page, tmp_path):
    page.tab("Time")
    assert np.array_equal(page.pixels(2), page.pixels(3))
    page.check("freeze")
    page.all(".noUi-handle")[-1].send_keys("\ue012" * 16)  # to σ = 0.05
    page.quiet()
    assert not np.array_equal(page.pixels(2), page.pixels(3))
    page.shoot("frozen", tmp_path)
    page.check("freeze")
    page.quiet()


def test_the_walk(page, tmp_path):
    page.tab("Walk")
    before = page.pixels(0)
    page.turn("seed B", 3)
    wait_for(lambda: not np.array_equal(page.pixels(0), before))
    page.quiet()
    page.shoot("walk", tmp_path)


@pytest.mark.parametrize("turns", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_interactions_leave_no_error(page, turns):
    rng = random.Random(turns)
    for turn in range(turns):
        if turn % 60 == 0:
            page.tab(("Sample", "Time", "Walk")[turn // 60 % 3])
            handles, selects = page.all(".noUi-handle"), page.all("select")
            boxes, buttons = page.all(".widget-checkbox input"), page.all("button")
        kind = rng.choice("sssdcb")
        if kind == "s":
            rng.choice(handles).send_keys(rng.choice(("\ue012", "\ue014")) * rng.randint(1, 3))
        elif kind == "d" and selects:
            rng.choice(rng.choice(selects).find_elements("css selector", "option")).click()
        elif kind == "c" and boxes and turn % 60 > 50:  # it may bring other knobs
            rng.choice(boxes).click()
            page.quiet()
            handles, selects = page.all(".noUi-handle"), page.all("select")
        elif kind == "b" and buttons:
            button = rng.choice(buttons)
            button.click()
            button.click()
    time.sleep(1)
    page.quiet()
    assert page.errors() == ""


def test_a_closed_tab_leaves_the_others_alone(page):
    first, address = page.driver.current_window_handle, page.driver.current_url
    page.driver.switch_to.new_window("tab")
    page.driver.get(address)
    wait_for(page.pictures, 60)
    page.driver.close()
    page.driver.switch_to.window(first)
    page.tab("Sample")
    before = page.pixels(1)
    page.turn("seed", 2)
    wait_for(lambda: not np.array_equal(page.pixels(1), before))
    page.quiet()
    assert page.errors() == ""


def test_without_the_token_nobody_enters_and_ctrl_c_ends_it(tmp_path):
    import urllib.error
    import urllib.request

    command = ("-m", "diffit_lib", "explore", "digits", "--port", str(free_port()), "--no-browser")
    with serving(*command, log=tmp_path / "log.txt") as (server, address):

        def refused():
            try:
                return urllib.request.urlopen(address.partition("?")[0], timeout=5).url.find("login") > 0
            except urllib.error.HTTPError as error:
                return error.code == 403
            except OSError:  # not up yet
                return False

        wait_for(refused, 30)
        server.send_signal(2)
        assert server.wait(20) in (0, 130)
    assert "Traceback" not in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(
    not shutil.which("jupyter-lab") and not Path(os.sys.executable).with_name("jupyter-lab").exists(),
    reason="needs jupyterlab",
)
def test_in_jupyterlab_and_after_a_kernel_restart(tmp_path):
    cells = [nbformat.v4.new_code_cell('from diffit_lib.viz.explorer import explore\n\nexplore("digits")')]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "explore.ipynb")
    port = free_port()
    command = (
        "-m",
        "jupyterlab",
        str(tmp_path),
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=secret",
        "--ServerApp.ip=127.0.0.1",
        f"--LabApp.workspaces_dir={tmp_path}",
    )
    with serving(*command, log=tmp_path / "log.txt") as _, chromium() as driver:
        driver.get(f"http://127.0.0.1:{port}/lab/tree/explore.ipynb?token=secret")
        page = Page(driver, tmp_path / "log.txt")
        wait_for(lambda: page.all('.jp-Notebook-ExecutionIndicator[data-status="idle"]'), 60)  # the kernel is there
        for menu, entry in (("Run", "Run All Cells"), ("Kernel", "Restart Kernel and Run All Cells")):
            page.click_text(".lm-MenuBar-item", menu)
            page.click_text(".lm-Menu-item", entry)
            if menu == "Kernel":
                wait_for(lambda: page.all(".jp-Dialog .jp-mod-accept, .jp-Dialog .jp-mod-warn"), 20)[-1].click()
                time.sleep(3)
            wait_for(page.pictures, 60)
            page.quiet()
        before = page.pixels(1)
        page.turn("seed", 2)
        wait_for(lambda: not np.array_equal(page.pixels(1), before))
