"""Tables and plot of what was measured, all from the one record that is written as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from vit_hf.inspection.style import BLUE, FONT_SIZE, SKY, add_legend, new_figure, style_axes

from .machine import sheet_flops
from .timing import Ratio, ratio

OURS = "vit_hf"  # with which the names of our rows begin


@dataclass(frozen=True)
class Line:
    """One library in one case."""

    library: str
    rate: float | None
    """Pictures a second, by the median of the rounds."""
    ratio: Ratio | None
    """Time over that of the best peer."""
    best: bool
    """Whether it is the best peer."""
    difference: float | None
    memory: int | None
    share: float | None
    """Of the rate of the matrix products alone."""
    mfu: float | None
    """Of the data sheet's rate (CUDA)."""
    note: str


def lines(record: Mapping[str, Any], card: str | None = None) -> list[Line]:
    """Return the lines of one case's record, ours first.

    Ratios are formed within each round. The best peer is the one with the lowest median of its time over the mean of
    all peers' times in the round.
    """
    rows = record["rows"]
    timed = {name: row["seconds"] for name, row in rows.items() if row.get("seconds")}
    peers = [name for name in timed if not name.startswith(OURS)]
    mean = np.mean([timed[name] for name in peers], axis=0) if peers else None  # (rounds,)
    best = min(peers, key=lambda name: float(np.median(np.asarray(timed[name]) / mean)), default=None)
    products, flops = record.get("products"), record.get("flops")
    sheet = sheet_flops(card) if record["case"].get("precision") == "bf16" else None
    made = []
    for name, row in rows.items():
        seconds = float(np.median(timed[name])) if name in timed else None
        share = mfu = None
        if seconds and flops:
            mfu = flops / seconds / sheet if sheet else None
            if products:
                share = flops / seconds / (products["flops"] / float(np.median(products["seconds"])))
        note = row.get("failure") or row.get("memory_failure") or row.get("note") or ""
        made.append(
            Line(
                library=name,
                rate=record["pictures"] / seconds if seconds else None,
                ratio=ratio(timed[name], timed[best]) if seconds and best else None,
                best=name == best,
                difference=row.get("gradient_difference", row.get("difference")),
                memory=row.get("memory"),
                share=share,
                mfu=mfu,
                note=note,
            )
        )
    return made


def title(record: Mapping[str, Any]) -> str:
    """Return a case in words."""
    case = record["case"]
    words = [str(case[name]) for name in ("mode", "model", "what", "precision", "device") if case.get(name)]
    if "compile" in case:
        words.append("compiled" if case["compile"] else "eager")
    if case.get("batch"):
        words.append(f"batch {case['batch']}")
    return ", ".join(words)


def render(record: Mapping[str, Any], card: str | None = None) -> Table:
    """Return one case as a table for the terminal."""
    found = lines(record, card)
    table = Table(title=title(record), title_justify="left", title_style="bold")
    columns = ["images/s", "time / best", "quartiles"]
    optional = {
        "difference": ("difference", any(line.difference is not None for line in found)),
        "memory": ("peak MiB", any(line.memory for line in found)),
        "share": ("of products", any(line.share for line in found)),
        "mfu": ("MFU", any(line.mfu for line in found)),
        "note": ("", any(line.note for line in found)),
    }
    table.add_column("", no_wrap=True)
    for column in [*columns, *(name for name, shown in optional.values() if shown)]:
        table.add_column(column, justify="right" if column else "left", no_wrap=bool(column))
    for line in found:
        texts = {
            "difference": "" if line.difference is None else f"{line.difference:.1e}",
            "memory": "" if line.memory is None else f"{line.memory / 2**20:,.0f}",
            "share": "" if line.share is None else f"{line.share:.0%}",
            "mfu": "" if line.mfu is None else f"{line.mfu:.0%}",
            "note": line.note,
        }
        table.add_row(
            line.library,
            figure(line.rate),
            "" if line.ratio is None else f"{line.ratio.median:.3f}",
            "" if line.ratio is None or line.best else f"{line.ratio.low:.3f}-{line.ratio.high:.3f}",
            *(texts[name] for name, (_, shown) in optional.items() if shown),
            style="bold" if line.library.startswith(OURS) else None,
        )
    return table


def figure(rate: float | None) -> str:
    """Return a rate with three significant digits."""
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """Return all cases as one table: images a second of each library, and our best time over the best peer's."""
    if not records:
        return ""
    names: list[str] = []
    for record in records:
        names += [name for name in record["rows"] if name not in names]
    head = ["", *names, "time / best peer (quartiles)"]
    out = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for record in records:
        found = {line.library: line for line in lines(record)}
        ours = [line for name, line in found.items() if name.startswith(OURS) and line.ratio]
        cells = [figure(found[name].rate) if name in found else "" for name in names]
        if record.get("not_measured"):
            cells = ["not measured"] + [""] * (len(names) - 1)
        last = ""
        if ours:
            best = min((line.ratio for line in ours if line.ratio), key=lambda ratio: ratio.median)
            last = f"**{best.median:.2f}** ({best.low:.2f}-{best.high:.2f})"
        out.append("| " + " | ".join([title(record), *cells, last]) + " |")
    return "\n".join(out) + "\n"


def draw(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw our time over the best peer's in each case, with the quartiles; the other peers as open dots.

    Raises:
        ValueError: nothing was measured.
    """
    measured = [(title(record), lines(record)) for record in records if not record.get("not_measured")]
    measured = [(name, found) for name, found in measured if any(line.ratio for line in found)]
    if not measured:
        raise ValueError("no case was measured; expected at least one to draw")
    height = 0.34 * len(measured) + 1.0
    plot = new_figure(7.2, height)
    ax = plot.subplots()
    shown: set[str] = set()
    for place, (_, found) in enumerate(measured):
        for line in found:
            if line.ratio is None:
                continue
            ours = line.library.startswith(OURS)
            colour = BLUE if line.library == OURS else SKY
            label = line.library if ours else "peers"
            style: dict[str, Any] = {"label": None if label in shown else label}
            shown.add(label)
            if ours:
                ax.plot([line.ratio.low, line.ratio.high], [place, place], color=colour, linewidth=2.2)
                ax.plot(
                    line.ratio.median, place, "o" if line.library == OURS else "D", color=colour, markersize=6, **style
                )
            else:
                ax.plot(line.ratio.median, place, "o", markersize=4.5, markerfacecolor="none", color="#6E6E6E", **style)
    ax.axvline(1, color="#6E6E6E", linewidth=1, linestyle="--", zorder=0)
    style_axes(ax, "time / best peer's time (left of 1 is faster)")
    ax.set_yticks(range(len(measured)), [name for name, _ in measured], fontsize=FONT_SIZE - 1)
    ax.set_ylim(len(measured) - 0.5, -0.5)
    ax.set_xlim(left=0)
    add_legend(ax, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return plot
