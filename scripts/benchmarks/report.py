"""Tables and plot of what was measured, all from the one record that is written as JSON."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from rich.table import Table

from vit_hf.inspection.style import BLUE, FONT_SIZE, LIGHT, VERMILION, add_legend, new_figure, style_axes
from vit_hf.training.utilization import peak_flops

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
    """Of the rate of the matrix products alone, run in the fastest way."""
    mfu: float | None
    """Of the rate that the card's maker states."""
    shown: dict[str, str]
    """Further figures, ready to print, by the name of their column."""


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
    sheet = peak_flops(card or "", "half") if record["case"].get("precision") == "bf16" else None
    made = []
    for name, row in rows.items():
        seconds = float(np.median(timed[name])) if name in timed else None
        share = mfu = None
        if seconds and flops:
            mfu = flops / seconds / sheet if sheet else None
            if products:
                alone = min(products["seconds"].values(), key=lambda each: float(np.median(each)))
                of_time = float(np.median(np.asarray(alone) / np.asarray(timed[name])))  # within each round
                share = of_time * flops / products["flops"]
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
                shown=row.get("shown", {}),
            )
        )
    return made


def title(record: Mapping[str, Any]) -> str:
    """Return a case in words."""
    case = record["case"]
    words = [str(case[name]) for name in ("mode", "model", "what", "precision", "device") if case.get(name)]
    if "compile" in case:
        mode = case["compile"]
        words.append("eager" if not mode else "compiled" if mode == "default" else f"compiled ({mode})")
    if case.get("batch"):
        words.append(f"batch {case['batch']}")
    return ", ".join(words)


def render(record: Mapping[str, Any], card: str | None = None) -> Table:
    """Return one case as a table for the terminal."""
    found = lines(record, card)
    table = Table(title=title(record), title_justify="left", title_style="bold")
    columns: dict[str, Callable[[Line], str]] = {
        "images/s": lambda line: figure(line.rate),
        "time / best": lambda line: "" if line.ratio is None else f"{line.ratio.median:.3f}",
        "quartiles": lambda line: (
            "" if line.ratio is None or line.best else f"{line.ratio.low:.3f}-{line.ratio.high:.3f}"
        ),
        "difference": lambda line: "" if line.difference is None else f"{line.difference:.1e}",
        "peak MiB": lambda line: "" if line.memory is None else f"{line.memory / 2**20:,.0f}",
        "of products": lambda line: "" if line.share is None else f"{line.share:.0%}",
        "MFU": lambda line: "" if line.mfu is None else f"{line.mfu:.0%}",
    }
    for name in dict.fromkeys(name for line in found for name in line.shown):
        columns[name] = partial(_shown, name)
    used = {name: texts for name, text in columns.items() if any(texts := [text(line) for line in found])}
    table.add_column("", no_wrap=True)
    for name in used:
        table.add_column(name, justify="right")
    for place, line in enumerate(found):
        style = "bold" if line.library.startswith(OURS) else None
        table.add_row(line.library, *(texts[place] for texts in used.values()), style=style)
    failed = [f"{name}: {failure(row)}" for name, row in record["rows"].items() if failure(row)]
    if failed:
        table.caption, table.caption_justify = "\n".join(failed), "left"
    return table


def failure(row: Mapping[str, Any]) -> str:
    """Return why a library or its memory could not be measured, or nothing."""
    return row.get("failure") or row.get("memory_failure") or ""


def ours_failed(record: Mapping[str, Any]) -> bool:
    """Whether one of our rows could not be measured."""
    return any(failure(row) for name, row in record["rows"].items() if name.startswith(OURS))


def _shown(name: str, line: Line) -> str:
    return line.shown.get(name, "")


def figure(rate: float | None) -> str:
    """Return a rate with three significant digits."""
    if rate is None:
        return "-"
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for each mode: images a second of each library, and our time over the best peer's."""
    tables = [_table_of_mode(group) for group in _by_mode(records).values()]
    return "\n".join(tables)


def _by_mode(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    modes: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        modes.setdefault(record["case"]["mode"], []).append(record)
    return modes


def _without_workers(name: str) -> str:
    return re.sub(r", \d+ workers$", "", name)


def _best_by_library(record: Mapping[str, Any]) -> dict[str, Line]:
    """Return a line for each library: of rows that differ in workers only, the fastest."""
    best: dict[str, Line] = {}
    for line in lines(record):
        before = best.get(_without_workers(line.library))
        if before is None or (line.rate or 0) > (before.rate or 0):
            best[_without_workers(line.library)] = line
    return best


def _table_of_mode(records: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(_without_workers(name) for record in records for name in record["rows"]))
    ours = [name for name in names if name.startswith(OURS)]
    more = list(
        dict.fromkeys(key for record in records for row in record["rows"].values() for key in row.get("shown", {}))
    )
    head = ["images/s", *names, *(f"{name}: time / best peer" for name in ours), *(f"{OURS}: {key}" for key in more)]
    out = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for record in records:
        found = _best_by_library(record)
        cells = [figure(found[name].rate) if name in found else "" for name in names]
        for name in ours:
            compared = found[name].ratio if name in found else None
            cells.append(
                "" if compared is None else f"**{compared.median:.3g}** ({compared.low:.3g}-{compared.high:.3g})"
            )
        cells += [found[ours[0]].shown.get(key, "") if ours[0] in found else "" for key in more]
        if record.get("not_measured"):
            cells = ["not measured"] + [""] * (len(head) - 2)
        out.append("| " + " | ".join([title(record), *cells]) + " |")
    return "\n".join(out) + "\n"


def draw(records: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw our time over the best peer's in each case, with the quartiles; the peers as open dots; a panel a mode.

    Returns None where nothing was measured.
    """
    modes = {
        mode: [
            (title(record), _best_by_library(record)) for record in group if any(line.ratio for line in lines(record))
        ]
        for mode, group in _by_mode(records).items()
    }
    modes = {mode: cases for mode, cases in modes.items() if cases}
    if not modes:
        return None
    heights = [len(cases) + 1.2 for cases in modes.values()]
    plot = new_figure(7.2, 0.3 * sum(heights) + 0.8)
    panels = plot.subplots(len(modes), 1, squeeze=False, height_ratios=heights)[:, 0]
    for ax, cases in zip(panels, modes.values(), strict=True):
        _panel(ax, cases)
    shown = {name for cases in modes.values() for _, found in cases for name in found}
    ours = sorted(name for name in shown if name.startswith(OURS))
    handles = [Line2D([], [], label=name, linewidth=2.2, **_STYLES[name]) for name in ours]
    handles.append(Line2D([], [], label="peers", **_PEER))
    add_legend(panels[0], loc="lower left", bbox_to_anchor=(0, 1), ncols=len(handles), handles=handles)
    return plot


_STYLES: dict[str, dict[str, Any]] = {
    OURS: {"marker": "o", "color": BLUE, "markersize": 6},
    f"{OURS}, prepared": {"marker": "D", "color": VERMILION, "markersize": 5},
}
_PEER: dict[str, Any] = {
    "marker": "o", "linestyle": "none", "color": LIGHT.grey, "markerfacecolor": "none", "markersize": 4.5,
}  # fmt: skip


def _panel(ax: Axes, cases: Sequence[tuple[str, dict[str, Line]]]) -> None:
    ratios = [line.ratio for _, found in cases for line in found.values() if line.ratio]
    for place, (_, found) in enumerate(cases):
        for name, line in found.items():
            if line.ratio is None:
                continue
            if not name.startswith(OURS):
                ax.plot(line.ratio.median, place, **_PEER)
                continue
            style = _STYLES[name]
            ax.plot([line.ratio.low, line.ratio.high], [place, place], color=style["color"], linewidth=2.2)
            ax.plot(line.ratio.median, place, **style)
    ax.axvline(1, color=LIGHT.grey, linewidth=1, linestyle="--", zorder=0)
    style_axes(ax, "time / best peer's time (left of 1 is faster)")
    ax.set_yticks(range(len(cases)), [name for name, _ in cases], fontsize=FONT_SIZE - 1)
    ax.set_ylim(len(cases) - 0.5, -0.5)
    low, high = min(ratio.low for ratio in ratios), max(min(ratio.high, 1.5 * ratio.median) for ratio in ratios)
    if low < 0.3:
        ax.set_xscale("log")
        ax.set_xlim(low / 1.3, max(high, 1) * 1.3)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        ax.set_xlim(min(low, 0.8) - 0.05, max(high, 1.2) + 0.05)
