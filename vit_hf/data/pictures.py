"""The pictures of a run: which are trained on, validated on and tested on."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from datasets import Dataset, IterableDataset

from .bad_images import BAD, POLICIES
from .images import read_rgb
from .order import seed_from
from .sources import ImageSource, fingerprint, load_source, split_off

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DataFields:
    """Which pictures are learned from, and which are held back."""

    source: str
    """What `load_source` takes: a folder, Parquet, an archive, a Hub id, or "digits"."""
    image_column: str | None = None
    """Column of the pictures, where the feature types do not settle it."""
    label_column: str | None = None
    """Column of the labels, likewise."""
    config_name: str | None = None
    """Configuration of a Hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    streaming: bool = False
    """Read while training instead of preparing first; needs optimization.max_steps."""
    train_split: str | None = None
    """Name of the split to train on; None finds it."""
    test_split: str | None = None
    """Name of the split for the final score; None finds test, else validation."""
    validation_fraction: float = 0.0
    """Share of the training split that is held out, stratified, for the score after each epoch and the choice of the
    best weights; 0 uses the data's own validation split, or none."""
    max_train_images: int | None = None
    """Train on this many pictures only, each class by its share; for trying things out."""
    max_test_images: int | None = None
    """Score this many test pictures only, each class by its share; for trying things out."""
    on_bad_image: str = "raise"
    """What becomes of a picture that cannot be decoded: "raise" ends the run with an error that names it, "skip" takes
    the next row in its place in training and leaves it out of a score, and records it; more than 1% is an error too."""


Split: TypeAlias = Dataset | IterableDataset


class Columns(TypedDict):
    """Names of the columns of a split, as keywords."""

    image_column: str
    label_column: str


@dataclass(frozen=True)
class Pictures:
    """The splits of a run; `validation` is None where nothing is held out."""

    source: ImageSource
    train: Split
    validation: Split | None
    test: Split
    test_name: str
    skip_bad: bool = False
    """Whether pictures that cannot be decoded are passed over."""

    @property
    def columns(self) -> Columns:
        """Names of the image and label columns, as keywords."""
        return {"image_column": self.source.image_column, "label_column": self.source.label_column}

    @property
    def id2label(self) -> dict[int, str]:
        """Class names by index."""
        return dict(enumerate(self.source.label_names))

    def describe(self) -> dict[str, Any]:
        """Return sizes and content fingerprints of the splits, for the run's record."""
        splits = {"train": self.train, "validation": self.validation, self.test_name: self.test}
        return {
            "source": self.source.name,
            "kind": self.source.kind,
            "revision": self.source.revision,
            "num_labels": len(self.source.label_names),
            "splits": {
                name: {"n": num_rows(split), "sha256": fingerprint(split, **self.columns)}
                for name, split in splits.items()
                if split is not None
            },
        }


def num_rows(split: Split | None) -> int | None:
    """Number of rows, or None where streaming does not tell."""
    return len(split) if isinstance(split, Dataset) else None


def open_pictures(data: DataFields) -> Pictures:
    """Load the source and decide what is trained on, validated on and tested on.

    Without a test split the training split is cut 80/20, always the same way. Raises what `load_source` raises, and
    ValueError when the test split is the one that is trained on, or `on_bad_image` is no word for what to do.
    """
    if data.on_bad_image not in POLICIES:
        raise ValueError(f"data.on_bad_image is {data.on_bad_image!r}; expected one of {', '.join(POLICIES)}")
    skip_bad = data.on_bad_image == "skip"
    source = load_source(
        data.source,
        image_column=data.image_column,
        label_column=data.label_column,
        config_name=data.config_name,
        revision=data.revision,
        streaming=data.streaming,
    )
    label = source.label_column
    train = whole = source.split(data.train_split) if data.train_split else source.train
    test_name = data.test_split or source.find("test")
    if test_name is None:
        logger.warning("%s has no test split: 20%% of its training pictures are held out for it", source.name)
        train, test = split_off(train, label, 0.2, seed=0)
        test_name = "held out of train"
    else:
        test = source.split(test_name)
        if test is whole:
            raise ValueError(
                f"{source.name}: split {test_name!r} is both trained and tested on; expected two splits: name others "
                "with data.train_split and data.test_split"
            )
    validation: Split | None = None
    if data.validation_fraction:
        train, validation = split_off(train, label, data.validation_fraction, seed=1)
    elif source.find("validation") is not None and source.validation is not test and source.validation is not whole:
        validation = source.validation
    train = _shorten(train, label, data.max_train_images)
    test = _shorten(test, label, data.max_test_images)
    return Pictures(
        source=source, train=train, validation=validation, test=test, test_name=test_name, skip_bad=skip_bad
    )


def _shorten(split: Split, label_column: str, limit: int | None) -> Split:
    """Keep `limit` rows, each class by its share, always the same ones; of a streamed split the first ones."""
    if limit is None:
        return split
    if isinstance(split, IterableDataset):
        return split.take(limit)
    by_class: dict[int, list[int]] = {}
    for row, label in enumerate(split[label_column]):
        by_class.setdefault(label, []).append(row)
    shares = [
        ((place + 0.5) / len(rows), row)
        for rows in by_class.values()
        for place, row in enumerate(sorted(rows, key=lambda row: seed_from("shorten", row)))
    ]
    return split.select(sorted(row for _, row in sorted(shares)[:limit]))


def save_examples(pictures: Pictures, folder: Path, count: int = 4) -> list[Path]:
    """Save the first test pictures as PNG, named by row and class, so that there is something to try a model on.

    A picture that cannot be decoded, which a run may pass over, is left out.
    """
    assert isinstance(pictures.test, Dataset)
    folder.mkdir(exist_ok=True)
    paths = []
    for row in range(min(count, len(pictures.test))):
        sample = pictures.test[row]
        try:
            picture = read_rgb(sample[pictures.source.image_column], where=f"row {row}")
        except BAD:
            continue
        name = re.sub(r"[^\w.-]+", "_", pictures.id2label[sample[pictures.source.label_column]])  # it may hold a slash
        paths.append(folder / f"{pictures.test_name}_{row}_is_{name}.png")
        picture.save(paths[-1])
    return paths
