"""`vit-hf train`, `verify-resume`, `plan`, `recipes`."""

import argparse
import json
import os
import re
import shlex
import sys
from pathlib import Path

from .words import Add, positive, read_overrides, say_scores


def add_commands(add: Add) -> None:
    """Add the commands about training."""
    train = add(
        "train",
        _train,
        "Train a model by a recipe and leave a model repo.",
        takes_fields=True,
        epilog="Any field of the recipe can be set as --FIELD VALUE, nested fields with a dot: "
        "--optimization.epochs 10 --model.image_size 64. `vit-hf recipes NAME` prints all fields.",
    )
    train.add_argument("recipe", metavar="RECIPE", help="name (see `vit-hf recipes`) or YAML file")
    train.add_argument("--data", metavar="SOURCE", help="folder, Parquet, CIFAR archive, Hub id, or digits")
    train.add_argument("--output", metavar="DIR", help="new folder for the run (default: runs/RECIPE)")
    train.add_argument("--seed", metavar="N", help="of weights, order, augmentation and dropout")
    train.add_argument("--max-steps", metavar="N", help="stop after this many optimiser steps")
    train.add_argument("--resume", metavar="auto|PATH", help="go on with the run in --output, or in PATH")
    train.add_argument("--push-to-hub", metavar="OWNER/NAME", help="push the model to the Hub; a failure ends no run")
    train.add_argument(
        "--hub-strategy",
        choices=("end", "every-checkpoint"),
        help="when to push: the finished run (default), or also every checkpoint, in the background",
    )
    train.add_argument("--public", action="store_true", help="make a new repo of --push-to-hub public, not private")

    prove = add(
        "verify-resume",
        _verify_resume,
        "Interrupt a short run at random steps, resume it, and compare it with one that was not interrupted.",
        takes_fields=True,
        epilog="Any field of the recipe can be set as --FIELD VALUE.",
    )
    prove.add_argument("recipe", metavar="RECIPE", help="name (see `vit-hf recipes`) or YAML file")
    prove.add_argument("--data", metavar="SOURCE", help="folder, Parquet, CIFAR archive, Hub id, or digits")
    prove.add_argument("--steps", type=positive, default=12, metavar="N", help="of the run (default: 12)")
    prove.add_argument("--interruptions", type=positive, default=3, metavar="N", help="default: 3")

    plan = add(
        "plan",
        _plan,
        "Say before a run what it will cost: steps, FLOPs, memory, disk, and the time by timing a few real steps.",
        takes_fields=True,
        epilog="Fields of the recipe can be set as for `vit-hf train`.",
    )
    plan.add_argument("recipe", metavar="RECIPE", help="name (see `vit-hf recipes`) or YAML file")
    plan.add_argument("--data", metavar="SOURCE", help="folder, Parquet, CIFAR archive, Hub id, or digits")
    plan.add_argument("--seed", metavar="N", help="of weights, order, augmentation and dropout")
    plan.add_argument("--max-steps", metavar="N", help="stop after this many optimiser steps")
    plan.add_argument("--processes", type=positive, default=1, metavar="N", help="that would train (default: 1)")
    plan.add_argument("--images", type=positive, metavar="N", help="training pictures of data that is not at hand")
    plan.add_argument("--classes", type=positive, metavar="K", help="its classes; steps are timed on random pictures")
    plan.add_argument("--no-timing", action="store_true", help="time no steps")

    recipes = add("recipes", _recipes, "List the recipes, or print one whole as YAML.")
    recipes.add_argument("name", nargs="?", metavar="NAME", help="name or YAML file")


def _train(options: argparse.Namespace) -> int:
    from accelerate import PartialState

    from ..data.pictures import open_pictures, save_examples
    from ..sharing.card import render_card
    from ..training.interruption import EXIT_INTERRUPTED, TrainingInterrupted
    from ..training.loop import resume_command, train
    from ..training.recipes import get_recipe

    recipe = get_recipe(options.recipe).override(read_overrides(options.overrides))
    short = {"data": options.data, "seed": options.seed, "max_steps": options.max_steps}
    chosen = {name: value for name, value in short.items() if value is not None}
    publisher = _publisher(options)
    on_checkpoint = publisher if options.hub_strategy == "every-checkpoint" else None
    try:
        result = train(recipe, output=options.output, resume=options.resume, on_checkpoint=on_checkpoint, **chosen)
    except TrainingInterrupted as stopped:
        print(f"{stopped}\nto resume: {resume_command(stopped.output)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    PartialState().destroy_process_group()  # of several processes
    if not result.is_main_process:
        return 0
    folder = result.output
    if result.was_finished:
        print(f"{folder} is finished: {say_scores(result.results)}; there is nothing to do")
        if (folder / "README.md").exists():  # the last that is written
            _publish(publisher, folder)
            return 0
    if recipe.data.source == "digits" and options.data is None:
        save_examples(open_pictures(recipe.data), folder / "examples")
    card = folder / "README.md"
    card.with_suffix(".new").write_text(render_card([folder]), encoding="utf-8")
    card.with_suffix(".new").replace(card)
    measured = result.results
    print(
        f"\ntest: {say_scores(measured)} on {measured['n']:,} pictures ({measured['split']}); trained in "
        f"{measured['seconds']:.0f} s"
    )
    print(f"model, metrics, card and TensorBoard log: {folder}")
    _publish(publisher, folder)
    print("\nnext:")
    for line in _next_commands(folder, is_classifier="top1" in measured):
        print(f"  {line}")
    return 0


def _publisher(options: argparse.Namespace):
    """Return what pushes the run to the Hub, if that was asked for and this is the process that does it."""
    if options.push_to_hub is None:
        if options.public or options.hub_strategy:
            raise ValueError("--public and --hub-strategy say how to push; add --push-to-hub OWNER/NAME")
        return None
    from ..sharing.background import BackgroundPush

    is_main_process = os.environ.get("RANK", "0") == "0"
    return BackgroundPush(options.push_to_hub, private=not options.public) if is_main_process else None


def _publish(publisher, folder: Path) -> None:
    """Push a finished run; the run is good whether the Hub takes it or not."""
    if publisher is not None and (pushed := publisher.finish(folder)) is not None:
        print(f"on the Hub: {pushed.url} ({'private' if pushed.is_private else 'public'}), commit {pushed.commit}")


def _next_commands(folder: Path, *, is_classifier: bool) -> list[str]:
    where = shlex.quote(str(folder))
    name = re.sub(r"[^\w.-]+", "-", folder.name, flags=re.ASCII).strip("-.") or "model"  # as the Hub takes it
    if not is_classifier:
        return [
            f"vit-hf train vit_finetune --model.init_from {where} --data SOURCE",
            f"tensorboard --logdir {where}/tensorboard",
            f"vit-hf push {where} OWNER/{name}",
        ]
    examples = sorted((folder / "examples").glob("*.png")) if (folder / "examples").is_dir() else []
    pictures = f"{where}/examples/*.png" if examples else "PICTURE.jpg"
    first = str(examples[0]) if examples else "PICTURE.jpg"
    code = (
        "import vit_hf; from transformers import pipeline; "
        f'print(pipeline("image-classification", model={json.dumps(str(folder))})({json.dumps(first)}))'
    )
    return [
        f"vit-hf predict {where} {pictures} --save-plot predictions.png",
        f"vit-hf report {where}",
        f"vit-hf inspect {where}",
        f"vit-hf evaluate {where}",
        f"vit-hf reproduce {where}",
        shlex.join(["python", "-c", code]),
        *([f"tensorboard --logdir {where}/tensorboard"] if (folder / "tensorboard").is_dir() else []),
        f"vit-hf demo {where}",
        f"vit-hf push {where} OWNER/{name}",
    ]


def _verify_resume(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from ..training.recipes import get_recipe
    from ..training.verify import verify_resume

    fields = read_overrides(options.overrides)
    if options.data is not None:
        fields["data.source"] = options.data
    recipe = get_recipe(options.recipe).override(fields)
    proof = verify_resume(recipe, interruptions=options.interruptions, steps=options.steps, say=print)
    table = Table("of the last checkpoint", "SHA-256 or values")
    for name, same in proof.files.items():
        table.add_row(name, "equal" if same else "DIFFERENT")
    Console().print(table)
    print("the interrupted run equals the other" if proof.identical else "the interrupted run DIFFERS from the other")
    return 0 if proof.identical else 1


def _plan(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ..training.plan import plan_run, render
    from ..training.recipes import get_recipe

    recipe = get_recipe(options.recipe).override(read_overrides(options.overrides))
    short = {"data.source": options.data, "seed": options.seed, "optimization.max_steps": options.max_steps}
    recipe = recipe.override({name: value for name, value in short.items() if value is not None})
    console = Console()
    with console.status("counting" if options.no_timing else "counting, and timing a few steps"):
        plan = plan_run(
            recipe,
            processes=options.processes,
            images=options.images,
            classes=options.classes,
            timing=not options.no_timing,
        )
    console.print(render(plan))
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from ..training.recipes import RECIPES, get_recipe

    if options.name:
        print(get_recipe(options.name).to_yaml(), end="")
        return 0
    for name, recipe in RECIPES.items():
        print(f"{name:<22} {(recipe.__doc__ or '').splitlines()[0]}")
    print("\n`vit-hf recipes NAME` prints one whole; `vit-hf train NAME` runs it.")
    return 0
