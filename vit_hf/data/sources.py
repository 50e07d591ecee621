"""Where images and labels come from: one call for the Hub, folders, Parquet, CIFAR archives and the bundled digits.

Whatever the origin, the result is the same: checked splits whose image column is left undecoded (rows hold
`{"bytes", "path"}`, read by `vit_hf.data.images.read_image`) and whose label column is a `ClassLabel`. A split without
any label (all missing or -1, as on ImageNet's test split) is left out with a log line, and named when it is asked for.

Reading itself is in `image_folder`, `cifar_archive` and `hub_source`; finding and checking columns in `columns`.
Parquet goes through `datasets`' cache, which reads a file again when its modification time has changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import datasets
import numpy as np
import PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset
from datasets.exceptions import DatasetsError

from .cifar_archive import is_cifar, load_cifar
from .columns import check_labels, find_image_column, find_label_column, is_unlabelled, name_labels
from .hub_source import is_hub_id, load_hub
from .image_folder import TEST_NAMES, TRAIN_NAMES, VALIDATION_NAMES, load_image_folder
from .images import SUFFIXES
from .splits import fingerprint, split_off

__all__ = ["ImageSource", "fingerprint", "load_source", "read_source", "split_off"]

logger = logging.getLogger(__name__)

Kind = Literal["digits", "cifar", "saved", "parquet", "folder", "hub"]

_MEANINGS = (TRAIN_NAMES, VALIDATION_NAMES, TEST_NAMES)
_ROLES = {"train": TRAIN_NAMES, "validation": VALIDATION_NAMES, "test": TEST_NAMES + VALIDATION_NAMES}
_ACCEPTED = (
    "a folder of class folders, a Parquet file or a folder of them, a save_to_disk folder, cifar-10-python.tar.gz or "
    "cifar-100-python.tar.gz (or their extracted folders), 'digits', or a Hub id"
)


@dataclass(frozen=True)
class ImageSource:
    """Labelled images in named splits."""

    name: str
    """Hub id, "digits", or the last part of the path: fit for a card, never a whole path."""
    kind: Kind
    """How it was read."""
    splits: dict[str, Dataset | IterableDataset]
    """By the names the data uses; images undecoded, labels a ClassLabel."""
    image_column: str
    label_column: str
    label_names: tuple[str, ...]
    """In the order of the label numbers."""
    unlabelled: tuple[str, ...] = ()
    """Splits that were left out because no row has a label."""
    revision: str | None = None
    """The commit on the Hub, where there is one."""

    def find(self, role: str) -> str | None:
        """Name of the split that plays "train", "validation" or "test" (validation where there is no test), or None."""
        return next((name for name in _ROLES[role] if name in self.splits), None)

    def split(self, name: str) -> Dataset | IterableDataset:
        """The split of that name, or of a name that means the same (val, validation); ValueError listing the splits.

        Never a split of another meaning: "test" is not answered with the validation split, as `test` is.
        """
        if name in self.splits:
            return self.splits[name]
        alike: tuple[str, ...] = next((names for names in _MEANINGS if name in names), ())
        found = next((other for other in alike if other in self.splits), None)
        return self.splits[found] if found else self._no_split(name)

    @property
    def train(self) -> Dataset | IterableDataset:
        """The split to train on."""
        return self._play("train")

    @property
    def validation(self) -> Dataset | IterableDataset:
        """The validation split (also called val, valid or dev); ValueError when there is none."""
        return self._play("validation")

    @property
    def test(self) -> Dataset | IterableDataset:
        """The split to report on: test, else validation; ValueError when there is neither."""
        return self._play("test")

    def _play(self, role: str) -> Dataset | IterableDataset:
        found = self.find(role)
        return self.splits[found] if found else self._no_split(role)

    def _no_split(self, name: str) -> NoReturn:
        unlabelled = f" ({', '.join(self.unlabelled)}: left out, no labels)" if self.unlabelled else ""
        raise ValueError(
            f"{self.name}: no split {name!r}; expected one of {sorted(self.splits)}{unlabelled}; name one of these, or "
            "hold part of one out"
        )


def load_source(
    source: str | Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> ImageSource:
    """Load labelled images from any of the places that the module's text names.

    Args:
        source: "digits"; a path (it exists, begins with ".", "/" or "~", ends like a file of data, or has more parts
            than owner/name); otherwise a Hub id. An existing path wins over a Hub id of the same name.
        image_column, label_column: needed only where the feature types do not settle it (see `columns`).
        config_name: configuration, for Hub ids and folders in the Hub's layout.
        revision: branch, tag or commit, for Hub ids.
        streaming: read while iterating (IterableDataset) instead of preparing; labels are then checked by the reader.

    Raises:
        FileNotFoundError: no such path or Hub data set.
        ConnectionError: the Hub is needed and cannot be reached, or an offline switch is set.
        ValueError: the data is not what it should be: columns, labels, splits, damaged files.
    """
    found = read_source(source, config_name=config_name, revision=revision, streaming=streaming)
    with progress_bars_on_terminals_only():
        return _finish(found, image_column=image_column, label_column=label_column, streaming=streaming)


def read_source(
    source: str | Path, *, config_name: str | None = None, revision: str | None = None, streaming: bool = False
) -> ImageSource:
    """Read all splits as they are, for data whose labels are still to be made: columns neither found nor checked.

    Arguments and errors as in `load_source`. The result's image and label columns and label names are empty.
    """
    kind, name, path = _identify(source)
    if config_name is not None and kind not in ("hub", "parquet"):
        raise ValueError(f"{name}: there is no config {config_name!r} in a {kind} source; drop --data.config_name")
    if revision is not None and kind != "hub":
        raise ValueError(f"{name}: there is no revision {revision!r} in a local {kind} source; drop --data.revision")
    splits: dict[str, Any]
    unlabelled: tuple[str, ...] = ()
    commit: str | None = None
    with progress_bars_on_terminals_only():
        if kind == "digits":
            splits = _load_digits()
        elif kind == "cifar":
            name, splits = load_cifar(path)
        elif kind == "folder":
            splits, unlabelled = load_image_folder(path)
        elif kind == "saved":
            splits = _load_saved(path)
        elif kind == "parquet":
            splits = _load_parquet(path, config_name=config_name, streaming=streaming)
        else:
            splits, commit = load_hub(name, config_name=config_name, revision=revision, streaming=streaming)
    return ImageSource(
        name=name,
        kind=kind,
        splits=splits,
        image_column="",
        label_column="",
        label_names=(),
        unlabelled=unlabelled,
        revision=commit,
    )


def _identify(source: str | Path) -> tuple[Kind, str, Path]:
    """Decide what `source` is, from its form and from what lies at that path; nothing is read."""
    text = str(source)
    path = Path(text).expanduser()
    if text == "digits" and not isinstance(source, Path):
        return "digits", text, path
    looks_like_path = isinstance(source, Path) or text.startswith((".", "/", "~")) or not is_hub_id(text)
    looks_like_path = looks_like_path or text.lower().endswith((".parquet", ".gz", ".tgz", ".tar", ".zip", *SUFFIXES))
    if not path.exists():
        if not looks_like_path:
            return "hub", text, path
        raise FileNotFoundError(f"no data at {path.absolute()}; expected {_ACCEPTED}; check the path")
    return _identify_path(path), path.resolve().name, path


def _identify_path(path: Path) -> Kind:
    if is_cifar(path):
        return "cifar"
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return "parquet"
        raise ValueError(f"{path}: a file of kind {path.suffix or 'unknown'!r}; expected {_ACCEPTED}; unpack archives")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "saved"
    if _has_hub_layout(path) or any(any(path.glob(pattern)) for pattern in ("*.parquet", "data/*.parquet")):
        return "parquet"
    for _, folders, files in os.walk(path, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        endings = {os.path.splitext(name)[1].lower() for name in files if not name.startswith(".")}
        if ".parquet" in endings:
            return "parquet"
        if endings & SUFFIXES:
            return "folder"
    raise ValueError(f"{path}: found neither images nor Parquet files; expected {_ACCEPTED}; check the path")


def _has_hub_layout(path: Path) -> bool:
    """Whether README.md begins with YAML that lists `configs` (their files may be of any format)."""
    readme = path / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return re.match(r"---\s*\n(?:(?!---).*\n)*?configs:", text) is not None


def _load_digits() -> dict[str, Dataset]:
    """scikit-learn's 1,797 handwritten digits as 8x8 greyscale PNG; 80/20 by `split_off` with seed 0, always the same.

    The 17 levels 0..16 become round(level * 255 / 16), so 0 -> 0 and 16 -> 255; level = round(value * 16 / 255) undoes
    it. The PNG is uncompressed, so that its bytes, and the fingerprint, do not depend on the zlib in use.
    """
    from sklearn.datasets import load_digits  # a second of imports that no other source needs

    bunch = load_digits()
    pixels = (bunch.images.astype(np.int64) * 255 + 8) // 16  # (1797, 8, 8)
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    images = [{"bytes": _png(image), "path": None} for image in pixels.astype(np.uint8)]
    whole = Dataset.from_dict({"image": images, "label": bunch.target.tolist()}, features=features)
    train, test = split_off(whole, "label", 0.2, seed=0)
    return {"train": train, "test": test}


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
    return buffer.getvalue()


def _load_saved(path: Path) -> dict[str, Any]:
    """A folder written by `save_to_disk`; a lone `Dataset` becomes the split it says it is, or train."""
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # damaged Arrow or JSON files raise nearly anything
        raise ValueError(
            f"{path}: {type(error).__name__}: {error}; expected a folder written by save_to_disk, each "
            "split with at least 1 row; save it again"
        ) from error
    if isinstance(loaded, DatasetDict):
        return dict(loaded)
    return {str(loaded.split or "train"): loaded}


def _load_parquet(path: Path, *, config_name: str | None, streaming: bool) -> dict[str, Any]:
    """One Parquet file (split train), or a folder with Parquet files or a Hub README that lists its files."""
    if path.is_dir() and glob.has_magic(str(path)):
        raise ValueError(f"{path}: datasets cannot open folders with any of *?[] in their path; rename the folder")
    try:
        if path.is_file():
            files = glob.escape(str(path))
            loaded = datasets.load_dataset("parquet", config_name, data_files=files, streaming=streaming)
        else:
            loaded = datasets.load_dataset(str(path), config_name, streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"{path}: {type(cause).__name__}: {cause}; expected readable Parquet files, each split with "
            "at least 1 row; write them again, or choose a config with --data.config_name NAME"
        ) from error
    return dict(loaded)


def _finish(source: ImageSource, *, image_column: str | None, label_column: str | None, streaming: bool) -> ImageSource:
    """Find the columns, leave images undecoded, name and check the labels."""
    name, splits = source.name, source.splits
    for split, dataset in splits.items():
        if isinstance(dataset, Dataset) and len(dataset) == 0:
            raise ValueError(f"{name}: split {split} has 0 rows; expected at least 1; add images or remove the split")
    first = source.find("train") or next(iter(splits))
    features = _features(splits[first], where=f"{name}, split {first}")
    image_column = find_image_column(features, where=name, wanted=image_column)
    label_column = find_label_column(features, where=name, wanted=label_column)
    for split, dataset in splits.items():
        where = f"{name}, split {split}"
        find_image_column(_features(dataset, where=where), where=where, wanted=image_column)
        find_label_column(_features(dataset, where=where), where=where, wanted=label_column)
    splits = {split: dataset.cast_column(image_column, Image(decode=False)) for split, dataset in splits.items()}
    unlabelled = source.unlabelled
    if all(isinstance(dataset, Dataset) for dataset in splits.values()):
        unlabelled += tuple(split for split, dataset in splits.items() if is_unlabelled(dataset, label_column))
        splits = {split: dataset for split, dataset in splits.items() if split not in unlabelled}
        if not splits:
            raise ValueError(f"{name}: no split has labels in column {label_column!r}; expected labels on one at least")
        train = next((split for split in TRAIN_NAMES if split in splits), None)
        splits = name_labels(splits, label_column, where=name, train=train)
        label_names = check_labels(splits, label_column, where=name)
        if streaming:
            splits = {split: dataset.to_iterable_dataset() for split, dataset in splits.items()}
    else:
        feature = features[label_column]
        if not isinstance(feature, ClassLabel):
            raise ValueError(
                f"{name}: column {label_column!r} has no names, which a streamed set cannot be searched for; expected "
                "a ClassLabel; load it without streaming"
            )
        label_names = tuple(feature.names)
    for split in unlabelled:
        logger.warning("%s: split %s is left out: none of its rows has a label", name, split)
    return dataclasses.replace(
        source,
        splits=splits,
        image_column=image_column,
        label_column=label_column,
        label_names=label_names,
        unlabelled=unlabelled,
    )


def _features(dataset: Dataset | IterableDataset, *, where: str) -> Features:
    """The columns and types, which a streamed set may know only after its first rows."""
    features = dataset.features
    if features is None:
        features = dataset._resolve_features().features
    if features is None:
        raise ValueError(f"{where}: the columns are unknown while streaming; load it without streaming")
    return features


@contextlib.contextmanager
def progress_bars_on_terminals_only() -> Iterator[None]:
    """Keep `datasets`' progress bars out of logs and tests; the user's own setting wins."""
    quiet = not (
        sys.stderr.isatty()
        or datasets.are_progress_bars_disabled()
        or "HF_DATASETS_DISABLE_PROGRESS_BARS" in os.environ
    )
    if quiet:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            datasets.enable_progress_bars()
