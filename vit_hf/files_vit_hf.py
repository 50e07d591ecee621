"""Files of a model folder or Hub repo: which there are, whether they are whole, and what they say of themselves.

Looked at before anything is built from them: the manifest (size and SHA-256 of each file), the headers of safetensors
files, the index of shards. Nothing here reads a tensor or runs what a file holds.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

WEIGHT_FILES = r"model(-\d{5}-of-\d{5})?(\.[\w-]+)?\.safetensors|model\.safetensors\.index(\.[\w-]+)?\.json"
FLOATS = ("F64", "F32", "F16", "BF16")  # what models of this family hold, as safetensors calls it
HEADER_BYTES = 4 << 20  # 1,024 blocks with all options take half of it; 47 MB cost safetensors 1.2 GB and 4 s
MANIFEST = "manifest.json"
MANIFEST_BYTES = 8 << 20  # some 60,000 files


# ---------------------------------------------------------------------------------------------- manifest
def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read the manifest of a model folder: size in bytes and SHA-256 of files, by their names in the folder.

    Raises:
        ValueError: it is no such table, larger than `MANIFEST_BYTES`, or has names that lead out of the folder.
        OSError: it cannot be read.
    """
    size = os.path.getsize(path)
    if size > MANIFEST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; expected at most {MANIFEST_BYTES:,}: remove or download it anew")
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({str(error)[:200]}); remove or download it anew") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path} holds a {type(entries).__name__}; expected an object of files: download it anew")
    for name, entry in entries.items():
        whole = (
            isinstance(entry, dict)
            and type(entry.get("bytes")) is int
            and entry["bytes"] >= 0
            and re.fullmatch("[0-9a-f]{64}", str(entry.get("sha256")))
        )
        if not is_inside(name) or not whole:
            raise ValueError(
                f"{path}: its entry {name[:80]!r} is {str(entry)[:80]}; expected the name of a file in the folder, "
                '{"bytes": size, "sha256": 64 digits}: remove or download it anew'
            )
    return entries


def is_inside(name: Any) -> bool:
    """Whether a text names a file in or below a folder on every system: no `..`, root, drive, backslash or NUL."""
    if not isinstance(name, str) or not name or len(name) > 1_000 or any(ord(c) < 32 or c in "\\:" for c in name):
        return False
    parts = name.split("/")
    return not PurePosixPath(name).is_absolute() and not any(part in ("", ".", "..") for part in parts)


def update_manifest(folder: str | os.PathLike, names: Iterable[str], *, stale: str = r"(?!)") -> None:
    """Write the entries of files that were just written into a folder's manifest, at once; other entries stay.

    Args:
        folder: the model folder.
        names: files in it.
        stale: pattern of names whose entries go, if they are not among `names`.
    """
    folder = Path(folder)
    entries: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError, ValueError):  # none yet, or one that says nothing
        entries = read_manifest(folder / MANIFEST)
    entries = {name: entry for name, entry in entries.items() if not re.fullmatch(stale, name)}
    for name in names:
        entries[name] = {"bytes": os.path.getsize(folder / name), "sha256": sha256(folder / name)}
    temporary = folder / f".{MANIFEST}"
    if os.path.lexists(temporary):
        temporary.unlink()
    with open(temporary, "x", encoding="utf-8") as file:  # a new file, never through a link
        file.write(json.dumps(dict(sorted(entries.items())), indent=2) + "\n")
    temporary.replace(folder / MANIFEST)


# ---------------------------------------------------------------------------------------------- weight files
Shapes = dict[str, tuple[int, ...]]


class WeightsError(OSError):
    """A file of weights is not there, or not whole."""


def read_header(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read the header of a safetensors file, tensors by name; no tensor is read or made.

    safetensors itself checks that the header is JSON, and that its tensors cover the file without holes or overlaps.
    It lets pass, and this refuses: a header of many megabytes, and names that occur twice.

    Raises:
        WeightsError: the file is no such file, whole; the message says what it is.
    """
    name = os.path.basename(path)
    if not os.path.isfile(path):
        raise WeightsError(f"{name} is {'a folder' if os.path.isdir(path) else 'missing'}")
    with open(path, "rb") as file:
        size, length = os.path.getsize(path), file.read(8)
        if size < 8:
            raise WeightsError(f"{name} has {size} bytes" if size else f"{name} is empty")
        if length.lstrip(b"\xef\xbb\xbf\r\n\t ").startswith(b"<"):
            raise WeightsError(f"{name} is a web page")
        if length == b"version ":
            raise WeightsError(f"{name} is a Git-LFS pointer")
        count = int.from_bytes(length, "little")
        if count > min(size - 8, HEADER_BYTES):
            raise WeightsError(
                f"{name} begins with {length!r}, a header of {count:,} bytes in a file of {size:,}; expected at most "
                f"{HEADER_BYTES:,}"
            )
        header = file.read(count)
    try:
        with safe_open(path, framework="pt"):
            table = json.loads(header, object_pairs_hook=_no_name_twice)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise WeightsError(f"{name}: {str(error)[:200]}") from error
    table.pop("__metadata__", None)
    return table


def read_shapes(path: str | os.PathLike) -> Shapes:
    """Read the names and shapes of the tensors in a safetensors file of this package.

    Raises:
        WeightsError: as for `read_header`; or a tensor holds no floating-point numbers.
    """
    name, table = os.path.basename(path), read_header(path)
    wrong = [f"{key[:80]} is {entry['dtype']}" for key, entry in table.items() if entry["dtype"] not in FLOATS]
    if wrong:
        raise WeightsError(f"{name}: {'; '.join(wrong[:8])}; expected floating-point numbers ({', '.join(FLOATS)})")
    return {key: tuple(entry["shape"]) for key, entry in table.items()}


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)[:80]!r} stands twice in the header")
    return table


def read_shard_index(path: str | os.PathLike) -> list[str]:
    """Read the names of the shards from the index of sharded weights.

    Raises:
        WeightsError: it is no such index, or names anything but files beside it.
    """
    name = os.path.basename(path)
    if (size := os.path.getsize(path)) > HEADER_BYTES:
        raise WeightsError(f"{name} has {size:,} bytes; expected at most {HEADER_BYTES:,}")
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{name} is not JSON ({str(error)[:200]})") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{name} holds a {type(content).__name__}; expected a JSON object")
    table = content.get("weight_map")
    shards = list({str(shard): shard for shard in table.values()}.values()) if isinstance(table, dict) else []
    outside = [shard for shard in shards if not is_inside(shard) or "/" in shard]
    if outside or not shards:
        what = f"shards outside its folder ({str(outside[:3])[:200]})" if outside else "no shards"
        raise WeightsError(f"{name} names {what}; expected names of files beside it")
    return sorted(shards)


def beside(path: str | os.PathLike, name: str, options: dict[str, Any]) -> str | None:
    """Find a file of a model folder or Hub repo (then download it), None if there is none."""
    return cached_file(path, name, _raise_exceptions_for_missing_entries=False, **options)


def commit_of(file: str | None) -> str | None:
    """Return the commit of a file in the Hub's cache, None for any other file."""
    found = None if file is None else re.search(r"/snapshots/([0-9a-f]{40})/", Path(file).as_posix())
    return found[1] if found else None


def find_weights(
    path: str | os.PathLike, variant: str | None, options: dict[str, Any], *, safe: bool
) -> dict[str, str]:
    """Find the weight files that transformers will load, download them from the Hub; name in the folder -> path.

    Raises:
        WeightsError: there are none; or the index names files that are not there, or not beside it.
    """
    middle = f".{variant}" if variant else ""
    single = f"model{middle}.safetensors" if safe else f"pytorch_model{middle}.bin"
    index = f"model.safetensors.index{middle}.json" if safe else f"pytorch_model.bin.index{middle}.json"
    folder = Path(path, options.get("subfolder", ""))
    parts = [file.name for file in folder.glob("shard-*.safetensors")]
    if parts:
        raise WeightsError(
            f"{parts[0]} is part of a distributed checkpoint, which transformers would load instead of {single}"
        )
    if (found := beside(path, single, options)) is not None:
        return {single: found}
    if (found := beside(path, index, options)) is None:
        raise WeightsError(f"{'it is a folder' if (folder / single).is_dir() else 'no file named'} {single}")
    files = {index: found}
    for shard in read_shard_index(found):
        if (place := beside(path, shard, options)) is None:
            raise WeightsError(f"{index} names {shard}, which is missing")
        if folder.is_dir() and leads_away(place):
            raise WeightsError(f"{shard} is a link to {os.path.realpath(place)}, outside of the folder")
        files[shard] = place
    return files


def shapes_in(files: dict[str, str]) -> Shapes:
    """Read the shapes of all tensors in safetensors files.

    Raises:
        WeightsError: a file cannot be read, or a tensor lies in another file than the index says.
    """
    shapes: Shapes = {}
    said: dict[str, str] | None = None
    for name, place in files.items():
        if name.endswith(".json"):
            said = json.loads(Path(place).read_text(encoding="utf-8"))["weight_map"]
            continue
        found = read_shapes(place)
        wrong = [key for key in found if key in shapes or (said is not None and said.get(key) != name)]
        if wrong:
            raise WeightsError(f"{name} holds {wrong[0][:80]!r}, which the index has not, or in another shard")
        shapes.update(found)
    lost = sorted((said or {}).keys() - shapes.keys())
    if lost:
        raise WeightsError(f"{said and said[lost[0]]} lacks {lost[0][:80]!r}, which the index has in it")
    return shapes


@contextlib.contextmanager
def readable(path: str | os.PathLike) -> Iterator[None]:
    """Say what an error in reading weights means, and what to do."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        local = os.path.isdir(path)
        if not local and not isinstance(error, SafetensorError | WeightsError):
            raise  # the Hub client's own words
        remedy = "save the model or copy its files anew" if local else "load once with force_download=True"
        raise OSError(
            f"the weights of {path} cannot be read ({error}); expected model.safetensors, or its shards and their "
            f"index, whole, and not a web page or Git-LFS pointer of that name: {remedy}"
        ) from error


def leads_away(file: str | os.PathLike) -> bool:
    """Whether a file is a link to another folder; those from a snapshot of the Hub's cache to its blobs are none."""
    folder, target = Path(file).absolute().parent, Path(os.path.realpath(file))
    home = folder
    if "snapshots" in folder.parts:
        home = Path(*folder.parts[: len(folder.parts) - folder.parts[::-1].index("snapshots") - 1])
    return Path(os.path.realpath(home)) not in target.parents


def check_against_manifest(files: dict[str, str], manifest: str) -> None:
    """Compare files with what a manifest says of them; files that it does not list are not compared.

    Args:
        files: name in the manifest -> path.
        manifest: path of the manifest.

    Raises:
        OSError: a file has another size or SHA-256; or the manifest is no such table.
    """
    try:
        entries = read_manifest(manifest)
    except ValueError as error:
        raise OSError(str(error)) from error
    for name in sorted(files.keys() & entries.keys()):
        found: dict[str, Any] = {"bytes": os.path.getsize(files[name])}
        if found["bytes"] == entries[name]["bytes"]:
            found["sha256"] = sha256(files[name])
        if found.items() <= entries[name].items():
            continue
        key = list(found)[-1]
        raise OSError(
            f"{files[name]} is not what {MANIFEST} beside it says: {key} {found[key]}, expected {entries[name][key]}. "
            "It was damaged or cut off: load once with force_download=True, or copy it anew; if it was replaced on "
            f"purpose, remove its entry from {MANIFEST}"
        )
