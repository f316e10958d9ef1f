"""docs/fine-tuning.md, command by command as it is written, on a few photographs (drawings where there are none).

Only what makes a run short is added: fewer steps and images, and smaller ones.
"""

import csv
import importlib
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from demo.page import build_app
from hf_clipseg.toyscapes.scene_datasets import ToyscapesDataset
from hf_clipseg.toyscapes.scene_vocabulary import CLASS_NAMES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fine-tuning.md"
SMALL_STEPS = ["--max_train_steps", "2", "--train_batch_size", "2", "--checkpointing_steps", "2"]
SHORTER = {
    "train_mta_clip": [*SMALL_STEPS, "--crop_size", "64", "64", "--short_side", "64", "--crops_per_image", "1"],
    "train_mvp_seg": [*SMALL_STEPS, "--image_size", "64", "--num_prompt_tokens", "2"],
    "train_vpl": [*SMALL_STEPS, "--image_size", "64", "--label_size", "16", "--refinement", "pamr", "--max_iterations", "2"],
    "curate_concepts": ["--min_count", "1"],
    "train_cocu": [*SMALL_STEPS, "--model_config", "tiny", "--image_size", "64"],
}


def photographs(count):
    """(key, image, mask of class ids with 255, names of all classes) of a few pictures."""
    if real := os.environ.get("HF_CLIPSEG_REAL_DATA"):
        folder = Path(real) / "msrc_v2"
        names = json.loads((folder / "classes.json").read_text())["classes"]
        for path in sorted((folder / "images").iterdir())[:: 296 // count][:count]:
            mask = np.array(Image.open(folder / "masks" / f"{path.stem}.png"))
            yield path.stem, Image.open(path).convert("RGB"), mask, names
    else:
        for scene in map(ToyscapesDataset("train", (96, 128), count).__getitem__, range(count)):
            yield scene.key, Image.fromarray(scene.image), scene.mask, list(CLASS_NAMES)


def write_table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def lay_out(folder, count=10):
    """The three folders of the page."""
    tags, captions = [["file", "labels"]], [["image", "caption"]]
    for index, (key, image, mask, names) in enumerate(photographs(count)):
        split = "val" if index % 5 == 4 else "train"
        for place, picture, suffix in ((f"images/{split}", image, "jpg"), (f"masks/{split}", Image.fromarray(mask), "png")):
            (folder / "my-photos" / place).mkdir(parents=True, exist_ok=True)
            picture.save(folder / "my-photos" / place / f"{key}.{suffix}")
        (folder / "my-photos" / "classes.txt").write_text("\n".join(names) + "\n")
        seen = [names[label] for label in np.unique(mask) if label != 255]
        for kind, table in (("tags", tags), ("captions", captions)):
            (folder / f"my-{kind}" / "images").mkdir(parents=True, exist_ok=True)
            image.save(folder / f"my-{kind}" / "images" / f"{key}.jpg")
            table.append(
                [f"images/{key}.jpg", ";".join(seen)] if kind == "tags" else [f"{key}.jpg", "a " + " and a ".join(seen)]
            )
    write_table(folder / "my-tags" / "tags.csv", tags)
    write_table(folder / "my-captions" / "captions.csv", captions)
    (folder / "model_cards").symlink_to(ROOT / "model_cards")


def commands(page):
    """Words of every shell command, in order; prompts for your own terminal, such as pip, are left out."""
    blocks = re.findall(r"```bash\n(.*?)```", page, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.split("#")[0].strip()]


def run_command(words, folder):
    """Runs one command of the page in this process; what serves for ever is only opened."""
    AcceleratorState._reset_state(reset_partial_state=True)
    if words[:2] == ["python", "app.py"]:
        assert build_app(extra=words[2:]) is not None
    elif words[0] == "tensorboard":
        events = next((folder / words[words.index("--logdir") + 1]).rglob("events.out*"))
        assert "predictions" in EventAccumulator(str(events.parent)).Reload().Tags()["images"]
    elif words[0] == "hf-clipseg":
        from hf_clipseg.cli import main

        main(words[1:])
    else:
        assert words[:2] == ["python", "-m"], words
        module = words[2]
        importlib.import_module(module if module.startswith("training.") else f"{module}.__main__").main(
            [*words[3:], *SHORTER.get(module.removeprefix("training."), [])]
        )


def test_every_command_in_turn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    lay_out(tmp_path)
    page = PAGE.read_text()
    for words in commands(page):
        run_command(words, tmp_path)
    final = tmp_path / "runs" / "my-photos" / "final"
    assert {"README.md", "model.safetensors", "predictions.png", "processor_config.json"} <= set(os.listdir(final))
    assert "in one commit" in capsys.readouterr().out
    for name in ("my-tags", "my-captions", "my-classes"):
        assert (tmp_path / "runs" / name / "final" / "model.safetensors").is_file(), name
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shutil.copy(next((tmp_path / "my-photos" / "images" / "val").iterdir()), "photo.jpg")
    exec(snippet.replace("me/my-photos", str(final)), found := {})
    assert found["label_map"].shape == found["image"].size[::-1]


def test_the_page_is_linked_from_the_first_screen_and_its_pictures_exist():
    readme = (ROOT / "README.md").read_text().partition("---\n\n")[2]
    assert "docs/fine-tuning.md" in "\n".join(readme.splitlines()[:40])
    for name in re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text()):
        with Image.open(PAGE.parent / name) as picture:
            assert picture.width > 300
