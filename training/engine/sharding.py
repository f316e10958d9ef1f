"""Fully sharded data parallel training (FSDP, torch's `fully_shard`), as `training/accelerate/fsdp.yaml` configures it.

Accelerate cuts weights, gradients and optimiser state into one part per process. What a run needs beyond that is here:
parameters without dimensions, which `fully_shard` refuses and every CLIP has (`logit_scale`), get one while they are sharded;
and a whole copy of the model is what is scored, saved and published, because forward passes through the sharded one would have
to be equally many in all processes.
"""

import copy
import logging
import os
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.constants import FSDP_MODEL_NAME
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor

from ..settings.training_settings import TrainingSettings

logger = logging.getLogger(__name__)

CONFIG = "training/accelerate/fsdp.yaml"


def is_group_of_processors() -> bool:
    """Whether a launcher has started several processes without a GPU, which Accelerate takes for strangers if not told."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available()


def is_sharded(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.FSDP


def configure_sharding(accelerator: Accelerator, settings: TrainingSettings) -> None:
    """Turns FSDP on where it was asked for and Accelerate leaves it off, and refuses what would fail or be wrong later.

    `AcceleratorState` knows FSDP for the kinds of GPUs only; between processes without one it works as well, over gloo.

    Raises:
        ValueError: no GPU and a torch too old for FSDP without one, another version of FSDP, weights that only one process
            loads, or a moving average of the weights.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        turn_on(accelerator)
    if not is_sharded(accelerator):
        logger.warning("FSDP was asked for, but there is one process, which holds the whole model: --num_processes 2 or more")
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2 or plugin.cpu_ram_efficient_loading:
        raise ValueError(
            f"FSDP needs fsdp_version: 2 and fsdp_cpu_ram_efficient_loading: false, as in {CONFIG}; the configuration has "
            f"{plugin.fsdp_version} and {str(plugin.cpu_ram_efficient_loading).lower()}"
        )
    if settings.ema_decay:
        raise ValueError("FSDP keeps no moving average, which would be a whole model in every process: pass --ema_decay 0")


def works_on_processors() -> bool:
    """Whether `fully_shard` finds what it asks of streams on a processor's, too; those of torch 2.6 are empty."""
    return hasattr(torch.cpu.Stream(), "record_event")


def turn_on(accelerator: Accelerator) -> None:
    """What `AcceleratorState` does for GPUs, from the same environment variables."""
    if not works_on_processors():
        raise ValueError(f"torch {torch.__version__} shards on GPUs only (FSDP on processors came later): pip install -U torch")
    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    for state in (accelerator.state, PartialState()):  # the second fills the first again whenever that is looked up
        state.distributed_type = DistributedType.FSDP


def prepare_sharding(accelerator: Accelerator, model: nn.Module) -> "WholeCopy | None":
    """A whole copy of `model`, whose scalar parameters get a dimension in place; None, and nothing done, without FSDP.

    Of the blocks that the configuration names, those stay that `model` has.
    """
    if not is_sharded(accelerator):
        return None
    whole = WholeCopy(model)
    for parameter in model.parameters():
        if parameter.dim() == 0:
            parameter.data = parameter.data.reshape(1)
    model.get_input_embeddings = model.get_output_embeddings = no_embeddings  # type: ignore[assignment]
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap:
        present = {type(module).__name__ for module in model.modules()}
        plugin.transformer_cls_names_to_wrap = [name for name in plugin.transformer_cls_names_to_wrap if name in present]
    return whole


def no_embeddings() -> None:
    """Accelerate would gather tables of words by themselves, asking transformers for them, which knows none of ours."""


def check_parts(checkpoint: Path, sharded: bool) -> None:
    """Raises ValueError where weights and optimiser lie in `checkpoint` in parts and the run is not sharded, or vice versa."""
    if (checkpoint / f"{FSDP_MODEL_NAME}_0").is_dir() != sharded:
        was, how = ("whole", "without") if sharded else ("in parts", "with")
        raise ValueError(f"{checkpoint} was saved {was}: go on {how} accelerate launch --config_file {CONFIG}")


class WholeCopy:
    """The whole model beside the sharded one: as old as the last `refresh`.

    Args:
        model: not sharded yet; `refresh` needs the sharded one that was made of it.
    """

    def __init__(self, model: nn.Module):
        self.module = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def refresh(self, sharded: nn.Module) -> None:
        """Gathers the weights of `sharded`; all processes call it together."""
        gathered = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
        for name, whole in self.module.state_dict().items():
            whole.copy_(gathered[name].reshape(whole.shape))


def whole_tensor(value: torch.Tensor) -> torch.Tensor:
    """`value`, put together where every process has a part of it; all processes call it together."""
    return value.full_tensor() if isinstance(value, DTensor) else value
