"""The reassessed labels of ImageNet's validation pictures (ReaL; Beyer et al. 2020, arXiv 2006.07159), from a file.

https://github.com/google-research/reassessed-imagenet publishes them as real.json: a list of 50,000 lists of class
indices in [0, 1000), in the order of the pictures' numbers, ILSVRC2012_val_00000001.JPEG first; a list is empty where
the picture has no label (3,163 of them). They say something of ImageNet-1k's validation split in just that order and
with its classes in the usual order (by WordNet id); nothing in the file can tell whether other data are in that order.
"""

import json
from pathlib import Path
from typing import Any

_EXPECTED = "expected the real.json of https://github.com/google-research/reassessed-imagenet, or a file of its form"


def read_real_labels(path: str | Path, *, num_samples: int, num_classes: int) -> list[tuple[int, ...]]:
    """Read the labels of each sample of a split.

    Args:
        path: a JSON file, a list of lists of class indices.
        num_samples: of the split; the file has as many entries, in the split's order.
        num_classes: L.

    Returns:
        The class indices of each sample, in [0, L); an empty tuple where there are none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, not a list of lists of whole numbers, has another length, or names other classes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}; {_EXPECTED}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not JSON
        raise ValueError(f"{path} is not JSON ({error}); {_EXPECTED}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds a {type(entries).__name__}, not a list of lists; {_EXPECTED}")
    if len(entries) != num_samples:
        raise ValueError(
            f"{path} has labels of {len(entries):,} pictures, the split has {num_samples:,}; they belong to all of "
            "ImageNet-1k's validation split, in the order of the pictures' numbers: score all of it"
        )
    return [_checked(entry, f"{path}, picture {place}", num_classes) for place, entry in enumerate(entries)]


def _checked(entry: Any, where: str, num_classes: int) -> tuple[int, ...]:
    if not isinstance(entry, list) or not all(type(label) is int for label in entry):
        raise ValueError(f"{where}, counted from 0: {str(entry)[:80]} is not a list of class indices; {_EXPECTED}")
    outside = [label for label in entry if not 0 <= label < num_classes]
    if outside:
        raise ValueError(
            f"{where}, counted from 0, has label {outside[0]}; expected 0 to {num_classes - 1}: the file and the model "
            "are to have the same classes"
        )
    return tuple(entry)
