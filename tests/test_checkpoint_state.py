"""A checkpoint of training: what is written comes back bit for bit, and only where it belongs."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vit_hf import Recipe, get_recipe
from vit_hf.training.checkpoint import (
    FREE_FIELDS,
    best_folder,
    check_same_run,
    checkpoints,
    newest_checkpoint,
    optimizer_tensors,
    read_optimizer,
    read_state,
    read_weights,
    restore_optimizer,
    rotate,
    step_folder,
    write_training_state,
)
from vit_hf.training.muon import MuonAdamW
from vit_hf.training.recipe import field_names
from vit_hf.training.state import DamagedFolderError, RunFolder


# ---------------------------------------------------------------------------------------------- the optimiser
def network() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    model[2].bias.requires_grad = False
    return model


def optimizer_of(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0, "lr": 0.02},
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
    if kind == "muon":  # two matrices in each
        groups[0]["matrices"] = 2
        return MuonAdamW(groups, lr=0.01, betas=(0.9, 0.95), fused=True)
    return torch.optim.SGD(groups, lr=0.01, momentum=0.9 if kind == "sgd" else 0.0)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)  # as a schedule does
        optimizer.step()


def through_files(folder: Path, tensors: dict, groups: list[dict]) -> tuple[dict, list[dict]]:
    """Write a checkpoint and read it again."""
    write_training_state(folder, {"optimizer": groups, "optimizer_tensors": sorted(tensors)}, tensors, None)
    state = json.loads((folder / "training" / "state.json").read_text())
    return read_optimizer(folder, state), state["optimizer"]


def test_a_lost_or_added_tensor_of_the_optimiser_is_named(tmp_path):
    (tmp_path / "training").mkdir()
    save_file({"a/exp_avg": torch.zeros(1)}, tmp_path / "training" / "optimizer.safetensors")
    for listed in (["a/exp_avg", "a/step"], []):
        with pytest.raises(DamagedFolderError, match=r"optimizer.safetensors has other tensors than .* \(a/(step|exp)"):
            read_optimizer(tmp_path, {"optimizer_tensors": listed})


@pytest.mark.parametrize("kind", ["adamw", "muon", "sgd", "plain sgd"])
@pytest.mark.parametrize("done", [0, 1, 4])
def test_an_optimiser_that_was_taken_apart_and_put_back_takes_the_same_next_steps_bit_for_bit(tmp_path, kind, done):
    model = network()
    optimizer = optimizer_of(model, kind)
    take_steps(model, optimizer, range(done))
    tensors, groups = through_files(tmp_path, *optimizer_tensors(model, optimizer))
    other = network()
    other.load_state_dict(model.state_dict())
    restored = optimizer_of(other, kind)
    restore_optimizer(other, restored, tensors, groups)
    for one, two in zip(optimizer.param_groups, restored.param_groups, strict=True):
        assert [p.shape for p in one["params"]] == [p.shape for p in two["params"]]
        for key in set(one) - {"params"}:
            assert two[key] == (list(one[key]) if isinstance(one[key], tuple) else one[key])
    take_steps(model, optimizer, range(done, done + 3))
    take_steps(other, restored, range(done, done + 3))
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_without_the_state_the_next_steps_differ(tmp_path):
    model, other = network(), network()
    optimizer = optimizer_of(model, "adamw")
    take_steps(model, optimizer, range(2))
    other.load_state_dict(model.state_dict())
    take_steps(model, optimizer, range(2, 3))
    take_steps(other, optimizer_of(other, "adamw"), range(2, 3))
    assert not torch.equal(model[0].weight, other[0].weight)


def test_tensors_are_named_by_parameter_and_frozen_parameters_have_none():
    model = network()
    optimizer = optimizer_of(model, "adamw")
    take_steps(model, optimizer, range(1))
    tensors, groups = optimizer_tensors(model, optimizer)
    trained = ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight"]
    assert set(tensors) == {f"{name}/{key}" for name in trained for key in ("step", "exp_avg", "exp_avg_sq")}
    assert [group["params"] for group in groups] == [["0.weight", "2.weight"], ["0.bias", "1.weight", "1.bias"]]
    json.dumps(groups, allow_nan=False)


def test_an_optimiser_with_other_parameters_or_groups_is_refused_and_unchanged():
    model = network()
    optimizer = optimizer_of(model, "adamw")
    take_steps(model, optimizer, range(2))
    tensors, groups = optimizer_tensors(model, optimizer)
    swapped = [{**groups[0], "params": groups[1]["params"]}, {**groups[1], "params": groups[0]["params"]}]
    fewer = [{**groups[0], "params": groups[0]["params"][:-1]}, groups[1]]
    before = copy.deepcopy(optimizer.state_dict())
    for wrong in (swapped, fewer, groups[:1]):
        with pytest.raises(ValueError, match="the optimiser of the checkpoint has other parameters, or groups them"):
            restore_optimizer(model, optimizer, tensors, wrong)
    with pytest.raises(ValueError, match=r"optimiser state '2.bias/exp_avg' of a parameter that is not trained"):
        restore_optimizer(model, optimizer, {**tensors, "2.bias/exp_avg": torch.zeros(4)}, groups)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for number, state in before["state"].items():
        assert all(torch.equal(after["state"][number][key], tensor) for key, tensor in state.items())


# ---------------------------------------------------------------------------------------------- files
def checkpoint(folder: RunFolder, step: int, *, best: int | None = None, weights: dict | None = None) -> Path:
    def write(path: Path) -> None:
        save_file({"w": torch.full((3,), float(step))}, path / "model.safetensors")
        state = {"step": step, "best": None if best is None else {"step": best}}
        write_training_state(path, state, {"w/exp_avg": torch.ones(3)}, weights)

    return folder.publish(step_folder(step), write)


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    yield folder
    folder.close()


def test_weights_that_move_are_told_from_averaged_ones(run):
    moving, averaged = read_weights(checkpoint(run, 1))
    assert averaged is None
    assert moving["w"].tolist() == [1.0] * 3
    moving, averaged = read_weights(checkpoint(run, 2, weights={"w": torch.zeros(2, 3).T}))  # not contiguous
    assert moving["w"].tolist() == [[0.0, 0.0]] * 3
    assert averaged["w"].tolist() == [2.0] * 3


def test_weights_that_cannot_be_read_are_damage(run):
    path = checkpoint(run, 1)
    (path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(DamagedFolderError, match=r"step-00000001 cannot be read"):
        read_weights(path)


def test_state_with_a_number_that_json_has_not_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_training_state(tmp_path, {"loss_sum": float("nan")}, {}, None)


def test_a_folder_that_is_no_checkpoint_is_not_one_to_resume_from(run):
    for path in (run.path, run.publish(best_folder(3), lambda folder: (folder / "config.json").write_text("{}"))):
        with pytest.raises(DamagedFolderError, match="is no checkpoint to resume from; expected a folder checkpoints/"):
            read_state(path)


def test_checkpoints_are_listed_newest_first_and_nothing_else_is_taken_for_one(run):
    for step in (9, 100_000_001, 20, 3):
        checkpoint(run, step)
    for other in ("best-00000030", "step-40", "step-0000004x", "step-00000050.old", ".writing-step-00000060"):
        (run.path / "checkpoints" / other).mkdir()
    assert [path.name for path in checkpoints(run.path)] == [
        "step-100000001",
        "step-00000020",
        "step-00000009",
        "step-00000003",
    ]


def damage(path: Path, how: str) -> None:
    target = path / "training" / "optimizer.safetensors"
    if how == "shorter":
        target.write_bytes(target.read_bytes()[:-1])
    elif how == "flipped":
        content = bytearray(target.read_bytes())
        content[-1] ^= 1
        target.write_bytes(content)
    elif how == "missing":
        target.unlink()
    elif how == "no state":
        (path / "training" / "state.json").unlink()
    elif how == "no manifest":
        (path / "manifest.json").unlink()
    else:
        (path / "manifest.json").write_text("[1]")


@pytest.mark.parametrize("how", ["shorter", "flipped", "missing", "no state", "no manifest", "odd manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(run, how, caplog):
    paths = [checkpoint(run, step) for step in (1, 2, 3)]
    damage(paths[2], how)
    path, state = newest_checkpoint(run.path)
    assert path == paths[1]
    assert state["step"] == 2
    assert [str(paths[2]) in record.getMessage() for record in caplog.records] == [True]
    assert "the checkpoint before it is taken" in caplog.text


def test_when_all_checkpoints_are_damaged_the_newest_is_named_and_nothing_started_anew(run):
    for step, how in ((1, "missing"), (2, "flipped")):
        damage(checkpoint(run, step), how)
    expected = (
        r"step-00000002/training/optimizer.safetensors has another SHA-256.*no other checkpoint .* start a new run"
    )
    with pytest.raises(DamagedFolderError, match=expected):
        newest_checkpoint(run.path)


def test_a_run_without_checkpoints_has_none(run, tmp_path):
    assert newest_checkpoint(run.path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("steps", "best", "limit", "best_step", "kept"),
    [
        ({}, [], 1, None, []),
        ({1: None, 2: None, 3: None}, [], 1, None, ["step-3"]),
        ({1: None, 2: None, 3: None}, [], 2, None, ["step-2", "step-3"]),
        ({1: None}, [], 5, None, ["step-1"]),
        ({4: 4}, [2, 4], 1, 4, ["best-4", "step-4"]),
        ({3: 2, 4: 4}, [2, 4], 2, 4, ["best-2", "best-4", "step-3", "step-4"]),
        ({3: 2, 4: 4}, [2, 4], 1, 4, ["best-4", "step-4"]),
        ({3: 2}, [2, 4], 1, 4, ["best-2", "best-4", "step-3"]),  # the new best is newer than the checkpoint
        ({3: 2, 9: 2}, [2], 1, 2, ["best-2", "step-9"]),
        ({3: None}, [2], 1, None, ["step-3"]),  # resumed from before the best was found
        ({9: 9, 10: 9}, [2, 9], 1, 9, ["best-9", "step-10"]),  # not by the order of letters
    ],
)
def test_rotation_keeps_the_newest_checkpoints_and_every_best_they_refer_to(run, steps, best, limit, best_step, kept):
    for step, best_of_step in steps.items():
        checkpoint(run, step, best=best_of_step)
    for step in best:
        run.publish(best_folder(step), lambda folder: (folder / "config.json").write_text("{}"))
    rotate(run, step=10, limit=limit, best_step=best_step)
    left = (path.name for path in (run.path / "checkpoints").iterdir() if not path.name.startswith("."))
    assert sorted(left) == sorted(f"{kind}-{int(step):08d}" for kind, step in (name.split("-") for name in kept))


def test_what_lies_beyond_the_step_that_was_reached_goes_and_takes_no_place(run):
    for step in (2, 3, 4, 5):
        checkpoint(run, step)
    rotate(run, step=3, limit=1, best_step=None)  # resumed after 2, because 4 and 5 are damaged
    assert [path.name for path in checkpoints(run.path)] == ["step-00000003"]


def test_rotation_goes_on_over_a_damaged_checkpoint(run):
    for step in (1, 2):
        checkpoint(run, step, best=1)
    run.publish(best_folder(1), lambda folder: (folder / "config.json").write_text("{}"))
    damage(run.path / step_folder(2), "no state")
    rotate(run, step=2, limit=2, best_step=None)
    assert {path.name for path in checkpoints(run.path)} == {"step-00000002", "step-00000001"}
    assert (run.path / best_folder(1)).is_dir()  # for step 1


# ---------------------------------------------------------------------------------------------- the same run?
DATA = {"splits": {"train": {"n": 9, "sha256": "aa"}, "test": {"n": 4, "sha256": "bb"}}}


def state_of(recipe: Recipe) -> dict:
    return json.loads(json.dumps({"recipe": recipe.to_dict(), "data": DATA}))  # as it is read from a file


def test_every_free_field_is_a_field_of_the_recipe():
    assert sorted(FREE_FIELDS - set(field_names())) == []


def test_the_same_recipe_and_data_are_the_same_run():
    check_same_run(state_of(get_recipe("digits")), get_recipe("digits"), DATA, Path("x"))


FREE = {
    "name": "other",
    "data.source": "./elsewhere",
    "data.image_column": "img",
    "data.label_column": "class",
    "optimization.max_device_batch_size": 8,
    "evaluation_batch_size": 3,
    "workers": 2,
    "cpu_threads": 2,
    "gradient_checkpointing": True,
    "compile": True,
    "trackers": [],
    "checkpoint_minutes": None,
    "checkpoint_steps": 5,
    "checkpoint_limit": 3,
    "hang_timeout_minutes": None,
}


def test_the_free_fields_are_these():
    assert {*FREE, "model.init_from"} == FREE_FIELDS


@pytest.mark.parametrize("name", FREE)
def test_a_free_field_may_differ(name):
    recipe = get_recipe("digits")
    changed = recipe.override({name: FREE[name]})
    assert changed != recipe
    check_same_run(state_of(recipe), changed, DATA, Path("x"))


def test_where_the_weights_came_from_may_differ():
    recipe = get_recipe("vit_finetune").override({"data.source": "digits", "model.init_from": "./before"})
    check_same_run(state_of(recipe), recipe.override({"model.init_from": "./moved"}), DATA, Path("x"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1),
        ("optimization.loss", "bce"),
        ("optimization.optimizer", "muon"),
        ("optimization.learning_rate", 0.5),
        ("optimization.max_steps", 7),
        ("optimization.batch_size", 32),
        ("optimization.betas", [0.9, 0.95]),
        ("augmentation.mixup_alpha", 0.2),
        ("augmentation.crop_area", [0.5, 1.0]),
        ("model.hidden_size", 32),
        ("model.drop_path_rate", 0.1),
        ("model.freeze", ["vit.*"]),
        ("data.validation_fraction", 0.2),
        ("data.max_train_images", 50),
        ("keep", "best"),
        ("evaluate_every", 3.0),
        ("mixed_precision", "bf16"),
    ],
)
def test_any_other_field_that_differs_is_named_with_both_values(name, value):
    recipe = get_recipe("digits")
    expected = (
        rf"^x/step belongs to another run: {name} was .* and is .*\. Resume with the recipe.yaml of its run folder"
    )
    with pytest.raises(ValueError, match=expected) as error:
        check_same_run(state_of(recipe), recipe.override({name: value}), DATA, Path("x/step"))
    assert f"is {value!r}" in str(error.value)
    assert str(error.value).count(" was ") == 1


def test_all_fields_of_the_recipe_are_compared_but_the_free_ones():
    recipe = get_recipe("digits")
    for entry in dataclasses.fields(Recipe):
        before = state_of(recipe)
        before["recipe"][entry.name] = {"changed": 1} if isinstance(before["recipe"][entry.name], dict) else "changed"
        if entry.name in FREE_FIELDS:
            check_same_run(before, recipe, DATA, Path("x"))
        else:
            with pytest.raises(ValueError, match=rf"another run: .*{entry.name}"):
                check_same_run(before, recipe, DATA, Path("x"))


def test_all_differences_are_listed():
    recipe = get_recipe("digits")
    changed = recipe.override({"seed": 4, "keep": "best", "workers": 1})
    data = {"splits": {"train": {"n": 8, "sha256": "cc"}, "test": DATA["splits"]["test"]}}
    with pytest.raises(ValueError, match="another run") as error:
        check_same_run(state_of(recipe), changed, data, Path("x"))
    message = str(error.value)
    listed = ["keep was 'last' and is 'best'", "seed was 0 and is 4", "n of train was 9 and is 8"]
    assert all(text in message for text in [*listed, "sha256 of train was 'aa' and is 'cc'"])
    assert message.count(" was ") == 4


@pytest.mark.parametrize(
    ("splits", "difference"),
    [
        ({"train": {"n": 9, "sha256": "aa"}}, "number of splits was 2 and is 1"),
        ({**DATA["splits"], "test": {"n": 4, "sha256": "zz"}}, "sha256 of test was 'bb' and is 'zz'"),
        ({**DATA["splits"], "validation": {"n": 2, "sha256": "dd"}}, "number of splits was 2 and is 3"),
    ],
)
def test_other_pictures_are_another_run(splits, difference):
    recipe = get_recipe("digits")
    with pytest.raises(ValueError, match=difference):
        check_same_run(state_of(recipe), recipe, {"splits": splits}, Path("x"))
