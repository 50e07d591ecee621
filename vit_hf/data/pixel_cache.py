"""The pixels of a split whose pictures all have one size: decoded once, kept on disk, mapped into memory.

A split is kept if its pictures, upright and in RGB (`to_rgb`), have one size and together at most 4 GiB. That depends
on the data only. Any other is read picture by picture, and so is a split with a picture that cannot be decoded: whoever
comes to it says which it is. Sixteen pictures from all over the split are compared first, so that a large one of many
sizes is neither read nor decoded.

A file is named by the SHA-256 of all that its content depends on: every encoded byte of every picture, in order (of
files their content, not name or time), the format of the file, the rules of `to_rgb`, and the versions of Pillow and
its JPEG decoder. It is laid out as safetensors: one tensor `pixels`, uint8 (N, C, h, w), and a note with the owner and
the SHA-256 of the pixels, which is checked whole at each opening: 0.09 s for the 154 MB of CIFAR-100 (SHA-256 with the
processor's own instructions, 1.8 GB/s; blake2b takes twice as long). A file that does not agree is reported and made
anew.

Shapes: N pictures, C = 3 channels, h x w pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import struct
import time
import weakref
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import torch
from datasets import Dataset
from datasets.utils import tqdm
from filelock import FileLock
from PIL import features
from safetensors import SafetensorError, safe_open
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .. import __version__
from .cache_folder import REMEDY, VARIABLE, cache_folder
from .images import read_rgb
from .workers import leave_requests_to_the_run

logger = logging.getLogger(__name__)

MAX_BYTES = 4 * 2**30
"""Decoded size up to which a split is kept."""
RGB_RULES = 1
"""Number of the rules by which `to_rgb` makes pixels; raised when any picture comes out otherwise."""
FORMAT = 1
"""Number of the layout of the file."""
_NOTE = "vit_hf.pixels"  # one entry: safetensors does not keep the order of several
_HEADER_BYTES = 4096  # a page, so that the pixels begin at one
_BLOCK_BYTES = 2**20  # of pixels that are decoded and written at once
_PROBES = 16  # pictures whose sizes are compared first
_ALONE_SECONDS = 2.0  # of decoding in this process, before others are started
_MAX_WORKERS = 16

_opened: weakref.WeakKeyDictionary[Dataset, dict[str, torch.Tensor | None]] = weakref.WeakKeyDictionary()


def cached_pixels(split: Dataset, image_column: str) -> torch.Tensor | None:
    """Return the pixels of a split, from its file, which is made if need be; or None where none is kept.

    The same tensor comes back as long as the split lives. Of several processes that ask for the same pixels one makes
    the file, with all cores, and the others wait.

    Args:
        split: a map-style split whose image column is left undecoded.
        image_column: its name.

    Returns:
        uint8 (N, C, h, w), mapped into memory; not to be written to. None also where there is no file and the folder is
        read-only, which a warning says.

    Raises:
        OSError: the file has to be made and cannot be written; nothing is left of it.
    """
    known = _opened.setdefault(split, {})
    if image_column not in known:
        known[image_column] = _find_or_make(split.select_columns([image_column]), image_column)
    return known[image_column]


def _find_or_make(images: Dataset, column: str) -> torch.Tensor | None:
    shape = _common_shape(images, column)
    if shape is None:
        return None
    digest = _encoded_digest(images, column)
    if digest is None:
        return None
    about = {
        "encoded": digest,
        "format": FORMAT,
        "rgb_rules": RGB_RULES,
        "pillow": PIL.__version__,
        "jpeg": features.version("libjpeg_turbo") or features.version("jpg"),
    }
    folder, name = cache_folder("pixels"), hashlib.sha256(_canonical(about).encode()).hexdigest()
    path = folder / f"{name}.safetensors"
    if (found := _open(path, about, shape, report=False)) is not None:
        return found
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        what = "the pictures are decoded one by one, each time; a folder that can be written, named in the environment"
        logger.warning("%s is read-only: %s variable %s, makes that faster", there, what, VARIABLE)
        return None
    with _lock(folder, name, needed=int(np.prod(shape))):
        if (found := _open(path, about, shape, report=True)) is not None:  # made while this process waited
            return found
        for left in folder.glob(f".{name}-*.new"):  # of a process that was killed: who lives holds the lock
            left.unlink(missing_ok=True)
        if not _make(path, images, column, about, shape):
            return None
    return _map(path, shape)


# ---------------------------------------------------------------------------------------------- what it depends on
def _common_shape(images: Dataset, column: str) -> tuple[int, int, int, int] | None:
    """Return (N, C, h, w) if pictures from all over the split have one size and all would not be too large."""
    shape: tuple[int, int, int, int] | None = None
    for row in np.unique(np.linspace(0, len(images) - 1, _PROBES).astype(int)).tolist():
        picture = _decode(images[row][column], row)
        if picture is None:
            return None
        found = (len(images), 3, *picture.shape[:2])
        if found != (shape or found) or np.prod(found, dtype=np.int64) > MAX_BYTES:
            return None
        shape = found
    return shape


def _decode(value: Any, row: int) -> np.ndarray | None:
    """Return a picture, uint8 (h, w, C), upright; None where it is none, which is said when its row is read."""
    try:
        return np.asarray(read_rgb(value, where=f"row {row}"))
    except (ValueError, OSError, Warning):
        return None


def _encoded_digest(images: Dataset, column: str) -> str | None:
    """SHA-256 of the lengths and the content of all encoded pictures; None where one is missing or not on this disk."""
    lengths, content = hashlib.sha256(), hashlib.sha256()
    with ThreadPoolExecutor() as pool:
        for batch in images.with_format("arrow").iter(1000):
            for part in batch.column(column).chunks:
                encoded, paths = part.field("bytes"), part.field("path")
                if part.null_count == 0 and encoded.null_count == 0 and isinstance(encoded, pa.BinaryArray):
                    _, places, data = encoded.buffers()
                    offsets = np.frombuffer(places, np.int32)[encoded.offset : encoded.offset + len(encoded) + 1]
                    lengths.update(np.diff(offsets).astype("<i8").tobytes())
                    content.update(memoryview(data)[offsets[0] : offsets[-1]])
                    continue
                values = zip(encoded.to_pylist(), paths.to_pylist(), strict=True)
                for one in pool.map(lambda value: value[0] if value[0] is not None else _read(value[1]), values):
                    if one is None:
                        return None
                    lengths.update(struct.pack("<q", len(one)))
                    content.update(one)
    return hashlib.sha256(lengths.digest() + content.digest()).hexdigest()


def _read(path: str | None) -> bytes | None:
    try:
        return Path(path).read_bytes() if path is not None and Path(path).is_file() else None  # no pipe is waited for
    except (OSError, ValueError):  # an hf:// address, a missing file, a NUL in its name
        return None


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


# ---------------------------------------------------------------------------------------------- the file
def _header(about: dict[str, Any], shape: tuple[int, ...], sha256: str) -> bytes:
    """Return the first `_HEADER_BYTES` of a file: the header of safetensors, filled up with spaces."""
    note = {"owner": f"vit_hf {__version__}", "about": about, "sha256": sha256}
    tensor = {"dtype": "U8", "shape": shape, "data_offsets": [0, int(np.prod(shape))]}
    header = json.dumps({"__metadata__": {_NOTE: _canonical(note)}, "pixels": tensor}).encode()
    return struct.pack("<Q", _HEADER_BYTES - 8) + header.ljust(_HEADER_BYTES - 8)


def _open(path: Path, about: dict[str, Any], shape: tuple[int, ...], *, report: bool) -> torch.Tensor | None:
    """Map the pixels of a file, or return None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    problem = "does not hold what it should"
    try:
        with safe_open(path, framework="numpy") as file:
            note = json.loads((file.metadata() or {}).get(_NOTE, "{}"))
            tensors = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if note.get("about") == about and tensors == {"pixels": shape} and _has_our_header(path):
            pixels = _map(path, shape)
            if hashlib.sha256(pixels.numpy().data).hexdigest() == note.get("sha256"):
                return pixels
    except (SafetensorError, ValueError, AttributeError, OSError) as error:
        problem = f"cannot be read ({error})"
    if report:
        logger.warning("%s %s: the pictures are decoded again", path, problem)
    return None


def _has_our_header(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == struct.pack("<Q", _HEADER_BYTES - 8)


def _map(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """Map a file privately: what would be written to the tensor would not reach the disk."""
    size = _HEADER_BYTES + int(np.prod(shape))
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[_HEADER_BYTES:].view(shape)


@contextlib.contextmanager
def _lock(folder: Path, name: str, *, needed: int) -> Iterator[None]:
    """Hold the lock of a file that is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f".{name}.lock")
        lock.acquire()
    except OSError as error:
        raise _cannot_be_written(folder, needed, error) from error
    try:
        yield
    finally:
        lock.release()


def _make(path: Path, images: Dataset, column: str, about: dict[str, Any], shape: tuple[int, int, int, int]) -> bool:
    """Decode all pictures into a file beside its final name, then rename; False where they turn out not to fit."""
    needed = _HEADER_BYTES + int(np.prod(shape))
    temporary = path.with_name(f".{path.stem}-{os.getpid()}.new")
    logger.info("decoding %s pictures once, into %s", f"{shape[0]:,}", path)
    try:
        if shutil.disk_usage(path.parent).free < needed:
            raise OSError(28, "No space left on device")
        with temporary.open("wb") as file, contextlib.closing(_blocks(images, column, shape)) as blocks:
            file.write(bytes(_HEADER_BYTES))
            sha = hashlib.sha256()
            for block in blocks:
                if block is None:
                    return False
                file.write(block.numpy().data)
                sha.update(block.numpy().data)
            file.seek(0)
            file.write(_header(about, shape, sha.hexdigest()))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_be_written(path.parent, needed, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _cannot_be_written(folder: Path, needed: int, error: OSError) -> OSError:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    return OSError(
        f"{needed:,} bytes of decoded pictures cannot be written to {folder}, where {free:,} bytes are free ({error}); "
        f"{REMEDY}"
    )


# ---------------------------------------------------------------------------------------------- decoding
class _Blocks(TorchDataset):
    """Decoded pictures by the number of a block; None where one cannot be decoded or has another size."""

    def __init__(self, images: Dataset, column: str, shape: tuple[int, int, int, int]):
        self.images, self.column, self.size = images, column, shape[2:]
        self.rows = max(_BLOCK_BYTES // int(np.prod(shape[1:])), 1)

    def __len__(self) -> int:
        return -(-len(self.images) // self.rows)

    def __getitem__(self, number: int) -> torch.Tensor | None:
        """Return uint8 (rows, C, h, w)."""
        block = []
        rows = range(number * self.rows, min((number + 1) * self.rows, len(self.images)))
        for row, value in zip(rows, self.images[rows.start : rows.stop][self.column], strict=True):
            picture = _decode(value, row)
            if picture is None or picture.shape[:2] != self.size:
                return None
            block.append(picture)
        return torch.from_numpy(np.stack(block)).permute(0, 3, 1, 2).contiguous()


def _blocks(
    images: Dataset, column: str, shape: tuple[int, int, int, int]
) -> Generator[torch.Tensor | None, None, None]:
    """Yield all blocks in order, decoded here for the first seconds, and by further processes where there are more."""
    blocks = _Blocks(images, column, shape)
    with tqdm(total=len(images), desc="decoding", unit=" pictures", delay=_ALONE_SECONDS, disable=None) as bar:
        started, number = time.perf_counter(), 0
        while number < len(blocks) and time.perf_counter() - started < _ALONE_SECONDS:
            yield blocks[number]
            bar.update(blocks.rows)
            number += 1
        if number < len(blocks):
            workers = min(os.cpu_count() or 1, _MAX_WORKERS, len(blocks) - number)
            rest = DataLoader(
                blocks,
                batch_size=None,
                sampler=range(number, len(blocks)),
                num_workers=workers,
                worker_init_fn=leave_requests_to_the_run,
            )
            for block in rest:
                yield block
                bar.update(blocks.rows)
