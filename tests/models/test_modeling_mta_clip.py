"""MTA-CLIP keeps the contract, starts as Mask2Former does, and computes what its paper says."""

import copy

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from hf_clipseg import MtaClipConfig, MtaClipForSemanticSegmentation
from hf_clipseg.clip.text_bank import average_templates
from hf_clipseg.models.mta_clip.modeling_mta_clip import semantic_logits

from ..modeling_contract import CLASSES, ModelingContract
from ..precision import assert_same, in_double
from ..tiny import tiny_clip_config

TINY = {
    "hidden_dim": 64, "num_attention_heads": 4, "num_prompts": 2, "num_prompt_tokens": 4, "pixel_decoder_layers": 1,
    "pixel_decoder_feedforward_dim": 32, "decoder_layers": 3, "feedforward_dim": 32, "num_queries": 5, "num_points": 64,
}  # fmt: skip


def randomise(model: torch.nn.Module) -> None:
    """Move what starts at 0 or at 1e-4, so that every weight matters to the output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


class TestMtaClip(ModelingContract):
    model_class = MtaClipForSemanticSegmentation
    open_vocabulary = False
    config_fields = TINY

    def computed_before(self, model, pixel_values):
        return {"block_maps": model.encode_blocks(pixel_values)[0]}

    def test_reused_parts_start_as_in_mask2former(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        weights = {name: value for name, value in model.state_dict().items() if "pixel_decoder" not in name}
        partly = self.model_class.from_pretrained(None, config=model.config, state_dict=weights)
        for source in (model, loaded, partly, self.model_class(model.config)):
            for layer in source.pixel_decoder.encoder.layers:
                assert layer.self_attn.sampling_offsets.bias.abs().max() == 4
                assert layer.self_attn.sampling_offsets.weight.abs().max() == 0
                assert layer.self_attn.attention_weights.weight.abs().max() == 0
                assert layer.self_attn.value_proj.weight.std() > 0.1  # xavier, not the generic 0.02
            assert 0.7 < source.pixel_decoder.level_embed.std() < 1.3
            assert 0.7 < source.decoder.level_embed.std() < 1.3
            assert 0.7 < source.query_features.weight.std() < 1.3
            assert 0.7 < source.text_positions.weight.std() < 1.3
            assert source.decoder.layers[0].fc1.weight.std() > 0.1
            assert source.decoder.layers[0].cross_attn.in_proj_weight.std() > 0.05
            assert source.decoder.layers[0].cross_attn.in_proj_bias.abs().max() == 0
            assert torch.equal(source.refinement_scale, torch.full_like(source.refinement_scale, 1e-4))
            assert 0.01 < source.prompts.contexts.std() < 0.03

    def test_text_encoder_is_frozen_and_prompts_are_not(self, model, processor):
        outputs = model.train()(**self.training_inputs(processor))
        assert set(outputs.losses) == {"cross_entropy", "mask", "dice", "contrastive"}
        outputs.loss.backward()
        assert model.prompts.contexts.grad.abs().sum() > 0
        assert model.clip.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
        for parameter in (*model.clip.text_model.parameters(), *model.clip.text_projection.parameters()):
            assert not parameter.requires_grad and parameter.grad is None

    def test_every_trained_weight_gets_a_gradient(self, model, processor):
        """Distributed training fails where a weight takes no part, also in a batch without a label."""
        for labels in (None, 255):
            inputs = self.training_inputs(processor)
            if labels is not None:
                inputs["labels"] = torch.full_like(inputs["labels"], labels)
            clone = copy.deepcopy(model).train()
            clone(**inputs).loss.backward()
            assert not [name for name, p in clone.named_parameters() if p.requires_grad and p.grad is None]

    def test_texts_are_those_of_the_prompt_learner(self, model, processor):
        """One sentence per name, synonyms averaged, "none" last; unit length."""
        texts = model.class_texts()
        assert texts.shape == (2, 4, 24)
        inputs = processor(class_names=[*CLASSES, "none"], templates="name")
        expected = model.prompts(model.clip, inputs["input_ids"])  # sky, boat, ship, grass, none
        torch.testing.assert_close(texts[:, [0, 2, 3]], expected[:, [0, 3, 4]])
        for prompt in range(2):
            boat = average_templates(expected[prompt, 1:3], torch.tensor([0, 0]))[0]
            torch.testing.assert_close(texts[prompt, 1], boat)

    @pytest.mark.usefixtures("in_double_precision")
    @torch.no_grad()
    def test_logits_and_similarities_from_the_queries(self, model, processor):
        randomise(model.double())
        inputs = in_double(processor(images=self.images((32, 40), (32, 40))))
        outputs = model(**inputs, output_queries=True)
        classes, masks = outputs.class_queries_logits, outputs.masks_queries_logits
        assert classes.shape == (2, 5, 4) and masks.shape[:2] == (2, 5) and outputs.similarities.shape == (2, 5, 4, 2)
        scores = (classes.softmax(-1)[..., :3, None, None] * masks.sigmoid()[:, :, None]).sum(1)
        assert_same(outputs.logits.exp(), scores)

        decoded, _ = model.decode_pixels(inputs["pixel_values"])
        state = model.decode_sequence(model.class_texts(), decoded.multi_scale_features, decoded.mask_features)[-1].tokens
        refined = torch.nn.functional.layer_norm(
            model.text_output(state[:, 5:]), (24,), model.text_output_norm.weight, model.text_output_norm.bias
        )
        for prompt in range(2):
            text = model.class_texts()[prompt] + model.refinement_scale * refined[:, 4 * prompt : 4 * prompt + 4]
            expected = torch.cosine_similarity(model.mask_to_text(state[:, :5])[:, :, None], text[:, None], dim=-1)
            assert_same(outputs.similarities[..., prompt], expected)

    @torch.no_grad()
    def test_texts_reach_the_masks(self, model, processor):
        """Text tokens and queries are one sequence: other words give other masks, though the heads are the same."""
        inputs = processor(images=self.images((32, 40)))
        before = model(**inputs, output_queries=True).masks_queries_logits
        model.set_classes(["tree", "car", "person"], processor)
        assert (model(**inputs, output_queries=True).masks_queries_logits - before).abs().max() > 1e-4

    @pytest.mark.parametrize(
        ("fields", "losses", "similarities"),
        [
            ({"num_prompts": 0}, {"cross_entropy", "mask", "dice"}, None),
            ({"contrastive_weight": 0.0}, {"cross_entropy", "mask", "dice"}, None),
            ({"num_prompts": 1}, {"cross_entropy", "mask", "dice", "contrastive"}, (1, 5, 4, 1)),
        ],
    )
    def test_ablations(self, clip_folder, processor, tmp_path, fields, losses, similarities):
        model = self.model_class.from_clip(clip_folder, **(TINY | fields))
        model.set_classes(CLASSES, processor)
        outputs = model.train()(**self.training_inputs(processor))
        outputs.loss.backward()
        assert set(outputs.losses) == losses
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        inputs = processor(images=self.images((32, 40)))
        model.eval().drop_text_encoder()
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path)
        with torch.no_grad():
            outputs = model(**inputs, output_queries=True)
            torch.testing.assert_close(loaded(**inputs).logits, outputs.logits)
        assert (None if outputs.similarities is None else tuple(outputs.similarities.shape)) == similarities

    @torch.no_grad()
    def test_baked_texts_follow_training(self, model, processor, tmp_path):
        """Prompts change in training; the checkpoint must hold what they say at the end."""
        inputs = processor(images=self.images((32, 40)))
        before = model(**inputs).logits
        model.prompts.contexts.add_(torch.randn_like(model.prompts.contexts))
        after = model(**inputs).logits
        assert (after - before).abs().max() > 1e-4
        model.drop_text_encoder()
        torch.testing.assert_close(model(**inputs).logits, after)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(self.model_class.from_pretrained(tmp_path)(**inputs).logits, after)

    @torch.no_grad()
    def test_features_can_be_computed_once(self, model, processor):
        """What a frozen CLIP gives can stand in for the pixels; tokens keep their places."""
        inputs = processor(images=self.images((32, 40), (32, 40)))
        block_maps, hidden_states = model.encode_blocks(inputs["pixel_values"])
        height, width = (side // 8 for side in inputs["pixel_values"].shape[-2:])
        assert block_maps.shape == (2, 2, height, width, 32)  # blocks 1 and 2 of three
        assert torch.equal(block_maps[1, 1, 2, 3], hidden_states[3][1, 1 + 2 * width + 3])
        torch.testing.assert_close(model(block_maps=block_maps).logits, model(**inputs).logits)
        with pytest.raises(ValueError, match="not both"):
            model(**inputs, block_maps=block_maps)

    @torch.no_grad()
    def test_text_is_encoded_once(self, model, processor):
        inputs = processor(images=self.images((32, 40)))
        model(**inputs)
        calls = []
        handle = model.clip.text_model.encoder.register_forward_hook(lambda *arguments: calls.append(1))
        model(**inputs)
        handle.remove()
        assert not calls

    @torch.no_grad()
    def test_other_number_of_classes_makes_new_heads(self, model, processor):
        model.set_classes(["tree", "car"], processor)
        assert model.config.id2label == {0: "tree", 1: "car"}
        assert model(**processor(images=self.images((32, 32)))).logits.shape[1] == 2
        assert model.class_predictor.out_features == 3 and model.class_embeds.shape == (2, 3, 24)

    def test_diverged_predictions_are_an_error(self, model, processor):
        inputs = self.training_inputs(processor)
        inputs["pixel_values"][0, 0, 0, 0] = float("nan")
        with pytest.raises(ValueError, match="not finite"):
            model.train()(**inputs)

    def test_autocast_losses_stay_in_full_precision(self, model, processor):
        inputs = self.training_inputs(processor)
        seen = []
        model.pixel_decoder.register_forward_hook(lambda module, args, output: seen.append(output.mask_features.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model.train()(**inputs)
        assert outputs.loss.dtype == torch.float32 and seen == [torch.float32]
        torch.manual_seed(0)
        reference = model(**inputs).loss
        assert abs(outputs.loss - reference) < 0.1 * reference

    def test_no_classes_yet(self, clip_folder, processor):
        model = self.model_class.from_clip(clip_folder, **TINY)
        with pytest.raises(ValueError, match="set_classes"):
            model(**processor(images=self.images((32, 32))))

    def test_classes_of_a_dropped_checkpoint_are_fixed(self, model, processor):
        model.drop_text_encoder()
        with pytest.raises(ValueError, match="full checkpoint"):
            model.set_classes(["tree", "car"], processor)


def test_semantic_logits_by_hand():
    """Two queries, two classes, one pixel: 0.5 * 0.5 + 0.75 * 0.25 and 0.25 * 0.5 + 0 * 0.25."""
    class_logits = torch.tensor([[[0.5, 0.25, 0.25], [0.75, 1e-30, 0.25]]]).log()
    mask_logits = torch.tensor([[[[0.5]], [[0.25]]]]).logit()
    scores = semantic_logits(class_logits, mask_logits).exp().flatten()
    torch.testing.assert_close(scores, torch.tensor([0.4375, 0.125]))


@pytest.mark.parametrize(
    ("layers", "expected"), [(12, [3, 5, 7, 11]), (24, [6, 10, 15, 23]), (4, [1, 1, 2, 3]), (1, [0, 0, 0, 0])]
)
def test_pyramid_layers(layers, expected):
    assert MtaClipConfig(clip_config=tiny_clip_config(num_hidden_layers=layers).to_dict()).feature_layers == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_dim": 96}, "multiple of 64"),
        ({"finest_scale": 3}, "1, 2 or 4"),
        ({"contrastive_form": "max"}, "mix"),
        ({"contrastive_temperature": 0.0}, "positive"),
        ({"feature_layers": [0, 1, 2]}, "4 blocks"),
        ({"feature_layers": [0, 1, 1, 1]}, "last one, 2"),
        ({"num_prompt_tokens": 14}, "no room"),
        ({"num_points": 0}, "num_points"),
        ({"prompt_input_ids": [[0, 1]]}, "set_classes"),
    ],
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        MtaClipConfig(clip_config=tiny_clip_config().to_dict(), **({"hidden_dim": 64} | fields))
