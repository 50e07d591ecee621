"""How many pictures a device takes at once, tried before several processes begin to wait for each other.

One process that runs out of memory simply takes smaller pieces (`vit_hf.training.step`). Of several, one cannot do so
alone in the middle of a step, because the others exchange gradients with it.
"""

import dataclasses

import torch
from accelerate import Accelerator
from torch import nn

from .optim import StepPlan
from .tasks import Batch, Task


def fit_device_batch(
    network: nn.Module, task: Task, plan: StepPlan, accelerator: Accelerator, *, image_chw: tuple[int, int, int]
) -> StepPlan:
    """Halve the device batch, and double the accumulation, until a forward and backward pass fits on every process.

    Memory for the optimiser's state and for DDP's copy of the gradients is set aside meanwhile.

    Args:
        network: on the device, not yet prepared; its gradients are empty before and after.
        task: of the run.
        plan: wanted; the batch of a step stays.
        accelerator: of the run.
        image_chw: C, H and W of a picture.

    Raises:
        MemoryError: on some process not even the smallest batch fits.
    """
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    even = 2 if task.draw is not None and "mix_box" in task.draw([0, 1], *image_chw[1:]) else 1
    pieces = 1
    while pieces:
        try:
            reserve = 3 * trained  # two moments, and gradients once more
            _pass(network, task, accelerator, plan.device_batch_size // pieces, image_chw, reserve)
            break
        except torch.OutOfMemoryError:
            pieces = 0 if plan.device_batch_size % (2 * pieces * even) else 2 * pieces
        finally:
            for parameter in network.parameters():
                parameter.grad = None
            torch.cuda.empty_cache()
    found = accelerator.gather(torch.tensor([pieces], device=accelerator.device)).tolist()
    if not all(found):
        raise MemoryError(
            f"process {found.index(0)} is out of memory with the smallest device batch; set gradient_checkpointing, or "
            "take a smaller model or image_size"
        )
    pieces = max(found)
    return dataclasses.replace(
        plan, accumulation=plan.accumulation * pieces, device_batch_size=plan.device_batch_size // pieces
    )


def _pass(
    network: nn.Module,
    task: Task,
    accelerator: Accelerator,
    size: int,
    image_chw: tuple[int, int, int],
    reserve: int,
) -> None:
    """Take a forward and backward pass of black pictures while `reserve` float32 numbers are held."""
    held = torch.empty(reserve, device=accelerator.device)
    batch: Batch = {"pixel_values": torch.zeros(size, *image_chw), "labels": torch.zeros(size, dtype=torch.long)}
    if task.draw is not None:
        batch.update(task.draw(list(range(size)), *image_chw[1:]))
    batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
    network.train()
    with accelerator.autocast():
        loss = task.loss(network, batch)
    loss.backward()
    del held
