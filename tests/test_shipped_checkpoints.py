"""What lies in model_cards/: complete, small, loadable, and as good as the card says."""

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from hf_clipseg.evaluation.metrics import ConfusionMatrix
from hf_clipseg.toyscapes import CLASS_NAMES

from .shipped_label_maps import CARDS, SEGMENTERS, label_maps, load, scenes

SCORES = {
    "cocu-toyscapes": (0.412, 0.671),
    "groupvit-toyscapes": (0.395, 0.611),
    "mask-clip-toyscapes": (0.555, 0.772),
    "mta-clip-toyscapes": (0.799, 0.914),
    "mvp-seg-plus-toyscapes": (0.692, 0.881),
    "mvp-seg-toyscapes": (0.579, 0.805),
    "vpl-toyscapes": (0.597, 0.827),
}
"""mIoU and pixel accuracy on the 24 scenes of the test, not those of the cards."""

TOLERANCE = 0.03


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
    """24 scenes only: a floor that a broken checkpoint, processor or forward falls through, not a score."""
    assert list(load(name)[0].config.id2label.values()) == list(CLASS_NAMES)
    confusion = ConfusionMatrix(len(CLASS_NAMES))
    for scene, label_map in zip(scenes(), label_maps(name)["baked"], strict=True):
        confusion.update(torch.from_numpy(label_map).long(), torch.from_numpy(scene.mask).long())
    miou, accuracy = SCORES[name]
    assert confusion.mean_iou() > miou - TOLERANCE and confusion.pixel_accuracy() > accuracy - TOLERANCE


@torch.no_grad()
def test_mask_clip_is_clip_with_baked_texts():
    """The weights are those of clip-toyscapes, to the bit, and the baked classes are their texts."""
    clip = CLIPModel.from_pretrained(CARDS / "clip-toyscapes")
    model, processor = load("mask-clip-toyscapes")
    for name, tensor in clip.state_dict().items():
        assert torch.equal(tensor, model.clip.state_dict()[name]), name
    tokenizer = AutoTokenizer.from_pretrained(CARDS / "clip-toyscapes")
    for index in (0, 6, 29):
        tokens = tokenizer(
            [template.format(CLASS_NAMES[index]) for template in processor.templates], padding=True, return_tensors="pt"
        )
        texts = clip.get_text_features(tokens["input_ids"]).pooler_output
        mean = (texts / texts.norm(dim=-1, keepdim=True)).mean(dim=0)
        torch.testing.assert_close(model.class_embeds[index], mean / mean.norm(), rtol=1e-4, atol=1e-5)
