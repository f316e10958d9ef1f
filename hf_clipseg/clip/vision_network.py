"""Any vision encoder as a source of feature maps: backbones of transformers and timm, and models whose hidden states are maps.

The nested configuration of an encoder decides everything, as `backbone_config` does for transformers' Mask2Former: which class
it is built from, and which of its maps are read. Its maps are looked at once, on the meta device, where that costs nothing.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    ImageProcessingMixin,
    PreTrainedConfig,
    PreTrainedModel,
    TimmBackbone,
    TimmBackboneConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING

TIMM_PREFIX = "timm/"
FINEST_STRIDE = 4
PROBE_SIDE = 448
"""A multiple of the usual patch sizes, 14, 16 and 32."""
LEVELS = 4
REFERENCE_DEPTHS = (3 / 11, 5 / 11, 7 / 11, 1.0)
"""Which blocks of a plain transformer are read, as shares of the last block's index: blocks 3, 5, 7 and 11 of a ViT-B."""
STEM = "stem"


class MapPlan(NamedTuple):
    """What is read of an encoder.

    Args:
        indices: of the maps that are read, finest first, among all that the encoder gives.
        channels: of each.
        strides: pixels per cell, of each.
        unused: names of the parameters that none of these maps depends on.
    """

    indices: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    unused: tuple[str, ...]

    @property
    def is_plain(self) -> bool:
        """Whether all maps have one size, as in a plain vision transformer."""
        return len(set(self.strides)) == 1


def build_network(config: PreTrainedConfig) -> PreTrainedModel:
    """The encoder of a configuration, with random weights: its backbone class, or where there is none its model.

    Raises:
        ValueError: transformers has neither.
    """
    known = MODEL_FOR_BACKBONE_MAPPING if type(config) in MODEL_FOR_BACKBONE_MAPPING else MODEL_MAPPING
    if type(config) not in known:
        raise ValueError(
            f"transformers has neither a backbone nor a model for {config.model_type!r}, so it cannot be a vision_backbone. "
            "Choose an encoder such as microsoft/resnet-50, facebook/dinov2-base, or timm/resnet50.a1_in1k."
        )
    network_class = known[type(config)]
    if config._attn_implementation == "sdpa" and not network_class._supports_sdpa:  # asked for as part of the whole model
        return network_class._from_config(config, attn_implementation="eager")
    return network_class._from_config(config)


def feature_maps(network: PreTrainedModel, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """All maps `(batch, channels, h, w)` that an encoder gives for `pixel_values (batch, 3, height, width)`.

    Returns:
        The feature maps of a backbone; of another model the hidden states that are maps.
    """
    if type(network.config) in MODEL_FOR_BACKBONE_MAPPING:
        return list(network(pixel_values).feature_maps)
    outputs = network(pixel_values, output_hidden_states=True)
    states = getattr(outputs, "reshaped_hidden_states", None) or outputs.hidden_states or ()
    return [state for state in states if state.ndim == 4]


def plan_maps(config: PreTrainedConfig) -> MapPlan:
    """Chooses what is read of the encoder of `config`.

    Of an encoder whose maps shrink, the last map of each stride, from 4 (or its finest, where that is coarser) to 8 times that;
    of a plain transformer four.

    Raises:
        ValueError: it gives no maps, or none for images of any size.
    """
    with torch.device("meta"):
        network = build_network(config).eval()
        pixel_values = torch.empty(1, getattr(config, "num_channels", 3), PROBE_SIDE, PROBE_SIDE)
        with torch.enable_grad():
            try:
                maps = feature_maps(network, pixel_values)
            except (AttributeError, TypeError, RuntimeError, ValueError) as error:
                raise no_maps(config, f" ({str(error).splitlines()[0][:100].rstrip('.')})") from error
            if not maps:
                raise no_maps(config)
            indices = choose_maps([round(PROBE_SIDE / feature_map.shape[-1]) for feature_map in maps])
            sum(maps[index].sum() for index in indices).backward()
    unused = tuple(name for name, parameter in network.named_parameters() if parameter.grad is None)
    strides = tuple(round(PROBE_SIDE / maps[index].shape[-1]) for index in indices)
    return MapPlan(tuple(indices), tuple(maps[index].shape[1] for index in indices), strides, unused)


def no_maps(config: PreTrainedConfig, cause: str = "") -> ValueError:
    return ValueError(
        f"A {config.model_type!r} model gives no feature maps for an image of {PROBE_SIDE} x {PROBE_SIDE}{cause}, so it cannot "
        "be a vision_backbone. Choose a backbone of transformers or timm that takes any size, or a model with maps as hidden "
        "states, such as MobileNetV2."
    )


def choose_maps(strides: Sequence[int]) -> list[int]:
    """Indices of the maps that are read, finest first, by the strides of all of them; four spread ones where they are equal."""
    coarse_enough = sorted({stride for stride in strides if stride >= FINEST_STRIDE})
    if len(coarse_enough) < 2:
        return [round(level * (len(strides) - 1) / (LEVELS - 1)) for level in range(LEVELS)]
    finest = coarse_enough[0]
    wanted = [finest * 2**level for level in range(LEVELS)]
    last_of = {stride: index for index, stride in enumerate(strides)}
    return [last_of[stride] for stride in wanted if stride in last_of]


def read_all_stages(config: PreTrainedConfig) -> None:
    """Lets a backbone give the maps that are read, and no others; one whose stages were chosen keeps them.

    A fresh backbone configuration gives its last stage only. Of a plain transformer the blocks at `REFERENCE_DEPTHS` are
    chosen, as of CLIP. Idempotent, so that a saved configuration is taken as it is.
    """
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING or len(config.out_indices) != 1:
        return
    with torch.device("meta"):
        stages = list(build_network(config).stage_names)
    give_stages(config, range(len(stages)))
    plan = plan_maps(config)
    chosen = set(plan.indices)
    if plan.is_plain:
        first = int(stages[0] == STEM)
        chosen = {first + round(depth * (len(stages) - 1 - first)) for depth in REFERENCE_DEPTHS}
    give_stages(config, sorted(chosen))


def give_stages(config: PreTrainedConfig, indices: Sequence[int]) -> None:
    if isinstance(config, TimmBackboneConfig):
        config.out_indices = list(indices)
    else:
        config.out_features = [config.stage_names[index] for index in indices]


def load_network(name_or_path: str, **kwargs: Any) -> PreTrainedModel:
    """An encoder with its own weights.

    Args:
        name_or_path: Hub id or folder of a backbone, or of a model that has one as its base (a classifier, a segmenter);
            `timm/NAME` for a network of timm, whose own weights are fetched.
        kwargs: arguments for `from_pretrained` (`revision`, `token`, ...).

    Raises:
        ValueError: no encoder of images, or one whose weights are not all there.
        ImportError: `timm/NAME` without timm.
    """
    name_or_path = str(name_or_path)
    if name_or_path.startswith(TIMM_PREFIX):
        return load_timm(name_or_path, pretrained=True)
    config = AutoConfig.from_pretrained(name_or_path, **kwargs)
    read_all_stages(config)
    model_class = MODEL_FOR_BACKBONE_MAPPING.get(type(config), AutoModel)
    network, report = model_class.from_pretrained(name_or_path, config=config, output_loading_info=True, **kwargs)
    norms = tuple(name for name, module in network.named_modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm)))
    read = set(dict(network.named_parameters())) - set(plan_maps(config).unused)
    missing = sorted(name for name in report["missing_keys"] if name in read and not name.startswith(norms))
    if missing:
        raise ValueError(
            f"The weights of {name_or_path} lack {len(missing)} tensors of its vision encoder ({missing[0]}, ...). Use a whole "
            f"checkpoint of model_type {config.model_type!r}."
        )
    return network


def image_settings(vision_backbone: str | PreTrainedConfig) -> dict[str, Any]:
    """How an encoder takes its images.

    Args:
        vision_backbone: as `load_network` takes it, or a configuration, which says nothing but the cells.

    Returns:
        Arguments of `SegmentationImageProcessor`: `size_divisor`, and from its own preprocessing `image_mean`, `image_std`,
        `resample` and `size`.

    Raises:
        ValueError: it has no preprocessing of its own, or one that normalisation alone does not reproduce.
    """
    if isinstance(vision_backbone, PreTrainedConfig):
        config, settings = vision_backbone, {}
    elif str(vision_backbone).startswith(TIMM_PREFIX):
        network = load_timm(str(vision_backbone), pretrained=False)
        config, settings = network.config, timm_settings(network)
    else:
        config = AutoConfig.from_pretrained(vision_backbone)
        settings = stored_settings(vision_backbone)
    config = type(config).from_dict(config.to_dict())
    read_all_stages(config)
    return {"size_divisor": max(plan_maps(config).strides), **settings}


def stored_settings(name_or_path: str) -> dict[str, Any]:
    """What `preprocessor_config.json` says."""
    try:
        stored, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
    except OSError as error:
        raise ValueError(
            f"{name_or_path} has no preprocessor_config.json, so nothing says how its images are normalised. Put the one of "
            "the encoder's original checkpoint beside its weights."
        ) from error
    if stored.get("do_flip_channel_order"):
        raise ValueError(f"{name_or_path} reads images as blue, green, red, which is not supported. Choose another encoder.")
    size = stored.get("size") or {}
    side = size if isinstance(size, int) else size.get("shortest_edge") or min(size.get("height", 224), size.get("width", 224))
    if not stored.get("do_normalize", True):
        stored = stored | {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    names = ("image_mean", "image_std", "resample")
    return {name: stored[name] for name in names if stored.get(name) is not None} | size_settings(side)


def timm_settings(network: PreTrainedModel) -> dict[str, Any]:
    preprocessing = network._backbone.pretrained_cfg
    settings = {"image_mean": list(preprocessing["mean"]), "image_std": list(preprocessing["std"])}
    return settings | size_settings(min(preprocessing["input_size"][1:]))


def size_settings(side: int) -> dict[str, Any]:
    return {"size": {"shortest_edge": side, "longest_edge": 4 * side}}


def load_timm(name: str, pretrained: bool) -> PreTrainedModel:
    config = TimmBackboneConfig(backbone=name.removeprefix(TIMM_PREFIX))
    read_all_stages(config)
    return TimmBackbone._from_config(config, pretrained=pretrained)
