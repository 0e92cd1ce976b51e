"""The memory of this process: what it takes, and giving back what was freed. Nothing here loads torch."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

MB = 2**20


def give_back() -> None:
    """Give memory that was freed back to the system, so that what comes next does not lie on top of it."""
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)


def idle_mb() -> float:
    """Give freed memory back, and return what the process then holds, with CUDA's allocator, 2^20 bytes."""
    give_back()
    return _process_mb("VmRSS") + _cuda_b("memory_allocated") / MB


def peak_mb() -> float:
    """Return the high-water mark of this process's memory, with CUDA's allocator where it is in use, 2^20 bytes."""
    return _process_mb("VmHWM") + cuda_peak_mb()


def reset_peak() -> None:
    """Have the high-water mark begin anew, where the kernel lets it, and that of CUDA's allocator."""
    give_back()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def cuda_peak_mb() -> float:
    """Return the most that CUDA's allocator has given out, 2^20 bytes; 0 where it is not in use."""
    return _cuda_b("max_memory_allocated") / MB


def _process_mb(counter: str) -> float:
    """Read a counter of the kernel; unlike getrusage's, it knows nothing of the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{counter}:")) / 1024


def _cuda_b(counter: str) -> int:
    torch = sys.modules.get("torch")
    return int(getattr(torch.cuda, counter)()) if torch is not None and torch.cuda.is_available() else 0
