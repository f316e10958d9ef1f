"""MVP-SEG+ keeps the contract, with CLIP and with another backbone as the student."""

import pytest
import torch
from torch import nn
from transformers import ResNetBackbone, ResNetConfig

from hf_clipseg import (
    MvpSegForSemanticSegmentation,
    MvpSegPlusConfig,
    MvpSegPlusForSemanticSegmentation,
    SegmentationProcessor,
)
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL

from ..modeling_contract import CLASSES, ModelingContract
from ..precision import double_precision, in_double
from ..tiny import save_tiny_clip

FIELDS = {"num_prompt_tokens": 4, "num_views": 2}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def teacher(clip_folder):
    model = MvpSegForSemanticSegmentation.from_clip(clip_folder, **FIELDS, global_refinement="none")
    nn.init.normal_(model.prompts.contexts, std=0.5)
    model.set_classes(CLASSES, SegmentationProcessor.from_clip(clip_folder, templates="name"))
    return model


@pytest.fixture(scope="module")
def resnet_folder(tmp_path_factory):
    """A tiny ResNet with weights, saved as a backbone."""
    folder = tmp_path_factory.mktemp("resnet")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"])
    ResNetBackbone(config).save_pretrained(folder)
    return folder


class TestMvpSegPlus(ModelingContract):
    model_class = MvpSegPlusForSemanticSegmentation
    config_fields = FIELDS

    @torch.no_grad()
    def test_the_untrained_student_is_its_teacher(self, teacher, processor):
        student = MvpSegPlusForSemanticSegmentation.from_teacher(teacher)
        for arguments in ({}, {"class_names": ["grass", "boat"], "templates": "name"}):
            inputs = processor(images=self.images((32, 40)), **arguments)
            torch.testing.assert_close(student(**inputs).logits, teacher(**inputs).logits)
        assert student.config.id2label == teacher.config.id2label
        assert student.prompts.contexts.data_ptr() != teacher.prompts.contexts.data_ptr()

    @pytest.mark.parametrize("variant", sorted(KEEPS_RESIDUAL))
    def test_everything_that_is_trained_is_used_and_the_classifier_is_fixed(self, clip_folder, processor, variant, tmp_path):
        """An unused parameter with requires_grad makes distributed training fail."""
        model = MvpSegPlusForSemanticSegmentation.from_clip(clip_folder, attention_variant=variant, **FIELDS)
        model.set_classes(CLASSES, processor)
        model.save_pretrained(tmp_path)
        model = MvpSegPlusForSemanticSegmentation.from_pretrained(tmp_path).train()
        model(**self.training_inputs(processor)).loss.backward()
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert {"mask_scale", "clip.visual_projection.weight"} <= trainable
        assert not [name for name in trainable if "text" in name or "prompts" in name]

    @pytest.mark.parametrize("keep_residual", [True, False])
    @pytest.mark.parametrize("variant", sorted(KEEPS_RESIDUAL))
    def test_everything_that_is_used_is_trained(self, clip_folder, processor, variant, keep_residual):
        """What a gradient reaches when nothing is frozen, q_proj of `sclip` for one, is what the student trains."""
        fields = {"attention_variant": variant, "keep_residual": keep_residual, **FIELDS}
        model = MvpSegPlusForSemanticSegmentation.from_clip(clip_folder, **fields)
        model.set_classes(CLASSES, processor)
        trained = {name for name, parameter in model.train().named_parameters() if parameter.requires_grad}
        model.clip.requires_grad_(True)
        model(**self.training_inputs(processor)).loss.backward()
        assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}

    def test_a_few_steps_lower_the_loss_and_names_per_call_still_work(self, model, processor):
        inputs = self.training_inputs(processor)
        optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-3)
        losses = []
        for _ in range(8):
            losses.append(model(**inputs).loss)
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0]
        called = model.eval()(inputs["pixel_values"], **processor(class_names=CLASSES)).logits
        torch.testing.assert_close(model(inputs["pixel_values"]).logits, called)

    def test_from_clip_with_a_backbone_says_what_to_do(self, clip_folder):
        with pytest.raises(ValueError, match="from_teacher"):
            MvpSegPlusForSemanticSegmentation.from_clip(clip_folder, backbone_config={"model_type": "resnet"})

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_views": 0}, "num_views must be at least 1, got 0"),
            ({"fusion": "mean"}, "fusion must be one of"),
            ({"attention_variant": "csa"}, "attention_variant must be one of"),
        ],
    )
    def test_impossible_configurations(self, fields, message):
        with pytest.raises(ValueError, match=message):
            MvpSegPlusConfig(**fields)


class TestMvpSegPlusWithResNet(ModelingContract):
    """The same contract with a convolutional student, which has no residual stream of CLIP's shape."""

    model_class = MvpSegPlusForSemanticSegmentation

    @pytest.fixture
    def model(self, teacher, resnet_folder):
        return MvpSegPlusForSemanticSegmentation.from_teacher(teacher, backbone=str(resnet_folder))

    @pytest.fixture
    def processor(self, clip_folder):
        return SegmentationProcessor.from_clip(clip_folder, templates="name")

    @torch.no_grad()
    def test_return_dict_and_hidden_states(self, model, processor):
        outputs = model(**processor(images=self.images((32, 40))), output_hidden_states=True)
        assert len(outputs.hidden_states) == 3 and outputs.hidden_states[0].shape[0] == 1

    @torch.no_grad()
    def test_eager_equals_sdpa(self, model, processor, tmp_path):
        """A ResNet has no attention, and transformers refuses "sdpa" for it: the choice goes to the text encoder alone."""
        model.save_pretrained(tmp_path)
        inputs = in_double(processor(images=self.images((32, 40)), class_names=["sky"]))
        choices = ({"clip_config": "eager"}, {"clip_config": "sdpa"})
        loaded = [self.model_class.from_pretrained(tmp_path, attn_implementation=choice) for choice in choices]
        assert [student.clip.text_model.config._attn_implementation for student in loaded] == ["eager", "sdpa"]
        with double_precision():
            eager, sdpa = (student.double()(**inputs).logits for student in loaded)
        torch.testing.assert_close(eager, sdpa, rtol=1e-5, atol=1e-5)  # transformers' eager softmax is single precision

    @torch.no_grad()
    def test_the_backbones_weights_arrive_and_the_vision_encoder_is_gone(self, model, resnet_folder, processor):
        reference = ResNetBackbone.from_pretrained(resnet_folder)
        pixel_values = processor(images=self.images((32, 40)))["pixel_values"]
        maps = reference(pixel_values).feature_maps[-1]
        expected = nn.functional.normalize(model.projection(maps), dim=1).permute(0, 2, 3, 1)
        torch.testing.assert_close(model.dense_features(pixel_values), expected)
        assert not [name for name in model.state_dict() if "vision_model" in name]

    def test_only_the_student_is_trained(self, model, processor):
        model.train()(**self.training_inputs(processor)).loss.backward()
        trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert trained == {"backbone", "projection", "mask_scale"}
