"""Options of training with masks, crop by crop, on a CLIP that may learn: `training.train_mta_clip`."""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg


@dataclass
class CropArguments:
    """What a training sample is."""

    _argument_group_name = "crops"

    crop_size: list[int] = HfArg(default_factory=lambda: [512, 512], help="height and width")
    short_side: int = HfArg(default=512, help="images are resized to this, times a random scale")
    scale: list[float] = HfArg(default_factory=lambda: [0.5, 2.0], help="smallest and largest random scale")
    max_class_share: float = HfArg(
        default=1.0, help="draw a crop again of which one class covers more; released: 0.75; 1 takes every crop"
    )
    balanced_share: float = HfArg(
        default=0.0,
        help="place so many of the crops around a class drawn from those of the image, rare ones as often as others",
    )
    label_stride: int = HfArg(
        default=1, help="pixels of a crop per label in training; 2 halves the cost of the loss, and scores stay at full size"
    )
    colour_jitter: float = HfArg(default=0.3, help="largest relative change of brightness, contrast and saturation")
    hue_jitter: float = HfArg(default=0.0, help="largest turn of the hue, in circles; mmsegmentation: 0.1")
    crops_per_image: int = HfArg(
        default=0,
        help="with a frozen encoder: compute its features once, for so many fixed square crops an image; 0: random crops, anew",
    )
    keep_images: bool = HfArg(default=False, help="hold decoded images in memory: for small sets, and for drawn ones")
    cache_dir: str | None = HfArg(default=None, help="where these features are kept; default: in memory")


@dataclass
class OptimisationArguments:
    """How fast each part of the model learns."""

    _argument_group_name = "optimisation"

    learning_rate: float = HfArg(default=1e-4, help="at its peak")
    backbone_factor: float = HfArg(default=0.1, help="of the learning rate, for CLIP; 0 freezes it")
    layer_decay: float = HfArg(default=1.0, help="factor per CLIP block, last to first")
    lora_rank: int = HfArg(
        default=0, help="keep the vision encoder and adapt it by LoRA of this rank, at the full rate; needs peft; 0: off"
    )
    weight_decay: float = HfArg(default=0.02, help="of matrices")
    decay_contexts: bool = HfArg(default=False, help="weight decay on the learned prompts too, as the released code has it")
    warmup_steps: int = HfArg(default=1500, help="the learning rate rises linearly")
    gradient_checkpointing: bool = HfArg(default=False, help="less memory in CLIP and decoder, more time")
