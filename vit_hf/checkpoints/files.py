"""Read tensors from the files of other libraries: .npz, .safetensors, .pth; local or from the Hub.

The content decides, not the suffix. Nothing is ever unpickled but tensors (`torch.load(weights_only=True)`), arrays of
objects are refused. The files beside the weights (config.json, preprocessor_config.json) come along.
"""

import argparse
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from ..configuration_vit_hf import CONFIG_BYTES
from ..files_vit_hf import WeightsError, leads_away, read_header, read_shard_index
from .links import Tensors
from .receipt import CheckpointError, FileRecord

METADATA_KEY = "vit_hf"  # under it our exports keep, in the file, the config fields that the layout cannot hold
WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.npz",
)
SIDE_NAMES = ("config.json", "preprocessor_config.json")
WEIGHT_SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("teacher", "model", "state_dict", "model_state_dict", "module", "student")
COMMON_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass
class Checkpoint:
    """What was read.

    Attributes:
        origin: the path or Hub id as the user gave it.
        files: the weight files.
        tensors: name in the file (prefixes common to all names taken off) -> tensor on the CPU.
        wrapper: the key of a research .pth under which the tensors lay, such as "model" or "teacher".
        left: other contents of such a file, which were not tensors of the model.
        side: parsed JSON files beside the weights, by file name.
        fields: config fields that our own export wrote into the file.
    """

    origin: str
    files: list[FileRecord]
    tensors: Tensors
    wrapper: str | None = None
    left: list[str] = field(default_factory=list)
    side: dict[str, dict[str, Any]] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The config.json beside the weights, {} without one."""
        return self.side.get("config.json", {})


def read_checkpoint(path_or_hub_id: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Read a weights file, a folder with one, or a Hub repo.

    Args:
        path_or_hub_id: a file, a folder, or "owner/name".
        revision: branch, tag or commit of a Hub repo.

    Raises:
        CheckpointError: not a readable checkpoint, or one that wants to run code.
        OSError: nothing there, or the Hub's own error.
    """
    origin = str(path_or_hub_id)
    path = Path(path_or_hub_id)
    if path.is_dir():
        weights = _weights_in(path)
        fetch: Callable[[str], Path] = lambda name: path / name  # noqa: E731
    elif path.is_file():
        weights, fetch = path, lambda name: path.parent / name
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", origin) and path.suffix not in WEIGHT_SUFFIXES:
        fetch = lambda name: _download(origin, name, revision)  # noqa: E731
        weights = _first_on_hub(origin, fetch)
    else:
        raise FileNotFoundError(f"{origin}: no such file or folder; give a path, or a Hub id like owner/name")
    side = {name: _read_json(found) for name in SIDE_NAMES if (found := _optional(fetch, name))}
    paths = [fetch(name) for name in _shards(weights)] if weights.name.endswith(".index.json") else [weights]
    away = [found for found in paths if weights not in paths and leads_away(found)]
    if away:
        raise CheckpointError(f"{away[0]} is a link to {away[0].resolve()}, outside of its folder; copy the file there")
    checkpoint = Checkpoint(origin, [record(found) for found in paths], {}, side=side)
    for found in paths:
        _read_file(found, checkpoint)
    if not checkpoint.tensors:
        raise CheckpointError(f"{origin} holds no tensors; give a file of model weights")
    _strip_common_prefixes(checkpoint)
    return checkpoint


# ---------------------------------------------------------------------------------------------- where the files are
def _weights_in(folder: Path) -> Path:
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found[:8]) or "none"
    raise CheckpointError(
        f"{folder} is a folder with {len(found)} weight files ({names}); expected {' or '.join(WEIGHT_NAMES[:3])}, or "
        "exactly one file of weights: give its path"
    )


def _download(repo: str, name: str, revision: str | None) -> Path:
    return Path(hf_hub_download(repo, name, revision=revision))


def _first_on_hub(repo: str, fetch: Callable[[str], Path]) -> Path:
    remedy = f"on a machine with a network run `hf download {repo} --local-dir DIR`, copy DIR here and name it instead"
    missing = f"{repo} is not in the cache ({constants.HF_HUB_CACHE})"
    try:
        for name in WEIGHT_NAMES:
            if found := _optional(fetch, name):
                return found
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{missing} and the Hub cannot be reached ({error.__cause__ or error}); {remedy}"
        ) from error
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(f"{missing} and HF_HUB_OFFLINE is set; {remedy}")
    raise CheckpointError(
        f"{repo} on the Hub has none of {', '.join(WEIGHT_NAMES)}; download its file and give the path"
    )


def _optional(fetch: Callable[[str], Path], name: str) -> Path | None:
    try:
        found = fetch(name)
    except LocalEntryNotFoundError:
        if not constants.HF_HUB_OFFLINE:
            raise  # no answer is not the answer that there is no such file
        return None
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise CheckpointError(str(error)) from error
    return found if found.is_file() else None


def _read_json(path: Path) -> dict[str, Any]:
    if (size := path.stat().st_size) > CONFIG_BYTES:
        raise CheckpointError(f"{path} has {size:,} bytes; expected at most {CONFIG_BYTES:,}: mend or remove it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({str(error)[:200]}); mend or remove it") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def _shards(index: Path) -> list[str]:
    try:
        return read_shard_index(index)
    except WeightsError as error:
        raise CheckpointError(f"{index.parent / str(error)}: download the folder anew") from error


def record(path: Path) -> FileRecord:
    """Return name, size and SHA-256 of a weight file; CheckpointError if it is not there."""
    if not path.is_file():
        raise CheckpointError(f"{path} is named by the index but is not there; copy or download all shards")
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return FileRecord(path.name, path.stat().st_size, digest.hexdigest())


# ---------------------------------------------------------------------------------------------- what is in them
def _read_file(path: Path, checkpoint: Checkpoint) -> None:
    with path.open("rb") as stream:
        head = stream.read(16)
    if not head:
        raise CheckpointError(f"{path} is empty; copy or download it anew")
    if head.startswith((b"<", b"\n<", b"\xef\xbb\xbf<")):
        raise CheckpointError(f"{path} is a web page, not weights: the download failed; fetch the file itself")
    if head.startswith(b"version https:/"):
        raise CheckpointError(f"{path} is a Git-LFS pointer, not the weights: run `git lfs pull`")
    if head.startswith(b"PK"):
        read = _read_npz if _is_npz(path) else _read_torch
    elif head[8:9] == b"{":
        read = _read_safetensors
    elif head.startswith(b"\x80"):
        read = _read_torch
    else:
        raise CheckpointError(
            f"{path} is neither .safetensors, .npz nor a torch file (it begins with {head[:8]!r}); give weights"
        )
    read(path, checkpoint)


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            packed, unpacked = path.stat().st_size, sum(info.file_size for info in archive.infolist())
            if unpacked > 8 * packed + (1 << 28):  # weights hardly shrink, but for a head of zeros
                raise CheckpointError(f"{path} unpacks from {packed:,} to {unpacked:,} bytes; save it uncompressed")
            if len(set(names)) < len(names):
                raise CheckpointError(f"{path} holds several members of one name; copy or download it anew")
            return all(name.endswith(".npy") for name in names)
    except zipfile.BadZipFile as error:
        raise _damaged(path, error) from error


def _read_npz(path: Path, checkpoint: Checkpoint) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            _take_metadata(archive.comment, checkpoint)
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                checkpoint.tensors[name] = _from_numpy(arrays[name], f"{path}: {name}")
    except CheckpointError:
        raise
    except Exception as error:  # whatever a parser of foreign bytes trips over
        if "Object arrays" in str(error):
            raise CheckpointError(
                f"{path} holds objects instead of numbers; unpickling them would run code, which is refused: save "
                "plain arrays"
            ) from error
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(f"{path} is cut off or damaged ({reason}); copy or download it anew")


def _from_numpy(array: np.ndarray | bytes, where: str) -> torch.Tensor:
    if not isinstance(array, np.ndarray):  # a member of the archive that is no array
        raise CheckpointError(f"{where} is no array; copy or download the file anew")
    if array.dtype == np.dtype("V2"):  # how numpy saves the bfloat16 of JAX
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise CheckpointError(f"{where} has dtype {array.dtype}; expected numbers of at most 64 bits: save float32")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _read_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    try:
        read_header(path)
        with safe_open(path, framework="pt") as stored:
            _take_metadata((stored.metadata() or {}).get(METADATA_KEY, ""), checkpoint)
            for name in stored.keys():  # noqa: SIM118
                checkpoint.tensors[name] = stored.get_tensor(name)
    except (SafetensorError, ValueError, OSError) as error:
        raise _damaged(path, error) from error


def _take_metadata(text: str | bytes, checkpoint: Checkpoint) -> None:
    try:
        stored = json.loads(text) if text else {}
    except ValueError:
        return  # somebody else's comment
    if not isinstance(stored, dict) or not isinstance(fields := stored.get(METADATA_KEY), dict):
        return
    size = fields.get("image_size", 1)
    if not isinstance(size, int) and not (isinstance(size, list) and [type(side) for side in size] == [int, int]):
        raise CheckpointError(f"{checkpoint.origin}: its metadata has image_size {size!r}; expected one or two ints")
    checkpoint.fields = fields


def _read_torch(path: Path, checkpoint: Checkpoint) -> None:
    try:  # Namespace: the training arguments that research code saves; a record of attributes, no code
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked.group(1)}" if asked else str(error).strip().splitlines()[-1]
        raise CheckpointError(
            f"{path} is no file of plain tensors ({reason}); running code from it is refused: save model.state_dict() "
            "with the program that made it"
        ) from error
    except Exception as error:  # whatever a parser of foreign bytes trips over
        raise _damaged(path, error) from error
    _unwrap(content, path, checkpoint)


def _unwrap(content: Any, path: Path, checkpoint: Checkpoint) -> None:
    """Take the tensors out of a state dict, or of the wrappers that training code put around it."""
    for _ in WRAPPERS:
        name = next((name for name in WRAPPERS if isinstance(content, dict) and _is_wrapper(content, name)), None)
        if name is None:
            break
        checkpoint.left += [str(key) for key in content if key != name]
        checkpoint.wrapper, content = name, content[name]
    if not isinstance(content, dict) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        keys = ", ".join(map(str, list(content)[:6])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} holds no state dict ({keys}); expected one, alone or under {', '.join(WRAPPERS)}: save "
            "model.state_dict()"
        )
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            checkpoint.left.append(str(name))
        elif value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{path}: {name} is sparse, quantised or without data; save plain dense tensors")
        elif value.nbytes > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name} repeats its numbers instead of holding them; save plain dense tensors"
            )
        else:
            checkpoint.tensors[str(name)] = value.detach()


def _is_wrapper(content: dict, name: str) -> bool:
    """Whether a state dict lies under a key, perhaps wrapped once more; tensors beside it are counters."""
    inner = content.get(name)
    return isinstance(inner, dict) and any(isinstance(value, dict | torch.Tensor) for value in inner.values())


def _strip_common_prefixes(checkpoint: Checkpoint) -> None:
    tensors = checkpoint.tensors
    for prefix in COMMON_PREFIXES * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    checkpoint.tensors = tensors
