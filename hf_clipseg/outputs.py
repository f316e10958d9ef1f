"""What every method returns."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import SemanticSegmenterOutput


@dataclass
class SegmentationOutput(SemanticSegmenterOutput):
    """Output of every `...ForSemanticSegmentation` of this package.

    Args:
        loss (`torch.Tensor` of shape `()`): total training loss; present when supervision was passed.
        logits (`torch.Tensor` of shape `(batch, classes, height, width)`): class scores on the model's own grid. They are
            resized to the image once, in `SegmentationProcessor.post_process_semantic_segmentation`.
        hidden_states (`tuple[torch.Tensor]`): input of the first block and output of every block, on request.
        losses (`dict[str, torch.Tensor]`): the named, unweighted terms of `loss`.
        patch_embeds (`torch.Tensor` of shape `(batch, height, width, dim)`): L2-normalised dense features.
    """

    losses: dict[str, torch.Tensor] | None = None
    patch_embeds: torch.FloatTensor | None = None
