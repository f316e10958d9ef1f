"""VPL keeps the contract (as a closed-vocabulary method), freezes CLIP, and never needs image labels to predict."""

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from hf_clipseg import VisionPrototypes, VplConfig, VplForSemanticSegmentation
from hf_clipseg.models.vpl.vpl_losses import affinity_loss, balanced_cross_entropy, labels_on_grid, region_contrast

from ..modeling_contract import CLASSES, ModelingContract
from ..precision import assert_same, double_precision, in_double


class TestVpl(ModelingContract):
    model_class = VplForSemanticSegmentation
    open_vocabulary = False
    config_fields = {"decoder_dim": 16, "decoder_layers": 2, "decoder_heads": 2, "decoder_dropout": 0.0}

    def computed_before(self, model, pixel_values):
        return {"block_states": model.encode_blocks(pixel_values)}

    def test_without_classes_it_says_what_to_do(self, clip_folder, processor):
        model = VplForSemanticSegmentation.from_clip(clip_folder, **self.config_fields)
        with pytest.raises(ValueError, match="VisionPrototypes.fit"):
            model(**processor(images=self.images((32, 32))))

    def test_clip_is_frozen_also_when_loaded(self, model, processor, tmp_path):
        model.save_pretrained(tmp_path)
        for candidate in (model, VplForSemanticSegmentation.from_pretrained(tmp_path)):
            candidate.train()
            candidate(**self.training_inputs(processor)).loss.backward()
            trained = {name.split(".")[0] for name, p in candidate.named_parameters() if p.grad is not None}
            assert trained == {"decoder", "projection", "classifier"}

    def test_cached_block_states_give_the_same_output(self, model, processor):
        inputs = self.training_inputs(processor)
        states = model.encode_blocks(inputs["pixel_values"])
        assert states.shape == (2, 3, 6, 8, 32)  # 32 x 40 pixels become 48 x 60, then 48 x 64
        cached, direct = model(block_states=states, labels=inputs["labels"]), model(**inputs)
        assert torch.equal(cached.logits, direct.logits) and torch.equal(cached.loss, direct.loss)

    def test_the_read_out_is_saved_and_those_of_before_are_gradient_maps(self, model, processor, tmp_path):
        pixel_values, tags = processor(images=self.images((32, 40)))["pixel_values"], torch.ones(1, len(CLASSES))
        model.config.read_out, model.config.affinity_layers = "softmax", 0
        model.save_pretrained(tmp_path)
        assert VplConfig().read_out == "gradient"
        maps = VplForSemanticSegmentation.from_pretrained(tmp_path).localization_maps(pixel_values, tags)
        torch.testing.assert_close(maps.sum(1), torch.ones_like(maps[:, 0]))
        with pytest.raises(ValueError, match="read_out must be one of"):
            VplConfig(read_out="median")

    @torch.no_grad()
    def test_forward_by_hand(self, clip_folder, model, processor):
        """Block by block from transformers' own CLIP, with attention written out; every block has a projection of its own."""
        inputs, randomise = processor(images=self.images((32, 40))), torch.Generator().manual_seed(1)
        for parameter in [*model.decoder.parameters(), *model.classifier.parameters()]:
            parameter += 0.1 * torch.randn(parameter.shape, generator=randomise)
        with double_precision():
            logits = model.double()(**in_double(inputs)).logits
            clip, decoder = CLIPModel.from_pretrained(clip_folder).double(), model.decoder
            pixel_values = F.interpolate(inputs["pixel_values"].double(), size=(48, 64), mode="bilinear")
            states = clip.vision_model(pixel_values, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
            parts = []
            for block in range(3):
                normed = decoder.fusion.norms[block](states[block + 1][0, 1:])
                first, _, second = decoder.fusion.projections[block]
                parts.append(second(first(normed).clamp(min=0)))
            tokens = decoder.fusion.mix(torch.cat(parts, dim=-1))  # (48, 16)
            for block in decoder.blocks:
                rows = block.query_key_value(block.norm1(tokens)).view(48, 3, 2, 8)
                heads = [
                    (query @ key.T / 8**0.5).softmax(dim=-1) @ value
                    for query, key, value in (rows[:, :, head].unbind(1) for head in range(2))
                ]
                tokens = tokens + block.output(torch.cat(heads, dim=-1))
                tokens = tokens + block.mlp(block.norm2(tokens))
            expected = model.classifier(decoder.norm(tokens)).T.view(1, 3, 6, 8)
        assert_same(logits, expected)

    def test_loss_is_the_weighted_sum(self, model, processor):
        model.config.affinity_loss_weight, model.config.contrast_loss_weight = 0.3, 0.7
        outputs = model(**self.training_inputs(processor), contrast_factor=0.5)
        losses = outputs.losses
        expected = losses["cross_entropy"] + 0.3 * losses["affinity"] + 0.35 * losses["contrast"]
        torch.testing.assert_close(outputs.loss.detach(), expected)

    def test_contrast_reaches_the_decoder(self, model, processor):
        model.train()
        inputs = self.training_inputs(processor)
        states = model.encode_blocks(inputs["pixel_values"]).flatten(2, 3)
        fused, decoded = model.decoder(states)
        logits = model.classifier(decoded).transpose(1, 2).unflatten(2, (6, 8))
        model.compute_losses(logits, fused, decoded, inputs["labels"])["contrast"].backward()
        assert model.decoder.fusion.mix.weight.grad.abs().sum() > 0

    def test_background_gets_id_0(self, clip_folder, processor):
        model = VplForSemanticSegmentation.from_clip(clip_folder, **self.config_fields)
        model.set_classes(CLASSES, processor, background_words=["tree", "road"])
        assert model.config.id2label == {0: "background", 1: "sky", 2: "boat", 3: "grass"}
        assert model.prototypes.shape == (5, 24) and model.classifier.out_features == 4
        reloaded = VplConfig.from_dict(model.config.to_dict())
        assert reloaded.id2label == model.config.id2label and reloaded.num_prototypes == 5
        assert torch.isfinite(model(**self.training_inputs(processor)).loss)

    def test_localization_maps_are_public(self, model, processor):
        pixel_values = processor(images=self.images((32, 40), (32, 40)))["pixel_values"]
        maps = model.localization_maps(pixel_values, torch.tensor([[1, 0, 1], [0, 1, 0]]))
        assert maps.shape == (2, 3, 6, 8) and maps.min() >= 0 and maps.max() <= 1
        assert (maps[0, 1] == 0).all() and (maps[1, [0, 2]] == 0).all() and maps[1, 1].max() == 1

    def test_prototypes_of_other_weights_change_nothing(self, model, processor):
        prototypes = VisionPrototypes.fit(
            self.images((32, 32), (32, 40)), [["sky", "boat"], ["grass"]], CLASSES, model.clip, processor
        )
        before = model.prototypes.clone()
        with torch.no_grad():
            model.clip.visual_projection.weight += 0.01
        with pytest.raises(ValueError, match="other|learnt with CLIP weights"):
            model.set_prototypes(prototypes)
        assert torch.equal(model.prototypes, before)

    def test_trained_classifier_survives_new_prototypes(self, model, processor):
        prototypes = VisionPrototypes.fit(
            self.images((32, 32), (32, 40)), [["sky", "boat"], ["grass"]], CLASSES, model.clip, processor
        )
        weight = model.classifier.weight.clone()
        model.set_prototypes(prototypes)
        assert torch.equal(model.classifier.weight, weight)
        assert torch.equal(model.prototypes, prototypes.embeds) and model.config.cam_scale == 25.0


def test_labels_on_grid_reads_patch_centres():
    labels = torch.arange(6 * 8).view(1, 6, 8)
    assert labels_on_grid(labels, (2, 2)).tolist() == [[[10, 14], [34, 38]]]
    assert torch.equal(labels_on_grid(labels, (6, 8)), labels)


def test_balanced_cross_entropy_weighs_background_as_foreground():
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 0, 0] = 2
    log_probabilities = logits.log_softmax(1)
    background = -log_probabilities[0, 0].flatten()[1:].mean()
    expected = (background - log_probabilities[0, 2, 0, 0]) / 2
    torch.testing.assert_close(balanced_cross_entropy(logits, labels, True), expected)


def test_affinity_loss_by_hand():
    features = torch.randn(1, 4, 8)
    labels = torch.tensor([[[0, 0], [1, 255]]])
    affinity = (features[0] @ features[0].T / 8**0.5).sigmoid()
    same = [affinity[i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 0))]
    other = [affinity[i, j] for i, j in ((0, 2), (2, 0), (1, 2), (2, 1))]
    expected = ((1 - torch.stack(same)).mean() + torch.stack(other).mean()) / 2
    torch.testing.assert_close(affinity_loss(features, labels, radius=1), expected)


def test_affinity_loss_only_looks_near():
    features, labels = torch.randn(1, 9, 4), torch.arange(9).view(1, 1, 9) % 2
    far = features.clone()
    far[0, 8] += 100.0
    pairs = [(i, j) for i in range(9) for j in range(9) if abs(i - j) <= 1]
    affinity = (features[0] @ features[0].T / 2).sigmoid()
    same = torch.stack([1 - affinity[i, j] for i, j in pairs if i == j]).mean()
    other = torch.stack([affinity[i, j] for i, j in pairs if i != j]).mean()
    torch.testing.assert_close(affinity_loss(features, labels, radius=1), (same + other) / 2)
    assert affinity_loss(far, labels, radius=1) != affinity_loss(features, labels, radius=1)


@pytest.mark.parametrize("num_background", [0, 2])
def test_region_contrast_by_hand(num_background):
    prototypes = torch.nn.functional.normalize(torch.randn(3 + num_background, 5), dim=1)
    features = torch.randn(2, 4, 5)
    labels = torch.tensor([[[0, 0], [1, 255]], [[255, 2], [2, 2]]])
    expected = []
    for image, label, patches in ((0, 0, [0, 1]), (0, 1, [2]), (1, 2, [1, 2, 3])):
        region = torch.nn.functional.normalize(features[image, patches].mean(0), dim=0)
        probabilities = (prototypes @ region / 0.1).softmax(0)
        if num_background:
            probabilities = torch.cat([probabilities[3:].sum().view(1), probabilities[:3]])
        expected.append(-probabilities[label].log())
    loss = region_contrast(features, labels, prototypes, 3, 0.1)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_region_contrast_of_void_is_zero_with_a_gradient():
    features = torch.randn(1, 4, 5, requires_grad=True)
    loss = region_contrast(features, torch.full((1, 2, 2), 255), torch.eye(5), 5, 0.1)
    loss.backward()
    assert loss.item() == 0 and (features.grad == 0).all()


def test_impossible_configurations_are_refused():
    for fields in ({"decoder_dim": 30}, {"attention_variant": "median"}, {"contrast_temperature": 0.0}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            VplConfig(**fields)
