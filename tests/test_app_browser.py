"""The demo as a visitor meets it, in headless Chromium."""

import json
import shutil
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import app as demo_app

from .demo_checkpoints import save_demo_checkpoints

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1400"
).split()
HTML_NAME = '<img src=x onerror="window.scriptRan=1">'

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="no browser: install chromium and chromium-driver to run the demo in one"
)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    app = demo_app.build_app(save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints")))
    _, url, _ = app.launch(**demo_app.LAUNCH, prevent_thread_lock=True, quiet=True)
    yield url
    app.close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(driver, url):
    """The page, freshly opened and settled: the note of its load event is there."""
    driver.get(url)
    wait(driver, lambda: "is not offered" in driver.find_element(By.TAG_NAME, "body").text)
    return driver


def wait(driver, condition):
    """Waits until `condition()` is true, and returns it. The page redraws its elements at any time."""
    ignored = [StaleElementReferenceException]
    return WebDriverWait(driver, 30, 0.1, ignored_exceptions=ignored).until(lambda _: condition())


def sources(driver, selector):
    return [image.get_attribute("src") for image in driver.find_elements(By.CSS_SELECTOR, selector)]


def type_classes(driver, text):
    box = driver.find_element(By.CSS_SELECTOR, "#classes textarea")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text)


def press_segment(driver):
    driver.find_element(By.XPATH, "//button[normalize-space()='Segment']").click()


def toast(driver):
    """Text of the message in the corner, once there is one."""
    return wait(driver, lambda: " ".join(e.text for e in driver.find_elements(By.CSS_SELECTOR, ".toast-body")))


def requested_hosts(driver):
    """Hosts that pages have asked for anything; the browser's own pages are no hosts."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).hostname for url in urls if url.startswith(("http", "ws"))}


def test_example_classes_segment_opacity(page, url):
    before = sources(page, "#picture img")
    page.find_elements(By.CSS_SELECTOR, "#examples button")[3].click()
    wait(page, lambda: sources(page, "#picture img") not in ([], before))
    type_classes(page, "sky, sea, boat")
    press_segment(page)
    first = wait(page, lambda: sources(page, "#overlays img"))
    wait(page, lambda: page.execute_script("return document.querySelector('#overlays img').naturalWidth") == 512)
    legend = page.find_element(By.ID, "legend").text
    assert any(name in legend for name in ("sky", "sea", "boat")) and "%" in legend and "Open words" in legend
    caption = page.find_element(By.CSS_SELECTOR, "#overlays .caption-label").text
    assert caption.startswith("Open words · ")

    page.find_element(By.CSS_SELECTOR, "#opacity input[type=range]").send_keys(Keys.HOME)
    wait(page, lambda: sources(page, "#overlays img") not in ([], first))
    assert page.find_element(By.CSS_SELECTOR, "#overlays .caption-label").text == caption  # the time of the same run
    assert requested_hosts(page) == {urlsplit(url).hostname}


def test_html_in_a_class_name_is_text(page):
    type_classes(page, f"{HTML_NAME}, {{{{value}}}}, ${{window.scriptRan=1}}")
    press_segment(page)
    assert "does not know these words: <img" in toast(page)
    wait(page, lambda: sources(page, "#overlays img"))
    names = [cell.text for cell in page.find_elements(By.CSS_SELECTOR, "#legend td.name")]
    assert names and set(names) <= {HTML_NAME, "{{value}}", "${window.scriptRan=1}"}
    assert not page.find_elements(By.CSS_SELECTOR, "#legend img")
    type_classes(page, f"{HTML_NAME}, {HTML_NAME}")
    press_segment(page)
    wait(page, lambda: "given twice" in toast(page))
    assert HTML_NAME in toast(page)
    assert page.execute_script("return window.scriptRan") is None


def test_closed_checkpoint_locks_the_class_box(page):
    for box in page.find_elements(By.CSS_SELECTOR, "#checkpoints input[type=checkbox]"):
        label = box.find_element(By.XPATH, "./ancestor::label").text
        if box.is_selected() != (label == "Closed list"):
            box.click()
    wait(page, lambda: not page.find_element(By.CSS_SELECTOR, "#classes textarea").is_enabled())
    assert page.find_element(By.CSS_SELECTOR, "#classes textarea").get_attribute("value") == "tree, sky"
    press_segment(page)
    wait(page, lambda: sources(page, "#overlays img"))
    assert "Closed list" in page.find_element(By.ID, "legend").text


def test_fits_a_phone(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        assert wait(page, lambda: 0 < page.execute_script("return document.documentElement.scrollWidth") <= 390)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
