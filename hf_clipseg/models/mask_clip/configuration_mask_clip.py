"""Configuration of the training-free baseline."""

from ...clip.clip_backbone import KEEPS_RESIDUAL
from ..configuration_dense_clip import DenseClipConfig


class MaskClipConfig(DenseClipConfig):
    r"""
    Configuration of [`MaskClipForSemanticSegmentation`]; see [`DenseClipConfig`] for the shared fields.

    Args:
        attention_variant (`str`, *optional*, defaults to `"value"`):
            Attention of the last block: `value` (MaskCLIP), `sclip`, `clearclip` or `naclip`.
        keep_residual (`bool`, *optional*):
            Whether the last block keeps its residual connection and its MLP. `None` follows the paper of the variant.

    ```python
    >>> MaskClipConfig(attention_variant="naclip").keep_residual is None
    True
    ```
    """

    model_type = "mask_clip"

    attention_variant: str = "value"
    keep_residual: bool | None = None

    def check(self) -> None:
        super().check()
        if self.attention_variant not in KEEPS_RESIDUAL:
            raise ValueError(f"attention_variant must be one of {sorted(KEEPS_RESIDUAL)}, got {self.attention_variant!r}.")
