"""The device and the precision of a training."""

import os
import platform
from typing import Literal

import torch

from hmoevae.errors import ArgumentError, mismatch, warn

Precision = Literal["fp32", "bf16"]


def resolve_device(device: str | torch.device) -> torch.device:
    """Check that a device is there; `"auto"` is the process's own accelerator, or the CPU.

    Where `torchrun` or `accelerate launch` started several processes, this call connects them.

    Raises:
        ArgumentError: The machine has no such device, or several processes cannot share it.

    >>> resolve_device("cpu")
    device(type='cpu')
    """
    n_processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and by accelerate launch
    if device == "auto" or n_processes > 1:
        from accelerate import PartialState  # not at the top: it sets a warning filter when imported

        on_cpu = n_processes > 1 and (str(device) == "cpu" or not torch.accelerator.is_available())
        state = PartialState(cpu=on_cpu)
        if state.num_processes != n_processes:
            expected = f"a device that {n_processes} processes can share"
            raise ArgumentError(mismatch("device", expected, f"{state.device}, where each process would train alone"))
        if device == "auto":
            return torch.device(state.device or "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        expected = "'auto', 'cpu' or an accelerator of this machine"
        raise ArgumentError(mismatch("device", expected, repr(device))) from error
    return resolved


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for bfloat16; older CPUs and GPUs have none, and would be slower with it.

    >>> has_bfloat16(torch.device("mps"))
    True
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context for a forward pass; on a CPU without bfloat16 instructions, float32 and a warning."""
    wanted = precision == "bf16"
    if wanted and not has_bfloat16(device):
        wanted = False
        what = "CPU" if device.type == "cpu" else "GPU"
        message = (
            f"precision='bf16': this {what} has no bfloat16 instructions and would be slower with it; training in fp32"
        )
        warn(message)
    return torch.autocast(device.type, torch.bfloat16, wanted)
