"""Train by a recipe, on one process or many: Accelerate's loop, readable in one sitting.

Phases: set-up (everything that can be wrong is found before a file is written), steps, evaluation, the final test on
weights that were saved and loaded again. Randomness has an address: order and augmentation as in `vit_hf.data.loading`,
mixing, dropout and drop path from (seed, step, accumulated batch, process).
"""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from ..data.loading import build_evaluation_loader, build_train_loader, seed_from
from ..data.pictures import Split, num_rows, open_pictures
from ..data.transforms import TrainTransform, build_mixing
from ..evaluation.scoring import Scores, score
from ..inspection.plots import plot_learning_curves
from ..modeling_vit_hf import VitHfForImageClassification, classification_loss
from .optim import build_average, build_optimizer, build_schedule, plan_steps
from .progress import RunDisplay, quiet_transformers
from .recipe import Recipe
from .recipes import get_recipe
from .setup import build_model, describe_run, enable_checkpointing
from .state import RunFolder


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run lies, and its final scores."""

    output: Path
    results: dict[str, Any]
    """What results.json holds: top1, top5 (fractions), loss (nats), n, and the record of the run."""
    is_main_process: bool
    """Whether this process wrote the folder."""


def train(
    recipe: Recipe | str, *, output: str | Path | None = None, quiet: bool = False, **overrides: Any
) -> TrainResult:
    """Train a classifier and leave a model repo.

    Args:
        recipe: a `Recipe`, the name of one, or a YAML file.
        output: new folder for the run; `runs/NAME`, numbered if it is taken, when None.
        quiet: print nothing.
        overrides: recipe fields by keyword, with "__" for the dot (`optimization__epochs=10`), and the short forms
            `data` (source) and `max_steps`.

    Returns:
        The folder, and the scores on the test split of the weights in it.

    Raises:
        ValueError, OSError: the recipe, the data or the folder is not usable; nothing has been written.
        FloatingPointError: the loss is NaN or infinite; the message names step and rows. Weights are not updated by
            that step, and checkpoints on disk stay as they were.
    """
    recipe = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
    short = {"data": "data.source", "max_steps": "optimization.max_steps"}
    recipe = recipe.override({short.get(name, name.replace("__", ".")): value for name, value in overrides.items()})
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.cpu_threads or threads)
    try:
        return _Run(recipe, output, quiet).run()
    finally:
        torch.set_num_threads(threads)


def next_output(name: str) -> Path:
    """Return `runs/NAME`, or the first of `runs/NAME-2`, `runs/NAME-3`, ... that is free."""
    candidates = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


class _Run:
    """The objects of one run, and its phases."""

    def __init__(self, recipe: Recipe, output: str | Path | None, quiet: bool):
        self.recipe = recipe
        # ------------------------------------------------------------------------------ what can be wrong, first
        pictures = open_pictures(recipe.data)
        if recipe.keep == "best" and pictures.validation is None:
            raise ValueError(
                "keep is 'best' but no pictures are held out to choose by, and choosing on the test split would "
                "flatter the result; set data.validation_fraction (such as 0.1), or keep 'last'"
            )
        model, processor = build_model(recipe.model, pictures.id2label, seed=recipe.seed)
        if recipe.gradient_checkpointing:
            enable_checkpointing(model)
        AcceleratorState._reset_state()  # a run before this one, in a notebook, may have had another precision
        accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            log_with=list(recipe.trackers) or None,
            project_dir=str(output or "."),
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            dynamo_backend="inductor" if recipe.compile else None,
        )
        if recipe.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would ignore it
            raise ValueError("mixed_precision fp16 needs a GPU, this process has none; use bf16, or no for float32")
        plan = plan_steps(
            recipe.optimization, num_images=num_rows(pictures.train), num_processes=accelerator.num_processes
        )
        # ------------------------------------------------------------------------------ the folder
        self.folder: RunFolder | None = None
        path = Path(broadcast_object_list([str(output or next_output(recipe.name))])[0])
        record = describe_run(recipe, pictures, accelerator)
        if accelerator.is_main_process:
            self.folder = RunFolder(path)
            self.folder.write_text("recipe.yaml", recipe.to_yaml())
            self.folder.write_json("run.json", record)
        accelerator.wait_for_everyone()
        self.path, self.record = path, record
        self.accelerator, self.pictures, self.plan, self.processor = accelerator, pictures, plan, processor
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        # ------------------------------------------------------------------------------ what moves
        self.average: AveragedModel | None = None
        if recipe.optimization.ema_decay is not None:
            self.average = build_average(model.to(accelerator.device), recipe.optimization.ema_decay)
        optimizer = build_optimizer(model, recipe.optimization)
        self.schedule: LRScheduler = build_schedule(optimizer, recipe.optimization, plan)
        loader = build_train_loader(
            pictures.train,
            **pictures.columns,
            transform=TrainTransform(recipe.augmentation, processor),
            batch_size=recipe.optimization.batch_size,
            accumulation=plan.accumulation,
            num_steps=plan.total_steps,
            seed=recipe.seed,
            workers=recipe.workers,
        )
        self.model, self.optimizer, self.loader = accelerator.prepare(model, optimizer, loader)
        self.mixing = build_mixing(recipe.augmentation, len(pictures.source.label_names))
        self.display = RunDisplay(plan.total_steps, enabled=accelerator.is_main_process and not quiet)
        self.best: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []

    # ------------------------------------------------------------------------------ phases
    def run(self) -> TrainResult:
        """Run all phases and return the result."""
        if self.accelerator.log_with:
            directories = self.accelerator.project_configuration
            directories.project_dir = directories.logging_dir = str(self.path)  # the folder was not known before
            self.accelerator.init_trackers("tensorboard", config=_flat(self.recipe.to_dict()))
        started = time.perf_counter()
        self._announce()
        with quiet_transformers():
            with self.display:
                self._train()
            seconds = time.perf_counter() - started
            with self.display.console.status("saving, loading again and testing"):
                result = self._finish(seconds)
        self.accelerator.end_training()
        return result

    def _train(self) -> None:
        """Take all steps; evaluate every `evaluate_every` epochs and at the end."""
        recipe, plan = self.recipe, self.plan
        interval = recipe.evaluate_every * plan.steps_per_epoch
        self.model.train()
        batches = iter(self.loader)
        losses, since, images = 0.0, time.perf_counter(), 0
        next_evaluation = interval
        for step in range(1, plan.total_steps + 1):
            loss = self._step(step, batches)
            losses += loss
            images += recipe.optimization.batch_size
            speed = images / (time.perf_counter() - since)
            rate = float(self.schedule.get_last_lr()[0])
            self.display.step(loss=loss, learning_rate=rate, images_per_second=speed)
            if step >= next_evaluation - 1e-9 or step == plan.total_steps:
                next_evaluation += interval
                mean_loss = torch.tensor(losses * recipe.optimization.batch_size / images).to(self.accelerator.device)
                row = {
                    "epoch": self._epoch(step),
                    "step": step,
                    "train_loss": self.accelerator.reduce(mean_loss, "mean").item(),
                    "learning_rate": rate,
                    "images_per_second": round(speed, 1),
                }
                self._evaluate(row)
                losses, since, images = 0.0, time.perf_counter(), 0

    def _step(self, step: int, batches: Iterator[dict[str, torch.Tensor]]) -> float:
        """One optimiser step over `accumulation` batches; returns the mean loss of this process."""
        accelerator, optimization = self.accelerator, self.recipe.optimization
        total = 0.0
        for part in range(self.plan.accumulation):
            batch = next(batches)
            torch.manual_seed(seed_from("step", self.recipe.seed, step, part, accelerator.process_index))
            pixels, labels = batch["pixel_values"], batch["labels"]  # (B, C, H, W), (B,)
            if self.mixing is not None:
                pixels, labels = self.mixing(pixels, labels)  # (B, C, H, W), (B, L)
            last = part == self.plan.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.model):
                with accelerator.autocast():
                    logits = self.model(pixel_values=pixels).logits  # (B, L)
                loss = classification_loss(logits, labels, label_smoothing=optimization.label_smoothing)
                value = loss.item()
                if not math.isfinite(value):
                    raise FloatingPointError(self._not_finite(step, value, batch["rows"]))
                accelerator.backward(loss / self.plan.accumulation)
            total += value / self.plan.accumulation
        if optimization.clip_norm is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), optimization.clip_norm)
        self.optimizer.step()
        if not self.optimizer.step_was_skipped:  # fp16 skips a step whose scaled gradients overflow
            self.schedule.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update_parameters(accelerator.unwrap_model(self.model, keep_torch_compile=False))
        return total

    def _epoch(self, step: int) -> float | None:
        """Epochs done after a step; None when streaming does not tell their length."""
        return None if math.isinf(self.plan.steps_per_epoch) else round(step / self.plan.steps_per_epoch, 4)

    def _not_finite(self, step: int, loss: float, rows: torch.Tensor) -> str:
        shown = ", ".join(map(str, rows[:8].tolist())) + (", ..." if len(rows) > 8 else "")
        return (
            f"the loss is {loss} at step {step} (epoch {self._epoch(step)}), process "
            f"{self.accelerator.process_index}, training rows {shown}; expected a finite number. The step was not "
            f"taken; checkpoints in {self.path} are as they were. Lower optimization.learning_rate, set "
            "optimization.clip_norm, or use mixed_precision bf16 instead of fp16"
        )

    def _evaluate(self, row: dict[str, Any]) -> None:
        """Score the validation split, record the row, and publish the weights if they are the best so far."""
        note = ""
        if self.pictures.validation is not None:
            measured = self._score(self.pictures.validation, "validation").measure()
            row.update(top1=measured["top1"], top5=measured["top5"], validation_loss=measured["loss"])
            if self.recipe.keep == "best" and (self.best is None or row["top1"] > self.best["top1"]):
                self.best, note = row, "best"
                self._publish_best()
        self.display.row(row, note)
        self.rows.append(row)
        if self.folder is not None:
            self.folder.append_metrics(row)
        if self.accelerator.log_with:
            numbers = {key: value for key, value in row.items() if key not in ("step", "epoch")}
            self.accelerator.log(numbers, step=row["step"])

    def _score(self, split: Split, name: str, network: nn.Module | None = None) -> Scores:
        """Score a split with the weights that would be saved now, or with another network."""
        loader: DataLoader = build_evaluation_loader(
            split,
            **self.pictures.columns,
            name=name,
            processor=self.processor,
            batch_size=self.recipe.evaluation_batch_size * self.accelerator.num_processes,
            workers=self.recipe.workers,
        )
        loader = self.accelerator.prepare_data_loader(loader)
        network = network or (self.model if self.average is None else self.average.module)
        return score(network, loader, self.accelerator, num_samples=num_rows(split))

    def _weights(self) -> dict[str, torch.Tensor]:
        """The weights to save: averaged ones if there are, gathered on the CPU."""
        if self.average is not None:
            return {name: tensor.cpu() for name, tensor in self.average.module.state_dict().items()}
        return self.accelerator.get_state_dict(self.model)

    def _save_model(self, path: Path, weights: dict[str, torch.Tensor]) -> None:
        network = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        network.save_pretrained(path, state_dict=weights)
        self.processor.save_pretrained(path)

    def _publish_best(self) -> None:
        weights = self._weights()  # on all processes: it may gather
        if self.folder is not None:
            self.folder.publish("checkpoints/best", lambda path: self._save_model(path, weights))
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------------------ the end
    def _finish(self, seconds: float) -> TrainResult:
        """Save the model, load it again, prove it by its validation record, and test it once."""
        if self.recipe.keep == "best":
            file = self.path / "checkpoints" / "best" / "model.safetensors"
            weights = load_file(file)
        else:
            weights = self._weights()
        if self.folder is not None:
            self.folder.publish_root(lambda path: self._save_model(path, weights))
        self.accelerator.wait_for_everyone()
        network = VitHfForImageClassification.from_pretrained(self.path).to(self.accelerator.device)
        if self.best is not None:
            assert self.pictures.validation is not None
            again = self._score(self.pictures.validation, "validation", network).measure()["top1"]
            tolerance = 0.002 if self.recipe.compile else 0.0  # compiled and plain kernels round differently
            if abs(again - self.best["top1"]) > tolerance:
                recorded = self.best["top1"]
                raise RuntimeError(f"the saved model scores {again:.4%} on validation, its record says {recorded:.4%}")
        measured = self._score(self.pictures.test, self.pictures.test_name, network).measure()
        results = {
            **measured,
            "split": self.pictures.test_name,
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "kept": self.recipe.keep,
            "kept_epoch": self.best["epoch"] if self.best else None,
            "validation_top1": self.best["top1"] if self.best else None,
            "parameters": self.num_parameters,
            "steps": self.plan.total_steps,
            "epochs": self._epoch(self.plan.total_steps),
            "seconds": round(seconds, 1),
            **self.record,
        }
        if self.folder is not None:
            if not math.isinf(self.plan.steps_per_epoch):  # a streamed set has no epochs to draw over
                plot_learning_curves(self.rows, self.path / "learning_curves.png")
            self.folder.write_json("results.json", results)
        self.accelerator.wait_for_everyone()
        return TrainResult(self.path, results, self.accelerator.is_main_process)

    def _announce(self) -> None:
        pictures, plan, say = self.pictures, self.plan, self.display.print
        train, validation, test = (num_rows(s) for s in (pictures.train, pictures.validation, pictures.test))
        accumulated = f" x {plan.accumulation} accumulated" if plan.accumulation > 1 else ""
        classes = len(pictures.source.label_names)
        precision = "float32" if self.recipe.mixed_precision == "no" else self.recipe.mixed_precision
        say(
            f"[bold]{self.recipe.name}[/]: {self.num_parameters:,} parameters, {classes} classes, "
            f"{_count(train)} training, {_count(validation or 0)} validation and {_count(test)} test pictures"
        )
        say(
            f"{plan.total_steps:,} steps of {self.recipe.optimization.batch_size} pictures "
            f"({self.accelerator.num_processes} process x {plan.device_batch_size}{accumulated}), "
            f"{precision}, {self.record['device']}"
        )


def _count(number: int | None) -> str:
    return "streamed" if number is None else f"{number:,}"


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Flatten a recipe for trackers, which take plain values only."""
    flat: dict[str, str | int | float | bool] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat
