"""transformers' GroupViT made trainable from scratch and usable at any image size.

Paper: "GroupViT: Semantic Segmentation Emerges from Text Supervision", Xu et al., CVPR 2022, arXiv 2202.11094.
`GroupVitBackbone` has the children of `GroupViTModel`, so state dicts of one load into the other (`nvidia/groupvit-gcc-yfcc`).
What it adds: group tokens and position embeddings start from noise (transformers leaves them at zero, and equal group tokens
stay equal), assignment logits start above the Gumbel noise, positions are interpolated, assignments are combined over stages,
and the batch norm of the projectors sees the rows of all processes. Of the child names of a backbone, `text_model` and
`text_projection` are those that other methods use, too.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GroupViTConfig
from transformers import initialization as init
from transformers.models.groupvit.modeling_groupvit import (
    GroupViTModel,
    GroupViTStage,
    GroupViTVisionEmbeddings,
)

from ...clip.clip_backbone import TEXT_BATCH, fit_to_patches
from ...clip.distributed import SyncedBatchNorm1d

INITIAL_STANDARD_DEVIATION = 0.02
QUERY_DEVIATION = 0.1
"""Of what group queries, which have seen the whole image, add to the patches that a new model's group is made of."""

LOGIT_DEVIATION = 4.0
"""Of a new model's assignment logits. Gumbel noise of deviation 1.3 drowns those of the usual initialisation (below 0.1), and
groups whose patches are drawn at random collapse into one."""


class Grouping(NamedTuple):
    """What the vision encoder makes of a batch of images.

    Args:
        tokens: `(batch, groups, width)`, one token per group after the last stage.
        assignments: `(batch, groups, h, w)`, share of each patch that belongs to each group; sums to 1 over groups.
        hidden_states: input of the first stage and output of every stage, where asked for.
    """

    tokens: torch.Tensor
    assignments: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None


class GroupVitBackbone(GroupViTModel):
    """GroupViT's two encoders with their projections.

    Args:
        config: configuration of the GroupViT checkpoint.
        with_text_encoder: `False` builds the vision half only, for deployment with baked class embeddings.
    """

    def __init__(self, config: GroupViTConfig, with_text_encoder: bool = True):
        super().__init__(config)
        self.text_projection: Any
        for projection in (self.visual_projection, self.text_projection):
            projection[1] = SyncedBatchNorm1d(config.projection_intermediate_dim)
        if not with_text_encoder:
            self.text_model = None
            self.text_projection = None

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, GroupViTVisionEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=INITIAL_STANDARD_DEVIATION)
        elif isinstance(module, GroupViTStage) and module.group_token is not None:
            init.trunc_normal_(module.group_token, std=INITIAL_STANDARD_DEVIATION)
            self._init_assignment(module.downsample)
        elif module is self:
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)

    def _init_assignment(self, downsample: nn.Module) -> None:
        """Groups of similar patches from the first step on; keys have deviation 1 where they enter, queries QUERY_DEVIATION."""
        init.constant_(downsample.pre_assign_attn.norm_post.weight, QUERY_DEVIATION)
        for projection, size in ((downsample.assign.q_proj, QUERY_DEVIATION), (downsample.assign.k_proj, 1.0)):
            init.normal_(projection.weight, std=LOGIT_DEVIATION**0.5 / size * projection.in_features**-0.5)

    @property
    def patch_size(self) -> int:
        return self.vision_model.embeddings.patch_size

    def group(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> Grouping:
        """Groups of `pixel_values (batch, 3, height, width)`, any size."""
        pixel_values = fit_to_patches(pixel_values, self.patch_size)
        grid = tuple(side // self.patch_size for side in pixel_values.shape[-2:])
        patches = self.vision_model.embeddings(pixel_values, interpolate_pos_encoding=True)
        encoded = self.vision_model.encoder(
            patches, output_hidden_states=output_hidden_states, output_attentions=True, return_dict=True
        )
        tokens = self.vision_model.layernorm(encoded.last_hidden_state)
        return Grouping(tokens, combine_stages(encoded.attentions).unflatten(2, grid), encoded.hidden_states)

    def embed_images(self, group_tokens: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Image embeddings `(batch, dim)`, L2-normalised, of `group_tokens (batch, groups, width)`.

        The mean token, projected, as in GroupViT; with `weights (batch, groups)`, the weighted mean of projected tokens.
        """
        if weights is None:
            return nn.functional.normalize(self.visual_projection(group_tokens.mean(dim=1)), dim=-1)
        return nn.functional.normalize((weights[..., None] * self.project_groups(group_tokens)).sum(dim=1), dim=-1)

    def embed_groups(self, group_tokens: torch.Tensor) -> torch.Tensor:
        """`(batch, groups, width)` -> group embeddings `(batch, groups, dim)`, L2-normalised."""
        return nn.functional.normalize(self.project_groups(group_tokens), dim=-1)

    def project_groups(self, group_tokens: torch.Tensor) -> torch.Tensor:
        return self.visual_projection(group_tokens.flatten(0, 1)).unflatten(0, group_tokens.shape[:2])

    def encode_text(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Sentence embeddings `(prompts, dim)`, L2-normalised, of `input_ids (prompts, length)`, in bounded memory."""
        return self.project_texts(self.read_texts(input_ids))

    def read_texts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """`(prompts, length)` -> what the text encoder makes of them, `(prompts, width)`.

        No attention mask is needed: the text encoder is causal and reads at the end-of-text token.
        """
        if self.text_model is None:
            raise ValueError(
                "This checkpoint was saved without its text encoder, so class names cannot be encoded. Use the classes "
                "that are baked into it (leave out class_names), or load the full checkpoint."
            )
        return torch.cat([self.text_model(input_ids=chunk).pooler_output for chunk in input_ids.split(TEXT_BATCH)])

    def project_texts(self, pooled: torch.Tensor) -> torch.Tensor:
        """`(prompts, width)` -> `(prompts, dim)`, L2-normalised; the batch norm sees all rows together."""
        return nn.functional.normalize(self.text_projection(pooled), dim=-1)

    def text_weights(self) -> list[torch.Tensor]:
        """The tensors that text embeddings depend on, the running statistics of the batch norm among them."""
        if self.text_model is None:
            return []
        projection = self.text_projection
        return [*self.text_model.parameters(), *projection.parameters(), *projection.buffers()]


def combine_stages(attentions: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Soft assignments of each stage, `(batch, outputs, inputs)`, first to last -> `(batch, last outputs, patches)`."""
    combined = attentions[0]
    for assignments in attentions[1:]:
        combined = assignments @ combined
    return combined
