"""Rows of the models themselves: each method against its backbone and against what users would pick instead; ways to run one
model; growth; training. Weights are random where only time matters."""

import copy
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    CLIPConfig,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    GroupViTConfig,
    GroupViTModel,
)

from hf_clipseg import (
    CocuConfig,
    CocuForSemanticSegmentation,
    MaskClipConfig,
    MaskClipForSemanticSegmentation,
    MvpSegConfig,
    MvpSegForSemanticSegmentation,
    MvpSegPlusForSemanticSegmentation,
    SegmentationProcessor,
    VplConfig,
    VplForSemanticSegmentation,
)
from training.evaluation.graph_model import graph_runner
from training.graph_export import LogitsOnly, write_onnx

from . import mta_clip
from .pairs import Pair

CARDS = Path(__file__).parents[2] / "model_cards"
PATCH, SMALL_SIDE, SIDE, LARGER_SIDE, CLIPSEG_SIDE = 16, 128, 224, 352, 352
"""ViT-B/16 throughout; 352 is the side of CLIPSeg's input, too slow for it with many classes."""

WORDS_OF_A_STEP = "forward in eval mode against a training step"


def names(count: int) -> list[list[str]]:
    return [[f"class {index}"] for index in range(count)]


def bare_clip() -> CLIPModel:
    return CLIPModel(CLIPConfig(vision_config={"patch_size": PATCH})).eval()


def on_clip(method, config_class, clip: CLIPModel, num_classes: int, **fields):
    """A method with baked classes on the weights of `clip`."""
    config = config_class(clip_config=clip.config.to_dict(), class_names=names(num_classes), **fields)
    model = method(config).eval()
    model.clip.load_state_dict(clip.state_dict(), strict=False)
    return model


def mask_clip(num_classes: int = 20, **fields) -> MaskClipForSemanticSegmentation:
    return on_clip(MaskClipForSemanticSegmentation, MaskClipConfig, bare_clip(), num_classes, **fields)


def pixels(side: int, count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def backbones(side: int = LARGER_SIDE) -> Iterator[Pair]:
    clip, image = bare_clip(), pixels(side)
    bare = lambda: clip.get_image_features(image, interpolate_pos_encoding=True)  # noqa: E731
    words = "CLIP's image encoder against the method"
    for count in (1, 20, 150, 847):
        model = on_clip(MaskClipForSemanticSegmentation, MaskClipConfig, clip, count)
        yield Pair(f"MaskCLIP, {side} px, {count} classes", bare, lambda model=model: model(pixel_values=image), words)
    for variant in ("sclip", "naclip"):
        model = on_clip(MaskClipForSemanticSegmentation, MaskClipConfig, clip, 150, attention_variant=variant)
        yield Pair(f"{variant}, {side} px, 150 classes", bare, lambda model=model: model(pixel_values=image), words)
    mvp_seg = on_clip(MvpSegForSemanticSegmentation, MvpSegConfig, clip, 150)
    plus = MvpSegPlusForSemanticSegmentation.from_teacher(mvp_seg).eval()
    vpl = on_clip(VplForSemanticSegmentation, VplConfig, clip, 150)
    for name, model in {"MVP-SEG": mvp_seg, "MVP-SEG+": plus, "VPL": vpl}.items():
        yield Pair(f"{name}, {side} px, 150 classes", bare, lambda model=model: model(pixel_values=image), words)


def others(side: int = SMALL_SIDE, clipseg_side: int = CLIPSEG_SIDE, num_classes: int = 20) -> Iterator[Pair]:
    """CLIPSeg sees an image once per class, GroupViT once; Mask2Former has no text."""
    ours = mask_clip(num_classes)
    for patch in (PATCH, 32):
        other = CLIPSegForImageSegmentation(CLIPSegConfig(vision_config={"patch_size": patch})).eval()
        for count, seen in ((1, clipseg_side), (num_classes, side)):
            image = pixels(seen)
            conditions = torch.randn(count, other.config.projection_dim)
            yield Pair(
                f"CLIPSeg, patch {patch}{' (its default)' * (patch == 32)}, {seen} px, {count} classes",
                lambda other=other, image=image, conditions=conditions: other(
                    pixel_values=image.expand(len(conditions), -1, -1, -1),
                    conditional_embeddings=conditions,
                    interpolate_pos_encoding=True,
                ),
                lambda image=image: ours(pixel_values=image),
                f"CLIPSeg of transformers against MaskCLIP with {num_classes} classes, patch {PATCH}",
            )
    yield groupvit(SIDE, num_classes)  # transformers' takes no other side
    for size, batch in (("toyscapes", 4),):
        model, image, _ = mta_clip.build(size, batch)
        reference = mta_clip.build_reference(model).eval()
        model.eval().drop_text_encoder()
        yield Pair(
            f"MTA-CLIP, {size} settings, {image.shape[-1]} px, {batch} images",
            lambda reference=reference, image=image: reference(image),
            lambda model=model, image=image: model(image),
            "Mask2Former of transformers on the same backbone against MTA-CLIP",
        )


def groupvit(side: int, num_classes: int) -> Pair:
    bare = GroupViTModel(GroupViTConfig()).eval()
    text_side = {"clip_config": bare.config.to_dict(), "class_names": names(num_classes), "has_text_encoder": False}
    ours = CocuForSemanticSegmentation(CocuConfig(**text_side)).eval()
    image = pixels(side)
    return Pair(
        f"CoCu, {side} px, {num_classes} classes",
        lambda: bare.get_image_features(pixel_values=image),
        lambda: ours(pixel_values=image),
        "GroupViT's image encoder, of transformers, against CoCu",
    )


def precision(side: int = SIDE, num_classes: int = 20) -> Iterator[Pair]:
    """Ways to run one MaskCLIP, each against eager fp32."""
    model, image = mask_clip(num_classes), pixels(side)
    eager = lambda: model(pixel_values=image).logits  # noqa: E731
    title = f"MaskCLIP, {side} px, {num_classes} classes: "
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():

        def autocast():
            with torch.autocast("cpu", torch.bfloat16):
                return model(pixel_values=image).logits

        yield Pair(title + "bf16 autocast", eager, autocast, "fp32 against bf16")
    int8 = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    yield Pair(title + "int8", eager, lambda: int8(pixel_values=image).logits, "fp32 against dynamic int8 of the linear layers")
    if shutil.which("g++") or shutil.which("c++"):
        compiled = torch.compile(model, fullgraph=True)
        yield Pair(title + "torch.compile", eager, lambda: compiled(pixel_values=image).logits, "eager against compiled")
    with tempfile.TemporaryDirectory() as folder:
        try:
            write_onnx(LogitsOnly(mask_clip(num_classes)), PATCH, Path(folder) / "model.onnx")
        except ValueError as error:
            print(f"no ONNX row: {error}", flush=True)
            return
        run = graph_runner(Path(folder) / "model.onnx")
    yield Pair(title + "ONNX", eager, lambda: run(image), "eager against onnxruntime")


def growth(side: int = SIDE) -> Iterator[Pair]:
    """What twice as much of something costs; the ratio says how time grows."""
    small, large = mask_clip(20), mask_clip(847)
    one, eight = pixels(side), pixels(side, 8)
    run = lambda model, image: lambda: model(pixel_values=image)  # noqa: E731
    yield Pair("4 times the pixels", run(small, one), run(small, pixels(2 * side)), f"{side} px against {2 * side} px")
    yield Pair("42 times the classes", run(small, one), run(large, one), "20 classes against 847")
    yield Pair("8 images", run(small, one), run(small, eight), "one image against a batch of 8")
    fewer, more = (mta_clip_with_queries(count) for count in (100, 400))
    image = pixels(128)
    yield Pair("4 times the queries of MTA-CLIP", run(fewer, image), run(more, image), "100 queries against 400")


def mta_clip_with_queries(count: int):
    clip, fields = mta_clip.SIZES["toyscapes"][3:]
    config = mta_clip.MtaClipConfig(
        clip_config=CLIPConfig(**clip).to_dict(),
        class_names=names(30),
        has_text_encoder=False,
        **fields | {"num_queries": count},
    )
    return mta_clip.MtaClipForSemanticSegmentation(config).eval()


def training(batch: int = 8, side: int = 128) -> Iterator[Pair]:
    """One step of every shipped checkpoint: forward, losses, backward, AdamW; memory is what the step adds."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(12, (batch, 4, 4), generator=generator)
    labels = labels.repeat_interleave(side // 4, 1).repeat_interleave(side // 4, 2)
    for name in ("vpl", "mvp-seg", "mvp-seg-plus", "mta-clip", "cocu"):
        folder = CARDS / f"{name}-toyscapes"
        model, processor = (
            AutoModelForSemanticSegmentation.from_pretrained(folder),
            SegmentationProcessor.from_pretrained(folder),
        )
        inputs = {"pixel_values": pixels(side, batch), "labels": labels}
        class_names = model.config.class_names
        if name == "cocu":
            captions = [" and ".join(names[0] for names in class_names[first : first + 3]) for first in range(batch)]
            inputs["caption_input_ids"] = processor.tokenizer(captions, padding=True, return_tensors="pt")["input_ids"]
            del inputs["labels"]
        elif model.open_vocabulary:
            inputs |= processor(class_names=class_names)
        step = TrainingStep(model, inputs)
        yield Pair(f"{name}, {side} px, batch {batch}", step.forward_only, step.run, WORDS_OF_A_STEP, batch, memory=True)


class TrainingStep:
    """`inputs` through a model: forward only, or a step of AdamW."""

    def __init__(self, model: nn.Module, inputs: dict):
        self.model, self.inputs = model.train(), inputs
        self.optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-5)

    def forward_only(self) -> None:
        self.model.eval()(pixel_values=self.inputs["pixel_values"])

    def run(self) -> None:
        with torch.enable_grad():
            self.model.train()(**self.inputs).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
