"""`--preset photos`: options of their own that the command line overrides, and what they do, from the first step to `final`."""

import importlib
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from hf_clipseg import MtaClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.processing.inference import segment
from training import train_mta_clip
from training.export import export
from training.settings.photo_presets import PHOTOS

from .test_train_mta_clip import SMALL, save_folder

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp("data"))


def arguments(clip_folder, data, output, *more):
    return [
        "--preset", "photos", "--model_name_or_path", str(clip_folder), "--dataset_name", str(data),
        "--output_dir", str(output), *SMALL, "--max_train_steps", "4", "--train_batch_size", "4",
        "--checkpointing_steps", "2", "--logging_steps", "1",
        "--warmup_steps", "1", "--validation_window", "32", "--validation_stride", "16", *more,
    ]  # fmt: skip


def train(*given):
    return train_mta_clip.run(train_mta_clip.parse_arguments(arguments(*given)))


@pytest.mark.parametrize("command", PHOTOS)
def test_the_preset_sets_options_that_the_command_line_overrides(command):
    script = importlib.import_module(f"training.{command}")
    needed = ["--output_dir", "x", "--dataset_name", "my-folder", *(["--sampling", "none"] if command == "train_cocu" else [])]
    without = ["--preset", "paper"] if command == "train_mta_clip" else []  # which has another default on a processor
    plain, preset = (vars(script.parse_arguments([*needed, *more])) for more in (without, ["--preset", "photos"]))
    assert PHOTOS[command].keys() <= plain.keys()
    changed = {name: value for name, value in preset.items() if value != plain[name]} | {"preset": "photos"}
    del changed["command_line"]
    assert changed == {k: v for k, v in PHOTOS[command].items() if plain[k] != v} | {"preset": "photos"}
    overridden = script.parse_arguments([*needed, "--preset", "photos", "--ema_decay", "0", "--rehearsal_steps", "7"])
    assert (overridden.ema_decay, overridden.rehearsal_steps) == (0.0, 7)


def test_from_photographs_to_a_card(clip_folder, data, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(clip_folder, data, tmp_path, "--validation_split", "train", "--validation_steps", "2")
    said = [record.getMessage() for record in caplog.records]
    (place,) = [index for index, text in enumerate(said) if "this will take about" in text]
    assert "2 validations of" in said[place] and "measured on 3 steps" in said[place]
    card = (tmp_path / "final" / "README.md").read_text()
    assert "![Validation images with their masks, and the model's](predictions.png)" in card and "| boat |" in card
    sheet = Image.open(tmp_path / "final" / "predictions.png")
    assert sheet.tobytes() == Image.open(tmp_path / "pictures" / "step-000004.png").tobytes()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scored = [row for row in rows if "mIoU" in row]
    assert [row["step"] for row in scored] == [2, 4] and all({"IoU/sky", "IoU/boat"} <= row.keys() for row in scored)
    average = load_file(tmp_path / "checkpoint-4" / "ema.safetensors")
    assert torch.equal(load_file(tmp_path / "final" / "model.safetensors")["class_predictor.weight"],
                       average["class_predictor.weight"])  # fmt: skip


def test_fixed_crops_say_what_they_do_not_use(clip_folder, data, tmp_path, caplog):
    args = train_mta_clip.parse_arguments(
        arguments(clip_folder, data, tmp_path, "--backbone_factor", "0", "--crops_per_image", "1", "--colour_jitter", "0")
    )
    with caplog.at_level("INFO"):
        train_mta_clip.run(args)
    assert "these are not used: balanced_share, hue_jitter" in caplog.text


LORA = ("--lora_rank", "2", "--rehearsal_steps", "0", "--validation_pictures", "0")


def test_lora_is_merged_into_a_result_that_needs_no_peft(clip_folder, data, tmp_path):
    pytest.importorskip("peft")
    whole = train(clip_folder, data, tmp_path / "whole", *LORA, "--checkpoints_total_limit", "9")
    start = MtaClipForSemanticSegmentation.from_clip(clip_folder, num_prompts=0).clip.state_dict()
    trained = whole.clip.state_dict()
    assert trained.keys() == {*start} and not any("lora" in name for name, _ in whole.named_parameters())
    moved = {name for name in start if not torch.equal(start[name], trained[name])}
    linear = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    layers = [f"vision_model.encoder.layers.{index}." for index in range(3)]
    parts = [f"self_attn.{name}.weight" if "proj" in name else f"mlp.{name}.weight" for name in linear]
    assert moved == {layer + part for layer in layers for part in parts}

    export(tmp_path / "whole" / "checkpoint-4", tmp_path / "exported")
    for folder in (tmp_path / "whole" / "final", tmp_path / "exported"):
        loaded = MtaClipForSemanticSegmentation.from_pretrained(folder)
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], value, rtol=1e-5, atol=1e-6, msg=name)
    processor = SegmentationProcessor.from_pretrained(tmp_path / "exported")
    assert segment(loaded, processor, [Path(data) / "images" / "0.png"])[0].shape == (40, 40)

    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = train(clip_folder, data, tmp_path / "cut", *LORA, "--resume_from_checkpoint", "latest")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_lora_with_activation_checkpointing_learns_alike(clip_folder, data, tmp_path):
    pytest.importorskip("peft")
    plain = train(clip_folder, data, tmp_path / "plain", *LORA, "--max_train_steps", "2")
    AcceleratorState._reset_state(reset_partial_state=True)
    saving = train(clip_folder, data, tmp_path / "saving", *LORA, "--max_train_steps", "2", "--gradient_checkpointing")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(saving.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_streamed_run_is_resumed_as_if_it_had_never_stopped(clip_folder, tmp_path):
    """Parquet, streamed, a part of it held out by key: cut after two of four steps, the run ends with the very same weights."""
    generator = np.random.default_rng(0)
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image(), "key": datasets.Value("string")})
    rows = [
        {"image": Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)),
         "mask": Image.fromarray(generator.integers(0, 4, (40, 40), dtype=np.uint8)), "key": f"photo {index}"}
        for index in range(12)
    ]  # fmt: skip
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / "train-00000.parquet")
    more = ("--streaming", "--limit", "11", "--classes", "sky,boat,grass,tree", "--validation_fraction", "0.3",
            "--validation_steps", "2", "--checkpoints_total_limit", "9", "--rehearsal_steps", "1")  # fmt: skip
    whole = train(clip_folder, tmp_path / "data", tmp_path / "whole", *more)
    state = json.loads((tmp_path / "whole" / "checkpoint-2" / "training_state.json").read_text())
    assert 0 < state["identity"]["num_items"] < 11  # the rest is held out
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    shutil.rmtree(tmp_path / "cut" / "final")
    AcceleratorState._reset_state(reset_partial_state=True)
    resumed = train(clip_folder, tmp_path / "data", tmp_path / "cut", *more, "--resume_from_checkpoint", "latest")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    scores = [[row for row in map(json.loads, (tmp_path / run / "metrics.jsonl").open()) if "mIoU" in row]
              for run in ("whole", "cut")]  # fmt: skip
    assert scores[0] == scores[1] and len(scores[0]) == 2
