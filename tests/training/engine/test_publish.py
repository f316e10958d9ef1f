"""A result on disk and on the Hub: whole, with code and card, in one commit; never a network in tests."""

import ast
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.repocard import metadata_load
from PIL import Image

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationProcessor
from training import push_to_hub
from training.engine import hub
from training.engine import publish as publishing
from training.engine.curves import draw_curves
from training.engine.hub import check_hub_access
from training.engine.loop import TrainingSettings
from training.engine.publish import publish
from training.engine.result_card import ResultCard
from training.engine.space import ROOT, space_files

from ...tiny_segmenter import CLASS_NAMES, tiny_segmenter

CARD = ResultCard(
    title="MaskCLIP on ponds",
    description="Trained on photographs of ponds.",
    provenance={
        "command": "python -m training.train_x --output_dir runs/ponds",
        "date": "2026-01-02",
        "versions": {"torch": "9"},
    },
    data={"name": "ponds", "fingerprint": "0f0f", "images": 12},
    dataset_name="someone/ponds",
    scores={"mIoU": 0.41236, "pixel_accuracy": 0.8},
    class_scores={"sky": 0.1, "a|b": 0.9},
    limits=["No ducks.", "No nights."],
    base_model="model_cards/clip-toyscapes",
)


class FakeHub:
    """Stands for `HfApi`; remembers what it was asked."""

    def __init__(self, refuses=()):
        self.refuses, self.calls = refuses, []

    def _call(self, name, result, **arguments):
        self.calls.append((name, arguments))
        if name in self.refuses:
            raise LocalTokenNotFoundError("Token is required\nand more")
        return result

    def whoami(self):
        return self._call("whoami", {"name": "me"})

    def create_repo(self, repository, exist_ok, **kind):
        assert exist_ok
        full = repository if "/" in repository else f"me/{repository}"
        return self._call("create_repo", SimpleNamespace(repo_id=full), repository=repository, **kind)

    def upload_folder(self, folder_path, repo_id, commit_message, **options):
        files = sorted(path.name for path in folder_path.iterdir())
        result = SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")
        return self._call("upload_folder", result, repo_id=repo_id, files=files, **options)


@pytest.fixture
def fake(monkeypatch):
    def install(*refuses):
        api = FakeHub(refuses)
        monkeypatch.setattr(hub, "HfApi", lambda: api)
        return api

    return install


def result(folder, **options):
    model, processor = tiny_segmenter()
    model.set_classes(CLASS_NAMES, processor)
    return publish(model, processor, TrainingSettings(str(folder / "ponds"), **options), CARD)


def test_a_result_holds_everything_and_nothing_half(tmp_path, fake):
    api = fake()
    final = result(tmp_path)
    assert [path.name for path in (tmp_path / "ponds").iterdir()] == ["final"]
    names = {path.name for path in final.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert {"modeling_mask_clip.py", "processing_segmentation.py"} <= names
    assert "AutoModelForSemanticSegmentation" in json.loads((final / "config.json").read_text())["auto_map"]
    assert MaskClipForSemanticSegmentation.from_pretrained(final).config.class_names == [[name] for name in CLASS_NAMES]
    SegmentationProcessor.from_pretrained(final)
    assert api.calls == []


def test_a_result_shows_the_curves_of_its_run(tmp_path):
    rows = [{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}, {"step": 20, "mIoU": 0.5}]
    (tmp_path / "ponds").mkdir()
    (tmp_path / "ponds" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    final = result(tmp_path)
    assert (final / "metrics.jsonl").read_bytes() == (tmp_path / "ponds" / "metrics.jsonl").read_bytes()
    assert "![Curves of the run by step](curves.png)" in (final / "README.md").read_text()
    assert Image.open(final / "curves.png").size == (480, 300)  # one panel: a single mIoU is no curve


def test_a_curve_goes_through_its_points():
    """From the upper left corner of its panel to the lower right one, and nowhere else."""
    pixels = np.asarray(draw_curves({"loss": [(0, 3.0), (100, 1.0)], "mIoU": [(0, 0.0), (50, 0.5), (100, 0.5)]}))
    assert pixels.shape == (300, 960, 3)
    on_line = pixels[..., 2].astype(int) - pixels[..., 0] > 60  # blue; frame and text are grey
    heights = [np.flatnonzero(on_line[:, 64 + across]).mean() for across in (20, 200, 380)]
    assert heights == pytest.approx([36 + 224 * across / 400 for across in (20, 200, 380)], abs=1.5)
    right = on_line[:, 480:]
    assert np.flatnonzero(right[:, 64 + 100]).mean() == pytest.approx(36 + 112, abs=1.5)
    assert np.flatnonzero(right[:, 64 + 300]).mean() == pytest.approx(36, abs=1.5)


def test_an_error_while_writing_leaves_the_older_result(tmp_path, monkeypatch):
    final = result(tmp_path)
    for name in ("old.txt", "model.safetensors", "README.md"):
        (final / name).write_text("old")
    before = {path.name: path.read_bytes() for path in final.iterdir()}
    monkeypatch.setattr(publishing, "write_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        result(tmp_path)
    assert {path.name: path.read_bytes() for path in final.iterdir()} == before
    assert [path.name for path in final.parent.iterdir()] == ["final"]


def test_one_commit_holds_all_files(tmp_path, fake):
    api = fake()
    final = result(tmp_path, push_to_hub=True)
    (upload,) = [arguments for name, arguments in api.calls if name == "upload_folder"]
    assert upload == {"repo_id": "me/ponds", "files": sorted(path.name for path in final.iterdir())}


def test_a_failed_push_leaves_the_result_and_says_how_to_go_on(tmp_path, fake):
    fake("upload_folder")
    message = r"ponds/final is complete but was not pushed \(Token is required\).*push_to_hub .*ponds/final --hub_model_id a/b$"
    with pytest.raises(ValueError, match=message):
        result(tmp_path, push_to_hub=True, hub_model_id="a/b")
    assert (tmp_path / "ponds" / "final" / "processor_config.json").is_file()


def test_a_dry_run_prints_every_file_and_sends_nothing(tmp_path, fake, capsys):
    api = fake()
    final = result(tmp_path, push_to_hub=True, dry_run=True, hub_model_id="me/else")
    printed = capsys.readouterr().out
    lines = dict(reversed(line.split()) for line in printed.splitlines() if re.match(r" +[\d,]+  ", line))
    assert lines == {path.name: f"{path.stat().st_size:,}" for path in final.iterdir()}
    assert f"me/else: {len(lines)} files" in printed and api.calls == []


# ---- before the first step


def test_the_hub_is_asked_before_the_first_step_and_only_where_it_is_needed(tmp_path, fake):
    api = fake("whoami")
    check_hub_access(TrainingSettings("runs/ponds"))
    check_hub_access(TrainingSettings("runs/ponds", push_to_hub=True, dry_run=True))
    assert api.calls == []
    with pytest.raises(ValueError, match=r"cannot write to ponds \(Token is required\).*hf auth login"):
        check_hub_access(TrainingSettings(str(tmp_path / "ponds"), push_to_hub=True))
    api.refuses = ("create_repo",)
    with pytest.raises(ValueError, match="cannot write to other/ponds"):
        check_hub_access(TrainingSettings("runs/ponds", push_to_hub=True, hub_model_id="other/ponds"))


@pytest.mark.parametrize("name", ["my ponds", "a/b/c", "ponds.git", "-ponds"])
def test_a_name_that_the_hub_refuses_is_found_without_the_hub(name, fake):
    api = fake()
    with pytest.raises(ValueError, match="--hub_model_id OWNER/NAME"):
        check_hub_access(TrainingSettings("runs/x", push_to_hub=True, hub_model_id=name))
    assert api.calls == []


# ---- the card


def test_the_card_says_how_it_was_made_and_its_metadata_are_those_of_the_hub(tmp_path):
    final = result(tmp_path)
    metadata = metadata_load(final / "README.md")
    assert metadata["library_name"] == "transformers" and metadata["pipeline_tag"] == "image-segmentation"
    assert metadata["datasets"] == ["someone/ponds"] and "base_model" not in metadata  # a folder is no model of the Hub
    (entry,) = metadata["model-index"]
    assert entry["name"] == "ponds"
    (group,) = entry["results"]
    assert group["dataset"] == {"name": "ponds", "type": "someone/ponds"}
    values = {metric["type"]: metric["value"] for metric in group["metrics"]}
    assert values == {"mean_iou": 0.4124, "accuracy": 0.8}
    text = ModelCard.load(final / "README.md").text
    for part in (
        "# MaskCLIP on ponds", "python -m training.train_x --output_dir runs/ponds", '"fingerprint": "0f0f"', "torch 9",
        "| mIoU | 0.4124 |", "| a\\|b | 0.900 |\n| sky | 0.100 |", "- No ducks.\n- No nights.", "trust_remote_code=True",
        "sky, sea, boat",
    ):  # fmt: skip
        assert part in text, part


def test_a_card_without_scores_promises_none(tmp_path, monkeypatch):
    for name in ("scores", "class_scores", "dataset_name"):
        monkeypatch.setattr(CARD, name, None)
    monkeypatch.setattr(CARD, "base_model", "openai/clip-vit-base-patch16")
    card = ModelCard.load(result(tmp_path) / "README.md")
    assert card.data.eval_results is None and card.data.base_model == "openai/clip-vit-base-patch16"
    assert "## Scores" not in card.text and "openai/clip-vit-base-patch16" in card.text


# ---- python -m training.push_to_hub


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Two model folders without code, one based on the other."""
    for name, base in (("pond-clip", "openai/clip-vit-base-patch16"), ("ponds", "pond-clip")):
        for part in tiny_segmenter():
            part.save_pretrained(tmp_path / name)
        (tmp_path / name / "README.md").write_text(f"---\nbase_model: {base}\n---\n# Ponds\n")
    monkeypatch.setattr(push_to_hub, "SHIPPED", tmp_path)
    return tmp_path


def test_a_dry_run_lists_every_model_folder_with_its_code(shipped, fake, capsys):
    api = fake()
    before = sorted(shipped.rglob("*"))
    push_to_hub.main(["--dry_run"])
    printed = capsys.readouterr().out
    heads = [line.split(":")[0] for line in printed.splitlines() if not line.startswith(" ")]
    assert heads == ["pond-clip", "ponds", "spaces/hf-clipseg"] and api.calls == []
    models = printed.split("spaces/hf-clipseg")[0]
    assert models.count("modeling_mask_clip.py") == models.count("model.safetensors") == models.count("README.md") == 2
    assert sorted(shipped.rglob("*")) == before  # the folders themselves are left alone


def test_folders_are_pushed_in_a_commit_each_and_cards_name_their_base_on_the_hub(shipped, fake, monkeypatch):
    api, bases = fake(), []
    upload = api.upload_folder

    def watched(folder_path, **options):
        if "repo_type" not in options:
            bases.append(metadata_load(folder_path / "README.md").get("base_model"))
        return upload(folder_path, **options)

    monkeypatch.setattr(api, "upload_folder", watched)
    push_to_hub.main(["--namespace", "me"])
    uploads = [arguments["repo_id"] for name, arguments in api.calls if name == "upload_folder"]
    assert uploads == ["me/pond-clip", "me/ponds", "me/hf-clipseg"]
    (kind,) = [arguments for name, arguments in api.calls if name == "create_repo" and "repo_type" in arguments]
    assert kind == {"repository": "me/hf-clipseg", "repo_type": "space", "space_sdk": "gradio"}
    assert api.calls[-1][1]["repo_type"] == "space" and "app.py" in api.calls[-1][1]["allow_patterns"]
    assert bases == ["openai/clip-vit-base-patch16", "me/pond-clip"]


def test_the_space_is_whole_and_holds_nothing_else():
    """Its code imports nothing that is left behind."""
    names = {path.relative_to(ROOT).as_posix() for path in space_files()}
    assert {
        "README.md",
        "app.py",
        "app.css",
        "demo/app.js",
        "requirements.txt",
        "model_cards/vpl-toyscapes/config.json",
    } <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "benchmarks", "."))]
    packages = {name.split("/")[0].removesuffix(".py") for name in names}
    for name in names:
        if name.endswith(".py"):
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
                module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
                top = (module or "").split(".")[0]
                assert not (ROOT / top).is_dir() or not top or top in packages, (name, top)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{}"], "is no model folder: it has no config.json"),
        (["{}/ponds", "{}/pond-clip", "--hub_model_id", "me/x", "--dry_run"], "--hub_model_id names one repository"),
        (["{}/ponds", "--hub_model_id", "no good", "--dry_run"], "the Hub takes no repository named 'no good'"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(shipped, fake, arguments, message):
    api = fake()
    with pytest.raises(SystemExit, match=f"error: .*{message}"):
        push_to_hub.main([argument.format(shipped) for argument in arguments])
    assert api.calls == []
