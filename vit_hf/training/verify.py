"""Prove on one's own recipe and machine that a run that is interrupted and resumed equals one that is not."""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checkpoint import STATE, step_folder
from .interruption import EXIT_INTERRUPTED
from .progress import TIMES
from .recipe import Recipe
from .state import MANIFEST


@dataclass(frozen=True)
class ResumeProof:
    """What was done, and what came out."""

    interruptions: list[tuple[int, str]]
    """After which step at the earliest, and by which signal; "none, ..." where the session ended before it came."""
    files: dict[str, bool]
    """Whether each file of tensors of the last checkpoint, and the evaluation rows, are the same."""

    @property
    def identical(self) -> bool:
        """Whether all is the same."""
        return all(self.files.values())


def verify_resume(
    recipe: Recipe, *, interruptions: int = 3, steps: int = 12, say: Callable[[str], None] = lambda text: None
) -> ResumeProof:
    """Run a recipe twice for a few steps, once undisturbed and once killed and resumed, and compare what they leave.

    Each session is a process of its own; half of the interruptions are SIGKILL at a random moment, half SIGTERM.

    Args:
        recipe: what to run; its `max_steps`, checkpoints and trackers are replaced.
        interruptions: of the second run, at different random steps; fewer than `steps`.
        steps: optimiser steps of each run.
        say: called with a line about each session.

    Raises:
        ValueError: fewer steps than interruptions.
        RuntimeError: a session fails; with the end of what it printed.
    """
    if not 0 < interruptions < steps:
        raise ValueError(f"{interruptions} interruptions of a run of {steps} steps; expected 1 to {steps - 1}")
    fields = {"optimization.max_steps": steps, "checkpoint_steps": 1, "checkpoint_limit": 2, "trackers": []}
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as temporary:
        folder = Path(temporary)
        (folder / "recipe.yaml").write_text(recipe.override(fields).to_yaml(), encoding="utf-8")
        say(f"undisturbed: {steps} steps")
        _session(folder, "undisturbed")
        chosen = sorted(random.sample(range(1, steps), interruptions))
        done = []
        for number, step in enumerate(chosen):
            kind = (signal.SIGKILL, signal.SIGTERM)[number % 2]
            say(f"interrupted: {kind.name} after step {step}")
            code = _session(folder, "interrupted", stop_after=step, kind=kind)
            done.append((step, kind.name if code else "none, it ended before"))
        say("interrupted: to the end")
        _session(folder, "interrupted")
        last = [folder / name / step_folder(steps) for name in ("undisturbed", "interrupted")]
        return ResumeProof(done, _compare(*last))


def _session(folder: Path, name: str, stop_after: int | None = None, kind: signal.Signals = signal.SIGKILL) -> int:
    """Start or go on with a run in a new process, end it once the checkpoint of a step is there; return its code."""
    paths = [str(folder / "recipe.yaml"), "--output", str(folder / name)]  # those in the recipe are the caller's
    command = [sys.executable, "-m", "vit_hf.cli", "train", *paths, "--resume", "auto"]
    with open(folder / "log", "w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            if stop_after is not None:
                while process.poll() is None and not any(
                    (folder / name / step_folder(step)).exists() for step in (stop_after, stop_after + 1)
                ):
                    time.sleep(0.001)
                time.sleep(random.uniform(0.0, 0.05))
                process.send_signal(kind)
            code = process.wait()
        finally:
            process.kill()
        expected = {0} if stop_after is None else {0, -signal.SIGKILL, EXIT_INTERRUPTED}  # 0: it was done already
        if code not in expected:
            log.seek(0)
            raise RuntimeError(f"a session of the run ended with code {code}:\n{log.read()[-2000:]}")
        return code


def _compare(first: Path, second: Path) -> dict[str, bool]:
    files = [json.loads((path / MANIFEST).read_text(encoding="utf-8")) for path in (first, second)]
    tensors = sorted(name for name in files[0] if name.endswith(".safetensors"))
    same = {name: files[0][name] == files[1].get(name) for name in tensors}
    states = [json.loads((path / STATE).read_text(encoding="utf-8")) for path in (first, second)]
    for key in ("rows", "best", "schedule", "optimizer", "scaler"):
        a, b = (_without_times(state[key]) for state in states)
        same[f"{STATE}: {key}"] = a == b
    return same


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    return value
