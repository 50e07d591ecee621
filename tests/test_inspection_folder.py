"""`vit-hf inspect` and `summary`: files, numbers behind the pictures, all kinds of models, whole or not at all."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfImageProcessor
from vit_hf.checkpoints.export import export_checkpoint
from vit_hf.cli import main
from vit_hf.inspection import folder as module
from vit_hf.inspection.attention import attention_maps
from vit_hf.inspection.distance import attention_distance
from vit_hf.inspection.filters import filter_components
from vit_hf.inspection.folder import write_inspection
from vit_hf.inspection.positions import position_similarity
from vit_hf.inspection.summary import summarise


def fails(capsys, *arguments) -> str:
    assert main([*map(str, arguments)]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def blank(request, monkeypatch):
    """Save blank pictures instead of the drawn ones, which take most of the time, but in tests that ask for `drawn`."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(module, "save_figure", lambda figure, path: Image.new("L", (1, 1)).save(path))


@pytest.fixture
def drawn():
    """Ask for figures that are drawn to the end."""


def some_pictures(count: int) -> list[tuple[str, Image.Image]]:
    numbers = np.random.default_rng(0)
    pixels = [numbers.integers(0, 256, (20 + index, 30, 3), dtype=np.uint8) for index in range(count)]
    return [(f"no {index}", Image.fromarray(picture)) for index, picture in enumerate(pixels)]


def processor_of(config: VitHfConfig) -> VitHfImageProcessor:
    return VitHfImageProcessor(size={"height": config.image_hw[0], "width": config.image_hw[1]})


@pytest.fixture
def saved(tiny, randomise, tmp_path):
    model = randomise(VitHfForImageClassification(tiny()))
    model.save_pretrained(tmp_path / "model")
    processor_of(model.config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def photos(tmp_path):
    paths = []
    for name, picture in some_pictures(2):
        paths.append(tmp_path / f"{name}.png")
        picture.save(paths[-1])
    return paths


# ------------------------------------------------------------------------------------------- the folder
def test_the_numbers_are_those_of_the_functions_and_every_file_is_a_picture(drawn, tiny, randomise, tmp_path):
    model = randomise(VitHfForImageClassification(tiny(num_register_tokens=1)))
    processor, pictures = processor_of(model.config), some_pictures(11)
    found = summarise(model.config)
    written = write_inspection(model, processor, pictures, tmp_path, summary=found, drawn=2, name="ours")
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir())
    assert written == [
        *("filters.png", "positions.png"),
        *("attention_no_0.png", "heads_no_0.png", "patches_no_0.png"),
        *("attention_no_1.png", "heads_no_1.png", "patches_no_1.png"),
        *("attention_distance.png", "inspection.json"),
    ]
    for name in written[:-1]:
        Image.open(tmp_path / name).verify()
    numbers = json.loads((tmp_path / "inspection.json").read_text())
    pixels = processor([picture for _, picture in pictures], return_tensors="pt")["pixel_values"]

    def same(stored, expected):
        torch.testing.assert_close(torch.tensor(stored), expected.float(), atol=2e-6, rtol=1e-6)

    filters = filter_components(model)
    same(numbers["filters"]["components"], filters.components)
    same(numbers["filters"]["variance_shares"], filters.shares)
    assert (numbers["positions"]["rows"], numbers["positions"]["columns"]) == ([0, 1, 2, 3], [0, 1, 2])
    same(numbers["positions"]["cosine_similarity"], position_similarity(model))
    assert numbers["attention_distance"]["pictures"] == 11
    same(numbers["attention_distance"]["pixels"], attention_distance(model, pixels).mean(dim=0))
    assert [entry["picture"] for entry in numbers["pictures"]] == ["no 0", "no 1"]
    for index, entry in enumerate(numbers["pictures"]):
        one = pixels[index : index + 1]
        maps = attention_maps(model, one)
        same(entry["last_step"], maps.last[0])
        same(entry["rollout"], maps.rollout[0])
        same(entry["heads"], maps.heads[0])
        best = model(one).logits.softmax(dim=-1)[0].max(dim=0)
        assert entry["label"] == model.config.id2label[best.indices.item()]
        assert entry["probability"] == pytest.approx(best.values.item(), abs=2e-6)
        assert set(entry["files"]) <= set(written)
    assert numbers["parameters"] == found.parameters
    assert [layer["activation_bytes"] for layer in numbers["layers"]] == [row.activation_bytes for row in found.layers]
    assert numbers["model"] == "ours"


def test_a_head_that_looks_at_no_patch_is_null_in_the_numbers(tiny, randomise, monkeypatch, tmp_path):
    """Heads may give all their attention to the class token, and then have no distance."""
    distances = torch.tensor([[[1.0, torch.nan, 3.0, 4.0]] * 3, [[2.0, torch.nan, torch.nan, 5.0]] * 3])
    monkeypatch.setattr(module, "attention_distance", lambda model, pixels: distances)
    model = randomise(VitHfForImageClassification(tiny()))
    processor = VitHfImageProcessor(size={"height": 16, "width": 24})
    picture = Image.new("RGB", (24, 16), "red")
    write_inspection(
        model, processor, [("a", picture), ("b", picture)], tmp_path, summary=summarise(model.config), drawn=0
    )
    numbers = json.loads((tmp_path / "inspection.json").read_text())
    assert numbers["attention_distance"]["pixels"] == [[1.5, None, 3.0, 4.5]] * 3


def test_pictures_of_one_name_and_with_odd_letters_keep_files_of_their_own(tiny, tmp_path):
    model = VitHfForImageClassification(tiny()).eval()
    picture = some_pictures(1)[0][1]
    names = ["../etc/x", "a b", "a b", "a_b"]
    pictures = [(name, picture) for name in names]
    summary = summarise(model.config)
    written = write_inspection(model, processor_of(model.config), pictures, tmp_path, summary=summary, drawn=9)
    assert [name for name in written if name.startswith("heads_")] == [
        *("heads_.._etc_x.png", "heads_a_b.png", "heads_a_b-2.png", "heads_a_b-3.png")
    ]
    assert sorted(written) == sorted(path.name for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "overrides",
    [
        {"pooling": "gap", "position_embedding": "sincos2d"},
        {"pooling": "map", "qk_norm": True},
        {"distilled": True, "num_register_tokens": 2, "prefix_positions": "all"},
        {"image_size": [32, 64], "patch_size": 16, "resnet_stem_layers": [1], "resnet_stem_width": 32},
        {"num_hidden_layers": 1, "image_size": 8, "patch_size": 8},
    ],
    ids=["gap", "map", "distilled", "hybrid", "one_patch"],
)
def test_every_kind_of_model_can_be_inspected(tiny, overrides, tmp_path):
    model = VitHfForImageClassification(tiny(**overrides)).eval()
    summary = summarise(model.config)
    written = write_inspection(model, processor_of(model.config), some_pictures(1), tmp_path, summary=summary, drawn=1)
    numbers = json.loads((tmp_path / "inspection.json").read_text())
    assert ("filters.png" in written) == (numbers["filters"] is not None) == ("resnet_stem_layers" not in overrides)
    assert len(written) == 6 + (numbers["filters"] is not None)


# ------------------------------------------------------------------------------------------- the command
def test_the_command_writes_the_folder_and_prints_the_layers_and_the_files(saved, photos, tmp_path, capsys):
    assert main(["inspect", str(saved), *map(str, photos), "--output", str(tmp_path / "seen")]) == 0
    printed = capsys.readouterr().out
    assert "blocks 1-2, each" in printed
    for path in (tmp_path / "seen").iterdir():
        assert path.name in printed
    assert (tmp_path / "seen" / "attention_no_1.png").is_file()
    assert not list(tmp_path.glob(".*"))


def test_without_pictures_the_weights_alone_are_drawn_and_the_folder_has_the_models_name(
    saved, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(saved)]) == 0
    assert "no pictures: give IMAGE" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "model-inspection").iterdir())
    assert names == ["filters.png", "inspection.json", "positions.png"]


def test_a_run_folder_shows_pictures_of_its_own_test_split(tiny, tmp_path, capsys):
    model = VitHfForImageClassification(tiny(num_labels=10)).eval()
    model.save_pretrained(tmp_path / "run")
    processor_of(model.config).save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "recipe.yaml").write_text("data:\n  source: digits\n")
    assert main(["inspect", str(tmp_path / "run"), "--output", str(tmp_path / "seen")]) == 0
    numbers = json.loads((tmp_path / "seen" / "inspection.json").read_text())
    assert numbers["attention_distance"]["pictures"] == 32
    assert len(numbers["pictures"]) == 4
    assert numbers["pictures"][0]["picture"].startswith("test_0_is_")
    capsys.readouterr()
    (tmp_path / "run" / "recipe.yaml").write_text("data:\n  source: ./moved/away\n")
    assert main(["inspect", str(tmp_path / "run"), "--output", str(tmp_path / "other")]) == 0
    assert "moved/away" in capsys.readouterr().err
    assert not (tmp_path / "other" / "attention_distance.png").exists()


def test_weights_of_another_library_are_inspected_as_they_are(tiny, randomise, photos, tmp_path, capsys):
    config = tiny(image_size=16, patch_size=4, hidden_size=64, num_attention_heads=1, hidden_act="gelu")
    model = randomise(VitHfForImageClassification(config))
    theirs = export_checkpoint(model, tmp_path / "theirs.safetensors", target="timm")
    assert main(["inspect", str(theirs), str(photos[0]), "--output", str(tmp_path / "seen")]) == 0
    numbers = json.loads((tmp_path / "seen" / "inspection.json").read_text())
    torch.testing.assert_close(
        torch.tensor(numbers["positions"]["cosine_similarity"]), position_similarity(model), atol=2e-6, rtol=0
    )
    capsys.readouterr()
    assert main(["summary", str(theirs)]) == 0
    assert f"{sum(p.numel() for p in model.parameters()):,}" in capsys.readouterr().out


def test_what_cannot_be_inspected_says_why_and_leaves_nothing(saved, photos, tmp_path, capsys, tiny):
    output = tmp_path / "seen"
    assert "no picture" in fails(capsys, "inspect", saved, tmp_path / "none.png", "--output", output)
    (tmp_path / "text.png").write_text("hello")
    assert "text.png" in fails(capsys, "inspect", saved, photos[0], tmp_path / "text.png", "--output", output)
    masked = VitHfForMaskedImageModeling(tiny())
    masked.save_pretrained(tmp_path / "masked")
    assert "nothing to reconstruct; give IMAGE" in fails(capsys, "inspect", tmp_path / "masked", "--output", output)
    assert not output.exists()
    assert not list(tmp_path.glob(".*"))
    output.mkdir()
    (output / "mine.txt").write_text("kept")
    assert "is not an empty folder" in fails(capsys, "inspect", saved, photos[0], "--output", output)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]


def test_a_fault_while_drawing_leaves_no_folder(saved, photos, tmp_path, monkeypatch):
    def fault(*_, **__):
        raise RuntimeError("the pen broke")

    monkeypatch.setattr(module, "draw_patches", fault)
    with pytest.raises(RuntimeError, match="the pen broke"):
        main(["inspect", str(saved), str(photos[0]), "--output", str(tmp_path / "seen")])
    assert not (tmp_path / "seen").exists()
    assert not list(tmp_path.glob(".*"))


# ------------------------------------------------------------------------------------------- summary
def test_summary_takes_variants_and_models_alike(saved, capsys):
    config = VitHfConfig.from_pretrained(saved)
    assert main(["summary", str(saved)]) == 0
    assert f"{summarise(config).parameters:,}" in capsys.readouterr().out
    assert main(["summary", str(saved), "--image-size", "32", "--num-labels", "7"]) == 0
    printed = capsys.readouterr().out
    assert "32 x 32 px" in printed
    larger = VitHfConfig.from_dict(config.to_dict(), image_size=32, num_labels=7)
    assert f"{summarise(larger).parameters:,}" in printed
    assert main(["summary", "Ti/16", str(saved)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line][:2] == ["model", "Ti/16"]


def test_summary_of_no_variant_names_near_ones_without_asking_the_hub(capsys):
    assert "did you mean B/16" in fails(capsys, "summary", "B16")
    assert "unknown variant 'Q/16'" in fails(capsys, "summary", "Q/16")


def test_summary_reads_no_weights_of_a_model_folder(saved, capsys):
    (saved / "model.safetensors").unlink()
    assert main(["summary", str(saved)]) == 0
    assert "patch projection" in capsys.readouterr().out
