"""What a run will cost, before it runs: steps, FLOPs, memory, disk and time.

Conventions:
    FLOPs and memory: as in `vit_hf.training.costs`. With several processes DDP holds the gradients once more.
    Time: real steps of the loop (loading, augmentation, mixing, forward, backward, optimiser) in one process. Scoring,
        saving and the exchange of gradients come on top.
    Units: MB and GB are 10^6 and 10^9 bytes.
"""

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from rich.table import Table

from ..data.loading import build_train_loader
from ..data.pictures import Pictures, num_rows, open_pictures
from ..data.preparation import moved
from ..data.transforms import TrainTransform
from ..image_processing_vit_hf import VitHfImageProcessor
from .costs import PEAK_ERROR, Network, count_activations, count_flops, count_peak, random_batch
from .optim import StepPlan, build_average, build_optimizer, build_schedule, count_state
from .recipe import Recipe
from .setup import (
    build_model,
    check_choice,
    check_launch,
    device_name,
    enable_checkpointing,
    multiplies_bfloat16_slowly,
    plan_for,
)
from .step import Stepper
from .tasks import TASKS, Batch, Task

WARMUP_STEPS = 2
"""Steps before the clock counts: memory is allocated, kernels are chosen, workers start."""
ROUNDS = 5
"""Least rounds of steps that are timed, each long enough that every worker gives a batch; the median counts."""
LEAST_SECONDS, MOST_SECONDS = 3.0, 60.0
"""For how long further rounds are begun: at least, whatever their number, and at most. A round of more than the most
has fewer steps."""


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs on its device; see `vit_hf.training.costs` for what is left out."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    """The averaged weights (EMA); 0 without."""
    activations: int
    """Of a device batch, and the bfloat16 copies of the weights in mixed precision."""
    peak: int
    """The most that is held at once, temporaries included; not the sum, as gradients grow while activations go."""


@dataclass(frozen=True)
class Timing:
    """What real steps of one process took."""

    device: str
    timed_steps: int
    """Without the warm-up."""
    seconds_per_step: float
    loading_seconds_per_step: float | None
    """Of these, spent waiting for pictures to be read, decoded, cut and resized; None where random ones stood in."""


@dataclass(frozen=True)
class Plan:
    """A run in figures; `dataclasses.asdict` makes it JSON."""

    recipe: str
    data: str | None
    """Name of the source; None where the data was not opened."""
    train_images: int | None
    """None where streaming does not tell."""
    validation_images: int | None
    """0: nothing is held out."""
    test_images: int | None
    """None where streaming does not tell, or where the data was not opened."""
    classes: int
    steps: int
    warmup_steps: int
    epochs: float | None
    """None where streaming does not tell."""
    batch_size: int
    """Pictures a step: processes x device_batch_size x accumulation."""
    processes: int
    device_batch_size: int
    accumulation: int
    learning_rate: float
    """Peak."""
    parameters: int
    trained_parameters: int
    precision: str
    gradient_checkpointing: bool
    forward_flops: int
    """Of one picture."""
    step_flops: int
    """Of one picture, forward and backward."""
    memory: Memory
    model_bytes: int
    """Of the weights that are published."""
    checkpoint_bytes: int
    """Of a checkpoint to resume from: weights, averaged weights, optimiser state."""
    timing: Timing | None

    @property
    def images_seen(self) -> int:
        """Pictures that pass in all steps, repeats included."""
        return self.steps * self.batch_size

    @property
    def total_flops(self) -> int:
        """Of all steps on all processes."""
        return self.step_flops * self.images_seen

    @property
    def seconds(self) -> float | None:
        """Of all steps, were all processes as fast as the timed one; None where nothing was timed."""
        return None if self.timing is None else self.timing.seconds_per_step * self.steps

    @property
    def images_per_second(self) -> float | None:
        """Of all processes together; None where nothing was timed."""
        return None if self.timing is None else self.batch_size / self.timing.seconds_per_step


def plan_run(
    recipe: Recipe,
    *,
    processes: int = 1,
    images: int | None = None,
    classes: int | None = None,
    timing: bool = True,
) -> Plan:
    """Say what a run will cost; nothing is written, but for the decoded pictures of `vit_hf.data.pixel_cache`.

    Args:
        recipe: what would be trained.
        processes: how many would train it.
        images, classes: size of a training split (held-out pictures included) that is not at hand: the data is then not
            opened, and steps are timed with random pictures, without loading.
        timing: whether to time steps. Those in bfloat16 on a CPU that multiplies it slowly are not timed; a warning
            says so.

    Raises:
        ValueError, OSError: as `train` for a recipe, data or model that cannot be used; one of images and classes
            without the other; streaming with images; timing fp16 without a GPU.
    """
    if (images is None) != (classes is None):
        given, missing = ("images", "classes") if classes is None else ("classes", "images")
        raise ValueError(f"{given} is given without {missing}; expected both, in place of the data, or neither")
    pictures = open_pictures(recipe.data) if images is None else None
    if pictures is not None:
        check_choice(recipe, pictures)
        counts = tuple(num_rows(split) for split in (pictures.train, pictures.validation, pictures.test))
        train, validation, test = counts[0], counts[1] if pictures.validation is not None else 0, counts[2]
        id2label = pictures.id2label
    else:
        assert images is not None
        assert classes is not None
        train, validation = _divide(recipe, images)
        test, id2label = None, {index: str(index) for index in range(classes)}
    steps = plan_for(recipe, num_images=train, num_processes=processes)
    network, processor = build_model(recipe, id2label)
    parameters = list(network.parameters())
    count, trained = (sum(p.numel() for p in some) for some in (parameters, [p for p in parameters if p.requires_grad]))
    kept = 4 * count_state(network, recipe.optimization)
    gradients = 4 * trained * (1 if processes == 1 else 2)
    model_bytes = sum(tensor.nbytes for tensor in network.state_dict().values())
    averaged = model_bytes if recipe.optimization.ema_decay is not None else 0
    forward, whole = count_flops(network, recipe)
    activations = count_activations(network, recipe, steps.device_batch_size)
    peak = count_peak(network, recipe, steps.device_batch_size) + gradients - 4 * trained
    return Plan(
        recipe=recipe.name,
        data=pictures.source.name if pictures is not None else None,
        train_images=train,
        validation_images=validation,
        test_images=test,
        classes=len(id2label),
        steps=steps.total_steps,
        warmup_steps=steps.warmup_steps,
        epochs=None if math.isinf(steps.steps_per_epoch) else steps.total_steps / steps.steps_per_epoch,
        batch_size=recipe.optimization.batch_size,
        processes=processes,
        device_batch_size=steps.device_batch_size,
        accumulation=steps.accumulation,
        learning_rate=recipe.optimization.peak_learning_rate,
        parameters=count,
        trained_parameters=trained,
        precision="float32" if recipe.mixed_precision == "no" else recipe.mixed_precision,
        gradient_checkpointing=recipe.gradient_checkpointing,
        forward_flops=forward,
        step_flops=whole,
        memory=Memory(4 * count, gradients, kept, averaged, activations, peak),
        model_bytes=model_bytes,
        checkpoint_bytes=model_bytes + averaged + kept,
        timing=_time(recipe, network, processor, pictures, steps) if timing else None,
    )


def _divide(recipe: Recipe, images: int) -> tuple[int, int]:
    """Split pictures that are not at hand as `open_pictures` would, up to the rounding within each class."""
    if recipe.data.streaming:
        raise ValueError("data.streaming is set and images is given; expected one of them: turn streaming off")
    validation = round(images * recipe.data.validation_fraction)
    return min(images - validation, recipe.data.max_train_images or images), validation


# ---------------------------------------------------------------------------------------------- timing
def _time(
    recipe: Recipe,
    network: Network,
    processor: VitHfImageProcessor,
    pictures: Pictures | None,
    steps: StepPlan,
) -> Timing | None:
    """Time real steps of one process, on the device that Accelerate finds; the network moves. None: too slow there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.cpu_threads or threads)
    try:
        AcceleratorState._reset_state()  # something before may have had another precision
        accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision, dynamo_backend="inductor" if recipe.compile else None
        )
        check_launch(recipe, accelerator)
        if recipe.mixed_precision == "bf16" and multiplies_bfloat16_slowly(accelerator.device):
            return None
        if recipe.gradient_checkpointing:
            enable_checkpointing(network)
        average = None
        if recipe.optimization.ema_decay is not None:
            average = build_average(network.to(accelerator.device), recipe.optimization.ema_decay)
        task = TASKS[recipe.task](recipe, network)
        source, prepare = _batches(recipe, network, processor, pictures, steps, task)
        optimizer = build_optimizer(network, recipe.optimization)
        schedule = build_schedule(optimizer, recipe.optimization, steps)
        model, optimizer = accelerator.prepare(network.train(), optimizer)
        stepper = Stepper(
            recipe=recipe,
            plan=steps,
            task=task,
            accelerator=accelerator,
            model=model,
            optimizer=optimizer,
            schedule=schedule,
            average=average,
            prepare=prepare,
            say=lambda text: None,
        )
        loading = 0.0

        def batches() -> Iterator[Batch]:
            nonlocal loading
            given = iter(source)
            while True:
                asked = time.perf_counter()
                batch = next(given)
                loading += time.perf_counter() - asked
                yield batch

        supply = batches()

        def step() -> tuple[float, float]:
            """Take one step; return its seconds, and those of them spent on loading."""
            nonlocal loading
            started, loading = time.perf_counter(), 0.0
            stepper.take(1, supply, lambda: [])
            if accelerator.device.type == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started, loading

        round_steps = math.ceil(max(recipe.workers if pictures is not None else 1, 1) / steps.accumulation)
        for _ in range(WARMUP_STEPS):
            warm, _ = step()
        round_steps = max(min(round_steps, int(MOST_SECONDS / warm)), 1)
        rounds: list[list[float]] = []
        begun = time.perf_counter()
        while not rounds or time.perf_counter() - begun < (LEAST_SECONDS if len(rounds) >= ROUNDS else MOST_SECONDS):
            taken = [step() for _ in range(round_steps)]
            rounds.append([sum(column) / round_steps for column in zip(*taken, strict=True)])
        seconds, waited = map(statistics.median, zip(*rounds, strict=True))
        return Timing(
            device=device_name(accelerator.device),
            timed_steps=len(rounds) * round_steps,
            seconds_per_step=seconds,
            loading_seconds_per_step=None if pictures is None else waited,
        )
    finally:
        torch.set_num_threads(threads)


def _batches(
    recipe: Recipe,
    network: Network,
    processor: VitHfImageProcessor,
    pictures: Pictures | None,
    steps: StepPlan,
    task: Task,
) -> tuple[Iterable[Batch], Callable[[Batch, torch.device], Batch]]:
    """Return the batches of one process, real ones or the same random one again and again, and what prepares them."""
    if pictures is None:
        pixels, labels = random_batch(network, steps.device_batch_size)
        drawn = {} if task.draw is None else task.draw(list(range(len(labels))), *pixels.shape[-2:])
        return itertools.repeat({"pixel_values": pixels, "labels": labels, "rows": labels, **drawn}), moved
    return build_train_loader(
        pictures.train,
        **pictures.columns,
        transform=TrainTransform(recipe.augmentation, processor),
        batch_size=steps.device_batch_size * steps.accumulation,
        accumulation=steps.accumulation,
        num_steps=sys.maxsize // recipe.optimization.batch_size,  # as many as are asked for
        seed=recipe.seed,
        workers=recipe.workers,
        repeats=recipe.augmentation.repeats,
        draw=task.draw,
    )


# ---------------------------------------------------------------------------------------------- text
def render(plan: Plan) -> Table:
    """Return what `rich.print` shows of a plan; at most 80 columns wide."""
    table = Table(title=plan.recipe, title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    counts = {"training": plan.train_images, "validation": plan.validation_images, "test": plan.test_images}
    unknown = "unknown" if plan.data is None else "streamed"
    pictures = ", ".join(f"{unknown if n is None else format(n, ',')} {name}" for name, n in counts.items())
    table.add_row("pictures", pictures)
    table.add_row("", f"{plan.classes:,} classes, {plan.data or 'no data opened'}")
    epochs = "" if plan.epochs is None else f" ({plan.epochs:,.4g} epochs)"
    table.add_row(
        "steps", f"{plan.steps:,}{epochs}, {plan.warmup_steps:,} of them warm-up; {plan.images_seen:,} pictures"
    )
    processes = f"{plan.processes} process{'es' if plan.processes > 1 else ''}"
    accumulated = f"{plan.accumulation} accumulated"
    table.add_row("batch", f"{plan.batch_size:,} = {processes} x {plan.device_batch_size:,} pictures x {accumulated}")
    table.add_row("learning rate", f"{plan.learning_rate:.4g} at its peak")
    share = f"{plan.trained_parameters:,} trained" if plan.trained_parameters < plan.parameters else "all trained"
    table.add_row("parameters", f"{plan.parameters:,}, {share}")
    table.add_row("compute", f"{_flops(plan.forward_flops)} a picture forward, {_flops(plan.step_flops)} with backward")
    table.add_row("", f"{_flops(plan.total_flops)} in all steps (a multiply-add is 2)")
    memory = plan.memory
    table.add_row("memory", f"{_size(memory.peak)} a process at its peak: an estimate, on a CPU")
    table.add_row("", f"within {PEAK_ERROR:.0%} of what real steps took; CUDA itself comes on top")
    table.add_row("  weights", _size(memory.weights))
    table.add_row("  gradients", _size(memory.gradients))
    table.add_row("  optimiser", _size(memory.optimizer))
    if memory.average:
        table.add_row("  average", _size(memory.average))
    recomputed = ", recomputed block by block" if plan.gradient_checkpointing else ""
    table.add_row("  activations", f"{_size(memory.activations)} ({plan.precision}{recomputed})")
    table.add_row("disk", f"model {_size(plan.model_bytes)}, checkpoint to resume from {_size(plan.checkpoint_bytes)}")
    timing = plan.timing
    if timing is None or plan.seconds is None:
        table.add_row("time", "not measured")
        return table
    loading = timing.loading_seconds_per_step
    waited = "random pictures, no loading" if loading is None else f"{_duration(loading)} of it waiting for pictures"
    table.add_row("time", f"{_duration(plan.seconds)} for all steps, {plan.images_per_second:,.4g} pictures/s")
    table.add_row("", f"{_duration(timing.seconds_per_step)} a step, {waited};")
    table.add_row("", f"median of {timing.timed_steps} steps on {timing.device};")
    alike = ", every process as fast as this one" if plan.processes > 1 else ""
    table.add_row("", f"without scoring and saving{alike}")
    return table


def _flops(count: int) -> str:
    """Write FLOPs with the prefix that leaves 1 to 1,000 of them, mega to exa."""
    power = min(max((len(str(count)) - 1) // 3, 2), 6)
    return f"{count / 1000**power:,.4g} {'MGTPE'[power - 2]}FLOPs"


def _size(count: int) -> str:
    """Write bytes in MB, or in GB from 10 GB on."""
    return f"{count / 1e9:,.1f} GB" if count >= 10e9 else f"{count / 1e6:,.1f} MB"


def _duration(seconds: float) -> str:
    """Write milliseconds, seconds, minutes or hours, whichever reads best."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"
