"""Starts the vision encoder of a GroupViT as CLIP's, with its patches in groups; what to call the groups is left to learn.

CoCu's paper starts from noise, with 27 million pairs. Starting from CLIP follows SegCLIP (Luo et al. 2023, arXiv 2211.14813);
how the weights are laid out is ours. With one grouping stage of as many blocks as CLIP has but one:
- blocks, embeddings and text encoder are CLIP's;
- a group's token is the mean of what CLIP's last block makes of its patches by their values, the dense features of MaskCLIP
  (arXiv 2112.01071); the parts that GroupViT adds to it start at zero, or small;
- patches join the group whose query is nearest; queries are k-means centres of these features;
- the projections into the joint space stay as they are, untrained.
CLIP normalises the sum of patch and position, GroupViT the patch alone, so positions are scaled by what that norm does to them.
"""

import torch
from scipy.cluster.vq import kmeans2
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel

from hf_clipseg import CocuForSemanticSegmentation
from hf_clipseg.models.cocu.groupvit_backbone import QUERY_DEVIATION

SHARPNESS = 15.0
"""How far apart the assignment logits of parallel and of orthogonal features are: well above Gumbel noise, of deviation 1.3."""

TOKEN_SIZE = 10.0
"""Deviation of the group tokens, so large that queries hardly depend on the image at first."""


@torch.no_grad()
def start_from_clip(model: CocuForSemanticSegmentation, clip: CLIPModel, pixel_values: torch.Tensor, seed: int = 0) -> None:
    """Give `model`, in place, encoders that do what those of `clip` do.

    Args:
        pixel_values: `(batch, 3, height, width)`, some hundred images, normalised: for statistics and centres.
        seed: of the group tokens and of k-means.

    Raises:
        ValueError: the two do not have the sizes that this needs.
    """
    check_sizes(model, clip)
    was_training = model.training
    model.eval()
    vision = clip.vision_model
    depth = model.config.clip_config.vision_config.depths[0]
    copy_encoders(model, clip, pixel_values)
    size = (model.config.clip_config.vision_config.image_size,) * 2
    pixel_values = F.interpolate(pixel_values, size=size, mode="area")
    start_groups(model, vision.encoder.layers[depth], pixel_values, seed)
    model.clip.vision_model.layernorm.load_state_dict(vision.post_layernorm.state_dict())
    model.train(was_training)


def copy_encoders(model: CocuForSemanticSegmentation, clip: CLIPModel, pixel_values: torch.Tensor) -> None:
    model.clip.text_model.load_state_dict(clip.text_model.state_dict())
    source, target = clip.vision_model, model.clip.vision_model
    for block, trained in zip(target.encoder.stages[0].layers, source.encoder.layers, strict=False):
        block.load_state_dict(trained.state_dict())
    patches, embeddings = source.embeddings.patch_embedding, target.embeddings
    embeddings.patch_embeddings.projection.weight.copy_(patches.weight)
    embeddings.patch_embeddings.projection.bias.zero_()
    embeddings.layernorm.load_state_dict(source.pre_layrnorm.state_dict())
    positions = resized_positions(clip, embeddings.position_embeddings.shape[1])
    sample = F.interpolate(pixel_values, size=(clip.config.vision_config.image_size,) * 2, mode="bilinear")
    sums = patches(sample).flatten(2).transpose(1, 2) + source.embeddings.position_embedding.weight[1:]
    embeddings.position_embeddings.copy_(source.pre_layrnorm.weight * positions / sums.std(dim=-1).mean())


def resized_positions(clip: CLIPModel, count: int) -> torch.Tensor:
    """CLIP's positions of patches, resampled to a square grid of `count`: `(1, count, width)`."""
    positions = clip.vision_model.embeddings.position_embedding.weight[1:].T  # without the class token
    side, new_side = round(positions.shape[1] ** 0.5), round(count**0.5)
    grid = F.interpolate(positions.unflatten(1, (side, side))[None], size=(new_side, new_side), mode="bicubic")
    return grid.flatten(2).transpose(1, 2)


def start_groups(model: CocuForSemanticSegmentation, last_block: nn.Module, pixel_values: torch.Tensor, seed: int) -> None:
    """The grouping stage as k-means of the dense features of CLIP's last block."""
    stage = model.clip.vision_model.encoder.stages[0]
    grouping, attention = stage.downsample, last_block.self_attn
    grouping.norm_x.load_state_dict(last_block.layer_norm1.state_dict())
    grouping.assign.v_proj.load_state_dict(attention.v_proj.state_dict())
    grouping.assign.proj.load_state_dict(attention.out_proj.state_dict())
    for added in (grouping.mlp_channels.fc2, grouping.pre_assign_attn.attn.out_proj, grouping.pre_assign_attn.mlp.fc2):
        added.weight.zero_()
        added.bias.zero_()
    grouping.pre_assign_attn.norm_post.weight.fill_(QUERY_DEVIATION)
    stage.group_token.normal_(std=TOKEN_SIZE, generator=torch.Generator().manual_seed(seed))

    seen: dict[str, torch.Tensor] = {}
    hook = grouping.register_forward_pre_hook(lambda _, inputs: seen.update(patches=inputs[0], groups=inputs[1]))
    model.clip.group(pixel_values)
    hook.remove()
    patches = grouping.norm_x(seen["patches"])
    queries = grouping.pre_assign_attn(grouping.project_group_token(grouping.norm_tokens(seen["groups"])), patches).mean(dim=0)
    write_centres(grouping.assign, queries, grouping.assign.proj(grouping.assign.v_proj(patches)).flatten(0, 1), seed)


def write_centres(assign: nn.Module, queries: torch.Tensor, features: torch.Tensor, seed: int) -> None:
    """Keys become the features, less their mean; the projection of query g becomes the g-th centre of their directions.

    Args:
        assign: its values and output projection already give `features`.
        queries: `(groups, width)`, as they reach `assign`.
        features: `(patches, width)`.
    """
    mean = features.mean(dim=0)
    directions = F.normalize(features - mean, dim=-1)
    centres, _ = kmeans2(directions.double().numpy(), len(queries), iter=30, minit="++", seed=seed)
    centres = F.normalize(torch.from_numpy(centres), dim=-1)
    value, output = assign.v_proj, assign.proj
    assign.k_proj.weight.copy_(output.weight @ value.weight)
    assign.k_proj.bias.copy_(output.weight @ value.bias + output.bias - mean)
    wanted = centres * SHARPNESS / (assign.scale * (features - mean).norm(dim=-1).mean())
    inputs = torch.cat([queries, torch.ones(len(queries), 1)], dim=1).double()
    solution = torch.linalg.lstsq(inputs, wanted, driver="gelsd").solution
    assign.q_proj.weight.copy_(solution[:-1].T)
    assign.q_proj.bias.copy_(solution[-1])


def check_sizes(model: CocuForSemanticSegmentation, clip: CLIPModel) -> None:
    ours, theirs = model.config.clip_config, clip.config
    stages, blocks = list(ours.vision_config.depths), theirs.vision_config.num_hidden_layers
    if stages[1:] != [0] or not 0 < stages[0] < blocks:
        raise ValueError(
            f"vision_config.depths is {stages}; to start from a CLIP of {blocks} blocks it must be [{blocks - 1}, 0]."
        )
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
