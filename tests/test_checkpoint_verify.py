"""Conversions on the command line, and their check against the original library."""

import json
import shlex
import shutil

import numpy as np
import PIL.Image
import pytest
import timm
import torch
import torchvision
import yaml
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from transformers import (
    AutoImageProcessor,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)

from vit_hf import VitHfForImageClassification, export_checkpoint, load_checkpoint, variant
from vit_hf.checkpoints.receipt import CheckpointError
from vit_hf.checkpoints.verify import Difference, Verification, verify_conversion
from vit_hf.cli import main

STOCK = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
         "image_size": 32, "patch_size": 8}  # fmt: skip
MAE_DECODER = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1,
               "decoder_intermediate_size": 64}  # fmt: skip


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "photo.png"
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory, randomise):
    """A folder as timm pushes it to the Hub: a small net under a registered name."""
    folder = tmp_path_factory.mktemp("timm") / "hub"
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    net = randomise(timm.create_model("vit_tiny_patch16_224", num_classes=5, **arguments))
    net.pretrained_cfg = {**net.pretrained_cfg, "input_size": (3, 32, 32), "num_classes": 5}
    save_for_hf(net, folder, model_args=arguments, safe_serialization=True)
    return folder


def stock(randomise, kind, config, folder, **processor):
    randomise(kind(config)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}, **processor).save_pretrained(folder)
    return folder


def by_name(found: Verification) -> dict[str, Difference]:
    assert found.agrees
    return {row.quantity: row for row in found.differences}


# ------------------------------------------------------------------------------------------- against the originals
def test_a_timm_folder_is_verified_with_pixels_tokens_and_logits(timm_folder):
    found = verify_conversion(timm_folder)
    assert found.original == f"timm {timm.__version__}, vit_tiny_patch16_224"
    assert found.images == 2
    rows = by_name(found)
    assert rows["tokens"].largest < 1e-5 < rows["tokens"].scale
    assert rows["logits"].largest < 1e-5 < rows["logits"].scale
    # bicubic on tensors against Pillow: a level or two of 255, std 0.5
    assert 0 <= rows["preprocessed pixels"].largest <= 4 / 255
    assert "grey levels" in rows["preprocessed pixels"].note


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (ViTForImageClassification, ViTConfig(**STOCK)),
        (DeiTForImageClassificationWithTeacher, DeiTConfig(**STOCK)),
        (ViTForMaskedImageModeling, ViTConfig(**STOCK, encoder_stride=8)),
        (ViTMAEForPreTraining, ViTMAEConfig(**STOCK, **MAE_DECODER)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_transformers_folders_are_verified_with_their_own_class(kind, config, tmp_path, randomise):
    folder = stock(randomise, kind, config, tmp_path / "stock")
    rows = by_name(verify_conversion(folder))
    assert rows["tokens"].largest < 1e-5
    assert rows["preprocessed pixels"].largest == 0  # the same processor underneath
    classifies = kind in (ViTForImageClassification, DeiTForImageClassificationWithTeacher)
    assert (rows["logits"].largest is not None) == classifies
    if classifies:
        assert rows["logits"].largest < 1e-5


def test_torchvision_files_are_verified(tmp_path, randomise):
    net = torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5, representation_size=24)
    torch.save(randomise(net).state_dict(), tmp_path / "vit.pth")
    found = verify_conversion(tmp_path / "vit.pth", num_attention_heads=2)
    rows = by_name(found)
    assert found.original.startswith(f"torchvision {torchvision.__version__}")
    assert rows["logits"].largest < 1e-5
    assert rows["preprocessed pixels"].note == "not one of the published files"


def test_google_files_are_verified_by_timms_reader_where_flax_is_missing(tmp_path, randomise, monkeypatch):
    absent = {"official": "absent_x", "big_vision": "absent_y"}
    monkeypatch.setattr("vit_hf.checkpoints.originals.FLAX_PACKAGES", absent)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    for pooling in ("cls", "gap", "map"):  # the last in big_vision's layout
        config = variant("B/16", image_size=32, patch_size=8, num_labels=5, pooling=pooling, **sizes)
        model = randomise(VitHfForImageClassification(config))
        path = export_checkpoint(model, tmp_path / f"{pooling}.npz", target="google")
        found = verify_conversion(path)
        assert "reader of .npz files" in found.original
        assert by_name(found)["logits"].largest < 1e-5


@pytest.mark.parametrize("name", ["jax_vit_token", "jax_vit_prelogits", "jax_vit_gap", "jax_hybrid_stem"])
def test_google_files_are_verified_by_the_official_code_where_it_is_installed(name, shared_data):
    pytest.importorskip("vit_jax", reason="the official google-research/vision_transformer is not installed")
    rows = by_name(verify_conversion(shared_data("google-reference") / f"{name}.npz"))
    assert rows["tokens"].largest < 1e-5
    assert rows["logits"].largest < 1e-5


def test_a_wrong_conversion_does_not_agree(timm_folder, tmp_path):
    folder = tmp_path / "hub"
    shutil.copytree(timm_folder, folder)
    wrong = verify_conversion(folder, layer_norm_eps=1e-2)
    assert not wrong.agrees
    assert Verification("x", 1, (Difference("logits", 1e-3, 100.0),)).agrees  # rounding of large values
    assert not Verification("x", 1, (Difference("logits", 2e-4, 0.5),)).agrees


def test_another_size_is_not_what_is_verified(timm_folder):
    with pytest.raises(CheckpointError, match="verified at the file's own sizes"):
        verify_conversion(timm_folder, image_size=64)


def test_a_missing_library_is_named(timm_folder, monkeypatch):
    monkeypatch.setattr("vit_hf.checkpoints.originals.importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install timm"):
        verify_conversion(timm_folder)


# ------------------------------------------------------------------------------------------- the commands
def test_convert_writes_a_model_folder_with_a_receipt_that_predict_takes(
    timm_folder, tmp_path, picture, capsys, settled
):
    out = tmp_path / "converted"
    assert main(["convert", str(timm_folder), str(out), "--image_size", "64"]) == 0
    printed = capsys.readouterr().out
    assert "positions (4, 4) to (8, 8), timm" in printed
    assert "vit-hf predict" in printed
    record = json.loads((out / "receipt.json").read_text())
    assert record["source"] == "timm"
    actions = {entry["model"]: entry["action"] for entry in record["tensors"]}
    assert actions["vit.embeddings.position_embeddings"] == "resampled"
    ours = VitHfForImageClassification.from_pretrained(out).eval()
    loaded = load_checkpoint(timm_folder, image_size=64)
    pixels = AutoImageProcessor.from_pretrained(out)(PIL.Image.open(picture), return_tensors="pt")
    assert pixels["pixel_values"].shape == (1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(settled(ours)(**pixels).logits, settled(loaded)(**pixels).logits)
    assert main(["predict", str(out), str(picture)]) == 0
    assert main(["predict", str(timm_folder), str(picture)]) == 0  # or without converting first


def test_convert_takes_what_the_file_does_not_tell_and_keeps_an_existing_folder(tmp_path, randomise, capsys):
    net = randomise(timm.models.VisionTransformer(32, 8, embed_dim=32, depth=2, num_heads=2, num_classes=5))
    save_file(net.state_dict(), tmp_path / "bare.safetensors")
    words = ["convert", str(tmp_path / "bare.safetensors"), str(tmp_path / "out")]
    assert main(words) == 1
    assert "Give: num_attention_heads=..." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--num_attention_heads", "2", "--layer_norm_eps", "1e-6", "--source", "timm"]) == 0
    printed = capsys.readouterr().out
    assert "num_attention_heads = 2: given" in printed
    line = next(line for line in printed.splitlines() if "verify-conversion" in line)
    assert line.endswith("--num_attention_heads 2 --layer_norm_eps 1e-06 --source timm")
    assert main(shlex.split(line)[1:]) == 0  # what is printed works
    capsys.readouterr()
    before = sorted((tmp_path / "out").iterdir())
    assert main([*words, "--num_attention_heads", "2"]) == 1
    assert "exists; give a new folder" in capsys.readouterr().err
    assert sorted((tmp_path / "out").iterdir()) == before


def test_export_weights_writes_what_the_other_library_loads(timm_folder, tmp_path, capsys):
    assert main(["convert", str(timm_folder), str(tmp_path / "ours")]) == 0
    target = tmp_path / "back"
    assert main(["export-weights", str(tmp_path / "ours"), str(target), "--target", "timm"]) == 0
    before, after = load_file(timm_folder / "model.safetensors"), load_file(target / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    settings = json.loads((target / "config.json").read_text())["pretrained_cfg"]
    original = json.loads((timm_folder / "config.json").read_text())["pretrained_cfg"]
    for name in ("mean", "std", "interpolation", "crop_mode", "input_size"):
        assert settings[name] == original[name], name
    assert main(["export-weights", str(tmp_path / "ours"), str(tmp_path / "x.npz"), "--target", "google"]) == 1
    assert "hidden_act is 'gelu', it needs GELU by its tanh form" in capsys.readouterr().err


def test_verify_conversion_prints_a_table_and_fails_on_a_difference(timm_folder, picture, capsys):
    assert main(["verify-conversion", str(timm_folder), "--images", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "the outputs agree" in printed
    for word in ("pixels", "tokens", "logits", "1 images"):
        assert word in printed
    assert main(["verify-conversion", str(timm_folder), "--layer_norm_eps", "0.01"]) == 1
    assert "DIFFER" in capsys.readouterr().out


def test_field_values_are_yaml(timm_folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["convert", str(timm_folder), str(out), "--image_size", "[32, 64]", "--num-labels", "3"]) == 0
    config = json.loads((out / "config.json").read_text())
    assert config["image_size"] == [32, 64]
    assert len(config["id2label"]) == 3
    assert main(["convert", str(timm_folder), str(tmp_path / "x"), "--image_size", "[1"]) == 1
    assert "no YAML value" in capsys.readouterr().err
    assert main(["convert", str(timm_folder), str(tmp_path / "x"), "--imagesize", "1"]) == 1
    assert "did you mean image_size" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- training from it
def test_fine_tuning_starts_from_a_checkpoint_of_another_library(timm_folder, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--data", "digits", "--model.init_from", str(timm_folder), "--output", str(out), "--trackers", "none"]
    fast = ["--max-steps", "2", "--data.max_train_images", "64", "--data.max_test_images", "40", "--workers", "0"]
    assert main(["train", "vit_finetune", *words, *fast, "--model.image_size", "16"]) == 0
    assert json.loads((out / "config.json").read_text())["image_size"] == 16
    settings = json.loads((out / "preprocessor_config.json").read_text())
    assert settings["crop_size"] == {"height": 16, "width": 16}
    assert settings["size"] == {"shortest_edge": 17}  # 35 before 32, as floor(32 / 0.9) gives
    assert yaml.safe_load((out / "recipe.yaml").read_text())["model"]["init_from"] == str(timm_folder)
