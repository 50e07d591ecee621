"""Kills and damage: what a run that dies at any moment leaves, and how the next one goes on (cases 1 to 10)."""

import functools
import os
import random
import shutil
import signal
import socket
from pathlib import Path

from vit_hf import Recipe
from vit_hf.training.checkpoint import newest_checkpoint
from vit_hf.training.state import DamagedFolderError

from . import harness, trial
from .harness import (
    Session,
    Tally,
    checkpoint_path,
    difference,
    finish,
    published,
    small,
    valid,
    with_loader_processes,
)

DAMAGE = ("flip", "truncate", "remove")


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def check_what_is_left(session: Session, tally: Tally, where: str) -> None:
    """After a kill: whole folders only, and the newest is the last that the session has seen published, or a newer."""
    steps = published(session.output)
    wrong = [valid(path) for path in (session.output / "checkpoints").glob("*-*") if not path.name.startswith(".")]
    tally.counts["invalid"] += any(wrong)
    tally.counts["lost"] += max(steps, default=0) < session.published
    tally.check(not any(wrong), f"{where}: {wrong}")
    tally.check(max(steps, default=0) >= session.published, f"{where}: published {session.published}, left {steps}")


def check_result(folder: Path, reference: Path, tally: Tally, where: str) -> None:
    """After the end: the run equals one that was not disturbed."""
    found = difference(reference, folder / "run")
    tally.counts["finished runs"] += 1
    tally.counts["different"] += found != 0
    tally.check(found == 0, f"{where}: differs by {found} from the uninterrupted run")


def random_kills(folder: Path, *, seed: int, kills: int) -> Tally:
    """SIGKILL at random moments while every step is saved, resume, again, to the end; compare (cases 1 and 4)."""
    generator, tally = random.Random(seed), Tally()
    recipes = [
        small(checkpoint_limit=1, optimization__max_steps=10),
        small(checkpoint_limit=2, optimization__max_steps=10, optimization__ema_decay=None, keep="best"),
    ]
    references: dict[int, Path] = {}
    seconds = 0.3
    while tally.counts["kills"] < kills:
        number = tally.counts["finished runs"]
        recipe = recipes[number % 2]
        if number % 2 not in references:
            references[number % 2] = finish(folder, recipe, name=f"reference-{number}").output
        here = folder / f"killed-{number}"
        here.mkdir()
        while True:
            session = Session(here, recipe)
            if tally.counts["kills"] < kills:
                if generator.random() < 0.9:
                    session.wait_for_steps()
                session.wait_for(generator.uniform(0, seconds))
                session.signal(signal.SIGKILL)
            code = session.end()
            if code == 0:
                break
            if code != -signal.SIGKILL:
                tally.problems.append(f"run {number}: exit code {code}: {session.log[-500:]}")
                break
            tally.counts["kills"] += 1
            check_what_is_left(session, tally, f"kill {tally.counts['kills']}, run {number}")
        if code == 0:
            check_result(here, references[number % 2], tally, f"run {number}")
        shutil.rmtree(here)
    return tally


def _recipe(steps: int) -> Recipe:
    """Return a recipe that evaluates, publishes a best model, saves and rotates at every step."""
    return small(
        optimization__max_steps=steps,
        checkpoint_limit=1,
        keep="best",
        evaluate_every=0.25,
        data__validation_fraction=0.01,
    )


def points_of(folder: Path, phase: str) -> list[str]:
    """Return the names of the points of a phase, in order, with a checkpoint before it to rotate."""
    folder.mkdir(exist_ok=True)
    recipe = _recipe(3 if phase != "end" else 2)
    Session(folder, recipe, trial.always_better, functools.partial(trial.at_step, 2, die)).end()
    listing = folder / "points"
    finish(folder, recipe, trial.always_better, functools.partial(trial.at_point, phase, None, listing=listing))
    return listing.read_text().splitlines()


def kills_at_points(folder: Path, *, phase: str, part: int = 0, parts: int = 1, every: int = 1) -> Tally:
    """SIGKILL at each named point of a save, an evaluation or the end, rotation included, then to the end (2 and 3).

    Each session dies at the next point of its first phase of that name, and the next one goes on from what it left.

    Args:
        folder: to work in.
        phase: of `trial.PHASES`.
        part, parts: of the points, to share them among workers.
        every: one point in so many only.
    """
    folder.mkdir(exist_ok=True)
    tally = Tally()
    names = points_of(folder / "points", phase)
    chosen = [number for number in range(len(names)) if number // every % parts == part and number % every == 0]
    recipe = _recipe(len(chosen) + 3 if phase != "end" else 2)
    reference = finish(folder, recipe, trial.always_better, name="reference").output
    Session(folder, recipe, trial.always_better, functools.partial(trial.at_step, 2, die)).end()  # leaves something
    for number in chosen:
        session = Session(folder, recipe, trial.always_better, functools.partial(trial.at_point, phase, number))
        code = session.end()
        name = f"{phase}, point {number} ({names[number]})"
        if code == 0 and phase == "end" and (session.output / "results.json").exists():
            continue  # finished by the point before it
        tally.counts["kills"] += 1
        tally.check(code == -signal.SIGKILL, f"{name}: exit code {code}: {session.log[-500:]}")
        check_what_is_left(session, tally, name)
    finish(folder, recipe, trial.always_better)
    check_result(folder, reference, tally, f"{phase}, after a kill at {len(chosen)} points")
    left = [path.name for path in (folder / "run").rglob(".writing-*")]
    tally.check(not left, f"{phase}: temporary folders are left: {left}")
    files = [{path.relative_to(run) for path in run.rglob("*")} for run in (reference, folder / "run")]
    tally.check(files[0] == files[1], f"{phase}: other files: {sorted(map(str, files[0] ^ files[1]))}")
    return tally


# ------------------------------------------------------------------------------------------- damage
def damage(path: Path, kind: str, generator: random.Random) -> None:
    """Flip one bit of a file, cut off its end, or remove it."""
    content = bytearray(path.read_bytes())
    if kind == "flip":
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    elif kind == "truncate":
        del content[generator.randrange(len(content)) :]
    path.write_bytes(content)
    if kind == "remove":
        path.unlink()


def damaged_files(run: Path, folder: Path, *, seed: int, rounds: int) -> Tally:
    """Damage every file of the newest checkpoint in each way: it is named, and the one before it taken (6 and 21)."""
    generator, tally = random.Random(seed), Tally()
    newest, before = (checkpoint_path(run, step) for step in sorted(published(run))[-1:-3:-1])
    for name in sorted(harness.digest(newest)):
        for kind in DAMAGE * rounds:
            copy = folder / "damaged"
            shutil.copytree(run / "checkpoints", copy / "checkpoints")
            damage(copy / "checkpoints" / newest.name / name, kind, generator)
            tally.counts["damaged files"] += 1
            try:
                found = newest_checkpoint(copy)
            except Exception as error:
                found = None
                tally.problems.append(f"{name}, {kind}: {type(error).__name__}: {error}")
            taken = found is not None and found[0].name == before.name
            tally.counts["not found"] += not taken
            tally.check(taken, f"{name}, {kind}: {found and found[0].name} was taken instead of {before.name}")
            shutil.rmtree(copy)
    return tally


def all_damaged(run: Path, folder: Path) -> Tally:
    """With no whole checkpoint left a resume is an error, for each kind of damage."""
    tally = Tally()
    for kind in DAMAGE:
        copy = folder / kind
        shutil.copytree(run / "checkpoints", copy / "checkpoints")
        for step in published(copy):
            damage(checkpoint_path(copy, step) / "training" / "state.json", kind, random.Random(step))
        tally.counts["runs"] += 1
        try:
            tally.problems.append(f"{kind}: took {newest_checkpoint(copy)}")
        except DamagedFolderError as error:
            tally.check("no other checkpoint of" in str(error), f"{kind}: {error}")
    return tally


# ------------------------------------------------------------------------------------------- a full disk
def full_disks(folder: Path, *, seed: int, budgets: int) -> Tally:
    """Let files grow to a budget only, spread over the sizes of a checkpoint's files: an error, nothing lost (7)."""
    generator, tally = random.Random(seed), Tally()
    recipe = small(checkpoint_limit=1, evaluate_every=100.0, optimization__max_steps=3)
    reference = finish(folder, recipe, name="reference").output
    sizes = sorted({path.stat().st_size for path in checkpoint_path(reference, 3).rglob("*") if path.is_file()})
    start = folder / "start"
    start.mkdir()
    first = Session(start, recipe, functools.partial(trial.at_step, 2, die))
    first.end()
    for number in range(budgets):
        low, high = [0, *sizes][number % len(sizes)], sizes[number % len(sizes)]
        budget = generator.randrange(low, high)
        here = folder / f"budget-{number}"
        shutil.copytree(start, here)
        before = harness.digest(here / "run" / "checkpoints" / "step-00000001")
        session = Session(here, recipe, functools.partial(trial.limit_files, budget))
        code = session.end()
        changed = harness.digest(here / "run" / "checkpoints" / "step-00000001") != before
        tally.counts["budgets"] += 1
        tally.counts["older checkpoints changed"] += changed
        tally.check(not changed, f"{budget} bytes: the older checkpoint has changed")
        tally.check(code == 1, f"{budget} bytes: exit code {code}: {session.log[-800:]}")
        for words in ("no space left", "MiB needed", "MiB free", "step-00000002", "to resume: vit-hf train"):
            tally.check(words in session.log, f"{budget} bytes: no {words!r} in {session.log[-800:]}")
        tally.check("Traceback" not in session.log, f"{budget} bytes: a traceback: {session.log[-1500:]}")
        check_what_is_left(session, tally, f"{budget} bytes")
        finish(here, recipe)
        check_result(here, reference, tally, f"{budget} bytes")
        shutil.rmtree(here)
    return tally


# ------------------------------------------------------------------------------------------- folders
def two_writers(folder: Path) -> Tally:
    """A second run in the same folder refuses at once, and names the first; the first goes on (case 9)."""
    tally = Tally()
    recipe = small(optimization__max_steps=3)
    reference = finish(folder, recipe, name="reference").output
    pause = functools.partial(trial.at_step, 2, functools.partial(trial.wait_for, folder / "go on"))
    first = Session(folder, recipe, pause)
    first.wait_until(lambda session: session.published > 0)
    before = harness.digest(first.output / "checkpoints" / "step-00000001")
    second = Session(folder, recipe)
    code = second.end()
    tally.counts["seconds to refuse"] = second.seconds
    name = f"is being written by process {first.process.pid} on {socket.gethostname()}; wait for it, or stop it"
    tally.check(code == 1 and name in second.log, f"exit code {code}: {second.log[-500:]}")
    tally.check(second.seconds < 5, f"it took {second.seconds:.1f} s to refuse")
    tally.check(first.is_running, f"the first ended: {first.log[-500:]}")
    tally.check(before == harness.digest(first.output / "checkpoints" / "step-00000001"), "the checkpoint changed")
    (folder / "go on").touch()
    tally.check(first.end() == 0, f"the first failed: {first.log[-500:]}")
    check_result(folder, reference, tally, "the first of two writers")
    return tally


def killed_with_workers(folder: Path) -> Tally:
    """A run killed with its loader processes alive is resumed at once, though they still hold its lock (5 and 9)."""
    tally = Tally()
    recipe = with_loader_processes(optimization__max_steps=6, optimization__batch_size=8)
    reference = finish(folder, recipe, name="reference").output
    session = Session(folder, recipe)
    session.wait_until(lambda session: session.published > 1)
    session.signal(signal.SIGKILL)
    tally.check(session.end() == -signal.SIGKILL, f"it was to be killed: {session.log[-500:]}")
    check_what_is_left(session, tally, "killed with loader processes")
    again = finish(folder, recipe)
    tally.counts["seconds to resume and finish"] = again.seconds
    tally.check(again.seconds < 20, f"resuming took {again.seconds:.1f} s")
    check_result(folder, reference, tally, "killed with loader processes")
    return tally


def left_over_folders(folder: Path) -> Tally:
    """Temporary folders of a dead writer are ignored and removed; those of a living one stay (case 5)."""
    tally = Tally()
    recipe = small(optimization__max_steps=3)
    reference = finish(folder, recipe, name="reference").output
    Session(folder, recipe, functools.partial(trial.at_step, 2, die)).end()
    run = folder / "run"
    newest = checkpoint_path(run, 1)
    for place in (run, run / "checkpoints"):
        left = place / ".writing-left"
        left.mkdir()
        shutil.copytree(newest, left / "new")
        (left / "new" / "training" / "state.json").write_text("{")
    pause = functools.partial(trial.at_step, 2, functools.partial(trial.wait_for, folder / "go on"))
    session = Session(folder, recipe, pause)
    session.wait_until(lambda session: "resumed after" in session.log)
    tally.check(not list(run.rglob(".writing-left")), "folders of a dead writer were left")
    mine = run / "checkpoints" / ".writing-mine"
    mine.mkdir()  # as if the living writer were in the middle of a save
    Session(folder, recipe).end()
    tally.check(mine.is_dir(), "the folder of a living writer was removed")
    mine.rmdir()
    (folder / "go on").touch()
    tally.check(session.end() == 0, session.log[-500:])
    check_result(folder, reference, tally, "with left-over folders")
    return tally


def a_step_that_is_there_already(folder: Path, *, points: tuple[int, ...] = (0, 8, 16, 24, 33, 34)) -> Tally:
    """A folder of the step that is to be saved is replaced whole, never half; killed at any point too (case 10)."""
    tally = Tally()
    recipe = small(optimization__max_steps=3, checkpoint_limit=3)
    reference = finish(folder, recipe, name="reference").output
    for number in points:
        here = folder / f"there-{number}"
        shutil.copytree(reference, here / "run")
        run = here / "run"
        (run / "results.json").unlink()
        shutil.rmtree(checkpoint_path(run, 1))
        for step in (2, 3):  # in the way, and damaged, so that the run begins anew and meets them
            (checkpoint_path(run, step) / "training" / "weights.safetensors").write_bytes(b"from another life")
        shutil.copytree(checkpoint_path(reference, 1), checkpoint_path(run, 1))
        session = Session(here, recipe, functools.partial(trial.at_point, "save", number))
        code = session.end()
        tally.counts["kills"] += 1
        tally.check(code == -signal.SIGKILL, f"point {number}: exit code {code}: {session.log[-500:]}")
        found = newest_checkpoint(run)
        tally.check(found is not None and found[0].name in ("step-00000001", "step-00000002"), f"took {found}")
        finish(here, recipe)
        check_result(here, reference, tally, f"a step that was there, killed at point {number}")
        tally.check(
            all(valid(checkpoint_path(run, step)) is None for step in published(run)), f"point {number}: damaged"
        )
    return tally


def a_damaged_checkpoint_in_front(folder: Path) -> Tally:
    """What a run saves after it went on from before a damaged checkpoint is not rotated away in favour of that (6)."""
    tally = Tally()
    recipe = small(checkpoint_limit=2, checkpoint_steps=2)
    reference = finish(folder, recipe, name="reference").output
    Session(folder, recipe, functools.partial(trial.at_step, 5, die)).end()
    run = folder / "run"
    damage(checkpoint_path(run, 4) / "training" / "state.json", "truncate", random.Random(0))
    one = recipe.override({"checkpoint_limit": 1})
    session = Session(folder, one, functools.partial(trial.send, signal.SIGTERM, at_step=3))
    code = session.end()
    tally.check(code == 75 and "step-00000003" in session.log, f"exit code {code}: {session.log[-800:]}")
    tally.check(published(run) == [3], f"checkpoints {published(run)} after step 3 was saved")
    again = Session(folder, one)
    code = again.end()
    tally.check(code == 0 and "resumed after step 3" in again.log, f"exit code {code}: {again.log[-800:]}")
    if code == 0:
        check_result(folder, reference, tally, "with a damaged checkpoint in front")
    return tally


def places_that_cannot_be_written(folder: Path) -> Tally:
    """An output that is a file, lies below a file, or is removed meanwhile is an error that says so (case 8)."""
    tally = Tally()
    recipe = small(optimization__max_steps=4)
    (folder / "file").write_text("mine")
    gone = functools.partial(trial.at_step, 3, functools.partial(shutil.rmtree, folder / "gone"))
    for name, faults, words in (
        ("file", (), "is a file; expected a folder: choose another --output"),
        ("file/run", (), "cannot write to"),
        ("gone", (gone,), "the run folder is gone"),
    ):
        session = Session(folder, recipe, *faults, output=folder / name, resume=None)
        code = session.end()
        tally.counts["places"] += 1
        right = code == 1 and words in session.log and "Traceback" not in session.log
        tally.check(right, f"{name}: exit code {code}: {session.log[-800:]}")
    tally.check((folder / "file").read_text() == "mine", "the file in the way was changed")
    tally.check(not (folder / "gone").exists(), "the folder that was removed was made anew")
    return tally


def read_only(folder: Path) -> Tally:
    """A folder without the right to write is an error that says so, before a step is taken (case 8).

    Args:
        folder: that everybody may enter; root gives up its rights in the trial.
    """
    tally = Tally()
    shut = folder / "shut"
    shut.mkdir(mode=0o555)
    session = Session(folder, small(), *([trial.run_as_nobody] if os.geteuid() == 0 else []), output=shut / "run")
    code = session.end()
    right = code == 1 and "cannot write to" in session.log and "choose another --output" in session.log
    tally.check(right and session.taken == 0, f"exit code {code}, {session.taken} steps: {session.log[-800:]}")
    return tally
