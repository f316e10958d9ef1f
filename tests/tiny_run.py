"""A training run that takes a second: a small net, or a tiny model of this package, in the real loop.

python -m tests.tiny_run OUTPUT_DIR [--signal SIGTERM] [--resume]    # a run of its own process, which may send itself a signal
"""

import argparse
import os
import signal

import torch
from accelerate.state import AcceleratorState
from torch import nn

from training.engine.loop import TrainingSettings, make_accelerator, train
from training.engine.optim import make_schedule, parameter_groups


class Samples(torch.utils.data.Dataset):
    """x depends on the item and on the epoch, as augmented images do; `seen` records what was read."""

    def __init__(self, length=7):
        self.length, self.seen = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        self.seen.append(tuple(key))
        x = torch.randn(4, generator=torch.Generator().manual_seed(100 * key.epoch + key.index))
        return {"x": x, "y": x.sum(), "step": torch.tensor(key.step)}


def collate(samples):
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def compute_losses(model, batch):
    loss = (model(batch["x"]).squeeze(-1) - batch["y"]).square().mean()
    return {"loss": loss, "half": loss / 2}


def run(
    folder, steps=6, dropout=0.3, dataset=None, losses=compute_losses, on_step=None, learning_rate=0.05, warmup=2,
    schedule="cosine", identity=None, processor=None, model=None, reset=True, **options,
):  # fmt: skip
    """Trains; returns the weights by name. Whatever ran in this process before is forgotten, unless `reset` is False."""
    if reset:
        AcceleratorState._reset_state(reset_partial_state=True)
    settings = TrainingSettings(
        **{"output_dir": str(folder), "max_train_steps": steps, "train_batch_size": 2, "seed": 3, "mixed_precision": "no"}
        | options
    )
    accelerator = make_accelerator(settings)
    model = model or nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate, 0.1))
    scheduler = make_schedule(optimizer, schedule, min(warmup, steps), steps)
    model = train(
        accelerator, settings, model, optimizer, scheduler, dataset or Samples(), collate, losses, on_step, identity, processor
    )
    return {name: value.clone() for name, value in model.state_dict().items()}


def dies_after(step):
    """A callback that ends the run as a crash would, in the step that follows."""

    def on_step(taken, _):
        if taken > step:
            raise KeyboardInterrupt

    return on_step


def sends_itself(number, step):
    """Losses that send a signal in the middle of `step`: to their process, or to all of its group where it leads one."""

    def losses(model, batch):
        if batch["step"][0] + 1 == step:
            send = os.killpg if os.getpgrp() == os.getpid() else os.kill
            send(os.getpid(), number)
        return compute_losses(model, batch)

    return losses


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("output_dir")
    parser.add_argument("--signal", choices=("SIGTERM", "SIGINT"))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    losses = sends_itself(signal.Signals[args.signal], 3) if args.signal else compute_losses
    resume = "latest" if args.resume else None
    run(args.output_dir, losses=losses, resume_from_checkpoint=resume, dataloader_num_workers=args.workers, logging_steps=1)


if __name__ == "__main__":
    main()
