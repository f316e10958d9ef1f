"""MaskCLIP keeps the contract, and computes what its paper says."""

import pytest
import torch
from transformers import CLIPModel

from hf_clipseg import MaskClipConfig, MaskClipForSemanticSegmentation
from hf_clipseg.clip.clip_backbone import KEEPS_RESIDUAL
from hf_clipseg.clip.text_bank import TextCache

from ..modeling_contract import ModelingContract
from ..precision import assert_same, in_double


class TestMaskClip(ModelingContract):
    model_class = MaskClipForSemanticSegmentation

    @pytest.mark.usefixtures("in_double_precision")
    @torch.no_grad()
    def test_logits_are_scaled_cosines_of_value_features(self, clip_folder, processor):
        """Recomputed from transformers' modules alone."""
        model = MaskClipForSemanticSegmentation.from_clip(clip_folder, keep_residual=False).double()
        inputs = in_double(processor(images=self.images((32, 32)), class_names=["sky", "grass"], templates="photo"))
        clip = CLIPModel.from_pretrained(clip_folder).double()
        last = clip.vision_model.encoder.layers[-1]
        states = clip.vision_model(inputs["pixel_values"], output_hidden_states=True, interpolate_pos_encoding=True)
        values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(states.hidden_states[-2])))
        features = clip.visual_projection(clip.vision_model.post_layernorm(values))[:, 1:]
        text = clip.get_text_features(inputs["input_ids"]).pooler_output
        features, text = (tensor / tensor.norm(dim=-1, keepdim=True) for tensor in (features, text))
        expected = (clip.logit_scale.exp() * features @ text.T).transpose(1, 2)
        assert_same(model(**inputs).logits.flatten(2), expected)

    @torch.no_grad()
    def test_variants_differ(self, clip_folder, processor):
        inputs = processor(images=self.images((32, 40)), class_names=["sky", "grass"])
        logits = [
            MaskClipForSemanticSegmentation.from_clip(clip_folder, attention_variant=variant)(**inputs).logits
            for variant in KEEPS_RESIDUAL
        ]
        for first in range(len(logits)):
            for second in range(first):
                assert (logits[first] - logits[second]).abs().max() > 1e-4

    @torch.no_grad()
    def test_texts_cached_under_autocast_are_exact(self, clip_folder, processor):
        names = processor(class_names=["sky", "grass"])
        model = MaskClipForSemanticSegmentation.from_clip(clip_folder)
        with torch.autocast("cpu", torch.bfloat16):
            cached = model.encode_names(names["input_ids"], names["name_ids"])
        model.text_cache = TextCache()
        assert torch.equal(cached, model.encode_names(names["input_ids"], names["name_ids"]))

    def test_unknown_variant(self):
        with pytest.raises(ValueError, match="attention_variant must be one of .*naclip.*got 'nacl'"):
            MaskClipConfig(attention_variant="nacl")

    def test_no_classes(self, clip_folder, processor):
        model = MaskClipForSemanticSegmentation.from_clip(clip_folder)
        with pytest.raises(ValueError, match="set_classes"):
            model(**processor(images=self.images((32, 32))))

    def test_folder_without_weights(self, model, tmp_path):
        model.config.save_pretrained(tmp_path)
        with pytest.raises(OSError, match="model.safetensors"):
            MaskClipForSemanticSegmentation.from_pretrained(tmp_path)
