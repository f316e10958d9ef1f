"""The three stages of VPL's training, together and apart, on a tiny CLIP; and on real photographs where there are any."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from hf_clipseg import SegmentationProcessor, VisionPrototypes, VplForSemanticSegmentation
from hf_clipseg.processing.inference import segment
from training import train_vpl
from training.data.pseudo_masks import PseudoMasks, mask_path, write_mask
from training.data.tagged_images import load_tagged_images
from training.train_vpl import Collate

from ..localization.test_pseudo_labels import CLASSES, write_folder
from ..tiny import save_random_vit_b16, save_tiny_clip

SMALL = [
    "--decoder_dim", "16", "--decoder_heads", "2", "--decoder_layers", "1", "--image_size", "24", "--label_size", "12",
    "--localization_batch_size", "4", "--max_train_steps", "6", "--logging_steps", "2", "--train_batch_size", "4",
    "--warmup_steps", "2", "--refinement", "pamr", "--confidence", "0.3",
]  # fmt: skip


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "photos", count=12)


@pytest.fixture(scope="module")
def options(clip_folder, photos):
    data = ["--dataset_name", str(photos), "--labels_csv", str(photos / "tags.csv"), "--classes", ",".join(CLASSES)]
    return ["--model_name_or_path", str(clip_folder), *data, *SMALL]


def test_all_stages_leave_a_model_that_segments(options, photos, tmp_path):
    train_vpl.main(["--output_dir", str(tmp_path), *options])
    model = VplForSemanticSegmentation.from_pretrained(tmp_path / "final")
    processor = SegmentationProcessor.from_pretrained(tmp_path / "final")
    assert model.config.id2label == {0: "sky", 1: "boat", 2: "grass"} and not model.config.has_text_encoder
    (label_map,) = segment(model, processor, [photos / "1.png"], refinement="crf")
    assert label_map.shape == (24, 32) and set(np.unique(label_map)) <= {0, 1, 2}
    losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "cross_entropy", "affinity", "contrast"} <= losses[0].keys()
    prototypes = VisionPrototypes.load(tmp_path / "prototypes.safetensors", model.clip)
    assert torch.equal(prototypes.embeds, model.prototypes)


def test_stages_apart_equal_stages_together(options, tmp_path):
    for stages, folder in ((["prototypes", "pseudo_labels", "segmenter"], "together"), (None, "apart")):
        for stage in [stages] if stages else [["prototypes"], ["pseudo_labels"], ["segmenter"]]:
            train_vpl.main(["--output_dir", str(tmp_path / folder), "--stages", *stage, *options])
    together, apart = (VplForSemanticSegmentation.from_pretrained(tmp_path / name / "final") for name in ("together", "apart"))
    assert torch.equal(together.prototypes, apart.prototypes)
    for name, weight in together.state_dict().items():
        torch.testing.assert_close(weight, apart.state_dict()[name], msg=name)


def test_a_later_stage_needs_the_earlier_ones(options, tmp_path):
    with pytest.raises(SystemExit, match="error: .*cannot be read"):
        train_vpl.main(["--output_dir", str(tmp_path), "--stages", "segmenter", *options])
    train_vpl.main(["--output_dir", str(tmp_path), "--stages", "prototypes", *options])
    with pytest.raises(SystemExit, match="error: 12 images have no pseudo mask.*Run the stage"):
        train_vpl.main(["--output_dir", str(tmp_path), "--stages", "segmenter", *options])


def test_background_words_make_a_background_class(options, tmp_path):
    train_vpl.main(["--output_dir", str(tmp_path), "--background_words", "tree, car", *options])
    model = VplForSemanticSegmentation.from_pretrained(tmp_path / "final")
    assert model.config.id2label == {0: "background", 1: "sky", 2: "boat", 3: "grass"} and len(model.prototypes) == 5


def test_unsure_pixels_are_ignored(photos, tmp_path):
    source = load_tagged_images(str(photos), labels_csv=str(photos / "tags.csv"), class_names=CLASSES)
    labels, confidence = np.array([[0, 1], [2, 1]], np.uint8), np.array([[255, 100], [128, 127]], np.uint8)
    for key in source.keys:
        write_mask(tmp_path, key, labels, confidence)
    assert PseudoMasks(source, tmp_path, CLASSES, 0.5)[3]["mask"].tolist() == [[0, 255], [2, 255]]
    mask_path(tmp_path, source.keys[3]).unlink()
    with pytest.raises(ValueError, match="more/3.png"):
        PseudoMasks(source, tmp_path, CLASSES, 0.5)


def test_the_contrast_is_warmed_up():
    samples = [(torch.zeros(1), torch.zeros(1), step) for step in (5, 5)]
    assert Collate(10)(samples)["contrast_factor"] == 0.5
    assert Collate(2)(samples)["contrast_factor"] == Collate(0)(samples)["contrast_factor"] == 1.0


def test_labels_are_refined_from_the_middle_on(options, tmp_path):
    """The first half trains as without it, the second does not; a folder of stages 1 and 2 serves both."""
    for name, more in (("plain", []), ("online", ["--online_refinement", "--online_confidence", "0.3"])):
        train_vpl.main(["--output_dir", str(tmp_path / name), *options, "--logging_steps", "1", *more])
    plain, online = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("plain", "online")
    )
    assert len(plain) == 6 and plain[:3] == online[:3] and plain[3] != online[3]
    with pytest.raises(SystemExit, match="error: --online_confidence is 2.0; it is a share, from 0 to 1"):
        train_vpl.main(["--output_dir", str(tmp_path / "bad"), *options, "--online_confidence", "2"])


def msrc_as_folder_with_csv(real_data, folder, count):
    """The data set as a user would have it: photographs of mixed sizes and a table of tags."""
    names = json.loads((real_data / "msrc_v2" / "classes.json").read_text())["classes"]
    tags = json.loads((real_data / "msrc_v2" / "image_level_labels.json").read_text())
    files = sorted(tags)[:: max(1, len(tags) // count)][:count]
    used = sorted({label for name in files for label in tags[name]})
    for index, name in enumerate(files):
        image = Image.open(real_data / "msrc_v2" / "images" / f"{name}.png").convert("RGB")
        image = image.crop((0, 0, image.width - 40 * (index % 3), image.height))
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{name}.png")
    with (folder / "tags.csv").open("w", newline="") as stream:
        rows = [[f"{name}.png", ";".join(names[label] for label in tags[name])] for name in files]
        csv.writer(stream).writerows([["file", "labels"], *rows])
    return [names[label] for label in used]


@pytest.mark.parametrize("size", ["tiny", "vit-b-16"])
def test_the_whole_chain_runs_on_photographs(size, real_data, clip_folder, tmp_path):
    classes = msrc_as_folder_with_csv(real_data, tmp_path / "photos", 24 if size == "tiny" else 4)
    if size == "tiny":
        clip, options = clip_folder, ["--image_size", "64"]
    else:
        bpe_file = real_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
        clip, options = save_random_vit_b16(tmp_path / "clip", bpe_file), ["--image_size", "96"]
    train_vpl.main(
        ["--output_dir", str(tmp_path / "run"), "--model_name_or_path", str(clip), "--dataset_name", str(tmp_path / "photos"),
         "--labels_csv", str(tmp_path / "photos" / "tags.csv"), "--classes", ",".join(classes), "--attention_variant", "plain",
         *SMALL, *options, "--max_train_steps", "2", "--crops_per_image", "1", "--background_words", "wall,floor"]
    )  # fmt: skip
    model = VplForSemanticSegmentation.from_pretrained(tmp_path / "run" / "final")
    processor = SegmentationProcessor.from_pretrained(tmp_path / "run" / "final")
    photo = sorted((tmp_path / "photos").glob("*.png"))[0]
    (label_map,) = segment(model, processor, [photo])
    assert label_map.shape == Image.open(photo).size[::-1] and label_map.max() <= len(classes)
