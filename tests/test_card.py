"""Model cards: what the Hub reads, and every number as the records have it."""

import json
import re
import statistics

import pytest
import yaml
from huggingface_hub import ModelCard

from vit_hf.data.pictures import DataFields
from vit_hf.sharing.card import render_card
from vit_hf.training.recipe import Recipe
from vit_hf.training.recipes import get_recipe

RECORD = {
    "top1": 0.91234,
    "top5": 0.98765,
    "loss": 0.31416,
    "n": 1234,
    "split": "test",
    "recipe": "mine",
    "seed": 0,
    "kept": "best",
    "parameters": 5_432_109,
    "steps": 4321,
    "epochs": 12.5,
    "seconds": 678.4,
    "command": "vit-hf train mine.yaml",
    "device": "Some GPU",
    "processes": 2,
    "versions": {"torch": "2.12.0", "transformers": "5.20.0"},
    "data": {
        "source": "animals",
        "kind": "folder",
        "revision": None,
        "num_labels": 17,
        "splits": {"train": {"n": 20_000, "sha256": "aa11"}, "test": {"n": 1234, "sha256": "bb22"}},
    },
}


@pytest.fixture
def run(tmp_path):
    """Give a function that writes the records of a run; keywords change results, `fields` the recipe."""

    def write(name: str = "run", *, recipe: Recipe | None = None, fields=None, **changes):
        recipe = recipe or Recipe(name="mine", data=DataFields("animals", validation_fraction=0.1))
        recipe = recipe.override({"seed": changes.get("seed", 0), **(fields or {})})
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        (folder / "results.json").write_text(json.dumps({**RECORD, "recipe": recipe.name, **changes}))
        return folder

    return write


def table(card: str) -> list[list[str]]:
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


# ---------------------------------------------------------------------------------------------- metadata
def test_the_hub_reads_task_library_and_result(run):
    card = ModelCard(render_card([run()]))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    assert "vit_hf" in data["tags"]
    assert "datasets" not in data  # not one of the Hub
    (result,) = card.data.eval_results
    assert card.data.model_name == "vit-hf mine"
    assert (result.task_type, result.metric_type, result.metric_name) == ("image-classification", "accuracy", "top-1")
    assert (result.dataset_type, result.dataset_name, result.dataset_split) == ("animals", "animals", "test")
    assert result.metric_value == 0.9123


def test_a_data_set_of_the_hub_is_linked_with_its_revision(run):
    data = {**RECORD["data"], "source": "owner/animals", "kind": "hub", "revision": "abc123"}
    card = ModelCard(render_card([run(data=data)]))
    assert card.data.to_dict()["datasets"] == "owner/animals"
    (result,) = card.data.eval_results
    assert (result.dataset_type, result.dataset_revision) == ("owner/animals", "abc123")


def test_the_recipe_in_the_card_is_the_recipe_of_the_run(run):
    folder = run(fields={"optimization.learning_rate": 3e-4})
    block = re.search(r"```yaml\n(.*?)```", render_card([folder]), flags=re.DOTALL)[1]
    assert yaml.safe_load(block) == yaml.safe_load((folder / "recipe.yaml").read_text())


# ---------------------------------------------------------------------------------------------- numbers
def test_every_number_of_one_run_equals_its_record(run):
    card = render_card([run()])
    assert table(card) == [
        ["seed", "top-1", "top-5", "cross-entropy", "n", "training time"],
        ["---"] * 6,
        ["0", "91.23%", "98.77%", "0.3142", "1,234", "678 s"],  # 98.765 is a little more in binary
    ]
    for words in (
        "17 classes and 5,432,109 parameters",
        "animals: train 20,000, test 1,234 pictures",
        "- train: `aa11`\n- test: `bb22`",
        "4,321 steps (12.5 epochs), Some GPU, 2 processes, precision no.",
        "Versions: torch 2.12.0, transformers 5.20.0.",
        "```bash\nvit-hf train mine.yaml\n```",
    ):
        assert words in card


def test_several_seeds_give_mean_and_standard_deviation(run):
    accuracies = [0.90, 0.92, 0.97]
    folders = [
        run(f"run{seed}", seed=seed, top1=top1, top5=top1 + 0.02, loss=1 - top1, seconds=100.0 + seed)
        for seed, top1 in enumerate(accuracies)
    ]
    card = render_card(folders)
    rows = table(card)[2:]
    assert [row[:2] for row in rows[:3]] == [["0", "90.00%"], ["1", "92.00%"], ["2", "97.00%"]]
    # mean 93%; deviations -3, -1, 4: sqrt((9 + 1 + 16) / 2) = 3.61
    assert rows[3] == ["mean", "93.00% ± 3.61%", "95.00%", "0.0700", "1,234", "101 s"]
    assert statistics.stdev(accuracies) == pytest.approx(0.0361, abs=1e-4)
    (result,) = ModelCard(card).data.eval_results
    assert result.metric_value == 0.93


def test_streamed_splits_have_no_number(run):
    splits = {"train": {"n": None, "sha256": "streaming"}, "test": {"n": 1234, "sha256": "bb22"}}
    card = render_card([run(data={**RECORD["data"], "splits": splits}, epochs=None)])
    assert "animals: train streamed, test 1,234 pictures" in card
    assert "4,321 steps, Some GPU" in card


# ---------------------------------------------------------------------------------------------- honest words
def test_the_card_says_what_the_weights_were_chosen_by(run):
    held_out = render_card([run("a")])
    own_split = render_card([run("b", fields={"data.validation_fraction": 0.0})])
    last = render_card([run("c", kept="last")])
    assert "the best on pictures held out of the training split" in held_out
    assert "the best on pictures of the validation split" in own_split
    assert "the last of the run" in last


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"data.max_train_images": 2000}, "trained on at most 2,000 pictures"),
        ({"data.max_test_images": 500}, "scored on at most 500 pictures"),
    ],
)
def test_a_run_on_part_of_the_data_says_so(run, fields, reason):
    card = render_card([run(fields=fields)])
    assert f"> A shortened run ({reason}): its accuracy says nothing about the full recipe." in card


@pytest.mark.parametrize("name", ["digits", "vit_finetune"])
def test_a_run_of_fewer_steps_than_its_recipe_says_so(run, name):
    recipe = get_recipe(name)
    full = {"epochs": recipe.optimization.epochs, "steps": recipe.optimization.max_steps or 4321}
    assert "shortened" not in render_card([run("full", recipe=recipe, **full)])
    fields = {"optimization.max_steps": 20}
    card = render_card([run("short", recipe=recipe, fields=fields, epochs=0.5, steps=20)])
    assert re.search(r"> A shortened run \((0\.5|20) of the recipe's [\d,.]+ (epochs|steps)\)", card)


def test_a_whole_run_is_not_called_shortened(run):
    assert "shortened" not in render_card([run()])


# ---------------------------------------------------------------------------------------------- refused
def test_runs_of_different_recipes_are_refused(run):
    folders = [run("a"), run("b", seed=1, fields={"optimization.learning_rate": 0.5})]
    with pytest.raises(ValueError, match=r"b is not a run of the same recipe and data as .*a; render them apart"):
        render_card(folders)


def test_runs_on_different_data_are_refused(run):
    splits = {**RECORD["data"]["splits"], "train": {"n": 20_000, "sha256": "cc33"}}
    folders = [run("a"), run("b", seed=1, data={**RECORD["data"], "splits": splits})]
    with pytest.raises(ValueError, match="b is not a run of the same recipe and data"):
        render_card(folders)


def test_the_same_seed_twice_is_refused(run):
    with pytest.raises(ValueError, match=r"the runs have the seeds \[0, 0\]; expected each once"):
        render_card([run("a"), run("b")])


@pytest.mark.parametrize("name", ["results.json", "recipe.yaml"])
def test_a_folder_without_its_records_is_an_error(run, name):
    folder = run()
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} has no {name}; expected the folder of a finished run"):
        render_card([folder])


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match="expected at least one finished run folder"):
        render_card([])


def test_the_command_in_the_card_names_no_folder_of_the_machine(run):
    card = render_card([run(command="vit-hf train digits --output /home/me/run --data /home/me/animals --seed 3")])
    assert "\nvit-hf train digits --data animals --seed 3\n" in card
    assert "/home/me" not in card
