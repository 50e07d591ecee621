"""Ending in good order: what a signal asks for, and that a process which hangs says where and goes."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vit_hf.training import interruption
from vit_hf.training.interruption import EXIT_HUNG, EXIT_INTERRUPTED, HangWatch, StopRequest, TrainingInterrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def handlers():
    """Put handlers of our own in place, so that a signal that gets through is seen; the old ones come back after."""
    seen = []
    before = {number: signal.signal(number, lambda number, frame: seen.append(number)) for number in SIGNALS}
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------- a request to stop
@pytest.mark.parametrize("number", SIGNALS)
def test_a_first_signal_only_sets_the_request_and_says_so(handlers, number, capfd):
    with StopRequest() as stop:
        assert not stop.requested
        os.kill(os.getpid(), number)
        assert stop.requested
    assert handlers == []
    printed = capfd.readouterr().err
    assert "stopping after this step" in printed
    assert ("Ctrl-C again" in printed) == (number == signal.SIGINT)


@pytest.mark.parametrize("first", SIGNALS)
def test_ctrl_c_after_a_request_stops_at_once(handlers, first):
    with StopRequest():
        os.kill(os.getpid(), first)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("first", SIGNALS)
def test_sigterm_after_a_request_changes_nothing_and_is_not_announced_again(handlers, first, capfd):
    with StopRequest() as stop:
        os.kill(os.getpid(), first)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
    assert handlers == []
    assert capfd.readouterr().err.count("stopping after this step") == 1


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_handlers_from_before_come_back_however_the_context_ends(handlers, error):
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with StopRequest():
            assert all(signal.getsignal(number) not in before for number in SIGNALS)
            if error is not None:
                raise error
    except ValueError:
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before
    os.kill(os.getpid(), signal.SIGTERM)
    assert handlers == [signal.SIGTERM]


def test_in_another_thread_than_the_main_one_the_context_does_nothing(handlers):
    before, found = [signal.getsignal(number) for number in SIGNALS], []

    def work():
        with StopRequest() as stop:
            found.append((stop.requested, [signal.getsignal(number) for number in SIGNALS]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]


def test_the_message_of_an_interruption_names_step_and_checkpoint():
    stopped = TrainingInterrupted(Path("runs/x"), 7, Path("runs/x/checkpoints/step-00000007"))
    assert str(stopped) == "stopped on request after step 7: saved runs/x/checkpoints/step-00000007"
    assert "nothing to save" in str(TrainingInterrupted(Path("runs/x"), 0, None))


# ---------------------------------------------------------------------------------------------- a process that hangs
SCRIPT = """
import importlib.util, sys, time

spec = importlib.util.spec_from_file_location("interruption", sys.argv[1])  # alone: the package takes long to import
interruption = importlib.util.module_from_spec(spec)
spec.loader.exec_module(interruption)

def waiting_for_the_other_process():
    time.sleep(60)

with interruption.HangWatch(0.4, "process 3 of 8"):
    waiting_for_the_other_process()
"""


def test_a_process_that_hangs_prints_its_name_and_where_it_is_and_exits_in_time():
    started = time.monotonic()
    command = [sys.executable, "-c", SCRIPT, interruption.__file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert time.monotonic() - started < 20
    assert done.returncode == EXIT_HUNG == 70
    assert "process 3 of 8 has finished no step for 0.4 s (hang_timeout_minutes) and is ended" in done.stderr
    assert done.stderr.index("process 3 of 8") < done.stderr.index("in waiting_for_the_other_process")


@pytest.fixture
def exits(monkeypatch):
    """Note an exit instead of leaving."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr("faulthandler.dump_traceback", lambda file: None)
    return codes


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set on; the watch looks at it every 25 ms."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_process_that_gives_signs_of_life_is_left_alone(exits, clock):
    with HangWatch(0.1, "process 0 of 1") as watch:
        for _ in range(5):
            clock.now += 0.09
            time.sleep(0.06)
            watch.beat()
    assert exits == []


def test_the_limit_counts_from_the_last_sign_of_life(exits, clock):
    with HangWatch(0.1, "process 0 of 1") as watch:
        clock.now += 0.09
        watch.beat()
        clock.now += 0.09
        time.sleep(0.1)
        assert exits == []
        clock.now += 0.02
        deadline = time.monotonic() + 20
        while not exits and time.monotonic() < deadline:
            time.sleep(0.01)
    assert exits[:1] == [EXIT_HUNG]


@pytest.mark.parametrize("seconds", [None, 0.1])
def test_without_a_limit_or_after_the_end_nobody_watches(exits, clock, seconds):
    before = set(threading.enumerate())  # others of these may end meanwhile

    def watching() -> bool:
        return bool(set(threading.enumerate()) - before)

    with HangWatch(seconds, "process 0 of 1"):
        assert watching() == (seconds is not None)
    clock.now += 10
    deadline = time.monotonic() + 20
    while watching() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not watching()
    assert exits == []


def test_the_exit_codes_are_those_of_sysexits():
    assert (EXIT_INTERRUPTED, EXIT_HUNG) == (os.EX_TEMPFAIL, os.EX_SOFTWARE)
