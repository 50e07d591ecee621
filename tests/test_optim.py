"""Optimisation: who decays, the learning rate against its closed form, steps against arithmetic, averages by hand."""

import copy
import dataclasses
import itertools
import json
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import param_groups_layer_decay
from torch import nn

from vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling
from vit_hf.training.optim import (
    build_average,
    build_loss,
    build_optimizer,
    build_schedule,
    freeze_parameters,
    parameter_groups,
    plan_steps,
)
from vit_hf.training.recipe import Optimization

FAMILY = {
    "plain": {},
    "registers, LayerScale, QK-norm": {"num_register_tokens": 2, "layer_scale_init": 1e-4, "qk_norm": True},
    "map": {"pooling": "map", "representation_size": 8},
    "gap, sincos2d": {"pooling": "gap", "position_embedding": "sincos2d"},
    "hybrid": {"resnet_stem_layers": [1], "resnet_stem_width": 32, "image_size": 16, "patch_size": 8},
}


DECAYED = Optimization(weight_decay=0.1)


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
    grouped = [id(parameter) for group in parameter_groups(model, DECAYED) for parameter in group["params"]]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("fields", FAMILY.values(), ids=FAMILY)
def test_the_kernels_decay_and_nothing_else(tiny, fields):
    model = VitHfForImageClassification(tiny(**fields))
    decayed, free = parameter_groups(model, DECAYED)
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
    free = {id(parameter) for parameter in parameter_groups(model, DECAYED)[1]["params"]}
    for name in names:
        found = [parameter for key, parameter in model.named_parameters() if key.endswith(name)]
        assert found
        assert all(id(parameter) in free for parameter in found)


def test_frozen_parameters_are_left_out(tiny):
    model = VitHfForImageClassification(tiny())
    model.vit.requires_grad_(False)
    groups = parameter_groups(model, DECAYED)
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


# ---------------------------------------------------------------------------------------------- layer-wise decay
def factors(model: nn.Module, decay: float) -> dict[str, float]:
    """Return each parameter's learning rate over the peak."""
    optimization = Optimization(learning_rate=0.5, learning_rate_batch_size=64, batch_size=128, layer_decay=decay)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, optimization).param_groups
    return {names[id(parameter)]: group["lr"] / 1.0 for group in groups for parameter in group["params"]}


def test_the_learning_rate_falls_from_the_head_to_the_embeddings(tiny):
    """Three blocks, by hand: MAE's `get_layer_id_for_vit` gives them layers 1 to 3 of 4, the embeddings 0."""
    found = factors(VitHfForImageClassification(tiny(num_register_tokens=1, representation_size=8)), 0.5)
    expected = {
        "classifier.": 1.0,
        "vit.pooler.": 1.0,
        "vit.norm.": 1.0,
        "vit.layers.2.": 0.5,
        "vit.layers.1.": 0.25,
        "vit.layers.0.": 0.125,
        "vit.embeddings.": 0.0625,
    }
    for prefix, factor in expected.items():
        of_part = {name: value for name, value in found.items() if name.startswith(prefix)}
        assert of_part
        assert set(of_part.values()) == {factor}
    assert all(name.startswith(tuple(expected)) for name in found)


def test_the_stem_of_a_hybrid_learns_as_slowly_as_the_embeddings(tiny):
    found = factors(VitHfForImageClassification(tiny(**FAMILY["hybrid"])), 0.5)
    stem = {value for name, value in found.items() if ".stem." in name}
    assert stem == {0.0625}


def test_factors_equal_those_of_timm(tiny):
    """timm counts the last norm to the last block, MAE (and we) to the head: all else agrees."""
    ours = factors(VitHfForImageClassification(tiny()), 0.65)
    sizes = {"img_size": (16, 24), "patch_size": (4, 8), "embed_dim": 32, "depth": 3, "num_heads": 4}
    model = timm.create_model("vit_tiny_patch16_224", **sizes, mlp_ratio=2.0, num_classes=5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    theirs = {
        names[id(parameter)]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.65)
        for parameter in group["params"]
    }
    renamed = {
        "vit.embeddings.cls_token": "cls_token",
        "vit.embeddings.position_embeddings": "pos_embed",
        "vit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "vit.layers.0.attention.qkv.weight": "blocks.0.attn.qkv.weight",
        "vit.layers.1.norm2.bias": "blocks.1.norm2.bias",
        "vit.layers.2.mlp.fc1.weight": "blocks.2.mlp.fc1.weight",
        "classifier.weight": "head.weight",
    }
    for name, other in renamed.items():
        assert ours[name] == pytest.approx(theirs[other]), name


@pytest.mark.parametrize("decay", [None, 0.7])
def test_groups_are_named_apart_and_come_in_the_same_order(tiny, decay):
    optimization = Optimization(weight_decay=0.1, layer_decay=decay)
    first, second = (parameter_groups(VitHfForImageClassification(tiny()), optimization) for _ in range(2))
    names = [group["name"] for group in first]
    assert names == [group["name"] for group in second]
    shapes = [[[parameter.shape for parameter in group["params"]] for group in groups] for groups in (first, second)]
    assert shapes[0] == shapes[1]
    parts = ["all"] if decay is None else ["head", "block 2", "block 1", "block 0", "embeddings"]
    assert names == [f"{part}, {kind}" for part, kind in itertools.product(parts, ("decay", "no decay"))]


def test_the_decoder_of_a_masked_autoencoder_learns_like_a_head(tiny):
    model = VitHfForMaskedImageModeling(tiny(decoder_num_hidden_layers=2, decoder_hidden_size=32))
    groups = parameter_groups(model, Optimization(learning_rate=1.0, layer_decay=0.5))
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    assert {rate for name, rate in found.items() if name.startswith("decoder.")} == {1.0}
    assert [found[f"vit.layers.{i}.mlp.fc1.weight"] for i in range(3)] == [1 / 8, 1 / 4, 1 / 2]


@pytest.mark.parametrize("kind", [VitHfForImageClassification, VitHfForMaskedImageModeling])
@pytest.mark.parametrize("fields", FAMILY.values(), ids=FAMILY)
def test_layer_decay_changes_no_weight_decay_and_loses_no_parameter(tiny, fields, kind):
    model = kind(tiny(**{**fields, "pooling": "cls"}))

    def decays(optimization: Optimization) -> dict[int, float]:
        groups = parameter_groups(model, optimization)
        pairs = [(id(parameter), group["weight_decay"]) for group in groups for parameter in group["params"]]
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    layered = decays(Optimization(weight_decay=0.1, layer_decay=0.5))
    assert layered == decays(DECAYED)
    assert layered.keys() == {id(parameter) for parameter in model.parameters()}


def test_frozen_blocks_count_as_depth_and_leave_no_empty_group(tiny):
    model = VitHfForImageClassification(tiny())
    freeze_parameters(model, ["vit.embeddings.*", "vit.layers.0.*", "vit.layers.2.*"])
    groups = parameter_groups(model, Optimization(learning_rate=1.0, layer_decay=0.5))
    assert {group["name"].split(",")[0]: group["lr"] for group in groups} == {"head": 1.0, "block 1": 0.25}
    assert all(group["params"] for group in groups)


def test_the_ratio_of_the_groups_stays_through_the_schedule(tiny):
    model = VitHfForImageClassification(tiny())
    fields = {"max_steps": 20, "warmup_steps": 5, "warmup_learning_rate": 1e-3, "min_learning_rate": 1e-3}
    optimization = Optimization(learning_rate=0.1, layer_decay=0.5, **fields)
    optimizer = build_optimizer(model, optimization)
    schedule = build_schedule(optimizer, optimization, steps(optimization))
    for _ in range(20):
        found = [group["lr"] for group in optimizer.param_groups]
        assert [rate / found[0] for rate in found] == pytest.approx([2.0 ** -(i // 2) for i in range(10)])
        assert schedule.get_last_lr()[0] == max(found)  # what is shown is the rate of the head
        optimizer.step()
        schedule.step()


# ---------------------------------------------------------------------------------------------- freezing
def test_frozen_parameters_are_those_that_a_pattern_names(tiny):
    model = VitHfForImageClassification(tiny())
    count = freeze_parameters(model, ["vit.embeddings.*", "vit.layers.[01].*", "*norm*.bias"])
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    expected = ("vit.embeddings.", "vit.layers.0.", "vit.layers.1.")
    biases = {"vit.layers.2.norm1.bias", "vit.layers.2.norm2.bias", "vit.norm.bias"}
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(expected)} | biases
    assert count == sum(model.get_parameter(name).numel() for name in frozen)


def test_without_patterns_nothing_is_frozen(tiny):
    model = VitHfForImageClassification(tiny())
    assert freeze_parameters(model, ()) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["vit.*", "vit.layer.0.*"], r"'vit\.layer\.0\.\*', which matches no parameter; .* such as vit\.layers\.0\."),
        (["qqq"], r"'qqq', which matches no parameter; expected a shell pattern over names such as vit\.embeddings"),
        (["vit.*", "classifier.*"], r"matches all \d+ parameters; expected some to train"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything_are_errors_that_change_nothing(tiny, patterns, message):
    model = VitHfForImageClassification(tiny())
    with pytest.raises(ValueError, match=message):
        freeze_parameters(model, patterns)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_step_leaves_the_frozen_trunk_bit_equal_and_moves_the_rest(tiny):
    model = VitHfForImageClassification(tiny(representation_size=8))
    torch.nn.init.normal_(model.classifier.weight)  # from zeros no gradient would reach the representation head
    freeze_parameters(model, ["vit.[!p]*"])
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, Optimization(optimizer="sgd", learning_rate=0.1, weight_decay=0.1))
    model(pixel_values=torch.randn(4, 3, 16, 24), labels=torch.tensor([0, 1, 2, 3])).loss.backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    heads = ("vit.pooler.pre_logits", "classifier")
    assert moved == {f"{head}.{kind}" for head in heads for kind in ("weight", "bias")}


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


def test_decoupled_decay_of_big_vision_is_torchs_times_the_learning_rate():
    """big_vision: w -= schedule * (lr * adam + wd * w), with schedule from 0 to 1 and wd 1e-4 for lr 1e-3."""
    layer, peak, decay = nn.Linear(3, 3, bias=False), 1e-3, 1e-4
    weight = layer.weight.detach().double().clone()
    optimization = Optimization(max_steps=30, warmup_steps=5, learning_rate=peak, weight_decay=decay / peak)
    optimizer = build_optimizer(layer, optimization)
    schedule = build_schedule(optimizer, optimization, steps(optimization))
    mean = square = torch.zeros_like(weight)
    for step in range(30):
        gradient = torch.randn(3, 3)
        layer.weight.grad = gradient.clone()
        shape = step / 5 if step < 5 else (1 + math.cos(math.pi * (step - 5) / 25)) / 2
        mean, square = 0.9 * mean + 0.1 * gradient.double(), 0.999 * square + 0.001 * gradient.double() ** 2
        adam = (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        weight = weight - shape * (peak * adam + decay * weight)
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=0, atol=2e-6)  # 30 float32 roundings


# ---------------------------------------------------------------------------------------------- learning rate
@pytest.mark.parametrize("start", [0.0, 5e-4])
@pytest.mark.parametrize("minimum", [0.0, 1e-4])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_cosine_follows_its_closed_form(minimum, warmup, start):
    peak, total = 2e-3, 50
    fields = {"learning_rate": peak, "warmup_learning_rate": start, "min_learning_rate": minimum}
    optimization = Optimization(max_steps=total, warmup_steps=warmup, batch_size=10, **fields)
    expected = [
        start + (peak - start) * step / warmup
        if step < warmup
        else minimum + (peak - minimum) * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
        for step in range(total + 1)
    ]
    found = rates(optimization, total + 1)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert found[0] == pytest.approx(start if warmup else peak)
    assert found[warmup] == peak
    assert found[total] == pytest.approx(minimum, abs=1e-15)


def test_the_stated_learning_rate_is_scaled_by_the_batch_size_and_its_ends_are_not():
    fields = {"warmup_learning_rate": 0.01, "min_learning_rate": 0.02, "warmup_steps": 4, "max_steps": 20}
    scaled = Optimization(learning_rate=0.1, learning_rate_batch_size=256, batch_size=1024, **fields)
    found = rates(scaled, 21, num_images=20_480)
    assert found[0] == pytest.approx(0.01)
    assert found[4] == pytest.approx(0.4)
    assert found[20] == pytest.approx(0.02)
    assert rates(Optimization(learning_rate=0.4, batch_size=1024, **fields), 21) == pytest.approx(found)


def test_constant_stays_at_the_peak_after_the_warm_up():
    optimization = Optimization(schedule="constant", max_steps=20, warmup_steps=4, learning_rate=0.8, batch_size=10)
    assert rates(optimization, 21) == pytest.approx([0.0, 0.2, 0.4, 0.6, *[0.8] * 17])
    raised = dataclasses.replace(optimization, warmup_learning_rate=0.4)
    assert rates(raised, 21) == pytest.approx([0.4, 0.5, 0.6, 0.7, *[0.8] * 17])


@pytest.mark.parametrize("start", [0.0, 0.1])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_schedule_goes_on_from_its_state(schedule, start):
    optimization = Optimization(
        schedule=schedule, max_steps=12, warmup_steps=6, learning_rate=0.8, warmup_learning_rate=start, batch_size=10
    )
    whole = rates(optimization, 12)
    for stop in (0, 3, 6, 9):
        states: list[dict] = []
        for _ in range(2):
            optimizer = build_optimizer(nn.Linear(2, 2), optimization)
            ticks = build_schedule(optimizer, optimization, steps(optimization))
            if states:
                optimizer.load_state_dict(states[0])
                ticks.load_state_dict(json.loads(json.dumps(states[1])))
                found = []
                for _ in range(stop, 12):
                    found.append(optimizer.param_groups[0]["lr"])
                    optimizer.step()
                    ticks.step()
                assert found == whole[stop:]
            else:
                for _ in range(stop):
                    optimizer.step()
                    ticks.step()
                states = [optimizer.state_dict(), ticks.state_dict()]


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


@pytest.mark.parametrize(
    ("batch", "largest", "processes", "accumulation", "device_batch"),
    [(64, None, 1, 1, 64), (12, 5, 1, 3, 4), (12, 3, 1, 6, 2), (60, 7, 2, 5, 6), (6, 2, 3, 1, 2), (36, 9, 2, 3, 6)],
)
def test_a_device_batch_for_mixing_is_even(batch, largest, processes, accumulation, device_batch):
    optimization = Optimization(batch_size=batch, max_device_batch_size=largest)
    plan = plan_steps(optimization, num_images=1000, num_processes=processes, even=True)
    assert (plan.accumulation, plan.device_batch_size) == (accumulation, device_batch)
    assert processes * plan.device_batch_size * plan.accumulation == batch


def test_a_batch_that_cannot_be_paired_names_the_nearest_that_can():
    message = r"batch_size 6 does not divide by 2 processes whose pictures are mixed in pairs; use 4 or 8"
    with pytest.raises(ValueError, match=message):
        plan_steps(Optimization(batch_size=6), num_images=100, num_processes=2, even=True)
    with pytest.raises(ValueError, match=r"max_device_batch_size is 1; expected 2 or more, because mixing pairs"):
        plan_steps(Optimization(batch_size=6, max_device_batch_size=1), num_images=100, num_processes=1, even=True)


# ---------------------------------------------------------------------------------------------- loss
def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, 7, dtype=torch.float64).float() * 3, torch.tensor([0, 6, 2, 2, 5, 1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_timms_label_smoothing(smoothing):
    logits, labels = logits_and_labels()
    found = build_loss(Optimization(label_smoothing=smoothing))(logits, labels)
    torch.testing.assert_close(found, LabelSmoothingCrossEntropy(smoothing)(logits, labels))
    assert found.dtype == torch.float32
    assert found.ndim == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_sigmoid_loss_equals_timms_summed_over_the_classes(smoothing):
    logits, labels = logits_and_labels()
    found = build_loss(Optimization(loss="bce", label_smoothing=smoothing))(logits, labels)
    torch.testing.assert_close(found, BinaryCrossEntropy(smoothing=smoothing, sum_classes=True)(logits, labels))
    mean = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 7).float())
    if smoothing == 0.0:
        torch.testing.assert_close(found, mean * 7)  # DeiT III's BCEWithLogitsLoss


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_mixed_labels_equals_timms_mixing_of_smoothed_ones(loss, smoothing):
    logits, labels = logits_and_labels()
    mixed = 0.3 * F.one_hot(labels, 7) + 0.7 * F.one_hot(labels.flip(0), 7)
    found = build_loss(Optimization(loss=loss, label_smoothing=smoothing))(logits, mixed)
    target = mixup_target(labels, num_classes=7, lam=0.3, smoothing=smoothing)
    reference = SoftTargetCrossEntropy() if loss == "cross_entropy" else BinaryCrossEntropy(0.0, sum_classes=True)
    torch.testing.assert_close(found, reference(logits, target))


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
def test_losses_are_computed_in_float32_from_half_precision(loss):
    logits, labels = logits_and_labels()
    function = build_loss(Optimization(loss=loss))
    half = logits.bfloat16()
    torch.testing.assert_close(function(half, labels), function(half.float(), labels), rtol=0, atol=0)
    assert function(half, labels).dtype == torch.float32


@pytest.mark.parametrize("loss", ["cross_entropy", "bce"])
@pytest.mark.parametrize(
    "labels",
    [torch.zeros(5, dtype=torch.long), torch.zeros(6, 7, dtype=torch.long), torch.zeros(6), torch.zeros(6, 8)],
    ids=["too few", "indices by class", "one number a sample", "too many classes"],
)
def test_labels_of_another_shape_are_an_error(loss, labels):
    logits, _ = logits_and_labels()
    with pytest.raises(ValueError, match=r"labels have shape .* for logits of shape \(6, 7\); expected int64"):
        build_loss(Optimization(loss=loss))(logits, labels)


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
