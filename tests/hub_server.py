"""A Hub on the loopback interface: folders as model repos, for the real huggingface_hub client.

It answers what the client of huggingface_hub 2.4 asks to read a repo: HEAD and GET of files, with Range, and a model's
description. What writing needs can be added to ROUTES. The client reads its variables when it is imported: give a new
process those of `environment`.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    """The server; a context manager that runs it in a thread."""

    def __init__(self):
        self.repos: dict[str, dict[str, Path]] = {}  # repo id -> branch or commit -> folder
        self.requests: list[str] = []  # "METHOD path" of every request so far
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo: str, folder: Path, revision: str = "main") -> str:
        """Serve a folder as a revision of a repo; returns the commit, under which it is served too."""
        digest = hashlib.sha1(revision.encode())
        for path in _files(folder):
            digest.update(path.encode() + (folder / path).read_bytes())
        commit = digest.hexdigest()
        self.repos.setdefault(repo, {}).update({revision: folder, commit: folder})
        return commit

    def commit(self, repo: str, folder: Path) -> str:
        """Return the commit of a repo that is this folder."""
        return next(name for name, at in self.repos[repo].items() if at == folder and len(name) == 40)

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables with which a process uses this server and keeps its cache in a folder."""
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self):
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(urlsplit(self.path).path)
        for pattern, answer in ROUTES:
            if match := re.fullmatch(pattern, path):
                return answer(self, **match.groupdict())
        return self.reply(404, {"X-Error-Code": "NotFound"})

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        """Keep quiet."""

    def reply(self, status: int, headers: dict[str, str], body: bytes = b""):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def folder(self, repo: str, revision: str) -> Path | None:
        """Find a repo's revision, or answer that it is not there."""
        revisions = self.hub.repos.get(repo)
        if revisions is None or revision not in revisions:
            self.reply(404, {"X-Error-Code": "RepoNotFound" if revisions is None else "RevisionNotFound"})
            return None
        return revisions[revision]

    def resolve(self, repo: str, revision: str, name: str):
        """One file, or a part of it."""
        if (folder := self.folder(repo, revision)) is None:
            return
        commit = {"X-Repo-Commit": self.hub.commit(repo, folder)}
        if name not in _files(folder):
            return self.reply(404, {"X-Error-Code": "EntryNotFound", **commit})
        body, status = (folder / name).read_bytes(), 200
        etag = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()  # git's name of the file
        headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, status = body[first : last + 1], 206
        return self.reply(status, {**headers, **commit}, body)

    def describe(self, repo: str, revision: str | None = None):
        """What `HfApi.model_info` asks for."""
        if (folder := self.folder(repo, revision or "main")) is None:
            return
        siblings = [{"rfilename": name} for name in _files(folder)]
        about = {"id": repo, "modelId": repo, "sha": self.hub.commit(repo, folder), "siblings": siblings, "tags": []}
        self.reply(200, {"Content-Type": "application/json"}, json.dumps({**about, "private": False}).encode())


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES = (
    (rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
    (rf"/api/models/{REPO}(/revision/(?P<revision>.+))?", _Handler.describe),
)
