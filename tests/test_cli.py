"""The command line as a user meets it: what it prints, and one clear line for whatever the user can mend."""

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from huggingface_hub.utils import validate_repo_id
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfImageProcessor
from vit_hf.cli import main
from vit_hf.cli.training import _next_commands

FAST = ["--max-steps", "2", "--data.max_train_images", "64", "--data.max_test_images", "40", "--trackers", "none"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved classifier of 8x8 pictures with three classes."""
    folder = tmp_path_factory.mktemp("cli") / "model"
    config = VitHfConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=32, id2label={0: "cat", 1: "dog", 2: "a bird"})  # fmt: skip
    torch.manual_seed(0)
    network = VitHfForImageClassification(config)
    with torch.no_grad():
        network.classifier.weight.normal_()
    network.save_pretrained(folder)
    VitHfImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


def fails(capsys, *arguments, code: int = 1) -> str:
    """Run a command that must fail; return its one line on stderr."""
    assert main([str(argument) for argument in arguments]) == code
    streams = capsys.readouterr()
    assert "Traceback" not in streams.err
    lines = [line for line in streams.err.splitlines() if "error:" in line]
    assert len(lines) == 1, streams.err
    return lines[0]


# ------------------------------------------------------------------------------------------- what works
def test_train_prints_a_table_the_result_and_the_next_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits", *FAST, "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    assert "train loss" in printed
    assert "test: top-1" in printed
    for command in (
        "vit-hf predict runs/digits",
        "vit-hf report runs/digits",
        "vit-hf inspect runs/digits",
        "vit-hf evaluate runs/digits",
        "import vit_hf",
        "vit-hf push runs/digits",
    ):
        assert command in printed
    folder = tmp_path / "runs" / "digits"
    assert json.loads((folder / "results.json").read_text())["seed"] == 3
    assert len(list((folder / "examples").glob("*.png"))) == 4
    card = (folder / "README.md").read_text()
    top1 = json.loads((folder / "results.json").read_text())["top1"]
    assert f"{top1:.2%}" in card
    assert main(["train", "digits", *FAST]) == 0
    assert (tmp_path / "runs" / "digits-2").is_dir()  # the first run is left alone

    capsys.readouterr()
    assert main(["evaluate", str(folder), "--output", str(tmp_path / "scores")]) == 0
    assert "on 359 pictures of digits, split test" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["n"] == 359


def test_predict_prints_probabilities_and_draws_them(model, picture, tmp_path, capsys):
    assert main(["predict", str(model), str(picture), str(picture), "--save-plot", str(tmp_path / "plot.png")]) == 0
    printed = capsys.readouterr().out
    assert printed.count("%") == 6
    assert "a bird" in printed
    with PIL.Image.open(tmp_path / "plot.png") as plot:
        assert plot.size[0] > 300


@pytest.mark.parametrize("name", ["plot.jpg", "none/plot.png"])
def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_runs(name, model, picture, tmp_path, capsys):
    assert main(["predict", str(model), str(picture), "--save-plot", str(tmp_path / name)]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert re.search(r"cannot draw to 'plot.jpg'|the folder .*none of plot.png does not exist", streams.err)


def test_the_next_commands_can_be_typed_as_they_stand_whatever_the_folder_is_called():
    folder = Path("my runs/it's $HOME [red]")
    lines = [shlex.split(line) for line in _next_commands(folder, is_classifier=True)]
    for words in lines:
        if words[0] == "vit-hf":
            assert words[2] == str(folder)
    (push,) = [words for words in lines if words[1] == "push"]
    validate_repo_id(push[3])
    assert len(push) == 4
    (code,) = [words[2] for words in lines if words[:2] == ["python", "-c"]]
    strings = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert str(folder) in strings


def test_predict_as_json_gives_probabilities_that_sum_to_one(model, picture, capsys):
    assert main(["predict", str(model), str(picture), "--json", "--top-k", "3"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["image"] == str(picture)
    values = [entry["probability"] for entry in answer["predictions"]]
    assert sum(values) == pytest.approx(1, abs=1e-6)
    assert values == sorted(values, reverse=True)


def test_summary_of_one_variant_and_of_several(capsys):
    assert main(["summary", "B/16"]) == 0
    assert "86,567,656" in capsys.readouterr().out
    assert main(["summary", "Ti/16", "S/16"]) == 0
    printed = capsys.readouterr().out
    assert "Ti/16" in printed
    assert "S/16" in printed


def test_recipes_lists_all_and_prints_one_that_can_be_trained(capsys, tmp_path):
    assert main(["recipes"]) == 0
    assert "cifar100_scratch" in capsys.readouterr().out
    assert main(["recipes", "digits"]) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out)
    assert main(["recipes", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()


def test_every_command_has_help(capsys):
    for command in ([], ["train"], ["evaluate"], ["predict"], ["summary"], ["recipes"], ["reproduce"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        assert "usage: vit-hf" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- what the user can mend
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digitz"], r"unknown recipe 'digitz'; expected one of .*did you mean digits"),
        (["missing.yaml"], r"no recipe file .*missing.yaml"),
        (["digits", "--optimization.lerning_rate", "1"], r"unknown recipe field .*did you mean optimization.learning"),
        (["digits", "--seed", "many"], r"seed is 'many'; expected int"),
        (["digits", "--optimization.batch_size", "0"], r"optimization.batch_size is 0; expected more than 0"),
        (["digits", "--optimization.epochs"], r"--optimization.epochs has no value"),
        (["digits", "surplus"], r"found 'surplus' where an option was expected"),
        (["digits", "--data", "./no/such/folder"], r"no data at .*no/such/folder; expected .*; check the path"),
        (["digits", "--model.image_size", "10"], r"image_size 10 .*is not divisible by patch_size 4; use 8 or 12"),
        (["digits", "--data.validation_fraction", "0", "--keep", "best"], r"set data.validation_fraction"),
        (["digits", "--data.image_column", "photo"], r"photo"),
        (["vit_finetune", "--data", "digits", "--model.init_from", "./nowhere"], r"nowhere"),
        (["vit_finetune", "--data", "digits"], r"names no network; set model.init_from"),
        (["digits", "--model.init_from", "x", "--model.variant", "S/16"], r"expected one of them"),
    ],
)  # fmt: skip
def test_a_bad_training_command_says_in_one_line_how_to_mend_it_and_writes_nothing(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, "train", *arguments)
    assert line.startswith("vit-hf train: error:")
    assert re.search(message, line), line
    assert list(tmp_path.iterdir()) == []


def labelled(labels, names, images=None) -> Dataset:
    pictures = images or [PIL.Image.new("L", (8, 8), 40 * i) for i in range(len(labels))]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": pictures, "label": labels}, features=features)


def test_labels_out_of_range_name_row_value_and_range(tmp_path, capsys, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.chdir(tmp_path)
    good = labelled([0, 1, 1, 0], ["a", "b"])
    good.to_parquet("good.parquet")
    table = pq.read_table("good.parquet")
    column = table.schema.get_field_index("label")
    pq.write_table(table.set_column(column, table.schema.field("label"), pa.array([0, 1, 7, 0])), "bad.parquet")
    line = fails(capsys, "train", "digits", "--data", "bad.parquet", "--output", "run")
    assert "row 2" in line
    assert "7" in line
    assert not (tmp_path / "run").exists()


def test_an_empty_class_folder_tree_is_one_error(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    line = fails(capsys, "train", "digits", "--data", tmp_path / "pictures", "--output", tmp_path / "run")
    assert "found neither images nor Parquet files" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unreadable_picture_is_named_with_its_row_and_nothing_half_trained_is_saved(workers, tmp_path, capsys):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(8):
                PIL.Image.new("RGB", (8, 8), (30 * i, 0, 0)).save(tmp_path / "pictures" / split / name / f"{i}.png")
    (tmp_path / "pictures" / "train" / "dog" / "5.png").write_bytes(b"<html>not a picture</html>")
    arguments = [
        "--data",
        tmp_path / "pictures",
        "--output",
        tmp_path / "run",
        "--max-steps",
        "20",
        "--trackers",
        "none",
    ]
    arguments += ["--optimization.batch_size", "8", "--data.validation_fraction", "0", "--workers", workers]
    line = fails(capsys, "train", "digits", *arguments)
    assert re.match(r"vit-hf train: error: row \d+ of the training split", line), line
    assert "5.png" in line
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_predict_names_a_missing_and_an_unreadable_picture(model, tmp_path, capsys):
    assert "nothing.png" in fails(capsys, "predict", model, tmp_path / "nothing.png")
    (tmp_path / "text.png").write_text("hello")
    assert "text.png" in fails(capsys, "predict", model, tmp_path / "text.png")


def test_one_bad_picture_does_not_cost_the_answers_to_the_others(model, picture, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vit_hf.cli.models._AT_ONCE", 2)
    (tmp_path / "text.png").write_text("hello")
    names = [str(picture), str(tmp_path / "text.png"), str(picture), str(picture)]
    assert main(["predict", str(model), *names, "--json", "--save-plot", str(tmp_path / "plot.pdf")]) == 1
    printed = capsys.readouterr()
    assert [json.loads(line)["image"] for line in printed.out.splitlines()] == [str(picture)] * 3
    assert re.search(r"^vit-hf predict: error: .*text.png", printed.err, re.M)
    assert (tmp_path / "plot.pdf").exists()
    line = fails(capsys, "predict", model, *[picture] * 17, "--save-plot", tmp_path / "plot.png")
    assert "17 images do not fit one page of 16" in line  # before anything was computed


def test_a_model_of_another_library_is_loaded_as_it_is(tmp_path, picture, capsys):
    stock = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=32, id2label={0: "cat", 1: "dog"})  # fmt: skip
    theirs = ViTForImageClassification(stock).eval()
    theirs.save_pretrained(tmp_path / "stock")
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(tmp_path / "stock")
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "stock"), str(picture), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["predictions"]
    with torch.no_grad():
        expected = theirs(**processor(PIL.Image.open(picture), return_tensors="pt")).logits.softmax(-1)[0]
    assert {row["label"]: row["probability"] for row in answer} == pytest.approx(
        {"cat": expected[0].item(), "dog": expected[1].item()}, abs=1e-6
    )


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path, picture, capsys):
    ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    line = fails(capsys, "predict", tmp_path, picture)
    assert "holds no Vision Transformer of google, timm, torchvision, transformers" in line


def test_evaluating_on_data_with_other_classes_names_the_first_unknown_one(model, capsys):
    line = fails(capsys, "evaluate", model, "--data", "digits")
    assert "unknown to the model (first: '0'" in line


def test_evaluating_a_folder_without_a_recipe_asks_for_the_data(model, capsys):
    assert "name the data with --data SOURCE" in fails(capsys, "evaluate", model)


def test_an_unknown_variant_names_near_ones(capsys):
    assert "B/16" in fails(capsys, "summary", "B16")


def test_a_full_disk_is_one_error_and_leaves_the_old_files(tmp_path, capsys, monkeypatch):
    import errno

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(VitHfForImageClassification, "save_pretrained", full)
    line = fails(capsys, "train", "digits", *FAST, "--output", tmp_path / "run")
    assert "no space left (" in line
    assert "MiB free" in line
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not list((tmp_path / "run").rglob(".writing-*"))


def test_a_hub_data_set_without_a_network_names_the_command_that_mends_it(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    line = fails(capsys, "train", "digits", "--data", "owner/pictures", "--output", tmp_path / "run")
    assert "hf download --repo-type dataset owner/pictures" in line
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="unknown recipe"):
        main(["train", "digitz", "--debug"])


def test_the_python_examples_of_the_readme_run(tmp_path, monkeypatch, capsys, picture):
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    first, second, third = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    picture.rename(tmp_path / "picture.png")
    assert "optimization__epochs=10" in first
    assert '"B/16"' in second
    code = first.replace("optimization__epochs=10", "optimization__max_steps=2") + second.replace('"B/16"', '"Ti/16"')
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    plain = names["logits"]
    exec(compile(third, "README.md", "exec"), names)
    assert names["model"].encoder.is_prepared
    torch.testing.assert_close(names["logits"], plain, rtol=0, atol=1e-5)
    assert capsys.readouterr().out.strip().splitlines()[-1].split()[0] in set("0123456789")


# ------------------------------------------------------------------------------------------- stopping and resuming
SHORT = ["--max-steps", "6", *FAST[2:], "--checkpoint_steps", "2", "--optimization.batch_size", "8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, with checkpoints after steps 4 and 6."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "digits", *SHORT, "--checkpoint_limit", "2", "--output", str(folder)]) == 0
    return folder


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def disturb(monkeypatch, step: int, act) -> None:
    """Let something happen within a step of the next training."""
    from vit_hf.training.step import Stepper

    take = Stepper.take

    def disturbed(self, number, *arguments):
        if number == step:
            act()
        return take(self, number, *arguments)

    monkeypatch.setattr(Stepper, "take", disturbed)


@pytest.mark.parametrize("resume", ["auto", ".", "checkpoints/step-00000004", "checkpoints/step-00000006"])
def test_a_run_that_is_finished_says_so_and_is_left_as_it_is(finished, capsys, resume):
    before = listing(finished)
    where = ["--output", finished, "--resume", "auto"] if resume == "auto" else ["--resume", finished / resume]
    assert main(["train", "digits", *SHORT, *map(str, where)]) == 0
    printed = capsys.readouterr().out
    top1 = json.loads((finished / "results.json").read_text())["top1"]
    assert f"{finished} is finished: top-1 {top1:.2%}, top-5 " in printed
    assert "; there is nothing to do" in printed
    assert listing(finished) == before


@pytest.mark.parametrize(
    ("resume", "words", "message"),
    [
        ("nowhere", [], r"no folder .*/nowhere to resume from; expected a run folder, or one of its checkpoints"),
        ("checkpoints/step-00000005", [], r"no folder .*/checkpoints/step-00000005 to resume from"),
        (".", ["--output", "other"], r"--resume goes on in .*run, --output names other; leave --output out"),
        (".", ["--seed", "5"], r"run belongs to another run: seed was 0 and is 5\. Resume with the recipe"),
        ("checkpoints/step-00000004", ["--max-steps", "9"], r"run belongs to another run: .*max_steps was 6 and is 9"),
        (
            ".",
            ["--data.max_train_images", "32"],
            r"images was 64 and is 32; n of train was \d+ and is \d+; sha256 of",
        ),
        ("checkpoints", [], r"checkpoints is no run folder"),
        ("examples", [], r"examples is no run folder"),
        (".", ["--resume"], r"expected one argument"),
    ],
)
def test_what_cannot_be_resumed_is_one_line_and_nothing_is_written(
    finished, tmp_path, capsys, monkeypatch, resume, words, message
):
    monkeypatch.chdir(tmp_path)
    before = listing(finished)
    arguments = ["train", "digits", *SHORT, "--resume", finished / resume, *words]
    if "--resume" in words:
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, arguments)))
        assert stop.value.code == 2
        assert re.search(message, capsys.readouterr().err)
    else:
        line = fails(capsys, *arguments)
        assert re.search(message, line), line
    assert listing(finished) == before
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_does_not_go_into_the_folder_of_another_and_names_the_way_to_go_on(finished, capsys):
    before = listing(finished)
    line = fails(capsys, "train", "digits", *SHORT, "--output", finished)
    assert re.search(r"run is not empty; .* go on with the run in it by --resume auto", line)
    assert listing(finished) == before


def resume_line(text: str) -> list[str]:
    """Return the words of the printed command."""
    (line,) = re.findall(r"^to resume: vit-hf (.*)$", text, flags=re.MULTILINE)
    return shlex.split(line)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_exits_with_75_and_the_line_it_prints_goes_on(
    tmp_path, capsys, monkeypatch, number
):
    folder = tmp_path / "a run"  # the line has to quote it
    with monkeypatch.context() as context:
        disturb(context, 3, lambda: os.kill(os.getpid(), number))
        assert main(["train", "digits", *SHORT, "--output", str(folder)]) == 75
    streams = capsys.readouterr()
    assert f"stopped on request after step 3: saved {folder}/checkpoints/step-00000003" in streams.err
    assert "Traceback" not in streams.err
    assert not (folder / "results.json").exists()
    assert main(resume_line(streams.err)) == 0
    printed = capsys.readouterr().out
    assert f"resumed after step 3 in {folder}" in printed
    assert "test: top-1" in printed
    assert json.loads((folder / "results.json").read_text())["resumed"][0]["step"] == 3


def test_a_run_that_fails_prints_the_line_that_goes_on_from_its_checkpoint(tmp_path, capsys, monkeypatch):
    def act():
        raise OSError("the disk of the pictures is gone")

    folder = tmp_path / "run"
    with monkeypatch.context() as context:
        disturb(context, 4, act)
        assert main(["train", "digits", *SHORT, "--output", str(folder)]) == 1
    streams = capsys.readouterr()
    assert "vit-hf train: error: the disk of the pictures is gone" in streams.err
    assert main(resume_line(streams.out)) == 0
    assert "resumed after step 2" in capsys.readouterr().out


def test_a_run_that_fails_before_its_first_step_prints_no_line_to_go_on(tmp_path, capsys, monkeypatch):
    def act():
        raise OSError("the disk of the pictures is gone")

    disturb(monkeypatch, 1, act)
    assert main(["train", "digits", *SHORT, "--output", str(tmp_path / "run")]) == 1
    assert "to resume" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_process_that_gets_sigterm_ends_with_code_75(tmp_path):
    command = [sys.executable, "-m", "vit_hf.cli", "train", "digits", *SHORT, "--max-steps", "100000"]
    command += ["--output", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while process.poll() is None and not list(tmp_path.glob("run/checkpoints/step-*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, error
    printed = error.decode()
    (saved,) = re.findall(r"stopped on request after step \d+: saved (\S+)", printed)
    assert [saved] == [str(path) for path in tmp_path.glob("run/checkpoints/step-*")]
    assert resume_line(printed)[-4:] == ["--output", str(tmp_path / "run"), "--resume", "auto"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "3", "--interruptions", "3"], r"3 interruptions of a run of 3 steps; expected 1 to 2"),
        (["--optimization.lerning_rate", "1"], r"unknown recipe field"),
    ],
)
def test_a_bad_verify_resume_says_in_one_line_how_to_mend_it(capsys, words, message):
    line = fails(capsys, "verify-resume", "digits", *words)
    assert line.startswith("vit-hf verify-resume: error:")
    assert re.search(message, line), line


@pytest.mark.parametrize("same", [True, False])
def test_verify_resume_prints_what_was_compared_and_its_exit_code_is_the_answer(capsys, monkeypatch, same):
    from vit_hf.training import verify

    def proof(recipe, *, interruptions, steps, say):
        say("undisturbed: 7 steps")
        assert (recipe.data.source, recipe.seed, interruptions, steps) == ("digits", 4, 2, 7)
        return verify.ResumeProof([(3, "SIGKILL")], {"model.safetensors": True, "training/optimizer.safetensors": same})

    monkeypatch.setattr(verify, "verify_resume", proof)
    words = ["--data", "digits", "--seed", "4", "--steps", "7", "--interruptions", "2"]
    assert main(["verify-resume", "digits", *words]) == (0 if same else 1)
    printed = capsys.readouterr().out
    assert "undisturbed: 7 steps" in printed
    assert "model.safetensors" in printed
    assert ("DIFFERENT" in printed) != same
    assert ("the interrupted run equals the other" in printed) == same
