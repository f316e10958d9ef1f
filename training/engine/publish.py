"""From a trained model to its result: `<output_dir>/final`, written whole, then pushed to the Hub in one commit."""

from pathlib import Path
from typing import Any

from hf_clipseg.atomic import replace_folder

from ..settings.training_settings import TrainingSettings
from .result_card import ResultCard


def check_hub_access(settings: TrainingSettings) -> None:
    """Before the first step: whether `--push_to_hub` will be possible. Does nothing without `--push_to_hub`.

    Raises:
        ValueError: no token, one that may not write, a repository name that the Hub would refuse, or no network.
    """


def publish(model: Any, processor: Any, settings: TrainingSettings, card: ResultCard) -> Path:
    """Writes `<output_dir>/final` (weights, processor, code, card), then pushes it where asked for. Main process only.

    Args:
        model: has `save_pretrained`.
        processor: has `save_pretrained`; or a list of such, tokenizer and image processor for instance.
        settings: `output_dir`, `push_to_hub`, `hub_model_id`, `dry_run`.
        card: becomes `README.md`.

    Returns:
        The folder.
    """
    final = Path(settings.output_dir) / "final"
    with replace_folder(final) as folder:
        for part in (model, *(processor if isinstance(processor, (list, tuple)) else [processor])):
            part.save_pretrained(folder)
    return final
