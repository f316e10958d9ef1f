"""What a configuration of Accelerate asks for that this project cannot do is said before the first step."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import fully_shard

from training.engine.loop import check_sharding

from ...tiny_run import run


def test_fsdp_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"refuses scalar parameters.*logit_scale.*--gradient_checkpointing or --lora_rank"):
        check_sharding(SimpleNamespace(distributed_type=DistributedType.FSDP))


def test_fsdp_that_accelerate_leaves_off_is_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    run(tmp_path, steps=1)
    assert "FSDP was asked for" in caplog.text and "every process holds the whole model" in caplog.text
    AcceleratorState._reset_state(reset_partial_state=True)


def test_torch_still_refuses_scalars(tmp_path):
    """Where this fails, FSDP may have become possible."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        module = torch.nn.Linear(2, 2)
        module.logit_scale = torch.nn.Parameter(torch.tensor(1.0))
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        with pytest.raises(ValueError, match="s?c?alar parameters"):
            fully_shard(module, mesh=mesh)
    finally:
        torch.distributed.destroy_process_group()
