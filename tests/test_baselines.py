"""Models of the Hub behind the package's interface, against transformers' own way to their label maps."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import (
    CLIPSegForImageSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerImageProcessor,
    OneFormerProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
)

from demo.limits import Ticket
from demo.workbench import Options, Workbench
from hf_clipseg.checkpoints import describe_checkpoint, load_checkpoint
from hf_clipseg.evaluation.metrics import ConfusionMatrix
from hf_clipseg.processing.inference import segment
from training.evaluate import evaluate, parse_arguments

from .hub_cache import save_clipseg
from .tiny import tiny_tokenizer

# COCO's class (1 to 80 in `coco_mini`) of every VOC class that has one; all other classes are background
COCO_OF_VOC = [5, 2, 15, 9, 40, 6, 3, 16, 57, 20, 61, 17, 18, 4, 1, 59, 19, 58, 7, 63]
NAMES = {0: "sky", 1: "sea", 2: "boat"}


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))


def save(model, images, folder):
    model.eval().save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def test_a_model_that_knows_photographs(real_data):
    """DeepLabV3 with real weights on 79 photographs: mIoU 0.523 was measured elsewhere."""
    checkpoint = load_checkpoint(real_data / "deeplabv3_mobilenet_v2")
    table = np.zeros(256, dtype=np.int64)
    table[255], table[COCO_OF_VOC] = 255, np.arange(1, 21)
    confusion = ConfusionMatrix(21)
    masks = sorted((real_data / "coco_mini/masks/val2017").glob("*.png"))
    assert len(masks) == 79
    for mask in masks:
        (image,) = (real_data / "coco_mini/images/val2017").glob(f"{mask.stem}.*")
        (labels,) = segment(checkpoint.model, checkpoint.processor, [image])
        confusion.update(torch.from_numpy(labels), torch.from_numpy(table[np.asarray(Image.open(mask))]))
    assert confusion.mean_iou() >= 0.51 and confusion.pixel_accuracy() > 0.85


@torch.no_grad()
def test_semantic_models(picture, tmp_path):
    config = SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=16, id2label=NAMES
    )
    folder = save(SegformerForSemanticSegmentation(config), SegformerImageProcessor(size={"height": 64, "width": 64}), tmp_path)
    checkpoint = load_checkpoint(folder)
    own = segment(checkpoint.model, checkpoint.processor, [picture, picture.rotate(90, expand=True)])
    model, images = (
        SegformerForSemanticSegmentation.from_pretrained(folder).eval(),
        SegformerImageProcessor.from_pretrained(folder),
    )
    (expected,) = images.post_process_semantic_segmentation(model(**images(picture, return_tensors="pt")), [(60, 80)])
    assert (own[0] == expected.numpy()).mean() > 0.999 and own[1].shape == (80, 60)
    assert checkpoint.model.config.class_names == [["sky"], ["sea"], ["boat"]]
    assert (segment(checkpoint.model, checkpoint.processor, [picture], ["Sky", "sea", "boat"])[0] == own[0]).all()
    with pytest.raises(ValueError, match="own 3 classes only, in this order: sky, sea, boat"):
        segment(checkpoint.model, checkpoint.processor, [picture], ["sky", "boat", "sea"])


@torch.no_grad()
def test_universal_models(picture, tmp_path):
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_features=[
        "stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=swin, hidden_dim=32, feature_size=32, mask_feature_size=32, num_queries=5, encoder_layers=1,
        decoder_layers=2, num_attention_heads=2, dim_feedforward=16, encoder_feedforward_dim=16, id2label=NAMES,
    )  # fmt: skip
    folder = save(
        Mask2FormerForUniversalSegmentation(config), Mask2FormerImageProcessor(size={"height": 64, "width": 96}), tmp_path
    )
    checkpoint = load_checkpoint(folder)
    (own,) = segment(checkpoint.model, checkpoint.processor, [picture])
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    images = Mask2FormerImageProcessor.from_pretrained(folder)
    outputs = model(**images(picture, return_tensors="pt"))
    classes = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    scores = sum(
        row[:, None, None] * mask.sigmoid() for row, mask in zip(classes, outputs.masks_queries_logits[0], strict=True)
    )
    expected = F.interpolate(scores[None], size=(60, 80), mode="bilinear")[0].argmax(0).numpy()
    assert (own == expected).mean() > 0.999


@pytest.fixture(scope="module")
def oneformer(tmp_path_factory):
    """A random OneFormer, saved with its processor and the list of classes that its image processor reads."""
    folder = tmp_path_factory.mktemp("checkpoints") / "oneformer"
    torch.manual_seed(0)
    swin = SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_features=[
        "stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    config = OneFormerConfig(
        backbone_config=swin, num_queries=5, conv_dim=32, mask_dim=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, text_encoder_width=16,
        text_encoder_num_layers=1, text_encoder_vocab_size=64, text_encoder_context_length=16, task_seq_len=16,
        text_encoder_n_ctx=2, query_dec_layers=1, id2label=NAMES,
    )  # fmt: skip
    OneFormerForUniversalSegmentation(config).eval().save_pretrained(folder)
    classes = {str(index): {"name": name, "isthing": 0} for index, name in NAMES.items()}
    (folder / "classes.json").write_text(json.dumps(classes))
    images = OneFormerImageProcessor(
        size={"height": 64, "width": 96}, repo_path=str(folder), class_info_file="classes.json", num_text=3
    )
    OneFormerProcessor(images, tiny_tokenizer(), max_seq_length=16, task_seq_length=16).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_oneformer_is_told_its_task(oneformer, picture):
    checkpoint = load_checkpoint(oneformer)
    own = segment(checkpoint.model, checkpoint.processor, [picture, picture.rotate(90, expand=True)])
    model = OneFormerForUniversalSegmentation.from_pretrained(oneformer).eval()
    processor = OneFormerProcessor.from_pretrained(oneformer)
    outputs = model(**processor(picture, ["semantic"], return_tensors="pt"))
    classes = outputs.class_queries_logits[0].softmax(-1)[:, :-1]
    scores = sum(
        row[:, None, None] * mask.sigmoid() for row, mask in zip(classes, outputs.masks_queries_logits[0], strict=True)
    )
    expected = F.interpolate(scores[None], size=(60, 80), mode="bilinear")[0].argmax(0).numpy()
    assert (own[0] == expected).mean() > 0.999 and own[1].shape == (80, 60)


def test_a_baseline_is_scored_by_the_evaluator(oneformer, tmp_path):
    """By the command's own function, on a folder of masks; mIoU once more from the label maps."""
    random = np.random.default_rng(1)
    images, masks = [], []
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for index in range(3):
        images.append(Image.fromarray(random.integers(0, 256, (40, 56, 3), dtype=np.uint8)))
        masks.append(random.integers(0, 3, (40, 56), dtype=np.uint8))
        images[-1].save(tmp_path / f"images/{index}.png")
        Image.fromarray(masks[-1]).save(tmp_path / f"masks/{index}.png")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES.values()))
    results = evaluate(parse_arguments([str(oneformer), "--dataset_name", str(tmp_path), "--split", "train"]))
    checkpoint = load_checkpoint(oneformer)
    guess, truth = np.stack(segment(checkpoint.model, checkpoint.processor, images)), np.stack(masks)
    shares = [((guess == c) & (truth == c)).sum() / ((guess == c) | (truth == c)).sum() for c in range(3)]
    assert results["num_images"] == 3 and abs(results["mIoU"] - np.mean(shares)) < 1e-9


def test_the_app_compares_a_baseline(oneformer, picture):
    """As the page's button does it, without a browser, for a folder given to `app.py`: run, all of its classes shown."""
    bench = Workbench([describe_checkpoint(oneformer)], device="cpu")
    *_, (comparison, failed) = bench.compare(bench.question(picture, "sky, boat", ["oneformer"], Options()), Ticket(600))
    assert not failed and set(comparison.class_names) == {"sky", "sea", "boat"}
    checkpoint = load_checkpoint(oneformer)
    (expected,) = segment(checkpoint.model, checkpoint.processor, [picture])
    order = np.array([comparison.class_names.index(name) for name in NAMES.values()])
    assert np.array_equal(comparison.label_maps[0], order[expected])


@pytest.fixture
def clipseg(tmp_path):
    save_clipseg(tmp_path)
    return tmp_path


@torch.no_grad()
@pytest.mark.parametrize("at_once", [1, 32])
def test_clipseg_with_many_names(clipseg, picture, monkeypatch, at_once):
    """One image with N prompts and no copies of it, any aspect; each name's map is what CLIPSeg gives for it alone."""
    monkeypatch.setattr("hf_clipseg.baselines.PROMPTS_AT_ONCE", at_once)
    checkpoint = load_checkpoint(clipseg)
    model, processor = checkpoint.model, checkpoint.processor
    classes = ["sky", ["boat", "ship"], "tree", "car"]
    inputs = processor(images=[picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)], class_names=classes)
    logits = model(**inputs).logits
    reference, tokenizer = CLIPSegForImageSegmentation.from_pretrained(clipseg).eval(), tiny_tokenizer()
    for image in range(2):
        for index, names in enumerate(classes):
            maps = [
                reference(
                    **tokenizer(f"a photo of a {name}", return_tensors="pt"),
                    pixel_values=inputs["pixel_values"][image : image + 1],
                ).logits.view(32, 32)
                for name in ([names] if isinstance(names, str) else names)
            ]
            torch.testing.assert_close(logits[image, index], torch.stack(maps).amax(0), rtol=1e-4, atol=1e-5)
    (labels,) = segment(model, processor, [picture], classes)
    assert labels.shape == (60, 80)
    with pytest.raises(ValueError, match="no classes of its own"):
        segment(model, processor, [picture])


@torch.no_grad()
def test_clipsegs_background_is_what_no_name_reaches(clipseg, picture):
    checkpoint = load_checkpoint(clipseg)
    inputs = checkpoint.processor(images=picture, class_names=["Background", "sky", "boat"])
    logits = checkpoint.model(**inputs).logits
    without = checkpoint.model(**checkpoint.processor(images=picture, class_names=["sky", "boat"])).logits
    assert not logits[:, 0].any() and torch.allclose(logits[:, 1:], without, atol=1e-6)
    assert ((logits.argmax(1) == 0) == (without.sigmoid().amax(1) < 0.5)).all()


def test_models_that_segment_nothing_are_refused(tmp_path):
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path
    )
    with pytest.raises(ValueError, match="'bert' model; this package runs"):
        load_checkpoint(tmp_path)
