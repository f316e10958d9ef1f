"""Pixel-text alignment: the baseline that MTA-CLIP's mask-text alignment is measured against.

In the spirit of DenseCLIP, Rao et al. 2022, arXiv 2112.01518: every pixel is compared with learned class prompts, and the score
map, divided by a temperature of 0.07, is trained with cross-entropy.
Deviations: the paper feeds its score map to a further decoder and refines the texts with a transformer; here the scores of the
pixel decoder's features are the result, so that backbone, pyramid, pixel decoder and prompts are those of MTA-CLIP and the two
differ in nothing but what is aligned, pixels or masks.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.utils import can_return_tuple

from ...clip.similarity import cosine_maps
from ...outputs import SegmentationOutput
from ..losses import segmentation_cross_entropy
from ..supervised_clip import SupervisedClipPreTrainedModel
from .configuration_pixel_text_clip import PixelTextClipConfig


class PixelTextClipForSemanticSegmentation(SupervisedClipPreTrainedModel):
    """CLIP, a pixel decoder, and the cosine of every pixel with every class text. Its vocabulary is closed.

    ```python
    >>> model = PixelTextClipForSemanticSegmentation.from_clip("openai/clip-vit-base-patch16")
    >>> model.set_classes(["wall", "building", "sky"], processor)
    >>> loss = model.train()(**processor(images=image, segmentation_maps=mask)).loss
    ```
    """

    config_class = PixelTextClipConfig

    def __init__(self, config: PixelTextClipConfig):
        super().__init__(config)
        self.build_supervised(config)
        self.pixel_to_text = nn.Linear(config.hidden_dim, config.clip_config.projection_dim)
        self.post_init()

    def build_heads(self, num_classes: int) -> None:
        """No module here depends on the number of classes."""

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        name_ids: torch.Tensor | None = None,
        class_ids: torch.Tensor | None = None,
        block_maps: torch.Tensor | Sequence[torch.Tensor] | None = None,
        output_hidden_states: bool | None = None,
    ) -> SegmentationOutput | tuple:
        """
        Args:
            pixel_values: `(batch, 3, height, width)`, any size.
            labels: `(batch, H, W)` int64 masks, 255 ignored; adds the cross-entropy as `loss`.
            input_ids: refused, as are `name_ids` and `class_ids`: the vocabulary is closed.
            block_maps: from `encode_blocks`, in place of `pixel_values`: where the vision encoder is frozen, training can
                compute them once.
            output_hidden_states: also return the input of CLIP's first block and the output of every block, or the maps of
                `vision_backbone` that are read.
            return_dict: `False` returns a tuple.

        Returns:
            `SegmentationOutput` with `logits (batch, classes, h, w)` at the size of the finest pyramid level.
        """
        wants_states = self.check_inputs(output_hidden_states, pixel_values=pixel_values, block_maps=block_maps)
        self.refuse_class_names(input_ids, name_ids, class_ids)
        texts = self.class_texts()  # (prompts, classes, dim)
        decoded, hidden_states = self.decode_pixels(pixel_values, block_maps)
        pixel_embeds = nn.functional.normalize(self.pixel_to_text(decoded.mask_features.permute(0, 2, 3, 1)), dim=-1)
        scores = cosine_maps(pixel_embeds, texts.flatten(0, 1).to(pixel_embeds.dtype)).unflatten(1, texts.shape[:2])
        logits = scores.amax(dim=1) / self.config.temperature

        loss = None if labels is None else segmentation_cross_entropy(logits, labels)
        return SegmentationOutput(
            loss=loss,
            logits=logits,
            hidden_states=hidden_states if wants_states else None,
            losses=None if loss is None else {"cross_entropy": loss.detach()},
            patch_embeds=pixel_embeds,
        )
