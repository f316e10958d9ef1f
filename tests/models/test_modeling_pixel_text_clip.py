"""The pixel-text baseline keeps the contract, and compares pixels with texts."""

import pytest
import torch

from hf_clipseg import PixelTextClipConfig, PixelTextClipForSemanticSegmentation

from ..modeling_contract import ModelingContract
from ..precision import assert_same, in_double
from ..tiny import tiny_clip_config


class TestPixelTextClip(ModelingContract):
    model_class = PixelTextClipForSemanticSegmentation
    open_vocabulary = False
    config_fields = {
        "hidden_dim": 64, "num_attention_heads": 4, "num_prompts": 2, "num_prompt_tokens": 4, "pixel_decoder_layers": 1,
        "pixel_decoder_feedforward_dim": 32,
    }  # fmt: skip

    def computed_before(self, model, pixel_values):
        return {"block_maps": model.encode_blocks(pixel_values)[0]}

    @pytest.mark.usefixtures("in_double_precision")
    @torch.no_grad()
    def test_logits_are_the_best_prompts_cosine(self, model, processor):
        inputs, model = in_double(processor(images=self.images((32, 40)))), model.double()
        decoded, _ = model.decode_pixels(inputs["pixel_values"])
        pixels = model.pixel_to_text(decoded.mask_features.permute(0, 2, 3, 1))
        cosines = torch.stack([torch.cosine_similarity(pixels[..., None, :], texts, dim=-1) for texts in model.class_texts()])
        expected = cosines.max(dim=0).values.permute(0, 3, 1, 2) / 0.07
        assert_same(model(**inputs).logits, expected)

    def test_reused_parts_start_as_in_mask2former(self, model):
        for source in (model, self.model_class(model.config)):
            assert source.pixel_decoder.encoder.layers[0].self_attn.sampling_offsets.bias.abs().max() == 4

    def test_every_trained_weight_gets_a_gradient(self, model, processor):
        model.train()(**self.training_inputs(processor)).loss.backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]

    @pytest.mark.parametrize(("fields", "message"), [({"num_prompts": 0}, "num_prompts"), ({"temperature": 0.0}, "positive")])
    def test_impossible_configurations(self, fields, message):
        with pytest.raises(ValueError, match=message):
            PixelTextClipConfig(clip_config=tiny_clip_config().to_dict(), **fields)
