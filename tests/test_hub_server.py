"""The Hub on the loopback interface, seen through the real client."""

import hashlib
import json
import time
import urllib.error
import urllib.request

import pytest
from hub_client import Client, ClientError
from hub_server import ENDPOINTS, Hub

LARGE = bytes(range(256)) * 1200  # 307,200 bytes: LFS by its size
CARD = b"---\nlicense: mit\n---\n# A card\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(home):
    with Hub() as hub, Client(hub.environment(home)) as client:
        yield hub, client


@pytest.fixture
def hub(running):
    yield running[0]
    running[0].mend()


@pytest.fixture
def client(running):
    return running[1]


@pytest.fixture
def repo(hub, tmp_path_factory):
    """A repo of its own for each test: one large file, one small."""
    folder = tmp_path_factory.mktemp("repo")
    (folder / "model.bin").write_bytes(LARGE)
    (folder / "a.txt").write_text("0123456789")
    name = f"tester/repo-{len(hub.repos)}-{len(hub.requests)}"
    hub.add(name, folder)
    return name


def ask(url: str, method: str = "GET", body: bytes | None = None, **headers: str):
    """Status, headers and body of a request without the client."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method)) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


# ---------------------------------------------------------------------------------------------- push and pull
def test_a_pushed_folder_comes_back_byte_for_byte(hub, client, tmp_path):
    files = {"README.md": CARD, "config.json": b"{}", "sub/model.safetensors": b"weights", "big.txt": LARGE, "no": b""}
    for name, body in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
    found = client.run(
        """
import pathlib, huggingface_hub
url = api.create_repo("tester/pushed")
commit = api.upload_folder(repo_id="tester/pushed", folder_path=folder, commit_message="First")
again = api.upload_folder(repo_id="tester/pushed", folder_path=folder)
files = api.model_info("tester/pushed", files_metadata=True).siblings
root = pathlib.Path(huggingface_hub.snapshot_download("tester/pushed"))
result = {
    "url": url, "commit": commit.oid, "again": again.oid, "revision": root.name,
    "files": {path.relative_to(root).as_posix(): path.read_bytes().hex() for path in root.rglob("*") if path.is_file()},
    "large": {file.rfilename: file.lfs.sha256 for file in files if file.lfs},
    "listed": api.list_repo_files("tester/pushed"),
}
""",
        folder=str(tmp_path),
    )  # fmt: skip
    assert found["url"] == f"{hub.url}/tester/pushed"
    assert {**hub.files("tester/pushed")}.keys() == {".gitattributes", *files}
    assert {name: bytes.fromhex(body) for name, body in found["files"].items()} == hub.files("tester/pushed")
    assert {name: hub.files("tester/pushed")[name] for name in files} == files
    assert found["large"] == {
        name: hashlib.sha256(files[name]).hexdigest() for name in ("big.txt", "sub/model.safetensors")
    }
    assert sorted(found["listed"]) == sorted(hub.files("tester/pushed"))
    assert [message for _, message in hub.log("tester/pushed")] == ["First", "initial commit"]
    assert found["commit"] == found["again"] == found["revision"] == hub.log("tester/pushed")[0][0]


def test_the_same_content_later_is_another_commit(hub, client):
    client.run("""
api.create_repo("tester/chain")
for body in (b"one", b"two", b"one"):
    api.upload_file(repo_id="tester/chain", path_or_fileobj=body, path_in_repo="a.txt")
""")
    commits = [sha for sha, _ in hub.log("tester/chain")]
    assert len(set(commits)) == 4
    assert all(len(sha) == 40 for sha in commits)
    assert hub.files("tester/chain", commits[0]) == hub.files("tester/chain", commits[2])


def test_a_large_file_is_sent_once_however_it_is_named(hub, client, repo):
    client.run(
        "api.upload_file(repo_id=repo, path_or_fileobj=bytes(range(256)) * 1200, path_in_repo='b.bin')", repo=repo
    )
    assert hub.files(repo)["b.bin"] == LARGE
    asked = hub.requests[hub.requests.index(f"POST /{repo}.git/info/lfs/objects/batch") :]
    assert not [request for request in asked if request.startswith("PUT")]


def test_gitattributes_decide_what_is_large_and_gitignore_what_is_left_out(hub, client):
    modes = client.run("""
from huggingface_hub import CommitOperationAdd
api.create_repo("tester/rules")
rules = b"*.dat filter=lfs diff=lfs merge=lfs -text\\nkept.dat -filter -text\\n"
adds = [CommitOperationAdd(name, rules if name == ".gitattributes" else b"*.log" if name == ".gitignore" else b"12")
        for name in (".gitattributes", ".gitignore")]
api.create_commit("tester/rules", adds, commit_message="Rules")
adds = [CommitOperationAdd(name, b"12") for name in ("a.dat", "kept.dat", "b.bin", "c.log")]
api.create_commit("tester/rules", adds, commit_message="Files")
result = {add.path_in_repo: [add._upload_mode, add._should_ignore] for add in adds}
""")
    assert modes == {"a.dat": ["lfs", False], "kept.dat": ["regular", False], "b.bin": ["regular", False],
                     "c.log": ["regular", True]}  # fmt: skip
    assert "c.log" not in hub.files("tester/rules")


def test_files_are_deleted_and_copied(hub, client, repo):
    client.run(
        """
from huggingface_hub import CommitOperationCopy, CommitOperationDelete
operations = [CommitOperationCopy("model.bin", "sub/copy.bin"), CommitOperationDelete("a.txt")]
api.create_commit(repo, operations, commit_message="Move")
""",
        repo=repo,
    )
    assert hub.files(repo) == {"model.bin": LARGE, "sub/copy.bin": LARGE}
    client.run("api.delete_folder('sub', repo_id=repo)", repo=repo)
    assert hub.files(repo) == {"model.bin": LARGE}
    with pytest.raises(ClientError, match="A file with this name doesn't exist") as caught:
        client.run("api.delete_file('sub/copy.bin', repo_id=repo)", repo=repo)
    assert "EntryNotFoundError" in caught.value.kinds


def test_a_commit_on_a_wrong_parent_is_refused(hub, client, repo):
    script = "api.upload_file(repo_id=repo, path_or_fileobj=b'x', path_in_repo='x', parent_commit=parent)"
    with pytest.raises(ClientError, match="412") as caught:
        client.run(script, repo=repo, parent="0" * 40)
    assert "HfHubHTTPError" in caught.value.kinds
    client.run(script, repo=repo, parent=hub.log(repo)[0][0])
    assert hub.files(repo)["x"] == b"x"


def test_a_pull_request_leaves_the_branch_alone(hub, client, repo):
    script = (
        "result = api.upload_file(repo_id=repo, path_or_fileobj=b'x', path_in_repo='x', create_pr=True).pr_revision"
    )
    assert client.run(script, repo=repo) == "refs/pr/1"
    assert "x" not in hub.files(repo)
    assert hub.files(repo, "refs/pr/1")["x"] == b"x"


def test_an_object_must_be_what_was_announced(hub, client, repo):
    hub.fail("lfs_put", "flip")
    with pytest.raises(ClientError, match="Error while uploading") as caught:
        client.run("api.upload_file(repo_id=repo, path_or_fileobj=b'1' * 200_000, path_in_repo='b.bin')", repo=repo)
    assert "BadRequestError" in caught.value.kinds
    lines = [{"key": "header", "value": {"summary": "No object"}},
             {"key": "lfsFile", "value": {"path": "b.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}]  # fmt: skip
    status, headers, _ = ask(
        f"{hub.url}/api/models/{repo}/commit/main",
        "POST",
        "\n".join(map(json.dumps, lines)).encode(),
        Authorization=f"Bearer {hub.TOKEN}",
    )
    assert (status, headers["X-Error-Message"][:38]) == (400, "LFS pointer pointed to a file that doe")
    assert "b.bin" not in hub.files(repo)


def test_no_path_leaves_the_repo(hub, repo):
    for path in ("../a", "/a", "a/../../b", ".git/config", "a//b"):
        lines = [{"key": "header", "value": {"summary": "Out"}},
                 {"key": "file", "value": {"path": path, "content": "", "encoding": "base64"}}]  # fmt: skip
        body = "\n".join(map(json.dumps, lines)).encode()
        token = {"Authorization": f"Bearer {hub.TOKEN}"}
        assert ask(f"{hub.url}/api/models/{repo}/commit/main", "POST", body, **token)[0] == 400, path


# ---------------------------------------------------------------------------------------------- repos and revisions
def test_a_repo_is_created_once_and_deleted(hub, client):
    assert client.run("result = api.whoami()['name']") == "tester"
    client.run("api.create_repo('tester/once', private=True); api.create_repo('tester/once', exist_ok=True)")
    assert hub.repos["model", "tester/once"].private
    assert client.run("result = api.model_info('tester/once').private") is True
    with pytest.raises(ClientError, match="409"):
        client.run("api.create_repo('tester/once')")
    client.run("api.update_repo_settings('tester/once', private=False)")
    assert not hub.repos["model", "tester/once"].private
    client.run("api.delete_repo('tester/once')")
    assert client.run("result = api.repo_exists('tester/once')") is False


def test_branches_tags_and_commits_are_revisions(hub, client, repo):
    first = hub.log(repo)[0][0]
    found = client.run(
        """
api.create_tag(repo, tag="v1")
api.create_branch(repo, branch="dev/x")
api.upload_file(repo_id=repo, path_or_fileobj=b"new", path_in_repo="a.txt", revision="dev/x")
refs = api.list_repo_refs(repo)
download = lambda revision: open(api.hf_hub_download(repo, "a.txt", revision=revision)).read()
result = {
    "refs": [ref.name for ref in refs.branches + refs.tags],
    "texts": [download(revision) for revision in ("main", "v1", "dev/x", refs.tags[0].target_commit)],
    "log": [commit.title for commit in api.list_repo_commits(repo, revision="dev/x")],
}
for tries in (lambda: api.create_tag(repo, tag="v1", exist_ok=True), lambda: api.delete_tag(repo, tag="v1"),
              lambda: api.delete_branch(repo, branch="dev/x")):
    tries()
result["exists"] = [api.revision_exists(repo, revision) for revision in ("main", "v1", "dev/x")]
""",
        repo=repo,
    )
    assert found["refs"] == ["main", "dev/x", "v1"]
    assert found["texts"] == ["0123456789", "0123456789", "new", "0123456789"]
    assert found["log"] == ["Upload a.txt with huggingface_hub", f"Add {repo}"]
    assert found["exists"] == [True, False, False]
    assert hub.log(repo)[0][0] == first


@pytest.mark.parametrize("script", ["api.create_tag(repo, tag='v1')", "api.create_branch(repo, branch='b')"])
def test_a_name_is_given_once(client, repo, script):
    client.run(script, repo=repo)
    with pytest.raises(ClientError, match="409"):
        client.run(script, repo=repo)


def test_the_tree_tells_sizes_ids_and_last_commits(hub, client, repo):
    found = client.run(
        """
api.upload_file(repo_id=repo, path_or_fileobj=b"x", path_in_repo="sub/x.txt")
tree = lambda *path, **options: [at.path for at in api.list_repo_tree(repo, *path, **options)]
infos = api.get_paths_info(repo, ["model.bin", "sub", "nothing"], expand=True)
result = [tree(), tree(recursive=True), tree("sub"), [at.last_commit.title for at in infos], infos[0].lfs.sha256]
""",
        repo=repo,
    )
    assert found[:3] == [
        ["a.txt", "model.bin", "sub"],
        ["a.txt", "model.bin", "sub", "sub/x.txt"],
        ["sub/x.txt"],
    ]
    assert found[3:] == [[f"Add {repo}", "Upload sub/x.txt with huggingface_hub"], hashlib.sha256(LARGE).hexdigest()]


# ---------------------------------------------------------------------------------------------- who may, what is not
SEEING = "api.model_info(repo, token=token)"
READING = "api.hf_hub_download(repo, 'a.txt', token=token)"
WRITING = "api.upload_file(repo_id=repo, path_or_fileobj=b'x', path_in_repo='x', token=token)"


@pytest.mark.parametrize("script", [SEEING, READING, WRITING])
@pytest.mark.parametrize(
    ("token", "status", "kind"),
    [(False, "401", "RepositoryNotFoundError"), ("hf_wrong", "403", "HfHubHTTPError"), (None, None, None)],
)
def test_a_private_repo_is_for_its_token(hub, client, repo, script, token, status, kind):
    hub.repos["model", repo].private = True
    if status is None:
        return client.run(script, repo=repo, token=token)
    with pytest.raises(ClientError, match=status) as caught:
        client.run(script, repo=repo, token=token)
    assert kind in caught.value.kinds


@pytest.mark.parametrize(("token", "status"), [(False, "401"), ("hf_wrong", "403")])
def test_a_public_repo_is_read_by_all_and_written_by_one(client, repo, token, status):
    client.run(SEEING, repo=repo, token=token)
    client.run(READING, repo=repo, token=token)
    with pytest.raises(ClientError, match=status):
        client.run(WRITING, repo=repo, token=token)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("api.model_info('tester/nothing')", "RepositoryNotFoundError"),
        ("api.dataset_info(repo)", "RepositoryNotFoundError"),
        ("api.hf_hub_download('tester/nothing', 'a.txt')", "RepositoryNotFoundError"),
        ("api.model_info(repo, revision='nothing')", "RevisionNotFoundError"),
        ("api.hf_hub_download(repo, 'a.txt', revision='nothing')", "RevisionNotFoundError"),
        ("api.hf_hub_download(repo, 'nothing')", "RemoteEntryNotFoundError"),
        ("list(api.list_repo_tree(repo, 'nothing'))", "RemoteEntryNotFoundError"),
        ("api.upload_file(repo_id=repo, path_or_fileobj=b'', path_in_repo='x', revision='v')", "RevisionNotFoundError"),
        ("api.delete_tag(repo, tag='nothing')", "RevisionNotFoundError"),
        ("api.whoami(token='hf_wrong')", "HfHubHTTPError"),
    ],
)
def test_what_is_not_there_is_the_clients_own_error(client, repo, script, kind):
    with pytest.raises(ClientError) as caught:
        client.run(script, repo=repo)
    assert kind in caught.value.kinds


def test_a_gated_repo_is_described_and_not_given(hub, client, repo):
    hub.gate(repo)
    client.run("api.model_info(repo)", repo=repo)
    with pytest.raises(ClientError, match="not in the authorized list") as caught:
        client.run("api.hf_hub_download(repo, 'a.txt')", repo=repo)
    assert "GatedRepoError" in caught.value.kinds


def test_no_token_reaches_the_storage_or_the_record(hub, client, repo):
    client.run(
        """
api.hf_hub_download(repo, "model.bin")
api.upload_file(repo_id=repo, path_or_fileobj=b'7' * 200_000, path_in_repo='b.bin')
""",
        repo=repo,
    )
    assert any(b"7" * 200_000 in record for record in hub.received)
    assert any(record.startswith(b"GET /lfs/") for record in hub.received)
    assert not any(hub.TOKEN.encode() in record for record in hub.received)


# ---------------------------------------------------------------------------------------------- cards
@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("---\nlicense: [mit\n---\n", "YAML metadata is not valid"),
        ("---\njust words\n---\n", "must be an object"),
        ("---\ntags: vit\n---\n", '"tags" must be an array'),
        ("---\nmodel-index: {}\n---\n", '"model-index" must be an array'),
        ("---\nmodel-index:\n- name: a\n---\n", r'"model-index\[0\].results" is required'),
        (
            "---\nmodel-index:\n- name: a\n  results:\n  - task: {type: image-classification}\n"
            "    dataset: {name: d, type: d}\n    metrics:\n    - type: accuracy\n---\n",
            r'"model-index\[0\].results\[0\].metrics\[0\].value" is required',
        ),
    ],
)
def test_a_card_with_wrong_metadata_is_refused(hub, client, repo, card, words):
    with pytest.raises(ClientError, match=words) as caught:
        client.run("api.upload_file(repo_id=repo, path_or_fileobj=card.encode(), path_in_repo='README.md')",
                   repo=repo, card=card)  # fmt: skip
    assert "ValueError" in caught.value.kinds
    assert "README.md" not in hub.files(repo)


def test_a_card_without_metadata_is_a_warning(client, repo):
    with pytest.raises(ClientError, match="empty or missing yaml metadata") as caught:
        client.run("api.upload_file(repo_id=repo, path_or_fileobj=b'# Words', path_in_repo='README.md')", repo=repo)
    assert "UserWarning" in caught.value.kinds  # the client's, an error in this process


def test_a_card_of_the_client_is_valid_and_described(client, repo):
    found = client.run(
        """
from huggingface_hub import EvalResult, ModelCard, ModelCardData
result = EvalResult("image-classification", "cifar10", "CIFAR-10", "accuracy", 0.9)
data = ModelCardData(license="mit", pipeline_tag="image-classification", model_name="a", eval_results=[result])
card = ModelCard(f"---\\n{data.to_yaml()}\\n---\\n# A card\\n")
api.upload_file(repo_id=repo, path_or_fileobj=str(card).encode(), path_in_repo="README.md")
info = api.model_info(repo)
result = [info.pipeline_tag, info.card_data.license, info.card_data.eval_results[0].metric_value]
""",
        repo=repo,
    )
    assert found == ["image-classification", "mit", 0.9]


# ---------------------------------------------------------------------------------------------- failures on demand
ADD = "api.upload_file(repo_id=repo, path_or_fileobj=b'1' * 200_000, path_in_repo='new.bin')"
CALLS = {
    "create": "api.create_repo(repo + '-new')",
    "validate": "api.upload_file(repo_id=repo, path_or_fileobj=b'---\\na: 1\\n---\\n', path_in_repo='README.md')",
    "preupload": ADD,
    "lfs_batch": ADD,
    "lfs_put": ADD,
    "commit": ADD,
    "info": "api.model_info(repo, timeout=timeout)",  # None would be for ever, whatever the client's own
    "head": "from huggingface_hub import get_hf_file_metadata, hf_hub_url\n"
    "get_hf_file_metadata(hf_hub_url(repo, 'a.txt'))",
    "get": "api.hf_hub_download(repo, 'model.bin', force_download=True)",
    "tree": "api.list_repo_files(repo)",
    "tag": "api.create_tag(repo, tag='v1')",
    "branch": "api.create_branch(repo, branch='b')",
    "whoami": "api.whoami()",
}
SLOW, FAST = {"timeout": 20.0}, {"timeout": 0.5}
RETRIED = ("preupload", "lfs_batch", "lfs_put")  # by the client; never a commit


def changes(hub, repo):
    """What a call may have changed."""
    held = hub.repos["model", repo]
    return [f"{repo}-new" in {name for _, name in hub.repos}, len(hub.log(repo)), *held.tags, *held.branches,
            *sorted(held.objects)]  # fmt: skip


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_status_is_the_clients_http_error_and_nothing_is_done(hub, client, repo, endpoint):
    before = changes(hub, repo) if endpoint not in ("commit",) else None
    hub.fail(endpoint, "status", status=413)
    with pytest.raises(ClientError) as caught:
        client.run(CALLS[endpoint], repo=repo, **SLOW)
    assert "HfHubHTTPError" in caught.value.kinds
    assert "413" in str(caught.value)
    if before:
        assert changes(hub, repo) == before
    assert len(hub.log(repo)) == 1
    client.run(CALLS[endpoint], repo=repo, **SLOW)  # once was asked for


@pytest.mark.parametrize("endpoint", RETRIED)
def test_a_server_error_is_tried_again_by_the_client_where_it_does_so(hub, client, repo, endpoint):
    hub.fail(endpoint, "status", times=2, status=503)
    client.run(ADD, repo=repo)
    assert "new.bin" in hub.files(repo)
    assert len(hub.log(repo)) == 2


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_reset_is_a_network_error_and_nothing_is_done(hub, client, repo, endpoint):
    hub.fail(endpoint, "reset", times=100)
    with pytest.raises(ClientError) as caught:
        client.run(CALLS[endpoint], repo=repo, **SLOW)
    assert "NetworkError" in caught.value.kinds
    assert len(hub.log(repo)) == 1


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_server_that_hangs_is_a_time_out(hub, client, repo, endpoint):
    hub.fail(endpoint, "hang")
    call = CALLS[endpoint]
    if endpoint == "tree":  # the client's own has no time-out, and takes none
        call = "huggingface_hub.utils.get_session().get(f'{api.endpoint}/api/models/{repo}/tree/main')"
    if endpoint in (*RETRIED, "get"):
        client.run(call, repo=repo, **FAST)  # the second time
    else:
        with pytest.raises(ClientError) as caught:
            client.run(call, repo=repo, **FAST)
        assert "ReadTimeout" in caught.value.kinds
        assert len(hub.log(repo)) == 1


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_lost_reply_is_a_dropped_connection_after_the_deed(hub, client, repo, endpoint):
    before = changes(hub, repo)
    hub.fail(endpoint, "lost_reply", times=100)
    with pytest.raises(ClientError) as caught:
        client.run(CALLS[endpoint], repo=repo, **SLOW)
    assert "RemoteProtocolError" in caught.value.kinds
    done = {"create": f"{repo}-new" in {name for _, name in hub.repos}, "commit": len(hub.log(repo)) == 2}
    assert done.get(endpoint, True)
    assert (changes(hub, repo) != before) == (endpoint in ("create", "lfs_put", "commit", "tag", "branch"))


@pytest.mark.parametrize("endpoint", ["create", "validate", "commit", "info", "tree", "whoami", "get"])
def test_a_cut_answer_is_noticed(hub, client, repo, endpoint):
    hub.fail(endpoint, "cut", times=100)
    with pytest.raises(ClientError) as caught:
        client.run(CALLS[endpoint], repo=repo, **SLOW)
    assert "RemoteProtocolError" in caught.value.kinds


def test_a_cut_download_is_resumed_where_it_stopped(hub, client, tmp_path):
    body = LARGE * 80  # the client keeps pieces of 10 MiB, so half of 23.4 MiB is one piece kept
    (tmp_path / "model.bin").write_bytes(body)
    hub.add("tester/resumed", tmp_path)
    hub.fail("get", "cut")
    found = client.run("""
import hashlib
result = hashlib.sha256(open(api.hf_hub_download("tester/resumed", "model.bin"), "rb").read()).hexdigest()
""")
    assert found == hashlib.sha256(body).hexdigest()
    asked = [record.lower() for record in hub.received if record.startswith(b"GET /lfs/")][-2:]
    assert b"range: " not in asked[0]
    assert b"range: bytes=10485760-" in asked[1]


def test_a_flipped_byte_arrives_unnoticed_by_the_client(hub, client, repo):
    for name, body in (("model.bin", LARGE), ("a.txt", b"0123456789")):
        hub.fail("get", "flip")
        found = bytes.fromhex(
            client.run("result = open(api.hf_hub_download(repo, name), 'rb').read().hex()", repo=repo, name=name)
        )
        assert [one ^ other for one, other in zip(found, body, strict=True) if one != other] == [1]


def test_failures_wait_for_so_many_good_requests(hub, client, repo):
    hub.fail("info", "status", after=2, times=2)
    tries = """
from huggingface_hub.errors import HfHubHTTPError
result = ""
for _ in range(6):
    try:
        api.model_info(repo)
        result += "."
    except HfHubHTTPError:
        result += "x"
"""
    assert client.run(tries, repo=repo) == "..xx.."


def test_what_cannot_fail_that_way_is_refused(hub):
    for endpoint, how in (("nothing", "reset"), ("get", "explode"), ("head", "cut")):
        with pytest.raises(ValueError, match="cannot fail"):
            hub.fail(endpoint, how)


def test_the_server_stops_while_it_hangs(tmp_path):
    with Hub() as hub, Client(hub.environment(tmp_path)) as client:
        hub.fail("whoami", "hang")
        asking = json.dumps({"script": "api.whoami()", "timeout": 60.0, "names": {}})
        print(asking, file=client.process.stdin, flush=True)
        while not hub.requests:
            time.sleep(0.01)
        began = time.monotonic()
        hub.__exit__()
        assert "kinds" in json.loads(client.process.stdout.readline())
        assert time.monotonic() - began < 5


# ---------------------------------------------------------------------------------------------- parts of files
@pytest.mark.parametrize(
    ("wanted", "status", "body", "range_"),
    [
        ("bytes=3-5", 206, b"345", "bytes 3-5/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=4-400", 206, b"456789", "bytes 4-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
    ],
)
def test_parts_of_files_are_given(hub, repo, wanted, status, body, range_):
    found = ask(f"{hub.url}/{repo}/resolve/main/a.txt", Range=wanted)
    assert (found[0], found[2], found[1]["Content-Range"]) == (status, body, range_)


def test_a_large_file_is_elsewhere(hub, repo):
    status, headers, body = ask(f"{hub.url}/{repo}/resolve/main/model.bin", Range="bytes=256-259")
    assert (status, body) == (206, b"\0\1\2\3")  # by way of the redirect
    assert headers["ETag"] == f'"{hashlib.sha256(LARGE).hexdigest()}"'
    assert ask(f"{hub.storage}/lfs/{'0' * 32}/{hashlib.sha256(LARGE).hexdigest()}")[0] == 403
    assert ask(f"{hub.storage}/upload/{'0' * 32}", "PUT", b"x")[0] == 403


# ---------------------------------------------------------------------------------------------- the other libraries
def test_a_model_is_pushed_and_loaded(hub, client, tiny):
    found = client.run(
        """
import torch, vit_hf
torch.manual_seed(0)
model = vit_hf.VitHfForImageClassification(vit_hf.VitHfConfig(**sizes)).eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
model.push_to_hub("tester/tiny", private=True)
same = vit_hf.VitHfForImageClassification.from_pretrained("tester/tiny").eval()
pixels = torch.randn(2, 3, 16, 24)
with torch.no_grad():
    result = [torch.equal(model(pixels).logits, same(pixels).logits), float(model(pixels).logits.abs().max())]
""",
        sizes={key: value for key, value in tiny().to_diff_dict().items() if key not in ("transformers_version",)},
    )
    assert found[0] is True
    assert found[1] > 0
    assert hub.repos["model", "tester/tiny"].private
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.files("tester/tiny"))
