"""Data sets of the Hub by id, pinned to one commit, and without 23 seconds of retries when there is no network.

`datasets.load_dataset` alone is not enough: without a network it retries for 23 seconds; when anything fails it falls
back to whatever its cache holds under that name, at any revision, even to a local folder of the same name. So the
commit is looked up first (one request, no retry), asked for by its hash, and compared with what came back.
"""

from __future__ import annotations

import contextlib
import logging
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import datasets.packaged_modules
import huggingface_hub
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from datasets.naming import camelcase_to_snakecase
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

logger = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REQUEST_SECONDS = 10.0
# The HTTP library under huggingface_hub differs (httpx, httpx2), so its base error is taken from the Hub's own.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_NETWORK_ERRORS = (ConnectionError, TimeoutError, _HTTP_ERROR)


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a Hub id, owner/name or name."""
    return _ID.fullmatch(name) is not None


def load_hub(
    name: str, *, config_name: str | None, revision: str | None, streaming: bool
) -> tuple[dict[str, Any], str | None]:
    """Load all splits of a Hub data set.

    Returns:
        The splits, prepared rather than streamed when they come from the cache offline; and the commit they are from.

    Raises:
        FileNotFoundError: the Hub has no such data set or revision, or does not show it without a login.
        ConnectionError: the Hub is needed but cannot be reached, or an offline switch is set, and no copy is cached.
        ValueError: no such config, or nothing that `datasets` can read.
    """
    if name in {module.name for module in pkgutil.iter_modules(datasets.packaged_modules.__path__)}:
        raise ValueError(f"{name!r} is a file format of datasets, not a data set; give the folder or file itself")
    offline = datasets.config.HF_HUB_OFFLINE or huggingface_hub.is_offline_mode()
    reason = "an offline switch is set (HF_HUB_OFFLINE or HF_DATASETS_OFFLINE)"
    commit = None
    if not offline:
        try:
            commit = _find_commit(name, revision)
        except _NETWORK_ERRORS as error:
            offline, reason = True, f"{type(error).__name__}: {error}"
            logger.warning("%s: the Hub cannot be reached (%s); looking for a cached copy", name, reason)
    try:
        with _offline() if offline else contextlib.nullcontext():
            stream = streaming and not offline  # a cached copy is prepared, which lets its commit be checked
            splits = _load_cached(name, config_name=config_name, commit=revision) if offline else None
            if splits is None:
                splits = dict(datasets.load_dataset(name, config_name, revision=commit or revision, streaming=stream))
    except DatasetNotFoundError as error:
        raise FileNotFoundError(_not_found(name, revision)) from error
    except _NETWORK_ERRORS as error:
        reason = reason if offline else f"{type(error).__name__}: {error}"
        raise ConnectionError(
            f"data set {name!r} is not in the cache and the Hub cannot be reached: {reason}. On a machine with a "
            f"network run `hf download --repo-type dataset {name} --local-dir DIR`, copy DIR here and use `--data DIR`"
        ) from error
    except (ValueError, RuntimeError, FileNotFoundError, DatasetsError) as error:
        raise ValueError(
            f"data set {name!r} (config {config_name or 'default'}) cannot be loaded: {type(error).__name__}: {error}; "
            "expected images in Parquet or class folders; choose a config with --data.config_name NAME"
        ) from error
    return splits, _check_commit(splits, name=name, wanted=commit or revision) or commit


def _find_commit(name: str, revision: str | None) -> str | None:
    """The commit hash of a revision (the main branch by default), in one request without retries."""
    api = huggingface_hub.HfApi(endpoint=datasets.config.HF_ENDPOINT)
    try:
        return api.dataset_info(name, revision=revision, expand=["sha"], timeout=_REQUEST_SECONDS).sha
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise FileNotFoundError(_not_found(name, revision)) from error


def _load_cached(name: str, *, config_name: str | None, commit: str | None) -> dict[str, Any] | None:
    """The cached copy of one commit, or None; `datasets` alone takes the copy made last, whatever its commit."""
    if commit is None or not _COMMIT.fullmatch(commit):
        return None
    *owner, last = name.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE, "___".join([*owner, camelcase_to_snakecase(last)]))
    copies = sorted(root.glob(f"{config_name or '*'}/*/{commit}"))  # config / version / commit
    if len(copies) > 1:
        raise ValueError(f"several configs are cached: {', '.join(copy.parts[-3] for copy in copies)}")
    for copy in copies:
        config, version, _ = copy.parts[-3:]
        builder = Cache(repo_id=name, dataset_name=last, config_name=config, version=version, hash=commit)
        return dict(builder.as_dataset())
    return None


def _not_found(name: str, revision: str | None) -> str:
    at = f" at revision {revision!r}" if revision else ""
    return (
        f"{name!r}{at} is no path here, and the Hub shows no such data set; expected owner/name; check the spelling, "
        "log in with `hf auth login` if it is private or gated, or write a path as ./NAME"
    )


def _check_commit(splits: dict[str, Any], *, name: str, wanted: str | None) -> str | None:
    """The commit that a prepared (not streamed) copy comes from, by its cache folder; refuses any other than wanted."""
    files = [file["filename"] for split in splits.values() for file in getattr(split, "cache_files", [])]
    found = {Path(file).parent.name for file in files}
    if not found:
        return None
    commits = {part for part in found if _COMMIT.fullmatch(part)}
    if commits != found:
        raise ValueError(
            f"the cached copy of {name!r} in {Path(files[0]).parent} was made from a local folder of that name, "
            "not from the Hub; expected the Hub's; give the folder's path, or go online"
        )
    if wanted is not None and _COMMIT.fullmatch(wanted) and commits != {wanted}:
        raise ValueError(
            f"the cached copy of {name!r} is commit {', '.join(sorted(commits))}; expected {wanted}; go online to "
            "fetch it, or ask for the cached commit"
        )
    if wanted is not None and not _COMMIT.fullmatch(wanted):
        logger.warning(
            "%s: offline, so that revision %r cannot be checked; using commit %s", name, wanted, ", ".join(found)
        )
    if wanted is None:
        logger.warning("%s: offline; using commit %s, the copy in the cache made last", name, ", ".join(found))
    return commits.pop() if len(commits) == 1 else None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Make `datasets` look in its cache at once, as under HF_DATASETS_OFFLINE=1."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
