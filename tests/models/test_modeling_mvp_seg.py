"""MVP-SEG keeps the contract, and computes what its paper says."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hf_clipseg import MaskClipForSemanticSegmentation, MvpSegConfig, MvpSegForSemanticSegmentation
from hf_clipseg.clip.multi_view import FUSIONS
from hf_clipseg.models.mvp_seg.modeling_mvp_seg import classes_in_masks, presence_loss

from ..modeling_contract import CLASSES, ModelingContract
from ..precision import assert_same, in_double


class TestMvpSeg(ModelingContract):
    model_class = MvpSegForSemanticSegmentation
    config_fields = {"num_prompt_tokens": 4, "num_views": 2, "global_refinement": "threshold"}

    def computed_before(self, model, pixel_values):
        return {"patch_embeds": model.dense_features(pixel_values)}

    def training_inputs(self, processor):
        image, label_map = self.images((32, 40))[0], np.arange(32 * 40).reshape(32, 40) % 3
        return dict(processor(images=[image, image], segmentation_maps=[label_map, label_map], class_names=CLASSES))

    def build(self, clip_folder, **fields):
        torch.manual_seed(0)
        model = MvpSegForSemanticSegmentation.from_clip(clip_folder, **{**self.config_fields, **fields})
        nn.init.normal_(model.prompts.contexts, std=0.5)
        return model

    @pytest.mark.parametrize("fusion", FUSIONS)
    @pytest.mark.usefixtures("in_double_precision")
    @torch.no_grad()
    def test_logits_from_the_definitions(self, clip_folder, processor, fusion):
        """Views, fusion and Global Prompt Refining written out with loops, from the features of MaskCLIP."""
        model = self.build(clip_folder, fusion=fusion).double()
        model.presence_threshold.fill_(0.1)
        inputs = in_double(processor(images=self.images((32, 40)), class_names=["sky", "grass"], templates="name"))
        mask_clip = MaskClipForSemanticSegmentation.from_clip(clip_folder).double()
        features = mask_clip.dense_features(inputs["pixel_values"])[0]
        views = model.prompts(model.clip, inputs["input_ids"])
        outputs = model(**inputs)
        scale = model.clip.logit_scale.exp()
        for name in range(2):
            maps = [scale * features @ view[name] for view in views[1:]]
            fused = {
                "sum": sum(maps) / 2,
                "renormalised_sum": scale * features @ nn.functional.normalize(views[1:, name].sum(0), dim=0),
                "max": torch.maximum(*maps),
                "logsumexp": torch.log((maps[0].exp() + maps[1].exp()) / 2),
            }[fusion]
            whole = features @ views[0, name]
            pooled = (whole * torch.softmax(50 * whole.flatten(), 0).view_as(whole)).sum()
            g = torch.sigmoid((pooled - 0.1) / (1 / 20))
            assert_same(outputs.presence_logits[0, name].sigmoid(), g)
            assert_same(outputs.logits[0, name], fused + g.log(), scale=scale.item())

    @pytest.mark.usefixtures("in_double_precision")
    @torch.no_grad()
    def test_contexts_of_real_words_give_maskclip(self, clip_folder, processor):
        """With every view set to "a photo of a" and no refinement, MVP-SEG is MaskCLIP."""
        model = self.build(clip_folder, global_refinement="none").double()
        words = processor.tokenizer("a photo of a", add_special_tokens=False, return_tensors="pt")["input_ids"]
        model.prompts.start_from_words(model.clip, words.expand(3, -1))
        image = self.images((32, 40))
        mask_clip = MaskClipForSemanticSegmentation.from_clip(clip_folder).double()
        expected = mask_clip(**in_double(processor(images=image, class_names=CLASSES, templates="photo"))).logits
        inputs = in_double(processor(images=image, class_names=CLASSES, templates="name"))
        assert_same(model(**inputs).logits, expected)

    def test_only_prompts_temperatures_and_threshold_are_trained(self, model, processor, tmp_path):
        expected = {"prompts.contexts", "mask_scale", "presence_scale", "presence_threshold"}
        model.save_pretrained(tmp_path)
        for trained in (model, MvpSegForSemanticSegmentation.from_pretrained(tmp_path)):
            trained.train()(**self.training_inputs(processor)).loss.backward()
            assert {name for name, parameter in trained.named_parameters() if parameter.requires_grad} == expected
            assert {name for name, parameter in trained.named_parameters() if parameter.grad is not None} == expected

    def test_a_few_steps_lower_the_loss_and_the_baked_classes_follow(self, model, processor):
        inputs = self.training_inputs(processor)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
        stale = model.class_embeds.clone()
        losses = []
        for _ in range(10):
            losses.append(model.train()(**inputs).loss)
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
        assert losses[-1] < losses[0]
        model.eval().set_classes(CLASSES, processor)
        assert (model.class_embeds - stale).abs().max() > 1e-3
        pixel_values = {"pixel_values": inputs["pixel_values"]}
        names = {name: inputs[name] for name in ("input_ids", "name_ids", "class_ids")}
        torch.testing.assert_close(model(**pixel_values).logits, model(**pixel_values, **names).logits)

    def test_precomputed_features_train_like_pixels(self, model, processor):
        inputs = self.training_inputs(processor)
        features = model.dense_features(inputs.pop("pixel_values"))
        from_pixels, from_features = copy.deepcopy(model).train(), copy.deepcopy(model).train()
        from_pixels(**self.training_inputs(processor)).loss.backward()
        from_features(patch_embeds=features, **inputs).loss.backward()
        assert torch.equal(from_pixels.prompts.contexts.grad, from_features.prompts.contexts.grad)
        for wrong in ({}, {"pixel_values": torch.zeros(1, 3, 8, 8), "patch_embeds": features}):
            with pytest.raises(ValueError, match="and not both"):
                model(**wrong)

    def test_training_on_baked_classes_is_refused(self, model, processor):
        inputs = self.training_inputs(processor)
        with pytest.raises(ValueError, match="set_classes comes after training"):
            model.train()(pixel_values=inputs["pixel_values"], labels=inputs["labels"])

    @torch.no_grad()
    def test_view_maps_on_request(self, model, processor):
        inputs = processor(images=self.images((32, 40), (32, 40)))
        assert model(**inputs).view_maps is None
        outputs = model(**inputs, output_view_maps=True)
        names = sum(len([name] if isinstance(name, str) else name) for name in CLASSES)
        assert outputs.view_maps.shape == (2, 3, names, *outputs.logits.shape[-2:])
        expected = torch.einsum("bhwd,vnd->bvnhw", outputs.patch_embeds, model.class_embeds)
        torch.testing.assert_close(outputs.view_maps, expected)

    @torch.no_grad()
    def test_several_templates_are_averaged_behind_the_contexts(self, model, processor):
        several = processor(class_names=CLASSES, templates=["{}", "a red {}"])
        single = [processor(class_names=CLASSES, templates=template) for template in ("{}", "a red {}")]
        separate = [model.encode_names(inputs["input_ids"], inputs["name_ids"]) for inputs in single]
        mean = nn.functional.normalize(separate[0] + separate[1], dim=-1)
        torch.testing.assert_close(model.encode_names(several["input_ids"], several["name_ids"]), mean)

    @pytest.mark.parametrize("refinement", ["none", "paper", "threshold"])
    @pytest.mark.parametrize("orthogonality", ["none", "prompt", "text", "centred"])
    def test_named_losses_follow_the_switches(self, clip_folder, processor, refinement, orthogonality):
        model = self.build(clip_folder, global_refinement=refinement, orthogonality=orthogonality).train()
        outputs = model(**self.training_inputs(processor))
        expected = {"segmentation"} | ({"presence"} if refinement != "none" else set())
        assert set(outputs.losses) == expected | ({"orthogonality"} if orthogonality != "none" else set())
        weights = {"segmentation": 1.0, "presence": 1.0, "orthogonality": 0.1}
        total = sum(weights[name] * loss for name, loss in outputs.losses.items())
        torch.testing.assert_close(outputs.loss.detach(), total)
        outputs.loss.backward()
        assert (model.presence_threshold.grad is not None) == (refinement == "threshold")
        assert model.presence_scale.requires_grad == (model.presence_scale.grad is not None) == (refinement != "none")
        if orthogonality == "prompt":
            means = nn.functional.normalize(model.prompts.contexts.detach().mean(1), dim=-1)
            assert outputs.losses["orthogonality"] == pytest.approx(abs(float(means[1] @ means[2])))
        if orthogonality == "centred":
            first, second = (view - view.mean(0) for view in outputs.view_embeds.detach()[1:])
            expected = nn.functional.cosine_similarity(first, second).abs().mean()
            torch.testing.assert_close(outputs.losses["orthogonality"], expected)

    def test_classes_without_text_encoder_cannot_be_trained(self, model, processor):
        model.drop_text_encoder()
        with pytest.raises(ValueError, match="text encoder"):
            model.train()(**self.training_inputs(processor))

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_views": 0}, "num_views must be at least 1, got 0"),
            ({"num_prompt_tokens": 0}, "num_prompt_tokens must be at least 1"),
            ({"num_prompt_tokens": 75}, "leaves no room for a class name: the text encoder reads 77"),
            ({"fusion": "mean"}, "fusion must be one of .*logsumexp.*got 'mean'"),
            ({"orthogonality": "both"}, "orthogonality must be one of"),
            ({"global_refinement": "full"}, "global_refinement must be one of"),
            ({"presence_loss": "bce"}, "presence_loss must be one of"),
            ({"orthogonality_weight": -1.0}, "must not be negative"),
            ({"pooling_scale": 0.0}, "pooling_scale must be positive"),
        ],
    )
    def test_impossible_configurations(self, fields, message):
        with pytest.raises(ValueError, match=message):
            MvpSegConfig(**fields)


def test_presence_loss_against_hand_computed_values():
    labels = torch.tensor([[[0, 0], [255, 2]], [[255, 255], [255, 255]]])
    assert classes_in_masks(labels, 3).tolist() == [[True, False, True], [False, False, False]]
    logits = torch.tensor([[0.0, 2.0, -1.0], [5.0, 5.0, 5.0]])
    positive = -(torch.sigmoid(logits[0, 0]).log() + torch.sigmoid(logits[0, 2]).log())
    negative = -torch.sigmoid(-logits[0, 1]).log()
    torch.testing.assert_close(presence_loss(logits, labels, "positive"), positive / 2)
    torch.testing.assert_close(presence_loss(logits, labels, "multilabel"), (positive + negative) / 3)
    assert presence_loss(logits[1:], labels[1:], "multilabel") == 0


def test_positives_only_are_satisfied_by_a_presence_that_is_always_true():
    """The fault of the paper's L_cls: a constant solves it, and the full cross-entropy refuses that constant."""
    labels = torch.randint(0, 3, (4, 8, 8))
    labels[:, :4] = 0
    labels[labels == 2] = 1
    always = torch.full((4, 3), 20.0)
    assert presence_loss(always, labels, "positive") < 1e-6
    assert presence_loss(always, labels, "multilabel") > 5
