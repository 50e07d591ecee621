"""`vit-hf reproduce`: a real run is proved from its files and the data, and whatever is changed in it is named."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import DatasetDict
from hub_server import Hub
from safetensors.torch import load_file, save_file

from vit_hf.cli import main
from vit_hf.data.sources import load_source
from vit_hf.evaluation.predictions import read_predictions, write_predictions
from vit_hf.evaluation.scoring import Scores
from vit_hf.sharing.reproduce import Reproduction, reproduce
from vit_hf.sharing.rescore import TOLERANCE, compare_scores
from vit_hf.sharing.snapshot import snapshot
from vit_hf.training.recipe import Recipe
from vit_hf.training.trainer_run import train_with_trainer

SHORT = {
    "data.max_train_images": 96,
    "data.max_test_images": 50,
    "data.validation_fraction": 0.1,
    "model.num_hidden_layers": 1,
    "optimization.max_steps": 6,
    "optimization.batch_size": 32,
    "optimization.warmup_steps": 2,
    "optimization.learning_rate": 0.003,
    "optimization.ema_decay": "none",
    "keep": "best",
    "trackers": "none",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reproduce") / "run"
    fields = [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
    assert main(["train", "digits", *fields, "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(finished, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints", "examples")))


def different(found: Reproduction) -> list[str]:
    return [check.what for check in found.checks if check.equal is False]


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# ---------------------------------------------------------------------------------------------- it is reproduced
def test_a_run_is_reproduced_bit_for_bit_from_its_files_and_the_data(finished):
    found = reproduce(finished)
    assert found.same
    assert different(found) == found.elsewhere == []
    rows = {check.what: check for check in found.checks}
    assert rows["model: logits"].found == "equal bit for bit"
    assert rows["data, split test: pictures"].recorded == "50"
    compared = {
        "results.json: top1",
        "results.json: intervals",
        "results.json: calibration",
        "README.md",
        "model: loss",
    }
    assert {what for what in compared if rows[what].equal is True} == compared


def test_the_command_prints_what_was_compared_and_says_so_by_its_exit_code(run, capsys):
    assert main(["reproduce", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "equal bit for bit" in printed
    assert "everything that could be compared is reproduced" in printed
    edit_json(run / "results.json", top1=0.99)
    assert main(["reproduce", str(run)]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"DIFFERENT: results.json: top1; .*README.md, line \d+; model: top1", printed)
    assert "0.99" in printed


def test_what_a_push_uploads_is_reproduced_with_the_data_from_another_place(finished, tmp_path):
    """The pushed records hold no path of the machine; a data set's name does not matter, its content does."""
    (tmp_path / "pushed").mkdir()
    snapshot(finished, tmp_path / "pushed", license="mit")
    DatasetDict(load_source("digits").splits).save_to_disk(tmp_path / "elsewhere")
    found = reproduce(tmp_path / "pushed", data=str(tmp_path / "elsewhere"))
    assert different(found) == []
    assert next(check for check in found.checks if check.what == "files").equal


@pytest.mark.slow
def test_a_hub_id_is_pulled_first_and_reproduced_from_what_was_pushed(finished, tmp_path):
    (tmp_path / "pushed").mkdir()
    snapshot(finished, tmp_path / "pushed")
    with Hub() as hub:
        hub.add("tester/digits", tmp_path / "pushed")
        done = subprocess.run(
            [sys.executable, "-m", "vit_hf.cli", "reproduce", "tester/digits"],
            env={**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal bit for bit" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} <= {"pushed", "home"}  # what was pulled is gone


def test_a_run_of_the_trainer_is_reproduced(tmp_path):
    fields = {name.replace(".", "__"): value for name, value in SHORT.items() if value != "none"}
    result = train_with_trainer("digits", output=tmp_path / "run", quiet=True, trackers=[], **fields)
    found = reproduce(result.output)
    assert different(found) == []
    assert "equal bit for bit" in [check.found for check in found.checks]


def test_a_model_for_masked_images_is_reproduced_with_the_masks_of_its_test(tmp_path, capsys):
    fields = {"task": "masked_image_modeling", "augmentation.mask_patch_size": 4, "model.image_size": 8}
    fields |= {"model.patch_size": 4, "optimization.label_smoothing": 0, "keep": "last"}
    words = [word for name, value in {**SHORT, **fields}.items() for word in (f"--{name}", str(value))]
    folder = tmp_path / "run"
    assert main(["train", "digits", *words, "--output", str(folder)]) == 0
    found = reproduce(folder)
    assert different(found) == []
    assert "model: loss" in [check.what for check in found.checks]
    edit_json(folder / "results.json", loss=1.001 * json.loads((folder / "results.json").read_text())["loss"])
    assert "model: loss" in different(reproduce(folder))


@pytest.mark.slow
def test_kernels_without_vector_instructions_are_named_and_within_the_tolerance(finished):
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
    done = subprocess.run(
        [sys.executable, "-m", "vit_hf.cli", "reproduce", str(finished)],
        env={**environment, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"other than then: torch_build was .* and is .*DEFAULT", done.stdout)


# ---------------------------------------------------------------------------------------------- changes are named
def change_a_weight(run: Path) -> None:
    weights = load_file(run / "model.safetensors")
    weights["classifier.weight"].view(-1)[0] += 1.0
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})


def flip_a_logit(run: Path) -> None:
    predictions = read_predictions(run / "predictions.parquet")
    predictions.scores.logits[7, 3] *= -1
    write_predictions(run / "predictions.parquet", predictions)


def change_a_label(run: Path) -> None:
    predictions = read_predictions(run / "predictions.parquet")
    predictions.scores.labels[7] = (predictions.scores.labels[7] + 1) % 10
    write_predictions(run / "predictions.parquet", predictions)


def edit_a_number_of_the_card(run: Path) -> None:
    card = (run / "README.md").read_text()
    top1 = json.loads((run / "results.json").read_text())["top1"]
    assert f"| {top1:.2%} (" in card
    (run / "README.md").write_text(card.replace(f"| {top1:.2%} (", f"| {top1 + 0.01:.2%} (", 1))


def change_an_interval(run: Path) -> None:
    intervals = json.loads((run / "results.json").read_text())["intervals"]
    intervals["loss"][1] -= 0.01
    edit_json(run / "results.json", intervals=intervals)


@pytest.mark.parametrize(
    ("change", "named", "exactly"),
    [
        (lambda run: edit_json(run / "results.json", top5=0.9999), ["results.json: top5", "model: top5"], False),
        (lambda run: edit_json(run / "results.json", validation_top1=0.9), ["results.json: validation_top1"], False),
        (lambda run: edit_json(run / "results.json", parameters=7), ["model: parameters"], False),
        (lambda run: edit_json(run / "results.json", device="TPU"), ["results.json as run.json.device"], False),
        (lambda run: edit_json(run / "results.json", seed=5), ["results.json as recipe.yaml.seed"], False),
        (change_an_interval, ["results.json: intervals.loss[1]"], False),
        (edit_a_number_of_the_card, [r"README.md, line \d+"], True),
        (flip_a_logit, ["results.json: loss", "model: logits"], False),
        (change_a_label, ["results.json: loss", r"data, split test: labels\[7\]"], False),
        (change_a_weight, ["model.*"], False),
    ],
)
def test_one_change_is_found_and_named(run, change, named, exactly):
    change(run)
    found = different(reproduce(run))
    for pattern in named:
        assert any(re.fullmatch(pattern, what) or pattern == what for what in found), found
    assert len(found) == len(named) or not exactly, found


def test_a_file_that_is_not_what_the_manifest_says_is_named(finished, tmp_path):
    (tmp_path / "pushed").mkdir()
    snapshot(finished, tmp_path / "pushed")
    with open(tmp_path / "pushed" / "modeling_vit_hf.py", "a") as file:
        file.write("\n")
    (tmp_path / "pushed" / "learning_curves.png").unlink()
    found = different(reproduce(tmp_path / "pushed"))
    assert found[:2] == ["file learning_curves.png", "file modeling_vit_hf.py"]
    assert all(re.fullmatch(r"README.md, line \d+", what) for what in found[2:])  # the card shows the curves


def test_other_data_are_named_and_the_model_is_not_run_over_them(run, tmp_path):
    splits = load_source("digits").splits
    splits["test"] = splits["test"].map(lambda row: {"label": (row["label"] + 1) % 10})
    DatasetDict(splits).save_to_disk(tmp_path / "other")
    found = reproduce(run, data=str(tmp_path / "other"))
    assert [what for what in different(found) if "SHA-256" in what] == ["data, split test: SHA-256"]
    assert found.checks[-1].found == "not run: these are other data"
    assert not found.same


def test_other_versions_are_listed_and_are_no_difference_by_themselves(run):
    for name in ("results.json", "run.json"):
        versions = json.loads((run / name).read_text())["versions"]
        edit_json(run / name, versions={**versions, "torch": "1.0"}, torch_build="1.0, none")
    (run / "README.md").unlink()  # it states the versions
    found = reproduce(run)
    assert different(found) == []
    assert [(check.what, check.recorded) for check in found.elsewhere] == [
        ("torch_build", "1.0, none"),
        ("torch", "1.0"),
    ]


# ---------------------------------------------------------------------------------------------- other kernels
@pytest.fixture
def stored() -> Scores:
    """200 samples of 7 classes; those of rows 0 and 1 are near ties of the first and second class."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 7, generator=generator)
    logits[:2, :2] = torch.tensor([6.0, 6.0 - 1e-4])
    logits[2, 0] = 10.0
    return Scores(logits=logits, labels=torch.arange(200) % 7)


def compared(stored: Scores, logits: torch.Tensor, precision: str = "no") -> list[str]:
    recipe = Recipe.from_dict({"name": "any", "data": {"source": "digits"}, "mixed_precision": precision})
    checks = compare_scores(stored.measure(), stored, Scores(logits, stored.labels), recipe)
    return [check.what for check in checks if not check.equal]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_logits_may_be_off_by_the_tolerance_and_no_more(stored, precision):
    one = torch.zeros(200, 7)
    one[50, 2] = TOLERANCE[precision] * 10.0
    assert compared(stored, stored.logits + 0.9 * one, precision) == []
    assert "model: logits" in compared(stored, stored.logits + 1.1 * one, precision)


def test_other_labels_of_streamed_pictures_are_a_difference(stored):
    labels = stored.labels.clone()
    labels[3] = 6
    recipe = Recipe.from_dict({"name": "any", "data": {"source": "digits"}})
    (check,) = compare_scores(stored.measure(), stored, Scores(stored.logits, labels), recipe)
    assert (check.what, check.recorded, check.found, check.equal) == ("model: labels[3]", "3", "6", False)


def test_a_near_tie_may_change_its_class_and_the_scores_with_it(stored):
    logits = stored.logits.clone()
    logits[0, 0] -= 4e-4
    assert logits[0].argmax() != stored.logits[0].argmax()
    assert compared(stored, logits) == []


def test_a_class_that_changes_beyond_the_tolerance_is_a_difference(stored):
    logits = stored.logits.clone()
    logits[2] = logits[2].roll(1)
    assert {"model: logits", "model: class named"} <= set(compared(stored, logits))


# ---------------------------------------------------------------------------------------------- what the user can mend
def test_what_is_missing_is_named_with_the_remedy(run, tmp_path):
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("source: digits", "source: gone/for/good"))
    data = json.loads((run / "results.json").read_text())["data"]
    edit_json(run / "results.json", data={**data, "kind": "parquet", "source": "good"})
    with pytest.raises(FileNotFoundError, match=r"data of this run, 'good', are not at gone/for/good; .*--data SOURCE"):
        reproduce(run)
    with pytest.raises(ValueError, match=r"revision is 'v1' but .* is a folder"):
        reproduce(run, revision="v1")
    (run / "predictions.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*predictions.parquet"):
        reproduce(run)
    (run / "results.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"results.json holds a list"):
        reproduce(run)
    (run / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no results.json; expected the folder of a finished run"):
        reproduce(run)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; expected a run folder, or a Hub id"):
        reproduce(tmp_path / "nowhere")
