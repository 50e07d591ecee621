"""Ending in good order: on request at a step boundary, and by force when a process hangs."""

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

EXIT_INTERRUPTED = 75
"""Exit code of a run that SIGTERM or Ctrl-C ended at a step boundary ("temporary failure" of sysexits.h)."""
EXIT_HUNG = 70
"""Exit code of a process that finished nothing for `hang_timeout_minutes` ("internal error" of sysexits.h)."""


class TrainingInterrupted(Exception):  # noqa: N818 it is asked for, and no error
    """The run was asked to stop, and did so at a step boundary.

    Attributes:
        output: the run folder.
        step: optimiser steps done.
        checkpoint: what to resume from; None when the run had not taken a step.
    """

    def __init__(self, output: Path, step: int, checkpoint: Path | None):
        self.output, self.step, self.checkpoint = output, step, checkpoint
        saved = f"saved {checkpoint}" if checkpoint else "there was nothing to save"
        super().__init__(f"stopped on request after step {step}: {saved}")


class StopRequest:
    """Within this context SIGTERM and Ctrl-C only set `requested`; a second Ctrl-C stops at once.

    Signals reach the main thread of a process only; elsewhere the context does nothing.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            hint = " (Ctrl-C again: at once, without saving)" if number == signal.SIGINT else ""
            os.write(2, f"\nstopping after this step{hint}\n".encode())  # printing is not safe in a handler
        self.requested = True


class HangWatch:
    """Within this context a process that gives no sign of life for too long prints where it is, and exits.

    The other processes of a job wait for it in vain, and the launcher ends them when this one is gone.

    Args:
        seconds: the longest time between two calls of `beat`; None for no limit.
        name: of the process, for the message.
    """

    def __init__(self, seconds: float | None, name: str):
        self.seconds, self.name = seconds, name
        self._ended = threading.Event()

    def __enter__(self) -> "HangWatch":
        self.beat()
        if self.seconds is not None:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def beat(self) -> None:
        """Say that something was finished."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        assert self.seconds is not None
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                print(
                    f"\n{self.name} has finished no step for {self.seconds:g} s (hang_timeout_minutes) and is ended; "
                    "it is here:",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=2)
                os._exit(EXIT_HUNG)
