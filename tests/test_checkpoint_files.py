"""Files that are no weights, or not whole, or hostile: each one clear error, no code run, nothing written.

A message must say where (the path), what was found or expected, and what to do.
"""

import argparse
import io
import json
import pickle
import random
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vit_hf import VitHfForImageClassification
from vit_hf.checkpoints.files import read_checkpoint
from vit_hf.checkpoints.load import load_checkpoint
from vit_hf.checkpoints.receipt import CheckpointError

GOOGLE = Path(__file__).parent / "data" / "google" / "official_low_variance.npz"
REMEDIES = re.compile(
    r"give|copy|download|fetch|git lfs pull|save|mend|remove|load it with|choose|expected|replace", re.IGNORECASE
)


@pytest.fixture(scope="module")
def timm_state():
    """A state dict in timm's names, heads known by QK-norm."""
    width, generator = 16, torch.Generator().manual_seed(0)
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 5, width), "patch_embed.proj.weight": (width, 3, 4, 4)}
    shapes |= {"patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    shapes |= {"head.weight": (3, width), "head.bias": (3,)}
    for index in range(3):
        block = {"attn.qkv.weight": (48, width), "attn.qkv.bias": (48,), "attn.proj.weight": (width, width),
                 "attn.proj.bias": (width,), "attn.q_norm.weight": (8,), "attn.q_norm.bias": (8,),
                 "attn.k_norm.weight": (8,), "attn.k_norm.bias": (8,), "mlp.fc1.weight": (24, width),
                 "mlp.fc1.bias": (24,), "mlp.fc2.weight": (width, 24), "mlp.fc2.bias": (width,)}  # fmt: skip
        block |= {f"norm{number}.{kind}": (width,) for number in (1, 2) for kind in ("weight", "bias")}
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def refused(tmp_path):
    """Give a function that loads a path, checks that one clear error comes and that nothing was written."""

    def message(path: Path, *words: str, error: type[Exception] = CheckpointError, **given) -> str:
        before = sorted((found, found.stat().st_mtime_ns) for found in tmp_path.rglob("*"))
        with pytest.raises(error) as caught:
            load_checkpoint(path, **given)
        told = str(caught.value)
        for word in (Path(path).name, *words):
            assert word in told, told
        assert REMEDIES.search(told), told
        assert "Traceback" not in told
        assert sorted((found, found.stat().st_mtime_ns) for found in tmp_path.rglob("*")) == before
        return told

    return message


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def torch_bytes(content, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def safetensors_bytes(state, tmp_path: Path) -> bytes:
    save_file(state, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "whole.safetensors").unlink()
    return content


class Canary:
    """Would create a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# ---------------------------------------------------------------------------------------------- damaged
def assert_cut_files_are_refused(content: bytes, path: Path, refused, places: int) -> None:
    for length in {len(content) * place // places for place in range(places)} | {1, 8, len(content) - 1}:
        refused(write(path, content[:length]))


def test_a_truncated_npz_is_refused(tmp_path, refused):
    assert_cut_files_are_refused(GOOGLE.read_bytes(), tmp_path / "cut.npz", refused, 50)


def test_a_truncated_safetensors_is_refused(tmp_path, refused, timm_state):
    content = safetensors_bytes(timm_state, tmp_path)
    assert_cut_files_are_refused(content, tmp_path / "cut.safetensors", refused, 30)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_truncated_pth_is_refused(tmp_path, refused, timm_state, zipped):
    assert_cut_files_are_refused(torch_bytes(timm_state, zipped), tmp_path / "cut.pth", refused, 30)


def test_flipped_bytes_never_give_another_error(tmp_path, timm_state):
    """Formats without a checksum may read on; what they must not do is to fail in the words of a library."""
    generator = random.Random(0)
    kinds = {"npz": GOOGLE.read_bytes(), "pth": torch_bytes(timm_state), "bin": torch_bytes(timm_state, False)}
    for suffix, whole in {**kinds, "safetensors": safetensors_bytes(timm_state, tmp_path)}.items():
        for _ in range(40):
            content = bytearray(whole)
            near = len(content) if suffix == "npz" else 3_000  # where the headers are
            content[generator.randrange(near)] ^= 1 << generator.randrange(8)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read_checkpoint(write(tmp_path / f"flipped.{suffix}", bytes(content)))
            except CheckpointError as error:
                assert f"flipped.{suffix}" in str(error)  # noqa: PT017
                assert REMEDIES.search(str(error))  # noqa: PT017


def test_a_flipped_byte_in_an_npz_is_found_by_its_checksum(tmp_path, refused):
    content = bytearray(GOOGLE.read_bytes())
    with zipfile.ZipFile(GOOGLE) as archive:
        member = archive.getinfo("head/kernel.npy")
    content[member.header_offset + len("head/kernel.npy") + 30 + member.compress_size // 2] ^= 4
    refused(write(tmp_path / "flipped.npz", bytes(content)), "cut off or damaged", "copy or download it anew")


# ---------------------------------------------------------------------------------------------- something else
NO_WEIGHTS = {
    "a web page": (b"<!DOCTYPE html><html><body>Not Found</body></html>", "is a web page", "fetch the file itself"),
    "a page with a mark": (b"\xef\xbb\xbf<html></html>", "is a web page", "fetch the file itself"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git-LFS", "git lfs pull"),
    "nothing": (b"", "is empty", "copy or download it anew"),
    "text": (b"Entry not found, at all", "neither .safetensors, .npz nor a torch file", "give weights"),
    "an array": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}", "neither .safetensors, .npz nor a torch", "give weights"),
    "an archive": (b"PK\x05\x06" + bytes(18), "holds no tensors", "give a file of model weights"),
}


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "pth", "bin"])
@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_other_content_is_recognised_whatever_the_suffix(tmp_path, refused, kind, suffix):
    content, *words = NO_WEIGHTS[kind]
    refused(write(tmp_path / f"weights.{suffix}", content), *words)


def test_random_bytes_are_refused(tmp_path, refused):
    generator = random.Random(0)
    for start in (b"", b"PK", b"PK\x03\x04", b"\x80", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{", b"\xff" * 8 + b"{"):
        for length in (1, 30, 500):
            refused(write(tmp_path / "weights.pth", start + generator.randbytes(length)))


def test_the_content_counts_not_the_suffix(tmp_path, timm_state):
    expected = load_checkpoint(GOOGLE).state_dict()
    for suffix in (".bin", ".safetensors", ".pth", ""):
        found = load_checkpoint(write(tmp_path / f"weights{suffix}", GOOGLE.read_bytes())).state_dict()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    content = {"bin": safetensors_bytes(timm_state, tmp_path), "npz": torch_bytes(timm_state)}
    for suffix, raw in content.items():
        assert load_checkpoint(write(tmp_path / f"other.{suffix}", raw)).receipt.source == "timm"


def test_a_path_that_does_not_exist_is_said_so(tmp_path, refused):
    refused(tmp_path / "nowhere.npz", "no such file or folder; give a path", error=FileNotFoundError)
    refused(tmp_path / "nowhere", "no such file or folder; give a path", error=FileNotFoundError)


# ---------------------------------------------------------------------------------------------- npz
def test_an_npz_of_objects_is_refused_and_not_unpickled(tmp_path, refused):
    canary = tmp_path / "canary"
    for position in (0, 1):
        arrays = {"embedding/kernel": np.ones((8, 8, 3, 4), np.float32)}
        arrays = {"a" * position + "cls": np.array([Canary(canary)], dtype=object), **arrays}
        np.savez(tmp_path / "objects.npz", **arrays)
        refused(tmp_path / "objects.npz", "holds objects", "run code", "save plain arrays")
    assert not canary.exists()


def test_arrays_that_are_no_numbers_are_refused(tmp_path, refused):
    for array in (np.array(["text"]), np.ones(2, complex), np.ones(2, np.longdouble), np.zeros(2, "V3")):
        np.savez(tmp_path / "other.npz", cls=array)
        refused(tmp_path / "other.npz", "cls has dtype", "expected numbers")


def test_members_that_are_no_arrays_or_come_twice_are_refused(tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "odd.npz", "w") as archive:
        archive.writestr("cls.npy", b"not an array")
    refused(tmp_path / "odd.npz", "cls is no array")
    whole = io.BytesIO()
    np.save(whole, np.ones(2))
    with zipfile.ZipFile(tmp_path / "twice.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("cls.npy", whole.getvalue())
    refused(tmp_path / "twice.npz", "several members of one name")


def test_a_header_that_promises_too_much_is_refused(tmp_path, refused):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("cls.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    refused(tmp_path / "huge.npz", "cut off or damaged")


def test_a_comment_of_somebody_else_is_no_config(tmp_path):
    shutil.copy(GOOGLE, tmp_path / "weights.npz")
    with zipfile.ZipFile(tmp_path / "weights.npz", "a") as archive:
        archive.comment = b'{"image_size": 99}'
    assert load_checkpoint(tmp_path / "weights.npz").config.image_hw == (24, 24)


# ---------------------------------------------------------------------------------------------- pth
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", ["pth", "bin"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, refused, timm_state, suffix, zipped):
    canary = tmp_path / "canary"
    for content in (Canary(canary), {**timm_state, "x": Canary(canary)}, {"model": timm_state, "x": Canary(canary)}):
        path = write(tmp_path / f"evil.{suffix}", torch_bytes(content, zipped))
        refused(path, "it asks for", "refused", "save model.state_dict()")
    refused(write(tmp_path / f"evil.{suffix}", pickle.dumps(Canary(canary))))
    assert not canary.exists()


def test_training_arguments_beside_the_weights_are_accepted(tmp_path, timm_state):
    content = {"model": timm_state, "args": argparse.Namespace(lr=0.1), "epoch": 3, "best": torch.tensor(0.5)}
    torch.save(content, tmp_path / "run.pth")
    model = load_checkpoint(tmp_path / "run.pth")
    assert model.config.num_hidden_layers == 3
    assert {entry.file[0] for entry in model.receipt.tensors if entry.action == "dropped"} == {"args", "epoch", "best"}


@pytest.mark.parametrize("wrapper", ["model", "teacher", "state_dict", "module", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_wrappers_and_prefixes_are_taken_off(tmp_path, timm_state, wrapper, prefix):
    torch.save({wrapper: {prefix + name: tensor for name, tensor in timm_state.items()}}, tmp_path / "run.pth")
    checkpoint = read_checkpoint(tmp_path / "run.pth")
    assert checkpoint.wrapper == wrapper
    assert checkpoint.tensors.keys() == timm_state.keys()
    assert all(torch.equal(checkpoint.tensors[name], timm_state[name]) for name in timm_state)


def test_wrappers_within_wrappers_end(tmp_path, refused, timm_state):
    for inner in ({"model": timm_state, "epoch": torch.tensor(3)}, {"model": timm_state}):
        torch.save({"state_dict": inner}, tmp_path / "run.pth")
        assert read_checkpoint(tmp_path / "run.pth").tensors.keys() == timm_state.keys()
    endless: dict = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    refused(tmp_path / "endless.pth", "holds no state dict")


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {}}, torch.zeros(3), {}])
def test_a_pth_without_a_state_dict_is_refused(tmp_path, refused, content):
    torch.save(content, tmp_path / "other.pth")
    refused(tmp_path / "other.pth", "holds no state dict", "save model.state_dict()")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of torch 2.11
def test_tensors_that_are_not_dense_are_refused(tmp_path, refused, timm_state):
    torch.save({**timm_state, "cls_token": torch.eye(4).to_sparse()}, tmp_path / "sparse.pth")
    refused(tmp_path / "sparse.pth", "cls_token is sparse", "save plain dense tensors")


# ---------------------------------------------------------------------------------------------- folders, indices
def test_a_folder_must_hold_one_weights_file(tmp_path, refused):
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(folder, "0 weight files (none)", "exactly one file of weights")
    shutil.copy(GOOGLE, folder / "a.npz")
    assert load_checkpoint(folder).receipt.files[0].name == "a.npz"
    shutil.copy(GOOGLE, folder / "b.npz")
    refused(folder, "2 weight files (a.npz, b.npz)", "give its path")
    shutil.copy(GOOGLE, folder / "model.safetensors")  # the usual name goes before
    assert load_checkpoint(folder).receipt.files[0].name == "model.safetensors"


def sharded(folder: Path, state: dict, weight_map: object = None) -> Path:
    folder.mkdir()
    names = sorted(state)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for shard, held in halves.items():
        save_file({name: state[name] for name in held}, folder / shard)
    usual = {name: shard for shard, held in halves.items() for name in held}
    index = {"metadata": {}, "weight_map": usual if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_are_read_together(tmp_path, timm_state):
    model = load_checkpoint(sharded(tmp_path / "shards", timm_state))
    assert [record.name for record in model.receipt.files] == ["one.safetensors", "two.safetensors"]
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "../whole.safetensors"}, "shards outside its folder (['../whole.safetensors'])"),
        ({"a": "/etc/passwd"}, "shards outside its folder"),
        ({"a": "sub/x.safetensors"}, "shards outside its folder"),
        ({"a": "..\\x.safetensors"}, "shards outside its folder"),
        ({"a": ".."}, "shards outside its folder"),
        ({"a": ["one.safetensors"]}, "shards outside its folder"),
        ({"a": "three.safetensors"}, "three.safetensors is named by the index but is not there"),
        ({"a": "one\0.safetensors"}, "shards outside its folder"),
        ({}, "names no shards"),
        (["one.safetensors"], "names no shards"),
        ("one.safetensors", "names no shards"),
    ],
)
def test_an_index_may_name_only_files_beside_it(tmp_path, timm_state, weight_map, words):
    save_file(timm_state, tmp_path / "whole.safetensors")
    folder = sharded(tmp_path / "shards", timm_state, weight_map)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert words in str(caught.value)
    assert REMEDIES.search(str(caught.value))


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "words"), [(b"{broken", "is not JSON"), (b"\xff\xfe\x00", "is not JSON"), (b"[1]", "holds a list")]
)
def test_broken_side_files_are_named(tmp_path, refused, timm_state, name, content, words):
    folder = sharded(tmp_path / "shards", timm_state)
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} {words}") as caught:
        load_checkpoint(folder)
    assert REMEDIES.search(str(caught.value))


# ---------------------------------------------------------------------------------------------- other models
def test_other_networks_are_refused(tmp_path, refused):
    resnet = {"conv1.weight": torch.ones(64, 3, 7, 7), "layer1.0.conv1.weight": torch.ones(64, 64, 1, 1),
              "bn1.num_batches_tracked": torch.tensor(5), "fc.weight": torch.ones(10, 512)}  # fmt: skip
    bert = {"bert.embeddings.word_embeddings.weight": torch.ones(9, 8),
            "bert.encoder.layer.0.attention.self.query.weight": torch.ones(8, 8)}  # fmt: skip
    mixer = {"stem/kernel": torch.ones(8, 8, 3, 4), "MixerBlock_0/LayerNorm_0/scale": torch.ones(4)}
    for name, state in {"resnet": resnet, "bert": bert, "mixer": mixer}.items():
        torch.save(state, tmp_path / f"{name}.pth")
        refused(tmp_path / f"{name}.pth", "holds no Vision Transformer of google, timm, torchvision, transformers")


@pytest.mark.parametrize("source", ["google", "timm", "torchvision", "transformers"])
def test_a_source_that_the_file_is_not_of_is_refused(tmp_path, refused, timm_state, source):
    path = GOOGLE
    if source == "google":
        path = tmp_path / "timm.pth"
        torch.save(timm_state, path)
    told = refused(path, "lacks", "another source", source=source)
    assert source in told


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(ValueError, match="source is 'keras'; expected one of google, timm"):
        load_checkpoint(GOOGLE, source="keras")


def test_another_depth_is_refused(tmp_path, refused, timm_state):
    without = {name: tensor for name, tensor in timm_state.items() if not name.startswith("blocks.1.")}
    save_file(without, tmp_path / "middle.safetensors")
    told = refused(tmp_path / "middle.safetensors", "of 3 layers")
    assert told.count("missing: blocks.1.") == 16


def test_a_side_file_of_another_depth_is_refused(tmp_path, refused):
    width = 16
    shapes = {"embeddings.cls_token": (1, 1, width), "embeddings.position_embeddings": (1, 5, width),
              "embeddings.patch_embeddings.projection.weight": (width, 3, 4, 4),
              "encoder.layer.0.output.dense.weight": (width, 24)}  # fmt: skip
    save_file({f"vit.{name}": torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    settings = {"model_type": "vit", "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    refused(tmp_path, "num_hidden_layers", "config.json")


def test_weights_that_are_no_finite_numbers_are_listed(tmp_path, refused, timm_state):
    save_file({name: tensor.int() for name, tensor in timm_state.items()}, tmp_path / "int.safetensors")
    told = refused(tmp_path / "int.safetensors", "no floating-point numbers: head.bias (torch.int32)")
    assert told.count("no floating-point numbers") == len(timm_state)
    save_file({name: tensor * float("nan") for name, tensor in timm_state.items()}, tmp_path / "nan.safetensors")
    assert refused(tmp_path / "nan.safetensors").count("NaN or infinite") == len(timm_state)


def test_our_own_folder_is_sent_to_from_pretrained(tmp_path, refused, tiny):
    VitHfForImageClassification(tiny()).save_pretrained(tmp_path / "ours")
    for path in (tmp_path / "ours", tmp_path / "ours" / "model.safetensors"):
        refused(path, "is a model of this package", "VitHfForImageClassification.from_pretrained")
