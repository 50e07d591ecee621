"""Google's files: outputs against the official flax code, receipts, names old and new, round trips, what is refused.

tests/data/google/README.md tells what the references are. Tolerance 1e-5 on outputs of order 1: float32, added in
another order; measured 2e-6 at most, and a wrong eps or GELU is off by 1e-4 or more.
"""

import hashlib
import json
import logging
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from vit_hf.checkpoints import load
from vit_hf.checkpoints.export import export_checkpoint
from vit_hf.checkpoints.files import Checkpoint
from vit_hf.checkpoints.google import inexpressible
from vit_hf.checkpoints.load import load_checkpoint
from vit_hf.checkpoints.receipt import CheckpointError
from vit_hf.configuration_vit_hf import as_pair
from vit_hf.modeling_vit_hf import resample_patch_kernel

DATA = Path(__file__).parent / "data" / "google"
ENTRIES = {entry["name"]: entry for entry in json.loads((DATA / "manifest.json").read_text())}
MODELS = [name for name, entry in ENTRIES.items() if entry["layout"] != "patch_kernel"]
KERNELS = [name for name in ENTRIES if name not in MODELS]
SHARED = ["jax_vit_token", "jax_vit_prelogits", "jax_vit_gap", "jax_resize_up", "jax_hybrid_stem"]
TOLERANCE = {"atol": 1e-5, "rtol": 0}
POSITIONS = "Transformer/posembed_input/pos_embedding"
LINEN = (
    ("LayerNorm_2/", "LayerNorm_1/"),
    ("MultiHeadDotProductAttention_1/", "MultiHeadDotProductAttention_0/"),
    ("MlpBlock_3/", "MlpBlock_0/"),
)
KERNEL = "vit.embeddings.patch_embeddings.projection.weight"


class Case:
    """A reference: its file, its manifest entry, its inputs and outputs."""

    def __init__(self, folder: Path, entry: dict):
        self.entry, self.arch = entry, entry["arch"]
        self.path = folder / entry["file"]
        self.io = {name: torch.from_numpy(array) for name, array in np.load(folder / entry["io"]).items()}
        self.stored, self.size = as_pair(entry["checkpoint_image_size"]), as_pair(entry["image_size"])

    def load(self, path: Path | None = None, **given):
        """Load as the official code ran it, telling only what the file cannot."""
        untold = self.stored[0] != self.stored[1] or self.arch.get("posemb") == "sincos2d"
        if self.size != self.stored or untold:
            given.setdefault("image_size", list(self.size))
        if "run_patch" in self.entry:
            given.setdefault("patch_size", self.entry["run_patch"])
        return load_checkpoint(path or self.path, **given)

    def load_as_stored(self, path: Path | None = None):
        return load_checkpoint(path or self.path, image_size=list(self.stored))

    def arrays(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.path))


@pytest.fixture
def case():
    """Give a function from a name to a reference of this repository."""
    return lambda name: Case(DATA, ENTRIES[name])


@pytest.fixture(params=[*MODELS, *SHARED])
def any_case(request):
    """Every reference with a model, those beside the repository too."""
    if request.param in ENTRIES:
        return Case(DATA, ENTRIES[request.param])
    folder = request.getfixturevalue("shared_data")("google-reference")
    entries = {entry["name"]: entry for entry in json.loads((folder / "manifest.json").read_text())}
    return Case(folder, entries[request.param])


@pytest.fixture
def write(tmp_path):
    """Give a function that writes arrays into a .npz file."""

    def save(arrays: dict[str, np.ndarray], name: str = "written.npz") -> Path:
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return save


@pytest.fixture
def warnings_text(caplog):
    """The text that transformers' logger wrote, which does not propagate."""
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    yield lambda: caplog.text
    library.removeHandler(caplog.handler)


@torch.no_grad()
def outputs(model, images: torch.Tensor) -> dict[str, torch.Tensor]:
    encoded = model.vit(images)
    return {
        "tokens": encoded.last_hidden_state,
        "features": encoded.pooler_output,
        "logits": model(images).logits,
    }


def assert_bit_equal(found, expected) -> None:
    found, expected = found.state_dict(), expected.state_dict()
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name]), name


def renamed(arrays: dict[str, np.ndarray], pairs=LINEN) -> dict[str, np.ndarray]:
    """Rename the parts of the blocks."""
    changed = {}
    for name, array in arrays.items():
        if "/encoderblock" in name:
            for old, new in pairs:
                name = name.replace(old, new)
        changed[name] = array
    return changed


def to_published(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return renamed(arrays, [(new, old) for old, new in LINEN])


# ---------------------------------------------------------------------------------------------- outputs
def test_outputs_equal_the_official_code(any_case):
    model = any_case.load().float()
    assert not model.training
    found = outputs(model, any_case.io["images"])
    for name in {"tokens", "features", "logits"} & any_case.io.keys():
        torch.testing.assert_close(found[name], any_case.io[name], **TOLERANCE)


def test_config_is_derived_from_the_file(any_case):
    config, arch = any_case.load_as_stored().config, any_case.arch
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"):
        assert getattr(config, name) == arch[name], name
    for name in ("hidden_act", "layer_norm_eps", "representation_size"):
        assert getattr(config, name) == arch[name], name
    assert config.num_labels == (arch["num_labels"] or 2)
    assert config.pooling == {"token": "cls", "tok": "cls"}.get(arch["classifier"], arch["classifier"])
    assert config.image_hw == any_case.stored
    assert config.position_embedding == {"sincos2d": "sincos2d"}.get(arch.get("posemb"), "learned")
    assert config.prefix_positions == ("none" if "posemb" in arch else "cls")
    assert (config.position_interpolation, config.qkv_bias, config.class_token) == ("google", True, None)
    stem, stride = arch["resnet"], 1
    if stem is None:
        assert config.resnet_stem_layers is None
    else:
        stride = 4 * 2 ** max(len(stem["num_layers"]) - 1, 0)
        assert config.resnet_stem_layers == stem["num_layers"]
        assert config.resnet_stem_width == 64 * stem["width_factor"]
        assert config.resnet_stem_style == "google"
    assert config.patch_hw == tuple(side * stride for side in as_pair(arch["patch_size"]))


def test_settings_that_the_file_does_not_tell_are_in_the_receipt(case):
    facts = {fact.field: fact.how for fact in case("hybrid_root").load().receipt.facts}
    assert {"hidden_act", "layer_norm_eps", "position_interpolation", "resnet_stem_style"} <= facts.keys()
    assert "position_embedding" in {fact.field for fact in case("big_vision_sincos").load().receipt.facts}


def test_images_are_prepared_as_the_official_evaluation_does(case):
    processor = case("official_rectangle").load().image_processor
    assert dict(processor.size) == {"height": 16, "width": 32}
    assert list(processor.image_mean) == list(processor.image_std) == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", ["official_low_variance", "hybrid_root"])
def test_another_eps_would_be_seen(case, name):
    reference = case(name)
    model = reference.load()
    norms = [
        m for m in model.modules() if isinstance(m, torch.nn.LayerNorm if name != "hybrid_root" else torch.nn.GroupNorm)
    ]
    for norm in norms:
        norm.eps = 1e-5
    found = outputs(model, reference.io["images"])["logits"]
    assert (found - reference.io["logits"]).abs().max() > 1e-2


# ---------------------------------------------------------------------------------------------- positions, patches
@pytest.mark.parametrize("name", ["official_resize_up", "official_resize_down", "jax_resize_up"])
def test_resized_positions_equal_the_official_zoom(case, shared_data, name):
    if name in ENTRIES:
        reference = case(name)
    else:
        folder = shared_data("google-reference")
        entries = json.loads((folder / "manifest.json").read_text())
        reference = Case(folder, next(entry for entry in entries if entry["name"] == name))
    model = reference.load()
    found = model.vit.embeddings.position_embeddings.detach()
    torch.testing.assert_close(found, reference.io["pos_embedding"], atol=1e-6, rtol=0)  # one rounding in another order
    stored = torch.from_numpy(reference.arrays()[POSITIONS])
    prefix = int(reference.arch["classifier"] == "token")
    assert torch.equal(found[:, :prefix], stored[:, :prefix])
    entry = next(entry for entry in model.receipt.tensors if entry.model == "vit.embeddings.position_embeddings")
    assert entry.action == "resampled"
    assert entry.file == (POSITIONS,)
    assert entry.file_shapes == (tuple(stored.shape),)
    assert entry.model_shape == tuple(found.shape)


def test_rectangular_targets_leave_the_class_row_alone(case):
    model = case("official_resize_up").load(image_size=[16, 48])
    stored = torch.from_numpy(case("official_resize_up").arrays()[POSITIONS])
    found = model.vit.embeddings.position_embeddings.detach()
    assert found.shape == (1, 1 + 2 * 6, 32)
    assert torch.equal(found[:, :1], stored[:, :1])
    corners, grid = found[0, 1:].view(2, 6, 32), stored[0, 1:].view(3, 3, 32)  # aligned corners keep the corners
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(corners[row, column], grid[row, column], atol=1e-6, rtol=0)


def test_another_way_of_resizing_can_be_chosen(case):
    usual = case("official_resize_up").load()
    other = case("official_resize_up").load(position_interpolation="timm")
    assert other.config.position_interpolation == "timm"
    assert not torch.equal(usual.vit.embeddings.position_embeddings, other.vit.embeddings.position_embeddings)


@pytest.mark.parametrize("name", KERNELS)
def test_patch_kernels_are_resized_as_flexivit_does(name):
    with np.load(DATA / ENTRIES[name]["file"]) as arrays:
        old, new = (torch.from_numpy(arrays[key]).permute(3, 2, 0, 1) for key in ("old", "new"))
    found = resample_patch_kernel(old, tuple(ENTRIES[name]["arch"]["new"]))
    torch.testing.assert_close(found, new, atol=1e-6, rtol=0)  # the official pseudo-inverse is in float32


def test_patch_size_at_load_resizes_the_kernel(case):
    reference = case("flexi_model")
    model = reference.load()
    kernel = model.get_parameter(KERNEL).detach()
    torch.testing.assert_close(kernel[:4], reference.io["kernel"].permute(3, 2, 0, 1), atol=1e-6, rtol=0)
    entry = next(entry for entry in model.receipt.tensors if entry.model == KERNEL)
    assert (entry.action, entry.model_shape) == ("resampled", (32, 3, 12, 12))
    assert entry.file_shapes == ((8, 8, 3, 32),)


def test_computed_positions_follow_image_and_patch_size(case):
    model = case("big_vision_sincos").load(image_size=[24, 36], patch_size=12)
    assert (model.config.grid_hw, model.config.patch_hw) == ((2, 3), (12, 12))
    usual = case("big_vision_sincos").load()
    assert torch.equal(model.vit.embeddings.position_embeddings, usual.vit.embeddings.position_embeddings)


# ---------------------------------------------------------------------------------------------- receipts
def expected_action(name: str, arrays: dict[str, np.ndarray], reference: Case) -> str:
    resized = reference.size != reference.stored
    if name.startswith("classifier.") and not any("head/" in n and "txt" not in n for n in arrays):
        return "re-initialised"
    if name == KERNEL and "run_patch" in reference.entry:
        return "resampled"
    if name.endswith("position_embeddings"):
        return "resampled" if resized and "run_patch" not in reference.entry else "exact"
    if re.search(r"\.(qkv|key_value)\.", name):
        return "fused"
    return "transposed" if name.endswith(".weight") and not re.search(r"norm[_a-z0-9]*\.weight", name) else "exact"


def test_receipt_names_every_tensor_once(any_case):
    model, arrays = any_case.load(), any_case.arrays()
    receipt = json.loads(model.receipt.to_json())
    assert receipt["source"] == "google"
    record = {"name": any_case.path.name, "bytes": any_case.path.stat().st_size}
    assert receipt["files"] == [{**record, "sha256": hashlib.sha256(any_case.path.read_bytes()).hexdigest()}]
    theirs = [name for entry in receipt["tensors"] for name in entry["file"]]
    assert set(Counter(theirs).values()) == {1}
    if any_case.arch.get("scan"):  # a stacked tensor is named once a block
        blocks = range(any_case.arch["num_hidden_layers"])
        stacked = {name for name in arrays if "/encoderblock/" in name}
        assert set(theirs) == (arrays.keys() - stacked) | {f"{name}[{i}]" for name in stacked for i in blocks}
    else:
        assert set(theirs) == arrays.keys()
    ours = [entry["model"] for entry in receipt["tensors"] if entry["model"] is not None]
    assert sorted(ours) == sorted(model.state_dict())
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    for entry in receipt["tensors"]:
        assert entry["rule"]
        for name, shape in zip(entry["file"], entry["file_shapes"], strict=True):
            assert shape == list(arrays[name].shape if name in arrays else arrays[name.partition("[")[0]].shape[1:])
        if entry["model"] is None:
            assert entry["action"] == "dropped"
            assert re.match(r"opt/0|opt/1|params/txt|params/[tb]$", entry["file"][0])
        else:
            assert entry["model_shape"] == shapes[entry["model"]]
            assert entry["action"] == expected_action(entry["model"], arrays, any_case), entry["model"]


def test_optimiser_and_text_tower_are_dropped_and_said_so(case):
    for name, kept in (("big_vision_params_and_optimiser", "params/"), ("big_vision_siglip", "params/img/")):
        model, arrays = case(name).load(), case(name).arrays()
        dropped = {entry.file[0] for entry in model.receipt.tensors if entry.action == "dropped"}
        assert dropped == {tensor for tensor in arrays if not tensor.startswith(kept)}
        assert dropped


def test_a_stranger_beside_the_model_is_not_dropped(case, write):
    arrays = case("big_vision_params_and_optimiser").arrays()
    with pytest.raises(CheckpointError, match=r"no rule explains: adapter/kernel \(2,\)"):
        load_checkpoint(write({**arrays, "adapter/kernel": np.ones(2, np.float32)}))


# ---------------------------------------------------------------------------------------------- there and back
def test_export_gives_the_file_back(any_case, tmp_path):
    model = any_case.load_as_stored().float()
    path = export_checkpoint(model, tmp_path / "out.npz", target="google")
    written, stored = dict(np.load(path)), any_case.arrays()
    prefix = any_case.entry.get("prefix") or ("opt/target/" if "optimiser_prefix" in any_case.path.name else "")
    stored = {name.removeprefix(prefix): array for name, array in stored.items() if name.startswith(prefix)}
    for name in [name for name in stored if "/encoderblock/" in name]:
        for index, part in enumerate(stored.pop(name)):
            stored[name.replace("encoderblock/", f"encoderblock_{index}/")] = part
    if "posemb" not in any_case.arch:
        stored = to_published(stored)
    if not any_case.arch["num_labels"]:
        assert not written.pop("head/kernel").any()
        assert not written.pop("head/bias").any()
    assert written.keys() == stored.keys()
    for name, array in stored.items():
        if array.dtype.kind == "V":  # bfloat16
            array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        assert (written[name].dtype, written[name].shape) == (array.dtype, array.shape), name
        assert np.array_equal(written[name], array), name
    again = load_checkpoint(path)  # the metadata tells the image size
    assert_bit_equal(again, model)
    assert again.config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("name", ["official_rectangle", "official_gap", "hybrid_root"])
def test_both_spellings_of_names_give_the_same_model(case, write, name):
    reference = case(name)
    linen = renamed(reference.arrays())
    assert linen.keys() != reference.arrays().keys()
    assert_bit_equal(reference.load(write(linen)), reference.load())


@pytest.mark.parametrize("name", ["hybrid_root", "hybrid_two_stages"])
def test_group_norms_are_read_flat_and_with_four_axes(case, write, name):
    reference = case(name)
    arrays = reference.arrays()
    four = [tensor for tensor, array in arrays.items() if re.search(r"gn\w+/", tensor) and array.ndim == 4]
    assert four
    flat = {tensor: array.reshape(-1) if tensor in four else array for tensor, array in arrays.items()}
    assert_bit_equal(reference.load(write(flat)), reference.load())


@pytest.mark.parametrize("numbers", [("0", "0", "0"), ("0", "1", "2")], ids=["linen", "before linen"])
def test_an_inlined_map_head_is_read(case, write, numbers):
    attention, norm, mlp = numbers
    new = {"probe": "probe", "MultiHeadDotProductAttention_0": f"MultiHeadDotProductAttention_{attention}"}
    new |= {"LayerNorm_0": f"LayerNorm_{norm}", "MlpBlock_0": f"MlpBlock_{mlp}"}
    arrays = {}
    for name, array in case("big_vision_map").arrays().items():
        parts = name.split("/")
        arrays["/".join([new[parts[1]], *parts[2:]] if parts[0] == "MAPHead_0" else parts)] = array
    assert "probe" in arrays
    assert_bit_equal(load_checkpoint(write(arrays)), case("big_vision_map").load())


@pytest.mark.parametrize("name", ["Transformer/pos_embedding", "pos_embedding"])
def test_old_places_of_the_positions_are_read(case, write, name):
    reference = case("official_low_variance")
    arrays = renamed(reference.arrays())
    arrays[name] = arrays.pop(POSITIONS)
    model = reference.load(write(arrays))
    assert model.config.num_prefix_positions == 1
    assert_bit_equal(model, reference.load())


def test_both_spellings_at_once_are_refused(case, write):
    arrays = case("official_gap").arrays()
    with pytest.raises(CheckpointError, match=r"LayerNorm_\d/\w+ and \S+ are the same tensor"):
        case("official_gap").load(write({**arrays, **renamed(arrays)}))


def test_fields_that_google_cannot_express_are_named(tiny):
    assert inexpressible(tiny()) == {}
    wrong = inexpressible(tiny(hidden_act="gelu", layer_norm_eps=1e-5, num_register_tokens=1))
    assert set(wrong) == {"hidden_act", "layer_norm_eps", "num_register_tokens"}
    stem = {"resnet_stem_layers": [], "resnet_stem_width": 32, "image_size": 32, "patch_size": 8}
    assert inexpressible(tiny(**stem)) == {}
    assert set(inexpressible(tiny(**stem, pooling="map"))) == {"resnet_stem_layers"}
    assert set(inexpressible(tiny(**stem, position_embedding="sincos2d"))) == {"resnet_stem_layers"}


# ---------------------------------------------------------------------------------------------- dtypes
def test_bfloat16_and_float16_are_kept(case, write):
    assert case("big_vision_bfloat16").load().dtype == torch.bfloat16
    half = {name: array.astype(np.float16) for name, array in case("official_no_head").arrays().items()}
    model = load_checkpoint(write(half))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}


def test_float64_becomes_float32_and_the_receipt_says_so(case, write):
    double = {name: array.astype(np.float64) for name, array in case("official_no_head").arrays().items()}
    model = load_checkpoint(write(double))
    assert_bit_equal(model, case("official_no_head").load())
    assert any(fact.field == "dtype" and "float64" in fact.how for fact in model.receipt.facts)


# ---------------------------------------------------------------------------------------------- classes
NAMES = {index: f"class {index}" for index in range(5)}


@pytest.mark.parametrize(
    ("given", "count"), [({"num_labels": 3}, 3), ({"id2label": {0: "ant", 1: "bee"}}, 2), ({"id2label": NAMES}, 5)]
)
def test_other_classes_replace_the_head_by_zeros(case, warnings_text, given, count):
    model = case("official_low_variance").load(**given)
    assert model.config.num_labels == count
    assert model.config.id2label == given.get("id2label", model.config.id2label)
    assert not model.classifier.weight.any()
    assert not model.classifier.bias.any()
    entries = [entry for entry in model.receipt.tensors if entry.action == "re-initialised"]
    assert {entry.model for entry in entries} == {"classifier.weight", "classifier.bias"}
    assert {entry.file for entry in entries} == {("head/kernel",), ("head/bias",)}
    assert "classifier replaced: 5 classes before" in warnings_text()


def test_the_same_number_of_classes_without_names_keeps_the_head(case):
    assert_bit_equal(case("official_gap").load(num_labels=5), case("official_gap").load())


def test_a_file_without_head_takes_the_classes_that_are_given(case):
    assert case("official_no_head").load(num_labels=4).classifier.weight.shape == (4, 32)
    assert case("official_no_head").load(id2label=NAMES).config.id2label == NAMES


def test_the_representation_head_can_be_dropped_with_the_classifier_behind_it(case):
    reference = case("official_linen")
    model = reference.load(representation_size=None)
    assert model.config.representation_size is None
    assert model.classifier.weight.shape == (5, 32)
    assert not model.classifier.weight.any()
    dropped = {entry.file[0] for entry in model.receipt.tensors if entry.action == "dropped"}
    assert dropped == {"pre_logits/kernel", "pre_logits/bias", "head/kernel", "head/bias"}
    tokens = outputs(model, reference.io["images"])["tokens"]
    torch.testing.assert_close(tokens, reference.io["tokens"], **TOLERANCE)
    with pytest.raises(CheckpointError, match="representation_size is 20 in the file, not 24"):
        reference.load(representation_size=24)


# ---------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 3), ("num_attention_heads", 4), ("hidden_size", 64), ("intermediate_size", 128),
     ("pooling", "gap"), ("num_channels", 1), ("resnet_stem_width", 64)],
)  # fmt: skip
def test_overrides_that_contradict_the_file_are_refused(case, field, value):
    with pytest.raises(CheckpointError, match=rf"{field} is .* in the file, not {value!r}"):
        case("hybrid_root").load(**{field: value})


@pytest.fixture
def refusal(monkeypatch):
    """Give a function that loads arrays, as a file would hold them, and returns the error."""

    def message(arrays: dict[str, np.ndarray], **given) -> str:
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        monkeypatch.setattr(load, "read_checkpoint", lambda path, revision: Checkpoint(path, [], tensors))
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint("FILE", **given)
        return str(caught.value)

    return message


def one_block(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A shallower model has every kind of tensor too."""
    return {name: array for name, array in arrays.items() if "encoderblock_1" not in name}


@pytest.mark.parametrize(
    "name", ["official_linen", "hybrid_root", "hybrid_two_stages", "big_vision_map_representation"]
)
def test_every_missing_tensor_is_named(case, refusal, name):
    arrays = one_block(case(name).arrays())
    given = {"image_size": [48, 64]} if name == "hybrid_two_stages" else {}
    chosen = [tensor for tensor in arrays if name != "hybrid_two_stages" or re.match("cls|block2", tensor)]
    for lost in chosen:
        told = refusal({tensor: array for tensor, array in arrays.items() if tensor != lost}, **given)
        accepted = {lost, *to_published({lost: None})}
        assert any(re.search(rf"\b{re.escape(spelling)}\b", told) for spelling in accepted), (lost, told)
        assert re.search(r"[Gg]ive", told), told
        assert len(told) < 600


def test_every_misshapen_tensor_is_named(case, refusal):
    arrays = one_block(case("hybrid_root").arrays())
    for name, array in arrays.items():
        for wrong in (array.reshape(-1)[:-1], array.reshape(-1)[0], np.stack([array, array])):
            assert name in refusal({**arrays, name: wrong})


@pytest.mark.parametrize("part", ["query/kernel", "value/kernel", "key/bias", "out/kernel"])
def test_another_number_of_heads_in_one_block_is_refused(case, refusal, part):
    arrays = case("official_gap").arrays()
    name = f"Transformer/encoderblock_1/MultiHeadDotProductAttention_1/{part}"
    shape = {"out/kernel": (4, 8, 32), "key/bias": (4, 8)}.get(part, (32, 4, 8))
    told = refusal({**arrays, POSITIONS: arrays[POSITIONS][:, :4], name: arrays[name].reshape(shape)})
    assert re.search(rf"other shape: .*{name}.*4 heads, expected 2", told)


def test_all_that_is_wrong_is_listed_at_once(case, write):
    arrays = case("official_low_variance").arrays()
    block = "Transformer/encoderblock_1/"
    del arrays["cls"], arrays[f"{block}LayerNorm_0/scale"]
    arrays["cls"] = np.ones((1, 1, 31), np.float32)
    arrays["adapter/kernel"] = np.ones((2, 3), np.float32)
    arrays[f"{block}MlpBlock_3/Dense_0/kernel"] = arrays[f"{block}MlpBlock_3/Dense_0/kernel"].T
    arrays[f"{block}LayerNorm_2/bias"] = np.full(32, np.nan, np.float32)
    arrays["head/bias"] = np.arange(5)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(write(arrays))
    for words in (
        "6 tensors",
        "other shape: cls ((1, 1, 31),), expected (1, 1, 32)",
        f"missing: {block}LayerNorm_0/scale",
        "no rule explains: adapter/kernel (2, 3)",
        f"other shape: {block}MlpBlock_3/Dense_0/kernel ((48, 32),), expected (48, 32)",
        f"NaN or infinite: {block}LayerNorm_2/bias",
        "no floating-point numbers: head/bias (torch.int64)",
        "Give the checkpoint",
    ):
        assert words in str(caught.value)


def test_a_missing_middle_block_is_listed(case, write):
    arrays = case("big_vision_scan").arrays()
    unstacked = {}
    for name, array in arrays.items():
        for index, part in enumerate(array) if "/encoderblock/" in name else ():
            unstacked[name.replace("encoderblock/", f"encoderblock_{2 * index}/")] = part
        if "/encoderblock/" not in name:
            unstacked[name] = array
    with pytest.raises(CheckpointError, match=r"of 3 layers.*16 tensors:\n  missing: Transformer/encoderblock_1/"):
        load_checkpoint(write(unstacked))


@pytest.mark.parametrize("name", ["official_rectangle", "big_vision_sincos", "official_gap"])
def test_an_image_size_that_the_file_does_not_tell_is_asked_for(case, name):
    with pytest.raises(CheckpointError, match=r"image_size: .*Give: image_size=\.\.\."):
        load_checkpoint(case(name).path)


def test_an_image_size_that_does_not_fit_the_positions_is_refused(case):
    with pytest.raises(CheckpointError, match=r"8 patch positions .* do not fit an image of 24x32"):
        load_checkpoint(case("official_rectangle").path, image_size=[24, 32])


def test_lost_positions_are_not_taken_for_computed_ones(case, write):
    for name in ("official_low_variance", "hybrid_root"):
        arrays = case(name).arrays()
        del arrays[POSITIONS]
        with pytest.raises(CheckpointError, match=r"lacks .*pos_embedding"):
            load_checkpoint(write(arrays), image_size=24)


def test_query_kernels_that_do_not_show_the_heads_are_refused(case, write):
    arrays = case("official_low_variance").arrays()
    name = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    with pytest.raises(CheckpointError, match=rf"other shape: {name} \(32, 32\), expected 3 axes"):
        load_checkpoint(write({**arrays, name: arrays[name].reshape(32, 32)}))
