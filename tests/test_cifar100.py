"""scripts/cifar100.py on a tiny net: its stages, how it goes on, what it records, and when it lets weights go."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from safetensors.torch import load_file

from vit_hf import Recipe, VitHfForImageClassification, get_recipe, train
from vit_hf.data.sources import load_source
from vit_hf.evaluation.superclasses import CIFAR100
from vit_hf.sharing.reproduce import reproduce
from vit_hf.training.step import Stepper

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import cifar100

NAMES = sorted(name for names in CIFAR100.values() for name in names)
TINY_NET = {
    "model.patch_size": 16,
    "model.hidden_size": 8,
    "model.num_hidden_layers": 1,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 8,
}


def colour(label: int, row: int) -> tuple[int, int, int]:
    """The colour of the picture in a row of its class."""
    return 2 * label, 50 * row, 7


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two training pictures and a test picture of each of CIFAR-100's classes, each of one colour."""
    folder = tmp_path_factory.mktemp("data") / "cifar100"
    folder.mkdir()
    features = Features({"img": Image(), "fine_label": ClassLabel(names=NAMES)})
    for split, rows in (("train", (0, 1)), ("test", (2,))):
        pairs = [(label, row) for row in rows for label in range(100)]
        columns = {
            "img": [PIL.Image.new("RGB", (32, 32), colour(label, row)) for label, row in pairs],
            "fine_label": [label for label, _ in pairs],
        }
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar100, "SMALL_NET", TINY_NET)
        patch.setattr(cifar100, "SMALL_DECODER", {**cifar100.SMALL_DECODER, "augmentation.mask_patch_size": 16})
        patch.setattr(cifar100, "SMALL_EPOCHS", {"scratch": 2, "mae": 1, "finetune": 1})
        patch.setattr(cifar100, "SMALL_STEPS", 6)
        patch.setattr(cifar100, "COUNTS", {"digits": (2,), "ten": (2,)})
        patch.setitem(cifar100.SMALL, "data.max_test_images", 20)
        yield


def words(data: Path, output: Path, *more: str) -> list[str]:
    return ["--data", str(data), "--output", str(output), "--small", "--quiet", "--seeds", "0", *more]


@pytest.fixture(scope="module")
def done(data, tmp_path_factory) -> Path:
    """The folder of all stages."""
    output = tmp_path_factory.mktemp("done") / "runs"
    assert cifar100.main(words(data, output)) == 0
    return output


def results(output: Path, name: str) -> dict:
    return json.loads((output / name / "results.json").read_text())


def test_all_stages_leave_finished_runs_that_start_where_they_should(done):
    starts = {
        name: get_recipe(done / name / "recipe.yaml").model.init_from
        for name in sorted(str(path.parent.relative_to(done)) for path in done.glob("**/results.json"))
    }
    mae, labels = str(done / "mae-0"), {"digits": str(done / "scratch-0"), "ten": str(done / "other90-0")}
    expected = {"scratch-0": None, "mae-0": None, "finetune-0": mae, "other90-0": None}
    for target in ("digits", "ten"):
        of_start = {"scratch": None, "labels": labels[target], "mae": mae}
        expected |= {f"transfer/{target}-2-{start}-0": folder for start, folder in of_start.items()}
    assert starts == expected
    assert results(done, "mae-0")["recipe"] == "cifar100_mae"
    assert results(done, "other90-0")["data"]["num_labels"] == 90


def test_the_starts_of_a_target_have_the_same_pictures_and_budget(done):
    for target in ("digits", "ten"):
        runs = [results(done, f"transfer/{target}-2-{start}-0") for start in cifar100.STARTS]
        assert {(run["steps"], run["data"]["splits"]["train"]["n"]) for run in runs} == {(6, 20)}
        assert len({json.dumps(run["data"]["splits"]) for run in runs}) == 1
        shapes = [VitHfForImageClassification.from_pretrained(done / f"transfer/{target}-2-{start}-0").state_dict()
                  for start in cifar100.STARTS]  # fmt: skip
        assert len({tuple((name, tuple(tensor.shape)) for name, tensor in shape.items()) for shape in shapes}) == 1


def test_every_tenth_class_is_in_one_subset_and_the_others_in_the_other(done):
    for name, classes in (("ten", range(0, 100, 10)), ("ninety", [n for n in range(100) if n % 10])):
        source = load_source(done / "data" / name)
        assert list(source.label_names) == [NAMES[place] for place in classes]
        for split, rows in (("train", (0, 1)), ("test", (2,))):
            part = source.split(split).cast_column("img", Image())
            found = sorted((NAMES[classes[row["label"]]], row["img"].getpixel((3, 3))) for row in part)
            assert found == sorted((NAMES[label], colour(label, row)) for label in classes for row in rows)


def test_what_is_to_be_recorded_is_written(done):
    text = (done / "results.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    by_stage = {row[0]: row for row in rows}
    assert list(by_stage) == ["stage", "---", "scratch", "mae", "finetune", "other90", "target", "digits", "ten"]
    scratch = results(done, "scratch-0")
    assert by_stage["scratch"][1:6] == ["0", f"{scratch['top1']:.2%}", f"{scratch['top5']:.2%}",
                                        f"{scratch['loss']:.4f}", f"{scratch['parameters']:,}"]  # fmt: skip
    assert by_stage["mae"][2:5] == ["-", "-", f"{results(done, 'mae-0')['loss']:.4f}"]
    of_ten = [results(done, f"transfer/ten-2-{start}-0")["top1"] for start in cifar100.STARTS]
    assert by_stage["ten"] == ["ten", "2", *(f"{share:.2%}" for share in of_ten)]
    assert "scratch: nothing to say of the goal of 80%: it was not the recipe itself that ran." in text
    assert f"torch {torch.__version__.partition('+')[0]}" in text
    with PIL.Image.open(done / "transfer.png") as plot:
        assert plot.size[0] > 500
    for stage in ("scratch", "mae", "finetune"):
        card = (done / "cards" / f"cifar100_{stage}.md").read_text()
        assert f"](cifar100_{stage}.png)" in card
        assert (done / "cards" / f"cifar100_{stage}.png").is_file()
        assert ("Confusion among superclasses" in card) is (stage != "mae")
        assert "A shortened run" in card


def test_a_second_call_trains_nothing(done, data, monkeypatch):
    before = (done / "results.md").read_text()
    monkeypatch.setattr(cifar100, "train", lambda *_, **__: pytest.fail("a finished run was begun again"))
    assert cifar100.main(words(data, done)) == 0
    assert (done / "results.md").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_goes_on_and_ends_as_if_it_had_not_been(done, data, tmp_path, monkeypatch, capsys, number):
    take = Stepper.take

    def stopping(self, step, *rest):
        if step == 3:
            signal.raise_signal(number)
        return take(self, step, *rest)

    output = tmp_path / "runs"
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "take", stopping)
        assert cifar100.main(words(data, output, "--stages", "scratch", "mae")) == 75
    assert "to go on: the same command" in capsys.readouterr().err
    assert (output / "scratch-0" / "checkpoints" / "step-00000003").is_dir()
    assert not (output / "scratch-0" / "results.json").exists()
    assert not (output / "mae-0").exists()
    assert cifar100.main(words(data, output, "--stages", "scratch")) == 0
    assert results(output, "scratch-0")["resumed"][0]["step"] == 3
    one, other = (load_file(folder / "scratch-0" / "model.safetensors") for folder in (output, done))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_request_to_stop_between_runs_ends_it_too(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cifar100, "train", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert cifar100.main(words(data, tmp_path / "runs")) == 75
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_time_that_was_given_ends_it(data, tmp_path):
    """Far less than the first run takes to set up."""
    assert cifar100.main(words(data, tmp_path / "runs", "--minutes", "0.001")) == 75


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_one(done, data, tmp_path, capsys):
    output = tmp_path / "runs"
    shutil.copytree(done / "scratch-0", output / "scratch-0")
    recipe = output / "scratch-0" / "recipe.yaml"
    recipe.write_text(Recipe.from_yaml(recipe).override({"optimization.learning_rate": 0.123}).to_yaml())
    assert cifar100.main(words(data, output, "--stages", "scratch")) == 1
    assert "scratch-0 is a finished run of another recipe; choose another --output" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- goals and release
def options(output: Path, **changes):
    namespace = cifar100.argparse.Namespace(output=output, seeds=[0, 1, 2], small=False, data="digits")
    vars(namespace).update(changes)
    return namespace


def scored(output: Path, stage: str, scores: list[float]) -> None:
    for seed, top1 in enumerate(scores):
        (output / f"{stage}-{seed}").mkdir()
        (output / f"{stage}-{seed}" / "results.json").write_text(json.dumps({"top1": top1}))


def test_the_mean_of_all_seeds_decides_on_the_goal(tmp_path):
    scored(tmp_path, "scratch", [0.79, 0.80, 0.82])
    scored(tmp_path, "finetune", [0.90, 0.90])
    assert cifar100.verdicts(options(tmp_path)) == [
        "scratch: 80.33%; the goal of 80% is reached.",
        "  Release the weights of seed 0: --release model_cards",
        "finetune: nothing to say of the goal of 83%: 2 of 3 seeds ran.",
    ]
    assert "reached" not in " ".join(cifar100.verdicts(options(tmp_path, small=True)))
    (tmp_path / "scratch-2" / "results.json").write_text('{"top1": 0.8}')
    assert "is not reached" in cifar100.verdicts(options(tmp_path))[0]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory) -> Path:
    """A short run."""
    return train(
        "digits", output=tmp_path_factory.mktemp("digits") / "run", quiet=True, max_steps=50, trackers=()
    ).output


def test_released_weights_are_rounded_and_give_what_the_run_recorded(digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "ROUNDING", 0.01)
    run, target = digits_run, tmp_path / "cards" / "digits"
    whole = load_file(run / "model.safetensors")
    cifar100.release(run, target, "digits")
    rounded = load_file(target / "model.safetensors")
    assert all(torch.equal(rounded[name], tensor.to(torch.bfloat16)) for name, tensor in whole.items())
    assert all(torch.equal(load_file(run / "model.safetensors")[name], tensor) for name, tensor in whole.items())
    assert reproduce(target, data="digits").same
    assert results(target, ".")["top1"] == pytest.approx(results(run, ".")["top1"], abs=0.01)
    assert results(target, ".")["loss"] != results(run, ".")["loss"]  # that of the rounded weights
    assert VitHfForImageClassification.from_pretrained(target).dtype == torch.float32
    assert not list(target.glob("checkpoints*"))
    with pytest.raises(FileExistsError):
        cifar100.release(run, target, "digits")


def test_a_run_whose_weights_do_not_give_what_it_recorded_is_not_released(digits_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(digits_run, run)
    recorded = results(run, ".")
    (run / "results.json").write_text(json.dumps({**recorded, "top1": recorded["top1"] + 0.03}))
    with pytest.raises(ValueError, match=r"run recorded \d\d\.\d\d%, its weights in bfloat16 give \d\d\.\d\d%"):
        cifar100.release(run, tmp_path / "digits", "digits")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_weights_that_are_too_large_are_not_released(digits_run, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar100, "RELEASE_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"bytes of weights; expected at most 10,000"):
        cifar100.release(digits_run, tmp_path / "digits", "digits")
    assert not list(tmp_path.iterdir())


def test_deviations_are_those_of_a_sample():
    assert cifar100.spread([0.8, 0.82, 0.84], ".2%") == f"82.00% +- {np.std([0.8, 0.82, 0.84], ddof=1):.2%}"
    assert (cifar100.spread([], ".2%"), cifar100.spread([0.5, None], ".2%")) == ("-", "-")
