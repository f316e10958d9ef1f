"""What happens when a visitor of the compare page does something: the functions behind its events."""

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path

import gradio as gr

from hf_clipseg.atomic import replace_file
from hf_clipseg.checkpoints import HUB_TIMEOUT, Checkpoint, hub_answers, is_cached
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL
from hf_clipseg.drawing.comparison import Comparison

from .class_lists import CLASS_LISTS, PHOTO_CLASSES
from .download import archive
from .guard import errors_for_people, new_ticket
from .insight import METHODS, Look
from .limits import RunEnded, Ticket, Tickets
from .storage import StorageCap
from .tiles import EMPTY_LEGEND, legend_html, tiles_html
from .workbench import Options, Workbench, known_classes

NO_OVERRIDE = "as in the checkpoint"
WINDOWS = {"whole picture": None, "96": 96, "160": 160, "224": 224, "336": 336}
REFINEMENTS = {"none": None, "pamr": "pamr"}
CLASS_INFO = "Commas or new lines part classes, | parts synonyms: boat|ship"
PHOTOGRAPH, TRUTH = "Picture", "Ground truth"

requests = logging.getLogger("hf_clipseg.requests")


class Desk:
    """Answers the page's events. Everything that is computed comes from the workbench; results belong to one visitor."""

    def __init__(self, bench: Workbench):
        self.bench, self.tickets = bench, Tickets()
        self.storage = StorageCap(gr.utils.get_upload_folder(), bench.limits.stored_bytes)
        self.opening: Comparison | None = None

    @contextmanager
    def serving(self, name: str, visitor: str) -> Iterator[tuple[Ticket, dict]]:
        """A ticket for one request, messages for people, and one line in the log: no names, no pictures, no words."""
        start, facts, outcome = time.perf_counter(), {}, "ok"
        try:
            with errors_for_people(), self.tickets.hold(visitor, new_ticket(self.bench.limits)) as ticket:
                yield ticket, facts
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            details = " ".join(f"{key}={value}" for key, value in facts.items())
            requests.info("%s %s seconds=%.2f outcome=%s", name, details, time.perf_counter() - start, outcome)
            self.storage.enforce()

    def compare(
        self, image, class_text, names, opacity, attention, window, refinement, threshold, show_groups, request: gr.Request
    ):
        """Yields tiles, legend, numbers, the comparison, and the status line, after every method."""
        with self.serving("compare", request.session_hash or "") as (ticket, facts):
            options = read_options(attention, window, refinement, threshold, show_groups)
            question = self.bench.question(image, class_text, names, options)
            facts |= facts_of(question)
            yield from self.stream(question, ticket, opacity)

    def stream(self, question, ticket: Ticket, opacity: float):
        comparison, failed = self.bench.start(question), {}
        titles = [checkpoint.title for checkpoint in question.checkpoints]
        yield self.shown(comparison, opacity, titles, failed, f"Running {titles[0]} …")
        try:
            for done, (comparison, failed) in enumerate(self.bench.compare(question, ticket), start=1):
                waiting = titles[done:]
                status = f"Running {waiting[0]} …" if waiting else finished(comparison)
                yield self.shown(comparison, opacity, waiting, failed, status)
        except RunEnded as ended:
            if not comparison.results:
                raise
            yield self.shown(
                comparison, opacity, [], failed, f"{ended} {len(comparison.results)} of {len(titles)} methods are shown."
            )

    def shown(self, comparison: Comparison, opacity: float, waiting: Sequence[str], failed: dict, status: str):
        tiles = tiles_html(comparison, opacity, waiting, failed)
        return tiles, legend_html(comparison), comparison.numbers(), comparison, status_html(status)

    def open(self, opacity: float, image, class_text, names, request: gr.Request):
        """The comparison that the page opens with, computed once for all visitors."""
        if self.opening is None:
            with self.serving("open", request.session_hash or "") as (ticket, facts):
                question = self.bench.question(image, class_text, names)
                facts |= facts_of(question)
                for values in self.stream(question, ticket, opacity):
                    yield values
                self.opening = values[3]
        else:
            yield self.shown(self.opening, opacity, [], {}, finished(self.opening))

    def prepare(self, picture, class_text: str, names: Sequence[str]) -> None:
        """Computes the opening comparison before anybody asks; failures are left to the first visitor."""
        try:
            question = self.bench.question(picture, class_text, names)
            for comparison, failed in self.bench.compare(question, Ticket(10 * self.bench.limits.seconds)):
                if not failed and len(comparison.results) == len(question.checkpoints):
                    self.opening = comparison
        except ValueError as error:
            requests.warning("opening comparison: %s", error)

    def stop(self, request: gr.Request):
        """Ends what this visitor has running; their generator then shows what is finished."""
        count = self.tickets.stop(request.session_hash or "")
        return status_html("Stopping …" if count else "Nothing is running.")

    def redraw(self, comparison: Comparison | None, opacity: float):
        return gr.skip() if comparison is None else tiles_html(comparison, opacity)

    def clear(self):
        """A new picture: old results would lie about it."""
        return "", EMPTY_LEGEND, None, None, status_html("New picture: press Compare.")

    def sides(self, comparison: Comparison | None):
        """What the slider can show, for a new comparison: the photograph, and the best or first method."""
        if comparison is None or not comparison.results:
            return gr.skip(), gr.skip(), gr.skip()
        choices = [PHOTOGRAPH, *([TRUTH] if comparison.truth is not None else []), *comparison.titles]
        right = comparison.titles[comparison.best() or 0]
        present = [name for name in comparison.class_names if any(name in comparison.areas(m) for m in comparison.label_maps)]
        return (
            gr.update(choices=choices, value=PHOTOGRAPH),
            gr.update(choices=choices, value=right),
            gr.update(choices=present, value=None),
        )

    def slide(self, comparison: Comparison | None, left: str, right: str, opacity: float):
        """The two pictures of the slider."""
        if comparison is None or not comparison.results:
            return gr.skip()
        return side(comparison, left, opacity), side(comparison, right, opacity)

    def see(self, model_type: str, comparison: Comparison | None, request: gr.Request):
        """What a method of this type sees in the picture of the comparison."""
        if comparison is None:
            raise gr.Error("Compare a picture first.", print_exception=False)
        checkpoint = next(c for c in self.bench.checkpoints.values() if c.model_type == model_type)
        with self.serving(f"see-{model_type}", request.session_hash or "") as (ticket, _):
            loaded = self.bench.cache.get(checkpoint.source, ticket.check)
            asked = comparison.asked if checkpoint.open_vocabulary and comparison.asked else checkpoint.class_names
            with loaded.running(check=ticket.check):
                classes = known_classes(loaded, asked)
            to_encode = None if classes.to_encode == checkpoint.class_names else classes.to_encode
            look = Look(comparison.picture, to_encode, classes.names)
            return METHODS[model_type].see(loaded, look, ticket.check)

    def download(self, comparison: Comparison | None, cut_out: str | None):
        """Path of a ZIP with everything; see `download.archive`."""
        with errors_for_people():
            if comparison is None:
                raise ValueError("There is no result to download yet. Press Compare first.")
            folder = Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder(), prefix="results-"))
            with replace_file(folder / "hf-clipseg-results.zip") as partial:
                partial.write_bytes(archive(comparison, cut_out or None))
            return str(folder / "hf-clipseg-results.zip")

    def choose(self, names: Sequence[str], class_text: str):
        """The class box and the note on the checkpoints, for a new choice of them."""
        chosen = [self.bench.checkpoints[name] for name in names if name in self.bench.checkpoints]
        closed = [checkpoint for checkpoint in chosen if not checkpoint.open_vocabulary]
        note = notes_html(chosen, closed)
        if chosen and len(closed) == len(chosen):
            info = "Fixed: the chosen methods know only their own classes."
            return gr.update(value=default_classes(chosen[0]), interactive=False, info=info), note
        defaults = {*map(default_classes, self.bench.checkpoints.values()), *CLASS_LISTS.values()}
        untouched = not class_text.strip() or class_text in defaults
        keep = class_text if class_text in CLASS_LISTS.values() else ""
        first = next((c for c in chosen if c.open_vocabulary), None)
        text = keep or default_classes(first) if first and untouched else class_text
        return gr.update(value=text, interactive=True, info=CLASS_INFO), note

    def offer_hub(self, names: Sequence[str]):
        """Called when a page opens: takes back the models on the Hub that cannot be had, and says so."""
        missing = {c.name for c in self.bench.checkpoints.values() if c.on_hub and not is_cached(c.source)}
        if not missing or hub_answers():
            return gr.skip(), ""
        choices = [(c.title, c.name) for c in self.bench.checkpoints.values() if c.name not in missing]
        note = (
            f"The Hugging Face Hub did not answer within {HUB_TIMEOUT:g} s: the models that know photographs are not offered. "
        )
        if choices:
            note += "Those offered here work offline and know drawings only: on a photograph they guess."
        else:
            note += "No method is left: `python app.py FOLDER` adds one."
        return gr.CheckboxGroup(choices=choices, value=[name for name in names if name not in missing]), note_html(note)


def read_options(attention, window, refinement, threshold, show_groups) -> Options:
    """The choices of the page and the API, as the library calls them.

    Raises:
        ValueError: a choice that there is not.
    """
    variants = {NO_OVERRIDE: None, **{name: name for name in KEEPS_RESIDUAL}}
    return Options(
        choice(variants, attention, "attention"),
        choice(WINDOWS, window, "window"),
        choice(REFINEMENTS, refinement, "refinement"),
        threshold,
        bool(show_groups),
    )


def choice(choices: dict, value, name: str):
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {str(value)[:40]!r}; choose one of: {', '.join(choices)}.")
    return choices[value]


def facts_of(question) -> dict:
    """For the log: how much work it is, and nothing about the visitor."""
    methods = ",".join(checkpoint.model_type or "unknown" for checkpoint in question.checkpoints)
    return {"methods": methods, "pixels": question.picture.width * question.picture.height, "classes": len(question.typed)}


def finished(comparison: Comparison) -> str:
    best = comparison.best()
    if best is not None:
        return f"Done. {comparison.titles[best]} comes closest to the ground truth."
    return "Done."


def side(comparison: Comparison, what: str, opacity: float):
    if what == TRUTH and comparison.truth is not None:
        return comparison.overlay(comparison.truth, opacity)
    found = next((result for result in comparison.results if result.title == what), None)
    return comparison.picture if found is None else comparison.overlay(found.label_map, opacity)


def default_classes(checkpoint: Checkpoint) -> str:
    """The vocabulary to start with, as a person would type it."""
    if checkpoint.class_names is None:
        return PHOTO_CLASSES
    return ", ".join("|".join(synonyms) for synonyms in checkpoint.class_names)


def notes_html(chosen: Sequence[Checkpoint], closed: Sequence[Checkpoint]) -> str:
    """What the chosen checkpoints are; from cards of anybody, so text only."""
    lines = [f"<p><strong>{escape(c.title)}</strong> {escape(c.description)}</p>" for c in chosen if c.description]
    if closed and len(closed) < len(chosen):
        lines.append(f"<p>Own classes only, whatever is typed: {escape(', '.join(c.title for c in closed))}.</p>")
    return "".join(lines)


def note_html(text: str) -> str:
    return f'<p role="note">{escape(text)}</p>' if text else ""


def status_html(text: str) -> str:
    return f'<p role="status" aria-live="polite">{escape(text)}</p>'
