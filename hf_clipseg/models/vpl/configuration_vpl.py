"""Configuration of VPL."""

from ...clip.clip_backbone import KEEPS_RESIDUAL
from ...localization.localization import READ_OUTS
from ..configuration_dense_clip import DenseClipConfig


class VplConfig(DenseClipConfig):
    r"""
    Configuration of [`VplForSemanticSegmentation`]; see [`DenseClipConfig`] for the shared fields.

    Args:
        background_words (`list[str]`, *optional*):
            What background is made of ("ground", "wall", ...). Where given, the model predicts a background class with id 0 and
            class c has the id c + 1, as in VOC; where empty, every pixel belongs to one of `class_names`.
        attention_variant (`str`, *optional*, defaults to `"plain"`):
            Attention of the last block in localisation: `"plain"` (CLIP-ES) or one of the variants of `clip_backbone`.
        keep_residual (`bool`, *optional*):
            Whether a variant keeps the residual and the MLP of the last block. `None` follows its paper.
        cam_scale (`float`, *optional*, defaults to 25.0):
            Factor of the cosines with the prototypes before the softmax of the localisation maps. `None`: CLIP's own logit
            scale, which fits text prototypes.
        affinity_layers (`int`, *optional*, defaults to 8):
            Last blocks whose attention spreads the maps; 0 leaves that step out.
        affinity_threshold (`float`, *optional*, defaults to 0.4):
            Share of a map's maximum around which boxes are drawn (0.7 for COCO).
        read_out (`str`, *optional*, defaults to `"gradient"`):
            How prototypes become localisation maps: `"gradient"`, CLIP-ES's gradient CAM, every map scaled to [0, 1]; or
            `"softmax"`, the softmax of a patch's cosines over the image's classes and all background.
        read_out_temperature (`float`, *optional*, defaults to 0.04):
            The cosines are divided by it before the softmax of `"softmax"`.
        decoder_dim (`int`, *optional*, defaults to 256): Width of the decoder.
        decoder_layers (`int`, *optional*, defaults to 3): Transformer blocks of the decoder.
        decoder_heads (`int`, *optional*, defaults to 8): Attention heads of a block.
        decoder_dropout (`float`, *optional*, defaults to 0.1): Dropout after the fusion of CLIP's blocks.
        affinity_loss_weight (`float`, *optional*, defaults to 0.1): Weight of the affinity loss.
        affinity_radius (`int`, *optional*, defaults to 8): Distance in patches up to which pairs take part in it.
        contrast_loss_weight (`float`, *optional*, defaults to 0.1): Weight of the regional semantic contrast.
        contrast_temperature (`float`, *optional*, defaults to 0.07): Its temperature.
    """

    model_type = "vpl"

    background_words: list | None = None
    attention_variant: str = "plain"
    keep_residual: bool | None = None
    cam_scale: float | None = 25.0
    affinity_layers: int = 8
    affinity_threshold: float = 0.4
    read_out: str = "gradient"
    read_out_temperature: float = 0.04
    decoder_dim: int = 256
    decoder_layers: int = 3
    decoder_heads: int = 8
    decoder_dropout: float = 0.1
    affinity_loss_weight: float = 0.1
    affinity_radius: int = 8
    contrast_loss_weight: float = 0.1
    contrast_temperature: float = 0.07

    def __post_init__(self, **kwargs):
        self.background_words = list(self.background_words or [])
        super().__post_init__(**kwargs)

    def check(self) -> None:
        super().check()
        if self.attention_variant not in ("plain", *KEEPS_RESIDUAL):
            known = ["plain", *sorted(KEEPS_RESIDUAL)]
            raise ValueError(f"attention_variant must be one of {known}, got {self.attention_variant!r}.")
        if self.read_out not in READ_OUTS or self.read_out_temperature <= 0:
            raise ValueError(
                f"read_out must be one of {list(READ_OUTS)} and read_out_temperature positive, got {self.read_out!r} and "
                f"{self.read_out_temperature}."
            )
        if self.decoder_dim % self.decoder_heads:
            raise ValueError(f"decoder_dim ({self.decoder_dim}) must be a multiple of decoder_heads ({self.decoder_heads}).")
        if self.contrast_temperature <= 0 or (self.cam_scale is not None and self.cam_scale <= 0):
            raise ValueError(
                f"contrast_temperature and cam_scale must be positive, got {self.contrast_temperature} and {self.cam_scale}."
            )

    @property
    def has_background(self) -> bool:
        return bool(self.background_words)

    @property
    def num_prototypes(self) -> int:
        """Classes and background words."""
        return len(self.class_names or []) + len(self.background_words or ())
