"""What a person sees of a run: a progress bar while it trains, and a table row for every evaluation."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging

_COLUMNS = (  # heading, width, key, format
    ("epoch", 7, "epoch", "{:.1f}"),
    ("step", 7, "step", "{:,}"),
    ("train loss", 11, "train_loss", "{:.4f}"),
    ("val. loss", 10, "validation_loss", "{:.4f}"),
    ("top-1 %", 8, "top1", "{:.2%}"),
    ("top-5 %", 8, "top5", "{:.2%}"),
    ("lr", 9, "learning_rate", "{:.2e}"),
    ("images/s", 9, "images_per_second", "{:,.0f}"),
    ("input %", 8, "input_share", "{:.1%}"),
    ("MFU %", 7, "mfu", "{:.1%}"),
)
TIMES = ("images_per_second", "input_share", "mfu")
"""What a row tells of speed, which two equal runs need not share."""


class RunDisplay:
    """Prints to a console; silent on all but the main process.

    Args:
        total_steps: of the run.
        enabled: whether this process prints.
        with_mfu: whether the run's utilisation is known; where it is not, no row has it.
    """

    def __init__(self, total_steps: int, *, enabled: bool, with_mfu: bool = False):
        self.console = Console(quiet=not enabled, highlight=False)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (enabled and self.console.is_terminal),
        )
        self.task = self.progress.add_task("training", total=total_steps, numbers="")
        self.has_header = False
        self.columns = _COLUMNS if with_mfu else _COLUMNS[:-1]

    def __enter__(self) -> "RunDisplay":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start_at(self, step: int) -> None:
        """Show the steps that an earlier session took as done."""
        self.progress.update(self.task, completed=step)

    def step(self, *, loss: float, learning_rate: float, images_per_second: float) -> None:
        """Advance the bar by one optimiser step."""
        numbers = f"loss {loss:.3f}  lr {learning_rate:.1e}  {images_per_second:,.0f} images/s"
        self.progress.update(self.task, advance=1, numbers=numbers)

    def row(self, values: dict[str, Any], note: str = "") -> None:
        """Print one evaluation; a heading before the first."""
        if not self.has_header:
            header = "".join(f"{name:>{width}}" for name, width, _, _ in self.columns)
            self.console.print(header, style="bold", soft_wrap=True)
            self.has_header = True
        cells = [
            f"{'-' if values.get(key) is None else form.format(values[key]).rstrip('%'):>{width}}"
            for _, width, key, form in self.columns
        ]
        self.console.print("".join(cells) + (f"  {note}" if note else ""), soft_wrap=True)

    def print(self, text: str = "") -> None:
        """Print a line."""
        self.console.print(text, soft_wrap=True)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the bars of transformers' saving and loading out of the display; the user's setting comes back after."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
