"""Configuration of MVP-SEG."""

from ...clip.clip_backbone import KEEPS_RESIDUAL
from ...clip.multi_view import FUSIONS
from ..configuration_dense_clip import DenseClipConfig

ORTHOGONALITY = ("none", "prompt", "text", "centred")
REFINEMENT = ("none", "paper", "threshold")
PRESENCE_LOSSES = ("positive", "multilabel")


class MvpSegConfig(DenseClipConfig):
    r"""
    Configuration of [`MvpSegForSemanticSegmentation`]; see [`DenseClipConfig`] for the shared fields.

    Args:
        attention_variant (`str`, *optional*, defaults to `"value"`):
            Attention of the last block: `value` (MaskCLIP), `sclip`, `clearclip` or `naclip`.
        keep_residual (`bool`, *optional*):
            Whether the last block keeps its residual connection and its MLP. `None` follows the paper of the variant.
        num_views (`int`, *optional*, defaults to 3):
            Segmentation prompts, the paper's k. The global prompt comes on top.
        num_prompt_tokens (`int`, *optional*, defaults to 16):
            Learnable tokens of each prompt.
        fusion (`str`, *optional*, defaults to `"sum"`):
            How the maps of the views become one: `sum` (paper), `renormalised_sum`, `max` or `logsumexp`.
        orthogonality (`str`, *optional*, defaults to `"centred"`):
            What the orthogonality loss keeps apart: `prompt`, the mean tokens of the prompts (paper), `text`, the text
            embeddings of each class, `centred`, those less the mean of their view over all classes, or `none`.
        global_refinement (`str`, *optional*, defaults to `"threshold"`):
            Global Prompt Refining: `paper`, `sigmoid(pooled / tau_2)`; `threshold`, `sigmoid((pooled - b) / tau_2)` with a
            learnable b; or `none`, which leaves the global prompt untrained and unused.
        presence_loss (`str`, *optional*, defaults to `"multilabel"`):
            What trains the global prompt: `positive`, the classes in the image only (paper), or `multilabel`, all classes.
        pooling_scale (`float`, *optional*, defaults to 50.0):
            The paper's gamma: sharpness of the softmax that pools the global prompt's map.
        segmentation_weight (`float`, *optional*, defaults to 1.0): the paper's lambda_1.
        presence_weight (`float`, *optional*, defaults to 1.0): the paper's lambda_2.
        orthogonality_weight (`float`, *optional*, defaults to 0.1): the paper's lambda_3.

    ```python
    >>> MvpSegConfig(num_views=0)
    Traceback (most recent call last):
    ValueError: num_views must be at least 1, got 0.
    ```
    """

    model_type = "mvp_seg"

    attention_variant: str = "value"
    keep_residual: bool | None = None
    num_views: int = 3
    num_prompt_tokens: int = 16
    fusion: str = "sum"
    orthogonality: str = "centred"
    global_refinement: str = "threshold"
    presence_loss: str = "multilabel"
    pooling_scale: float = 50.0
    segmentation_weight: float = 1.0
    presence_weight: float = 1.0
    orthogonality_weight: float = 0.1

    def check(self) -> None:
        super().check()
        choices = {
            "attention_variant": tuple(KEEPS_RESIDUAL),
            "fusion": FUSIONS,
            "orthogonality": ORTHOGONALITY,
            "global_refinement": REFINEMENT,
            "presence_loss": PRESENCE_LOSSES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("num_views", "num_prompt_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("segmentation_weight", "presence_weight", "orthogonality_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.pooling_scale <= 0:
            raise ValueError(f"pooling_scale must be positive, got {self.pooling_scale}.")
        limit = self.clip_config.text_config.max_position_embeddings
        if self.num_prompt_tokens + 3 > limit:
            raise ValueError(
                f"num_prompt_tokens={self.num_prompt_tokens} leaves no room for a class name: the text encoder reads {limit} "
                f"tokens, of which start, end and one word need 3."
            )
