"""Configuration of CoCu."""

from transformers import GroupViTConfig

from ..configuration_dense_clip import DenseClipConfig

ASSIGNMENTS = ("hard", "soft")
POOLINGS = ("before_projection", "after_projection")


class CocuConfig(DenseClipConfig):
    r"""
    Configuration of [`CocuForSemanticSegmentation`]; see [`DenseClipConfig`] for the shared fields.

    Args:
        clip_config (`dict` or `GroupViTConfig`, *optional*):
            The two encoders: transformers' GroupViT (ViT-S/16 with 64 and 8 group tokens by default).
        assignment (`str`, *optional*, defaults to `"hard"`):
            Whether a cell of the map belongs to one group (`hard`, as published) or to all of them by shares (`soft`).
        top_classes (`int`, *optional*, defaults to 5):
            Classes that one image may show: those that suit the whole image best. `None` for no limit.
        background_threshold (`float`, *optional*):
            Where given, the model predicts a background class with id 0, which wins where no class scores this much, and class
            c has the id c + 1, as in VOC. Published: VOC and COCO 0.95, Context 0.35. `None`: no background class.
        output_stride (`int`, *optional*, defaults to 4):
            Pixels per cell of the logits: assignments are interpolated to that grid before they are made hard. Published: 1.
        pooling (`str`, *optional*, defaults to `"before_projection"`):
            Where the groups of an image become one embedding: as mean token before the projection (GroupViT), or as mean
            embedding of the groups that are not empty, `after_projection` (ours). The second makes the loss of an image a loss
            of its groups, so that they align with texts; it is for models trained here, not for GroupViT checkpoints.
        multi_label_weight (`float`, *optional*, defaults to 1.0): Weight of the contrast with concepts.
        max_logit_scale (`float`, *optional*, defaults to 100.0):
            Both temperatures are at least one over this. Without it training diverges sooner or later.
        duplicates_are_negatives (`bool`, *optional*, defaults to `False`):
            `True` contrasts an image also with its own concepts, those of `archive_ids` included, where other images of the
            batch have them, as the released code does.

    ```python
    >>> CocuConfig(background_threshold=0.95).clip_config.vision_config.num_group_tokens
    (64, 8, 0)
    ```
    """

    model_type = "cocu"
    sub_configs = {"clip_config": GroupViTConfig}

    clip_config: dict | GroupViTConfig | None = None
    assignment: str = "hard"
    top_classes: int | None = 5
    background_threshold: float | None = None
    output_stride: int = 4
    pooling: str = "before_projection"
    multi_label_weight: float = 1.0
    max_logit_scale: float = 100.0
    duplicates_are_negatives: bool = False

    def check(self) -> None:
        super().check()
        if self.assignment not in ASSIGNMENTS:
            raise ValueError(f"assignment must be one of {ASSIGNMENTS}, got {self.assignment!r}.")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {POOLINGS}, got {self.pooling!r}.")
        if self.top_classes is not None and self.top_classes < 1:
            raise ValueError(f"top_classes must be at least 1, or None for no limit, got {self.top_classes}.")
        if self.background_threshold is not None and not 0 < self.background_threshold <= 1:
            raise ValueError(f"background_threshold must be in (0, 1], or None, got {self.background_threshold}.")
        if self.output_stride < 1:
            raise ValueError(f"output_stride must be at least 1 pixel, got {self.output_stride}.")
        if self.max_logit_scale <= 0 or self.multi_label_weight < 0:
            raise ValueError(
                "max_logit_scale must be positive and multi_label_weight not negative, got "
                f"{self.max_logit_scale} and {self.multi_label_weight}."
            )

    @property
    def has_background(self) -> bool:
        return self.background_threshold is not None
