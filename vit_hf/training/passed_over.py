"""The record of bad pictures of a run of one process or several: what one has found, all know.

No process waits for this unless something was found: a step's reduction tells all of them that there was, and the rows
of a score are gathered anyway. Only then are the records exchanged.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import IterableDataset

from ..data.bad_images import BadImage, BadImages, BrokenSourceError


class PassedOver(BadImages):
    """`BadImages` that is the same on all processes.

    Args:
        policy: of `data.on_bad_image`.
        accelerator: of the run.
        changed: called after each change.
    """

    def __init__(self, policy: str, accelerator: Accelerator, changed: Callable[[], None] = lambda: None):
        super().__init__(policy, says=accelerator.is_main_process)
        self._accelerator, self._changed = accelerator, changed

    def after_batches(
        self, samples: Any, pairs: Iterable[tuple[torch.Tensor, torch.Tensor]], *, total: int, taken: int
    ) -> None:
        """Record what training batches passed over; called on all processes, when `total` is not 0.

        Args:
            samples: dataset of the training loader.
            pairs: rows, and how many were passed over before each, (B,) int64, of the batches of this process.
            total: how many were, on all processes.
            taken: samples that the run has taken so far, on all processes.
        """
        before = self.passed_over
        self.passed_over += total
        if isinstance(samples, IterableDataset):
            found, tried = samples.explain(before, self.passed_over), taken + self.passed_over  # type: ignore
        else:
            found = [image for pair in pairs for image in samples.explain(*pair)]
            tried = min(taken, len(samples))
        self._share(found, tried, by_path=isinstance(samples, IterableDataset))

    def after_scoring(self, samples: Any, split: str) -> Callable[[list[int]], None]:
        """Return what is to be called on all processes with the bad rows of a split, as `gather_rows` does.

        Args:
            samples: dataset of the loader.
            split: name in the record.
        """
        streamed = isinstance(samples, IterableDataset)

        def note(rows: list[int]) -> None:
            self._share(samples.explain(rows, split), max(rows) + 1 if streamed else len(samples), by_path=streamed)

        return note

    def _share(self, mine: list[BadImage], tried: int, *, by_path: bool) -> None:
        everyone = gather_object(mine) if self._accelerator.num_processes > 1 else mine
        try:
            self.note(everyone, tried=tried, by_path=by_path)
        except BrokenSourceError:
            if self._accelerator.is_main_process:
                raise
            raise SystemExit(1) from None
        finally:
            self._changed()


__all__ = ["PassedOver"]
