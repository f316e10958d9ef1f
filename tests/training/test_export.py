"""Any training checkpoint becomes a model folder."""

import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, CLIPModel

from hf_clipseg import MaskClipForSemanticSegmentation, SegmentationImageProcessor, SegmentationProcessor
from training.export import export, main

from ..tiny import tiny_clip_config, tiny_tokenizer
from ..tiny_run import run
from ..tiny_segmenter import tiny_segmenter


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def pull_down(model, batch):
    """A loss that every weight feels, so that the trained model differs from the untrained one."""
    return {"loss": sum(parameter.square().sum() for parameter in model.parameters())}


def train_segmenter(folder, **options):
    model, processor = tiny_segmenter()
    identity = {"class_names": ["sky", ["boat", "ship"]]}
    weights = run(
        folder, steps=2, model=model, losses=pull_down, processor=processor, identity=identity,
        on_step=lambda step, _: {"mIoU": 0.25} if step == 1 else None, checkpointing_steps=2, **options,
    )  # fmt: skip
    return weights, processor


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.5}])
def test_the_exported_model_is_the_trained_one_with_the_run_s_classes(tmp_path, options):
    weights, processor = train_segmenter(tmp_path, **options)
    main([str(tmp_path / "checkpoint-2"), "--output", str(tmp_path / "out")])
    model = MaskClipForSemanticSegmentation.from_pretrained(tmp_path / "out").eval()
    for name, value in model.clip.state_dict().items():
        torch.testing.assert_close(value, weights["clip." + name], rtol=0, atol=0)
    assert model.config.class_names == [["sky"], ["boat", "ship"]]
    loaded = SegmentationProcessor.from_pretrained(tmp_path / "out")
    assert loaded.templates == processor.templates
    images = loaded(images=[torch.zeros(3, 32, 40, dtype=torch.uint8)])
    assert model(**images).logits.shape[1] == 2
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"README.md", "modeling_mask_clip.py", "model.safetensors"} <= names
    assert not any(name.startswith(("optimizer", "random_states", "training_state")) for name in names)


def test_scores_are_those_of_the_very_checkpoint(tmp_path):
    train_segmenter(tmp_path)
    for step, scores in ((1, {0.25}), (2, None)):
        export(tmp_path / f"checkpoint-{step}", tmp_path / f"out-{step}")
        card = ModelCard.load(tmp_path / f"out-{step}" / "README.md")
        found = card.data.eval_results
        assert scores == (found and {result.metric_value for result in found})
        assert ("not finished" in card.text) == (step == 1)
        assert f"python -m training.export {tmp_path}/checkpoint-{step}" in card.text


def test_other_classes_and_no_text_encoder(tmp_path):
    train_segmenter(tmp_path)
    checkpoint, out = str(tmp_path / "checkpoint-2"), tmp_path / "out"
    main([checkpoint, "--output", str(out), "--classes", "grass, tree|car", "--drop_text_encoder"])
    model = MaskClipForSemanticSegmentation.from_pretrained(out)
    assert model.config.class_names == [["grass"], ["tree", "car"]] and not model.config.has_text_encoder


class Wrapped(nn.Module):
    """As a CLIP is pre-trained: with a loss around it that has weights of its own."""

    def __init__(self):
        super().__init__()
        self.scale, self.clip = nn.Parameter(torch.ones(())), CLIPModel(tiny_clip_config())


@pytest.mark.parametrize("distributed", [False, True])
def test_a_clip_leaves_its_loss_behind(tmp_path, distributed):
    parts = [tiny_tokenizer(), SegmentationImageProcessor()]
    weights = run(tmp_path, steps=1, model=Wrapped(), losses=pull_down, processor=parts)
    checkpoint = tmp_path / "checkpoint-1"
    if distributed:  # Accelerate writes the names of the wrapped model
        state = {f"module.{name}": tensor for name, tensor in load_file(checkpoint / "model.safetensors").items()}
        save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})
    export(checkpoint, tmp_path / "out")
    exported = CLIPModel.from_pretrained(tmp_path / "out").state_dict()
    assert exported.keys() == {name.removeprefix("clip.") for name in weights} - {"scale"}
    assert all(torch.equal(value, weights[f"clip.{name}"]) for name, value in exported.items())
    assert AutoTokenizer.from_pretrained(tmp_path / "out").model_max_length == 16
    assert not list((tmp_path / "out").glob("*.py"))


def test_what_cannot_be_exported_is_one_line(tmp_path):
    train_segmenter(tmp_path / "run")
    checkpoint, out = tmp_path / "run" / "checkpoint-2", str(tmp_path / "out")

    def refused(checkpoint, message, output=out):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            main([str(checkpoint), "--output", output])

    refused(tmp_path / "run", r"is not a checkpoint \(no training_state.json\); there is checkpoint-1, checkpoint-2")
    refused(tmp_path / "nowhere", "there is none")
    refused(checkpoint, "exists already", output=str(checkpoint))
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    weights.pop("clip.logit_scale")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, "lacks 1 tensors, clip.logit_scale among them")
    state = json.loads((copy / "training_state.json").read_text())
    state.pop("export")
    (copy / "training_state.json").write_text(json.dumps(state))
    refused(copy, "says not which model it holds")
    (copy / "model.safetensors").unlink()
    assert not (tmp_path / "out").exists()
