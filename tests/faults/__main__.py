"""All cases in the numbers that are to hold; prints and writes the figures.

    python -m tests.faults [--kills 200] [--sigterms 50] [--budgets 20] [--mixes 17] [--flips 2000] [--cuts 500]
                           [--pictures 2000] [--seed N] [--output FILE]

Exit code 1 if a figure does not hold.
"""

import argparse
import functools
import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
import transformers

from . import crash, hub, pictures, preemption, resources, resuming, weights
from .harness import Tally, finish, published, small

Case = Callable[[Path], Tally]


def cases(options: argparse.Namespace) -> list[tuple[str, str, Case]]:
    """Return all cases as numbers, name, and function; long ones in parts, the longest first."""
    seed, of = options.seed, functools.partial
    shares = [options.kills // 4 + (part < options.kills % 4) for part in range(4)]
    found: list[tuple[str, str, Case]] = [
        ("1, 4", "SIGKILL at random moments", of(crash.random_kills, seed=seed * 4 + part, kills=share))
        for part, share in enumerate(shares)
        if share
    ]
    for phase, parts in (("save", 3), ("evaluation", 2), ("end", 2)):
        found += [
            (
                "2, 3",
                f"SIGKILL at every point of the {phase}",
                of(crash.kills_at_points, phase=phase, part=p, parts=parts),
            )
            for p in range(parts)
        ]
    mixes = list(resuming.MIXES)[: options.mixes]
    found += [("15, 16, 22", "resume after every step", of(resuming.resume_at_every_step, mix=mix)) for mix in mixes]
    halves = [options.sigterms - options.sigterms // 2, options.sigterms // 2]
    found += [
        ("11, 14", "SIGTERM or Ctrl-C at random moments", of(preemption.random_requests, seed=seed * 2 + p, requests=n))
        for p, n in enumerate(halves)
        if n
    ]
    halves = [options.budgets - options.budgets // 2, options.budgets // 2]
    found += [
        ("7", "full disks", of(crash.full_disks, seed=seed * 2 + part, budgets=share))
        for part, share in enumerate(halves)
        if share
    ]
    found += [
        ("46", f"a rank of accelerate launch {kind}", of(resources.a_lost_rank, kind=kind))
        for kind in resources.RANK_FAULTS
    ]
    found += [
        ("46", f"one of two ranks {kind}", of(resources.a_lost_rank_without_a_launcher, kind=kind))
        for kind in resources.RANK_FAULTS
    ]
    found += [
        ("47", "runs that push to a dead Hub", of(hub.runs_with_a_dead_hub, how=how))
        for how in ("status", "reset", "hang")
    ]
    return [
        *found,
        ("5", "left-over folders", crash.left_over_folders),
        ("5, 9", "killed with loader processes", crash.killed_with_workers),
        ("6, 21", "damaged files", of(_damaged, seed=seed)),
        ("4, 6", "a damaged checkpoint in front", crash.a_damaged_checkpoint_in_front),
        ("8", "places that cannot be written", crash.places_that_cannot_be_written),
        ("8", "read-only", crash.read_only),
        ("9", "two writers", crash.two_writers),
        ("10", "a step that is there already", crash.a_step_that_is_there_already),
        ("11, 14", "requests outside the steps", preemption.a_request_outside_the_steps),
        ("11, 14", "requests to the whole group", preemption.requests_to_the_whole_group),
        ("12", "requests that are not waited for", preemption.requests_that_are_not_waited_for),
        ("12, 14", "requests at chosen moments", preemption.named_requests),
        ("13", "a request to one of two ranks", preemption.a_request_to_one_of_two_ranks),
        ("17", "evaluation in between", resuming.evaluation_in_between),
        ("18", "finished already", _finished),
        ("19", "2 to 1 and 1 to 2 processes", resuming.other_numbers_of_processes),
        ("20", "another run", resuming.refused),
        ("23", "the best model", resuming.the_best_model),
        (
            "24, 25",
            "flipped bits and cuts",
            of(weights.flips_and_cuts, seed=seed, flips=options.flips, cuts=options.cuts),
        ),
        ("24, 27", "crafted safetensors", weights.crafted_headers),
        ("26, 27, 32", "tensors and labels that do not fit", weights.spoiled_tensors),
        ("28", "pickles", weights.pickles),
        ("29", "indices of shards", weights.shard_indices),
        ("25", "hostile manifests", weights.manifests),
        ("30", "configs that ask for too much", weights.config_bombs),
        ("31", "configs that ask for code", weights.config_wishes),
        ("25", "speed of the hash", weights.hash_speed),
        ("33 to 38", "bad and odd pictures", pictures.bad_pictures),
        ("35", "damaged pictures", of(pictures.damaged_pictures, seed=seed, pictures=options.pictures)),
        ("35", "passed over by two processes", pictures.passed_over_by_two),
        ("35", "a broken source on two processes", pictures.a_broken_source_on_two),
        ("41", "fewer pictures than processes", pictures.fewer_pictures_than_processes),
        ("43", "killed loader processes", of(resources.killed_loaders, seed=seed, kills=12)),
        ("44", "NaN and infinity", resources.bad_numbers),
        ("44", "NaN on one of two ranks", resources.bad_numbers_on_one_of_two_ranks),
        ("45", "too little memory", resources.too_little_memory),
        ("47", "one fault of each endpoint of the Hub", hub.passing_faults),
        ("47", "lasting faults of the Hub", hub.lasting_faults),
        ("48", "lost answers of the Hub", hub.lost_answers),
        ("49", "refusals of the Hub", hub.refusals),
        ("50", "damaged downloads", hub.damaged_downloads),
        ("51", "push, then pull", hub.round_trips),
        ("52", "what leaves with a push", hub.what_leaves),
    ]


def _damaged(folder: Path, *, seed: int) -> Tally:
    recipe = small(checkpoint_limit=9)
    run = finish(folder, recipe).output
    assert published(run) == [1, 2, 3, 4, 5, 6]
    tally = crash.damaged_files(run, folder, seed=seed, rounds=10)
    tally.add(crash.all_damaged(run, folder))
    (folder / "named").mkdir()
    tally.add(resuming.a_damaged_state(run, folder / "named", recipe))
    return tally


def _finished(folder: Path) -> Tally:
    recipe = small(optimization__max_steps=2)
    return resuming.already_finished(finish(folder, recipe).output, recipe)


def _try(case: Case) -> tuple[Tally, float]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vit-hf-faults-") as name:
        Path(name).chmod(0o755)
        try:
            tally = case(Path(name))
        except Exception:
            tally = Tally(problems=[traceback.format_exc()])
    return tally, time.monotonic() - began


def main() -> int:
    """Run all cases, three at a time; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=(__doc__ or "").splitlines()[0])
    for name, count in (
        ("kills", 200),
        ("sigterms", 50),
        ("budgets", 20),
        ("mixes", len(resuming.MIXES)),
        ("flips", 2_000),
        ("cuts", 500),
        ("pictures", 2_000),
        ("seed", 0),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, metavar="N", help=f"{count} when not given")
    parser.add_argument("--output", type=Path, metavar="FILE", help="for the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("vit_hf").setLevel(logging.ERROR)  # damage is what is tried here
    transformers.utils.logging.disable_progress_bar()
    began = time.monotonic()
    sums: dict[tuple[str, str], tuple[Tally, list[float]]] = {}
    chosen = cases(options)
    with ThreadPoolExecutor(3) as pool:  # many of them wait
        running: dict[Future, tuple[str, str]] = {pool.submit(_try, case): (of, name) for of, name, case in chosen}
        for done, future in enumerate(as_completed(running), 1):
            tally, seconds = future.result()
            total, times = sums.setdefault(running[future], (Tally(), []))
            total.add(tally)
            times.append(seconds)
            state = "holds" if not tally.problems else "DOES NOT HOLD"
            print(
                f"[{done}/{len(running)}, {time.monotonic() - began:.0f} s] {running[future][1]}: {state}", flush=True
            )
    figures = []
    print(f"\n{'cases':<12}{'what':<42}{'holds':<7}{'s':>6}  figures")
    for of, name in dict.fromkeys((of, name) for of, name, _ in chosen):
        tally, times = sums[of, name]
        counts = {key: round(value, 2) for key, value in tally.counts.items()}
        entry = {"cases": of, "name": name, "holds": not tally.problems, "seconds": round(sum(times), 1), **counts}
        figures.append({**entry, "problems": tally.problems})
        text = ", ".join(f"{value:g} {key}" for key, value in counts.items())
        print(f"{of:<12}{name:<42}{'no' if tally.problems else 'yes':<7}{sum(times):>6.1f}  {text}")
    wrong = [f"{entry['name']}: {problem}" for entry in figures for problem in entry["problems"]]
    for problem in wrong[:20]:
        print(f"\n{problem}")
    seconds = round(time.monotonic() - began, 1)
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    settings = {
        name: getattr(options, name)
        for name in ("kills", "sigterms", "budgets", "mixes", "flips", "cuts", "pictures", "seed")
    }
    print(f"\n{len(figures)} figures, {len(wrong)} problems, {seconds:g} s on {os.cpu_count()} cores")
    if options.output is not None:
        content = {"settings": settings, "versions": versions, "seconds": seconds, "figures": figures}
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
