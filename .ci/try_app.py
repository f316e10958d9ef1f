"""Waits for the app at an address, has it segment one drawn picture over its public endpoint, and says what it found.

    python .ci/try_app.py http://127.0.0.1:7860 PROCESS_ID

It ends with an error as soon as the process that serves the app is gone, or when nothing answers for 20 minutes: the process
may still be installing what the app needs.
"""

import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PATIENCE = 20 * 60  # seconds


def wait_for(url: str, process: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        os.kill(process, 0)  # raises ProcessLookupError where there is none
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise TimeoutError(f"nothing answered at {url} for {PATIENCE} s")


def segment_one(url: str) -> dict:
    from gradio_client import Client, handle_file
    from PIL import Image

    from hf_clipseg.toyscapes import render

    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "scene.png"
        Image.fromarray(render(seed=0, index=7, height=96, width=128).image).save(picture)
        answers = Client(url, verbose=False).predict(
            image=handle_file(str(picture)),
            class_names="sky, grass, house, tree",
            checkpoints=["mask-clip-toyscapes"],
            api_name="/segment",
        )
    (record,) = (answer for answer in answers if isinstance(answer, dict) and "results" in answer)
    if (record["height"], record["width"]) != (96, 128) or len(record["results"]) != 1:
        raise ValueError(f"the app answered {record}")
    return record


if __name__ == "__main__":
    try:
        wait_for(sys.argv[1], int(sys.argv[2]))
        print("the app answers and segments:", segment_one(sys.argv[1]))
    except (ProcessLookupError, TimeoutError, ValueError) as error:
        sys.exit(f"error: the app did not run ({error})")
