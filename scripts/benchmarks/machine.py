"""What a measurement was made on: the machine and the versions of everything that takes part."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "transformers", "timm", "accelerate", "datasets", "numpy", "pillow")


def describe_machine(threads: int) -> dict[str, Any]:
    """Return processor, cores, memory, threads in use, graphics card and versions."""
    memory = next((line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), None)
    cuda = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": len(_affinity()),
        "threads": threads,
        "memory_gib": None if memory is None else round(int(memory) / 2**20, 1),
        "cuda": torch.cuda.get_device_name() if cuda else None,
        "cuda_version": torch.version.cuda if cuda else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _affinity() -> set[int]:
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _processor() -> str:
    names = (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
