"""Published protocols: the labels against the released procedure, written out once more, and the command that repeats a figure.

The reference is `tests/released_procedure.py`. `python -m benchmarks.ablations.parity` compares with it at full size.
"""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.processing.inference import segment
from training.data.benchmarks import BENCHMARKS, vocabulary
from training.evaluate import evaluate, main, parse_arguments
from training.evaluation.protocols import (
    DATASETS,
    METHODS,
    PROTOCOLS,
    find_protocol,
    follow_protocol,
    label_options,
    open_original,
)

from ... import released_procedure as released
from ...tiny import openai_tokenizer, save_tiny_clip

SAME_LABELS = 0.999
"""Of the pixels: the two add up windows in another order, so where two classes tie, the build of torch decides."""

CLASSES = [["sky", "wall", "tree", "bed"], ["ship", "boat"], ["person", "person in shirt"], ["bed"], ["dog"]]
VARIANTS = ("maskclip", "sclip", "clearclip", "naclip")


def save_clip(
    folder, tokenizer, width=768, layers=3, patch=16, image_size=224, projection=512, heads=12, text=512, positions=None
):
    """A random CLIP of true patch and grid, with few blocks."""
    torch.manual_seed(0)
    vision = {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "patch_size": patch, "image_size": image_size,
    }  # fmt: skip
    words = {"hidden_size": text, "intermediate_size": 4 * text, "num_hidden_layers": 2, "num_attention_heads": text // 64}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=words, projection_dim=projection)).eval()
    with torch.no_grad():
        table = clip.vision_model.embeddings.position_embedding.weight
        table.copy_(torch.randn_like(table))
    clip.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(real_data):
    return openai_tokenizer(real_data / "clip_bpe/bpe_simple_vocab_16e6.txt.gz")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, tokenizer):
    return save_clip(tmp_path_factory.mktemp("clip"), tokenizer)


@pytest.fixture(scope="module")
def photographs(real_data):
    """One landscape, one portrait, neither a multiple of anything."""
    files = sorted((real_data / "coco_mini/images/val2017").glob("*.jpg"))
    images = [Image.open(file).convert("RGB") for file in files]
    landscape = next(image for image in images if image.width > image.height and image.width % 16)
    portrait = next(image for image in images if image.width < image.height)
    return [landscape, portrait.crop((0, 0, portrait.width - 5, portrait.height))]


# ---- parity


@torch.no_grad()
@pytest.mark.parametrize("method", VARIANTS)
def test_labels_equal_the_released_procedure(method, clip_folder, photographs):
    """Two photographs that are not square, every pixel; windows of the native size and, for ClearCLIP, of 448."""
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    model = MaskClipForSemanticSegmentation.from_clip(clip_folder)
    processor = SegmentationProcessor.from_clip(clip_folder)
    protocol = replace(find_protocol(f"{method}-voc21"), prob_thd=0.25, templates="photo")
    protocol.apply(model, processor)
    texts, class_ids = released.name_embeddings(clip, processor.tokenizer, CLASSES)
    own = segment(model, processor, photographs, CLASSES, **protocol.options())
    for image, labels in zip(photographs, own, strict=True):
        pixels = processor(images=image, size_divisor=1)["pixel_values"][0]
        maps = released.stitched(clip, pixels, texts, method, protocol.window, protocol.stride)
        expected = released.labels_of(maps, class_ids, image.size[::-1], protocol).numpy()
        assert len(np.unique(expected)) > 1
        assert np.mean(labels == expected) >= SAME_LABELS


@torch.no_grad()
@pytest.mark.parametrize("method", VARIANTS)
def test_features_equal_the_released_procedure(method, clip_folder):
    clip = CLIPModel.from_pretrained(clip_folder).eval()
    model = MaskClipForSemanticSegmentation.from_clip(clip_folder)
    find_protocol(f"{method}-voc20").apply(model, SegmentationProcessor.from_clip(clip_folder))
    for size in ((224, 224), (224, 336), (448, 448)):
        pixels = torch.randn(3, *size)
        torch.testing.assert_close(
            model.dense_features(pixels[None])[0], released.dense(clip, pixels, method), rtol=0, atol=2e-6
        )


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_miniature(method, tmp_path):
    """The same without photographs, PAMR and the proxy included: a tiny CLIP, a name of two classes, half of it background."""
    clip = CLIPModel.from_pretrained(save_tiny_clip(tmp_path / "clip")).eval()
    torch.manual_seed(1)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    dino = ViTModel(ViTConfig(**small, image_size=32, patch_size=4)).eval()
    dino.save_pretrained(tmp_path / "dino")
    model = MaskClipForSemanticSegmentation.from_clip(tmp_path / "clip")
    processor = SegmentationProcessor.from_clip(tmp_path / "clip")
    protocol = replace(
        find_protocol(f"{method}-voc21"), templates="photo", short_side=48, window=32, stride=16, pamr_dilations=(2, 4),
        proxy=str(tmp_path / "dino") if method == "proxyclip" else None,
    )  # fmt: skip
    protocol.apply(model, processor)
    names = [["sky", "sea"], ["boat", "ship"], ["grass"], ["tree", "sea"], ["car"]]
    texts, class_ids = released.name_embeddings(clip, processor.tokenizer, names)
    for size in ((83, 61), (61, 83)):
        picture = np.random.default_rng(0).integers(0, 256, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
        pixels = processor(images=image, size_divisor=1)["pixel_values"][0]
        variant = method.removesuffix("-pamr")
        maps = released.stitched(clip, pixels, texts, variant, protocol.window, protocol.stride, dino)
        median = float((maps * protocol.logit_scale).softmax(0).amax(0).median())
        protocol = replace(protocol, prob_thd=median)
        expected = released.labels_of(maps, class_ids, image.size[::-1], protocol, pixels).numpy()
        (own,) = segment(model, processor, [image], names, **protocol.options())
        assert len(np.unique(expected)) > 1
        assert np.mean(own == expected) >= SAME_LABELS


@torch.no_grad()
def test_every_setting_matters(clip_folder, photographs):
    """Each changed alone changes labels: otherwise it would be a dead entry of the table."""
    model, processor = MaskClipForSemanticSegmentation.from_clip(clip_folder), SegmentationProcessor.from_clip(clip_folder)
    base = replace(find_protocol("sclip-voc21"), templates="photo", short_side=160, window=112, stride=48)
    base = replace(base, prob_thd=0.25, area_thd=0.0)
    image = photographs[0].resize((250, 190))

    def labels(protocol):
        protocol.apply(model, processor)
        return segment(model, processor, [image], CLASSES, **protocol.options())[0]

    reference = labels(base)
    changes = (
        {"attention_variant": "naclip"}, {"keep_residual": False}, {"short_side": 176}, {"window": 144}, {"stride": 64},
        {"position_interpolation": "size"}, {"logit_scale": 100.0}, {"prob_thd": 0.0},
        {"pamr_iterations": 2}, {"templates": "name"}, {"long_side": 180}, {"output_stride": 4},
    )  # fmt: skip
    for change in changes:
        assert (labels(replace(base, **change)) != reference).any(), change
    assert (labels(base) == reference).all()


@torch.no_grad()
@pytest.mark.parametrize(
    ("patch", "width", "heads", "image_size", "layers"),
    [(32, 768, 12, 224, 12), (16, 768, 12, 224, 12), (14, 1024, 16, 224, 24), (14, 1024, 16, 336, 24), (14, 1280, 16, 224, 32)],
    ids=["B/32", "B/16", "L/14", "L/14-336", "H/14"],
)
def test_every_clip_runs_under_a_protocol(patch, width, heads, image_size, layers, tokenizer, tmp_path, photographs):
    """One block of true size; with HF_CLIPSEG_FULL_SIZE=1 all of them."""
    layers = layers if os.environ.get("HF_CLIPSEG_FULL_SIZE") == "1" else 1
    folder = save_clip(tmp_path, tokenizer, width, layers, patch, image_size, heads=heads)
    model, processor = MaskClipForSemanticSegmentation.from_clip(folder), SegmentationProcessor.from_clip(folder)
    protocol = replace(find_protocol("naclip-voc21"), templates="name", short_side=230, output_stride=1)
    protocol.apply(model, processor)
    image = photographs[0].resize((250, 230))
    (labels,) = segment(model, processor, [image], CLASSES, **protocol.options())
    assert labels.shape == (230, 250) and labels.max() < len(CLASSES)


# ---- the table


def test_the_table_is_whole():
    assert set(PROTOCOLS) == {f"{method}-{dataset}" for method in METHODS for dataset in DATASETS}
    for protocol in PROTOCOLS.values():
        assert len(vocabulary(protocol.vocabulary)) == len(BENCHMARKS[protocol.dataset].class_names), protocol.name
        assert (protocol.prob_thd > 0) == (protocol.dataset in ("voc21", "context60", "coco-object")), protocol.name
        assert 0 < protocol.published.miou < 100 and protocol.published.source
    # a few, as they stand in the released configurations and tables
    sclip = find_protocol("sclip-voc21")
    assert sclip.rule().min_area == 0.1
    assert (sclip.logit_scale, sclip.prob_thd, sclip.area_thd, sclip.published.miou) == (65, 0.1, 0.1, 59.63)
    naclip = find_protocol("naclip-pamr-cityscapes")
    assert (naclip.short_side, naclip.pamr_iterations, naclip.pamr_dilations) == (560, 10, (8, 16))
    assert naclip.published.miou == 38.27 and find_protocol("naclip-cityscapes").pamr_iterations == 0
    clear = find_protocol("clearclip-context60")
    assert (clear.window, clear.stride, clear.short_side, clear.prob_thd, clear.logit_scale) == (448, 224, 448, 0.15, 50)
    proxy = find_protocol("proxyclip-coco-object")
    assert (proxy.proxy, proxy.window, proxy.stride, proxy.prob_thd) == ("facebook/dino-vitb8", 336, 112, 0.25)


def test_figures_agree_with_the_printed_averages():
    """Over all eight data sets, as README files and the tables of later papers print them."""
    averages = {"maskclip": 30.3, "clearclip": 38.1, "naclip": 39.4, "naclip-pamr": 42.46, "proxyclip": 42.3}
    for method, average in averages.items():
        assert np.mean(METHODS[method].figures) == pytest.approx(average, abs=0.06), method


def command(*options):
    return parse_arguments(["mine", *options])


def test_a_dry_run_prints_every_setting(capsys):
    assert evaluate(command("--protocol", "sclip-coco-object", "--dataset_path", "COCO", "--dry_run")) == {}
    text, protocol = capsys.readouterr().out, find_protocol("sclip-coco-object")
    assert "mine on COCO, split validation; the figure was published with openai/clip-vit-base-patch16" in text
    for name in ("logit_scale", "prob_thd", "window", "stride", "vocabulary", "position_interpolation", "resample"):
        assert f"\n{name} " in text and str(getattr(protocol, name)) in text
    for name, entry in PROTOCOLS.items():
        evaluate(command("--protocol", name, "--dry_run"))
        assert ("unverified" in capsys.readouterr().out) is not entry.published.verified, name
    evaluate(command("--dataset_name", "voc21", "--window", "224", "--dry_run"))
    assert "window             224" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "naclip-voc21", "--window", "64", "--flip"], "decides --window, --flip; leave out"),
        (["--protocol", "naclip-voc"], "no protocol 'naclip-voc'; these are: maskclip-voc21"),
        (["--dataset_name", "context59"], "pass --dataset_path, such as VOCdevkit/VOC2010"),
        (["--dataset_path", "somewhere"], "toyscapes is none of voc21"),
        (["--min_probability", "2"], "min_probability is 2.0; it is a share"),
    ],
)
def test_bad_options_are_one_sentence(options, message):
    arguments = command(*options)
    with pytest.raises(ValueError, match=message):
        follow_protocol(arguments)
        open_original(arguments, "validation", None)
        label_options(arguments)


def test_one_command_repeats_a_row(clip_folder, real_data, tmp_path, capsys):
    """Two photographs laid out as VOC; mIoU computed once more from the labels, and everything in the JSON file."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass"):
        shutil.copytree(real_data / "voc_labelme3" / folder, root / folder)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("2011_000003\n2011_000025\n")
    options = ("--protocol", "sclip-voc21", "--dataset_path", str(root), "--output", str(tmp_path / "scores.json"))
    results = evaluate(parse_arguments([str(clip_folder), *options]))
    assert (
        f"sclip-voc21: measured {100 * results['mIoU']:.2f} on 2 images, published 59.63, difference" in capsys.readouterr().out
    )
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["protocol_settings"]["logit_scale"] == 65.0 and stored["protocol_settings"]["published"]["miou"] == 59.63
    assert stored["class_names"][0] == "background" and stored["class_names"][4] == "boat"

    model, processor = MaskClipForSemanticSegmentation.from_clip(clip_folder), SegmentationProcessor.from_clip(clip_folder)
    protocol = find_protocol("sclip-voc21")
    protocol.apply(model, processor)
    images = [Image.open(root / f"JPEGImages/{key}.jpg").convert("RGB") for key in ("2011_000003", "2011_000025")]
    labels = segment(model, processor, images, vocabulary("voc21"), **protocol.options())
    masks = [np.asarray(Image.open(root / f"SegmentationClass/{key}.png")) for key in ("2011_000003", "2011_000025")]
    assert abs(results["mIoU"] - mean_iou(masks, labels)) < 1e-9


def mean_iou(masks, labels) -> float:
    """Over the classes that the masks show, pixel by pixel, without a confusion matrix; 255 takes part in nothing."""
    truth, guess = (np.concatenate([array.ravel() for array in arrays]) for arrays in (masks, labels))
    guess, truth = guess[truth != 255], truth[truth != 255]
    present = np.unique(truth)
    return float(np.mean([((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum() for c in present]))


def lay_out(root, name, random) -> tuple[list[Image.Image], list[np.ndarray]]:
    """Two pictures in the original layout of a benchmark, masks with original ids; the pictures and their true class ids."""
    benchmark = BENCHMARKS[name]
    kind, split, keys = benchmark.masks[-1], benchmark.splits["validation"], ("first_1", "second_2")
    offset = 1 if kind.reduce_labels else 0
    original = sorted(kind.id_map) if kind.id_map else [*range(len(benchmark.class_names) + offset), 255]
    images, truths = [], []
    for key in keys:
        files = [root / path.format(split=split, key=key).replace("*", "town") for path in (benchmark.image, kind.name)]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30, 44, 3), dtype=np.uint8)).save(files[0])
        mask = np.kron(random.choice(original, (5, 11)), np.ones((6, 4), int))
        Image.fromarray(mask.astype(np.uint8)).save(files[1])
        images.append(Image.open(files[0]).convert("RGB"))
        if kind.id_map:
            mask = np.vectorize(kind.id_map.get)(mask)
        truths.append(np.where((mask == 0) | (mask == 255), 255, mask - 1) if offset else mask)
    if benchmark.key_list:
        listed = root / benchmark.key_list.format(split=split)
        listed.parent.mkdir(parents=True)
        listed.write_text("\n".join(keys))
    return images, truths


@pytest.mark.parametrize("dataset", DATASETS)
def test_miou_of_every_data_set(dataset, tmp_path, monkeypatch, capsys):
    """Miniature data of each layout, windows of 32 pixels, a tiny CLIP that knows hardly a name: mIoU is low, and exact."""
    name = f"naclip-{dataset}"
    tiny = replace(PROTOCOLS[name], short_side=48, window=32, stride=16, templates="photo", prob_thd=0.0)
    monkeypatch.setitem(PROTOCOLS, name, tiny)
    images, truths = lay_out(tmp_path / "data", dataset, np.random.default_rng(0))
    clip = save_tiny_clip(tmp_path / "clip")
    results = evaluate(parse_arguments([str(clip), "--protocol", name, "--dataset_path", str(tmp_path / "data")]))
    model, processor = MaskClipForSemanticSegmentation.from_clip(clip), SegmentationProcessor.from_clip(clip)
    tiny.apply(model, processor)
    labels = segment(model, processor, images, tiny.names(), **tiny.options())
    assert results["num_images"] == 2 and results["mIoU"] > 0
    assert abs(results["mIoU"] - mean_iou(truths, labels)) < 1e-9
    assert f"{name}: measured {100 * results['mIoU']:.2f} on 2 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--protocol", "naclip-voc21", "--dataset_path", "{}"],
            "is not laid out as voc21 is: expected ImageSets/Segmentation/val",
        ),
        (["--dataset_name", "toyscapes", "--limit", "1", "--min_probability", "1.5"], "min_probability is 1.5; it is a share"),
        (
            ["--dataset_name", "toyscapes", "--limit", "1", "--classes", "{}/classes.txt"],
            "line 3: the class 'boat' stands in line 2 already",
        ),
    ],
    ids=["another layout", "threshold", "duplicate"],
)
def test_bad_input_ends_the_command_with_one_sentence(options, message, tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    (tmp_path / "classes.txt").write_text("sky\nboat, ship\nboat\n")
    with pytest.raises(SystemExit) as ended:
        main([str(save_tiny_clip(tmp_path / "clip")), *(option.format(tmp_path) for option in options)])
    assert str(ended.value).startswith("error: ") and message in str(ended.value) and "\n" not in str(ended.value)


def test_other_methods_are_refused(clip_folder):
    class Other:
        config = None

    with pytest.raises(ValueError, match="is for training-free methods: pass a CLIP"):
        find_protocol("sclip-voc20").apply(Other(), None)
