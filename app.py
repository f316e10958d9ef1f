"""The demo: choose a picture, type class names, compare methods side by side.

    python app.py [CHECKPOINT ...]      # folders or Hub ids, beside those in model_cards/

Gradio only: what is shown is computed by `hf_clipseg`. Works offline with the shipped checkpoints. Class names are untrusted
text: they reach the page escaped, or as pixels.
"""

import argparse
import html
import os
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
import torch
from PIL import Image

from hf_clipseg import CocuForSemanticSegmentation, toyscapes
from hf_clipseg.checkpoints import (
    HUB_TIMEOUT,
    SHIPPED,
    Checkpoint,
    CheckpointCache,
    CheckpointError,
    describe_checkpoint,
    find_checkpoints,
    hub_answers,
    is_cached,
)
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL
from hf_clipseg.clip.text_bank import parse_class_names
from hf_clipseg.drawing.comparison import Comparison, Grouping, area_table, share_classes
from hf_clipseg.models.cocu.group_maps import segment_groups
from hf_clipseg.processing.image_io import load_image
from hf_clipseg.processing.inference import segment

HUB_CLIP = "openai/clip-vit-base-patch16"
FIRST_CHECKPOINT = "mask-clip-toyscapes"  # ticked when the page opens, unless the command names others
DISPLAY_SIDE = 1024  # pixels of the longer side; larger pictures are shrunk to it before anything else
LEGEND_ROWS = 40
EXAMPLE_SCENES = (2, 5, 9, 10, 7, 0)  # of Toyscapes' test split
EXAMPLE_SIZE = (384, 512)
PHOTO_CLASSES = (
    "person, dog, cat, horse, cow, sheep, bird, car|automobile, bus, train, bicycle, motorcycle, boat|ship, airplane, chair, "
    "table, sofa|couch, bed, television|screen, bottle, plant, book, food, building|house, road|street, pavement, wall, floor, "
    "window, door, sky, cloud, tree, grass, mountain, water|sea|river, sand|beach, snow, rock, sign"
)
CLASS_INFO = "Commas or new lines part classes, | parts synonyms: boat|ship"
NO_OVERRIDE = "as in the checkpoint"
WINDOWS = [("whole picture", 0), ("96 pixels", 96), ("160 pixels", 160), ("224 pixels", 224), ("336 pixels", 336)]
REFINEMENTS = [("none", ""), ("PAMR: follow the picture's edges", "pamr")]

SYSTEM_FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
THEME = gr.themes.Soft(
    primary_hue="blue",
    secondary_hue="blue",
    neutral_hue="slate",
    font=SYSTEM_FONTS,
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    block_title_background_fill="none",
    block_title_padding="0",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_label_background_fill="*block_background_fill",
    block_label_background_fill_dark="*block_background_fill",
    block_label_text_color="*body_text_color_subdued",
    block_label_text_color_dark="*body_text_color_subdued",
    checkbox_label_background_fill_selected="*primary_50",
    checkbox_label_background_fill_selected_dark="*primary_900",
    checkbox_label_text_color_selected="*body_text_color",
    checkbox_border_color="*neutral_300",
)
LAUNCH = {
    "theme": THEME,
    "css_paths": Path(__file__).with_name("app.css"),
    "footer_links": ["api"],
    "show_error": True,
    "ssr_mode": False,
    "max_file_size": "200mb",
    "state_session_capacity": 200,  # visitors whose last comparison is kept, a few megabytes each
}
SCROLL_TO_RESULT = (
    "() => { if (window.innerWidth < 800) document.getElementById('overlays').scrollIntoView({behavior: 'smooth'}) }"
)


class PictureInput(gr.Image):
    """`gr.Image` that hands over the unopened file, so that a broken one meets `load_image`, whose errors name the fix."""

    is_template = True  # the page draws it as its base class

    def preprocess(self, payload):
        return super().preprocess(payload) if payload is None or payload.path is None else payload.path


@dataclass(frozen=True)
class Options:
    """How the models are run: `attention` None and `window` None leave it to the checkpoint."""

    attention: str | None
    window: int | None
    refinement: str | None
    show_groups: bool = False


class Demo:
    """What the page's events call. Names of checkpoints are those of `Checkpoint.name`."""

    def __init__(self, checkpoints: Sequence[Checkpoint]):
        self.checkpoints = {checkpoint.name: checkpoint for checkpoint in checkpoints}
        self.cache = CheckpointCache(device="cuda" if torch.cuda.is_available() else "cpu")

    def segment(self, image, class_names, checkpoints, opacity, attention, window, refinement, show_groups):
        """Segments an image by class names, once per checkpoint.

        Returns the overlays with their captions, the legend as HTML, and the numbers: seconds and per-class areas.
        """
        with errors_for_people():
            attention = None if attention == NO_OVERRIDE else attention
            options = Options(attention, window or None, refinement or None, show_groups)
            comparison = self.compare(image, class_names, checkpoints, options)
            return comparison.overlays(opacity), legend_html(comparison), comparison.numbers(), comparison

    def compare(self, image_file, class_text: str, names: Sequence[str], options: Options) -> Comparison:
        if image_file is None:
            raise ValueError("There is no picture yet. Upload one, or click an example.")
        if not names:
            raise ValueError("No checkpoint is chosen. Tick at least one under 'Checkpoints'.")
        chosen = [self.checkpoints[name] for name in names]
        typed = parse_class_names(class_text) if any(checkpoint.open_vocabulary for checkpoint in chosen) else []
        picture = load_image(image_file, longest_side=DISPLAY_SIDE)
        runs = [self.run(checkpoint, picture, typed, options) for checkpoint in chosen]
        class_lists = [[synonyms[0] for synonyms in classes_for(checkpoint, typed)] for checkpoint in chosen]
        shared_names, label_maps = share_classes(class_lists, [label_map for label_map, _ in runs])
        titles = [checkpoint.title for checkpoint in chosen]
        groupings = [g for checkpoint in chosen if (g := self.group(checkpoint, picture, typed))] if options.show_groups else []
        return Comparison(picture, shared_names, titles, label_maps, [seconds for _, seconds in runs], groupings)

    def run(self, checkpoint: Checkpoint, picture: Image.Image, typed, options: Options) -> tuple[np.ndarray, float]:
        """Label map `(H, W)` of the picture, and the seconds it took once the checkpoint was loaded."""
        loaded = self.cache.get(checkpoint.source)
        new_classes = classes_to_encode(checkpoint, typed)
        if new_classes and (unknown := loaded.processor.unknown_words(new_classes)):
            gr.Warning(escape(f"{checkpoint.title} does not know these words: {', '.join(unknown[:12])}. Use others for them."))
        with loaded.running(options.attention) as model:
            start = time.perf_counter()
            (label_map,) = segment(
                model,
                loaded.processor,
                [picture],
                class_names=new_classes,
                window=options.window,
                refinement=options.refinement,
            )
        return label_map, time.perf_counter() - start

    def group(self, checkpoint: Checkpoint, picture: Image.Image, typed) -> Grouping | None:
        """What a method with groups has put together; None for the others."""
        loaded = self.cache.get(checkpoint.source)
        with loaded.running() as model:
            if not isinstance(model, CocuForSemanticSegmentation):
                return None
            new_classes = classes_to_encode(checkpoint, typed)
            return Grouping(checkpoint.title, *segment_groups(model, loaded.processor, picture, new_classes))

    def redraw(self, comparison: Comparison | None, opacity: float):
        return gr.skip() if comparison is None else comparison.overlays(opacity)

    def choose(self, names: Sequence[str], class_text: str):
        """The class box and the note below the checkpoints, for a new choice of checkpoints."""
        chosen = [self.checkpoints[name] for name in names if name in self.checkpoints]
        closed = [checkpoint for checkpoint in chosen if not checkpoint.open_vocabulary]
        note = "\n\n".join(f"**{escape(c.title)}** {escape(c.description)}" for c in chosen if c.description)
        if chosen and len(closed) == len(chosen):
            info = "Fixed: the chosen checkpoints know only their own classes."
            return gr.update(value=default_classes(chosen[0]), interactive=False, info=info), note
        if closed:
            note += f"\n\n{', '.join(escape(c.title) for c in closed)}: own classes only, whatever is typed."
        untouched = not class_text.strip() or class_text in map(default_classes, self.checkpoints.values())
        text = default_classes(next(c for c in chosen if c.open_vocabulary)) if chosen and untouched else class_text
        return gr.update(value=text, interactive=True, info=CLASS_INFO), note

    def offer_hub_clip(self, names: Sequence[str]):
        """Called when a page opens: takes back the CLIP on the Hub where it cannot be had, and says so."""
        if HUB_CLIP not in self.checkpoints or is_cached(HUB_CLIP) or hub_answers():
            return gr.skip(), ""
        choices = [(c.title, name) for name, c in self.checkpoints.items() if name != HUB_CLIP]
        note = (
            f"`{HUB_CLIP}` is not offered: the Hugging Face Hub did not answer within {HUB_TIMEOUT:g} s and the model is not "
            "in the local cache. "
        )
        note += "All other checkpoints work offline." if choices else "Nor is there any other: `python app.py FOLDER` adds one."
        return gr.CheckboxGroup(choices=choices, value=[name for name in names if name != HUB_CLIP]), note


def default_classes(checkpoint: Checkpoint) -> str:
    """The vocabulary to start with, as a person would type it."""
    if checkpoint.class_names is None:
        return PHOTO_CLASSES
    return ", ".join("|".join(synonyms) for synonyms in checkpoint.class_names)


def classes_for(checkpoint: Checkpoint, typed: list[list[str]]) -> list[list[str]]:
    return typed if checkpoint.open_vocabulary else checkpoint.class_names


def classes_to_encode(checkpoint: Checkpoint, typed: list[list[str]]) -> list[list[str]] | None:
    """None where the classes are those that the checkpoint has with it."""
    classes = classes_for(checkpoint, typed)
    return None if classes == checkpoint.class_names else classes


def escape(text: str) -> str:
    return html.escape(text, quote=False)


@contextmanager
def errors_for_people():
    """What a visitor can put right becomes a message on the page; messages are HTML there, and quote what was typed."""
    try:
        yield
    except ValueError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error


def legend_html(comparison: Comparison) -> str:
    """Colour, name and area of every class that occurs, one column per checkpoint."""
    rows = area_table(comparison.label_maps, comparison.class_names)
    head = "".join(f"<th>{escape(title)}</th>" for title in comparison.titles)
    body = "".join(legend_row(*row) for row in rows[:LEGEND_ROWS])
    if len(rows) > LEGEND_ROWS:
        body += f'<tr><td class="name">and {len(rows) - LEGEND_ROWS} smaller ones</td></tr>'
    return f"<table><thead><tr><th>Class</th>{head}</tr></thead><tbody>{body}</tbody></table>"


def legend_row(name: str, color: str, shares: Sequence[float]) -> str:
    cells = "".join(
        f'<td class="share">{share:.1%}<b style="width:{share:.1%};background:{color}"></b></td>' for share in shares
    )
    return f'<tr><td class="name" title="{html.escape(name)}"><i style="background:{color}"></i>{escape(name)}</td>{cells}</tr>'


def example_scenes() -> list[Image.Image]:
    return [Image.fromarray(toyscapes.render(0, index, *EXAMPLE_SIZE, split="test").image) for index in EXAMPLE_SCENES]


def build_app(folder: str | os.PathLike = SHIPPED, extra: Sequence[str] = ()) -> gr.Blocks:
    """The page. Offers the checkpoints in the sub-folders of `folder`, those of `extra` (folders or Hub ids), and CLIP."""
    found = sorted(find_checkpoints(folder), key=lambda checkpoint: checkpoint.name != FIRST_CHECKPOINT)
    demo = Demo([*map(describe_checkpoint, extra), *found, clip_from_hub()])
    with gr.Blocks(title="hf_clipseg", analytics_enabled=False, delete_cache=(3600, 86400)) as app:
        gr.Markdown("# Segment anything you can name\nCLIP-based semantic segmentation, method by method.", elem_id="title")
        result = gr.State()
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                inputs, choice_note, button = input_column(demo)
            with gr.Column(scale=6, min_width=320):
                overlays, legend, numbers, opacity = output_column()
        hub_note = gr.Markdown(elem_classes="quiet")
        image, class_names, checkpoints, *options = inputs
        button.click(
            demo.segment,
            [image, class_names, checkpoints, opacity, *options],
            [overlays, legend, numbers, result],
            api_name="segment",
            concurrency_limit=1,
        )
        button.click(None, js=SCROLL_TO_RESULT)
        redraw = {"trigger_mode": "always_last", "show_progress": "hidden", "api_visibility": "private"}
        opacity.change(demo.redraw, [result, opacity], overlays, **redraw)
        notes = {"show_progress": "hidden", "api_visibility": "private"}
        checkpoints.input(demo.choose, [checkpoints, class_names], [class_names, choice_note], **notes)
        app.load(demo.offer_hub_clip, checkpoints, [checkpoints, hub_note], **notes)
    return app


def clip_from_hub() -> Checkpoint:
    return Checkpoint(HUB_CLIP, HUB_CLIP, "CLIP ViT-B/16, OpenAI", "Real CLIP weights from the Hub, read by MaskCLIP.")


def input_column(demo: Demo):
    """Returns the inputs of `Demo.segment` but opacity, the note on them, and the button."""
    scenes = example_scenes()
    choices = [(checkpoint.title, name) for name, checkpoint in demo.checkpoints.items()]
    first = next(name for name, checkpoint in demo.checkpoints.items() if checkpoint.open_vocabulary)
    class_box, note = demo.choose([first], "")
    image = PictureInput(
        scenes[0], format="png", label="Picture", sources=["upload", "clipboard"], height=300, elem_id="picture"
    )
    gr.Examples([[scene] for scene in scenes], image, label="Toyscapes scenes (any photograph works too)", elem_id="examples")
    box = {key: class_box[key] for key in ("value", "info", "interactive")}
    class_names = gr.Textbox(label="Classes", lines=3, max_lines=8, elem_id="classes", **box)
    checkpoints = gr.CheckboxGroup(
        choices, value=[first], label="Checkpoints", info="Several are compared side by side", elem_id="checkpoints"
    )
    button = gr.Button("Segment", variant="primary", size="lg")
    with gr.Accordion("Options", open=False):
        attention = gr.Dropdown([NO_OVERRIDE, *KEEPS_RESIDUAL], label="Attention of the last block", value=NO_OVERRIDE)
        window = gr.Dropdown(WINDOWS, label="Sliding window", value=0)
        refinement = gr.Radio(REFINEMENTS, label="Refinement", value="")
        show_groups = gr.Checkbox(label="Show groups", info="CoCu, GroupViT: which regions belong together", elem_id="groups")
    choice_note = gr.Markdown(note, elem_classes="quiet")
    return [image, class_names, checkpoints, attention, window, refinement, show_groups], choice_note, button


def output_column():
    """Returns overlays, legend, numbers and opacity."""
    overlays = gr.Gallery(
        label="Overlays", show_label=False, object_fit="contain", height="auto", interactive=False, elem_id="overlays"
    )
    opacity = gr.Slider(0, 1, 0.55, step=0.05, label="Opacity of the classes", elem_id="opacity")
    empty = '<p class="empty">Press <strong>Segment</strong>: overlay, legend and areas appear here.</p>'
    legend = gr.HTML(empty, label="Legend", container=True, padding=True, elem_id="legend")
    with gr.Accordion("Numbers", open=False):
        numbers = gr.JSON(label="Numbers", show_label=False)
    return overlays, legend, numbers, opacity


def main() -> None:
    parser = argparse.ArgumentParser(description="Segment pictures by class names in the browser.")
    parser.add_argument("checkpoints", nargs="*", help="checkpoint folders or Hub ids, beside those in model_cards/")
    try:
        app = build_app(extra=parser.parse_args().checkpoints)
    except CheckpointError as error:
        parser.error(str(error))
    app.launch(**LAUNCH)


if __name__ == "__main__":
    main()
