"""CoCu: a GroupViT that learns from captions and from the concepts that curation adds to them.

Paper: "Rewrite Caption Semantics: Bridging Semantic Gaps for Language-Supervised Semantic Segmentation", Xing et al.,
NeurIPS 2023, arXiv 2309.13505, on GroupViT, Xu et al., CVPR 2022, arXiv 2202.11094. Curation is `training.curate_concepts`;
trained on captions alone, this class is GroupViT.
Deviations: see `contrastive.multi_label_loss` (shared concepts), `group_segmentation` (background) and `groupvit_backbone`.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GroupViTModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from ...clip.clip_checkpoint import load_whole
from ...clip.contrastive import contrastive_loss, multi_label_loss
from ...clip.similarity import cosine_maps, max_over_synonyms
from ...outputs import SegmentationOutput
from ..dense_clip import DenseClipPreTrainedModel
from ..losses import segmentation_cross_entropy
from .configuration_cocu import CocuConfig
from .group_segmentation import add_background, assign_cells, group_class_scores
from .groupvit_backbone import Grouping, GroupVitBackbone

SMALLEST_SCORE = 1e-6


@dataclass
class CocuOutput(SegmentationOutput):
    """
    Args:
        assignments (`torch.Tensor` of shape `(batch, groups, height, width)`): share of each patch in each group. Its argmax
            over groups shows which image regions form a group.
        group_scores (`torch.Tensor` of shape `(batch, classes, groups)`): probability of each class for each group, without
            background; present where there are classes.
    """

    assignments: torch.FloatTensor | None = None
    group_scores: torch.FloatTensor | None = None


class CocuForSemanticSegmentation(DenseClipPreTrainedModel):
    """Groups image regions and names the groups; learns from captions, needs no mask.

    ```python
    >>> model = CocuForSemanticSegmentation.from_groupvit("nvidia/groupvit-gcc-yfcc", background_threshold=0.95)
    >>> outputs = model(**processor(images=image, class_names=["cat", "dog"]))
    >>> groups = outputs.assignments.argmax(dim=1)
    ```
    """

    config_class = CocuConfig
    _supports_sdpa = False
    _supports_attention_backend = False
    _no_split_modules = ["GroupViTTextEmbeddings", "GroupViTStage", "GroupViTEncoderLayer"]

    def __init__(self, config: CocuConfig):
        super().__init__(config)
        self.build_clip(config)
        self.concept_logit_scale = nn.Parameter(torch.empty(()))
        self.post_init()

    def build_clip(self, config: CocuConfig) -> None:
        """The two encoders and the place for baked classes, as in the base class."""
        self.clip = GroupVitBackbone(config.clip_config, with_text_encoder=config.has_text_encoder)
        self.prepare_classes(config)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if module is self:
            init.constant_(self.concept_logit_scale, self.config.clip_config.logit_scale_init_value)

    @classmethod
    def from_clip(cls, *args, **kwargs):
        """Not possible: a CLIP vision encoder has no groups."""
        raise ValueError(
            "CoCu is built on GroupViT: use from_groupvit('nvidia/groupvit-gcc-yfcc'), or train one with train_cocu."
        )

    @classmethod
    def from_groupvit(cls, pretrained_model_name_or_path, *, groupvit_kwargs: dict | None = None, **config_fields):
        """Build the model on a GroupViT checkpoint of transformers.

        Args:
            pretrained_model_name_or_path: Hub id or folder (`nvidia/groupvit-gcc-yfcc`, `nvidia/groupvit-gcc-redcaps`).
            groupvit_kwargs: arguments for `GroupViTModel.from_pretrained` (`revision`, `token`, `dtype`, ...).
            config_fields: fields of [`CocuConfig`].

        Raises:
            ValueError: no GroupViT, or one whose weights are not all there.
        """
        groupvit = load_whole(pretrained_model_name_or_path, GroupViTModel, **(groupvit_kwargs or {}))
        model = cls(cls.config_class(clip_config=groupvit.config.to_dict(), **config_fields)).to(groupvit.dtype)
        model.clip.load_state_dict(groupvit.state_dict())
        model.concept_logit_scale.data.copy_(groupvit.logit_scale)
        return model.eval()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        class_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        caption_input_ids: torch.Tensor | None = None,
        concept_input_ids: torch.Tensor | None = None,
        concept_ids: torch.Tensor | None = None,
        archive_ids: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> CocuOutput | tuple:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`, any size.
            input_ids: `(prompts, length)` tokens of all class prompts, from the processor; baked classes where left out.
            name_ids: `(prompts,)`, the name each prompt was made from.
            class_ids: `(names,)`, the class each name belongs to.
            labels: `(batch, H, W)` int64 masks, 255 ignored; adds the cross-entropy to `loss`.
            caption_input_ids: `(batch, length)`, one caption per image; adds the contrastive losses to `loss`, and leaves the
                class maps out (`logits` is None) unless there are class prompts or labels too.
            concept_input_ids: `(batch, concepts, length)`; they may be padded to another length than the captions.
            concept_ids: `(batch, concepts)` int64, equal for equal concepts, -1 where a text is no concept.
            archive_ids: `(batch, archive)` int64, padded with -1: concepts that an image may show, not its negatives.
            output_hidden_states: also return the input of the first stage and the output of every stage.
            return_dict: `False` returns a tuple.

        Returns:
            `CocuOutput` with `logits (batch, classes, h, w)` in [0, 1], one cell per `config.output_stride` pixels.
        """
        wants_states = self.check_inputs(output_hidden_states, pixel_values=pixel_values)
        grouping = self.clip.group(pixel_values, wants_states)
        image_embeds = self.embed_images(grouping)
        losses: dict[str, torch.Tensor] = {}
        maps: dict = {}
        if caption_input_ids is not None:
            losses |= self.caption_losses(image_embeds, caption_input_ids, concept_input_ids, concept_ids, archive_ids)
        if caption_input_ids is None or input_ids is not None or labels is not None:
            maps = self.class_maps(pixel_values, grouping, image_embeds, *self.resolve_classes(input_ids, name_ids, class_ids))
        if labels is not None:
            losses["cross_entropy"] = segmentation_cross_entropy(maps["logits"].clamp_min(SMALLEST_SCORE).log(), labels)

        return CocuOutput(
            loss=self.weighted_sum(losses) if losses else None,
            hidden_states=grouping.hidden_states,
            losses={name: value.detach() for name, value in losses.items()} or None,
            assignments=grouping.assignments,
            **maps,
        )

    def embed_images(self, grouping: Grouping) -> torch.Tensor:
        """`(batch, dim)`, L2-normalised. A group counts as much as the patch that belongs to it most: empty ones do not."""
        after = self.config.pooling == "after_projection"
        return self.clip.embed_images(grouping.tokens, grouping.assignments.amax(dim=(2, 3)) if after else None)

    def class_maps(
        self,
        pixel_values: torch.Tensor,
        grouping: Grouping,
        image_embeds: torch.Tensor,
        name_embeds: torch.Tensor,
        class_ids: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """`logits`, `group_scores` and `patch_embeds` of `CocuOutput`."""
        group_embeds = self.clip.embed_groups(grouping.tokens)
        embeds = torch.cat([group_embeds, image_embeds[:, None]], dim=1)[:, None]  # (B, 1, groups + 1, dim)
        cosines = max_over_synonyms(cosine_maps(embeds, name_embeds.to(embeds.dtype)), class_ids)[:, :, 0]
        logits = self.limited_scale(self.clip.logit_scale) * cosines.float()
        group_scores = group_class_scores(logits[..., :-1], logits[..., -1], self.config.top_classes)

        size = tuple(-(-side // self.config.output_stride) for side in pixel_values.shape[-2:])
        cells = assign_cells(grouping.assignments, size, hard=self.config.assignment == "hard")
        class_maps = torch.einsum("bcg,bghw->bchw", group_scores, cells).to(pixel_values.dtype)
        if self.config.background_threshold is not None:
            class_maps = add_background(class_maps, group_scores, self.config.background_threshold)
        patch_embeds = mixed_embeds(grouping.assignments, group_embeds)
        return {"logits": class_maps, "group_scores": group_scores, "patch_embeds": patch_embeds}

    def dense_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """L2-normalised features `(batch, h, w, dim)` of `pixel_values (batch, 3, height, width)`: its groups'."""
        grouping = self.clip.group(pixel_values)
        return mixed_embeds(grouping.assignments, self.clip.embed_groups(grouping.tokens))

    def caption_losses(
        self,
        image_embeds: torch.Tensor,
        caption_input_ids: torch.Tensor,
        concept_input_ids: torch.Tensor | None,
        concept_ids: torch.Tensor | None,
        archive_ids: torch.Tensor | None,
    ) -> dict[str, torch.Tensor]:
        """L_caption and L_multi of the paper; all texts pass the batch norm together, as in the released code."""
        if (concept_input_ids is None) != (concept_ids is None):
            raise ValueError("concept_input_ids and concept_ids belong together: pass both, or neither for captions alone.")
        if archive_ids is not None and concept_ids is None:
            raise ValueError("archive_ids are of no use without concept_input_ids and concept_ids: pass those, too.")
        pooled = [self.clip.read_texts(caption_input_ids)]
        if concept_input_ids is not None:
            pooled.append(self.clip.read_texts(concept_input_ids.flatten(0, 1)))
        caption_embeds, *concept_embeds = self.clip.project_texts(torch.cat(pooled)).split([len(rows) for rows in pooled])
        scale = self.limited_scale(self.clip.logit_scale)
        losses = {"caption": contrastive_loss(image_embeds, caption_embeds, scale)}
        if concept_input_ids is not None and concept_ids is not None:
            scale = self.limited_scale(self.concept_logit_scale)
            embeds = concept_embeds[0].unflatten(0, concept_ids.shape)
            losses["concepts"] = multi_label_loss(
                image_embeds, embeds, concept_ids, scale, self.config.duplicates_are_negatives, archive_ids
            )
        return losses

    def weighted_sum(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        weights = {"concepts": self.config.multi_label_weight}
        return sum(weights.get(name, 1.0) * value for name, value in losses.items())

    def limited_scale(self, logit_scale: torch.Tensor) -> torch.Tensor:
        """Limited before `exp`, as the gradient of a clamp after an `exp` that overflowed is 0 * inf."""
        return logit_scale.float().clamp_max(math.log(self.config.max_logit_scale)).exp()


def mixed_embeds(assignments: torch.Tensor, group_embeds: torch.Tensor) -> torch.Tensor:
    """`(batch, groups, h, w)` shares and `(batch, groups, dim)` -> `(batch, h, w, dim)`, L2-normalised."""
    return nn.functional.normalize(torch.einsum("bghw,bgd->bhwd", assignments, group_embeds), dim=-1)
