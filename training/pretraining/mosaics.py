"""Pictures put together into mosaics, and the patches of a mosaic taken apart again."""

import torch


def put_together(images: torch.Tensor, side: int) -> torch.Tensor:
    """`(B, 3, S, S)` -> `(B / side², 3, side S, side S)`: neighbours in the batch, row by row."""
    mosaics = images.unflatten(0, (-1, side, side)).permute(0, 3, 1, 4, 2, 5)
    return mosaics.flatten(4, 5).flatten(2, 3)


def take_apart(patch_embeds: torch.Tensor, pictures: int) -> torch.Tensor:
    """`(M, N, D)` patches of images that hold `pictures` pictures -> `(pictures, N M / pictures, D)`, in the batch's order."""
    side = round((pictures / len(patch_embeds)) ** 0.5)
    own = round(patch_embeds.shape[1] ** 0.5) // side
    cells = patch_embeds.unflatten(1, (side, own, side, own)).permute(0, 1, 3, 2, 4, 5)
    return cells.flatten(3, 4).flatten(0, 2)
