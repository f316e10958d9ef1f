"""The supervised methods on other vision encoders: they keep the contract, and read what the encoder itself computes."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    ConvNextConfig,
    Dinov2Backbone,
    Dinov2Config,
    MobileNetV2Config,
    MobileNetV2ForSemanticSegmentation,
    MobileNetV2Model,
    ResNetConfig,
    SwinConfig,
    SwinForImageClassification,
)

from hf_clipseg import (
    MtaClipConfig,
    MtaClipForSemanticSegmentation,
    PixelTextClipConfig,
    PixelTextClipForSemanticSegmentation,
    SegmentationProcessor,
)
from hf_clipseg.clip.vision_network import choose_maps, image_settings, load_network, plan_maps, read_all_stages

from ..modeling_contract import ModelingContract
from ..tiny import save_tiny_clip

SMALL = {
    "hidden_dim": 64, "num_attention_heads": 4, "num_prompts": 1, "num_prompt_tokens": 4, "pixel_decoder_layers": 1,
    "pixel_decoder_feedforward_dim": 32,
}  # fmt: skip
MASKS = {"decoder_layers": 2, "feedforward_dim": 32, "num_queries": 5, "num_points": 32}
NETWORKS = {
    "swin": lambda: SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4),
    "convnext": lambda: ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
    "dinov2": lambda: Dinov2Config(hidden_size=32, num_hidden_layers=6, num_attention_heads=2, mlp_ratio=1),
    "mobilenet_v2": lambda: MobileNetV2Config(depth_multiplier=0.25, output_stride=16),
}
READ = {
    "swin": ((0, 1, 2, 3), (8, 16, 32, 64), (4, 8, 16, 32)),
    "convnext": ((0, 1, 2, 3), (8, 8, 16, 16), (4, 8, 16, 32)),
    "dinov2": ((0, 1, 2, 3), (32, 32, 32, 32), (14, 14, 14, 14)),
    "mobilenet_v2": ((1, 4, 15), (8, 8, 80), (4, 8, 16)),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def build(clip, network, model_class=PixelTextClipForSemanticSegmentation, **fields):
    torch.manual_seed(0)
    fields = SMALL | (MASKS if model_class is MtaClipForSemanticSegmentation else {}) | fields
    model = model_class.from_clip(clip, vision_backbone=network, **fields)
    model.set_classes(["sky", "boat", "grass"], SegmentationProcessor.from_clip(clip, templates="name"))
    return model.eval()


class TestOnAConvolutionalNetwork(ModelingContract):
    model_class = PixelTextClipForSemanticSegmentation
    open_vocabulary = False
    config_fields = SMALL | {
        "vision_backbone": {
            "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1],
            "layer_type": "basic",
        }
    }  # fmt: skip

    @pytest.fixture
    def processor(self, clip_folder):
        network = ResNetConfig(**self.config_fields["vision_backbone"])
        return SegmentationProcessor.from_clip(clip_folder, templates="ensemble", vision_backbone=network)

    def computed_before(self, model, pixel_values):
        return {"block_maps": model.encode_blocks(pixel_values)[0]}

    @torch.no_grad()
    def test_return_dict_and_hidden_states(self, model, processor):
        """The hidden states are the maps that are read."""
        inputs = processor(images=self.images((32, 64)))
        states = model(**inputs, output_hidden_states=True).hidden_states
        assert [tuple(state.shape) for state in states] == [(1, 8, 16, 24), (1, 8, 8, 12), (1, 16, 4, 6), (1, 16, 2, 3)]
        assert isinstance(model(**inputs, return_dict=False), tuple)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_read_of_an_encoder(name):
    config = NETWORKS[name]()
    read_all_stages(config)
    plan = plan_maps(config)
    assert (plan.indices, plan.channels, plan.strides) == READ[name]
    again = type(config).from_dict(json.loads(config.to_json_string()))
    read_all_stages(again)
    assert plan_maps(again) == plan


def test_blocks_of_a_plain_transformer_are_those_of_clip():
    """3, 5, 7 and 11 of twelve; stage 1 is block 0."""
    config = Dinov2Config(hidden_size=8, num_hidden_layers=12, num_attention_heads=2)
    read_all_stages(config)
    assert config.out_features == ["stage4", "stage6", "stage8", "stage12"]
    chosen = Dinov2Config(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, out_features=["stage1", "stage3"])
    read_all_stages(chosen)
    assert chosen.out_features == ["stage1", "stage3"] and plan_maps(chosen).indices == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("strides", "chosen"),
    [
        ([4, 4, 8, 8, 16, 32], [1, 3, 4, 5]),
        ([2, 4, 8, 16], [1, 2, 3]),
        ([8, 16, 32], [0, 1, 2]),
        ([4, 16, 32], [0, 1, 2]),
        ([16] * 4, [0, 1, 2, 3]),
        ([16], [0, 0, 0, 0]),
        ([2, 4, 8, 16, 32, 64], [1, 2, 3, 4]),
    ],
)
def test_chosen_maps(strides, chosen):
    assert choose_maps(strides) == chosen


@pytest.mark.parametrize("name", NETWORKS)
def test_learns_and_survives_saving(clip, tmp_path, name):
    """Every weight that is not frozen gets a gradient, batch norms keep their statistics, and a saved model is the same."""
    config = NETWORKS[name]()
    model = build(clip, config, MtaClipForSemanticSegmentation).train()
    torch.manual_seed(0)
    pixel_values, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 3, (2, 64, 96))
    buffers = {name: value.clone() for name, value in model.pyramid.named_buffers()}
    model(pixel_values=pixel_values, labels=labels).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert sum(p.requires_grad for p in model.pyramid.network.parameters()) > 4
    assert all(torch.equal(value, buffers[name]) for name, value in model.pyramid.named_buffers())
    with torch.no_grad():
        expected = model.eval()(pixel_values=pixel_values).logits
        assert expected.shape == (2, 3, *((20, 28) if name == "dinov2" else (16, 24)))  # 5 x 7 patches of 14, times 4
        model.save_pretrained(tmp_path)
        loaded, report = MtaClipForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert torch.equal(loaded(pixel_values=pixel_values).logits, expected)
        loaded.drop_text_encoder()
        torch.testing.assert_close(loaded(pixel_values=pixel_values).logits, expected)
        assert not [name for name in loaded.state_dict() if name.startswith("clip.vision_model")]


@torch.no_grad()
def test_weights_come_from_a_classifier_or_a_segmenter(clip, tmp_path):
    """The base of any saved model of the encoder's kind; norms of a backbone's own start as the identity."""
    classifier = SwinForImageClassification(NETWORKS["swin"]()).eval()
    classifier.save_pretrained(tmp_path / "swin")
    model = build(clip, str(tmp_path / "swin"))
    pixel_values = torch.randn(1, 3, 64, 64)
    found, norms = {name.removeprefix("swin."): value for name, value in model.pyramid.network.state_dict().items()}, "norms"
    expected = classifier.swin.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items() if norms not in name) and len(found) > 40
    assert all(value.eq(float(name.endswith("weight"))).all() for name, value in found.items() if norms in name)

    segmenter = MobileNetV2ForSemanticSegmentation(NETWORKS["mobilenet_v2"]()).eval()
    segmenter.save_pretrained(tmp_path / "mobilenet")
    maps, _ = build(clip, tmp_path / "mobilenet").encode_blocks(pixel_values)
    states = segmenter.mobilenet_v2(pixel_values, output_hidden_states=True).hidden_states
    assert all(torch.equal(found, states[index]) for found, index in zip(maps, (1, 4, 15), strict=True))


@torch.no_grad()
def test_a_missing_level_is_the_one_before_pooled(clip):
    model = build(clip, NETWORKS["mobilenet_v2"]())
    levels = model.pyramid(model.encode_blocks(torch.randn(1, 3, 64, 96))[0])
    assert [tuple(level.shape[1:]) for level in levels] == [(8, 16, 24), (8, 8, 12), (80, 4, 6), (80, 2, 3)]
    assert torch.equal(levels[3], levels[2].unflatten(2, (2, 2)).unflatten(4, (3, 2)).amax((3, 5)))


@torch.no_grad()
def test_a_stage_left_out_is_pooled_from_the_one_before(clip):
    config = ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1], out_features=["stage1", "stage3", "stage4"])
    model = build(clip, config)
    levels = model.pyramid(model.encode_blocks(torch.randn(1, 3, 64, 96))[0])
    assert [level.shape[1] for level in levels] == model.pyramid.channels == [8, 8, 16, 24]
    assert model(torch.randn(1, 3, 64, 96)).logits.shape == (1, 3, 16, 24)


def test_a_frozen_encoder_has_no_stochastic_depth(clip):
    model = build(clip, SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=4, drop_path_rate=0.9)).train()
    assert model.pyramid.network.training
    model.pyramid.network.requires_grad_(False)
    model.train()
    assert model.training and not any(module.training for module in model.pyramid.network.modules())


def test_features_of_another_encoder_are_refused(clip):
    model = build(clip, NETWORKS["mobilenet_v2"]())
    with pytest.raises(ValueError, match="encode_blocks of this model"):
        model(block_maps=torch.zeros(1, 2, 4, 4, 32))


def test_half_a_checkpoint_is_refused(tmp_path):
    network = Dinov2Backbone(NETWORKS["dinov2"]())
    network.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("layer.2.attention.attention.query.weight")))
    network.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"lack 1 tensors.*layer\.2.*dinov2"):
        load_network(tmp_path)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"model_type": "vit", "num_hidden_layers": 1}, "'vit' model gives no feature maps"),
        ({"model_type": "bert", "num_hidden_layers": 1}, "'bert' model gives no feature maps"),
    ],
)
def test_what_gives_no_maps_is_refused(clip, network, message):
    with pytest.raises(ValueError, match=message):
        build(clip, network)


def test_the_old_field_is_named():
    with pytest.raises(ValueError, match="timm_backbone='resnet50' is now vision_backbone"):
        MtaClipConfig(timm_backbone="resnet50")


@torch.no_grad()
def test_learned_class_texts_part_names_that_clip_does_not_know(clip, tmp_path):
    """Unknown names share one text, from which random offsets part them; a dropped and a saved model say the same."""
    processor = SegmentationProcessor.from_clip(clip, templates="name")
    model = build(clip, ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]), learned_class_texts=True)
    model.set_classes(["cow", "sky", "horse", "boat"], processor)
    assert model.class_offsets.shape == (4, 24) and not model.class_offsets[[1, 3]].any()
    offsets, moved = model.class_offsets.clone(), model.class_texts()
    assert ((offsets[[0, 2]].norm(dim=1) - 1).abs() < 0.5).all() and torch.cosine_similarity(offsets[0], offsets[2], 0) < 0.7
    model.class_offsets.zero_()
    same = model.class_texts()
    torch.testing.assert_close(same[:, 0], same[:, 2])
    model.class_offsets.copy_(offsets)
    torch.testing.assert_close(moved, torch.nn.functional.normalize(same + offsets, dim=-1))
    pixel_values = torch.randn(1, 3, 32, 32)
    expected = model(pixel_values).logits
    assert (expected[:, 0] - expected[:, 2]).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    loaded = PixelTextClipForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pixel_values).logits, expected)
    loaded.drop_text_encoder()
    torch.testing.assert_close(loaded(pixel_values).logits, expected)
    with pytest.raises(ValueError, match="num_prompts=0"):
        MtaClipConfig(learned_class_texts=True, num_prompts=0)
    assert not PixelTextClipConfig().learned_class_texts


def stored(folder, **preprocessing):
    NETWORKS["convnext"]().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return folder


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "size": {"shortest_edge": 256}},
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "size": 256},
        ),
        ({"size": {"height": 384, "width": 512}, "image_mean": [0.5] * 3}, {"image_mean": [0.5] * 3, "size": 384}),
        ({"size": 192, "do_normalize": False}, {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "size": 192}),
    ],
)
def test_images_are_prepared_as_the_encoder_wants_them(clip, tmp_path, preprocessing, expected):
    side = expected.pop("size")
    size = {"shortest_edge": side, "longest_edge": 4 * side}
    assert image_settings(stored(tmp_path, **preprocessing)) == {"size_divisor": 32, "size": size, **expected}
    processor = SegmentationProcessor.from_clip(clip, vision_backbone=tmp_path).image_processor
    assert tuple(processor.image_mean) == tuple(expected.get("image_mean", processor.image_mean))
    assert processor.size["shortest_edge"] == side and processor.size_divisor == 32
    small = {"shortest_edge": 64, "longest_edge": 99}
    assert (
        SegmentationProcessor.from_clip(clip, vision_backbone=tmp_path, size=small).image_processor.size["longest_edge"] == 99
    )


def test_preprocessing_that_cannot_be_had_is_refused(tmp_path):
    with pytest.raises(ValueError, match="blue, green, red"):
        image_settings(stored(tmp_path, do_flip_channel_order=True))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json"):
        image_settings(tmp_path)


# -- real weights


@torch.no_grad()
def test_the_real_mobilenet_gives_what_deeplab_reads(clip, real_data):
    """Bit for bit the features of transformers' own segmenter, also beside its own class scores."""
    folder = real_data / "deeplabv3_mobilenet_v2"
    segmenter = MobileNetV2ForSemanticSegmentation.from_pretrained(folder).eval()
    model = build(clip, folder)
    torch.manual_seed(0)
    pixel_values = torch.rand(1, 3, 256, 320) * 2 - 1
    maps, _ = model.encode_blocks(pixel_values)
    states = segmenter.mobilenet_v2(pixel_values, output_hidden_states=True).hidden_states
    assert [tuple(found.shape[1:]) for found in maps] == [(24, 64, 80), (32, 32, 40), (320, 16, 20)]
    assert all(torch.equal(found, states[index]) for found, index in zip(maps, (1, 4, 15), strict=True))
    assert torch.equal(segmenter.segmentation_head(maps[-1]), segmenter(pixel_values).logits)
    assert isinstance(model.pyramid.network, MobileNetV2Model)


@torch.no_grad()
@pytest.mark.parametrize("network", ["convnext", None])
def test_direct_features_add_a_linear_layer_on_the_deepest_map(clip, tmp_path, network):
    """By hand for one cell: normalised, projected, resized, added. Without the option nothing is there to be loaded."""
    model = build(clip, network and NETWORKS[network](), direct_features=True).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    added, (_, states) = model.decode_pixels(pixel_values)[0].mask_features, model.encode_blocks(pixel_values)
    direct, model.direct_features = model.direct_features, None
    deepest = states[-1] if network else states[-1][:, 1:].transpose(1, 2).unflatten(2, (64 // model.clip.patch_size,) * 2)
    cells = deepest.movedim(1, -1)
    cells = (cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = (cells @ direct.weight.T + direct.bias).movedim(-1, 1)
    expected = torch.nn.functional.interpolate(expected, added.shape[-2:], mode="bilinear")
    torch.testing.assert_close(added - model.decode_pixels(pixel_values)[0].mask_features, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1 and not any("direct" in name for name in build(clip, None).state_dict())
    model.direct_features = direct
    model.save_pretrained(tmp_path)
    loaded = PixelTextClipForSemanticSegmentation.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(pixel_values).logits, model(pixel_values).logits)


def test_direct_features_learn_in_mta_clip(clip):
    model = build(clip, NETWORKS["convnext"](), MtaClipForSemanticSegmentation, direct_features=True).train()
    model(torch.randn(1, 3, 64, 64), labels=torch.randint(3, (1, 64, 64))).loss.backward()
    assert model.direct_features.weight.grad.abs().sum() > 0
