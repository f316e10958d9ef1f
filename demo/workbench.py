"""Runs the methods that a visitor has chosen on one picture, one after the other. No Gradio here."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from PIL import Image

from hf_clipseg import CocuForSemanticSegmentation
from hf_clipseg.checkpoint_cache import CheckpointCache
from hf_clipseg.checkpoints import Checkpoint, LoadedCheckpoint, is_cached
from hf_clipseg.clip.text_bank import parse_class_names
from hf_clipseg.drawing.comparison import NONE_OF_THESE, Comparison, Grouping, MethodResult, renumber, shared_names
from hf_clipseg.models.cocu.group_maps import segment_groups
from hf_clipseg.processing.confidence import segment_if_sure
from hf_clipseg.processing.image_io import load_image

from .limits import Limits, RunEnded, Ticket, check_class_count, check_text, without_repeats
from .scenes import truth_of

REWORDED = (
    (r"^The class name '(.+)' is given twice; .*$", r"'\1' is there twice. Remove one, or make both one class: ship|boat"),
    (r"^A class name is empty.*$", "There are two commas or bars with nothing in between. Type a name there, or remove one."),
    (
        r"^The prompt .* tokens and the text encoder reads \d+\. Use .*$",
        "A class name is too long to be read. Use a shorter class name.",
    ),
    (r"^class_names must be a non-empty list.*$", "There are no classes yet. Type some, such as: sky, sea, boat|ship"),
)


@dataclass(frozen=True)
class Options:
    """How the models are run.

    Args:
        attention: of the last block; None leaves it to the checkpoint.
        window: side of sliding windows in pixels of the model's input; None shows the whole picture.
        refinement: of boundaries, as in `segment`.
        threshold: probability below which a pixel is none of the classes; 0 names every pixel.
        show_groups: also return the regions that GroupViT puts together.
    """

    attention: str | None = None
    window: int | None = None
    refinement: str | None = None
    threshold: float = 0.0
    show_groups: bool = False


@dataclass(frozen=True)
class Question:
    """A visitor's request, checked: every checkpoint once, in the order asked for, with the classes it will be asked for."""

    picture: Image.Image
    checkpoints: list[Checkpoint]
    typed: list[list[str]]
    options: Options = field(default_factory=Options)


class Workbench:
    """All checkpoints that are offered, and the models that are in memory. Names are those of `Checkpoint.name`.

    Args:
        checkpoints: in the order of the page.
        asked_for: how many of them, from the first, somebody named when the app was started.
    """

    def __init__(
        self,
        checkpoints: Sequence[Checkpoint],
        limits: Limits | None = None,
        device: str | None = None,
        asked_for: int = 0,
    ):
        self.checkpoints = {checkpoint.name: checkpoint for checkpoint in checkpoints}
        self.asked_for = list(self.checkpoints)[:asked_for]
        self.limits = limits or Limits()
        self.slots = threading.Semaphore(self.limits.at_once)  # of comparisons, method by method
        self.decoding = threading.Semaphore(self.limits.at_once)  # a large picture takes 200 MB while it is decoded
        self.cache = CheckpointCache(device=device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def photographic(self) -> list[str]:
        """Names of the models that know photographs and are on this machine: one per source, as they are offered."""
        first = {c.source: name for name, c in reversed(self.checkpoints.items()) if c.on_hub and is_cached(c.source)}
        return [name for name in self.checkpoints if name in first.values()]

    def question(self, image_file, class_text: str, names: Sequence[str], options: Options | None = None) -> Question:
        """Checks what a visitor asks for, before any model runs.

        Raises:
            ValueError: no picture, no checkpoint, or more than the limits allow; the message names the fix.
        """
        if image_file is None:
            raise ValueError("There is no picture yet. Upload one, or click an example.")
        names = without_repeats(names)
        if not names:
            raise ValueError("No method is chosen. Tick at least one under 'Methods'.")
        chosen = [self.checkpoint(name) for name in names]
        typed = self.read_classes(class_text) if any(checkpoint.open_vocabulary for checkpoint in chosen) else []
        return Question(self.picture(image_file, "The picture"), chosen, typed, options or Options())

    def picture(self, image_file, name: str) -> Image.Image:
        """A picture as the page shows it, RGB. Raises ValueError, which calls it `name`, for one that cannot be read."""
        limits = self.limits
        with self.decoding:
            return load_image(image_file, limits.display_side, max_pixels=limits.decoded_pixels, name=name)

    def checkpoint(self, name: str) -> Checkpoint:
        if name not in self.checkpoints:
            known = ", ".join(self.checkpoints)
            raise ValueError(f"There is no method {str(name)[:60]!r}. Choose among {known}.")
        return self.checkpoints[name]

    def read_classes(self, class_text: str) -> list[list[str]]:
        check_text(class_text, self.limits)
        if not class_text.strip(" ,\n\r\t"):
            raise ValueError("There are no classes yet. Type some, such as: sky, sea, boat|ship")
        try:
            classes = parse_class_names(class_text)
        except ValueError as error:
            raise ValueError(in_visitors_words(error)) from error
        check_class_count(classes, self.limits)
        return classes

    def start(self, question: Question) -> Comparison:
        """The comparison before any method has run: its classes, colours and ground truth are known already."""
        lists = [self.classes_for(checkpoint, question.typed) for checkpoint in question.checkpoints]
        synonyms = {names[0]: names for names in reversed([names for classes in lists for names in classes])}
        shared = shared_names([[names[0] for names in classes] for classes in lists])
        if question.options.threshold > 0:
            shared.append(NONE_OF_THESE)
        truth = truth_of(question.picture, shared)
        return Comparison(question.picture, shared, [synonyms.get(name, [name]) for name in shared], truth, question.typed)

    def compare(self, question: Question, ticket: Ticket) -> Iterator[tuple[Comparison, dict[str, str]]]:
        """The comparison after each method, and a message for each that could not run.

        Raises:
            ValueError: no method could run at all.
            RunEnded: the ticket has ended; the comparison yielded last stays valid.
        """
        comparison, failed = self.start(question), {}
        for checkpoint in question.checkpoints:
            try:
                with ticket.turn(self.slots):
                    comparison = self.add(comparison, checkpoint, question, ticket)
            except RunEnded:
                raise
            except ValueError as error:
                failed[checkpoint.title] = in_visitors_words(error)
                if len(failed) == len(question.checkpoints):
                    raise ValueError(next(iter(failed.values()))) from error
            yield comparison, failed

    def add(self, comparison: Comparison, checkpoint: Checkpoint, question: Question, ticket: Ticket) -> Comparison:
        """Runs one method, and returns the comparison with its result."""
        loaded = self.cache.get(checkpoint.source, ticket.check)
        options = question.options
        with loaded.running(options.attention or checkpoint.attention, ticket.check) as model:
            classes = known_classes(loaded, self.classes_for(checkpoint, question.typed))
            if not classes.to_encode:
                unknown = ", ".join(classes.unknown[:12])
                raise ValueError(f"{checkpoint.title} knows none of these words: {unknown}. Type others.")
            to_encode = None if classes.to_encode == checkpoint.class_names else classes.to_encode
            start = time.perf_counter()
            label_map = segment_if_sure(
                model, loaded.processor, question.picture, to_encode, options.threshold,
                window=options.window, refinement=options.refinement,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            grouping = self.group(model, loaded, checkpoint, question, to_encode) if options.show_groups else None
        label_map = renumber(label_map, [*classes.names, NONE_OF_THESE], comparison.class_names)
        result = MethodResult(checkpoint.name, checkpoint.title, label_map, seconds, tuple(classes.unknown))
        return comparison.adding(result, grouping)

    def group(self, model, loaded, checkpoint: Checkpoint, question: Question, to_encode) -> Grouping | None:
        """What a method with groups has put together; None for the others."""
        if not isinstance(model, CocuForSemanticSegmentation):
            return None
        return Grouping(checkpoint.title, *segment_groups(model, loaded.processor, question.picture, to_encode))

    def classes_for(self, checkpoint: Checkpoint, typed: list[list[str]]) -> list[list[str]]:
        """The typed classes, or its own where its vocabulary is closed."""
        return typed if checkpoint.open_vocabulary else checkpoint.class_names


@dataclass(frozen=True)
class KnownClasses:
    """Of the classes asked for: display names and prompts of those that a checkpoint has words for, and the others."""

    names: list[str]
    to_encode: list[list[str]]
    unknown: list[str]


def known_classes(loaded: LoadedCheckpoint, classes: list[list[str]]) -> KnownClasses:
    """Leaves out the synonyms that the checkpoint's vocabulary lacks, and the classes that have no other name.

    Call it within `loaded.running`: a tokenizer keeps its padding as state, so two threads may not share it.
    """
    words = set(loaded.processor.unknown_words(classes))
    kept = [[name for name in names if not words.intersection(name.split())] for names in classes]
    return KnownClasses(
        [names[0] for names, known in zip(classes, kept, strict=True) if known],
        [known for known in kept if known],
        [names[0] for names, known in zip(classes, kept, strict=True) if not known],
    )


def in_visitors_words(error: Exception) -> str:
    """The library speaks Python ("make both synonyms: ['ship', 'boat']"); a visitor types commas and bars."""
    text = str(error)
    for pattern, replacement in REWORDED:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    return text
