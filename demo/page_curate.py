"""The page's third tab: what the captions of a few pictures leave out."""

from collections.abc import Sequence
from html import escape

import gradio as gr

from .curate import Archive, Captioned, PoolCache, curate, toy_examples, vocabulary_for
from .desk import Desk
from .gpu import on_gpu
from .guard import PicturesInput
from .limits import check_text
from .page_compare import computing
from .page_teach import load_picture, teachable
from .tiles import data_url

THUMBNAIL = 240
INTRO = (
    "<p>Captions name a part of what a picture shows, and models learn from nothing else. CoCu looks at the captions of "
    "similar pictures and keeps the concepts that fit. Those that the caption left out are in bold. "
    '<a href="https://arxiv.org/abs/2309.13505" target="_blank" rel="noopener">arXiv 2309.13505</a></p>'
)


def curate_tab(desk: Desk) -> None:
    pools = PoolCache()
    gr.HTML(INTRO, elem_classes="quiet")
    with gr.Row():
        with gr.Column(scale=4, min_width=320):
            files = PicturesInput(
                label="Pictures", file_count="multiple", file_types=["image"], height=140, elem_id="captioned"
            )
            captions = gr.Textbox(label="Captions", info="One line per picture, in their order", lines=4, elem_id="captions")
            choices = teachable(desk)
            model = gr.Dropdown(choices, value=choices[0][1] if choices else None, label="CLIP", elem_id="curator")
            run = gr.Button("Find what is left out", variant="primary", size="lg", elem_id="curate")
            toys = gr.Button("Show it on scenes", size="lg", elem_id="curate-toys")
        with gr.Column(scale=7, min_width=320):
            result = gr.HTML('<p class="empty">The pictures with their concepts appear here.</p>', elem_id="archives")
    events = {"api_visibility": "private", "show_progress": "minimal", **computing(desk)}

    def own(model: str, files, captions: str, request: gr.Request):
        with desk.serving("curate", request.session_hash or "") as (ticket, facts):
            check_text(captions, desk.bench.limits, "The box of captions")
            items = captioned_from([load_picture(desk, file) for file in files or ()], captions)
            facts["pictures"] = len(items)
            return answer(model, items, ticket)

    def scenes(model: str, request: gr.Request):
        with desk.serving("curate", request.session_hash or "") as (ticket, facts):
            facts["pictures"] = len(toy_examples())
            return answer(model, toy_examples(), ticket)

    def answer(model: str, items: Sequence[Captioned], ticket) -> str:
        checkpoint = desk.bench.checkpoint(model)
        loaded = desk.bench.cache.get(checkpoint.source, ticket.check)
        is_toy = checkpoint.class_names is not None
        pool = pools.get(checkpoint.source, loaded, ticket.check) if is_toy else None
        return archives_html(curate(loaded, items, vocabulary_for(is_toy), pool, ticket.check))

    run.click(on_gpu(own), [model, files, captions], result, **events)
    toys.click(on_gpu(scenes), model, result, **events)


def captioned_from(pictures: Sequence, text: str) -> list[Captioned]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != len(pictures):
        raise ValueError(f"There are {len(pictures)} pictures and {len(lines)} captions. Write one line per picture.")
    return [Captioned(picture, line) for picture, line in zip(pictures, lines, strict=True)]


def archives_html(archives: Sequence[Archive]) -> str:
    return f'<div class="archives">{"".join(map(archive_html, archives))}</div>'


def archive_html(archive: Archive) -> str:
    """A picture, its caption, and its concepts; what a scene truly shows has a tick."""
    picture = archive.captioned.picture.copy()
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    shown = archive.captioned.shown

    def mark(name: str) -> str:
        return " ✓" if shown is not None and name in shown else ""

    named = "".join(f"<li>{escape(name)}{mark(name)}</li>" for name in archive.named)
    found = "".join(f"<li><b>{escape(name)}{mark(name)}</b> <small>{score:.2f}</small></li>" for name, score in archive.found)
    image = data_url(picture, "WEBP", quality=85)
    caption = escape(archive.captioned.caption)
    return (
        f'<article><img src="{image}" alt="{escape(archive.captioned.caption, quote=True)}"><p>“{caption}”</p>'
        f'<ul aria-label="concepts">{named}{found}</ul></article>'
    )
