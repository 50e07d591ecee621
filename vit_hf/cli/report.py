"""`vit-hf report`."""

import argparse
from pathlib import Path

from .words import Add


def add_commands(add: Add) -> None:
    """Add the command that makes a page of a run."""
    report = add("report", _report, "Make one HTML page of a run: scores, curves, confusions, mistakes, training.")
    report.add_argument("folder", metavar="RUN", help="finished run, or model folder")
    report.add_argument("--output", metavar="DIR", help="new folder for report.html and its PNGs (default: RUN/report)")
    report.add_argument("--data", metavar="SOURCE", help="the data that was scored (default: what the recipe names)")
    report.add_argument("--scores", metavar="DIR", help="folder of `vit-hf evaluate --output` (default: the run's own)")


def _report(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ..sharing.report import write_report

    with Console(stderr=True).status("starting") as status:
        report = write_report(
            options.folder,
            output=options.output,
            data=options.data,
            scores_of=options.scores,
            on_step=lambda words: status.update(words),
        )
    if report.absent:
        print(f"without pictures of the data: {report.absent}")
    size = report.page.stat().st_size / 1e6
    print(f"{Path(report.page)}: {size:.1f} MB, and {report.pictures} PNG files beside it")
    return 0
