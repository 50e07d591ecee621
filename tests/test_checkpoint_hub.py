"""Checkpoints by their Hub id, through the real client, from a Hub on the loopback interface."""

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import timm
import torch
import transformers
from hub_server import Hub
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.models import save_for_hf
from transformers.utils.logging import disable_progress_bar

from vit_hf.checkpoints import files
from vit_hf.checkpoints.load import load_checkpoint

disable_progress_bar()
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96,
         "image_size": 32, "patch_size": 8, "id2label": {0: "cat", 1: "dog", 2: "owl"}}  # fmt: skip
# One new process loads everything: the client reads its variables when it is imported.
LOAD = """
import hashlib, json, sys
import torch
torch.set_num_threads(1)
from vit_hf import load_checkpoint

found = {}
for name, (repo, options) in json.loads(sys.argv[1]).items():
    try:
        model = load_checkpoint(repo, **options)
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        found[name] = {"kinds": kinds, "message": str(error)}
        continue
    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    found[name] = {
        "weights": hashlib.sha256(weights).hexdigest(),
        "config": model.config.to_dict(),
        "processor": json.loads(model.image_processor.to_json_string()),
        "origin": model.receipt.origin,
        "files": [record.name for record in model.receipt.files],
    }
print("RESULT" + json.dumps(found, default=str))
"""


def describe(model) -> dict:
    """What the process above says of a model."""
    weights = b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
    return {
        "weights": hashlib.sha256(weights).hexdigest(),
        "config": json.loads(json.dumps(model.config.to_dict(), default=str)),
        "processor": json.loads(model.image_processor.to_json_string()),
    }


def load_in_a_new_process(environment, **cases):
    done = subprocess.run(
        [sys.executable, "-c", LOAD, json.dumps(cases)],
        env={**os.environ, **environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "RESULT" in done.stdout, done.stderr
    return json.loads(done.stdout.split("RESULT")[1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory, randomise):
    """Folders as the three libraries write them."""
    root = tmp_path_factory.mktemp("repos")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 2,
             "num_classes": 3}  # fmt: skip
    model = randomise(timm.create_model("vit_base_patch16_224", **sizes))
    save_for_hf(model, root / "timm", model_args=sizes, safe_serialization=True)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3)
    for name, seed in (("vit", 0), ("vit v2", 1), ("shards", 2), ("bin", 3)):
        model = randomise(transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)), seed=seed)
        if name == "bin":
            model.config.save_pretrained(root / name)
            torch.save(model.state_dict(), root / name / "pytorch_model.bin")
        else:
            model.save_pretrained(root / name, max_shard_size="40KB" if name == "shards" else "1GB")
        processor.save_pretrained(root / name)
    deit = randomise(transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**SIZES)))
    deit.save_pretrained(root / "deit")
    settings = {"feature_extractor_type": "DeiTFeatureExtractor", "size": 36, "crop_size": 32, "resample": 3,
                "do_center_crop": True, "image_mean": [0.485, 0.456, 0.406]}  # fmt: skip
    (root / "deit" / "preprocessor_config.json").write_text(json.dumps(settings))
    (root / "card").mkdir()
    (root / "card" / "README.md").write_text("# No weights here\n")
    return root


@pytest.fixture(scope="module")
def loaded(folders, tmp_path_factory):
    """Load everything twice over the network, then without: (hub, first time, second time, offline)."""
    home = tmp_path_factory.mktemp("home")
    repos = {"timm/tiny": "timm", "google/tiny-vit": "vit", "facebook/deit-tiny": "deit", "someone/bin-only": "bin",
             "someone/sharded": "shards", "someone/card-only": "card"}  # fmt: skip
    with Hub() as hub:
        for repo, name in repos.items():
            hub.add(repo, folders / name)
        commit = hub.add("google/tiny-vit", folders / "vit v2", "v2")
        cases = {
            "timm": ("timm/tiny", {}),
            "vit": ("google/tiny-vit", {}),
            "deit": ("facebook/deit-tiny", {}),
            "bin": ("someone/bin-only", {}),
            "shards": ("someone/sharded", {}),
            "vit v2": ("google/tiny-vit", {"revision": "v2"}),
            "commit": ("google/tiny-vit", {"revision": commit}),
            "card": ("someone/card-only", {}),
            "no repo": ("nobody/nothing", {}),
            "no revision": ("google/tiny-vit", {"revision": "v3"}),
            "no id": ("a--b/c..d", {}),
        }
        first = load_in_a_new_process(hub.environment(home), **cases)
        asked = list(hub.requests)
        offline = {**hub.environment(home), "HF_HUB_OFFLINE": "1"}
        cases["not cached"] = ("timm/other", {})
        second = load_in_a_new_process(offline, **cases)
        assert hub.requests == asked  # offline means offline
    return asked, first, second


NAMES = ["timm", "vit", "deit", "bin", "shards", "vit v2"]


@pytest.mark.parametrize("name", NAMES)
def test_a_repo_gives_what_its_folder_gives(loaded, folders, name):
    found = loaded[1][name]
    assert "message" not in found, found
    expected = describe(load_checkpoint(folders / name))
    assert {key: found[key] for key in expected} == expected
    assert len(found["files"]) > 1 if name == "shards" else len(found["files"]) == 1


def test_side_files_come_along(loaded):
    first = loaded[1]
    assert first["vit"]["config"]["id2label"] == {"0": "cat", "1": "dog", "2": "owl"}
    assert first["vit"]["processor"]["resample"] == 3
    assert first["deit"]["config"]["distilled"] is True
    assert first["deit"]["processor"]["size"] == {"height": 36, "width": 36}
    assert first["timm"]["config"]["num_attention_heads"] == 4
    assert first["bin"]["files"] == ["pytorch_model.bin"]


def test_a_commit_is_a_revision_too(loaded):
    assert loaded[1]["commit"]["weights"] == loaded[1]["vit v2"]["weights"] != loaded[1]["vit"]["weights"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("no repo", "OSError", "Repository Not Found"),
        ("no revision", "OSError", "Revision Not Found"),
        ("card", "CheckpointError", "someone/card-only on the Hub has none of model.safetensors"),
        ("no id", "CheckpointError", "a--b/c..d"),
    ],
)
def test_what_is_not_there_is_one_clear_error(loaded, name, kind, words):
    found = loaded[1][name]
    assert kind in found["kinds"]
    assert words in found["message"]


@pytest.mark.parametrize("name", [*NAMES, "commit"])
def test_the_second_time_the_cache_is_enough_offline(loaded, name):
    assert loaded[2][name] == loaded[1][name]


@pytest.mark.parametrize("name", ["not cached", "no repo", "no revision"])
def test_offline_without_a_cached_copy_says_so(loaded, name):
    found = loaded[2][name]
    assert "OSError" in found["kinds"]
    assert "HF_HUB_OFFLINE" in found["message"]
    assert "run `hf download " in found["message"]  # what mends it, to the letter


def test_every_file_is_fetched_once(loaded, folders):
    fetched = [request for request in loaded[0] if request.startswith("GET /google/tiny-vit/resolve/main/")]
    assert sorted(fetched) == [
        f"GET /google/tiny-vit/resolve/main/{name}" for name in ("config.json", "preprocessor_config.json")
    ]
    for name in ("vit", "vit v2"):  # large files come from the Hub's storage, by their SHA-256
        weights = hashlib.sha256((folders / name / "model.safetensors").read_bytes()).hexdigest()
        assert len([request for request in loaded[0] if request.endswith(weights)]) == 1


def test_no_answer_is_an_error_and_not_an_empty_repo(monkeypatch):
    def no_answer(*_, **__):  # what the client raises after half a minute of trying
        raise LocalEntryNotFoundError("Please check your connection and try again.") from ConnectionError("refused")

    monkeypatch.setattr(files, "hf_hub_download", no_answer)
    monkeypatch.setattr(files.constants, "HF_HUB_OFFLINE", False)  # whatever the tests' own process is told
    with pytest.raises(OSError, match=r"cannot be reached \(refused\); .*`hf download google/tiny-vit --local-dir"):
        load_checkpoint("google/tiny-vit")


# ---------------------------------------------------------------------------------------------- the server itself
def test_the_server_gives_parts_of_files_and_describes_repos(tmp_path):
    (tmp_path / "a.txt").write_text("0123456789")
    with Hub() as hub:
        commit = hub.add("me/mine", tmp_path)
        part = urllib.request.Request(f"{hub.url}/me/mine/resolve/main/a.txt", headers={"Range": "bytes=3-5"})
        with urllib.request.urlopen(part) as answer:
            assert (answer.status, answer.read()) == (206, b"345")
            assert answer.headers["Content-Range"] == "bytes 3-5/10"
            assert answer.headers["X-Repo-Commit"] == commit
        with urllib.request.urlopen(f"{hub.url}/api/models/me/mine/revision/main") as answer:
            described = json.load(answer)
        assert (described["sha"], described["siblings"]) == (commit, [{"rfilename": "a.txt"}])
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{hub.url}/api/models/me/other")
        assert caught.value.headers["X-Error-Code"] == "RepoNotFound"
        caught.value.close()
