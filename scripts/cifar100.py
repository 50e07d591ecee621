"""Train CIFAR-100 in earnest by one command: with labels only, by masked autoencoding first, and what transfers.

    python scripts/cifar100.py --data ../cifar100 --output runs/cifar100       # on a GPU; the recipes say how long
    python scripts/cifar100.py --data ../cifar100 --output runs/proof --small  # on a CPU; proves the path only

Stages: `scratch` (recipe cifar100_scratch), `mae` (cifar100_mae), `finetune` (cifar100_finetune from it), each for all
seeds; `transfer`; `cards`. Each run is a folder of `vit_hf.train`: finished ones are skipped, begun ones resumed. So
the same command goes on after SIGTERM, Ctrl-C or --minutes, which all end it at a step boundary with exit code 75.

Transfer: the net is fine-tuned on few pictures of digits (scikit-learn's) and of ten classes of CIFAR-100 (every tenth
by the alphabet), and trained on them from scratch in as many steps. It starts from labels or from MAE. For the ten
classes "labels" are those of the other 90 only, in a run of its own (`other90`); MAE saw the training pictures of all
100 classes, without labels. The few pictures are the same ones for every start and seed; the seed changes all else.

What to record is printed and written beside the runs: results.md, transfer.png, and a card a stage in cards/.
"""

import argparse
import json
import shutil
import signal
import statistics
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel
from safetensors import safe_open
from safetensors.torch import save_file

from vit_hf import Recipe, get_recipe, train
from vit_hf.data.pictures import open_pictures
from vit_hf.data.sources import load_source
from vit_hf.evaluation.analysis import analyse
from vit_hf.evaluation.output import published, write_scores
from vit_hf.evaluation.predictions import Predictions
from vit_hf.evaluation.scoring import Scores
from vit_hf.inspection.style import BLUE, GREEN, VERMILION, add_legend, new_figure, save_figure, style_axes
from vit_hf.sharing.card import write_card
from vit_hf.sharing.reproduce import reproduce
from vit_hf.sharing.rescore import score_again
from vit_hf.sharing.snapshot import complete, freeze
from vit_hf.training.interruption import EXIT_INTERRUPTED, TrainingInterrupted
from vit_hf.training.state import MANIFEST

STAGES = ("scratch", "mae", "finetune", "transfer", "cards")
GOALS = {"scratch": 0.80, "finetune": 0.83}  # mean top-1 on the test pictures
RELEASE_BYTES, ROUNDING = 15_000_000, 0.002  # by which top-1 may change when weights are rounded
STARTS = ("scratch", "labels", "mae")  # of transfer
COUNTS = {"digits": (10, 100, 143), "ten": (10, 100, 500)}  # training pictures a class; the last is all there are

SMALL = {
    "data.max_train_images": 1000,
    "data.max_test_images": 1000,
    "optimization.batch_size": 50,
    "mixed_precision": "no",
    "trackers": (),
    "cpu_threads": 1,
}
SMALL_NET = {
    "model.patch_size": 4,
    "model.hidden_size": 64,
    "model.num_hidden_layers": 3,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 128,
}
SMALL_DECODER = {
    "model.decoder_num_hidden_layers": 1,
    "model.decoder_hidden_size": 32,
    "model.decoder_num_attention_heads": 2,
    "model.decoder_intermediate_size": 64,
    "augmentation.mask_patch_size": 4,
}
SMALL_EPOCHS = {"scratch": 4, "mae": 4, "finetune": 4}
SMALL_STEPS = 40  # of transfer


# ---------------------------------------------------------------------------------------------- what is run
def stage_recipe(stage: str, options: argparse.Namespace, seed: int) -> Recipe:
    """Return the recipe of a run of scratch, mae or finetune."""
    fields: dict[str, Any] = {"data.source": options.data, "seed": seed, "compile": torch.cuda.is_available()}
    if stage == "finetune":
        fields["model.init_from"] = str(options.output / f"mae-{seed}")
    if options.small:
        epochs = SMALL_EPOCHS[stage]
        fields |= {
            **SMALL,
            "optimization.epochs": epochs,
            "optimization.warmup_epochs": 1,
            "evaluate_every": epochs / 4,
        }
        fields |= {"compile": False, **({} if stage == "finetune" else SMALL_NET)}
        fields |= SMALL_DECODER if stage == "mae" else {}
    return get_recipe(f"cifar100_{stage}").override(fields)


def transfer_recipe(target: str, start: str, count: int, seed: int, options: argparse.Namespace) -> Recipe:
    """Return the recipe of a run on few pictures: cifar100_finetune, shorter, on all that are left for training.

    Both kinds of start take as many steps at the same learning rate, which falls with depth after pre-training only.
    """
    fields: dict[str, Any] = {
        "name": "cifar100_transfer",
        "data.source": "digits" if target == "digits" else str(options.output / "data" / target),
        "data.validation_fraction": 0.0,
        "data.max_train_images": 10 * count,
        "optimization.max_steps": 1000,
        "optimization.warmup_epochs": 0.0,
        "optimization.warmup_steps": 50,
        "optimization.batch_size": 64,
        "optimization.learning_rate_batch_size": None,
        "optimization.ema_decay": None,
        "evaluate_every": 1e6,
        "trackers": (),
        "seed": seed,
    }
    if target == "digits":  # which no mirror, crop or CutMix leaves what they are
        off = ("randaugment_ops", "erasing", "mixup_alpha", "cutmix_alpha")
        fields |= {f"augmentation.{name}": 0 for name in off} | {
            "augmentation.crop": "none",
            "augmentation.flip": False,
        }
        fields |= {"augmentation.rotation": 10.0, "augmentation.translation": 0.07, "augmentation.scaling": 0.1}
    if options.small:
        fields |= {**SMALL, "data.max_train_images": 10 * count, "optimization.max_steps": SMALL_STEPS}
        fields |= {"optimization.warmup_steps": 5, "optimization.batch_size": 20}
    if start == "scratch":
        net = stage_recipe("scratch", options, seed).to_dict()["model"]
        fields |= {f"model.{name}": value for name, value in net.items()} | {"optimization.layer_decay": None}
    else:
        folder = {"mae": "mae", "labels": "other90" if target == "ten" else "scratch"}[start]
        fields["model.init_from"] = str(options.output / f"{folder}-{options.seeds[0]}")
    return get_recipe("cifar100_finetune").override(fields)


def runs(stage: str, options: argparse.Namespace) -> Iterator[tuple[str, Recipe]]:
    """Yield folder name and recipe of each run of a stage, in the order in which they build on each other."""
    if stage == "transfer":
        first = stage_recipe("scratch", options, options.seeds[0])
        yield f"other90-{options.seeds[0]}", first.override({"data.source": str(options.output / "data" / "ninety")})
        for target, counts in COUNTS.items():
            for count in counts[:2] if options.small else counts:
                for start in STARTS:
                    for seed in options.seeds:
                        yield (
                            f"transfer/{target}-{count}-{start}-{seed}",
                            transfer_recipe(target, start, count, seed, options),
                        )
    elif stage != "cards":
        for seed in options.seeds:
            yield f"{stage}-{seed}", stage_recipe(stage, options, seed)


def make_subsets(options: argparse.Namespace) -> None:
    """Write every tenth class, and the other 90, as folders of Parquet files in output/data, if they are not there."""
    if all((options.output / "data" / name).is_dir() for name in ("ten", "ninety")):
        return
    source = load_source(options.data)
    image, label = source.image_column, source.label_column
    every = np.arange(len(source.label_names))
    for name, classes in (("ten", every[::10]), ("ninety", every[every % 10 != 0])):
        folder = options.output / "data" / name
        shutil.rmtree(folder, ignore_errors=True)
        names = [source.label_names[place] for place in classes]
        with published(folder) as made:
            for split in ("train", "test"):
                rows = source.split(split)
                labels = np.asarray(rows[label])
                kept = np.flatnonzero(np.isin(labels, classes))
                part = rows.select(kept).select_columns([image])
                part = part.add_column("label", np.searchsorted(classes, labels[kept]).tolist())
                part.cast_column("label", ClassLabel(names=names)).to_parquet(made / f"{split}-00000-of-00001.parquet")


def run_stage(stage: str, options: argparse.Namespace) -> None:
    """Do the runs of a stage that are not finished."""
    if stage == "transfer":
        make_subsets(options)
    for name, recipe in runs(stage, options):
        folder = options.output / name
        if (folder / "results.json").is_file():
            if Recipe.from_yaml(folder / "recipe.yaml") != recipe:
                raise ValueError(f"{folder} is a finished run of another recipe; choose another --output, or remove it")
            continue
        print(f"\n== {name}", flush=True)
        train(recipe, output=folder, resume="auto", quiet=options.quiet)


# ---------------------------------------------------------------------------------------------- what is recorded
def finished(options: argparse.Namespace, stage: str) -> list[Path]:
    """Return the finished run folders of a stage, by seed."""
    found = [options.output / f"{stage}-{seed}" for seed in options.seeds]
    return [folder for folder in found if (folder / "results.json").is_file()]


def read(folder: Path) -> dict[str, Any]:
    """Return results.json of a run."""
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def spread(values: list[Any], form: str) -> str:
    """Return mean +- standard deviation of several values, one value as it is, "-" where one is missing."""
    if not values or None in values:
        return "-"
    mean = format(statistics.fmean(values), form)
    return f"{mean} +- {format(statistics.stdev(values), form)}" if len(values) > 1 else mean


def results_table(options: argparse.Namespace) -> str:
    """Return a row for each stage with finished runs."""
    head = [
        "stage",
        "seeds",
        "top-1",
        "top-5",
        "loss",
        "parameters",
        "epochs",
        "seconds",
        "images/s",
        "MFU",
        "hardware",
    ]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for stage in ("scratch", "mae", "finetune", "other90"):
        found = [read(folder) for folder in finished(options, stage)]
        if not found:
            continue
        columns = {key: [result.get(key) for result in found] for key in (*found[0], "top1", "top5")}
        cells = [stage, ", ".join(str(result["seed"]) for result in found)]
        cells += [spread(columns[key], ".2%") for key in ("top1", "top5")] + [spread(columns["loss"], ".4f")]
        cells += [f"{found[0]['parameters']:,}", f"{found[0]['epochs']:g}", spread(columns["seconds"], ",.0f")]
        cells += [spread(columns.get("images_per_second", []), ",.0f"), spread(columns.get("mfu", []), ".1%")]
        lines.append("| " + " | ".join([*cells, ", ".join(dict.fromkeys(map(str, columns["device"])))]) + " |")
    return "\n".join(lines)


def transfer_scores(options: argparse.Namespace) -> dict[tuple[str, int, str], list[float]]:
    """Return top-1 of the finished runs by target, pictures a class and start."""
    scores: dict[tuple[str, int, str], list[float]] = {}
    for name, _ in runs("transfer", options):
        folder = options.output / name
        if name.startswith("transfer/") and (folder / "results.json").is_file():
            target, count, start, _ = folder.name.split("-")
            scores.setdefault((target, int(count), start), []).append(read(folder)["top1"])
    return scores


def transfer_table(scores: dict[tuple[str, int, str], list[float]]) -> str:
    """Return a row for each target and number of pictures, a column for each start."""
    lines = [f"| target | training pictures a class | from {' | from '.join(STARTS)} |", "|---" * 5 + "|"]
    for target, count in dict.fromkeys(key[:2] for key in scores):
        cells = [spread(scores.get((target, count, start), []), ".2%") for start in STARTS]
        lines.append(f"| {target} | {count} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_transfer(scores: dict[tuple[str, int, str], list[float]], path: Path) -> None:
    """Draw top-1 over the pictures a class, a panel for each target, mean and standard deviation of the seeds."""
    targets = list(dict.fromkeys(key[0] for key in scores))
    figure = new_figure(4.2 * len(targets), 3.4)
    for ax, target in zip(figure.subplots(1, len(targets), squeeze=False)[0], targets, strict=True):
        for start, colour, mark in zip(STARTS, (VERMILION, BLUE, GREEN), "os^", strict=True):
            counts = sorted(count for name, count, begun in scores if (name, begun) == (target, start))
            values = [[100 * score for score in scores[target, count, start]] for count in counts]
            deviations = [statistics.stdev(some) if len(some) > 1 else 0.0 for some in values]
            means = [statistics.fmean(some) for some in values]
            places = [count * (0.95 + 0.05 * STARTS.index(start)) for count in counts]  # side by side
            ax.errorbar(places, means, deviations, color=colour, marker=mark, capsize=3, label=f"from {start}")
        ax.set_xscale("log")
        ticks = sorted({count for name, count, _ in scores if name == target})
        ax.set_xticks(ticks, [str(count) for count in ticks])
        ax.minorticks_off()
        ax.set_title({"digits": "digits", "ten": "ten classes of CIFAR-100"}[target])
        style_axes(ax, "training pictures a class", "top-1 (%)")
        add_legend(ax)
    save_figure(figure, path)


def verdicts(options: argparse.Namespace) -> list[str]:
    """Say of each goal whether it is reached, and what may be done then."""
    said = []
    for stage, goal in GOALS.items():
        folders = finished(options, stage)
        if options.small or len(folders) < len(options.seeds):
            ran = f"{len(folders)} of {len(options.seeds)} seeds ran"
            why = "it was not the recipe itself that ran" if options.small else ran
            said.append(f"{stage}: nothing to say of the goal of {goal:.0%}: {why}.")
            continue
        mean = statistics.fmean(read(folder)["top1"] for folder in folders)
        is_reached = "is reached" if mean >= goal else "is not reached: no weights are to be released"
        said.append(f"{stage}: {mean:.2%}; the goal of {goal:.0%} {is_reached}.")
        if mean >= goal:
            said.append(f"  Release the weights of seed {options.seeds[0]}: --release model_cards")
    return said


def report(options: argparse.Namespace) -> None:
    """Write cards, results.md and transfer.png, and print what is to be recorded."""
    cards = options.output / "cards"
    cards.mkdir(exist_ok=True)
    for stage in ("scratch", "mae", "finetune"):
        if len(finished(options, stage)) == len(options.seeds):
            write_card(finished(options, stage), cards / f"cifar100_{stage}.md")
    warning = "> A small net on few pictures: it shows that the path works, and nothing else."
    parts = ["# CIFAR-100", *([warning] if options.small else [])]
    parts += [results_table(options), "\n".join(verdicts(options))]
    if scores := transfer_scores(options):
        parts += ["## Transfer, top-1 (mean and standard deviation of the seeds)", transfer_table(scores)]
        plot_transfer(scores, options.output / "transfer.png")
    if found := [read(folder) for stage in STAGES for folder in finished(options, stage)]:
        parts.append(", ".join(f"{name} {version}" for name, version in found[0]["versions"].items()))
        parts.append(f"Source code: commit {found[0].get('git_commit') or 'not recorded'}")
    text = "\n\n".join(parts) + "\n"
    (options.output / "results.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten: {options.output / 'results.md'}, {cards}")


def release(run: Path, target: Path, data: str) -> None:
    """Publish a finished run as a model repo with its weights rounded to bfloat16, scored and recorded anew.

    They load as float32, as config.json says. `reproduce` proves the folder before it gets its name.

    Raises:
        FileExistsError: there is something at `target`.
        ValueError: they are larger than RELEASE_BYTES, or give another top-1 than the run recorded; nothing is left.
    """
    with published(target) as made:
        freeze(run, made)
        weights = made / "model.safetensors"
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name).to(torch.bfloat16) for name in file.keys()}  # noqa: SIM118
        weights.unlink()  # a link to that of the run
        (made / MANIFEST).unlink(missing_ok=True)  # `complete` writes another
        save_file(tensors, weights, metadata=metadata)
        if weights.stat().st_size > RELEASE_BYTES:
            raise ValueError(f"{weights.stat().st_size:,} bytes of weights; expected at most {RELEASE_BYTES:,}")
        recipe = Recipe.from_yaml(made / "recipe.yaml").override({"data.source": data})
        pictures = open_pictures(recipe.data)
        scores, _ = score_again(made, recipe, pictures)
        assert isinstance(scores, Scores)
        names, results = pictures.source.label_names, read(made)
        found = {**scores.measure(), **analyse(scores, names)}
        if abs(found["top1"] - results["top1"]) > ROUNDING:
            raise ValueError(f"{run} recorded {results['top1']:.2%}, its weights in bfloat16 give {found['top1']:.2%}")
        write_scores(made, Predictions.of_run(scores, names, results), {**results, **found})
        complete(made)
        if wrong := [check for check in reproduce(made, data=data).checks if check.equal is False]:
            raise ValueError(f"{run} cannot be released: {wrong[0].what} {wrong[0].recorded} became {wrong[0].found}")


# ---------------------------------------------------------------------------------------------- the command
def main(words: list[str] | None = None) -> int:
    """Run the stages; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", default="uoft-cs/cifar100", metavar="SOURCE", help="CIFAR-100: folder, archive or Hub id")
    add("--output", type=Path, default=Path("runs/cifar100"), metavar="DIR", help="of all runs")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    add("--stages", nargs="+", default=list(STAGES), choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    add("--small", action="store_true", help="a small net, few pictures and epochs: proves the path, on a CPU")
    add("--minutes", type=float, metavar="N", help="stop after so long, as on SIGTERM; the same command goes on")
    add("--release", type=Path, metavar="DIR", help="put weights there, of the goals that are reached")
    add("--quiet", action="store_true", help="print no progress of the runs")
    options = parser.parse_args(words)

    def stop(number: int, frame: object) -> None:  # between runs; within one, the run takes the signal
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    timer = threading.Timer(60 * (options.minutes or 0), signal.raise_signal, [signal.SIGTERM])
    timer.daemon = True
    if options.minutes:
        timer.start()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for stage in options.stages:
            if stage != "cards":
                run_stage(stage, options)
            else:
                report(options)
        for stage, goal in GOALS.items() if options.release else ():
            folders = finished(options, stage)
            complete_run = not options.small and len(folders) == len(options.seeds)
            if complete_run and statistics.fmean(read(folder)["top1"] for folder in folders) >= goal:
                release(folders[0], options.release / f"cifar100_{stage}", options.data)
                print(f"released: {options.release / f'cifar100_{stage}'}")
    except (TrainingInterrupted, KeyboardInterrupt) as stopped:
        print(f"{stopped or 'stopped on request'}\nto go on: the same command", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (OSError, ValueError) as error:
        print(f"cifar100: error: {error}", file=sys.stderr)
        return 1
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
