"""The loop end to end, on a small net and the bundled digits: what it leaves, what it promises, how it fails."""

import hashlib
import importlib.metadata
import io
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from vit_hf import Recipe, VitHfForImageClassification, VitHfImageProcessor, get_recipe, train
from vit_hf.data import loading
from vit_hf.data.images import read_image
from vit_hf.data.pictures import open_pictures
from vit_hf.data.sources import load_source, progress_bars_on_terminals_only
from vit_hf.evaluation.analysis import analyse
from vit_hf.evaluation.predictions import read_predictions
from vit_hf.evaluation.run import evaluate
from vit_hf.training import checkpoint, loop, session
from vit_hf.training.checkpoint import STATE, read_weights, step_folder
from vit_hf.training.interruption import TrainingInterrupted
from vit_hf.training.setup import build_model
from vit_hf.training.state import MANIFEST, describe_files
from vit_hf.variants import variant

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "data.source": "digits",
    "data.max_train_images": 96,
    "data.max_test_images": 50,
    "model.num_hidden_layers": 2,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "optimization.max_steps": 6,
    "optimization.batch_size": 32,
    "optimization.warmup_steps": 2,
    "evaluate_every": 1.0,
    "trackers": [],
}


def small(**overrides) -> Recipe:
    """Return a recipe that runs in half a second; "__" stands for the dot."""
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return get_recipe("digits").override({**SMALL, **changes})


def weights(folder: Path) -> str:
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run with everything on: EMA, mixing, erasing, dropout, drop path, TensorBoard."""
    recipe = small(
        trackers=["tensorboard"],
        optimization__ema_decay=0.9,
        augmentation__mixup_alpha=0.8,
        augmentation__cutmix_alpha=1.0,
        augmentation__erasing=0.25,
        augmentation__flip=True,
        augmentation__randaugment_ops=1,
        model__drop_path_rate=0.2,
        model__hidden_dropout_prob=0.1,
        keep="best",
    )
    return train(recipe, output=tmp_path_factory.mktemp("run") / "model", quiet=True)


# ------------------------------------------------------------------------------------------- what it leaves
def test_the_run_folder_is_a_model_repo_with_its_records(run):
    names = {path.name for path in run.output.iterdir()}
    model = {"config.json", "model.safetensors", "preprocessor_config.json", "manifest.json"}
    code = {
        "configuration_vit_hf.py",
        "files_vit_hf.py",
        "inference_vit_hf.py",
        "masked_vit_hf.py",
        "modeling_vit_hf.py",
        "image_processing_vit_hf.py",
    }
    records = {"recipe.yaml", "run.json", "results.json", "metrics.jsonl", "tensorboard", "checkpoints"}
    records |= {"learning_curves.png", "predictions.parquet"}
    assert names == model | code | records
    assert any((run.output / "tensorboard").rglob("events.out.tfevents.*"))
    assert Recipe.from_yaml(run.output / "recipe.yaml").seed == 0


def test_without_an_output_all_files_lie_in_the_numbered_run_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "digits-2"):
        assert train(small(trackers=["tensorboard"]), quiet=True).output.name == name
        assert any((tmp_path / "runs" / name / "tensorboard" / "digits").glob("events.out.tfevents.*"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_no_pickle_and_no_temporary_file_is_left(run):
    files = [path for path in run.output.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".npy"}]
    assert not [path for path in files if ".writing-" in str(path)]


def test_results_name_data_versions_and_scores(run):
    results = json.loads((run.output / "results.json").read_text())
    assert results == json.loads(json.dumps(run.results))
    assert results["n"] == 50
    assert 0 <= results["top1"] <= results["top5"] <= 1
    assert results["versions"]["torch"] == importlib.metadata.version("torch")
    assert len(results["data"]["splits"]["train"]["sha256"]) == 64


def test_the_predictions_are_those_of_the_final_test_and_give_its_numbers(run):
    predictions = read_predictions(run.output / "predictions.parquet")
    scores, split = predictions.scores, run.results["data"]["splits"]["test"]
    assert (predictions.data, predictions.split, predictions.sha256) == ("digits", "test", split["sha256"])
    assert predictions.label_names == tuple(map(str, range(10)))
    again = {**scores.measure(), **analyse(scores, [str(digit) for digit in range(10)])}
    assert {name: run.results[name] for name in again} == again
    assert scores.labels.tolist() == open_pictures(Recipe.from_yaml(run.output / "recipe.yaml").data).test["label"]
    with torch.no_grad():
        logits = VitHfForImageClassification.from_pretrained(run.output)(_pixels(run.output)).logits
    torch.testing.assert_close(scores.logits[:8], logits, atol=1e-5, rtol=0)  # a batch of another size


def test_metrics_hold_one_row_an_evaluation_and_the_kept_weights_are_the_best_row(run):
    rows = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6]
    assert all(row["images_per_second"] > 0 and 0 < row["input_share"] < 1 for row in rows)
    assert max(row["top1"] for row in rows) == run.results["validation_top1"]


def test_training_never_changes_what_the_model_is(run):
    config = json.loads((run.output / "config.json").read_text())
    assert config.get("problem_type") is None
    assert config["id2label"] == {str(i): str(i) for i in range(10)}
    assert config["architectures"] == ["VitHfForImageClassification"]


def test_keys_on_disk_are_the_keys_of_the_module(run):
    saved = load_file(run.output / "model.safetensors")
    model = VitHfForImageClassification.from_pretrained(run.output)
    assert set(saved) == set(model.state_dict())
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())


def test_evaluate_repeats_the_score_of_the_run(run, tmp_path):
    full = train(small(data__max_test_images=None, keep="last"), output=tmp_path / "full", quiet=True)
    again = evaluate(full.output, output=tmp_path / "score")
    assert again is not None
    assert {key: again[key] for key in ("top1", "top5", "n")} == {k: full.results[k] for k in ("top1", "top5", "n")}
    assert again["loss"] == pytest.approx(full.results["loss"], abs=1e-6)  # other batch size, other order of sums
    assert json.loads((tmp_path / "score" / "results.json").read_text()) == again
    found = [read_predictions(folder / "predictions.parquet") for folder in (full.output, tmp_path / "score")]
    assert replace(found[0], scores=None) == replace(found[1], scores=None)
    scores = [predictions.scores for predictions in found]
    assert torch.equal(scores[0].labels, scores[1].labels)
    torch.testing.assert_close(scores[0].logits, scores[1].logits, atol=1e-5, rtol=0)
    assert again["per_class"] == full.results["per_class"]


# ------------------------------------------------------------------------------------------- loading what it left
def _pixels(folder: Path) -> torch.Tensor:
    rows = open_pictures(Recipe.from_yaml(folder / "recipe.yaml").data).test.select(range(8))
    pictures = [read_image(row["image"], where="a test picture").convert("RGB") for row in rows]
    return VitHfImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]


def test_with_vit_hf_imported_no_flag_is_needed(run):
    pixels = _pixels(run.output)
    with torch.no_grad():
        expected = VitHfForImageClassification.from_pretrained(run.output)(pixels).logits
        model = AutoModelForImageClassification.from_pretrained(run.output)
        assert torch.equal(model(pixels).logits, expected)
    assert isinstance(AutoImageProcessor.from_pretrained(run.output), VitHfImageProcessor)
    row = open_pictures(Recipe.from_yaml(run.output / "recipe.yaml").data).test[0]
    picture = read_image(row["image"], where="").convert("RGB")
    answer = pipeline("image-classification", model=str(run.output), device="cpu")(picture, top_k=10)
    probabilities = expected[0].softmax(-1)
    assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(
        {str(i): p.item() for i, p in enumerate(probabilities)}, abs=1e-6
    )


WITHOUT_PACKAGE = """
import PIL.Image, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from safetensors.torch import save_file
folder, picture, out = sys.argv[1:]
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    logits = model(**processor(PIL.Image.open(picture), return_tensors="pt")).logits
answer = pipeline("image-classification", model=folder, trust_remote_code=True, device="cpu")(picture, top_k=10)
scores = torch.zeros(10)
for entry in answer:
    scores[int(entry["label"])] = entry["score"]
save_file({"logits": logits, "scores": scores}, out)
"""


def test_a_process_without_the_package_gets_the_same_logits_bit_for_bit(run, tmp_path, run_without_package):
    picture = tmp_path / "digit.png"
    read_image(load_source("digits").test[3]["image"], where="").save(picture)
    run_without_package(WITHOUT_PACKAGE, tmp_path, run.output, picture, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    model = VitHfForImageClassification.from_pretrained(run.output)
    processor = VitHfImageProcessor.from_pretrained(run.output)
    with torch.no_grad():
        expected = model(**processor(read_image(picture, where=""), return_tensors="pt")).logits
    assert torch.equal(found["logits"], expected)
    torch.testing.assert_close(found["scores"], expected[0].softmax(-1), atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------- what it promises
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path):
    noise = {"model__drop_path_rate": 0.3, "augmentation__mixup_alpha": 0.5, "keep": "last"}
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        torch.rand(7)  # whatever happened before does not matter
        train(small(seed=seed, **noise), output=folder, quiet=True)
    assert weights(folders[0]) == weights(folders[1]) != weights(folders[2])


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory):
    """A folder of digits, every fifth one a row taller: their pixels are not cached."""
    folder, splits = tmp_path_factory.mktemp("data") / "digits", {}
    for name, split in load_source("digits").splits.items():
        images = []
        for row, image in enumerate(split["image"]):
            buffer = io.BytesIO()
            read_image(image, where=name).crop((0, 0, 8, 8 + (row % 5 == 0))).save(buffer, format="PNG")
            images.append({"bytes": buffer.getvalue(), "path": None})
        splits[name] = Dataset.from_dict({"image": images, "label": list(split["label"])}, features=split.features)
    with progress_bars_on_terminals_only():
        DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def test_loader_workers_do_not_change_the_weights(tmp_path, two_sizes):
    for workers in (0, 2):
        train(small(workers=workers, keep="last", data__source=two_sizes), output=tmp_path / str(workers), quiet=True)
    assert weights(tmp_path / "0") == weights(tmp_path / "2")


def test_pixels_from_the_cache_give_the_weights_that_pictures_give(tmp_path, monkeypatch):
    recipe = small(keep="last", augmentation__crop="inception", augmentation__randaugment_ops=2)
    train(recipe, output=tmp_path / "cached", quiet=True)
    for place in (loading, session):
        monkeypatch.setattr(place, "cached_pixels", lambda split, column: None)
    train(recipe, output=tmp_path / "by the picture", quiet=True)
    assert weights(tmp_path / "cached") == weights(tmp_path / "by the picture")


def test_a_cache_that_cannot_be_written_is_an_error_before_there_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIT_HF_CACHE", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"bytes of decoded pictures cannot be written to .*VIT_HF_CACHE"):
        train(small(), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_evaluating_in_between_does_not_change_the_weights(tmp_path):
    for every in (0.5, 100.0):
        recipe = small(evaluate_every=every, keep="last", model__hidden_dropout_prob=0.2)
        train(recipe, output=tmp_path / str(every), quiet=True)
    assert weights(tmp_path / "0.5") == weights(tmp_path / "100.0")


def test_accumulated_batches_give_the_gradients_of_the_whole_batch(tmp_path):
    for name, largest in (("whole", None), ("parts", 8)):
        train(small(optimization__max_device_batch_size=largest, keep="last"), output=tmp_path / name, quiet=True)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    # AdamW's first steps are about the sign of the gradient, so rounding can flip entries near 0: hence a mean
    difference = sum((whole[k] - parts[k]).abs().sum() for k in whole) / sum(v.numel() for v in whole.values())
    assert difference < 1e-5


def test_twenty_pictures_are_learned_by_heart(tmp_path):
    recipe = small(
        data__max_train_images=20,
        optimization__max_steps=120,
        optimization__batch_size=20,
        keep="last",
        optimization__label_smoothing=0.0,
        optimization__ema_decay=None,
        augmentation__rotation=0.0,
        augmentation__translation=0.0,
        augmentation__scaling=0.0,
        augmentation__crop="none",
        evaluate_every=60.0,
        optimization__learning_rate=3e-3,
        optimization__warmup_steps=10,
    )
    train(recipe, output=tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["train_loss"] < 0.1 < 1.0 < rows[0]["train_loss"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"mixed_precision": "bf16"},
        {"gradient_checkpointing": True, "model__pooling": "cls"},
        {"optimization__optimizer": "sgd", "optimization__schedule": "constant"},
        {"data__streaming": True, "data__validation_fraction": 0.0, "data__max_train_images": None, "keep": "last"},
        {"model__pooling": "map", "model__qk_norm": True, "model__layer_scale_init": 0.1},
    ],
    ids=["bf16", "checkpointing", "sgd", "streaming", "options"],
)
def test_options_of_the_recipe_run_to_the_end(overrides, tmp_path):
    result = train(small(**overrides), output=tmp_path / "run", quiet=True)
    assert result.results["n"] == 50


def test_fine_tuning_starts_from_a_model_with_a_new_head_and_another_image_size(run, tmp_path):
    recipe = small(keep="last").override({"model.init_from": str(run.output), "model.image_size": "16,8"})
    folder = train(recipe, output=tmp_path / "fine", quiet=True).output
    saved = json.loads((folder / "config.json").read_text())
    assert saved["image_size"] == [16, 8]
    size = json.loads((folder / "preprocessor_config.json").read_text())["size"]
    assert size == {"height": 16, "width": 8}


def test_fine_tuning_a_network_of_many_labels_makes_one_of_classes(tmp_path):
    many = variant("S/4", image_size=8, num_labels=10, problem_type="multi_label_classification")
    VitHfForImageClassification(many).save_pretrained(tmp_path / "many")
    VitHfImageProcessor(size=8).save_pretrained(tmp_path / "many")
    recipe = small(keep="last").override({"model.init_from": str(tmp_path / "many")})
    network, _ = build_model(recipe, dict(enumerate("0123456789")))
    assert network.config.problem_type is None
    network(torch.zeros(2, 3, *network.config.image_hw), labels=torch.tensor([1, 2])).loss.backward()


# ------------------------------------------------------------------------------------------- how it fails
def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_batch(tmp_path):
    recipe = small(
        keep="last",
        optimization__optimizer="sgd",
        optimization__learning_rate=1e30,
        optimization__clip_norm=None,
        optimization__warmup_steps=0,
        optimization__ema_decay=None,
        evaluate_every=100.0,
    )
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step \d+, process 0, training rows \d+, \d+"):
        train(recipe, output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_choosing_the_best_on_the_test_split_is_refused_before_a_file_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"keep is 'best' but no pictures are held out"):
        train(small(keep="best", data__validation_fraction=0.0), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_output_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        train(small(), output=tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_saved_model_that_does_not_repeat_its_record_is_an_error(tmp_path, monkeypatch):
    from vit_hf.training import loop

    def other_weights(folder):
        saved, moving = read_weights(folder)
        return {name: torch.zeros_like(tensor) for name, tensor in saved.items()}, moving

    monkeypatch.setattr(loop, "read_weights", other_weights)
    recipe = small(keep="best", optimization__max_steps=40, optimization__learning_rate=5e-3, evaluate_every=20.0)
    with pytest.raises(RuntimeError, match="its record says"):
        train(recipe, output=tmp_path / "run", quiet=True)


class Ends(BaseException):
    """So that a run ends as by a crash."""


@pytest.mark.parametrize(("change", "small_enough"), [(0.004, True), (0.2, False)])
def test_a_record_of_an_earlier_session_may_differ_as_machines_do(change, small_enough, tmp_path, capsys, monkeypatch):
    """The weights are those that were saved: all that another processor can change is which way a close call falls."""
    recipe = small(keep="best", checkpoint_steps=3, evaluate_every=1.0, data__validation_fraction=0.32)

    def crash(run):
        raise Ends

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_finish", crash)
        with pytest.raises(Ends):
            train(recipe, output=tmp_path / "run", quiet=True)
    last = tmp_path / "run" / "checkpoints" / "step-00000006"
    state = json.loads((last / STATE).read_text())
    state["best"]["top1"] += change
    (last / STATE).write_text(json.dumps(state))
    (last / MANIFEST).write_text(json.dumps(describe_files(last)))
    if not small_enough:
        with pytest.raises(RuntimeError, match="its record says"):
            train(recipe, resume=tmp_path / "run")
        return
    result = train(recipe, resume=tmp_path / "run")
    assert "another machine rounds otherwise" in " ".join(capsys.readouterr().out.split())
    assert result.results["validation_top1"] == state["best"]["top1"]


def test_a_request_to_stop_while_the_last_checkpoint_is_saved_is_heard(tmp_path):
    recipe = small(keep="last", checkpoint_steps=3)

    def ask(folder):
        if folder.name.endswith("6"):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingInterrupted, match="after step 6"):
        train(recipe, output=tmp_path / "run", quiet=True, on_checkpoint=ask)
    assert not (tmp_path / "run" / "results.json").exists()
    resumed = train(recipe, resume=tmp_path / "run", quiet=True)
    undisturbed = train(recipe, output=tmp_path / "other", quiet=True)
    assert weights(resumed.output) == weights(undisturbed.output)


def test_a_variable_of_the_launcher_does_not_divide_the_gradient(tmp_path, monkeypatch):
    recipe = small(optimization__optimizer="sgd", optimization__clip_norm=None)
    plain = train(recipe, output=tmp_path / "a", quiet=True)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert weights(train(recipe, output=tmp_path / "b", quiet=True).output) == weights(plain.output)


def test_brackets_in_the_name_of_a_folder_are_printed(tmp_path, capsys, monkeypatch):
    def crash(run):
        raise Ends

    monkeypatch.setattr(loop, "_finish", crash)
    with pytest.raises(Ends):
        train(small(), output=tmp_path / "lr[high]")
    assert "lr[high]/recipe.yaml" in capsys.readouterr().out.replace("\n", "")


def test_runs_that_start_together_without_a_folder_take_one_each(tmp_path, monkeypatch):
    """All look for a free name before one has made its folder."""
    monkeypatch.chdir(tmp_path)
    names = iter([Path("runs/digits"), Path("runs/digits")])
    found = checkpoint.next_output
    monkeypatch.setattr(checkpoint, "next_output", lambda name: next(names, None) or found(name))
    runs = [train(small(keep="last"), quiet=True).output for _ in range(2)]
    assert [str(run) for run in runs] == ["runs/digits", "runs/digits-2"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_half_precision_that_the_device_lacks_is_refused_and_not_recorded(tmp_path):
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        train(small(mixed_precision="fp16"), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_bfloat16_is_really_used(tmp_path):
    for precision in ("no", "bf16"):
        train(small(mixed_precision=precision, keep="last"), output=tmp_path / precision, quiet=True)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("no", "bf16"))
    difference = max((a[name] - b[name]).abs().max().item() for name in a)
    assert 1e-5 < difference < 1e-2
    assert all(tensor.dtype == torch.float32 for tensor in b.values())


@pytest.mark.slow
def test_the_digits_recipe_reaches_97_percent_on_average_of_three_seeds(tmp_path):
    scores = [train("digits", output=tmp_path / str(s), quiet=True, seed=s).results["top1"] for s in range(3)]
    assert sum(scores) / 3 >= 0.97, scores


def test_cifar100_images_train_and_all_test_images_are_scored_once(shared_data, tmp_path):
    recipe = get_recipe("cifar100_scratch").override(
        {
            **{key: value for key, value in SMALL.items() if key.startswith(("model.", "optimization.", "trackers"))},
            "data.source": str(shared_data("cifar100")),
            "data.max_train_images": 200,
            "model.num_hidden_layers": 1,
            "model.num_attention_heads": 4,
            "optimization.max_steps": 2,
            "optimization.warmup_steps": 1,
            "data.validation_fraction": 0.0,
            "keep": "last",
            "workers": 0,
            "model.patch_size": 16,
        }
    )
    result = train(recipe, output=tmp_path / "run", quiet=True)
    assert result.results["n"] == 10_000
    names = yaml.safe_load((tmp_path / "run" / "config.json").read_text())["id2label"]
    assert (names["0"], names["99"]) == ("apple", "worm")


# ------------------------------------------------------------------------------------------- beginning and going on
WITHOUT_CHECKPOINTS = {
    "checkpoint_minutes": None,
    "checkpoint_steps": None,
    "keep": "last",
    "optimization__max_steps": 2,
}


def test_going_on_in_a_new_folder_begins_there(tmp_path):
    results = train(small(**WITHOUT_CHECKPOINTS), output=tmp_path / "run", resume="auto", quiet=True)
    assert not results.was_finished
    assert "resumed" not in json.loads((tmp_path / "run" / "run.json").read_text())


@pytest.mark.parametrize("changes", [{}, {"seed": 5}], ids=["same", "other seed"])
def test_a_finished_run_without_checkpoints_is_not_trained_over(tmp_path, changes):
    train(small(**WITHOUT_CHECKPOINTS), output=tmp_path / "run", quiet=True)
    before = weights(tmp_path / "run"), (tmp_path / "run" / "results.json").read_text()
    recipe = small(**WITHOUT_CHECKPOINTS, **changes)
    if changes:
        with pytest.raises(ValueError, match="belongs to another run: seed was 0 and is 5"):
            train(recipe, output=tmp_path / "run", resume="auto", quiet=True)
    else:
        assert train(recipe, output=tmp_path / "run", resume="auto", quiet=True).was_finished
    assert (weights(tmp_path / "run"), (tmp_path / "run" / "results.json").read_text()) == before


def test_going_on_in_a_folder_that_is_not_of_a_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(FileExistsError, match="is no run folder"):
        train(small(**WITHOUT_CHECKPOINTS), output=tmp_path, resume="auto", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {
                "task": "masked_image_modeling",
                "optimization__label_smoothing": 0.0,
                "augmentation__mask_patch_size": 12,
            },
            "mask_patch_size is 12; expected",
        ),
        ({"augmentation__mixup_alpha": 0.5, "optimization__batch_size": 7}, "take pictures in pairs|an even"),
        (
            {"augmentation__cutmix_alpha": 0.5, "optimization__max_device_batch_size": 1},
            "max_device_batch_size is 1; expected 2 or more",
        ),
    ],
)
def test_masks_and_pairs_that_do_not_fit_are_refused_before_a_file_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(small(keep="last", **changes), output=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_death_of_a_loader_is_found_behind_what_it_interrupted():
    from vit_hf.training.loop import _end_of_a_loader

    def interrupted(second: Exception) -> Exception:
        try:
            try:
                raise RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed.")
            except RuntimeError:
                raise second  # noqa: B904 as a context manager does that was interrupted
        except Exception as error:
            return error

    assert "pid 77" in str(_end_of_a_loader(interrupted(RuntimeError("trying to pop from empty mode stack"))))
    assert "pid 77" in str(_end_of_a_loader(interrupted(OSError("disk"))))
    assert _end_of_a_loader(RuntimeError("something else")) is None
    assert _end_of_a_loader(ConnectionResetError("of the network")) is None


@pytest.mark.slow
@pytest.mark.parametrize("average", [None, 0.9])
def test_a_compiled_run_is_saved_under_plain_names_and_resumes_exactly(tmp_path, average):
    recipe = small(
        compile=True,
        keep="last",
        optimization__max_steps=4,
        optimization__ema_decay=average,
        checkpoint_steps=2,
        checkpoint_limit=9,
        evaluate_every=100.0,
    )
    whole = train(recipe, output=tmp_path / "whole", quiet=True)
    (tmp_path / "resumed" / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole.output / step_folder(2), tmp_path / "resumed" / step_folder(2))
    train(recipe, output=tmp_path / "resumed", resume="auto", quiet=True)
    assert weights(tmp_path / "resumed") == weights(whole.output)
    assert set(load_file(whole.output / "model.safetensors")) == set(
        VitHfForImageClassification.from_pretrained(whole.output).state_dict()
    )
