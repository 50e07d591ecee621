"""`vit-hf evaluate`: what it prints and leaves, earlier scores measured anew, and what it refuses before it begins."""

import json
import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from datasets import load_from_disk
from safetensors.torch import load_file, save_file
from small_scored import NAMES, noise, save_data, save_model

from vit_hf import VitHfForImageClassification, VitHfImageProcessor, train
from vit_hf.cli import main
from vit_hf.evaluation.output import published, write_json
from vit_hf.evaluation.predictions import read_predictions, write_predictions
from vit_hf.evaluation.run import evaluate


@pytest.fixture(scope="module")
def model(tiny, randomise, tmp_path_factory):
    config = tiny(num_labels=None, id2label=dict(enumerate(NAMES)))
    network = randomise(VitHfForImageClassification(config))
    return save_model(tmp_path_factory.mktemp("model") / "model", network)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return save_data(tmp_path_factory.mktemp("data") / "data", noise(23, 20, 30))


@pytest.fixture(scope="module")
def done(model, data, tmp_path_factory):
    """The folder of an evaluation, and what it returned."""
    folder = tmp_path_factory.mktemp("done") / "deep" / "scores"
    measured = evaluate(model, data=str(data), output=folder, batch_size=8)
    assert measured is not None
    return folder, measured


def fails(capsys, *words: object) -> str:
    """Run `vit-hf evaluate` where it must fail; return its one line on stderr."""
    assert main(["evaluate", *map(str, words)]) == 1
    streams = capsys.readouterr()
    (line,) = [line for line in streams.err.splitlines() if line.startswith("vit-hf evaluate: error: ")]
    assert "Traceback" not in streams.err
    assert streams.out == ""
    return line


# ---------------------------------------------------------------------------------------------- what it leaves
def test_the_scores_are_those_of_the_model_on_every_picture_once(model, data, done):
    split = load_from_disk(data)["test"]
    pixels = VitHfImageProcessor.from_pretrained(model)(list(split["image"]), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = VitHfForImageClassification.from_pretrained(model)(pixels).logits
    predictions = read_predictions(done[0] / "predictions.parquet")
    torch.testing.assert_close(predictions.scores.logits, expected, atol=1e-5, rtol=0)
    assert predictions.scores.labels.tolist() == split["label"][:]
    assert (predictions.label_names, predictions.data, predictions.split) == (NAMES, "data", "test")
    assert done[1]["n"] == 23
    assert done[1]["top1"] == (expected.argmax(1).numpy() == np.array(split["label"])).mean()


def test_the_folder_holds_two_files_that_others_may_read_and_what_was_returned(done):
    folder, measured = done
    assert sorted(path.name for path in folder.iterdir()) == ["predictions.parquet", "results.json"]
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(measured))
    mask = os.umask(0)
    os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    assert os.listdir(folder.parent) == ["scores"]


def test_labels_in_another_order_are_matched_by_name(model, done, tmp_path):
    names = ("eel", "cat", "ant", "bee", "dog")
    labels = [names.index(NAMES[place % 5]) for place in range(23)]
    data = save_data(tmp_path / "data", noise(23, 20, 30), names, labels)
    measured = evaluate(model, data=str(data), batch_size=8)
    assert measured is not None
    assert {key: measured[key] for key in ("top1", "loss", "per_class")} == {
        key: done[1][key] for key in ("top1", "loss", "per_class")
    }


def test_an_empty_folder_is_filled(model, data, tmp_path):
    (tmp_path / "out").mkdir()
    evaluate(model, data=str(data), output=tmp_path / "out")
    assert (tmp_path / "out" / "results.json").is_file()


# ---------------------------------------------------------------------------------------------- what it prints
def test_the_table_has_the_figures_with_their_intervals(done, capsys):
    assert main(["evaluate", str(done[0])]) == 0
    printed = capsys.readouterr().out
    measured = done[1]
    assert printed.startswith("on 23 pictures of data, split test")
    for name, words in (("top1", "top-1"), ("balanced_accuracy", "balanced accuracy")):
        low, high = measured["intervals"][name]
        assert re.search(rf"{words} .*{measured[name]:.2%} .*{100 * low:.2f} to {high:.2%}", printed), printed
    assert re.search(rf"cross-entropy \(nats\) .*{measured['loss']:.4f} ", printed)
    assert "ReaL" not in printed
    assert "superclass" not in printed


def test_json_gives_what_the_file_holds(model, data, capsys, tmp_path):
    words = ["evaluate", model, "--data", data, "--flip", "--crops", "5", "--json", "--output", tmp_path / "out"]
    assert main(list(map(str, words))) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "out" / "results.json").read_text()
    assert json.loads(printed)["views"]["count"] == 10


def test_views_are_said(model, data, capsys):
    words = ["evaluate", str(model), "--data", str(data), "--image-size", "8x16,16", "--flip"]
    assert main(words) == 0
    assert "at 8x16, 16 pixels, mirrored too (mean of 4 views)" in capsys.readouterr().out


def test_progress_reaches_the_number_of_pictures(model, data):
    seen = []
    evaluate(model, data=str(data), batch_size=8, on_batch=lambda done, total: seen.append((done, total)))
    assert seen == [(8, 23), (16, 23), (23, 23)]


# ---------------------------------------------------------------------------------------------- earlier scores
@pytest.mark.parametrize("name", ["", "predictions.parquet"])
def test_earlier_scores_give_the_same_results_without_a_model(done, tmp_path, monkeypatch, name):
    monkeypatch.setattr("vit_hf.evaluation.run.load_model", None)
    folder, measured = done
    again = evaluate(folder / name, output=tmp_path / "again")
    assert again == {**measured, "model": str(folder / name)}
    copies = [place / "predictions.parquet" for place in (folder, tmp_path / "again")]
    assert copies[0].read_bytes() == copies[1].read_bytes()


def test_the_folder_of_a_run_runs_its_model_whatever_predictions_it_has(model, data, done, tmp_path):
    folder = shutil.copytree(model, tmp_path / "run")
    predictions = read_predictions(done[0] / "predictions.parquet")
    write_predictions(
        folder / "predictions.parquet",
        replace(predictions, scores=replace(predictions.scores, logits=predictions.scores.logits * -1)),
    )
    measured = evaluate(folder, data=str(data), batch_size=8)
    assert measured is not None
    assert measured["top1"] == done[1]["top1"]


def test_reassessed_labels_are_measured_from_earlier_scores(done, tmp_path, capsys):
    named = read_predictions(done[0] / "predictions.parquet").scores.logits.argmax(dim=1).tolist()
    real = [[name, (name + 1) % 5] for name in named[:10]] + [[(name + 1) % 5] for name in named[10:20]] + [[]] * 3
    (tmp_path / "real.json").write_text(json.dumps(real))
    words = ["evaluate", str(done[0]), "--real-labels", str(tmp_path / "real.json"), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert re.search(r"ReaL top-1 \(20 pictures\) .*50.00%", capsys.readouterr().out)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["real_top1"], results["real_n"]) == (0.5, 20)
    assert results["top1"] == done[1]["top1"]


@pytest.mark.parametrize(
    "words", [["--data", "digits"], ["--split", "test"], ["--flip"], ["--crops", "5"], ["--image-size", "8"]]
)
def test_what_needs_a_model_is_refused_for_earlier_scores(done, capsys, words):
    line = fails(capsys, done[0], *words)
    assert "holds scores and no model, which --data, --split, --image-size, --crops, --flip, --curve" in line
    assert "and --on-bad-image need" in line


def test_damaged_scores_are_one_line(tmp_path, capsys):
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1")
    assert "predictions.parquet cannot be read" in fails(capsys, tmp_path)


# ---------------------------------------------------------------------------------------------- whole or not at all
def test_an_error_while_writing_leaves_nothing(model, data, tmp_path, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vit_hf.evaluation.output.write_predictions", full)
    with pytest.raises(OSError, match="No space left"):
        evaluate(model, data=str(data), output=tmp_path / "new" / "out")
    assert os.listdir(tmp_path / "new") == []


def test_a_folder_that_someone_else_makes_meanwhile_is_left_alone(tmp_path):
    def publish():
        with published(tmp_path / "out"):
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("")

    with pytest.raises(OSError, match="not empty"):
        publish()
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert os.listdir(tmp_path / "out") == ["theirs"]


def test_numbers_that_are_not_finite_are_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"top1": float("nan")})


# ---------------------------------------------------------------------------------------------- what it refuses
def test_a_folder_that_is_not_empty_is_refused_before_anything_runs(done, capsys):
    line = fails(capsys, "no-such-model", "--output", done[0])
    assert re.search(r"scores exists and is not an empty folder; choose another --output", line)


@pytest.mark.parametrize("place", ["file/scores", "file/deep/scores", "/proc/none/scores"])
def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(place, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = fails(capsys, "no-such-model", "--output", tmp_path / place)
    assert re.search(r"cannot write to .*scores \(.+\); choose another --output", line)
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_is_scored_on_the_data_it_had_and_not_on_what_lies_there_now(model, data, tmp_path, capsys, monkeypatch):
    """A relative path leads elsewhere from elsewhere: to nothing, or to other pictures."""
    run = tmp_path / "run"
    shutil.copytree(model, run)
    section = {"source": "data", "max_test_images": None}
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": section}))
    record = {"source": "data", "kind": "saved", "splits": {"test": {"n": 23}}}
    (run / "run.json").write_text(json.dumps({"data": record}))
    monkeypatch.chdir(data.parent)
    assert main(["evaluate", str(run)]) == 0
    assert "on 23 pictures of data, split test" in capsys.readouterr().out
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    line = fails(capsys, run)
    assert f"was trained on 'data', files on a disk, and there are none at {tmp_path / 'there' / 'data'}" in line
    assert "name the data with --data SOURCE" in line
    save_data(tmp_path / "there" / "data", noise(9, 20, 30))
    line = fails(capsys, run)
    assert "was tested on 23 pictures of 'data' (test), which has 9 here, not the same ones; expected the same" in line
    assert "name it with --data" in line
    assert main(["evaluate", str(run), "--data", "data"]) == 0  # asked for by name
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": {**section, "max_test_images": 23}}))
    assert main(["evaluate", str(run)]) == 0  # the run was shortened, scoring is not


def test_pictures_that_were_added_since_are_not_scored_unsaid(tmp_path, capsys):
    """Without a test split a part of train is held out by row: one picture more, and it has trained ones in it."""
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(10):
            picture = PIL.Image.fromarray(np.full((16, 16, 3), 12 * number, np.uint8))
            picture.save(tmp_path / "data" / name / f"{number}.png")
    sizes = {"model__num_hidden_layers": 1, "model__hidden_size": 16, "model__intermediate_size": 16}
    options = {"max_steps": 2, "optimization__batch_size": 4, "optimization__warmup_epochs": 0.0, "trackers": []}
    train(
        "digits", data=str(tmp_path / "data"), output=tmp_path / "run", quiet=True, data__validation_fraction=0.0,
        keep="last", model__num_attention_heads=2, **sizes, **options,
    )  # fmt: skip
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert "on 4 pictures of data, split held out of train" in capsys.readouterr().out
    for number in range(5):
        shutil.copy(tmp_path / "data" / "cat" / "3.png", tmp_path / "data" / "cat" / f"1{number}.png")
    line = fails(capsys, tmp_path / "run")
    assert "(held out of train), which has" in line
    assert "not the same ones; expected the same data" in line


def test_sigterm_leaves_nothing_half_made(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("vit_hf.evaluation.run.write_scores", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(model), "--data", str(data), "--output", str(tmp_path / "out" / "scores")])
    assert stopped.value.code == 143
    assert os.listdir(tmp_path / "out") == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_name_in_brackets_is_printed_whole(model, tmp_path, capsys):
    data = save_data(tmp_path / "my[red]set", noise(5, 20, 30))
    assert main(["evaluate", str(model), "--data", str(data)]) == 0
    assert "on 5 pictures of my[red]set, split test" in capsys.readouterr().out


def test_an_unknown_split_lists_those_there_are(model, data, capsys):
    line = fails(capsys, model, "--data", data, "--split", "holdout")
    assert "data: no split 'holdout'; expected one of ['test', 'train']" in line


def test_another_split_can_be_named(model, data, capsys):
    assert main(["evaluate", str(model), "--data", str(data), "--split", "train"]) == 0
    assert "on 10 pictures of data, split train" in capsys.readouterr().out


def test_unknown_classes_are_refused_before_anything_runs(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vit_hf.evaluation.run.build_evaluation_loader", None)
    data = save_data(tmp_path / "data", noise(4, 16, 24), ("ant", "yak"))
    assert "2 classes, 1 of them unknown to the model (first: 'yak'" in fails(capsys, model, "--data", data)


@pytest.mark.parametrize("content", ["[[0], [1]]", "{", None])
def test_reassessed_labels_of_other_data_are_refused_before_anything_runs(
    model, data, tmp_path, capsys, monkeypatch, content
):
    monkeypatch.setattr("vit_hf.evaluation.run.build_evaluation_loader", None)
    file = tmp_path / "real.json"
    if content is not None:
        file.write_text(content)
    line = fails(capsys, model, "--data", data, "--real-labels", file)
    assert re.search(r"real.json (has labels of 2 pictures|is not JSON)|there is no .*real.json", line)


def test_labels_that_are_all_missing_name_the_split(model, tmp_path, capsys):
    data = save_data(tmp_path / "data", noise(4, 16, 24), labels=[-1] * 4)
    line = fails(capsys, model, "--data", data, "--split", "test")
    assert "test: left out, no labels" in line


def test_logits_that_are_not_numbers_name_the_row(model, data, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "broken")
    (folder / "manifest.json").unlink()
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = torch.full_like(weights["classifier.weight"], 3e38)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    line = fails(capsys, folder, "--data", data, "--output", tmp_path / "out")
    assert "the scores of row 0 are not finite; the weights are damaged, or training diverged" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "8y"], "'8y' is no list of sizes; expected N or HxW, with commas between"),
        (["--image-size", "0"], "'0' is no list of sizes"),
        (["--image-size", "8,"], "'8,' is no list of sizes"),
        (["--image-size", "8", "--curve", "8"], "not allowed with argument"),
        (["--crops", "3"], "invalid choice: 3"),
    ],
)
def test_a_bad_option_is_a_question_of_usage(model, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(model), *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
