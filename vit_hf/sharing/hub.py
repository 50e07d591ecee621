"""Model repos of the Hub: `push` commits a snapshot of a folder, `pull` fetches one and proves it.

A push is one commit: all of the snapshot that differs from the repo, without what an earlier push left there, on the
commit that it was compared with. So pushing twice makes one commit, and when the answer to a commit is lost, the next
look at the repo tells whether it arrived.
"""

import contextlib
import json
import logging
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo
from huggingface_hub.errors import HTTPError
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from ..files_vit_hf import sha256
from ..training.state import MANIFEST, DamagedFolderError, find_damage, sync
from .attempts import ATTEMPTS, HubError, cause, is_refused, limit_silence, remedy, retried, status_of, wait
from .snapshot import is_allowed, is_weights, snapshot

logger = logging.getLogger(__name__)

_CARD = "README.md"


@dataclass(frozen=True)
class Pushed:
    """What a push has made of a repo."""

    url: str
    """Of the repo, or of its branch."""
    commit: str
    """The commit that is the snapshot, 40 hexadecimal digits."""
    is_private: bool = True
    """Who sees it: a repo that was there keeps its visibility."""
    is_new: bool = True
    """Whether there was something to commit."""


# ------------------------------------------------------------------------------------------- push
def push(
    folder: str | Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    license: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Push the model repo that a folder holds, as it is now; see `vit_hf.sharing.snapshot` for what leaves it.

    Args:
        folder: a finished run, a checkpoint in one, or a folder that `save_pretrained` wrote; it is not changed.
        repo: "owner/name"; made when it is not there.
        private: of a new repo; an old one keeps its visibility.
        revision: branch, made from main when it is not there; main when None.
        tag: for the commit; one that is elsewhere already is not moved.
        license: for the card, such as "apache-2.0".
        message: of the commit.
        token: other than the one that the user has logged in with.

    Raises:
        ValueError: the folder cannot be pushed (see `snapshot`), the name is no repo's, or the tag is taken.
        HubError: the Hub did not take it; the message says why, and has the command that tries again.
    """
    folder = Path(folder)
    check_repo(repo)
    again = push_command(folder, repo, private=private, revision=revision, tag=tag, license=license, message=message)
    with _place_beside(folder) as place:
        snapshot(folder, place, license=license, repo=repo)
        return upload(
            place, repo, again=again, private=private, revision=revision, tag=tag, message=message, token=token
        )


def push_command(folder: Path, repo: str, *, private: bool = True, **options: str | None) -> str:
    """Return the line that pushes a folder; options are those of `push`."""
    words = ["vit-hf", "push", str(folder), repo, *([] if private else ["--public"])]
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", value]
    return shlex.join(words)


def check_repo(repo: str) -> None:
    """Raise ValueError when a name is not OWNER/NAME of a repo."""
    if repo.count("/") != 1:
        raise ValueError(f"{repo!r} is not the name of a repo; expected OWNER/NAME, such as ada/digits")
    validate_repo_id(repo)


def upload(
    place: Path,
    repo: str,
    *,
    again: str,
    private: bool = True,
    revision: str | None = None,
    tag: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Commit a snapshot to a repo; arguments as of `push`.

    Args:
        place: the snapshot.
        again: the command that tries again, for the message of an error.

    Raises:
        ValueError, HubError: as `push`.
    """
    api = HfApi(token=token)
    try:
        retried(lambda: api.create_repo(repo, private=private, exist_ok=True), f"making {repo}")
        if revision not in (None, "main"):
            branch = str(revision)
            retried(lambda: api.create_branch(repo, branch=branch, exist_ok=True), f"making the branch {branch}")
        commit, is_new, is_private = _commit(api, place, repo, revision, message or "Push a model by vit-hf")
        tagged = commit if tag is None else _tag(api, repo, tag, commit)
    except (HTTPError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise HubError(
            f"{repo} was not pushed: {cause(error)}; {remedy(error, repo)}. The folder is as it was; to try again: "
            f"{again}"
        ) from error
    if tagged != commit:
        raise ValueError(
            f"{repo} was pushed as {commit[:8]}, but its tag {tag!r} is at {tagged[:8]} already; choose another tag, "
            "or delete that one on the Hub"
        )
    where = "" if revision in (None, "main") else f"/tree/{revision}"
    return Pushed(f"{api.endpoint}/{repo}{where}", commit, is_private=is_private, is_new=is_new)


def _commit(api: HfApi, place: Path, repo: str, revision: str | None, message: str) -> tuple[str, bool, bool]:
    """Bring a branch to what a snapshot is; returns its commit, if that is new, and if the repo is private."""
    # the client finds that odd in a model repo: the predictions are here so that the scores can be recomputed
    warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
    fault: Exception | None = None
    for attempt in range(ATTEMPTS + 1):
        there = look(api, repo, revision)
        changed, stale = _differences(api, place, repo, there)
        if not changed and not stale:
            return str(there.sha), fault is not None, bool(there.private)
        if fault is not None:
            if attempt == ATTEMPTS:
                raise fault
            wait(fault, attempt - 1, f"committing to {repo}")
        additions = [CommitOperationAdd(name, place / name) for name in changed]
        limit_silence()
        api.preupload_lfs_files(repo, additions, revision=revision, free_memory=False)  # tries again by itself
        try:
            done = api.create_commit(
                repo,
                [*additions, *(CommitOperationDelete(name) for name in stale)],
                commit_message=message,
                revision=revision,
                parent_commit=there.sha,
            )
            return done.oid, True, bool(there.private)
        except Exception as error:  # whatever it was, the next look tells what arrived
            if is_refused(error):
                raise
            fault = error
    raise AssertionError("the last look returns or raises")


def _differences(api: HfApi, place: Path, repo: str, there: ModelInfo) -> tuple[list[str], list[str]]:
    """Return the files of a snapshot that a commit has not, or not so, and those that it has from an older push."""
    names = [*json.loads((place / MANIFEST).read_text(encoding="utf-8")), MANIFEST]
    remote = _files(there)
    older = _pushed_names(api, repo, str(there.sha)) if MANIFEST in remote else set()
    gone = [name for name in remote if is_allowed(name) and name not in names]
    stale = [name for name in gone if is_weights(name) or name in older]  # the rest is somebody else's
    return [name for name in names if not _is_same(place / name, remote.get(name))], stale


def _pushed_names(api: HfApi, repo: str, commit: str) -> set[str]:
    """Names in the manifest of a commit; none where it cannot be read."""
    with tempfile.TemporaryDirectory(prefix="vit-hf-") as folder:
        path = retried(
            lambda: api.hf_hub_download(repo, MANIFEST, revision=commit, local_dir=folder), f"reading {MANIFEST}"
        )
        try:
            return set(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            return set()


def _tag(api: HfApi, repo: str, tag: str, commit: str) -> str:
    """Tag a commit; returns the commit where the tag is, which is another when it was there before."""
    try:
        retried(lambda: api.create_tag(repo, tag=tag, revision=commit), f"making the tag {tag}")
    except HTTPError as error:
        if status_of(error) != 409:
            raise
        return str(look(api, repo, tag).sha)
    return commit


def look(api: HfApi, repo: str, revision: str | None) -> ModelInfo:
    """Ask what a repo holds at a revision.

    In one request that ends where the Hub is silent: the client's listing of a tree would wait for ever.
    """
    silence_s = limit_silence()
    return retried(
        lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=silence_s), f"looking at {repo}"
    )


def _files(there: ModelInfo) -> dict[str, RepoSibling]:
    return {entry.rfilename: entry for entry in there.siblings or []}


def _is_same(file: Path, remote: RepoSibling | None) -> bool:
    """Whether a local file has the content that the Hub says a remote one has."""
    if remote is None or not file.is_file() or file.stat().st_size != remote.size:
        return False
    if remote.lfs is not None:
        return sha256(file) == remote.lfs.sha256
    return git_hash(file.read_bytes()) == remote.blob_id


@contextlib.contextmanager
def _place_beside(folder: Path) -> Iterator[Path]:
    """An empty folder for a snapshot, where hard links can reach it if that can be written."""
    parent = folder.resolve().parent
    try:
        place = tempfile.mkdtemp(prefix=".pushing-", dir=parent)
    except OSError:
        place = tempfile.mkdtemp(prefix="vit-hf-")
    try:
        yield Path(place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


# ------------------------------------------------------------------------------------------- pull
def pull(repo: str, output: str | Path, *, revision: str | None = None) -> Path:
    """Fetch a model repo into a new folder, and prove that it is what was pushed.

    Every file is compared with the Hub's own record and with the manifest, in a folder beside `output` that gets its
    name when all is right. When a download fails, the files that have come stay there for the next try.

    Args:
        repo: "owner/name".
        output: a folder that is not there, or empty.
        revision: branch, tag or commit; main when None. All files are of one commit.

    Returns:
        The folder.

    Raises:
        FileExistsError: there is something at `output`.
        ValueError: the repo has no manifest, or is not what its manifest says.
        HubError: it could not be fetched whole; the message has the command that tries again.
    """
    output = Path(output)
    check_repo(repo)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise FileExistsError(f"{output} is there already; choose another folder, or remove it")
    again = shlex.join(["vit-hf", "pull", repo, str(output), *(["--revision", revision] if revision else [])])
    api = HfApi()
    try:
        there = look(api, repo, revision)
        commit = str(there.sha)
        wanted = {name: entry for name, entry in _files(there).items() if is_allowed(name)}
        if MANIFEST not in wanted:
            raise ValueError(
                f"{repo} has no {MANIFEST}, so nothing can be proved; it loads by from_pretrained({repo!r}), or push "
                "it again by vit-hf"
            )
        place = _place_for_download(output, commit)
        for name in wanted:
            _download(api, repo, name, commit, place)
    except (HTTPError, OSError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise HubError(f"{repo} was not fetched: {cause(error)}; {remedy(error, repo)}: {again}") from error
    damaged = [name for name, entry in wanted.items() if not _is_same(place / name, entry)]
    for name in damaged:
        (place / name).unlink(missing_ok=True)
    if damaged:
        raise HubError(
            f"{', '.join(damaged)} of {repo} came damaged and was thrown away, {output} was not made; the same command "
            f"fetches it anew and keeps the rest: {again}"
        )
    _compare_with_manifest(place, repo, commit, wanted)
    shutil.rmtree(place / ".cache")  # the client's notes
    sync(place)
    if output.is_dir():
        output.rmdir()
    place.rename(output)
    return output


def _place_for_download(output: Path, commit: str) -> Path:
    """A folder beside the output that bears the commit, so that only the same download is gone on with."""
    parent, prefix = output.absolute().parent, f".{output.name}.pulling-"
    parent.mkdir(parents=True, exist_ok=True)
    place = parent / f"{prefix}{commit[:12]}"
    for other in parent.iterdir():
        if other.name.startswith(prefix) and other != place:
            shutil.rmtree(other, ignore_errors=True)
    return place


def _download(api: HfApi, repo: str, name: str, commit: str, place: Path) -> None:
    retried(lambda: api.hf_hub_download(repo, name, revision=commit, local_dir=place), f"fetching {name}")


def _compare_with_manifest(place: Path, repo: str, commit: str, names: Iterable[str]) -> None:
    """Raise ValueError, and remove the folder, when what the Hub holds is not what was pushed."""
    try:
        wrong = find_damage(place)
        listed = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
    except DamagedFolderError as error:
        wrong, listed = {MANIFEST: str(error)}, set(names)
    if wrong.keys() == {_CARD} and (place / _CARD).is_file():  # cards are edited on the Hub
        logger.warning("%s of %s was changed on the Hub after the push", _CARD, repo)
        wrong = {}
    wrong |= {name: f"{name} is not in the manifest" for name in names if is_weights(name) and name not in listed}
    if wrong:
        shutil.rmtree(place)
        said = "; ".join(problem.replace(f"{place}/", "") for problem in wrong.values())
        raise ValueError(
            f"{repo} at {commit[:8]} is not what was pushed: {said}; pull an older --revision, or ask its owner to "
            "push it again"
        )
