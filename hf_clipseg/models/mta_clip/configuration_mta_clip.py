"""Configuration of MTA-CLIP."""

from ..configuration_supervised_clip import SupervisedClipConfig

CONTRASTIVE_FORMS = ("mix", "separate", "all")


class MtaClipConfig(SupervisedClipConfig):
    r"""
    Configuration of [`MtaClipForSemanticSegmentation`]; see [`SupervisedClipConfig`] for backbone, pyramid and prompts. The
    defaults are the paper's. Ablations: `num_prompts=0` is Mask2Former on CLIP without text, `contrastive_weight=0` keeps the
    text tokens but not the loss, `num_prompts=1` has one prompt.

    Args:
        num_queries (`int`, *optional*, defaults to 100): mask queries.
        decoder_layers (`int`, *optional*, defaults to 9): layers of the mask-text decoder.
        feedforward_dim (`int`, *optional*, defaults to 2048): width of their feed-forward networks.
        contrastive_form (`str`, *optional*, defaults to `"mix"`):
            Which candidates a mask is contrasted with: `mix`, every prompt of every class; `separate`, the same without the
            losing prompts of the mask's own class; `all`, no winner: averaged over the prompts of the mask's class.
        normalise_texts (`bool`, *optional*, defaults to `True`):
            Texts have unit length before they are projected and refined. `False` is the released code: raw text features, some
            ten to fifteen times as long, beside which the learned refinement weighs that much less.
        contrastive_temperature (`float`, *optional*, defaults to 1.0): divides the similarities.
        contrastive_weight (`float`, *optional*, defaults to 1.0): weight of the mask-to-text contrastive loss.
        class_weight (`float`, *optional*, defaults to 2.0): weight of the classification loss, and of its matching cost.
        mask_weight (`float`, *optional*, defaults to 5.0): weight of the binary cross-entropy of masks, likewise.
        dice_weight (`float`, *optional*, defaults to 5.0): weight of the dice loss of masks, likewise.
        no_object_weight (`float`, *optional*, defaults to 0.1): weight of queries without a mask, relative to matched ones.
        num_points (`int`, *optional*, defaults to 12544): points at which masks are compared.
        oversample_ratio (`float`, *optional*, defaults to 3.0): candidates per point, of which uncertain ones are preferred.
        importance_sample_ratio (`float`, *optional*, defaults to 0.75): share of points chosen by uncertainty.

    ```python
    >>> MtaClipConfig(contrastive_form="max")
    Traceback (most recent call last):
    ValueError: contrastive_form must be one of ('mix', 'separate', 'all'), got 'max'.
    ```
    """

    model_type = "mta_clip"

    num_queries: int = 100
    decoder_layers: int = 9
    feedforward_dim: int = 2048
    contrastive_form: str = "mix"
    normalise_texts: bool = True
    contrastive_temperature: float = 1.0
    contrastive_weight: float = 1.0
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75

    def check(self) -> None:
        super().check()
        if self.contrastive_form not in CONTRASTIVE_FORMS:
            raise ValueError(f"contrastive_form must be one of {CONTRASTIVE_FORMS}, got {self.contrastive_form!r}.")
        for name in ("num_queries", "decoder_layers", "num_points", "oversample_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("contrastive_weight", "class_weight", "mask_weight", "dice_weight", "no_object_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if self.contrastive_temperature <= 0:
            raise ValueError(f"contrastive_temperature must be positive, got {self.contrastive_temperature}.")
        if not 0 <= self.importance_sample_ratio <= 1:
            raise ValueError(f"importance_sample_ratio must be between 0 and 1, got {self.importance_sample_ratio}.")
