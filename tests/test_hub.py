"""Push and pull against a local Hub over HTTP, by the real client; nothing of it is patched but sleeping."""

import contextlib
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import Hub
from push_client import CallError, Client
from safetensors.torch import load_file, save_file

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfImageProcessor, train
from vit_hf.cli import main
from vit_hf.files_vit_hf import is_inside
from vit_hf.sharing.attempts import HubError
from vit_hf.sharing.hub import push, push_command
from vit_hf.sharing.snapshot import is_allowed, snapshot
from vit_hf.training.state import DamagedFolderError, check_folder, describe_files

CODE = {
    "configuration_vit_hf.py",
    "files_vit_hf.py",
    "inference_vit_hf.py",
    "masked_vit_hf.py",
    "modeling_vit_hf.py",
    "image_processing_vit_hf.py",
}
MODEL = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "manifest.json", *CODE}
REPO = "tester/tiny"
RECEIPT = {"source": "timm", "origin": "x.safetensors", "files": [], "facts": [], "tensors": []}


def save_model(folder: Path, seed: int = 0, **sizes: int) -> Path:
    """A saved classifier of 8x8 pictures with three classes."""
    torch.manual_seed(seed)
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, **sizes}
    config = VitHfConfig(image_size=8, patch_size=4, id2label={0: "cat", 1: "dog", 2: "a bird"}, **tiny)
    network = VitHfForImageClassification(config)
    with torch.no_grad():
        network.classifier.weight.normal_()
    network.save_pretrained(folder)
    VitHfImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def model(saved, tmp_path):
    """A model folder of one's own."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def process(hub, tmp_path_factory):
    with Client(hub, tmp_path_factory.mktemp("home")) as client:
        yield client


@pytest.fixture(scope="module")
def finished(process, tmp_path_factory):
    """A finished run of three steps with a checkpoint of each; not to be changed (made while the client starts)."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train("digits", output=folder, max_steps=3, quiet=True, checkpoint_steps=1, checkpoint_limit=9,
          data__max_train_images=64, data__max_test_images=40, trackers=())  # fmt: skip
    (folder / ".env").write_text("HF_TOKEN=hf_" + "x" * 34)
    (folder / "training_args.bin").write_bytes(b"pickle")
    return folder


@pytest.fixture
def client(process, hub):
    """A client whose Hub is empty and whole."""
    hub.repos.clear()
    yield process
    hub.mend()


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@contextlib.contextmanager
def requests(hub, *words):
    """Collect the requests of a block that hold all the words."""
    before, found = len(hub.requests), []
    yield found
    found += [line for line in hub.requests[before:] if all(word in line for word in words)]


# ------------------------------------------------------------------------------------------- what leaves
def test_a_snapshot_of_a_run_holds_the_model_its_records_and_nothing_else(finished, tmp_path):
    names = set(snapshot(finished, tmp_path))
    assert names >= MODEL | {"recipe.yaml", "run.json", "results.json", "metrics.jsonl", "learning_curves.png"}
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == names
    assert not names & {".env", "training_args.bin"}
    assert not [name for name in names if "checkpoints" in name or "optimizer" in name or "tensorboard" in name]
    check_folder(tmp_path)
    assert set(json.loads((tmp_path / "manifest.json").read_text())) == names - {"manifest.json"}


def test_what_happens_to_the_run_afterwards_does_not_reach_the_snapshot(finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (tmp_path / "frozen").mkdir()
    snapshot(run, tmp_path / "frozen")
    weights = [path / "model.safetensors" for path in (run, tmp_path / "frozen")]
    assert os.path.samefile(*weights)  # a hard link: no copy of what may be gigabytes
    before = digest(tmp_path / "frozen")
    network = VitHfForImageClassification.from_pretrained(run)
    torch.nn.init.zeros_(network.classifier.weight)
    network.save_pretrained(run)
    for path in run.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            path.write_bytes(b"changed in place")
    shutil.rmtree(run)
    assert digest(tmp_path / "frozen") == before


def test_a_checkpoint_of_a_run_is_a_model_repo_without_its_optimiser(finished, tmp_path):
    names = set(snapshot(finished / "checkpoints" / "step-00000002", tmp_path))
    assert names == MODEL
    assert torch.equal(
        load_file(tmp_path / "model.safetensors")["classifier.weight"],
        load_file(finished / "checkpoints" / "step-00000002" / "model.safetensors")["classifier.weight"],
    )


def test_records_leave_without_the_paths_of_this_machine(finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (tmp_path / "out").mkdir()
    for name in ("run.json", "results.json"):
        record = json.loads((run / name).read_text())
        record["command"] = f"vit-hf train digits --data={Path.home()}/my/cats --output {run} --model.init_from ~/w.npz"
        record["data"]["source"] = "/srv/secret place/cats"
        record["resumed"] = [{"step": 1, "command": f"vit-hf train {run}/recipe.yaml"}]
        (run / name).write_text(json.dumps(record))
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("source: digits", "source: /srv/secret place/cats"))
    snapshot(run, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        text = path.read_bytes() if path.is_file() else b""
        for part in (str(Path.home()) + "/", str(run), "/srv", "secret place", "my/cats"):
            assert part.encode() not in text, (path, part)
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["command"] == "vit-hf train digits --data=cats --output run --model.init_from w.npz"
    assert record["resumed"] == [{"step": 1, "command": "vit-hf train recipe.yaml"}]
    assert record["data"]["source"] == "cats"
    assert record["versions"] == json.loads((run / "run.json").read_text())["versions"]


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "README.md", "config.json", "modeling_vit_hf.py"])
def test_a_token_in_any_file_that_would_leave_is_refused_by_name(name, model, tmp_path):
    if name == "README.md":  # is rendered: what stands in it does not leave
        (model / "receipt.json").write_text(json.dumps({**RECEIPT, "origin": "hf_" + "a1B2" * 9}))
        name = "receipt.json"
    elif name == "run.json":
        (model / name).write_text(json.dumps({"command": "train --token hf_" + "a1B2" * 9}))
    else:
        with open(model / name, "a") as file:
            file.write("\n# hf_" + "a1B2" * 9) if name.endswith(".py") else file.write("\n")
        if not name.endswith(".py"):
            value = json.loads((model / name).read_text() or "{}") if name == "config.json" else {}
            (model / name).write_text(json.dumps({**value, "note": "hf_" + "a1B2" * 9}))
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="holds a token of the Hub") as caught:
        snapshot(model, tmp_path / "out")
    assert "a1B2" not in str(caught.value)
    assert name in str(caught.value)


def test_the_token_that_is_logged_in_is_found_though_it_looks_like_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "canary-of-no-pattern")
    (model / "metrics.jsonl").write_text('{"note": "canary-of-no-pattern"}\n')
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds a token") as caught:
        snapshot(model, tmp_path / "out")
    assert "canary" not in str(caught.value)


def test_a_token_in_front_of_the_weights_is_found(model, tmp_path):
    weights = load_file(model / "model.safetensors")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt", "by": "hf_" + "q" * 32})
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"model\.safetensors holds a token"):
        snapshot(model, tmp_path / "out")


def test_a_link_out_of_the_folder_is_not_followed(model, tmp_path):
    (tmp_path / "secret").write_text("{}")
    (model / "run.json").symlink_to(tmp_path / "secret")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"run\.json is a link to a place outside"):
        snapshot(model, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json; expected a run folder"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors; expected a run folder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"version https://git-lfs"), "no whole safetensors"),
        (lambda folder: shutil.rmtree(folder), "no folder"),
    ],
)
def test_what_is_no_model_is_refused(change, message, model, tmp_path):
    change(model)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=message):
        snapshot(model, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_run_that_is_not_finished_says_how_to_go_on_or_what_to_push(finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "model.safetensors").unlink()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"a run that is not finished .* --resume .*run, or push .*step-00000003"):
        snapshot(run, tmp_path / "out")


def test_only_names_of_a_model_repo_are_allowed():
    good = [*MODEL, "model-00001-of-00002.safetensors", "model.safetensors.index.json", ".eval_results/digits.yaml"]
    bad = [".env", "training_args.bin", "optimizer.safetensors", "optimizer.pt", "training/state.json", "x.py",
           "../config.json", "sub/config.json", "model/../../x.safetensors", ".eval_results/../x.yaml",
           ".git/config", "pytorch_model.bin", "model.safetensors\n", "events.out.tfevents.1"]  # fmt: skip
    assert [name for name in good if not is_allowed(name)] == []
    assert [name for name in bad if is_allowed(name)] == []


# ------------------------------------------------------------------------------------------- manifests
@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "C:x", "C:/x", "a\\b", "x\0y", "", ".", "./x", "a//b"])
def test_a_manifest_cannot_name_a_file_outside_of_its_folder(name, tmp_path):
    assert not is_inside(name)
    (tmp_path / "manifest.json").write_text(json.dumps({name: {"bytes": 0, "sha256": "0" * 64}}))
    with pytest.raises(DamagedFolderError, match="expected the name of a file in the folder"):
        check_folder(tmp_path)


def test_a_manifest_does_not_follow_a_link_out_of_its_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "in" / "file").write_text("mine")
    (tmp_path / "in" / "manifest.json").write_text(json.dumps(describe_files(tmp_path / "in")))
    check_folder(tmp_path / "in")
    (tmp_path / "in" / "file").unlink()
    (tmp_path / "in" / "file").symlink_to(tmp_path / "file")
    with pytest.raises(DamagedFolderError, match="is a link to a place outside"):
        check_folder(tmp_path / "in")


# ------------------------------------------------------------------------------------------- push
def test_a_push_makes_a_private_repo_with_one_commit_of_the_snapshot(client, hub, model):
    before = digest(model)
    pushed = client.push(model, REPO, license="mit")
    assert hub.repos["model", REPO].private
    assert pushed["is_private"]
    assert [message for _, message in hub.log(REPO)] == ["Push a model by vit-hf", "initial commit"]
    assert pushed["commit"] == hub.log(REPO)[0][0]
    assert set(hub.files(REPO)) == MODEL | {".gitattributes"}
    assert b"license: mit" in hub.files(REPO)["README.md"]
    assert digest(model) == before
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_pushing_the_same_again_makes_no_commit_and_sends_no_weights(client, hub, model):
    first = client.push(model, REPO, tag="v1")
    with requests(hub) as made:
        second = client.push(model, REPO, tag="v1")
    assert (second["commit"], second["is_new"]) == (first["commit"], False)
    assert len(hub.log(REPO)) == 2
    assert not [line for line in made if "/commit/" in line or line.startswith("PUT")]


def test_branch_tag_message_and_visibility_are_as_told(client, hub, model):
    client.push(model, REPO, private=False)
    assert not hub.repos["model", REPO].private
    pushed = client.push(save_model(model, seed=1), REPO, revision="dev", tag="v2", message="Another seed")
    repo = hub.repos["model", REPO]
    assert pushed["url"].endswith("/tester/tiny/tree/dev")
    assert not pushed["is_private"]  # it keeps its visibility
    assert not repo.private
    assert repo.branches["dev"] == repo.tags["v2"] == pushed["commit"] != repo.branches["main"]
    assert repo.find("dev").message == "Another seed"


def test_a_tag_that_is_elsewhere_is_not_moved(client, hub, model):
    first = client.push(model, REPO, tag="v1")
    with pytest.raises(CallError, match=r"its tag 'v1' is at .* already; choose another tag"):
        client.push(save_model(model, seed=1), REPO, tag="v1")
    assert hub.repos["model", REPO].tags["v1"] == first["commit"]


def test_old_files_of_ours_go_in_the_same_commit_and_those_of_others_stay(client, hub, model, tmp_path):
    VitHfForImageClassification.from_pretrained(model).save_pretrained(tmp_path / "parts", max_shard_size="8KB")
    shutil.copy(model / "preprocessor_config.json", tmp_path / "parts")
    shutil.copy(model / "image_processing_vit_hf.py", tmp_path / "parts")
    (tmp_path / "parts" / ".eval_results").mkdir()
    (tmp_path / "parts" / ".eval_results" / "old.yaml").write_text("[]\n")
    client.push(tmp_path / "parts", REPO)
    shards = [name for name in hub.files(REPO) if name.startswith("model-0")]
    assert len(shards) > 1
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name, body in hub.files(REPO).items():
        (theirs / name).parent.mkdir(exist_ok=True)
        (theirs / name).write_bytes(body)
    (theirs / "notes.txt").write_text("by somebody else")
    (theirs / ".eval_results" / "theirs.yaml").write_text("[]\n")
    hub.add(REPO, theirs)
    client.push(model, REPO)
    assert set(hub.files(REPO)) == MODEL | {".gitattributes", "notes.txt", ".eval_results/theirs.yaml"}
    assert len(hub.log(REPO)) == 4


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "tester/", "tester/ti ny", "-x/y"])
def test_what_is_no_name_of_a_repo_is_an_error_before_any_request(name, model):
    with pytest.raises(ValueError, match=re.escape(repr(name)) + r"|[Rr]epo"):
        push(model, name)


def test_offline_is_one_clear_error(model, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set; set HF_HUB_OFFLINE=0.* to try again: vit-hf push"):
        push(model, REPO)


def test_the_command_that_tries_again_is_the_one_that_was_given(tmp_path):
    line = push_command(tmp_path / "my model", REPO, private=False, revision="dev", tag=None, message="a b")
    assert line == f"vit-hf push '{tmp_path}/my model' tester/tiny --public --revision dev --message 'a b'"


# ------------------------------------------------------------------------------------------- faults
WRITES = ["create", "info", "preupload", "lfs_batch", "lfs_put", "validate", "commit", "branch", "tag"]


@pytest.mark.parametrize(
    ("endpoint", "how"),
    [*zip(WRITES, ["reset", "hang", "cut", "lost_reply", "status"] * 2, strict=False), ("commit", "hang")],
)
def test_a_passing_fault_of_any_endpoint_is_tried_again_and_makes_one_commit(endpoint, how, client, hub, model):
    """One kind of fault each; tests/faults has them all."""
    hub.fail(endpoint, how, status=503)
    client.push(model, REPO, revision="dev", tag="v1")
    assert not hub._faults[endpoint][0].times  # it did happen
    assert len(hub.repos["model", REPO].history("dev")) == 2
    assert len(client.pauses) <= 1


@pytest.mark.parametrize(("endpoint", "how"), [*zip(WRITES, ["status", "reset"] * 5, strict=False)])
def test_a_fault_that_stays_ends_after_a_few_tries_with_the_command_that_tries_again(endpoint, how, client, hub, model):
    before = digest(model)
    hub.fail(endpoint, how, times=999, status=503)
    with requests(hub) as made, pytest.raises(CallError) as caught:
        client.push(model, REPO, revision="dev", tag="v1")
    hub.mend()
    assert "HubError" in caught.value.kinds
    assert f"to try again: vit-hf push {model} {REPO} --revision dev --tag v1" in str(caught.value)
    assert len(made) < 40
    assert sum(client.pauses) < 60
    assert digest(model) == before
    client.push(model, REPO, revision="dev", tag="v1")  # the command


@pytest.mark.parametrize(
    ("endpoint", "status", "words"),
    [
        ("create", 401, "hf auth login"),
        ("create", 403, "token that may write to tester/tiny"),
        ("info", 404, "check the name and the revision"),
        ("commit", 403, "token that may write to tester/tiny"),
        ("commit", 413, "smaller parts"),
        ("lfs_put", 413, "smaller parts"),
    ],
)
def test_a_refusal_is_not_tried_again_and_says_what_to_do(endpoint, status, words, client, hub, model):
    hub.fail(endpoint, "status", times=99, status=status)
    with pytest.raises(CallError) as caught:
        client.push(model, REPO)
    assert words in str(caught.value)
    assert f"the Hub answered {status}" in str(caught.value)
    assert client.pauses == []
    left = hub._faults[endpoint][0].times
    assert 99 - left == 1


def test_a_wrong_token_is_refused_by_the_server_itself(client, hub, model):
    hub.add(REPO, model)
    client.run("import os; os.environ['HF_TOKEN'] = 'hf_wrong'")
    try:
        with pytest.raises(CallError, match=r"the Hub answered 403 .*token that may write"):
            client.push(save_model(model, seed=1), REPO)
        assert client.pauses == []
    finally:
        client.run(f"import os; os.environ['HF_TOKEN'] = {hub.TOKEN!r}")
    assert len(hub.log(REPO)) == 1


def test_a_lost_answer_to_a_commit_makes_no_second_one_however_often_it_is_lost(client, hub, model):
    hub.fail("commit", "lost_reply", times=9)
    pushed = client.push(model, REPO)
    assert hub.log(REPO)[0][0] == pushed["commit"]
    assert len(hub.log(REPO)) == 2
    assert pushed["is_new"]


def test_weights_that_arrived_are_not_sent_again(client, hub, model):
    hub.fail("commit", "status", times=999, status=500)
    with pytest.raises(CallError):
        client.push(model, REPO)
    hub.mend()
    with requests(hub, "PUT") as sent:
        client.push(model, REPO)
    assert sent == []
    assert set(hub.files(REPO)) >= MODEL


def test_retry_after_is_waited_for():
    import sys

    from huggingface_hub.errors import HfHubHTTPError, Response

    from vit_hf.sharing.attempts import is_passing, pause_for

    request = sys.modules[Response.__module__.split(".")[0]].Request  # of httpx, or what came after it

    def error(**headers):
        answer = Response(429, headers=headers, request=request("POST", "http://hub/api"))
        return HfHubHTTPError("", response=answer)

    assert pause_for(error(**{"Retry-After": "17"}), 0) == 17
    assert pause_for(error(RateLimit='"api";r=0;t=55'), 0) == 56
    assert [pause_for(error(), attempt) for attempt in range(4)] == [1, 2, 4, 8]
    assert is_passing(error(**{"Retry-After": "60"}))
    assert not is_passing(error(**{"Retry-After": "7200"}))  # nobody waits two hours


# ------------------------------------------------------------------------------------------- pull
@pytest.fixture(scope="module")
def pushed_run(finished, tmp_path_factory):
    """The snapshot of the run as a folder."""
    folder = tmp_path_factory.mktemp("pushed")
    snapshot(finished, folder, repo="tester/digits")
    return folder


def test_what_was_pushed_comes_back_to_the_byte_and_gives_the_same_logits(client, hub, finished, tmp_path):
    client.push(finished, "tester/digits", tag="v1")
    folder = client.pull("tester/digits", tmp_path / "out", revision="v1")
    there = {name: hashlib.sha256(body).hexdigest() for name, body in hub.files("tester/digits").items()}
    assert digest(folder) == {name: found for name, found in there.items() if name != ".gitattributes"}
    assert load_file(folder / "model.safetensors").keys() == load_file(finished / "model.safetensors").keys()
    both = [VitHfForImageClassification.from_pretrained(path).eval() for path in (finished, folder)]
    processors = [VitHfImageProcessor.from_pretrained(path) for path in (finished, folder)]
    pictures = [torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8) for _ in range(4)]
    inputs = [processor(pictures, return_tensors="pt")["pixel_values"] for processor in processors]
    assert torch.equal(*inputs)
    with torch.no_grad():
        assert torch.equal(both[0](inputs[0]).logits, both[1](inputs[1]).logits)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of 25 MB: the client keeps what it has of a file in pieces of 10 MB."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 2, "intermediate_size": 2048}
    folder = tmp_path_factory.mktemp("large")
    snapshot(save_model(tmp_path_factory.mktemp("model"), **sizes), folder)
    return folder


def test_a_download_that_is_cut_goes_on_where_it_stopped(client, hub, large, tmp_path):
    hub.add(REPO, large)
    hub.received.clear()
    hub.fail("get", "cut", after=len(MODEL) - 3)  # the weights; code and processor are to come
    client.pull(REPO, tmp_path / "out")
    begun = [block.lower() for block in hub.received if block.startswith(b"GET /lfs/")]
    assert len(begun) == 2
    assert re.search(rb"range: bytes=10\d{6}-", begun[1])
    check_folder(tmp_path / "out")


def test_a_download_that_failed_is_gone_on_with_by_the_next_pull(client, hub, model, tmp_path):
    client.push(model, REPO)
    hub.fail("get", "status", times=999, status=500, after=3)
    with pytest.raises(CallError, match=rf"the Hub answered 500.*: vit-hf pull {REPO} "):
        client.pull(REPO, tmp_path / "out")
    hub.mend()
    assert not (tmp_path / "out").exists()
    with requests(hub, "GET", "resolve") as fetched, requests(hub, "GET /lfs") as large:
        client.pull(REPO, tmp_path / "out")
    assert len(fetched) + len(large) <= len(MODEL) - 3 + 1  # an address of a large file, and the file
    check_folder(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("number", [0, 5])
def test_a_flipped_byte_is_refused_by_name_and_fetched_anew(number, client, hub, model, tmp_path):
    hub.repos.clear()
    client.push(model, REPO)
    hub.fail("get", "flip", after=number)
    with pytest.raises(
        CallError, match=r"came damaged and was thrown away, .*out was not made; the same command"
    ) as caught:
        client.pull(REPO, tmp_path / "out")
    damaged = str(caught.value).partition(" of ")[0]
    assert damaged in MODEL
    assert not (tmp_path / "out").exists()
    with requests(hub, "GET", "resolve") as fetched, requests(hub, "GET /lfs") as large:
        client.pull(REPO, tmp_path / "out")
    small = [] if damaged == "model.safetensors" else [damaged]
    assert ([line.rpartition("/")[2] for line in fetched], len(large)) == (small, 1 - len(small))
    check_folder(tmp_path / "out")


def test_a_repo_that_is_not_what_its_manifest_says_is_refused(client, hub, pushed_run, tmp_path):
    folder = Path(shutil.copytree(pushed_run, tmp_path / "changed"))
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    hub.add("tester/digits", folder)
    with pytest.raises(CallError, match=r"is not what was pushed: model.safetensors has another SHA-256"):
        client.pull("tester/digits", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["changed"]


def test_weights_that_the_manifest_does_not_list_are_refused(client, hub, pushed_run, tmp_path):
    folder = Path(shutil.copytree(pushed_run, tmp_path / "changed"))
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    hub.add("tester/digits", folder)
    with pytest.raises(CallError, match=r"model-00001-of-00001.safetensors is not in the manifest"):
        client.pull("tester/digits", tmp_path / "out")


def test_a_card_that_was_edited_on_the_hub_does_not_keep_the_model_from_coming(client, hub, pushed_run, tmp_path):
    folder = Path(shutil.copytree(pushed_run, tmp_path / "changed"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    hub.add("tester/digits", folder)
    out = client.pull("tester/digits", tmp_path / "out")
    assert "# Mine" in (out / "README.md").read_text()
    assert "README.md of tester/digits was changed on the Hub" in client.log


def test_other_files_of_a_repo_are_left_there(client, hub, pushed_run, tmp_path):
    folder = Path(shutil.copytree(pushed_run, tmp_path / "changed"))
    (folder / "evil.py").write_text("print('hello')")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    hub.add("tester/digits", folder)
    with requests(hub, "evil.py") as asked:
        out = client.pull("tester/digits", tmp_path / "out")
    assert asked == []
    assert digest(out) == digest(pushed_run)


@pytest.mark.parametrize("name", ["../../escaped.txt", "/tmp/escaped.txt", "C:\\escaped.txt"])
def test_a_manifest_that_leads_out_of_the_folder_is_refused(name, client, hub, pushed_run, tmp_path):
    folder = Path(shutil.copytree(pushed_run, tmp_path / "changed"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, name: {"bytes": 0, "sha256": "0" * 64}}))
    hub.add("tester/digits", folder)
    with pytest.raises(CallError, match="expected the name of a file in the folder"):
        client.pull("tester/digits", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["changed"]


def test_a_repo_without_a_manifest_says_how_it_loads(client, hub, model, tmp_path):
    (model / "manifest.json").unlink(missing_ok=True)
    hub.add(REPO, model)
    with pytest.raises(CallError, match=r"has no manifest.json, .* loads by from_pretrained\('tester/tiny'\)"):
        client.pull(REPO, tmp_path / "out")


def test_an_output_that_is_there_is_left_alone(client, hub, pushed_run, tmp_path):
    hub.add("tester/digits", pushed_run)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(CallError, match="is there already; choose another folder"):
        client.pull("tester/digits", tmp_path / "out")
    assert digest(tmp_path / "out").keys() == {"mine"}


@pytest.mark.parametrize(("repo", "revision"), [("nobody/nothing", None), ("tester/digits", "v9")])
def test_what_is_not_on_the_hub_is_one_clear_error(repo, revision, client, hub, pushed_run, tmp_path):
    hub.add("tester/digits", pushed_run)
    with pytest.raises(CallError, match=r"the Hub answered 404.*check the name and the revision"):
        client.pull(repo, tmp_path / "out", revision=revision)
    assert client.pauses == []


# ------------------------------------------------------------------------------------------- the ways of transformers
def test_model_processor_and_config_push_themselves_to_a_repo_that_loads(client, hub, model, tmp_path):
    client.run(f"""
import torch
from vit_hf import VitHfForImageClassification, VitHfImageProcessor
network = VitHfForImageClassification.from_pretrained({str(model)!r})
network.push_to_hub({REPO!r})
VitHfImageProcessor.from_pretrained({str(model)!r}).push_to_hub({REPO!r})
network.config.push_to_hub({REPO!r})
""")
    assert set(hub.files(REPO)) >= MODEL - {"README.md", "manifest.json"}
    found = client.run(
        f"""
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
network = AutoModelForImageClassification.from_pretrained({REPO!r}).eval()
processor = AutoImageProcessor.from_pretrained({REPO!r})
inputs = processor(torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8), return_tensors="pt")
with torch.no_grad():
    value = [AutoConfig.from_pretrained({REPO!r}).id2label[2], network(**inputs).logits.tolist()]
""".replace("from transformers", "import torch\nfrom transformers", 1)
    )
    network = VitHfForImageClassification.from_pretrained(model).eval()
    inputs = VitHfImageProcessor.from_pretrained(model)(
        torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8), return_tensors="pt"
    )
    with torch.no_grad():
        assert found == ["a bird", network(**inputs).logits.tolist()]
    assert not [name for name in hub.files(REPO) if name.endswith((".bin", ".pt"))]


# ------------------------------------------------------------------------------------------- while a run goes on
TRAIN = """
import io, contextlib, sys
from vit_hf.cli import main
words = ["train", "digits", "--max-steps", "3", "--checkpoint_steps", "1", "--checkpoint_limit", "1",
         "--trackers", "none", "--data.max_train_images", "64", "--data.max_test_images", "40", "--seed", "0"]
with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(printed):
    import logging
    handler = logging.StreamHandler(printed)
    logging.getLogger("vit_hf").addHandler(handler)
    code = main([*words, *WORDS])
    logging.getLogger("vit_hf").removeHandler(handler)
value = [code, printed.getvalue()]
"""


def train_and_push(client, output: Path, *words: str) -> str:
    """Train three steps with a checkpoint of each; returns what the command printed."""
    chosen = ["--output", str(output), "--push-to-hub", "tester/digits", *words]
    code, printed = client.run(f"WORDS = {chosen!r}\n{TRAIN}")
    assert code == 0, printed
    return printed


def test_a_run_pushes_every_checkpoint_then_itself_and_says_where(client, hub, tmp_path):
    printed = train_and_push(client, tmp_path / "run", "--hub-strategy", "every-checkpoint")
    messages = [message for _, message in hub.log("tester/digits")]
    assert messages[0] == "Push a model by vit-hf"
    assert set(messages[1:-1]) <= {f"Training in progress, step-0000000{step}" for step in (1, 2, 3)}
    assert len(messages) >= 3  # at least one of them was sent before the end
    assert hub.repos["model", "tester/digits"].private
    assert f"on the Hub: {hub.url}/tester/digits (private), commit {hub.log('tester/digits')[0][0]}" in printed
    files = hub.files("tester/digits")
    assert files["model.safetensors"] == (tmp_path / "run" / "model.safetensors").read_bytes()
    assert files["results.json"]
    assert not [path for path in tmp_path.rglob(".*") if "push" in path.name]


def test_a_dead_hub_changes_nothing_of_a_run_and_the_end_says_how_to_push_it(client, hub, finished, tmp_path):
    for endpoint, how in (("create", "reset"), ("lfs_put", "status")):
        hub.repos.clear()
        hub.fail(endpoint, how, times=999, status=503)
        run = tmp_path / endpoint
        printed = train_and_push(client, run, "--hub-strategy", "every-checkpoint")
        hub.mend()
        assert f"to try again: vit-hf push {run} tester/digits" in printed
        assert printed.count("was not pushed") <= 2  # of the checkpoints in a row the first, and the end
        assert (run / "README.md").is_file()
        check_folder(run / "checkpoints" / "step-00000003")
        assert digest(run)["model.safetensors"] == digest(finished)["model.safetensors"]  # bit for bit
        assert not [path for path in run.rglob(".*") if "push" in path.name]


def test_a_snapshot_that_cannot_be_made_is_a_warning(client, hub, tmp_path):
    client.run(f"""
from pathlib import Path
from vit_hf.sharing.background import BackgroundPush
push = BackgroundPush("tester/digits")
push(Path({str(tmp_path)!r}))
push(Path({str(tmp_path / "gone")!r}))
value = push.wait()
""")
    assert f"tester/digits was not pushed: {tmp_path} has no model.safetensors" in client.log
    assert f"to push it: vit-hf push {tmp_path} tester/digits" in client.log
    assert list(tmp_path.iterdir()) == []
    assert hub.repos == {}


def test_of_the_checkpoints_that_come_while_one_is_sent_only_the_newest_is(client, hub, model, tmp_path):
    steps = [save_model(tmp_path / "checkpoints" / f"step-0000000{step}", seed=step) for step in (1, 2, 3, 4)]
    hub.fail("commit", "hang")
    client.run(f"""
import shutil
from pathlib import Path
from vit_hf.sharing.background import BackgroundPush
push = BackgroundPush("tester/digits")
for step in {[str(step) for step in steps]!r}:
    push(Path(step))
    shutil.rmtree(step)  # rotation
value = push.wait()
""")
    messages = [message for _, message in hub.log("tester/digits")]
    assert messages == [f"Training in progress, step-0000000{step}" for step in (4, 1)] + ["initial commit"]
    expected = save_model(tmp_path / "again", seed=4)
    assert hub.files("tester/digits")["model.safetensors"] == (expected / "model.safetensors").read_bytes()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--push-to-hub", "digits"], "expected OWNER/NAME"),
        (["--push-to-hub", "tester/digits"], "HF_HUB_OFFLINE is set"),
        (["--public"], "add --push-to-hub"),
    ],
)
def test_what_can_be_known_before_a_run_is_said_before_it(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert main(["train", "digits", "--output", str(tmp_path / "run"), *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------- the Trainer
TRAINER = """
import warnings
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from transformers import TrainingArguments
from vit_hf import VitHfForImageClassification, VitHfImageProcessor, VitHfTrainer
features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog", "a bird"])})
rows = {"image": [Pictures.new("RGB", (8, 8), (80 * i % 255, 9, 9)) for i in range(12)], "label": [0, 1, 2] * 4}
data = Dataset.from_dict(rows, features=features)
args = TrainingArguments(output_dir=OUTPUT, max_steps=3, per_device_train_batch_size=4, save_strategy="steps",
                         save_steps=1, save_total_limit=1, report_to="none", use_cpu=True, disable_tqdm=True,
                         push_to_hub=True, **OPTIONS)
model = VitHfForImageClassification.from_pretrained(MODEL)
trainer = VitHfTrainer(model, args, train_dataset=data, processing_class=VitHfImageProcessor.from_pretrained(MODEL))
trainer.train()
value = str(trainer.push_to_hub(license="mit").oid)
"""


def test_the_trainer_pushes_every_save_and_the_end_by_allow_list(client, hub, model, tmp_path):
    options = {"hub_model_id": "tester/trained", "hub_strategy": "every_save"}
    output = tmp_path / "output"
    commit = client.run(f"MODEL, OUTPUT, OPTIONS = {str(model)!r}, {str(output)!r}, {options!r}\n{TRAINER}")
    messages = [message for _, message in hub.log("tester/trained")]
    assert messages[0] == "End of training"
    assert "Training in progress, step 3" in messages
    assert commit == hub.log("tester/trained")[0][0]
    for sha, _ in hub.log("tester/trained")[:-1]:
        assert set(hub.files("tester/trained", sha)) == MODEL | {".gitattributes"}
    assert hub.repos["model", "tester/trained"].private
    card = hub.files("tester/trained")["README.md"].decode()
    assert "license: mit" in card
    assert "generated_from_trainer" not in card
    assert card == (output / "README.md").read_text()
    assert hub.files("tester/trained")["model.safetensors"] == (output / "model.safetensors").read_bytes()


def test_a_strategy_that_uploads_the_optimiser_is_refused(client, hub, model, tmp_path):
    options = {"hub_model_id": "tester/trained", "hub_strategy": "checkpoint"}
    with pytest.raises(
        CallError, match=r"hub_strategy 'checkpoint' uploads optimiser state.*use one of end, every_save"
    ):
        client.run(f"MODEL, OUTPUT, OPTIONS = {str(model)!r}, {str(tmp_path / 'out')!r}, {options!r}\n{TRAINER}")
    assert hub.repos == {}


# ------------------------------------------------------------------------------------------- commands
def test_the_commands_print_where_and_what_to_type_next(client, hub, model, tmp_path):
    printed = client.run(f"""
import io, contextlib
from vit_hf.cli import main
with contextlib.redirect_stdout(io.StringIO()) as printed:
    codes = [main(["push", {str(model)!r}, "tester/tiny", "--public", "--tag", "v1", "--license", "mit"]),
             main(["pull", "tester/tiny", {str(tmp_path / "out")!r}, "--revision", "v1"])]
value = [codes, printed.getvalue()]
""")
    assert printed[0] == [0, 0]
    for words in (f"{hub.url}/tester/tiny (public)", f"commit {hub.log(REPO)[0][0]}", "vit-hf pull tester/tiny tiny",
                  "from_pretrained('tester/tiny", f"{tmp_path / 'out'}: 11 files"):  # fmt: skip
        assert words in printed[1], printed[1]
    check_folder(tmp_path / "out")


# ------------------------------------------------------------------------------------------- the token
def test_the_token_is_in_no_byte_that_was_sent_logged_or_written(client, hub, process, tmp_path):
    """Runs last: all that the tests above have sent and printed is looked through."""
    train_and_push(client, tmp_path / "run", "--hub-strategy", "every-checkpoint")
    secret = hub.TOKEN.encode()
    assert any(b"POST /api/repos/create" in block for block in hub.received)
    assert not [block[:200] for block in hub.received if secret in block]
    assert hub.TOKEN not in process.log
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert not [repo for repo in hub.repos.values() for commit in repo.commits.values()
                for blob in commit.files.values() if secret in blob.body]  # fmt: skip
