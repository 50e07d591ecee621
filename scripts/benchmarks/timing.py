"""Time several ways of doing the same thing so that they can be compared on a machine that is not quiet.

All of them run in one process, one after the other in every round, in another order each round; so what the rest of
the machine does falls on all alike, and the ratio of two of them within a round says more than either time.
"""

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

FAILURES = (RuntimeError, NotImplementedError, ValueError, TypeError, MemoryError)  # torch's out of memory is the first


@dataclass
class Timings:
    """Seconds a call of each way, a number a round, and why some could not be run."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """One way's time over another's, within each round: the median and the quartiles."""

    median: float
    low: float
    high: float


def interleave(
    tasks: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 2,
    min_seconds: float = 0.2,
    synchronize: Callable[[], object] = lambda: None,
) -> Timings:
    """Run all tasks in each round and time them.

    Args:
        tasks: what to call, by name. One that fails while it warms up is left out, with its reason.
        rounds: how often each is timed.
        warmup: calls of each before that, not timed.
        min_seconds: a task is called in a row, in each round, until a round of it takes about so long.
        synchronize: waits for the device; called before a clock is read.
    """
    timings = Timings()
    calls: dict[str, int] = {}
    for name, task in tasks.items():
        try:
            for _ in range(warmup):
                task()
            synchronize()
            calls[name] = max(math.ceil(min_seconds / max(_time(task, 1, synchronize), 1e-9)), 1)
            timings.seconds[name] = []
        except FAILURES as error:
            timings.failures[name] = first_line(error)
    names, forwards = list(timings.seconds), True
    collects = gc.isenabled()
    try:
        for index in range(rounds):
            gc.collect()
            gc.disable()
            shift = index // 2 % max(len(names), 1)
            order = names[shift:] + names[:shift]
            for name in order if forwards else reversed(order):
                timings.seconds[name].append(_time(tasks[name], calls[name], synchronize))
            forwards = not forwards
            gc.enable()
    finally:
        (gc.enable if collects else gc.disable)()
    return timings


def _time(task: Callable[[], object], calls: int, synchronize: Callable[[], object]) -> float:
    """Return the seconds a call takes, over some calls in a row."""
    synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        task()
    synchronize()
    return (time.perf_counter() - start) / calls


def first_line(error: BaseException) -> str:
    """Return what kind of error it is and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"[:200]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare two ways round by round; below 1 where the first is faster.

    Raises:
        ValueError: they have not the same number of rounds.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} and {len(theirs)} rounds; expected the same number, at least one")
    low, median, high = np.quantile(np.asarray(ours) / np.asarray(theirs), (0.25, 0.5, 0.75))
    return Ratio(float(median), float(low), float(high))


def synchronizer(device: torch.device) -> Callable[[], object]:
    """Return what waits until the device has done all that it was given."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None
