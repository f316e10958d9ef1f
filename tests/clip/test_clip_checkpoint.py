"""Every method is built on whole CLIP checkpoints only: what transformers would fill up with random numbers is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    ChineseCLIPConfig,
    ChineseCLIPModel,
    CLIPForImageClassification,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
)

from hf_clipseg import METHODS, CocuForSemanticSegmentation, MaskClipForSemanticSegmentation, SegmentationProcessor
from hf_clipseg.checkpoints import CheckpointError, load_checkpoint
from hf_clipseg.clip.clip_checkpoint import load_whole

from ..tiny import save_tiny_clip, tiny_clip_config
from ..tiny_groupvit import save_tiny_groupvit

ON_CLIP = [method for method in METHODS.values() if method is not CocuForSemanticSegmentation]
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}


def save_foreign(kind: str, folder):
    """A tiny random model that is no whole CLIP, saved as transformers saves it."""
    clip = tiny_clip_config()
    makers = {
        "chinese": lambda: ChineseCLIPModel(
            ChineseCLIPConfig(text_config={**SMALL, "vocab_size": 40}, vision_config=VISION, projection_dim=24)
        ),
        "altclip": lambda: AltCLIPModel(
            AltCLIPConfig(text_config={**SMALL, "vocab_size": 40, "project_dim": 24}, vision_config=VISION, projection_dim=24)
        ),
        "siglip": lambda: SiglipModel(SiglipConfig(text_config={**SMALL, "vocab_size": 40}, vision_config=VISION)),
        "dinov2": lambda: Dinov2Model(Dinov2Config(**VISION)),
        "vision": lambda: CLIPVisionModel(clip.vision_config),
        "text": lambda: CLIPTextModel(clip.text_config),
        "classifier": lambda: CLIPForImageClassification(clip),
    }
    makers[kind]().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "kind, said",
    [
        ("chinese", "'chinese_clip' model"),
        ("altclip", "'altclip' model"),
        ("siglip", "'siglip' model"),
        ("dinov2", "'dinov2' model"),
        ("vision", "vision half"),
        ("text", "text half"),
        ("classifier", "lack"),
    ],
)
def test_what_is_no_whole_clip_is_refused_in_one_sentence_with_the_fix(kind, said, tmp_path):
    folder = save_foreign(kind, tmp_path / kind)
    with pytest.raises(ValueError, match=said) as raised:
        MaskClipForSemanticSegmentation.from_clip(folder)
    message = str(raised.value)
    assert str(folder) in message and "Use " in message and "\n" not in message


@pytest.mark.parametrize("method", ON_CLIP, ids=lambda method: method.config_class.model_type)
def test_all_methods_refuse_it(method, tmp_path):
    with pytest.raises(ValueError, match="'siglip' model"):
        method.from_clip(save_foreign("siglip", tmp_path))


def test_a_clip_with_code_of_its_own_is_refused(tmp_path):
    """As EVA-CLIP's configurations are: `model_type` is "clip", the layers are others."""
    folder = save_tiny_clip(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["EVACLIPModel"], "auto_map": {"AutoModel": "modeling_evaclip.EVACLIPModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"code of its own \(EVACLIPModel\)"):
        MaskClipForSemanticSegmentation.from_clip(folder)


def test_native_open_clip_files_are_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "open_clip_pytorch_model.bin")
    for source in (tmp_path, tmp_path / "open_clip_pytorch_model.bin"):
        with pytest.raises(ValueError, match="open_clip's format.*transformers' format"):
            MaskClipForSemanticSegmentation.from_clip(source)


def test_open_clip_weights_under_a_borrowed_configuration_are_refused(tmp_path):
    folder = save_tiny_clip(tmp_path)
    save_file({"visual.proj": torch.zeros(2, 2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="names of OpenAI or open_clip"):
        load_whole(folder)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda weights: weights.pop("text_projection.weight"), r"lack 1 tensors \(text_projection.weight"),
        (lambda weights: weights.update({"text_projection.weight": torch.zeros(3, 3)}), "other sizes .* 1 tensors"),
        (
            lambda weights: weights.update({"vision_model.encoder.layers.0.scale.gamma": torch.zeros(3)}),
            "hold more .* 1 tensors",
        ),
    ],
)
def test_weights_that_do_not_fit_the_configuration_are_refused(change, said, tmp_path):
    folder = save_tiny_clip(tmp_path)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=said):
        load_whole(folder)


def test_processor_and_app_refuse_it_in_the_same_words(tmp_path):
    with pytest.raises(ValueError, match="'chinese_clip' model"):
        SegmentationProcessor.from_clip(save_foreign("chinese", tmp_path / "chinese"))
    with pytest.raises(CheckpointError, match="lack .* tensors .* Use the full checkpoint"):
        load_checkpoint(save_foreign("classifier", tmp_path / "classifier"))


def test_damaged_weights_and_folders_without_a_configuration_are_named(tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        load_whole(tmp_path)
    folder = save_tiny_clip(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="cannot be read") as raised:
        load_whole(folder)
    assert "\n" not in str(raised.value)


def test_finished_models_and_groupvit_are_sent_to_their_own_loaders(tmp_path):
    clip, groupvit = save_tiny_clip(tmp_path / "clip"), save_tiny_groupvit(tmp_path / "groupvit")
    MaskClipForSemanticSegmentation.from_clip(clip).save_pretrained(tmp_path / "finished")
    with pytest.raises(ValueError, match="finished 'mask_clip' model: load it with from_pretrained"):
        MaskClipForSemanticSegmentation.from_clip(tmp_path / "finished")
    with pytest.raises(ValueError, match="'groupvit' model"):
        MaskClipForSemanticSegmentation.from_clip(groupvit)
    with pytest.raises(ValueError, match="'clip' model.*nvidia/groupvit-gcc-yfcc"):
        CocuForSemanticSegmentation.from_groupvit(clip)


def test_a_whole_clip_is_read_as_it_is_whatever_surrounds_its_encoders(tmp_path):
    folder = save_tiny_clip(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    extra = {"text_model.embeddings.position_ids": torch.arange(16)[None], "my_head.weight": torch.zeros(2)}
    save_file(weights | extra, folder / "model.safetensors", {"format": "pt"})
    read = load_whole(folder).state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read.items())
    shutil.copytree(folder, tmp_path / "other")
    assert isinstance(load_whole(str(tmp_path / "other"), dtype=torch.bfloat16), CLIPModel)
