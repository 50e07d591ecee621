"""In what order the samples of a run come: every order and place is drawn from an address, (seed, epoch, step).

The training set is one endless stream, epoch after epoch, cut into steps of `batch_size`: each sample comes once an
epoch and no step is ragged. Accelerate splits each batch over the processes (`split_batches=True`), so a global batch
holds the same samples for any number of processes.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import torch


def seed_from(*address: int | str) -> int:
    """Return 63 bits that depend on the whole address only: equal addresses equal seeds, others unrelated ones."""
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Address(NamedTuple):
    """Where a training sample stands: all that its randomness is drawn from, beside the seed."""

    position: int
    """Place in the stream of the whole run; names the pair that is mixed."""
    epoch: int
    row: int
    copy: int = 0
    """Number among the repeats of the row in one step."""


class StepSampler:
    """Batches of addresses: `num_steps` steps of `accumulation` equal batches each.

    Args:
        num_rows: rows of the split.
        batch_size: samples a step, over all processes and accumulated batches; divisible by `accumulation`.
        accumulation: batches that are accumulated into one step.
        num_steps: where to stop.
        seed: of the order.
        first_step: steps done before, for resuming.
        repeats: copies of a row in a step; the step then holds ceil(batch_size / repeats) different rows, whose copies
            stand as far apart as they can.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        accumulation: int = 1,
        num_steps: int,
        seed: int,
        first_step: int = 0,
        repeats: int = 1,
    ):
        self.num_rows, self.seed = num_rows, seed
        self.batch_size = batch_size // accumulation  # what Accelerate splits over the processes
        self.drop_last = True  # no batch is ragged
        self.accumulation, self.steps = accumulation, range(first_step, num_steps)
        self.rows_per_step = -(-batch_size // repeats)

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[Address]]:
        epoch, order = -1, []
        for step in self.steps:
            rows = []
            for place in range(step * self.rows_per_step, (step + 1) * self.rows_per_step):
                if place // self.num_rows != epoch:
                    epoch = place // self.num_rows
                    generator = torch.Generator().manual_seed(seed_from("order", self.seed, epoch))
                    order = torch.randperm(self.num_rows, generator=generator).tolist()
                rows.append((epoch, order[place % self.num_rows]))
            for part in range(self.accumulation):
                members = range(part * self.batch_size, (part + 1) * self.batch_size)
                start = step * self.accumulation * self.batch_size
                yield [Address(start + j, *rows[j % len(rows)], j // len(rows)) for j in members]


class FullBatches:
    """Batches of row numbers, each row in its place, the last one repeated until the last batch is full.

    Args:
        num_rows: rows of the split.
        batch_size: rows a batch.
    """

    def __init__(self, num_rows: int, batch_size: int):
        self.num_rows, self.batch_size = num_rows, batch_size
        self.drop_last = False  # Accelerate reads it: every process gets as many batches, if need be from the start

    def __len__(self) -> int:
        return -(-self.num_rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.num_rows, self.batch_size):
            yield [min(row, self.num_rows - 1) for row in range(start, start + self.batch_size)]
