"""The command `vit-hf`: parse, call the package, print."""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from . import __version__

DESCRIPTION = "Train, evaluate, convert and look at Vision Transformers in the Hugging Face ecosystem."
SOURCES = ("google", "timm", "torchvision", "transformers")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done; 1 an error, the message tells how to mend it; 2 usage; 75 training was stopped by SIGTERM or Ctrl-C and can
    be resumed; 130 Ctrl-C elsewhere, or twice.
    """
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not options.takes_fields:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.overrides = rest
    logging.disable_progress_bar()  # of loading and saving weights; ours show what takes long
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except _user_errors() as error:
        if options.debug:
            raise
        print(f"vit-hf {options.command}: error: {_clean(error)}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser(prog="vit-hf", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"vit-hf {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run, text: str, takes_fields: bool = False, **options) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[common], help=text, description=text, **options)
        command.set_defaults(run=run, takes_fields=takes_fields)
        return command

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

    prove = add(
        "verify-resume",
        _verify_resume,
        "Interrupt a short run at random steps, resume it, and compare it with one that was not interrupted.",
        takes_fields=True,
        epilog="Any field of the recipe can be set as --FIELD VALUE.",
    )
    prove.add_argument("recipe", metavar="RECIPE", help="name (see `vit-hf recipes`) or YAML file")
    prove.add_argument("--data", metavar="SOURCE", help="folder, Parquet, CIFAR archive, Hub id, or digits")
    prove.add_argument("--steps", type=_positive, default=12, metavar="N", help="of the run (default: 12)")
    prove.add_argument("--interruptions", type=_positive, default=3, metavar="N", help="default: 3")

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
    plan.add_argument("--processes", type=_positive, default=1, metavar="N", help="that would train (default: 1)")
    plan.add_argument("--images", type=_positive, metavar="N", help="training pictures of data that is not at hand")
    plan.add_argument("--classes", type=_positive, metavar="K", help="its classes; steps are timed on random pictures")
    plan.add_argument("--no-timing", action="store_true", help="time no steps")

    evaluate = add("evaluate", _evaluate, "Score a model on a split, every picture once.")
    evaluate.add_argument("model", metavar="MODEL", help="model folder or Hub id")
    evaluate.add_argument("--data", metavar="SOURCE", help="data to score (default: what a run folder was trained on)")
    evaluate.add_argument("--split", metavar="NAME", help="split (default: test, else validation)")
    evaluate.add_argument("--output", metavar="DIR", help="new folder for results.json")
    evaluate.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="default: 64")

    predict = add("predict", _predict, "Name what pictures show.")
    predict.add_argument("model", metavar="MODEL", help="model folder or Hub id")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    predict.add_argument("--top-k", type=_positive, default=5, metavar="K", help="classes a picture (default: 5)")
    predict.add_argument("--save-plot", metavar="FILE", help="draw pictures and probabilities (png, pdf or svg)")
    predict.add_argument("--json", action="store_true", help="print JSON, one object a picture")

    summary = add("summary", _summary, "Print parameters, FLOPs and memory of a variant, or compare several.")
    summary.add_argument("variants", nargs="*", metavar="VARIANT", help="such as B/16 or R50+B/16 (default: all)")
    summary.add_argument("--image-size", type=_positive, default=224, metavar="N", help="pixels (default: 224)")
    summary.add_argument("--num-labels", type=_positive, default=1000, metavar="N", help="classes (default: 1000)")

    recipes = add("recipes", _recipes, "List the recipes, or print one whole as YAML.")
    recipes.add_argument("name", nargs="?", metavar="NAME", help="name or YAML file")

    fields = (
        "Config fields can be set as --FIELD VALUE: what the file does not tell (--num_attention_heads 6), or what is "
        "to change (--image_size 384, --patch_size 8, --num_labels 10)."
    )
    convert = add(
        "convert",
        _convert,
        "Turn weights of google, timm, torchvision or transformers into a model folder, with a receipt.",
        takes_fields=True,
        epilog=fields,
    )
    convert.add_argument("input", metavar="IN", help=".npz, .safetensors or .pth file, folder, or Hub id")
    convert.add_argument("output", metavar="OUT", help="new model folder")
    _add_source(convert)

    export = add("export-weights", _export_weights, "Write a model's weights for another library.")
    export.add_argument("model", metavar="MODEL", help="model folder or Hub id")
    export.add_argument("output", metavar="OUT", help="new .npz, .safetensors or .pth file, or folder (no suffix)")
    export.add_argument("--target", required=True, choices=SOURCES, help="library to write for")

    verify = add(
        "verify-conversion",
        _verify_conversion,
        "Run the original library and ours on the same images and print the largest differences.",
        takes_fields=True,
        epilog=fields,
    )
    verify.add_argument("input", metavar="IN", help=".npz, .safetensors or .pth file, folder, or Hub id")
    verify.add_argument("--images", nargs="+", metavar="IMAGE", help="picture files (default: two of scikit-learn's)")
    _add_source(verify)
    return parser


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("--source", choices=SOURCES, help="library of the file (default: found out)")
    command.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")


# ---------------------------------------------------------------------------------------------- commands
def _train(options: argparse.Namespace) -> int:
    from .data.pictures import open_pictures, save_examples
    from .sharing.card import render_card
    from .training.interruption import EXIT_INTERRUPTED, TrainingInterrupted
    from .training.loop import resume_command, train
    from .training.recipes import get_recipe

    recipe = get_recipe(options.recipe).override(read_overrides(options.overrides))
    short = {"data": options.data, "seed": options.seed, "max_steps": options.max_steps}
    chosen = {name: value for name, value in short.items() if value is not None}
    try:
        result = train(recipe, output=options.output, resume=options.resume, **chosen)
    except TrainingInterrupted as stopped:
        print(f"{stopped}\nto resume: {resume_command(stopped.output)}", file=sys.stderr)
        return EXIT_INTERRUPTED
    if not result.is_main_process:
        return 0
    folder = result.output
    if result.was_finished:
        print(f"{folder} is finished: {_scores(result.results)}; there is nothing to do")
        if (folder / "README.md").exists():  # the last that is written
            return 0
    if recipe.data.source == "digits" and options.data is None:
        save_examples(open_pictures(recipe.data), folder / "examples")
    card = folder / "README.md"
    card.with_suffix(".new").write_text(render_card([folder]), encoding="utf-8")
    card.with_suffix(".new").replace(card)
    measured = result.results
    print(
        f"\ntest: {_scores(measured)} on {measured['n']:,} pictures ({measured['split']}); trained in "
        f"{measured['seconds']:.0f} s"
    )
    print(f"model, metrics, card and TensorBoard log: {folder}\n\nnext:")
    for line in _next_commands(folder, is_classifier="top1" in measured):
        print(f"  {line}")
    return 0


def _verify_resume(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from .training.recipes import get_recipe
    from .training.verify import verify_resume

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


def _scores(measured: dict) -> str:
    """Say the scores of a classifier, or of a model for masked images."""
    if "top1" not in measured:
        return f"mean absolute error of hidden pixels {measured['loss']:.4f}"
    return f"top-1 {measured['top1']:.2%}, top-5 {measured['top5']:.2%}, cross-entropy {measured['loss']:.4f}"


def _next_commands(folder: Path, *, is_classifier: bool) -> list[str]:
    where = shlex.quote(str(folder))
    if not is_classifier:
        return [
            f"vit-hf train vit_finetune --model.init_from {where} --data SOURCE",
            f"tensorboard --logdir {where}/tensorboard",
        ]
    examples = sorted((folder / "examples").glob("*.png")) if (folder / "examples").is_dir() else []
    pictures = f"{where}/examples/*.png" if examples else "PICTURE.jpg"
    first = str(examples[0]) if examples else "PICTURE.jpg"
    code = (
        "import vit_hf; from transformers import pipeline; "
        f"print(pipeline('image-classification', model={str(folder)!r})({first!r}))"
    )
    hub = f'hf upload YOUR_NAME/{folder.name} {where} . --exclude "checkpoints/*" --exclude "tensorboard/*"'
    return [
        f"vit-hf predict {where} {pictures} --save-plot predictions.png",
        f"vit-hf evaluate {where}",
        f'python -c "{code}"',
        *([f"tensorboard --logdir {where}/tensorboard"] if (folder / "tensorboard").is_dir() else []),
        hub,
    ]


def _plan(options: argparse.Namespace) -> int:
    from rich.console import Console

    from .training.plan import plan_run, render
    from .training.recipes import get_recipe

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


def _evaluate(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from .evaluation.run import evaluate

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("scoring", total=None)
        measured = evaluate(
            options.model,
            data=options.data,
            split=options.split,
            output=options.output,
            batch_size=options.batch_size,
            on_batch=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if measured is not None:
        print(f"{_scores(measured)} on {measured['n']:,} pictures of {measured['data']}, split {measured['split']}")
    return 0


def _predict(options: argparse.Namespace) -> int:
    from .checkpoints.load import load_model
    from .data.images import read_image
    from .evaluation.scoring import classify
    from .image_processing_vit_hf import to_rgb
    from .inspection.plots import plot_predictions

    pictures = [to_rgb(read_image(path, where=path)) for path in options.images]
    model, processor = load_model(options.model)
    answers = classify(model, processor, pictures, top_k=options.top_k)
    for path, answer in zip(options.images, answers, strict=True):
        if options.json:
            print(json.dumps({"image": path, "predictions": [{"label": n, "probability": p} for n, p in answer]}))
        else:
            print(path)
            for name, probability in answer:
                print(f"  {probability:7.2%}  {name}")
    if options.save_plot:
        plot_predictions(pictures, answers, options.save_plot, titles=[Path(path).name for path in options.images])
        print(f"plot: {options.save_plot}", file=sys.stderr)
    return 0


def _summary(options: argparse.Namespace) -> int:
    from rich.console import Console, RenderableType

    from .inspection.summary import compare, render, summarise
    from .variants import VARIANTS, variant

    console, sizes = Console(), {"image_size": options.image_size, "num_labels": options.num_labels}
    with console.status("counting"):
        if len(options.variants) == 1:
            name = options.variants[0]
            shown: RenderableType = render(summarise(variant(name, **sizes)), title=name)
        else:
            shown = compare(options.variants or VARIANTS, **sizes)
    console.print(shown)
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from .training.recipes import RECIPES, get_recipe

    if options.name:
        print(get_recipe(options.name).to_yaml(), end="")
        return 0
    for name, recipe in RECIPES.items():
        print(f"{name:<22} {(recipe.__doc__ or '').splitlines()[0]}")
    print("\n`vit-hf recipes NAME` prints one whole; `vit-hf train NAME` runs it.")
    return 0


def _convert(options: argparse.Namespace) -> int:
    from .checkpoints.export import write_model_folder
    from .checkpoints.facts import AT_LOAD
    from .checkpoints.load import load_checkpoint

    folder = Path(options.output)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give a new folder, or remove it")
    fields = _parse_fields(options.overrides)
    model = load_checkpoint(options.input, source=options.source, revision=options.revision, **fields)
    write_model_folder(model, folder)
    print(f"{vars(model)['receipt']}\n\nmodel, image processor and receipt.json: {folder}\n\nnext:")
    told = [word for name in fields if name not in AT_LOAD for word in (f"--{name}", str(fields[name]))]
    told += ["--source", options.source] if options.source else []
    told += ["--revision", options.revision] if options.revision else []
    print(f"  {shlex.join(['vit-hf', 'verify-conversion', options.input, *told])}")
    print(f"  vit-hf predict {shlex.quote(str(folder))} PICTURE.jpg")
    return 0


def _export_weights(options: argparse.Namespace) -> int:
    from .checkpoints.export import export_checkpoint
    from .image_processing_vit_hf import VitHfImageProcessor
    from .modeling_vit_hf import VitHfForImageClassification

    model = VitHfForImageClassification.from_pretrained(options.model)
    processor = VitHfImageProcessor.from_pretrained(options.model)
    print(f"written: {export_checkpoint(model, options.output, target=options.target, processor=processor)}")
    return 0


def _verify_conversion(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from .checkpoints.verify import verify_conversion
    from .data.images import read_image
    from .image_processing_vit_hf import to_rgb

    images = [to_rgb(read_image(path, where=path)) for path in options.images] if options.images else None
    fields = _parse_fields(options.overrides)
    found = verify_conversion(options.input, images, source=options.source, revision=options.revision, **fields)
    print(f"{options.input}\nagainst {found.original}\non {found.images} images")
    table = Table()
    for name in ("quantity", "largest difference", "largest value", "note"):
        table.add_column(name, justify="right" if name.startswith("largest") else "left", no_wrap=name == "quantity")
    for row in found.differences:
        numbers = ["-" if value is None else f"{value:.2e}" for value in (row.largest, row.scale)]
        table.add_row(row.quantity, *numbers, row.note)
    Console().print(table)
    print("the outputs agree" if found.agrees else "the outputs DIFFER by more than rounding")
    return 0 if found.agrees else 1


# ---------------------------------------------------------------------------------------------- helpers
def _parse_fields(words: list[str]) -> dict[str, object]:
    """Turn `--field value` into config fields; values are read as YAML: 384, [384, 512], null, gelu."""
    import yaml

    fields: dict[str, object] = {}
    for name, text in read_overrides(words).items():
        try:
            fields[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--{name} {text!r} is no YAML value ({error.__class__.__name__})") from error
        if re.fullmatch(r"\d+e-?\d+", text):  # 1e-6 is text in YAML 1.1
            fields[name] = float(text)
    return fields


def read_overrides(words: list[str]) -> dict[str, str]:
    """Turn `--field value --other=value` into a mapping."""
    values: dict[str, str] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise ValueError(
                f"found {word!r} where an option was expected; write --FIELD VALUE, see `vit-hf train --help`"
            )
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ValueError(f"--{name} has no value; write --{name} VALUE")
            value = remaining.pop(0)
        values[name.replace("-", "_")] = value
    return values


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def _user_errors() -> tuple[type[Exception], ...]:
    """What a user can mend; anything else is a fault of ours and keeps its traceback."""
    from huggingface_hub.errors import StrictDataclassError

    return (ValueError, OSError, FloatingPointError, MemoryError, StrictDataclassError)


def _clean(error: Exception) -> str:
    """The message without the wrapping of validators."""
    cause = error.__cause__
    text = str(cause) if type(error).__name__.startswith("StrictDataclass") and cause is not None else str(error)
    return text or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
