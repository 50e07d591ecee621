"""What becomes of pictures that cannot be decoded: an error, or, where `data.on_bad_image` is "skip", a record.

In training the next row of the split that can be decoded stands in (row + 1, row + 2, ..., from the start after the
last): which one depends on the data only, so batches stay full and the same for any number of workers and processes
and after a resume. A streamed sample is passed over. In an evaluation the row is left out of the score.

A few bad pictures are passed over, a broken source is not: beyond `MOST` pictures and `SHARE` of those tried it is an
error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .images import BadImageError

logger = logging.getLogger(__name__)

POLICIES = ("raise", "skip")
BAD = (BadImageError, FileNotFoundError)
"""Errors that are of the picture. A network, a disk or a memory that fails is none, and is always raised."""
MOST = 10
SHARE = 0.01
RECORD = "bad_images.jsonl"
"""File of a run folder with a line for each bad picture."""
PASSED_OVER = "passed_over"
"""Name in a training batch, (B,) int64: for each sample, how many bad ones before it were passed over."""

T = TypeVar("T")


class BrokenSourceError(ValueError):
    """So many pictures cannot be decoded that something else is wrong."""


@dataclass(frozen=True)
class BadImage:
    """A picture that could not be decoded."""

    split: str
    row: int
    """In the split; of a streamed split, of an epoch."""
    path: str | None
    """Where it is or was read from, if that is known."""
    reason: str
    """The error, which names row and path."""


def describe(split: str, row: int, value: Any, error: Exception) -> BadImage:
    """Return the record of a picture.

    Args:
        split: its name in the record.
        row: of the split.
        value: of the image column: a path, or a mapping that may have one.
        error: what came of decoding it.
    """
    path = value.get("path") if isinstance(value, Mapping) else value
    return BadImage(split, row, str(path) if isinstance(path, str) and path else None, str(error))


def describe_streamed(split: str, row: int, value: Any, error: Exception) -> BadImage:
    """As `describe`; a sample without a path gets the hash of its bytes for one, by which it is known again."""
    found = describe(split, row, value, error)
    if found.path is not None:
        return found
    data = value.get("bytes") if isinstance(value, Mapping) else value
    digest = hashlib.sha256(data if isinstance(data, bytes) else b"").hexdigest()
    return dataclasses.replace(found, path=f"sha256:{digest}")


def limit(tried: int) -> int:
    """Most bad pictures among so many that were tried."""
    return max(MOST, int(SHARE * tried))


class GoodRows(Generic[T]):
    """Reads rows of a split, the next good one in place of a bad one.

    Args:
        read: from a row, and what else the caller gives, to its picture; raises one of `BAD`.
        num_rows: of the split.
    """

    def __init__(self, read: Callable[..., T], num_rows: int):
        self.read, self.num_rows = read, num_rows
        self.known: set[int] = set()

    def __call__(self, row: int, *more: Any) -> tuple[int, T, int]:
        """Return the row that was taken, its picture, and how many bad rows were passed over.

        What else is given is that of the row that was asked for: one that stands in is cut by another key than its own.

        Raises:
            BrokenSourceError: more in succession than a split may have at all.
        """
        last: Exception | None = None
        most = min(limit(self.num_rows) + 1, self.num_rows)
        for passed_over in range(most):
            taken = (row + passed_over) % self.num_rows
            if taken in self.known:
                continue
            try:
                return taken, self.read(taken, *more), passed_over
            except BAD as error:
                self.known.add(taken)
                last = error
        raise too_many_in_succession(row, most, last)

    def passed(self, taken: int, passed_over: int) -> list[int]:
        """Return the rows that were passed over before the one that was taken."""
        return [(taken - back) % self.num_rows for back in range(passed_over, 0, -1)]


def too_many_in_succession(row: int, count: int, last: Exception | None) -> BrokenSourceError:
    """Return the error for `count` bad pictures from a row on."""
    said = "" if last is None else f" ({last})"
    return BrokenSourceError(
        f"none of {count} pictures from row {row} of the training split on can be decoded{said}; expected a few bad "
        "ones at most: mend the source; `vit-hf audit` lists all that is wrong with it"
    )


class BadImages:
    """All that a run could not decode; the same on all its processes.

    Args:
        policy: one of `POLICIES`.
        says: whether what is new is logged: by one process of a run.
    """

    def __init__(self, policy: str = "raise", *, says: bool = True):
        self.skip, self.says = policy == "skip", says
        self.passed_over = 0
        """Samples of the training split that were passed over by the steps taken, each time that they came."""
        self._found: dict[str, dict[str, BadImage]] = {}

    def note(self, found: Iterable[BadImage], *, tried: int, by_path: bool = False) -> list[BadImage]:
        """Add pictures, log those that are new, and return them.

        Args:
            found: of one split.
            tried: different pictures of that split that were tried so far.
            by_path: whether rows have other numbers each time, as in a stream.

        Raises:
            BrokenSourceError: too many of them are bad.
        """
        new = []
        for image in sorted(found, key=lambda image: image.row):
            known = self._found.setdefault(image.split, {})
            key = str(image.path) if by_path else str(image.row)
            if key not in known:
                known[key] = image
                new.append(image)
                if self.says:
                    logger.warning("left out: %s", image.reason)
        for split in {image.split for image in new}:
            bad = self.of(split)
            if len(bad) > limit(tried):
                shown = "; ".join(image.reason for image in bad[:3])
                raise BrokenSourceError(
                    f"{len(bad)} of {max(tried, len(bad)):,} pictures of split {split} cannot be decoded, more than "
                    f"{MOST} and {SHARE:.0%}: {shown}. A broken source is not a few bad pictures: mend it; `vit-hf "
                    "audit` lists all that is wrong with it"
                )
        return new

    def of(self, split: str) -> list[BadImage]:
        """Return the bad pictures of a split, by row."""
        return sorted(self._found.get(split, {}).values(), key=lambda image: image.row)

    def counts(self, splits: Sequence[str]) -> dict[str, int]:
        """Return how many there are in each split."""
        return {split: len(self._found.get(split, {})) for split in splits}

    def lines(self) -> str:
        """Return the record: a line of JSON for each picture, the splits in the order in which they were met."""
        images = [image for split in self._found for image in self.of(split)]
        return "".join(json.dumps(dataclasses.asdict(image)) + "\n" for image in images)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run goes on from, as plain values."""
        found = {
            split: {key: dataclasses.asdict(image) for key, image in images.items()}
            for split, images in self._found.items()
        }
        return {"passed_over": self.passed_over, "found": found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.passed_over = state["passed_over"]
        self._found = {
            split: {key: BadImage(**image) for key, image in images.items()} for split, images in state["found"].items()
        }
