"""Comparing dense image features with class embeddings.

Everything here is one matrix product per image, whatever the number of classes; nothing is quadratic in the classes.
"""

from collections.abc import Sequence

import torch


def cosine_maps(patch_embeds: torch.Tensor, name_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine of every patch with every name.

    Args:
        patch_embeds: `(batch, height, width, dim)`, L2-normalised.
        name_embeds: `(names, dim)`, L2-normalised; or `(batch, names, dim)` where every image has names of its own.

    Returns:
        `(batch, names, height, width)`, in [-1, 1].
    """
    if patch_embeds.shape[-1] != name_embeds.shape[-1]:
        raise ValueError(
            f"Patch features have {patch_embeds.shape[-1]} channels and class embeddings {name_embeds.shape[-1]}: "
            "both must come from the same CLIP checkpoint."
        )
    if name_embeds.dim() == 2:
        return torch.einsum("bhwd,nd->bnhw", patch_embeds, name_embeds)
    return torch.einsum("bhwd,bnd->bnhw", patch_embeds, name_embeds)


def max_over_synonyms(name_maps: torch.Tensor, class_ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
    """A class scores as high as the best of its names.

    Args:
        name_maps: `(batch, names, height, width)`.
        class_ids: the class of each of the names, covering 0 .. classes - 1. Plain numbers where they are known beforehand:
            a graph that is exported must not depend on the values of a tensor.

    Returns:
        `(batch, classes, height, width)`.
    """
    owners = class_ids.tolist() if isinstance(class_ids, torch.Tensor) else list(class_ids)
    num_classes = max(owners) + 1
    if owners == list(range(num_classes)):
        return name_maps
    if num_classes == len(owners):  # one name per class: only the order differs
        return name_maps[:, sorted(range(num_classes), key=owners.__getitem__)]
    batch, _, height, width = name_maps.shape
    index = torch.tensor(owners, device=name_maps.device).view(1, -1, 1, 1).expand_as(name_maps)
    best = name_maps.new_full((batch, num_classes, height, width), float("-inf"))
    return best.scatter_reduce(1, index, name_maps, reduce="amax")
