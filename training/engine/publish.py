"""From a trained model to its result: `<output_dir>/final`, written whole, then pushed to the Hub in one commit."""

import logging
from pathlib import Path
from typing import Any

from hf_clipseg.atomic import replace_folder
from hf_clipseg.hub_export import save_with_code

from ..settings.training_settings import TrainingSettings
from .checkpoints import FINAL
from .hub import check_hub_access, describe_push, push_folder
from .result_card import ResultCard, write_card

__all__ = ["check_hub_access", "publish", "write_result"]

logger = logging.getLogger(__name__)


def publish(model: Any, processor: Any, settings: TrainingSettings, card: ResultCard) -> Path:
    """Writes `<output_dir>/final` (weights, processor, code, card), then pushes it where asked for. Main process only.

    Args:
        model: a `PreTrainedModel`.
        processor: has `save_pretrained`; or a list of such, tokenizer and image processor for instance.
        settings: `output_dir`, `push_to_hub`, `hub_model_id`, `dry_run`.
        card: becomes `README.md`.

    Returns:
        The folder.

    Raises:
        ValueError: the Hub refused; the folder is complete by then.
        OSError: the disk is full; what the folder held before is intact.
    """
    final = Path(settings.output_dir) / FINAL
    write_result(model, processor, final, settings.repository, card)
    logger.info("the result is in %s", final)
    if settings.push_to_hub and settings.dry_run:
        print(describe_push(final, settings.repository))
    elif settings.push_to_hub:
        logger.info("pushed: %s", push_folder(final, settings.repository, f"{card.title}: weights, processor, code and card"))
    return final


def write_result(model: Any, processor: Any, folder: Path, repository: str, card: ResultCard) -> None:
    """A folder laid out as a model repository of the Hub; complete as soon as it exists."""
    with replace_folder(folder) as partial:
        save_with_code(model, processor, partial)
        write_card(card, model, partial, repository)
