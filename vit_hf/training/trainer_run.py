"""A whole run of a recipe through `VitHfTrainer`: what `vit_hf.training.loop.train` does by its own loop.

The run folder is the same, but for the checkpoints, which are the Trainer's: `checkpoints/checkpoint-N`, written at
every evaluation and every `checkpoint_steps`, the newest and the best kept.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from rich.markup import escape
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState, PrinterCallback, ProgressCallback

from ..checkpoints.receipt import RECEIPT_FILE
from ..data.bad_images import RECORD
from ..data.pictures import Pictures, Split, num_rows, open_pictures
from ..evaluation.analysis import analyse
from ..evaluation.predictions import PREDICTIONS, Predictions, write_predictions
from ..evaluation.scoring import Scores
from ..inspection.plots import plot_learning_curves
from ..modeling_vit_hf import VitHfForImageClassification
from .checkpoint import check_same_run, checkpoints, find_run, next_output, open_run, read_recipe, results_of
from .energy import EnergyMeter
from .loop import TrainResult, check_score
from .optim import plan_steps
from .progress import RunDisplay, quiet_transformers
from .recipe import Recipe
from .recipes import get_recipe
from .setup import (
    add_session,
    build_model,
    check_launch,
    describe_run,
    enable_checkpointing,
    on_main,
    receipt_of,
)
from .state import DamagedFolderError, check_folder
from .trainer import VitHfTrainer, check_arguments
from .trainer_checkpoint import HALF_WRITTEN, is_sealed, newest_checkpoint
from .utilization import Utilization

_CHECKPOINTS = "checkpoints"


def training_arguments(
    recipe: Recipe, output: str | Path, *, num_images: int | None, validate: bool
) -> TrainingArguments:
    """Return the arguments that make `VitHfTrainer` run a recipe.

    Args:
        recipe: its optimiser, schedule and loss go to the Trainer by `optimization`, its augmentation likewise.
        output: folder for the Trainer's checkpoints.
        num_images: training pictures; None when streamed.
        validate: whether there is something to evaluate on.

    Raises:
        ValueError: the recipe is not for the Trainer, its steps cannot be planned, or it keeps the best weights and has
            nothing to choose them by.
    """
    if recipe.task != "classification":
        raise ValueError(f"task {recipe.task} has no labels, which the Trainer's evaluation needs; use `vit-hf train`")
    optimization, best = recipe.optimization, recipe.keep == "best"
    if best and not validate:
        raise ValueError(
            "keep is 'best' but no pictures are held out to choose by; set data.validation_fraction (such as 0.1), or "
            "keep 'last'"
        )
    args = TrainingArguments(
        output_dir=str(output),
        seed=recipe.seed,
        use_cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available(),  # bf16 asks for it
        eval_strategy="epoch" if validate else "no",
        save_strategy="epoch",
        logging_strategy="epoch",
        save_total_limit=recipe.checkpoint_limit + 1,  # the best is one of them
        load_best_model_at_end=best,
        metric_for_best_model="top1" if best else None,
        greater_is_better=True if best else None,
        per_device_eval_batch_size=recipe.evaluation_batch_size,
        max_grad_norm=optimization.clip_norm or math.inf,
        bf16=recipe.mixed_precision == "bf16",
        fp16=recipe.mixed_precision == "fp16",
        torch_compile=recipe.compile,
        dataloader_num_workers=recipe.workers,
        report_to=list(recipe.trackers) or "none",
        run_name=recipe.name,
    )
    check_arguments(args)
    check_launch(recipe, cast(Accelerator, args.distributed_state))  # device and processes are all it looks at
    mixes = bool(recipe.augmentation.mixup_alpha or recipe.augmentation.cutmix_alpha)
    plan = plan_steps(optimization, num_images=num_images, num_processes=args.world_size, even=mixes)
    args.max_steps = plan.total_steps
    args.per_device_train_batch_size = plan.device_batch_size
    args.gradient_accumulation_steps = plan.accumulation
    return args


def train_with_trainer(
    recipe: Recipe | str,
    *,
    output: str | Path | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> TrainResult:
    """Train a classifier through the Trainer and leave a model repo; as `vit_hf.train`, to the same numbers.

    Args:
        recipe: a `Recipe`, the name of one, or a YAML file.
        output: new folder for the run, or with `resume` that of the run; `runs/NAME`, numbered if taken, when None.
        resume: "auto" to go on from the newest whole checkpoint in `output` (`runs/NAME` when None), or to start there
            if it has none; or a run folder, or one of its checkpoints.
        quiet: print nothing.
        overrides: recipe fields by keyword, as for `vit_hf.train`.

    Raises:
        ValueError, OSError: recipe, data, checkpoint or folder is not usable, or they do not belong together; nothing
            has been written.
        FloatingPointError: loss or gradient is not finite.
    """
    recipe = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
    short = {"data": "data.source", "max_steps": "optimization.max_steps"}
    recipe = recipe.override({short.get(name, name.replace("__", ".")): value for name, value in overrides.items()})
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.cpu_threads or threads)
    try:
        return _run(recipe, output, resume, quiet)
    finally:
        torch.set_num_threads(threads)


def _find_start(
    recipe: Recipe, output: str | Path | None, resume: str | Path | None, data: dict[str, Any]
) -> tuple[Path, Path | None, dict[str, Any] | None]:
    """Decide where a run goes and where it begins, as `checkpoint.find_start` does, with the Trainer's checkpoints.

    Returns:
        The run folder; the checkpoint to go on from, or None; the results if the run is finished, or None.
    """
    if resume is None:
        return Path(output or next_output(recipe.name)), None, None
    run, checkpoint = find_run(recipe, output, resume)
    finished = results_of(run, recipe, data)
    if finished is not None:
        return run, None, finished
    start = checkpoint or newest_checkpoint(run / _CHECKPOINTS)
    if (start is None or start.name.startswith("step-")) and checkpoints(run):
        raise ValueError(f"{run} is a run of `vit-hf train`; go on with it by that, or start anew")
    if start is None and str(resume) != "auto":
        raise FileNotFoundError(f"{run} has no checkpoints/checkpoint-N to resume from; start a new run")
    if start is not None:
        check_folder(start)
        if not is_sealed(start):
            raise DamagedFolderError(f"{start} {HALF_WRITTEN}; name another one, or the run folder")
        for name in ("recipe.yaml", "run.json"):
            if not (run / name).is_file():
                raise FileNotFoundError(f"{run} has no {name}, which says what run it is; expected a run folder")
        before = json.loads((run / "run.json").read_text(encoding="utf-8"))["data"]
        check_same_run({"recipe": read_recipe(run), "data": before}, recipe, data, start)
    return run, start, None


def _run(recipe: Recipe, output: str | Path | None, resume: str | Path | None, quiet: bool) -> TrainResult:
    pictures = open_pictures(recipe.data)
    images, validate = num_rows(pictures.train), pictures.validation is not None
    args = training_arguments(recipe, ".", num_images=images, validate=validate)
    data = pictures.describe()
    path, start, finished = on_main(
        lambda: _find_start(recipe, output, resume, data), cast(PartialState, args.distributed_state)
    )
    if finished is not None:
        return TrainResult(path, finished, args.should_save, was_finished=True)
    model, processor = build_model(recipe, pictures.id2label)
    if recipe.gradient_checkpointing:
        enable_checkpointing(model)
    with contextlib.ExitStack() as stack:
        folder = None

        def open_folder() -> Path:
            nonlocal folder
            unnamed = recipe.name if output is None and resume is None else None
            opened = open_run(path, resume=resume is not None, name=unnamed)
            folder = stack.enter_context(contextlib.closing(opened))
            return folder.path

        path = on_main(open_folder, cast(PartialState, args.distributed_state))
        args.output_dir = str(path / _CHECKPOINTS)
        utilization = Utilization(model, recipe, args.device, args.world_size)
        shown, known = args.should_save and not quiet, utilization.peak is not None
        display = RunDisplay(args.max_steps, enabled=shown, with_mfu=known)
        progress = _Progress(display, utilization)
        callbacks: list[TrainerCallback] = [progress]
        if recipe.checkpoint_steps is not None:
            callbacks.append(_SaveEvery(recipe.checkpoint_steps))
        trainer = progress.trainer = VitHfTrainer(
            cast(VitHfForImageClassification, model),
            args,
            train_dataset=pictures.train,
            eval_dataset=pictures.validation,
            processing_class=processor,
            augmentation=recipe.augmentation,
            optimization=recipe.optimization,
            evaluate_every=recipe.evaluate_every,
            image_column=pictures.source.image_column,
            label_column=pictures.source.label_column,
            on_bad_image=recipe.data.on_bad_image,
            callbacks=callbacks,
        )
        for shown in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(shown)
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                callback.logging_dir = str(path / "tensorboard")
        record, before = describe_run(recipe, pictures, trainer.accelerator), _costs_before(start)
        first_step = 0 if start is None else int(start.name.rpartition("-")[2])
        if start is not None:
            first = json.loads((path / "run.json").read_text(encoding="utf-8"))
            record = add_session(first, record, step=first_step)
        if folder is not None:
            folder.write_text("recipe.yaml", recipe.to_yaml())
            folder.write_json("run.json", record)
            if (receipt := receipt_of(model)) is not None:
                folder.write_text(RECEIPT_FILE, receipt.to_json())
        costs = _Costs(trainer.accelerator, before)
        trainer.add_callback(costs)
        with quiet_transformers(), display:
            trainer.train(None if start is None else str(start))
        record.update(costs.measure())
        if folder is not None:
            folder.publish_root(lambda place: trainer.save_model(str(place), _internal_call=True))
        trainer.accelerator.wait_for_everyone()
        rows = [{**row, **progress.times.get(row["step"], {})} for row in evaluation_rows(trainer.state.log_history)]
        record.update(utilization.record(rows))
        results, scores = _results(trainer, recipe, pictures, path, record, first_step=first_step, say=display.print)
        if folder is not None:
            predictions = Predictions.of_run(scores, pictures.source.label_names, results)
            folder.write_file(PREDICTIONS, lambda place: write_predictions(place, predictions))
            folder.write_metrics(rows)
            if not math.isinf(trainer.steps_per_epoch):  # a streamed set has no epochs to draw over
                plot_learning_curves(rows, path / "learning_curves.png")
            if trainer.bad_images.skip:
                folder.write_text(RECORD, trainer.bad_images.lines())
            folder.write_json("results.json", results)
        trainer.accelerator.wait_for_everyone()
    return TrainResult(path, results, args.should_save)


def _results(
    trainer: VitHfTrainer,
    recipe: Recipe,
    pictures: Pictures,
    path: Path,
    record: dict[str, Any],
    *,
    first_step: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Scores]:
    """Load the saved model again, prove it by its validation record, and test it once.

    Args:
        trainer, recipe, pictures, path, record: of the run.
        first_step: steps before this session.
        say: takes a note about the record.

    Returns:
        What results.json holds, and the scores of the test.
    """
    with quiet_transformers():
        network = VitHfForImageClassification.from_pretrained(path).to(trainer.args.device)
    state, length = trainer.state, trainer.steps_per_epoch

    def measure(split: Split, name: str) -> Scores:
        return trainer.measure(network, trainer.get_eval_dataloader(split), name)

    best = recipe.keep == "best"
    if best:
        assert pictures.validation is not None
        again, recorded = measure(pictures.validation, "validation").measure(), float(state.best_metric or 0.0)
        earlier = (state.best_global_step or 0) <= first_step
        if note := check_score("top1", again, recorded, compiled=recipe.compile, earlier=earlier):
            say(escape(note))
    scores = measure(pictures.test, "test")
    results = {
        **scores.measure(),
        "split": pictures.test_name,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "kept": recipe.keep,
        "kept_epoch": round((state.best_global_step or 0) / length, 4) if best else None,
        "validation_top1": state.best_metric if best else None,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "steps": state.global_step,
        "epochs": None if math.isinf(length) else round(state.global_step / length, 4),
        **record,
        **analyse(scores, pictures.source.label_names),
    }
    if trainer.bad_images.skip:
        splits = ["train", "validation", "test"] if pictures.validation is not None else ["train", "test"]
        results["bad_images"] = trainer.bad_images.counts(splits)
    return results, scores


def evaluation_rows(log_history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn the Trainer's log into rows as of metrics.jsonl: a loss, and the scores of the same step."""
    rows: dict[int, dict[str, Any]] = {}
    for entry in log_history:
        row = rows.setdefault(entry["step"], {"epoch": entry.get("epoch"), "step": entry["step"]})
        if "loss" in entry:
            row.update(train_loss=entry["loss"], learning_rate=entry["learning_rate"])
        if "eval_top1" in entry:
            row.update(top1=entry["eval_top1"], top5=entry["eval_top5"], validation_loss=entry["eval_loss"])
    return [row for row in rows.values() if "train_loss" in row]


class _Progress(TrainerCallback):
    """Shows steps and evaluations as `vit-hf train` does."""

    trainer: VitHfTrainer

    def __init__(self, display: RunDisplay, utilization: Utilization):
        self.display, self.utilization = display, utilization
        self.times: dict[int, dict[str, float | None]] = {}
        """What rows tell of speed, by their step; of this session."""
        self._begin()

    def _begin(self) -> None:
        """Begin to measure anew."""
        self.since, self.seconds, self.images = time.perf_counter(), 0.0, 0

    def on_train_begin(self, args, state, control, **_):
        self._begin()
        if state.global_step:
            self.display.print(f"going on after step {state.global_step:,}")

    def on_step_end(self, args, state, control, **_):
        self.images += self.trainer.get_total_train_batch_size(args)
        self.seconds = time.perf_counter() - self.since
        self.display.step(
            loss=self.trainer.step_loss,
            learning_rate=self.trainer._get_learning_rate(),
            images_per_second=self.images / self.seconds,
        )

    def on_log(self, args, state, control, logs=None, **_):
        if "eval_top1" in logs or ("loss" in logs and args.eval_strategy == "no"):
            row = evaluation_rows(state.log_history)[-1]
            best = args.load_best_model_at_end and row["top1"] > (state.best_metric or -1.0)
            if self.images:  # else no step was taken since the last row
                speed = self.images / self.seconds
                times = {"images_per_second": round(speed, 1), "mfu": self.utilization.mfu(speed)}
                self.times[row["step"]] = times
            self.display.row({**row, **self.times.get(row["step"], {})}, "best" if best else "")
            self._begin()

    def on_save(self, args, state, control, **_):
        self.since = time.perf_counter() - self.seconds  # what it took does not count


class _Costs(TrainerCallback, ExportableState):
    """Time and energy of the training, over all sessions of the run: each checkpoint's `trainer_state.json` has them.

    Args:
        accelerator: of the run.
        before: what `measure` told when the checkpoint to go on from was saved, or None.
    """

    def __init__(self, accelerator: Accelerator, before: dict[str, Any] | None):
        self.accelerator = accelerator
        self.meter = EnergyMeter(accelerator.device, packages=accelerator.is_local_main_process)
        self.started = time.perf_counter()
        nothing: dict[str, Any] = {"seconds": 0.0, "energy_kwh": 0.0, "energy_source": self.meter.source}
        self.before = nothing if before is None else before
        self.now = self.before

    def measure(self) -> dict[str, Any]:
        """Return seconds, kWh and where they were read, None where they are unknown; all processes call it."""
        seconds, energy = time.perf_counter() - self.started, self.meter.kwh(self.accelerator)
        earlier = self.before["energy_kwh"] if self.before["energy_source"] == self.meter.source else None
        total = None if energy is None or earlier is None else earlier + energy
        return {
            "seconds": round(self.before["seconds"] + seconds, 1),
            "energy_kwh": total,
            "energy_source": None if total is None else self.meter.source,
        }

    def on_train_begin(self, args, state, control, **_):
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())  # the Trainer replaces what is there

    def on_step_end(self, args, state, control, **_):
        self.meter.sample()
        if control.should_save:
            self.now = self.measure()

    def on_prediction_step(self, args, state, control, **_):
        self.meter.sample()

    def on_evaluate(self, args, state, control, **_):
        if control.should_save:  # which comes after the evaluation
            self.now = self.measure()

    def state(self) -> dict:
        return {"args": {}, "attributes": self.now}


def _costs_before(start: Path | None) -> dict[str, Any] | None:
    """Return what a checkpoint tells of the sessions before it, None without one."""
    if start is None:
        return None
    state = json.loads((start / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    found = state["stateful_callbacks"].get(_Costs.__name__)  # one of an earlier version has none
    return found["attributes"] if found else {"seconds": 0.0, "energy_kwh": None, "energy_source": None}


class _SaveEvery(TrainerCallback):
    """Saves after every so many steps, beside what the arguments say."""

    def __init__(self, steps: int):
        self.steps = steps

    def on_step_end(self, args, state, control, **_):
        control.should_save |= state.global_step % self.steps == 0
