"""Contrastive losses between images and texts over the samples of all processes.

`contrastive_loss` is CLIP's (Radford et al. 2021, arXiv 2103.00020). `multi_label_loss` gives an image several texts of its
own, here concepts: GroupViT (Xu et al. 2022, arXiv 2202.11094) as CoCu (Xing et al. 2023, arXiv 2309.13505) trains it.
Deviation: a concept that an image shares, or that curation has put in its archive, is none of its negatives, unless
`duplicates_are_negatives`.
"""

import torch
from torch.nn import functional as F

from .distributed import gather


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """Turns autocast off: cosines times a scale of up to 100 lose their order in bf16."""
    return torch.autocast(tensor.device.type, enabled=False)


def contrastive_loss(image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE over the samples of all processes.

    Both embeddings are (B, D), L2-normalised; `logit_scale` is already exponentiated.

    Every process computes the loss of the whole batch, so the average of its gradients over processes is the gradient of one
    process that holds all samples.
    """
    with full_precision(image_embeds):
        logits = logit_scale * gather(image_embeds.float()) @ gather(text_embeds.float()).T
        targets = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def multi_label_loss(
    image_embeds: torch.Tensor,
    concept_embeds: torch.Tensor,
    concept_ids: torch.Tensor,
    logit_scale: torch.Tensor,
    duplicates_are_negatives: bool = False,
    archive_ids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric contrast of images with M texts each, over the samples of all processes.

    Image to text: the target of an image is 1/M on each of its own texts, among all texts. Text to image: the image that the
    text belongs to, among all images.

    Args:
        image_embeds: `(B, D)`, L2-normalised.
        concept_embeds: `(B, M, D)`, L2-normalised.
        concept_ids: `(B, M)` int64; equal ids are the same concept, negative ones equal none.
        logit_scale: already exponentiated.
        duplicates_are_negatives: contrast an image also with its own concepts where other images have them too.
        archive_ids: `(B, A)` int64, further concepts that the image may show, padded with -1. Contrasted with them, an image
            learns that what was not drawn for this step is not there.

    Returns:
        A scalar in fp32, the same on every process.
    """
    with full_precision(image_embeds):
        images, texts, ids = gather(image_embeds.float()), gather(concept_embeds.float()), gather(concept_ids)
        logits = logit_scale * torch.einsum("id,jmd->ijm", images, texts)  # image i, text m of image j
        if not duplicates_are_negatives:
            own = ids if archive_ids is None else torch.cat([ids, gather(archive_ids)], dim=1)
            logits = logits.masked_fill(shared_concepts(ids, own), float("-inf"))
        own_texts = logits.flatten(1).log_softmax(dim=1).view_as(logits).diagonal()  # (M, B)
        own_image = logits.log_softmax(dim=0).diagonal()  # (M, B)
        return -(own_texts.mean() + own_image.mean()) / 2


def shared_concepts(concept_ids: torch.Tensor, own_ids: torch.Tensor) -> torch.Tensor:
    """`(B, M)` and `(B, A)` ids -> `(B, B, M)` bool: text m of image j is a concept of image i, and i is not j."""
    count = int(torch.maximum(concept_ids.max(), own_ids.max())) + 1
    concept_ids, own_ids = (torch.where(ids < 0, count, ids) for ids in (concept_ids, own_ids))  # a column for no concept
    shows = torch.zeros(len(own_ids), count + 1, dtype=torch.bool, device=own_ids.device).scatter_(1, own_ids, True)
    shows[:, count] = False
    return shows[:, concept_ids] & ~torch.eye(len(own_ids), dtype=torch.bool, device=own_ids.device)[:, :, None]
