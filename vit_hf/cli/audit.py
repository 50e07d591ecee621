"""`vit-hf audit`."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .words import Add, read_overrides

_FIELDS = ("image_column", "label_column", "config_name", "revision")
_SHOWN = 8  # of a kind on the terminal; audit.json has all


def add_commands(add: Add) -> None:
    """Add the command that looks for trouble in a data set."""
    audit = add(
        "audit",
        _audit,
        "Look for wrong labels, copies and damaged pictures in an image set; it changes nothing.",
        takes_fields=True,
        epilog="The exit code is 0 whatever is found. What to read of SOURCE can be set as for `vit-hf train`: "
        f"{', '.join(f'--data.{field}' for field in _FIELDS)}.",
    )
    audit.add_argument("source", metavar="SOURCE", help="folder, Parquet, CIFAR archive, saved set, Hub id, or digits")
    audit.add_argument(
        "--predictions",
        metavar="P",
        help="also list the labels that a model disputes: run folder, folder of `vit-hf evaluate --output`, or "
        "predictions.parquet, of a split of SOURCE that the model was not trained on",
    )
    audit.add_argument("--output", metavar="DIR", help="new folder for audit.json, duplicates.png, disputed.png")


def _audit(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from ..evaluation.audit import audit
    from ..evaluation.output import check_output
    from ..evaluation.paired import find_predictions

    fields = {name.removeprefix("data."): value for name, value in read_overrides(options.overrides).items()}
    if unknown := sorted(set(fields) - set(_FIELDS)):
        raise ValueError(f"--{unknown[0]} is no option of audit; expected one of --data.{', --data.'.join(_FIELDS)}")
    folder = check_output(options.output)
    predictions = find_predictions(options.predictions) if options.predictions else None
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {step: progress.add_task(step, total=None) for step in ("reading", "comparing")}
        done = audit(
            options.source,
            predictions=predictions,
            on_step=lambda step, done, total: progress.update(tasks[step], completed=done, total=total),
            **fields,
        )
    if folder is not None:
        _write(folder, done)
    _say(done.found)
    if folder is not None:
        print(f"written: {folder}")
    return 0


def _write(folder: Path, done: Any) -> None:
    """Write the findings, and a sheet of each kind of which there are any."""
    from ..evaluation.output import published, write_json
    from ..inspection.contact_sheet import LARGEST, Cell, draw_contact_sheet
    from ..inspection.style import save_figure

    copies, disputed = worst_copies(done.found)[:LARGEST], done.found["disputed"] or {}
    with published(folder) as made:
        write_json(made / "audit.json", done.found)
        if copies:
            cells = [
                Cell(
                    tuple(done.picture(split, row) for split, row, _ in pair["places"][:2]),
                    tuple(f"{split} {row}: {label or 'no label'}" for split, row, label in pair["places"][:2]),
                )
                for pair in copies
            ]
            save_figure(draw_contact_sheet(cells), made / "duplicates.png")
        if samples := disputed.get("samples", [])[:LARGEST]:
            cells = [
                Cell(
                    (done.picture(disputed["split"], of["row"]),),
                    (
                        f"{disputed['split']} {of['row']}",
                        f"label {of['probability_of_label']:.0%} {of['label']}",
                        f"model {of['probability']:.0%} {of['suggested']}",
                    ),
                )
                for of in samples
            ]
            save_figure(draw_contact_sheet(cells, columns=4), made / "disputed.png")


def worst_copies(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return exact groups and near pairs: first those with different labels, then those of several splits."""

    def order(copy: dict[str, Any]) -> tuple[bool, bool, float]:
        within = len({split for split, *_ in copy["places"]}) == 1
        return copy["same_label"], within, -copy.get("similarity", 1.0)

    return sorted([*found["exact"], *(found["near"] or [])], key=order)


def _say(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    splits = ", ".join(f"{name} {count:,}" for name, count in found["splits"].items())
    console.print(f"{found['data']}: {splits} pictures in {found['classes']:,} classes", markup=False)
    table = Table()
    for name in ("looked for", "found", "where"):
        table.add_column(name, justify="right" if name == "found" else "left")
    for name, count, where in _findings(found):
        table.add_row(name, f"{count:,}" if isinstance(count, int) else count, escape(where))
    console.print(table)
    for split, count in found["copies"].items():
        if count["exact_or_near"]:
            share = count["exact_or_near"] / found["splits"][split]
            console.print(
                f"{count['exact_or_near']:,} pictures of {split} ({share:.1%}) are in the training split, too, "
                f"{count['exact']:,} of them exactly",
                markup=False,
            )
    if found["near_note"]:
        console.print(f"near-duplicates: {found['near_note']}", markup=False)
    if copies := [copy for copy in worst_copies(found) if not copy["same_label"]]:
        console.print(_copies_table(copies))
    _say_disputed(console, found["disputed"])


def _findings(found: dict[str, Any]) -> Iterable[tuple[str, int | str, str]]:
    """Yield what was looked for, how many were found, and the first of them."""

    def few(items: Iterable[str]) -> str:
        words = list(items)
        return ", ".join(words[:_SHOWN]) + (f", and {len(words) - _SHOWN:,} more" if len(words) > _SHOWN else "")

    labels, near = found["labels"], found["near"]
    wrong = (f"{of['split']} {of['row']} ({of['problem']}: {of['value']!r})" for of in labels["wrong"])
    yield "labels missing or out of range", len(labels["wrong"]), few(wrong)
    yield "splits without any label", len(labels["unlabelled"]), few(labels["unlabelled"])
    other = [f"{of['split']} ({len(of['missing'])} missing, {len(of['more'])} more)" for of in labels["other_names"]]
    yield "splits with other class names or order", len(other), few(other)
    alike = [" = ".join(map(repr, group)) for group in labels["alike_names"]]
    yield "class names that differ in case or spaces only", len(alike), few(alike)
    empty = [f"{split}: {name}" for split, names in labels["empty"].items() for name in names]
    yield "classes without pictures", len(empty), few(empty)
    small = [f"{split}: {name} ({n})" for split, names in labels["few"].items() for name, n in names.items()]
    yield "classes with fewer than 5 pictures", len(small), few(small)
    yield "damaged pictures", len(found["damaged"]), few(f"{of['split']} {of['row']}" for of in found["damaged"])
    for name, copies in (("pictures there twice, exactly", found["exact"]), ("pictures there twice, nearly", near)):
        if copies is None:
            yield name, "-", "cannot be told, see below"
            continue
        kinds: dict[str, int] = {}
        for copy in copies:
            kind = "-".join(sorted({split for split, *_ in copy["places"]}))
            kinds[kind] = kinds.get(kind, 0) + 1
        said = [f"{kind} {count:,}" for kind, count in sorted(kinds.items())]
        different = sum(not copy["same_label"] for copy in copies)
        yield name, len(copies), few([*said, *([f"with different labels {different:,}"] if different else [])])


def _copies_table(copies: list[dict[str, Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"the same picture with different labels: {len(copies):,}")
    for name in ("picture", "its copy", "alike"):
        table.add_column(name)
    for copy in copies[:_SHOWN]:
        one, other = (f"{split} {row}: {label or 'no label'}" for split, row, label in copy["places"][:2])
        alike = (
            f"{copy['similarity']:.2f}{', mirrored' if copy['mirrored'] else ''}" if "similarity" in copy else "exactly"
        )
        table.add_row(escape(one), escape(other), alike)
    return table


def _say_disputed(console: Any, disputed: dict[str, Any] | None) -> None:
    if disputed is None:
        return
    if "note" in disputed:
        console.print(f"labels that the model disputes: {disputed['note']}", markup=False)
        return
    samples = disputed["samples"]
    if samples:
        console.print(_disputed_table(disputed["split"], samples))
        console.print(
            f"a disputed label is not a wrong one, look at the pictures: the model predicts "
            f"{disputed['model_agrees']:.1%} of the labels"
        )
    else:
        console.print(f"the model disputes no label of {disputed['split']}", markup=False)
    if disputed["model_may_have_seen"]:
        console.print(
            "this is the training split: a model disputes little of what it was trained on; judge it by a model that "
            "was trained without these pictures"
        )
    if disputed["matched_by"] == "labels":
        console.print("the split was streamed when it was scored: that it is this one is known by its labels only")


def _disputed_table(split: str, samples: list[dict[str, Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"labels of {escape(split)} that the model disputes: {len(samples):,}")
    for name in ("row", "label", "model says", "margin"):
        table.add_column(name, justify="right" if name in ("row", "margin") else "left")
    for of in samples[:_SHOWN]:
        said = [f"{of['label']} ({of['probability_of_label']:.1%})", f"{of['suggested']} ({of['probability']:.1%})"]
        table.add_row(str(of["row"]), *map(escape, said), f"{of['margin']:.3f}")
    return table
