"""Training-free segmentation with a frozen CLIP.

Paper: "Extract Free Dense Labels from CLIP" (MaskCLIP), Zhou, Loy and Dai, ECCV 2022, arXiv 2112.01071; the attention variants
of its successors are listed in `clip_backbone`.
Deviations: features are L2-normalised and scaled by CLIP's own logit scale; the paper's key smoothing and prompt denoising are
left out (`refinement` does more for the former, a chosen vocabulary for the latter).
"""

import torch
from transformers.utils import can_return_tuple

from ...clip.clip_backbone import DenseFeatures
from ...clip.similarity import cosine_maps, max_over_synonyms
from ...outputs import SegmentationOutput
from ..dense_clip import DenseClipPreTrainedModel
from ..losses import segmentation_cross_entropy
from .configuration_mask_clip import MaskClipConfig


class MaskClipForSemanticSegmentation(DenseClipPreTrainedModel):
    """Dense CLIP features compared with class texts; no weight beyond CLIP's own.

    ```python
    >>> model = MaskClipForSemanticSegmentation.from_clip("openai/clip-vit-base-patch16", attention_variant="naclip")
    >>> processor = SegmentationProcessor.from_clip("openai/clip-vit-base-patch16")
    >>> inputs = processor(images=image, class_names=["sky", ["boat", "ship"]], return_tensors="pt")
    >>> maps = processor.post_process_semantic_segmentation(model(**inputs), target_sizes=[image.size[::-1]])
    ```
    """

    config_class = MaskClipConfig

    def __init__(self, config: MaskClipConfig):
        super().__init__(config)
        self.build_clip(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        class_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SegmentationOutput | tuple:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`, any size.
            input_ids: `(prompts, length)` tokens of all class prompts, from the processor; baked classes where left out.
            name_ids: `(prompts,)`, the name each prompt was made from.
            class_ids: `(names,)`, the class each name belongs to.
            labels: `(batch, H, W)` int64 masks, 255 ignored; adds the cross-entropy as `loss`.
            output_hidden_states: also return the input of the first block and the output of every block.
            return_dict: `False` returns a tuple.

        Returns:
            `SegmentationOutput` with `logits (batch, classes, h, w)` on the patch grid.
        """
        wants_states = self.check_inputs(output_hidden_states, pixel_values=pixel_values)
        patch_embeds, hidden_states = self.encode(pixel_values, wants_states)
        name_embeds, class_ids = self.resolve_classes(input_ids, name_ids, class_ids)
        cosines = max_over_synonyms(cosine_maps(patch_embeds, name_embeds.to(patch_embeds.dtype)), class_ids)
        logits = self.logit_scale * cosines

        loss = None if labels is None else segmentation_cross_entropy(logits, labels)
        return SegmentationOutput(
            loss=loss,
            logits=logits,
            hidden_states=hidden_states,
            losses=None if loss is None else {"cross_entropy": loss.detach()},
            patch_embeds=patch_embeds,
        )

    def dense_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """L2-normalised features `(batch, h, w, dim)` of `pixel_values (batch, 3, height, width)`, as configured."""
        return self.encode(pixel_values).patch_embeds

    def encode(self, pixel_values: torch.Tensor, output_hidden_states: bool = False) -> DenseFeatures:
        """One run through CLIP, as configured."""
        config = self.config
        return self.clip.encode(
            pixel_values, config.attention_variant, config.keep_residual, config.position_interpolation, output_hidden_states
        )

    @property
    def logit_scale(self) -> torch.Tensor | float:
        """What the cosines are multiplied by."""
        return self.clip.logit_scale.exp() if self.config.logit_scale is None else self.config.logit_scale
