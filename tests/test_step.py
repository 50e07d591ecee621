"""One optimiser step: the gradient of the whole batch however it is cut, and nothing moves that is not finite."""

import copy
import math
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from vit_hf import VitHfForImageClassification, get_recipe
from vit_hf.data.preparation import moved
from vit_hf.training.optim import StepPlan, build_average, build_optimizer
from vit_hf.training.step import Stepper
from vit_hf.training.tasks import Classification

SGD = {  # a step of one length: the change of the weights is the gradient
    "optimization.optimizer": "sgd",
    "optimization.learning_rate": 1.0,
    "optimization.momentum": 0.0,
    "optimization.weight_decay": 0.0,
    "optimization.clip_norm": None,
}
MIXED = {"augmentation.mixup_alpha": 0.8, "augmentation.cutmix_alpha": 1.0}


class Limited(nn.Module):
    """A network on a device whose memory holds `limit` pictures, and that fails in the calls named by `fails`."""

    def __init__(self, network: nn.Module, limit: int = 10**9, fails: tuple[int, ...] = ()):
        super().__init__()
        self.network, self.limit, self.fails, self.sizes = network, limit, fails, []

    def forward(self, pixel_values: torch.Tensor):
        self.sizes.append(len(pixel_values))
        if len(pixel_values) > self.limit or len(self.sizes) in self.fails:
            raise torch.OutOfMemoryError("tried to allocate 20.00 MiB")
        return self.network(pixel_values=pixel_values)


class Bench:
    """A stepper and what it moves."""

    def __init__(self, tiny, *, limit=10**9, fails=(), accumulation=1, ema=None, accelerator=None, config=(), **fields):
        self.recipe = get_recipe("digits").override({**SGD, **{key.replace("__", "."): v for key, v in fields.items()}})
        torch.manual_seed(1)
        network = VitHfForImageClassification(tiny(num_hidden_layers=2, **dict(config))).train()
        with torch.no_grad():
            network.classifier.weight.normal_(std=0.3)
        self.task = Classification(self.recipe, network)
        self.model = Limited(network, limit, fails)
        self.accelerator = accelerator or Accelerator(cpu=True)
        optimizer = build_optimizer(self.model, self.recipe.optimization)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        self.average = None if ema is None else build_average(self.model, ema)
        self.said: list[str] = []
        self.stepper = Stepper(
            recipe=self.recipe,
            plan=StepPlan(9, 0, 1.0, accumulation, 0),
            task=self.task,
            accelerator=self.accelerator,
            model=self.model,
            optimizer=self.optimizer,
            schedule=self.schedule,
            average=self.average,
            prepare=lambda batch, device: moved({name: tensor.clone() for name, tensor in batch.items()}, device),
            say=self.said.append,
        )

    def batches(self, count: int, parts: int = 1) -> list[dict[str, torch.Tensor]]:
        """Return the pictures of a step in so many batches."""
        generator = torch.Generator().manual_seed(7)
        batch = {
            "pixel_values": torch.randn(count, 3, 16, 24, generator=generator),
            "labels": torch.randint(5, (count,), generator=generator),
            "rows": torch.arange(100, 100 + count),
        }
        if self.task.draw is not None:
            batch.update(self.task.draw(list(range(count)), 16, 24))
        return [
            {name: tensor[part * count // parts : (part + 1) * count // parts] for name, tensor in batch.items()}
            for part in range(parts)
        ]

    def take(self, batches, step: int = 1, flags=lambda: []):
        return self.stepper.take(step, iter(batches), flags)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}


def assert_close(found: dict, expected: dict) -> None:
    """Compare weights, up to the rounding of sums in another order."""
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() < 1e-5 * tensor.abs().max(), name


def after_a_step(bench: Bench, batches) -> tuple[dict, float]:
    before = bench.weights()
    loss = bench.take(batches).loss
    assert any(not torch.equal(before[name], tensor) for name, tensor in bench.weights().items())
    return bench.weights(), loss


# ---------------------------------------------------------------------------------------------- the gradient
@pytest.mark.parametrize("fields", [{}, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_batches_give_the_step_of_the_whole_batch(tiny, fields, parts):
    whole, cut = Bench(tiny, **fields), Bench(tiny, accumulation=parts, **fields)
    expected, loss = after_a_step(whole, whole.batches(8))
    found, loss_of_parts = after_a_step(cut, cut.batches(8, parts))
    assert_close(found, expected)
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)


def test_the_change_of_the_weights_is_the_gradient_of_the_mean_loss(tiny):
    bench = Bench(tiny)
    (batch,) = bench.batches(6)
    before = bench.weights()
    alone = copy.deepcopy(bench.model)
    logits = alone(batch["pixel_values"]).logits
    smoothing = bench.recipe.optimization.label_smoothing
    loss = nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=smoothing)
    loss.backward()
    assert bench.take([batch]).loss == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in alone.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(before[name] - bench.weights()[name], parameter.grad, atol=2e-6, rtol=1e-4)


def test_the_gradient_is_cut_to_the_norm_of_the_recipe(tiny):
    bench = Bench(tiny, optimization__clip_norm=0.01)
    before = bench.weights()
    bench.take(bench.batches(8))
    squares = [(before[name] - tensor).double().square().sum() for name, tensor in bench.weights().items()]
    assert math.sqrt(sum(squares)) == pytest.approx(0.01, rel=1e-3)


def test_a_step_ticks_the_schedule_once_and_moves_the_average(tiny):
    bench = Bench(tiny, ema=0.5, accumulation=2)
    first = bench.weights()
    bench.take(bench.batches(8, 2))
    assert bench.schedule.get_last_lr() == [0.5, 0.5]
    bench.take(bench.batches(8, 2), step=2)
    assert bench.schedule.get_last_lr() == [0.25, 0.25]
    assert int(bench.average.n_averaged) == 2
    averaged = dict(bench.average.module.named_parameters())
    assert any(not torch.equal(averaged[name], tensor) for name, tensor in bench.weights().items())
    assert any(not torch.equal(averaged[name], tensor) for name, tensor in first.items())


def test_flags_come_back_as_they_were_given_after_the_backward_pass(tiny):
    bench, sizes = Bench(tiny), []

    def flags() -> list[bool]:
        sizes.extend(bench.model.sizes)
        return [True, False, True]

    assert bench.take(bench.batches(4), flags=flags).flags == [True, False, True]
    assert sizes == [4]


def test_dropout_is_drawn_from_seed_step_and_batch_and_not_from_what_ran_before(tiny):
    def weights_after(step: int, seed: int = 0, noise: int = 0):
        bench = Bench(tiny, config={"hidden_dropout_prob": 0.3, "drop_path_rate": 0.3}, accumulation=2, seed=seed)
        torch.manual_seed(noise)
        bench.take(bench.batches(8, 2), step=step)
        return torch.cat([tensor.flatten() for tensor in bench.weights().values()])

    first = weights_after(3)
    assert torch.equal(weights_after(3, noise=5), first)
    assert not torch.equal(weights_after(4), first)
    assert not torch.equal(weights_after(3, seed=1), first)


def test_accumulated_batches_have_dropout_of_their_own(tiny):
    bench = Bench(tiny, accumulation=2)
    seeds = []
    bench.model.register_forward_pre_hook(lambda module, inputs: seeds.append(torch.initial_seed()))
    bench.take(bench.batches(8, 2))
    assert len(set(seeds)) == 2


# ---------------------------------------------------------------------------------------------- out of memory
@pytest.mark.parametrize("fields", [{}, MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize(("limit", "pieces"), [(4, 2), (2, 4), (7, 2)])
def test_a_batch_that_does_not_fit_is_cut_and_gives_the_same_step(tiny, fields, limit, pieces):
    whole, cut = Bench(tiny, **fields), Bench(tiny, limit=limit, **fields)
    expected, loss = after_a_step(whole, whole.batches(8))
    found, loss_of_pieces = after_a_step(cut, cut.batches(8))  # one batch only: no other is asked for
    assert_close(found, expected)
    assert loss_of_pieces == pytest.approx(loss, rel=1e-5)
    assert cut.model.sizes[-pieces:] == [8 // pieces] * pieces
    assert cut.said[-1].startswith(f"out of memory: {8 // pieces} pictures at once from now on, {pieces} times as many")


@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_running_out_of_memory_in_any_batch_of_a_step_begins_it_again_on_the_same_pictures(tiny, call):
    whole, cut = Bench(tiny, accumulation=4), Bench(tiny, accumulation=4, fails=(call,))
    expected, _ = after_a_step(whole, whole.batches(16, 4))
    found, _ = after_a_step(cut, cut.batches(16, 4))
    assert_close(found, expected)
    assert cut.model.sizes == [4] * call + [2] * 8


def test_the_smaller_batches_stay_and_are_announced_once(tiny):
    bench = Bench(tiny, limit=4)
    for step in (1, 2, 3):
        bench.take(bench.batches(8), step=step)
    assert bench.model.sizes == [8, *[4] * 6]
    assert len(bench.said) == 1


def test_dropout_differs_between_the_pieces(tiny):
    bench, seeds = Bench(tiny, limit=2), []
    bench.model.register_forward_pre_hook(lambda module, inputs: seeds.append(torch.initial_seed()))
    bench.take(bench.batches(8))
    assert len(set(seeds[-4:])) == 4


class TwoProcesses(Accelerator):
    """Says that there are two processes."""

    num_processes = 2


@pytest.mark.parametrize(
    ("count", "limit", "fields", "accelerator", "left", "half"),
    [
        (6, 2, {}, Accelerator, 3, 1),  # 6 is not 4 equal pieces
        (1, 0, {}, Accelerator, 1, 1),
        (4, 1, MIXED, Accelerator, 2, 1),  # a pair stays together
        (8, 4, {}, TwoProcesses, 8, 4),  # the others do not know of it
    ],
)
def test_a_batch_that_cannot_be_halved_is_an_error_with_the_remedy(tiny, count, limit, fields, accelerator, left, half):
    bench = Bench(tiny, limit=limit, accelerator=accelerator(cpu=True), **fields)
    before = bench.weights()
    expected = (
        rf"out of memory with {left} pictures at once \(tried to allocate .*\); set "
        rf"optimization.max_device_batch_size to {half} \(the batch of a step stays the same\), or gradient_checkp"
    )
    with pytest.raises(MemoryError, match=expected):
        bench.take(bench.batches(count))
    assert all(torch.equal(before[name], tensor) for name, tensor in bench.weights().items())


# ---------------------------------------------------------------------------------------------- not finite
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("what", ["the loss is", "the gradient is not finite"])
def test_a_loss_or_gradient_that_is_not_finite_moves_nothing_and_names_step_and_rows(tiny, bad, clip, what):
    bench = Bench(
        tiny, optimization__optimizer="adamw", optimization__clip_norm=clip, optimization__learning_rate=0.1, ema=0.9
    )
    bench.take(bench.batches(10))
    (batch,) = bench.batches(10)
    if what == "the loss is":
        batch["pixel_values"][3, 0, 0, 0] = bad
        what = "the loss is nan"
    else:
        bench.model.network.classifier.weight.register_hook(lambda gradient: torch.full_like(gradient, bad))
    parts = (bench.model, bench.optimizer, bench.schedule, bench.average)
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    rows = "100, 101, 102, 103, 104, 105, 106, 107, ...;"
    expected = rf"^{what} at step 5, process 0, training rows {rows} expected a finite number. The step was not taken"
    with pytest.raises(FloatingPointError, match=expected):
        bench.take([batch], step=5)
    for part, state in zip(parts, before, strict=True):
        after = part.state_dict()
        for group in [*after.get("param_groups", ()), *state.get("param_groups", ())]:
            group.pop("name", None)  # the comparison knows no text
        torch.testing.assert_close(after, state, atol=0, rtol=0, check_dtype=True)


# ---------------------------------------------------------------------------------------------- time
def test_waiting_for_batches_and_preparing_them_counts_as_input(tiny):
    bench, clock = Bench(tiny, accumulation=2), range(0, 10_000, 5)
    bench.stepper.take(1, iter(bench.batches(8, 2)), lambda: [])
    with mock.patch("vit_hf.training.step.time.perf_counter", side_effect=clock):
        bench.stepper.input_seconds = 0.0
        bench.stepper.take(2, iter(bench.batches(8, 2)), lambda: [])
    assert bench.stepper.input_seconds == 5 * (2 + 2)  # two batches waited for, two prepared


def test_what_the_loader_raises_reaches_the_run(tiny):
    with pytest.raises(StopIteration):
        Bench(tiny).take([])
