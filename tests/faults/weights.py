"""Hostile and damaged model folders: weights, config, processor, shard index, manifest (cases 22, 24 to 32).

Each trial must end in one clear error within a second, or in what the caller asked for; no code runs, nothing is
fetched, nothing outside the folder is read or written.
"""

import contextlib
import http.server
import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    pipeline,
)

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfImageProcessor, load_checkpoint
from vit_hf.checkpoints.load import load_model
from vit_hf.files_vit_hf import sha256
from vit_hf.training.state import DamagedFolderError, check_folder, describe_files

from .harness import Tally

_ROOT = Path(__file__).resolve().parents[2]
WEIGHTS, INDEX, MANIFEST = "model.safetensors", "model.safetensors.index.json", "manifest.json"
NAMES = {0: "ant", 1: "bee", 2: "cat"}


def make(folder: Path, **options: Any) -> Path:
    """Save a little model with its processor and a manifest of all files, as a run is pushed and pulled."""
    config = VitHfConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=16, id2label=NAMES)  # fmt: skip
    torch.manual_seed(0)
    VitHfForImageClassification(config).save_pretrained(folder, **options)
    VitHfImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    (folder / MANIFEST).write_text(json.dumps(describe_files(folder), indent=2) + "\n")
    return folder


def rewrite(file: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(tally: Tally, name: str, load: Callable[[], Any], *words: str, limit_s: float = 1.0) -> None:
    """Run something that must fail with one clear error of ours that has some words, soon."""
    began = time.process_time()
    try:
        load()
        error: Exception | None = None
    except Exception as caught:
        error = caught
    seconds = time.process_time() - began
    text = str(error) + str(error.__cause__ if error is not None else "")
    tally.counts["refused"] += error is not None
    tally.check(
        isinstance(error, OSError | ValueError | StrictDataclassError), f"{name}: {type(error).__name__}: {text[:300]}"
    )
    tally.check(all(word in text for word in words), f"{name}: no {words} in {text[:300]}")
    tally.check(len(str(error)) < 3_000, f"{name}: a message of {len(str(error)):,} characters")
    tally.check(seconds < limit_s, f"{name}: {seconds:.1f} s")


@contextlib.contextmanager
def changed(model: Path, folder: Path) -> Iterator[Path]:
    """Give a copy of a model folder, to be damaged."""
    copy = folder / "changed"
    shutil.copytree(model, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


# ------------------------------------------------------------------------------------------- damage
def flips_and_cuts(folder: Path, *, seed: int, flips: int, cuts: int) -> Tally:
    """Flip a bit or cut the end off, anywhere: `check_folder` finds it, `from_pretrained` that in weights (24, 25)."""
    generator, tally, model = random.Random(seed), Tally(), make(folder / "model")
    names = [WEIGHTS, "config.json", "preprocessor_config.json", MANIFEST]
    for number in range(flips + cuts):
        name = names[number % len(names)]
        file, content = model / name, (model / name).read_bytes()
        damaged = bytearray(content)
        if number < flips:
            place, bit = generator.randrange(len(content)), generator.randrange(8)
            damaged[place] ^= 1 << bit
            what = f"{name}: bit {bit} of byte {place} flipped"
        else:
            length = generator.randrange(len(content) - 1)  # without its last byte, a line's end, a JSON file is whole
            del damaged[length:]
            what = f"{name}: cut to {length} bytes"
        file.write_bytes(damaged)
        tally.counts["flips" if number < flips else "cuts"] += 1
        try:
            check_folder(model)
            tally.counts["not found"] += 1
            tally.problems.append(f"{what}: not found by check_folder")
        except DamagedFolderError:
            pass
        if name == WEIGHTS:
            refused(tally, what, lambda: VitHfForImageClassification.from_pretrained(model))
        file.write_bytes(content)
    tally.counts["not found"] += 0
    check_folder(model)
    VitHfForImageClassification.from_pretrained(model)
    return tally


def _entry(start: int, end: int, dtype: str = "F32", shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


def _file(header: Any, data: int = 0, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


_TWICE = (
    b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F16","shape":[8],"data_offsets":[0,16]}}'
)
CRAFTED: dict[str, tuple[bytes, str]] = {
    "a name twice": (_file(_TWICE, 16), "stands twice"),
    "a field twice": (_file(b'{"a":{"dtype":"F32","dtype":"F16","shape":[8],"data_offsets":[0,16]}}', 16), ""),
    "overlap": (_file({"a": _entry(0, 16), "b": _entry(8, 24)}, 24), ""),
    "one range twice": (_file({"a": _entry(0, 16), "b": _entry(0, 16)}, 16), ""),
    "hole": (_file({"a": _entry(0, 16), "b": _entry(20, 36)}, 36), ""),
    "a hole at the start": (_file({"a": _entry(4, 20)}, 20), ""),
    "outside": (_file({"a": _entry(0, 1 << 40)}, 16), ""),
    "negative offset": (_file({"a": _entry(-16, 0, shape=[4])}, 16), ""),
    "negative shape": (_file({"a": _entry(0, 16, shape=[-2, -2])}, 16), ""),
    "another shape": (_file({"a": _entry(0, 16, shape=[5])}, 16), ""),
    "overflow": (_file({"a": _entry(0, 16, shape=[2**62, 2**62])}, 16), ""),
    "nothing, of a huge shape": (_file({"classifier.weight": _entry(0, 0, shape=[0, 2**62])}), "missing: "),
    "no tensors": (_file({}), "missing: "),
    "fractions": (_file(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0.0,16.0]}}', 16), ""),
    "NaN": (_file(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', 16), ""),
    "unknown dtype": (_file({"a": _entry(0, 16, "X9", [4])}, 16), ""),
    "int32": (_file({"a": _entry(0, 16, "I32", [4])}, 16), "a is I32; expected floating-point numbers"),
    "int8": (_file({"a": _entry(0, 16, "I8", [16])}, 16), "a is I8; expected floating-point numbers"),
    "bool": (_file({"a": _entry(0, 16, "BOOL", [16])}, 16), "a is BOOL; expected floating-point numbers"),
    "list": (_file([1]), ""),
    "a length over the file": (_file({}, length=2**40), "a header of"),
    "the largest length": (_file({}, length=2**64 - 1), "a header of"),
    "a header of 47 MB": (_file(b" " * 47_000_000 + b"{}"), "expected at most 4,194,304"),
    "deeply nested": (_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), ""),
    "no UTF-8": (_file(b'{"\xff":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', 16), ""),
    "100,000 dimensions": (_file({"a": _entry(0, 4, shape=[1] * 100_000)}, 4), ""),
    "empty": (b"", "is empty"),
    "three bytes": (b"abc", "has 3 bytes"),
    "web page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "is a web page"),
    "another web page": (b"\n <html><body>busy</body></html>", "is a web page"),
    "Git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git-LFS pointer"),
}


def crafted_headers(folder: Path) -> Tally:
    """Weights that are no whole safetensors file, also with a manifest that knows them (24, 27)."""
    tally, model = Tally(), make(folder / "model")
    for name, (content, words) in CRAFTED.items():
        (model / WEIGHTS).write_bytes(content)
        (model / MANIFEST).write_text(json.dumps(describe_files(model)))
        refused(tally, name, lambda: VitHfForImageClassification.from_pretrained(model), words)
        refused(tally, f"{name}, as a file", lambda: load_checkpoint(model / WEIGHTS))
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).mkdir()
    refused(tally, "folder", lambda: VitHfForImageClassification.from_pretrained(model), "it is a folder")
    return tally


def spoiled_tensors(folder: Path) -> Tally:
    """NaN, missing, extra and reshaped tensors; label names that do not fit the head (26, 27, 32)."""
    tally, model = Tally(), make(folder / "model")
    load = VitHfForImageClassification.from_pretrained
    weights = load_file(model / WEIGHTS)

    def spoil(change: dict[str, torch.Tensor], *lost: str) -> Callable[[], Any]:
        kept = {name: tensor for name, tensor in {**weights, **change}.items() if name not in lost}
        (model / MANIFEST).unlink(missing_ok=True)
        save_file(kept, model / WEIGHTS, metadata={"format": "pt"})
        return lambda: load(model)

    norm, bias = "vit.norm.weight", "classifier.bias"
    nan = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights.items()}
    refused(tally, "one NaN", spoil({norm: nan[norm]}), f"NaN or infinite: {norm}")
    whole = {name: tensor.int() for name, tensor in weights.items()}
    refused(tally, "all int32", spoil(whole), "is I32; expected floating-point numbers")
    refused(tally, "all NaN", spoil(nan), "NaN or infinite", "and ")
    several = spoil({"vit.extra": torch.zeros(3), bias: torch.zeros(4)}, norm)
    refused(tally, "several", several, f"missing: {norm}", "unexpected: vit.extra", f"other shape: {bias} (4,)")
    spoil({})
    for name, labels, words in (
        ("two names", {"0": "ant", "1": "bee"}, "other shape: classifier.weight (3, 16), expected (2, 16)"),
        ("four names", {str(i): str(i) for i in range(4)}, "other shape: classifier.weight (3, 16), expected (4, 16)"),
        ("gap", {"0": "ant", "1": "bee", "3": "cat"}, "id2label has the indices [0, 1, 3]"),
        ("an index twice", {"0": "ant", "1": "bee", "01": "cat"}, "id2label has 3 entries for 2 indices"),
        ("words for indices", {"ant": "0"}, "id2label has an index that is no integer"),
        ("a list", ["ant", "bee", "cat"], "id2label"),
        ("numbers for names", {"0": 0, "1": 1, "2": 2}, "id2label"),
    ):
        with changed(model, folder) as copy:
            rewrite(copy / "config.json", id2label=labels, label2id=None)
            refused(tally, name, lambda copy=copy: load(copy), words)
    for name, table, words in (
        ("a wrong inverse", {"ant": 1, "bee": 0, "cat": 2}, "label2id and id2label do not match"),
        ("an inverse of words", {"ant": "x", "bee": 1, "cat": 2}, "label2id"),
        ("an inverse of nothing", {"ant": None}, "label2id"),
    ):
        with changed(model, folder) as copy:
            rewrite(copy / "config.json", label2id=table)
            refused(tally, name, lambda copy=copy: load(copy), words)
    return tally


# ------------------------------------------------------------------------------------------- pickles
class Canary:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def pickles(folder: Path) -> Tally:
    """A pickle that writes a file, in every place that pickles lie in: refused or left alone, no file appears (28)."""
    tally, model, canary = Tally(), make(folder / "model"), folder / "canary"
    bomb = pickle.dumps(Canary(canary))
    load = VitHfForImageClassification.from_pretrained
    for name, words in (("pytorch_model.bin", "no file named model.safetensors"), (WEIGHTS, "cannot be read")):
        with changed(model, folder) as copy:
            (copy / WEIGHTS).unlink()
            (copy / name).write_bytes(bomb)
            (copy / MANIFEST).unlink()
            for options in ({}, {"use_safetensors": True}, {"use_safetensors": None}):
                refused(tally, f"{name}, {options}", lambda c=copy, o=options: load(c, **o), words)
            refused(tally, f"{name} by AutoModel", lambda c=copy: AutoModel.from_pretrained(c), words)
            if name == "pytorch_model.bin":
                kept = {"use_safetensors": False}
                with contextlib.suppress(Exception):  # torch's own words
                    load(copy, **kept)
                    tally.problems.append(f"{name}, {kept}: loaded")
            with contextlib.suppress(Exception):
                load_checkpoint(copy)
                tally.problems.append(f"{name}: loaded by load_checkpoint")
            with contextlib.suppress(Exception):
                load_model(copy)
                tally.problems.append(f"{name}: loaded by load_model")
            tally.counts["places"] += 1
    np.savez(folder / "objects.npz", weights=np.array([Canary(canary)], dtype=object))
    torch.save({"model": Canary(canary)}, folder / "zip.pth")
    torch.save({"model": Canary(canary)}, folder / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("plain.pth", "plain.bin", "plain.npz", "plain.safetensors"):
        (folder / name).write_bytes(bomb)
    for name in ("objects.npz", "zip.pth", "old.pth", "plain.pth", "plain.bin", "plain.npz", "plain.safetensors"):
        refused(tally, name, lambda name=name: load_checkpoint(folder / name), name)
        tally.counts["places"] += 1
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "pytorch_model.bin",
        "model.pkl",
    ):
        with changed(model, folder) as copy:  # beside good weights
            (copy / name).write_bytes(bomb)
            load(copy)
            load_model(copy)
            tally.counts["places"] += 1
    tally.counts["canaries"] += canary.exists()
    tally.check(not canary.exists(), "a pickle was run")
    return tally


# ------------------------------------------------------------------------------------------- index and manifest
def shard_indices(folder: Path) -> Tally:
    """An index of shards that leads out of the folder, or does not fit its shards (29)."""
    tally, model = Tally(), make(folder / "model", max_shard_size="4KB")
    load = VitHfForImageClassification.from_pretrained
    load(model)
    outside = folder / "outside.safetensors"
    table = json.loads((model / INDEX).read_text())["weight_map"]
    key, first = next(iter(table.items()))
    other = next(name for name in table.values() if name != first)
    shutil.copy(model / first, outside)
    bad = ["../outside.safetensors", str(outside), "C:\\outside.safetensors", "C:outside.safetensors", "..\\outside",
           "", "a\0b.safetensors", ".", "..", "./" + first, "sub/" + first, "//server/share/x", 7, None, ["a"],
           {"a": 1}, "a" * 5_000]  # fmt: skip
    for name in bad:
        with changed(model, folder) as copy:
            rewrite(copy / INDEX, weight_map={**table, key: name})
            refused(tally, f"shard {str(name)[:40]!r}", lambda c=copy: load(c), "shards outside its folder")
    for what, value, words in (
        ("another shard than it lies in", {**table, key: other}, "which the index has not, or in another shard"),
        ("a name that no shard has", {**table, "more": first}, "lacks 'more', which the index has in it"),
        ("a lost name", {k: v for k, v in table.items() if k != key}, "which the index has not"),
        ("no shards", {}, "names no shards"),
        ("a list", [first], "names no shards"),
        ("a shard that is not there", {**table, key: "lost.safetensors"}, "names lost.safetensors, which is missing"),
    ):
        with changed(model, folder) as copy:
            rewrite(copy / INDEX, weight_map=value)
            refused(tally, what, lambda c=copy: load(c), words)
    for what, text, words in (
        ("no JSON", "{", "is not JSON"),
        ("a list as a whole", "[]", "holds a list"),
        ("nested", "[" * 100_000, "is not JSON"),
        ("twice", f'{{"weight_map": {{"a": "{first}", "a": "{other}"}}}}', "stands twice"),
        ("5 MB", " " * 5_000_000, "expected at most"),
    ):
        with changed(model, folder) as copy:
            (copy / INDEX).write_text(text)
            refused(tally, what, lambda c=copy: load(c), words)
    with changed(model, folder) as copy:
        (copy / first).unlink()
        (copy / first).symlink_to(outside)
        refused(tally, "link", lambda: load(copy), "is a link to", "outside of the folder")
        refused(tally, "link, checked", lambda: check_folder(copy), "is a link to")
    return tally


def manifests(folder: Path) -> Tally:
    """A hostile manifest: one clear error, soon, nothing outside is read (25)."""
    tally, model = Tally(), make(folder / "model")
    entries = json.loads((model / MANIFEST).read_text())
    secret = folder / "secret"
    secret.write_text("secret")
    digest = {"bytes": 6, "sha256": "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"}
    texts = {f"name {name[:30]!r}": json.dumps({**entries, name: digest}) for name in (
        "../secret", str(secret), "C:\\secret", "C:secret", "a\\..\\..\\secret", "", ".", "..", "a/../../secret",
        "a//b", "a\0b", "\x1b[2J", "a" * 100_000, "/", "a/")}  # fmt: skip
    texts |= {f"entry {str(entry)[:30]}": json.dumps({**entries, WEIGHTS: entry}) for entry in (
        None, 7, "x", [], {}, {"bytes": 1}, {"sha256": "0" * 64}, {**digest, "bytes": "6"}, {**digest, "bytes": -6},
        {**digest, "bytes": 6.0}, {**digest, "bytes": True}, {**digest, "sha256": 7}, {**digest, "sha256": "G" * 64},
        {**digest, "sha256": "0" * 10_000})}  # fmt: skip
    texts |= {"list": "[]", "number": "7", "text": '"x"', "null": "null", "nothing": "", "half": '{"a": ', "NUL": "\0"}
    texts |= {"nested": "[" * 100_000, "a number without end": '{"a": ' + "9" * 100_000 + "}"}
    texts["a million entries"] = "{" + ",".join(f'"{number}": {{}}' for number in range(1_000_000)) + "}"
    for name, text in texts.items():
        (model / MANIFEST).write_text(text)
        refused(tally, f"{name}, checked", lambda: check_folder(model), MANIFEST)
        refused(tally, f"{name}, loaded", lambda: VitHfForImageClassification.from_pretrained(model), MANIFEST)
    (model / "link").symlink_to(secret)
    (model / MANIFEST).write_text(json.dumps({**entries, "link": digest}))
    refused(tally, "link", lambda: check_folder(model), "is a link to")
    (model / MANIFEST).write_text(json.dumps({**entries, "lost": digest}))
    refused(tally, "lost file", lambda: check_folder(model), "lost is missing")
    return tally


def hash_speed(folder: Path) -> Tally:
    """The weights of a B/16 are hashed in 0.3 s."""
    tally, file = Tally(), folder / "weights"
    with file.open("wb") as stream:
        for _ in range(344):
            stream.write(os.urandom(1 << 20))
    times = []
    for _ in range(3):
        began = time.process_time()
        sha256(file)
        times.append(time.process_time() - began)
    tally.counts["MiB"], tally.counts["seconds"] = 344, min(times)  # type: ignore[assignment]
    tally.check(min(times) <= 0.3, f"{min(times):.2f} s")
    return tally


# ------------------------------------------------------------------------------------------- configs
_GIB = 1 << 30
BOMBS: dict[str, tuple[dict[str, Any], str]] = {
    "layers without end": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "as many layers as a config may have": ({"num_hidden_layers": 1_024}, "missing: vit.layers.1."),
    "width without end": ({"hidden_size": 10**12}, "hidden_size"),
    "the largest width": ({"hidden_size": 65_536, "intermediate_size": 262_144}, "expected (65536, 65536)"),
    "a number of 4,000 digits": ({"hidden_size": 10**4_000}, "hidden_size"),
    "image without end": ({"image_size": 10**9}, "image_size"),
    "the largest image": ({"image_size": 65_536, "patch_size": 1}, "expected (1, 4294967297, 16)"),
    "the largest computed positions": ({"image_size": 65_536, "position_embedding": "sincos2d"}, "image_size 65536"),
    "patch without end": ({"patch_size": [4, 10**9]}, "patch_size"),
    "heads without end": ({"num_attention_heads": 10**9}, "num_attention_heads"),
    "registers": ({"num_register_tokens": 65_536}, "register_tokens"),
    "the largest stem": ({"resnet_stem_layers": [1_024] * 8, "patch_size": 1024, "image_size": 1024}, "resnet_stem"),
    "a wide stem": ({"resnet_stem_layers": [1], "resnet_stem_width": 65_536}, "stem"),
    "labels without end": ({"id2label": None, "label2id": None, "num_labels": 10**12}, "num_labels"),
    "ten million labels": ({"id2label": None, "label2id": None, "num_labels": 10**7}, "num_labels"),
    "NaN": ({"layer_norm_eps": float("nan")}, "layer_norm_eps"),
    "infinity": ({"layer_scale_init": float("inf")}, "layer_scale_init"),
    "tagged infinity": ({"layer_norm_eps": {"__float__": "Infinity"}}, "layer_norm_eps"),
    "text for a number": ({"hidden_size": "16"}, "hidden_size"),
    "a fraction": ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
    "true for a number": ({"num_attention_heads": True}, "num_attention_heads"),
    "a list for a number": ({"hidden_size": [16] * 100}, "hidden_size"),
    "three sides": ({"image_size": [8, 8, 8]}, "image_size"),
    "unknown activation": ({"hidden_act": "x" * 100_000}, "hidden_act"),
    "a module's name": ({"hidden_act": "__import__('os').system('true')"}, "hidden_act"),
    "dtype of integers": ({"dtype": "int8"}, "dtype"),
    "dtype auto": ({"dtype": "auto"}, "dtype"),
    "dtype that is a function": ({"dtype": "load"}, "dtype"),
    "old dtype that is a function": ({"dtype": None, "torch_dtype": "compile"}, "torch_dtype"),
    "another type": ({"model_type": "vit"}, "model_type 'vit_hf'"),
    "no type": ({"model_type": None}, "model_type 'vit_hf'"),
}
TEXTS = {
    "nested": '{"model_type": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a number without end": '{"model_type": "vit_hf", "hidden_size": ' + "9" * 100_000 + "}",
    "list": "[]",
    "number": "7",
    "nothing": "",
    "half": '{"model_type": "vit_hf",',
    "200 MB": '{"model_type": "vit_hf"' + " " * 200_000_000 + "}",
}
# What a config may not ask transformers for; each names the field that is to stand in the message.
WISHES: dict[str, Any] = {
    "attn_implementation": "owner/kernel",
    "_attn_implementation": "kernels-community/flash-attn2",
    "experts_implementation": "owner/kernel",
    "fusion_config": {"patch_embeddings": True},
    "quantization_config": {"quant_method": "torchao", "quant_type": "int8_weight_only"},
    "distributed_config": {"tp_size": 2},
    "transformers_weights": "../other/model.safetensors",
    "kernel_config": {"RMSNorm": "owner/kernel"},
    "use_kernels": True,
    "trust_remote_code": True,
    "code_revision": "main",
    "adapter_kwargs": {"_adapter_model_path": "owner/adapter"},
    "per_layer_config": {"0": {"hidden_size": 8}},
    "extra_files": ["../other.safetensors"],
    "configuration_files": ["config.9.9.9.json"],
    "validate": None,
    "validate_architecture": None,
    "to_dict": "x",
    "attribute_map": {"hidden_size": "x"},
    "__class__": "x",
    "__dict__": {},
    "_auto_class": "x",
    "sub_configs": {"x": "y"},
    "has_cls_token": False,
}


def config_bombs(folder: Path) -> Tally:
    """Configs that ask for too much or for what is no number, in a process with 512 MB more than it has (30)."""
    return _apart("bombs", folder)


def _bombs(folder: Path) -> Tally:
    import resource

    tally, model = Tally(), make(folder / "model")
    load = VitHfForImageClassification.from_pretrained
    load(model)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + _GIB // 2, size + _GIB // 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, (fields, words) in BOMBS.items():
        with changed(model, folder) as copy:
            rewrite(copy / "config.json", **fields)
            refused(tally, name, lambda c=copy: load(c), words)
            if "model_type" not in fields:
                refused(tally, f"{name}, any class", lambda c=copy: AutoModelForImageClassification.from_pretrained(c))
    for name, text in TEXTS.items():
        with changed(model, folder) as copy:
            (copy / "config.json").write_text(text)
            refused(tally, name, lambda c=copy: load(c), "config.json")
            refused(tally, f"{name}, any library", lambda c=copy: load_model(c))
    tally.counts["MB more"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1_000
    tally.check(tally.counts["MB more"] < 450, f"{tally.counts['MB more']} MB")
    many = {str(number): f"class {number}" for number in range(1_000_001)}
    with changed(model, folder) as copy:
        rewrite(copy / "config.json", id2label=many, label2id=None)
        refused(tally, "a million names and one", lambda: load(copy), "num_labels is 1000001", limit_s=30)
    return tally


def config_wishes(folder: Path) -> Tally:
    """Configs and processor configs that ask for code, kernels or other files: none runs, nothing is fetched (31)."""

    class Counting(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    requests: list[str] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        tally = _apart("wishes", folder, HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0", HF_HOME=str(folder / "home"))
        server.shutdown()
    tally.counts["requests"] = len(requests)
    tally.check(not requests, f"fetched: {requests[:5]}")
    return tally


def _wishes(folder: Path) -> Tally:
    tally, model, canary = Tally(), make(folder / "model"), folder / "canary"
    load = VitHfForImageClassification.from_pretrained
    for field, value in WISHES.items():
        with changed(model, folder) as copy:
            rewrite(copy / "config.json", **{field: value})
            for loader in (
                load,
                AutoModelForImageClassification.from_pretrained,
                AutoConfig.from_pretrained,
                load_model,
            ):
                refused(tally, f"{field}, {loader.__qualname__}", lambda f=loader, c=copy: f(c), field)
            refused(tally, f"{field}, pipeline", lambda c=copy: pipeline("image-classification", str(c)))
            tally.counts["fields"] += 1
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\nclass Evil: pass\n"
    whose = {"here": "evil.Evil", "elsewhere": "owner/repo--evil.Evil", "outside": "../evil.Evil"}
    for where, name in whose.items():
        for model_type in ("vit_hf", "vit", "unheard_of"):
            with changed(model, folder) as copy:
                (copy / "evil.py").write_text(code)
                autos = (
                    "AutoConfig",
                    "AutoModel",
                    "AutoModelForImageClassification",
                    "AutoModelForMaskedImageModeling",
                )
                rewrite(copy / "config.json", model_type=model_type, auto_map=dict.fromkeys(autos, name))
                autos = {"AutoImageProcessor": {"torchvision": name, "pil": name}, "AutoProcessor": name}
                processor = {"image_processor_type": "Evil", "trust_remote_code": True, "auto_map": autos}
                rewrite(copy / "preprocessor_config.json", **processor)
                for loader in (load, load_model, AutoConfig.from_pretrained, AutoModel.from_pretrained,
                               AutoModelForImageClassification.from_pretrained,
                               AutoModelForMaskedImageModeling.from_pretrained, AutoImageProcessor.from_pretrained,
                               VitHfImageProcessor.from_pretrained):  # fmt: skip
                    with contextlib.suppress(Exception):  # they may load by our own classes, or refuse
                        loader(copy)
                    tally.counts["loads with auto_map"] += 1
                    tally.check(not canary.exists(), f"{where}, {model_type}: {loader.__qualname__} ran code")
                    canary.unlink(missing_ok=True)
                with contextlib.suppress(Exception):
                    pipeline("image-classification", str(copy))
                tally.check(not canary.exists(), f"{where}, {model_type}: pipeline ran code")
    tally.add(_commands(model, folder, code, canary))
    for name, text, words in (
        ("adapter_config.json", '{"base_model_name_or_path": "owner/other", "peft_type": "LORA"}', "holds an adapter"),
        ("shard-00000-model-00001-of-00001.safetensors", "", "is part of a distributed checkpoint"),
    ):
        with changed(model, folder) as copy:
            (copy / name).write_text(text)
            refused(tally, name, lambda c=copy: load(c), words)
    tally.counts["canaries"] += canary.exists()
    loaded = [name for name in sys.modules if name.startswith("transformers_modules") or name == "evil"]
    tally.check(not loaded, f"code of folders was imported: {loaded}")
    return tally


def _commands(model: Path, folder: Path, code: str, canary: Path) -> Tally:
    """The command line on a folder with code in it."""
    from PIL import Image

    from vit_hf.cli import main

    tally = Tally()
    picture = folder / "picture.png"
    Image.new("RGB", (9, 9)).save(picture)
    for model_type in ("vit_hf", "unheard_of"):
        with changed(model, folder) as copy:
            (copy / "evil.py").write_text(code)
            rewrite(copy / "config.json", model_type=model_type, auto_map={"AutoConfig": "evil.Evil"})
            rewrite(copy / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"})
            train = [
                "train",
                "digits",
                "--model.init_from",
                str(copy),
                "--output",
                str(folder / "out"),
                "--max-steps",
                "1",
            ]
            for words in (["predict", str(copy), str(picture)], ["evaluate", str(copy), "--data", "digits"],
                          ["convert", str(copy), str(folder / "converted")], train):  # fmt: skip
                with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                    code_of_exit = main(words)
                tally.counts["commands"] += 1
                tally.check(code_of_exit in (0, 1, 2), f"{words[0]}: exit code {code_of_exit}")
                tally.check(not canary.exists(), f"{words[0]}, {model_type}: ran code")
                shutil.rmtree(folder / "out", ignore_errors=True)
    return tally


def _apart(task: str, folder: Path, **environment: str) -> Tally:
    """Run a case of this module in a process of its own, with nobody to answer questions."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.weights", task, str(folder)],
        cwd=_ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    if done.returncode:
        return Tally(problems=[f"{task}: exit code {done.returncode}: {done.stderr[-3_000:]}"])
    counts, problems = json.loads(done.stdout.splitlines()[-1])
    tally = Tally(problems=problems)
    tally.counts.update(counts)
    return tally


if __name__ == "__main__":
    found = {"bombs": _bombs, "wishes": _wishes}[sys.argv[1]](Path(sys.argv[2]))
    print()  # after a question that nobody answered
    print(json.dumps([found.counts, found.problems]))
