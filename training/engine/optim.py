"""Parameter groups and learning-rate schedules shared by every training script.

Weight decay is applied to matrices only: biases, norms, embeddings and scalars (logit scale, noun scale) are left alone, as
CLIP (arXiv:2103.00020, section 2.5) does. Schedules are factors of the peak learning rate, so that several groups share one.
They are not those of transformers, which differ during warm-up: `get_cosine_schedule_with_warmup` begins with a step at rate 0
and reaches the peak a step later, `get_polynomial_decay_schedule_with_warmup` also needs an absolute final rate above 0. With
them no shipped checkpoint could be trained again; after warm-up the cosines are equal, which a test checks.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

EMBEDDING_NAMES = ("embedding", "class_embedding", "logit_scale", "logit_bias")
SCHEDULES = ("cosine", "poly", "constant")


def is_decayed(name: str, parameter: torch.Tensor, undecayed_names: Sequence[str] = ()) -> bool:
    """Whether weight decay applies: matrices and convolution kernels, but no embedding table and nothing of `undecayed_names`.

    The patch embedding is called an embedding but is a convolution, so it decays.
    """
    if parameter.ndim < 2 or any(part in name for part in undecayed_names):
        return False
    return "patch_embedding" in name or not any(part in name for part in EMBEDDING_NAMES)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    learning_rate_factors: Mapping[str, float] | None = None,
    undecayed_names: Sequence[str] = (),
) -> list[dict]:
    """Groups for an optimiser: one per (learning-rate factor, decayed or not), frozen parameters left out.

    Args:
        learning_rate_factors: module prefix -> factor of `learning_rate`; the longest matching prefix wins, e.g.
            `{"backbone": 0.1, "backbone.visual_projection": 1.0}`. A factor of 0 is refused: freeze the module instead.
        undecayed_names: parts of names of further parameters without weight decay, such as learned queries.

    Raises:
        ValueError: a prefix matches no trainable parameter, or a factor is not positive.
    """
    factors = dict(learning_rate_factors or {})
    unused = set(factors)
    grouped: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefixes = [prefix for prefix in factors if name == prefix or name.startswith(prefix.rstrip(".") + ".")]
        prefix = max(prefixes, key=len, default="")
        unused.difference_update(prefixes)
        grouped.setdefault((factors.get(prefix, 1.0), is_decayed(name, parameter, undecayed_names)), []).append(parameter)
    if unused:
        raise ValueError(f"learning_rate_factors name modules without trainable parameters: {sorted(unused)}")
    if any(factor <= 0 for factor in factors.values()):
        raise ValueError(f"learning_rate_factors must be positive, got {factors}; freeze a module instead of using 0")
    return [
        {"params": parameters, "lr": learning_rate * factor, "weight_decay": weight_decay if decayed else 0.0}
        for (factor, decayed), parameters in grouped.items()
    ]


def schedule_factor(schedule: str, warmup_steps: int, total_steps: int, final_factor: float = 0.0) -> Callable[[int], float]:
    """Learning-rate factor after `step` optimiser steps: linear warm-up to 1, then `schedule` down to `final_factor`.

    Args:
        schedule: `cosine`, `poly` (power 0.9, as DeepLab) or `constant` (ignores `final_factor`).
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {SCHEDULES}, got {schedule!r}")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(f"warmup_steps must be between 0 and total_steps ({total_steps}), got {warmup_steps}")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if schedule == "constant":
            return 1.0
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        decayed = 0.5 * (1 + math.cos(math.pi * progress)) if schedule == "cosine" else (1 - progress) ** 0.9
        return final_factor + (1 - final_factor) * decayed

    return factor


def make_schedule(
    optimizer: torch.optim.Optimizer, schedule: str, warmup_steps: int, total_steps: int, final_factor: float = 0.0
) -> torch.optim.lr_scheduler.LambdaLR:
    """`schedule_factor` applied to every group of `optimizer`."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, schedule_factor(schedule, warmup_steps, total_steps, final_factor))
