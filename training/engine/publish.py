"""From a trained model to its result: `<output_dir>/final`, written whole, then pushed to the Hub in one commit."""

import logging
import shutil
from pathlib import Path
from typing import Any

from hf_clipseg.atomic import replace_folder
from hf_clipseg.hub_export import save_with_code

from ..settings.training_settings import TrainingSettings
from .checkpoints import FINAL, PICTURES
from .curves import draw_curves, read_points
from .hub import check_hub_access, describe_push, push_folder
from .metrics_log import METRICS_FILE
from .result_card import CURVES, PREDICTIONS, ResultCard, write_card

__all__ = ["check_hub_access", "publish"]

logger = logging.getLogger(__name__)


def publish(model: Any, processor: Any, settings: TrainingSettings, card: ResultCard) -> Path:
    """Writes `<output_dir>/final` (weights, processor, code, card, curves), then pushes it where asked for. Main process only.

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
    with replace_folder(final) as partial:
        save_with_code(model, processor, partial)
        add_metrics(Path(settings.output_dir) / METRICS_FILE, partial)
        if sheet := max((Path(settings.output_dir) / PICTURES).glob("step-*.png"), default=None):
            shutil.copy(sheet, partial / PREDICTIONS)
        write_card(card, model, partial, settings.repository)
    logger.info("the result is in %s", final)
    if settings.push_to_hub and settings.dry_run:
        print(describe_push(final, settings.repository))
    elif settings.push_to_hub:
        logger.info("pushed: %s", push_folder(final, settings.repository, f"{card.title}: weights, processor, code and card"))
    return final


def add_metrics(metrics: Path, folder: Path) -> None:
    """What the run logged, and its curves where there is more than one point of any."""
    if not metrics.is_file():
        return
    shutil.copy(metrics, folder / METRICS_FILE)
    if points := read_points(metrics):
        draw_curves(points).save(folder / CURVES)
