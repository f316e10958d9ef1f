"""Rows of what stands around the models: from logits to labels, refinement, scores, texts, many pictures. Where there was an
older way, it is the baseline: see `before`."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from hf_clipseg import SegmentationProcessor
from hf_clipseg.bulk.picture_stream import segment_many
from hf_clipseg.clip.text_bank import TextCache
from hf_clipseg.clip.text_files import FOLDER_VARIABLE
from hf_clipseg.evaluation.metrics import BoundaryF, ConfusionMatrix
from hf_clipseg.processing.inference import segment
from hf_clipseg.processing.upsampling import upsample_argmax
from hf_clipseg.refinement.crf import dense_crf
from hf_clipseg.refinement.pamr import pamr
from hf_clipseg.toyscapes import CLASS_NAMES, render

from .before import boundary_f_by_class, labels_in_chunks, pamr_by_16, segformer_labels
from .pairs import Pair
from .rows_methods import CARDS, PATCH, bare_clip, mask_clip

TRAINED = ("mask-clip-toyscapes", "vpl-toyscapes", "mta-clip-toyscapes")


def loaded(name: str):
    folder = CARDS / name
    return AutoModelForSemanticSegmentation.from_pretrained(folder).eval(), SegmentationProcessor.from_pretrained(folder)


def post_processing() -> Iterator[Pair]:
    cases = {"random scores, 150 classes": torch.randn(150, 48, 64, generator=torch.Generator().manual_seed(0))}
    for name in TRAINED:
        model, processor = loaded(name)
        size = {"shortest_edge": 384, "longest_edge": 512}
        inputs = processor(images=render(0, 3, 384, 512).image, return_tensors="pt", size=size)
        cases[f"{name}, 30 classes"] = model(pixel_values=inputs["pixel_values"]).logits[0]
    size = (768, 1024)
    for name, logits in cases.items():
        yield Pair(
            f"1024 x 768, {name}",
            lambda logits=logits: labels_in_chunks(logits, size),
            lambda logits=logits: upsample_argmax(logits, size),
            "all classes in chunks, as before, against `upsample_argmax`",
        )
    trained = f"{TRAINED[0]}, 30 classes"
    for name, large in (("random scores, 150 classes", (2048, 2048)), (trained, (2048, 2048)), (trained, (3000, 4000))):
        logits = cases[name]
        yield Pair(
            f"{large[1]} x {large[0]}, {name}",
            lambda logits=logits, large=large: segformer_labels(logits, large),
            lambda logits=logits, large=large: upsample_argmax(logits, large),
            "SegFormer's post-processing of transformers against `upsample_argmax`",
            memory=True,
        )


def refinement(height: int = 480, width: int = 640) -> Iterator[Pair]:
    scene = render(0, 3, height, width)
    pixels = torch.tensor(np.asarray(scene.image)).permute(2, 0, 1)[None]
    for count in (8, 21, 40):
        coarse = torch.randn(1, count, 15, 20, generator=torch.Generator().manual_seed(0))
        maps = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear").softmax(dim=1)
        title = f"{width} x {height}, {count} classes"
        yield Pair(
            f"PAMR, {title}",
            lambda maps=maps: pamr_by_16(pixels, maps),
            lambda maps=maps: pamr(pixels, maps),
            "16 channels at once, as before, against 4",
        )
        yield Pair(
            f"CRF, {title}",
            lambda coarse=coarse: upsample_argmax(coarse[0], (height, width)),
            lambda maps=maps: dense_crf(pixels, maps),
            "labels without refinement against the CRF",
        )


def scores(height: int = 480, width: int = 640) -> Iterator[Pair]:
    cases = [("a scene", torch.as_tensor(render(0, 3, height, width).mask).long(), len(CLASS_NAMES))]
    for side in (3, 11):  # as many blocks of classes along each axis
        blocks = torch.arange(side * side).view(side, side)
        blocks = blocks.repeat_interleave(-(-height // side), 0).repeat_interleave(-(-width // side), 1)
        cases.append(("blocks", blocks[:height, :width], side * side))
    for name, truth, count in cases:
        yield from boundary_rows(f"{width} x {height}, {name}, {count} classes", truth, count)


def boundary_rows(title: str, truth: torch.Tensor, count: int) -> Iterator[Pair]:
    found = truth.roll((3, 4), dims=(0, 1))
    yield Pair(
        f"boundary F, {title}",
        lambda: boundary_f_by_class(found, truth),
        lambda: BoundaryF(count).update(found, truth),
        "class by class at full size, as before, against `BoundaryF`",
    )
    yield Pair(
        f"boundary F beside a count, {title}",
        lambda: torch.bincount(truth.flatten(), minlength=count),
        lambda: BoundaryF(count).update(found, truth),
        "one `torch.bincount` of the map against `BoundaryF`",
    )
    yield Pair(
        f"boundary F beside IoU, {title}",
        lambda: ConfusionMatrix(count).update(found, truth),
        lambda: BoundaryF(count).update(found, truth),
        "the confusion matrix against `BoundaryF`",
    )


def texts(num_names: int = 40, num_templates: int = 7) -> Iterator[Pair]:
    """The text encoder of ViT-B/16, without a cache and with what another process left on disk."""
    model = mask_clip(1)
    model.clip.load_state_dict(bare_clip().state_dict())
    count = num_names * num_templates
    words = torch.randint(1000, 40_000, (count, 4), generator=torch.Generator().manual_seed(0))
    ends = model.config.clip_config.text_config.bos_token_id, model.config.clip_config.text_config.eos_token_id
    input_ids = torch.cat([torch.full((count, 1), ends[0]), words, torch.full((count, 1), ends[1])], dim=1)
    ids = {"name_ids": torch.arange(count) // num_templates, "class_ids": torch.arange(num_names)}

    def encode(cache: str):
        model.text_cache = TextCache()  # as in a new process
        os.environ[FOLDER_VARIABLE] = cache
        return model.resolve_classes(input_ids, **ids)

    before = os.environ.get(FOLDER_VARIABLE)
    with tempfile.TemporaryDirectory() as folder:
        yield Pair(
            f"texts of {num_names} names in {num_templates} templates, ViT-B/{PATCH}",
            lambda: encode("off"),
            lambda: encode(folder),
            "encoding against reading from disk",
        )
    os.environ.pop(FOLDER_VARIABLE)
    if before is not None:
        os.environ[FOLDER_VARIABLE] = before


def throughput(count: int = 24) -> Iterator[Pair]:
    """Pictures from files, one by one and as a stream, with as many threads as torch has."""
    model, processor = loaded(TRAINED[0])
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{index}.jpg" for index in range(count)]
        for index, file in enumerate(files):
            Image.fromarray(render(0, index, 480, 640).image).save(file)
        yield Pair(
            f"{count} pictures of 640 x 480, {TRAINED[0]}, {torch.get_num_threads()} thread(s)",
            lambda: [segment(model, processor, [file])[0] for file in files],
            lambda: list(segment_many(model, processor, [(file, file) for file in files])),
            "`segment` one by one against `segment_many`",
            images=count,
        )
