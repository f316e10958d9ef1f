"""Configuration of the training-free baseline."""

from ...clip.clip_backbone import KEEPS_RESIDUAL, POSITION_INTERPOLATIONS
from ..configuration_dense_clip import DenseClipConfig


class MaskClipConfig(DenseClipConfig):
    r"""
    Configuration of [`MaskClipForSemanticSegmentation`]; see [`DenseClipConfig`] for the shared fields.

    Args:
        attention_variant (`str`, *optional*, defaults to `"value"`):
            Attention of the last block: `value` (MaskCLIP), `sclip`, `clearclip` or `naclip`.
        keep_residual (`bool`, *optional*):
            Whether the last block keeps its residual connection and its MLP. `None` follows the paper of the variant.
        position_interpolation (`str`, *optional*, defaults to `"size"`):
            How the position embedding reaches other grids: `size`, or `scale_factor` as the released code of the variants does.
        logit_scale (`float`, *optional*):
            Scale of the cosines in the logits. `None` is CLIP's own (about 100); published protocols use 40 to 65.

    ```python
    >>> MaskClipConfig(attention_variant="naclip").keep_residual is None
    True
    ```
    """

    model_type = "mask_clip"

    attention_variant: str = "value"
    keep_residual: bool | None = None
    position_interpolation: str = "size"
    logit_scale: float | None = None

    def check(self) -> None:
        super().check()
        if self.attention_variant not in KEEPS_RESIDUAL:
            raise ValueError(f"attention_variant must be one of {sorted(KEEPS_RESIDUAL)}, got {self.attention_variant!r}.")
        if self.position_interpolation not in POSITION_INTERPOLATIONS:
            raise ValueError(
                f"position_interpolation must be one of {POSITION_INTERPOLATIONS}, got {self.position_interpolation!r}."
            )
        if self.logit_scale is not None and not self.logit_scale > 0:
            raise ValueError(f"logit_scale is {self.logit_scale}; it must be above 0, or None for CLIP's own.")
