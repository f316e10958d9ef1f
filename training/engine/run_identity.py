"""What makes a run this run and no other: what its steps see, and what they do with it. It may not change by resuming."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from ..settings.training_settings import TrainingSettings

SHOWN_CHANGES = 4
MISSING = "nothing"


def run_identity(
    accelerator: Accelerator,
    settings: TrainingSettings,
    num_items: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Plain values, as JSON gives them back.

    Args:
        num_items: length of the training data.
        optimizer, scheduler: before the first step, and before a checkpoint is loaded into them.
        given: what the script adds, such as the fingerprint of its data and the class names in their order.
    """
    groups = optimizer.param_groups
    published = published_model(model)
    identity = {
        **(given or {}),
        "seed": settings.seed,
        "num_items": num_items,
        "images_per_step": settings.train_batch_size * settings.gradient_accumulation_steps * accelerator.num_processes,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "max_train_steps": settings.max_train_steps,
        "learning_rate": sorted({group.get("initial_lr", group["lr"]) for group in groups}, reverse=True),
        "weight_decay": sorted({group.get("weight_decay", 0.0) for group in groups}, reverse=True),
        "schedule": schedule_points(scheduler, settings.max_train_steps),
        "max_grad_norm": settings.max_grad_norm,
        "ema_decay": settings.ema_decay,
        "model": {} if published is None else plain_config(published[1].config.to_dict()),
    }
    return json.loads(json.dumps(identity, default=str))


def published_model(model: torch.nn.Module) -> tuple[str, PreTrainedModel] | None:
    """The model that people will load, and its name inside of what is trained ('' where that is all); None without one."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, PreTrainedModel))
    return next(found, None)


def schedule_points(scheduler: torch.optim.lr_scheduler.LRScheduler, total_steps: int) -> list[float] | str:
    """Learning-rate factors at the start, the quarters and the end of a run: they tell schedules and warm-ups apart."""
    if not isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
        return type(scheduler).__name__
    return [round(float(scheduler.lr_lambdas[0](total_steps * quarter // 4)), 6) for quarter in range(5)]


def plain_config(config: Any) -> Any:
    """A configuration without what says where it came from, at any depth."""
    if not isinstance(config, Mapping):
        return config
    private = ("_", "transformers_version", "architectures", "dtype", "auto_map")
    return {key: plain_config(value) for key, value in config.items() if not str(key).startswith(private)}


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """One clause per value that differs: `learning_rate: 0.1 in the checkpoint, 0.2 now`; empty where none does."""
    changes = list(changed_values(old, new))
    clauses = [f"{name}: {shorten(before)} in the checkpoint, {shorten(after)} now" for name, before, after in changes]
    further = [f"and {len(clauses) - SHOWN_CHANGES} more"] if len(clauses) > SHOWN_CHANGES else []
    return "; ".join(clauses[:SHOWN_CHANGES] + further)


def changed_values(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""):
    """(dotted name, value in `old`, value in `new`) of what differs, in the order of `new`."""
    for key in [*new, *(key for key in old if key not in new)]:
        before, after = old.get(key, MISSING), new.get(key, MISSING)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from changed_values(before, after, f"{prefix}{key}.")
        elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
            differing = [place for place, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
            if differing and len(before) > 1:
                yield f"{prefix}{key} (from place {differing[0]} on)", before[differing[0]], after[differing[0]]
            elif differing:
                yield prefix + str(key), before[0], after[0]
        elif before != after:
            yield prefix + str(key), before, after


def shorten(value: Any, length: int = 60) -> str:
    text = str(value)
    return text if len(text) <= length else text[: length - 3] + "..."
