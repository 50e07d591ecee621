"""Recipes through transformers.Trainer: the numbers of our own loop, exact resume, checkpoints without pickles."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTImageProcessor

from vit_hf import Recipe, VitHfForImageClassification, VitHfImageProcessor, get_recipe, train
from vit_hf.data import pixel_cache
from vit_hf.data.sources import load_source
from vit_hf.data.transforms import Augmentation
from vit_hf.training.optim import parameter_groups
from vit_hf.training.progress import RunDisplay
from vit_hf.training.recipe import Optimization
from vit_hf.training.state import MANIFEST, DamagedFolderError, describe_files
from vit_hf.training.trainer import VitHfTrainer
from vit_hf.training.trainer_checkpoint import newest_checkpoint, seal
from vit_hf.training.trainer_run import train_with_trainer

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6
PLAIN = {"augmentation.rotation": 0.0, "augmentation.translation": 0.0, "augmentation.scaling": 0.0}
NOISE = {
    "augmentation.mixup_alpha": 0.8,
    "augmentation.cutmix_alpha": 1.0,
    "augmentation.erasing": 0.25,
    "model.drop_path_rate": 0.2,
    "model.hidden_dropout_prob": 0.1,
    "optimization.max_device_batch_size": 16,
    "optimization.ema_decay": 0.9,
}
TOKEN = "hf_thisIsNoRealTokenButLooksLikeOne"


def small(**overrides) -> Recipe:
    """Return a recipe that runs in half a second; "__" stands for the dot."""
    sizes = {
        "data.max_train_images": 96,
        "data.max_test_images": 50,
        "model.num_hidden_layers": 2,
        "model.hidden_size": 32,
        "model.intermediate_size": 64,
        "optimization.max_steps": STEPS,
        "optimization.batch_size": 32,
        "optimization.warmup_steps": 2,
        "trackers": [],
    }
    return get_recipe("digits").override({**sizes, **{key.replace("__", "."): v for key, v in overrides.items()}})


def mean_difference(a: Path, b: Path) -> float:
    first, second = (load_file(path / "model.safetensors") for path in (a, b))
    assert first.keys() == second.keys()
    total = sum((first[name] - second[name]).abs().sum().item() for name in first)
    return total / sum(tensor.numel() for tensor in first.values())


@pytest.fixture
def losses(monkeypatch):
    """The loss of every step, as both loops show it."""
    seen: list[float] = []
    original = RunDisplay.step

    def step(self, **numbers):
        seen.append(numbers["loss"])
        original(self, **numbers)

    monkeypatch.setattr(RunDisplay, "step", step)
    return seen


@pytest.fixture(scope="module")
def digits():
    """Train and test split of the digits, images decoded, with a column that no model wants."""
    source = load_source("digits")
    return {
        name: split.select(range(70)).add_column("file", [f"{name}-{row}" for row in range(70)])
        for name, split in (("train", source.train), ("test", source.test))
    }


def new_model(**changes) -> tuple[VitHfForImageClassification, VitHfImageProcessor]:
    torch.manual_seed(0)
    fields = dict(small().model.config)
    names = {index: str(index) for index in range(10)}
    config = VitHfForImageClassification.config_class(**{**fields, "patch_size": 4, "id2label": names, **changes})
    model = VitHfForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=0.1)  # not zero, so that the first step moves all
    return model, VitHfImageProcessor(size={"height": 16, "width": 16})


def arguments(output: Path, **changes) -> TrainingArguments:
    defaults = {
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 32,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(output_dir=str(output), **{**defaults, **changes})


def trainer_of(digits, output: Path, *, model: dict | None = None, trainer: dict | None = None, **changes):
    network, processor = new_model(**(model or {}))
    return VitHfTrainer(
        network,
        arguments(output, **changes),
        train_dataset=digits["train"],
        eval_dataset=digits["test"],
        processing_class=processor,
        **(trainer or {}),
    )


# ------------------------------------------------------------------------------------------- the same numbers
@pytest.mark.parametrize(
    "changes",
    [
        {**PLAIN, "optimization.max_device_batch_size": 8, "optimization.clip_norm": None},
        {**NOISE, "optimization.optimizer": "sgd"},
        {**PLAIN, "optimization.optimizer": "muon"},
    ],
    ids=["accumulation, EMA", "augmentation, mixing, dropout, accumulation, EMA", "Muon"],
)
def test_the_trainer_run_agrees_with_the_loop_step_by_step(changes, losses, tmp_path):
    recipe = small(keep="last", seed=3, **changes)
    one = train(recipe, output=tmp_path / "loop", quiet=True).results
    by_loop = losses.copy()
    losses.clear()
    two = train_with_trainer(recipe, output=tmp_path / "trainer", quiet=True).results
    assert len(by_loop) == len(losses) == STEPS
    assert len(set(by_loop)) > 2
    assert losses == pytest.approx(by_loop, abs=2e-6)  # float32 sums in another order
    assert mean_difference(tmp_path / "loop", tmp_path / "trainer") < 1e-5
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
    assert two["n"] == one["n"] == 50


def test_the_run_folder_is_a_model_repo_as_the_loop_leaves_it(losses, tmp_path):
    recipe = small(keep="best", **PLAIN)
    one = train(recipe, output=tmp_path / "loop", quiet=True)
    two = train_with_trainer(recipe, output=tmp_path / "trainer", quiet=True)
    assert losses[:STEPS] == pytest.approx(losses[STEPS:], abs=2e-6)
    assert mean_difference(one.output, two.output) < 1e-5
    assert two.results.keys() == one.results.keys()
    assert two.results["validation_top1"] == one.results["validation_top1"]
    left, right = ({path.name for path in folder.iterdir()} for folder in (one.output, two.output))
    assert right == left
    for name in ("config.json", "preprocessor_config.json", "recipe.yaml"):
        assert (one.output / name).read_text() == (two.output / name).read_text()
    rows = [
        [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()] for run in (one, two)
    ]
    for a, b in zip(*rows, strict=True):
        assert (a["epoch"], a["step"], a["top1"]) == (b["epoch"], b["step"], b["top1"])
        for name in ("train_loss", "validation_loss"):  # the latter of the averaged weights
            assert a[name] == pytest.approx(b[name], abs=1e-6)


def test_accumulated_batches_of_mixed_pictures_count_as_one(losses, tmp_path):
    """Soft labels, which the stock Trainer counts as B*L items."""
    for name, largest in (("whole", None), ("parts", 4)):
        changes = {**PLAIN, "augmentation.mixup_alpha": 0.8, "optimization.max_device_batch_size": largest}
        train_with_trainer(small(keep="last", **changes), output=tmp_path / name, quiet=True)
    assert losses[:STEPS] == pytest.approx(losses[STEPS:], abs=2e-6)
    assert mean_difference(tmp_path / "whole", tmp_path / "parts") < 1e-5


def test_the_weights_that_decay_are_those_of_recipes(digits, tmp_path):
    trainer = trainer_of(digits, tmp_path, weight_decay=0.3)
    groups = {group["weight_decay"]: set(map(id, group["params"])) for group in trainer.create_optimizer().param_groups}
    ours = parameter_groups(trainer.model, Optimization(weight_decay=0.3))
    expected = {group["weight_decay"]: set(map(id, group["params"])) for group in ours}
    assert groups == expected
    assert all(groups.values())


def test_epochs_are_passes_over_the_rows(digits, tmp_path):
    """70 rows, 16 a step: 4.375 steps an epoch."""
    trainer = trainer_of(digits, tmp_path, max_steps=-1, num_train_epochs=2.4, eval_strategy="epoch")
    trainer.train()
    evaluated = [(entry["step"], entry["epoch"]) for entry in trainer.state.log_history if "eval_loss" in entry]
    assert evaluated == [
        (5, pytest.approx(5 / 4.375, abs=1e-4)),
        (9, pytest.approx(9 / 4.375, abs=1e-4)),
        (10, pytest.approx(10 / 4.375, abs=1e-4)),
    ]


# ------------------------------------------------------------------------------------------- data
def test_columns_are_found_whatever_remove_unused_columns_says(digits, tmp_path):
    results = []
    for remove in (True, False):
        trainer = trainer_of(digits, tmp_path, remove_unused_columns=remove)
        trainer.train()
        results.append(trainer.model.classifier.weight.detach().clone())
    assert torch.equal(*results)
    start = new_model()[0].classifier.weight
    assert not torch.equal(start, results[0])


def test_a_transform_on_the_data_is_refused_since_it_would_not_be_used(digits, tmp_path):
    moved = {**digits, "train": digits["train"].with_transform(lambda batch: batch)}
    with pytest.raises(ValueError, match=r"has a transform.*with_format\(None\)"):
        trainer_of(moved, tmp_path)


def test_classes_in_another_order_than_the_models_are_refused(digits, tmp_path):
    names = {index: str(9 - index) for index in range(10)}
    with pytest.raises(ValueError, match=r"first: \['0', '1', '2'\] and \['9', '8', '7'\]"):
        trainer_of(digits, tmp_path, model={"id2label": names})


def test_labels_outside_the_models_classes_are_refused(digits, tmp_path):
    numbers = digits["train"].cast_column("label", datasets.Value("int64"))
    with pytest.raises(ValueError, match="row 2 of split train has label 2"):
        trainer_of({**digits, "train": numbers}, tmp_path, model={"id2label": {0: "a", 1: "b"}})


def test_every_row_is_scored_once_in_order_with_a_ragged_last_batch(digits, tmp_path):
    seen = []

    def record(prediction):
        seen.append(prediction)
        return {"first_class": float((prediction.predictions.argmax(axis=1) == 0).mean())}

    trainer = trainer_of(digits, tmp_path, per_device_eval_batch_size=32, trainer={"compute_metrics": record})
    metrics = trainer.evaluate()
    assert seen[0].label_ids.tolist() == digits["test"]["label"]
    loss = F.cross_entropy(torch.tensor(seen[0].predictions).double(), torch.tensor(digits["test"]["label"]))
    assert metrics["eval_loss"] == pytest.approx(loss.item(), abs=1e-9)
    assert {"eval_top1", "eval_top5", "eval_first_class"} < metrics.keys()
    predicted = trainer.predict(digits["test"])
    assert (predicted.predictions == seen[0].predictions).all()
    assert predicted.metrics["test_loss"] == metrics["eval_loss"]


@pytest.mark.parametrize("remove", [True, False])
def test_the_stock_trainer_trains_the_model_too_and_soft_labels_leave_the_problem_type(remove, tmp_path):
    model, _ = new_model()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(12, 3, 16, 16, generator=generator)
    soft = torch.rand(12, 10, generator=generator).softmax(dim=1)
    for labels in (torch.arange(12) % 10, soft):
        rows = [{"pixel_values": p, "labels": label} for p, label in zip(pixels, labels, strict=True)]
        args = arguments(tmp_path, remove_unused_columns=remove, max_steps=2, per_device_train_batch_size=4)
        before = model.classifier.weight.detach().clone()
        Trainer(model, args, train_dataset=rows).train()
        assert not torch.equal(before, model.classifier.weight)
        assert model.config.problem_type is None


# ------------------------------------------------------------------------------------------- resume
@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """One uninterrupted run with all randomness on, and a checkpoint of every step."""
    recipe = small(keep="last", checkpoint_steps=1, checkpoint_limit=STEPS, **NOISE)
    return train_with_trainer(recipe, output=tmp_path_factory.mktemp("noisy") / "run", quiet=True).output


@pytest.mark.parametrize("step", [2, 5])
def test_a_resumed_run_ends_with_the_very_same_bits(step, noisy, losses, tmp_path):
    recipe = interrupted(noisy, tmp_path / "run", after=step)
    torch.rand(step)  # whatever was drawn before does not matter
    again = train_with_trainer(recipe, output=tmp_path / "run", resume="auto", quiet=True).output
    assert len(losses) == STEPS - step
    last = f"checkpoints/checkpoint-{STEPS}"
    for name in ("model.safetensors", f"{last}/model.safetensors", f"{last}/average.safetensors"):
        assert (again / name).read_bytes() == (noisy / name).read_bytes(), name
    left, right = (load_file(run / last / "optimizer.safetensors") for run in (again, noisy))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (again / last / "training_state.json").read_text() == (noisy / last / "training_state.json").read_text()


def interrupted(noisy, folder, *, after: int) -> Recipe:
    """Copy a run as it was after a step; returns its recipe."""
    shutil.copytree(noisy, folder)
    for name in ("model.safetensors", "results.json"):  # written at the end
        (folder / name).unlink()
    for later in range(after + 1, STEPS + 1):
        shutil.rmtree(folder / "checkpoints" / f"checkpoint-{later}")
    return Recipe.from_yaml(folder / "recipe.yaml")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimization.learning_rate": 0.5}, r"optimization.learning_rate was [\d.e-]+ and is 0.5"),
        ({"augmentation.rotation": 90.0}, r"augmentation.rotation was 10.0 and is 90.0"),
        ({"seed": 5}, r"seed was 0 and is 5"),
        ({"data.max_train_images": 90}, r"n of train was 96 and is 90"),
    ],
    ids=["rate", "augmentation", "seed", "data"],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_resume_with_another_recipe_or_data_is_refused_and_changes_no_file(
    changes, message, finished, noisy, tmp_path
):
    recipe = interrupted(noisy, tmp_path / "run", after=STEPS if finished else 3)
    if finished:
        shutil.copy(noisy / "results.json", tmp_path / "run")
    before = contents(tmp_path / "run")
    for how in ({"output": tmp_path / "run", "resume": "auto"}, {"resume": tmp_path / "run"}):
        with pytest.raises(ValueError, match=message):
            train_with_trainer(recipe.override(changes), quiet=True, **how)
        assert contents(tmp_path / "run") == before


def test_a_resumed_run_keeps_the_record_of_its_first_session(noisy, tmp_path):
    recipe = interrupted(noisy, tmp_path / "run", after=3)
    state = tmp_path / "run" / "checkpoints" / "checkpoint-3" / "trainer_state.json"
    known = json.loads(state.read_text())
    known["stateful_callbacks"]["_Costs"]["attributes"]["seconds"] = 1000.0
    state.write_text(json.dumps(known))
    seal(state.parent)
    first = json.loads((noisy / "run.json").read_text())
    found = train_with_trainer(recipe.override({"workers": 1}), resume=tmp_path / "run", quiet=True)
    record = json.loads((found.output / "run.json").read_text())
    assert {name: record[name] for name in first} == first
    assert [session["step"] for session in record["resumed"]] == [3]
    assert record["resumed"][0]["started"] >= first["started"]
    assert 1000.0 < found.results["seconds"] < 1100.0  # both sessions
    assert found.results["resumed"] == record["resumed"]
    before = contents(found.output)
    again = train_with_trainer(recipe, resume=tmp_path / "run", quiet=True)
    assert (again.was_finished, again.results) == (True, json.loads((found.output / "results.json").read_text()))
    assert contents(found.output) == before


def test_what_is_no_run_is_not_gone_on_in(noisy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("my: notes")
    Path("mine").mkdir()
    recipe = Recipe.from_yaml(noisy / "recipe.yaml")
    for resume, message in (
        ("runs/gone", r"no folder .*runs/gone to resume from; expected a run folder, or one of its checkpoints"),
        ("mine", r"mine has no checkpoints/checkpoint-N to resume from"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            train_with_trainer(recipe, resume=resume, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "mine"}


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from(noisy, tmp_path):
    recipe = interrupted(noisy, tmp_path / "run", after=3)
    state = tmp_path / "run" / "checkpoints" / "checkpoint-3" / "trainer_state.json"
    known = json.loads(state.read_text())
    del known["stateful_callbacks"]["_Costs"]  # it kept neither time nor energy
    state.write_text(json.dumps(known))
    seal(state.parent)
    found = train_with_trainer(recipe, resume=tmp_path / "run", quiet=True)
    assert (found.output / "model.safetensors").read_bytes() == (noisy / "model.safetensors").read_bytes()
    assert found.results["energy_kwh"] is None


def test_the_time_of_an_evaluation_before_a_checkpoint_counts(tmp_path, monkeypatch):
    measure = VitHfTrainer.measure

    def slow(self, *args):
        time.sleep(0.3)
        return measure(self, *args)

    monkeypatch.setattr(VitHfTrainer, "measure", slow)
    run = train_with_trainer(small(keep="last"), output=tmp_path / "run", quiet=True).output
    rows = len((run / "metrics.jsonl").read_text().splitlines())
    state = json.loads((run / "checkpoints" / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["_Costs"]["attributes"]["seconds"] > 0.3 * rows


def test_a_named_checkpoint_that_cannot_be_gone_on_from_is_refused_with_the_reason(noisy, tmp_path):
    recipe = interrupted(noisy, tmp_path / "run", after=3)
    folder = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    files = describe_files(folder)
    del files["training_state.json"]  # as a kill leaves it between model and state
    (folder / MANIFEST).write_text(json.dumps(files))
    with pytest.raises(DamagedFolderError, match=r"checkpoint-3 is half-written, or without what a run goes on from"):
        train_with_trainer(recipe, resume=folder, quiet=True)
    other = folder.rename(folder.parent / "step-00000003")
    with pytest.raises(ValueError, match=r"is a run of `vit-hf train`"):
        train_with_trainer(recipe, resume=other, quiet=True)
    bare = Path(shutil.copytree(noisy / "checkpoints", tmp_path / "bare" / "checkpoints")) / "checkpoint-2"
    with pytest.raises(FileNotFoundError, match=r"bare has no recipe.yaml, which says what run it is"):
        train_with_trainer(recipe, resume=bare, quiet=True)


def test_neither_loop_begins_anew_in_a_run_of_the_other(noisy, tmp_path):
    recipe = interrupted(noisy, tmp_path / "run", after=3)
    with pytest.raises(ValueError, match=r"is a run of the Trainer; go on with it by scripts/finetune_trainer.py"):
        train(recipe, output=tmp_path / "run", resume="auto", quiet=True)
    (tmp_path / "run" / "checkpoints" / "checkpoint-3").rename(tmp_path / "run" / "checkpoints" / "step-00000003")
    for left in (1, 2):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"checkpoint-{left}")
    with pytest.raises(ValueError, match=r"is a run of `vit-hf train`; go on with it by that"):
        train_with_trainer(recipe, output=tmp_path / "run", resume="auto", quiet=True)


def test_the_randomness_in_that_run_matters(noisy, tmp_path):
    recipe = Recipe.from_yaml(noisy / "recipe.yaml").override({"checkpoint_steps": None})
    still = recipe.override({"model.hidden_dropout_prob": 0.0})
    other = train_with_trainer(still, output=tmp_path / "still", quiet=True).output
    assert mean_difference(other, noisy) > 1e-6


def test_a_user_with_own_arguments_resumes_exactly_too(digits, tmp_path):
    options = {
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 4,
        "weight_decay": 0.1,
        "dataloader_num_workers": 0,
    }
    build = {"model": {"hidden_dropout_prob": 0.3}, "trainer": {"augmentation": Augmentation(flip=True)}}
    whole = trainer_of(digits, tmp_path / "run", **build, **options)
    whole.train()
    again = trainer_of(digits, tmp_path / "other", **build, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_a_checkpoint_that_a_crash_left_half_written_is_passed_over(noisy, tmp_path, caplog):
    shutil.copytree(noisy / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / f"checkpoint-{STEPS}" / MANIFEST).unlink()
    assert newest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / f"checkpoint-{STEPS - 1}"
    assert f"checkpoint-{STEPS} is half-written" in caplog.text


def test_where_all_checkpoints_are_damaged_nothing_is_begun_again(noisy, tmp_path):
    shutil.copytree(noisy / "checkpoints" / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "optimizer.safetensors").unlink()
    with pytest.raises(DamagedFolderError, match=r"optimizer.safetensors is missing.*no other checkpoint"):
        newest_checkpoint(tmp_path)


def test_a_changed_byte_or_a_missing_tensor_stops_the_resume_and_is_named(noisy, tmp_path):
    recipe = Recipe.from_yaml(noisy / "recipe.yaml")
    for name in ("recipe.yaml", "run.json"):
        shutil.copy(noisy / name, tmp_path)
    for name in ("model.safetensors", "optimizer.safetensors", "average.safetensors"):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        folder = Path(
            shutil.copytree(noisy / "checkpoints" / "checkpoint-2", tmp_path / "checkpoints" / "checkpoint-2")
        )
        data = bytearray((folder / name).read_bytes())
        data[-5] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(DamagedFolderError, match=f"{name} has another SHA-256"):
            train_with_trainer(recipe, resume=folder, quiet=True)
        shutil.copy(noisy / "checkpoints" / "checkpoint-2" / name, folder)
        tensors = load_file(folder / name)
        lost = sorted(tensors)[3]
        save_file({key: tensor for key, tensor in tensors.items() if key != lost}, folder / name)
        seal(folder)  # a whole folder, but not of this model
        with pytest.raises(ValueError, match=re.escape(lost)):
            train_with_trainer(recipe, resume=folder, quiet=True)


def test_another_seed_batch_size_or_data_is_refused_with_the_differences(digits, tmp_path):
    trainer_of(digits, tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    other = trainer_of(
        {**digits, "train": digits["train"].select(range(64))}, tmp_path, seed=1, per_device_train_batch_size=8
    )
    with pytest.raises(ValueError, match=r"seed was 42 and is 1; .*batch size was 16 and is 8; training rows was 70"):
        other.train(resume_from_checkpoint=True)


# ------------------------------------------------------------------------------------------- the best weights
@pytest.mark.parametrize("average", [False, True], ids=["weights", "averaged weights"])
def test_the_best_model_is_restored_in_every_tensor(average, digits, tmp_path, monkeypatch):
    values = iter([0.1, 0.9, 0.5, 0.4])
    recipe = small(optimization__max_steps=4, optimization__batch_size=16, optimization__ema_decay=0.5)
    trainer = trainer_of(
        digits,
        tmp_path,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="chosen",
        greater_is_better=True,
        save_total_limit=1,
        trainer={
            "compute_metrics": lambda _: {"chosen": next(values)},
            "optimization": recipe.optimization if average else None,
        },
    )
    trainer.train()
    best = tmp_path / "checkpoint-2"
    assert trainer.state.best_model_checkpoint == str(best)
    saved = load_file(best / ("average.safetensors" if average else "model.safetensors"))
    assert saved.keys() == trainer.model.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in trainer.model.state_dict().items())
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_best_checkpoint_that_lost_a_tensor_is_an_error(digits, tmp_path):
    values = iter([0.9, 0.1])
    options = {"load_best_model_at_end": True, "metric_for_best_model": "chosen", "greater_is_better": True}

    def chosen(_):
        value = next(values)
        if value < 0.9:
            folder = tmp_path / "checkpoint-1"
            tensors = load_file(folder / "model.safetensors")
            tensors.pop("classifier.bias")
            save_file(tensors, folder / "model.safetensors")
            seal(folder)
        return {"chosen": value}

    every = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 2}
    trainer = trainer_of(digits, tmp_path, trainer={"compute_metrics": chosen}, **every, **options)
    with pytest.raises(DamagedFolderError, match=r"classifier\.bias is missing"):
        trainer.train()


# ------------------------------------------------------------------------------------------- safety
def test_no_token_and_no_pickle_lies_in_any_file(tmp_path, digits, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    train_with_trainer(small(keep="best", trackers=["tensorboard"]), output=tmp_path / "recipe", quiet=True)
    options = {"hub_token": TOKEN, "report_to": "tensorboard", "save_strategy": "steps", "save_steps": 2}
    trainer = trainer_of(digits, tmp_path / "user", **options)
    trainer.train()
    trainer.save_model()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    suffixes = Counter(path.suffix for path in files)
    assert suffixes[".safetensors"] >= 6
    assert not suffixes.keys() & {".bin", ".pt", ".pth", ".pkl", ".pickle"}
    for path in files:
        data = path.read_bytes()
        assert TOKEN.encode() not in data, path
        assert not data.startswith((b"\x80\x02", b"\x80\x04", b"PK")), path
    assert any("tensorboard" in path.parts for path in files)
    assert any("tfevents" in path.name for path in files)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_batch(digits, tmp_path):
    trainer = trainer_of(digits, tmp_path, learning_rate=1e30, optim="sgd", max_grad_norm=0.0)
    with pytest.raises(
        FloatingPointError, match=r"the loss is (nan|inf) at step \d, process 0, training rows \d+, \d+"
    ):
        trainer.train()
    assert all(torch.isfinite(tensor).all() for tensor in trainer.model.state_dict().values())


def test_a_gradient_that_is_not_finite_stops_before_the_step_without_clipping_too(digits, tmp_path):
    for norm in (0.0, None, 1.0):
        trainer = trainer_of(digits, tmp_path, max_grad_norm=norm)
        trainer.model.classifier.weight.register_hook(lambda gradient: gradient * float("nan"))
        with pytest.raises(FloatingPointError, match=r"the gradient is not finite at step 1"):
            trainer.train()
        assert all(torch.isfinite(tensor).all() for tensor in trainer.model.state_dict().values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"push_to_hub": True}, "use vit_hf.VitHfTrainer"),
        ({"bf16_full_eval": True}, "bf16_full_eval"),
        ({"include_for_metrics": ["inputs"]}, "include_for_metrics"),
        ({"batch_eval_metrics": True}, "batch_eval_metrics"),
    ],
)
def test_arguments_that_this_trainer_does_not_serve_are_refused(options, message, digits, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_of(digits, tmp_path, **options)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_a_model_that_learns_otherwise_is_refused(kind, digits, tmp_path):
    with pytest.raises(ValueError, match=rf"problem_type is '{kind}'; expected one class a picture"):
        trainer_of(digits, tmp_path, model={"problem_type": kind})


def test_models_and_processors_of_others_are_refused_at_once(digits, tmp_path):
    network, processor = new_model()
    args = arguments(tmp_path)
    for other in (network.vit, torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=rf"model is {type(other).__name__}; expected a VitHfForImageClassif"):
            VitHfTrainer(other, args, train_dataset=digits["train"], processing_class=processor)
    for other in (None, ViTImageProcessor()):
        with pytest.raises(TypeError, match=r"processing_class is .*; expected the model's VitHfImageProcessor"):
            VitHfTrainer(network, args, train_dataset=digits["train"], processing_class=other)
    network.peft_config = {}  # as PEFT marks a model with adapters
    with pytest.raises(TypeError, match=r"model is one with adapters; .*use transformers.Trainer"):
        VitHfTrainer(network, args, train_dataset=digits["train"], processing_class=processor)


def test_a_whole_data_set_or_an_empty_split_is_refused_with_the_way_out(digits, tmp_path):
    network, processor = new_model()
    for data, error, message in (
        (
            datasets.DatasetDict(digits),
            TypeError,
            r'is a DatasetDict; .*; give one of its splits, such as data\["train"\]',
        ),
        ({}, TypeError, r"is a dict; expected a Dataset"),
        (digits["train"].select([]), ValueError, r"the train data has no rows; .*give another split"),
    ):
        with pytest.raises(error, match=message):
            VitHfTrainer(network, arguments(tmp_path), train_dataset=data, processing_class=processor)


# ------------------------------------------------------------------------------------------- labels
def renamed(digits, names, kind) -> dict:
    """The digits with labels of another type: the names of their classes."""

    def rename(split):
        values = [names[label] for label in split["label"]]
        return split.remove_columns("label").add_column("label", values, feature=datasets.Value(kind))

    return {name: rename(split) for name, split in digits.items()}


@pytest.mark.parametrize(
    ("classes", "values", "kind"),
    [
        ([str(number) for number in range(1, 11)], list(range(1, 11)), "int64"),
        ([str(number) for number in range(1, 11)], list(range(1, 11)), "uint8"),
        (list("abcdefghij"), list("abcdefghij"), "string"),
        (list("abcdefghij"), list(range(10)), "int32"),
        ([str(number) for number in range(10)], list(range(10)), "int64"),
    ],
    ids=["numbered from 1", "in bytes", "text", "indices", "numbered from 0"],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_labels_without_names_mean_the_class_of_that_name(classes, values, kind, streamed, digits, tmp_path):
    data = renamed(digits, values, kind)
    if streamed:
        data = {name: split.to_iterable_dataset() for name, split in data.items()}
    trainer = trainer_of(data, tmp_path, model={"id2label": dict(enumerate(classes))})
    assert trainer.predict(data["test"]).label_ids.tolist() == digits["test"]["label"]


@pytest.mark.parametrize("names", [["True", "False"], ["False", "True"], ["cat", "dog"]])
def test_truths_mean_the_class_of_that_name_or_the_index(names, digits, tmp_path):
    values = [label > 4 for label in digits["test"]["label"]]
    data = digits["test"].remove_columns("label").add_column("label", values)
    network, processor = new_model(id2label=dict(enumerate(names)))
    trainer = VitHfTrainer(network, arguments(tmp_path), eval_dataset=data, processing_class=processor)
    expected = [names.index(str(value)) if "True" in names else int(value) for value in values]
    assert trainer.predict(data).label_ids.tolist() == expected


def test_a_label_that_is_no_class_of_the_model_is_named_with_its_row(digits, tmp_path):
    data = renamed(digits, list(range(1, 11)), "int64")
    classes = {index: str(index + 1) for index in range(9)}  # no 10
    row = digits["train"]["label"].index(9)
    with pytest.raises(ValueError, match=rf"row {row} of split train has label 10 .*one of the model's 9 classes"):
        trainer_of(data, tmp_path, model={"id2label": classes})
    streamed = {name: split.to_iterable_dataset() for name, split in data.items()}
    trainer = trainer_of(streamed, tmp_path, model={"id2label": classes})
    with pytest.raises(ValueError, match=r"label 10 in column 'label'; expected the name of one of"):
        trainer.train()


@pytest.mark.parametrize("left", ["no column", "minus one", "nothing"])
def test_pictures_without_labels_are_predicted_too(left, digits, tmp_path):
    trainer = trainer_of(digits, tmp_path)
    expected = trainer.predict(digits["test"])
    bare = digits["test"].remove_columns("label")
    if left == "minus one":
        bare = bare.add_column("label", [-1] * len(bare), feature=digits["test"].features["label"])
    elif left == "nothing":
        bare = bare.add_column("label", [None] * len(bare), feature=datasets.Value("int64"))
    named = trainer_of(digits, tmp_path, trainer={"label_column": "label"})
    assert named.predict(bare).label_ids is None
    found = trainer.predict(bare)
    assert found.predictions.tolist() == expected.predictions.tolist()
    assert found.label_ids is None
    assert not {"test_loss", "test_top1"} & set(found.metrics)
    assert "test_loss" in expected.metrics
    with pytest.raises(ValueError, match="label"):
        trainer.evaluate(bare)


# ------------------------------------------------------------------------------------------- what others expect
def test_callbacks_hear_of_every_batch_that_is_scored(digits, tmp_path):
    class Hears(TrainerCallback):
        seen = 0

        def on_prediction_step(self, args, state, control, eval_dataloader=None, **_):
            self.seen += 1
            self.length = len(eval_dataloader)

    hears = Hears()
    trainer = trainer_of(digits, tmp_path, trainer={"callbacks": [hears]})
    trainer.evaluate()
    assert hears.seen == hears.length == 3  # of 32, 32 and 6


class TwoPoints(torch.optim.SGD):
    """As schedule-free optimisers are: what is scored and saved is another point than the one that is trained."""

    away = True

    def _move(self, by: float) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(by)

    def train(self):
        if not self.away:
            self._move(1.0)
        self.away = True

    def eval(self):
        if self.away:
            self._move(-1.0)
        self.away = False


def test_schedule_free_optimisers_are_scored_and_saved_at_their_averaged_point(digits, tmp_path, monkeypatch):
    def finished(optimizer, output, **changes):
        network, processor = new_model()
        made = optimizer(network.parameters(), lr=0.0)
        schedule = torch.optim.lr_scheduler.ConstantLR(made, 1.0)
        trainer = VitHfTrainer(
            network,
            arguments(output, **changes),
            train_dataset=digits["train"],
            eval_dataset=digits["test"],
            processing_class=processor,
            optimizers=(made, schedule),
        )
        trainer.train()
        return trainer

    start = new_model()[0].state_dict()
    trainer = finished(TwoPoints, tmp_path / "a")
    trainer.save_model(str(tmp_path / "saved"))
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, tensor in start.items():
        torch.testing.assert_close(saved[name], tensor - 1.0)
    again = finished(
        TwoPoints, tmp_path / "b", eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=4
    )
    with monkeypatch.context() as patched:  # of several processes those that do not write are at the same point, too
        patched.setattr(TrainingArguments, "should_save", False)
        other = finished(TwoPoints, tmp_path / "c")
        assert other.optimizer.optimizer.away
        other.save_model(str(tmp_path / "nothing"))
        assert not other.optimizer.optimizer.away
    kept = load_file(tmp_path / "b" / "checkpoint-4" / "model.safetensors")
    for name, tensor in start.items():  # away and back, four times
        torch.testing.assert_close(kept[name], tensor - 1.0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.evaluate()["eval_loss"], trainer.evaluate()["eval_loss"], atol=1e-4, rtol=1e-4)


def test_an_interrupted_run_with_averaged_weights_saves_what_it_scores(digits, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                raise KeyboardInterrupt

    optimization = Optimization(ema_decay=0.5, max_steps=4, batch_size=16, warmup_steps=0, learning_rate=0.01)
    options = {"optimization": optimization, "callbacks": [Stop()]}
    trainer = trainer_of(digits, tmp_path, trainer=options)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    scored = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(tmp_path / "saved"))
    again = VitHfForImageClassification.from_pretrained(tmp_path / "saved")
    other = VitHfTrainer(again, arguments(tmp_path / "other"), processing_class=trainer.processing_class)
    assert other.evaluate(digits["test"])["eval_loss"] == pytest.approx(scored, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "masked_image_modeling"}, "masked_image_modeling"),
        ({"data.validation_fraction": 0.0, "keep": "best"}, "no pictures are held out"),
        pytest.param(
            {"mixed_precision": "fp16"},
            "needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU"),
        ),
    ],
    ids=["masked image modeling", "nothing to choose by", "fp16 on a CPU"],
)
def test_a_recipe_that_cannot_be_run_is_refused_before_a_file_is_written(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_with_trainer(small(**{"keep": "last", **changes}), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- the script
def test_the_script_trains_resumes_and_says_the_score(tmp_path, monkeypatch, capsys):
    (tmp_path / "recipe.yaml").write_text(small().to_yaml())
    words = [str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run"), "--max-steps", "4"]
    monkeypatch.setattr(sys, "argv", ["finetune_trainer.py", *words])
    runpy.run_path(str(ROOT / "scripts" / "finetune_trainer.py"), run_name="__main__")
    monkeypatch.setattr(sys, "argv", ["finetune_trainer.py", *words, "--resume", "auto"])
    runpy.run_path(str(ROOT / "scripts" / "finetune_trainer.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert re.search(r"test: top-1 \d+\.\d\d% on 50 pictures \(test\)", printed)
    assert "top-1 %" in printed
    assert "is finished" in printed
    monkeypatch.setattr(sys, "argv", ["finetune_trainer.py", *words, "--resume", "auto", "--seed", "5"])
    with pytest.raises(SystemExit, match=r"^finetune_trainer.py: error: .*run belongs to another run: seed was 0"):
        runpy.run_path(str(ROOT / "scripts" / "finetune_trainer.py"), run_name="__main__")


@pytest.mark.slow
def test_two_processes_agree_with_one_and_score_each_picture_once(tmp_path):
    drawn_by_process = {"model.hidden_dropout_prob": 0.0, "model.drop_path_rate": 0.0}
    recipe = small(keep="last", **{**NOISE, **drawn_by_process})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    one = train_with_trainer(recipe, output=tmp_path / "one", quiet=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(ROOT / "scripts" / "finetune_trainer.py"), str(tmp_path / "recipe.yaml")]
    command += ["--output", str(tmp_path / "two")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["processes"] == 2
    assert two["n"] == one.results["n"] == 50
    assert mean_difference(tmp_path / "one", tmp_path / "two") < 1e-5


# ------------------------------------------------------------------------------------------- the input
def test_pixels_are_looked_for_once_however_often_a_split_is_evaluated(digits, tmp_path, monkeypatch):
    looked = []
    original = pixel_cache._find_or_make
    monkeypatch.setattr(pixel_cache, "_find_or_make", lambda *given: looked.append(1) or original(*given))
    trainer = trainer_of(digits, tmp_path)
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"]
    assert len(looked) == 1
    trainer.evaluate(digits["train"])
    assert len(looked) == 2


def test_training_batches_are_prepared_and_counted_as_the_stock_trainer_counts(digits, tmp_path):
    trainer = trainer_of(digits, tmp_path, trainer={"augmentation": Augmentation(flip=True, randaugment_ops=2)})
    batch = next(iter(trainer.get_train_dataloader()))
    assert "pixel_values" not in batch
    prepared = trainer._prepare_inputs(batch)
    assert prepared["pixel_values"].shape == (16, 3, 16, 16)
    assert prepared["pixel_values"].dtype == torch.float32
    assert trainer.floating_point_ops(batch) == Trainer.floating_point_ops(trainer, prepared) > 0
    ready = {"pixel_values": torch.zeros(2, 3, 16, 16), "labels": torch.zeros(2, dtype=torch.int64)}
    assert torch.equal(trainer._prepare_inputs(ready)["pixel_values"], ready["pixel_values"])
