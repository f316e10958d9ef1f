"""The static page in headless Chromium, against onnxruntime in Python."""

import functools
import http.server
import json
import shutil
import threading

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from training import web_page
from training.web_page import main

from ..shipped_label_maps import scenes
from ..test_app_browser import CHROMEDRIVER, CHROMIUM, FLAGS
from .test_graph_export import example_of, mask_clip_folder, needs_onnx  # noqa: F401

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER and shutil.which("npm")), reason="chromium, chromium-driver or npm is missing"
)


@pytest.fixture(scope="module")
def site(mask_clip_folder, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("web") / "site"
    try:
        web_page.make_page(mask_clip_folder, folder, "A: page")
    except ValueError as error:
        if "npm cannot fetch" in str(error):
            pytest.skip(str(error))
        raise
    return folder


@pytest.fixture(scope="module")
def driver(site, tmp_path_factory):
    handler = functools.partial(QuietHandler, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    driver.get(f"http://127.0.0.1:{server.server_port}/index.html")
    yield driver
    driver.quit()
    server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@needs_onnx
@needs_browser
@pytest.mark.parametrize("size", [(161, 90), (300, 333)])
def test_the_browser_gives_the_labels_of_onnxruntime(driver, site, mask_clip_folder, tmp_path, size):  # noqa: F811
    """Enlarged and reduced, wide and tall."""
    picture = Image.fromarray(np.asarray(scenes()[3].image)).resize(size)
    file = tmp_path / f"scene-{size[0]}.png"
    picture.save(file)
    status = driver.find_element(By.ID, "status")
    WebDriverWait(driver, 60, 0.1).until(lambda _: status.text.startswith(("Choose", "Done")))
    driver.execute_script("document.getElementById('status').textContent = 'waiting'")
    driver.find_element(By.ID, "picture").send_keys(str(file))
    WebDriverWait(driver, 60, 0.1).until(lambda _: status.text.startswith("Done") or "cannot" in status.text)
    assert status.text.startswith("Done"), status.text
    labels = np.array(driver.execute_script("return Array.from(document.getElementById('overlay').labels)")).reshape(size[::-1])
    expected = example_of(mask_clip_folder)(picture, mask_clip_folder)
    assert len(np.unique(expected)) > 2 and (labels == expected).mean() >= 0.999
    names = json.loads((mask_clip_folder / "preprocessing.json").read_text())["labels"]
    shown = [row.text for row in driver.find_elements(By.CSS_SELECTOR, "#legend li")]
    ids, counts = np.unique(labels, return_counts=True)
    largest = ids[counts.argmax()]
    assert shown[0] == f"{names[largest]} {100 * counts.max() / labels.size:.1f} %" and len(shown) == len(ids)
    painted = driver.execute_script(
        "const c = document.getElementById('overlay'); return Array.from(c.getContext('2d').getImageData(0, 0, 1, 1).data)"
    )
    colour = json.loads((site / "colours.json").read_text())[labels[0, 0]]
    mixed = [0.4 * below + 0.6 * above for below, above in zip(picture.getpixel((0, 0)), colour, strict=True)]
    np.testing.assert_allclose(painted[:3], mixed, atol=1)


@needs_onnx
@needs_browser
def test_the_page_is_a_static_space_that_asks_nobody_else(site):
    assert (site / "README.md").read_text().startswith("---\ntitle: A page\nsdk: static\n")
    own = [file for file in site.iterdir() if file.suffix in (".html", ".js") and not file.name.startswith("ort")]
    assert len(own) == 3 and not any("//" in line.split("// ")[0] for file in own for line in file.read_text().splitlines())


def test_what_is_no_graph_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="^error: .* holds no ONNX graph: write one with"):
        main([str(tmp_path), "--output", str(tmp_path / "site")])
    (tmp_path / "model.onnx").touch()
    (tmp_path / "preprocessing.json").write_text(json.dumps({"resample": 1, "labels": ["sky"]}))
    with pytest.raises(SystemExit, match="^error: The page resizes by"):
        main([str(tmp_path), "--output", str(tmp_path / "site")])
    with pytest.raises(SystemExit, match="^error: .* exists already"):
        main([str(tmp_path), "--output", str(tmp_path)])
