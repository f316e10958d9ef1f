"""The demo under load, and under attack: 16 clients at once, each with its own pictures and classes.

    python -m benchmarks.timings.demo --requests 500

Starts `python app.py` as a process of its own, without a network, and prints how long it takes to its first answer; how many
answers under load were right (compared pixel by pixel with the library); the median time of an answer as a ratio to the library
call alone; the server's memory as the requests go by; and whether abuse in the middle of it was refused, and how fast. Clients
and server share the machine.
"""

import argparse
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from gradio_client import Client, handle_file
from PIL import Image

from hf_clipseg import toyscapes
from hf_clipseg.checkpoints import SHIPPED, load_checkpoint
from hf_clipseg.processing.inference import segment

from .demo_abuse import attack

ROOT = Path(__file__).resolve().parents[2]
MODEL = "mask-clip-toyscapes"
CLIENTS, TASKS = 16, 8
ATTACK_ROUNDS = 3
MEMORY_LINES = 10


class Server:
    """`python app.py`, as a visitor of this machine starts it."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}/", folder / "server.log"
        environment = {"GRADIO_SERVER_PORT": str(self.port), "GRADIO_TEMP_DIR": str(folder / "uploads"), "HF_HUB_OFFLINE": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"], cwd=ROOT, env=os.environ | environment, stdout=log, stderr=log
            )

    def wait(self, seconds: float = 300) -> None:
        """Until it answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if httpx.get(f"{self.url}config", timeout=10).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.05)
            if self.process.poll() is not None:
                break
        raise RuntimeError(f"the app does not answer:\n{self.log.read_text()}")

    def megabytes(self) -> int:
        """Its resident memory now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() // 2**20

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


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


def ask(client: Client, task) -> tuple[bool, float]:
    """Whether the answer was right, and its seconds."""
    path, names, expected, _ = task
    start = time.perf_counter()
    _, (label_map,), _ = client.predict(
        image=handle_file(path), class_names=", ".join(names), checkpoints=[MODEL], api_name="/segment"
    )
    return bool(np.array_equal(np.asarray(Image.open(label_map)), expected)), time.perf_counter() - start


def run_client(url: str, tasks, count: int, seed: int, results: list, folder: Path) -> None:
    client, choose = Client(url, verbose=False, download_files=folder), random.Random(seed)
    for _ in range(count):
        results.append(ask(client, choose.choice(tasks)))


def load(server: Server, tasks, requests: int, folder: Path) -> None:
    """All clients at once, and the attacks while they go on; prints what came of it."""
    results: list[tuple[bool, float]] = []
    each = -(-requests // CLIENTS)
    arguments = [(server.url, tasks, each, seed, results, folder) for seed in range(CLIENTS)]
    threads = [threading.Thread(target=run_client, args=one) for one in arguments]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    attacks = threading.Thread(target=attack_and_tell, args=(server, tasks[0][0], folder, results, each * CLIENTS))
    attacks.start()
    for part in range(1, MEMORY_LINES + 1):
        while len(results) < part * each * CLIENTS // MEMORY_LINES and any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
        print(f"after {len(results):>4} requests: {server.megabytes()} MB", flush=True)
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    attacks.join()
    times, alone = [seconds for _, seconds in results], statistics.mean(seconds for *_, seconds in tasks)
    print(
        f"right: {sum(right for right, _ in results)} of {each * CLIENTS}; answers per second: {len(results) / elapsed:.2f}\n"
        f"median time of an answer with {CLIENTS} clients: {statistics.median(times):.2f} s, "
        f"{statistics.median(times) / alone:.1f} times the library call alone ({alone * 1000:.0f} ms)"
    )


def attack_and_tell(server: Server, picture: str, folder: Path, results: list, expected: int) -> None:
    """Several rounds of abuse in the first half of the load."""
    for round_number in range(ATTACK_ROUNDS):
        while len(results) < round_number * expected // (2 * ATTACK_ROUNDS):
            time.sleep(0.2)
        answered = len(results)
        for name, refused, seconds in attack(server.url, picture, folder, server.log, MODEL):
            print(f"attack {round_number + 1}: {name}: {'refused' if refused else 'NOT REFUSED'} after {seconds:.2f} s")
        print(f"attack {round_number + 1}: meanwhile {len(results) - answered} others were answered", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = make_tasks(folder)
        started = time.perf_counter()
        with running_server(folder) as server:
            server.wait()
            client = Client(server.url, verbose=False, download_files=folder)
            ask(client, tasks[0])
            print(
                f"start to first answer: {time.perf_counter() - started:.1f} s, {server.cpu_seconds():.1f} s of them computing "
                f"(load average {os.getloadavg()[0]:.1f})"
            )
            alone = [ask(client, task)[1] / task[3] for task in tasks]
            print(f"median time of an answer with one client: {statistics.median(alone):.1f} times the library call alone")
            print(f"before the load: {server.megabytes()} MB", flush=True)
            load(server, tasks, arguments.requests, folder)


if __name__ == "__main__":
    main()
