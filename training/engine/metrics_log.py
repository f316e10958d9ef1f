"""What a run logs: `metrics.jsonl` in the output folder, always, and Accelerate's trackers where asked for."""

import dataclasses
import json
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from hf_clipseg.atomic import disk_full_named, replace_file

from ..settings.training_settings import TrainingSettings

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Called with a step and named values; a row of the file per call.

    Rows after `first_step`, which a run that was killed has left, are dropped: the same steps are about to be logged again.
    """

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings, images_per_step: int, first_step: int = 0):
        self.accelerator, self.path = accelerator, Path(settings.output_dir) / METRICS_FILE
        self.images_per_step, self._last = images_per_step, (first_step, time.perf_counter())
        if accelerator.is_main_process and self.path.is_file():
            self.drop_rows_after(first_step)
        config = {k: v for k, v in dataclasses.asdict(settings).items() if isinstance(v, (bool, int, float, str))}
        if settings.report_to != "none":
            accelerator.init_trackers(Path(settings.output_dir).name, config=config)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with disk_full_named(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **{key: round(value, 6) for key, value in values.items()}}) + "\n")

    def losses(
        self, step: int, losses: dict[str, torch.Tensor], gradient_norm: float, learning_rate: float
    ) -> dict[str, float]:
        """Logs the mean of each loss over all processes, and the speed since the last such row; returns the values."""
        (last_step, last_time), now = self._last, time.perf_counter()
        values = {name: self.accelerator.reduce(value, "mean").item() for name, value in losses.items()}
        values |= {"gradient_norm": gradient_norm, "learning_rate": learning_rate}
        values["images_per_second"] = (step - last_step) * self.images_per_step / (now - last_time)
        self(step, values)
        self._last = step, time.perf_counter()
        return values

    def drop_rows_after(self, step: int) -> None:
        kept = [row for row in self.path.read_text(encoding="utf-8").splitlines() if is_row_up_to(row, step)]
        with replace_file(self.path) as partial:
            partial.write_text("".join(row + "\n" for row in kept), encoding="utf-8")


def is_row_up_to(row: str, step: int) -> bool:
    """False also for a row that a kill or a full disk cut short."""
    try:
        return json.loads(row)["step"] <= step
    except ValueError:
        return False
