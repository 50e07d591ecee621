"""The proof of resuming: it holds for a run of one's own, and a resume that loses something is reported."""

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vit_hf import Recipe, get_recipe, train
from vit_hf.training import loop, session, verify
from vit_hf.training.checkpoint import step_folder
from vit_hf.training.verify import verify_resume

SMALL = {
    "data.max_train_images": 64,
    "data.max_test_images": 20,
    "model.num_hidden_layers": 1,
    "model.hidden_size": 16,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 32,
    "model.drop_path_rate": 0.2,
    "augmentation.mixup_alpha": 0.5,
    "optimization.batch_size": 8,
    "optimization.warmup_steps": 1,
    "evaluate_every": 0.25,
    "keep": "best",
    "trackers": [],
}
STEPS = 4


def small(**changes) -> Recipe:
    return get_recipe("digits").override({**SMALL, **changes})


@pytest.fixture(autouse=True)
def _no_plot(monkeypatch):
    monkeypatch.setattr(loop, "plot_learning_curves", lambda *arguments: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted, with a checkpoint after each of its steps."""
    recipe = small(**{"optimization.max_steps": STEPS, "checkpoint_steps": 1, "checkpoint_limit": STEPS})
    return recipe, train(recipe, output=tmp_path_factory.mktemp("whole") / "run", quiet=True).output


def resumed(whole: tuple[Recipe, Path], folder: Path, step: int = 2) -> Path:
    """Go on after a step in another folder; return its last checkpoint."""
    recipe, run = whole
    for path in (run / "checkpoints").glob("*-*"):
        if int(path.name.rpartition("-")[2]) <= step:
            shutil.copytree(path, folder / "checkpoints" / path.name)
    train(recipe, output=folder, resume="auto", quiet=True)
    return folder / step_folder(STEPS)


def different(whole: tuple[Recipe, Path], other: Path) -> set[str]:
    return {name for name, same in verify._compare(whole[1] / step_folder(STEPS), other).items() if not same}


# ---------------------------------------------------------------------------------------------- what is compared
def test_a_true_resume_is_the_same_in_all_that_is_compared(whole, tmp_path):
    last = resumed(whole, tmp_path)
    files = verify._compare(whole[1] / step_folder(STEPS), last)
    assert all(files.values()), files
    assert {"model.safetensors", "training/optimizer.safetensors", "training/weights.safetensors"} < set(files)
    assert {"training/state.json: rows", "training/state.json: best", "training/state.json: schedule"} < set(files)


def test_a_resume_that_loses_the_state_of_the_optimiser_is_reported(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "restore_optimizer", lambda *arguments: None)
    assert {"model.safetensors", "training/optimizer.safetensors"} <= different(whole, resumed(whole, tmp_path))


def test_a_resume_that_loses_the_averaged_weights_is_reported(whole, tmp_path, monkeypatch):
    read = session.read_weights
    monkeypatch.setattr(session, "read_weights", lambda path: (read(path)[0], read(path)[0]))
    found = different(whole, resumed(whole, tmp_path))
    assert "model.safetensors" in found
    assert "training/weights.safetensors" not in found  # what moves is not touched by it


def test_a_resume_with_other_pictures_is_reported(whole, tmp_path, monkeypatch):
    build = session.build_train_loader
    late = lambda *arguments, first_step, **options: build(*arguments, first_step=first_step + 1, **options)  # noqa: E731
    monkeypatch.setattr(session, "build_train_loader", late)
    recipe, run = whole
    for folder in (run / step_folder(2), *(run / "checkpoints").glob("best-*")):
        shutil.copytree(folder, tmp_path / "checkpoints" / folder.name)
    with pytest.raises(StopIteration):  # one step is missing at the end
        train(recipe, output=tmp_path, resume="auto", quiet=True)
    last = max((tmp_path / "checkpoints").glob("step-*"))
    assert not verify._compare(run / "checkpoints" / last.name, last)["model.safetensors"]


@pytest.mark.parametrize(
    ("file", "keys", "name"),
    [
        ("manifest.json", ["training/weights.safetensors", "sha256"], "training/weights.safetensors"),
        ("manifest.json", ["model.safetensors", "bytes"], "model.safetensors"),
        ("training/state.json", ["rows", 0, "validation_loss"], "training/state.json: rows"),
        ("training/state.json", ["best", "step"], "training/state.json: best"),
        ("training/state.json", ["schedule", "last_epoch"], "training/state.json: schedule"),
        ("training/state.json", ["optimizer", 1, "lr"], "training/state.json: optimizer"),
    ],
)
def test_one_file_or_one_number_that_differs_is_reported_and_nothing_else(whole, tmp_path, file, keys, name):
    last, other = whole[1] / step_folder(STEPS), tmp_path / "other"
    assert different(whole, last) == set()
    shutil.copytree(last, other)
    tree = inner = json.loads((other / file).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = "0" if isinstance(inner[keys[-1]], str) else inner[keys[-1]] + 1e-9
    (other / file).write_text(json.dumps(tree))
    assert different(whole, other) == {name}


def test_a_file_that_is_missing_is_reported(whole, tmp_path):
    shutil.copytree(whole[1] / step_folder(STEPS), tmp_path / "other")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    del manifest["training/weights.safetensors"]
    (tmp_path / "other" / "manifest.json").write_text(json.dumps(manifest))
    assert different(whole, tmp_path / "other") == {"training/weights.safetensors"}


def test_the_speed_of_the_machine_is_not_compared():
    row = {"step": 1, "train_loss": 2.0, "images_per_second": 10.0}
    other = copy.deepcopy(row) | {"images_per_second": 99.0}
    assert verify._without_times([row, {"best": row}]) == verify._without_times([other, {"best": other}])
    assert verify._without_times(row) != verify._without_times(row | {"train_loss": 2.5})


# ---------------------------------------------------------------------------------------------- sessions
@pytest.mark.parametrize(("interruptions", "steps"), [(0, 5), (5, 5), (7, 5), (-1, 5), (1, 1)])
def test_numbers_that_make_no_sense_are_refused(interruptions, steps):
    with pytest.raises(ValueError, match=f"{interruptions} interruptions of a run of {steps} steps; expected 1 to"):
        verify_resume(small(), interruptions=interruptions, steps=steps)


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
    """Give a function that puts a shell script in the place of Python."""

    def install(body: str) -> None:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        monkeypatch.setattr(verify, "sys", SimpleNamespace(executable=str(path)))

    return install


def test_a_session_that_fails_is_an_error_with_the_end_of_what_it_printed(interpreter):
    interpreter("echo out of luck; exit 3")
    with pytest.raises(RuntimeError, match=r"a session of the run ended with code 3:\nout of luck"):
        verify_resume(small(), steps=3, interruptions=1)


def test_sessions_are_ended_by_turns_after_a_checkpoint_and_each_goes_on_with_the_same_folder(interpreter, tmp_path):
    # counts its own sessions; all but the first and last wait for their end behind a checkpoint
    log = tmp_path / "log"
    interpreter(
        f"""echo "$PWD" "$@" >> {log}; n=$(wc -l < {log})
        case $n in 1|4) exit 5;; esac
        trap "echo TERM >> {log}.ends; exit 75" TERM
        mkdir -p "$6"/checkpoints/step-0000000$(($n-1)); while :; do sleep 0.01; done"""
    )
    said = []
    with pytest.raises(RuntimeError, match="code 5"):  # the first session has to succeed
        verify_resume(small(), steps=3, interruptions=2, say=said.append)
    assert said == ["undisturbed: 3 steps"]
    text = (tmp_path / "python").read_text()
    (tmp_path / "python").write_text(text.replace("1|4) exit 5", "1) exit 0;; 4) exit 5"))
    log.unlink()
    with pytest.raises(RuntimeError, match="code 5"):
        verify_resume(small(), steps=3, interruptions=2, say=said.append)
    assert said[1:] == [
        "undisturbed: 3 steps",
        "interrupted: SIGKILL after step 1",
        "interrupted: SIGTERM after step 2",
        "interrupted: to the end",
    ]
    sessions = [re.sub(r"/\S*/verify-resume-\w+/", "", line) for line in log.read_text().splitlines()]
    command = f"{Path.cwd()} -m vit_hf.cli train recipe.yaml --output {{}} --resume auto"  # so paths in the recipe hold
    assert sessions == [command.format(name) for name in ("undisturbed", *["interrupted"] * 3)]
    assert Path(f"{log}.ends").read_text().split() == ["TERM"]


@pytest.mark.slow
def test_a_run_that_is_killed_and_stopped_and_resumed_equals_one_that_is_not():
    torch.manual_seed(0)
    said = []
    proof = verify_resume(small(), interruptions=2, steps=6, say=said.append)
    assert [kind for _, kind in proof.interruptions] == ["SIGKILL", "SIGTERM"]
    assert proof.identical, proof.files
    assert "training/weights.safetensors" in proof.files
    assert len(said) == 4
