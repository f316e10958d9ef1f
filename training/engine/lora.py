"""CLIP adapted by LoRA (Hu et al. 2021, arXiv 2106.09685): small matrices beside frozen ones, added to them when it is over.

peft puts them in, so training needs it: `pip install peft`. What is exported has the sums and needs nothing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

ADAPTER = "default"
DOWN, UP, BASE = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight", ".base_layer."


def add_lora(network: nn.Module, rank: int, alpha: int | None = None) -> None:
    """Freezes `network` and puts a trainable product of rank `rank` beside every linear layer in it, in place.

    Args:
        alpha: the product counts `alpha / rank` times; default: twice the rank.

    Raises:
        ValueError: peft is not installed, or the network has no linear layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("--lora_rank needs peft: pip install peft, or pip install '.[lora]'") from error
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"--lora_rank adapts linear layers, and {type(network).__name__} has none: train it (--backbone_factor 0.1) or "
            "freeze it (--backbone_factor 0)"
        )
    config = LoraConfig(r=rank, lora_alpha=2 * rank if alpha is None else alpha, target_modules=linear)
    network.requires_grad_(False)
    inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)


def lora_scale(model: nn.Module) -> float | None:
    """How many times the products count; None for a model without any."""
    adapted = (module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "scaling"))
    first: Any = next(adapted, None)
    return None if first is None else float(first.scaling[ADAPTER])


def merge_lora(weights: Mapping[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """A state dict under the names it had before `add_lora`: every product is added to the matrix that it stood beside."""
    merged = {name.replace(BASE, "."): tensor for name, tensor in weights.items() if ".lora_" not in name}
    for name, down in weights.items():
        if name.endswith(DOWN):
            stem = name.removesuffix(DOWN)
            base = merged[f"{stem}.weight"]
            product = weights[stem + UP].float() @ down.float()
            merged[f"{stem}.weight"] = (base.float() + scale * product).to(base.dtype)
    return merged


def without_lora(model: Any) -> Any:
    """`model`, or a copy of it without adapters that computes the same, in eval mode."""
    scale = lora_scale(model)
    if scale is None:
        return model
    weights = merge_lora(model.state_dict(), scale)
    return type(model).from_pretrained(None, config=model.config, state_dict=weights).to(model.device).eval()
