"""Data sets of the Hub: pushed by `datasets`, loaded by vit_hf online and then from the cache, over HTTP."""

import pytest
from hub_client import Client, ClientError
from hub_server import Hub

NAMES = ["cat", "dog", "owl"]
PUSH = """
import datasets, numpy as np, PIL.Image
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

def split(count, seed):
    pixels = np.random.default_rng(seed).integers(0, 255, (count, 8, 12, 3), dtype=np.uint8)
    rows = {"picture": [PIL.Image.fromarray(image) for image in pixels], "kind": [row % 3 for row in range(count)]}
    return Dataset.from_dict(rows, features=Features({"picture": Image(), "kind": ClassLabel(names=names)}))

first = DatasetDict(train=split(9, 0), test=split(6, 1))
second = DatasetDict(train=split(12, 2), test=split(6, 1))
first.push_to_hub("tester/pets", private=True)
api.create_tag("tester/pets", tag="v1", repo_type="dataset")
second.push_to_hub("tester/pets")
def pixels(splits):
    return {name: [int(np.asarray(row["picture"]).astype(int).sum()) for row in rows] for name, rows in splits.items()}
result = [pixels(first), pixels(second)]
"""
LOAD = """
import io, logging, numpy as np, PIL.Image
from vit_hf.data.images import read_image
from vit_hf.data.sources import load_source

class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

lines = []
logging.getLogger("vit_hf").addHandler(Lines())
found = load_source(name, **options)
result = {
    "name": found.name, "kind": found.kind, "revision": found.revision, "label_names": found.label_names,
    "columns": [found.image_column, found.label_column], "lines": lines,
    "labels": {split: [row["kind"] for row in rows] for split, rows in found.splits.items()},
    "pixels": {split: [int(np.asarray(PIL.Image.open(io.BytesIO(row["picture"]["bytes"]))).astype(int).sum())
                       for row in rows] for split, rows in found.splits.items()},
}
"""
CASES = {
    "newest": {},
    "tag": {"revision": "v1"},
    "branch": {"revision": "main"},
    "streamed": {"streaming": True},
}


def refused(client, name, **options):
    with pytest.raises(ClientError) as caught:
        client.run(LOAD, name=name, options=options)
    return caught.value


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """Push twice; load online, offline, and with the Hub gone: (commits, newest first; pixels; found; errors)."""
    home = tmp_path_factory.mktemp("home")
    found, errors = {"online": {}, "offline": {}, "unreachable": {}}, {}
    hub = Hub()
    with Client(hub.environment(home)) as client:
        with hub:
            pixels = client.run(PUSH, names=NAMES)
            commits = [sha for sha, _ in hub.log("tester/pets", "dataset")]
            for case, options in {**CASES, "commit": {"revision": commits[1]}}.items():
                found["online"][case] = client.run(LOAD, name="tester/pets", options=options)
            errors["no repo"] = refused(client, "tester/nothing")
            errors["no revision"] = refused(client, "tester/pets", revision="v9")
            errors["no config"] = refused(client, "tester/pets", config_name="other")
            hub.fail("info", "status", status=500)
            found["online"]["failing"] = client.run(LOAD, name="tester/pets", options={"revision": commits[1]})
            token = client.run("import os; result = os.environ.pop('HF_TOKEN')")
            errors["no token"] = refused(client, "tester/pets")
            client.run("import os; os.environ['HF_TOKEN'] = token", token=token)
            asked = list(hub.requests)
            with Client({**hub.environment(home), "HF_HUB_OFFLINE": "1"}) as offline:
                for case, options in (("any", {}), ("tag", {"revision": "v1"}), ("older", {"revision": commits[1]}),
                                      ("newer", {"revision": commits[0]})):  # fmt: skip
                    found["offline"][case] = offline.run(LOAD, name="tester/pets", options=options)
                errors["offline"] = refused(offline, "tester/other")
                errors["commit not cached"] = refused(offline, "tester/pets", revision=commits[2])
            assert hub.requests == asked  # offline means offline
        client.run("huggingface_hub.close_session()")  # the server is gone, and with it the open connections
        found["unreachable"]["any"] = client.run(LOAD, name="tester/pets", options={})
        errors["unreachable"] = refused(client, "tester/other")
    return commits, pixels, found, errors


@pytest.mark.parametrize(
    ("case", "version"), [("newest", 1), ("tag", 0), ("branch", 1), ("streamed", 1), ("commit", 0), ("failing", 0)]
)
def test_a_pushed_data_set_is_loaded_at_its_commit(pushed, case, version):
    commits, pixels, found, _ = pushed
    got = found["online"][case]
    assert got["revision"] == commits[1 - version]
    assert (got["name"], got["kind"], got["columns"]) == ("tester/pets", "hub", ["picture", "kind"])
    assert got["label_names"] == NAMES
    assert got["pixels"] == pixels[version]
    assert got["labels"] == {split: [row % 3 for row in range(len(rows))] for split, rows in pixels[version].items()}


@pytest.mark.parametrize("case", ["older", "newer"])
def test_a_commit_is_loaded_offline_whichever_was_cached_last(pushed, case):
    commits, pixels, found, _ = pushed
    version = {"older": 0, "newer": 1}[case]
    got = found["offline"][case]
    assert got["revision"] == commits[1 - version]
    assert got["pixels"] == pixels[version]
    assert (got["columns"], got["label_names"]) == (["picture", "kind"], NAMES)


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_without_a_network_the_cached_copy_is_named(pushed, how):
    commits, pixels, found, _ = pushed
    got = found[how]["any"]
    assert got["pixels"] == pixels[commits[:2][::-1].index(got["revision"])]
    assert f"tester/pets: offline; using commit {got['revision']}, the copy in the cache made last" in got["lines"]


def test_a_tag_offline_is_named_as_unchecked(pushed):
    got = pushed[2]["offline"]["tag"]
    assert f"revision 'v1' cannot be checked; using commit {got['revision']}" in got["lines"][0]


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("no repo", "FileNotFoundError", "'tester/nothing' is no path here, and the Hub shows no such data set"),
        ("no revision", "FileNotFoundError", "'tester/pets' at revision 'v9' is no path here, and the Hub shows no"),
        ("no config", "ValueError", "(config other) cannot be loaded"),
        ("no token", "FileNotFoundError", "log in with `hf auth login` if it is private"),
        ("offline", "ConnectionError", "an offline switch is set"),
        ("unreachable", "ConnectionError", "hf download --repo-type dataset tester/other --local-dir DIR"),
        ("commit not cached", "ValueError", "go online to fetch it"),
    ],
)
def test_what_cannot_be_loaded_is_the_promised_error(pushed, case, kind, words):
    error = pushed[3][case]
    assert error.kinds[0] == kind
    assert words in error.message
