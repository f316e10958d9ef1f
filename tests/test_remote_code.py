"""Every method computes the same when one fresh process loads it without the package, from the code beside its weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import ConvNextConfig, ResNetBackbone, ResNetConfig

from hf_clipseg import (
    METHODS,
    CocuForSemanticSegmentation,
    MtaClipForSemanticSegmentation,
    MvpSegForSemanticSegmentation,
    MvpSegPlusForSemanticSegmentation,
    SegmentationProcessor,
)
from hf_clipseg.hub_export import save_with_code

from .precision import BOUND
from .tiny import save_tiny_clip
from .tiny_groupvit import save_tiny_groupvit

CLASSES = ["sky", ["boat", "ship"], "grass"]
DECODER = {
    "hidden_dim": 64, "num_attention_heads": 4, "num_prompts": 2, "num_prompt_tokens": 4, "pixel_decoder_layers": 1,
    "pixel_decoder_feedforward_dim": 32,
}  # fmt: skip
FIELDS = {
    "vpl": {"decoder_dim": 16, "decoder_layers": 1, "decoder_heads": 2},
    "mta_clip": {**DECODER, "decoder_layers": 3, "feedforward_dim": 32, "num_queries": 5},
    "pixel_text_clip": DECODER,
    "mvp_seg": {"num_prompt_tokens": 4},
    "mvp_seg_plus": {"num_prompt_tokens": 4},
}
"""What keeps a method tiny; the others are so by their CLIP."""

WITH_RESNET = "mvp_seg_plus with a ResNet"
WITH_CONVNEXT = "mta_clip with a ConvNeXt"
EXPORTS = [*(config_class.model_type for config_class in METHODS), WITH_RESNET, WITH_CONVNEXT]

LOAD_ALL = """
import json, sys, torch
sys.modules["hf_clipseg"] = None
from transformers import AutoModelForSemanticSegmentation, AutoProcessor
found = {}
for name, folder in json.loads(sys.argv[1]).items():
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).double()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    image = torch.arange(3 * 33 * 50, dtype=torch.uint8).view(3, 33, 50)
    with torch.no_grad():
        outputs = model(pixel_values=processor(images=image)["pixel_values"].double())
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(33, 50)])
    found[name] = {
        "modules": [type(model).__module__, type(processor).__module__],
        "size": list(maps[0].shape),
        "logits": outputs.logits.double().abs().sum().item(),
    }
print(json.dumps(found))
"""


def build(name: str, clip, folder):
    """A tiny model of a method with `CLASSES` baked in."""
    methods = {config_class.model_type: method for config_class, method in METHODS.items()}
    processor = SegmentationProcessor.from_clip(clip, templates="name")
    torch.manual_seed(0)
    if name == WITH_RESNET:
        network = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
        ResNetBackbone(network).save_pretrained(folder)
        teacher = MvpSegForSemanticSegmentation.from_clip(clip, **FIELDS["mvp_seg"])
        model = MvpSegPlusForSemanticSegmentation.from_teacher(teacher, backbone=str(folder))
    elif name == WITH_CONVNEXT:
        network = ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1])
        model = MtaClipForSemanticSegmentation.from_clip(clip, vision_backbone=network, **FIELDS["mta_clip"])
        processor = SegmentationProcessor.from_clip(clip, templates="name", vision_backbone=network)
    elif methods[name] is CocuForSemanticSegmentation:
        model = CocuForSemanticSegmentation.from_groupvit(save_tiny_groupvit(folder))
    else:
        model = methods[name].from_clip(clip, **FIELDS.get(name, {}))
    model.set_classes(CLASSES, processor)
    return model.eval(), processor


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """What this process computes and what a fresh one does without the package, by name of the export."""
    folder = tmp_path_factory.mktemp("exports")
    clip = save_tiny_clip(folder / "clip")
    folders = {name: str(folder / f"export{index}") for index, name in enumerate(EXPORTS)}
    image = torch.arange(3 * 33 * 50, dtype=torch.uint8).view(3, 33, 50)
    expected = {}
    for name, target in folders.items():
        model, processor = build(name, clip, folder / f"network of {name}")
        save_with_code(model, processor, target)
        with torch.no_grad():
            logits = model.double()(pixel_values=processor(images=image)["pixel_values"].double()).logits
        expected[name] = logits.double().abs().sum().item()
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOAD_ALL, json.dumps(folders)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return expected, json.loads(run.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("name", EXPORTS)
def test_the_exported_code_computes_the_same_without_the_package(exports, name):
    expected, found = exports[0][name], exports[1][name]
    assert all(module.startswith("transformers_modules.") for module in found["modules"]), found["modules"]
    assert found["size"] == [33, 50]
    assert found["logits"] == pytest.approx(expected, rel=100 * BOUND)  # some sums are single precision in all models
