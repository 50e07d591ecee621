"""What a Hub keeps: repos with commits, branches, tags and large files, held in memory.

It follows git as far as a client can see: a commit names its parent and all its files, ids are SHA-1 of content, a
large file (LFS) is a pointer in the commit and an object beside it. Every refusal is a `Refusal`, as the Hub words it.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

LFS_BYTES = 100_000  # larger files are LFS whatever their name; the real Hub says 10 MB
_LARGE = ("arrow", "bin", "gz", "jpg", "jpeg", "npz", "onnx", "parquet", "pt", "pt2", "pth", "png", "safetensors")
ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LARGE)
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


class Refusal(Exception):  # noqa: N818
    """An answer that is an error: HTTP status, the header X-Error-Code (or none), and the message."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Blob:
    """A file of a commit."""

    body: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git holds of a large file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.body)}\n".encode()

    @property
    def oid(self) -> str:
        """Git's name of the file, or of its pointer."""
        held = self.pointer if self.lfs else self.body
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def describe(self, sha256: str) -> dict[str, Any]:
        """Size and ids; `sha256` is the name of that entry, which differs between endpoints."""
        lfs = {sha256: self.sha256, "size": len(self.body), "pointerSize": len(self.pointer)}
        return {"size": len(self.body), **({"lfs": lfs} if self.lfs else {})}


@dataclass(frozen=True)
class Commit:
    """All files at one moment."""

    files: dict[str, Blob]
    parent: str | None
    message: str
    description: str
    number: int  # of the repo's commits, from 0

    @property
    def sha(self) -> str:
        tree = sorted((path, blob.oid) for path, blob in self.files.items())
        return hashlib.sha1(json.dumps([tree, self.parent, self.message, self.number]).encode()).hexdigest()

    @property
    def date(self) -> str:
        """One second after another: nothing here depends on the clock."""
        moment = datetime(2026, 1, 1) + timedelta(seconds=self.number)
        return f"{moment.isoformat()}.000Z"


@dataclass
class Repo:
    """A repo of a kind: "model", "dataset" or "space"."""

    kind: str
    name: str
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    requests: dict[str, str] = field(default_factory=dict)  # refs/pr/N -> commit
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # by SHA-256

    @property
    def path(self) -> str:
        """Where it lies under the Hub's address."""
        return PREFIX[self.kind] + self.name

    def find(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or commit id."""
        revision = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        sha = self.branches.get(revision) or self.tags.get(revision) or self.requests.get(revision) or revision
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def entry(self, revision: str, path: str) -> tuple[Commit, Blob]:
        commit = self.find(revision)
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        return commit, commit.files[path]

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        found = [self.find(revision)]
        while found[-1].parent:
            found.append(self.commits[found[-1].parent])
        return found

    def write(self, branch: str, files: dict[str, Blob], message: str, description: str = "") -> Commit:
        """Put a commit on a branch or pull request; where nothing changes, there is none."""
        refs = self.requests if branch.startswith("refs/pr/") else self.branches
        parent = refs.get(branch)
        if parent and self.commits[parent].files == files:
            return self.commits[parent]
        commit = Commit(files, parent, message, description, len(self.commits))
        self.commits[commit.sha] = commit
        refs[branch] = commit.sha
        self.objects |= {blob.sha256: blob.body for blob in files.values() if blob.lfs}
        return commit

    # ------------------------------------------------------------------------------------------ what a push does
    def is_lfs(self, path: str, size: int, attributes: str) -> bool:
        """Whether a file becomes a large one, by .gitattributes and size; an empty one never."""
        rules = [line.split() for line in attributes.splitlines() if line.strip() and not line.startswith("#")]
        matching = [rule for rule in rules if fnmatch.fnmatch(path if "/" in rule[0] else Path(path).name, rule[0])]
        if matching and matching[-1][1:]:  # the last one counts, as in git
            return size > 0 and "filter=lfs" in matching[-1]
        return size > LFS_BYTES

    def attributes(self, commit: Commit | None) -> str:
        found = commit.files.get(".gitattributes") if commit else None
        return found.body.decode() if found else ATTRIBUTES

    def preupload(self, revision: str, request: dict[str, Any]) -> dict[str, Any]:
        """Say for each file how it is to be sent, whether .gitignore leaves it out, and what is there already."""
        commit = self.find(revision)
        ignored = commit.files[".gitignore"].body.decode() if ".gitignore" in commit.files else ""
        patterns = [line.strip() for line in request.get("gitIgnore", ignored).splitlines()]
        patterns = [pattern.rstrip("/") for pattern in patterns if pattern and not pattern.startswith("#")]
        answers = []
        for file in request["files"]:
            base64.b64decode(file["sample"], validate=True)
            names = [file["path"], *Path(file["path"]).parts]
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if self.is_lfs(file["path"], file["size"], self.attributes(commit)) else "regular",
                "shouldIgnore": any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns),
            }
            if file["path"] in commit.files:
                answer["oid"] = commit.files[file["path"]].etag
            answers.append(answer)
        return {"files": answers}

    def commit(self, revision: str, lines: list[dict[str, Any]], *, pull_request: bool) -> tuple[Commit, str | None]:
        """Carry out a commit as it is sent; returns it and the number of the pull request, where that is asked for."""
        if not lines or lines[0].get("key") != "header" or not lines[0]["value"].get("summary"):
            raise Refusal(400, "the first line must be a header with a summary")
        header, before = lines[0]["value"], self.find(revision)
        if not pull_request and revision not in self.branches and revision not in self.requests:
            raise Refusal(400, f"cannot commit to {revision}: not a branch")
        parent = header.get("parentCommit")
        if parent and not before.sha.startswith(parent):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(before.files)
        for line in lines[1:]:
            self._apply(files, line["key"], line["value"])
        if not pull_request:
            return self.write(revision, files, header["summary"], header.get("description", "")), None
        number = str(len(self.requests) + 1)
        self.requests[f"refs/pr/{number}"] = before.sha
        return self.write(f"refs/pr/{number}", files, header["summary"], header.get("description", "")), number

    def _apply(self, files: dict[str, Blob], key: str, value: dict[str, Any]):
        path = value["path"]
        if path.startswith("/") or {"", ".", "..", ".git"} & set(path.rstrip("/").split("/")):
            raise Refusal(400, f"invalid path: {path!r}")
        if key == "file":
            body = base64.b64decode(value["content"], validate=True)
            if len(body) > 10 * 1024**2:
                raise Refusal(400, f"{path} is larger than 10 MiB; use LFS")
            files[path] = Blob(body, lfs=False)
        elif key == "lfsFile":
            if value["algo"] != "sha256" or value["oid"] not in self.objects:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path}")
            files[path] = Blob(self.objects[value["oid"]], lfs=True)
        elif key == "copyFile":
            files[path] = self.entry(value.get("srcRevision") or "main", value["srcPath"])[1]
        elif key in ("deletedFile", "deletedFolder"):
            gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
            if not gone or (key == "deletedFile" and path not in files):
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        else:
            raise Refusal(400, f"unknown operation {key!r}")

    # ------------------------------------------------------------------------------------------ what it tells
    def tree(self, revision: str, folder: str = "", *, recursive: bool = True) -> list[dict[str, Any]]:
        """The files and folders below a folder."""
        commit, inside = self.find(revision), folder.rstrip("/") + "/" if folder else ""
        below = [path for path in sorted(commit.files) if path.startswith(inside)]
        if inside and not below:
            raise Refusal(404, f"{folder} does not exist on {revision!r}", "EntryNotFound")
        folders = {str(parent) for path in below for parent in Path(path).parents}
        paths = sorted({*below, *(name for name in folders if name.startswith(inside) and name != ".")})
        if not recursive:
            paths = [path for path in paths if "/" not in path.removeprefix(inside)]
        return [self.about(commit, path) for path in paths]

    def about(self, commit: Commit, path: str, *, expand: bool = False) -> dict[str, Any]:
        """One file or folder, with the last commit that changed it where that is asked for."""
        below = {name: blob.oid for name, blob in commit.files.items() if name == path or name.startswith(f"{path}/")}
        if path in commit.files:
            blob = commit.files[path]
            found = {"type": "file", "path": path, "oid": blob.oid, **blob.describe("oid")}
        else:
            tree = hashlib.sha1(json.dumps(sorted(below.items())).encode()).hexdigest()
            found = {"type": "directory", "path": path, "oid": tree, "size": 0}
        if expand:
            last = commit
            for older in self.history(commit.sha):
                if {name: blob.oid for name, blob in older.files.items() if name in below} != below:
                    break
                last = older
            found["lastCommit"] = {"id": last.sha, "title": last.message, "date": last.date}
        return found

    def describe(self, revision: str, *, blobs: bool) -> dict[str, Any]:
        """What `model_info` and `dataset_info` are answered."""
        commit = self.find(revision)
        card = metadata(commit.files["README.md"].body.decode())[0] if "README.md" in commit.files else None
        card = card if isinstance(card, dict) else {}
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if blobs:
            for sibling in siblings:
                blob = commit.files[sibling["rfilename"]]
                sibling |= {"blobId": blob.oid, **blob.describe("sha256")}
        tags = card.get("tags") or []
        found = {"id": self.name, "author": self.name.split("/")[0], "sha": commit.sha, "private": self.private}
        found |= {"gated": "auto" if self.gated else False, "disabled": False, "downloads": 0, "likes": 0}
        found |= {"createdAt": self.history(commit.sha)[-1].date, "lastModified": commit.date}
        found |= {"tags": tags if isinstance(tags, list) else [tags], "siblings": siblings, "cardData": card}
        if self.kind == "model":
            found |= {"modelId": self.name, "pipeline_tag": card.get("pipeline_tag")}
            found |= {"library_name": card.get("library_name"), "model-index": card.get("model-index")}
            if "config.json" in commit.files:
                found["config"] = json.loads(commit.files["config.json"].body)
        return found

    def refs(self) -> dict[str, Any]:
        def listed(kind: str, refs: dict[str, str]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in refs.items()]

        requests = [{"name": ref, "ref": ref, "targetCommit": sha} for ref, sha in self.requests.items()]
        heads, tags = listed("heads", self.branches), listed("tags", self.tags)
        return {"branches": heads, "tags": tags, "converts": [], "pullRequests": requests}


def read_folder(repo: Repo, folder: Path) -> dict[str, Blob]:
    """The files of a folder as a commit of the repo would hold them."""
    bodies = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rules = bodies.get(".gitattributes", ATTRIBUTES.encode()).decode()
    return {path: Blob(body, repo.is_lfs(path, len(body), rules)) for path, body in sorted(bodies.items())}


def metadata(readme: str) -> tuple[Any, str | None]:
    """The YAML that a card begins with (None without one), and the error where it is not YAML."""
    lines = readme.lstrip("\ufeff").splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in (line.strip() for line in lines[1:]):
        return None, None
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == "---")
    try:
        return yaml.safe_load("\n".join(lines[1:end])), None
    except yaml.YAMLError as error:
        return None, f"YAML metadata is not valid: {error}"


def check_card(readme: str, kind: str) -> tuple[list[str], list[str]]:
    """Errors and warnings that the Hub has for a card's metadata."""
    card, error = metadata(readme)
    if error:
        return [error], []
    if not card:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(card, dict):
        return ["metadata must be an object"], []
    errors = [f'"{key}" must be a string' for key in ("pipeline_tag", "library_name", "pretty_name")
              if not isinstance(card.get(key, ""), str)]  # fmt: skip
    for key in ("tags", "datasets", "metrics", "license", "language", "base_model"):
        values = card.get(key, [])
        values = [values] if isinstance(values, str) and key != "tags" else values
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            errors.append(f'"{key}" must be an array of strings')
    if kind == "model" and "model-index" in card:
        errors += _check_model_index(card["model-index"])
    if kind == "dataset" and "configs" in card:
        configs = card["configs"] if isinstance(card["configs"], list) else [None]
        good = all(isinstance(config, dict) and isinstance(config.get("config_name"), str) for config in configs)
        errors += [] if good else ['"configs" must be an array of objects with a config_name']
    return errors, []


def _check_model_index(index: Any) -> list[str]:
    if not isinstance(index, list) or not all(isinstance(entry, dict) for entry in index):
        return ['"model-index" must be an array of objects']
    errors = []
    for i, entry in enumerate(index):
        where = f"model-index[{i}]"
        if not isinstance(entry.get("name"), str) or not entry["name"]:
            errors.append(f'"{where}.name" is required')
        results = entry.get("results")
        if not isinstance(results, list) or not results:
            errors.append(f'"{where}.results" is required')
            continue
        for j, result in enumerate(results):
            result = result if isinstance(result, dict) else {}
            for part, keys in (("task", ("type",)), ("dataset", ("name", "type"))):
                about = result.get(part) if isinstance(result.get(part), dict) else {}
                errors += [f'"{where}.results[{j}].{part}.{key}" is required' for key in keys if not about.get(key)]
            metrics = result.get("metrics")
            metrics = metrics if isinstance(metrics, list) and metrics else [None]
            for k, metric in enumerate(metrics):
                metric = metric if isinstance(metric, dict) else {}
                missing = [key for key in ("type", "value") if metric.get(key) in (None, "")]
                errors += [f'"{where}.results[{j}].metrics[{k}].{key}" is required' for key in missing]
    return errors
