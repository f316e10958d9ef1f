"""The demo under load, and under attack: 16 clients at once, each with its own pictures and classes.

    python -m benchmarks.timings.demo --requests 500
    python -m benchmarks.timings.demo --minutes 10 --json demo.json      # the load by time, for the page

Starts `python app.py` as a process of its own, without a network, and prints how long it takes to its first answer; how many
answers under load were right (compared pixel by pixel with the library); the median time of an answer as a ratio to the library
call alone; the server's memory as the requests go by; and whether abuse in the middle of it was refused, and how fast. Clients
and server share the machine.
"""

import argparse
import os
import random
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
from .run_all import command_of
from .steady import Watch, held_mib, save

ROOT = Path(__file__).resolve().parents[2]
MODEL = "mask-clip-toyscapes"
CLIENTS, TASKS = 16, 8
ATTACK_ROUNDS = 3


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

    def mib(self) -> float:
        """Its resident memory now."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the app has ended:\n{self.log.read_text()}")
        return held_mib(self.process.pid)

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


class Load:
    """All clients at once, for so many requests or so many minutes."""

    def __init__(self, server: Server, tasks, folder: Path, requests: int, minutes: float | None):
        self.server, self.tasks, self.folder, self.requests, self.minutes = server, tasks, folder, requests, minutes
        self.results: list[tuple[bool, float]] = []
        self.attacks = self.refused = 0
        options = {"verbose": False, "download_files": folder, "httpx_kwargs": {"timeout": 120}}  # of a machine that is busy
        self.clients = [Client(server.url, **options) for _ in range(CLIENTS)]
        self.watch = Watch("requests", server.mib)

    def share(self) -> float:
        """How much of the load is over."""
        return self.watch.share(self.minutes) if self.minutes else len(self.results) / self.requests

    def run_client(self, seed: int) -> None:
        client, choose = self.clients[seed], random.Random(seed)
        while self.share() < 1:
            try:
                self.results.append(ask(client, choose.choice(self.tasks)))
            except Exception as error:  # no answer is a wrong answer
                print(f"no answer: {error}", flush=True)
                self.results.append((False, float("inf")))

    def attack(self) -> None:
        """Several rounds of abuse in the first half of the load."""
        for number in range(ATTACK_ROUNDS):
            while self.share() < number / (2 * ATTACK_ROUNDS):
                time.sleep(0.2)
            answered = len(self.results)
            for name, refused, seconds in attack(self.server.url, self.tasks[0][0], self.folder, self.server.log, MODEL):
                self.attacks, self.refused = self.attacks + 1, self.refused + refused
                print(f"attack {number + 1}: {name}: {'refused' if refused else 'NOT REFUSED'} after {seconds:.2f} s")
            print(f"attack {number + 1}: meanwhile {len(self.results) - answered} others were answered", flush=True)

    def run(self) -> str:
        """What came of it, in a sentence."""
        threads = [threading.Thread(target=self.run_client, args=(seed,), daemon=True) for seed in range(CLIENTS)]
        threads.append(threading.Thread(target=self.attack, daemon=True))
        for thread in threads:
            thread.start()
        while self.share() < 1:
            time.sleep(0.2)
            self.watch.note(self.share(), len(self.results))
        elapsed = 60 * self.watch.readings[-1].minutes
        rate = len(self.results) / elapsed
        for thread in threads:
            thread.join()
        alone = statistics.mean(seconds for *_, seconds in self.tasks)
        median = statistics.median(seconds for _, seconds in self.results)
        right = sum(right for right, _ in self.results)
        return (
            f"{right} of {len(self.results)} answers were right, {rate:.2f} per second; median time of an answer with "
            f"{CLIENTS} clients {median:.2f} s, {median / alone:.1f} times the library call alone ({alone * 1000:.0f} ms). "
            f"{self.refused} of {self.attacks} attacks were refused."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--minutes", type=float, help="in place of --requests: for so long")
    parser.add_argument("--json", type=Path, help="write the readings of the memory here, for the page")
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
            load = Load(server, tasks, folder, arguments.requests, arguments.minutes)
            said = load.run()
    words = ["--minutes", f"{arguments.minutes:g}"] if arguments.minutes else ["--requests", str(arguments.requests)]
    save(arguments.json, "demo-load", command_of("demo", *words), load.watch, [said])


if __name__ == "__main__":
    main()
