"""CoCu keeps the contract, loads GroupViT checkpoints, and computes what the papers and the released evaluation say."""

import pytest
import torch
from torch import nn
from transformers import GroupViTConfig, GroupViTModel

from hf_clipseg import CocuConfig, CocuForSemanticSegmentation
from hf_clipseg.models.cocu.group_segmentation import add_background, assign_cells, group_class_scores

from ..modeling_contract import CLASSES, ModelingContract
from ..tiny_groupvit import save_tiny_groupvit, tiny_groupvit_config

NAMES = ["sky", "boat", "grass", "tree", "car", "person"]


class TestCocu(ModelingContract):
    model_class = CocuForSemanticSegmentation
    config_fields = {"top_classes": None}

    @pytest.fixture(scope="class")
    def groupvit_folder(self, tmp_path_factory):
        return save_tiny_groupvit(tmp_path_factory.mktemp("groupvit"))

    def build(self, groupvit_folder, **fields):
        model = CocuForSemanticSegmentation.from_groupvit(groupvit_folder, **{**self.config_fields, **fields})
        with torch.no_grad():
            model.clip.logit_scale.fill_(3.0)
        return model

    @pytest.fixture
    def model(self, groupvit_folder, processor):
        model = self.build(groupvit_folder)
        model.set_classes(CLASSES, processor)
        return model

    def captions(self, processor, batch: int = 2) -> dict:
        """Captions and two concepts for each of `batch` images."""
        texts = ["a photo of a boat in the sea", "red car", "tree", "a person", "sky", "grass", "the sea", "many boat"]
        rows = [[texts[(row + column) % len(texts)] for column in range(3)] for row in range(batch)]
        tokens = processor.tokenizer([text for row in rows for text in row], padding=True, return_tensors="pt")[
            "input_ids"
        ].unflatten(0, (batch, 3))
        ids = torch.tensor([[(row + column) % len(texts) for column in (1, 2)] for row in range(batch)])
        return {"caption_input_ids": tokens[:, 0], "concept_input_ids": tokens[:, 1:], "concept_ids": ids}

    # -- where GroupViT differs from what the contract assumes

    @torch.no_grad()
    def test_return_dict_and_hidden_states(self, model, processor):
        """Stages take the place of blocks: patches, then 8 groups, then 4."""
        inputs = processor(images=self.images((32, 40)))
        outputs = model(**inputs, output_hidden_states=True)
        grid = outputs.assignments.shape[-2:]
        assert [tuple(state.shape) for state in outputs.hidden_states] == [(1, count, 32) for count in (grid.numel(), 8, 4, 4)]
        as_tuple = model(**inputs, return_dict=False)
        assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], outputs.logits)

    def test_eager_equals_sdpa(self, model, processor, tmp_path):
        """GroupViT has one attention; asking for another is refused instead of losing the causal mask of the text encoder."""
        model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="does not support"):
            CocuForSemanticSegmentation.from_pretrained(tmp_path, attn_implementation="sdpa")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, model, processor, dtype):
        """With soft assignments: rounding moves a cell between two groups that are about equally likely."""
        model.config.assignment = "soft"
        super().test_half_precision(model, processor, dtype)

    # -- GroupViT

    @torch.no_grad()
    def test_a_full_size_groupvit_checkpoint_loads_unchanged(self, tmp_path):
        """Default configuration, the layout of nvidia/groupvit-gcc-yfcc; embeddings as transformers computes them."""
        reference = GroupViTModel(GroupViTConfig()).eval()
        for name, parameter in reference.named_parameters():
            if "group_token" in name or "position_embeddings" in name:
                nn.init.normal_(parameter)
        reference.save_pretrained(tmp_path)
        model = CocuForSemanticSegmentation.from_groupvit(tmp_path)
        assert model.clip.state_dict().keys() == reference.state_dict().keys()
        pixel_values, input_ids = torch.randn(2, 3, 224, 224), torch.randint(0, 49405, (3, 12))
        input_ids[:, -1] = 49407
        images = nn.functional.normalize(reference.get_image_features(pixel_values).pooler_output, dim=-1)
        texts = nn.functional.normalize(reference.get_text_features(input_ids).pooler_output, dim=-1)
        grouping = model.clip.group(pixel_values)
        torch.testing.assert_close(model.clip.embed_images(grouping.tokens), images)
        torch.testing.assert_close(model.clip.encode_text(input_ids), texts)
        assert grouping.assignments.shape == (2, 8, 14, 14)

    def test_group_tokens_do_not_start_equal(self):
        """transformers starts them at zero, and equal tokens stay equal through every layer."""
        model = CocuForSemanticSegmentation(CocuConfig(clip_config=tiny_groupvit_config()))
        stages = model.clip.vision_model.encoder.stages
        for tensor in (stages[0].group_token, stages[1].group_token, model.clip.vision_model.embeddings.position_embeddings):
            assert 0.01 < tensor.std() < 0.03 and (tensor[0, 0] - tensor[0, 1]).abs().max() > 1e-3

    def test_assignments_of_a_new_model_stand_out_of_the_noise(self):
        """At published size; of a query and a key as the norms before them give them. Gumbel noise has deviation 1.3."""
        torch.manual_seed(0)
        vision = CocuForSemanticSegmentation(CocuConfig()).clip.vision_model
        for stage in vision.encoder.stages[:2]:
            assign = stage.downsample.assign
            queries, keys = assign.q_proj(0.1 * torch.randn(64, 384)), assign.k_proj(torch.randn(64, 384))
            assert stage.downsample.pre_assign_attn.norm_post.weight.unique().item() == pytest.approx(0.1)
            assert (queries @ keys.T * assign.scale).std().item() == pytest.approx(4.0, rel=0.1)

    @torch.no_grad()
    def test_pooling_after_projection_is_a_weighted_mean_of_groups(self, groupvit_folder):
        """Each weighs as much as the patch that belongs to it most."""
        model = self.build(groupvit_folder, pooling="after_projection")
        grouping = model.clip.group(torch.randn(2, 3, 32, 32))
        grouping = grouping._replace(assignments=(4 * torch.randn(2, 4, 4, 4)).softmax(dim=1) * torch.rand(1, 1, 4, 4))
        expected = torch.zeros(2, 24)
        for group in range(4):
            weight = grouping.assignments[:, group].flatten(1).max(dim=1).values
            expected += weight[:, None] * model.clip.visual_projection(grouping.tokens[:, group])
        torch.testing.assert_close(model.embed_images(grouping), nn.functional.normalize(expected, dim=-1))
        with pytest.raises(ValueError, match="pooling must be one of"):
            CocuConfig(pooling="mean")

    @torch.no_grad()
    def test_text_padding_and_later_words_change_nothing(self, model, processor):
        short = processor.tokenizer("a boat", return_tensors="pt")["input_ids"]
        padded = processor.tokenizer("a boat", padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
        torch.testing.assert_close(model.clip.encode_text(short), model.clip.encode_text(padded))

    def test_clip_checkpoints_are_refused(self, clip_folder):
        with pytest.raises(ValueError, match="from_groupvit"):
            CocuForSemanticSegmentation.from_clip(clip_folder)

    # -- zero-shot segmentation

    @pytest.mark.parametrize("assignment", ["hard", "soft"])
    @torch.no_grad()
    def test_logits_from_the_definitions(self, groupvit_folder, processor, assignment):
        """The released evaluation, written with loops from transformers' own outputs, at full resolution."""
        model = self.build(groupvit_folder, assignment=assignment, top_classes=2, background_threshold=0.4, output_stride=1)
        image = self.images((32, 32))[0]
        inputs = processor(images=image, class_names=NAMES, size={"height": 32, "width": 32})
        reference = GroupViTModel.from_pretrained(groupvit_folder)
        vision = reference.vision_model(inputs["pixel_values"], output_attentions=True)
        texts = reference.get_text_features(inputs["input_ids"]).pooler_output
        texts = nn.functional.normalize(texts, dim=-1).unflatten(0, (len(NAMES), -1)).mean(1)
        texts = nn.functional.normalize(texts, dim=-1)
        groups = nn.functional.normalize(reference.visual_projection(vision.last_hidden_state[0]), dim=-1)
        whole = nn.functional.normalize(reference.visual_projection(vision.pooler_output), dim=-1)[0]
        scale = torch.tensor(3.0).exp()
        allowed = (whole @ texts.T).topk(2).indices.tolist()
        scores = torch.zeros(4, len(NAMES))
        for group in range(4):
            logits = scale * groups[group] @ texts.T
            for name in allowed:
                scores[group, name] = logits[name].exp() / logits[allowed].exp().sum() * logits.softmax(0)[name]
        soft = (vision.attentions[1][0] @ vision.attentions[0][0]).view(1, 4, 4, 4)
        soft = nn.functional.interpolate(soft, size=(32, 32), mode="bilinear")[0]
        outputs = model(**inputs)
        threshold = min(0.4, scores.max().item())
        for row, column in [(0, 0), (13, 7), (31, 30), (16, 16)]:
            share = soft[:, row, column]
            if assignment == "hard":
                share = nn.functional.one_hot(share.argmax(), 4).float()
            torch.testing.assert_close(outputs.logits[0, 1:, row, column], share @ scores)
            wins = outputs.logits[0, :, row, column].argmax() == 0
            assert wins == ((share @ scores).max() < threshold)

    @torch.no_grad()
    def test_background_is_a_class_of_its_own(self, groupvit_folder, processor, tmp_path):
        model = self.build(groupvit_folder, background_threshold=0.95)
        model.set_classes(CLASSES, processor)
        assert model.config.id2label == {0: "background", 1: "sky", 2: "boat", 3: "grass"}
        model.save_pretrained(tmp_path)
        loaded = CocuForSemanticSegmentation.from_pretrained(tmp_path)
        assert loaded.config.id2label == model.config.id2label
        assert loaded(**processor(images=self.images((32, 32)))).logits.shape[1] == 4

    @torch.no_grad()
    def test_groups_of_an_image_can_be_shown(self, model, processor):
        outputs = model(**processor(images=self.images((32, 64))))
        torch.testing.assert_close(outputs.assignments.sum(1), torch.ones_like(outputs.assignments[:, 0]))
        assert outputs.group_scores.shape == (1, 3, 4)

    # -- losses

    def test_caption_losses_train_every_part(self, model, processor):
        model.train().config.multi_label_weight = 0.5
        outputs = model(pixel_values=torch.randn(4, 3, 32, 32), **self.captions(processor, 4))
        assert outputs.logits is None and outputs.losses.keys() == {"caption", "concepts"}
        torch.testing.assert_close(outputs.loss, outputs.losses["caption"] + 0.5 * outputs.losses["concepts"])
        outputs.loss.backward()
        assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]

    def test_captions_alone_are_groupvit(self, groupvit_folder, processor):
        """transformers' own loss, in eval mode, where nothing is random."""
        model = self.build(groupvit_folder)
        pixel_values, captions = torch.randn(3, 3, 32, 32), self.captions(processor, 3)["caption_input_ids"]
        reference = GroupViTModel.from_pretrained(groupvit_folder)
        reference.logit_scale.data.fill_(3.0)
        expected = reference(input_ids=captions, pixel_values=pixel_values, return_loss=True).loss
        torch.testing.assert_close(model(pixel_values=pixel_values, caption_input_ids=captions).loss, expected)

    def test_half_of_the_concepts(self, model, processor):
        captions = self.captions(processor)
        del captions["concept_ids"]
        with pytest.raises(ValueError, match="belong together"):
            model(pixel_values=torch.randn(2, 3, 32, 32), **captions)
        del captions["concept_input_ids"]
        with pytest.raises(ValueError, match="archive_ids are of no use without"):
            model(pixel_values=torch.randn(2, 3, 32, 32), **captions, archive_ids=torch.zeros(2, 1, dtype=torch.long))

    def test_an_archive_that_holds_all_concepts_leaves_an_image_its_own(self, model, processor):
        """What the loss is then: an image is told apart from its own texts only, and a text knows one image."""
        captions, pixel_values = self.captions(processor), torch.randn(2, 3, 32, 32)
        model.config.multi_label_weight = 0.5
        without = model(pixel_values=pixel_values, **captions)
        outputs = model(pixel_values=pixel_values, **captions, archive_ids=torch.arange(50).expand(2, 50))
        torch.testing.assert_close(outputs.losses["caption"], without.losses["caption"])
        assert outputs.losses["concepts"] < without.losses["concepts"]
        torch.testing.assert_close(outputs.loss, outputs.losses["caption"] + 0.5 * outputs.losses["concepts"])

    @pytest.mark.parametrize("limit", [100.0, float("inf")])
    def test_the_clamp_is_what_keeps_training_finite(self, groupvit_folder, processor, limit):
        """A learning rate that throws the temperatures far out: some seed diverges without the clamp, none does with it."""
        finite = [self.stays_finite(groupvit_folder, processor, limit, seed) for seed in range(6)]
        assert all(finite) == (limit == 100.0), finite

    def stays_finite(self, groupvit_folder, processor, limit: float, seed: int) -> bool:
        model = self.build(groupvit_folder, max_logit_scale=limit).train()
        torch.manual_seed(seed)
        captions, pixel_values = self.captions(processor, 4), torch.randn(4, 3, 32, 32)
        scales = [model.clip.logit_scale, model.concept_logit_scale]
        for scale in scales:
            scale.data.zero_()
        others = [parameter for parameter in model.parameters() if all(parameter is not scale for scale in scales)]
        optimizer = torch.optim.AdamW([{"params": scales, "lr": 100.0}, {"params": others}], lr=3e-3)
        for _ in range(3):
            loss = model(pixel_values=pixel_values, **captions).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return all(tensor.isfinite().all() for tensor in (loss, *model.parameters()))


# -- the steps of inference, on numbers that can be followed by hand


def test_assignment_picks_one_group_per_cell():
    soft = torch.tensor([[[[0.6, 0.1]], [[0.4, 0.9]]]])
    assert assign_cells(soft, (1, 2), hard=True).tolist() == [[[[1.0, 0.0]], [[0.0, 1.0]]]]
    assert assign_cells(soft, (1, 4), hard=False)[0, 0, 0].tolist() == pytest.approx([0.6, 0.475, 0.225, 0.1])


def test_top_classes_leave_the_others_at_zero():
    group_logits, image_logits = torch.tensor([[[2.0], [1.0], [0.0]]]), torch.tensor([[0.0, 5.0, 4.0]])
    scores = group_class_scores(group_logits, image_logits, top_classes=2)[0, :, 0]
    free = torch.tensor([2.0, 1.0, 0.0]).softmax(0)
    kept = torch.tensor([1.0, 0.0]).softmax(0)
    torch.testing.assert_close(scores, torch.tensor([0.0, (free[1] * kept[0]).item(), (free[2] * kept[1]).item()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_background_wins_below_the_threshold_and_never_everywhere(dtype):
    group_scores = torch.tensor([[[0.3, 0.1], [0.2, 0.05]]])  # classes x groups
    maps = torch.tensor([[[[0.3, 0.1]], [[0.2, 0.05]]]], dtype=dtype)
    assert add_background(maps, group_scores, 0.95).argmax(1).tolist() == [[[1, 0]]]
    assert add_background(maps, group_scores, 0.09).argmax(1).tolist() == [[[1, 1]]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"assignment": "firm"}, "assignment must be one of"),
        ({"top_classes": 0}, "top_classes must be at least 1"),
        ({"background_threshold": 1.5}, r"background_threshold must be in \(0, 1\]"),
        ({"output_stride": 0}, "output_stride"),
        ({"max_logit_scale": 0}, "max_logit_scale must be positive"),
    ],
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        CocuConfig(**fields)
