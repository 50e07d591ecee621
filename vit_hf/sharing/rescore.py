"""The model of a finished run over its test split once more: its outputs beside those that the run recorded.

On the machine of the run, with the same versions, they are equal bit for bit: batches, precision and threads are those
of the run's final test. Elsewhere kernels add in another order, and a logit may be off by a share of the largest one
that `TOLERANCE` tells. (Measured with the digits recipe after 300 steps, on one machine with AVX-512 and without any
vector instructions beyond SSE4.1: 8e-7 with float32, 7e-3 with bfloat16.) A picture may be named otherwise only where
its two likeliest classes are closer to each other than twice that, and the scores may differ as far as such pictures
allow.

Shapes: N pictures of the split, L classes.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from ..data.loading import build_evaluation_loader
from ..data.pictures import Pictures, num_rows
from ..evaluation.scoring import Scores
from ..image_processing_vit_hf import VitHfImageProcessor
from ..training.progress import quiet_transformers
from ..training.recipe import Recipe
from ..training.setup import check_launch
from ..training.tasks import TASKS, Errors
from .comparison import Check, compare, is_close, say

TOLERANCE = {"no": 1e-4, "bf16": 2e-2, "fp16": 4e-3}
"""Of a logit, as a share of the largest one, by the recipe's precision."""


def score_again(folder: Path, recipe: Recipe, pictures: Pictures) -> tuple[Scores | Errors, int]:
    """Score the test split as the run's final test did; returns the scores and the model's number of parameters.

    Raises:
        OSError, ValueError, RuntimeError: the weights cannot be loaded, or do not fit.
        FloatingPointError: what they give is not finite.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.cpu_threads or threads)
    try:
        AcceleratorState._reset_state()  # another precision may have been used before
        accelerator = Accelerator(mixed_precision=recipe.mixed_precision)
        check_launch(recipe, accelerator)
        task = TASKS[recipe.task]
        with quiet_transformers():
            network = task.model_class.from_pretrained(folder).to(accelerator.device)
        loader = build_evaluation_loader(
            pictures.test,
            **pictures.columns,
            name=pictures.test_name,
            processor=VitHfImageProcessor.from_pretrained(folder),
            batch_size=recipe.evaluation_batch_size,
            workers=recipe.workers,
            skip_bad=pictures.skip_bad,
        )
        scores = task(recipe, network).score(
            network, accelerator.prepare_data_loader(loader), accelerator, num_samples=num_rows(pictures.test)
        )
        return scores, sum(parameter.numel() for parameter in network.parameters())
    finally:
        torch.set_num_threads(threads)


def compare_errors(results: dict[str, Any], found: Errors, recipe: Recipe) -> list[Check]:
    """Return the check of a model for masked images; what it hides of a test picture depends on its row only."""
    measured = found.measure()
    kind = measured.pop("error")
    room = {"loss": TOLERANCE[recipe.mixed_precision] * abs(measured["loss"])}
    checks = [_check_number(results, name, value, room.get(name, 0)) for name, value in measured.items()]
    return [*checks, compare("model: error", results["error"], kind)] if "error" in results else checks


def compare_scores(results: dict[str, Any], stored: Scores, found: Scores, recipe: Recipe) -> list[Check]:
    """Return the checks of a classifier: logits, the class named, and the scores, against what was recorded."""
    if found.logits.shape != stored.logits.shape:
        return [Check("model: logits", say(list(stored.logits.shape)), say(list(found.logits.shape)), False)]
    if not torch.equal(found.labels, stored.labels):  # of streamed pictures, which were not looked at before
        return [compare("model: labels", stored.labels.tolist(), found.labels.tolist())]
    difference = (found.logits.double() - stored.logits.double()).abs()
    largest, scale = difference.max().item(), stored.logits.abs().max().item()
    allowed = TOLERANCE[recipe.mixed_precision] * scale
    row = int(difference.amax(dim=1).argmax())
    words = "equal bit for bit" if not largest else f"off by up to {largest:.2e}, in row {row} (allowed: {allowed:.2e})"
    checks = [Check("model: logits", f"{len(stored.logits):,} x {stored.logits.shape[1]}", words, largest <= allowed)]

    named, recorded = found.logits.argmax(dim=1), stored.logits.argmax(dim=1)
    close = _near_ties(stored.logits, 1, 2 * allowed)
    changed = named != recorded
    wrong = (changed & ~close).nonzero()[:, 0].tolist()
    words = f"{int(changed.sum())} otherwise" + (
        f" ({int((changed & close).sum())} near ties)" if changed.any() else ""
    )
    if wrong:
        first = wrong[0]
        words += f", such as row {first}: class {recorded[first]} is now {named[first]}"
    checks.append(Check("model: class named", f"{len(named):,} pictures", words, not wrong))

    moved = 2 * min(largest, allowed)  # at most: the distance of two logits, and with it the loss of a picture
    room = {
        "top1": _near_ties(stored.logits, 1, moved).double().mean().item(),
        "top5": _near_ties(stored.logits, 5, moved).double().mean().item(),
        "loss": moved,
    }
    return [
        *checks,
        *(_check_number(results, name, value, room.get(name, 0)) for name, value in found.measure().items()),
    ]


def _check_number(results: dict[str, Any], name: str, value: float, room: float) -> Check:
    recorded = results.get(name, "nothing")
    same = isinstance(recorded, int | float) and (abs(value - recorded) <= room or is_close(value, recorded))
    return Check(f"model: {name}", say(recorded), say(value), same)


def _near_ties(logits: torch.Tensor, k: int, distance: float) -> torch.Tensor:
    """Return for which rows of (N, L) the k-th and the next largest logit are at most so far apart; (N,), bool."""
    if not k or k >= logits.shape[1]:
        return torch.zeros(len(logits), dtype=torch.bool)
    top = logits.topk(k + 1, dim=1).values.double()
    return top[:, k - 1] - top[:, k] <= distance
