"""Two steps of a recipe of every method, on miniature data of the true layout and classes, with a tiny CLIP."""

import json

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from training import train_cocu, train_mta_clip, train_mvp_seg, train_mvp_seg_plus, train_vpl
from training.data.benchmarks import BENCHMARKS
from training.data.presets import VOC_CLASSES

from ..tiny import save_tiny_clip, tiny_tokenizer

TWO_STEPS = [
    "--max_train_steps", "2", "--train_batch_size", "2", "--warmup_steps", "1", "--logging_steps", "1",
    "--mixed_precision", "no",
]  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def picture(path, size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.stem)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


def mask(path, labels, size=(40, 32)):
    """Vertical stripes of `labels`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.repeat(np.array(labels, dtype=np.uint8), size[0] // len(labels))
    image = Image.fromarray(np.broadcast_to(stripes, (size[1], len(stripes))).copy())
    image.resize(size, Image.Resampling.NEAREST).save(path)


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """VOCdevkit's layout; unseen classes (16 to 20 with background 0) are there and withheld."""
    root = tmp_path_factory.mktemp("voc")
    keys = [f"2011_{index:06d}" for index in range(4)]
    for index, key in enumerate(keys):
        picture(root / f"JPEGImages/{key}.jpg")
        mask(root / f"SegmentationClass/{key}.png", [0, 1 + index, 15, 16 + index, 255])
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(keys))
    tags = [f"{key}.jpg,person;{VOC_CLASSES[1 + index]}" for index, key in enumerate(keys)]
    (root / "tags.csv").write_text("\n".join(["file,labels", *tags]))
    return root


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def check(output):
    assert len(losses(output)) == 2 and all(np.isfinite(losses(output)))
    assert (output / "final/model.safetensors").is_file()


def test_mvp_seg_and_its_student(clip_folder, voc, tmp_path):
    small = ["--image_size", "32", *TWO_STEPS, "--dataset_name", str(voc)]
    train_mvp_seg.main([
        "--recipe", "mvp-seg-voc", "--model_name_or_path", str(clip_folder), "--num_prompt_tokens", "4", *small,
        "--output_dir", str(tmp_path / "teacher"),
    ])  # fmt: skip
    check(tmp_path / "teacher")
    config = json.loads((tmp_path / "teacher/final/config.json").read_text())
    assert (config["orthogonality"], config["global_refinement"], config["presence_loss"]) == ("prompt", "paper", "positive")
    backbone = tmp_path / "resnet"
    from transformers import ResNetBackbone, ResNetConfig

    ResNetBackbone(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1] * 4)).save_pretrained(backbone)
    AcceleratorState._reset_state(reset_partial_state=True)
    train_mvp_seg_plus.main([
        "--recipe", "mvp-seg-plus-voc", "--teacher", str(tmp_path / "teacher/final"), "--backbone", str(backbone), *small,
        "--teacher_steps", "1", "--output_dir", str(tmp_path / "student"),
    ])  # fmt: skip
    check(tmp_path / "student")


def test_vpl(clip_folder, voc, tmp_path):
    train_vpl.main([
        "--recipe", "vpl-voc", "--model_name_or_path", str(clip_folder), "--dataset_name", str(voc / "JPEGImages"),
        "--labels_csv", str(voc / "tags.csv"), "--classes", ",".join([*VOC_CLASSES[1:5], "person"]),
        "--background_words", "sky, tree",
        "--templates", "photo", "--image_size", "32", "--label_size", "8", "--decoder_dim", "16", "--decoder_heads", "2",
        "--confidence", "0.1", "--max_iterations", "20", *TWO_STEPS, "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    check(tmp_path / "out")
    config = json.loads((tmp_path / "out/final/config.json").read_text())
    assert config["decoder_layers"] == 3 and config["affinity_threshold"] == 0.4


def test_mta_clip(clip_folder, tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for index in range(3):
        picture(root / f"images/training/ADE_train_{index}.jpg", (80, 64))
        mask(root / f"annotations/training/ADE_train_{index}.png", [0, 1 + index, 75, 150], (80, 64))
    (root / "classes.txt").write_text("\n".join(BENCHMARKS["ade20k"].class_names))
    train_mta_clip.main([
        "--recipe", "mta-clip-ade20k", "--model_name_or_path", str(clip_folder), "--dataset_name", str(root),
        "--split", "training",
        "--crop_size", "48", "64", "--short_side", "64", "--hidden_dim", "64", "--num_attention_heads", "2",
        "--pixel_decoder_layers", "1", "--pixel_decoder_feedforward_dim", "32", "--feedforward_dim", "32",
        "--decoder_layers", "2", "--num_queries", "6", "--num_prompt_tokens", "4", "--num_points", "64", *TWO_STEPS,
        "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    check(tmp_path / "out")
    config = json.loads((tmp_path / "out/final/config.json").read_text())
    assert config["normalise_texts"] is False and config["num_prompts"] == 3 and len(config["class_names"]) == 150


def test_groupvit(tmp_path):
    """The published size, two images a step."""
    rows = []
    for index in range(4):
        picture(tmp_path / f"data/{index}.png", (64, 64))
        rows.append(json.dumps({"file_name": f"{index}.png", "text": "a boat on the sea"}))
    (tmp_path / "data/metadata.jsonl").write_text("\n".join(rows))
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    train_cocu.main([
        "--recipe", "groupvit-cc3m", "--dataset_name", str(tmp_path / "data"), "--tokenizer_name", str(tmp_path / "tokenizer"),
        "--max_text_length", "16", *TWO_STEPS, "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    check(tmp_path / "out")
    config = json.loads((tmp_path / "out/final/config.json").read_text())
    assert config["clip_config"]["vision_config"]["num_group_tokens"] == [64, 8, 0] and config["top_classes"] == 5
