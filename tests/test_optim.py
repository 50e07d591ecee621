"""Optimisation: who decays, the learning rate against its closed form, steps against arithmetic, averages by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from vit_hf import VitHfForImageClassification
from vit_hf.training.optim import build_average, build_optimizer, build_schedule, parameter_groups, plan_steps
from vit_hf.training.recipe import Optimization

FAMILY = {
    "plain": {},
    "registers, LayerScale, QK-norm": {"num_register_tokens": 2, "layer_scale_init": 1e-4, "qk_norm": True},
    "map": {"pooling": "map", "representation_size": 8},
    "gap, sincos2d": {"pooling": "gap", "position_embedding": "sincos2d"},
    "hybrid": {"resnet_stem_layers": [1], "resnet_stem_width": 32, "image_size": 16, "patch_size": 8},
}


def steps(optimization: Optimization, num_images: int | None = 1000, num_processes: int = 1):
    return plan_steps(optimization, num_images=num_images, num_processes=num_processes)


def rates(optimization: Optimization, count: int, num_images: int = 1000) -> list[float]:
    """Return the learning rate of each of `count` steps, as a loop sees them."""
    optimizer = build_optimizer(nn.Linear(2, 2), optimization)
    schedule = build_schedule(optimizer, optimization, steps(optimization, num_images))
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        assert optimizer.param_groups[1]["lr"] == found[-1]
        optimizer.step()
        schedule.step()
    return found


# ---------------------------------------------------------------------------------------------- weight decay
@pytest.mark.parametrize("fields", FAMILY.values(), ids=FAMILY)
def test_every_trainable_parameter_is_in_one_group_once(tiny, fields):
    model = VitHfForImageClassification(tiny(**fields))
    grouped = [id(parameter) for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("fields", FAMILY.values(), ids=FAMILY)
def test_the_kernels_decay_and_nothing_else(tiny, fields):
    model = VitHfForImageClassification(tiny(**fields))
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    kernels = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }  # all that multiplies activations; tokens, positions, norms, scales and biases only add or scale
    assert {id(parameter) for parameter in decayed["params"]} == kernels


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (FAMILY["plain"], ("cls_token", "position_embeddings", "norm1.weight", "classifier.bias")),
        (FAMILY["registers, LayerScale, QK-norm"], ("register_tokens", "scale", "q_norm.weight", "k_norm.bias")),
        (FAMILY["map"], ("probe",)),
        (FAMILY["hybrid"], ("root_norm.weight",)),
    ],
)
def test_tokens_positions_norms_scales_and_biases_do_not_decay(tiny, fields, names):
    model = VitHfForImageClassification(tiny(**fields))
    free = {id(parameter) for parameter in parameter_groups(model, 0.1)[1]["params"]}
    for name in names:
        found = [parameter for key, parameter in model.named_parameters() if key.endswith(name)]
        assert found
        assert all(id(parameter) in free for parameter in found)


def test_frozen_parameters_are_left_out(tiny):
    model = VitHfForImageClassification(tiny())
    model.vit.requires_grad_(False)
    groups = parameter_groups(model, 0.1)
    assert [[id(parameter) for parameter in group["params"]] for group in groups] == [
        [id(model.classifier.weight)],
        [id(model.classifier.bias)],
    ]


def test_decay_shrinks_kernels_by_rate_times_decay_and_leaves_the_rest(tiny):
    model = VitHfForImageClassification(tiny())
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, Optimization(learning_rate=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    name = "vit.layers.0.attention.output.weight"
    torch.testing.assert_close(after[name], before[name] * (1 - 0.1 * 0.5))
    name = "vit.embeddings.cls_token"
    assert torch.equal(after[name], before[name])


# ---------------------------------------------------------------------------------------------- optimisers
def test_adamw_has_the_betas_of_the_recipe():
    optimizer = build_optimizer(nn.Linear(2, 2), Optimization(betas=(0.8, 0.95), learning_rate=0.02))
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["betas"], optimizer.defaults["lr"]) == ((0.8, 0.95), 0.02)


def test_sgd_has_momentum():
    layer = nn.Linear(1, 1)
    start = layer.bias.item()
    optimizer = build_optimizer(layer, Optimization(optimizer="sgd", learning_rate=0.1, momentum=0.9))
    velocity, expected = 0.0, start
    for gradient in (1.0, 2.0, -0.5):
        layer.weight.grad, layer.bias.grad = torch.zeros(1, 1), torch.tensor([gradient])
        optimizer.step()
        velocity = 0.9 * velocity + gradient
        expected -= 0.1 * velocity
    assert layer.bias.item() == pytest.approx(expected, abs=1e-6)


# ---------------------------------------------------------------------------------------------- learning rate
@pytest.mark.parametrize("minimum", [0.0, 1e-4])
@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine_follows_its_closed_form(minimum, warmup):
    peak, total = 2e-3, 50
    optimization = Optimization(
        max_steps=total, warmup_steps=warmup, learning_rate=peak, min_learning_rate=minimum, batch_size=10
    )
    expected = [
        peak * step / warmup
        if step < warmup
        else minimum + (peak - minimum) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        for step in range(total + 1)
    ]
    found = rates(optimization, total + 1)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert found[0] == (0.0 if warmup else peak)
    assert found[warmup] == peak
    assert found[warmup + (total - warmup) // 2] == pytest.approx((peak + minimum) / 2)
    assert found[total] == pytest.approx(minimum, abs=1e-15)


def test_constant_stays_at_the_peak_after_the_warm_up():
    optimization = Optimization(schedule="constant", max_steps=20, warmup_steps=4, learning_rate=0.8, batch_size=10)
    assert rates(optimization, 21) == pytest.approx([0.0, 0.2, 0.4, 0.6, *[0.8] * 17])


# ---------------------------------------------------------------------------------------------- steps
def test_epochs_become_steps():
    plan = steps(Optimization(epochs=10, warmup_epochs=2, batch_size=64))
    assert (plan.total_steps, plan.warmup_steps, plan.steps_per_epoch) == (156, 31, 15.625)
    assert (plan.accumulation, plan.device_batch_size) == (1, 64)


def test_max_steps_and_warmup_steps_win_over_epochs():
    plan = steps(Optimization(epochs=10, max_steps=7, warmup_epochs=2, warmup_steps=3, batch_size=64))
    assert (plan.total_steps, plan.warmup_steps) == (7, 3)


def test_the_warm_up_is_no_longer_than_the_run():
    assert steps(Optimization(max_steps=5, warmup_epochs=20, batch_size=64)).warmup_steps == 5
    assert steps(Optimization(max_steps=5, warmup_steps=0, warmup_epochs=20, batch_size=64)).warmup_steps == 0


def test_there_is_one_step_at_least():
    assert steps(Optimization(epochs=0.001, batch_size=512), num_images=3).total_steps == 1


@pytest.mark.parametrize(
    ("batch", "largest", "processes", "accumulation", "device_batch"),
    [
        (64, None, 1, 1, 64),
        (64, None, 4, 1, 16),
        (64, 64, 1, 1, 64),
        (64, 63, 1, 2, 32),
        (64, 5, 4, 4, 4),
        (60, 8, 2, 5, 6),
        (6, 4, 1, 2, 3),
        (7, 4, 1, 7, 1),
        (512, 1, 1, 512, 1),
    ],
)
def test_the_global_batch_is_processes_times_device_batch_times_accumulation(
    batch, largest, processes, accumulation, device_batch
):
    plan = steps(Optimization(batch_size=batch, max_device_batch_size=largest), num_processes=processes)
    assert (plan.accumulation, plan.device_batch_size) == (accumulation, device_batch)
    assert processes * plan.device_batch_size * plan.accumulation == batch


@pytest.mark.parametrize(("batch", "processes", "remedy"), [(10, 4, "use 8 or 12"), (2, 4, "use 4 or 8")])
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(batch, processes, remedy):
    with pytest.raises(ValueError, match=f"batch_size {batch} does not divide by {processes} processes; {remedy}"):
        steps(Optimization(batch_size=batch), num_processes=processes)


def test_a_stream_needs_steps_and_warm_up_steps():
    with pytest.raises(ValueError, match=r"no known length; set optimization\.max_steps"):
        steps(Optimization(), num_images=None)
    with pytest.raises(ValueError, match=r"warmup_epochs is 5 but .* set optimization\.warmup_steps"):
        steps(Optimization(max_steps=20, warmup_epochs=5), num_images=None)
    plan = steps(Optimization(max_steps=20, warmup_epochs=5, warmup_steps=4), num_images=None)
    assert (plan.total_steps, plan.warmup_steps, plan.steps_per_epoch) == (20, 4, math.inf)


# ---------------------------------------------------------------------------------------------- average
@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_equals_one_kept_by_hand_with_a_warm_decay(decay):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    average = build_average(model, decay)
    by_hand = None
    for update in range(60):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        average.update_parameters(model)
        now = [parameter.detach().double().clone() for parameter in model.parameters()]
        keep = min(decay, (1 + update) / (10 + update))
        by_hand = now if by_hand is None else [keep * a + (1 - keep) * b for a, b in zip(by_hand, now, strict=True)]
    for found, expected in zip(average.module.parameters(), by_hand, strict=True):
        torch.testing.assert_close(found.detach().double(), expected, rtol=1e-5, atol=1e-5)  # 60 float32 roundings


def test_the_average_starts_as_the_first_weights_and_shares_no_memory():
    model = nn.Linear(2, 2)
    average = build_average(model, 0.9)
    average.update_parameters(model)
    before = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    assert torch.equal(average.module.weight, before)
