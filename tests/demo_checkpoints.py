"""Checkpoint folders for tests of the demo: an open one, a closed one, one with groups, one whose weights are missing."""

from pathlib import Path

from hf_clipseg import CocuConfig, CocuForSemanticSegmentation

from .tiny_groupvit import tiny_groupvit_config
from .tiny_segmenter import tiny_segmenter

OPEN_CLASSES = [["sky"], ["sea"], ["boat", "ship"]]
CLOSED_CLASSES = [["tree"], ["sky"]]
CARD = "---\nlicense: apache-2.0\n---\n# {title}\n\nDense CLIP,\nat rest.\n\n## More\n\nNot shown.\n"


def save_demo_checkpoints(folder: Path) -> Path:
    """`folder/open`, `folder/closed`, `folder/with-groups` and `folder/without-weights`."""
    model, processor = tiny_segmenter()
    save(model, processor, folder / "without-weights", "Without weights")
    (folder / "without-weights" / "model.safetensors").unlink()
    model.set_classes(OPEN_CLASSES, processor)
    save(model, processor, folder / "open", "Open words")
    model.set_classes(CLOSED_CLASSES, processor)
    model.drop_text_encoder()
    save(model, processor, folder / "closed", "Closed list")
    groupvit = CocuForSemanticSegmentation(
        CocuConfig(clip_config=tiny_groupvit_config(len(processor.tokenizer)), top_classes=2)
    )
    groupvit.set_classes(OPEN_CLASSES, processor)
    save(groupvit, processor, folder / "with-groups", "With groups")
    return folder


def save(model, processor, folder: Path, title: str) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.format(title=title), encoding="utf-8")
