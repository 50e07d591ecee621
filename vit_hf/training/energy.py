"""The energy of a run, from the counters that machines have; unknown where one that matters is missing.

Processors: the package counters of Linux' powercap (RAPL, Intel and AMD), which count what the whole machine uses, and
which most systems let only root read. GPUs: NVML's totals, where `pynvml` is installed. Fans, power supply and what
lies outside the packages are not in it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

POWERCAP = Path("/sys/class/powercap")
_SECONDS_BETWEEN = 5.0  # a package counter starts again from 0 after some minutes
_JOULES_PER_KWH = 3.6e6


@dataclass
class _Counter:
    read: Callable[[], float]
    """Joules since some time."""
    last: float
    """What was read the last time."""
    period: float = math.inf
    """Where it starts again from 0."""


class EnergyMeter:
    """Adds up what this process has to count, from its making on. No counter that fails ends a run.

    Args:
        device: of the run; on CUDA the energy is unknown without NVML.
        packages: whether this process counts the machine's processors, which one process a machine does.
        powercap: folder of the package counters.
    """

    def __init__(self, device: torch.device, *, packages: bool, powercap: Path = POWERCAP):
        processors = _processors(powercap) if packages else []
        gpus = _gpu(device) if device.type == "cuda" else []
        self._counters = [*processors, *gpus]
        unknown = (packages and not self._counters) or (device.type == "cuda" and not gpus)
        self._joules, self._sampled = math.nan if unknown else 0.0, time.monotonic()
        named = {"processors (RAPL)": processors, "GPUs (NVML)": gpus}
        self.source = None if unknown else ", ".join(name for name, counters in named.items() if counters)

    def sample(self) -> None:
        """Read the counters if that is some seconds ago; call it after every step and batch, because they wrap."""
        if time.monotonic() - self._sampled > _SECONDS_BETWEEN:
            self._sample()

    def _sample(self) -> None:
        self._sampled = time.monotonic()
        for counter in self._counters:
            try:
                value = counter.read()
            except Exception:  # whatever a driver raises: the energy is unknown, the run goes on
                value = math.nan
            self._joules += (value - counter.last) % counter.period
            counter.last = value

    def kwh(self, accelerator: Accelerator) -> float | None:
        """Return kWh so far over all processes, all of which call this; None when one of them does not know."""
        self._sample()
        mine = torch.tensor([self._joules / _JOULES_PER_KWH], device=accelerator.device)
        total = accelerator.gather(mine).double().sum().item()
        return total if math.isfinite(total) else None


def _processors(powercap: Path) -> list[_Counter]:
    """Return the counters of the machine's processors; none if one of them may not be read."""
    counters = []
    try:
        for zone in sorted(powercap.glob("intel-rapl:*")):
            if (zone / "name").read_text().startswith("package-"):  # not the parts of one, nor all together
                read = _reader(zone / "energy_uj")
                period = _reader(zone / "max_energy_range_uj")()
                counters.append(_Counter(read, last=read(), period=period))
    except (OSError, ValueError):
        return []
    return counters


def _reader(file: Path) -> Callable[[], float]:
    return lambda: int(file.read_text()) / 1e6


def _gpu(device: torch.device) -> list[_Counter]:
    """Return the counter of this process's GPU; none without `pynvml`, or for a GPU that has none."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

        def read() -> float:
            return pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3

        return [_Counter(read, last=read())]
    except Exception:  # the driver's own errors have no common type without the package
        return []
