"""One optimiser step: forward and backward over the accumulated batches, agreement of all processes, update.

Dropout and drop path are drawn from (seed, step, accumulated batch, process). Nothing moves unless loss and gradient
are finite on every process (but under DeepSpeed, whose engine moves the weights within the backward pass).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ..data.bad_images import PASSED_OVER
from ..data.order import seed_from
from .optim import StepPlan
from .recipe import Recipe
from .tasks import Batch, Task


@dataclass(frozen=True)
class StepOutcome:
    """What all processes know after a step."""

    loss: float
    """Mean over the global batch."""
    flags: list[bool]
    """Each true when it was so on any process."""
    passed_over: int = 0
    """Bad samples that were passed over for those of the step, on all processes."""
    passed_over_here: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    """Of this process only: for each batch, its rows and how many were passed over before each."""


class Stepper:
    """Takes steps with the prepared objects of a run.

    What `prepare` returns is the step's own, which mixing may change in place; a batch is kept until the step is taken.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        plan: StepPlan,
        task: Task,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Any,
        schedule: LRScheduler,
        average: AveragedModel | None,
        prepare: Callable[[Batch, torch.device], Batch],
        say: Callable[[str], None],
    ):
        self.recipe, self.plan, self.task, self.accelerator = recipe, plan, task, accelerator
        self.model, self.optimizer, self.schedule, self.average = model, optimizer, schedule, average
        self.prepare, self.say = prepare, say
        self.pieces = 1  # into which a device batch is cut since it did not fit into memory
        self.input_seconds = 0.0
        """Time that the steps spent on their input: waiting for the loader, moving and augmenting (of what a GPU does
        in the meantime only the launch)."""

    def take(self, step: int, batches: Iterator[Batch], flags: Callable[[], list[bool]]) -> StepOutcome:
        """Take a step.

        Args:
            step: its number, from 1.
            batches: gives this process's share of `accumulation` batches, on the CPU.
            flags: asked after the backward pass; what any process says is returned to all.

        Raises:
            FloatingPointError: loss or gradient is not finite; no weight has moved.
            MemoryError: the smallest batch does not fit, or the batch of one of several processes.
        """
        accelerator, optimization = self.accelerator, self.recipe.optimization
        loss, seen = self._forward_and_backward(step, batches)
        passed_over = tuple((batch["rows"], batch[PASSED_OVER]) for batch in seen if PASSED_OVER in batch)
        norm = accelerator.clip_grad_norm_(self.model.parameters(), optimization.clip_norm or math.inf)
        if accelerator.scaler is not None or norm is None:  # fp16: the scaler passes over steps that overflow
            norm = torch.zeros(())
        norm = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
        counts = [sum(int(count.sum()) for _, count in passed_over), *flags()]
        mine = [loss.float(), norm.float().to(loss.device), *torch.tensor(counts, dtype=torch.float32).to(loss.device)]
        shared = accelerator.reduce(torch.stack(mine), "sum").tolist()  # the step's only wait for the device
        loss_sum, norm_sum, passed_over_sum, *flag_sums = shared
        if not math.isfinite(loss_sum + norm_sum):
            self._stop_at_non_finite(step, loss.item(), torch.cat([batch["rows"] for batch in seen]))
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:
            self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(accelerator.unwrap_model(self.model, keep_torch_compile=False))
        mean = loss_sum / accelerator.num_processes
        return StepOutcome(mean, [count > 0 for count in flag_sums], int(passed_over_sum), passed_over)

    def _forward_and_backward(self, step: int, batches: Iterator[Batch]) -> tuple[torch.Tensor, list[Batch]]:
        """Leave the gradient of the step's mean loss; return the loss of this process and the batches it saw."""
        seen: list[Batch] = []
        while True:
            try:
                loss = torch.zeros((), device=self.accelerator.device)
                for part in range(self.plan.accumulation):
                    if part == len(seen):
                        with self._timed_input():
                            seen.append(next(batches))
                    loss += self._batch(step, part, seen[part])
                return loss, seen
            except torch.OutOfMemoryError as error:
                self._use_smaller_pieces(seen[-1], error)

    def _batch(self, step: int, part: int, batch: Batch) -> torch.Tensor:
        """Forward and backward of one batch, in pieces; returns its share of the step's loss."""
        accelerator, pieces = self.accelerator, self.pieces
        share = torch.zeros((), device=accelerator.device)
        length = len(batch["rows"]) // pieces
        for number in range(pieces):
            torch.manual_seed(
                seed_from("step", self.recipe.seed, step, part * pieces + number, accelerator.process_index)
            )
            place = slice(number * length, (number + 1) * length)
            piece = {name: tensor[place] for name, tensor in batch.items() if name != PASSED_OVER}
            with self._timed_input():
                piece = self.prepare(piece, accelerator.device)
            last = part == self.plan.accumulation - 1 and number == pieces - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    loss = self.task.loss(self.model, piece) / (self.plan.accumulation * pieces)
                if accelerator.distributed_type == DistributedType.DEEPSPEED:
                    accelerator.gradient_state._set_sync_gradients(last)  # its engine moves the weights in backward
                    accelerator.backward(loss * self.plan.accumulation)  # which divides, too
                else:
                    accelerator.backward(loss)
            share += loss.detach().float()
        return share

    @contextlib.contextmanager
    def _timed_input(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.input_seconds += time.perf_counter() - started

    def _use_smaller_pieces(self, batch: Batch, error: torch.OutOfMemoryError) -> None:
        """Halve the device batch, which doubles the accumulation; the step begins again, on the same pictures."""
        pieces = self.pieces * 2
        length = len(batch["rows"]) // pieces
        even = 2 if "mix_box" in batch else 1  # pairs stay together
        if self.accelerator.num_processes > 1 or len(batch["rows"]) % (pieces * even) or length < 1:
            half = max(len(batch["rows"]) // self.pieces // 2, 1)
            raise MemoryError(
                f"the device is out of memory with {len(batch['rows']) // self.pieces} pictures at once ({error}); set "
                f"optimization.max_device_batch_size to {half} (the batch of a step stays the same), or "
                "gradient_checkpointing"
            ) from error
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()
        self.pieces = pieces
        self.say(f"out of memory: {length} pictures at once from now on, {pieces} times as many batches a step")

    def _stop_at_non_finite(self, step: int, loss: float, rows: torch.Tensor) -> None:
        """Raise on the main process, naming the rows of the process where it happened; end the others."""
        accelerator = self.accelerator
        found = gather_object([(accelerator.process_index, loss, rows.tolist())])
        if not accelerator.is_main_process:
            raise SystemExit(1)
        bad = [entry for entry in found if not math.isfinite(entry[1])]
        process, value, rows_there = bad[0] if bad else found[0]
        what = f"the loss is {value}" if bad else "the gradient is not finite"
        shown = ", ".join(map(str, rows_there[:8])) + (", ..." if len(rows_there) > 8 else "")
        raise FloatingPointError(
            f"{what} at step {step}, process {process}, training rows {shown}; expected a finite number. The step was "
            "not taken; checkpoints are as they were. Lower optimization.learning_rate, set optimization.clip_norm, "
            "or use mixed_precision bf16 instead of fp16"
        )
