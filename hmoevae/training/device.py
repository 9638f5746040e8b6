"""Where training runs and in which precision."""

import platform
import warnings
from typing import Literal

import torch

from hmoevae.errors import ArgumentError, mismatch

Precision = Literal["fp32", "bf16"]


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that `device` names, made sure of; `"auto"` is the process's own accelerator, or the CPU.

    Raises:
        ArgumentError: There is no such device here.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        from accelerate import PartialState  # not at the top: it sets a warning filter when imported

        state = PartialState()
        if state.num_processes > 1:
            raise ArgumentError(mismatch("fit", "to run in one process", f"{state.num_processes} processes"))
        return torch.device(state.device or "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            mismatch("device", "'auto', 'cpu' or an accelerator that is here", f"{device!r}: {reason}")
        ) from None
    return resolved


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context for a forward pass; on a CPU without bfloat16 instructions, float32 and a warning."""
    wanted = precision == "bf16"
    if wanted and device.type == "cpu" and not _cpu_has_bf16():
        wanted = False
        message = (
            "precision='bf16': this CPU has no bfloat16 instructions and would be slower with it; training in fp32"
        )
        warnings.warn(message, stacklevel=3)
    return torch.autocast(device.type, torch.bfloat16, wanted)


def _cpu_has_bf16() -> bool:
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
