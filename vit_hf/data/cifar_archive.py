"""Read the original CIFAR-10 and CIFAR-100 "python version" archives (Krizhevsky 2009) without trusting them.

The archives are pickles, written by Python 2 and NumPy 1. A pickle may call any function that it can name, so here it
can name five things only, none of them real: small stand-ins of this file take the place of NumPy's array
constructors, read the raw bytes and refuse the rest. Tar members are read in memory; nothing is unpacked.

Layout, for both: rows of 3072 uint8, three planes (R, G, B) of 32 x 32, row by row.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import tarfile
import zlib
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image

# The largest real member, CIFAR-100's `train`, has 155,249,918 bytes.
_MAX_MEMBER_BYTES = 512 * 2**20

_LAYOUTS: dict[str, dict[str, Any]] = {
    "cifar-10-batches-py": {
        "meta": "batches.meta",
        "splits": {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]},
        "labels": {"label": ("labels", "label_names")},
    },
    "cifar-100-python": {
        "meta": "meta",
        "splits": {"train": ["train"], "test": ["test"]},
        "labels": {
            "fine_label": ("fine_labels", "fine_label_names"),
            "coarse_label": ("coarse_labels", "coarse_label_names"),
        },
    },
}


def is_cifar(path: Path) -> bool:
    """Tell whether `path` is an extracted CIFAR folder or any tar file (the only tar files that are data sources)."""
    if path.is_dir():
        return (path / "batches.meta").is_file() or all((path / name).is_file() for name in ("meta", "train", "test"))
    return path.is_file() and path.name.lower().endswith((".tar.gz", ".tgz", ".tar"))


def load_cifar(path: Path) -> tuple[str, dict[str, Dataset]]:
    """Read an archive or an extracted folder.

    Returns:
        The data set's name ("cifar-10-batches-py" or "cifar-100-python") and its train and test splits, with the
        Hub's columns: `img`, `label`, or `img`, `fine_label`, `coarse_label`. Images are uncompressed PPM files in
        memory (185 MB for 60,000): lossless, and without the seconds that PNG encoding takes at every start.

    Raises:
        ValueError: not such an archive, damaged, or a pickle that asks for anything but arrays and plain values.
        FileNotFoundError: a file of the set is missing.
    """
    files = _folder_files(path) if path.is_dir() else _tar_files(path)
    name = "cifar-10-batches-py" if "batches.meta" in files else "cifar-100-python"
    layout = _LAYOUTS[name]
    if missing := [file for file in _members(layout) if file not in files]:
        raise FileNotFoundError(
            f"{path}: {', '.join(missing)} missing, found {', '.join(sorted(files)) or 'none of the files'}; expected "
            "the 'python version' of CIFAR-10 or CIFAR-100; download the archive again"
        )
    meta = _unpickle(files[layout["meta"]], where=f"{path}: {layout['meta']}")
    features = Features({"img": Image(decode=False)})
    names_of: dict[str, list[str]] = {}
    for column, (_, names_key) in layout["labels"].items():
        names_of[column] = [_text(name) for name in _field(meta, names_key, where=f"{path}: {layout['meta']}")]
        features[column] = ClassLabel(names=names_of[column])
    splits = {}
    for split, members in layout["splits"].items():
        columns: dict[str, list[Any]] = {column: [] for column in features}
        for member in members:
            where = f"{path}: {member}"
            _append_batch(columns, files[member], labels=layout["labels"], names=names_of, where=where)
        splits[split] = Dataset.from_dict(columns, features=features)
    return name, splits


def _append_batch(
    columns: dict[str, list[Any]], data: bytes, *, labels: dict[str, Any], names: dict[str, list[str]], where: str
) -> None:
    """Read one batch file and append its images and labels to `columns`; `names` are those of the classes."""
    batch = _unpickle(data, where=where)
    pixels = _field(batch, "data", where=where)
    pixels = pixels.array if isinstance(pixels, _Array) else None
    if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3072:
        found = "no array" if pixels is None else f"shape {pixels.shape}"
        raise ValueError(f"{where}: 'data' has {found}; expected uint8 of shape (rows, 3072); download it again")
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (rows, 32, 32, 3)
    columns["img"] += [{"bytes": b"P6\n32 32\n255\n" + image.tobytes(), "path": None} for image in images]
    for column, (key, _) in labels.items():
        values = _field(batch, key, where=where)
        if not isinstance(values, list) or len(values) != len(images) or not all(type(v) is int for v in values):
            raise ValueError(f"{where}: {key!r} is not a list of {len(images)} integers; download the archive again")
        row = next((row for row, value in enumerate(values) if not 0 <= value < len(names[column])), None)
        if row is not None:
            raise ValueError(
                f"{where}: row {row} has label {values[row]} in {key!r}; expected 0 to {len(names[column]) - 1} "
                f"({len(names[column])} names); download the archive again"
            )
        columns[column] += values


def _folder_files(path: Path) -> dict[str, bytes]:
    """The files of an extracted archive that belong to one of the two layouts."""
    found = [path / name for name in _member_names() if (path / name).is_file()]
    for file in found:
        _check_size(file.stat().st_size, where=str(file))
    return {file.name: file.read_bytes() for file in found}


def _tar_files(path: Path) -> dict[str, bytes]:
    """The same from a tar file, read in one pass; only `<archive folder>/<known name>` regular files are looked at."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                folder, _, name = member.name.removeprefix("./").partition("/")
                if folder in _LAYOUTS and name in _member_names() and member.isfile():
                    _check_size(member.size, where=f"{path}: {member.name}")
                    stream = archive.extractfile(member)
                    files[name] = stream.read() if stream is not None else b""
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(
            f"{path}: cannot be read as a tar archive ({error}); expected cifar-10-python.tar.gz or "
            "cifar-100-python.tar.gz; download it again"
        ) from error
    return files


def _member_names() -> set[str]:
    return {name for layout in _LAYOUTS.values() for name in _members(layout)}


def _members(layout: dict[str, Any]) -> list[str]:
    return [layout["meta"], *(file for group in layout["splits"].values() for file in group)]


def _check_size(size: int, *, where: str) -> None:
    if size > _MAX_MEMBER_BYTES:
        raise ValueError(f"{where}: {size:,} bytes; expected at most {_MAX_MEMBER_BYTES:,}; this is no CIFAR file")


def _field(record: Any, key: str, *, where: str) -> Any:
    if not isinstance(record, dict) or key not in record:
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{where}: no field {key!r}, found {found}; download the archive again")
    return record[key]


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


# The restricted unpickler. `BUILD` calls `__setstate__` on what is on the stack; each stand-in is a class that has one,
# so that no attribute of ours can be set from a pickle.


class _StandIn:
    """A name that a pickle may mention and hand on as an argument, without any power."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("unexpected state")


class _ArrayType(_StandIn):
    """In the place of `numpy.ndarray`."""


class _DType(_StandIn):
    """In the place of `numpy.dtype`: it keeps the type's code, "u1"."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = _text(code)

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment: nothing that matters for single bytes."""


class _Array(_StandIn):
    """In the place of `numpy.core.multiarray._reconstruct`: becomes an array when its state arrives."""

    array: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, column_major, raw = state
        if not isinstance(dtype, _DType) or dtype.code not in ("u1", "|u1"):
            raise pickle.UnpicklingError("an array that is not uint8")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if column_major else "C")


class _Latin1(_StandIn):
    """In the place of `_codecs.encode`, which Python 3 uses to write bytes into old protocols."""

    def __new__(cls, text: str, encoding: str) -> bytes:  # type: ignore[misc]
        """Encode as latin-1, the only encoding such a pickle names."""
        if encoding != "latin1":
            raise pickle.UnpicklingError(f"the encoding {encoding!r}")
        return text.encode("latin-1")


class _RefusedNameError(pickle.UnpicklingError):
    """The pickle names something outside the list."""


class _CifarUnpickler(pickle.Unpickler):
    """Resolves five names to stand-ins and refuses every other."""

    _stand_ins: ClassVar[dict[tuple[str, str], type]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _ArrayType,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _Latin1,
    }

    def find_class(self, module: str, name: str) -> type:
        """Called for every name in the pickle."""
        try:
            return self._stand_ins[module, name]
        except KeyError:
            raise _RefusedNameError(f"{module}.{name}") from None


def _unpickle(data: bytes, *, where: str) -> Any:
    """Read a pickle of plain values and uint8 arrays; keys come back as text, other Python 2 strings as bytes."""
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name in ("PUT", "LONG_BINPUT") and (argument or 0) > (position or 0):
                raise pickle.UnpicklingError("a memo index beyond the file")  # it would allocate that many entries
        record = _CifarUnpickler(io.BytesIO(data), encoding="bytes").load()
    except _RefusedNameError as error:
        raise ValueError(
            f"{where}: this pickle asks for {error}, which a CIFAR file never needs; refused, nothing was run; "
            "expected only arrays, lists, text and numbers; download the archive from its authors"
        ) from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(
            f"{where}: damaged file ({type(error).__name__}: {error}); expected a CIFAR batch; "
            "download the archive again"
        ) from error
    return {_text(key): value for key, value in record.items()} if isinstance(record, dict) else record
