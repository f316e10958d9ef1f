"""LoRA: what is trained, what the merged weights compute, and that the result needs no peft."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from training.engine.lora import add_lora, lora_scale, merge_lora

pytest.importorskip("peft")


def adapted(rank=3):
    """A network whose adapters are not at their start, where their product is 0."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4, bias=False)).double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    add_lora(network, rank)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter)
    return network.double(), before


def test_only_the_small_matrices_learn():
    network, _ = adapted()
    learned = {name: tuple(parameter.shape) for name, parameter in network.named_parameters() if parameter.requires_grad}
    expected = {"0.lora_A": (3, 6), "0.lora_B": (8, 3), "3.lora_A": (3, 8), "3.lora_B": (4, 3)}
    assert learned == {f"{name}.default.weight": shape for name, shape in expected.items()}


def test_merged_weights_compute_what_the_adapted_network_does():
    network, before = adapted()
    merged = merge_lora(network.state_dict(), lora_scale(network))
    assert list(merged) == list(before) and lora_scale(network) == 2.0
    plain = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 4, bias=False)).double()
    assert lora_scale(plain) is None
    plain.load_state_dict(merged)
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(plain(x), network(x), rtol=1e-6, atol=1e-6)
    down, up = (network.state_dict()[f"0.lora_{part}.default.weight"] for part in "AB")
    torch.testing.assert_close(merged["0.weight"], before["0.weight"] + 2 * up @ down, rtol=1e-6, atol=1e-6)


def test_nothing_to_adapt():
    with pytest.raises(ValueError, match="Conv2d has none: train it"):
        add_lora(nn.Conv2d(3, 4, 3), 2)


def test_without_peft_the_package_to_install_is_named():
    code = "import sys; sys.modules['peft'] = None; from torch import nn; from training.engine.lora import add_lora; " \
           "add_lora(nn.Linear(2, 2), 1)"  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert run.stderr.strip().endswith("ValueError: --lora_rank needs peft: pip install peft, or pip install '.[lora]'")
