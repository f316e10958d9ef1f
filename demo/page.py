"""The whole page: tabs for comparing, teaching and curating, and the endpoints for programs."""

import os
from collections.abc import Sequence

import gradio as gr
from starlette.middleware import Middleware

from hf_clipseg.checkpoint_cards import Checkpoint, distinguish
from hf_clipseg.checkpoints import SHIPPED, describe_checkpoint, find_checkpoints, is_cached, read_config
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL

from .api import add_endpoints
from .desk import Desk
from .entrance import Entrance
from .guard import GuardedBlocks, PictureInput, PicturesInput
from .limits import Limits
from .page_compare import OPENING, compare_tab, opening_choice
from .page_curate import curate_tab
from .page_teach import teach_tab
from .scenes import SCENES, scene_picture
from .workbench import Workbench

HUB_CLIP = "openai/clip-vit-base-patch16"
HUB_GROUPVIT = "nvidia/groupvit-gcc-yfcc"
HUB_CLIPSEG = "CIDAS/clipseg-rd64-refined"
HUB_MASK2FORMER = "facebook/mask2former-swin-tiny-ade-semantic"
HEADER = (
    "<h1>Segment anything you can name</h1>"
    "<p>CLIP-based semantic segmentation, method by method, on one picture: yours, or a scene whose answer is known.</p>"
)


def build_app(folder: str | os.PathLike = SHIPPED, extra: Sequence[str] = (), limits: Limits | None = None) -> gr.Blocks:
    """The page. Offers the checkpoints of `extra` (folders or Hub ids), those in the sub-folders of `folder`, and the Hub's.

    Touches no network and loads no model. `app.desk` answers its events.
    """
    desk = Desk(Workbench(offered_checkpoints(folder, extra), limits, asked_for=len(extra)))
    PictureInput.limits = PicturesInput.limits = desk.bench.limits
    with GuardedBlocks(title="hf_clipseg", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(HEADER, elem_id="title")
        with gr.Tabs(overflow_behavior="wrap"):  # on a phone every tab can be seen, none is in a menu
            with gr.Tab("Compare"):
                compare_tab(page, desk)
            with gr.Tab("Teach it yourself"):
                teach_tab(desk)
            with gr.Tab("What captions omit"):
                curate_tab(desk)
        add_endpoints(desk)
    page.queue(max_size=desk.bench.limits.waiting, default_concurrency_limit=8)
    page.desk, page.door = desk, Middleware(Entrance, limits=desk.bench.limits, storage=desk.storage)
    return page


def offered_checkpoints(folder: str | os.PathLike, extra: Sequence[str]) -> list[Checkpoint]:
    """Real models first where they are on this machine: they know photographs and drawings alike."""
    found = find_checkpoints(folder)
    order = {name: index for index, name in enumerate(OPENING)}
    found.sort(key=lambda checkpoint: (order.get(checkpoint.name, len(order)), checkpoint.name))
    hub = hub_checkpoints()
    cached = [checkpoint for checkpoint in hub if is_cached(checkpoint.source)]
    others = [checkpoint for checkpoint in hub if checkpoint not in cached]
    return distinguish([*map(describe_checkpoint, extra), *cached, *found, *others])


def hub_checkpoints() -> list[Checkpoint]:
    """Real CLIP weights under every attention, and a real GroupViT. Nothing is asked of the Hub."""
    clip = [
        Checkpoint(
            HUB_CLIP, f"clip-vit-b16-{variant}", f"CLIP ViT-B/16, {variant}", CLIP_NOTE, None, True, "mask_clip", variant
        )
        for variant in ("naclip", *(variant for variant in KEEPS_RESIDUAL if variant != "naclip"))
    ]
    groupvit = Checkpoint(HUB_GROUPVIT, "groupvit-yfcc", "GroupViT, YFCC", GROUPVIT_NOTE, None, True, "cocu")
    clipseg = Checkpoint(HUB_CLIPSEG, "clipseg", "CLIPSeg", CLIPSEG_NOTE, None, True, "clipseg")
    return [*clip, groupvit, clipseg, *mask2former()]


def mask2former() -> list[Checkpoint]:
    """A supervised baseline; its classes are read from its configuration, so it is offered where that is in the cache."""
    if not is_cached(HUB_MASK2FORMER):
        return []
    labels = read_config(HUB_MASK2FORMER, local_files_only=True).id2label
    classes = [[labels[index]] for index in range(len(labels))]
    return [Checkpoint(HUB_MASK2FORMER, "mask2former-ade20k", "Mask2Former, ADE20K", MASK2FORMER_NOTE, classes, False)]


CLIP_NOTE = "OpenAI's weights, read patch by patch without any training; the attention of the last block is the difference."
CLIPSEG_NOTE = "Learnt from masks of phrases; a baseline that takes any words."
MASK2FORMER_NOTE = "Learnt from masks of 150 classes; a baseline that knows no others."
GROUPVIT_NOTE = "Learnt to group regions from captions of photographs alone."


def prepare(page: gr.Blocks) -> None:
    """Loads what the page opens with and computes its first comparison, so that the first visitor waits for nothing."""
    bench = page.desk.bench
    names = opening_choice(page.desk)
    text = page.desk.choose(names, "")[0]["value"]
    page.desk.prepare(scene_picture(next(iter(SCENES))), text, names)
    local = [
        checkpoint.source for checkpoint in bench.checkpoints.values() if not checkpoint.on_hub or is_cached(checkpoint.source)
    ]
    bench.cache.preload(dict.fromkeys(local))
