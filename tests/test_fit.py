"""The device batch of several processes: tried before they start, the batch of a step kept."""

import pytest
import torch
from accelerate import Accelerator

from vit_hf import VitHfForImageClassification, get_recipe
from vit_hf.training.fit import fit_device_batch
from vit_hf.training.optim import StepPlan
from vit_hf.training.tasks import Classification

PLAN = StepPlan(total_steps=10, warmup_steps=0, steps_per_epoch=5.0, accumulation=2, device_batch_size=24)


def fitted(config, monkeypatch, largest: int, **augmentation):
    """Fit PLAN to a device that takes at most `largest` pictures; returns the plan, the sizes tried and the network."""
    recipe = get_recipe("digits").override({f"augmentation.{name}": value for name, value in augmentation.items()})
    network = VitHfForImageClassification(config)
    task, tried, whole = Classification(recipe, network), [], network.forward

    def forward(pixel_values, **options):
        tried.append(len(pixel_values))
        if len(pixel_values) > largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(pixel_values, **options)

    monkeypatch.setattr(network, "forward", forward)
    plan = fit_device_batch(network, task, PLAN, Accelerator(cpu=True), image_chw=(3, *config.image_hw))
    return plan, tried, network


@pytest.mark.parametrize(("largest", "size", "accumulation"), [(24, 24, 2), (23, 12, 4), (6, 6, 8), (5, 3, 16)])
def test_the_batch_is_halved_until_it_fits_and_the_step_keeps_its_pictures(
    tiny, monkeypatch, largest, size, accumulation
):
    plan, tried, network = fitted(tiny(), monkeypatch, largest)
    assert (plan.device_batch_size, plan.accumulation) == (size, accumulation)
    assert plan.device_batch_size * plan.accumulation == PLAN.device_batch_size * PLAN.accumulation
    assert tried == [24 // 2**number for number in range(len(tried))]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_cannot_be_halved_any_more_is_an_error_with_the_remedy(tiny, monkeypatch):
    with pytest.raises(MemoryError, match=r"process 0 is out of memory .* set gradient_checkpointing"):
        fitted(tiny(), monkeypatch, 2)


def test_pairs_that_are_mixed_are_not_torn_apart(tiny, monkeypatch):
    with pytest.raises(MemoryError, match="out of memory"):
        fitted(tiny(), monkeypatch, 5, mixup_alpha=0.8)  # 3 would do, but is odd
    plan, tried, _ = fitted(tiny(), monkeypatch, 6, mixup_alpha=0.8)
    assert (plan.device_batch_size, tried) == (6, [24, 12, 6])
