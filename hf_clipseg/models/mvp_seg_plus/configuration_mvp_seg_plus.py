"""Configuration of MVP-SEG+."""

from transformers import AutoConfig, CLIPConfig, PreTrainedConfig

from ...clip.clip_backbone import KEEPS_RESIDUAL
from ...clip.multi_view import FUSIONS
from ..configuration_dense_clip import DenseClipConfig


class MvpSegPlusConfig(DenseClipConfig):
    r"""
    Configuration of [`MvpSegPlusForSemanticSegmentation`]; see [`DenseClipConfig`] for the shared fields.

    Args:
        backbone_config (`dict` or `PreTrainedConfig`, *optional*):
            The student's network: the configuration of any transformers backbone. `None` trains CLIP's own vision encoder.
        attention_variant (`str`, *optional*, defaults to `"value"`):
            Attention of the last block of CLIP's vision encoder, where that is the student.
        keep_residual (`bool`, *optional*):
            Whether that block keeps its residual connection and its MLP. `None` follows the paper of the variant.
        num_views (`int`, *optional*, defaults to 3):
            Segmentation prompts of the teacher.
        num_prompt_tokens (`int`, *optional*, defaults to 16):
            Tokens of each prompt.
        fusion (`str`, *optional*, defaults to `"sum"`):
            How the maps of the views become one; see [`MvpSegConfig`].

    ```python
    >>> MvpSegPlusConfig(backbone_config={"model_type": "resnet", "depths": [1, 1, 1, 1]}).backbone_config.model_type
    'resnet'
    ```
    """

    model_type = "mvp_seg_plus"
    sub_configs = {"clip_config": CLIPConfig, "backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    attention_variant: str = "value"
    keep_residual: bool | None = None
    num_views: int = 3
    num_prompt_tokens: int = 16
    fusion: str = "sum"

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, dict):
            self.backbone_config = AutoConfig.for_model(**self.backbone_config)
        super().__post_init__(**kwargs)

    def check(self) -> None:
        super().check()
        for name, allowed in {"attention_variant": tuple(KEEPS_RESIDUAL), "fusion": FUSIONS}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("num_views", "num_prompt_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
