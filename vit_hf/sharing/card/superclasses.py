"""What is taken for what among superclasses: how often each is named, and what is named in its place."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ...evaluation.predictions import PREDICTIONS, read_predictions
from ...evaluation.superclasses import superclasses
from .markdown import plain, table
from .records import Records

_OTHERS = 3  # superclasses that are named in the place of one, so many at most


def superclasses_section(runs: Sequence[Records]) -> str | None:
    """Return a row for each superclass, counts of all runs together; None where the classes have none.

    The record of a run has mistakes among classes only, so that these are counted in its predictions.parquet.
    """
    groups = superclasses(runs[0].label_names)
    if groups is None:
        return None
    title = "## Confusion among superclasses\n\n"
    if not all((run.folder / PREDICTIONS).is_file() for run in runs):
        return f"{title}Not recorded: there is no {PREDICTIONS}."
    counts = np.sum([_count(run, groups) for run in runs], axis=0)  # (G, G), true and named
    names = sorted(set(groups))
    totals = counts.sum(axis=1)
    present = np.flatnonzero(totals)
    ranked = sorted(present.tolist(), key=lambda place: (-counts[place, place] / totals[place], names[place]))
    rows = []
    for place in ranked:
        wrong = Counter({other: int(n) for other, n in enumerate(counts[place]) if n and other != place})
        most = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:_OTHERS]
        others = ", ".join(f"{_spoken(names[other])} {n / totals[place]:.1%}" for other, n in most)
        share = counts[place, place] / totals[place]
        rows.append([_spoken(names[place]), f"{totals[place]:,}", f"{share:.1%}", others or "-"])
    together = f" over the {len(runs)} runs together" if len(runs) > 1 else ""
    return (
        f"{title}How often a picture{together} was given a class of its own superclass, and whose classes it was given "
        f"most often instead:\n\n{table(['superclass', 'pictures', 'right', 'instead'], rows)}"
    )


def _count(run: Records, groups: Sequence[str]) -> np.ndarray:
    """Return how often a picture of one superclass was given a class of another, (G, G), by the names in order."""
    scores = read_predictions(run.folder / PREDICTIONS).scores
    number = {name: place for place, name in enumerate(sorted(set(groups)))}
    group = np.array([number[name] for name in groups])  # (L,)
    counts = np.zeros((len(number), len(number)), np.int64)
    np.add.at(counts, (group[scores.labels.numpy()], group[scores.logits.argmax(dim=1).numpy()]), 1)
    return counts


def _spoken(name: str) -> str:
    return plain(name.replace("_", " "))
