"""Bad pictures, and sets of few: what they do to a reader, and to a run of two processes (cases 33 to 41)."""

import io
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from vit_hf import Recipe

from .harness import Tally, checkpoint_path, finish, ranks, small

sys.path.append(str(Path(__file__).parents[1]))  # where the corpus is, when this is not run by pytest
from bad_images import ERROR, PICTURE, REFUSED, WARNING, Case, corpus
from image_trials import CRASH, HANG, MEBIBYTE, OTHER, PLACE, Finding, try_all

_EDGES = (0, 1, 127, 128, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def bad_pictures(folder: Path) -> Tally:
    """Each picture of the corpus comes to what it should, refusals in 100 ms and 50 MiB (cases 33 to 38)."""
    tally = Tally()
    findings = try_all(corpus(), folder)
    for finding in findings:
        problem = finding.problem()
        tally.check(problem is None, str(problem))
        tally.counts["bad pictures"] += finding.case.outcome in (ERROR, REFUSED)
        tally.counts["odd pictures"] += finding.case.outcome in (PICTURE, WARNING)
        _count(tally, finding)
    refused = [finding for finding in findings if finding.outcome == REFUSED]
    tally.counts["most ms to refuse"] = 1000 * max(finding.seconds for finding in refused)
    tally.counts["most MiB to refuse"] = max(finding.peak_bytes for finding in refused) / MEBIBYTE
    tally.check(tally.counts["bad pictures"] >= 200, "the corpus has become small")
    return tally


def damaged_pictures(folder: Path, *, seed: int = 0, pictures: int = 500) -> Tally:
    """Random damage of all pictures of the corpus: no hang, no crash, no error without a path (case 35)."""
    tally = Tally()
    for finding in try_all(list(_mutants(seed, pictures)), folder):
        tally.counts["damaged pictures"] += 1
        tally.counts["errors"] += finding.outcome in (ERROR, REFUSED)
        _count(tally, finding)
        known = finding.outcome in (ERROR, REFUSED, WARNING, PICTURE)
        tally.check(known, f"{finding.case.name}: {finding.outcome}: {finding.text}: {finding.case.data[:4000].hex()}")
    return tally


def _count(tally: Tally, finding: Finding) -> None:
    tally.counts["hangs"] += finding.outcome == HANG
    tally.counts["crashes"] += finding.outcome in (CRASH, OTHER)
    named = PLACE in finding.text and finding.path in finding.text
    nameless = finding.outcome in (ERROR, REFUSED) and not named
    tally.counts["errors without a path"] += nameless
    tally.check(not nameless, f"{finding.case.name}: no path in {finding.text}")


def _mutants(seed: int, count: int) -> Iterator[Case]:
    generator = random.Random(seed)
    seeds = [case for case in corpus() if case.outcome in (WARNING, PICTURE) and 64 < len(case.data) < 5_000]
    for number in range(count):
        case = generator.choice(seeds)
        data = bytearray(case.data)
        for _ in range(generator.choice((1, 1, 2, 4, 8))):
            place = generator.randrange(min(len(data), generator.choice((64, 200, len(data)))))
            kind = generator.random()
            if kind < 0.4:
                data[place] ^= 1 << generator.randrange(8)
            elif kind < 0.7:
                size = generator.choice((1, 2, 4))
                value = generator.choice(_EDGES) % 256**size
                data[place : place + size] = value.to_bytes(size, generator.choice(("big", "little")))
            elif kind < 0.85:
                del data[place : place + generator.randrange(1, 40)]
            else:
                data[place:place] = data[: generator.randrange(40)]
            data = data or bytearray(1)
        yield Case(f"{number}: {case.name}", bytes(data), ERROR)


# ------------------------------------------------------------------------------------------- runs
def save(folder: Path, *, first: int = 0, bad: dict[str, tuple[int, ...]] | None = None, **counts: int) -> Path:
    """Save splits of noise of several sizes, some of them cut in the middle."""
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["ant", "bee"])})
    splits = {}
    for split, count in counts.items():
        images = []
        for row in range(count):
            first += 1
            pixels = np.random.default_rng(first).integers(0, 256, (9 + row % 2, 12, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            PIL.Image.fromarray(pixels).save(buffer, "PNG")
            data = buffer.getvalue()
            data = data[: len(data) // 2] if row in (bad or {}).get(split, ()) else data
            images.append({"bytes": data, "path": f"{split}-{row}.png"})
        rows = {"image": images, "label": [row % 2 for row in range(count)]}
        splits[split] = Dataset.from_dict(rows, features=features)
    DatasetDict(splits).save_to_disk(str(folder))
    return folder


def _recipe(data: Path, **changes: object) -> Recipe:
    options = {"data__source": str(data), "data__max_train_images": None, "data__max_test_images": None}
    options |= {"data__validation_fraction": 0.0, "keep": "last", "model__image_size": 8, "checkpoint_limit": 9}
    return small(**{**options, **changes})


def passed_over_by_two(folder: Path) -> Tally:
    """Two processes pass over the same pictures as one, count alike, and one goes on where two were (case 35)."""
    tally = Tally()
    bad = {"train": (3, 4, 50, 95), "test": (0, 7, 19)}
    data = save(folder / "data", train=96, test=20, bad=bad)
    recipe = _recipe(data, data__on_bad_image="skip", workers=1)
    one = finish(folder, recipe, name="one").output
    sessions = ranks(folder, recipe, name="two")
    codes = [session.end() for session in sessions]
    tally.check(codes == [0, 0], f"exit codes {codes}: {sessions[0].log[-2000:]}")
    logged = [line for session in sessions for line in session.log.splitlines() if "left out: row" in line]
    tally.check(len(logged) == 7, f"not each once, by one process: {logged}")
    expected = {"train": 4, "test": 3}
    for output in (one, folder / "two"):
        results = json.loads((output / "results.json").read_text())
        tally.check(results["bad_images"] == expected, f"{output.name} counts {results['bad_images']}")
        tally.check(results["n"] == 17, f"{output.name} scores {results['n']} pictures")
        lines = [json.loads(line) for line in (output / "bad_images.jsonl").read_text().splitlines()]
        found = {split: tuple(entry["row"] for entry in lines if entry["split"] == split) for split in expected}
        tally.check(found == bad, f"{output.name} records {found}")
        tally.counts["bad pictures"] += len(lines)
    states = [
        json.loads((checkpoint_path(output, 6) / "training" / "state.json").read_text())["bad_images"]
        for output in (one, folder / "two")
    ]
    tally.check(states[0] == states[1], f"the checkpoints of one and two differ: {states}")
    same = (one / "bad_images.jsonl").read_bytes() == (folder / "two" / "bad_images.jsonl").read_bytes()
    tally.check(same, "the records of one and two differ")
    return tally


def fewer_pictures_than_processes(folder: Path) -> Tally:
    """Two processes train on one picture and score one (case 41)."""
    tally = Tally()
    recipe = _recipe(save(folder / "data", train=1, test=1), optimization__max_steps=2)
    sessions = ranks(folder, recipe, name="two")
    codes = [session.end() for session in sessions]
    tally.check(codes == [0, 0], f"exit codes {codes}: {sessions[0].log[-2000:]}")
    results = json.loads((folder / "two" / "results.json").read_text())
    tally.check(results["n"] == 1, f"{results['n']} pictures were scored, there is one")
    tally.counts["runs"] += 1
    return tally


def a_broken_source_on_two(folder: Path) -> Tally:
    """Too many bad pictures end both processes, with one message that names the first (case 35)."""
    tally = Tally()
    data = save(folder / "data", train=96, test=20, bad={"train": tuple(range(0, 96, 4))})
    sessions = ranks(folder, _recipe(data, data__on_bad_image="skip"), name="two")
    codes = [session.end() for session in sessions]
    tally.counts["runs"] += 1
    log = "\n".join(session.log for session in sessions)
    tally.check(0 not in codes, f"exit codes {codes}")
    tally.check(log.count("pictures of split train cannot be decoded, more than 10 and 1%") == 1, log[-2000:])
    tally.check("Traceback" not in log, log[-3000:])
    return tally
