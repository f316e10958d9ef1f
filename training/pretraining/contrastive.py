"""The losses of CLIP pre-training: whole captions (InfoNCE) and single nouns (multi-label), on a `CLIPModel`.

Paper: Radford et al., CLIP, arXiv:2103.00020, for the symmetric contrastive loss. The noun-level term is this project's: at
toy scale contrast of whole captions alone does not localise. It reads patch features exactly as MaskCLIP (arXiv:2112.01071)
will read them later, the value path of the last block without its residual, and asks that the nouns of the caption, and no
others, are found somewhere in the image (log-sum-exp pooling, as in Pinheiro and Collobert, arXiv:1411.6228). No mask is used.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel

from hf_clipseg.clip.contrastive import contrastive_loss, full_precision

from .mosaics import take_apart


class NounLoss(nn.Module):
    """Finds nouns in patch features: multi-label over the image, and competition between nouns at every patch.

    With z the scaled cosines of patch n and noun k, three terms:
    - `present`: log-sum-exp of z over patches, plus a bias, against whether the caption mentions the noun (cross-entropy).
    - `explained`: -log of the softmax mass (over nouns) that a patch gives to the nouns of its caption, mean over patches.
      `unmentioned` is the share of patches that may show what the caption leaves out: each costs at most -log(unmentioned).
    - `assigned`: cross-entropy of a patch against its own softmax over the nouns of its caption, corrected for the share of the
      image that each of them already has (see `assign_patches`). `explained` alone lets the ground of a scene, which the
      attention makes known to every patch, swallow what stands on it; here nothing is gained by that.
    Captions that name what is withheld take no part in the last two: a patch may show it.

    `scale` and `bias` are learnt with the model but belong to the loss: they are no part of the saved CLIP.
    """

    def __init__(
        self,
        present_weight: float,
        explained_weight: float,
        negative_weight: float,
        unmentioned: float,
        assigned_weight: float = 0.0,
        scale: float = 10.0,
    ):
        super().__init__()
        self.present_weight, self.explained_weight, self.assigned_weight = present_weight, explained_weight, assigned_weight
        self.negative_weight, self.unmentioned = negative_weight, unmentioned
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(
        self,
        patch_embeds: torch.Tensor,
        noun_embeds: torch.Tensor,
        mentioned: torch.Tensor,
        complete: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """(B, N, D) and (K, D) L2-normalised embeddings, (B, K) bool -> named losses.

        `complete` (B,), bool: the caption names nothing that is withheld; None: none does.
        """
        with full_precision(patch_embeds):
            told = mentioned if complete is None else mentioned & complete[:, None]
            return self._losses(patch_embeds.float(), noun_embeds.float(), mentioned, told)

    def _losses(self, patch_embeds, noun_embeds, mentioned, told) -> dict[str, torch.Tensor]:
        logits = self.log_scale.exp() * patch_embeds @ noun_embeds.T
        pooled = logits.logsumexp(dim=1) - torch.tensor(logits.shape[1], dtype=torch.float).log() + self.bias
        weights = torch.where(mentioned, 1.0, self.negative_weight)
        present = F.binary_cross_entropy_with_logits(pooled, mentioned.float(), weights)

        mass = (logits.softmax(dim=2) * told[:, None]).sum(dim=2)  # (B, N); 0 where a caption tells no noun
        surprise = -(self.unmentioned + (1 - self.unmentioned) * mass).clamp_min(1e-6).log().mean(dim=1)
        explained = (surprise * told.any(dim=1)).mean()  # of all images, so that it averages over processes too
        losses = {"present": self.present_weight * present, "explained": self.explained_weight * explained}
        if self.assigned_weight:
            targets = assign_patches(logits.detach(), told)
            losses["assigned"] = -self.assigned_weight * (targets * logits.log_softmax(dim=2)).sum(dim=2).mean()
        return losses


def assign_patches(logits: torch.Tensor, mentioned: torch.Tensor, balance: float = 0.7, sharpness: float = 2.0) -> torch.Tensor:
    """Soft labels of patches, from the nouns of the caption alone.

    A noun that the whole image is biased towards would win everywhere, so its logits are lowered by `balance` times the log of
    the share of patches it has: 0 leaves them, 1 nearly evens the shares out. Such balanced self-labels are known from SeLa
    (arXiv:1911.05371) and SwAV (arXiv:2006.09882), which balance over a batch.

    Args:
        logits: (B, N, K).
        mentioned: (B, K) bool.

    Returns:
        (B, N, K); rows sum to 1, or to 0 where a caption mentions no noun.
    """
    logits = logits.masked_fill(~mentioned[:, None], torch.finfo(logits.dtype).min / 4)
    shares = logits.softmax(dim=2).mean(dim=1, keepdim=True).clamp_min(1e-4)
    return (sharpness * (logits - balance * shares.log())).softmax(dim=2) * mentioned[:, None]


class ClipForPretraining(nn.Module):
    """A `CLIPModel` with its training losses; `forward` returns named losses, `"loss"` is their sum.

    Args:
        clip: the model that is trained and later saved.
        noun_loss: None trains on whole captions only, as CLIP does.
        averaged_weight: of a second contrast of captions, with the mean of what will be read as dense features.
    """

    def __init__(self, clip: CLIPModel, noun_loss: NounLoss | None, averaged_weight: float = 0.0):
        super().__init__()
        self.clip, self.noun_loss, self.averaged_weight = clip, noun_loss, averaged_weight

    def encode_images(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Global (B, D) and dense (B, N, D) embeddings, L2-normalised, from one pass over the image."""
        vision = self.clip.vision_model
        hidden_states = vision.pre_layrnorm(vision.embeddings(pixel_values, interpolate_pos_encoding=True))
        for layer in vision.encoder.layers[:-1]:
            hidden_states = layer(hidden_states, None)
        last = vision.encoder.layers[-1]
        values = last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(hidden_states[:, 1:])))
        pooled = vision.post_layernorm(last(hidden_states, None)[:, 0])
        project = self.clip.visual_projection
        return F.normalize(project(pooled), dim=-1), F.normalize(project(vision.post_layernorm(values)), dim=-1)

    def encode_texts(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, L) token ids -> (B, D), L2-normalised. Attention is causal, so what follows the end token has no influence."""
        return F.normalize(self.clip.get_text_features(input_ids=input_ids).pooler_output, dim=-1)

    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        noun_input_ids: torch.Tensor | None = None,
        mentioned: torch.Tensor | None = None,
        complete: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """(M, 3, S, S) images, each of one picture or a mosaic of several, and (B, L) captions, one per picture -> losses.

        A mosaic has no caption of its own, so its image embedding is contrasted with nothing.
        """
        image_embeds, patch_embeds = self.encode_images(pixel_values)
        text_embeds = self.encode_texts(input_ids)
        logit_scale = self.clip.logit_scale.exp().clamp_max(100.0)
        patch_embeds = take_apart(patch_embeds, len(input_ids))
        losses = {}
        if len(image_embeds) == len(input_ids):
            losses["contrastive"] = contrastive_loss(image_embeds, text_embeds, logit_scale)
        if self.averaged_weight:
            means = F.normalize(patch_embeds.mean(dim=1), dim=-1)
            losses["averaged"] = self.averaged_weight * contrastive_loss(means, text_embeds, logit_scale)
        if self.noun_loss is not None:
            losses |= self.noun_loss(patch_embeds, self.encode_texts(noun_input_ids), mentioned, complete)
        unread = 0 * image_embeds.sum()  # distributed training wants every weight in every step, also with mosaics
        return {"loss": sum(losses.values()) + unread, **losses}
