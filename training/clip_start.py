"""Starts a GroupViT from the weights of a CLIP, so that grouping is all it has left to learn.

As SegCLIP (Luo et al. 2023, arXiv 2211.14813) does; CoCu's paper starts from noise, and trains on 27 million pairs. Blocks and
text encoder are copied. The embeddings differ: CLIP normalises the sum of patch and position, GroupViT the patch alone, so the
positions are scaled by what CLIP's norm does to them on average.
"""

import torch
from torch.nn import functional as F
from transformers import CLIPModel

from hf_clipseg import CocuForSemanticSegmentation


@torch.no_grad()
def start_from_clip(model: CocuForSemanticSegmentation, clip: CLIPModel, pixel_values: torch.Tensor) -> None:
    """Copy into `model` what `clip` can give it: its text encoder, its patch embedding and as many blocks as there are.

    Args:
        pixel_values: `(batch, 3, height, width)`, some images, normalised.

    Raises:
        ValueError: the two do not have the same widths, patches or vocabulary.
    """
    check_sizes(model, clip)
    model.clip.text_model.load_state_dict(clip.text_model.state_dict())
    source, target = clip.vision_model, model.clip.vision_model
    blocks = [block for stage in target.encoder.stages for block in stage.layers]
    for block, trained in zip(blocks, source.encoder.layers, strict=False):  # either may have more than the other
        block.load_state_dict(trained.state_dict())

    patches, embeddings = source.embeddings.patch_embedding, target.embeddings
    embeddings.patch_embeddings.projection.weight.copy_(patches.weight)
    embeddings.patch_embeddings.projection.bias.zero_()
    embeddings.layernorm.load_state_dict(source.pre_layrnorm.state_dict())
    positions = resized_positions(clip, embeddings.position_embeddings.shape[1])
    sample = F.interpolate(pixel_values, size=(clip.config.vision_config.image_size,) * 2, mode="bilinear")
    deviation = (
        (patches(sample).flatten(2).transpose(1, 2) + source.embeddings.position_embedding.weight[1:]).std(dim=-1).mean()
    )
    embeddings.position_embeddings.copy_(source.pre_layrnorm.weight * positions / deviation)


def resized_positions(clip: CLIPModel, count: int) -> torch.Tensor:
    """CLIP's positions of patches, resampled to a square grid of `count`: `(1, count, width)`."""
    positions = clip.vision_model.embeddings.position_embedding.weight[1:].T  # without the class token
    side, new_side = round(positions.shape[1] ** 0.5), round(count**0.5)
    grid = F.interpolate(positions.unflatten(1, (side, side))[None], size=(new_side, new_side), mode="bicubic")
    return grid.flatten(2).transpose(1, 2)


def check_sizes(model: CocuForSemanticSegmentation, clip: CLIPModel) -> None:
    ours, theirs = model.config.clip_config, clip.config
    fields = {
        "vision_config": ("hidden_size", "intermediate_size", "patch_size", "hidden_act"),
        "text_config": (
            "vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act",
        ),
    }  # fmt: skip
    for part, names in fields.items():
        for name in names:
            expected, actual = (getattr(getattr(config, part), name) for config in (theirs, ours))
            if expected != actual:
                raise ValueError(
                    f"{part}.{name} is {actual} in the GroupViT and {expected} in the CLIP to start from. Pass a "
                    "--model_config of CLIP's sizes, and leave --tokenizer_name out."
                )
