"""What lies in model_cards/: complete, small, loadable, and as good as the card says."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation, AutoTokenizer, CLIPModel

from hf_clipseg import SegmentationProcessor
from hf_clipseg.checkpoints import find_checkpoints
from hf_clipseg.inference import segment
from hf_clipseg.metrics import ConfusionMatrix
from hf_clipseg.toyscapes import CLASS_NAMES, render

CARDS = Path(__file__).parent.parent / "model_cards"
SEGMENTERS = [checkpoint.name for checkpoint in find_checkpoints(CARDS)]
FLOORS = {"mta-clip-toyscapes": (0.7, 0.88), "cocu-toyscapes": (0.3, 0.53), "groupvit-toyscapes": (0.3, 0.53)}
"""mIoU and pixel accuracy, where they are not those of the others."""


def test_every_folder_is_a_hub_repository():
    folders = [path for path in CARDS.iterdir() if path.is_dir()]
    assert {"clip-toyscapes", "mask-clip-toyscapes"} <= {folder.name for folder in folders}
    for folder in folders:
        files = {path.name for path in folder.iterdir()}
        assert {"README.md", "config.json", "model.safetensors"} <= files, folder.name
        assert not {path.suffix for path in folder.rglob("*")} & {".bin", ".pt", ".pth", ".pkl", ".ckpt"}, folder.name
        assert (folder / "README.md").read_text().startswith("---\nlicense: apache-2.0"), folder.name


def test_the_ground_floor_is_small():
    weights = [CARDS / name / "model.safetensors" for name in ("clip-toyscapes", "mask-clip-toyscapes")]
    assert sum(path.stat().st_size for path in weights) < 25e6


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_score_on_scenes_they_never_saw(name):
    """24 scenes only: a floor that a broken checkpoint or processor falls through, not a score."""
    model = AutoModelForSemanticSegmentation.from_pretrained(CARDS / name)
    processor = SegmentationProcessor.from_pretrained(CARDS / name)
    assert list(model.config.id2label.values()) == list(CLASS_NAMES)
    scenes = [render(7, index, 128, 128, split="test") for index in range(24)]
    confusion = ConfusionMatrix(len(CLASS_NAMES))
    for scene, label_map in zip(scenes, segment(model, processor, [scene.image for scene in scenes]), strict=True):
        confusion.update(torch.from_numpy(label_map), torch.from_numpy(scene.mask).long())
    lowest_miou, lowest_accuracy = FLOORS.get(name, (0.38, 0.65))
    assert confusion.mean_iou() > lowest_miou and confusion.pixel_accuracy() > lowest_accuracy


@torch.no_grad()
def test_mask_clip_is_clip_with_baked_texts():
    """The weights are those of clip-toyscapes, to the bit, and the baked classes are their texts."""
    clip = CLIPModel.from_pretrained(CARDS / "clip-toyscapes")
    model = AutoModelForSemanticSegmentation.from_pretrained(CARDS / "mask-clip-toyscapes")
    for name, tensor in clip.state_dict().items():
        assert torch.equal(tensor, model.clip.state_dict()[name]), name
    tokenizer = AutoTokenizer.from_pretrained(CARDS / "clip-toyscapes")
    templates = SegmentationProcessor.from_pretrained(CARDS / "mask-clip-toyscapes").templates
    for index in (0, 6, 29):
        tokens = tokenizer([template.format(CLASS_NAMES[index]) for template in templates], padding=True, return_tensors="pt")
        texts = clip.get_text_features(tokens["input_ids"]).pooler_output
        mean = (texts / texts.norm(dim=-1, keepdim=True)).mean(dim=0)
        torch.testing.assert_close(model.class_embeds[index], mean / mean.norm(), rtol=1e-4, atol=1e-5)
