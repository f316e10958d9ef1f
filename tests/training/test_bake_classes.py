"""From a CLIP folder to a segmentation checkpoint on the command line."""

import pytest
import torch

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from training.bake_classes import main

from ..tiny import save_tiny_clip


@torch.no_grad()
def test_baked_checkpoint_equals_names_per_call(tmp_path, capsys):
    clip = save_tiny_clip(tmp_path / "clip")
    main([str(clip), "--output_dir", str(tmp_path / "baked"), "--classes", "sky, boat|ship, zebra", "--image_size", "48"])
    assert "does not know zebra" in capsys.readouterr().out
    model = MaskClipForSemanticSegmentation.from_pretrained(tmp_path / "baked")
    processor = SegmentationProcessor.from_pretrained(tmp_path / "baked")
    assert model.config.id2label == {0: "sky", 1: "boat", 2: "zebra"}
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    named = model(**processor(images=image, class_names=["sky", ["boat", "ship"], "zebra"])).logits
    torch.testing.assert_close(model(**processor(images=image)).logits, named)
    assert named.shape[-2:] == (6, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baked", "clip"]


def test_text_encoder_is_dropped_on_request(tmp_path):
    clip = save_tiny_clip(tmp_path / "clip")
    main([str(clip), "--output_dir", str(tmp_path / "baked"), "--classes", "sky,sea", "--drop_text_encoder"])
    assert MaskClipForSemanticSegmentation.from_pretrained(tmp_path / "baked").clip.text_model is None


def test_errors_name_the_fix(tmp_path):
    clip = save_tiny_clip(tmp_path / "clip")
    with pytest.raises(SystemExit, match="given twice"):
        main([str(clip), "--output_dir", str(tmp_path / "baked"), "--classes", "sky, Sky"])
    assert not (tmp_path / "baked").exists()
