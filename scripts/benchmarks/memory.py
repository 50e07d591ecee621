"""Peak memory of one library, in a process of its own so that nothing else counts.

On the CPU it is the most memory that the process held while it ran (VmHWM of /proc/self/status) less what it held
before the network was built, when the libraries were imported. Freed tensors go back to the system at once there
(MALLOC_MMAP_THRESHOLD_), so that it is what is needed and not what lies around. On CUDA it is
`torch.cuda.max_memory_allocated`.
"""

import ctypes
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import torch

from .timing import FAILURES, first_line

STEPS = 3


def measure_memory(library: str, case: dict[str, Any]) -> dict[str, Any]:
    """Return {"memory": bytes} or {"memory_failure": why}, of weights, gradients, optimiser, activations and batch."""
    before = os.environ.get("MALLOC_MMAP_THRESHOLD_")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by glibc when the process starts
    try:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            return pool.apply(_measure, (library, case, torch.get_num_threads()))
    finally:
        if before is None:
            del os.environ["MALLOC_MMAP_THRESHOLD_"]
        else:
            os.environ["MALLOC_MMAP_THRESHOLD_"] = before


def _measure(library: str, case: dict[str, Any], threads: int) -> dict[str, Any]:
    from .models import Case, one_task  # which imports this module

    torch.set_num_threads(threads)
    cuda = case["device"] == "cuda"
    before = 0 if cuda else held("VmRSS")
    try:
        task = one_task(library, Case(**case))
        if cuda:
            for _ in range(STEPS):  # what compiles and what records a graph takes memory of its own
                task()
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            forget_peak()
        for _ in range(STEPS):
            task()
        return {"memory": torch.cuda.max_memory_allocated() if cuda else held("VmHWM") - before}
    except FAILURES as error:
        return {"memory_failure": first_line(error)}


def held(name: str) -> int:
    """Return VmRSS (memory held now) or VmHWM (its peak) of this process, in bytes; Linux only."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found.group(1))


def forget_peak() -> None:
    """Set the peak to what is held now, and give back what is not used."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
