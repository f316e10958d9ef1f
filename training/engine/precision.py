"""What `--mixed_precision auto` means on this machine."""

import logging
import os

import torch
from accelerate.commands.config import default_config_file, load_config_from_file

logger = logging.getLogger(__name__)


def resolve_precision(setting: str) -> str:
    """`setting`; for `auto` what the user told Accelerate, or else `bf16` where the hardware computes in it, `no` elsewhere."""
    if setting != "auto":
        return setting
    configured = configured_precision()
    if configured == "no" and computes_in_bf16() and os.environ.get("RANK", "0") == "0":
        # `accelerate launch` says so, too, where nobody has chosen anything
        logger.warning("precision no, as Accelerate is configured; this hardware computes in bf16: --mixed_precision bf16")
    return configured or ("bf16" if computes_in_bf16() else "no")


def configured_precision() -> str | None:
    """What `accelerate launch` (by its environment variable) or the file of `accelerate config` says; None without both."""
    if stated := os.environ.get("ACCELERATE_MIXED_PRECISION"):
        return stated.lower()
    if not os.path.isfile(default_config_file):
        return None
    stated = load_config_from_file(default_config_file).mixed_precision
    return None if stated is None else str(stated).lower()


def computes_in_bf16() -> bool:
    """Whether the device that Accelerate will choose has units for bfloat16: emulated, it is several times slower than fp32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if torch.backends.mps.is_available():
        return False
    return cpu_computes_in_bf16()


def cpu_computes_in_bf16() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        return any(present for name, present in torch.cpu.get_capabilities().items() if "bf16" in name)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
