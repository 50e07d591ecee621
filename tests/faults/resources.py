"""Bad numbers, too little memory, and processes that die, raise or hang (cases 43 to 46)."""

import functools
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import trial
from .crash import check_result, check_what_is_left
from .harness import (
    Session,
    Tally,
    checkpoint_path,
    finish,
    finite,
    published,
    ranks,
    small,
    tensor_difference,
    with_loader_processes,
)

_EXIT_HUNG = 70
_ROOT = Path(__file__).resolve().parents[2]


def bad_numbers(folder: Path) -> Tally:
    """NaN or infinity in the loss, or in the gradient only: stopped before the update, rows named (case 44)."""
    tally = Tally()
    recipe = small(checkpoint_limit=9)
    accumulated = recipe.override({"optimization.max_device_batch_size": 8})
    reference = finish(folder, recipe, name="reference")
    for what, value, changed in (
        ("loss", math.nan, recipe),
        ("loss", math.inf, recipe),
        ("gradient", math.nan, recipe),
        ("gradient", -math.inf, accumulated.override({"optimization.clip_norm": None})),
    ):
        name = f"{what}-{value}"
        here = folder / name
        here.mkdir()
        session = Session(here, changed, functools.partial(trial.spoil, what, value, step=4))
        code = session.end()
        tally.counts["runs"] += 1
        rows = [row for note in reference.notes if note.get("step") == 4 for row in note["rows"]]
        message = "the gradient is not finite" if what == "gradient" else f"the loss is {value}"
        for words in (
            f"{message} at step 4, process 0, training rows {', '.join(map(str, rows[:8]))}",
            "checkpoints are as they were",
            "to resume: vit-hf train",
        ):
            tally.check(words in session.log, f"{name}: no {words!r} in {session.log[-800:]}")
        tally.check(code == 1 and "Traceback" not in session.log, f"{name}: exit code {code}: {session.log[-800:]}")
        tally.check((session.taken, published(here / "run")) == (3, [1, 2, 3]), f"{name}: {session.taken} steps taken")
        same = checkpoint_path(folder / "reference", 3), checkpoint_path(here / "run", 3)
        tally.check(finite(same[1]), f"{name}: the last checkpoint is not finite")
        if changed is recipe:
            finish(here, recipe)
            check_result(here, folder / "reference", tally, f"{name}, resumed without it")
    return tally


def bad_numbers_on_one_of_two_ranks(folder: Path) -> Tally:
    """NaN on the second of two processes ends both, and the message names that process and its rows (case 44)."""
    tally = Tally()
    began = time.monotonic()
    sessions = ranks(folder, small(), functools.partial(trial.spoil, "loss", math.nan, step=3, rank=1))
    codes = [session.end() for session in sessions]
    tally.counts["seconds"] = time.monotonic() - began
    log = sessions[0].log
    rows = [row for note in sessions[1].notes if note.get("step") == 3 for row in note["rows"]]
    named = f"at step 3, process 1, training rows {', '.join(map(str, rows[:8]))}"
    tally.check(0 not in codes and named in log, f"{codes}: no {named!r} in {log[-1500:]}")
    tally.check(published(folder / "run") == [1, 2], f"checkpoints {published(folder / 'run')}")
    return tally


def too_little_memory(folder: Path) -> Tally:
    """Out of memory: the device batch halves until it fits; the step has the same pictures and result (case 45)."""
    tally = Tally()
    noise = {"model__hidden_dropout_prob": 0.2, "augmentation__mixup_alpha": 0.8}
    recipe = small(checkpoint_limit=9, **noise)
    for name, fault, size in (
        ("a quarter fits", functools.partial(trial.lose_memory_beyond, 6), 6),
        ("in the second half", functools.partial(trial.lose_memory_beyond, 6, only_step=1, only_call=2), None),
    ):
        here = folder / name.replace(" ", "-")
        here.mkdir()
        if size is None:  # begins with accumulated batches; the second one of the first step does not fit
            changed, expected = recipe.override({"optimization.max_device_batch_size": 12}), 6
        else:
            changed, expected = recipe, size
        limited = recipe.override({"optimization.max_device_batch_size": expected})
        reference = finish(here, limited, name="reference")
        session = finish(here, changed, fault)
        tally.counts["runs"] += 1
        tally.check("out of memory:" in session.log, f"{name}: nothing was said: {session.log[-800:]}")
        rows = [[note["rows"] for note in run.notes if "rows" in note] for run in (reference, session)]
        tally.check(rows[0] == rows[1], f"{name}: other pictures: {rows[1]} instead of {rows[0]}")
        found = tensor_difference(reference.output, session.output)
        tally.check(found == 0, f"{name}: differs by {found} from the run with batches of {expected}")
        losses = [[note["loss"] for note in run.notes if "loss" in note] for run in (reference, session)]
        # the parts of a step's loss are added in another order
        same = all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(*losses, strict=True))
        tally.check(same, f"{name}: losses {losses[1]} instead of {losses[0]}")
    here = folder / "nothing-fits"
    here.mkdir()
    session = Session(here, small(), functools.partial(trial.lose_memory_beyond, 0))
    code = session.end()
    right = code == 1 and "gradient_checkpointing" in session.log and "Traceback" not in session.log
    tally.check(right, f"nothing fits: exit code {code}: {session.log[-800:]}")
    return tally


def killed_loaders(folder: Path, *, seed: int = 0, kills: int = 3) -> Tally:
    """A killed loader process is an error that says so, within 10 s, and the run can go on (case 43).

    Batches come from a loader process by value, up to four of them before they are needed. Half of a training's are
    still to be asked for when a step kills one here, so that it must be missed. One that an evaluation kills may have
    given all that it had to: such a run may end as if nothing had been, with the very same results.
    """
    import random

    generator, tally = random.Random(seed), Tally()
    recipe = with_loader_processes(optimization__batch_size=12, optimization__max_steps=12)
    reference = finish(folder, recipe, name="reference").output
    for number in range(kills):
        here = folder / f"killed-{number}"
        here.mkdir()
        kill = trial.kill_a_loader_process
        fault: Callable[[], None] = (
            functools.partial(trial.at_step, generator.randrange(2, 6), kill)
            if number % 3
            else functools.partial(trial.in_an_evaluation, kill)
        )
        session = Session(here, recipe, fault)
        session.wait_until(lambda session: session.taken > 0)
        began = time.monotonic()
        code = session.end()
        seconds = time.monotonic() - began
        tally.counts["kills"] += 1
        tally.counts["longest seconds to the end"] = max(tally.counts["longest seconds to the end"], seconds)
        name = f"kill {number}"
        tally.check(seconds < 10, f"{name}: it took {seconds:.1f} s")
        last = session.log.rstrip().rpartition("\n")[2]
        missed = code == 1 and last.startswith("vit-hf train: error: a loader process died (")
        right = missed or (code == 0 and number % 3 == 0)
        tally.counts["not missed"] += not missed
        tally.check(right, f"{name}: exit code {code}: {session.log[-1200:]}")
        check_what_is_left(session, tally, name)
        finish(here, recipe)
        check_result(here, reference, tally, name)
    return tally


# ------------------------------------------------------------------------------------------- two processes
RANK_FAULTS = {
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "raising": "raise RuntimeError('nobody expects this')",
    "hanging": "time.sleep(600)",
}

_LAUNCHED = """
import functools, os, signal, sys, time
import torch
from vit_hf import Recipe, train
from vit_hf.training.step import Stepper

torch.set_num_threads(1)
take = Stepper.take

def faulty(stepper, step, *rest):
    if step == 3 and os.environ["RANK"] == "1":
        with open(sys.argv[3], "w") as file:
            file.write(str(time.time()))
        {fault}
    return take(stepper, step, *rest)

Stepper.take = faulty
train(Recipe.from_yaml(sys.argv[1]), output=sys.argv[2], resume="auto", quiet=True)
"""


def a_lost_rank(folder: Path, *, kind: str) -> Tally:
    """One of two processes of `accelerate launch` dies, raises or hangs: the job ends, named, within 10 s (case 46)."""
    tally = Tally()
    hang_s = 3.0
    recipe = small(hang_timeout_minutes=hang_s / 60, checkpoint_limit=9)
    script, words, moment = folder / "script.py", folder / "recipe.yaml", folder / "moment"
    script.write_text(_LAUNCHED.replace("{fault}", RANK_FAULTS[kind]))
    words.write_text(recipe.to_yaml())
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(script), str(words), str(folder / "run"), str(moment)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)
    seconds = time.time() - float(moment.read_text()) - (hang_s if kind == "hanging" else 0)
    text = done.stdout + done.stderr
    tally.counts[f"seconds from {kind} to the end"] = seconds
    tally.check(done.returncode != 0, f"exit code {done.returncode}: {text[-2000:]}")
    tally.check(seconds < 10, f"it took {seconds:.1f} s: {text[-6000:]}")
    expected = {
        "killed": [r"rank\s*:\s*1 .*", r"exitcode\s*:\s*-9", "SIGKILL"],
        "raising": [r"\[rank1\]: Traceback", "nobody expects this", r"rank\s*:\s*1 "],
        "hanging": ["process 1 of 2 has finished no step for 3 s", r"script.py\", line \d+ in faulty"],
    }[kind]
    for pattern in expected:
        tally.check(re.search(pattern, text) is not None, f"no {pattern!r} in {text[-6000:]}")
    tally.check(published(folder / "run") == [1, 2], f"checkpoints {published(folder / 'run')}")
    return tally


def a_lost_rank_without_a_launcher(folder: Path, *, kind: str) -> Tally:
    """The other process notices by itself that one of two is gone, and ends (case 46)."""
    tally = Tally()
    fault = {
        "killed": functools.partial(trial.raise_signal, signal.SIGKILL),
        "raising": functools.partial(trial.fail, "nobody expects this"),
        "hanging": functools.partial(trial.wait_for, folder / "for ever"),
    }[kind]
    recipe = small(hang_timeout_minutes=2.0 / 60)
    sessions = ranks(folder, recipe, functools.partial(trial.at_step, 3, fault, rank=1))
    sessions[1].wait_until(lambda session: session.taken == 2)
    began = time.monotonic()
    codes = [session.end() for session in sessions]
    tally.counts["seconds to the end"] = time.monotonic() - began
    tally.check(0 not in codes, f"{codes}")
    tally.check(time.monotonic() - began < 12, f"it took {time.monotonic() - began:.1f} s")
    if kind == "hanging":
        right = codes[1] == _EXIT_HUNG and codes[0] in (1, _EXIT_HUNG)  # the other may lose its peer first: an error
        tally.check(right, f"{codes}: {sessions[1].log[-1500:]}")
        tally.check("in wait_for" in sessions[1].log, f"no traceback of the one that hangs: {sessions[1].log[-1500:]}")
    tally.check(published(folder / "run") == [1, 2], f"checkpoints {published(folder / 'run')}")
    return tally
