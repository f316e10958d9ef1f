"""The losses of MTA-CLIP: Mask2Former's set prediction, and the mask-to-text contrast on the same matching.

Papers: Mask2Former, arXiv 2112.01527; MTA-CLIP, arXiv 2407.21654. Symbols: c_q `target_classes`, w_q `query_weights`,
s[q, k, z] `similarities`, D the candidates of `contrastive_loss`.

transformers' matcher is used as it is and its loss with these corrections:
- every sum is divided by a count over all processes, so that the losses do not depend on how a batch is divided;
- all masks of a step share their candidate points, for the same reason;
- pixels that are ignored take no part: transformers counts them as outside of every mask;
- images without a single labelled pixel take no part in the classification either.
"""

import torch
from torch import distributed, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerLoss,
    dice_loss,
    sample_point,
    sigmoid_cross_entropy_loss,
)

from ...constants import IGNORE_INDEX

CERTAINLY_OUTSIDE = -30.0
"""A mask logit that costs nothing where the target is "outside"."""

Matching = list[tuple[torch.Tensor, torch.Tensor]]


class DivergedError(ValueError):
    """Predictions are no longer numbers, so masks cannot be matched."""


class MaskTargets:
    """What the label maps of a batch ask for: one mask per class that is present.

    Args:
        labels: `(batch, height, width)` int64, `IGNORE_INDEX` where nothing is known.

    Attributes:
        classes: `(masks,)` int64 per image.
        masks: `(masks, height, width)` float per image.
        labelled: `(batch, 1, height, width)` float, 0 where pixels are ignored.
    """

    def __init__(self, labels: torch.Tensor):
        self.labelled = (labels != IGNORE_INDEX)[:, None].float()
        self.classes = [present[present != IGNORE_INDEX] for present in (label_map.unique() for label_map in labels)]
        self.masks = [
            (label_map == classes[:, None, None]).float() for label_map, classes in zip(labels, self.classes, strict=True)
        ]

    def __len__(self) -> int:
        return sum(len(classes) for classes in self.classes)


class MaskTextLoss(Mask2FormerLoss):
    """All losses of one decoder layer. It has no state of its own: build it where it is used.

    Args:
        config: weights of the matching costs, number of points, weight of "no object".
        contrastive_form, temperature: see `contrastive_loss`.
    """

    def __init__(self, config: Mask2FormerConfig, contrastive_form: str = "mix", temperature: float = 1.0):
        super().__init__(config, weight_dict={})
        self.contrastive_form, self.temperature = contrastive_form, temperature

    def forward(
        self,
        mask_logits: torch.Tensor,
        class_logits: torch.Tensor,
        similarities: torch.Tensor | None,
        targets: MaskTargets,
        seed: int,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            mask_logits: `(batch, queries, h, w)`.
            class_logits: `(batch, queries, classes + 1)`, "no object" last.
            similarities: `(batch, queries, classes + 1, prompts)`; None leaves the contrastive loss out.
            targets: of the same batch.
            seed: chooses the points; the same in all processes.

        Returns:
            Unweighted `cross_entropy`, `mask`, `dice` and, with similarities, `contrastive`, in fp32.
        """
        mask_logits, class_logits = mask_logits.float(), class_logits.float()
        devices = [mask_logits.device] if mask_logits.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            matching = self.match(mask_logits, class_logits, targets, seed)
            seed_generators(seed, mask_logits.device)
            losses = self.mask_losses(mask_logits, targets, matching)
        target_classes, query_weights = self.query_targets(class_logits, targets, matching)
        total_weight = mean_over_processes(query_weights.sum()).clamp(min=1e-6)
        log_probabilities = class_logits.log_softmax(dim=-1).gather(2, target_classes[..., None])[..., 0]
        losses["cross_entropy"] = -(query_weights * log_probabilities).sum() / total_weight
        if similarities is not None:
            per_query = contrastive_loss(similarities.float(), target_classes, self.contrastive_form, self.temperature)
            losses["contrastive"] = (query_weights * per_query).sum() / total_weight
        return losses

    @torch.no_grad()
    def match(self, mask_logits: torch.Tensor, class_logits: torch.Tensor, targets: MaskTargets, seed: int) -> Matching:
        """Query and mask of every matched pair, image by image; each image is compared at the same points.

        Raises:
            DivergedError: a prediction is infinite or not a number (transformers' matcher would go on with any matching).
        """
        if not (torch.isfinite(mask_logits).all() and torch.isfinite(class_logits).all()):
            raise DivergedError(
                "Mask or class predictions are not finite, so training has diverged (or the images hold NaN). Lower the "
                "learning rate, clip gradients, or train in bf16 or fp32 instead of fp16."
            )
        labelled = nn.functional.interpolate(targets.labelled, size=mask_logits.shape[-2:], mode="nearest-exact") > 0
        mask_logits = mask_logits.masked_fill(~labelled, CERTAINLY_OUTSIDE)
        matching = []
        for index, (masks, classes) in enumerate(zip(targets.masks, targets.classes, strict=True)):
            if len(classes) == 0:
                nothing = torch.zeros(0, dtype=torch.int64)
                matching.append((nothing, nothing))
                continue
            seed_generators(seed, mask_logits.device)
            matching += self.matcher(mask_logits[index, None], class_logits[index, None], [masks], [classes])
        return matching

    def mask_losses(self, mask_logits: torch.Tensor, targets: MaskTargets, matching: Matching) -> dict[str, torch.Tensor]:
        """Cross-entropy and dice of matched masks, at points that are labelled, divided by the number of masks."""
        images, queries = (index.to(mask_logits.device) for index in self._get_predictions_permutation_indices(matching))
        num_masks = mean_over_processes(torch.tensor(float(len(targets)), device=mask_logits.device)).clamp(min=1)
        predicted = mask_logits[images, queries][:, None]  # (matched, 1, h, w)
        if len(predicted) == 0:
            return {"mask": mask_logits.sum() * 0, "dice": mask_logits.sum() * 0}
        wanted = torch.cat([masks[index] for masks, (_, index) in zip(targets.masks, matching, strict=True)])[:, None]
        points = self.choose_points(predicted.detach(), targets.labelled, images)  # (matched, points, 2)
        outside = sample_point(targets.labelled[images], points, mode="nearest", align_corners=False)[:, 0] == 0
        point_labels = sample_point(wanted, points, align_corners=False)[:, 0].masked_fill(outside, 0)
        point_logits = sample_point(predicted, points, align_corners=False)[:, 0].masked_fill(outside, CERTAINLY_OUTSIDE)
        return {
            "mask": sigmoid_cross_entropy_loss(point_logits, point_labels, num_masks),
            "dice": dice_loss(point_logits, point_labels, num_masks),
        }

    @torch.no_grad()
    def choose_points(self, predicted: torch.Tensor, labelled: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Points `(matched, points, 2)` in [0, 1]: a share where the mask is most uncertain, the rest at random.

        Args:
            predicted: `(matched, 1, h, w)` mask logits.
            labelled: `(batch, 1, height, width)`; ignored pixels are chosen only when there are not enough others.
            images: `(matched,)`, the image of each mask.
        """
        count = int(self.num_points * self.oversample_ratio)
        num_uncertain = int(self.importance_sample_ratio * self.num_points)
        candidates = torch.rand(2, 1, count, 2, device=predicted.device)  # for the uncertain ones, and for the others
        allowed = [
            sample_point(labelled, points.expand(len(labelled), -1, -1), mode="nearest", align_corners=False)[:, 0] > 0
            for points in candidates
        ]
        uncertainty = -sample_point(predicted, candidates[0].expand(len(predicted), -1, -1), align_corners=False)[:, 0].abs()
        uncertain = uncertainty.masked_fill(~allowed[0][images], float("-inf")).topk(num_uncertain, dim=1).indices
        # the candidates are random already: the first labelled ones are a random choice
        order = torch.arange(count, device=predicted.device) + count * ~allowed[1]
        others = order.topk(self.num_points - num_uncertain, dim=1, largest=False).indices[images]
        return torch.cat([candidates[0][0][uncertain], candidates[1][0][others]], dim=1)

    def query_targets(
        self, class_logits: torch.Tensor, targets: MaskTargets, matching: Matching
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Class c_q and weight w_q of every query, both `(batch, queries)`."""
        device = class_logits.device
        no_object = class_logits.shape[-1] - 1
        target_classes = torch.full(class_logits.shape[:2], no_object, dtype=torch.int64, device=device)
        for row, (queries, masks) in enumerate(matching):
            target_classes[row, queries.to(device)] = targets.classes[row][masks.to(device)]
        query_weights = torch.where(target_classes == no_object, self.eos_coef, 1.0)
        return target_classes, query_weights * targets.labelled.flatten(1).any(dim=1, keepdim=True)


def contrastive_loss(
    similarities: torch.Tensor, target_classes: torch.Tensor, form: str = "mix", temperature: float = 1.0
) -> torch.Tensor:
    """Mask-to-text contrast of every query: -log of the share that its class's text has among all candidates.

    One prompt, the most similar one, wins for each query, and only it is pulled closer.

    Args:
        similarities: `(batch, queries, classes, prompts)` cosines.
        target_classes: `(batch, queries)`.
        form: `mix`, all prompts of all classes are candidates; `separate`, the losing prompts of the query's own class are
            not; `all`, no winner: the mean over the prompts of the class.
        temperature: divides the similarities. With 453 candidates, orthogonal to each other, the loss cannot fall below
            `log(1 + 452 / e)` = 5.12 at 1.

    Returns:
        `(batch, queries)`.
    """
    scores = similarities / temperature
    index = target_classes[..., None, None].expand(-1, -1, 1, scores.shape[-1])
    own = scores.gather(2, index)[:, :, 0]  # (batch, queries, prompts)
    if form == "all":
        return scores.flatten(2).logsumexp(dim=-1) - own.mean(dim=-1)
    winner = own.max(dim=-1).values
    if form == "mix":
        return scores.flatten(2).logsumexp(dim=-1) - winner
    if form != "separate":
        raise ValueError(f"form must be 'mix', 'separate' or 'all', got {form!r}.")
    others = scores.scatter(2, index, float("-inf")).flatten(2)
    return torch.cat([others, winner[..., None]], dim=-1).logsumexp(dim=-1) - winner


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of `device`, and no other.

    `torch.manual_seed` would also note a call for every accelerator that is not in use yet, with its stack trace: a tenth of a
    training step on a CPU.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def mean_over_processes(count: torch.Tensor) -> torch.Tensor:
    """Mean of a count over the processes that train together; gradients are averaged over them, so sums must be, too."""
    if torch.is_grad_enabled() and distributed.is_available() and distributed.is_initialized():
        count = count.clone()
        distributed.all_reduce(count)
        return count / distributed.get_world_size()
    return count
