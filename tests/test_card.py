"""Model cards: what the Hub reads, what people see, every number with its record, and no word of a record let loose."""

import json
import os
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from accelerate import Accelerator
from hub_server import Hub
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from vit_hf import (
    VitHfConfig,
    VitHfForImageClassification,
    VitHfForMaskedImageModeling,
    VitHfImageProcessor,
    VitHfModel,
)
from vit_hf.checkpoints.receipt import Fact, FileRecord, Receipt, TensorEntry
from vit_hf.data.pictures import DataFields, open_pictures
from vit_hf.evaluation.analysis import analyse
from vit_hf.evaluation.predictions import PREDICTIONS, Predictions, write_predictions
from vit_hf.evaluation.scoring import Scores
from vit_hf.evaluation.superclasses import CIFAR100
from vit_hf.sharing.card import eval_result_files, render_card, write_card
from vit_hf.sharing.card.markdown import one_line, plain
from vit_hf.training.recipe import ModelFields, Recipe
from vit_hf.training.recipes import get_recipe
from vit_hf.training.setup import describe_run

LABELS = [f"kind {letter}" for letter in "abcdefghijklmnopq"]
# correct pictures of each class, of 70; the last class has none in the split
CORRECT = [70, 33, 69, 68, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61]
RECORD = {
    "top1": 0.91234,
    "top5": 0.98765,
    "balanced_accuracy": 0.90321,
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
    "base_model": None,
    "started": "2026-01-02T03:04:05+00:00",
    "git_commit": "0123456789abcdef",
    "device": "Some GPU",
    "processes": 2,
    "versions": {"torch": "2.12.0", "transformers": "5.20.0"},
    "energy_kwh": 0.01234567,
    "energy_source": "the GPU's own counter",
    "intervals": {
        "top1": [0.88111, 0.93222],
        "top5": [0.97333, 0.99444],
        "balanced_accuracy": [0.87654, 0.92345],
        "loss": [0.28555, 0.34666],
        "expected_calibration_error": [0.04111, 0.06222],
        "brier": [0.13111, 0.15999],
        "temperature": [1.1712, 1.2987],
        "calibrated_error": [0.0, 0.01678],
    },
    "calibration": {
        "expected_calibration_error": 0.05321,
        "brier": 0.14567,
        "temperature": 1.23456,
        "calibrated_error": 0.01234,
        "bins": [[0, None, None], [100, 0.40123, 0.35], [0, None, None], [300, 0.97531, 0.92]],
    },
    "per_class": [
        [name, 70, correct, correct / 70 - 0.0512 * (correct > 9), min(correct / 70 + 0.0321, 1)]
        for name, correct in zip(LABELS, CORRECT, strict=False)
    ],
    "confusions": [["kind b", "kind c", 29], ["kind e", "kind b", 11], ["kind d", "kind a", 2]],
    "data": {
        "source": "animals",
        "kind": "folder",
        "revision": None,
        "num_labels": 17,
        "splits": {"train": {"n": 20_000, "sha256": "aa11"}, "test": {"n": 1234, "sha256": "bb22"}},
    },
}
ON_HUB = {**RECORD["data"], "source": "owner/animals", "kind": "hub", "revision": "abc123"}


def small(**fields) -> VitHfConfig:
    sizes = {"image_size": [16, 24], "patch_size": 4, "hidden_size": 32, "num_hidden_layers": 3}
    return VitHfConfig(**{**sizes, "num_attention_heads": 4, "intermediate_size": 48, "pooling": "gap", **fields})


def write_config(folder: Path, config: VitHfConfig, model_class: str = "VitHfForImageClassification") -> None:
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": [model_class]}))


@pytest.fixture
def run(tmp_path):
    """Give a function that writes the records of a run; keywords change results, `fields` the recipe.

    A key that is to be missing in the results is given as `...`.
    """

    def write(name: str = "run", *, recipe: Recipe | None = None, fields=None, labels=LABELS, **changes):
        recipe = recipe or Recipe(name="mine", data=DataFields("animals", validation_fraction=0.1))
        recipe = recipe.override({"seed": changes.get("seed", 0), **(fields or {})})
        folder = tmp_path / name
        folder.mkdir()
        (folder / "recipe.yaml").write_text(recipe.to_yaml())
        results = {**RECORD, "recipe": recipe.name, **changes}
        results = {key: value for key, value in results.items() if value is not ...}
        (folder / "results.json").write_text(json.dumps(results))
        masked = "top1" not in results
        config = small(id2label=dict(enumerate(labels)))
        write_config(folder, config, "VitHfForMaskedImageModeling" if masked else "VitHfForImageClassification")
        VitHfImageProcessor(size={"height": 16, "width": 24}).to_json_file(folder / "preprocessor_config.json")
        return folder

    return write


def masked(run, **changes):
    """A run of a model for masked images, which has no classes."""
    gone = ("top1", "top5", "balanced_accuracy", "intervals", "calibration", "per_class", "confusions")
    return run(**{**dict.fromkeys(gone, ...), **changes})


@pytest.fixture
def converted(tmp_path):
    """Give a function that writes a model folder without results, with a receipt unless `receipt` is None."""

    def write(name="converted", model_class=VitHfForImageClassification, receipt=..., labels=("cat", "dog")):
        folder = tmp_path / name
        model_class(small(id2label=dict(enumerate(labels)))).save_pretrained(folder)
        processor = VitHfImageProcessor(
            size={"shortest_edge": 27}, resample=3, do_center_crop=True, crop_size={"height": 16, "width": 24}
        )
        processor.save_pretrained(folder)
        if receipt is ...:
            tensors = [TensorEntry("exact", f"tensor{i}", (1,), ("a",), ((1,),), "same values") for i in range(37)]
            tensors.append(TensorEntry("resampled", "positions", (1,), ("b",), ((1,),), "from 14x14 to 4x6"))
            tensors.append(TensorEntry("dropped", None, None, ("c",), ((1,),), "no use"))
            files = [FileRecord("weights.npz", 345_678, "cc33")]
            receipt = Receipt("google", "owner/original", files, [Fact("hidden_act", "gelu", "the code")], tensors)
        if receipt is not None:
            receipt.save(folder)
        return folder

    return write


# ---------------------------------------------------------------------------------------------- reading a card
def parsed(card: str):
    """The tokens of a card's text, HTML let through as on the Hub, which cleans it only afterwards."""
    return MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)


def tables(card: str) -> list[list[list[str]]]:
    """The cells of each table as they are shown."""
    found: list[list[list[str]]] = []
    for token in parsed(card):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and found and len(found[-1]) and token.level == 4:
            found[-1][-1].append(shown(token))
    return found


def shown(token) -> str:
    return "".join(" " if part.type == "softbreak" else part.content for part in token.children)


def text(card: str) -> str:
    """All that a reader sees, code too."""
    tokens = parsed(card)
    return "\n".join(
        shown(token) if token.type == "inline" else token.content
        for token in tokens
        if token.type in ("inline", "fence")
    )


def code(card: str, language: str) -> list[str]:
    return [token.content for token in parsed(card) if token.type == "fence" and token.info == language]


# ---------------------------------------------------------------------------------------------- metadata
def test_the_hub_reads_task_library_and_results(run):
    card = ModelCard(render_card([run()]))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-classification"
    assert data["metrics"] == ["accuracy"]
    assert data["tags"] == ["vit_hf", "vision-transformer"]
    assert {"license", "datasets", "base_model"} & set(data) == set()  # nobody said so
    assert card.data.model_name == "vit-hf mine"
    top1, top5 = card.data.eval_results
    assert (top1.task_type, top1.metric_type, top1.metric_name) == ("image-classification", "accuracy", "top-1")
    assert (top1.dataset_type, top1.dataset_name, top1.dataset_split) == ("animals", "animals", "test")
    assert (top1.metric_value, top5.metric_value, top5.metric_name) == (0.9123, 0.9877, "top-5")


def test_a_data_set_of_the_hub_is_linked_with_its_revision(run):
    card = ModelCard(render_card([run(data=ON_HUB)]))
    assert card.data.to_dict()["datasets"] == ["owner/animals"]
    top1, _ = card.data.eval_results
    assert (top1.dataset_type, top1.dataset_revision) == ("owner/animals", "abc123")


def test_the_model_that_was_fine_tuned_is_linked_when_it_is_on_the_hub(run):
    fields = {"model.init_from": "owner/base"}
    linked = render_card([run("a", fields=fields, base_model="owner/base")])
    assert ModelCard(linked).data.base_model == "owner/base"
    assert "fine-tuned from owner/base on animals" in text(linked)
    local = render_card([run("b", fields=fields)])  # owner/base was a folder
    assert ModelCard(local).data.base_model is None
    assert "owner/base" not in local
    assert "fine-tuned on animals" in text(local)


def test_a_run_records_its_start_on_the_hub_but_not_a_folder(tmp_path, monkeypatch):
    recipe = Recipe(name="mine", data=DataFields("digits"), model=ModelFields(init_from="owner/base"))
    pictures, accelerator = open_pictures(recipe.data), Accelerator()
    monkeypatch.chdir(tmp_path)
    assert describe_run(recipe, pictures, accelerator)["base_model"] == "owner/base"
    (tmp_path / "owner" / "base").mkdir(parents=True)
    assert describe_run(recipe, pictures, accelerator)["base_model"] is None


def test_a_masked_image_model_is_found_as_an_encoder_and_has_no_accuracy(run):
    data = ModelCard(render_card([masked(run)])).data.to_dict()
    assert data["pipeline_tag"] == "image-feature-extraction"
    assert "masked-image-modeling" in data["tags"]
    assert "model-index" not in data
    assert "metrics" not in data


def test_top5_of_five_classes_says_nothing_and_is_left_out(run):
    card = render_card([run(labels=LABELS[:5], data={**RECORD["data"], "num_labels": 5})])
    assert "top-5" not in card


@pytest.mark.parametrize("kind", ["run", "masked", "converted"])
def test_licence_and_hub_id_are_shown_and_outlive_a_second_rendering(run, converted, kind):
    folder = {"run": run, "masked": lambda: masked(run), "converted": converted}[kind]()
    assert "No licence was named by its owner." in render_card([folder])
    assert "FOLDER_OR_HUB_ID" in render_card([folder])
    first = render_card([folder], license="apache-2.0", repo="someone/model")
    assert ModelCard(first).data.license == "apache-2.0"
    assert "apache-2.0" in text(first)
    assert '"someone/model"' in first
    assert "FOLDER_OR_HUB_ID" not in first
    (folder / "README.md").write_text(first)
    assert render_card([folder]) == first
    assert '"another/place"' in render_card([folder], repo="another/place")


def test_the_hub_id_of_somebody_elses_card_is_not_taken_over(converted):
    folder = converted()
    (folder / "README.md").write_text("---\nmodel_name: google/vit\nlicense: mit\n---\n# ViT\n")
    card = render_card([folder])
    assert "google/vit" not in card
    assert ModelCard(card).data.license == "mit"


def test_results_on_hub_data_are_written_in_the_hubs_new_form(run):
    from huggingface_hub import parse_eval_result_entries

    folder = run(data=ON_HUB, fields={"data.config_name": "small"})
    ((name, content),) = eval_result_files(folder).items()
    assert name == ".eval_results/owner__animals.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(content))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("owner/animals", "small", "abc123")
    assert entry.value == 0.9123
    assert entry.notes == "top-1 accuracy as a fraction, 95% interval 0.8811 to 0.9322, split test, 1234 pictures"


def test_results_on_other_data_or_none_have_no_such_file(run, converted):
    assert eval_result_files(run("local")) == {}
    assert eval_result_files(masked(run, name="masked", data=ON_HUB)) == {}
    assert eval_result_files(converted()) == {}


UPLOAD = """
import sys, warnings
from pathlib import Path
from huggingface_hub import HfApi

warnings.simplefilter("error", UserWarning)  # what the Hub has to remark on the metadata
api = HfApi()
repo = api.create_repo("cards").repo_id
for path in sys.argv[1:]:
    try:
        api.upload_file(path_or_fileobj=Path(path).read_bytes(), path_in_repo="README.md", repo_id=repo)
        print("accepted")
    except (ValueError, UserWarning) as error:
        print(repr(error))
"""


def test_the_hub_accepts_the_metadata_of_every_kind_of_card(run, converted, tmp_path):
    cards = {
        "run": render_card([run(data=ON_HUB, base_model="owner/base")], license="apache-2.0", repo="someone/model"),
        "masked": render_card([masked(run, name="masked")]),
        "converted": render_card([converted()], license="mit", repo="someone/model"),
        "hostile": render_card([hostile_run(run)]),
        "wrong": render_card([run("b")]).replace("library_name: transformers", "license: [1, 2]"),
    }
    paths = [tmp_path / f"{name}.md" for name in cards]
    for path, card in zip(paths, cards.values(), strict=True):
        path.write_text(card, encoding="utf-8")
    with Hub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        words = [sys.executable, "-c", UPLOAD, *map(str, paths)]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    *answers, wrong = done.stdout.splitlines()
    assert answers == ["accepted"] * 4, done.stdout
    assert "license" in wrong


# ---------------------------------------------------------------------------------------------- numbers
def test_every_score_of_one_run_equals_its_record(run):
    card = render_card([run()])
    scores, best, worst, confusions, bins, splits, _ = tables(card)
    assert scores == [
        ["seed", "top-1", "top-5", "balanced", "cross-entropy", "pictures", "training time"],
        [
            "0",
            "91.23% (88.11% to 93.22%)",
            "98.77% (97.33% to 99.44%)",  # 98.765 is a little more in binary
            "90.32% (87.65% to 92.34%)",  # and 92.345 a little less
            "0.3142 (0.2856 to 0.3467)",
            "1,234",
            "678 s",
        ],
    ]
    assert best[1:] == [
        ["kind a", "70", "70", "100.0% (94.9% to 100.0%)"],
        ["kind c", "69", "70", "98.6% (93.5% to 100.0%)"],
        ["kind d", "68", "70", "97.1% (92.0% to 100.0%)"],
        ["kind p", "61", "70", "87.1% (82.0% to 90.4%)"],
        ["kind o", "60", "70", "85.7% (80.6% to 88.9%)"],
    ]
    assert [row[:2] for row in worst[1:]] == [
        ["kind b", "33"],
        ["kind e", "50"],
        ["kind f", "51"],
        ["kind g", "52"],
        ["kind h", "53"],
    ]
    assert confusions[1:] == [["kind b", "kind c", "29"], ["kind e", "kind b", "11"], ["kind d", "kind a", "2"]]
    assert bins[1:] == [["25% to 50%", "100", "40.1%", "35.0%"], ["75% to 100%", "300", "97.5%", "92.0%"]]
    assert splits[1:] == [["train", "20,000", "aa11"], ["test", "1,234", "bb22"]]


def test_what_is_said_of_one_run_equals_its_record(run):
    words = text(render_card([run()]))
    for said in (
        "An image classifier with 17 classes and 5,432,109 parameters, trained from scratch on animals.",
        "pictures of 16 x 24 pixels in patches of 4 x 4; 3 blocks of width 32 with 4 heads and an MLP of width 48;",
        "1 of the classes have no picture in the split.",
        "Expected calibration error 0.0532 (0.0411 to 0.0622), Brier score 0.1457 (0.1311 to 0.1600)",
        "Logits divided by a temperature of 1.235 (1.171 to 1.299) say best how sure the model may be;",
        "by the one that fits the other half, the expected calibration error is 0.0123 (0.0000 to 0.0168).",
        "Balanced is the mean of the classes' own top-1",
        # (100 * 0.40123 + 300 * 0.97531) / 400, (100 * 0.35 + 300 * 0.92) / 400
        "a mean probability of 83.2% and is the right one in 77.8%: on the whole it is surer than it is right",
        "4,321 steps (12.5 epochs), 128 pictures a step",
        "Some GPU; 2 processes",
        "0.01235 kWh (the GPU's own counter)",
        "commit 0123456789abcdef",
        "torch 2.12.0, transformers 5.20.0.",
    ):
        assert said in words


def test_several_seeds_give_mean_and_standard_deviation(run):
    accuracies = [0.90, 0.92, 0.97]
    folders = [
        run(
            f"run{seed}",
            seed=seed,
            top1=top1,
            top5=top1 + 0.02,
            balanced_accuracy=2 * top1 - 1,
            loss=1 - top1,
            seconds=100.0 + seed,
            intervals=...,
        )
        for seed, top1 in enumerate(accuracies)
    ]
    card = render_card(folders)
    rows = tables(card)[0][1:]
    assert [row[:2] for row in rows[:3]] == [["0", "90.00%"], ["1", "92.00%"], ["2", "97.00%"]]
    # mean 93%; deviations -3, -1, 4: sqrt((9 + 1 + 16) / 2) = 3.61
    # twice that
    both = ["93.00% ± 3.61%", "95.00% ± 3.61%", "86.00% ± 7.21%"]
    assert rows[3] == ["mean", *both, "0.0700 ± 0.0361", "1,234", "101 s"]
    assert statistics.stdev(accuracies) == pytest.approx(0.0361, abs=1e-4)
    top1, _ = ModelCard(card).data.eval_results
    assert top1.metric_value == 0.93


def test_classes_and_calibration_of_several_seeds_are_added_up(run):
    bins = [[0, None, None]] * 3 + [[100, 0.9, 1.0]]
    other = {"expected_calibration_error": 0.07321, "brier": 0.16567, "temperature": 1.43456, "bins": bins}
    other["calibrated_error"] = 0.03234
    folders = [run("a"), run("b", seed=1, per_class=[["kind b", 70, 70], ["kind q", 5, 0]], calibration=other)]
    card = render_card(folders)
    _, _, worst, _, bins, *_ = tables(card)
    assert worst[1:] == [
        ["kind q", "0", "5", "0.0%"],
        ["kind e", "50", "70", "71.4%"],
        ["kind f", "51", "70", "72.9%"],
        ["kind b", "103", "140", "73.6%"],
        ["kind g", "52", "70", "74.3%"],
    ]
    # (300 * 0.97531 + 100 * 0.9) / 400, (300 * 0.92 + 100) / 400
    assert bins[1:] == [["25% to 50%", "100", "40.1%", "35.0%"], ["75% to 100%", "400", "95.6%", "94.0%"]]
    assert "Expected calibration error 0.0632 ± 0.0141, Brier score 0.1557 ± 0.0141" in text(card)
    assert "divided by a temperature of 1.335 ± 0.141 say best" in text(card)
    assert "the expected calibration error is 0.0223 ± 0.0141." in text(card)
    assert "Confidence intervals of the classes" not in text(card)  # the classes of several runs have none
    assert "over the 2 runs together" in text(card)
    assert "The most frequent mistakes in the run of seed 0:" in text(card)


def test_few_classes_are_all_listed(run):
    classes = [["cat", 10, 7], ["dog", 20, 19], ["a fish", 10, 10]]
    data = {**RECORD["data"], "num_labels": 3}
    card = render_card([run(labels=["cat", "dog", "a fish"], per_class=classes, confusions=[], data=data)])
    _, listed, *_ = tables(card)
    assert [row[0] for row in listed] == ["class", "a fish", "dog", "cat"]
    assert "No picture was taken for another class." in text(card)
    assert "no picture in the split" not in text(card)
    assert "Classes: cat, dog, a fish." in text(card)


def test_streamed_splits_have_no_number(run):
    splits = {"train": {"n": None, "sha256": "streaming"}, "test": {"n": 1234, "sha256": "bb22"}}
    card = render_card([run(data={**RECORD["data"], "splits": splits}, epochs=None)])
    assert ["train", "streamed", "streaming"] in [row for table in tables(card) for row in table]
    assert "4,321 steps, 128 pictures a step" in text(card)


def test_a_perfect_score_has_no_interval_of_no_width(run):
    card = render_card([run(top1=1.0, intervals={**RECORD["intervals"], "top1": [1.0, 1.0]})])
    assert tables(card)[0][1][1] == "100.00%"


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [(0.832, "it is as sure as it is right"), (0.6, "surer than it is right"), (0.95, "less sure than it is right")],
)
def test_calibration_is_put_into_words(run, accuracy, verdict):
    bins = [[0, None, None], [400, 0.83, accuracy]]
    calibration = {"expected_calibration_error": abs(0.83 - accuracy), "brier": 0.1, "bins": bins}
    interval = {**RECORD["intervals"], "top1": [accuracy - 0.02, accuracy + 0.02]}
    assert verdict in text(render_card([run(calibration=calibration, intervals=interval)]))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("intervals", "Confidence intervals: not recorded."),
        ("balanced_accuracy", "Balanced accuracy: not recorded."),
        ("per_class", "Scores by class: not recorded."),
        ("confusions", "Confusions: not recorded."),
        ("calibration", "Calibration: not recorded."),
        ("energy_kwh", "energy\nnot recorded"),
    ],
)
def test_what_an_older_run_did_not_record_is_said_to_be_missing(run, key, said):
    with_record, without = text(render_card([run("a")])), text(render_card([run("b", **{key: ...})]))
    assert said not in with_record
    assert said in without


def test_the_record_of_a_run_without_intervals_of_classes_or_a_temperature_is_shown_as_far_as_it_goes(run):
    """What was recorded before there were these."""
    calibration = {key: RECORD["calibration"][key] for key in ("expected_calibration_error", "brier", "bins")}
    per_class = [row[:3] for row in RECORD["per_class"]]
    card = render_card([run(calibration=calibration, per_class=per_class)])
    assert "Temperature: not recorded." in text(card)
    assert "Confidence intervals of the classes: not recorded." in text(card)
    assert tables(card)[1][1] == ["kind a", "70", "70", "100.0%"]


def test_superclasses_and_reassessed_labels_are_shown_where_they_were_scored(run):
    intervals = {**RECORD["intervals"], "superclass_top1": [0.93, 0.97], "real_top1": [0.91, 0.95]}
    card = render_card([run(superclass_top1=0.95111, real_top1=0.93222, real_n=1200, intervals=intervals)])
    head, row = tables(card)[0]
    assert dict(zip(head, row, strict=True)) | {
        "superclass": "95.11% (93.00% to 97.00%)",
        "ReaL": "93.22% (91.00% to 95.00%)",
    } == dict(zip(head, row, strict=True))
    for said in ("lies in the superclass of the true one", "of the pictures that have such"):
        assert said in text(card)
        assert said not in text(render_card([run(said[:5])]))
    assert [result.metric_name for result in ModelCard(card).data.eval_results] == ["top-1", "top-5"]


def test_the_card_shows_what_the_analysis_of_the_predictions_returns(run):
    generator = torch.Generator().manual_seed(0)
    scores = Scores(torch.randn(200, 3, generator=generator), torch.randint(3, (200,), generator=generator))
    measured = {**scores.measure(), **analyse(scores, ["cat", "dog", "fish"])}
    folder = run(labels=["cat", "dog", "fish"], data={**RECORD["data"], "num_labels": 3}, **measured)
    card = render_card([folder])
    scored, classes, confusions, bins, *_ = tables(card)
    low, high = measured["intervals"]["top1"]
    assert scored[1][1] == f"{measured['top1']:.2%} ({low:.2%} to {high:.2%})"
    low, high = measured["intervals"]["balanced_accuracy"]
    assert scored[1][2] == f"{measured['balanced_accuracy']:.2%} ({low:.2%} to {high:.2%})"
    shown = {row[0]: row[3] for row in classes[1:]}
    assert shown == {
        name: f"{correct / n:.1%} ({low:.1%} to {high:.1%})" for name, n, correct, low, high in measured["per_class"]
    }
    calibration, (low, high) = measured["calibration"], measured["intervals"]["calibrated_error"]
    assert f"error is {calibration['calibrated_error']:.4f} ({low:.4f} to {high:.4f})." in text(card)
    assert sum(int(row[1]) for row in classes[1:]) == round(200 * measured["top1"])
    assert sum(int(row[2]) for row in classes[1:]) == sum(int(row[1]) for row in bins[1:]) == 200
    assert [[*row[:2], int(row[2])] for row in confusions[1:]] == measured["confusions"][:5]
    assert f"and is the right one in {measured['top1']:.1%}" in text(card)
    assert "reproduce" not in card
    write_predictions(folder / PREDICTIONS, Predictions.of_run(scores, ["cat", "dog", "fish"], RECORD))
    assert "`vit-hf reproduce someone/model` computes the figures" in render_card([folder], repo="someone/model")


def leaves(value) -> list:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in (key, *leaves(inner))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner)]
    return [value]


def spellings(number: float) -> set[str]:
    fixed = {f"{number:,.{digits}f}" for digits in range(5)} | {f"{number:.{digits}%}" for digits in range(3)}
    return fixed | {f"{number:g}", f"{number:.4g}", str(number), f"{number:,}", f"{1 / number:.6g}" if number else "0"}


def unexplained(card: str, folders: list[Path]) -> set[str]:
    """The numbers in a card that are none of the records and follow from none.

    A text of a record that stands in the card as it is (a version, a hash, a name) is taken out first.
    """
    records, results = [], []
    for folder in folders:
        for path in (*folder.glob("*.json"), *folder.glob("*.yaml")):
            records += leaves(yaml.safe_load(path.read_text()))
        results += [json.loads(path.read_text()) for path in folder.glob("results.json")]
    texts = {leaf for leaf in records if isinstance(leaf, str) and re.search(r"\d", leaf) and re.search(r"\D", leaf)}
    told = {leaf for leaf in records if isinstance(leaf, int | float) and not isinstance(leaf, bool)}
    told |= {len(LABELS), len(folders), 2, 37, 1}  # classes; runs; tensors of the receipt by what was done
    told.add(sum(tensor.numel() for tensor in VitHfForImageClassification(small()).state_dict().values()))
    for key in ("top1", "top5", "balanced_accuracy", "loss", "seconds", "energy_kwh"):
        found = [result[key] for result in results if key in result]
        told |= {statistics.fmean(found), statistics.stdev(found)} if len(found) > 1 else set()
    for key in ("expected_calibration_error", "brier", "temperature", "calibrated_error"):
        found = [result["calibration"][key] for result in results if "calibration" in result]
        told |= {statistics.fmean(found), statistics.stdev(found)} if len(found) > 1 else set()
    if results and "per_class" in results[0]:
        told |= (
            {correct / 70 for correct in CORRECT} | {len(results) * n for n in (*CORRECT, 70)} | {0.25, 0.5, 0.75, 1}
        )
        bins = [entry for entry in RECORD["calibration"]["bins"] if entry[0]]
        told |= {len(results) * entry[0] for entry in bins}
        told |= {sum(entry[0] * entry[place] for entry in bins) / 400 for place in (1, 2)}
    constants = {
        "95%",
        "5",
        "0",
        "2",
        "16x16",
        "2021",
        "2010.11929",
        "255",
    }  # the interval, how many classes are shown,
    # the ends of Brier's score, the title of the paper, its year and number, the largest value of a pixel
    words = text(card).replace("dosovitskiy2021image", "").replace("SHA-256", "")
    for known in sorted(texts, key=len, reverse=True):
        words = words.replace(known, " ")
    allowed = constants.union(*(spellings(number) for number in told))
    found = re.findall(r"16x16|\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?", words)
    return {number.rstrip(",") for number in found} - allowed


def test_a_number_without_a_record_cannot_appear(run, converted):
    cards = {
        "run": [run("a")],
        "seeds": [run(f"seed{seed}", seed=seed, top1=0.9 + seed / 123, seconds=500.0 + seed) for seed in (1, 2, 3)],
        "masked": [masked(run, name="masked")],
        "converted": [converted()],
        "plain": [converted("plain", receipt=None)],
    }
    for name, folders in cards.items():
        card = render_card(folders)
        assert unexplained(card, folders) == set(), name
        invented = card.replace("## Licence", "It reaches 73.13% after 987 steps.\n\n## Licence")
        assert unexplained(invented, folders) == {"73.13%", "987"}, name


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
    assert f"> A shortened run ({reason}): its scores say nothing about the full recipe." in card


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


def test_runs_of_several_seeds_name_every_commit_and_every_interruption(run):
    fields = [{"git_commit": "aa11"}, {"git_commit": "bb22", "resumed": [{"step": 7}]}, {"git_commit": "aa11"}]
    found = dict(tables(render_card([run(f"run{seed}", seed=seed, **each) for seed, each in enumerate(fields)]))[-1])
    assert found["source code"] == "commit aa11; commit bb22"
    assert found["resumed (seed 1)"] == "after step 7"
    nothing = [run(f"bare{seed}", seed=seed, git_commit=commit) for seed, commit in enumerate((None, "cc33"))]
    assert dict(tables(render_card(nothing))[-1])["source code"] == "not recorded; commit cc33"


def test_a_resumed_run_says_where_it_was_interrupted(run):
    assert ["resumed", "after step 7, 19"] in tables(render_card([run(resumed=[{"step": 7}, {"step": 19}])]))[-1]


def test_a_converted_model_shows_its_receipt_and_no_scores(converted):
    card = render_card([converted()])
    files, tensors, facts = tables(card)
    assert files[1] == ["weights.npz", "345,678", "cc33"]
    assert tensors[1:] == [
        ["exact", "37", "same values"],
        ["resampled", "1", "from 14x14 to 4x6"],
        ["dropped", "1", "no use"],
    ]
    assert facts[1] == ["hidden_act", "gelu", "the code"]
    assert "Converted from owner/original, weights in the form of google:" in text(card)
    assert "Nothing was measured with these files" in text(card)
    assert "## Results" not in card


def test_a_model_without_a_receipt_has_a_card_of_its_architecture_alone(converted):
    card = render_card([converted(receipt=None)])
    parameters = sum(p.numel() for p in VitHfForImageClassification(small(num_labels=2)).parameters())
    assert f"An image classifier with 2 classes and {parameters:,} parameters." in text(card)
    assert tables(card) == []


@pytest.mark.parametrize("kind", ["headless", "encoder"])
def test_weights_without_a_trained_classifier_are_not_offered_as_one(converted, kind):
    if kind == "headless":
        empty = TensorEntry("re-initialised", "classifier.weight", (2, 32), (), (), "the file has no classifier")
        folder = converted(receipt=Receipt("timm", "encoder", [], [], [empty]))
    else:
        folder = converted(model_class=VitHfModel, receipt=None)
    card = render_card([folder])
    assert ModelCard(card).data.pipeline_tag == "image-feature-extraction"
    assert "without a trained classifier" in text(card)
    assert "id2label" not in card


def test_the_preprocessing_is_told_in_the_order_in_which_it_is_done(converted, run):
    told = (
        "turned upright and into RGB (transparency over white); resized to 27 pixels on the shorter side, keeping its "
        "shape (bicubic); cropped at the centre to 16 x 24 pixels; divided by 255; less the mean (0.5, 0.5, 0.5), over "
        "the standard deviation (0.5, 0.5, 0.5) of each channel."
    )
    assert told in text(render_card([converted()]))
    folder = run()
    assert "resized to 16 x 24 pixels (bilinear); divided" in text(render_card([folder]))
    (folder / "preprocessor_config.json").unlink()
    assert "Not recorded: there is no preprocessor_config.json." in text(render_card([folder]))


# ---------------------------------------------------------------------------------------------- it runs as it stands
RUN_CODE = """
import contextlib, io, json, os, sys, warnings
for folder, blocks in json.loads(sys.argv[1]):
    os.chdir(folder)
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(block, {})
        print(json.dumps([folder, said.getvalue()]))
"""


def test_the_code_of_every_kind_of_card_runs_without_the_package(converted, run_without_package, tmp_path):
    folders = {
        "classifier": converted("classifier", receipt=None),
        "masked": converted("masked", VitHfForMaskedImageModeling, receipt=None),
    }
    work = []
    for folder in folders.values():
        PIL.Image.new("RGB", (40, 30), (200, 30, 90)).save(folder / "picture.png")
        blocks = code(render_card([folder]), "python")
        assert blocks
        work.append((str(folder), [block.replace("FOLDER_OR_HUB_ID", str(folder)) for block in blocks]))
    said = [json.loads(line) for line in run_without_package(RUN_CODE, tmp_path, json.dumps(work)).splitlines()]
    expected = [(str(folder), len(blocks)) for (folder, blocks) in work]
    assert [(folder, sum(entry[0] == folder for entry in said)) for folder, _ in expected] == expected
    outputs = {name: [out for at, out in said if at == str(folder)] for name, folder in folders.items()}
    answers, named = outputs["classifier"]
    assert set(re.findall(r"'label': '(\w+)'", answers)) == {"cat", "dog"}
    assert named.strip() in ("cat", "dog")
    assert outputs["masked"] == ["torch.Size([1, 24, 32])\n"]  # 4 x 6 patches, mean pooling: no class token


def test_the_recipe_in_the_card_is_the_recipe_of_the_run(run):
    folder = run(fields={"optimization.learning_rate": 3e-4})
    (block,) = code(render_card([folder]), "yaml")
    assert yaml.safe_load(block) == yaml.safe_load((folder / "recipe.yaml").read_text())


# ---------------------------------------------------------------------------------------------- what must not get out
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train digits --output /home/me/run --data /home/me/animals --seed 3", "train digits --data animals --seed 3"),
        ("train digits --output=/home/me/run --data=/home/me/animals/", "train digits --data=animals"),
        ("train /home/me/mine.yaml --data ~/animals", "train mine.yaml --data animals"),
        ("train ../me/mine.yaml --data ../../me/animals", "train mine.yaml --data animals"),
        ("train digits --data 'C:\\Users\\me\\animals'", "train digits --data animals"),
        ("train digits --data '/home/me/my animals'", "train digits --data 'my animals'"),
        ("train x --model.init_from /home/me/base --config=/home/me/c", "train x --model.init_from base --config=c"),
        (
            "train x --model.init_from me/base --model.variant Ti/4",
            "train x --model.init_from base --model.variant Ti/4",
        ),
        ("train x --resume /home/me/run --token hf_abcdefghijklmnop", "train x --resume run --token hf_…"),
        ("train x --data file:///home/me/animals", "train x --data animals"),
    ],
)
def test_the_command_in_the_card_names_no_folder_of_the_machine(run, command, expected):
    card = render_card([run(command=f"vit-hf {command}")])
    assert shlex.split(code(card, "bash")[0]) == ["vit-hf", *shlex.split(expected)]
    assert not re.search(r"\bme\b", text(card))
    assert "hf_abc" not in card


def test_the_hub_ids_in_a_command_are_kept(run):
    command = "vit-hf train x --data owner/animals --model.init_from owner/base"
    fields = {"data.source": "owner/animals", "model.init_from": "owner/base"}
    card = render_card([run(command=command, data=ON_HUB, base_model="owner/base", fields=fields)])
    assert code(card, "bash") == [command + "\n"]
    (block,) = code(card, "yaml")
    assert yaml.safe_load(block)["data"]["source"] == "owner/animals"
    assert yaml.safe_load(block)["model"]["init_from"] == "owner/base"


def test_the_recipe_in_the_card_names_no_folder_of_the_machine(run):
    fields = {"data.source": "../home/me/animals", "model.init_from": "/home/me/base", "model.freeze": "vit.*"}
    (block,) = code(render_card([run(fields=fields)]), "yaml")
    recipe = yaml.safe_load(block)
    assert (recipe["data"]["source"], recipe["model"]["init_from"]) == ("animals", "base")
    assert recipe["model"]["freeze"] == ["vit.*"]


HOSTILE = [
    "a | b | c",
    "two\nlines\n\n# A heading\n\n| x |\n|---|",
    "<script>alert(1)</script><img src=x onerror=y>",
    "[link](https://evil.example) ![picture](https://evil.example/x.png) <https://evil.example>",
    "`code` ``` *strong* _weak_ **x** ~~gone~~ $x$ \\(y\\) \\| &lt; &#124;",
    "</details></summary> -->",
    "---\nlicense: stolen\n---",
    "very long " * 50,
    "鳥 ünïcödé 🦜 ‮reversed‬ \ud800 \x00\x1b[31m\u2028",
    "- item",
]


def hostile_run(run):
    labels = HOSTILE
    per_class = [[name, 10, place] for place, name in enumerate(labels)]
    name = "x\n---\nlicense: stolen\ntags: [evil]\n---\n```\n</details><script>`"
    data = {
        "source": name,
        "kind": "folder",
        "revision": None,
        "num_labels": len(labels),
        "splits": {"train | x": {"n": 3, "sha256": "a|b`\n# c"}, "test": {"n": 1234, "sha256": "bb22"}},
    }
    return run(
        "hostile",
        labels=labels,
        fields={"data.source": name},
        per_class=per_class,
        confusions=[[labels[0], labels[1], 3], [labels[2], labels[3], 2]],
        data=data,
        split=HOSTILE[1],
        device=HOSTILE[2],
        energy_source=HOSTILE[3],
        versions={"torch\n# x": HOSTILE[4]},
        git_commit="`|\n# x",
        command="vit-hf train x --seed '3\n```\n# heading \ud800\u202e'",
        base_model="x`\n# y",
        started=HOSTILE[5],
    )


def shape(card: str) -> list[str]:
    """Headings and kinds of all blocks of a card, runs of table rows left out."""
    tokens = parsed(card)
    kinds = [
        f"{token.type} {shown(after)}" if token.type == "heading_open" and token.tag == "h2" else token.type
        for token, after in zip(tokens, [*tokens[1:], None], strict=True)
        if not token.type.startswith(("tr_", "td_", "th_", "tbody", "inline"))
    ]
    return kinds


def test_hostile_records_do_not_change_the_structure_of_a_card(run):
    labels = [f"class {place}" for place in range(len(HOSTILE))]
    tame = run(
        labels=labels,
        per_class=[[name, 10, place] for place, name in enumerate(labels)],
        confusions=[["class 0", "class 1", 3], ["class 2", "class 3", 2]],
        data={**RECORD["data"], "num_labels": len(labels)},
    )
    card, expected = render_card([hostile_run(run)]), render_card([tame])
    assert shape(card) == shape(expected)
    assert [[len(row) for row in table] for table in tables(card)] == [
        [len(row) for row in table] for table in tables(expected)
    ]
    inner = [part.type for token in parsed(card) for part in token.children or ()]
    assert not {"html_inline", "link_open", "image", "strong_open", "em_open", "s_open"} & set(inner)
    html = [token.content for token in parsed(card) if token.type == "html_block"]
    assert html == ["<details><summary>Recipe</summary>\n", "</details>\n"]


def test_hostile_names_are_shown_as_they_are(run):
    card = render_card([hostile_run(run)])
    names = {row[0] for row in tables(card)[1]}
    for name in HOSTILE:
        line = one_line(name)
        assert (line if len(line) <= 80 else line[:79] + "…") in names
    assert "\u202e" not in card
    card.encode("utf-8")  # no half of a character is left


def test_hostile_records_do_not_change_the_metadata(run):
    tame, card = ModelCard(render_card([run()])), ModelCard(render_card([hostile_run(run)]))
    assert list(card.data.to_dict()) == list(tame.data.to_dict())
    assert card.data.license is None
    assert card.data.tags == tame.data.tags
    top1, _ = card.data.eval_results
    assert top1.dataset_name == "x --- license: stolen tags: [evil] --- ``` </details><script>`"
    assert top1.dataset_split == one_line(HOSTILE[1])
    assert re.fullmatch(r"[\w./-]+", top1.dataset_type)


def test_hostile_code_stays_within_its_block(run):
    card = render_card([hostile_run(run)])
    (recipe,), (command,) = code(card, "yaml"), code(card, "bash")
    assert yaml.safe_load(recipe)["name"] == "mine"
    assert shlex.split(command)[-1] == "3\n```\n# heading \ufffd"


@pytest.mark.parametrize("value", ["a_b", "snake_case_name", "1e-06", "Intel(R) Xeon(R), 2 threads", "50% (of it)"])
def test_ordinary_words_stay_readable_in_the_source(value):
    assert plain(value) == value


# ---------------------------------------------------------------------------------------------- superclasses, curves
FAMILIES = {name: family for family, names in CIFAR100.items() for name in names}


def predicted(pairs: dict[tuple[str, str], int], labels: list[str]) -> Scores:
    """Scores in which a picture of the first class is given the second, so many times."""
    named = [pair for pair, n in pairs.items() for _ in range(n)]
    logits = torch.zeros(len(named), len(labels))
    for row, (_, guess) in enumerate(named):
        logits[row, labels.index(guess)] = 1
    return Scores(logits, torch.tensor([labels.index(true) for true, _ in named]))


def families_run(run, name: str, pairs: dict[tuple[str, str], int] | None, **changes) -> Path:
    labels = sorted(FAMILIES)
    folder = run(name, labels=labels, data={**RECORD["data"], "num_labels": 100}, superclass_top1=0.5, **changes)
    if pairs is not None:
        write_predictions(folder / PREDICTIONS, Predictions.of_run(predicted(pairs, labels), labels, RECORD))
    return folder


PAIRS = {
    ("bee", "beetle"): 3,  # another class of the same superclass is right
    ("bee", "bee"): 1,
    ("beetle", "tulip"): 2,
    ("beetle", "bus"): 1,
    ("beetle", "oak_tree"): 1,
    ("beetle", "train"): 1,
    ("beetle", "crab"): 1,
    ("tulip", "tulip"): 3,
    ("crab", "boy"): 2,
}


def test_the_confusion_among_superclasses_is_counted_over_their_classes(run):
    card = render_card([families_run(run, "a", PAIRS)])
    (found,) = (rows for rows in tables(card) if rows[0][0] == "superclass")
    assert found[1:] == [
        ["flowers", "3", "100.0%", "-"],
        ["insects", "10", "40.0%", "flowers 20.0%, vehicles 1 20.0%, non-insect invertebrates 10.0%"],
        ["non-insect invertebrates", "2", "0.0%", "people 100.0%"],
    ]


def test_the_superclasses_of_several_runs_are_counted_together(run):
    other = {("bee", "tulip"): 10, ("tulip", "bee"): 4}
    card = render_card([families_run(run, "a", PAIRS), families_run(run, "b", other, seed=1)])
    assert "over the 2 runs together was given a class of its own superclass" in text(card)
    (found,) = (rows for rows in tables(card) if rows[0][0] == "superclass")
    assert found[1] == ["flowers", "7", "42.9%", "insects 57.1%"]
    assert found[2][:3] == ["insects", "20", "20.0%"]
    assert found[2][3].startswith("flowers 60.0%, ")


def test_superclasses_without_predictions_are_not_recorded_and_others_are_not_mentioned(run):
    assert f"Not recorded: there is no {PREDICTIONS}." in text(render_card([families_run(run, "a", None)]))
    assert "superclasses" not in text(render_card([run("b")]))


def pictures(card: str) -> list[tuple[str, str]]:
    """What stands for each picture of a card, and where it lies."""
    inner = [part for token in parsed(card) for part in token.children or () if part.type == "image"]
    return [(part.content, part.attrs["src"]) for part in inner]


def test_the_learning_curves_that_lie_beside_the_card_are_shown(run):
    folders = [run("a"), run("b", seed=1), masked(run, name="c")]
    assert [pictures(render_card([folder])) for folder in folders] == [[], [], []]
    for folder in folders:
        (folder / "learning_curves.png").write_bytes(b"picture")
    for folder in (folders[0], folders[2]):
        ((said, place),) = pictures(render_card([folder]))
        assert (said, place) == ("What was recorded while it learned, over the epochs", "learning_curves.png")
    assert pictures(render_card([folders[0]], curves="")) == []
    assert pictures(render_card(folders[:2])) == []
    ((said, place),) = pictures(render_card(folders[:2], curves="my curves.png"))
    assert said.endswith("of the run of seed 0")
    assert place == "my%20curves.png"


def test_a_card_is_written_with_the_curves_of_the_first_run_beside_it(run, tmp_path):
    folders = [run("a"), run("b", seed=1)]
    (tmp_path / "cards").mkdir()
    path = tmp_path / "cards" / "mine.md"
    assert write_card(folders, path) == [path]
    assert pictures(path.read_text(encoding="utf-8")) == []
    for folder in folders:
        (folder / "learning_curves.png").write_bytes(folder.name.encode())
    assert write_card(folders, path, license="mit") == [path, path.with_suffix(".png")]
    card = path.read_text(encoding="utf-8")
    assert ModelCard(card).data.license == "mit"
    assert [place for _, place in pictures(card)] == ["mine.png"]
    assert path.with_suffix(".png").read_bytes() == b"a"


def test_a_card_that_cannot_be_rendered_leaves_no_file(run, tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.md"):
        write_card([run("a")], tmp_path / "card.txt")
    with pytest.raises(ValueError, match="expected at least one finished run folder"):
        write_card([], tmp_path / "card.md")
    assert not list(tmp_path.glob("card*"))


# ---------------------------------------------------------------------------------------------- refused
def test_runs_of_different_recipes_are_refused(run):
    folders = [run("a"), run("b", seed=1, fields={"optimization.learning_rate": 0.5})]
    with pytest.raises(ValueError, match=r"b is not a run of the same recipe and data as .*a; render them apart"):
        render_card(folders)


def test_runs_that_start_from_runs_of_one_kind_are_of_one_recipe(run):
    starts = ("/home/me/mae-0", "/home/me/mae-1", "/home/me/simmim-1")
    folders = [run(f"r{n}", seed=n, fields={"model.init_from": start}) for n, start in enumerate(starts)]
    assert "mean" in [row[0] for row in tables(render_card(folders[:2]))[0]]
    with pytest.raises(ValueError, match="r2 is not a run of the same recipe and data"):
        render_card(folders)


def test_runs_on_different_data_are_refused(run):
    splits = {**RECORD["data"]["splits"], "train": {"n": 20_000, "sha256": "cc33"}}
    folders = [run("a"), run("b", seed=1, data={**RECORD["data"], "splits": splits})]
    with pytest.raises(ValueError, match="b is not a run of the same recipe and data"):
        render_card(folders)


def test_the_same_seed_twice_is_refused(run):
    with pytest.raises(ValueError, match=r"the runs have the seeds \[0, 0\]; expected each once"):
        render_card([run("a"), run("b")])


def test_models_without_results_have_a_card_each(run, converted):
    with pytest.raises(
        FileNotFoundError, match=r"converted has no results.json; of several folders each is a finished"
    ):
        render_card([run(), converted()])


@pytest.mark.parametrize("name", ["results.json", "recipe.yaml"])
def test_a_run_without_one_of_its_records_is_an_error(run, name):
    folder = run()
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} has no {name}; expected the folder of a finished run"):
        render_card([folder])


def test_a_folder_without_a_model_is_an_error(tmp_path, converted):
    with pytest.raises(FileNotFoundError, match=r"has no config.json; expected a model folder"):
        render_card([tmp_path])
    folder = converted()
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors; expected a model folder with its weights"):
        render_card([folder])


def test_the_record_of_an_evaluation_alone_is_not_that_of_a_run(run):
    with pytest.raises(ValueError, match=r"results.json has no 'kept'; expected the record of `vit-hf train`"):
        render_card([run(kept=...)])


@pytest.mark.parametrize(("name", "content"), [("results.json", "{"), ("recipe.yaml", "a: [1"), ("results.json", "[]")])
def test_a_record_that_cannot_be_read_is_named(run, name, content):
    folder = run()
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        render_card([folder])


def test_no_run_is_an_error():
    with pytest.raises(ValueError, match="expected at least one finished run folder"):
        render_card([])


@pytest.mark.parametrize("license", ["Apache 2", "mit\ntags: [x]", ""])
def test_a_licence_that_is_no_identifier_is_refused(run, license):
    with pytest.raises(ValueError, match=r"expected an identifier of the Hub, such as apache-2.0"):
        render_card([run()], license=license)


def test_a_hub_id_that_is_none_is_refused(run):
    with pytest.raises(ValueError, match="Repo id must use alphanumeric chars"):
        render_card([run()], repo='x"); evil("')
