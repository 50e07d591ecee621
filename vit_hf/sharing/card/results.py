"""The measured part of a card: scores with their spread, the classes and mistakes behind them, calibration."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from ...evaluation.predictions import PREDICTIONS
from .markdown import plain, table
from .records import UNNAMED, Records

CURVES = "learning_curves.png"
_FEW, _SHOWN = 10, 5  # all classes are listed up to so many; of more, so many at each end
_NOT_RECORDED = "not recorded"

_MEANINGS = {
    "balanced_accuracy": "Balanced is the mean of the classes' own top-1, each class as weighty as any other.",
    "superclass_top1": "Superclass is how often the class that was named lies in the superclass of the true one.",
    "real_top1": "ReaL is how often it is one of the picture's reassessed labels, of the pictures that have such.",
}

Results = dict[str, Any]
Columns = dict[str, tuple[str, Callable[[float], str]]]


def results_section(runs: Sequence[Records], repo: str | None) -> str:
    """Return the scores of one or several runs, a row each, how they were come by, and how to come by them again."""
    results = [run.results for run in runs if run.results is not None]
    first, recipe = results[0], runs[0].recipe or {}
    held_out = "held out of the training split" if recipe["data"]["validation_fraction"] else "of the validation split"
    kept = f"the best on pictures {held_out}" if first["kept"] == "best" else "the last of the run"
    words = [f'Scored on the split "{plain(first["split"])}", every picture once, after training. The weights are '
             f"{kept}."]  # fmt: skip
    if all("intervals" in result for result in results):
        words.append(
            "In brackets the 95% interval, by resampling the scored pictures (where all or none are right, the exact "
            "binomial one): how far another such set of pictures would move the score; it says nothing about other "
            "seeds."
        )
    elif "top1" in first:
        words.append(f"Confidence intervals: {_NOT_RECORDED}.")
    if "top1" in first and any("balanced_accuracy" not in result for result in results):
        words.append(f"Balanced accuracy: {_NOT_RECORDED}.")
    words += [meaning for key, meaning in _MEANINGS.items() if key in _columns(results)]
    if len(results) > 1:
        words.append("The last row is mean ± standard deviation over the seeds.")
    if len(runs) == 1 and (runs[0].folder / PREDICTIONS).is_file():
        words.append(
            f"{PREDICTIONS} holds what the model said of every picture; `vit-hf reproduce {repo or UNNAMED}` computes "
            "the figures of this card from it, from the weights and from the data again."
        )
    return f"## Results\n\n{_scores(results)}\n\n" + "\n".join(words)


def _scores(results: list[Results]) -> str:
    columns = _columns(results)
    rows = [
        [str(result["seed"]), *(_with_interval(result, key, form) for key, (_, form) in columns.items()),
         f"{result['n']:,}", _seconds(result["seconds"])]
        for result in results
    ]  # fmt: skip
    if len(results) > 1:
        spreads = [spread([result[key] for result in results], form) for key, (_, form) in columns.items()]
        mean = _seconds(statistics.fmean(result["seconds"] for result in results))
        rows.append(["mean", *spreads, f"{results[0]['n']:,}", mean])
    return table(["seed", *(name for name, _ in columns.values()), "pictures", "training time"], rows)


def _columns(results: list[Results]) -> Columns:
    return {key: column for key, column in score_columns(results[0]).items() if all(key in found for found in results)}


def score_columns(result: Results) -> Columns:
    """Return the recorded scores that say something: key to name and form; top-5 only of more than five classes."""
    if "top1" not in result:
        return {"loss": (plain(result.get("error", "mean absolute error of hidden pixels")), "{:.4f}".format)}
    columns: Columns = {
        "top1": ("top-1", percent),
        "top5": ("top-5", percent),
        "balanced_accuracy": ("balanced", percent),
        "superclass_top1": ("superclass", percent),
        "real_top1": ("ReaL", percent),
        "loss": ("cross-entropy", "{:.4f}".format),
    }
    if result["data"]["num_labels"] <= 5:
        del columns["top5"]
    return {key: column for key, column in columns.items() if key in result}


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with two decimals."""
    return f"{fraction:.2%}"


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Return mean ± standard deviation of several values, or the one."""
    mean = form(statistics.fmean(values))
    return f"{mean} ± {form(statistics.stdev(values))}" if len(values) > 1 else mean


def _with_interval(result: Results, key: str, form: Callable[[float], str]) -> str:
    return form(result[key]) + _interval(result.get("intervals", {}).get(key, (0, 0)), form)


def _interval(interval: Sequence[float], form: Callable[[float], str]) -> str:
    low, high = interval  # of no width where nothing could be otherwise: no interval
    return f" ({form(low)} to {form(high)})" if low < high else ""


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s"


# ---------------------------------------------------------------------------------------------- learning
def curves_section(runs: Sequence[Records], curves: str | None) -> str | None:
    """Return the picture of the learning curves, None where there is none.

    Args:
        runs: as `render_card`.
        curves: likewise.
    """
    if curves is None and len(runs) == 1 and (runs[0].folder / CURVES).is_file():
        curves = CURVES
    if not curves:
        return None
    of_run = "" if len(runs) == 1 or runs[0].results is None else f", of the run of seed {runs[0].results['seed']}"
    return f"## Learning curves\n\n![What was recorded while it learned, over the epochs{of_run}]({quote(curves)})"


# ---------------------------------------------------------------------------------------------- classes
def classes_section(results: list[Results]) -> str:
    """Return which classes are told well and badly, and what is taken for what; counts of all runs together.

    The intervals of the classes are those of one run: several runs name the same pictures, so that their counts
    together are not those of so many pictures.
    """
    title = "## Strengths and weaknesses by class\n\n"
    if any("per_class" not in result for result in results):
        return f"{title}Scores by class: {_NOT_RECORDED}."
    counts: dict[str, list[int]] = {}
    held: dict[str, str] = {}
    for result in results:
        for name, n, correct, *interval in result["per_class"]:
            found = counts.setdefault(name, [0, 0])
            found[0], found[1] = found[0] + n, found[1] + correct
            held[name] = _interval(interval, "{:.1%}".format) if interval and len(results) == 1 else ""
    ranked = sorted(counts.items(), key=lambda item: (-item[1][1] / item[1][0], -item[1][0]))
    head = ["class", "right", "of", "share"]
    rows = [[plain(name), f"{correct:,}", f"{n:,}", f"{correct / n:.1%}{held[name]}"] for name, (n, correct) in ranked]
    together = f", over the {len(results)} runs together" if len(results) > 1 else ""
    unseen = results[0]["data"]["num_labels"] - len(rows)
    parts = []
    if len(rows) <= _FEW:
        parts.append(f"How often pictures of a class were named rightly{together}:\n\n{table(head, rows)}")
    else:
        parts.append(f"The {_SHOWN} classes that are named rightly most often{together}:\n\n"
                     f"{table(head, rows[:_SHOWN])}")  # fmt: skip
        parts.append(f"The {_SHOWN} that are named rightly least often:\n\n{table(head, rows[: -_SHOWN - 1 : -1])}")
    if len(results) == 1 and not any(held.values()):
        parts.append(f"Confidence intervals of the classes: {_NOT_RECORDED}.")
    if unseen:
        parts.append(f"{unseen:,} of the classes have no picture in the split.")
    parts.append(_confusions(results))
    return title + "\n\n".join(parts)


def _confusions(results: list[Results]) -> str:
    """Say the most frequent mistakes of the first run; a record holds only these, so that runs cannot be added up."""
    if "confusions" not in results[0]:
        return f"Confusions: {_NOT_RECORDED}."
    of_run = f" in the run of seed {results[0]['seed']}" if len(results) > 1 else ""
    pairs = results[0]["confusions"][:_SHOWN]
    if not pairs:
        return f"No picture was taken for another class{of_run}."
    rows = [[plain(true), plain(predicted), f"{count:,}"] for true, predicted, count in pairs]
    return f"The most frequent mistakes{of_run}:\n\n" + table(["class", "taken for", "pictures"], rows)


# ---------------------------------------------------------------------------------------------- calibration
def calibration_section(results: list[Results]) -> str:
    """Return how far the stated probabilities can be believed."""
    title = "## Calibration\n\n"
    records = [result["calibration"] for result in results if "calibration" in result]
    if len(records) < len(results):
        return f"{title}Calibration: {_NOT_RECORDED}."
    error, brier = (_over_runs(results, key) for key in ("expected_calibration_error", "brier"))
    bins = _add_bins([record["bins"] for record in records])
    total = sum(count for count, _, _ in bins)
    confidence, accuracy = (sum(entry[0] * entry[place] for entry in bins) / total for place in (1, 2))
    interval = results[0].get("intervals", {}).get("top1") if len(results) == 1 else None
    rows = [
        [f"{place / len(bins):.0%} to {(place + 1) / len(bins):.0%}", f"{count:,}", f"{mean:.1%}", f"{right:.1%}"]
        for place, (count, mean, right) in enumerate(bins)
        if count
    ]
    return (
        f"{title}Expected calibration error {error}, Brier score {brier} (0 is perfect, 2 the worst).\n"
        f"The named class has a mean probability of {confidence:.1%} and is the right one in {accuracy:.1%}: "
        f"{_verdict(confidence, accuracy, interval)}\n{_temperature(results)}\n\n"
        + table(["stated probability", "pictures", "mean stated", "right"], rows)
    )


def _temperature(results: list[Results]) -> str:
    """Say by what to divide the logits, and what that is worth on pictures that it was not fitted to."""
    if any("temperature" not in result["calibration"] for result in results):
        return f"Temperature: {_NOT_RECORDED}."
    temperature, error = (_over_runs(results, key) for key in ("temperature", "calibrated_error"))
    return (
        f"Logits divided by a temperature of {temperature} say best how sure the model may be; each half of the "
        f"pictures divided by the one that fits the other half, the expected calibration error is {error}."
    )


def _over_runs(results: list[Results], key: str) -> str:
    """Return a figure of calibration: of one run with its interval, of several with its spread."""
    form = "{:.3f}".format if key == "temperature" else "{:.4f}".format
    held = _interval(results[0].get("intervals", {}).get(key, (0, 0)), form) if len(results) == 1 else ""
    return spread([result["calibration"][key] for result in results], form) + held


def _add_bins(runs: list[list[list[Any]]]) -> list[tuple[int, float, float]]:
    """Add up the bins of several runs, [count, mean confidence, accuracy] each."""
    together = []
    for entries in zip(*runs, strict=True):
        count = sum(entry[0] for entry in entries)
        means = (sum(entry[0] * (entry[place] or 0.0) for entry in entries) / max(count, 1) for place in (1, 2))
        together.append((count, *means))
    return together


def _verdict(confidence: float, accuracy: float, interval: list[float] | None) -> str:
    if interval is not None and interval[0] <= confidence <= interval[1]:
        return "on the whole it is as sure as it is right, within the interval of its top-1."
    if confidence > accuracy:
        return "on the whole it is surer than it is right; take its probabilities for less than they say."
    return "on the whole it is less sure than it is right; take its probabilities for more than they say."
