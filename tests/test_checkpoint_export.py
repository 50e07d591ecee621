"""Weights written for other libraries: bit-equal when read back, refused where the target cannot express the model."""

import json
import os
import resource
import signal
import zipfile

import numpy as np
import pytest
import torch
import torchvision
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from transformers import AutoImageProcessor
from transformers.utils.logging import disable_progress_bar

from vit_hf import VitHfForImageClassification, VitHfImageProcessor
from vit_hf.checkpoints import export
from vit_hf.checkpoints.export import SUFFIXES, export_checkpoint, write_model_folder
from vit_hf.checkpoints.load import LIBRARIES, load_checkpoint
from vit_hf.checkpoints.receipt import CheckpointError

disable_progress_bar()
SQUARE = {"image_size": 16, "patch_size": 4}
REGISTERS = {"num_register_tokens": 1, "prefix_positions": "all"}
DISTILLED = {**REGISTERS, "distilled": True}
# What each target can express, beside its own activation and way of resizing positions.
OWN = {
    "google": {"hidden_act": "gelu_pytorch_tanh", "position_interpolation": "google"},
    "timm": {"hidden_act": "gelu", "position_interpolation": "timm"},
    "torchvision": {"hidden_act": "gelu", "position_interpolation": "torchvision", **SQUARE},
    "transformers": {"hidden_act": "gelu", "position_interpolation": "transformers"},
}
STEM = {"image_size": 32, "patch_size": 16, "resnet_stem_width": 32}
EXPRESSIBLE = {
    "google": {
        "plain": {},
        "grey": {"num_channels": 1},
        "representation": {"representation_size": 12},
        "gap": {"pooling": "gap"},
        "map": {"pooling": "map", "prefix_positions": "none"},
        "class token without position": {"prefix_positions": "none"},
        "sincos2d": {"pooling": "gap", "position_embedding": "sincos2d", "prefix_positions": "none"},
        "stem": {**STEM, "resnet_stem_layers": [2, 1]},
        "root": {**STEM, "resnet_stem_layers": [], "patch_size": 8},
    },
    "timm": {
        "plain": {},
        "grey": {"num_channels": 1},
        "tanh": {"hidden_act": "gelu_pytorch_tanh"},
        "quick": {"hidden_act": "quick_gelu"},
        "swiglu": {"hidden_act": "swiglu"},
        "no qkv bias": {"qkv_bias": False},
        "class token without position": {"prefix_positions": "none"},
        "registers": {"num_register_tokens": 3, "prefix_positions": "all"},
        "registers without positions": {"num_register_tokens": 3, "prefix_positions": "none"},
        "fc_norm": {"pooling": "gap", "fc_norm": True, "class_token": True},
        "gap": {"pooling": "gap", "class_token": False, "prefix_positions": "none"},
        "map": {"pooling": "map", "class_token": False, "prefix_positions": "none"},
        "map with class token": {"pooling": "map", "class_token": True},
        "scaled": {"layer_scale_init": 1e-4, "prefix_positions": "none"},
        "qk norm": {"qk_norm": True},
        "clip": {"embedding_norm": True, "patch_bias": False, "layer_norm_eps": 1e-5, "hidden_act": "quick_gelu"},
        "distilled": DISTILLED,
        "stem": {**STEM, "resnet_stem_layers": [2, 1], "resnet_stem_style": "timm"},
    },
    "torchvision": {"plain": {}, "representation": {"representation_size": 12}},
    "transformers": {
        "plain": {},
        "grey": {"num_channels": 1},
        "eps": {"layer_norm_eps": 1e-12},
        "tanh": {"hidden_act": "gelu_pytorch_tanh"},
        "quick": {"hidden_act": "quick_gelu"},
        "no qkv bias": {"qkv_bias": False},
        "deit": REGISTERS,
        "distilled": DISTILLED,
        "names": {"id2label": {index: f"class {index}" for index in range(5)}},
        "rates": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2},
    },
}
# Fields that the target cannot express -> configs with nothing else wrong than them and what they bring along.
SWIGLU, RELU = {"hidden_act": "swiglu"}, {"hidden_act": "quick_gelu"}
GAP, MAP = {"pooling": "gap"}, {"pooling": "map"}
STEM_2 = {**STEM, "resnet_stem_layers": [2, 1]}
COMMON = {
    "embedding_norm": {"embedding_norm": True},
    "patch_bias": {"patch_bias": False},
    "fc_norm": {"fc_norm": True},
    "layer_scale_init": {"layer_scale_init": 1e-5},
    "qk_norm": {"qk_norm": True},
}
INEXPRESSIBLE = {
    "google": {
        **COMMON,
        "hidden_act": {"hidden_act": "gelu"},
        "layer_norm_eps": {"layer_norm_eps": 1e-12},
        "qkv_bias": {"qkv_bias": False},
        "class_token": {**GAP, "class_token": True},
        "distilled": DISTILLED,
        "num_register_tokens": {"num_register_tokens": 2},
        "resnet_stem_style": {**STEM_2, "resnet_stem_style": "timm"},
        "resnet_stem_layers": {**STEM_2, **MAP, "prefix_positions": "none"},
    },
    "timm": {
        "layer_norm_eps": {"layer_norm_eps": 1e-12},
        "patch_bias": {"patch_bias": False},
        "representation_size": {"representation_size": 12},
        "prefix_positions": {"num_register_tokens": 2, "prefix_positions": "cls"},
        "resnet_stem_style": {**STEM_2, "resnet_stem_style": "google"},
        "num_register_tokens": {**DISTILLED, "num_register_tokens": 2},
    },
    "torchvision": {
        **COMMON,
        "image_size": {"image_size": [16, 24]},
        "patch_size": {"image_size": 16, "patch_size": [4, 8]},
        "num_channels": {"num_channels": 1},
        "hidden_act": {"hidden_act": "gelu_pytorch_tanh"},
        "layer_norm_eps": {"layer_norm_eps": 1e-12},
        "qkv_bias": {"qkv_bias": False},
        "pooling": GAP,
        "distilled": DISTILLED,
        "num_register_tokens": {"num_register_tokens": 2},
        "prefix_positions": {"prefix_positions": "none"},
        "resnet_stem_layers": STEM_2,
    },
    "transformers": {
        **COMMON,
        "pooling": MAP,
        "hidden_act": SWIGLU,
        "representation_size": {"representation_size": 12},
        "num_register_tokens": {"num_register_tokens": 2, "prefix_positions": "all"},
        "prefix_positions": {"prefix_positions": "none"},
        "resnet_stem_layers": STEM_2,
    },
}


def cases(table):
    return [pytest.param(target, fields, id=f"{target} {name}") for target, rows in table.items()
            for name, fields in rows.items()]  # fmt: skip


@pytest.fixture
def build(tiny, randomise):
    """Give a function that builds a model of random weights in a target's own conventions."""
    return lambda target, **fields: randomise(VitHfForImageClassification(tiny(**{**OWN[target], **fields})))


@pytest.fixture(scope="module")
def photographs():
    return [Image.fromarray(picture) for picture in load_sample_images().images]


def assert_same_model(one, two, *, but=()):
    """Bit-equal weights, and the same config but for some fields."""
    state, other = one.state_dict(), two.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[name], other[name]) for name in state)
    config, second = one.config.to_dict(), two.config.to_dict()
    skip = {"architectures", "dtype", "transformers_version", "_name_or_path", *but}
    assert {k: (v, second[k]) for k, v in config.items() if k not in skip and v != second[k]} == {}


@torch.no_grad()
def logits_of(model, pixel_values):
    outputs = model.eval()(pixel_values)
    return outputs if isinstance(outputs, torch.Tensor) else outputs.logits


# ---------------------------------------------------------------------------------------------- there and back
@pytest.mark.parametrize(("target", "fields"), cases(EXPRESSIBLE))
def test_what_a_target_can_express_comes_back_bit_equal(build, tmp_path, target, fields):
    model = build(target, **fields)
    form = "google.npz" if target == "google" else "folder" if target == "transformers" else f"{target}.safetensors"
    path = export_checkpoint(model, tmp_path / form, target=target)
    back = load_checkpoint(path)
    assert back.receipt.source == target
    # Not to be told by a file: whether a class token was set or follows from the pooling.
    assert_same_model(back, model, but=("class_token",))
    assert back.config.has_cls_token == model.config.has_cls_token
    pixel_values = torch.randn(2, model.config.num_channels, *model.config.image_hw)
    assert torch.equal(logits_of(back, pixel_values), logits_of(model, pixel_values))


@pytest.mark.parametrize("target", ["timm", "torchvision"])
def test_pth_and_folder_hold_the_same_tensors(build, tmp_path, target):
    model = build(target, **SQUARE)
    for name in ("vit.pth", "vit.safetensors", "folder"):
        export_checkpoint(model, tmp_path / name, target=target)
    state = torch.load(tmp_path / "vit.pth", weights_only=True)
    for path in (tmp_path / "vit.safetensors", tmp_path / "folder" / "model.safetensors"):
        other = load_file(path)
        assert set(state) == set(other)
        assert all(torch.equal(state[name], other[name]) for name in state)
    back = load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4)  # a .pth has no place for it
    assert_same_model(back, model)
    assert_same_model(load_checkpoint(tmp_path / "folder"), model)


def test_google_folder_without_suffix_is_read_back(build, tmp_path):
    model = build("google")
    export_checkpoint(model, tmp_path / "folder", target="google")
    assert_same_model(load_checkpoint(tmp_path / "folder"), model)


@pytest.mark.parametrize("target", ["torchvision", "transformers"])
def test_fixed_positions_are_written_as_a_table(build, tmp_path, target):
    model = build(target, position_embedding="sincos2d")
    form = "folder" if target == "transformers" else "vit.safetensors"
    back = load_checkpoint(export_checkpoint(model, tmp_path / form, target=target))
    assert back.config.position_embedding == "learned"
    table = model.vit.embeddings.position_embeddings
    assert torch.equal(back.vit.embeddings.position_embeddings, table)
    pixel_values = torch.randn(2, 3, *model.config.image_hw)
    assert torch.equal(logits_of(back, pixel_values), logits_of(model, pixel_values))


@pytest.mark.parametrize("target", ["timm", "torchvision", "transformers"])
def test_bfloat16_comes_back_bit_equal(build, tmp_path, target):
    model = build(target).to(torch.bfloat16)
    form = "folder" if target == "transformers" else "vit.safetensors"
    back = load_checkpoint(export_checkpoint(model, tmp_path / form, target=target))
    assert back.dtype == torch.bfloat16
    assert_same_model(back, model)


def test_exporting_draws_no_random_numbers_and_leaves_the_model_alone(build, tmp_path):
    model = build("transformers")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    export_checkpoint(model, tmp_path / "folder", target="transformers")
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---------------------------------------------------------------------------------------------- stock -> ours -> stock
@pytest.mark.parametrize("representation_size", [None, 12])
def test_torchvision_file_goes_in_and_out_bit_equal_and_loads_strictly(randomise, tmp_path, representation_size):
    sizes = {"image_size": 16, "patch_size": 4, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
    sizes |= {"num_classes": 5, "representation_size": representation_size}
    stock = randomise(torchvision.models.VisionTransformer(**sizes))
    torch.save(stock.state_dict(), tmp_path / "in.pth")
    model = load_checkpoint(tmp_path / "in.pth", num_attention_heads=4)
    export_checkpoint(model, tmp_path / "out.pth", target="torchvision")
    state = torch.load(tmp_path / "out.pth", weights_only=True)
    original = stock.state_dict()
    assert set(state) == set(original)
    assert all(torch.equal(state[name], original[name]) for name in state)
    other = randomise(torchvision.models.VisionTransformer(**sizes), seed=1)
    other.load_state_dict(state, strict=True)
    pixel_values = torch.randn(2, 3, 16, 16)
    assert torch.equal(logits_of(other, pixel_values), logits_of(stock, pixel_values))


@pytest.mark.parametrize(
    "class_name",
    ["ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"],
)
def test_transformers_folder_goes_in_and_out_bit_equal(randomise, tmp_path, class_name):
    stock_class = getattr(transformers, class_name)
    config = stock_class.config_class(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4,
        id2label={0: "cat", 1: "dog", 2: "owl"}, layer_norm_eps=1e-5, hidden_act="gelu_new", qkv_bias=False,
    )  # fmt: skip
    stock = randomise(stock_class(config))
    stock.save_pretrained(tmp_path / "in")
    export_checkpoint(load_checkpoint(tmp_path / "in"), tmp_path / "out", target="transformers")
    state, original = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "in"))
    assert set(state) == set(original)
    assert all(torch.equal(state[name], original[name]) for name in state)
    stored, first = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "in"))
    assert {k: (v, stored.get(k)) for k, v in first.items() if stored.get(k) != v} == {
        "hidden_act": ("gelu_new", "gelu_pytorch_tanh"),  # one function, two names
        "label2id": (None, {"cat": 0, "dog": 1, "owl": 2}),
    }
    other, info = stock_class.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    pixel_values = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(logits_of(other, pixel_values), logits_of(stock, pixel_values), atol=1e-6, rtol=0)


@pytest.mark.parametrize("fields", [{}, REGISTERS, DISTILLED], ids=["vit", "deit", "deit teacher"])
def test_stock_from_pretrained_gives_our_logits(build, tmp_path, fields):
    model = build("transformers", **fields)
    export_checkpoint(model, tmp_path / "folder", target="transformers")
    name = json.loads((tmp_path / "folder" / "config.json").read_text())["architectures"][0]
    stock, info = getattr(transformers, name).from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert not any(info.values())
    pixel_values = torch.randn(2, 3, *model.config.image_hw)
    # float32 sums in another order, as in test_checkpoints_transformers.py
    torch.testing.assert_close(logits_of(stock, pixel_values), logits_of(model, pixel_values), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------- processors
def test_processor_settings_go_into_the_folder(build, tmp_path, photographs):
    processor = VitHfImageProcessor(size={"height": 24, "width": 40}, do_center_crop=True, resample=3,
                                    crop_size={"height": 16, "width": 24}, image_mean=[0.1, 0.2, 0.3],
                                    image_std=[0.3, 0.2, 0.1])  # fmt: skip
    export_checkpoint(build("transformers"), tmp_path / "folder", target="transformers", processor=processor)
    stock = AutoImageProcessor.from_pretrained(tmp_path / "folder")
    assert type(stock).__name__ == "ViTImageProcessor"
    expected = processor(photographs, return_tensors="pt")["pixel_values"]
    assert torch.equal(stock(photographs, return_tensors="pt")["pixel_values"], expected)
    grey = photographs[0].convert("L")  # which the stock processor breaks on when it is not told to convert
    assert torch.equal(stock(grey, return_tensors="pt")["pixel_values"],
                       processor(grey, return_tensors="pt")["pixel_values"])  # fmt: skip


def test_processor_of_a_loaded_model_goes_there_and_back(build, tmp_path, photographs):
    export_checkpoint(build("transformers", **SQUARE), tmp_path / "one", target="transformers",
                      processor=VitHfImageProcessor(size={"shortest_edge": 20}, do_center_crop=True,
                                                    crop_size={"height": 16, "width": 16}))  # fmt: skip
    model = load_checkpoint(tmp_path / "one")
    export_checkpoint(model, tmp_path / "two", target="transformers")
    stock = AutoImageProcessor.from_pretrained(tmp_path / "two")
    expected = model.image_processor(photographs, return_tensors="pt")["pixel_values"]
    assert expected.shape[-2:] == (16, 16)
    assert torch.equal(stock(photographs, return_tensors="pt")["pixel_values"], expected)


def test_model_without_a_processor_gives_a_folder_without_one(build, tmp_path):
    model = build("transformers")
    assert not hasattr(model, "image_processor")
    export_checkpoint(model, tmp_path / "folder", target="transformers")
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["config.json", "model.safetensors"]
    for target in ("google", "timm", "torchvision"):
        export_checkpoint(build(target), tmp_path / f"{target}{SUFFIXES[target][0]}", target=target)


# ---------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(("target", "fields"), cases(INEXPRESSIBLE))
def test_each_field_that_a_target_cannot_express_is_named(build, tmp_path, request, target, fields):
    field = request.node.callspec.id.split()[1]
    with pytest.raises(CheckpointError, match=rf"{target} cannot express this model: .*\b{field} is .*, it needs"):
        export_checkpoint(build(target, **fields), tmp_path / "out", target=target)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", LIBRARIES)
def test_the_cases_above_name_every_field_that_is_checked(tiny, target):
    everything = [fields for rows in INEXPRESSIBLE.values() for fields in rows.values()]
    configs = [tiny(**{**OWN[target], **fields}) for fields in everything]
    checked = {name for config in configs for name in LIBRARIES[target].inexpressible(config)}
    assert checked == set(INEXPRESSIBLE[target])


@pytest.mark.parametrize("target", LIBRARIES)
def test_several_wrong_fields_are_all_named(build, tmp_path, target):
    fields = {"num_register_tokens": 2, "layer_norm_eps": 1e-3, "representation_size": 12, "patch_bias": False,
              "qk_norm": True, "pooling": "cls"}  # fmt: skip
    expected = set(LIBRARIES[target].inexpressible(build(target, **fields).config))
    assert len(expected) >= 3
    with pytest.raises(CheckpointError) as caught:
        export_checkpoint(build(target, **fields), tmp_path / "out", target=target)
    assert all(f"{name} is " in str(caught.value) for name in expected)


@pytest.mark.parametrize("target", LIBRARIES)
def test_existing_paths_are_refused_and_kept(build, tmp_path, target):
    suffix = (*SUFFIXES[target], "")[0]
    path = tmp_path / f"there{suffix}"
    path.write_text("mine") if suffix else path.mkdir()
    with pytest.raises(FileExistsError, match="exists; give a new path"):
        export_checkpoint(build(target), path, target=target)
    assert path.is_dir() or path.read_text() == "mine"


@pytest.mark.parametrize(
    ("target", "name"),
    [("google", "vit.safetensors"), ("timm", "vit.npz"), ("timm", "vit.bin"), ("torchvision", "vit.npz"),
     ("torchvision", "vit.pt"), ("transformers", "model.safetensors")],
)  # fmt: skip
def test_wrong_suffixes_are_refused(build, tmp_path, target, name):
    with pytest.raises(CheckpointError, match=rf"ends in .*; {target} weights go into .*folder"):
        export_checkpoint(build(target), tmp_path / name, target=target)
    assert list(tmp_path.iterdir()) == []


def test_unknown_targets_and_other_models_are_refused(build, tmp_path):
    with pytest.raises(ValueError, match="target is 'keras'; expected one of google, timm"):
        export_checkpoint(build("timm"), tmp_path / "out", target="keras")
    with pytest.raises(TypeError, match="model is a VitHfModel; expected a VitHfForImageClassification"):
        export_checkpoint(build("timm").vit, tmp_path / "out", target="timm")
    mixed = build("timm")
    mixed.classifier.to(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"mixes torch.bfloat16, torch.float32; bring it to one"):
        export_checkpoint(mixed, tmp_path / "out", target="timm")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------- failures on the way
def test_bfloat16_cannot_go_into_an_npz_and_leaves_nothing(build, tmp_path):
    with pytest.raises(CheckpointError, match=r"numpy has no bfloat16; .*model.float"):
        export_checkpoint(build("google").to(torch.bfloat16), tmp_path / "vit.npz", target="google")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "name"),
    [("google", "vit.npz"), ("timm", "vit.safetensors"), ("torchvision", "vit.pth"), ("timm", "folder"),
     ("transformers", "folder")],
)  # fmt: skip
def test_full_disk_leaves_nothing_half_written(build, tmp_path, target, name):
    """A file may not grow beyond 20 kB, as on a full disk: writing fails midway."""
    model, limits = build(target), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(Exception):  # noqa: B017, PT011 - each library's own
            export_checkpoint(model, tmp_path / name, target=target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
    export_checkpoint(model, tmp_path / name, target=target)  # and the next try is free to go


def test_failure_after_the_weights_leaves_no_folder(build, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(export.ViTImageProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space left"):
        export_checkpoint(build("transformers"), tmp_path / "out", target="transformers",
                          processor=VitHfImageProcessor())  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_files_have_the_usual_permissions_and_tell_what_tensors_do_not(build, tmp_path):
    mask = os.umask(0o022)
    try:
        export_checkpoint(build("google"), tmp_path / "deep" / "vit.npz", target="google")
        export_checkpoint(build("timm"), tmp_path / "vit.safetensors", target="timm")
        export_checkpoint(build("timm"), tmp_path / "folder", target="timm")
    finally:
        os.umask(mask)
    assert (tmp_path / "deep" / "vit.npz").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o755
    with zipfile.ZipFile(tmp_path / "deep" / "vit.npz") as archive:
        comment = json.loads(archive.comment)
    with safe_open(tmp_path / "vit.safetensors", "pt") as stored:
        metadata = json.loads(stored.metadata()["vit_hf"])
    for told in (comment, metadata):
        assert told["vit_hf"]["image_size"] == [16, 24]
        assert told["vit_hf"]["num_attention_heads"] == 4
    with np.load(tmp_path / "deep" / "vit.npz", allow_pickle=False) as arrays:
        assert arrays["Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"].shape == (32, 4, 8)
        assert all(array.dtype == np.float32 for array in arrays.values())


# ---------------------------------------------------------------------------------------------- model folders
FROM_FOLDER = """
import sys
from transformers import AutoImageProcessor, AutoModelForImageClassification
from PIL import Image
folder = sys.argv[1]
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
assert not any(name.split(".")[0] == "vit_hf" for name in sys.modules)
with torch.no_grad():
    logits = model.eval()(torch.load(sys.argv[2], weights_only=True)).logits
pixels = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)(
    Image.open(sys.argv[3]), return_tensors="pt")["pixel_values"]
torch.save({"logits": logits, "pixels": pixels}, sys.argv[4])
"""


def test_model_folder_is_loaded_by_everybody_with_bit_equal_logits(
    build, tmp_path, photographs, run_without_package
):  # fmt: skip
    processor = VitHfImageProcessor(size={"shortest_edge": 20}, do_center_crop=True, resample=3,
                                    crop_size={"height": 16, "width": 16})  # fmt: skip
    export_checkpoint(build("transformers", **SQUARE, **DISTILLED), tmp_path / "stock", target="transformers",
                      processor=processor)  # fmt: skip
    model = load_checkpoint(tmp_path / "stock")
    folder = write_model_folder(model, tmp_path / "folder")
    assert json.loads((folder / "receipt.json").read_text()) == json.loads(model.receipt.to_json())
    assert "class 0" not in (folder / "config.json").read_text()
    pixel_values = torch.randn(2, 3, 16, 16)
    expected = logits_of(model, pixel_values)
    pixels = model.image_processor(photographs[0], return_tensors="pt")["pixel_values"]
    ours = VitHfForImageClassification.from_pretrained(folder)
    assert_same_model(ours, model)
    assert torch.equal(logits_of(ours, pixel_values), expected)
    loaded = AutoImageProcessor.from_pretrained(folder)
    assert isinstance(loaded, VitHfImageProcessor)
    assert torch.equal(loaded(photographs[0], return_tensors="pt")["pixel_values"], pixels)
    torch.save(pixel_values, tmp_path / "in.pt")
    photographs[0].save(tmp_path / "picture.png")
    run_without_package(FROM_FOLDER, tmp_path, folder, tmp_path / "in.pt", tmp_path / "picture.png", tmp_path / "out")
    found = torch.load(tmp_path / "out", weights_only=True)
    assert torch.equal(found["logits"], expected)
    assert torch.equal(found["pixels"], pixels)


def test_model_folder_refuses_existing_folders_and_models_without_receipt(build, tmp_path):
    with pytest.raises(TypeError, match="no image_processor and receipt; expected one from load_checkpoint"):
        write_model_folder(build("timm"), tmp_path / "new")
    with pytest.raises(FileExistsError, match="exists; give a new folder"):
        write_model_folder(build("timm"), tmp_path)
    assert list(tmp_path.iterdir()) == []
