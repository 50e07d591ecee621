"""The inside of a trial: `vit-hf train` in a process of its own, with a log, a record of its steps, and a fault."""

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file, save_file
from transformers import modeling_utils

from vit_hf import Recipe, cli
from vit_hf.data import pictures
from vit_hf.modeling_vit_hf import VitHfForImageClassification
from vit_hf.training import checkpoint, loop, session
from vit_hf.training.state import RunFolder
from vit_hf.training.step import Stepper
from vit_hf.training.tasks import Classification

Fault = Callable[[], None]
"""Patches the process it is called in, before the run begins."""


@dataclass(frozen=True)
class Trial:
    """One session of a run."""

    recipe: Recipe
    output: Path
    resume: str | None
    notes: Path
    """Gets a line of JSON for every step and every published folder."""
    log: Path
    """Gets what the session prints."""
    faults: tuple[Fault, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def run(trial: Trial) -> None:
    """Run a session and exit with the code of the command."""
    os.environ.update(trial.environment)
    descriptor = os.open(trial.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.setpgid(0, 0)  # so that a signal can be sent to it and all its loader processes
    multiprocessing.set_start_method("fork", force=True)  # of loader processes: this process came from a fork server
    _note_progress(trial.notes)
    recipe = trial.notes.with_suffix(".yaml")
    recipe.write_text(trial.recipe.to_yaml(), encoding="utf-8")
    for fault in trial.faults:
        fault()
    words = ["train", str(recipe), "--output", str(trial.output)]
    sys.exit(cli.main(words + (["--resume", trial.resume] if trial.resume else [])))


def warm_up() -> None:
    """Do once what every session would spend its time on: imports, reading the digits, first calls, a drawing."""
    torch.set_num_threads(1)
    pictures.open_pictures = session.open_pictures = functools.lru_cache(pictures.open_pictures)
    loop.plot_learning_curves = lambda rows, path, **_: path.write_bytes(b"half a second of drawing")
    output = Path(os.environ["FAULTS_WARM_UP"])
    with open(os.devnull, "w") as nothing:
        sys.stdout, before = nothing, sys.stdout
        cli.main(["train", str(output.with_suffix(".yaml")), "--output", str(output)])
        sys.stdout = before
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)
    assert not PartialState._shared_state


def around(owner: Any, name: str, before: Callable = lambda *a, **k: None, after: Callable = lambda *a: None) -> None:
    """Call something before a function with its arguments, and after it with its value and arguments."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        before(*arguments, **options)
        value = function(*arguments, **options)
        after(value, *arguments)
        return value

    setattr(owner, name, wrapped)


def _note_progress(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(**values: Any) -> None:
        os.write(descriptor, (json.dumps(values) + "\n").encode())

    around(
        Stepper,
        "_forward_and_backward",
        after=lambda value, stepper, step, batches: note(
            step=step,
            rank=stepper.accelerator.process_index,
            rows=[row for batch in value[1] for row in batch["rows"].tolist()],
            pieces=stepper.pieces,
        ),
    )
    around(Stepper, "take", after=lambda value, stepper, step, *rest: note(taken=step, loss=value.loss))
    around(RunFolder, "publish", after=lambda value, folder, name, *rest: note(published=name))


# ------------------------------------------------------------------------------------------- signals
PHASES = {
    "set-up": (session.Session, "set_up"),
    "save": (session.Session, "save"),
    "evaluation": (loop, "_evaluate"),
    "end": (loop, "_finish"),
}


def at_point(
    phase: str, number: int | None, kind: int = signal.SIGKILL, *, skip: int = 0, listing: Path | None = None
) -> None:
    """Send this process a signal at a point of a phase: before the n-th change to the disk in it.

    Points are the calls that make, fill, force, rename or remove a file or folder, and the middle of every file of
    tensors. "end" lasts until the process exits.

    Args:
        phase: of PHASES.
        number: of the point, from 0; None for none.
        kind: of the signal.
        skip: phases of that name to pass over.
        listing: gets the names of the points, one a line, as they are passed.
    """
    seen, active, phases = 0, False, 0

    def point(name: str) -> None:
        nonlocal seen
        if not active:
            return
        if listing is not None:
            os.write(out, f"{name}\n".encode())
        seen += 1
        if seen - 1 == number:
            os.kill(os.getpid(), kind)

    def audit(event: str, arguments: tuple) -> None:
        if event == "open" and active:
            path, _, flags = arguments
            if isinstance(path, str | bytes) and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
                point(f"open {Path(os.fsdecode(path)).name}")
        elif event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            point(f"{event} {Path(str(arguments[0])).name}")

    def begin(*_: Any) -> None:
        nonlocal active, phases
        active = phases == skip
        phases += 1

    def end(*_: Any) -> None:
        nonlocal active
        active = active and phase == "end"

    def save_in_two_halves(*arguments: Any, **options: Any) -> None:
        save_file(*arguments, **options)
        path = Path(arguments[1])
        whole = path.read_bytes() if active else b""
        if active:
            with open(path, "r+b") as file:
                file.truncate(len(whole) // 2)
            point(f"half of {path.name}")
            with open(path, "wb") as file:
                file.write(whole)

    out = os.open(listing, os.O_WRONLY | os.O_CREAT) if listing is not None else -1
    checkpoint.save_file = modeling_utils.safe_save_file = save_in_two_halves
    around(os, "fsync", before=lambda descriptor: point("fsync"))
    sys.addaudithook(audit)
    around(*PHASES[phase], before=begin, after=end)


def send(
    kind: int, *, at_step: int | None = None, group: bool = False, times: int = 1, rank: int | None = None
) -> None:
    """Send this process, or it and its loader processes, a signal before a step, or in the midst of an evaluation."""

    def strike(*_: Any) -> None:
        if rank is not None and os.environ["RANK"] != str(rank):
            return
        if not group:
            for _ in range(times):
                os.kill(os.getpid(), kind)
        elif stranger := os.fork():  # loader processes obey the run, so another one has to send it
            os.waitpid(stranger, 0)
        else:
            signal.signal(kind, signal.SIG_IGN)
            os.killpg(0, kind)
            os._exit(0)

    if at_step is None:
        around(loop, "_evaluation_goes_on", before=strike)
    else:
        around(Stepper, "take", before=lambda stepper, step, *_: strike() if step == at_step else None)


# ------------------------------------------------------------------------------------------- resources
def limit_files(size: int) -> None:
    """Let no file grow beyond a size in bytes, as on a full disk."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = session.Session.save

    def save(run: Any) -> Path:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            return before(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    session.Session.save = save


def lose_memory_beyond(pictures: int, *, only_step: int | None = None, only_call: int | None = None) -> None:
    """Let the model run out of memory when it trains on more pictures at once, or only at one call of one step."""
    state = {"step": 0, "call": 0}
    around(Stepper, "take", before=lambda stepper, step, *_: state.update(step=step, call=0))

    def refuse(model: torch.nn.Module, pixel_values: torch.Tensor, **_: Any) -> None:
        if not model.training:
            return
        state["call"] += 1
        here = only_step in (None, state["step"]) and only_call in (None, state["call"])
        if here and len(pixel_values) > pictures:
            raise torch.OutOfMemoryError(f"tried to allocate room for {len(pixel_values)} pictures")

    around(VitHfForImageClassification, "forward", before=refuse)


def run_as_nobody() -> None:
    """Take from this process the right of root to write everywhere."""
    os.seteuid(65534)


# ------------------------------------------------------------------------------------------- the run goes wrong
def at_step(step: int, do: Callable[[], Any], *, rank: int | None = None) -> None:
    """Do something before a step."""

    def check(stepper: Stepper, number: int, *_: Any) -> None:
        if number == step and rank in (None, stepper.accelerator.process_index):
            do()

    around(Stepper, "take", before=check)


def in_an_evaluation(do: Callable[[], Any]) -> None:
    """Do something after the first batch of every evaluation."""
    around(loop, "_evaluation_goes_on", before=lambda *_: do())


def kill_a_loader_process() -> None:
    """Kill one of the processes that load pictures, as the system does when memory is short."""
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)


def spoil(what: str, value: float, *, step: int, rank: int = 0) -> None:
    """Make the loss, or the gradient only, infinite or NaN at a step on a rank."""
    now = {"step": 0}
    around(
        Stepper,
        "take",
        before=lambda stepper, number, *_: now.update(step=number, rank=stepper.accelerator.process_index),
    )
    before = Classification.loss

    def loss(task: Classification, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        found = before(task, model, batch)
        if now["step"] != step or now["rank"] != rank:
            return found
        if what == "loss":
            return found * value
        next(parameter for parameter in model.parameters() if parameter.requires_grad).register_hook(
            lambda g: g * value
        )
        return found

    Classification.loss = loss


def publish_in_place() -> None:
    """Write checkpoints where they belong, without a temporary folder, as a careless program would."""

    def publish(folder: RunFolder, name: str, write: Callable[[Path], Any], *, bytes_needed: int = 0) -> Path:
        target = folder.path / name
        target.mkdir(parents=True)
        write(target)
        files = {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()}
        entries = {name: {"sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()}
        (target / "manifest.json").write_text(json.dumps(entries))
        return target

    RunFolder.publish = publish


def always_better() -> None:
    """Take every evaluation for the best so far, so that each one publishes a model."""
    Classification.is_better = staticmethod(lambda row, best: True)


def raise_signal(kind: int) -> None:
    """Send this process a signal."""
    os.kill(os.getpid(), kind)


def wait_for(path: Path) -> None:
    """Do nothing until a file is there."""
    while not path.exists():
        time.sleep(0.001)


def fail(text: str) -> None:
    """Raise an error that nobody expects."""
    raise RuntimeError(text)


def compare_what_was_restored(report: Path) -> None:
    """Write down whether all tensors after a resume equal those of the files, bit for bit."""

    def compare(value: None, run: Any, folder: Path, state: dict[str, Any]) -> None:
        inner = run.accelerator.unwrap_model(run.model)
        tensors, _ = checkpoint.optimizer_tensors(inner, run.optimizer.optimizer)
        files = {"training/optimizer.safetensors": tensors}
        if run.average is None:
            files["model.safetensors"] = inner.state_dict()
        else:
            files["model.safetensors"] = run.average.module.state_dict()
            files["training/weights.safetensors"] = inner.state_dict()
        equal = {}
        for name, found in files.items():
            expected = load_file(folder / name)
            equal[name] = set(found) == set(expected) and all(
                torch.equal(found[key], expected[key]) and found[key].dtype == expected[key].dtype for key in expected
            )
        rate = run.schedule.get_last_lr() == state["schedule"]["_last_lr"]
        report.write_text(json.dumps({**equal, "learning rate": rate, "step": run.step == state["step"]}))

    around(session.Session, "_restore", after=compare)
