"""Configuration fields of the methods that learn from masks: a fixed list of classes, learned prompts, a pixel decoder."""

from transformers import AutoConfig, CLIPConfig, PreTrainedConfig

from ..clip.vision_network import LEVELS, REFERENCE_DEPTHS
from .configuration_dense_clip import DenseClipConfig


class SupervisedClipConfig(DenseClipConfig):
    r"""
    See [`DenseClipConfig`] for the fields of all methods.

    Args:
        hidden_dim (`int`, *optional*, defaults to 256):
            Channels of the pixel decoder and of what follows it; a multiple of 64.
        num_attention_heads (`int`, *optional*, defaults to 8):
            Heads of every attention outside CLIP.
        feature_layers (`list[int]`, *optional*):
            The four blocks of the vision encoder (0 is the first) whose outputs make the pyramid, finest level first. `None`:
            3, 5, 7, 11 for twelve blocks, the same depths for others.
        finest_scale (`int`, *optional*, defaults to 4):
            Size of the finest pyramid level, hence of the logits, as a multiple of the patch grid: 1, 2 or 4. Each further
            level is half as large. 4 gives a quarter of the image size with patches of 16.
        vision_backbone (`dict` or `PreTrainedConfig`, *optional*):
            A vision encoder in place of CLIP's: the configuration of any backbone of transformers or timm, or of a model with
            maps as hidden states, such as MobileNetV2. `feature_layers` then means nothing, and `finest_scale` counts for plain
            transformers only. Texts are still those of the CLIP checkpoint; what compares pixels or masks with them is learnt.
            `from_clip(..., vision_backbone="microsoft/resnet-50")` takes its weights too.
        pixel_decoder_layers (`int`, *optional*, defaults to 6):
            Layers of multi-scale deformable attention.
        pixel_decoder_feedforward_dim (`int`, *optional*, defaults to 1024):
            Width of their feed-forward networks.
        num_prompts (`int`, *optional*, defaults to 3):
            Learned prompts, the paper's N.
        num_prompt_tokens (`int`, *optional*, defaults to 8):
            Learned tokens in each, the paper's m.
        learned_class_texts (`bool`, *optional*, defaults to `False`):
            Every class text is moved by a learned offset, as DenseCLIP refines its own (arXiv 2112.01518): for classes whose
            names CLIP's tokenizer does not know, which would have one text between them.
        direct_features (`bool`, *optional*, defaults to `False`):
            Whether the deepest map of the vision encoder, normalised and projected, is added to the pixel decoder's features. A
            linear layer learns from a good encoder in a few hundred steps, and the decoder then has only to correct it.
        prompt_input_ids (`list[list[int]]`, *optional*):
            Tokens of the class names, one row per name; `set_classes` writes them.
        prompt_class_ids (`list[int]`, *optional*):
            The class of each row of `prompt_input_ids`.
    """

    sub_configs = {"clip_config": CLIPConfig, "vision_backbone": AutoConfig}

    hidden_dim: int = 256
    num_attention_heads: int = 8
    feature_layers: list[int] | tuple[int, ...] | None = None
    finest_scale: int = 4
    vision_backbone: dict | PreTrainedConfig | None = None
    pixel_decoder_layers: int = 6
    pixel_decoder_feedforward_dim: int = 1024
    num_prompts: int = 3
    num_prompt_tokens: int = 8
    learned_class_texts: bool = False
    direct_features: bool = False
    prompt_input_ids: list | None = None
    prompt_class_ids: list[int] | None = None

    def __post_init__(self, **kwargs):
        if not isinstance(self.clip_config, CLIPConfig):
            self.clip_config = CLIPConfig(**(self.clip_config or {}))
        if self.feature_layers is None:
            last = self.clip_config.vision_config.num_hidden_layers - 1
            self.feature_layers = [round(depth * last) for depth in REFERENCE_DEPTHS]
        if isinstance(self.vision_backbone, dict):
            self.vision_backbone = AutoConfig.for_model(**self.vision_backbone)
        if (name := kwargs.pop("timm_backbone", None)) is not None:
            raise ValueError(
                f"timm_backbone={name!r} is now vision_backbone={{'model_type': 'timm_backbone', 'backbone': {name!r}}}; train "
                "the checkpoint again with --vision_backbone, or load it with version 0.2."
            )
        super().__post_init__(**kwargs)

    def check(self) -> None:
        super().check()
        for name in ("hidden_dim", "num_attention_heads", "pixel_decoder_layers", "num_prompt_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_dim % 64 or self.hidden_dim % self.num_attention_heads:
            raise ValueError(
                "hidden_dim must be a multiple of 64 (32 groups are normalised) and of num_attention_heads, "
                f"{self.num_attention_heads}; got {self.hidden_dim}."
            )
        if self.finest_scale not in (1, 2, 4):
            raise ValueError(f"finest_scale must be 1, 2 or 4, got {self.finest_scale}.")
        if self.num_prompts < 0:
            raise ValueError(f"num_prompts must not be negative, got {self.num_prompts}.")
        if self.vision_backbone is None:
            self.check_feature_layers()
        self.check_prompts()

    def check_feature_layers(self) -> None:
        last = self.clip_config.vision_config.num_hidden_layers - 1
        layers = list(self.feature_layers or ())
        if len(layers) != LEVELS or sorted(layers) != layers or layers[0] < 0 or layers[-1] != last:
            raise ValueError(
                f"feature_layers must be {LEVELS} blocks in ascending order that end with the last one, {last} "
                f"(blocks behind it would do nothing), got {layers}."
            )

    def check_prompts(self) -> None:
        limit = self.clip_config.text_config.max_position_embeddings
        if self.num_prompts and self.num_prompt_tokens + 3 > limit:
            raise ValueError(
                f"num_prompt_tokens={self.num_prompt_tokens} leaves no room for a class name: the text encoder reads {limit} "
                "tokens, of which start, end and one word need 3."
            )
        rows, classes = (len(value or ()) for value in (self.prompt_input_ids, self.prompt_class_ids))
        if self.learned_class_texts and not self.num_prompts:
            raise ValueError("learned_class_texts=True moves the texts of the classes, and num_prompts=0 has none.")
        if rows != classes:
            raise ValueError(f"prompt_input_ids has {rows} rows and prompt_class_ids {classes}; let set_classes write both.")
