"""Networks of timm as the vision encoder of the supervised methods, OpenAI's CLIP ResNet at full size; skipped without timm."""

import pytest
import torch
from transformers import CLIPTextModel

from hf_clipseg import MtaClipForSemanticSegmentation, PixelTextClipForSemanticSegmentation, SegmentationProcessor
from training import train_mta_clip

from ..tiny import save_tiny_clip

timm = pytest.importorskip("timm")

SMALL_DECODER = {
    "hidden_dim": 64, "num_attention_heads": 2, "pixel_decoder_layers": 1, "pixel_decoder_feedforward_dim": 64,
    "num_prompt_tokens": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A randomly initialised RN50 with everything that timm's own checkpoint has, in a folder that timm can load."""
    folder = tmp_path_factory.mktemp("timm") / "network"
    torch.manual_seed(0)
    model = timm.create_model("resnet50_clip.openai", pretrained=False)
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return model.eval(), f"timm/local-dir:{folder}"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def build(model_class, clip, name, **fields):
    model = model_class.from_clip(clip, vision_backbone=name, **SMALL_DECODER, **fields)
    model.set_classes(["sky", "sea"], SegmentationProcessor.from_clip(clip, templates="name"))
    return model


@torch.no_grad()
def test_the_pyramid_is_timms_with_its_weights(network, clip):
    """Features equal those of the whole network's stages, and CLIP's text encoder is that of the checkpoint."""
    whole, name = network
    model = build(PixelTextClipForSemanticSegmentation, clip, name)
    pixel_values = torch.randn(2, 3, 96, 128)
    levels = model.pyramid(model.encode_blocks(pixel_values)[0])
    assert [tuple(level.shape[1:]) for level in levels] == [(256, 24, 32), (512, 12, 16), (1024, 6, 8), (2048, 3, 4)]
    assert model.encode_blocks(pixel_values[..., :70, :65])[0][0].shape == (2, 256, 24, 24)
    stem = whole.stem(pixel_values)
    for stage, level in zip(whole.stages, levels, strict=True):
        stem = stage(stem)
        torch.testing.assert_close(level, stem, rtol=1e-4, atol=1e-5)
    texts = CLIPTextModel.from_pretrained(clip)
    for key, tensor in texts.state_dict().items():
        assert torch.equal(tensor, model.clip.text_model.state_dict()[key])
    assert model.clip.vision_model is None


def test_trains_and_survives_saving(network, clip, tmp_path):
    model = build(MtaClipForSemanticSegmentation, clip, network[1], num_queries=5, decoder_layers=2, num_points=32).train()
    pixel_values, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 2, (2, 64, 96))
    model(pixel_values=pixel_values, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.pyramid.parameters() if parameter.requires_grad)
    model.eval().save_pretrained(tmp_path)
    loaded, report = MtaClipForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected = model(pixel_values=pixel_values).logits
        assert expected.shape == (2, 2, 16, 24)
        torch.testing.assert_close(loaded(pixel_values=pixel_values).logits, expected)


def test_images_are_normalised_as_timm_says(network, clip):
    settings = SegmentationProcessor.from_clip(clip, vision_backbone=network[1]).image_processor
    expected = network[0].pretrained_cfg
    assert tuple(settings.image_mean) == expected["mean"] and tuple(settings.image_std) == expected["std"]
    assert settings.size_divisor == 32 and settings.size["shortest_edge"] == 224


def test_the_script_trains_it(network, clip, tmp_path):
    """The network learns at a tenth of the rate."""
    options = [
        "--model_name_or_path", str(clip), "--vision_backbone", network[1], "--limit", "2", "--crop_size", "32", "32",
        "--short_side", "32", "--train_batch_size", "2", "--max_train_steps", "1", "--warmup_steps", "1", "--num_points", "16",
        "--mixed_precision", "no", "--output_dir", str(tmp_path), "--method", "pixel_text",
    ]  # fmt: skip
    args = train_mta_clip.parse_arguments([*options, "--backbone_factor", "0.1", "--crops_per_image", "0"])
    assert train_mta_clip.learning_rate_factors(args, 12) == {"pyramid.network": 0.1}
    model = train_mta_clip.run(args)
    loaded = PixelTextClipForSemanticSegmentation.from_pretrained(tmp_path / "final")
    for name, tensor in loaded.pyramid.state_dict().items():
        assert torch.equal(tensor, model.pyramid.state_dict()[name]), name
    untrained = build(PixelTextClipForSemanticSegmentation, clip, network[1]).pyramid.state_dict()
    assert any(not torch.equal(tensor, untrained[name]) for name, tensor in loaded.pyramid.named_parameters())
