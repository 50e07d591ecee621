"""Features on disk: one safetensors file for each model and split, found again by what the features depend on.

The folder is `features` in that of `vit_hf.data.cache_folder`. Files may be deleted at any time.

The name of a file is the SHA-256 of all that its content depends on: kind of feature, weights, config, image
processor, version of this package, precision, and the split with its fingerprint, which covers all labels and at most
1,000 pictures. The same is written into the file, with the SHA-256 of its tensors; a file that does not agree is
reported and computed again.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...data.cache_folder import REMEDY, cache_folder

logger = logging.getLogger(__name__)

_HEADER = "vit_hf.features"  # one entry: safetensors does not keep the order of several


def default_folder() -> Path:
    """Return the folder of the cache."""
    return cache_folder("features")


def check_folder(folder: Path) -> None:
    """Make the folder, so that what is wrong with it shows before hours of work.

    Raises:
        OSError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the cache of features {folder} cannot be made ({error}); {REMEDY}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"the cache of features {folder} cannot be written; {REMEDY}")


def features_path(folder: Path, about: dict[str, Any]) -> Path:
    """Return where the features that depend on `about` (JSON values) lie."""
    return folder / f"{hashlib.sha256(_canonical(about).encode()).hexdigest()}.safetensors"


def read_features(folder: Path, about: dict[str, Any]) -> dict[str, np.ndarray] | None:
    """Return `vectors` (N, W) float32 and `labels` (N,) int64, or None where there are none or the file is damaged.

    Args:
        folder: of the cache.
        about: what they depend on.
    """
    path = features_path(folder, about)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        logger.warning("%s cannot be read (%s): the features are computed again", path, error)
        return None
    n = about["data"]["n"]
    fits = (
        header.get("about") == json.loads(_canonical(about))
        and sorted(tensors) == ["labels", "vectors"]
        and header.get("sha256") == _digest(**tensors)
        and (tensors["labels"].dtype, tensors["labels"].shape) == (np.int64, (n,))
        and (tensors["vectors"].dtype, tensors["vectors"].ndim, len(tensors["vectors"])) == (np.float32, 2, n)
    )
    if not fits:
        logger.warning("%s does not hold what it should: the features are computed again", path)
        return None
    return tensors


def write_features(folder: Path, about: dict[str, Any], *, vectors: np.ndarray, labels: np.ndarray) -> None:
    """Write features beside their final name, then rename: a reader finds the whole file or none.

    Raises:
        OSError: the file cannot be written; what was there before is unchanged.
    """
    path = features_path(folder, about)
    header = {"about": json.loads(_canonical(about)), "sha256": _digest(vectors=vectors, labels=labels)}
    content = save({"vectors": vectors, "labels": labels}, metadata={_HEADER: json.dumps(header, sort_keys=True)})
    temporary = folder / f".{path.stem}-{os.getpid()}.new"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            f"{len(content):,} bytes of features cannot be written to {folder} ({error}); {REMEDY}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _canonical(about: dict[str, Any]) -> str:
    return json.dumps(about, sort_keys=True, default=str)


def _digest(*, vectors: np.ndarray, labels: np.ndarray) -> str:
    sha = hashlib.sha256(np.ascontiguousarray(vectors).data)
    sha.update(np.ascontiguousarray(labels).data)
    return sha.hexdigest()
