"""Push a prepared image set to a data set repo of the Hub, checked, described, and loadable by its id.

`datasets` writes the Parquet files and their features (`DatasetDict.push_to_hub`). It would also push pictures that
cannot be read, over whatever another data set has in the repo, with a card without a word. So here every picture is
decoded first, the repo is looked at, and the card and the record go up before the data: a push that was broken off
anywhere is finished by the same command, and one that is complete is not pushed again.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from datasets import Dataset, DatasetDict, Image
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..data.hub_source import is_hub_id
from ..data.sources import ImageSource, load_source, progress_bars_on_terminals_only
from .attempts import limit_silence, retried
from .data_card import render_data_card
from .data_record import content_of, describe_source

RECORD = "statistics.json"
_CARD = "README.md"
_WRITTEN_BY_DATASETS = ("dataset_info", "configs")
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of httpx or httpx2, whichever the client uses


@dataclass(frozen=True)
class PushedData:
    """Where the data set is now."""

    url: str
    commit: str
    private: bool
    is_new: bool
    """False where the Hub held exactly this already: nothing was sent."""
    record: dict[str, Any]
    """What its card says."""


@dataclass(frozen=True)
class _There:
    """What the Hub holds at the revision that is pushed to."""

    private: bool | None = None
    """None where there is no repo."""
    commit: str | None = None
    """None where there is no such branch."""
    files: tuple[str, ...] = ()
    record: dict[str, Any] | None = None
    """Of an earlier push by this module."""
    blocks: dict[str, Any] | None = None
    """What `datasets` wrote into the card's metadata together with the data; None where the data are not there."""


def push_data(
    source: str | Path | ImageSource,
    repo: str,
    *,
    private: bool = True,
    license: str | None = None,
    revision: str | None = None,
    replace: bool = False,
    reading: Mapping[str, Any] | None = None,
) -> PushedData:
    """Push an image set to a data set repo as Parquet, with its features, label names, splits and card.

    Args:
        source: what `load_source` reads, or what it returned; not streamed.
        repo: owner/name; made where there is none.
        private: of a new repo; one that exists keeps what it has.
        license: the Hub's name of a licence, such as "cc-by-4.0".
        revision: branch to push to, made from main where there is none (default: main).
        replace: push also where the repo holds other files; its Parquet files are then replaced.
        reading: further arguments of `load_source`.

    Raises:
        ValueError: no owner/name, damaged pictures (all of them, before anything is sent), a streamed source.
        FileExistsError: the repo holds something else, and `replace` is not set.
        PermissionError: no token, one that the Hub does not accept or that may not write there, or a public repo where
            a private one is meant.
        ConnectionError: the Hub cannot be reached, or answers with another error; the same call again goes on.
    """
    if not is_hub_id(repo) or "/" not in repo:
        raise ValueError(f"{repo!r} is no name of a repo; expected OWNER/NAME, such as your-name/flowers")
    api = HfApi(endpoint=datasets.config.HF_ENDPOINT, library_name="vit_hf")
    with _clear_errors(repo):
        if huggingface_hub.get_token() is None:
            raise PermissionError("there is no token of the Hub; log in with `hf auth login`, or set HF_TOKEN")
        retried(api.whoami, "asking whose token it is")  # one that is refused makes a private repo look like none
        there = retried(lambda: _look(api, repo, revision), f"looking at {repo}")
    if private and there.private is False:
        raise PermissionError(f"{repo} is public; push there with --public, or choose another name")
    if there.record is None and not replace:
        _refuse_others(there, repo)
    if not isinstance(source, ImageSource):
        source = load_source(_absolute(source), **(reading or {}))
    with progress_bars_on_terminals_only():
        record = describe_source(source, license=license)
    same = there.record is not None and content_of(there.record) == content_of(record)
    if not same and not replace:
        _refuse_others(there, repo)
    url, is_private = f"{api.endpoint}/datasets/{repo}", private if there.private is None else there.private
    if there.record == record and there.commit is not None and there.blocks is not None:
        return PushedData(url=url, commit=there.commit, private=is_private, is_new=False, record=record)
    with _clear_errors(repo):
        limit_silence()
        if there.private is None:
            retried(
                lambda: api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True), f"making {repo}"
            )
        if there.commit is None and revision is not None:
            branch = revision
            retried(
                lambda: api.create_branch(repo, branch=branch, repo_type="dataset", exist_ok=True),
                f"making the branch {branch}",
            )
        kept = there.blocks if same else None
        commit = _push_card(api, repo, revision, record, kept)
        if kept is None:
            with progress_bars_on_terminals_only(), _quiet_datasets():
                splits, message = _prepare(source, record["columns"]), "Upload the data"
                commit = splits.push_to_hub(repo, private=private, revision=revision, commit_message=message).oid
    return PushedData(url=url, commit=commit, private=is_private, is_new=True, record=record)


def _look(api: HfApi, repo: str, revision: str | None) -> _There:
    """See what there is, at one commit."""
    try:
        info = api.dataset_info(repo)
        private = bool(info.private)
        if revision is not None:
            info = api.dataset_info(repo, revision=revision)
    except RevisionNotFoundError:
        return _There(private=private)
    except RepositoryNotFoundError:
        return _There()
    files = tuple(sorted(file.rfilename for file in info.siblings or () if file.rfilename != ".gitattributes"))

    def read(name: str) -> str:
        path = api.hf_hub_download(repo, name, repo_type="dataset", revision=info.sha)
        return Path(path).read_text(encoding="utf-8")

    record = _read_record(read(RECORD)) if RECORD in files else None
    blocks = _read_blocks(read(_CARD)) if record is not None and _CARD in files else None
    return _There(private=private, commit=info.sha, files=files, record=record, blocks=blocks)


def _read_record(text: str) -> dict[str, Any] | None:
    """A record that this module wrote; None for any other file of that name."""
    try:
        record = json.loads(text)
        content_of(record)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record


def _read_blocks(text: str) -> dict[str, Any] | None:
    """What `datasets` wrote into a card's metadata; None where any of it is missing, or the card is damaged."""
    try:
        metadata = DatasetCard(text).data.to_dict()
    except (ValueError, yaml.YAMLError):
        return None
    blocks = {name: metadata[name] for name in _WRITTEN_BY_DATASETS if name in metadata}
    return blocks if len(blocks) == len(_WRITTEN_BY_DATASETS) else None


def _refuse_others(there: _There, repo: str) -> None:
    if there.files:
        raise FileExistsError(
            f"{repo} holds other files ({len(there.files)}, such as {there.files[0]}); expected a new or empty repo, "
            "or one with the same data; choose another name, or replace its data with --replace"
        )


def _push_card(api: HfApi, repo: str, revision: str | None, record: dict[str, Any], kept: dict[str, Any] | None) -> str:
    """Push card and record in one commit, with the blocks of the card that are to stay; returns the commit."""
    card = DatasetCard(render_data_card(record, repo))
    for name, block in (kept or {}).items():
        card.data[name] = block
    operations = [
        CommitOperationAdd(_CARD, str(card).encode()),
        CommitOperationAdd(RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()),
    ]
    message = "Describe the data"
    return api.create_commit(repo, operations, commit_message=message, repo_type="dataset", revision=revision).oid


def _prepare(source: ImageSource, columns: list[str]) -> DatasetDict:
    """The splits as they are pushed: the shared columns, `Image` features, and no folder names beside the pictures."""
    splits = {}
    for name, split in source.splits.items():
        assert isinstance(split, Dataset)
        split = split.select_columns(columns)
        if _has_foreign_paths(split, source.image_column):
            split = split.with_format("arrow").map(_drop_paths, fn_kwargs={"column": source.image_column}, batched=True)
            split = split.with_format(None)
        splits[name] = split.cast_column(source.image_column, Image())
    return DatasetDict(splits)


def _has_foreign_paths(split: Dataset, column: str) -> bool:
    r"""Whether any path has a \ in it: `datasets` pushes the last part of a path, by this system's rules only."""
    tables = split.select_columns([column]).with_format("arrow").iter(batch_size=1000)
    return any(pc.any(pc.match_substring(pc.struct_field(table[column], "path"), "\\")).as_py() for table in tables)


def _drop_paths(table: pa.Table, *, column: str) -> pa.Table:
    """Take away the path of every picture whose bytes are there."""
    images = table[column].combine_chunks()
    data, paths = images.field("bytes"), images.field("path")
    paths = pc.if_else(pc.is_valid(data), pa.scalar(None, paths.type), paths)
    images = pa.StructArray.from_arrays([data, paths], ["bytes", "path"], mask=images.is_null())
    return table.set_column(table.column_names.index(column), column, images)


def _absolute(source: str | Path) -> str | Path:
    """A path that exists in full, so that no part of it can be taken for a protocol; anything else as it is."""
    path = Path(source).expanduser()
    return path.absolute() if path.exists() and str(source) != "digits" else source


@contextlib.contextmanager
def _clear_errors(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line, by what can be done about it."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError("an offline switch is set (HF_HUB_OFFLINE); unset it to push") from error
    except (_HTTP_ERROR, ConnectionError, TimeoutError, RuntimeError, LocalEntryNotFoundError) as error:
        # the client wraps what made an upload or a download fail
        cause = error.__cause__ if isinstance(error, RuntimeError | LocalEntryNotFoundError) else error
        if not isinstance(cause, _HTTP_ERROR | ConnectionError | TimeoutError):
            raise
        status = getattr(getattr(cause, "response", None), "status_code", None)
        message = (getattr(cause, "server_message", None) or "").strip().partition("\n")[0]
        if status == 401:
            text = "the Hub does not accept the token (401); log in with `hf auth login`, or set HF_TOKEN anew"
            raise PermissionError(text) from error
        if status == 403:
            text = (
                f"the token may not write to {repo} (403: {message}); log in with one that may, or name another owner"
            )
            raise PermissionError(text) from error
        # the client's own text may hold the address of an upload, which is a key to it
        said = f"it answered {status} ({message})" if status else f"no answer from the Hub ({type(cause).__name__})"
        raise ConnectionError(f"{repo} is not pushed: {said}; push again, it goes on where it stopped") from error


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Keep out a warning of `datasets` about processes that nobody asked for."""
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
