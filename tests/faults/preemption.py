"""Requests to stop: the run saves at the next step boundary, says so, and goes on as if nothing was (11 to 14)."""

import functools
import random
import shutil
import signal
from pathlib import Path

from vit_hf.training.interruption import EXIT_INTERRUPTED

from . import trial
from .crash import check_result, check_what_is_left
from .harness import (
    Session,
    Tally,
    checkpoint_path,
    finish,
    published,
    ranks,
    small,
    valid,
    with_loader_processes,
)

_NO_CHECKPOINTS = {"checkpoint_steps": None, "checkpoint_minutes": 60.0}  # but for those that are asked for


def _check_stopped(session: Session, code: int, tally: Tally, where: str) -> None:
    """Exit code 75, every step that was taken is in the checkpoint, and the user is told how to go on."""
    steps = published(session.output)
    saved = max(steps, default=0)
    tally.counts["stopped"] += 1
    tally.counts["steps lost"] += max(session.taken - saved, 0)
    tally.check(code == EXIT_INTERRUPTED, f"{where}: exit code {code}: {session.log[-1500:]}")
    tally.check(session.taken == saved, f"{where}: {session.taken} steps were taken, {saved} saved")
    for words in (f"stopped on request after step {saved}", "to resume: vit-hf train", "stopping after this step"):
        tally.check(words in session.log, f"{where}: no {words!r} in {session.log[-800:]}")
    wrong = [valid(checkpoint_path(session.output, step)) for step in steps]
    tally.check(not any(wrong), f"{where}: {wrong}")


def random_requests(folder: Path, *, seed: int, requests: int) -> Tally:
    """SIGTERM or Ctrl-C at random moments of the steps, again and again; compare (11 and 14)."""
    generator, tally = random.Random(seed), Tally()
    recipe = small(optimization__max_steps=12, evaluation_batch_size=8, **_NO_CHECKPOINTS)
    reference = finish(folder, recipe, name="reference").output
    while tally.counts["stopped"] < requests:
        here = folder / f"stopped-{tally.counts['stopped']}"
        here.mkdir()
        while True:
            session = Session(here, recipe)
            if tally.counts["stopped"] < requests and session.wait_for_steps():
                session.wait_for(generator.uniform(0, 0.2))
                if "test: top-1" not in session.log and session.taken < 12:
                    session.signal(generator.choice((signal.SIGTERM, signal.SIGINT)))
            code = session.end()
            where = f"request {tally.counts['stopped'] + 1}"
            if code == 0:
                check_result(here, reference, tally, where)
                break
            if code < 0 and session.taken in (0, 12):  # before the steps, or after them: nothing to save
                tally.counts["not within the steps"] += 1
                check_what_is_left(session, tally, where)
                continue
            _check_stopped(session, code, tally, where)
            if tally.problems:
                return tally
        shutil.rmtree(here)
    return tally


def named_requests(folder: Path) -> Tally:
    """Requests at chosen moments: in an evaluation, in a save, twice, before the first step (12 and 14)."""
    tally = Tally()
    recipe = small(evaluation_batch_size=8, **_NO_CHECKPOINTS)
    reference = finish(folder, recipe, name="reference").output
    term, ctrl_c = signal.SIGTERM, signal.SIGINT
    saving = recipe.override({"checkpoint_steps": 2})
    for name, changed, fault in (
        ("before the first step", recipe, functools.partial(trial.send, term, at_step=1)),
        ("SIGTERM twice", recipe, functools.partial(trial.send, term, at_step=3, times=2)),
        ("Ctrl-C", recipe, functools.partial(trial.send, ctrl_c, at_step=3)),
        ("in an evaluation", recipe, functools.partial(trial.send, term)),
        ("in a save", saving, functools.partial(trial.at_point, "save", 10, term)),
        ("in the last save", recipe, functools.partial(trial.send, term, at_step=6)),
    ):
        here = folder / name.replace(" ", "-")
        here.mkdir()
        session = Session(here, changed, fault)
        code = session.end()
        _check_stopped(session, code, tally, name)
        finish(here, recipe)
        check_result(here, reference, tally, name)
    return tally


def requests_that_are_not_waited_for(folder: Path, *, points: tuple[int, ...] = (0, 10, 25, 40)) -> Tally:
    """SIGTERM, then SIGKILL in the middle of the save; Ctrl-C twice: what was saved before is whole (12)."""
    tally = Tally()
    recipe = small(optimization__max_steps=6, checkpoint_steps=2, checkpoint_limit=1)
    reference = finish(folder, recipe, name="reference").output
    for number in points:
        here = folder / f"killed-{number}"
        here.mkdir()
        first = Session(here, recipe, functools.partial(trial.send, signal.SIGTERM, at_step=3))
        _check_stopped(first, first.end(), tally, f"before point {number}")
        session = Session(
            here,
            recipe,
            functools.partial(trial.send, signal.SIGTERM, at_step=5),
            functools.partial(trial.at_point, "save", number, skip=1),
        )
        code = session.end()
        tally.check(code == -signal.SIGKILL, f"point {number}: exit code {code}: {session.log[-500:]}")
        check_what_is_left(session, tally, f"point {number}")
        finish(here, recipe)
        check_result(here, reference, tally, f"killed at point {number} of the save that SIGTERM asked for")
    here = folder / "twice"
    here.mkdir()
    session = Session(here, recipe, functools.partial(trial.send, signal.SIGINT, at_step=4, times=2))
    code = session.end()
    tally.check(code == 130 and "at once, without saving" in session.log, f"Ctrl-C twice: {code}: {session.log[-800:]}")
    check_what_is_left(session, tally, "Ctrl-C twice")
    finish(here, recipe)
    check_result(here, reference, tally, "Ctrl-C twice")
    return tally


def requests_to_the_whole_group(folder: Path, *, steps: tuple[int | None, ...] = (3, None)) -> Tally:
    """SIGTERM or Ctrl-C to the run and its loader processes at once, as terminals and schedulers do (11 and 14)."""
    tally = Tally()
    recipe = with_loader_processes(optimization__batch_size=12, **_NO_CHECKPOINTS)
    reference = finish(folder, recipe, name="reference").output
    for kind in (signal.SIGTERM, signal.SIGINT):
        for step in steps:
            name = f"{kind.name} to the group {'in an evaluation' if step is None else 'in a step'}"
            here = folder / name.replace(" ", "-")
            here.mkdir()
            session = Session(here, recipe, functools.partial(trial.send, kind, at_step=step, group=True))
            code = session.end()
            _check_stopped(session, code, tally, name)
            finish(here, recipe)
            check_result(here, reference, tally, name)
    return tally


def a_request_outside_the_steps(folder: Path) -> Tally:
    """SIGTERM while the run is being set up or finished: nothing is lost, no empty checkpoint (11 and 14)."""
    tally = Tally()
    recipe = small(optimization__max_steps=4)
    reference = finish(folder, recipe, name="reference").output
    for name, phase in (("set-up", "set-up"), ("end", "end")):
        here = folder / name
        here.mkdir()
        session = Session(here, recipe, functools.partial(trial.at_point, phase, 3, signal.SIGTERM))
        code = session.end()
        tally.counts["requests"] += 1
        expected = (
            -signal.SIGTERM,
            128 + signal.SIGTERM,
            EXIT_INTERRUPTED,
        )  # before Python runs, before the steps, later
        tally.check(code in expected, f"{name}: exit code {code}: {session.log[-800:]}")
        check_what_is_left(session, tally, name)
        tally.check(phase == "end" or not published(here / "run"), f"{name}: {published(here / 'run')}")
        finish(here, recipe)
        check_result(here, reference, tally, name)
    return tally


def a_request_to_one_of_two_ranks(folder: Path, *, in_an_evaluation: bool = True) -> Tally:
    """SIGTERM to one of two processes: both stop after the same step, which is saved; compare (case 13)."""
    tally = Tally()
    recipe = small(evaluation_batch_size=8, **_NO_CHECKPOINTS)
    reference = folder / "reference"
    codes = [session.end() for session in ranks(folder, recipe, name="reference")]
    tally.check(codes == [0, 0], f"the undisturbed job ended with {codes}")
    faults = [(1, functools.partial(trial.send, signal.SIGTERM, at_step=3, rank=1))]
    if in_an_evaluation:
        faults += [(rank, functools.partial(trial.send, signal.SIGTERM, rank=rank)) for rank in (0, 1)]
    for target, fault in faults:
        name = f"rank-{target}-{tally.counts['jobs']}"
        here = folder / name
        here.mkdir()
        job = ranks(here, recipe, fault)
        codes = [session.end() for session in job]
        tally.counts["jobs"] += 1
        taken = [session.taken for session in job]
        saved = published(here / "run")
        logs = "\n".join(session.log[-600:] for session in job)
        tally.check(codes == [EXIT_INTERRUPTED] * 2, f"{name}: exit codes {codes}: {logs}")
        tally.check(len(set(taken)) == 1 and saved == taken[:1], f"{name}: taken {taken}, saved {saved}: {logs}")
        codes = [session.end() for session in ranks(here, recipe)]
        tally.check(codes == [0, 0], f"{name}: resumed with exit codes {codes}")
        if codes == [0, 0]:
            check_result(here, reference, tally, name)
    return tally
