"""The parts of the page: what it answers, what it says of model and picture, and how the command fails."""

import gc
import json
import re
import socket
import sys

import numpy as np
import PIL.Image
import pytest
import torch

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfImageProcessor
from vit_hf.cli import main
from vit_hf.evaluation.scoring import classify

pytest.importorskip("gradio", reason="Gradio is not installed (extra demo)")
from vit_hf.sharing.demo import answer, find_examples, launch, say_model, say_preprocessing, say_results
from vit_hf.sharing.space import write_space


@pytest.fixture(scope="module")
def model():
    config = VitHfConfig(image_size=[16, 24], patch_size=[4, 8], hidden_size=32, num_hidden_layers=2,
                         num_attention_heads=4, intermediate_size=64,
                         id2label={0: "crane", 1: "drake", 2: "crane"})  # fmt: skip
    torch.manual_seed(0)
    network = VitHfForImageClassification(config).eval()
    with torch.no_grad():
        network.classifier.weight.normal_()
    return network


@pytest.fixture(scope="module")
def processor():
    return VitHfImageProcessor(size={"height": 16, "width": 24})


@pytest.fixture(scope="module")
def folder(model, processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "birds"
    model.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def deep_grey(tmp_path):
    """A 16-bit picture: what reads it as 8 bits sees white."""
    path = tmp_path / "deep.png"
    values = np.random.default_rng(0).integers(0, 65536, (20, 30), dtype=np.uint16)
    PIL.Image.fromarray(values).save(path)
    return path


# ------------------------------------------------------------------------------------------- the answer
def test_the_answer_is_that_of_classify_with_both_classes_of_one_name(model, processor, deep_grey):
    found = answer(model, processor, deep_grey)
    with PIL.Image.open(deep_grey) as picture:
        [expected] = classify(model, processor, [picture])
    assert list(found.probabilities.values()) == [probability for _, probability in expected]
    assert list(found.probabilities) != [name for name, _ in expected]
    assert set(found.probabilities) == {"crane", "drake", "crane (2)"}
    assert found.size == (30, 20)


def test_view_and_map_lie_over_each_other_and_methods_differ(model, processor, deep_grey):
    last, rolled = (answer(model, processor, deep_grey, method=method) for method in ("last", "rollout"))
    assert last.view.size == last.attention.size == (24 * 19, 16 * 19)
    assert last.view == rolled.view
    assert last.attention != rolled.attention


def test_an_error_names_the_file_without_its_folder(model, processor, tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"^notes\.png: not an image") as error:
        answer(model, processor, path)
    assert str(tmp_path) not in str(error.value)


# ------------------------------------------------------------------------------------------- words
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"size": {"height": 16, "width": 24}},
            "resized to 16 x 24 pixels (height x width) by bilinear resampling, scaled from 0..255 to 0..1 and "
            "normalised (mean 0.5, 0.5, 0.5; standard deviation 0.5, 0.5, 0.5)",
        ),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "resample": 3, "do_normalize": False},
            "resized to 256 pixels on its shorter edge by bicubic resampling, cut to its central 224 x 224 pixels and "
            "scaled from 0..255 to 0..1",
        ),
        (
            {"antialias": False, "do_rescale": False, "do_normalize": False},
            "resized to 224 x 224 pixels (height x width) by bilinear resampling, without antialiasing",
        ),
        ({"do_resize": False, "do_rescale": False, "do_normalize": False}, "left as it is"),
    ],
)
def test_the_sentence_says_what_the_processor_is_set_to(settings, words):
    assert say_preprocessing(VitHfImageProcessor(**settings)) == words


def test_the_model_and_its_scores_are_said_from_its_records(model):
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (
        say_model(model)
        == f"Vision Transformer · {count:,} parameters · 3 classes · 16 x 24 pixels in patches of 4 x 8"
    )
    results = {"top1": 0.9876, "n": 1234, "split": "test", "data": {"source": "/home/me/private/birds"}}
    assert say_results(results) == "Top-1 accuracy 98.76% on 1,234 pictures of birds, split test"
    assert say_results({"loss": 0.1, "n": 5}) == ""


# ------------------------------------------------------------------------------------------- the command
def fails(capsys, *arguments) -> str:
    assert main(["demo", *map(str, arguments)]) == 1
    return capsys.readouterr().err


def test_a_model_for_masked_images_is_refused_with_the_way_on(tmp_path, tiny, capsys):
    VitHfForMaskedImageModeling(tiny()).save_pretrained(tmp_path / "mim")
    for more in ([], ["--space", tmp_path / "space"]):
        said = fails(capsys, tmp_path / "mim", *more)
        assert "is a model for masked images and names no classes; fine-tune it first" in said
    assert not (tmp_path / "space").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Gradio leaves its probe open
def test_a_taken_port_is_said_with_its_number():
    from gradio.http_server import start_server

    class Page:
        def launch(self, server_port, **options):
            start_server(None, server_port=server_port)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} is taken; choose another"):
            launch(Page(), port=port)
    gc.collect()


def test_without_gradio_the_command_says_what_to_install(monkeypatch, folder, capsys):
    monkeypatch.setattr("vit_hf.cli.demo.find_spec", lambda name: None)
    assert 'pip install "vit-hf[demo]"' in fails(capsys, folder)


def test_sharing_is_off_unless_asked_for(monkeypatch):
    asked = []

    class Page:
        def launch(self, **options):
            asked.append(options)
            return None, "http://127.0.0.1:7860/", None

    assert launch(Page()) == "http://127.0.0.1:7860/"
    launch(Page(), share=True)
    assert [options["share"] for options in asked] == [False, True]
    assert all("server_name" not in options for options in asked)


# ------------------------------------------------------------------------------------------- the Space
def test_the_card_of_a_space_has_the_metadata_that_the_hub_reads(folder, tmp_path):
    from huggingface_hub import RepoCard

    written = write_space(folder, tmp_path / "space")
    data = RepoCard.load(written / "README.md", repo_type="space").data.to_dict()
    assert data["sdk"] == "gradio"
    assert re.fullmatch(r"6\.\d+\.\d+", data["sdk_version"])
    assert data["app_file"] == "app.py"
    assert data["title"] == "birds"
    assert data["pinned"] is False
    assert data["python_version"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "models" not in data
    requirements = (written / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch>=") for line in requirements)
    assert not any("pytest" in line for line in requirements)


def test_the_space_of_a_hub_model_names_it_and_holds_no_weights(folder, tmp_path, monkeypatch):
    from huggingface_hub import RepoCard

    from vit_hf.checkpoints.load import load_model

    monkeypatch.setattr("vit_hf.sharing.space.load_model", lambda name: load_model(folder))
    written = write_space("someone/birds", tmp_path / "space")
    assert RepoCard.load(written / "README.md", repo_type="space").data.models == ["someone/birds"]
    assert "build_page('someone/birds', name='someone/birds', scores=None)" in (written / "app.py").read_text()
    assert not list(written.rglob("*.safetensors"))


def test_a_space_never_overwrites_a_folder(folder, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert "is not empty" in fails(capsys, folder, "--space", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_scores_and_examples_of_a_run_come_with_its_space(folder, tmp_path):
    import shutil

    run = shutil.copytree(folder, tmp_path / "run")
    (run / "results.json").write_text(json.dumps({"top1": 0.5, "n": 2, "command": "vit-hf --output /home/me"}))
    (run / "examples").mkdir()
    PIL.Image.new("RGB", (8, 8)).save(run / "examples" / "b.png")
    (run / "examples" / "notes.txt").write_text("private")
    assert find_examples(run) == [str(run / "examples" / "b.png")]
    written = write_space(run, tmp_path / "space")
    assert "scores='Top-1 accuracy 50.00% on 2 pictures'" in (written / "app.py").read_text()
    assert [path.name for path in (written / "model" / "examples").iterdir()] == ["b.png"]
    own = [path for path in written.rglob("*") if path.is_file() and "vit_hf" not in path.relative_to(written).parts]
    assert not any(b"/home/me" in path.read_bytes() or str(tmp_path).encode() in path.read_bytes() for path in own)
