"""Weights of transformers: every model type and key spelling against the stock models, preprocessing against the stock.

Tolerance 1e-5: logits and tokens are of order 1 in float32, and the two implementations add in another order (fused
query, key and value; the last block for the class token alone). Measured: at most 2e-6.
"""

import io
import json
import logging

import numpy as np
import pyarrow.parquet
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from transformers import AutoImageProcessor
from transformers.utils.logging import disable_progress_bar

from vit_hf.checkpoints.load import load_checkpoint
from vit_hf.checkpoints.receipt import CheckpointError

disable_progress_bar()
TOLERANCE = {"atol": 1e-5, "rtol": 0}
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
         "image_size": 32, "patch_size": 8}  # fmt: skip
NAMES = {"id2label": {index: f"class {index}" for index in range(7)}}
DECODER = {"decoder_hidden_size": 32, "decoder_num_attention_heads": 4, "decoder_num_hidden_layers": 1,
           "decoder_intermediate_size": 64, "mask_ratio": 0.0}  # fmt: skip
RECTANGLE = {"image_size": [16, 24], "patch_size": [4, 8]}
MODELS = {  # name -> class, fields of its config, arguments of its constructor
    "vit": ("ViTForImageClassification", NAMES, {}),
    "vit rectangle": ("ViTForImageClassification", {**NAMES, **RECTANGLE}, {}),
    "vit without qkv bias": ("ViTForImageClassification", {**NAMES, "qkv_bias": False}, {}),
    "vit model": ("ViTModel", {}, {}),
    "vit model without pooler": ("ViTModel", {}, {"add_pooling_layer": False}),
    "vit model with pooler 40": ("ViTModel", {"pooler_output_size": 40}, {}),
    "vit masked": ("ViTForMaskedImageModeling", {"encoder_stride": 8}, {}),
    "deit": ("DeiTForImageClassification", NAMES, {}),
    "deit teacher": ("DeiTForImageClassificationWithTeacher", NAMES, {}),
    "deit model": ("DeiTModel", {}, {}),
    "deit masked": ("DeiTForMaskedImageModeling", {"encoder_stride": 8}, {}),
    "mae": ("ViTMAEForPreTraining", DECODER, {}),
    "mae model": ("ViTMAEModel", {"mask_ratio": 0.0}, {}),
    "msn": ("ViTMSNForImageClassification", NAMES, {}),
    "msn model": ("ViTMSNModel", {}, {}),
    "dinov2": ("Dinov2Model", {}, {}),
    "dinov2 swiglu": ("Dinov2Model", {"use_swiglu_ffn": True}, {}),
    "dinov2 registers": ("Dinov2WithRegistersModel", {"num_register_tokens": 3}, {}),
    "dinov2 registers swiglu": ("Dinov2WithRegistersModel", {"use_swiglu_ffn": True}, {}),
}
WITH_LOGITS = ("ViTForImageClassification", "DeiTForImageClassification", "DeiTForImageClassificationWithTeacher",
               "ViTMSNForImageClassification")  # fmt: skip


@pytest.fixture
def build(randomise):
    """Give a function that builds a stock model of random weights by its name in MODELS, changed by config fields."""

    def make(name: str, **fields):
        class_name, own_fields, arguments = MODELS[name]
        model_class = getattr(transformers, class_name)
        torch.manual_seed(0)
        config = model_class.config_class(**{**SIZES, **own_fields, **fields})
        return randomise(model_class(config, **arguments))

    return make


def save(model, folder, spelling: str):
    """Write a model as save_pretrained of transformers 5 does ("disk"), or by the names that it has in memory."""
    model.save_pretrained(folder)
    if spelling == "memory":
        save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return folder


@torch.no_grad()
def stock_outputs(model, pixel_values, **options):
    """Return (tokens, what the pooler gives or None, logits or None) of a stock model."""
    base = getattr(model, model.base_model_prefix, model)
    if "MAE" in type(model).__name__:  # without noise of our own it would shuffle the patches
        cells = (pixel_values.shape[2] // 8) * (pixel_values.shape[3] // 8)
        options["noise"] = torch.arange(cells).expand(len(pixel_values), -1) / cells
    outputs = base(pixel_values, **options)
    pooled = outputs.pooler_output if getattr(base, "pooler", None) is not None else None
    logits = model(pixel_values, **options).logits if type(model).__name__ in WITH_LOGITS else None
    return outputs.last_hidden_state, pooled, logits


@torch.no_grad()
def assert_same_outputs(ours, model, pixel_values, **options):
    tokens, pooled, logits = stock_outputs(model, pixel_values, **options)
    encoded = ours.vit(pixel_values)
    torch.testing.assert_close(encoded.last_hidden_state, tokens, **TOLERANCE)
    if pooled is not None:
        torch.testing.assert_close(encoded.pooler_output, pooled, **TOLERANCE)
    if logits is not None:
        torch.testing.assert_close(ours(pixel_values).logits, logits, **TOLERANCE)


def assert_same_weights(one, two):
    state, other = one.state_dict(), two.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[name], other[name]) for name in state)


def edit_json(path, **fields):
    """Change fields of a JSON file; None removes one."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


# ---------------------------------------------------------------------------------------------- outputs
@pytest.mark.parametrize("spelling", ["disk", "memory"])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_equal_the_stock_models(build, tmp_path, name, spelling):
    model = build(name)
    ours = load_checkpoint(save(model, tmp_path / "stock", spelling))
    assert ours.receipt.source == "transformers"
    assert not ours.training
    assert_same_outputs(ours, model, torch.randn(2, 3, *ours.config.image_hw))


@pytest.mark.parametrize("name", ["vit", "deit teacher", "deit model", "msn", "mae", "dinov2", "dinov2 registers"])
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_eps_is_that_of_the_config_even_for_tokens_of_little_variance(build, tmp_path, name, eps):
    model = build(name, **({} if eps is None else {"layer_norm_eps": eps}))
    with torch.no_grad():  # tokens of variance about 1e-5: the wrong eps of 1e-6 changes them by percents
        for key, parameter in model.named_parameters():
            if "embeddings." in key:
                parameter.mul_(3e-3)
    ours = load_checkpoint(save(model, tmp_path / "stock", "disk"))
    assert ours.config.layer_norm_eps == model.config.layer_norm_eps
    pixel_values = torch.randn(2, 3, 32, 32)
    assert_same_outputs(ours, model, pixel_values)
    wrong = load_checkpoint(tmp_path / "stock", layer_norm_eps=1e-6 if model.config.layer_norm_eps != 1e-6 else 1e-5)
    with torch.no_grad():
        difference = wrong.vit(pixel_values).last_hidden_state - ours.vit(pixel_values).last_hidden_state
    assert difference.abs().max() > 1e-3  # the test would see it


@pytest.mark.parametrize(
    ("stored", "ours_act"),
    [("gelu", "gelu"), ("gelu_new", "gelu_pytorch_tanh"), ("gelu_pytorch_tanh", "gelu_pytorch_tanh"),
     ("gelu_fast", "gelu_pytorch_tanh"), ("gelu_python", "gelu"), ("quick_gelu", "quick_gelu")],
)  # fmt: skip
def test_activation_is_that_of_the_config(build, tmp_path, stored, ours_act):
    model = build("vit", hidden_act=stored)
    ours = load_checkpoint(save(model, tmp_path / "stock", "disk"))
    assert ours.config.hidden_act == ours_act
    assert_same_outputs(ours, model, torch.randn(2, 3, 32, 32) * 2)


def test_unknown_activation_is_named(build, tmp_path):
    folder = save(build("vit", hidden_act="relu"), tmp_path / "stock", "disk")
    with pytest.raises(CheckpointError, match=r"hidden_act 'relu'; expected one of gelu"):
        load_checkpoint(folder)


@pytest.mark.parametrize("image_size", [64, [48, 24], [16, 64]])  # the last has as many patches as the source
@pytest.mark.parametrize(
    "name", ["vit", "vit model", "deit", "deit teacher", "mae", "msn", "dinov2", "dinov2 registers"]
)
def test_another_image_size_equals_interpolate_pos_encoding(build, tmp_path, name, image_size):
    model = build(name)
    ours = load_checkpoint(save(model, tmp_path / "stock", "disk"), image_size=image_size)
    assert ours.config.image_size == image_size
    assert_same_outputs(ours, model, torch.randn(2, 3, *ours.config.image_hw), interpolate_pos_encoding=True)
    entry = next(entry for entry in ours.receipt.tensors if entry.model == "vit.embeddings.position_embeddings")
    assert entry.action == "resampled"


# ---------------------------------------------------------------------------------------------- names and files
OLD_LAYER = {  # names of transformers 4.x -> those in the memory of 5.x
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


@pytest.mark.parametrize("prefix", ["vit.", ""])
@pytest.mark.parametrize("name", ["vit", "vit model"])
def test_hand_written_4x_names_with_and_without_prefix(build, tmp_path, name, prefix):
    model = build(name)
    state = {key.removeprefix("vit."): tensor.clone() for key, tensor in model.state_dict().items()}
    old = {key: tensor for key, tensor in state.items() if not key.startswith("layers.")}
    for index in range(3):
        for theirs, memory in OLD_LAYER.items():
            for kind in ("weight", "bias"):
                old[f"encoder.layer.{index}.{theirs}.{kind}"] = state[f"layers.{index}.{memory}.{kind}"]
    old = {key if key.startswith("classifier.") else prefix + key: tensor for key, tensor in old.items()}
    assert len(old) == len(state)
    folder = save(model, tmp_path / "stock", "disk")
    expected = load_checkpoint(folder)
    save_file(old, folder / "model.safetensors")
    assert_same_weights(load_checkpoint(folder), expected)


@pytest.mark.parametrize("name", ["vit", "deit teacher", "dinov2 swiglu"])
def test_shards_and_pytorch_bin_give_the_same_weights(build, tmp_path, name):
    model = build(name)
    expected = load_checkpoint(save(model, tmp_path / "one", "disk"))
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    sharded = load_checkpoint(tmp_path / "shards")
    assert len(sharded.receipt.files) > 1
    assert_same_weights(sharded, expected)
    (tmp_path / "bin").mkdir()
    model.config.save_pretrained(tmp_path / "bin")
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    assert_same_weights(load_checkpoint(tmp_path / "bin"), expected)


def test_half_precision_is_kept(build, tmp_path):
    model = build("vit").to(torch.bfloat16)
    ours = load_checkpoint(save(model, tmp_path / "stock", "disk"))
    assert ours.dtype == torch.bfloat16


def test_one_tensor_under_two_names_is_refused(build, tmp_path):
    folder = save(build("vit"), tmp_path / "stock", "memory")
    state = {key: tensor.clone() for key, tensor in build("vit").state_dict().items()}
    state["embeddings.cls_token"] = torch.zeros(1, 1, 48)
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"embeddings.cls_token and vit.embeddings.cls_token are the same|same"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "beginnings"),
    [("mae", {"decoder"}), ("vit masked", {"decoder", "vit.embeddings.mask_token"}),
     ("dinov2", {"embeddings.mask_token"})],
)  # fmt: skip
def test_what_serves_pretraining_only_is_reported_as_dropped(build, tmp_path, name, beginnings):
    ours = load_checkpoint(save(build(name), tmp_path / "stock", "disk"))
    dropped = [entry for entry in ours.receipt.tensors if entry.action == "dropped"]
    assert {entry.file[0].split(".")[0] if "mask" not in entry.file[0] or "embeddings" not in entry.file[0]
            else entry.file[0] for entry in dropped} == beginnings  # fmt: skip
    assert all("pre-training only" in entry.rule for entry in dropped)
    assert not ours.classifier.weight.any()


def test_pooler_beside_a_classifier_is_dropped_because_the_stock_classifier_does_not_read_it(build, tmp_path):
    model = build("vit")
    folder = save(model, tmp_path / "stock", "disk")
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pooler = {"vit.pooler.dense.weight": torch.randn(48, 48), "vit.pooler.dense.bias": torch.randn(48)}
    save_file({**state, **pooler}, folder / "model.safetensors")
    ours = load_checkpoint(folder)
    assert ours.config.representation_size is None
    assert_same_outputs(ours, model, torch.randn(2, 3, 32, 32))
    assert {entry.file[0] for entry in ours.receipt.tensors if entry.action == "dropped"} == set(pooler)


# ---------------------------------------------------------------------------------------------- classes
def test_label_names_are_kept(build, tmp_path):
    ours = load_checkpoint(save(build("vit"), tmp_path / "stock", "disk"))
    assert ours.config.id2label == NAMES["id2label"]
    same = load_checkpoint(tmp_path / "stock", id2label=NAMES["id2label"])
    assert_same_weights(same, ours)
    assert_same_weights(load_checkpoint(tmp_path / "stock", num_labels=7), ours)


@pytest.mark.parametrize("name", ["vit", "deit teacher"])
@pytest.mark.parametrize(
    "wanted", [{"id2label": {index: f"other {index}" for index in range(7)}}, {"num_labels": 3}]
)  # fmt: skip
def test_other_classes_replace_the_head_openly(build, tmp_path, caplog, name, wanted):
    folder = save(build(name), tmp_path / "stock", "disk")
    library = logging.getLogger("transformers")  # does not hand its records on
    library.addHandler(caplog.handler)
    try:
        ours = load_checkpoint(folder, **wanted)
    finally:
        library.removeHandler(caplog.handler)
    assert ours.config.num_labels == wanted.get("num_labels", 7)
    heads = {key: value for key, value in ours.state_dict().items() if "classifier" in key}
    assert heads
    assert not any(value.any() for value in heads.values())
    actions = {entry.model: entry.action for entry in ours.receipt.tensors}
    assert {actions[key] for key in heads} == {"re-initialised"}
    assert "classifier replaced: 7 classes before" in caplog.text


def test_dinov2_classifier_is_refused_until_classes_are_given(randomise, tmp_path):
    config = transformers.Dinov2Config(**SIZES, **NAMES)
    model = randomise(transformers.Dinov2ForImageClassification(config))
    folder = save(model, tmp_path / "stock", "disk")
    with pytest.raises(CheckpointError, match=r"class token and mean of the patches.*give num_labels or id2label"):
        load_checkpoint(folder)
    ours = load_checkpoint(folder, num_labels=5)
    assert ours.config.num_labels == 5
    assert not ours.classifier.weight.any()
    assert_same_outputs(ours, model, torch.randn(2, 3, 32, 32))
    dropped = {entry.file[0] for entry in ours.receipt.tensors if entry.action == "dropped"}
    assert {"classifier.weight", "classifier.bias"} <= dropped


# ---------------------------------------------------------------------------------------------- config.json
def test_rates_are_taken_from_the_config(build, tmp_path):
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}
    ours = load_checkpoint(save(build("vit", **rates), tmp_path / "vit", "disk"))
    assert (ours.config.hidden_dropout_prob, ours.config.attention_probs_dropout_prob) == (0.1, 0.2)
    ours = load_checkpoint(save(build("dinov2", drop_path_rate=0.3), tmp_path / "dinov2", "disk"))
    assert ours.config.drop_path_rate == 0.3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 64}, "hidden_size is 64 in config.json, 48 in the tensors"),
        ({"num_hidden_layers": 4}, "num_hidden_layers is 4 in config.json, 3 in the tensors"),
        ({"num_channels": 1}, "num_channels is 1 in config.json, 3 in the tensors"),
        ({"intermediate_size": 64}, "intermediate_size is 64 in config.json, 96 in the tensors"),
        ({"patch_size": [8, 4]}, r"patch_size is \[8, 4\] in config.json, 8 in the tensors"),
        ({"qkv_bias": False}, "qkv_bias is False in config.json, True in the tensors"),
        ({"id2label": {"0": "a", "1": "b"}}, "id2label names 2 classes in config.json, the classifier has 7"),
        ({"image_size": 64}, "16 patch positions.*do not fit an image of 64x64"),
        ({"model_type": "swin"}, "model_type 'swin'; expected one of vit, deit"),
        ({"hidden_size": 64, "num_channels": 1}, "hidden_size is 64.*; num_channels is 1"),
    ],
)
def test_config_that_contradicts_the_tensors_is_refused(build, tmp_path, fields, message):
    folder = save(build("vit"), tmp_path / "stock", "disk")
    edit_json(folder / "config.json", **fields)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_pooler_with_another_activation_is_refused(build, tmp_path):
    folder = save(build("vit model", pooler_act="relu"), tmp_path / "stock", "disk")
    with pytest.raises(CheckpointError, match="pooler_act is 'relu'; expected 'tanh'"):
        load_checkpoint(folder)


@pytest.mark.parametrize(("name", "eps"), [("vit", 1e-12), ("msn", 1e-6), ("dinov2", 1e-6)])
def test_config_without_eps_and_activation_means_the_defaults_of_its_type(build, tmp_path, name, eps):
    folder = save(build(name), tmp_path / "stock", "disk")
    edit_json(folder / "config.json", layer_norm_eps=None, hidden_act=None)
    config = load_checkpoint(folder).config
    assert (config.layer_norm_eps, config.hidden_act) == (eps, "gelu")


def test_bare_file_of_unpublished_size_asks_for_the_heads(build, tmp_path):
    model = build("vit")
    save_file(model.state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(CheckpointError, match=r"num_attention_heads: the tensors \(width 48\) do not show it.*Give"):
        load_checkpoint(tmp_path / "vit.safetensors")
    ours = load_checkpoint(tmp_path / "vit.safetensors", num_attention_heads=4)
    assert_same_outputs(ours, model, torch.randn(2, 3, 32, 32))
    how = {fact.field: fact.how for fact in ours.receipt.facts}
    assert how["num_attention_heads"] == "given"
    assert how["layer_norm_eps"] == how["hidden_act"] == "transformers' default, no config.json"


def test_bare_file_of_published_size_needs_nothing(build, tmp_path):
    sizes = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
    model = build("deit teacher", **sizes)
    save_file(model.state_dict(), tmp_path / "deit.safetensors")
    ours = load_checkpoint(tmp_path / "deit.safetensors")
    assert ours.config.num_attention_heads == 3
    assert_same_outputs(ours, model, torch.randn(2, 3, 32, 32))


def test_bare_file_of_dinov2_with_registers_keeps_its_way_of_resizing(build, tmp_path):
    model = build("dinov2 registers")
    save_file(model.state_dict(), tmp_path / "dino.safetensors")
    ours = load_checkpoint(tmp_path / "dino.safetensors", num_attention_heads=4, image_size=[48, 24])
    assert ours.config.layer_norm_eps == 1e-6
    assert_same_outputs(ours, model, torch.randn(2, 3, 48, 24), interpolate_pos_encoding=True)


def test_missing_and_unexplained_tensors_are_all_listed(build, tmp_path):
    model = build("vit")
    folder = save(model, tmp_path / "stock", "disk")
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    del state["vit.layernorm.weight"], state["vit.layers.1.mlp.fc1.bias"]
    save_file({**state, "vit.adapter.weight": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    for words in ("3 tensors", "missing: layernorm.weight", "missing: layers.1.mlp.fc1.bias",
                  "no rule explains: vit.adapter.weight (3,)"):  # fmt: skip
        assert words in str(caught.value)


# ---------------------------------------------------------------------------------------------- preprocessing
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
FLAGS = {"do_resize": True, "do_normalize": True}
RESCALE = {"do_rescale": True, "rescale_factor": 0.00392156862745098}
SQUARE, LARGER = {"height": 224, "width": 224}, {"height": 256, "width": 256}
CROP = {"do_center_crop": True, "crop_size": SQUARE}
PROCESSORS = {
    "google/vit-base-patch16-224": {**FLAGS, **HALF, "resample": 2, "size": 224},  # without a type
    "4.0 ViT": {**FLAGS, **HALF, "feature_extractor_type": "ViTFeatureExtractor", "resample": 2, "size": 224},
    "4.x ViT": {**FLAGS, **RESCALE, **HALF, "image_processor_type": "ViTImageProcessor", "resample": 2, "size": SQUARE},
    "fast": {**FLAGS, **RESCALE, **HALF, "image_processor_type": "ViTImageProcessorFast", "resample": 2,
             "size": SQUARE, "do_center_crop": None, "crop_size": None, "do_convert_rgb": None},
    "dino": {**FLAGS, **IMAGENET, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3, "size": 224},
    "4.0 DeiT": {**FLAGS, **IMAGENET, "feature_extractor_type": "DeiTFeatureExtractor", "resample": 3, "size": 256,
                 "do_center_crop": True, "crop_size": 224},
    "4.x DeiT": {**FLAGS, **RESCALE, **CROP, **IMAGENET, "image_processor_type": "DeiTImageProcessor", "resample": 3,
                 "size": LARGER},
    "DeiT by its defaults": {**IMAGENET, "image_processor_type": "DeiTImageProcessor"},
    "4.x DINOv2": {**FLAGS, **RESCALE, **CROP, **IMAGENET, "image_processor_type": "BitImageProcessor", "resample": 3,
                   "size": {"shortest_edge": 256}},
    "BiT with an int": {**FLAGS, **CROP, **IMAGENET, "feature_extractor_type": "BitImageProcessor", "resample": 3,
                        "size": 354},  # 224 / (224 / 354) is less than 354 in floating point
    "only the type": {"image_processor_type": "ViTImageProcessor"},
    "nearest": {**FLAGS, **HALF, "image_processor_type": "ViTImageProcessor", "resample": 0, "size": 224},
    "no normalisation": {**FLAGS, "do_normalize": False, "image_processor_type": "ViTImageProcessor", "size": 224},
    "other factor": {**FLAGS, **HALF, "image_processor_type": "ViTImageProcessor", "do_rescale": True,
                     "rescale_factor": 0.5 / 255, "size": 224},
}  # fmt: skip


@pytest.fixture(scope="module")
def photographs():
    """Two photographs of scikit-learn, and one at the other orientation."""
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    return [*pictures, pictures[0].transpose(Image.Transpose.ROTATE_90).crop((3, 5, 300, 400))]


@pytest.fixture
def folder_224(build, tmp_path):
    """Give a function that writes a model of 224 px with a preprocessor_config.json."""

    def write(stored):
        folder = save(build("vit", image_size=224, patch_size=32), tmp_path / "stock", "disk")
        (folder / "preprocessor_config.json").write_text(json.dumps(stored))
        return folder

    return write


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_those_of_the_stock_processor(folder_224, photographs, name):
    folder = folder_224(PROCESSORS[name])
    stock = AutoImageProcessor.from_pretrained(folder)
    ours = load_checkpoint(folder).image_processor
    expected = stock(photographs, return_tensors="pt")["pixel_values"]
    assert expected.shape == (3, 3, 224, 224)
    assert torch.equal(ours(photographs, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("name", ["google/vit-base-patch16-224", "4.0 DeiT", "4.x DINOv2"])
def test_pixels_equal_those_of_the_stock_processor_on_imagenet_jpegs(folder_224, shared_data, name):
    table = pyarrow.parquet.read_table(shared_data("imagenet-1k-sample") / "data" / "validation-00000-of-00001.parquet")
    jpegs = [Image.open(io.BytesIO(cell["bytes"])) for cell in table["image"][:24].to_pylist()]
    jpegs = [jpeg for jpeg in jpegs if jpeg.mode == "RGB"]  # the stock processor breaks on others
    assert len(jpegs) > 15
    folder = folder_224(PROCESSORS[name])
    stock, ours = AutoImageProcessor.from_pretrained(folder), load_checkpoint(folder).image_processor
    for jpeg in jpegs:
        expected = stock(jpeg, return_tensors="pt")["pixel_values"]
        assert torch.equal(ours(jpeg, return_tensors="pt")["pixel_values"], expected)


def test_preprocessing_follows_another_image_size(folder_224, photographs):
    folder = folder_224(PROCESSORS["4.x DINOv2"])
    ours = load_checkpoint(folder, image_size=448).image_processor
    stock = AutoImageProcessor.from_pretrained(
        folder, size={"shortest_edge": 512}, crop_size={"height": 448, "width": 448}
    )
    expected = stock(photographs, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours(photographs, return_tensors="pt")["pixel_values"], expected)


def test_without_a_preprocessor_config_the_papers_is_used_and_said(build, tmp_path):
    ours = load_checkpoint(save(build("vit"), tmp_path / "stock", "disk"))
    settings = ours.image_processor.to_dict()
    assert settings["size"] == {"height": 32, "width": 32}
    assert np.allclose(settings["image_mean"], 0.5)
    fact = next(fact for fact in ours.receipt.facts if fact.field == "image_processor")
    assert "the file says nothing" in fact.how


def test_filter_that_tensors_cannot_be_resized_with_is_refused(folder_224):
    with pytest.raises(CheckpointError, match=r"resample 4; expected one of 0 \(nearest\), 1"):
        load_checkpoint(folder_224({"image_processor_type": "ViTImageProcessor", "resample": 4}))


def test_crop_of_a_size_without_edges_is_refused(folder_224):
    folder = folder_224({"image_processor_type": "ViTImageProcessor", "do_center_crop": True, "crop_size": 224,
                         "size": {"max_height": 300, "max_width": 300}})  # fmt: skip
    with pytest.raises(CheckpointError, match=r"resizes to .*max_height.*expected a shortest_edge"):
        load_checkpoint(folder)
