"""Try pictures one by one in processes of their own, within limits of time and memory, and say what came of each."""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bad_images import ERROR, PICTURE, REFUSED, WARNING, Case

from vit_hf.data.images import BadImageError, read_rgb

PLACE = "row 3 of split test"
HANG, CRASH, OTHER = "hang", "crash", "another error"
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Finding:
    """What came of a case."""

    case: Case
    path: str
    outcome: str
    """An outcome of a case, or a hang, a crash, or an error of another kind."""
    text: str = ""
    """Of the error or the warnings."""
    size: tuple[int, int] | None = None
    seconds: float = 0.0
    """Of the processor."""
    peak_bytes: int = 0
    """Memory in use at most, beyond that before."""

    def problem(self) -> str | None:
        """Say what is not as the case wants it."""
        case, named = self.case, PLACE in self.text and self.path in self.text
        if self.outcome != case.outcome:
            return f"{case.name}: expected {case.outcome}, found {self.outcome}: {self.text}"
        if self.outcome in (PICTURE, WARNING) and self.size != case.size:
            return f"{case.name}: the size is {self.size}; expected {case.size}"
        if self.outcome != PICTURE and not (named and case.words in self.text):
            return f"{case.name}: no place, no path or not {case.words!r} in: {self.text}"
        if self.outcome == REFUSED and (self.seconds > 0.1 or self.peak_bytes > 50 * MEBIBYTE):
            return f"{case.name}: {self.seconds:.3f} s and {self.peak_bytes / MEBIBYTE:.0f} MiB to refuse it"
        return None


def try_all(
    cases: Sequence[Case],
    folder: Path,
    *,
    spare_bytes: int = 256 * MEBIBYTE,
    patience_s: float = 10.0,
    read: Callable[..., Any] = read_rgb,
) -> list[Finding]:
    """Write each case into a file and read it, all in one process for as long as it lives.

    Args:
        cases: to try, in this order.
        folder: for the files.
        spare_bytes: of address space that a process may take beyond what it has (RLIMIT_AS).
        patience_s: for one case.
        read: from a path and `where` to a PIL image.
    """
    paths = []
    for number, case in enumerate(cases):
        paths.append(str(folder / f"{number:04d}.bin"))
        Path(paths[-1]).write_bytes(case.data)
    findings: list[Finding] = []
    while len(findings) < len(cases):
        findings += _try_in_one_process(cases, paths, len(findings), spare_bytes, patience_s, read)
    return findings


def _try_in_one_process(
    cases: Sequence[Case], paths: list[str], first: int, spare_bytes: int, patience_s: float, read: Callable[..., Any]
) -> list[Finding]:
    """Try cases from the first on, up to the end or to one that the process does not survive."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which the child has not
        child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            _child(paths[first:], spare_bytes, read, writer)
        finally:
            os._exit(0)
    os.close(writer)
    found: list[Finding] = []
    end = HANG
    with os.fdopen(reader, "rb", buffering=0) as answers:
        rest = b""
        while select.select([answers], [], [], patience_s)[0]:
            data = answers.read(2**16)
            if not data:
                end = CRASH
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                at, answer = first + len(found), json.loads(line)
                size = answer.pop("size")
                found.append(Finding(cases[at], paths[at], size=tuple(size) if size else None, **answer))
    if end == HANG:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    at = first + len(found)
    if at < len(cases):
        found.append(Finding(cases[at], paths[at], end, f"status {status}"))
    return found


def _child(paths: list[str], spare_bytes: int, read: Callable[..., Any], writer: int) -> None:
    with open(os.devnull, "w") as nowhere:  # libtiff writes there, without a place
        os.dup2(nowhere.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc would serve a picture from what was freed before
        libc.malloc_trim(0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + spare_bytes, resource.RLIM_INFINITY))
    for path in paths:
        size, text = None, ""
        before, began = _memory(reset=True), time.process_time()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                size = read(path, where=PLACE).size
                outcome, text = (WARNING if said else PICTURE), " | ".join(str(entry.message) for entry in said)
            except BadImageError as error:
                outcome, text = (REFUSED if "refused before" in str(error) else ERROR), str(error)
            except BaseException as error:
                outcome, text = OTHER, f"{type(error).__name__}: {error}"
        seconds, peak = time.process_time() - began, max(_memory() - before, 0)
        answer = {"outcome": outcome, "text": text, "size": size, "seconds": seconds, "peak_bytes": peak}
        for part in _pieces(json.dumps(answer).encode() + b"\n"):
            os.write(writer, part)


def _pieces(data: bytes) -> Iterator[bytes]:
    """Parts that a pipe takes at once."""
    for start in range(0, len(data), 4096):
        yield data[start : start + 4096]


def _memory(*, reset: bool = False) -> int:
    """Bytes in use at most since the last reset."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
