"""Several processes by `accelerate launch` and the shipped configs: two CPU processes leave what one does.

Two kinds of process are tried where there is no GPU by a word to Accelerate, which has them on GPUs only: FSDP2, and
DeepSpeed (skipped where it is not installed). All the rest, gloo included, is the real thing.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from vit_hf import VitHfForImageClassification, get_recipe, train, variant
from vit_hf.evaluation.predictions import read_predictions

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "scripts" / "launch"
SCRIPT = ROOT / "scripts" / "finetune_accelerate.py"
RECIPE = {
    "data.source": "digits",
    "data.max_train_images": 96,
    "data.max_test_images": 51,  # odd: one process scores a picture of padding
    "model.num_hidden_layers": 2,
    "model.hidden_size": 32,
    "model.intermediate_size": 64,
    "model.pooling": "cls",  # the last block's short cut too
    "optimization.max_steps": 6,
    "optimization.batch_size": 32,
    "optimization.max_device_batch_size": 8,  # accumulates
    "optimization.warmup_steps": 1,
    "optimization.optimizer": "sgd",  # AdamW's first steps are about the sign of the gradient, and rounding flips signs
    "optimization.learning_rate": 0.05,
    "optimization.clip_norm": 0.1,
    "optimization.ema_decay": None,
    "checkpoint_steps": 3,
    "checkpoint_limit": 2,
    "gradient_checkpointing": True,
    "evaluate_every": 1.0,
    "keep": "last",
    "trackers": [],
}

ON_CPU = """
import sys
from accelerate import PartialState
from accelerate.state import DistributedType
from vit_hf import train

kind, *runs = sys.argv[1:]
PartialState(**({"cpu": True} if kind == "fsdp2" else {"backend": "gloo"}))
for run in runs:
    recipe, output, resume = run.split(",")
    if kind == "fsdp2":
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    train(recipe, output=output, resume=resume or None, quiet=True)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(get_recipe("digits").override(RECIPE).to_yaml())
    return path


@pytest.fixture(scope="module")
def one(recipe, tmp_path_factory):
    """The run folder of one process."""
    return train(str(recipe), output=tmp_path_factory.mktemp("one") / "run", quiet=True).output


def launch(config: str, *words: object, on_cpu: bool = True) -> subprocess.Popen:
    """Start `accelerate launch` with a shipped config, the launcher's options, a script and the script's."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / f"{config}.yaml", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    environment.pop("ACCELERATE_USE_CPU", None)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if on_cpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*launchers: subprocess.Popen) -> str:
    """Wait for launchers, which must all end well; return what they printed."""
    try:
        printed = [launcher.communicate(timeout=170)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            if launcher.poll() is None:
                launcher.terminate()  # which ends its processes
                launcher.communicate(timeout=60)
    assert not any(launcher.returncode for launcher in launchers), "\n".join(printed)[-4000:]
    return "\n".join(printed)


def half_way(run: Path, folder: Path) -> Path:
    """Copy a run as it was after step 3 of 6."""
    name = "checkpoints/step-00000003"
    shutil.copytree(run / name, folder / name)
    shutil.copy(run / "recipe.yaml", folder)
    return folder


def assert_same_tensors(a: Path, b: Path) -> None:
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, atol=5e-7, rtol=0)


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimiser and scores agree but for the order of float32 sums; steps move weights by up to 3e-3."""
    for name in ("model.safetensors", "checkpoints/step-00000006/training/optimizer.safetensors"):
        assert_same_tensors(a / name, b / name)
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (a, b)]
    results = [json.loads((run / "results.json").read_text()) for run in (a, b)]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [3, 6]
    for mine, other in zip(rows[0], rows[1], strict=True):
        assert mine["train_loss"] == pytest.approx(other["train_loss"], abs=2e-6)
        assert mine["top1"] == other["top1"]
    assert results[0]["n"] == results[1]["n"] == 51
    scores = [read_predictions(run / "predictions.parquet").scores for run in (a, b)]
    assert torch.equal(scores[0].labels, scores[1].labels)
    torch.testing.assert_close(scores[0].logits, scores[1].logits, atol=1e-5, rtol=0)
    for key in ("per_class", "confusions"):
        assert results[0][key] == results[1][key]
    assert results[0]["intervals"]["top1"] == results[1]["intervals"]["top1"]
    assert results[0]["top1"] == results[1]["top1"]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], abs=2e-6)


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------- the configs
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_each_config_and_each_tells_its_command(path):
    config = load_config_from_file(str(path))
    assert config.num_processes == 2
    assert f"--config_file scripts/launch/{path.name}" in path.read_text()


def test_fsdp2_wraps_the_layer_class_that_the_model_has():
    settings = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
    model = VitHfForImageClassification(variant("Ti/16", num_hidden_layers=1))
    assert settings["fsdp_transformer_layer_cls_to_wrap"] in {type(module).__name__ for module in model.modules()}


# ------------------------------------------------------------------------------------------- DDP
@pytest.fixture(scope="module")
def ddp(recipe, tmp_path_factory):
    """The run folder of two processes with DDP."""
    folder = tmp_path_factory.mktemp("ddp") / "run"
    finish(launch("ddp", SCRIPT, recipe, "--output", folder))
    return folder


def test_ddp_on_two_processes_trains_and_scores_like_one_process(one, ddp):
    assert json.loads((ddp / "results.json").read_text())["processes"] == 2
    assert_same_run(one, ddp)


def test_ddp_leaves_the_files_that_one_process_leaves(one, ddp):
    assert {name for name in files(ddp) if "examples/" not in name and name != "README.md"} == files(one)


def test_a_run_of_two_processes_is_resumed_by_one(one, ddp, tmp_path):
    run = half_way(ddp, tmp_path / "run")
    train(str(ddp / "recipe.yaml"), output=run, resume="auto", quiet=True)
    assert_same_run(one, run)


@pytest.mark.slow
def test_two_machines_of_one_process_each_train_like_one_process(one, recipe, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--num_machines", 2, "--main_process_ip", "127.0.0.1", "--main_process_port", port]
    output = tmp_path / "run"
    finish(*(launch("ddp", *where, "--machine_rank", rank, SCRIPT, recipe, "--output", output) for rank in (0, 1)))
    assert_same_run(one, output)


# ------------------------------------------------------------------------------------------- FSDP2
@pytest.fixture(scope="module")
def fsdp2(one, recipe, tmp_path_factory):
    """Two run folders of two processes with FSDP2: a whole run, and one of a single process that it took over."""
    folder = tmp_path_factory.mktemp("fsdp2")
    resumed = half_way(one, folder / "resumed")
    (folder / "script.py").write_text(ON_CPU)
    finish(launch("fsdp2", folder / "script.py", "fsdp2", f"{recipe},{folder / 'run'},", f"{recipe},{resumed},auto"))
    return folder / "run", resumed


def test_fsdp2_on_two_processes_trains_and_scores_like_one_process(one, fsdp2):
    assert json.loads((fsdp2[0] / "results.json").read_text())["distributed_type"] == "FSDP"
    assert_same_run(one, fsdp2[0])


def test_fsdp2_leaves_the_files_that_one_process_leaves(one, fsdp2):
    assert files(fsdp2[0]) == files(one)
    configs = [json.loads((run / "config.json").read_text()) for run in (one, fsdp2[0])]
    assert configs[0] == configs[1]


def test_a_run_of_one_process_is_resumed_by_two_with_fsdp2(one, fsdp2):
    assert_same_run(one, fsdp2[1])


def test_a_run_with_fsdp2_is_resumed_by_one_process(one, fsdp2, tmp_path):
    run = half_way(fsdp2[0], tmp_path / "run")
    train(str(fsdp2[0] / "recipe.yaml"), output=run, resume="auto", quiet=True)
    assert_same_run(one, run)


# ------------------------------------------------------------------------------------------- DeepSpeed
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_deepspeed_on_two_processes_trains_like_one_process(one, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    changes = {"checkpoint_steps": None, "checkpoint_minutes": None}
    recipe.write_text(get_recipe("digits").override({**RECIPE, **changes}).to_yaml())
    (tmp_path / "script.py").write_text(ON_CPU)
    run = tmp_path / "run"
    finish(launch("deepspeed_zero2", tmp_path / "script.py", "deepspeed", f"{recipe},{run},", on_cpu=False))
    assert_same_tensors(one / "model.safetensors", run / "model.safetensors")
