"""Mode `epoch`: a whole training loop on CIFAR-100, ours against a timm-style and a Trainer-style script.

Every run is a process of its own (`epoch_runs`), and the libraries take turns step by step: while one takes a step, the
others and their loader processes are stopped. A run takes some steps, the first two not counted, and an epoch is as
many of the others as it has pictures: so a large set or network needs no whole epoch. Ours decodes the pixels once; the
first round begins without them, which its set-up time shows.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from .epoch_runs import TURN

LIBRARIES = ("vit_hf", "timm", "Trainer")
SKIPPED = 2  # steps at the beginning that are not counted
BATCHES = {"Ti": 128, "S": 64, "B": 32, "L": 8}  # on the CPU: steps of some seconds
STEPS = {"Ti": 10, "S": 6, "B": 4, "L": 4}


@dataclass(frozen=True)
class Case:
    """One training loop."""

    mode: str
    """"epoch"."""
    model: str
    """Variant with patches for 32 px, such as Ti/4."""
    what: str
    """The pictures, in words."""
    images: int
    processes: int
    precision: str
    device: str
    batch: int
    steps: int
    """Steps that count; or, where memory is watched, epochs times the steps of each."""
    epochs: int = 0
    """Epochs after which memory is looked at; 0 for a case that is timed."""

    libraries = LIBRARIES


def cases(
    models: list[str], images: list[int], processes: list[int], precisions: list[str], devices: list[str],
    batch: int | None, epochs: int,
) -> list[Case]:  # fmt: skip
    """Return what is run: all numbers of pictures and of processes with the first network, the others once.

    And for each device a run over some epochs of 512 pictures with the first network, to see whether memory grows.
    """
    made = []
    for device in devices:
        for precision in precisions:
            plans = [(models[0], count, 1) for count in images]
            plans += [(models[0], images[0], number) for number in processes if number > 1]
            plans += [(model, images[0], 1) for model in models[1:]]
            for model, count, number in plans:
                size = model.partition("/")[0]
                per_step = batch or (BATCHES.get(size, 8) if device == "cpu" else 512)
                what = f"{count:,} pictures" + (f", {number} processes" if number > 1 else "")
                steps = STEPS.get(size, 4) if device == "cpu" else 50
                if device == "cuda":  # else the others would begin their loaders anew in every step or two
                    count = max(count, 20 * per_step)
                    what = f"{count:,} pictures" + (f", {number} processes" if number > 1 else "")
                case = Case("epoch", model, what, count, number, precision, device, per_step, steps)
                made += [] if case in made else [case]
        if epochs:
            what = f"memory over {epochs} epochs of 512 pictures"
            per_step = batch or 128
            steps = epochs * max(512 // per_step, 1)
            made.append(Case("epoch", models[0], what, 512, 1, precisions[0], device, per_step, steps, epochs))
    return made


def missing(case: Case) -> str | None:
    """Return why a case cannot be run here, or None."""
    if case.device == "cuda" and torch.cuda.device_count() < case.processes:
        return f"{torch.cuda.device_count()} CUDA devices here, {case.processes} needed"
    if case.images < case.batch:  # loaders that leave out what is no full batch would have none
        return f"{case.images} pictures make no batch of {case.batch}: give fewer by --batch, or more by --images"
    return None


def measure(case: Case, source: str, *, rounds: int, threads: int, workers: int) -> dict[str, Any]:
    """Run all libraries in turns and return the record, as `models.measure`.

    A row's "seconds" are those of an epoch, by each step that counts; "runs" holds all that the clock said; "shown"
    what goes into the table beside it.
    """
    settings = {
        "model": case.model,
        "source": source,
        "images": case.images,
        "steps": case.steps + (0 if case.epochs else SKIPPED),
        "batch": case.batch,
        "workers": workers,
        "threads": max(threads // case.processes, 1),
        "precision": case.precision,
        "device": case.device,
        "turns": not case.epochs,
    }
    rows: dict[str, dict[str, Any]] = {library: {"runs": []} for library in LIBRARIES}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(1 if case.epochs else rounds):
            left = [name for name in LIBRARIES if "failure" not in rows[name]]
            for names in [[name] for name in left] if case.epochs else [left]:
                found = _take_turns({name: _Run(name, settings, case.processes, cache) for name in names}, case)
                for name, record in found.items():
                    rows[name] |= {"runs": [*rows[name]["runs"], record]} if "failure" not in record else record
    for row in rows.values():
        if row["runs"] and "failure" not in row:
            row |= _watched(row["runs"][0]) if case.epochs else _timed(row["runs"], case)
    return {"case": asdict(case), "pictures": case.images, "rows": rows, "agrees": True}


def _take_turns(runs: dict[str, "_Run"], case: Case) -> dict[str, dict[str, Any]]:
    """Let runs take their steps and return what each found."""
    try:
        for number in range(0 if case.epochs else case.steps + SKIPPED):
            for name in list(runs) if number % 2 == 0 else reversed(runs):
                runs[name].take_a_turn()
        return {name: run.finish() for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.kill()


class _Run:
    """A run of a library; one that takes turns stands still, with all its processes, until it is asked for one."""

    def __init__(self, library: str, settings: Mapping[str, Any], processes: int, cache: str):
        folder = Path(__file__).resolve().parents[1]
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": path, "VIT_HF_CACHE": cache, "TOKENIZERS_PARALLELISM": "false"}
        environment["OMP_NUM_THREADS"] = str(settings["threads"])
        if settings["device"] == "cpu":  # where there is a GPU ours would take it, and all loaders pin their batches
            environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m"]
        if processes > 1:
            launch = ["--multi_gpu", "--num_processes", str(processes), "--num_machines", "1"]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
            command += ["accelerate.commands.launch", *launch, "--main_process_port", str(_free_port()), "--module"]
        command += ["benchmarks.epoch_runs", library, json.dumps(dict(settings))]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - as long as the process
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen(command, env=environment, text=True, **pipes)
        self._lines: list[str] = []
        self._seen: set[psutil.Process] = set()
        if settings["turns"]:
            self._go_on()

    def take_a_turn(self) -> None:
        """Let it take a step, unless it has ended."""
        for process in self._family():
            process.resume()
        self._go_on()

    def _go_on(self) -> None:
        """Follow it to its next stop, or to its end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if line.startswith(f"{TURN} "):
                if _stops(int(line.split()[1])):
                    for process in self._family():
                        process.suspend()
                else:
                    self.kill()  # all of it: what is left would keep its pipe open
                return

    def _family(self) -> list[psutil.Process]:
        """Return its processes that still run, the newest first, those whose parent has died too."""
        if self._process.poll() is None:
            first = psutil.Process(self._process.pid)
            self._seen |= {first, *first.children(recursive=True)}
        alive = [process for process in self._seen if process.is_running()]
        return sorted(alive, key=psutil.Process.create_time, reverse=True)

    def kill(self) -> None:
        """End what is left of it, stopped or not."""
        for process in self._family():
            process.kill()

    def finish(self) -> dict[str, Any]:
        """Wait for its end and return what it found, or its "failure"."""
        for process in self._family():
            process.resume()
        with self._process as process, self._errors as errors:
            assert process.stdout is not None
            self._lines += process.stdout
            status = process.wait()
            errors.seek(0)
            lines = errors.read().splitlines()
        found = [line for line in self._lines if line.startswith('{"setup_seconds"')]
        if status or not found:
            said = [line for line in lines if re.match(r"(\[rank\d\]: )?\w*(Error|Exception)\b", line)]
            return {"failure": f"exit status {status}: {(said or lines or ['it printed nothing'])[-1]}"[:300]}
        return json.loads(found[-1])


def _stops(pid: int) -> bool:
    """Wait until a process has stopped itself, and return whether it did; not when it dies instead."""
    try:
        process = psutil.Process(pid)
        while (status := process.status()) not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(1e-3)
    except psutil.NoSuchProcess:
        return False
    return status == psutil.STATUS_STOPPED


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _timed(runs: list[dict[str, Any]], case: Case) -> dict[str, Any]:
    steps = [run["step_seconds"][SKIPPED:] for run in runs]
    waits = [run["wait_seconds"][SKIPPED:] for run in runs]
    seconds = [case.images / case.batch * step for each in steps for step in each]
    setups = [run["setup_seconds"] for run in runs]
    share = sum(map(sum, waits)) / sum(map(sum, steps))
    setup = f"{setups[0]:.1f}" + (f", then {statistics.median(setups[1:]):.1f}" if setups[1:] else "")
    shown = {
        "epoch (s)": f"{statistics.median(seconds):,.1f}",
        "waits for input": f"{share:.1%}",
        "set-up (s)": setup,
    }
    return {"seconds": seconds, "waits": share, "shown": shown}


def _watched(run: dict[str, Any]) -> dict[str, Any]:
    held = [round(size / 2**20) for size in run["rss"]]
    return {"rss_mib": held, "shown": {"held after each epoch (MiB)": " ".join(map(str, held))}}
