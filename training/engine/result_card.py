"""The card of a trained model: how it was made, on what data, how well it does and what it cannot do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

CURVES = "curves.png"
PREDICTIONS = "predictions.png"
METRIC_IDS = {"mIoU": "mean_iou", "pixel_accuracy": "accuracy"}
"""Names of the Hub for our own."""

USAGE = """```python
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, AutoProcessor

model = AutoModelForSemanticSegmentation.from_pretrained("{repository}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{repository}", trust_remote_code=True)
image = Image.open("photo.jpg").convert("RGB")
outputs = model(**processor(images=image, return_tensors="pt"))
(label_map,) = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
```"""
CLIP_USAGE = """```python
from transformers import AutoTokenizer, CLIPModel

model = CLIPModel.from_pretrained("{repository}")
tokenizer = AutoTokenizer.from_pretrained("{repository}")
```"""


@dataclass
class ResultCard:
    """What only the training script knows about its result; `publish` writes it as the `README.md` of the model folder.

    Args:
        title: first heading, such as `MTA-CLIP on msrc_v2`.
        description: a paragraph in Markdown: what the model is and how it was supervised.
        provenance: `training.provenance.provenance("training.train_vpl", arguments)`: command, versions, commit.
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


def write_card(card: ResultCard, model: Any, folder: str | Path, repository: str) -> None:
    """Writes `README.md` of `folder` for a model that will be `repository` on the Hub."""
    is_clip = model.config.model_type == "clip"
    metadata = card_metadata(card, repository, "zero-shot-image-classification" if is_clip else "image-segmentation")
    sections = [
        f"# {card.title}",
        card.description.strip(),
        (CLIP_USAGE if is_clip else USAGE).format(repository=repository),
        *named_section("Classes", class_list(model)),
        *named_section("Scores", score_tables(card)),
        *named_section("Predictions", picture(folder, PREDICTIONS, "Validation images with their masks, and the model's")),
        *named_section("How it was made", how_it_was_made(card)),
        *named_section("Training", picture(folder, CURVES, "Curves of the run by step")),
        *named_section("Limits", "\n".join(f"- {sentence}" for sentence in card.limits)),
    ]
    ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n").save(Path(folder) / "README.md")


def card_metadata(card: ResultCard, repository: str, task: str) -> ModelCardData:
    """What the Hub reads; names that are no Hub ids, such as folders, are left out, since it would refuse them."""
    dataset = card.dataset_name if is_hub_id(card.dataset_name) else None
    label = Path(card.dataset_name or "the training data").name
    results = [
        EvalResult(
            task_type=task, dataset_type=dataset or "custom", dataset_name=label, metric_type=METRIC_IDS.get(name, name),
            metric_name=name, metric_value=round(float(value), 4),
        )
        for name, value in (card.scores or {}).items()
    ]  # fmt: skip
    return ModelCardData(
        library_name="transformers", pipeline_tag=task, tags=["clip", "semantic-segmentation", "hf_clipseg", *card.tags],
        license=card.license, base_model=card.base_model if is_hub_id(card.base_model) else None,
        datasets=[dataset] if dataset else None, model_name=repository.rpartition("/")[2], eval_results=results or None,
    )  # fmt: skip


def is_hub_id(name: str | None) -> bool:
    """Whether `name` is `owner/name` of the Hub and no folder of this machine."""
    if name is None or "/" not in name or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def named_section(title: str, text: str) -> list[str]:
    return [f"## {title}", text] if text else []


def picture(folder: str | Path, name: str, text: str) -> str:
    """An image of the card; nothing where there is no such file beside it."""
    return f"![{text}]({name})" if (Path(folder) / name).is_file() else ""


def class_list(model: Any) -> str:
    """The classes that are baked in, in the order of their ids."""
    if not getattr(model.config, "class_names", None):
        return ""
    return ", ".join(model.config.id2label[index] for index in sorted(model.config.id2label))


def score_tables(card: ResultCard) -> str:
    """A table of the scores, and one of the classes, best first."""
    tables = []
    if card.scores:
        tables.append(table(("score", "value"), [(name, f"{value:.4f}") for name, value in card.scores.items()]))
    if card.class_scores:
        ordered = sorted(card.class_scores.items(), key=lambda item: (-item[1], item[0]))
        tables.append(table(("class", "IoU"), [(name, f"{value:.3f}") for name, value in ordered]))
    return "\n\n".join(tables)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; class names are untrusted text."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def how_it_was_made(card: ResultCard) -> str:
    """Command, versions and data, as they can be run and compared again."""
    record = card.provenance
    versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    lines = [f"```bash\n{record['command']}\n```"]
    if versions:
        lines.append(f"{record.get('date', '')}, {versions}" + (f", commit {record['commit']}" if record.get("commit") else ""))
    if card.base_model:
        lines.append(f"Started from `{card.base_model}`.")
    if card.data:
        data = json.dumps(dict(card.data), indent=2, ensure_ascii=False, default=str)
        lines.append(f"Training data:\n\n```json\n{data}\n```")
    return "\n\n".join(lines)
