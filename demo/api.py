"""The endpoints for programs: `gradio_client`, `curl`, and language models through MCP.

Every choice is a string, every parameter is described in the docstring that the page's "Use via API" and MCP show, and answers
are plain JSON and files.
"""

import json
import tempfile
from pathlib import Path

import gradio as gr

from hf_clipseg.atomic import replace_file
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL
from hf_clipseg.drawing.comparison import Comparison

from .desk import NO_OVERRIDE, REFINEMENTS, WINDOWS, Desk, facts_of, read_options
from .download import archive, file_name, method_files, png
from .gpu import on_gpu
from .guard import PictureInput, PicturesInput
from .page_compare import comparing, computing
from .page_teach import load_picture
from .teach import ROUNDS, Lesson, split_names, teach


def add_endpoints(desk: Desk) -> None:
    """Adds `/segment`, `/models` and `/teach` to the page that is being built; nothing of them is seen on it."""
    endpoints = Endpoints(desk)
    names = list(desk.bench.checkpoints)
    with gr.Column(visible=False):
        add_segment(desk, endpoints, names)
        models = gr.JSON(label="Models")
        gr.Button("models").click(endpoints.models, None, models, api_name="models", queue=False)
        add_teach(desk, endpoints, names)


def add_segment(desk: Desk, endpoints: "Endpoints", names: list[str]) -> None:
    inputs = [
        PictureInput(label="Picture", type="filepath"),
        gr.Textbox(label="Classes"),
        gr.CheckboxGroup(names, label="Methods"),
        gr.Dropdown([NO_OVERRIDE, *KEEPS_RESIDUAL], value=NO_OVERRIDE, label="Attention"),
        gr.Dropdown(list(WINDOWS), value="whole picture", label="Window"),
        gr.Dropdown(list(REFINEMENTS), value="none", label="Refinement"),
        gr.Number(0, label="Threshold"),
        gr.Textbox("", label="Cut out"),
    ]
    outputs = [gr.JSON(label="Results"), gr.File(label="Label maps", file_count="multiple"), gr.File(label="Archive")]
    gr.Button("segment").click(on_gpu(endpoints.segment), inputs, outputs, api_name="segment", **comparing(desk))


def add_teach(desk: Desk, endpoints: "Endpoints", names: list[str]) -> None:
    inputs = [
        PicturesInput(label="Pictures", file_count="multiple"),
        gr.JSON(label="Tags"),
        PictureInput(label="Test picture", type="filepath"),
        gr.Textbox("", label="Other things"),
        gr.Dropdown(names, label="Model"),
    ]
    outputs = [gr.JSON(label="Result"), gr.File(label="Overlays", file_count="multiple")]
    gr.Button("teach").click(on_gpu(endpoints.teach), inputs, outputs, api_name="teach", **computing(desk))


class Endpoints:
    """What programs call."""

    def __init__(self, desk: Desk):
        self.desk = desk

    def segment(
        self,
        image,
        class_names,
        checkpoints,
        attention=NO_OVERRIDE,
        window="whole picture",
        refinement="none",
        threshold=0.0,
        cut_out="",
        request: gr.Request = None,
    ):
        """Segments a picture by class names with one or more methods.

        Args:
            image: the picture, 20 MB at most; larger ones than 1024 pixels are shrunk to that.
            class_names: commas part classes, bars part synonyms: sky, boat|ship. Ignored by methods with fixed ones.
            checkpoints: names of methods, as /models lists them.
            attention: of the last block of training-free methods: value, sclip, clearclip or naclip.
            window: side of a sliding window in pixels of the model's input: 96, 160, 224 or 336.
            refinement: pamr moves boundaries to the edges of the picture; none leaves them.
            threshold: probability from 0 to 1 below which a pixel is none of the classes; its id is then 255.
            cut_out: a class that the archive also holds as a transparent PNG.

        Returns:
            Per method seconds, and every class with id, name, colour and area; the label maps as index PNGs, whose pixel values
            are those ids, in the same order; and a ZIP of everything.
        """
        desk = self.desk
        with desk.serving("segment", visitor_of(request)) as (ticket, facts):
            options = read_options(attention, window, refinement, check_threshold(threshold), False)
            question = desk.bench.question(image, text_of(class_names), list(checkpoints or ()), options)
            facts |= facts_of(question)
            *_, (comparison, failed) = desk.bench.compare(question, ticket)
            folder = result_folder()
            files = {result.name: method_files(comparison, result) for result in comparison.results}
            records, paths = save_label_maps(comparison, files, folder)
            zipped = folder / "hf-clipseg-results.zip"
            write(zipped, archive(comparison, text_of(cut_out).strip() or None, files))
            size = {"height": comparison.picture.height, "width": comparison.picture.width}
            return size | {"results": records, "errors": failed}, paths, str(zipped)

    def models(self):
        """The methods that /segment can use.

        Returns:
            Per method its name, title, type, what it is, whether it takes any class names, and its own classes.
        """
        return [
            {"name": c.name, "title": c.title, "type": c.model_type, "description": c.description}
            | {"open_vocabulary": c.open_vocabulary, "classes": c.class_names}
            for c in self.desk.bench.checkpoints.values()
        ]

    def teach(self, pictures, tags, test, others="", model=None, request: gr.Request = None):
        """Learns new classes from a few tagged pictures (VPL's vision prototypes), and tries them on another picture.

        Args:
            pictures: three to five per class.
            tags: one entry per picture, in order: a class name, or a list of those that it shows.
            test: a new picture.
            others: what else the pictures show, parted by commas; not taught, and left unpainted.
            model: a training-free method with open vocabulary, as /models lists it.

        Returns:
            The classes, the distances of the pictures' regions to the words and to the prototypes; and two overlays of the test
            picture: by the words, and by the prototypes.
        """
        desk = self.desk
        with desk.serving("teach", visitor_of(request)) as (ticket, facts):
            lesson = read_lesson([load_picture(desk, path) for path in pictures or ()], tags, text_of(others))
            facts["pictures"] = len(lesson.pictures)
            if test is None:
                raise ValueError("There is no test picture.")
            checkpoint = desk.bench.checkpoint(model)
            if checkpoint.model_type != "mask_clip" or not checkpoint.open_vocabulary:
                raise ValueError(f"{checkpoint.name} cannot be taught. Choose a training-free method with open vocabulary.")
            loaded = desk.bench.cache.get(checkpoint.source, ticket.check)
            *_, taught = teach(loaded, lesson, load_picture(desk, test), ticket.check)
            folder = result_folder()
            paths = [folder / "by-text.png", folder / "by-vision.png"]
            for path, picture in zip(paths, (taught.by_text, taught.by_vision), strict=True):
                write(path, png(picture))
            text, vision = taught.gap
            record = {"classes": lesson.class_names, "rounds": ROUNDS, "pictures": len(lesson.pictures)}
            record |= {"distance_to_words": round(text, 4), "distance_to_prototypes": round(vision, 4)}
            return record, [str(path) for path in paths]


def result_folder() -> Path:
    """A new folder that Gradio serves files from, and deletes after a day."""
    return Path(tempfile.mkdtemp(dir=gr.utils.get_upload_folder(), prefix="api-"))


def save_label_maps(comparison: Comparison, files: dict[str, dict[str, bytes]], folder: Path) -> tuple[list[dict], list[str]]:
    """One index PNG per method; what `classes.json` says of each, and the files' paths."""
    records, paths = [], []
    for result in comparison.results:
        path = folder / f"{file_name(result.name)}.labels.png"
        write(path, files[result.name]["labels.png"])
        record = json.loads(files[result.name]["classes.json"])
        records.append(record | {"labels": path.name, "unknown": list(result.unknown)})
        paths.append(str(path))
    return records, paths


def visitor_of(request: gr.Request | None) -> str:
    return getattr(request, "session_hash", None) or ""


def text_of(value) -> str:
    """Class names as text; programs may also send a list of names."""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value):
        return ", ".join(value)
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {type(value).__name__}.")
    return value


def check_threshold(value) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"threshold is {str(value)[:40]}; expected a probability, 0 to 1.")
    return float(value)


def read_lesson(pictures: list, tags, others: str) -> Lesson:
    if not isinstance(tags, list) or len(tags) != len(pictures):
        count = len(tags) if isinstance(tags, list) else "no list of"
        raise ValueError(f"There are {len(pictures)} pictures and {count} tags; every picture needs its own.")
    each = [[tag] if isinstance(tag, str) else tag for tag in tags]
    if not all(isinstance(row, list) and row and all(isinstance(name, str) and name.strip() for name in row) for row in each):
        raise ValueError('Every tag is a class name, or a list of names: ["kite", ["kite", "boat"]].')
    each = [[" ".join(name.split()) for name in row] for row in each]
    names = list(dict.fromkeys(name for row in each for name in row))
    return Lesson(names, pictures, each, split_names(others))


def write(path: Path, content: bytes) -> None:
    with replace_file(path) as partial:
        partial.write_bytes(content)
