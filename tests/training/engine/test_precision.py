"""`--mixed_precision auto` asks the hardware, after it has asked the user's configuration of Accelerate."""

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig

from training.engine import precision
from training.engine.precision import cpu_computes_in_bf16, resolve_precision


@pytest.fixture(autouse=True)
def unconfigured(monkeypatch, tmp_path):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(precision, "default_config_file", str(tmp_path / "default_config.yaml"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def set_cpu(monkeypatch, **flags):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True, **flags}, raising=False)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, "no"),
        ({}, "no"),
    ],
)
def test_a_cpu_without_units_for_bf16_does_not_emulate_it(monkeypatch, flags, expected):
    set_cpu(monkeypatch, **flags)
    assert resolve_precision("auto") == expected


def test_older_torch_is_asked_by_its_own_names(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert cpu_computes_in_bf16()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not cpu_computes_in_bf16()


@pytest.mark.parametrize("supported, expected", [(True, "bf16"), (False, "no")])
def test_a_gpu_counts_only_without_emulation(monkeypatch, supported, expected):
    set_cpu(monkeypatch, avx512_bf16=not supported)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported)
    assert resolve_precision("auto") == expected


def test_accelerate_launch_and_accelerate_config_are_obeyed_in_this_order(monkeypatch, caplog):
    set_cpu(monkeypatch, avx512_bf16=True)
    config = ClusterConfig("LOCAL_MACHINE", "NO", "fp16", True, False, num_processes=1)
    config.to_yaml_file(precision.default_config_file)
    assert resolve_precision("auto") == "fp16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert resolve_precision("auto") == "no" and "--mixed_precision bf16" in caplog.text
    assert resolve_precision("bf16") == "bf16"  # what the command line says is not asked about
