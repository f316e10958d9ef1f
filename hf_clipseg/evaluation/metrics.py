"""Scores of segmentation maps: confusion matrix (IoU, pixel accuracy), boundary F-score, seen/unseen harmonic mean.

Conventions, because published figures differ by them:

- IoU of a class is taken over the whole data set (one confusion matrix), not per image.
- mIoU is the mean over the classes that occur in the ground truth. A class that only the prediction contains has no
  IoU of its own; its pixels count as misses of the classes that they should have been. The set of averaged classes
  therefore depends on the data alone, and two models are always compared over the same classes.
- Pixels whose label is `ignore_index` take part in nothing.

All state is a plain tensor (`ConfusionMatrix.matrix`, `BoundaryF.totals`) that sums over processes.
"""

import math

import torch

from ..constants import IGNORE_INDEX
from .edge_pixels import EdgePixels, near_each_other


class ConfusionMatrix:
    """Counts of (ground-truth class, predicted class) pairs over any number of maps.

    Attributes:
        matrix: `(C, C)` int64 on the CPU; rows are the ground truth, columns the prediction. Sum it over processes
            with `confusion.matrix = accelerator.reduce(confusion.matrix)`.
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE_INDEX):
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a confusion matrix needs at least one class.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction, target) -> None:
        """Adds integer maps of any (equal) shape, tensors or numpy arrays.

        Raises:
            ValueError: the shapes differ, or a value outside 0..C-1 occurs in a pixel that is not ignored.
        """
        prediction, target = _as_labels(prediction), _as_labels(target)
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction has shape {tuple(prediction.shape)}, target {tuple(target.shape)}; "
                "resize the prediction to the size of the ground truth first."
            )
        valid = target != self.ignore_index
        check_range(target, valid, self.num_classes, self.ignore_index, "target")
        check_range(prediction, valid, self.num_classes, self.ignore_index, "prediction")
        pairs = torch.where(valid, target * self.num_classes + prediction, self.num_classes**2)  # the last bin is ignored
        counts = torch.bincount(pairs.flatten(), minlength=self.num_classes**2 + 1)[:-1]
        self.matrix += counts.view(self.num_classes, self.num_classes).cpu()

    def present(self) -> torch.Tensor:
        """`(C,)` bool: classes that occur in the ground truth."""
        return self.matrix.sum(1) > 0

    def iou(self) -> torch.Tensor:
        """`(C,)` float64 intersection over union, NaN for classes that do not occur in the ground truth."""
        intersection = self.matrix.diagonal().double()
        union = self.matrix.sum(0) + self.matrix.sum(1) - self.matrix.diagonal()
        return torch.where(self.present(), intersection / union.clamp(min=1), torch.nan)

    def mean_iou(self, classes=None) -> float:
        """Mean IoU over the classes that occur in the ground truth, of all or of `classes` (ids); NaN if none does."""
        iou = self.iou()
        return iou.nanmean().item() if classes is None else iou[list(classes)].nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of labelled pixels that are right; NaN where no pixel is labelled."""
        total = self.matrix.sum().item()
        return self.matrix.diagonal().sum().item() / total if total else math.nan


class BoundaryF:
    """Boundary F-score per class, after Csurka et al., "What is a good evaluation measure for semantic segmentation?",
    BMVC 2013.

    For one image and one class of its ground truth: a boundary pixel is a pixel of the class with a 4-neighbour of
    another class. Precision is the share of predicted boundary pixels that lie within the tolerance (Euclidean) of a
    true one, recall the converse, F their harmonic mean; F is 0 where only one of the two maps has such a boundary,
    and the pair is left out where neither has (the class fills the image in both). The score is the mean over images
    per class, then over classes, so that it weighs classes as mIoU does. The image border and ignored pixels make no
    boundary.

    Attributes:
        totals: `(2, C)` float64 on the CPU: sum of F and number of images, per class. Sums over processes.
    """

    def __init__(self, num_classes: int, tolerance: float = 0.0075, ignore_index: int = IGNORE_INDEX):
        """`tolerance` is a fraction of the image diagonal; at least one pixel is always tolerated."""
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance is {tolerance}; it is a fraction of the image diagonal, between 0 and 1.")
        self.num_classes = num_classes
        self.tolerance = tolerance
        self.ignore_index = ignore_index
        self.totals = torch.zeros(2, num_classes, dtype=torch.float64)

    def update(self, prediction, target) -> None:
        """Adds one pair of `(H, W)` integer maps (tensors or numpy arrays); values as in `ConfusionMatrix`."""
        prediction, target = _as_labels(prediction), _as_labels(target)
        if prediction.ndim != 2 or prediction.shape != target.shape:
            raise ValueError(
                f"expected two (H, W) maps of one size, got {tuple(prediction.shape)} and {tuple(target.shape)}; "
                "update with one image at a time."
            )
        radius = max(1.0, self.tolerance * math.hypot(*target.shape))
        valid = target != self.ignore_index
        check_range(target, valid, self.num_classes, self.ignore_index, "target")
        check_range(prediction, valid, self.num_classes, self.ignore_index, "prediction")
        pixel_counts = self._pixel_counts(target)
        valid = valid if pixel_counts.sum() < target.numel() else None
        predicted, true = self._edges(prediction, valid), self._edges(target, valid)
        near_true, near_predicted = near_each_other(predicted, true, radius)
        predicted_counts, near_true = self._counts(predicted, near_true)
        true_counts, near_predicted = self._counts(true, near_predicted)
        precision, recall = near_true / predicted_counts, near_predicted / true_counts
        total = precision + recall  # NaN where either map has no boundary of the class
        scores = torch.where(total > 0, 2 * precision * recall / total, 0.0)
        counted = (pixel_counts > 0) & ((predicted_counts > 0) | (true_counts > 0))
        self.totals += torch.stack([torch.where(counted, scores, 0.0), counted.double()]).cpu()

    def _edges(self, labels: torch.Tensor, valid: torch.Tensor | None) -> EdgePixels:
        narrow = torch.uint8 if self.num_classes <= 256 else torch.int32  # what ignored pixels hold may wrap
        return EdgePixels(labels.to(narrow), valid)

    def _counts(self, edges: EdgePixels, near: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Per class, float64: the pixels of `edges`, and those of them that are near."""
        every = torch.bincount(edges.classes, minlength=self.num_classes).double()
        return every, torch.bincount(edges.classes.masked_select(near), minlength=self.num_classes).double()

    def _pixel_counts(self, target: torch.Tensor) -> torch.Tensor:
        """`(C,)` int64 of a map whose labels were checked, without what is ignored."""
        shift = max(0, -self.ignore_index)  # nothing below 0 can be counted
        counts = torch.bincount((target + shift if shift else target).flatten(), minlength=self.num_classes + shift)
        counts[self.ignore_index + shift : self.ignore_index + shift + 1] = 0
        return counts[shift : shift + self.num_classes]

    def per_class(self) -> torch.Tensor:
        """`(C,)` float64 mean F over the images that have a boundary of the class, NaN where none has."""
        return self.totals[0] / self.totals[1]

    def score(self) -> float:
        """Mean of `per_class` over the classes that have a value; NaN if none has."""
        return self.per_class().nanmean().item()


def harmonic_mean(seen: float, unseen: float) -> float:
    """hIoU = 2SU / (S + U); 0 where both are 0, NaN where either is."""
    total = seen + unseen
    return 2 * seen * unseen / total if total else 0.0


def summarise(confusion: ConfusionMatrix, unseen=()) -> dict:
    """The figures of one confusion matrix as plain Python values.

    Args:
        unseen: class ids that were held out in training; empty where the question does not arise.

    Returns:
        `mIoU`, `pixel_accuracy`, `per_class_iou` (list, None for classes that do not occur) and, None where `unseen`
        is empty, `mIoU_seen`, `mIoU_unseen`, `hIoU`. A mean over no class is None.
    """
    unseen = sorted(set(unseen))
    figures = {
        "mIoU": confusion.mean_iou(),
        "pixel_accuracy": confusion.pixel_accuracy(),
        "mIoU_seen": math.nan,
        "mIoU_unseen": math.nan,
        "hIoU": math.nan,
    }
    if unseen:
        figures["mIoU_seen"] = confusion.mean_iou(set(range(confusion.num_classes)) - set(unseen))
        figures["mIoU_unseen"] = confusion.mean_iou(unseen)
        figures["hIoU"] = harmonic_mean(figures["mIoU_seen"], figures["mIoU_unseen"])
    figures["per_class_iou"] = confusion.iou().tolist()
    return {key: _without_nan(value) for key, value in figures.items()}


def _without_nan(value):
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if math.isnan(value) else value


def _as_labels(labels) -> torch.Tensor:
    labels = torch.as_tensor(labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(f"expected integer class ids, got {labels.dtype}; take the argmax of logits first.")
    return labels.long()


def check_range(labels: torch.Tensor, valid: torch.Tensor, num_classes: int, ignore_index: int, name: str) -> None:
    """Raises ValueError where a valid pixel holds no class."""
    lowest, highest = labels.aminmax() if labels.numel() else (0, 0)
    if lowest >= 0 and highest < num_classes:
        return  # most maps: nothing is ignored, and two passes are saved
    wrong = valid & ((labels < 0) | (labels >= num_classes))
    if not wrong.any():
        return
    values = labels[wrong].unique().tolist()
    listed = ", ".join(map(str, values[:5])) + (" ..." if len(values) > 5 else "")
    raise ValueError(
        f"{name} holds the label {listed}; expected 0..{num_classes - 1}, or {ignore_index} (ignore) in the target. "
        "Is the class list the right one for these masks?"
    )
