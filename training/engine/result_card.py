"""The card of a trained model: how it was made, on what data, how well it does and what it cannot do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class ResultCard:
    """What only the training script knows about its result; `publish` writes it as the `README.md` of the model folder.

    Args:
        title: first heading, such as `MTA-CLIP on msrc_v2`.
        description: a paragraph in Markdown: what the model is and how it was supervised.
        provenance: `training.engine.provenance.provenance("training.train_vpl", arguments)`: command, versions, commit.
        data: plain values that identify the training data (name, split, fingerprint, number of images).
        dataset_name: what `--dataset_name` named.
        scores: name -> value of the validation, `{"mIoU": 0.41, "pixel_accuracy": 0.77}`; None where nothing was scored.
        class_scores: class name -> IoU.
        limits: sentences, one per point of a list.
        base_model: what `--model_name_or_path` named.
        license: identifier of the licence of the weights; None leaves it open.
        tags: beside those that every model of this package has.
    """

    title: str
    description: str
    provenance: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    dataset_name: str | None = None
    scores: Mapping[str, float] | None = None
    class_scores: Mapping[str, float] | None = None
    limits: Sequence[str] = ()
    base_model: str | None = None
    license: str | None = None
    tags: Sequence[str] = ()
