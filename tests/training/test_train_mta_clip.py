"""The training script, end to end on small folders: what is learned, resuming, several processes, bad input."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import MobileNetV2Config, MobileNetV2ForSemanticSegmentation
from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil

from benchmarks.ablations import mta_clip as driver
from hf_clipseg import MtaClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.clip.vision_network import load_network
from hf_clipseg.processing.inference import segment
from training import train_mta_clip
from training.data.crops_or_features import cache_is_waste
from training.data.feature_cache import CropSettings, crop
from training.data.openers import open_masks
from training.engine.loop import SampleKey

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

ROOT = Path(__file__).parents[2]
NAMES = ["sky", "boat|ship", "grass", "tree"]
COLOURS = np.array([(90, 150, 230), (200, 60, 40), (60, 160, 60), (90, 70, 20)])
SMALL = [
    "--crop_size", "32", "32", "--short_side", "32", "--hidden_dim", "64", "--num_attention_heads", "4", "--num_points", "64",
    "--pixel_decoder_layers", "1", "--pixel_decoder_feedforward_dim", "32", "--num_prompt_tokens", "4",
    "--feedforward_dim", "32", "--decoder_layers", "2", "--num_queries", "6", "--learning_rate", "3e-3",
    "--mixed_precision", "no", "--backbone_factor", "0.1", "--crops_per_image", "0", "--method", "mta_clip",
]  # fmt: skip


def save_folder(folder, count=6):
    """Images of coloured quarters with their masks and a class file."""
    generator = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for index in range(count):
        mask = generator.permutation(4).reshape(2, 2).repeat(20, 0).repeat(20, 1)
        noise = generator.integers(-20, 20, (40, 40, 3))
        Image.fromarray((COLOURS[mask] + noise).clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{index}.png")
        mask[:2] = 255
        Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / f"{index}.png")
    (folder / "classes.txt").write_text("\n".join(NAMES))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("data"))


def options(clip_folder, data, output_dir, *more):
    return [
        "--model_name_or_path", str(clip_folder), "--dataset_name", str(data), "--output_dir", str(output_dir), *SMALL,
        "--preset", "paper",
        "--max_train_steps", "4", "--train_batch_size", "4", "--checkpointing_steps", "2", "--logging_steps", "1",
        "--warmup_steps", "1", *more,
    ]  # fmt: skip


def train(*arguments):
    return train_mta_clip.run(train_mta_clip.parse_arguments(options(*arguments)))


def logged(output_dir):
    return [json.loads(line) for line in (Path(output_dir) / "metrics.jsonl").read_text().splitlines()]


def test_learns_and_leaves_a_checkpoint(clip_folder, data, tmp_path):
    train(clip_folder, data, tmp_path, "--max_train_steps", "40", "--checkpointing_steps", "40", "--validation_split", "train",
          "--validation_steps", "40")  # fmt: skip
    lines = logged(tmp_path)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    assert lines[-1]["mIoU"] > 0.3  # 0.25 of every pixel is right by chance, 0.14 in mIoU
    assert {"cross_entropy", "mask", "dice", "contrastive"} <= lines[0].keys()
    model = MtaClipForSemanticSegmentation.from_pretrained(tmp_path / "final")
    processor = SegmentationProcessor.from_pretrained(tmp_path / "final")
    assert model.config.id2label == {0: "sky", 1: "boat", 2: "grass", 3: "tree"}
    assert segment(model, processor, [data / "images" / "0.png"])[0].shape == (40, 40)
    assert not list(tmp_path.glob(".*partial"))


def test_resuming_gives_the_very_same_model(clip_folder, data, tmp_path):
    whole = train(clip_folder, data, tmp_path / "whole")
    train(clip_folder, data, tmp_path / "cut", "--checkpoints_total_limit", "9")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = train(clip_folder, data, tmp_path / "cut", "--resume_from_checkpoint", "latest")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_two_processes_with_half_the_batch_give_the_same_losses(clip_folder, data, tmp_path):
    """Started by torchrun: `accelerate launch --cpu --num_processes 2` starts a single process where there is no MPI."""
    train(clip_folder, data, tmp_path / "one", "--train_batch_size", "4")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "training.train_mta_clip",
        *options(clip_folder, data, tmp_path / "two", "--train_batch_size", "2"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    names = ("loss", "cross_entropy", "mask", "dice", "contrastive")
    one, two = ([[line[name] for name in names] for line in logged(tmp_path / part)] for part in ("one", "two"))
    assert len(one) == 4
    np.testing.assert_allclose(two, one, rtol=2e-4)


def test_frozen_features_are_computed_once(clip_folder, data, tmp_path):
    cache = tmp_path / "cache"
    more = ("--backbone_factor", "0", "--crops_per_image", "2", "--cache_dir", str(cache))
    model = train(clip_folder, data, tmp_path / "first", *more)
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    fresh = MtaClipForSemanticSegmentation.from_clip(clip_folder, num_prompts=0)
    for name, value in model.clip.state_dict().items():
        assert torch.equal(value, fresh.clip.state_dict()[name]), name
    AcceleratorState._reset_state(reset_partial_state=True)
    again = train(clip_folder, data, tmp_path / "second", *more)
    assert files and files == {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert torch.equal(again.class_predictor.weight, model.class_predictor.weight)
    with pytest.raises(ValueError, match="--backbone_factor 0"):
        train(clip_folder, data, tmp_path / "third", "--crops_per_image", "2")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny MobileNetV2 that has learned other things, saved as a segmenter with its own preprocessing."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = MobileNetV2Config(depth_multiplier=0.25, output_stride=16)
    MobileNetV2ForSemanticSegmentation(config).save_pretrained(folder)
    MobileNetV2ImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
    return folder


def test_another_encoder_frozen_with_its_features_computed_once(clip_folder, data, encoder, tmp_path):
    """Its weights stay, its preprocessing goes along, and what is saved says the same as what was trained on its features."""
    more = ("--vision_backbone", str(encoder), "--backbone_factor", "0")
    model = train(clip_folder, data, tmp_path / "cached", *more, "--crops_per_image", "2")
    network = load_network(encoder)
    for name, value in model.pyramid.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    processor = SegmentationProcessor.from_pretrained(tmp_path / "cached" / "final")
    assert tuple(processor.image_processor.image_std) == (0.25,) * 3 and processor.image_processor.size_divisor == 16
    loaded = MtaClipForSemanticSegmentation.from_pretrained(tmp_path / "cached" / "final")
    pixel_values = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)

    args = train_mta_clip.parse_arguments(options(clip_folder, data, tmp_path, *more, "--crops_per_image", "2"))
    source, model = open_masks(args), model.eval()
    cached = train_mta_clip.make_dataset(args, source, model, model.pyramid.network, processor)
    sample = cached[SampleKey(0, 0, 0)]
    pixels, labels = crop(processor, source[0]["image"], source[0]["mask"], CropSettings(32, 2, max_scale=2.0), 0, 0)
    with torch.no_grad():
        maps, _ = model.encode_blocks(pixels[None])
    for found, expected in zip(sample["block_maps"], maps, strict=True):
        torch.testing.assert_close(found, expected[0], atol=2e-3, rtol=1e-3)  # kept in half precision
    assert torch.equal(sample["labels"], labels)


def test_another_encoder_learns_at_its_own_rate(clip_folder, data, encoder, tmp_path):
    """Crops are normalised as it wants them; it learns at a tenth of the rate, but for what no map depends on."""
    more = ("--vision_backbone", str(encoder), "--max_train_steps", "1", "--method", "pixel_text", "--weight_decay", "0")
    args = train_mta_clip.parse_arguments(options(clip_folder, data, tmp_path / "x", *more))
    processor, source = train_mta_clip.make_processor(args), open_masks(args)
    model = train_mta_clip.build_model(args, processor, train_mta_clip.choose_class_names(args, source))
    factors = train_mta_clip.learning_rate_factors(args, 3)
    groups = train_mta_clip.parameter_groups(model, 1.0, 0.0, factors)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    assert rates[id(model.pyramid.network.layer[3].reduce_1x1.convolution.weight)] == 0.1
    assert id(model.pyramid.network.conv_1x1.convolution.weight) not in rates
    sample = train_mta_clip.make_dataset(args, source, model, model.pyramid.network, processor)[SampleKey(0, 0, 0)]
    assert sample["pixel_values"].min() >= -2 and sample["pixel_values"].max() <= 2  # (0 - 0.5) / 0.25 to (1 - 0.5) / 0.25
    trained = train(clip_folder, data, tmp_path / "run", *more).pyramid.network.state_dict()
    before = load_network(encoder).state_dict()
    changed = {name for name, value in trained.items() if not torch.equal(value, before[name])}
    assert "conv_stem.conv_3x3.convolution.weight" in changed
    assert not [name for name in changed if "running" in name or name.startswith("conv_1x1")]


def test_names_that_clip_does_not_know_are_said_and_learned(clip_folder, data, tmp_path, caplog):
    """The tiny tokenizer knows none of two names: each class gets a text of its own."""
    names = tmp_path / "names.txt"
    names.write_text("sky\nferry\nmeadow\ntree")
    model = train(clip_folder, data, tmp_path / "run", "--classes", str(names), "--method", "pixel_text", "--decay_contexts")
    assert "does not know the words ferry, meadow" in caplog.text
    assert model.config.learned_class_texts and model.class_offsets.abs().sum() > 0
    assert (model.class_embeds[:, 1] - model.class_embeds[:, 2]).abs().max() > 1e-4
    assert not train(clip_folder, data, tmp_path / "known", "--method", "pixel_text").config.learned_class_texts


def test_a_machine_without_an_accelerator_gets_a_small_decoder(monkeypatch):
    """Announced, and overruled by what is asked for; drawings and recipes keep what they say."""

    def parsed(*more):
        return train_mta_clip.parse_arguments(["--output_dir", "x", *more])

    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    args = parsed("--dataset_name", "photographs", "--vision_backbone", "network")
    assert (args.preset, args.method, args.num_prompts, args.hidden_dim, args.backbone_factor) == (
        "cpu",
        "pixel_text",
        1,
        64,
        0,
    )
    assert (args.direct_features, args.crop_size, args.short_side, args.crops_per_image) == (True, [384, 384], 384, 2)
    assert not cache_is_waste(args, 1200) and cache_is_waste(args, 1201)
    args.crops_per_image = 3  # asked for
    assert not cache_is_waste(args, 10_000)
    learns = parsed("--dataset_name", "photographs", "--vision_backbone", "network", "--backbone_factor", "0.1")
    assert cache_is_waste(learns, 10)
    asked = parsed("--dataset_name", "photographs", "--vision_backbone", "network", "--method", "mta_clip")
    assert (asked.method, asked.num_prompts) == ("mta_clip", 3)
    for more, scale in (([], 2), (["--model_name_or_path", "openai/clip-vit-base-patch16"], 4)):
        args = parsed("--dataset_name", "photographs", *more)
        assert (args.method, args.backbone_factor, args.crops_per_image, args.finest_scale) == ("pixel_text", 0.0, 4, scale)
    args = parsed("--dataset_name", "photographs", "--vision_backbone", "n", "--hidden_dim", "128", "--backbone_factor", "1")
    assert (args.hidden_dim, args.backbone_factor) == (128, 1.0)
    assert parsed("--dataset_name", "photographs", "--preset", "paper").hidden_dim == 256
    assert parsed().preset == "toyscapes"
    assert parsed("--dataset_name", "ADE", "--recipe", "mta-clip-ade20k").hidden_dim == 256
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert parsed("--dataset_name", "photographs").hidden_dim == 256


def test_starting_from_another_checkpoint(clip_folder, data, tmp_path):
    baseline = train(clip_folder, data, tmp_path / "baseline", "--method", "pixel_text")
    folder = str(tmp_path / "baseline" / "final")
    args = train_mta_clip.parse_arguments(options(clip_folder, data, tmp_path, "--initial_checkpoint", folder))
    model = train_mta_clip.build_model(args, train_mta_clip.make_processor(args), [[name] for name in "abc"])
    for name in ("pyramid", "pixel_decoder"):
        for weight, expected in zip(getattr(model, name).parameters(), getattr(baseline, name).parameters(), strict=True):
            assert torch.equal(weight, expected)


@pytest.mark.parametrize("more", [("--method", "pixel_text"), ("--num_prompts", "0"), ("--ema_decay", "0.5")])
def test_baseline_ablation_and_average(clip_folder, data, tmp_path, more):
    model = train(clip_folder, data, tmp_path, "--max_train_steps", "2", *more)
    loaded = type(model).from_pretrained(tmp_path / "final")
    pixel_values = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)


def test_learning_rates_and_decay(clip_folder, data, tmp_path):
    args = train_mta_clip.parse_arguments(options(clip_folder, data, tmp_path, "--layer_decay", "0.5"))
    source = open_masks(args)
    model = train_mta_clip.build_model(
        args, train_mta_clip.make_processor(args), train_mta_clip.choose_class_names(args, source)
    )
    factors = train_mta_clip.learning_rate_factors(args, len(model.clip.blocks))
    groups = train_mta_clip.parameter_groups(model, args.learning_rate, 0.02, factors, train_mta_clip.UNDECAYED)
    setting = {id(parameter): (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}

    def of(parameter):
        return setting[id(parameter)]

    assert of(model.class_predictor.weight) == (3e-3, 0.02)
    for parameter in (model.query_features.weight, model.decoder.level_embed, model.prompts.contexts, model.input_norm.weight):
        assert of(parameter) == (3e-3, 0.0)
    rates = [of(block.mlp.fc1.weight)[0] for block in model.clip.blocks]
    assert rates == pytest.approx([0.75e-4, 1.5e-4, 3e-4])
    assert of(model.clip.vision_model.embeddings.patch_embedding.weight)[0] == pytest.approx(0.375e-4)
    assert id(model.clip.text_projection.weight) not in setting


def test_presets_and_their_batch(caplog):
    args = train_mta_clip.parse_arguments(["--preset", "cityscapes", "--output_dir", "x", "--train_batch_size", "2"])
    assert args.crop_size == [512, 1024] and args.max_train_steps == 90_000 and not args.reduce_labels
    train_mta_clip.warn_about_batch(args, processes=4)
    assert "8 images (4 processes x 2 x 1 accumulated)" in caplog.text and "are for 16" in caplog.text
    caplog.clear()
    train_mta_clip.warn_about_batch(args, processes=8)
    assert not caplog.text
    args = train_mta_clip.parse_arguments(["--preset", "ade20k", "--output_dir", "x", "--no-reduce_labels"])
    assert args.max_train_steps == 160_000 and not args.reduce_labels and args.num_queries == 100 and args.num_prompts == 3
    assert train_mta_clip.parse_arguments(["--method", "pixel_text", "--output_dir", "x"]).num_prompts == 1


def broken_copy(data, folder, mask):
    shutil.copytree(data, folder)
    Image.fromarray(mask.astype(np.uint8)).save(folder / "masks" / "3.png")
    return folder


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((40, 40), 77), r"'3'.*77.*4 classes"),
        (np.zeros((30, 40)), r"'3' differ in size.*\(40, 40\) and \(30, 40\)"),
    ],
)
def test_broken_masks_are_named(clip_folder, data, tmp_path, mask, message):
    with pytest.raises(ValueError, match=message):
        train(clip_folder, broken_copy(data, tmp_path / "data", mask), tmp_path / "run")


def test_a_class_list_that_is_too_short(clip_folder, data, tmp_path):
    (tmp_path / "short.txt").write_text("sky\nboat")
    with pytest.raises(ValueError, match="2 classes"):
        train(clip_folder, data, tmp_path / "run", "--classes", str(tmp_path / "short.txt"))


def test_a_folder_without_class_names(clip_folder, data, tmp_path):
    nameless = shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("classes.txt"))
    with pytest.raises(ValueError, match="--classes"):
        train(clip_folder, nameless, tmp_path / "run")


def test_errors_end_the_command_with_their_message(clip_folder, data, tmp_path):
    with pytest.raises(SystemExit, match="error: .*does-not-exist"):
        train_mta_clip.main(options(clip_folder, data, tmp_path, "--classes", str(tmp_path / "does-not-exist.txt")))


def test_crops_without_a_label(clip_folder, data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.full((40, 40), 255, dtype=np.uint8)).save(path)
    train(clip_folder, folder, tmp_path / "run")
    assert [line["loss"] for line in logged(tmp_path / "run")] == [0, 0, 0, 0]


@pytest.mark.parametrize("action", ["error", "skip"])
def test_diverged_predictions(clip_folder, data, tmp_path, monkeypatch, caplog, action):
    """Images that hold NaN in the second of four steps."""
    batches = iter(range(4))

    def collate_with_nan(samples):
        batch = train_mta_clip.collate(samples)
        return batch | {"pixel_values": batch["pixel_values"] * (float("nan") if next(batches) == 1 else 1)}

    original = train_mta_clip.train
    monkeypatch.setattr(train_mta_clip, "train", lambda *args, **kwargs: original(*args[:-1], collate_with_nan, **kwargs))
    if action == "error":
        with pytest.raises(ValueError, match="not finite"):
            train(clip_folder, data, tmp_path)
        return
    train(clip_folder, data, tmp_path, "--on_nonfinite_loss", "skip")
    assert [line["step"] for line in logged(tmp_path)] == [1, 3, 4] and "step 2 left out" in caplog.text


def test_a_kill_while_saving_leaves_no_half_written_checkpoint(clip_folder, data, tmp_path, monkeypatch):
    train(clip_folder, data, tmp_path)
    before = (tmp_path / "final" / "model.safetensors").read_bytes()

    def killed(self, folder, **kwargs):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(MtaClipForSemanticSegmentation, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        train(clip_folder, data, tmp_path, "--resume_from_checkpoint", "latest")
    assert (tmp_path / "final" / "model.safetensors").read_bytes() == before


# -- real photographs


def test_coco_ids_are_remapped_by_a_file(clip_folder, real_data, tmp_path):
    """133 classes under non-contiguous ids, 0 unlabelled."""
    coco = real_data / "coco_panoptic100"
    categories = json.loads((coco / "panoptic_categories.json").read_text())
    folder = tmp_path / "data"
    for part, source in (("images", "images"), ("masks", "masks_catid")):
        (folder / part).mkdir(parents=True)
        for path in sorted((coco / source).rglob("*.*"))[:8]:
            (folder / part / path.name).symlink_to(path)
    (folder / "classes.txt").write_text("\n".join(category["name"] for category in categories))
    id_map = {0: 255} | {category["id"]: index for index, category in enumerate(categories)}
    (tmp_path / "ids.json").write_text(json.dumps(id_map))
    model = train(clip_folder, folder, tmp_path / "run", "--id_map", str(tmp_path / "ids.json"), "--max_train_steps", "2")
    assert model.config.num_labels == 133
    with pytest.raises(ValueError, match="133 classes"):
        train(clip_folder, folder, tmp_path / "other")


def test_ade20k_labels_are_reduced(clip_folder, real_data, tmp_path):
    ade = real_data / "ade20k_sample3"
    folder = tmp_path / "data"
    for part, source in (("images", "images"), ("masks", "annotations")):
        (folder / part).mkdir(parents=True)
        for path in sorted((ade / source).iterdir()):
            (folder / part / path.name).symlink_to(path)
    rows = list(csv.DictReader((ade / "objectInfo150.csv").open()))
    (folder / "classes.txt").write_text("\n".join(f"{row['Name'].split(';')[0]} {row['Idx']}" for row in rows))
    model = train(clip_folder, folder, tmp_path / "run", "--reduce_labels", "--max_train_steps", "2")
    assert model.config.num_labels == 150
    args = train_mta_clip.parse_arguments(options(clip_folder, folder, tmp_path, "--reduce_labels"))
    source = open_masks(args)
    stored = np.array(Image.open(folder / "masks" / f"{source[0]['key']}.png")).astype(int)
    expected = np.where(stored == 0, 255, stored - 1)
    assert np.array_equal(source[0]["mask"], expected)


def test_driver_draws_curves_of_any_clip_and_data_set_at_the_best_rate(clip_folder, tmp_path, monkeypatch):
    data, folder = save_folder(tmp_path / "data", 12), tmp_path / "runs"
    command = [
        "--output_dir", str(folder), "--clip", str(clip_folder), "--dataset_name", str(data), "--validation_fraction", "0.5",
        "--variants", "pixel-text baseline", "--seeds", "0", "--steps", "1", "3", "--rates", "1e-9", "3e-3",
        *SMALL, "--preset", "paper", "--train_batch_size", "2", "--logging_steps", "1", "--warmup_steps", "0",
    ]  # fmt: skip
    driver.main(command)
    tried = [json.loads(path.read_text()) for path in sorted((folder / "rates").glob("*.json"))]
    best = max(tried, key=lambda run: run["mIoU"])
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    assert {run["rate"] for run in tried} == {1e-9, 3e-3} and {run["steps"] for run in tried} == {1}
    assert [(run["steps"], run["rate"]) for run in runs] == [(1, best["rate"]), (3, best["rate"])]
    assert all(len(run["gradient_norms"]) == 2 and run["test_images"] + tried[0]["test_images"] < 12 for run in runs)
    assert not list(folder.rglob("checkpoint-*"))
    lines = driver.tables(folder).splitlines()
    assert "stuff" not in lines[0] and [line.split(" | ")[1] for line in lines[2:]] == ["1", "3"]

    monkeypatch.setattr(train_mta_clip, "run", lambda _: pytest.fail("a finished run is done again"))
    driver.main(command)


def test_driver_scores_a_rate_and_a_run_on_different_images(data):
    args, _ = driver.parse_arguments(["--output_dir", "runs", "--dataset_name", str(data), "--test_split", "train"])
    whole = driver.open_images(args)["test"]
    args.rates = [1e-3]
    images = driver.open_images(args)
    keys = {role: {sample["key"] for sample in part.samples} for role, part in images.items()}
    assert not keys["test"] & keys["chosen"] and keys["test"] | keys["chosen"] == {sample["key"] for sample in whole.samples}
