"""Settings of a run that do not depend on the method: one dataclass, read from the command line by `HfArgumentParser`."""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from transformers.hf_argparser import HfArg

TRACKERS = ("none", "tensorboard", "wandb", "all")
PRECISIONS = ("auto", "no", "bf16", "fp16")


@dataclass
class TrainingSettings:
    """Raises ValueError for a count below 1, an `ema_decay` outside [0, 1), or a precision or tracker that does not exist."""

    _argument_group_name = "training"

    output_dir: str = HfArg(help="where checkpoints, metrics.jsonl and the final model go")
    seed: int = HfArg(default=0, help="seeds weights, data order and augmentation")
    max_train_steps: int = HfArg(
        default=1000, help="optimiser updates in all, counted from the start of the run also after resuming"
    )
    train_batch_size: int = HfArg(default=16, help="samples per process and forward pass")
    gradient_accumulation_steps: int = HfArg(default=1, help="forward passes per optimiser update")
    mixed_precision: str = HfArg(
        default="auto",
        help="bf16, fp16 or no (autocast; weights stay in 32 bit); auto: what `accelerate config` or `launch` says, else "
        "bf16 where the hardware computes in it",
        metadata={"choices": PRECISIONS},
    )
    max_grad_norm: float = HfArg(default=1.0, help="clip the global gradient norm to this")
    checkpointing_steps: int = HfArg(default=500, help="write a checkpoint every so many steps")
    checkpoints_total_limit: int | None = HfArg(default=2, help="keep at most so many checkpoints, and the best one besides")
    resume_from_checkpoint: str | None = HfArg(default=None, help="a checkpoint folder, or 'latest'")
    overwrite_output_dir: bool = HfArg(default=False, help="delete what an older run left in output_dir and start anew")
    allow_changes: bool = HfArg(
        default=False, help="resume although data, classes, schedule or model settings are others than before"
    )
    report_to: str = HfArg(default="none", help="trackers beside metrics.jsonl", metadata={"choices": TRACKERS})
    logging_steps: int = HfArg(default=10, help="log every so many steps")
    ema_decay: float = HfArg(
        default=0.0,
        help="decay of an exponential moving average of the weights, scored and saved instead of them; lower in the "
        "first steps, see `training.engine.averaging`; 0: off",
    )
    rehearsal_steps: int = HfArg(
        default=0,
        help="compute so many steps before the first one, throw them away, and say what time and memory the run takes",
    )
    on_nonfinite_loss: str = HfArg(
        default="error", help="error: stop; skip: log it and leave the step out", metadata={"choices": ("error", "skip")}
    )
    dataloader_num_workers: int = HfArg(default=0, help="worker processes for loading")
    push_to_hub: bool = HfArg(
        default=False, help="upload the final model; token and repository name are checked before the first step"
    )
    hub_model_id: str | None = HfArg(default=None, help="repository for --push_to_hub; default: the name of output_dir")
    dry_run: bool = HfArg(
        default=False, help="say what would be read and done, and stop; with --push_to_hub: train, and push nothing"
    )

    def __post_init__(self):
        counts = ("max_train_steps", "train_batch_size", "gradient_accumulation_steps", "checkpointing_steps", "logging_steps")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.rehearsal_steps < 0:
            raise ValueError(f"rehearsal_steps must not be negative, got {self.rehearsal_steps}")
        if self.checkpoints_total_limit is not None and self.checkpoints_total_limit < 1:
            raise ValueError(f"checkpoints_total_limit must be at least 1, got {self.checkpoints_total_limit}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}; 0 turns it off")
        for name, choices in (
            ("mixed_precision", PRECISIONS),
            ("report_to", TRACKERS),
            ("on_nonfinite_loss", ("error", "skip")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    @property
    def repository(self) -> str:
        """Where `--push_to_hub` goes: `owner/name`, or a name, which the Hub puts below the owner of the token."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> "TrainingSettings":
        return cls(**{name.name: getattr(arguments, name.name) for name in dataclasses.fields(cls)})
