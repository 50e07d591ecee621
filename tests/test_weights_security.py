"""The manifest of a model folder: written with every save, believed at every load, from a folder and from the Hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import Hub
from safetensors.torch import save_file
from transformers import AutoModel, PreTrainedModel, pipeline
from transformers.utils.hub import PushToHubMixin

from vit_hf import (
    VitHfForImageClassification,
    VitHfForMaskedImageModeling,
    VitHfImageProcessor,
    VitHfModel,
    load_checkpoint,
)
from vit_hf.files_vit_hf import is_inside, leads_away, read_manifest, sha256
from vit_hf.training.state import DamagedFolderError, RunFolder, check_folder, describe_files
from vit_hf.training.trainer_checkpoint import newest_checkpoint, seal

MANIFEST, WEIGHTS, INDEX = "manifest.json", "model.safetensors", "model.safetensors.index.json"
LOAD = VitHfForImageClassification.from_pretrained


@pytest.fixture
def model(tiny, randomise):
    return randomise(VitHfForImageClassification(tiny()))


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def listed(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text())


def damage(file: Path) -> None:
    """Flip the last bit, which is of a weight."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


# ------------------------------------------------------------------------------------------- what a save leaves
@pytest.mark.parametrize("model_class", [VitHfModel, VitHfForImageClassification, VitHfForMaskedImageModeling])
def test_a_save_lists_all_its_files_with_size_and_digest(model_class, tiny, tmp_path):
    model_class(tiny()).save_pretrained(tmp_path)
    assert listed(tmp_path) == describe_files(tmp_path)
    assert set(listed(tmp_path)) == {
        "config.json",
        WEIGHTS,
        "configuration_vit_hf.py",
        "files_vit_hf.py",
        "inference_vit_hf.py",
        "masked_vit_hf.py",
        "modeling_vit_hf.py",
    }


def test_a_save_of_other_shards_drops_those_before_it_and_their_entries(model, tmp_path):
    for size, shards in (("20KB", True), ("1GB", False), ("30KB", True), ("20KB", True)):
        model.save_pretrained(tmp_path, max_shard_size=size)
        assert listed(tmp_path) == describe_files(tmp_path)
        assert ((tmp_path / INDEX).exists(), (tmp_path / WEIGHTS).exists()) == (shards, not shards)


def test_the_weights_of_the_last_save_are_loaded_whatever_lay_there(model, randomise, tmp_path):
    for seed, size in ((1, "1GB"), (2, "20KB"), (3, "1GB")):
        randomise(model, seed).save_pretrained(tmp_path, max_shard_size=size)
        assert torch.equal(LOAD(tmp_path).vit.norm.weight, model.vit.norm.weight)


def test_a_save_keeps_the_entries_of_other_files(model, folder):
    entry = {"bytes": 1, "sha256": "0" * 64}
    (folder / MANIFEST).write_text(json.dumps({**listed(folder), "README.md": entry, "training/x": entry}))
    model.save_pretrained(folder)
    assert (listed(folder)["README.md"], listed(folder)["training/x"]) == (entry, entry)


def test_processor_and_config_keep_a_manifest_right_and_make_none(model, folder, tmp_path):
    model.config.id2label = {**model.config.id2label, 0: "fox"}
    model.config.label2id = None
    model.config.save_pretrained(folder)
    VitHfImageProcessor(size=(16, 24)).save_pretrained(folder)
    assert listed(folder) == describe_files(folder)
    assert "preprocessor_config.json" in listed(folder)
    VitHfImageProcessor(size=(16, 24)).save_pretrained(tmp_path / "alone")
    model.config.save_pretrained(tmp_path / "alone")
    assert not (tmp_path / "alone" / MANIFEST).exists()


def test_a_manifest_that_says_nothing_is_written_anew(model, folder):
    (folder / MANIFEST).write_text('{"../x": 7')
    model.save_pretrained(folder)
    assert listed(folder) == describe_files(folder)


def test_another_process_than_the_main_one_writes_nothing(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "no", is_main_process=False)
    assert not (tmp_path / "no" / MANIFEST).exists()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda self, path, *_, **__: Path(path).mkdir())
    model.save_pretrained(tmp_path / "second")
    assert not (tmp_path / "second" / MANIFEST).exists()


def test_a_save_never_writes_through_a_link(model, folder, tmp_path):
    for name in ("config.json", WEIGHTS, "modeling_vit_hf.py"):
        victim = tmp_path / f"victim {name}"
        victim.write_text("mine")
        (folder / name).unlink()
        (folder / name).symlink_to(victim)
        with pytest.raises(OSError, match=re.escape(f"holds links ({name}) that would be written through")):
            model.save_pretrained(folder)
        assert victim.read_text() == "mine"
        (folder / name).unlink()
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).symlink_to(victim)
    model.save_pretrained(folder)
    assert victim.read_text() == "mine"
    assert not (folder / MANIFEST).is_symlink()


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_a_push_has_the_manifest_of_what_it_uploads(how, model, tmp_path, monkeypatch):
    """Up to the upload itself, which the tests of sharing do over HTTP."""
    uploaded = []

    class Api:
        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})

    class Card:
        def save(self, path):
            Path(path).write_text("card")

    def upload(self, folder, *_, **__):
        uploaded.append((listed(Path(folder)), describe_files(Path(folder))))

    for module in ("transformers.utils.hub", "transformers.modeling_utils"):
        monkeypatch.setattr(f"{module}.hf_api", Api)
        monkeypatch.setattr(f"{module}.create_and_tag_model_card", lambda *_, **__: Card())
    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    if how == "push_to_hub":
        model.push_to_hub("owner/name")
    else:
        model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="owner/name")
    said, found = uploaded[0]
    assert found.pop("README.md")
    assert said == found


def test_a_run_folder_is_never_seen_with_a_manifest_of_other_files(model, randomise, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    run.publish_root(model.save_pretrained)
    randomise(model, seed=5)
    seen = []

    def replace(source, target, real=os.replace):
        real(source, target)
        if (run.path / MANIFEST).exists():
            check_folder(run.path)
        seen.append((Path(target).name, torch.is_tensor(LOAD(run.path).vit.norm.weight)))

    monkeypatch.setattr(os, "replace", replace)
    run.publish_root(model.save_pretrained)
    run.close()
    assert {name for name, _ in seen} == {*describe_files(run.path), MANIFEST} - {"checkpoints/.lock"}
    assert seen[-1][0] == MANIFEST
    assert torch.equal(LOAD(run.path).vit.norm.weight, model.vit.norm.weight)


# ------------------------------------------------------------------------------------------- what a load believes
@pytest.mark.parametrize("load", [LOAD, VitHfModel.from_pretrained, AutoModel.from_pretrained])
def test_weights_that_differ_from_the_manifest_are_refused_with_file_and_remedy(load, folder):
    damage(folder / WEIGHTS)
    digest = sha256(folder / WEIGHTS)
    with pytest.raises(
        OSError, match=re.escape(f"{folder / WEIGHTS} is not what manifest.json beside it says")
    ) as found:
        load(folder)
    for words in (f"sha256 {digest}, expected {listed(folder)[WEIGHTS]['sha256']}", "force_download=True",
                  "copy it anew", "remove its entry from manifest.json"):  # fmt: skip
        assert words in str(found.value)


def test_weights_of_another_size_than_in_the_manifest_are_refused(model, folder, tmp_path):
    said = listed(folder)
    model.half().save_pretrained(tmp_path / "half")
    shutil.copy(tmp_path / "half" / WEIGHTS, folder)
    size = (folder / WEIGHTS).stat().st_size
    with pytest.raises(OSError, match=re.escape(f"says: bytes {size}, expected {said[WEIGHTS]['bytes']}")):
        LOAD(folder)


def test_a_damaged_shard_is_named(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[2]
    damage(shard)
    with pytest.raises(OSError, match=re.escape(f"{shard} is not what manifest.json")):
        LOAD(tmp_path)


def test_only_the_weights_that_are_read_are_compared(model, folder):
    config = json.loads((folder / "config.json").read_text())
    names = {str(index): f"kind {index}" for index in range(5)}
    config.update(id2label=names, label2id=None)
    (folder / "config.json").write_text(json.dumps(config))  # by hand
    (folder / "modeling_vit_hf.py").write_text("")
    assert LOAD(folder).config.id2label[3] == "kind 3"


@pytest.mark.parametrize("how", ["no manifest", "no entry"])
def test_what_no_manifest_lists_is_not_compared(how, folder):
    damage(folder / WEIGHTS)
    entries = listed(folder)
    del entries[WEIGHTS]
    (folder / MANIFEST).write_text(json.dumps(entries))
    if how == "no manifest":
        (folder / MANIFEST).unlink()
    LOAD(folder)


def test_a_hundred_megabytes_are_hashed_in_a_tenth_of_a_second(tmp_path):
    import time

    with open(tmp_path / "weights", "wb") as file:
        file.write(os.urandom(1 << 20) * 86)  # a quarter of B/16
    times = []
    for _ in range(3):
        began = time.process_time()
        sha256(tmp_path / "weights")
        times.append(time.process_time() - began)
    assert min(times) < 0.3  # 0.075 s on a free core; four times that for a busy or older one


def test_a_load_leaves_the_random_numbers_as_they_were(folder):
    """The comparison with the config makes no weights."""
    torch.manual_seed(1)
    LOAD(folder)
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(
    ("name", "inside"),
    [("model.safetensors", True), ("a/b.json", True), ("..a", True), ("ä", True), ("../a", False), ("/a", False),
     ("a/../b", False), ("C:a", False), ("a\\b", False), ("", False), ("a\0", False), ("a//b", False), (".", False),
     ("a\n", False), (7, False), (None, False), ("a/", False)],
)  # fmt: skip
def test_names_that_lead_out_of_a_folder_are_told(name, inside):
    assert is_inside(name) is inside


def test_a_manifest_may_list_files_in_folders(tmp_path):
    entries = {"training/a.json": {"bytes": 0, "sha256": "a" * 64}}
    (tmp_path / MANIFEST).write_text(json.dumps(entries))
    assert read_manifest(tmp_path / MANIFEST) == entries


# ------------------------------------------------------------------------------------------- links
def test_a_snapshot_of_the_cache_is_a_folder_like_any_other(model, tmp_path):
    """Its files are links to blobs beside the snapshots."""
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    home = tmp_path / "hub" / "models--owner--name"
    snapshot, blobs = home / "snapshots" / ("a" * 40), home / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate((tmp_path / "model").iterdir()):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert torch.equal(LOAD(snapshot).vit.norm.weight, model.vit.norm.weight)
    assert not leads_away(snapshot / WEIGHTS)
    outside = tmp_path / "outside.safetensors"
    shutil.copy(snapshot / INDEX, outside)
    shard = next(snapshot.glob("model-*.safetensors"))
    shard.unlink()
    shard.symlink_to(outside)
    assert leads_away(shard)
    with pytest.raises(OSError, match=f"{shard.name} is a link to .*, outside of the folder"):
        LOAD(snapshot)


def test_a_shard_of_another_library_may_not_be_a_link_out_of_its_folder(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "one.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (tmp_path / "vit" / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors"}}))
    with pytest.raises(ValueError, match=r"one\.safetensors is a link to .*, outside of its folder"):
        load_checkpoint(tmp_path / "vit")


# ------------------------------------------------------------------------------------------- foreign files
def test_an_archive_that_unpacks_to_very_much_is_refused_before_it_is_read(tmp_path):
    import zipfile

    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.npy", "w") as file,
    ):
        for _ in range(280):
            file.write(bytes(1 << 20))
    with pytest.raises(ValueError, match=r"unpacks from [\d,]+ to 293,601,280 bytes; save it uncompressed"):
        load_checkpoint(tmp_path / "bomb.npz")


def test_a_tensor_that_repeats_one_number_a_trillion_times_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "wide.pth")
    with pytest.raises(ValueError, match="a repeats its numbers instead of holding them"):
        load_checkpoint(tmp_path / "wide.pth")


# ------------------------------------------------------------------------------------------- the Hub
HUB = """
import json, sys, urllib.request
import torch
torch.set_num_threads(1)
import transformers
transformers.utils.logging.disable_progress_bar()
from vit_hf import VitHfForImageClassification

def load(**more):
    found = {}
    for name, (repo, options) in json.loads(sys.argv[1]).items():
        try:
            model = VitHfForImageClassification.from_pretrained(repo, **options, **more)
            found[name] = [model.vit.norm.weight.sum().item(), model.name_or_path]
        except (OSError, ValueError) as error:
            found[name] = str(error)
    return found

online = load()
urllib.request.urlopen(sys.argv[2] + "/api/models/me/bare").read()
print("RESULT" + json.dumps([online, load(local_files_only=True)]))
"""


def test_weights_from_the_hub_are_compared_with_the_manifest_of_their_commit(model, randomise, tmp_path):
    totals = {}
    for seed, name in enumerate(("one", "two", "shards", "deep/inside", "bare", "flipped")):
        randomise(model, seed).save_pretrained(tmp_path / name, max_shard_size="20KB" if name == "shards" else "1GB")
        totals[name] = model.vit.norm.weight.sum().item()
    damage(tmp_path / "flipped" / WEIGHTS)
    (tmp_path / "bare" / MANIFEST).unlink()
    with Hub() as hub:
        commit = hub.add("me/model", tmp_path / "one")
        hub.add("me/model", tmp_path / "two", revision="v2")
        for name in ("shards", "deep", "bare", "flipped"):
            hub.add(f"me/{name}", tmp_path / name)
        cases = {
            "main": ("me/model", {}),
            "branch": ("me/model", {"revision": "v2"}),
            "commit": ("me/model", {"revision": commit}),
            "shards": ("me/shards", {}),
            "subfolder": ("me/deep", {"subfolder": "inside"}),
            "bare": ("me/bare", {}),
            "flipped": ("me/flipped", {}),
            "by force": ("me/model", {"force_download": True}),
        }
        done = subprocess.run(
            [sys.executable, "-c", HUB, json.dumps(cases), hub.url],
            env={**os.environ, **hub.environment(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert "RESULT" in done.stdout, done.stderr
        online, offline = json.loads(done.stdout.split("RESULT")[1])
        held = {sha256(tmp_path / name / WEIGHTS) for name in ("one", "two")}
        sent = [request for request in hub.requests if request.startswith("GET") and request.rpartition("/")[2] in held]
        assert len(sent) == 3  # main, v2, and by force
        asked = [request for request in hub.requests if request.endswith(WEIGHTS)]
        assert asked
        assert all(re.search(r"/resolve/[0-9a-f]{40}/", request) for request in asked)  # of the config's commit
        assert hub.requests[-1] == "GET /api/models/me/bare"  # and nothing after it, offline
    message = online.pop("flipped")
    assert re.search(r"flipped.*model\.safetensors is not what manifest\.json beside it says: sha256", message)
    assert offline.pop("flipped") == message
    assert online.pop("by force")[0] == totals["one"]
    offline.pop("by force")
    names = {"main": "one", "branch": "two", "commit": "one", "shards": "shards", "subfolder": "deep/inside",
             "bare": "bare"}  # fmt: skip
    assert {name: total for name, (total, _) in online.items()} == {name: totals[at] for name, at in names.items()}
    assert offline == online
    assert online["branch"][1] == "me/model"


def test_the_pipeline_refuses_damaged_weights_too(folder):
    VitHfImageProcessor(size=(16, 24)).save_pretrained(folder)
    damage(folder / WEIGHTS)
    with pytest.raises(Exception, match=r"model\.safetensors is not what manifest\.json beside it says"):
        pipeline("image-classification", str(folder))


def test_an_adapter_beside_a_model_is_not_loaded_unasked(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds an adapter beside the model .*PeftModel\.from_pretrained"):
        LOAD(folder)


def test_a_trainer_checkpoint_counts_from_its_seal_and_not_from_the_manifest_of_the_model(model, tmp_path, caplog):
    for step in (1, 2):
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-1" / "training_state.json").write_text("{}")
    seal(tmp_path / "checkpoint-1")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    assert "checkpoint-2 is half-written" in caplog.text
    (tmp_path / "checkpoint-1" / MANIFEST).write_text("{")
    with pytest.raises(DamagedFolderError, match=r"checkpoint-1/manifest\.json cannot be read"):
        newest_checkpoint(tmp_path)
