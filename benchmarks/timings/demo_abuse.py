"""What the demo must refuse: files of the server, bombs, floods, scripts, and the work of clients that are gone."""

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from gradio_client import Client, handle_file
from PIL import Image

LEFT_BEHIND = "mvp-seg-toyscapes"
"""The killed client asks for this method, and nobody else does, so its line in the server's log can be told."""
STAYS = 0.5  # seconds before it goes away


def attack(url: str, picture: str, folder: Path, log: Path, model: str) -> Iterator[tuple[str, bool, float]]:
    """Name of an attack, whether it was refused, and the seconds that took."""
    client = Client(url, verbose=False, httpx_kwargs={"timeout": 120})
    for name, changes in calls(picture, folder).items():
        call = {"image": handle_file(picture), "class_names": "sky, sea", "checkpoints": [model]} | changes
        start = time.perf_counter()
        try:
            client.predict(**call, api_name="/segment")
            refused = False
        except Exception as error:
            refused = "<script>" not in str(error) and picture not in str(error)
        yield name, refused, time.perf_counter() - start
    for path, name in (("upload", "an upload of 200 MB"), ("call/segment", "a call of 200 MB")):
        yield large_body(f"{url}gradio_api/{path}", name)
    yield killed_client(url, picture, log)


def calls(picture: str, folder: Path) -> dict[str, dict]:
    """What is changed of an honest call."""
    bomb = folder / "bomb.png"
    if not bomb.exists():
        Image.new("1", (30_000, 30_000)).save(bomb)
    return {
        "20,000 classes": {"class_names": ", ".join(f"class {index}" for index in range(20_000))},
        "a bomb of 900 million pixels": {"image": handle_file(str(bomb))},
        "a path of the server": {"image": {"path": picture}},
        "<script> as class names": {"class_names": "<script>alert(1)</script>, <script>alert(1)</script>"},
    }


def large_body(url: str, name: str) -> tuple[str, bool, float]:
    """Without the client library, which would refuse to send it."""
    start = time.perf_counter()
    try:
        refused = httpx.post(url, files={"files": bytes(200 * 2**20)}, timeout=60).status_code == 413
    except httpx.HTTPError:  # the server answers and hangs up while this is still sending
        refused = True
    return name, refused, time.perf_counter() - start


def killed_client(url: str, picture: str, log: Path) -> tuple[str, bool, float]:
    """A client that asks for much, goes away while that is computed, and leaves no work behind: the server's log shows it."""
    name, before = "the work of a killed client", len(outcomes(log))
    upload = httpx.post(f"{url}gradio_api/upload", files={"files": Path(picture).read_bytes()}, timeout=60).json()[0]
    image = {"path": upload, "meta": {"_type": "gradio.FileData"}}
    words = itertools.islice(itertools.product(["sky", "sea", "boat", "kite"], repeat=5), 600)
    classes = ", ".join(" ".join(name) for name in words)
    data = [image, classes, [LEFT_BEHIND], "as in the checkpoint", "96", "pamr", 0, ""]
    event = httpx.post(f"{url}gradio_api/call/segment", json={"data": data}, timeout=60).json()["event_id"]
    with httpx.stream("GET", f"{url}gradio_api/call/segment/{event}", timeout=60):
        time.sleep(STAYS)
    start = time.perf_counter()
    while len(outcomes(log)) == before and time.perf_counter() < start + 60:
        time.sleep(0.02)
    found = outcomes(log)[before:]
    return name, bool(found) and "ok" not in found, time.perf_counter() - start


def outcomes(log: Path) -> list[str]:
    """How the requests that only killed clients make have ended."""
    return re.findall(r"methods=mvp_seg .*outcome=(\w+)", log.read_text())
