"""The one training loop that every script of this folder runs: accumulate, clip, step, log, checkpoint, resume.

The data order is a pure function of (seed, position): step k of a run reads the same samples, augmented the same way, whether
the run was interrupted or not. Resuming therefore starts the sampler at a position and reads nothing that was already used.
A step is one optimiser update; checkpoints are written between steps, so never inside a gradient-accumulation window.
"""

import argparse
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from .checkpoints import find_checkpoint, load_checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

TRACKERS = ("none", "tensorboard", "wandb", "all")


@dataclasses.dataclass
class TrainingSettings:
    """Settings of a run that do not depend on the method; `add_training_arguments` documents each."""

    output_dir: str
    seed: int = 0
    max_train_steps: int = 1000
    train_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    mixed_precision: str = "no"
    max_grad_norm: float = 1.0
    checkpointing_steps: int = 500
    checkpoints_total_limit: int | None = 2
    resume_from_checkpoint: str | None = None
    report_to: str = "none"
    logging_steps: int = 10
    ema_decay: float = 0.0
    on_nonfinite_loss: str = "error"
    dataloader_num_workers: int = 0
    push_to_hub: bool = False
    hub_model_id: str | None = None

    def __post_init__(self):
        counts = ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps", "logging_steps")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}; 0 turns it off")

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "TrainingSettings":
        return cls(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)})


def add_training_arguments(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds one argument per field of `TrainingSettings`; `defaults` are the script's own."""
    group = parser.add_argument_group("training")
    help_texts = {
        "output_dir": "where checkpoints, metrics.jsonl and the final model go",
        "seed": "seeds weights, data order and augmentation",
        "max_train_steps": "optimiser updates in all, counted from the start of the run also after resuming",
        "train_batch_size": "samples per process and forward pass",
        "gradient_accumulation_steps": "forward passes per optimiser update",
        "mixed_precision": "no, bf16 or fp16 (autocast; weights stay in 32 bit)",
        "max_grad_norm": "clip the global gradient norm to this",
        "checkpointing_steps": "write a checkpoint every so many steps",
        "checkpoints_total_limit": "keep at most so many checkpoints",
        "resume_from_checkpoint": "a checkpoint folder, or 'latest'",
        "report_to": f"trackers beside metrics.jsonl: {', '.join(TRACKERS)}",
        "logging_steps": "log every so many steps",
        "ema_decay": "decay of an exponential moving average of the weights, saved instead of them; 0: off",
        "on_nonfinite_loss": "error: stop; skip: log it and leave the step out",
        "dataloader_num_workers": "worker processes for loading",
        "push_to_hub": "upload the final model",
        "hub_model_id": "repository for --push_to_hub; default: the name of output_dir",
    }
    choices = {
        "mixed_precision": ("no", "bf16", "fp16"), "report_to": TRACKERS, "on_nonfinite_loss": ("error", "skip"),
    }  # fmt: skip
    types = {"checkpoints_total_limit": int, "resume_from_checkpoint": str, "hub_model_id": str}
    for field in dataclasses.fields(TrainingSettings):
        default = defaults.get(field.name, None if field.default is dataclasses.MISSING else field.default)
        if field.type is bool:
            group.add_argument(f"--{field.name}", action="store_true", help=help_texts[field.name])
            continue
        group.add_argument(
            f"--{field.name}", type=types.get(field.name, field.type), default=default, choices=choices.get(field.name),
            required=default is None and field.default is dataclasses.MISSING, help=f"{help_texts[field.name]} (%(default)s)",
        )  # fmt: skip


class SampleKey(NamedTuple):
    """What a training data set is indexed with: the item, and the two numbers its augmentation is seeded by."""

    index: int
    epoch: int
    step: int


class StepSampler(Sampler[list[SampleKey]]):
    """Batches of `SampleKey` for one process: an endless run of reshuffled epochs, cut into steps.

    Every item is used once per epoch, over all processes; an epoch may end inside a batch. Batch m of process r starts at
    position `(m * world + r) * batch_size`, so the global batch of a step does not depend on who computes which part.
    """

    def __init__(self, num_items: int, settings: TrainingSettings, first_step: int = 0, rank: int = 0, world: int = 1):
        if num_items < 1:
            raise ValueError("the training data set is empty")
        self.num_items, self.seed, self.batch_size = num_items, settings.seed, settings.train_batch_size
        self.accumulation, self.rank, self.world = settings.gradient_accumulation_steps, rank, world
        self.steps = range(first_step, settings.max_train_steps)
        self._epoch, self._order = -1, []

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def key(self, position: int, step: int) -> SampleKey:
        epoch, offset = divmod(position, self.num_items)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.num_items, generator=generator).tolist()
        return SampleKey(self._order[offset], epoch, step)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for step in self.steps:
            for micro_step in range(step * self.accumulation, (step + 1) * self.accumulation):
                start = (micro_step * self.world + self.rank) * self.batch_size
                yield [self.key(position, step) for position in range(start, start + self.batch_size)]


class MetricsLog:
    """`metrics.jsonl` in the output folder, always, and Accelerate's trackers where asked for."""

    def __init__(self, accelerator: Accelerator, settings: TrainingSettings):
        self.accelerator, self.path = accelerator, Path(settings.output_dir) / "metrics.jsonl"
        config = {k: v for k, v in dataclasses.asdict(settings).items() if isinstance(v, (bool, int, float, str))}
        if settings.report_to != "none":
            accelerator.init_trackers(Path(settings.output_dir).name, config=config)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **{key: round(value, 6) for key, value in values.items()}}) + "\n")


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """The accelerator of a run; creates the output folder and seeds every process."""
    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_dir=settings.output_dir,
    )
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING, format="%(message)s")
    set_seed(settings.seed)
    return accelerator


def train(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    dataset: Dataset,
    collate: Callable[[list], dict[str, Any]],
    compute_losses: Callable[[torch.nn.Module, dict[str, Any]], dict[str, torch.Tensor]],
    on_step: Callable[[int, torch.nn.Module], dict[str, float] | None] | None = None,
) -> torch.nn.Module:
    """Trains `model` to `settings.max_train_steps` and returns it unwrapped, in eval mode, with its EMA weights where used.

    Args:
        dataset: map-style, indexed with a `SampleKey`.
        collate: list of its items -> batch; tensors (also in nested dicts) are moved to the device.
        compute_losses: (model, batch) -> named scalar losses; `"loss"` is minimised, the others are logged.
        on_step: called after each step with (steps taken, model to evaluate); what it returns is logged.
    """
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    ema = make_ema(accelerator, model, settings.ema_decay)

    identity = run_identity(accelerator, settings, len(dataset))
    checkpoint = find_checkpoint(settings.output_dir, settings.resume_from_checkpoint)
    first_step = load_checkpoint(accelerator, checkpoint, identity) if checkpoint else 0
    announce(settings, identity, model, first_step)

    batches = iter(make_loader(accelerator, settings, dataset, collate, first_step))
    log = MetricsLog(accelerator, settings)
    progress = tqdm(total=settings.max_train_steps, initial=first_step, disable=not accelerator.is_main_process, mininterval=5)
    since_log = time.perf_counter(), first_step
    model.train()
    for step in range(first_step + 1, settings.max_train_steps + 1):
        losses = accumulate_gradients(accelerator, settings, model, batches, compute_losses)
        finite = is_finite(accelerator, settings, losses, step)
        if finite:
            gradient_norm = accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if ema is not None:
            ema.update_parameters(accelerator.unwrap_model(model))
        progress.update()

        if finite and step % settings.logging_steps == 0:
            elapsed, steps_taken = time.perf_counter() - since_log[0], step - since_log[1]
            values = {name: accelerator.reduce(value, "mean").item() for name, value in losses.items()}
            values |= {"gradient_norm": float(gradient_norm), "learning_rate": scheduler.get_last_lr()[0]}
            values["images_per_second"] = steps_taken * identity["images_per_step"] / elapsed
            log(step, values)
            progress.set_postfix(loss=f"{values['loss']:.3f}", rate=f"{values['images_per_second']:.0f}/s")
            since_log = time.perf_counter(), step
        if on_step is not None:
            evaluated = ema.module if ema is not None else accelerator.unwrap_model(model)
            if values := on_step(step, evaluated):
                log(step, values)
            model.train()
        if step % settings.checkpointing_steps == 0 or step == settings.max_train_steps:
            save_checkpoint(accelerator, settings.output_dir, step, identity, settings.checkpoints_total_limit)
    progress.close()
    accelerator.end_training()
    return (ema.module if ema is not None else accelerator.unwrap_model(model)).eval()


def make_ema(accelerator: Accelerator, model: torch.nn.Module, decay: float) -> AveragedModel | None:
    """The moving average of the weights, part of every checkpoint; None where `decay` is 0."""
    if not decay:
        return None
    ema = AveragedModel(accelerator.unwrap_model(model), multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    accelerator.register_for_checkpointing(ema)
    return ema


def make_loader(
    accelerator: Accelerator, settings: TrainingSettings, dataset: Dataset, collate: Callable, first_step: int
) -> DataLoader:
    """Batches of this process, from `first_step` on."""
    sampler = StepSampler(len(dataset), settings, first_step, accelerator.process_index, accelerator.num_processes)
    # an own generator: a loader draws its base seed when iteration starts, which would shift the restored global random state
    generator = torch.Generator().manual_seed(settings.seed)
    workers = settings.dataloader_num_workers
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers, generator=generator)


def is_finite(accelerator: Accelerator, settings: TrainingSettings, losses: dict[str, torch.Tensor], step: int) -> bool:
    """Whether the loss is finite in every process; if not, stops the run or logs the step that is left out, as configured."""
    if accelerator.reduce(torch.isfinite(losses["loss"]).float(), "mean") == 1:
        return True
    if settings.on_nonfinite_loss == "error":
        values = {name: value.item() for name, value in losses.items()}
        raise ValueError(
            f"loss is not finite at step {step}: {values}. Lower the learning rate, or pass --on_nonfinite_loss skip"
        )
    logger.warning("step %d left out: its loss is not finite", step)
    return False


def accumulate_gradients(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: torch.nn.Module,
    batches: Iterator[dict[str, Any]],
    compute_losses: Callable[[torch.nn.Module, dict[str, Any]], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Adds up the gradients of one step; returns the mean of each named loss over its forward passes."""
    count, totals = settings.gradient_accumulation_steps, {}
    for micro_step in range(count):
        batch = to_device(next(batches), accelerator.device)
        # processes exchange gradients once per step, in the last backward pass
        with contextlib.nullcontext() if micro_step == count - 1 else accelerator.no_sync(model):
            losses = compute_losses(model, batch)
            accelerator.backward(losses["loss"] / count)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.detach().float() / count
    return totals


def run_identity(accelerator: Accelerator, settings: TrainingSettings, num_items: int) -> dict[str, int]:
    """What fixes the order of the data, so must be the same when a run is continued."""
    images_per_step = settings.train_batch_size * settings.gradient_accumulation_steps * accelerator.num_processes
    return {
        "seed": settings.seed,
        "num_items": num_items,
        "images_per_step": images_per_step,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
    }


def announce(settings: TrainingSettings, identity: dict[str, int], model: torch.nn.Module, first_step: int) -> None:
    """Says what is about to happen, before it happens."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    images = identity["images_per_step"]
    logger.info(
        "steps %d to %d of %d images each (%.1f epochs of %d items), %.2f M trainable parameters, precision %s, output %s",
        first_step + 1, settings.max_train_steps, images, settings.max_train_steps * images / identity["num_items"],
        identity["num_items"], trainable / 1e6, settings.mixed_precision, settings.output_dir,
    )  # fmt: skip


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it (dicts, lists and tuples are followed) on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    return value
