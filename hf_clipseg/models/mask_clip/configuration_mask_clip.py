"""Configuration of the training-free baseline."""

from transformers import AutoConfig, CLIPConfig, PreTrainedConfig

from ...clip.clip_backbone import KEEPS_RESIDUAL, POSITION_INTERPOLATIONS
from ..configuration_dense_clip import DenseClipConfig

PROXY = "proxy"


class MaskClipConfig(DenseClipConfig):
    r"""
    Configuration of [`MaskClipForSemanticSegmentation`]; see [`DenseClipConfig`] for the shared fields.

    Args:
        attention_variant (`str`, *optional*, defaults to `"value"`):
            Attention of the last block: `value` (MaskCLIP), `sclip`, `clearclip` or `naclip`; `proxy` (ProxyCLIP) with a
            `proxy_config`.
        keep_residual (`bool`, *optional*):
            Whether the last block keeps its residual connection and its MLP. `None` follows the paper of the variant.
        position_interpolation (`str`, *optional*, defaults to `"size"`):
            How the position embedding reaches other grids: `size`, or `scale_factor` as the released code of the variants does.
        logit_scale (`float`, *optional*):
            Scale of the cosines in the logits. `None` is CLIP's own (about 100); published protocols use 40 to 65.
        proxy_config (`dict` or `PreTrainedConfig`, *optional*):
            The DINO, DINOv2 or DINOv3 whose similarities guide the last block. Use `from_clip(..., proxy=...)`, which sets it.
        proxy_beta (`float`, *optional*, defaults to 1.2):
            Times the mean similarity, what is subtracted from every similarity.
        proxy_gamma (`float`, *optional*, defaults to 3.0):
            Scale of what is left, before the softmax.

    ```python
    >>> MaskClipConfig(attention_variant="naclip").keep_residual is None
    True
    ```
    """

    model_type = "mask_clip"
    sub_configs = {"clip_config": CLIPConfig, "proxy_config": AutoConfig}

    attention_variant: str = "value"
    keep_residual: bool | None = None
    position_interpolation: str = "size"
    logit_scale: float | None = None
    proxy_config: dict | PreTrainedConfig | None = None
    proxy_beta: float = 1.2
    proxy_gamma: float = 3.0

    def __post_init__(self, **kwargs):
        if isinstance(self.proxy_config, dict):
            self.proxy_config = AutoConfig.for_model(**self.proxy_config)
        super().__post_init__(**kwargs)

    def check(self) -> None:
        super().check()
        if self.attention_variant == PROXY:
            self.check_proxy()
        elif self.attention_variant not in KEEPS_RESIDUAL:
            raise ValueError(f"attention_variant must be one of {sorted(KEEPS_RESIDUAL)}, got {self.attention_variant!r}.")
        if self.position_interpolation not in POSITION_INTERPOLATIONS:
            raise ValueError(
                f"position_interpolation must be one of {POSITION_INTERPOLATIONS}, got {self.position_interpolation!r}."
            )
        if self.logit_scale is not None and not self.logit_scale > 0:
            raise ValueError(f"logit_scale is {self.logit_scale}; it must be above 0, or None for CLIP's own.")

    def check_proxy(self) -> None:
        if self.proxy_config is None:
            raise ValueError(
                "attention_variant='proxy' needs the model that guides: MaskClipForSemanticSegmentation.from_clip(clip, "
                "proxy='facebook/dino-vitb8')."
            )
        if self.keep_residual:
            raise ValueError("keep_residual=True has no meaning with a proxy, whose grid is another one; leave it out.")
