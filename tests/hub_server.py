"""A Hub on the loopback interface, for the real huggingface_hub client: it stores, serves and fails on demand.

Two ports, as the real Hub has two hosts: the API and small files on one, the objects of large files on another, to
which no token may go. `hub_store` holds the repos; here are the requests. The client reads its variables when it is
imported: give a new process those of `environment`, or pass `HfApi(endpoint=hub.url, token=hub.TOKEN)`.
"""

from __future__ import annotations

import hashlib
import json
import re
import select
import socket
import struct
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from hub_store import ATTRIBUTES, Blob, Refusal, Repo, check_card, read_folder

ENDPOINTS = ("create", "validate", "preupload", "lfs_batch", "lfs_put", "commit", "info", "head", "get", "tree", "tag",
             "branch", "whoami")  # fmt: skip
FAULTS = ("status", "reset", "hang", "lost_reply", "cut", "flip")


@dataclass
class _Fault:
    how: str
    status: int
    after: int  # requests to let through first
    times: int


class Hub:
    """The server; a context manager that runs it in threads."""

    TOKEN = "hf_tokenOfTheLocalHub"  # the only one that may write and see private repos
    USER = "tester"

    def __init__(self):
        self.repos: dict[tuple[str, str], Repo] = {}  # by kind and id
        self.requests: list[str] = []  # "METHOD path" of every request so far, to both ports
        self.received: list[bytes] = []  # every head (without Authorization on the Hub's own port) and body
        self.lock = threading.RLock()
        self.uploads: dict[str, tuple[Repo, str, int]] = {}  # an object expected: ticket -> repo, SHA-256, size
        self._faults: dict[str, list[_Fault]] = {endpoint: [] for endpoint in ENDPOINTS}
        self._folders: dict[tuple[str, Path], str] = {}
        self.stopping, self._stop = socket.socketpair()
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"hub": self}))
            for handler in (_Handler, _Storage)
        ]
        ports = [server.server_address[1] for server in self._servers]
        # Two names of one machine: the client takes a redirect to another name for one that leaves the Hub.
        self.url, self.storage = f"http://127.0.0.1:{ports[0]}", f"http://localhost:{ports[1]}"

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._stop.close()  # wakes what hangs
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self.stopping.close()

    # ------------------------------------------------------------------------------------------ for tests
    def add(
        self, repo: str, folder: Path, revision: str = "main", kind: str = "model", *, private: bool = False
    ) -> str:
        """Put a folder as it is now on a branch, which is made where it is missing; returns the commit."""
        with self.lock:
            held = self.repos.setdefault((kind, repo), Repo(kind, repo, private=private))
            commit = held.write(revision, read_folder(held, Path(folder)), f"Add {repo}")
            self._folders[repo, Path(folder)] = commit.sha
            return commit.sha

    def commit(self, repo: str, folder: Path) -> str:
        """Return the commit as which a folder was added."""
        return self._folders[repo, Path(folder)]

    def gate(self, repo: str, kind: str = "model"):
        """Make a repo gated: its description is public, its files are nobody's."""
        self.repos[kind, repo].gated = True

    def files(self, repo: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Return the bytes of every file; a repo that a client made begins with a .gitattributes, as on the Hub."""
        with self.lock:
            return {path: blob.body for path, blob in self.repos[kind, repo].find(revision).files.items()}

    def log(self, repo: str, kind: str = "model") -> list[tuple[str, str]]:
        """Return the commits of the main branch and their messages, newest first."""
        with self.lock:
            return [(commit.sha, commit.message) for commit in self.repos[kind, repo].history("main")]

    def environment(self, home: Path) -> dict[str, str]:
        """Return the variables with which a process uses this server and keeps its cache in a folder."""
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        switches |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": self.TOKEN, **switches}

    def fail(self, endpoint: str, how: str, times: int = 1, status: int = 500, after: int = 0):
        """Let requests fail: `after` so many good ones, `times` times.

        how: "status" (an answer of that status, nothing done), "reset" (connection reset, nothing done), "hang" (no
        answer until the client has gone, nothing done), "lost_reply" (done, and no answer), "cut" (half the answer's
        body), "flip" (a byte in the middle of the answer's body, or of the object that lfs_put receives, is changed).
        "get" are answers that hold a file's bytes, on either port; "head" is HEAD of a file.
        """
        if endpoint not in ENDPOINTS or how not in FAULTS or (endpoint == "head" and how in ("cut", "flip")):
            raise ValueError(f"cannot fail {endpoint!r} by {how!r}; expected one of {ENDPOINTS} and of {FAULTS}")
        with self.lock:
            self._faults[endpoint].append(_Fault(how, status, after, times))

    def mend(self):
        """Forget the failures that have not come to pass."""
        with self.lock:
            self._faults = {endpoint: [] for endpoint in ENDPOINTS}

    def next_fault(self, endpoint: str) -> _Fault | None:
        """Count a request, and return how it is to fail."""
        with self.lock:
            for fault in self._faults.get(endpoint, []):
                if fault.after:
                    fault.after -= 1
                    return None
                if fault.times:
                    fault.times -= 1
                    return fault
        return None


class _Base(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub
    routes: tuple[tuple[str, str, str, str], ...]  # methods, pattern, endpoint or "", method of the handler

    def log_message(self, *_):
        """Keep quiet."""

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except OSError:  # the client has gone
            self.close_connection = True

    def serve(self):
        """Answer one request, or fail as told."""
        self.hub.requests.append(f"{self.command} {self.path}")
        length = int(self.headers.get("Content-Length", 0))
        self.body = self.rfile.read(length)
        head = [f"{name}: {value}" for name, value in self.headers.items() if self.keeps(name)]
        self.hub.received += ["\n".join([self.requestline, *head]).encode(), self.body]
        path, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        for methods, pattern, endpoint, answer in self.routes:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                named = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                if "kind" in match.groupdict():
                    named["kind"] = named.get("kind", "model").rstrip("/").removesuffix("s")
                endpoint = "head" if (endpoint, self.command) == ("get", "HEAD") else endpoint
                return self.carry_out(endpoint, getattr(self, answer), named)
        return self.send(404, {"X-Error-Message": "Not Found"}, b'{"error": "Not Found"}')

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve  # noqa: N815

    def keeps(self, header: str) -> bool:
        """Whether the header goes into `received`."""
        return True

    def carry_out(self, endpoint: str, answer, named: dict[str, str]):
        self.endpoint = endpoint
        self.fault = None if self.redirects(endpoint, named) else self.hub.next_fault(endpoint)
        how = self.fault.how if self.fault else ""
        if how == "status":
            message = f"told to fail with {self.fault.status}"
            return self.send(self.fault.status, {"X-Error-Message": message}, json.dumps({"error": message}).encode())
        if how == "reset":
            return self.reset()
        if how == "hang":
            self.close_connection = True
            return select.select([self.connection, self.hub.stopping], [], [])
        if how == "flip" and endpoint == "lfs_put":
            self.body = _flip(self.body)
        try:
            with self.hub.lock:
                status, headers, body = answer(**named)
        except Refusal as refusal:
            status, body = refusal.status, json.dumps({"error": refusal.message}).encode()
            headers = {"X-Error-Message": refusal.message, "X-Error-Code": refusal.code}
        if how == "lost_reply":
            self.close_connection = True
            return None
        if how == "flip" and endpoint != "lfs_put":
            body = _flip(body)
        return self.send(status, headers, body, half=how == "cut")

    def redirects(self, endpoint: str, named: dict[str, str]) -> bool:
        """Whether the answer has no file's bytes but says where they are."""
        return False

    def reset(self):
        """Close so that the client sees "connection reset"."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def send(self, status: int, headers: dict[str, str], body: bytes, *, half: bool = False):
        self.send_response(status)
        length = {} if status == 204 else {"Content-Length": str(len(body))}
        for name, value in {**length, **headers}.items():
            if value:
                self.send_header(name, re.sub(r"[^ -~]", "?", value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if half else body)
        if half:
            self.close_connection = True

    def part(self, body: bytes, headers: dict[str, str]):
        """A file, or the range of it that is asked for."""
        headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted or wanted[0] == "bytes=-":
            return 200, headers, body
        if wanted[1]:
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
        else:
            first, last = max(len(body) - int(wanted[2]), 0), len(body) - 1
        if first > last:
            return 416, {**headers, "Content-Range": f"bytes */{len(body)}"}, b""
        return 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(body)}"}, body[first : last + 1]


class _Storage(_Base):
    """The host of large files: whoever has the address may read or write that object."""

    routes = (
        ("GET HEAD", r"/lfs/(?P<ticket>\w+)/(?P<sha256>\w+)", "get", "download"),
        ("PUT", r"/upload/(?P<ticket>\w+)", "lfs_put", "upload"),
    )

    def download(self, ticket: str, sha256: str):
        repos = self.hub.repos.values()
        held = next((repo.objects.get(sha256) for repo in repos if _ticket(repo, sha256) == ticket), None)
        if held is None:
            raise Refusal(403, "Access denied")
        return self.part(held, {"ETag": f'"{sha256}"'})

    def upload(self, ticket: str):
        if "Content-Length" not in self.headers:
            self.close_connection = True
            raise Refusal(501, "a transfer without a length is not implemented")
        if ticket not in self.hub.uploads:
            raise Refusal(403, "Access denied")
        repo, sha256, size = self.hub.uploads[ticket]
        if (len(self.body), hashlib.sha256(self.body).hexdigest()) != (size, sha256):
            raise Refusal(400, "the object is not the one that was announced (size or SHA-256)")
        repo.objects[sha256] = self.body
        return 200, {"ETag": f'"{sha256}"'}, b""


_REPO = r"(?P<repo>(?:[\w.-]+/)?[\w.-]+)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_REPO}"
_PAGE = rf"/(?P<kind>datasets/|spaces/)?{_REPO}"
_REVISION = r"(?P<revision>[^/]+)"


class _Handler(_Base):
    """The Hub's own host."""

    routes = (
        ("GET", r"/api/whoami-v2", "whoami", "whoami"),
        ("POST", r"/api/repos/create", "create", "create"),
        ("DELETE", r"/api/repos/delete", "", "delete"),
        ("POST", r"/api/validate-yaml", "validate", "validate"),
        ("PUT", rf"{_API}/settings", "", "settings"),
        ("GET", rf"{_API}/auth-check(/(?P<write>write))?", "", "auth_check"),
        ("POST", rf"{_API}/preupload/{_REVISION}", "preupload", "preupload"),
        ("POST", rf"{_PAGE}\.git/info/lfs/objects/batch", "lfs_batch", "lfs_batch"),
        ("POST", rf"{_PAGE}\.git/info/lfs/verify", "", "lfs_verify"),
        ("POST", rf"{_API}/commit/{_REVISION}", "commit", "commit"),
        ("POST DELETE", rf"{_API}/branch/(?P<name>[^/]+)", "branch", "branch"),
        ("POST DELETE", rf"{_API}/tag/{_REVISION}", "tag", "tag"),
        ("GET", rf"{_API}/refs", "info", "refs"),
        ("GET", rf"{_API}/commits/{_REVISION}", "info", "commits"),
        ("GET", rf"{_API}/tree/{_REVISION}(/(?P<folder>.+))?", "tree", "tree"),
        ("POST", rf"{_API}/paths-info/{_REVISION}", "tree", "paths_info"),
        ("GET HEAD", rf"{_PAGE}/resolve/{_REVISION}/(?P<path>.+)", "get", "resolve"),
        ("GET", rf"{_API}(/revision/{_REVISION})?", "info", "info"),
    )

    def keeps(self, header: str) -> bool:
        return header.lower() != "authorization"

    @property
    def user(self) -> str | None:
        """ "tester" with the right token, "" with a wrong one, None without."""
        sent = self.headers.get("Authorization")
        return None if sent is None else Hub.USER if sent == f"Bearer {Hub.TOKEN}" else ""

    def sign_in(self):
        """Refuse who may not write."""
        if self.user is None:
            raise Refusal(401, "Invalid username or password.")
        if self.user == "":
            raise Refusal(403, "You don't have the rights to write here")

    def open(self, kind: str, repo: str, *, write: bool = False) -> Repo:
        """A repo that the client may see (and change); a missing one looks like a private one."""
        held = self.hub.repos.get((kind, repo))
        if held is None or (held.private and self.user is None):
            raise Refusal(401 if self.user is None else 404, "Repository not found", "RepoNotFound")
        if held.private and self.user == "":
            raise Refusal(403, "This repository is private")
        if write:
            self.sign_in()
        return held

    def json(self, content: Any, status: int = 200):
        return status, {"Content-Type": "application/json"}, json.dumps(content).encode()

    def asks(self, name: str) -> bool:
        """Whether the query switches something on."""
        return self.query.get(name, [""])[-1].lower() in ("true", "1")

    def sent(self) -> Any:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise Refusal(400, f"not JSON: {error}") from error

    # ------------------------------------------------------------------------------------------ users and repos
    def whoami(self):
        if self.user != Hub.USER:
            raise Refusal(401, "Invalid credentials in Authorization header")
        token = {"displayName": "test", "role": "write", "createdAt": "2026-01-01T00:00:00.000Z"}
        about = {
            "type": "user",
            "id": "1",
            "name": Hub.USER,
            "fullname": Hub.USER,
            "email": "t@example.org",
            "orgs": [],
        }
        return self.json({**about, "isPro": False, "auth": {"type": "access_token", "accessToken": token}})

    def create(self):
        self.sign_in()
        sent = self.sent()
        kind, name = sent.get("type", "model"), f"{sent.get('organization') or Hub.USER}/{sent['name']}"
        url = f"{self.hub.url}/{Repo(kind, name).path}"
        if (kind, name) in self.hub.repos:
            return self.json({"error": f"You already created this {kind} repo", "url": url, "name": name}, 409)
        private = sent.get("visibility") == "private" or bool(sent.get("private"))
        repo = self.hub.repos[kind, name] = Repo(kind, name, private=private)
        repo.write("main", {".gitattributes": Blob(ATTRIBUTES.encode(), lfs=False)}, "initial commit")
        return self.json({"url": url, "name": name, "id": name, "private": private})

    def delete(self):
        self.sign_in()
        sent = self.sent()
        kind, name = sent.get("type", "model"), f"{sent.get('organization') or Hub.USER}/{sent['name']}"
        self.open(kind, name, write=True)
        del self.hub.repos[kind, name]
        return 200, {}, b"OK"

    def settings(self, kind: str, repo: str):
        held, sent = self.open(kind, repo, write=True), self.sent()
        held.private = bool(sent.get("private", sent.get("visibility", "private" if held.private else "") == "private"))
        return self.json({"private": held.private})

    def auth_check(self, kind: str, repo: str, write: str = ""):
        self.open(kind, repo, write=bool(write))
        return 200, {}, b""

    def info(self, kind: str, repo: str, revision: str = "main"):
        about = self.open(kind, repo).describe(revision, blobs=self.asks("blobs"))
        expand = self.query.get("expand", [])
        if expand:
            about = {name: about[name] for name in ("id", *expand) if name in about}
        return self.json(about)

    def validate(self):
        sent = self.sent()
        errors, warnings = check_card(sent.get("content", ""), sent.get("repoType", "model"))
        found = {"errors": [{"message": line} for line in errors], "warnings": [{"message": line} for line in warnings]}
        return self.json(found, 400 if errors else 200)

    # ------------------------------------------------------------------------------------------ reading
    def redirects(self, endpoint: str, named: dict[str, str]) -> bool:
        if endpoint != "get":
            return False
        with self.hub.lock:
            try:
                held = self.hub.repos[named["kind"], named["repo"]]
                return held.entry(named["revision"], named["path"])[1].lfs
            except (KeyError, Refusal):
                return False

    def resolve(self, kind: str, repo: str, revision: str, path: str):
        held = self.open(kind, repo)
        commit = held.find(revision)
        if held.gated:
            message = f"Access to {kind} {repo} is restricted and you are not in the authorized list."
            raise Refusal(401 if self.user is None else 403, message, "GatedRepo")
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            missing = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", **headers}
            return 404, missing, b"Entry not found"
        blob = commit.files[path]
        headers["ETag"] = f'"{blob.etag}"'
        if not blob.lfs:
            return self.part(blob.body, headers)
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.body)), "Accept-Ranges": "bytes"}
        headers["Location"] = f"{self.hub.storage}/lfs/{_ticket(held, blob.sha256)}/{blob.sha256}"
        return 302, headers, f"Found. Redirecting to {headers['Location']}".encode()

    def tree(self, kind: str, repo: str, revision: str, folder: str = ""):
        held = self.open(kind, repo)
        found = held.tree(revision, folder, recursive=self.asks("recursive"))
        if self.asks("expand"):
            found = [held.about(held.find(revision), entry["path"], expand=True) for entry in found]
        return self.json(found)

    def paths_info(self, kind: str, repo: str, revision: str):
        held, sent = self.open(kind, repo), parse_qs(self.body.decode())
        expand = sent.get("expand", [""])[-1].lower() in ("true", "1")
        there = {entry["path"] for entry in held.tree(revision)}
        wanted = [path for path in sent.get("paths", []) if path in there]
        return self.json([held.about(held.find(revision), path, expand=expand) for path in wanted])

    def refs(self, kind: str, repo: str):
        return self.json(self.open(kind, repo).refs())

    def commits(self, kind: str, repo: str, revision: str):
        history = self.open(kind, repo).history(revision)
        authors = [{"user": Hub.USER}]
        return self.json([
            {"id": commit.sha, "title": commit.message, "message": commit.description, "date": commit.date,
             "authors": authors} for commit in history
        ])  # fmt: skip

    # ------------------------------------------------------------------------------------------ writing
    def preupload(self, kind: str, repo: str, revision: str):
        return self.json(self.open(kind, repo, write=True).preupload(revision, self.sent()))

    def lfs_batch(self, kind: str, repo: str):
        held = self.open(kind, repo, write=True)
        objects = []
        for wanted in self.sent()["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in held.objects:
                ticket = _ticket(held, f"{wanted['oid']} {wanted['size']}")
                self.hub.uploads[ticket] = (held, wanted["oid"], wanted["size"])
                verify = {"href": f"{self.hub.url}/{held.path}.git/info/lfs/verify"}
                answer["actions"] = {"upload": {"href": f"{self.hub.storage}/upload/{ticket}"}, "verify": verify}
            objects.append(answer)
        return self.json({"transfer": "basic", "objects": objects})

    def lfs_verify(self, kind: str, repo: str):
        held, sent = self.open(kind, repo, write=True), self.sent()
        if len(held.objects.get(sent["oid"], b"")) != sent["size"]:
            raise Refusal(404, "the object was not uploaded")
        return self.json({"success": True})

    def commit(self, kind: str, repo: str, revision: str):
        held = self.open(kind, repo, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        commit, number = held.commit(revision, lines, pull_request=self.asks("create_pr"))
        url = f"{self.hub.url}/{held.path}"
        answer = {"success": True, "commitOid": commit.sha, "commitUrl": f"{url}/commit/{commit.sha}", "hookOutput": ""}
        return self.json({**answer, **({"pullRequestUrl": f"{url}/discussions/{number}"} if number else {})})

    def branch(self, kind: str, repo: str, name: str):
        held = self.open(kind, repo, write=True)
        if self.command == "DELETE":
            held.find(name)
            if name == "main" or held.branches.pop(name, None) is None:
                raise Refusal(400, f"cannot delete branch {name}")
        elif name in held.branches:
            raise Refusal(409, "Reference already exists")
        else:
            held.branches[name] = held.find(self.sent().get("startingPoint") or "main").sha
        return self.json({"success": True})

    def tag(self, kind: str, repo: str, revision: str):
        held = self.open(kind, repo, write=True)
        if self.command == "DELETE":
            if held.tags.pop(revision, None) is None:
                raise Refusal(404, f"no tag {revision}", "RevisionNotFound")
        else:
            commit, name = held.find(revision), self.sent()["tag"]
            if name in held.tags:
                raise Refusal(409, "Tag reference exists already")
            held.tags[name] = commit.sha
        return self.json({"success": True})


def _ticket(repo: Repo, name: str) -> str:
    """What stands for a signed address."""
    return hashlib.sha256(f"{repo.path} {name}".encode()).hexdigest()[:32]


def _flip(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :] if body else body
