"""What every `...ForSemanticSegmentation` of this package must do: one tester, a small subclass per method.

A subclass names the model class and says how to make a tiny model; see `test_modeling_mask_clip.py`.
"""

import copy
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, PreTrainedConfig, pipeline

import hf_clipseg
from hf_clipseg import SegmentationProcessor

from .precision import assert_same, double_precision, doubled, in_double
from .tiny import save_tiny_clip

CLASSES = ["sky", ["boat", "ship"], "grass"]
PACKAGE = Path(hf_clipseg.__file__).parent


class ModelingContract:
    """Subclass as `class TestX(ModelingContract)` with `model_class` set."""

    model_class: type
    open_vocabulary = True
    config_fields: dict = {}

    @pytest.fixture(scope="class")
    def clip_folder(self, tmp_path_factory):
        return save_tiny_clip(tmp_path_factory.mktemp("clip"))

    @pytest.fixture
    def processor(self, clip_folder):
        return SegmentationProcessor.from_clip(clip_folder, templates="ensemble")

    @pytest.fixture
    def model(self, clip_folder, processor):
        """A tiny model with `CLASSES` baked in; closed-vocabulary methods override this."""
        torch.manual_seed(0)
        model = self.model_class.from_clip(clip_folder, **self.config_fields)
        model.set_classes(CLASSES, processor)
        return model.eval()

    def images(self, *sizes: tuple[int, int]) -> list[Image.Image]:
        generator = np.random.default_rng(0)
        return [Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]

    def computed_before(self, model, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model takes in place of pixel_values, where it does."""
        return {}

    def training_inputs(self, processor) -> dict:
        """Inputs that make the model return a loss."""
        image, label_map = self.images((32, 40))[0], np.arange(32 * 40).reshape(32, 40) % 3
        return dict(processor(images=[image, image], segmentation_maps=[label_map, label_map]))

    # -- the contract as a user sees it

    @torch.no_grad()
    def test_one_image_many_images_any_size(self, model, processor):
        for sizes in [((32, 32),), ((37, 61), (90, 20)), ((16, 64),), ((1, 1),)]:
            images = self.images(*sizes)
            outputs = model(**processor(images=images))
            assert outputs.logits.shape[:2] == (len(images), 3)
            maps = processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)
            assert [tuple(label_map.shape) for label_map in maps] == list(sizes)
            assert all(label_map.dtype == torch.int64 for label_map in maps)

    @torch.no_grad()
    def test_batch_equals_one_by_one(self, model, processor):
        images = self.images((32, 40), (32, 40), (32, 40))
        with double_precision():
            model.double()
            batch = model(**in_double(processor(images=images))).logits
            single = torch.cat([model(**in_double(processor(images=image))).logits for image in images])
        assert_same(batch, single)

    @torch.no_grad()
    def test_classes_per_call(self, model, processor):
        image = self.images((32, 32))[0]
        if not self.open_vocabulary:
            with pytest.raises(ValueError, match="closed|baked|fixed"):
                model(**processor(images=image, class_names=["sky", "car"]))
            return
        baked = model(**processor(images=image)).logits
        called = model(**processor(images=image, class_names=CLASSES)).logits
        torch.testing.assert_close(baked, called)
        for count in (1, 200):
            names = ["sky"] if count == 1 else [f"red {index}" for index in range(count)]
            assert model(**processor(images=image, class_names=names)).logits.shape[1] == count

    @torch.no_grad()
    def test_class_order_only_permutes(self, model, processor):
        if not self.open_vocabulary:
            pytest.skip("closed vocabulary")
        image = self.images((32, 40))[0]
        with double_precision():
            model.double()
            forward = model(**in_double(processor(images=image, class_names=["sky", "grass", "car"]))).logits
            backward = model(**in_double(processor(images=image, class_names=["car", "grass", "sky"]))).logits
        assert_same(forward, backward.flip(1))

    def test_id2label_follows(self, model, processor):
        assert model.config.id2label == {0: "sky", 1: "boat", 2: "grass"}
        if self.open_vocabulary:
            model.set_classes(["tree", "car"], processor)
            assert model.config.id2label == {0: "tree", 1: "car"} and model.config.num_labels == 2

    # -- losses

    def test_loss_is_finite_named_and_differentiable(self, model, processor):
        model.train()
        outputs = model(**self.training_inputs(processor))
        assert outputs.loss.ndim == 0 and torch.isfinite(outputs.loss)
        assert outputs.losses and all(isinstance(name, str) for name in outputs.losses)
        outputs.loss.backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

    def test_all_ignored_gives_zero_loss(self, model, processor):
        model.train()
        inputs = self.training_inputs(processor)
        inputs["labels"] = torch.full_like(inputs["labels"], 255)
        loss = model(**inputs).loss
        assert torch.isfinite(loss) and loss.abs() < 1e-6

    def test_labels_out_of_range_are_named(self, model, processor):
        inputs = self.training_inputs(processor)
        inputs["labels"][0, 0, 0] = 77
        with pytest.raises(ValueError, match="77"):
            model(**inputs)

    def test_gradient_checkpointing_keeps_gradients(self, model, processor):
        inputs, gradients = in_double(self.training_inputs(processor)), []
        with double_precision():
            for checkpointing in (False, True):
                clone = doubled(model).train()
                if checkpointing:
                    clone.activation_checkpointing_enable()
                    assert any(getattr(module, "gradient_checkpointing", False) for module in clone.modules())
                torch.manual_seed(0)
                clone(**inputs).loss.backward()
                gradients.append({name: p.grad for name, p in clone.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            assert_same(gradients[1][name], gradient, name, scale=max(1.0, gradient.abs().max().item()))

    # -- transformers

    @torch.no_grad()
    def test_round_trip(self, model, processor, tmp_path):
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pt"))
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert type(loaded) is self.model_class and not loaded.training
        for (name, saved), (_, read) in zip(model.named_buffers(), loaded.named_buffers(), strict=True):
            assert torch.equal(saved, read), name
        for name, saved in model.state_dict().items():
            assert torch.equal(saved, loaded.state_dict()[name]), name
        reloaded_processor = AutoProcessor.from_pretrained(tmp_path)
        assert isinstance(reloaded_processor, SegmentationProcessor)
        assert reloaded_processor.templates == processor.templates
        inputs = reloaded_processor(images=self.images((33, 50)))
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)

    def test_random_initialisation_is_finite(self, model):
        for source in (self.model_class(model.config), self.model_class._from_config(model.config)):
            for name, tensor in [*source.named_parameters(), *source.named_buffers()]:
                assert torch.isfinite(tensor.float()).all(), name

    @torch.no_grad()
    def test_return_dict_and_hidden_states(self, model, processor):
        inputs = processor(images=self.images((32, 40)))
        outputs = model(**inputs, output_hidden_states=True)
        layers = model.config.clip_config.vision_config.num_hidden_layers
        assert len(outputs.hidden_states) == layers + 1
        assert outputs.hidden_states[0].shape[0] == 1
        as_tuple = model(**inputs, return_dict=False)
        assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], outputs.logits)

    @torch.no_grad()
    def test_hidden_states_cost_no_second_run(self, model, processor):
        """Asked for them or not, every module runs as often."""
        inputs, calls = processor(images=self.images((32, 40))), []
        names = {module: name for name, module in model.named_modules()}
        for module in names:
            module.register_forward_pre_hook(lambda module, _: calls.append(names[module]))
        model(**inputs)
        plain = sorted(calls)
        calls.clear()
        model(**inputs, output_hidden_states=True)
        assert sorted(calls) == plain

    def test_no_input_is_named(self, model):
        with pytest.raises(ValueError, match="Pass pixel_values"):
            model()

    @torch.no_grad()
    def test_features_computed_before_have_no_hidden_states(self, model, processor):
        """Frozen models take what `encode_blocks` or `dense_features` computed; asking that for hidden states is refused."""
        pixel_values = processor(images=self.images((32, 40)))["pixel_values"]
        features = self.computed_before(model, pixel_values)
        for name, value in features.items():
            assert torch.equal(model(**{name: value}).logits, model(pixel_values=pixel_values).logits)
            with pytest.raises(ValueError, match=f"{name}.*pixel_values"):
                model(**{name: value}, output_hidden_states=True)
            with pytest.raises(ValueError, match="not both"):
                model(pixel_values=pixel_values, **{name: value})

    @torch.no_grad()
    def test_eager_equals_sdpa(self, model, processor, tmp_path):
        model.save_pretrained(tmp_path)
        inputs = processor(images=self.images((32, 40)))
        with double_precision():
            eager, sdpa = (
                self.model_class.from_pretrained(tmp_path, attn_implementation=name).double()(**in_double(inputs)).logits
                for name in ("eager", "sdpa")
            )
        torch.testing.assert_close(eager, sdpa, rtol=1e-5, atol=1e-5)  # transformers' eager softmax is single precision

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @torch.no_grad()
    def test_half_precision(self, model, processor, dtype):
        inputs = processor(images=self.images((32, 40)))
        reference = model(**inputs).logits
        half = copy.deepcopy(model).to(dtype)(**inputs.to(dtype)).logits
        assert half.dtype == dtype and torch.isfinite(half).all()
        difference = (half.float() - reference).norm() / (reference - reference.mean()).norm()
        assert difference < 0.2, difference

    @torch.no_grad()
    def test_pipeline(self, model, processor, tmp_path):
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        segments = pipeline("image-segmentation", model=str(tmp_path))(self.images((40, 52))[0])
        assert {segment["label"] for segment in segments} <= {"sky", "boat", "grass"}
        covered = sum(np.asarray(segment["mask"], dtype=np.int64) // 255 for segment in segments)
        assert covered.shape == (40, 52) and (covered == 1).all()

    @torch.no_grad()
    def test_text_encoder_can_be_dropped(self, model, processor, tmp_path):
        inputs = processor(images=self.images((32, 40)))
        before = model(**inputs).logits
        model.drop_text_encoder()
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(**inputs).logits, before)
        assert not any("text_model" in name for name in loaded.state_dict())
        with pytest.raises(ValueError, match="text encoder|closed|baked"):
            loaded(**processor(images=self.images((32, 32)), class_names=["sky"]))

    def test_every_config_field_is_read(self, model):
        """A field that nothing outside its configuration reads is a field that does nothing."""
        own = {field.name for field in dataclasses.fields(model.config)}
        own -= {field.name for field in dataclasses.fields(PreTrainedConfig)}
        source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if not path.name.startswith("configuration_"))
        source += (PACKAGE / "models" / "configuration_dense_clip.py").read_text()  # baked_class_ids reads class_names
        unread = [name for name in sorted(own) if not re.search(rf"config\.{name}\b|self\.{name}\b", source)]
        assert not unread, f"nothing reads {unread}"

    def test_config_round_trip(self, model, tmp_path):
        model.config.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())
        assert saved["model_type"] == model.config.model_type
        assert model.config.__class__.from_pretrained(tmp_path).to_dict() == model.config.to_dict()
