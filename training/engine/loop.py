"""The one training loop that every script of this folder runs: accumulate, clip, step, log, checkpoint, resume.

The data order is a pure function of (seed, position): step k of a run reads the same samples, augmented the same way, whether
the run was interrupted or not. Resuming therefore starts the sampler at a position and reads nothing that was already used.
A step is one optimiser update; checkpoints are written between steps, so never inside a gradient-accumulation window.
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from ..settings.training_settings import TrainingSettings, add_training_arguments  # noqa: F401  (scripts that have not moved to HfArgumentParser)
from .checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from .precision import resolve_precision

logger = logging.getLogger(__name__)


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
        mixed_precision=resolve_precision(settings.mixed_precision),
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
    identity: Mapping[str, Any] | None = None,
    processor: Any = None,
) -> torch.nn.Module:
    """Trains `model` to `settings.max_train_steps` and returns it unwrapped, in eval mode, with its EMA weights where used.

    Args:
        dataset: map-style, indexed with a `SampleKey`.
        collate: list of its items -> batch; tensors (also in nested dicts) are moved to the device.
        compute_losses: (model, batch) -> named scalar losses; `"loss"` is minimised, the others are logged.
        on_step: called after each step with (steps taken, model to evaluate); what it returns is logged.
        identity: plain values that may not change when the run is resumed: fingerprint of the data, class names in their
            order, options of the method that its configuration does not hold. Learning rates, schedule and the model's
            configuration are added here.
        processor: what `python -m training.export` puts beside the weights of a checkpoint; has `save_pretrained`, or is a
            list of such.
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
