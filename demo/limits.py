"""What one visitor may ask for: sizes that are refused before any work, and a ticket that ends work that takes too long."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """
    Args:
        file_bytes: of one uploaded picture.
        upload_bytes, body_bytes: of one request that uploads pictures, and of any other.
        daily_bytes: of the uploads that come from one address in a day.
        pictures: of one lesson, or with captions.
        decoded_pixels: that a picture may have once decoded; a JPEG is decoded small, so it may be larger.
        display_side: pixels of the longer side; larger pictures are shrunk to it before anything else.
        class_characters, classes: of the class box; captions may be as long.
        seconds: of computing per request, waiting in the queue not counted.
        admitted: comparisons that are checked and then wait for their turn: what is refused is refused at once.
        waiting: requests in the queue for what is not admitted yet; further ones are refused.
        at_once: requests that compute at the same time.
        stored_bytes: of uploads and results on disk; the oldest go first.
    """

    file_bytes: int = 20 * 2**20
    upload_bytes: int = 200 * 10**6
    body_bytes: int = 4 * 2**20
    daily_bytes: int = 2**30
    pictures: int = 40
    decoded_pixels: int = 64_000_000
    display_side: int = 1024
    class_characters: int = 20_000
    classes: int = 1_000
    seconds: float = 60.0
    admitted: int = 48
    waiting: int = 48
    at_once: int = 2
    stored_bytes: int = 2 * 2**30


class RunEnded(ValueError):
    """A run was ended before its result: its time was up, or nobody waits for it any more."""


class Ticket:
    """Permission to compute for one request.

    Args:
        seconds: from now on.
        is_abandoned: tells whether the visitor has closed the page or gone away.
    """

    def __init__(self, seconds: float, is_abandoned: Callable[[], bool] = lambda: False):
        self.seconds = seconds
        self.is_abandoned = is_abandoned
        self.end = time.monotonic() + seconds
        self.is_stopped = False

    def stop(self) -> None:
        """Ends the run at its next check; called from another thread."""
        self.is_stopped = True

    def check(self) -> None:
        """Raises RunEnded where the run should stop. Cheap: models call it before every layer."""
        self.check_wanted()
        if time.monotonic() > self.end:
            raise RunEnded(
                f"This took longer than {self.seconds:g} s and was stopped. Use fewer classes or methods, a smaller picture, "
                "or no sliding window."
            )

    def check_wanted(self) -> None:
        """As `check`, whatever the time: for those who wait."""
        if self.is_stopped or self.is_abandoned():
            raise RunEnded("Stopped.")

    @contextmanager
    def turn(self, slots: threading.Semaphore) -> Iterator[None]:
        """Waits for one of the slots, and holds it; the waiting does not count as time of the run."""
        asked = time.monotonic()
        while not slots.acquire(timeout=0.1):
            self.check_wanted()
        self.end += time.monotonic() - asked
        try:
            yield
        finally:
            slots.release()


class Tickets:
    """The tickets of runs that are under way, by visitor, for Stop."""

    def __init__(self):
        self._lock = threading.Lock()
        self._by_visitor: dict[str, list[Ticket]] = {}

    @contextmanager
    def hold(self, visitor: str, ticket: Ticket) -> Iterator[Ticket]:
        """Keeps the ticket while its run is under way."""
        with self._lock:
            self._by_visitor.setdefault(visitor, []).append(ticket)
        try:
            yield ticket
        finally:
            with self._lock:
                self._by_visitor[visitor].remove(ticket)
                if not self._by_visitor[visitor]:
                    del self._by_visitor[visitor]

    def stop(self, visitor: str) -> int:
        """Ends all runs of a visitor; how many there were."""
        with self._lock:
            tickets = list(self._by_visitor.get(visitor, ()))
        for ticket in tickets:
            ticket.stop()
        return len(tickets)


def check_text(text: str, limits: Limits, name: str = "The class list") -> None:
    """Refuses a text that is too long to be what it should be, before it is parsed."""
    if len(text) > limits.class_characters:
        raise ValueError(f"{name} has {len(text):,} characters; at most {limits.class_characters:,} are read. Shorten it.")


def check_class_count(classes: Sequence, limits: Limits) -> None:
    if len(classes) > limits.classes:
        raise ValueError(f"There are {len(classes):,} classes; at most {limits.classes:,} are compared. Shorten the list.")


def check_picture_count(count: int, limits: Limits) -> None:
    if count > limits.pictures:
        raise ValueError(f"There are {count:,} pictures; at most {limits.pictures} are read. Leave some out.")


def without_repeats(names: Sequence[str]) -> list[str]:
    """Each name once, in the order given."""
    return list(dict.fromkeys(names))
