"""`vit-hf probe` as a user meets it, on the bundled digits and on a small VTAB task."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfImageProcessor
from vit_hf.cli import main
from vit_hf.evaluation.probes import features
from vit_hf.evaluation.probes import run as run_module
from vit_hf.evaluation.probes.run import probe, probe_vtab, summarise_vtab


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder with `model`, random but good enough for digits, `small` data of 10 classes, and the cache."""
    folder = tmp_path_factory.mktemp("probe")
    config = VitHfConfig(image_size=8, patch_size=4, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=32, id2label={0: "cat", 1: "dog"}, pooling="gap")  # fmt: skip
    torch.manual_seed(0)
    VitHfForImageClassification(config).save_pretrained(folder / "model")
    VitHfImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "model")
    generator = np.random.default_rng(0)
    kinds = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    splits = {}
    for name, size in (("train800", 800), ("val200", 200), ("test", 100)):
        labels = generator.integers(0, 10, size)
        pixels = (labels[:, None, None, None] * 20 + generator.integers(0, 60, (size, 8, 8, 3))).astype(np.uint8)
        splits[name] = Dataset.from_dict({"image": list(pixels), "label": labels}, features=kinds)
    DatasetDict(splits).save_to_disk(folder / "small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIT_HF_CACHE", str(folder / "cache"))
        patch.setenv("COLUMNS", "100")
        yield folder


@pytest.fixture
def no_forward(monkeypatch):
    """Make any use of an encoder fail."""

    def forward(*_):
        raise AssertionError("the features were to come from the cache")

    monkeypatch.setattr(features.FeatureEncoder, "forward", forward)


def fails(capsys, *arguments) -> str:
    """Run a command that must fail; return its one line on stderr."""
    assert main([str(argument) for argument in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def run(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- probes
@pytest.fixture(scope="module")
def first(folder):
    """The results of all probes on digits."""
    return probe(folder / "model", data="digits", output=folder / "first")


def test_all_probes_score_the_whole_test_split(folder, first):
    assert json.loads((folder / "first" / "results.json").read_text()) == json.loads(json.dumps(first))
    assert (first["n_train"], first["n"], first["num_labels"], first["width"]) == (1438, 359, 10, 32)
    assert [score["shots"] for score in first["fewshot"]] == [1, 5, 10, 25]
    means = [score["mean"] for score in first["fewshot"]]
    assert 0.3 < means[0] < means[-1] < 0.95
    assert [score["neighbours"] for score in first["knn"]["scores"]] == [10, 20, 100, 200]
    assert 0.75 < first["knn"]["scores"][0]["top1"] < 1
    assert 0.8 < first["logistic"]["top1"] < 1
    for score in (*first["fewshot"], *first["knn"]["scores"], first["logistic"]):
        low, high = score["interval"]
        middle = score.get("mean", score.get("top1"))
        assert low < middle < high


def test_a_second_probe_costs_no_forward_pass(folder, first, no_forward):
    again = probe(folder / "model", data="digits", methods=["fewshot"], shots=[5], seeds=2)
    assert again["fewshot"][0]["top1"] == first["fewshot"][1]["top1"][:2]
    assert "knn" not in again


def test_the_command_prints_a_table_of_what_was_asked_for(folder, first, no_forward, capsys):
    words = ["--data", "digits", "--method", "knn", "fewshot", "--shots", "1", "1000", "--seeds", "1"]
    printed = run(capsys, "probe", folder / "model", *words)
    assert "1,438 pictures to learn from, 359 of split test; 32 features" in printed.replace("\n", " ")
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if "│" in line]
    assert [row[0].strip() for row in rows] == [
        "1 shot", "1000 shots", "10 neighbours", "20 neighbours", "100 neighbours", "200 neighbours"
    ]  # fmt: skip
    one = first["fewshot"][0]["top1"][0]
    assert rows[0][1].strip() == f"{one:.2%}"
    assert rows[0][3].strip() == f"{100 * one:.2f}"
    assert "10 classes have fewer" in rows[1][3]


def test_a_training_split_of_few_pictures_has_as_many_neighbours():
    few = features.Features(np.eye(4, dtype=np.float32), np.array([0, 1, 2, 1]))
    scores = run_module._knn(few, few, 3)["scores"]
    assert [(score["neighbours"], score["top1"]) for score in scores] == [(4, 1.0)]


def test_a_run_folder_is_probed_on_what_it_was_trained_on(folder, first, no_forward, tmp_path, capsys):
    shutil.copytree(folder / "model", tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text("data:\n  source: digits\n  max_test_images: 5\n")
    assert "359 of split test" in run(capsys, "probe", tmp_path / "run", "--method", "knn").replace("\n", " ")


def test_what_a_user_can_mend_is_one_line(folder, tmp_path, capsys):
    model = folder / "model"
    assert "has no recipe.yaml that tells its data; name the data with --data SOURCE" in fails(capsys, "probe", model)
    assert "there is no MODEL to probe" in fails(capsys, "probe")
    wrong = fails(capsys, "probe", model, "--data", "digits", "--method", "svm", "--output", tmp_path / "new")
    assert "methods ['svm']; expected some of fewshot, knn, logistic" in wrong
    (tmp_path / "file").touch()
    assert "is not an empty folder" in fails(capsys, "probe", model, "--data", "digits", "--output", tmp_path)
    assert "VTAB-1k has one way to probe" in fails(capsys, "probe", model, "--vtab", "svhn", "--seeds", "2")
    assert "runs nothing; leave MODEL" in fails(capsys, "probe", model, "--vtab-summary", tmp_path)
    assert "retinopathy: no copy on the Hub" in fails(capsys, "probe", model, "--vtab", "retinopathy")
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------------------------------------- VTAB
def test_a_task_runs_from_the_command_line_and_again_from_the_cache(folder, tmp_path, capsys, monkeypatch):
    words = ["probe", folder / "model", "--vtab", "svhn", "--data", folder / "small"]
    printed = run(capsys, *words, "--output", tmp_path / "svhn")
    results = json.loads((tmp_path / "svhn" / "results.json").read_text())
    assert f"VTAB-1k svhn (natural): top-1 {results['top1']:.2%}" in printed
    assert "chosen by the data" in printed
    assert "not as in the benchmark: 100 test pictures, not 26,032" in printed
    assert results["n"] == 100
    assert results["top1"] > 0.5
    monkeypatch.setattr(features.FeatureEncoder, "forward", None)  # not needed again
    assert run(capsys, *words) == printed
    other = probe_vtab(folder / "model", "eurosat", data=str(folder / "small"), output=tmp_path / "eurosat")
    assert (other["top1"], other["group"]) == (results["top1"], "specialized")  # the same made-up pictures

    summary = run(capsys, "probe", "--vtab-summary", tmp_path / "svhn", tmp_path / "eurosat" / "results.json")
    assert "svhn" in summary
    assert "1 of 7 tasks" in summary
    assert "2 of 19 tasks" in summary
    flat = " ".join(summary.split())
    assert "svhn is not as in the benchmark: 100 test pictures, not 26,032" in flat
    assert "incomplete, so there is no overall mean: no caltech101, cifar100, dtd" in flat


def test_the_tasks_are_listed(capsys):
    printed = run(capsys, "probe", "--vtab", "list")
    assert "none: give --data" in printed
    assert len([line for line in printed.splitlines() if re.search(r"│ +[\w,]+ +│ +[\d,]+ +│", line)]) == 19


def test_a_summary_of_what_is_no_result_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*results.json; expected what `vit-hf probe MODEL"):
        summarise_vtab([tmp_path])
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        summarise_vtab([tmp_path])
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="not of a VTAB task"):
        summarise_vtab([tmp_path])
