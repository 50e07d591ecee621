"""`vit-hf compare`."""

import argparse
from typing import Any

from .words import Add

_SHOWN = 5  # classes and samples of a kind on the terminal; comparison.json has all


def add_commands(add: Add) -> None:
    """Add the command that compares two models."""
    compare = add("compare", _compare, "Compare two models on the same pictures, from their predictions.")
    what = "run folder, folder of `vit-hf evaluate --output`, or predictions.parquet"
    compare.add_argument("a", metavar="A", help=what)
    compare.add_argument("b", metavar="B", help="the same of another model, scored on the same split")
    compare.add_argument("--output", metavar="DIR", help="new folder for comparison.json and comparison.png")


def _compare(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ..evaluation.output import check_output, published, write_json
    from ..evaluation.paired import compare, find_predictions, verdict
    from ..inspection.charts_compare import draw_class_differences
    from ..inspection.style import save_figure

    folder = check_output(options.output)
    comparison = compare(find_predictions(options.a), find_predictions(options.b))
    said = verdict(comparison)
    if folder is not None:
        with published(folder) as made:
            write_json(made / "comparison.json", {"a": options.a, "b": options.b, "verdict": said, **comparison})
            save_figure(draw_class_differences(comparison["per_class"]), made / "comparison.png")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"A: {options.a}\nB: {options.b}\n{comparison['n']:,} pictures of {comparison['data']}, split "
                  f"{comparison['split']}", markup=False)  # fmt: skip
    if comparison["matched_by"] == "labels":
        console.print("one of them was streamed: that the pictures are the same is known by their labels only")
    console.print(_scores_table(comparison["scores"]))
    _say_samples(console, comparison)
    if (table := _classes_table(comparison["per_class"])) is not None:
        console.print(table)
    if comparison["samples"]:
        console.print(_samples_table(comparison["samples"]))
    console.print(said)
    if folder is not None:
        console.print(f"written: {folder}", markup=False)
    return 0


def _scores_table(scores: dict[str, dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table()
    for name in ("score", "A", "B", "B - A", "95% interval"):
        table.add_column(name, justify="left" if name == "score" else "right")
    units = {"top1": "top-1", "top5": "top-5", "balanced_accuracy": "balanced accuracy", "loss": "cross-entropy (nats)"}
    for name, words in units.items():
        of = scores[name]
        if name == "loss":
            low, high = of["interval"]
            cells = [f"{of['a']:.4f}", f"{of['b']:.4f}", f"{of['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        else:
            low, high = (100 * bound for bound in of["interval"])
            points = f"{100 * of['difference']:+.2f}"
            cells = [f"{of['a']:.2%}", f"{of['b']:.2%}", points, f"{low:+.2f} to {high:+.2f}"]
        table.add_row(words, *cells)
    return table


def _say_samples(console: Any, comparison: dict[str, Any]) -> None:
    test, errors = comparison["mcnemar"], comparison["errors"]
    console.print(
        f"right: both {test['both_right']:,}, only A {test['only_a']:,}, only B {test['only_b']:,}, "
        f"none {test['both_wrong']:,}; the same class said of {comparison['agreement']:.2%}"
    )
    if errors["overlap"] is not None:
        console.print(
            f"of the {errors['a'] + errors['b'] - errors['both']:,} pictures that either has wrong, both have "
            f"{errors['overlap']:.1%} wrong, {errors['same_class']:,} of them with the same mistake"
        )


def _classes_table(per_class: list[dict[str, Any]]) -> Any:
    """Return the classes that gained and lost most, or None where none did."""
    from rich.markup import escape
    from rich.table import Table

    def change(row: dict[str, Any]) -> float:
        return (row["only_b"] - row["only_a"]) / row["n"]

    ordered = sorted(per_class, key=lambda row: -change(row))
    gained = [row for row in ordered if change(row) > 0][:_SHOWN]
    lost = [row for row in ordered if change(row) < 0][-_SHOWN:]
    if not gained + lost:
        return None
    table = Table(title="classes that gained and lost most (p: McNemar, Holm's correction for all classes)")
    for name in ("class", "pictures", "A right", "B right", "only A", "only B", "B - A", "p"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in gained + lost:
        counts = [f"{row[name]:,}" for name in ("n", "a", "b", "only_a", "only_b")]
        table.add_row(escape(row["name"]), *counts, f"{100 * change(row):+.1f}", f"{row['p_holm']:.2g}")
    return table


def _samples_table(samples: list[dict[str, Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="pictures of which the two say the most different things (with the label's probability)")
    for name in ("row", "label", "A says", "B says"):
        table.add_column(name, justify="right" if name == "row" else "left")
    for sample in samples[:_SHOWN]:
        says = [f"{sample[side]['predicted']} ({sample[side]['probability_of_label']:.1%})" for side in "ab"]
        table.add_row(str(sample["row"]), escape(sample["label"]), *map(escape, says))
    return table
