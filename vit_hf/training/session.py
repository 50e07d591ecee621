"""The objects of a training run, and what can be done with them: score, save, go on from a checkpoint.

The order of set-up is that of what can go wrong: recipe, data, network and checkpoint are looked at before anything is
written; what one process finds out (folders, checkpoints) the others are told.
"""

import contextlib
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from datasets import Dataset
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from ..checkpoints.receipt import RECEIPT_FILE
from ..data.bad_images import RECORD
from ..data.loading import build_evaluation_loader, build_train_loader
from ..data.pictures import Split, num_rows, open_pictures
from ..data.pixel_cache import cached_pixels
from ..data.streams import TrainStream
from ..data.transforms import TrainTransform
from ..evaluation.scoring import Scores
from .checkpoint import (
    find_start,
    flatten,
    open_run,
    optimizer_tensors,
    read_optimizer,
    read_weights,
    restore_optimizer,
    rotate,
    step_folder,
    write_training_state,
)
from .energy import EnergyMeter
from .fit import fit_device_batch
from .interruption import HangWatch, StopRequest
from .optim import build_average, build_optimizer, build_schedule
from .passed_over import PassedOver
from .progress import RunDisplay
from .recipe import Recipe
from .setup import (
    add_session,
    build_model,
    check_choice,
    check_launch,
    check_trackers,
    describe_run,
    enable_checkpointing,
    on_main,
    plan_for,
    receipt_of,
    restore_model,
    set_up_deepspeed,
)
from .state import RunFolder
from .step import Stepper
from .tasks import TASKS, Errors, Task
from .utilization import Utilization


class Session:
    """One process's part in a run, from its start or resumption to its end.

    Args:
        recipe: of the run.
        quiet: print nothing.
        on_checkpoint: called on the main process with the folder of a checkpoint that was published.
    """

    def __init__(self, recipe: Recipe, *, quiet: bool, on_checkpoint: Callable[[Path], None] | None = None):
        self.recipe, self.quiet, self.on_checkpoint = recipe, quiet, on_checkpoint
        self.started = self.saved_at = time.perf_counter()
        AcceleratorState._reset_state()  # a run before this one, in a notebook, may have had another precision
        self.accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            log_with=list(recipe.trackers) or None,
            project_dir=".",
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # by the stepper, not by a variable
            dynamo_backend="inductor" if recipe.compile else None,
        )
        check_launch(recipe, self.accelerator)
        check_trackers(recipe, self.accelerator)
        self.stop = StopRequest()
        minutes, number = recipe.hang_timeout_minutes, self.accelerator.process_index
        name = f"process {number} of {self.accelerator.num_processes}"
        self.watch = HangWatch(None if minutes is None else 60 * minutes, name)
        self.folder: RunFolder | None = None  # on the main process
        self.step = self.first_step = 0  # optimiser steps done; before this session
        self.bad_images = PassedOver(recipe.data.on_bad_image, self.accelerator, self._write_bad_images)
        self.evaluated = True  # whether the evaluation that is due after this step is done
        self.best: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []
        self.loss_sum, self.loss_steps = 0.0, 0  # since the last evaluation
        self.seconds_before = 0.0  # of training, in the sessions before this one
        self.energy_before: float | None = 0.0  # kWh, likewise
        self.energy = EnergyMeter(self.accelerator.device, packages=self.accelerator.is_local_main_process)

    def set_up(self, output: str | Path | None, resume: str | Path | None) -> dict[str, Any] | None:
        """Make all objects; what can be wrong comes first. Returns the results if the run to resume is finished."""
        recipe, accelerator = self.recipe, self.accelerator
        pictures = self.pictures = open_pictures(recipe.data)
        check_choice(recipe, pictures)
        plan = self.plan = plan_for(
            recipe, num_images=num_rows(pictures.train), num_processes=accelerator.num_processes
        )
        record = describe_run(recipe, pictures, accelerator)
        self.path, checkpoint, state, finished = on_main(
            lambda: find_start(recipe, output, resume, record["data"]), accelerator
        )
        if finished is not None:
            if accelerator.is_main_process:
                with contextlib.suppress(OSError):
                    RunFolder(self.path, resume=True).close()  # removes what a kill at the very end has left
            return finished
        for split in (pictures.train, pictures.validation, pictures.test):  # a full disk shows now, not hours later
            if isinstance(split, Dataset):
                cached_pixels(split, pictures.source.image_column)
        if checkpoint is None:
            model, self.processor = build_model(recipe, pictures.id2label)
        else:
            model, self.processor = restore_model(recipe, checkpoint)
        self.task: Task = TASKS[recipe.task](recipe, model)
        self.utilization = Utilization(model, recipe, accelerator.device, accelerator.num_processes)
        shown, known = accelerator.is_main_process and not self.quiet, self.utilization.peak is not None
        self.display = RunDisplay(plan.total_steps, enabled=shown, with_mfu=known)
        if recipe.gradient_checkpointing:
            enable_checkpointing(model)

        # ------------------------------------------------------------------------------ the folder
        def open_folder() -> tuple[Path, dict[str, Any]]:
            unnamed = recipe.name if output is None and resume is None else None
            self.folder = open_run(self.path, resume=resume is not None, name=unnamed)
            if (receipt := receipt_of(model)) is not None:
                self.folder.write_text(RECEIPT_FILE, receipt.to_json())
            return self.folder.path, self._write_records(record, state)

        (self.path, self.record), self.receipt = on_main(open_folder, accelerator), receipt_of(model)
        if accelerator.distributed_type == DistributedType.MULTI_GPU:
            image_chw = (model.config.num_channels, *self.processor.image_hw)
            network = model.to(accelerator.device)
            plan = self.plan = fit_device_batch(network, self.task, plan, accelerator, image_chw=image_chw)
        # ------------------------------------------------------------------------------ what moves
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.average: AveragedModel | None = None
        if recipe.optimization.ema_decay is not None:
            self.average = build_average(model.to(accelerator.device), recipe.optimization.ema_decay)
        optimizer = build_optimizer(model, recipe.optimization, scaled=recipe.mixed_precision == "fp16")
        self.schedule: LRScheduler = build_schedule(optimizer, recipe.optimization, plan)
        self.step = self.first_step = state["step"] if state else 0
        if state and state.get("bad_images"):
            self.bad_images.load_state_dict(state["bad_images"])
        loader, prepare = build_train_loader(
            pictures.train,
            **pictures.columns,
            transform=TrainTransform(recipe.augmentation, self.processor),
            batch_size=recipe.optimization.batch_size,
            accumulation=plan.accumulation,
            num_steps=plan.total_steps,
            seed=recipe.seed,
            workers=recipe.workers,
            first_step=self.step,
            repeats=recipe.augmentation.repeats,
            draw=self.task.draw,
            skip_bad=pictures.skip_bad,
            passed_over=self.bad_images.passed_over,
        )
        self.samples: Any = loader.dataset
        if isinstance(self.samples, TrainStream):
            self.samples.on_sample = self.watch.beat  # passing over what the run has had may take hours
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            set_up_deepspeed(recipe, plan, accelerator)
        self.model_class, self.config = type(model), model.config  # FSDP makes a class of its own
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.loader = accelerator.prepare_data_loader(loader, device_placement=False)  # the step moves each piece
        self.stepper = Stepper(
            recipe=recipe,
            plan=plan,
            task=self.task,
            accelerator=accelerator,
            model=self.model,
            optimizer=self.optimizer,
            schedule=self.schedule,
            average=self.average,
            prepare=prepare,
            say=self.display.print,
        )
        if checkpoint is not None and state is not None:
            self._restore(checkpoint, state)
        if accelerator.log_with:
            project = accelerator.project_configuration
            project.project_dir, project.logging_dir = str(self.path), str(self.path / "tensorboard")
            options: dict[str, dict[str, Any]] = {"wandb": {"dir": str(self.path)}}
            if self.step:  # what the log has of steps that are taken again
                options["tensorboard"] = {"purge_step": self.step + 1}
            fields = {name: _plain(value) for name, value in flatten(recipe.to_dict()).items()}
            accelerator.init_trackers(recipe.name, config=fields, init_kwargs=options)
        return None

    def _write_records(self, record: dict[str, Any], state: dict[str, Any] | None) -> dict[str, Any]:
        """Write recipe.yaml and run.json, or add this session to run.json."""
        assert self.folder is not None
        if state is not None:
            record = add_session(state["record"], record, step=state["step"])
        self.folder.write_text("recipe.yaml", self.recipe.to_yaml())
        self.folder.write_json("run.json", record)
        return record

    def _restore(self, checkpoint: Path, state: dict[str, Any]) -> None:
        """Put back what moves beside the weights."""
        inner = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        tensors = read_optimizer(checkpoint, state)
        restore_optimizer(inner, self.optimizer.optimizer, tensors, state["optimizer"])
        functions = {"lr_lambdas": [None] * len(self.schedule.base_lrs)}  # None: nothing to restore in a function
        self.schedule.load_state_dict({**state["schedule"], **functions})
        if self.average is not None:
            _, averaged = read_weights(checkpoint)
            assert averaged is not None  # the recipe is the same
            self.average.module.load_state_dict(averaged)
            self.average.n_averaged.fill_(state["n_averaged"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.stepper.pieces = state["pieces"]
        self.evaluated, self.best, self.rows = state["evaluated"], state["best"], state["rows"]
        self.loss_sum, self.loss_steps = state["loss_sum"], state["loss_steps"]
        self.seconds_before = state["seconds"]
        same = state.get("energy_source") == self.energy.source  # it is unknown in checkpoints of earlier versions
        self.energy_before = state.get("energy_kwh") if same else None
        if self.folder is not None:
            self.folder.write_metrics(self.rows)
            self._write_bad_images()

    # ------------------------------------------------------------------------------ scores
    def score(
        self,
        split: Split,
        name: str,
        network: nn.Module | None = None,
        on_batch: Callable[[int], None] = lambda count: None,
    ) -> Scores | Errors:
        """Score a split with the weights that would be saved now, or with another network."""
        loader: DataLoader = build_evaluation_loader(
            split,
            **self.pictures.columns,
            name=name,
            processor=self.processor,
            batch_size=self.recipe.evaluation_batch_size * self.accelerator.num_processes,
            workers=self.recipe.workers,
            skip_bad=self.pictures.skip_bad,
        )
        samples: Any = loader.dataset
        loader = self.accelerator.prepare_data_loader(loader)
        network = network or (self.model if self.average is None else self.average.module)

        def after_batch(count: int) -> None:
            self.energy.sample()
            on_batch(count)

        bad = self.bad_images.after_scoring(samples, "validation" if split is self.pictures.validation else "test")
        options: dict[str, Any] = {"num_samples": num_rows(split), "on_batch": after_batch, "on_bad": bad}
        return self.task.score(network, loader, self.accelerator, **options)

    def _write_bad_images(self) -> None:
        if self.folder is not None and self.bad_images.skip:
            self.folder.write_text(RECORD, self.bad_images.lines())

    def on_any_process(self, mine: bool) -> bool:
        """Whether it is so on any process."""
        if self.accelerator.num_processes == 1:
            return mine
        return bool(self.accelerator.reduce(torch.tensor(float(mine), device=self.accelerator.device), "sum").item())

    def epoch(self, step: int) -> float | None:
        """Epochs done after a step; None when streaming does not tell their length."""
        return None if math.isinf(self.plan.steps_per_epoch) else round(step / self.plan.steps_per_epoch, 4)

    def seconds(self) -> float:
        """Seconds since the start, over all sessions of the run."""
        return round(self.seconds_before + time.perf_counter() - self.started, 1)

    def energy_kwh(self) -> float | None:
        """Energy since the start, over all sessions and processes, which all call this; None where it is unknown."""
        now = self.energy.kwh(self.accelerator)
        return None if now is None or self.energy_before is None else self.energy_before + now

    @property
    def best_step(self) -> int | None:
        """Step of the best score so far."""
        return self.best["step"] if self.best else None

    # ------------------------------------------------------------------------------ checkpoints
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights to save: averaged ones if there are, gathered on the CPU."""
        if self.average is not None:
            return {name: tensor.cpu() for name, tensor in self.average.module.state_dict().items()}
        return self._moving_weights()

    def _moving_weights(self) -> dict[str, torch.Tensor]:
        """The weights that the optimiser moves, gathered on the CPU, by their names in the plain model."""
        whole = self.accelerator.get_state_dict(self.model)
        return {name.removeprefix("_orig_mod."): tensor for name, tensor in whole.items()}  # torch.compile's prefix

    def save_model(self, path: Path, weights: dict[str, torch.Tensor]) -> None:
        """Write weights, config, code and image processor into a folder."""
        with torch.device("meta"):
            network = self.model_class(self.config)
        network.save_pretrained(path, state_dict=weights)
        self.processor.save_pretrained(path)

    def rotate(self) -> None:
        """Remove the checkpoints that are no longer wanted."""
        if self.folder is not None:
            rotate(self.folder, step=self.step, limit=self.recipe.checkpoint_limit, best_step=self.best_step)

    def save(self) -> Path | None:
        """Publish a checkpoint of this step, then remove those that are no longer wanted; None if there can be none."""
        if not self.step or self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return None
        inner = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        tensors, groups = optimizer_tensors(inner, self.optimizer.optimizer)
        weights = self.weights()
        moving = None if self.average is None else self._moving_weights()
        energy = self.energy_kwh()
        state = {
            "step": self.step,
            "evaluated": self.evaluated,
            "best": self.best,
            "rows": self.rows,
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
            "seconds": self.seconds(),
            "energy_kwh": energy,
            "energy_source": None if energy is None else self.energy.source,
            "optimizer": groups,
            "optimizer_tensors": sorted(tensors),
            "schedule": {key: value for key, value in self.schedule.state_dict().items() if key != "lr_lambdas"},
            "pieces": self.stepper.pieces,
            "n_averaged": None if self.average is None else int(self.average.n_averaged),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
            "bad_images": self.bad_images.state_dict() if self.bad_images.skip else None,
            "recipe": self.recipe.to_dict(),
            "data": self.record["data"],
            "record": self.record,
        }

        def write(folder: Path) -> None:
            self.save_model(folder, weights)
            write_training_state(folder, state, tensors, moving)

        name = step_folder(self.step)
        if self.folder is not None:
            parts = [tensors, weights, moving or {}]
            needed = sum(tensor.nbytes for part in parts for tensor in part.values())
            published = self.folder.publish(name, write, bytes_needed=needed)
            if self.on_checkpoint is not None:
                self.on_checkpoint(published)
            self.rotate()
        self.accelerator.wait_for_everyone()
        self.saved_at = time.perf_counter()
        self.watch.beat()
        return self.path / name


def _plain(value: Any) -> str | int | float | bool:
    """Bring a recipe's value to what trackers take."""
    return value if isinstance(value, bool | int | float | str) else str(value)
