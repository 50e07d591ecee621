"""`vit-hf evaluate` behind `accelerate launch`: two real processes leave the bytes that one leaves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_scored import NAMES, noise, save_data, save_model

from vit_hf import VitHfForImageClassification
from vit_hf.cli import main
from vit_hf.evaluation.predictions import read_predictions

ROOT = Path(__file__).resolve().parents[1]
SEVERAL = """
import sys
from accelerate import PartialState
from vit_hf.cli import main

PartialState(cpu=True)
for words in sys.argv[1:]:
    assert main(words.split("|")) == 0
PartialState().destroy_process_group()
"""
PLAIN = ["--batch-size", "8"]
COMMANDS = {  # name -> words after the model; 51 pictures: seven batches, the last of three
    "plain": PLAIN,
    "one short batch": ["--batch-size", "64"],
    "views": [*PLAIN, "--image-size", "16x24,24x32", "--crops", "5", "--flip"],
    "curve": [*PLAIN, "--curve", "16x24,24x32"],
}


def launch(*words: object) -> str:
    """Run something on two CPU processes by a shipped config; return what it printed."""
    config = ROOT / "scripts" / "launch" / "ddp.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def model(tiny, randomise, tmp_path_factory):
    """A folder whose recipe names its data: 51 pictures of several sizes to test on."""
    folder = tmp_path_factory.mktemp("two")
    data = save_data(folder / "data", [*noise(30, 20, 30), *noise(21, 31, 22, seed=1)])
    config = tiny(num_labels=None, id2label=dict(enumerate(NAMES)), pooling="cls")  # the last block's short cut too
    model = save_model(folder / "model", randomise(VitHfForImageClassification(config)))
    (model / "recipe.yaml").write_text(f"data:\n  source: {data}\n")
    streamed = shutil.copytree(model, folder / "streamed")
    (streamed / "recipe.yaml").write_text(f"data:\n  source: {data}\n  streaming: true\n")
    return model


def words_of(model: Path, folder: Path) -> list[list[str]]:
    """Return the commands, which write into a folder."""
    commands = [["evaluate", str(model), *more, "--output", str(folder / name)] for name, more in COMMANDS.items()]
    streamed = str(model.parent / "streamed")
    return [*commands, ["evaluate", streamed, *PLAIN, "--output", str(folder / "streamed")]]


@pytest.fixture(scope="module")
def one(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    for words in words_of(model, folder):
        assert main(words) == 0
    return folder


@pytest.fixture(scope="module")
def two(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SEVERAL)
    printed = launch(folder / "script.py", *("|".join(words) for words in words_of(model, folder)))
    (folder / "script.py").unlink()
    assert printed.count("on 51 pictures of data, split test") == 5  # said once each, not by both processes
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["plain", "one short batch", "views", "streamed"])
def test_two_processes_leave_the_bytes_of_one(one, two, name):
    found, expected = contents(two / name), contents(one / name)
    assert sorted(expected) == ["predictions.parquet", "results.json"]
    assert found == expected


def test_two_processes_leave_the_curve_of_one_but_for_the_seconds(one, two):
    found, expected = contents(two / "curve"), contents(one / "curve")
    curves = [json.loads(files.pop("sizes.json")) for files in (found, expected)]
    for curve in curves:
        assert all(row.pop("seconds") >= 0 for row in curve["sizes"])
    assert curves[0] == curves[1]
    assert found == expected
    assert len(found) == 5


def test_every_picture_is_counted_once(model, two, one):
    labels = [place % len(NAMES) for place in range(51)]
    for name in ("plain", "views", "streamed"):
        predictions = read_predictions(two / name / "predictions.parquet")
        assert predictions.scores.labels.tolist() == labels
        assert json.loads((two / name / "results.json").read_text())["n"] == 51
    plain, streamed = (read_predictions(two / name / "predictions.parquet") for name in ("plain", "streamed"))
    assert torch.equal(plain.scores.logits, streamed.scores.logits)


@pytest.mark.slow
def test_the_command_that_the_readme_shows_gives_the_same_bytes(model, one, tmp_path):
    printed = launch("-m", "vit_hf.cli", "evaluate", model, *PLAIN, "--output", tmp_path / "out")
    assert printed.count("on 51 pictures of data, split test") == 1
    assert contents(tmp_path / "out") == contents(one / "plain")
