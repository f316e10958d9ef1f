"""What all trainers do alike: score what they hold out, refuse to resume as another run, leave a whole result."""

import csv
import json
import shutil

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import CLIPModel

from hf_clipseg import CocuForSemanticSegmentation
from training import evaluate, train_clip, train_cocu, train_mvp_seg, train_vpl

from ..tiny_groupvit import tiny_groupvit_config
from .test_train_clip import TINY
from .test_train_mvp_seg import NAMES, arguments, save_folder
from .test_train_vpl import SMALL

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

FRACTION = ["--validation_fraction", "0.34"]


@pytest.fixture
def photos(tmp_path):
    """Six images with masks, tags and captions of four classes, as a flat folder."""
    folder = save_folder(tmp_path / "photos")
    with (folder / "tags.csv").open("w", newline="") as file:
        rows = [[f"images/{index}.png", ";".join(NAMES)] for index in range(6)]
        csv.writer(file).writerows([["file", "labels"], *rows])
    return folder


def as_captions(photos, folder):
    """The images with a `captions.csv`; keys are those of the masks."""
    shutil.copytree(photos / "images", folder / "images")
    rows = [[f"{index}.png", f"a {NAMES[index % 4]} and a {NAMES[(index + 1) % 4]}"] for index in range(6)]
    with (folder / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *rows])
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def mvp_seg(clip_folder, photos, output, *more):
    fixed = ["--model_name_or_path", str(clip_folder), "--num_prompt_tokens", "4", "--validation_steps", "3"]
    train_mvp_seg.main(arguments(photos, output, *fixed, *more))


def evaluated(folder, photos, output):
    AcceleratorState._reset_state(reset_partial_state=True)
    options = ["--dataset_name", str(photos), "--split", "validation", *FRACTION, "--output", str(output)]
    evaluate.main([str(folder), *options])
    return json.loads(output.read_text())


def test_the_last_score_of_a_run_is_what_evaluate_finds(clip_folder, photos, tmp_path):
    mvp_seg(clip_folder, photos, tmp_path / "run", *FRACTION)
    scores = {row["step"]: row["mIoU"] for row in rows_of(tmp_path / "run") if "mIoU" in row}
    assert list(scores) == [3, 6]
    figures = evaluated(tmp_path / "run" / "final", photos, tmp_path / "scores.json")
    assert figures["num_images"] == 2 and figures["mIoU"] == pytest.approx(scores[6], abs=2e-6)


def test_the_result_is_whole(clip_folder, photos, tmp_path):
    """Weights, processor, card with the command and the score, and the code for `trust_remote_code`."""
    mvp_seg(clip_folder, photos, tmp_path / "run", *FRACTION)
    final = tmp_path / "run" / "final"
    assert "AutoModelForSemanticSegmentation" in json.loads((final / "config.json").read_text())["auto_map"]
    assert (final / "modeling_mvp_seg.py").is_file() and (final / "processor_config.json").is_file()
    card = (final / "README.md").read_text()
    for words in ("python -m training.train_mvp_seg", "MVP-SEG on photos", "Withheld in training: boat, tree"):
        assert words in card
    (score,) = [row["mIoU"] for row in rows_of(tmp_path / "run") if row["step"] == 6 and "mIoU" in row]
    assert f"{score:.4f}" in card


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--classes", "tree,grass,boat,sky"], "class_names"),
        (["--unseen", "boat"], "unseen"),
        (["--anchor_weight", "0"], "anchor_weight"),
        (["--fusion", "max"], "model.fusion"),
        (["--limit", "5"], "num_items"),
    ],
)
def test_another_run_is_not_resumed(clip_folder, photos, tmp_path, change, named):
    mvp_seg(clip_folder, photos, tmp_path / "run", "--max_train_steps", "3")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(SystemExit, match=f"error: .*{named}"):
        mvp_seg(clip_folder, photos, tmp_path / "run", "--max_train_steps", "3", "--resume_from_checkpoint", "latest", *change)


def test_masks_that_tags_held_out_are_scored(clip_folder, photos, tmp_path):
    """VPL learns from tags and is scored on masks; `--validation_fraction` divides both alike."""
    options = ["--dataset_name", str(photos), "--model_name_or_path", str(clip_folder), "--affinity_layers", "0", *SMALL]
    train_vpl.main([*options, *FRACTION, "--validation_steps", "6", "--output_dir", str(tmp_path / "run")])
    assert len(list((tmp_path / "run" / "pseudo_labels").glob("*.confidence.png"))) == 4
    (score,) = [row["mIoU"] for row in rows_of(tmp_path / "run") if "mIoU" in row]
    figures = evaluated(tmp_path / "run" / "final", photos, tmp_path / "scores.json")
    assert figures["num_images"] == 2 and figures["mIoU"] == pytest.approx(score, abs=2e-6)


def test_captions_csv_pre_trains_a_clip(photos, tmp_path):
    captions = as_captions(photos, tmp_path / "captions")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    train_clip.main(
        ["--dataset_name", str(captions), "--clip_config", str(tmp_path / "config.json"), "--image_sizes", "16",
         "--max_train_steps", "2", "--train_batch_size", "4", "--logging_steps", "1", "--present_weight", "0",
         "--explained_weight", "0", "--validation_fraction", "0.34", "--validation_steps", "2",
         "--output_dir", str(tmp_path / "run")]
    )  # fmt: skip
    assert CLIPModel.from_pretrained(tmp_path / "run" / "final").config.projection_dim == TINY["projection_dim"]
    assert "recall_image_to_text" in rows_of(tmp_path / "run")[-1] and len(rows_of(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("more", "baked"), [([], None), (["--classes", "boat|ship, sky"], [["boat", "ship"], ["sky"]])], ids=["open", "named"]
)
def test_own_captions_bake_nothing_of_toyscapes(photos, tmp_path, more, baked):
    captions = as_captions(photos, tmp_path / "captions")
    config = tiny_groupvit_config().to_dict()
    for name in ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"):
        del config["text_config"][name]
    (tmp_path / "model.json").write_text(json.dumps(config))
    train_cocu.main(
        ["--dataset_name", str(captions), "--sampling", "none", "--model_config", str(tmp_path / "model.json"),
         "--max_train_steps", "1", "--train_batch_size", "4", "--image_size", "32", "--logging_steps", "1",
         "--output_dir", str(tmp_path / "run"), *more]
    )  # fmt: skip
    model = CocuForSemanticSegmentation.from_pretrained(tmp_path / "run" / "final")
    assert model.config.class_names == baked
    assert not any("mIoU" in row for row in rows_of(tmp_path / "run"))


def test_masks_of_other_classes_are_not_scored(clip_folder, photos, tmp_path):
    for split in ("train", "val"):
        for part in ("images", "masks"):
            shutil.copytree(photos / part, tmp_path / "data" / part / split)
    (tmp_path / "data" / "classes.txt").write_text("\n".join(NAMES))
    mask = np.full((40, 40), 7, np.uint8)
    Image.fromarray(mask).save(tmp_path / "data" / "masks" / "val" / "0.png")
    with pytest.raises(SystemExit, match=r"error: mask '0' holds the labels \[7\], but there are 4 classes"):
        mvp_seg(clip_folder, tmp_path / "data", tmp_path / "run", "--validation_split", "val")
