"""Training checkpoints: written to a temporary folder and renamed, so a folder named `checkpoint-N` is always complete.

A checkpoint holds what an exact continuation needs (weights, optimiser, schedule, EMA, random states), written by
`Accelerator.save_state`, what `python -m training.export` needs (`export/`: configuration and processor), and
`training_state.json`: steps taken, the run it belongs to, the settings that must not change, the best validation so far.
"""

import json
import logging
import math
import re
import shutil
import uuid
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch.optim.swa_utils import AveragedModel

from hf_clipseg.atomic import DiskFullError, partial_name, replace_folder

from ..settings.training_settings import TrainingSettings
from .lora import lora_scale
from .metrics_log import METRICS_FILE
from .provenance import write_json
from .run_identity import describe_changes, published_model
from .sharding import WholeCopy, check_parts

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.json"
WEIGHTS_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
EXPORT_FOLDER = "export"
BEST_FILE = "best.json"
FINAL = "final"
PICTURES = "pictures"
"""Sheets of predictions, one per validation."""
BEST_METRIC = "mIoU"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if (path / STATE_FILE).is_file()), key=checkpoint_step)


def checkpoint_step(checkpoint: str | Path) -> int:
    """Number of optimiser steps taken before `checkpoint` was written, from its name."""
    return int(Path(checkpoint).name.removeprefix("checkpoint-"))


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """What `training_state.json` of a checkpoint says. Raises ValueError where the folder is no checkpoint."""
    path = Path(checkpoint)
    if not (path / STATE_FILE).is_file():
        known = [each.name for folder in (path, path.parent) for each in list_checkpoints(folder)]
        raise ValueError(f"{checkpoint} is not a checkpoint (no {STATE_FILE}); there is {', '.join(known) or 'none'}")
    return json.loads((path / STATE_FILE).read_text(encoding="utf-8"))


def find_checkpoint(output_dir: str | Path, resume_from: str | None) -> Path | None:
    """What `--resume_from_checkpoint` names: a folder, or `latest` of `output_dir` (None where there is none yet)."""
    if resume_from is None:
        return None
    if resume_from == "latest":
        return next(reversed(list_checkpoints(output_dir)), None)
    read_state(resume_from)
    return Path(resume_from)


def left_by_older_runs(settings: TrainingSettings) -> list[Path]:
    """What lies in `output_dir` that the run to come does not continue: an older run, or what follows the checkpoint."""
    folder, checkpoints = Path(settings.output_dir), list_checkpoints(settings.output_dir)
    if settings.resume_from_checkpoint == "latest":
        return []
    checkpoint = find_checkpoint(folder, settings.resume_from_checkpoint)
    if checkpoint is not None and checkpoint.resolve().parent == folder.resolve():
        return [path for path in checkpoints if checkpoint_step(path) > checkpoint_step(checkpoint)]
    return checkpoints + [folder / name for name in (METRICS_FILE, BEST_FILE, PICTURES, FINAL) if (folder / name).exists()]


def check_output_dir(settings: TrainingSettings) -> None:
    """Raises ValueError where the run would mix with an older one, unless `--overwrite_output_dir` says that this may go."""
    left = left_by_older_runs(settings)
    if left and not settings.overwrite_output_dir:
        names = ", ".join(path.name for path in left[:4]) + (" ..." if len(left) > 4 else "")
        raise ValueError(
            f"{settings.output_dir} holds an older run ({names}). Go on with it by --resume_from_checkpoint latest, "
            "delete it by --overwrite_output_dir, or choose another --output_dir."
        )


def clear_output_dir(settings: TrainingSettings) -> None:
    """Deletes what `check_output_dir` let pass, and what a killed run left half-written."""
    for path in [*left_by_older_runs(settings), *Path(settings.output_dir).glob(".checkpoint-*.partial")]:
        delete(path)


def delete(path: Path) -> None:
    """A folder loses its name first: a kill in between leaves no checkpoint that lacks files, and what is left goes later."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith("."):
        hidden = partial_name(path)
        shutil.rmtree(hidden, ignore_errors=True)
        path = path.rename(hidden)
    shutil.rmtree(path)


class Checkpoints:
    """Those of one run: writes, deletes and restores them, and knows the best.

    Args:
        model: what is trained, as the accelerator prepared it.
        scheduler: registered with the accelerator by the caller.
        ema: the moving average of the weights, where there is one.
        identity: see `run_identity`.
        processor: has `save_pretrained`, or is a list of such; None where nothing is to be exported.
        whole: of a sharded model, whose own files are in parts.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        settings: TrainingSettings,
        model: torch.nn.Module,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        ema: AveragedModel | None,
        identity: dict[str, Any],
        processor: Any = None,
        whole: WholeCopy | None = None,
    ):
        self.accelerator, self.settings, self.folder = accelerator, settings, Path(settings.output_dir)
        self.model, self.scheduler, self.ema, self.identity, self.processor = model, scheduler, ema, identity, processor
        self.whole = whole
        self.run = uuid.uuid4().hex
        self.best: dict[str, Any] | None = None

    def is_best(self, step: int, values: dict[str, float] | None) -> bool:
        """Notes a validation; whether it is better than all before it, so that its weights are to be saved."""
        value = (values or {}).get(BEST_METRIC)
        if value is None or math.isnan(value) or (self.best is not None and value <= self.best["value"]):
            return False
        self.best = {"checkpoint": f"checkpoint-{step}", "step": step, "metric": BEST_METRIC, "value": value}
        return True

    def save(self, step: int) -> Path:
        """Writes `checkpoint-<step>` and deletes the oldest of this run beyond the limit; never the best one."""
        final, main = self.folder / f"checkpoint-{step}", self.accelerator.is_main_process
        if self.whole is not None:
            self.whole.refresh(self.model)
        try:
            with replace_folder(final) if main else nullcontext(partial_name(final)) as partial:
                self.accelerator.wait_for_everyone()
                self.accelerator.save_state(str(partial), safe_serialization=True)
                self.accelerator.wait_for_everyone()
                if main:
                    self.write_state(partial, step)
        except DiskFullError as error:
            last = next(reversed(self.own()), None)
            kept = (
                f"{last} is intact: --resume_from_checkpoint latest goes on from it" if last else "There is no checkpoint yet"
            )
            raise DiskFullError(f"{error} {kept}.") from error
        if main:
            self.record_best()
            for old in self.own()[: -self.settings.checkpoints_total_limit] if self.settings.checkpoints_total_limit else []:
                if self.best is None or old.name != self.best["checkpoint"]:
                    delete(old)
        self.accelerator.wait_for_everyone()
        return final

    def own(self) -> list[Path]:
        """Checkpoints of this run, oldest first; others in the folder are not touched."""
        return [path for path in list_checkpoints(self.folder) if read_state(path).get("run") == self.run]

    def write_state(self, folder: Path, step: int) -> None:
        """What `Accelerator.save_state` does not know: the average, what an export needs, and what the run is."""
        state: dict[str, Any] = {"step": step, "run": self.run, "best": self.best, "identity": self.identity}
        if self.whole is not None:
            save_model(self.whole.module, str(folder / WEIGHTS_FILE))
        if self.ema is not None:
            save_model(self.ema.module, str(folder / EMA_FILE))
            state["ema_updates"] = int(self.ema.n_averaged)
        published = published_model(self.whole.module if self.whole else self.accelerator.unwrap_model(self.model))
        if published is not None:
            name, model = published
            state["export"] = {"class": type(model).__name__, "prefix": name + "." if name else ""}
            if (scale := lora_scale(model)) is not None:
                state["export"]["lora_scale"] = scale
            parts = self.processor if isinstance(self.processor, (list, tuple)) else [self.processor]
            for part in (model.config, *(part for part in parts if part is not None)):
                part.save_pretrained(folder / EXPORT_FOLDER)
        write_json(folder / STATE_FILE, state)

    def announce_best(self) -> None:
        if self.best is not None:
            command = f"python -m training.export {self.folder / self.best['checkpoint']} --output FOLDER"
            logger.info("best %s: %.4f; as a model: %s", self.best["metric"], self.best["value"], command)

    def record_best(self) -> None:
        """`best.json` beside the checkpoints names the best one."""
        if self.best is None:
            (self.folder / BEST_FILE).unlink(missing_ok=True)
        else:
            write_json(self.folder / BEST_FILE, self.best)

    def resume(self) -> int:
        """Restores what `--resume_from_checkpoint` names and returns the number of steps taken; 0 where there is nothing.

        Raises:
            ValueError: the checkpoint belongs to a run of another identity, and `--allow_changes` was not passed; or its
                weights do not fit the model.
        """
        checkpoint = find_checkpoint(self.folder, self.settings.resume_from_checkpoint)
        if checkpoint is None:
            if self.settings.resume_from_checkpoint:
                logger.warning("no checkpoint in %s yet: starting from step 0", self.folder)
            return 0
        state = read_state(checkpoint)
        check_parts(checkpoint, self.whole is not None)
        self.check_identity(checkpoint, state["identity"])
        kept = ("params", "lr")
        groups = [{k: v for k, v in group.items() if k not in kept} for group in self.scheduler.optimizer.param_groups]
        try:
            self.accelerator.load_state(str(checkpoint))
            self.restore_ema(checkpoint, state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"the weights of {checkpoint} do not fit the model: {reason}") from error
        if self.whole is not None:
            self.whole.refresh(self.model)
        self.apply_settings(groups)
        self.run = state.get("run", self.run)
        best = state.get("best")
        self.best = best if best is not None and (self.folder / best["checkpoint"] / STATE_FILE).is_file() else None
        if self.accelerator.is_main_process:
            self.record_best()
        return state["step"]

    def check_identity(self, checkpoint: Path, identity: dict[str, Any]) -> None:
        changes = describe_changes(identity, self.identity)
        if changes and not self.settings.allow_changes:
            raise ValueError(
                f"cannot resume {checkpoint}: {changes}. Use the settings that it was started with, or pass --allow_changes if "
                "the change is meant"
            )
        if changes:
            logger.warning("resumed with changes: %s", changes)

    def restore_ema(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """The average of the checkpoint; where it has none, which only an allowed change makes possible, a new one starts."""
        if self.ema is None or not (checkpoint / EMA_FILE).is_file():
            return
        load_model(self.ema.module, str(checkpoint / EMA_FILE), device=str(self.accelerator.device))
        self.ema.n_averaged.fill_(state["ema_updates"])

    def apply_settings(self, groups: list[dict[str, Any]]) -> None:
        """Learning rates and weight decay are those of now, which are others than the checkpoint's after an allowed change."""
        optimizer = self.scheduler.optimizer
        for group, given in zip(optimizer.param_groups, groups, strict=True):
            group.update(given)
        if isinstance(self.scheduler, torch.optim.lr_scheduler.LambdaLR):
            self.scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            for group, factor in zip(optimizer.param_groups, self.scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(self.scheduler.last_epoch)
