"""Exact resume: from every step, with every feature, by another number of processes; and what is refused (15 to 23)."""

import functools
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from vit_hf import Recipe, VitHfForImageClassification, VitHfImageProcessor
from vit_hf.data.loading import build_evaluation_loader
from vit_hf.data.pictures import open_pictures
from vit_hf.evaluation.scoring import score

from . import trial
from .crash import damage, die
from .harness import (
    Session,
    Tally,
    checkpoint_path,
    copy_run,
    difference,
    finish,
    mean_difference,
    published,
    ranks,
    small,
    with_loader_processes,
)

_MIXING = {"augmentation__mixup_alpha": 0.8, "augmentation__cutmix_alpha": 1.0}
_AUGMENTED = {
    "augmentation__rotation": 15.0,
    "augmentation__flip": True,
    "augmentation__crop": "inception",
    "augmentation__randaugment_ops": 2,
    "augmentation__randaugment_std": 0.5,
    "augmentation__color_jitter": 0.3,
    "augmentation__erasing": 0.5,
}
_DROPOUT = {"model__hidden_dropout_prob": 0.2, "model__attention_probs_dropout_prob": 0.1}
_DROP_PATH = {"model__drop_path_rate": 0.4, "model__num_hidden_layers": 2}

MIXES: dict[str, dict[str, Any]] = {
    "everything, two loader processes": {
        **_MIXING,
        **_AUGMENTED,
        **_DROPOUT,
        **_DROP_PATH,
        "optimization__max_device_batch_size": 8,
        "keep": "best",
    },
    "no EMA": {"optimization__ema_decay": None},
    "dropout": _DROPOUT,
    "drop path": _DROP_PATH,
    "augmentation": _AUGMENTED,
    "mixup and CutMix": _MIXING,
    "accumulation 3, an epoch ends inside a step": {
        "optimization__max_device_batch_size": 8,
        "data__max_train_images": 92,
        **_DROPOUT,
    },
    "accumulation 5, an epoch ends inside a step": {
        "optimization__batch_size": 20,
        "optimization__max_device_batch_size": 4,
        "data__max_train_images": 93,
        **_MIXING,
    },
    "augmentation, two loader processes": _AUGMENTED,
    "bf16": {"mixed_precision": "bf16", **_DROPOUT},
    "frozen backbone": {"model__freeze": ["vit.*"], **_DROPOUT},
    "three copies a picture": {"augmentation__repeats": 3, **_AUGMENTED},
    "SGD": {"optimization__optimizer": "sgd", "optimization__clip_norm": None, "optimization__ema_decay": None},
    "Muon": {"optimization__optimizer": "muon", "optimization__layer_decay": 0.7, **_DROPOUT},
    "best weights": {"keep": "best", "evaluate_every": 0.25, "optimization__ema_decay": 0.5},
    "BCE and layer decay": {"optimization__loss": "bce", "optimization__layer_decay": 0.7, **_MIXING},
    "constant rate, checkpointed activations": {"optimization__schedule": "constant", "gradient_checkpointing": True},
    "masked image modelling": {
        "task": "masked_image_modeling",
        "augmentation__mask_patch_size": 8,
        "optimization__label_smoothing": 0.0,
    },
}


def resume_at_every_step(folder: Path, *, mix: str, steps: tuple[int, ...] | None = None) -> Tally:
    """Resume after each step of a run: what is restored equals the files, and the end equals the run's (15, 16, 22)."""
    tally = Tally()
    make = with_loader_processes if "two loader processes" in mix else small
    recipe = make(checkpoint_limit=99, optimization__warmup_steps=2, **MIXES[mix])
    reference = finish(folder, recipe, name="reference").output
    last = recipe.optimization.max_steps or 0
    for step in steps or range(1, last):
        here = folder / f"after-{step}"
        copy_run(reference, here / "run", last_step=step)
        report = here / "report.json"
        finish(here, recipe, functools.partial(trial.compare_what_was_restored, report))
        found = difference(reference, here / "run")
        restored = json.loads(report.read_text())
        tally.counts["resumed"] += 1
        tally.counts["different"] += found != 0
        tally.check(found == 0, f"{mix}, after step {step}: differs by {found}")
        tally.check(all(restored.values()), f"{mix}, after step {step}: restored {restored}")
        shutil.rmtree(here)
    return tally


def evaluation_in_between(folder: Path) -> Tally:
    """Evaluating more often changes no weight, with all that is random on (case 17)."""
    tally = Tally()
    recipe = small(**{**MIXES["everything, two loader processes"], "keep": "last"})
    runs = [finish(folder, recipe.override({"evaluate_every": e}), name=f"every-{e}").output for e in (0.25, 100.0)]
    a, b = (load_file(run / "model.safetensors") for run in runs)
    tally.check(
        all(torch.equal(a[name], b[name]) for name in a), f"they differ by {mean_difference(*runs)} in the mean"
    )
    lines = [len((run / "metrics.jsonl").read_text().splitlines()) for run in runs]
    tally.check(lines == [6, 1], f"evaluations: {lines}")
    return tally


def already_finished(run: Path, recipe: Recipe) -> Tally:
    """Resuming a finished run says so and changes no byte (case 18)."""
    from .harness import digest

    tally = Tally()
    before = digest(run)
    session = finish(run.parent, recipe, output=run)
    tally.check("is finished: top-1" in session.log and "nothing to do" in session.log, session.log[-500:])
    tally.check(digest(run) == before, "files have changed")
    return tally


def refused(folder: Path) -> Tally:
    """Another batch size, length of data, seed or labels is an error that lists what differs (case 20)."""
    tally = Tally()
    source = _folder_of_pictures(folder / "pictures", seed=0)
    recipe = small(data__source=str(source), data__max_train_images=None, data__max_test_images=None)
    Session(folder, recipe, functools.partial(trial.at_step, 2, die)).end()
    run = folder / "run"
    relabelled = _folder_of_pictures(folder / "relabelled", seed=1)
    renamed = shutil.copytree(source, folder / "renamed")
    for split in ("train", "test"):
        (renamed / split / "2").rename(renamed / split / "two")
    shorter = shutil.copytree(source, folder / "shorter")
    next((shorter / "train" / "0").iterdir()).unlink()
    for name, changes, words in (
        ("batch size", {"optimization.batch_size": 12}, ["optimization.batch_size was 24 and is 12"]),
        ("seed", {"seed": 7}, ["seed was 0 and is 7"]),
        ("length", {"data.source": str(shorter)}, ["n of train was", "sha256 of train was"]),
        ("labels", {"data.source": str(relabelled)}, ["sha256 of train was"]),
        ("class names", {"data.source": str(renamed)}, ["belongs to another run"]),
        (
            "several at once",
            {"optimization.batch_size": 12, "seed": 7, "augmentation.flip": True},
            [
                "optimization.batch_size was 24 and is 12",
                "seed was 0 and is 7",
                "augmentation.flip was False and is True",
            ],
        ),
    ):
        session = Session(folder, recipe.override(changes), output=run)
        code = session.end()
        tally.counts["refused"] += code == 1
        tally.check(code == 1, f"{name}: exit code {code}, {session.taken} steps: {session.log[-800:]}")
        for word in [*words, "belongs to another run", "Resume with the recipe.yaml of its run folder"]:
            tally.check(word in session.log, f"{name}: no {word!r} in {session.log[-800:]}")
    tally.check(published(run) == [1], f"checkpoints {published(run)}")
    moved = finish(folder, recipe.override({"data.source": str(shutil.move(source, folder / "moved"))}), output=run)
    tally.check("resumed after step 1" in moved.log, "the same data at another place is the same run")
    return tally


def _folder_of_pictures(folder: Path, *, seed: int) -> Path:
    """Save the same pictures of noise; the seed shuffles their labels."""
    import numpy as np
    import PIL.Image

    pixels = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    labels = [number % 4 for number in range(80)]
    random.Random(seed).shuffle(labels)
    for number, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        path = folder / ("train" if number < 60 else "test") / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture).save(path)
    return folder


def a_damaged_state(run: Path, folder: Path, recipe: Recipe) -> Tally:
    """A checkpoint named by its path that has a missing or damaged file is an error, not another start (case 21)."""
    tally = Tally()
    for kind in ("remove", "flip", "truncate"):
        for name in ("training/state.json", "training/optimizer.safetensors", "manifest.json"):
            here = folder / f"{kind}-{name.replace('/', '-')}"
            copy_run(run, here / "run", last_step=3)
            newest = checkpoint_path(here / "run", 3)
            damage(newest / name, kind, random.Random(1))
            session = Session(here, recipe, resume=str(newest))
            code = session.end()
            tally.counts["refused"] += code == 1
            right = code == 1 and str(newest) in session.log and "Traceback" not in session.log
            tally.check(right, f"{kind} {name}: exit code {code}: {session.log[-800:]}")
            shutil.rmtree(here)
    return tally


def the_best_model(folder: Path) -> Tally:
    """The model that a run leaves scores on validation what its record says (case 23)."""
    tally = Tally()
    recipe = small(
        keep="best",
        evaluate_every=0.25,
        optimization__learning_rate=0.02,
        optimization__ema_decay=0.5,
        checkpoint_limit=1,
    )
    recipe = recipe.override({"data.validation_fraction": 0.1, "optimization.max_steps": 8})
    killed = Session(folder, recipe, functools.partial(trial.at_step, 6, die))
    killed.end()
    run = finish(folder, recipe).output
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((run / "results.json").read_text())
    best = max(row["top1"] for row in rows)
    pictures = open_pictures(recipe.data)
    assert pictures.validation is not None
    loader = build_evaluation_loader(
        pictures.validation,
        **pictures.columns,
        name="validation",
        processor=VitHfImageProcessor.from_pretrained(run),
        batch_size=256,
        workers=0,
    )
    model = VitHfForImageClassification.from_pretrained(run).eval()
    again = score(model, loader, Accelerator(cpu=True), num_samples=len(pictures.validation)).measure()["top1"]
    tally.counts["evaluations"] += len(rows)
    tally.check(len({row["top1"] for row in rows}) > 1, "all evaluations are alike: the test could not fail")
    tally.check(
        again == best == results["validation_top1"], f"now {again}, rows {best}, record {results['validation_top1']}"
    )
    return tally


# ------------------------------------------------------------------------------------------- number of processes
def other_numbers_of_processes(folder: Path, *, ways: tuple[tuple[int, int], ...] = ((2, 1), (1, 2))) -> Tally:
    """Go on with another number of processes: the same pictures a step, each once an epoch, the same losses (19)."""
    tally = Tally()
    recipe = small(optimization__max_steps=8, checkpoint_steps=3, optimization__max_device_batch_size=6, **_MIXING)
    expected = finish(folder, recipe, name="one")
    rows, losses = _steps([expected])
    epoch = 96 // 24
    for first in (1, 5):
        seen = sorted(row for step in range(first, first + epoch) for row in rows[step])
        tally.check(seen == list(range(96)), f"steps {first} to {first + epoch - 1} are no epoch: {seen}")
    for before, after in ways:
        here = folder / f"{before}-to-{after}"
        here.mkdir()
        sessions = ranks(here, recipe, functools.partial(trial.at_step, 5, die), count=before)
        codes = [session.end() for session in sessions]
        found = _steps(sessions)
        more = ranks(here, recipe, count=after)
        codes += [session.end() for session in more]
        tally.counts["changes"] += 1
        tally.check(codes[before:] == [0] * after, f"{before} to {after}: {codes}: {more[-1].log[-800:]}")
        later = _steps(more)
        tally.check(min(later[0], default=0) == 4, f"{before} to {after}: resumed with step {min(later[0], default=0)}")
        for step in range(1, 9):
            where = found if step <= 3 else later
            same = sorted(where[0].get(step, [])) == sorted(rows[step])
            tally.check(same, f"{before} to {after}, step {step}: {where[0].get(step)} instead of {rows[step]}")
            loss = where[1].get(step, math.nan)  # sums in another order: float32 rounding, carried on by the weights
            tally.check(math.isclose(loss, losses[step], abs_tol=1e-5), f"step {step}: loss {loss}, was {losses[step]}")
        mean = mean_difference(folder / "one", here / "run")
        tally.check(mean < 1e-5, f"{before} to {after}: the weights differ by {mean} in the mean")
    return tally


def _steps(sessions: list[Session]) -> tuple[dict[int, list[int]], dict[int, float]]:
    """Return the rows of each step over all processes, and its loss."""
    rows: dict[int, list[int]] = {}
    losses: dict[int, float] = {}
    for session in sessions:
        for note in session.notes:
            if "rows" in note:
                rows.setdefault(note["step"], []).extend(note["rows"])
            if "taken" in note:
                losses[note["taken"]] = note["loss"]
    return rows, losses
