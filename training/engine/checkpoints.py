"""Training checkpoints: written to a temporary folder and renamed, so a folder named `checkpoint-N` is always complete.

A checkpoint holds what an exact continuation needs (weights, optimiser, schedule, EMA, random states), written by
`Accelerator.save_state`, plus `training_state.json` (steps taken and the settings that must not change).
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.json"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [path for path in Path(output_dir).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted((path for path in found if (path / STATE_FILE).is_file()), key=checkpoint_step)


def checkpoint_step(checkpoint: str | Path) -> int:
    """Number of optimiser steps taken before `checkpoint` was written, from its name."""
    return int(Path(checkpoint).name.removeprefix("checkpoint-"))


def save_checkpoint(accelerator: Accelerator, output_dir: str | Path, step: int, identity: dict, keep: int | None) -> Path:
    """Writes `output_dir/checkpoint-<step>` and deletes the oldest ones beyond `keep` (None keeps all)."""
    final = Path(output_dir) / f"checkpoint-{step}"
    partial = final.with_name(f".{final.name}.partial")
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial), safe_serialization=True)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / STATE_FILE).write_text(json.dumps({"step": step, "identity": identity}, indent=2))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in list_checkpoints(output_dir)[:-keep] if keep else []:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def find_checkpoint(output_dir: str | Path, resume_from: str | None) -> Path | None:
    """What `--resume_from_checkpoint` names: a folder, or `latest` of `output_dir` (None where there is none yet)."""
    if resume_from is None:
        return None
    if resume_from == "latest":
        checkpoints = list_checkpoints(output_dir)
        if not checkpoints:
            logger.warning("no checkpoint in %s yet: starting from step 0", output_dir)
        return checkpoints[-1] if checkpoints else None
    if not (Path(resume_from) / STATE_FILE).is_file():
        known = [path.name for path in list_checkpoints(output_dir)]
        raise ValueError(f"{resume_from} is not a checkpoint (no {STATE_FILE}); {output_dir} has {known or 'none'}")
    return Path(resume_from)


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, identity: dict) -> int:
    """Restores everything `save_checkpoint` wrote and returns the number of steps taken.

    Raises:
        ValueError: the run it belongs to saw its data in another order (seed, batch size, processes, data set size),
            so that continuing would silently repeat or drop samples.
    """
    state = json.loads((checkpoint / STATE_FILE).read_text())
    changed = {
        key: (state["identity"].get(key), value) for key, value in identity.items() if state["identity"].get(key) != value
    }
    if changed:
        listed = ", ".join(f"{key}: {old} in the checkpoint, {new} now" for key, (old, new) in changed.items())
        raise ValueError(f"cannot resume {checkpoint}: {listed}. Use the settings that it was started with")
    accelerator.load_state(str(checkpoint))
    return state["step"]
