"""Results as HTML: one tile per method, and the legend. Class names and titles are untrusted text: all of it is escaped."""

import base64
import io
import json
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from hf_clipseg.drawing.comparison import NO_TRUTH, Comparison, Grouping, area_table, disagreement, heat_map
from hf_clipseg.drawing.overlay import overlay

LEGEND_ROWS = 40
EMPTY_LEGEND = '<p class="empty">The classes, with their colours and areas, appear here.</p>'


def tiles_html(
    comparison: Comparison, opacity: float, waiting: Sequence[str] = (), failed: dict[str, str] | None = None
) -> str:
    """Ground truth, methods, groups, disagreement; then what is still to come, and what could not run."""
    tiles = []
    if comparison.truth is not None:
        tiles.append(tile(comparison, comparison.truth, opacity, "Ground truth", "what the scene was drawn with"))
    best, scores, agreements = comparison.best(), comparison.scores(), comparison.agreements()
    for index, result in enumerate(comparison.results):
        facts = facts_of(result.seconds, scores[index], agreements[index])
        tiles.append(tile(comparison, result.label_map, opacity, result.title, facts, is_best=index == best))
    for grouping in comparison.groupings:
        picture = grouping_overlay(comparison, grouping, opacity)
        tiles.append(picture_tile(picture, f"{grouping.title}: groups", "regions that it puts together"))
    if len(comparison.results) > 1 and not waiting:
        differing = disagreement(comparison.label_maps)
        share = f"{np.mean(differing > 0):.0%} of the pixels"
        tiles.append(picture_tile(heat_map(comparison.picture, differing), "Where they disagree", share))
    tiles += [waiting_tile(comparison, title) for title in waiting]
    tiles += [failed_tile(title, message) for title, message in (failed or {}).items()]
    names = escape(json.dumps(comparison.class_names), quote=True)
    return f'<div class="tiles" data-names="{names}">{"".join(tiles)}</div>'


def facts_of(seconds: float, score: float | None, agreement: float | None) -> str:
    """The line under a tile: mIoU where there is ground truth, otherwise how far the others agree."""
    if score is not None:
        return f"mIoU {score:.2f} · {seconds:.2f} s"
    return f"{seconds:.2f} s" if agreement is None else f"{agreement:.0%} as the others · {seconds:.2f} s"


def tile(comparison: Comparison, label_map: np.ndarray, opacity: float, title: str, facts: str, is_best: bool = False) -> str:
    """A picture that the page's script can isolate classes in."""
    present = comparison.areas(label_map)
    largest = ", ".join(f"{name} {share:.0%}" for name, share in list(present.items())[:6])
    image = data_url(comparison.overlay(label_map, opacity), "WEBP", quality=88, method=2)
    ids = data_url(ids_picture(label_map), "PNG")
    badge = '<b class="badge">best here</b>' if is_best else ""
    alt = escape(f"{title}: {largest}", quote=True)
    return (
        f'<figure class="tile{" best" if is_best else ""}" data-ids="{ids}"><div class="stage"><img src="{image}" alt="{alt}">'
        f'<canvas width="0" height="0" aria-hidden="true"></canvas><span class="under" aria-hidden="true"></span></div>'
        f"<figcaption><span>{escape(title)}</span>{badge}<small>{escape(facts)}</small></figcaption></figure>"
    )


def picture_tile(picture: Image.Image, title: str, facts: str) -> str:
    image = data_url(picture, "WEBP", quality=88, method=2)
    return (
        f'<figure class="tile"><div class="stage"><img src="{image}" alt="{escape(title, quote=True)}"></div>'
        f"<figcaption><span>{escape(title)}</span><small>{escape(facts)}</small></figcaption></figure>"
    )


def waiting_tile(comparison: Comparison, title: str) -> str:
    width, height = comparison.picture.size
    return (
        f'<figure class="tile waiting"><div class="stage" style="aspect-ratio:{width}/{height}">'
        '<span class="spinner"></span></div>'
        f"<figcaption><span>{escape(title)}</span><small>waiting</small></figcaption></figure>"
    )


def failed_tile(title: str, message: str) -> str:
    caption = f"<figcaption><span>{escape(title)}</span></figcaption>"
    return f'<figure class="tile failed" role="alert"><p>{escape(message)}</p>{caption}</figure>'


def grouping_overlay(comparison: Comparison, grouping: Grouping, opacity: float) -> Image.Image:
    return overlay(comparison.picture, grouping.label_map, grouping.names, opacity)


def ids_picture(label_map: np.ndarray) -> Image.Image:
    """Ids as colours that a canvas can read: the low byte is red, the high byte green."""
    ids = label_map.astype(np.uint16)
    return Image.fromarray(np.stack([ids & 255, ids >> 8, np.zeros_like(ids)], axis=2).astype(np.uint8))


def data_url(picture: Image.Image, file_format: str, **options) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def legend_html(comparison: Comparison) -> str:
    """Colour, name and area of every class that occurs, one column per method; the name is a button that isolates it."""
    titles, maps = without_common_ending(comparison.titles), comparison.label_maps
    if comparison.truth is not None:
        titles, maps = ["Ground truth", *titles], [comparison.truth, *maps]
    if not maps:
        return EMPTY_LEGEND
    rows = area_table(maps, comparison.class_names, ignored=(NO_TRUTH,))
    ids = {name: index for index, name in enumerate(comparison.class_names)}
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    body = score_row(comparison) + "".join(
        legend_row(ids[name], name, color, shares) for name, color, shares in rows[:LEGEND_ROWS]
    )
    if len(rows) > LEGEND_ROWS:
        body += f'<tr><th scope="row" class="name">and {len(rows) - LEGEND_ROWS} smaller ones</th></tr>'
    return (
        '<div class="scroll" role="region" aria-label="Classes and areas" tabindex="0"><table>'
        f'<thead><tr><th scope="col">Class</th>{head}</tr></thead><tbody>{body}</tbody></table></div>{unknown_html(comparison)}'
    )


def without_common_ending(titles: Sequence[str]) -> list[str]:
    """Columns are narrow: the last words that all methods share, as in "VPL on Toyscapes", say nothing there."""
    words = [title.split() for title in titles]
    shared = 0
    while len(words) > 1 and len({row[-1 - shared] if len(row) > shared + 1 else id(row) for row in words}) == 1:
        shared += 1
    return [" ".join(row[: len(row) - shared]) for row in words]


def legend_row(class_id: int, name: str, color: str, shares: Sequence[float]) -> str:
    cells = "".join(
        f'<td>{share:.1%}<b style="width:{share:.1%};background:{color}"></b></td>' if share else "<td>\u2013</td>"
        for share in shares
    )
    label = escape(name, quote=True)
    return (
        f'<tr data-class="{class_id}"><th scope="row" class="name"><button type="button" aria-pressed="false" title="{label}">'
        f'<i style="background:{color}"></i>{escape(name)}</button></th>{cells}</tr>'
    )


def score_row(comparison: Comparison) -> str:
    scores = comparison.scores()
    if None in scores or not scores:
        return ""
    cells = "".join(f"<td><strong>{score:.2f}</strong></td>" for score in scores)
    return f'<tr class="score"><th scope="row" class="name">mIoU of this picture</th><td></td>{cells}</tr>'


def unknown_html(comparison: Comparison) -> str:
    """Which methods were not asked for which classes, because they have no words for them."""
    lines = [
        f"<li>{escape(result.title)} does not know {escape(', '.join(result.unknown[:12]))}, and does not paint it.</li>"
        for result in comparison.results
        if result.unknown
    ]
    return f'<ul class="unknown">{"".join(lines)}</ul>' if lines else ""
