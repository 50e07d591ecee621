"""Train by a recipe, on one process or many: Accelerate's loop, readable in one sitting.

Phases: set-up (everything that can be wrong is found before a file is written), steps, evaluation, the final test on
weights that were saved and loaded again. Randomness has an address: order and augmentation as in `vit_hf.data.loading`,
mixing as in `vit_hf.data.mixing`, dropout and drop path as in `vit_hf.training.step`. So a run that is stopped after
any step and resumed ends with the same weights, bit for bit, as one that was not.
"""

import contextlib
import math
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from ..data.pictures import num_rows
from ..evaluation.analysis import analyse
from ..evaluation.predictions import PREDICTIONS, Predictions, write_predictions
from ..evaluation.scoring import Scores
from ..inspection.plots import plot_learning_curves
from .checkpoint import best_folder, read_weights, resume_command
from .interruption import TrainingInterrupted
from .progress import TIMES, quiet_transformers
from .recipe import Recipe
from .recipes import get_recipe
from .session import Session


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run lies, and its final scores."""

    output: Path
    results: dict[str, Any]
    """What results.json holds: top1, top5 (fractions), loss (nats), n, the record of the run, and `analyse`'s keys."""
    is_main_process: bool
    """Whether this process wrote the folder."""
    was_finished: bool = False
    """Whether there was nothing left to do."""


def train(
    recipe: Recipe | str,
    *,
    output: str | Path | None = None,
    resume: str | Path | None = None,
    quiet: bool = False,
    on_checkpoint: Callable[[Path], None] | None = None,
    **overrides: Any,
) -> TrainResult:
    """Train a model and leave a model repo.

    Args:
        recipe: a `Recipe`, the name of one, or a YAML file.
        output: new folder for the run; `runs/NAME`, numbered if it is taken, when None.
        resume: "auto" to go on from the newest whole checkpoint in `output` (`runs/NAME` when None), or to start there
            if it has none; or a run folder, or one of its checkpoints. The result is, bit for bit, that of a run that
            was never stopped.
        quiet: print nothing.
        on_checkpoint: called on the main process with the folder of each checkpoint that was published, before older
            ones are removed; the run waits for it, and what it raises ends the run.
        overrides: recipe fields by keyword, with "__" for the dot (`optimization__epochs=10`), and the short forms
            `data` (source) and `max_steps`.

    Returns:
        The folder, and the scores on the test split of the weights in it.

    Raises:
        ValueError, OSError: the recipe, the data, the folder or the checkpoint is not usable, or they do not belong
            together; nothing has been written.
        FloatingPointError: loss or gradient is NaN or infinite; the message names step and rows. Weights are not
            updated by that step, and checkpoints on disk stay as they were.
        ChildProcessError: a loader process was killed.
        MemoryError: not even the smallest batch fits.
        TrainingInterrupted: SIGTERM or Ctrl-C came; the checkpoint it names was saved at the next step boundary.
    """
    recipe = recipe if isinstance(recipe, Recipe) else get_recipe(recipe)
    short = {"data": "data.source", "max_steps": "optimization.max_steps"}
    recipe = recipe.override({short.get(name, name.replace("__", ".")): value for name, value in overrides.items()})
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.cpu_threads or threads)
    try:
        return _run_phases(Session(recipe, quiet=quiet, on_checkpoint=on_checkpoint), output, resume)
    finally:
        torch.set_num_threads(threads)


def _run_phases(run: Session, output: str | Path | None, resume: str | Path | None) -> TrainResult:
    """Run all phases and return the result."""
    try:
        finished = run.set_up(output, resume)
        if finished is not None:
            return TrainResult(run.path, finished, run.accelerator.is_main_process, was_finished=True)
        _announce(run)
        with quiet_transformers():
            with run.display:
                _train(run)
            with run.display.console.status("saving, loading again and testing"):
                result = _finish(run)
        for tracker in run.accelerator.trackers:
            tracker.finish()
        return result
    except BaseException as error:
        death = _end_of_a_loader(error)  # first: until then torch's signal handler may raise once more, wherever we are
        if run.folder is not None and run.step and not isinstance(error, TrainingInterrupted):
            run.display.print(f"to resume: {escape(resume_command(run.path))}")
        if death is not None:
            raise ChildProcessError(
                f"a loader process died ({death}); resume with fewer workers (--workers N), or see what killed it"
            ) from error
        raise
    finally:
        if run.folder is not None:
            run.folder.close()


def _train(run: Session) -> None:
    """Take all steps; evaluate every `evaluate_every` epochs and at the end; save as often as the recipe says."""
    run.model.train()
    batches = iter(run.loader)
    seconds, images = 0.0, 0  # of the steps since the last evaluation
    with run.stop, run.watch, contextlib.closing(batches):  # closing ends the loader processes
        if not run.evaluated:  # stopped before this evaluation was done
            _evaluate(run, {})
        while run.step < run.plan.total_steps:
            rate, started = float(run.schedule.get_last_lr()[0]), time.perf_counter()
            outcome = run.stepper.take(run.step + 1, batches, lambda: [run.stop.requested, _is_due(run)])
            stop, save = outcome.flags
            run.step += 1
            run.watch.beat()
            run.energy.sample()
            run.loss_sum += outcome.loss
            run.loss_steps += 1
            if outcome.passed_over:
                taken = run.step * run.recipe.optimization.batch_size
                pairs = outcome.passed_over_here
                run.bad_images.after_batches(run.samples, pairs, total=outcome.passed_over, taken=taken)
            run.evaluated = not _evaluation_is_due(run)
            seconds, images = seconds + time.perf_counter() - started, images + run.recipe.optimization.batch_size
            run.display.step(loss=outcome.loss, learning_rate=rate, images_per_second=images / seconds)
            if stop:
                _stop(run)
            if not run.evaluated:
                speed, share = images / seconds, run.stepper.input_seconds / seconds
                times = {"images_per_second": round(speed, 1), "input_share": round(share, 4)}
                _evaluate(run, {**times, "mfu": run.utilization.mfu(speed)})
                seconds, images, run.stepper.input_seconds = 0.0, 0, 0.0
            if save or (run.step == run.plan.total_steps and _saves(run)):
                run.save()
        if run.on_any_process(run.stop.requested):  # it came after the last step
            _stop(run)


def _saves(run: Session) -> bool:
    return run.recipe.checkpoint_minutes is not None or run.recipe.checkpoint_steps is not None


def _is_due(run: Session) -> bool:
    """Whether a checkpoint is to be saved after the step that is being taken; the main process's clock counts."""
    every, minutes = run.recipe.checkpoint_steps, run.recipe.checkpoint_minutes
    by_count = every is not None and (run.step + 1) % every == 0
    by_clock = minutes is not None and time.perf_counter() - run.saved_at > 60 * minutes
    return by_count or (by_clock and run.accelerator.is_main_process)


def _evaluation_is_due(run: Session) -> bool:
    """Whether `evaluate_every` epochs, or one more of them, were completed by the last step."""
    interval = run.recipe.evaluate_every * run.plan.steps_per_epoch
    done, before = (math.floor((step + 1e-9) / interval) for step in (run.step, run.step - 1))
    return done > before or run.step == run.plan.total_steps


def _evaluate(run: Session, times: dict[str, float | None]) -> None:
    """Score the validation split, record the row, and publish the weights if they are the best so far.

    `times` of the steps since the last evaluation: how many images a second, what share of it went into input, and
    what share of the devices' speed that is.
    """
    row: dict[str, Any] = {
        "epoch": run.epoch(run.step),
        "step": run.step,
        "train_loss": run.loss_sum / run.loss_steps,
        "learning_rate": float(run.schedule.get_last_lr()[0]),
        **dict.fromkeys(TIMES),
        **times,
    }
    note = ""
    if run.pictures.validation is not None:
        measured = run.score(
            run.pictures.validation, "validation", on_batch=partial(_evaluation_goes_on, run)
        ).measure()
        row.update({name: measured[name] for name in ("top1", "top5") if name in measured})
        row["validation_loss"] = measured["loss"]
        if run.recipe.keep == "best" and run.task.is_better(row, run.best):
            run.best, note = row, "best"
            weights = run.weights()  # on all processes: it may gather
            if run.folder is not None:
                run.folder.publish(best_folder(run.step), lambda path: run.save_model(path, weights))
    run.rows.append(row)
    run.loss_sum, run.loss_steps, run.evaluated = 0.0, 0, True
    run.display.row(row, note)
    if run.folder is not None:
        run.folder.write_metrics(run.rows)
        run.rotate()
    if run.accelerator.log_with:
        numbers = {key: value for key, value in row.items() if key not in ("step", "epoch") and value is not None}
        run.accelerator.log(numbers, step=row["step"])


def _evaluation_goes_on(run: Session, count: int) -> None:
    """After each batch of an evaluation: a request to stop leaves it to the resumed run."""
    run.watch.beat()
    if run.on_any_process(run.stop.requested):
        _stop(run)


def _stop(run: Session) -> None:
    """Save, and end as asked."""
    raise TrainingInterrupted(run.path, run.step, run.save())


def _finish(run: Session) -> TrainResult:
    """Save the model, load it again, prove it by its validation record, and test it once."""
    seconds, energy = run.seconds(), run.energy_kwh()
    weights = run.weights()
    if run.recipe.keep == "best":
        assert run.best is not None
        weights, _ = read_weights(run.path / best_folder(run.best["step"]))
    if run.folder is not None:
        run.folder.publish_root(lambda path: run.save_model(path, weights))
    run.accelerator.wait_for_everyone()
    network = run.task.model_class.from_pretrained(run.path).to(run.accelerator.device)
    if run.best is not None:
        assert run.pictures.validation is not None
        again = run.score(run.pictures.validation, "validation", network).measure()
        note = check_score(
            run.task.metric,
            again,
            run.best[run.task.metric],
            compiled=run.recipe.compile,
            earlier=run.best["step"] <= run.first_step,
        )
        if note:
            run.display.print(escape(note))
    scores = run.score(run.pictures.test, run.pictures.test_name, network)
    results = {
        **scores.measure(),
        "split": run.pictures.test_name,
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "kept": run.recipe.keep,
        "kept_epoch": run.best["epoch"] if run.best else None,
        "validation_top1": run.best.get("top1") if run.best else None,
        "parameters": run.num_parameters,
        "steps": run.plan.total_steps,
        "epochs": run.epoch(run.plan.total_steps),
        "seconds": seconds,
        **run.utilization.record(run.rows),
        "energy_kwh": energy,
        "energy_source": None if energy is None else run.energy.source,
        **run.record,
    }
    if run.bad_images.skip:
        splits = ["train", "validation", "test"] if run.pictures.validation is not None else ["train", "test"]
        results["bad_images"] = run.bad_images.counts(splits)
    if isinstance(scores, Scores):
        results.update(analyse(scores, run.pictures.source.label_names))
    if run.folder is not None:
        if not math.isinf(run.plan.steps_per_epoch):  # a streamed set has no epochs to draw over
            options = {} if isinstance(scores, Scores) else {"loss": "error of hidden patches"}
            plot_learning_curves(run.rows, run.path / "learning_curves.png", **options)
        if isinstance(scores, Scores):
            predictions = Predictions.of_run(scores, run.pictures.source.label_names, results)
            run.folder.write_file(PREDICTIONS, lambda path: write_predictions(path, predictions))
        run.folder.write_json("results.json", results)
    run.accelerator.wait_for_everyone()
    return TrainResult(run.path, results, run.accelerator.is_main_process)


def check_score(metric: str, again: dict[str, Any], recorded: float, *, compiled: bool, earlier: bool) -> str:
    """Compare what a saved model scores on validation with the record of the run.

    Args:
        metric: "top1" or "validation_loss".
        again: what was measured now; with "n".
        recorded: the score in the record.
        compiled: whether it was measured with compiled kernels, which round otherwise.
        earlier: whether that was in a session before this one, perhaps on another machine, which rounds otherwise.

    Returns:
        A note where the two differ by no more than another machine explains (1%, or three pictures); else "".

    Raises:
        RuntimeError: they differ.
    """
    found = again["loss" if metric == "validation_loss" else metric]
    difference = abs(found - recorded)
    if difference <= (0.002 if compiled else 0.0):
        return ""
    text = f"the saved model has {metric} {found:.6f} on validation, its record says {recorded:.6f}"
    if not earlier or difference > max(0.01 * max(1.0, abs(recorded)), 3 / again["n"]):
        raise RuntimeError(text)
    return f"{text}, of a session before this one: another machine rounds otherwise"


def _announce(run: Session) -> None:
    pictures, plan, say = run.pictures, run.plan, run.display.print
    train, validation, test = (num_rows(s) for s in (pictures.train, pictures.validation, pictures.test))
    accumulated = f" x {plan.accumulation} accumulated" if plan.accumulation > 1 else ""
    classes = len(pictures.source.label_names)
    precision = "float32" if run.recipe.mixed_precision == "no" else run.recipe.mixed_precision
    say(
        f"[bold]{run.recipe.name}[/]: {run.num_parameters:,} parameters, {classes} classes, "
        f"{_count(train)} training, {_count(validation or 0)} validation and {_count(test)} test pictures"
    )
    say(
        f"{plan.total_steps:,} steps of {run.recipe.optimization.batch_size} pictures "
        f"({run.accelerator.num_processes} process x {plan.device_batch_size}{accumulated}), "
        f"{precision}, {run.record['device']}"
    )
    if run.receipt is not None:
        say(f"starts from {escape(str(run.receipt))}")
    if run.step:
        run.display.start_at(run.step)
        say(f"resumed after step {run.step:,} in {escape(str(run.path))}")
        if train is None:
            taken = run.step * run.recipe.optimization.batch_size
            say(f"the stream is read again from its beginning: {taken:,} pictures are passed over first")


def _end_of_a_loader(error: BaseException | None) -> BaseException | None:
    """Return torch's word that a loader process is dead, if that is why the run ended.

    torch's signal handler raises it wherever the run happens to be, and what it interrupts may fail in its turn.
    """
    while error is not None:
        if isinstance(error, ConnectionError | EOFError):  # it died while it handed over a batch
            found = any(frame.f_code.co_name == "_try_get_data" for frame, _ in traceback.walk_tb(error.__traceback__))
        else:
            found = isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
        if found:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # else the handler raises again while we end
            return error
        error = error.__context__
    return None


def _count(number: int | None) -> str:
    return "streamed" if number is None else f"{number:,}"
