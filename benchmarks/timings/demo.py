"""The demo under load, and under attack: 16 clients at once, each with its own pictures and classes.

    python -m benchmarks.timings.demo --requests 500

Prints how many answers were right (compared pixel by pixel with the library), the median time of an answer as a ratio to the
library call alone, the memory before and after, and whether abuse in the middle of it was refused, and how fast. Everything
runs in one process on one machine, so the clients' own work is part of the times.
"""

import argparse
import random
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

import app
from hf_clipseg import toyscapes
from hf_clipseg.checkpoints import SHIPPED, load_checkpoint
from hf_clipseg.processing.inference import segment

MODEL = "mask-clip-toyscapes"
CLIENTS, TASKS = 16, 8


def make_tasks(folder: Path) -> list[tuple[str, list[str], np.ndarray, float]]:
    """Pictures, classes, the right answer and the seconds that the library takes for it, alone."""
    loaded = load_checkpoint(SHIPPED / MODEL)
    choose = random.Random(0)
    tasks = []
    for index in range(TASKS):
        path = folder / f"{index}.png"
        Image.fromarray(toyscapes.render(3, index, 192 + 16 * index, 256).image).save(path)
        names = choose.sample(toyscapes.CLASS_NAMES, 5 + index)
        segment(loaded.model, loaded.processor, [path], names)
        start = time.perf_counter()
        (label_map,) = segment(loaded.model, loaded.processor, [path], names)
        tasks.append((str(path), names, label_map, time.perf_counter() - start))
    return tasks


def run_client(url: str, tasks, count: int, seed: int, results: list) -> None:
    """Appends `(right, seconds)` per request."""
    client, choose = Client(url, verbose=False), random.Random(seed)
    for _ in range(count):
        path, names, expected, _ = choose.choice(tasks)
        start = time.perf_counter()
        _, (label_map,), _ = client.predict(
            image=handle_file(path), class_names=", ".join(names), checkpoints=[MODEL], api_name="/segment"
        )
        results.append((bool(np.array_equal(np.asarray(Image.open(label_map)), expected)), time.perf_counter() - start))


def attacks(url: str, picture: str, folder: Path) -> dict[str, tuple[bool, float]]:
    """Name -> whether it was refused, and the seconds that took."""
    client = Client(url, verbose=False)
    bomb = folder / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(bomb)
    large = folder / "large.png"
    large.write_bytes(b"x" * (200 * 2**20))
    calls = {
        "20,000 classes": {"class_names": ", ".join(f"class {index}" for index in range(20_000))},
        "bomb": {"image": handle_file(str(bomb))},
        "200 MB": {"image": handle_file(str(large))},
        "server path": {"image": {"path": picture}},
        "script": {"class_names": "<script>alert(1)</script>, <script>alert(1)</script>"},
    }
    found = {}
    for name, changes in calls.items():
        call = {"image": handle_file(picture), "class_names": "sky, sea", "checkpoints": [MODEL]} | changes
        start = time.perf_counter()
        try:
            client.predict(**call, api_name="/segment")
            refused = False
        except Exception as error:
            refused = "<script>" not in str(error)
        found[name] = (refused, time.perf_counter() - start)
    return found | {"killed client": killed_client(url)}


def killed_client(url: str) -> tuple[bool, float]:
    """A client that asks and goes away at once: accepted, and then nobody's business."""
    start = time.perf_counter()
    data = [None, "sky", [MODEL], "as in the checkpoint", "whole picture", "none", 0, ""]
    event = httpx.post(f"{url}gradio_api/call/segment", json={"data": data}, timeout=60).json()["event_id"]
    with httpx.stream("GET", f"{url}gradio_api/call/segment/{event}", timeout=60):
        return True, time.perf_counter() - start


def megabytes() -> int:
    """Resident memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        tasks = make_tasks(Path(name))
        page = app.build_app()
        _, url, _ = page.launch(**app.LAUNCH, prevent_thread_lock=True, quiet=True)
        run_client(url, tasks, 4, 0, [])  # everything loaded
        before, results = megabytes(), []
        each = -(-arguments.requests // CLIENTS)
        threads = [threading.Thread(target=run_client, args=(url, tasks, each, seed, results)) for seed in range(CLIENTS)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        refused = attacks(url, tasks[0][0], Path(name))
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - started
        page.close()
    times, alone = [seconds for _, seconds in results], statistics.mean(seconds for *_, seconds in tasks)
    print(f"right: {sum(right for right, _ in results)} of {len(results)}; answers per second: {len(results) / elapsed:.2f}")
    print(
        f"median time of an answer with {CLIENTS} clients: {statistics.median(times) / alone:.1f} times the library call alone"
    )
    print(f"memory: {before} MB before, {megabytes()} MB after")
    for attack, (was_refused, seconds) in refused.items():
        print(f"{attack}: {'refused' if was_refused else 'NOT REFUSED'} after {seconds:.2f} s")


if __name__ == "__main__":
    main()
