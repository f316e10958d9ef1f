"""The page's first tab: a picture and class names on the left, what every method makes of them on the right."""

from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL

from .class_lists import CLASS_LISTS
from .desk import NO_OVERRIDE, PHOTOGRAPH, WINDOWS, Desk
from .gpu import on_gpu
from .guard import PictureInput
from .insight import METHODS
from .scenes import SCENES, photographs, scene_picture, thumbnails
from .tiles import EMPTY_LEGEND

OPENING = ("mta-clip-toyscapes", "mvp-seg-plus-toyscapes", "vpl-toyscapes", "mask-clip-toyscapes")
"""Ticked when the page opens: the methods that do best on the example scenes, and the baseline."""

COMPUTING = "models"  # events that run models share one limit
COMPARING = "comparisons"
SCROLL_TO_RESULT = (
    "() => { if (window.innerWidth < 800) document.getElementById('status').scrollIntoView({behavior: 'smooth'}) }"
)
PAPER = '<p class="idea">{idea} <a href="https://arxiv.org/abs/{paper}" target="_blank" rel="noopener">arXiv {paper}</a></p>'


@dataclass
class Parts:
    """The components of the tab that events connect."""

    image: gr.Image
    classes: gr.Textbox
    methods: gr.CheckboxGroup
    options: list
    run: gr.Button
    stop: gr.Button
    opacity: gr.Slider
    preset: gr.Dropdown
    note: gr.HTML
    hub_note: gr.HTML
    examples: list = field(default_factory=list)
    outputs: list = field(default_factory=list)


def compare_tab(page: gr.Blocks, desk: Desk) -> None:
    """Lays out the tab and connects its events."""
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            parts = input_column(desk)
        with gr.Column(scale=7, min_width=320):
            connect_results(desk, parts)
    connect_inputs(page, desk, parts)


def opening_choice(desk: Desk) -> list[str]:
    """Names of the methods that are ticked first: what the app was started with, two real models where they are at hand, and
    the best of the shipped ones."""
    shipped = [name for name in OPENING if name in desk.bench.checkpoints]
    known = list(dict.fromkeys([*desk.bench.asked_for, *desk.bench.photographic()[:2], *shipped]))
    return known or [next(name for name, c in desk.bench.checkpoints.items() if c.open_vocabulary)]


def input_column(desk: Desk) -> Parts:
    ticked = opening_choice(desk)
    class_box, note = desk.choose(ticked, "")
    first = next(iter(SCENES))
    image = PictureInput(
        scene_picture(first), format="png", label="Picture", sources=["upload", "webcam", "clipboard"], height=280,
        elem_id="picture", buttons=["fullscreen"],
    )  # fmt: skip
    examples = example_buttons(photographs_first=bool(desk.bench.photographic()))
    hub_note = gr.HTML(elem_classes="quiet", elem_id="hub-note")
    box = {key: class_box[key] for key in ("value", "info", "interactive")}
    classes = gr.Textbox(label="Classes", lines=3, max_lines=8, elem_id="classes", **box)
    preset = gr.Dropdown(list(CLASS_LISTS), value=None, label="Start from a list", elem_id="preset")
    choices = [(checkpoint.title, name) for name, checkpoint in desk.bench.checkpoints.items()]
    methods = gr.CheckboxGroup(
        choices, value=ticked, label="Methods", info="All that are ticked are compared", elem_id="methods"
    )
    with gr.Row(elem_id="run-row"):
        run = gr.Button("Compare", variant="primary", size="lg", elem_id="run")
        stop = gr.Button("Stop", variant="stop", size="lg", elem_id="stop", min_width=80, scale=0)
    options = option_boxes()
    with gr.Accordion("About the ticked methods", open=False):
        note_box = gr.HTML(note, elem_classes="quiet", elem_id="about")
    opacity = gr.Slider(0, 1, 0.55, step=0.05, label="Opacity of the classes", elem_id="opacity", render=False)
    return Parts(image, classes, methods, options, run, stop, opacity, preset, note_box, hub_note, examples)


def option_boxes() -> list:
    """Attention, window, refinement, threshold and groups, in the order of `Desk.compare`."""
    with gr.Accordion("Options", open=False):
        attention = gr.Dropdown(
            [NO_OVERRIDE, *KEEPS_RESIDUAL], label="Attention of the last block", value=NO_OVERRIDE, elem_id="attention"
        )
        window = gr.Dropdown(list(WINDOWS), label="Sliding window, pixels", value="whole picture")
        refinement = gr.Radio(
            [("none", "none"), ("PAMR: follow the picture's edges", "pamr")], label="Refinement", value="none"
        )
        threshold = gr.Slider(
            0, 0.95, 0, step=0.05, label="None of these", info="Leave pixels unpainted that are less probable than this",
            elem_id="threshold",
        )  # fmt: skip
        groups = gr.Checkbox(label="Show groups", info="CoCu, GroupViT: which regions belong together", elem_id="groups")
    return [attention, window, refinement, threshold, groups]


def example_buttons(photographs_first: bool) -> list[tuple[gr.Button, int | str, str]]:
    """Buttons with a thumbnail and a name: `(button, scene index or path, classes)`."""
    drawn = [(index, title, "") for index, title in SCENES.items()]
    real = [(photograph.path, photograph.title, photograph.class_text) for photograph in photographs()]
    offered = [*real, *drawn] if photographs_first else [*drawn, *real]
    icons = thumbnails()
    gr.set_static_paths([Path(next(iter(icons.values()))).parent])
    with gr.Row(elem_id="examples"):
        return [
            (gr.Button(title, icon=icons[source], size="sm", min_width=84, elem_classes="example"), source, class_text)
            for source, title, class_text in offered
        ]


def connect_results(desk: Desk, parts: Parts) -> None:
    """The right column: status, tiles, slider, what each method sees, and downloads."""
    status = gr.HTML(elem_id="status", elem_classes="quiet")
    result = gr.State()
    with gr.Tabs(overflow_behavior="wrap"):
        with gr.Tab("Side by side"):
            tiles = gr.HTML(elem_id="tiles", js_on_load=None)
            parts.opacity.render()
            legend = gr.HTML(EMPTY_LEGEND, elem_id="legend", js_on_load=None)
        with gr.Tab("Slider") as slider_tab:
            with gr.Row():
                left = gr.Dropdown([PHOTOGRAPH], value=PHOTOGRAPH, label="Left", elem_id="left", min_width=220)
                right = gr.Dropdown([PHOTOGRAPH], value=PHOTOGRAPH, label="Right", elem_id="right", min_width=220)
            slider = gr.ImageSlider(label="Drag the line", type="filepath", format="webp", elem_id="slider", interactive=False)
        with gr.Tab("What they see"):
            insight_tabs(desk, result)
        with gr.Tab("Take away"):
            gr.HTML(
                "<p>One ZIP: per method the label map as an index PNG and in colours, and classes.json; the picture; all "
                "numbers. Programs get the same from the API, endpoint <code>/segment</code>.</p>"
            )
            cut_out = gr.Dropdown([], label="Also cut out this class", info="transparent PNG", elem_id="cut-out")
            button = gr.Button("Make the ZIP", elem_id="make-zip")
            archive = gr.File(label="Results", interactive=False, elem_id="archive")
            numbers = gr.JSON(label="Numbers")
    parts.outputs = [tiles, legend, numbers, result, status]
    private = {"api_visibility": "private", "show_progress": "hidden"}
    button.click(desk.download, [result, cut_out], archive, api_visibility="private")
    sides = [result, left, right, parts.opacity]
    result.change(desk.sides, result, [left, right, cut_out], **private)
    for event in (slider_tab.select, left.change, right.change):
        event(desk.slide, sides, slider, trigger_mode="always_last", **private)
    parts.opacity.release(desk.redraw, [result, parts.opacity], tiles, trigger_mode="always_last", **private)


def insight_tabs(desk: Desk, result: gr.State) -> None:
    """One tab per method that a checkpoint is there for; its pictures are made when the tab is opened."""
    present = {checkpoint.model_type for checkpoint in desk.bench.checkpoints.values()}
    gr.HTML('<p class="quiet">Opening a tab looks at the picture of the last comparison through that method.</p>')
    with gr.Tabs(selected="none", overflow_behavior="wrap", elem_id="insight-tabs"):
        for model_type, method in METHODS.items():
            if model_type not in present:
                continue
            with gr.Tab(method.title, id=model_type) as tab:
                gr.HTML(PAPER.format(idea=method.idea, paper=method.paper))
                again = gr.Button("Look", size="sm", elem_id=f"see-{model_type}")
                gallery = gr.Gallery(
                    label=f"What {method.title} sees", show_label=False, object_fit="contain", height="auto", columns=3,
                    format="webp", interactive=False, elem_classes="insight",
                )  # fmt: skip
            for event in (tab.select, again.click):
                event(on_gpu(see_with(desk, model_type)), result, gallery, api_visibility="private", **computing(desk))


def see_with(desk: Desk, model_type: str):
    def see(comparison, request: gr.Request):
        return desk.see(model_type, comparison, request)

    return see


def computing(desk: Desk) -> dict:
    """Settings of every event that runs models, but for comparisons."""
    return {"concurrency_id": COMPUTING, "concurrency_limit": desk.bench.limits.at_once}


def comparing(desk: Desk) -> dict:
    """Settings of comparisons: many are admitted, so that refusals come at once; the workbench limits what is run."""
    return {"concurrency_id": COMPARING, "concurrency_limit": desk.bench.limits.admitted}


def connect_inputs(page: gr.Blocks, desk: Desk, parts: Parts) -> None:
    """Compare, Stop, examples, and the boxes that follow one another."""
    private = {"api_visibility": "private", "show_progress": "hidden"}
    inputs = [parts.image, parts.classes, parts.methods, parts.opacity, *parts.options]
    run = {"fn": on_gpu(desk.compare), "inputs": inputs, "outputs": parts.outputs, **private, **comparing(desk)}
    parts.run.click(**run)
    parts.run.click(None, js=SCROLL_TO_RESULT, api_visibility="private")
    parts.stop.click(desk.stop, None, parts.outputs[-1], queue=False, **private)
    parts.image.input(desk.clear, None, parts.outputs, **private)
    for button, picture, class_text in parts.examples:
        chosen = button.click(
            example_with(desk, picture, class_text), parts.methods, [parts.image, parts.classes, parts.methods], **private
        )
        chosen.success(**run)
    parts.methods.input(desk.choose, [parts.methods, parts.classes], [parts.classes, parts.note], **private)
    parts.preset.input(preset_text, parts.preset, parts.classes, **private)
    opened = page.load(
        on_gpu(desk.open),
        [parts.opacity, parts.image, parts.classes, parts.methods],
        parts.outputs,
        **private,
        **computing(desk),
    )
    opened.then(desk.offer_hub, parts.methods, [parts.methods, parts.hub_note], **private)


def preset_text(title: str | None):
    """Classes of a list; the box sends nothing where the keyboard only passes through it, and then nothing changes."""
    return CLASS_LISTS.get(title or "", gr.skip())


def example_with(desk: Desk, picture: int | str, class_text: str):
    """The event of an example: its picture, its classes (the chosen methods' where it has none), and the methods.

    Photographs are shown to the models that know them, where any is at hand.
    """

    def pick(names: list[str]):
        if isinstance(picture, str):
            names = desk.bench.photographic() or names
        box, _ = desk.choose(names, class_text)
        return (scene_picture(picture) if isinstance(picture, int) else picture), box, names

    return pick
