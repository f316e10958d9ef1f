"""The demo as a visitor meets it, in headless Chromium."""

import json
import shutil
from urllib.parse import urlsplit

import pytest
from selenium import webdriver
from selenium.common.exceptions import ElementNotInteractableException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from .demo_checkpoints import save_demo_checkpoints
from .demo_server import running_demo

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
    with running_demo(save_demo_checkpoints(tmp_path_factory.mktemp("checkpoints"))) as (_, url):
        yield url


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
    """The page, freshly opened and settled: its first result is there, and the last note of its load event."""
    driver.get(url)
    wait(driver, lambda: "did not answer" in driver.find_element(By.TAG_NAME, "body").text)
    wait(driver, lambda: status(driver).startswith("Done"))
    return driver


def wait(driver, condition):
    """Waits until `condition()` is true, and returns it. The page redraws its elements at any time."""
    ignored = [StaleElementReferenceException, ElementNotInteractableException]  # the latter: clicked as it moved
    return WebDriverWait(driver, 30, 0.1, ignored_exceptions=ignored).until(lambda _: condition())


def sources(driver, selector):
    return [image.get_attribute("src") for image in driver.find_elements(By.CSS_SELECTOR, selector)]


def type_classes(driver, text):
    box = driver.find_element(By.CSS_SELECTOR, "#classes textarea")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(text)


def status(driver):
    return driver.find_element(By.ID, "status").text


def press_compare(driver):
    """Presses Compare, and waits for its answer: tiles that are not those of before."""
    before = sources(driver, ".tile .stage img")
    driver.find_element(By.ID, "run").click()
    wait(driver, lambda: sources(driver, ".tile .stage img") not in ([], before) and status(driver).startswith("Done"))


def tick_only(driver, title):
    for box in driver.find_elements(By.CSS_SELECTOR, "#methods input[type=checkbox]"):
        if box.is_selected() != (box.find_element(By.XPATH, "./ancestor::label").text == title):
            box.click()


def tab(driver, name):
    """Opens a tab; the row of tabs is drawn anew when it has been measured, so the button may come late, or move."""

    def pressed():
        buttons = driver.find_elements(By.XPATH, f"//button[@role='tab' and normalize-space()='{name}']")
        if not buttons or not buttons[0].is_displayed():
            return False
        buttons[0].click()
        return True

    wait(driver, pressed)


def transparent_share(driver, tile=0):
    """Share of the pixels of a tile's veil that let the picture through; None where there is no veil."""
    return driver.execute_script(
        """const canvas = document.querySelectorAll('.tile canvas')[arguments[0]];
        if (!canvas.width) return null;
        const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        let clear = 0;
        for (let i = 3; i < data.length; i += 4) clear += data[i] === 0;
        return clear / (data.length / 4);""",
        tile,
    )


def toast(driver):
    """Text of the message in the corner, once there is one."""
    return wait(driver, lambda: " ".join(e.text for e in driver.find_elements(By.CSS_SELECTOR, ".toast-body")))


def requested_hosts(driver):
    """Hosts that pages have asked for anything; the browser's own pages are no hosts."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return {urlsplit(url).hostname for url in urls if url.startswith(("http", "ws"))}


def test_opens_with_a_result(page, url):
    titles = [element.text for element in page.find_elements(By.CSS_SELECTOR, ".tile figcaption span")]
    assert titles[:2] == ["Ground truth", "Open words"]
    assert "mIoU" in page.find_elements(By.CSS_SELECTOR, ".tile figcaption small")[1].text
    assert page.execute_script("return document.querySelectorAll('.tile img')[1].naturalWidth") == 512
    assert requested_hosts(page) == {urlsplit(url).hostname}


def test_an_example_runs_at_once_and_opacity_redraws(page):
    before = sources(page, "#picture img")
    buttons = page.find_elements(By.CSS_SELECTOR, "#examples button")
    assert all(button.text.strip() for button in buttons) and len(buttons) >= 6
    tiles = sources(page, ".tile .stage img")
    buttons[3].click()
    wait(page, lambda: sources(page, "#picture img") not in ([], before))
    wait(page, lambda: sources(page, ".tile .stage img") not in ([], tiles) and status(page).startswith("Done"))
    first, caption = sources(page, ".tile .stage img"), page.find_element(By.CSS_SELECTOR, ".tile small").text
    slider = page.find_element(By.CSS_SELECTOR, "#opacity input[type=range]")
    slider.send_keys(Keys.HOME)
    page.execute_script("arguments[0].dispatchEvent(new Event('pointerup', {bubbles: true}))", slider)
    wait(page, lambda: sources(page, ".tile .stage img") not in ([], first))
    assert page.find_element(By.CSS_SELECTOR, ".tile small").text == caption  # no model ran for it


def test_the_legend_isolates_a_class_in_all_tiles(page):
    """By the keyboard: focus shows it, Enter keeps it, Enter again lets go. The share that shows is the class's share."""
    rows = page.find_elements(By.CSS_SELECTOR, "#legend tr[data-class]")
    shares = [row.find_elements(By.TAG_NAME, "td")[1].text for row in rows]  # of the method, after the ground truth
    share, row = next((share, row) for share, row in zip(shares, rows, strict=True) if share != "\u2013")
    button = row.find_element(By.TAG_NAME, "button")
    assert transparent_share(page, 1) is None
    page.execute_script("arguments[0].focus()", button)
    shown = wait(page, lambda: transparent_share(page, 1))
    assert abs(shown - float(share.rstrip("%")) / 100) < 0.001
    button.send_keys(Keys.ENTER)
    wait(page, lambda: button.get_attribute("aria-pressed") == "true")
    page.execute_script("arguments[0].blur()", button)
    wait(page, lambda: transparent_share(page, 1) == shown)
    button.send_keys(Keys.ENTER)
    wait(page, lambda: button.get_attribute("aria-pressed") == "false")
    page.execute_script("arguments[0].blur()", button)
    wait(page, lambda: transparent_share(page, 1) is None)


def test_html_in_a_class_name_is_text(page):
    type_classes(page, f"{HTML_NAME}|sky, sea, {{{{value}}}}|boat, ${{window.scriptRan=1}}|ship")
    press_compare(page)
    names = {cell.text for cell in page.find_elements(By.CSS_SELECTOR, "#legend tr[data-class] button")}
    assert names & {HTML_NAME, "{{value}}", "${window.scriptRan=1}"}
    assert not page.find_elements(By.CSS_SELECTOR, "#legend img")
    type_classes(page, f"{HTML_NAME}, {HTML_NAME}")
    page.find_element(By.ID, "run").click()
    wait(page, lambda: "is there twice" in toast(page))
    assert HTML_NAME in toast(page)
    assert page.execute_script("return window.scriptRan") is None


def test_closed_checkpoint_locks_the_class_box(page):
    tick_only(page, "Closed list")
    wait(page, lambda: not page.find_element(By.CSS_SELECTOR, "#classes textarea").is_enabled())
    assert page.find_element(By.CSS_SELECTOR, "#classes textarea").get_attribute("value") == "tree, sky"
    press_compare(page)
    assert "Closed list" in page.find_element(By.ID, "legend").text


def test_slider_and_download(page):
    tab(page, "Slider")
    wait(page, lambda: len(sources(page, "#slider img")) >= 2)
    assert len(set(sources(page, "#slider img"))) == 2
    line = wait(page, lambda: page.find_element(By.CSS_SELECTOR, "#slider .outer[role=slider]"))
    start = wait(page, lambda: line.rect["x"])
    line.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    wait(page, lambda: line.rect["x"] > start)
    moved = (line.rect["x"] - start) / page.find_element(By.CSS_SELECTOR, "#slider .slider-wrap").rect["width"]
    assert abs(moved - 0.1) < 0.01 and line.get_attribute("aria-valuenow") == "60"
    tab(page, "Take away")
    page.find_element(By.ID, "make-zip").click()
    wait(page, lambda: "hf-clipseg-results" in page.find_element(By.ID, "archive").text)


def test_the_keyboard_passes_through_without_changing_anything(page):
    """From the class box over the list of lists to the methods; Space ticks, Enter on Compare runs."""
    type_classes(page, "sea, sky")
    box = page.find_element(By.CSS_SELECTOR, "#preset input")
    box.send_keys(Keys.TAB)
    method = wait(page, lambda: page.switch_to.active_element)
    assert method.get_attribute("type") == "checkbox"
    ticked = method.is_selected()
    method.send_keys(Keys.SPACE)
    assert wait(page, lambda: page.switch_to.active_element.is_selected()) is not ticked
    page.switch_to.active_element.send_keys(Keys.SPACE)
    assert page.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    before = sources(page, ".tile .stage img")
    page.find_element(By.ID, "run").send_keys(Keys.ENTER)
    wait(page, lambda: sources(page, ".tile .stage img") not in ([], before) and status(page).startswith("Done"))
    assert page.find_element(By.CSS_SELECTOR, "#classes textarea").get_attribute("value") == "sea, sky"


def test_a_new_picture_clears_old_results(page):
    page.find_element(By.CSS_SELECTOR, "#picture button[aria-label='Remove Image']").click()
    wait(page, lambda: not page.find_elements(By.CSS_SELECTOR, ".tile"))
    assert "press Compare" in status(page)
    page.find_element(By.ID, "run").click()
    assert "no picture yet" in toast(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(driver, url, theme):
    """With all methods, whose legend is the widest thing on the page; and no column is cut off at 1280 pixels."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        driver.get(f"{url}?__theme={theme}")
        wait(driver, lambda: "did not answer" in driver.find_element(By.TAG_NAME, "body").text)
        for box in driver.find_elements(By.CSS_SELECTOR, "#methods input[type=checkbox]"):
            if not box.is_selected():
                driver.execute_script("arguments[0].click()", box)
        wait(driver, lambda: status(driver).startswith("Done"))
        driver.execute_script("document.getElementById('run').click()")
        wait(driver, lambda: len(driver.find_elements(By.CSS_SELECTOR, "#legend thead th")) >= 5)
        for name in (None, "Slider", "What they see", "Take away", "Teach it yourself", "What captions omit"):
            if name:
                tab(driver, name)  # which is there, and in no menu
            assert wait(driver, lambda: 0 < driver.execute_script("return document.documentElement.scrollWidth") <= 390), name
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
