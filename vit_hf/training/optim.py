"""Optimiser, learning-rate schedule and averaged weights, from torch and transformers; ours is only who decays.

No weight decay on biases, norms and LayerScale (one-dimensional), nor on tokens and positions: the official code decays
kernels only (google-research/vision_transformer; big_vision `configs/vit_s16_i1k.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from transformers.optimization import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
)

from .recipe import Optimization

NOT_DECAYED = ("cls_token", "register_tokens", "mask_token", "position_embeddings", "probe")


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


def plan_steps(optimization: Optimization, *, num_images: int | None, num_processes: int) -> StepPlan:
    """Turn epochs into steps, and the global batch into processes x device batch x accumulation.

    Args:
        optimization: of the recipe.
        num_images: training pictures; None when streamed, then `max_steps` is needed.
        num_processes: of the run.

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
    if batch % num_processes:
        fitting = batch // num_processes * num_processes or num_processes
        raise ValueError(
            f"optimization.batch_size {batch} does not divide by {num_processes} processes; use {fitting} or "
            f"{fitting + num_processes}"
        )
    largest = optimization.max_device_batch_size or batch
    share = batch // num_processes
    accumulation = next(count for count in range(1, share + 1) if share % count == 0 and share // count <= largest)
    return StepPlan(total, min(warmup, total), steps_per_epoch, accumulation, share // accumulation)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return two optimiser groups of the trainable parameters: with weight decay, and without."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name.rpartition(".")[2] in NOT_DECAYED
            (free if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def build_optimizer(model: nn.Module, optimization: Optimization) -> torch.optim.Optimizer:
    """Return torch's AdamW or SGD over `parameter_groups`, at the peak learning rate."""
    groups = parameter_groups(model, optimization.weight_decay)
    if optimization.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=optimization.learning_rate, momentum=optimization.momentum)
    return torch.optim.AdamW(groups, lr=optimization.learning_rate, betas=optimization.betas)


def build_schedule(optimizer: torch.optim.Optimizer, optimization: Optimization, plan: StepPlan) -> LRScheduler:
    """Return transformers' linear warm-up, then cosine to `min_learning_rate` or constant; one tick a step."""
    if optimization.schedule == "constant":
        return get_constant_schedule_with_warmup(optimizer, plan.warmup_steps)
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, plan.warmup_steps, plan.total_steps, min_lr=optimization.min_learning_rate
    )


def build_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return torch's AveragedModel as exponential moving average; its decay warms up as min(decay, (1+t)/(10+t))."""
    return AveragedModel(model, multi_avg_fn=_warm_average(decay))


def _warm_average(decay: float) -> Callable:
    @torch.no_grad()
    def update(averaged: list[torch.Tensor], current: list[torch.Tensor], num_averaged: torch.Tensor | int) -> None:
        step = int(num_averaged)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + step) / (10 + step)))

    return update
