"""The page's second tab: teach a model new classes with a few pictures."""

from html import escape

import gradio as gr

from .desk import Desk
from .gpu import on_gpu
from .guard import PictureInput, PicturesInput
from .limits import check_picture_count
from .page_compare import computing
from .scenes import scene_picture
from .teach import ROUNDS, TOY_CLASSES, TOY_OTHERS, Taught, check_lesson, lesson_from, teach, toy_lesson

ROWS = 4
TEST_SCENE = 16  # a boat
INTRO = (
    "<p>Drop three to five pictures per class and name them. VPL then replaces what CLIP thinks a word looks like by what your "
    "pictures look like, in three rounds, while you watch. Nothing is stored. "
    '<a href="https://arxiv.org/abs/2412.19650" target="_blank" rel="noopener">arXiv 2412.19650</a></p>'
)


def teach_tab(desk: Desk) -> None:
    gr.HTML(INTRO, elem_classes="quiet")
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            names, files = lesson_rows()
            others = gr.Textbox(
                TOY_OTHERS, label="What else the pictures show", info="Not taught, and left unpainted", elem_id="teach-others"
            )
            choices = teachable(desk)
            model = gr.Dropdown(choices, value=choices[0][1] if choices else None, label="Model that learns", elem_id="learner")
        with gr.Column(scale=7, min_width=320):
            test = PictureInput(scene_picture(TEST_SCENE), format="png", label="New picture to try it on", height=240)
            with gr.Row():
                run = gr.Button("Teach", variant="primary", size="lg", elem_id="teach")
                toys = gr.Button("Teach kite, mushroom and boat", size="lg", elem_id="teach-toys")
            status = gr.HTML(elem_id="teach-status", elem_classes="quiet")
            shown = gr.Gallery(
                label="By text and by vision prototypes", show_label=False, object_fit="contain", height="auto", columns=2,
                format="webp", interactive=False, elem_id="taught",
            )  # fmt: skip
    events = {"api_visibility": "private", "show_progress": "hidden", **computing(desk)}
    run.click(on_gpu(teach_with(desk)), [model, test, others, *names, *files], [status, shown], **events)
    toys.click(on_gpu(teach_toys_with(desk)), [model, test], [status, shown], **events)


def lesson_rows() -> tuple[list[gr.Textbox], list[PicturesInput]]:
    names, files = [], []
    for row in range(ROWS):
        with gr.Row(elem_classes="lesson"):
            placeholder = TOY_CLASSES[row] if row < len(TOY_CLASSES) else "another class"
            names.append(gr.Textbox(label=f"Class {row + 1}", placeholder=placeholder, min_width=110, scale=1))
            box = PicturesInput(
                label=f"Pictures of class {row + 1}", file_count="multiple", file_types=["image"], height=150, min_width=150
            )
            files.append(box)
    return names, files


def teachable(desk: Desk) -> list[tuple[str, str]]:
    """Checkpoints that compare patches with texts, so that prototypes can take the place of the texts."""
    return [(c.title, name) for name, c in desk.bench.checkpoints.items() if c.model_type == "mask_clip" and c.open_vocabulary]


def teach_with(desk: Desk):
    def run(request: gr.Request, model: str, test, others: str, *rows):
        with desk.serving("teach", request.session_hash or "") as (ticket, facts):
            names, files = rows[:ROWS], rows[ROWS:]
            check_picture_count(sum(len(row or ()) for row in files), desk.bench.limits)
            pictures = [[load_picture(desk, file) for file in row or ()] for row in files]
            lesson = lesson_from(names, pictures, others)
            facts["pictures"] = len(lesson.pictures)
            check_lesson(lesson)
            yield from stream(desk, model, lesson, test, ticket)

    return run


def teach_toys_with(desk: Desk):
    def run(model: str, test, request: gr.Request):
        with desk.serving("teach", request.session_hash or "") as (ticket, facts):
            lesson = toy_lesson()
            facts["pictures"] = len(lesson.pictures)
            yield from stream(desk, model, lesson, test, ticket)

    return run


def stream(desk: Desk, model: str, lesson, test, ticket):
    """The status line and the gallery, after every round."""
    if test is None:
        raise ValueError("There is no picture to try it on. Upload one on the right.")
    yield status_html(f"Learning from {len(lesson.pictures)} pictures …"), []
    loaded = desk.bench.cache.get(desk.bench.checkpoint(model).source, ticket.check)
    picture = load_picture(desk, test)
    for taught in teach(loaded, lesson, picture, ticket.check):
        yield status_html(progress(taught, len(lesson.pictures))), gallery(taught)


def load_picture(desk: Desk, file):
    return desk.bench.picture(file, "A picture")


def progress(taught: Taught, num_pictures: int) -> str:
    text, vision = taught.gap
    done = "Learnt" if taught.rounds == ROUNDS else f"Round {taught.rounds} of {ROUNDS}"
    return (
        f"{done} from {num_pictures} pictures. Your pictures' regions are {vision:.2f} from their vision prototypes, and were "
        f"{text:.2f} from the words."
    )


def gallery(taught: Taught) -> list:
    def caption(title: str, score: float | None) -> str:
        return title if score is None else f"{title}, mIoU of the taught classes {score:.2f}"

    return [
        (taught.by_text, caption("by the words", taught.text_score)),
        (taught.by_vision, caption(f"by your pictures, round {taught.rounds}", taught.vision_score)),
    ]


def status_html(text: str) -> str:
    return f'<p role="status" aria-live="polite">{escape(text)}</p>'
