"""The page in a real browser: upload, example, microphone, timeline; and whom the browser asks."""

import json
import re
import shutil
import subprocess
import sys
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from sounds import noise, sound, wav

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver on this machine"),
]
PATIENCE = 180  # seconds; on a busy machine


@pytest.fixture(scope="module")
def address(run):
    flags = ["jax-mtlser", "demo", "--workdir", str(run), "--port", "0", "--max-megabytes", "1", "--max-seconds", "60"]
    code = f"import sys; from jax_mtlser.cli import main; sys.exit(main({flags!r}))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        yield re.search(r"http://[^ ]+", process.stdout.readline())[0]
        process.terminate()


@pytest.fixture(scope="module")
def microphone(tmp_path_factory):
    path = tmp_path_factory.mktemp("microphone") / "voice.wav"
    path.write_bytes(sound(noise(5.0, 48_000), rate=48_000))
    return path


@pytest.fixture
def browser(address, microphone, tmp_path):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1000,1300",
        f"--user-data-dir={tmp_path / 'profile'}", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    try:
        driver.get(address)
        wait(driver, "about !== null")
        yield driver
        asked, wrong = set(), [entry["message"] for entry in driver.get_log("browser")]
        for entry in driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.add(urlsplit(message["params"]["request"]["url"])[:2])
        outside = {(scheme, host) for scheme, host in asked if scheme not in ("blob", "data", "chrome")}
        assert outside == {("http", urlsplit(address).netloc)}
        assert not wrong
    finally:
        driver.quit()


def wait(driver, condition: str) -> None:
    until = time.monotonic() + PATIENCE
    while not driver.execute_script(f"return {condition}"):
        assert time.monotonic() < until, (condition, find(driver, "#status").text)
        time.sleep(0.1)


def find(driver, selector: str):
    return driver.find_element("css selector", selector)


def answered(driver) -> None:
    wait(driver, "byId('status').textContent === '' || byId('status').classList.contains('wrong')")


def upload(driver, path) -> None:
    find(driver, "#file").send_keys(str(path))
    wait(driver, "turn > 0")
    answered(driver)


def shares(driver, head: str) -> dict[str, float]:
    rows = driver.find_elements("css selector", f"#{head} .bar")
    return {row.text.split("\n")[0]: float(row.text.split("\n")[1].rstrip(" %")) / 100 for row in rows}


def test_an_upload_shows_probabilities_timeline_and_transcript(browser, recognizer, tmp_path):
    path = tmp_path / "<img src=x onerror=alert(1)>.flac"  # shown as text, never as markup
    path.write_bytes(sound(noise(6.0), "FLAC"))
    expected = recognizer(path, transcript=True)
    upload(browser, path)
    assert find(browser, "#name").text == path.name
    assert shares(browser, "emotion") == pytest.approx(dict(expected.probabilities), abs=6e-4)
    assert shares(browser, "gender") == pytest.approx(dict(expected.gender_probabilities), abs=6e-4)
    assert find(browser, "#transcript p").text == (expected.transcript or "(no word heard)")
    labels = [label.text for label in browser.find_elements("css selector", "#timeline svg text")]
    assert {"0 %", "50 %", "100 %", "0.0", "6.0", "seconds"} <= set(labels)
    hints = browser.execute_script("return [...document.querySelectorAll('#timeline title')].map((t) => t.textContent)")
    assert hints[0].startswith("0.0 to 1.5 s: angry ")
    assert len(hints) == 10  # 1.5 s every 0.5 s in 6 s
    bands = browser.execute_script(
        "return [...document.querySelectorAll('#timeline rect')].slice(450).map((r) => +r.getAttribute('height'))"
    )
    assert np.add(bands[0], bands[1]) == pytest.approx(110, abs=1e-3)
    browser.save_screenshot(str(tmp_path / "page.png"))
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"), int).reshape(-1, 3)
    drawn = {colour: int((np.abs(pixels - colour).sum(axis=1) < 12).sum()) for colour in ((213, 94, 0), (230, 159, 0))}
    assert sum(drawn.values()) > 30_000  # the bands alone are 806 x 110 pixels


def test_an_example_names_its_reference_and_a_click_plays(browser):
    buttons = browser.find_elements("css selector", "#examples button")
    assert [button.text for button in buttons][-1] == "all of these in a row"
    buttons[0].click()
    wait(browser, "turn > 0")
    answered(browser)
    assert "the corpus says angry" in find(browser, "#name").text
    find(browser, "#timeline svg").click()
    wait(browser, "byId('player').currentTime > 0")


def test_a_recording_from_the_microphone_is_answered(browser):
    button = find(browser, "#record")
    button.click()
    wait(browser, "recorder !== null && byId('record-text').textContent === 'Stop (2 s)'")
    button.click()
    wait(browser, "turn > 0")
    answered(browser)
    assert find(browser, "#name").text == "your recording"
    assert sum(shares(browser, "emotion").values()) == pytest.approx(1, abs=0.002)
    assert 1.5 < browser.execute_script("return byId('player').duration") < 30


def test_mistakes_are_told_on_the_page(browser, tmp_path):
    for name, content, message in (
        ("text.wav", b"dear diary" * 50, "unreadable audio"),
        ("large.wav", wav(40.0), "large.wav has 1.3 MB; the limit is 1 MB"),
    ):
        (tmp_path / name).write_bytes(content)
        before = browser.execute_script("return turn")
        find(browser, "#file").send_keys(str(tmp_path / name))
        wait(browser, f"turn > {before} && byId('status').classList.contains('wrong')")
        assert message in find(browser, "#status").text
        assert not find(browser, "#result").is_displayed()
    # Chromium writes refusals of the endpoint to its log; nothing else may stand there.
    wrong = [entry["message"] for entry in browser.get_log("browser")]
    assert all("/predict" in message and "415" in message for message in wrong)
