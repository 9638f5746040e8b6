"""The machine that a benchmark runs on: what it is, what it can do at best, and how much of its memory a step takes."""

import ctypes
import os
import platform
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import hmoevae as hm

SQUARE = {"cpu": 1024, "cuda": 8192}
"""Side of the matrices whose product is the GEMM ceiling: enough work, and on a CPU still within its last cache."""
COPY_BYTES = 1 << 28
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def hardware(device: torch.device, threads: int) -> dict[str, Any]:
    """Names and sizes, for the record."""
    cpu_info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpu_info.read_text()) if cpu_info.exists() else None
    return {
        "cpu": named[1] if named else platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device.type,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "load_average": load_average(),
    }


def about(device: torch.device, threads: int) -> dict[str, Any]:
    """What a report says of how it came about: when, on what, and with what."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"date": date, "hardware": hardware(device, threads), "versions": versions()}


def load_average() -> float | None:
    """Processes that ran or waited over the last minute; above the number of cores, distrust the run."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    """What the figures were made with."""
    return {"python": platform.python_version(), "torch": torch.__version__, "hmoevae": hm.__version__}


def square_gemm(device: torch.device, dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """One large square product, and its FLOPs: the most that GEMMs on this machine can be asked for."""
    side = SQUARE[device.type]
    a, b, out = (torch.rand(side, side, device=device).to(dtype) for _ in range(3))
    return lambda: torch.mm(a, b, out=out), 2 * side**3


def onednn_gemm(device: torch.device, dtype: torch.dtype) -> Callable[[], object] | None:
    """The same product by oneDNN, where PyTorch would give it to another library; `None` where it would not."""
    if device.type != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return None
    a, b = (torch.rand(SQUARE["cpu"], SQUARE["cpu"]) for _ in range(2))
    return lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def large_copy(device: torch.device) -> tuple[Callable[[], object], int]:
    """One copy of an array far larger than any cache, and the bytes that it reads and writes."""
    source = torch.rand(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * COPY_BYTES


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had; `None` where the system doesn't say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text()) if STATUS.exists() else None
    return int(found[1]) * 1024 if found else None


def peak_memory(run: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `run` needed at its worst beyond what was held before; `None` where the system doesn't say.

    On a GPU, from PyTorch's allocator. On a CPU, the growth of the process's peak resident set (Linux only), which
    misses what fits into memory that the process holds but does not use.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if not reset_peak():
        run()
        return None
    before = resident()
    run()
    return max(0, resident("VmHWM") - before)


def reset_peak() -> bool:
    """Let the process's peak of held memory start anew from what it holds; whether the system can (Linux, glibc)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # gives free memory back, so that its reuse is counted
        CLEAR_REFS.write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def resident(field: str = "VmRSS") -> int:
    """Bytes that this process holds, or with `"VmHWM"` has held at its worst (Linux only)."""
    found = re.search(rf"{field}:\s*(\d+) kB", STATUS.read_text())
    return int(found[1]) * 1024 if found else 0
