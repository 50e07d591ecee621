"""Optimiser, learning-rate schedule, loss and averaged weights, from torch and transformers; ours is only who is moved.

No weight decay on biases, norms and LayerScale (one-dimensional), nor on tokens and positions: the official code decays
kernels only (google-research/vision_transformer; big_vision `configs/vit_s16_i1k.py`). big_vision states its decay
outside the learning rate; torch's AdamW multiplies the two, so that torch's number is big_vision's / learning rate.

Shapes: B batch, L classes.
"""

import difflib
import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.swa_utils import AveragedModel
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
)

from ..modeling_vit_hf import classification_loss
from .muon import MuonAdamW, count_matrices
from .recipe import Optimization

NOT_DECAYED = ("cls_token", "register_tokens", "mask_token", "position_embeddings", "probe")
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# ---------------------------------------------------------------------------------------------- steps
@dataclass(frozen=True)
class StepPlan:
    """The run in optimiser steps."""

    total_steps: int
    warmup_steps: int
    steps_per_epoch: float
    """Pictures / batch size; not whole in general, because steps run on across epochs."""
    accumulation: int
    """Batches accumulated into one step."""
    device_batch_size: int
    """Pictures a process takes at once."""


def plan_steps(
    optimization: Optimization, *, num_images: int | None, num_processes: int, even: bool = False
) -> StepPlan:
    """Turn epochs into steps, and the global batch into processes x device batch x accumulation.

    Args:
        optimization: of the recipe.
        num_images: training pictures; None when streamed, then `max_steps` is needed.
        num_processes: of the run.
        even: the device batch is to be even, because mixing pairs the pictures in it.

    Raises:
        ValueError: the number of steps or of warm-up steps cannot be found, or the batch does not divide.
    """
    batch = optimization.batch_size
    if num_images is None and optimization.max_steps is None:
        raise ValueError("a streamed data set has no known length; set optimization.max_steps (--max-steps N)")
    if num_images is None and optimization.warmup_epochs and optimization.warmup_steps is None:
        raise ValueError(
            f"optimization.warmup_epochs is {optimization.warmup_epochs} but a streamed data set has no known length; "
            "set optimization.warmup_steps"
        )
    steps_per_epoch = float("inf") if num_images is None else num_images / batch
    total = optimization.max_steps or max(round(optimization.epochs * steps_per_epoch), 1)
    warmup = optimization.warmup_steps
    if warmup is None:
        warmup = round(optimization.warmup_epochs * steps_per_epoch) if num_images else 0
    unit = num_processes * (2 if even else 1)
    if batch % unit:
        fitting = batch // unit * unit or unit
        pairs = " whose pictures are mixed in pairs" if even else ""
        raise ValueError(
            f"optimization.batch_size {batch} does not divide by {num_processes} processes{pairs}; use {fitting} or "
            f"{fitting + unit}"
        )
    largest = optimization.max_device_batch_size or batch
    if even and largest < 2:
        raise ValueError(
            f"optimization.max_device_batch_size is {largest}; expected 2 or more, because mixing pairs the pictures "
            "of a device batch"
        )
    share = batch // num_processes
    sizes = (share // count for count in range(1, share + 1) if share % count == 0)  # from the largest down
    size = next(size for size in sizes if size <= largest and not (even and size % 2))
    return StepPlan(total, min(warmup, total), steps_per_epoch, share // size, size)


# ---------------------------------------------------------------------------------------------- who is moved
def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> int:
    """Stop the training of the parameters whose names match one of the shell patterns.

    Returns:
        How many numbers are frozen.

    Raises:
        ValueError: a pattern matches no parameter (the nearest names are listed), or nothing would be left to train;
            the model is unchanged.
    """
    parameters = dict(model.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(parameters, pattern)
        if not matched:
            near = difflib.get_close_matches(pattern, parameters, n=3, cutoff=0.3)
            shown = ", ".join(near or list(parameters)[:3])
            raise ValueError(
                f"model.freeze has {pattern!r}, which matches no parameter; expected a shell pattern over names such "
                f"as {shown}: vit.* is all but the classifier, vit.layers.0.* the first block"
            )
        frozen |= set(matched)
    if frozen and len(frozen) == len(parameters):
        raise ValueError(
            f"model.freeze {tuple(patterns)} matches all {len(parameters)} parameters; expected some to train: leave "
            "classifier.* out"
        )
    for name in frozen:
        parameters[name].requires_grad_(False)
    return sum(parameters[name].numel() for name in frozen)


def parameter_groups(model: nn.Module, optimization: Optimization) -> list[dict]:
    """Return the optimiser groups of the trainable parameters, from the head down to the embeddings.

    With `layer_decay` the learning rate of block i of n (from 0) is multiplied by layer_decay ** (n - i), that of all
    under the blocks (patch projection, a hybrid's stem, tokens, positions) by layer_decay ** (n + 1), and that of what
    follows them (last norm, pooler, classifier) by 1: BEiT's rule, facebookresearch/mae `util/lr_decay.py`.

    With Muon the matrices of the blocks are groups of their own, with a learning rate of theirs.

    Returns:
        Groups with "name", "params", "weight_decay" and, with `layer_decay` or for Muon, "lr", for Muon "matrices" (see
        `vit_hf.training.muon`); empty ones are left out.
    """
    places = {name: _place(name) for name, _ in model.named_parameters()}
    blocks = max((place for place in places.values() if place is not None), default=-1) + 1
    fused = count_matrices(model)
    groups: dict[tuple[int, bool, int], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        place = places[name]
        depth = 0  # steps down from the head
        if optimization.layer_decay is not None and place is not None:
            depth = blocks - place
        exempt = parameter.ndim < 2 or name.rpartition(".")[2] in NOT_DECAYED
        part = "all" if optimization.layer_decay is None else _part(depth, blocks)
        group: dict[str, Any] = {"name": f"{part}, {'no decay' if exempt else 'decay'}", "params": []}
        group["weight_decay"] = 0.0 if exempt else optimization.weight_decay
        matrices, rate = 0, optimization.peak_learning_rate
        if optimization.optimizer == "muon" and parameter.ndim == 2 and re.search(r"(?:^|\.)layers\.\d+\.", name):
            matrices, rate = fused.get(name, 1), optimization.peak_muon_learning_rate
            group["matrices"] = matrices
            group["name"] = f"{part}, Muon" if matrices == 1 else f"{part}, Muon, {matrices} in one"
        if optimization.layer_decay is not None or matrices:
            group["lr"] = rate * (optimization.layer_decay or 1.0) ** depth
        groups.setdefault((depth, exempt, matrices), group)["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _place(name: str) -> int | None:
    """Index of the block that a parameter belongs to, -1 for the embeddings, None for what follows the encoder."""
    found = re.search(r"(?:^|\.)(?:embeddings|layers\.(\d+))\.", name)
    return None if found is None or "decoder." in name else int(found.group(1) or -1)


def _part(depth: int, blocks: int) -> str:
    if depth == 0:
        return "head"
    return "embeddings" if depth > blocks else f"block {blocks - depth}"


# ---------------------------------------------------------------------------------------------- how it is moved
def build_optimizer(model: nn.Module, optimization: Optimization, *, scaled: bool = False) -> torch.optim.Optimizer:
    """Return torch's AdamW or SGD, or Muon with AdamW, over `parameter_groups`, at the peak learning rate.

    AdamW is torch's fused form, one pass over all weights: on a CPU a seventh of the time for B/16. Where the loss is
    `scaled` (fp16) it is the plain one: from the fused one Accelerate cannot see that a step was left out.
    """
    groups, rate = parameter_groups(model, optimization), optimization.peak_learning_rate
    if optimization.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=optimization.momentum)
    if optimization.optimizer == "muon":
        return MuonAdamW(groups, lr=rate, betas=optimization.betas, fused=not scaled)
    return torch.optim.AdamW(groups, lr=rate, betas=optimization.betas, fused=not scaled)


def count_state(model: nn.Module, optimization: Optimization) -> int:
    """Count the numbers that the optimiser keeps: two a parameter (AdamW), one (momentum of Muon and SGD), or none."""
    count = 0
    for group in parameter_groups(model, optimization):
        kept = 1 if "matrices" in group else 2
        if optimization.optimizer == "sgd":
            kept = int(optimization.momentum > 0)
        count += kept * sum(parameter.numel() for parameter in group["params"])
    return count


def build_schedule(optimizer: torch.optim.Optimizer, optimization: Optimization, plan: StepPlan) -> LRScheduler:
    """Return transformers' linear warm-up, then cosine to `min_learning_rate` or constant; one tick a step.

    With a `warmup_learning_rate` the same warm-up rises from there instead of from 0. transformers' own schedule with
    that option (`get_cosine_with_min_lr_schedule_with_warmup_lr_rate`) reaches the peak a step early and is a step
    ahead from then on, and it has no constant form. Groups keep the ratio of their learning rates throughout.
    """
    schedule: LambdaLR
    if optimization.schedule == "constant":
        schedule = get_constant_schedule_with_warmup(optimizer, plan.warmup_steps)
    else:
        schedule = get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, plan.warmup_steps, plan.total_steps, min_lr=optimization.min_learning_rate
        )
    if not optimization.warmup_learning_rate or not plan.warmup_steps:
        return schedule
    start = optimization.warmup_learning_rate / optimization.peak_learning_rate
    return LambdaLR(optimizer, partial(_raised, schedule.lr_lambdas[0], start, plan.warmup_steps))


def _raised(shape: Callable[[int], float], start: float, warmup_steps: int, step: int) -> float:
    """Factor of a schedule whose warm-up from 0 becomes one from `start`."""
    return start + (1 - start) * shape(step) if step < warmup_steps else shape(step)


# ---------------------------------------------------------------------------------------------- what it is moved by
def build_loss(optimization: Optimization) -> Loss:
    """Return the training loss: a function of logits and labels to a scalar, float32, the mean over the samples.

    It takes logits (B, L), float, and labels: class indices (B,), int64, or probabilities (B, L), float. Label
    smoothing mixes both kinds with the uniform distribution: with mixup and CutMix that is what timm gets by smoothing
    before mixing.

    "bce" sums over the classes, as big_vision's `sigmoid_xent`, whose clip norm is stated for the sum. timm and DeiT
    III take the mean over the classes: L times less, which AdamW does not see but clipping does.
    """
    if optimization.loss == "bce":
        return partial(_sigmoid_loss, optimization.label_smoothing)
    return partial(classification_loss, label_smoothing=optimization.label_smoothing)


def _sigmoid_loss(label_smoothing: float, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if labels.shape != (logits.shape if labels.is_floating_point() else logits.shape[:1]):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)} and dtype {labels.dtype} for logits of shape "
            f"{tuple(logits.shape)}; expected int64 class indices of shape ({logits.shape[0]},) or float probabilities "
            f"of shape {tuple(logits.shape)}"
        )
    targets = (labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[1])).float()  # (B, L)
    targets = targets * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum") / logits.shape[0]


# ---------------------------------------------------------------------------------------------- averages
def build_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return torch's AveragedModel as exponential moving average; its decay warms up as min(decay, (1+t)/(10+t))."""
    return AveragedModel(model, multi_avg_fn=_warm_average(decay))


def _warm_average(decay: float) -> Callable:
    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], num_averaged: torch.Tensor | int) -> None:
        step = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + step) / (10 + step)))

    return update
