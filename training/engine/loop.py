"""The one training loop that every script of this folder runs: accumulate, clip, step, log, checkpoint, resume.

The data order is a pure function of (seed, position): step k of a run reads the same samples, augmented the same way, whether
the run was interrupted or not. Resuming therefore starts the sampler at a position and reads nothing that was already used.
A step is one optimiser update; checkpoints are written between steps, so never inside a gradient-accumulation window.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from ..settings.training_settings import TrainingSettings
from .averaging import make_ema
from .checkpoints import Checkpoints, check_output_dir, clear_output_dir
from .interruption import Stopped, StopSignal, any_process, ignore_stop_signals
from .metrics_log import MetricsLog
from .precision import resolve_precision
from .rehearsal import announce_estimate, rehearse
from .run_identity import run_identity
from .sharding import WholeCopy, configure_sharding, is_group_of_processors, prepare_sharding, whole_tensor

logger = logging.getLogger(__name__)


class SampleKey(NamedTuple):
    """What a training data set is indexed with: the item, and the two numbers its augmentation is seeded by."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
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
        self._epoch = -1
        self._order: list[int] = []

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


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """The accelerator of a run, in a folder that holds nothing else; seeds every process.

    Raises:
        ValueError: the output folder holds another run, see `check_output_dir`; or Accelerate is configured for FSDP
            in a way that does not work, see `configure_sharding`.
    """
    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    check_output_dir(settings)
    accelerator = Accelerator(
        cpu=True if is_group_of_processors() else None,
        mixed_precision=resolve_precision(settings.mixed_precision),
        log_with=None if settings.report_to == "none" else settings.report_to,
        project_dir=settings.output_dir,
    )
    configure_sharding(accelerator, settings)
    logging.basicConfig(level=logging.INFO if accelerator.is_main_process else logging.WARNING, format="%(message)s")
    accelerator.wait_for_everyone()  # every process has checked the folder before one of them changes it
    if accelerator.is_main_process:
        clear_output_dir(settings)
    accelerator.wait_for_everyone()
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
        on_step: called after each step with (steps taken, model to evaluate); what it returns is logged. Where it has a
            method `ahead(steps taken, model)`, that says how many validations are to come, and the seconds of one.
        identity: plain values that may not change when the run is resumed: fingerprint of the data, class names in their
            order, options of the method that its configuration does not hold. Learning rates, schedule and the model's
            configuration are added here.
        processor: what `python -m training.export` puts beside the weights of a checkpoint; has `save_pretrained`, or is a
            list of such.
    """
    identity = run_identity(accelerator, settings, len(dataset), model, optimizer, scheduler, identity)
    whole = prepare_sharding(accelerator, model)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)
    ema = make_ema(accelerator, model, settings.ema_decay)
    checkpoints = Checkpoints(accelerator, settings, model, scheduler, ema, identity, processor, whole)
    first_step = checkpoints.resume()
    announce(accelerator, settings, identity, model, first_step)
    evaluated = scored_model(accelerator, model, ema, whole)
    if settings.rehearsal_steps and first_step < settings.max_train_steps:
        estimate = rehearse(
            accelerator, settings, model, optimizer,
            lambda: iter(make_loader(accelerator, settings, dataset, collate, first_step)),
            lambda stream: accumulate_gradients(accelerator, settings, model, stream, compute_losses),
            settings.max_train_steps - first_step,
        )  # fmt: skip
        announce_estimate(estimate, settings, first_step, validations_ahead(on_step, first_step, evaluated))

    batches = iter(make_loader(accelerator, settings, dataset, collate, first_step))
    log = MetricsLog(accelerator, settings, identity["images_per_step"], first_step)
    progress = tqdm(total=settings.max_train_steps, initial=first_step, disable=not accelerator.is_main_process, mininterval=5)
    step, stopped = first_step, False
    model.train()
    with StopSignal() as stop:
        for step in range(first_step + 1, settings.max_train_steps + 1):
            losses, gradient_norm = take_step(accelerator, settings, model, optimizer, batches, compute_losses, step)
            scheduler.step()
            if ema is not None:
                ema.update_parameters(accelerator.unwrap_model(model))
            progress.update()

            if gradient_norm is not None and step % settings.logging_steps == 0:
                values = log.losses(step, losses, gradient_norm, scheduler.get_last_lr()[0])
                progress.set_postfix(loss=f"{values['loss']:.3f}", rate=f"{values['images_per_second']:.0f}/s")
            validated = validate(on_step, step, model, evaluated, whole)
            if validated:
                log(step, validated)
            model.train()

            stopped, best = any_process(accelerator, stop.received is not None, checkpoints.is_best(step, validated))
            if best or stopped or step % settings.checkpointing_steps == 0 or step == settings.max_train_steps:
                checkpoints.save(step)
            if stopped:
                break
    progress.close()
    if stopped:
        end_stopped_run(accelerator, settings, step, stop)
    accelerator.end_training()
    checkpoints.announce_best()
    return evaluated.eval()


def scored_model(
    accelerator: Accelerator, model: torch.nn.Module, ema: AveragedModel | None, whole: WholeCopy | None
) -> torch.nn.Module:
    """What is validated and published: the average where there is one, the whole copy of a sharded model, or the model."""
    if whole is not None:
        return whole.module
    return ema.module if ema is not None else accelerator.unwrap_model(model)


def validate(
    on_step: Any, step: int, model: torch.nn.Module, evaluated: torch.nn.Module, whole: WholeCopy | None
) -> dict[str, float] | None:
    """What `on_step` finds; a whole copy gets the weights of now where it will be used, or where `on_step` does not say."""
    if on_step is None:
        return None
    if whole is not None and getattr(on_step, "is_due", lambda _: True)(step):
        whole.refresh(model)
    return on_step(step, evaluated)


def validations_ahead(on_step: Any, first_step: int, model: torch.nn.Module) -> tuple[int, float]:
    """How many validations are to come, and the seconds of one; none where `on_step` does not say."""
    ahead = getattr(on_step, "ahead", None)
    return (0, 0.0) if ahead is None else ahead(first_step, model)


def end_stopped_run(accelerator: Accelerator, settings: TrainingSettings, step: int, stop: StopSignal) -> None:
    """Says how to go on, and ends the process with the status of `Stopped`."""
    if accelerator.num_processes > 1:
        ignore_stop_signals()  # a launcher sends them again to those that are not the first to end
    accelerator.end_training()
    if accelerator.is_main_process:
        cause = stop.received.name if stop.received else "a signal to another process"
        print(
            f"stopped by {cause} after step {step} of {settings.max_train_steps}; the work is in "
            f"{settings.output_dir}/checkpoint-{step}. Go on by the same command with --resume_from_checkpoint latest",
            file=sys.stderr,
        )
    raise Stopped


def make_loader(
    accelerator: Accelerator, settings: TrainingSettings, dataset: Dataset, collate: Callable, first_step: int
) -> DataLoader:
    """Batches of this process, from `first_step` on."""
    sampler = StepSampler(len(dataset), settings, first_step, accelerator.process_index, accelerator.num_processes)
    # an own generator: a loader draws its base seed when iteration starts, which would shift the restored global random state
    generator = torch.Generator().manual_seed(settings.seed)
    workers = settings.dataloader_num_workers
    return DataLoader(
        dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers, generator=generator,
        worker_init_fn=ignore_stop_signals,
    )  # fmt: skip


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


def take_step(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[dict[str, Any]],
    compute_losses: Callable[[torch.nn.Module, dict[str, Any]], dict[str, torch.Tensor]],
    step: int,
) -> tuple[dict[str, torch.Tensor], float | None]:
    """One optimiser update; returns the losses and the norm of the gradients, None where the step had to be left out."""
    losses, norm = accumulate_gradients(accelerator, settings, model, batches, compute_losses), None
    if is_finite(accelerator, settings, losses, step):
        norm = float(whole_tensor(accelerator.clip_grad_norm_(model.parameters(), settings.max_grad_norm)))
        optimizer.step()
    optimizer.zero_grad()
    return losses, norm


def accumulate_gradients(
    accelerator: Accelerator,
    settings: TrainingSettings,
    model: torch.nn.Module,
    batches: Iterator[dict[str, Any]],
    compute_losses: Callable[[torch.nn.Module, dict[str, Any]], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """Adds up the gradients of one step; returns the mean of each named loss over its forward passes."""
    count = settings.gradient_accumulation_steps
    totals: dict[str, torch.Tensor] = {}
    for micro_step in range(count):
        batch = to_device(next(batches), accelerator.device)
        # processes exchange gradients once per step, in the last backward pass
        with contextlib.nullcontext() if micro_step == count - 1 else accelerator.no_sync(model):
            losses = compute_losses(model, batch)
            accelerator.backward(losses["loss"] / count)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + value.detach().float() / count
    return totals


def announce(
    accelerator: Accelerator, settings: TrainingSettings, identity: dict[str, Any], model: torch.nn.Module, first_step: int
) -> None:
    """Says what is about to happen, before it happens."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    images = identity["images_per_step"]
    logger.info(
        "steps %d to %d of %d images each (%.1f epochs of %d items), %.2f M trainable parameters, precision %s, output %s",
        first_step + 1, settings.max_train_steps, images, settings.max_train_steps * images / identity["num_items"],
        identity["num_items"], trainable / 1e6, accelerator.mixed_precision, settings.output_dir,
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
