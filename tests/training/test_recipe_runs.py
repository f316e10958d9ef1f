"""Two steps of every recipe on miniature data of the true layout, classes and schema.

The models are tiny, so that this takes seconds. With HF_CLIPSEG_FULL_SIZE=1 they have the size that the recipe says (ViT-B/16
and ResNet-101 of random weights, the published GroupViT, crops of 224 to 1024 pixels), one or two images a step; that takes
minutes and OpenAI's vocabulary from HF_CLIPSEG_REAL_DATA, and prints time and memory of each:

    HF_CLIPSEG_FULL_SIZE=1 python -m pytest tests/training/test_recipe_runs.py -s
"""

import io
import json
import os
import resource
import tarfile
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import CLIPConfig, CLIPModel, ResNetBackbone, ResNetConfig

from training import train_cocu, train_mta_clip, train_mvp_seg, train_mvp_seg_plus, train_vpl
from training.data.benchmarks import BENCHMARKS

from ..tiny import openai_tokenizer, save_tiny_clip, tiny_tokenizer
from ..tiny_groupvit import tiny_groupvit_config
from .test_train_cocu import write_sidecar

FULL_SIZE = os.environ.get("HF_CLIPSEG_FULL_SIZE") == "1"
VOC, CONTEXT, STUFF = (list(BENCHMARKS[name].class_names) for name in ("voc20", "context59", "coco-stuff"))
THINGS = list(BENCHMARKS["coco-object"].class_names)[1:]
TWO_STEPS = [
    "--max_train_steps", "2", "--train_batch_size", "1" if FULL_SIZE else "2", "--warmup_steps", "1", "--logging_steps", "1",
    "--mixed_precision", "no",
]  # fmt: skip


def small(*options: str) -> list[str]:
    """Options that make a model or its input tiny; none at full size."""
    return [] if FULL_SIZE else list(options)


@pytest.fixture(autouse=True)
def measured(request):
    """Accelerate starts anew; at full size seconds and the peak of memory are printed."""
    AcceleratorState._reset_state(reset_partial_state=True)
    started = time.perf_counter()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    if FULL_SIZE:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"\n{request.node.name}: {time.perf_counter() - started:.0f} s, peak of the process so far {peak:.1f} GiB")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("clip")
    if not FULL_SIZE:
        return save_tiny_clip(folder)
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config={"patch_size": 16})).eval().save_pretrained(folder)
    tokenizer(request.getfixturevalue("real_data")).save_pretrained(folder)
    return folder


def tokenizer(real_data):
    words = openai_tokenizer(real_data / "clip_bpe/bpe_simple_vocab_16e6.txt.gz")
    words.model_max_length = 77
    return words


def picture(path, size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.stem)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(path)


def mask(path, labels, size=(40, 32)):
    """Vertical stripes of `labels`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stripes = np.repeat(np.array(labels, dtype=np.uint8), size[0] // len(labels))
    image = Image.fromarray(np.broadcast_to(stripes, (size[1], len(stripes))).copy())
    image.resize(size, Image.Resampling.NEAREST).save(path)


def losses(output):
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def trained(output) -> dict:
    """The configuration of what a run of two steps left."""
    assert len(losses(output)) == 2 and all(np.isfinite(losses(output)))
    assert (output / "final/model.safetensors").is_file()
    return json.loads((output / "final/config.json").read_text())


# ---- MVP-SEG and MVP-SEG+


def voc_folder(root):
    """VOCdevkit's layout; unseen classes (16 to 20 with background 0) are there and withheld."""
    keys = [f"2011_{index:06d}" for index in range(4)]
    for index, key in enumerate(keys):
        picture(root / f"JPEGImages/{key}.jpg")
        mask(root / f"SegmentationClass/{key}.png", [0, 1 + index, 15, 16 + index, 255])
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(keys))
    return root


def mask_folder(root, class_names, labels):
    """`images/` and `masks/` beside `classes.txt`, as the recipes of Context and COCO-Stuff say."""
    for index, of_image in enumerate(labels):
        picture(root / f"images/train/{index:012d}.jpg")
        mask(root / f"masks/train/{index:012d}.png", of_image)
    (root / "classes.txt").write_text("\n".join(class_names))
    return root


MASK_DATA = {
    "voc": (voc_folder, VOC),
    "coco-stuff": (lambda root: mask_folder(root, STUFF, [[0, 19, 90, 170, 255], [1, 133, 2, 160, 80]]), STUFF),
    "context": (lambda root: mask_folder(root, CONTEXT, [[0, 1, 30, 59], [7, 2, 0, 49]]), CONTEXT),
}


@pytest.mark.parametrize("data", MASK_DATA)
def test_mvp_seg_and_its_student(data, clip_folder, tmp_path):
    make, class_names = MASK_DATA[data]
    source = make(tmp_path / "data")
    options = [*small("--image_size", "32"), *TWO_STEPS, "--dataset_name", str(source)]
    train_mvp_seg.main([
        "--recipe", f"mvp-seg-{data}", "--model_name_or_path", str(clip_folder), *small("--num_prompt_tokens", "4"), *options,
        *(["--gradient_checkpointing"] if FULL_SIZE else []), "--output_dir", str(tmp_path / "teacher"),
    ])  # fmt: skip
    config = trained(tmp_path / "teacher")
    assert (config["orthogonality"], config["global_refinement"], config["presence_loss"]) == ("prompt", "paper", "positive")
    assert [names[0] for names in config["class_names"]] == class_names
    tiny = {} if FULL_SIZE else {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4}
    ResNetBackbone(ResNetConfig(**({"depths": [3, 4, 23, 3]} | tiny))).save_pretrained(tmp_path / "resnet")
    AcceleratorState._reset_state(reset_partial_state=True)
    train_mvp_seg_plus.main([
        "--recipe", f"mvp-seg-plus-{data}", "--teacher", str(tmp_path / "teacher/final"),
        "--backbone", str(tmp_path / "resnet"), *options, "--teacher_steps", "1", "--output_dir", str(tmp_path / "student"),
    ])  # fmt: skip
    assert [names[0] for names in trained(tmp_path / "student")["class_names"]] == class_names


# ---- VPL


@pytest.mark.parametrize(("data", "class_names", "threshold"), [("voc", VOC, 0.4), ("coco", THINGS, 0.7)])
def test_all_stages_of_vpl(data, class_names, threshold, clip_folder, tmp_path):
    tags = ["file,labels"]
    for index in range(4):  # every class is somewhere
        picture(tmp_path / f"photos/{index:06d}.jpg")
        tags.append(f"{index:06d}.jpg,{';'.join(class_names[index::4])}")
    (tmp_path / "tags.csv").write_text("\n".join(tags))
    (tmp_path / "classes.txt").write_text("\n".join(class_names))
    train_vpl.main([
        "--recipe", f"vpl-{data}", "--model_name_or_path", str(clip_folder), "--dataset_name", str(tmp_path / "photos"),
        "--labels_csv", str(tmp_path / "tags.csv"), "--classes", str(tmp_path / "classes.txt"), "--confidence", "0.1",
        *small("--background_words", "sky, tree", "--templates", "photo", "--image_size", "32", "--label_size", "8",
               "--decoder_dim", "16", "--decoder_heads", "2", "--max_iterations", "20"),
        *TWO_STEPS, "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    config = trained(tmp_path / "out")
    assert config["decoder_layers"] == 3 and config["affinity_threshold"] == threshold
    assert [config["id2label"][str(label)] for label in range(len(class_names) + 1)] == ["background", *class_names]
    assert len(list((tmp_path / "out/pseudo_labels").glob("*.confidence.png"))) == 4


# ---- MTA-CLIP


def ade20k_folder(root):
    for index in range(3):
        picture(root / f"images/training/ADE_train_{index}.jpg", (80, 64))
        mask(root / f"annotations/training/ADE_train_{index}.png", [0, 1 + index, 75, 150], (80, 64))
    (root / "classes.txt").write_text("\n".join(BENCHMARKS["ade20k"].class_names))
    return ["--dataset_name", str(root), "--split", "training"]


def cityscapes_folder(root):
    """`labelIds`, which the preset's map turns into 19 train ids."""
    for index in range(3):
        key = f"aachen/aachen_{index:06d}_000019"
        picture(root / f"leftImg8bit/train/{key}_leftImg8bit.png", (128, 64))
        mask(root / f"gtFine/train/{key}_gtFine_labelIds.png", [0, 7, 8, 26, 33, 11, 21, 23], (128, 64))
    return ["--dataset_name", str(root)]


@pytest.mark.parametrize(("data", "make", "count"), [("ade20k", ade20k_folder, 150), ("cityscapes", cityscapes_folder, 19)])
def test_mta_clip(data, make, count, clip_folder, tmp_path):
    train_mta_clip.main([
        "--recipe", f"mta-clip-{data}", "--model_name_or_path", str(clip_folder), *make(tmp_path / "data"),
        *small("--crop_size", "48", "64", "--short_side", "64", "--hidden_dim", "64", "--num_attention_heads", "2",
               "--pixel_decoder_layers", "1", "--pixel_decoder_feedforward_dim", "32", "--feedforward_dim", "32",
               "--decoder_layers", "2", "--num_queries", "6", "--num_prompt_tokens", "4", "--num_points", "64"),
        *TWO_STEPS, "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    config = trained(tmp_path / "out")
    assert config["normalise_texts"] is False and config["num_prompts"] == 3 and len(config["class_names"]) == count


# ---- CoCu and GroupViT


CAPTIONS = ("a boat on the sea", "a red car in the grass", "a person and a tree", "the sky")


def caption_shards(root):
    """WebDataset shards as `pixparse/cc3m-wds` has them: a jpg, a txt and a json per key of nine digits."""
    root.mkdir()
    keys = [f"{index:09d}" for index in range(len(CAPTIONS))]
    with tarfile.open(root / "cc-train-0000.tar", "w") as tar:
        for index, (key, caption) in enumerate(zip(keys, CAPTIONS, strict=True)):
            image = io.BytesIO()
            Image.fromarray(np.random.default_rng(index).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(image, "JPEG")
            fields = json.dumps({"key": key, "status": "success", "caption": caption}).encode()
            for suffix, content in (("jpg", image.getvalue()), ("txt", caption.encode()), ("json", fields)):
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return keys


@pytest.mark.parametrize("data", ["cc3m", "cc12m"])
@pytest.mark.parametrize("method", ["groupvit", "cocu"])
def test_cocu_and_groupvit(method, data, tmp_path, request):
    keys = caption_shards(tmp_path / "shards")
    words = tokenizer(request.getfixturevalue("real_data")) if FULL_SIZE else tiny_tokenizer()
    words.save_pretrained(tmp_path / "tokenizer")
    config = tiny_groupvit_config().to_dict()
    for name in ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
        del config["text_config"][name]
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    concepts = []
    if method == "cocu":
        row = {"caption_concepts": ["sea"], "concepts": ["boat", "sea", "tree", "sky"], "scores": [2.0, 1.9, 1.0, 0.5],
               "clusters": [0, 0, 1, 2]}  # fmt: skip
        concepts = ["--concepts", str(write_sidecar(tmp_path / "concepts", dict.fromkeys(keys, row)))]
    train_cocu.main([
        "--recipe", f"{method}-{data}", "--dataset_name", str(tmp_path / "shards"), *concepts,
        "--tokenizer_name", str(tmp_path / "tokenizer"),
        *small("--model_config", str(tmp_path / "tiny.json"), "--image_size", "32", "--max_text_length", "16"),
        *TWO_STEPS, "--train_batch_size", "2", "--output_dir", str(tmp_path / "out"),
    ])  # fmt: skip
    config = trained(tmp_path / "out")
    assert config["clip_config"]["vision_config"]["num_group_tokens"] == ([64, 8, 0] if FULL_SIZE else [8, 4, 0])
    assert config["top_classes"] == 5
