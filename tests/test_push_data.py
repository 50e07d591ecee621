"""Image sets pushed to data set repos through the real clients, to a Hub on the loopback interface."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from hub_server import Hub
from huggingface_hub.errors import HfHubHTTPError

from vit_hf.cli import main
from vit_hf.data.sources import load_source
from vit_hf.sharing.data_record import describe_source
from vit_hf.sharing.dataset import _clear_errors

# The clients read their variables when they are imported: one process does all that a user would do, line by line.
USER = """
import contextlib, io, json, os, re, sys, time
time.sleep = lambda seconds: None
import datasets
from vit_hf.cli import main
from vit_hf.data.sources import fingerprint, load_source

def run(arguments, token=None):
    out, err = io.StringIO(), io.StringIO()
    before = os.environ["HF_TOKEN"]
    os.environ["HF_TOKEN"] = before if token is None else token
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    os.environ["HF_TOKEN"] = before
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}

def load(repo, **options):
    source = load_source(repo, **options)
    columns = (source.image_column, source.label_column)
    prints = {name: fingerprint(split, *columns) for name, split in source.splits.items()}
    return {"fingerprints": prints, "label_names": source.label_names, "label_column": source.label_column,
            "revision": source.revision}

def snippet(code):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(code)
    return out.getvalue()

answers = sys.stdout
for line in sys.stdin:
    name, arguments, options = json.loads(line)
    with contextlib.redirect_stdout(sys.stderr):
        answer = {"run": run, "load": load, "snippet": snippet}[name](*arguments, **options)
    print(json.dumps(answer), file=answers, flush=True)
"""


class User:
    """A process with a token of its own and a clean cache, whose endpoint is the local Hub."""

    def __init__(self, hub, home):
        environment = {**os.environ, **hub.environment(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, name, *arguments, **options):
        self.process.stdin.write(json.dumps([name, arguments, options]) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process has ended"
        return json.loads(answer)

    def push(self, *arguments, token=None, tries=1):
        """Push, and return what was printed; each try before the last is one line on stderr."""
        found = self.ask("run", ["push-data", *map(str, arguments)], token=token)
        assert (found["code"], found["err"].count("; next try in ")) == (0, tries - 1)
        assert found["err"].count("\n") == tries - 1
        return found["out"]

    def fails(self, *arguments, token=None):
        """Push in vain, and return the error: one line, and nothing else."""
        found = self.ask("run", ["push-data", *map(str, arguments)], token=token)
        assert (found["code"], found["out"]) == (1, "")
        error = "\n".join(line for line in found["err"].splitlines() if "; next try in " not in line)
        assert error.startswith("vit-hf push-data: error: ")
        return error


@pytest.fixture(scope="module")
def hub():
    with Hub() as server:
        yield server


@pytest.fixture(scope="module")
def user(hub, tmp_path_factory):
    someone = User(hub, tmp_path_factory.mktemp("home"))
    yield someone
    someone.process.stdin.close()
    someone.process.wait(timeout=30)
    someone.process.stdout.close()


@pytest.fixture
def sent(hub):
    """Give a function that lists the requests since the test began that could have changed something."""
    before = len(hub.requests)
    return lambda: [request for request in hub.requests[before:] if not request.startswith(("GET", "HEAD"))]


def picture(number, size=(6, 4), **options):
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="JPEG", **options)
    return buffer.getvalue()


@pytest.fixture
def class_folders(tmp_path):
    """Give a function that makes a folder of JPEGs: classes ant and bee, 3 and 2 to train on, 1 and 1 to test."""

    def make(name="insects", first=0):
        folder = tmp_path / "a private folder" / name
        for place, number in {"train/ant": 3, "train/bee": 2, "test/ant": 1, "test/bee": 1}.items():
            (folder / place).mkdir(parents=True)
            for index in range(number):
                (folder / place / f"{first + index}.jpg").write_bytes(picture(f"{place}{first}{index}".encode()))
        return folder

    def picture(key):
        exif = PIL.Image.Exif()
        exif[0x010F] = "a camera"
        buffer = io.BytesIO()
        pixels = np.random.default_rng(list(key)).integers(0, 255, (4, 6, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(buffer, format="JPEG", exif=exif)
        return buffer.getvalue()

    return make


def fingerprints(source):
    splits = describe_source(load_source(source))["splits"]
    return {name: split["fingerprint"] for name, split in splits.items()}


def metadata(hub, repo, revision="main"):
    return yaml.safe_load(hub.files(repo, revision, "dataset")["README.md"].decode().split("---\n")[1])


def tables(hub, repo, revision="main"):
    """The Parquet files of a repo."""
    files = hub.files(repo, revision, "dataset")
    return {name: pyarrow.parquet.read_table(io.BytesIO(body)) for name, body in files.items() if ".parquet" in name}


# ------------------------------------------------------------------------------------------- what arrives
def test_digits_come_back_with_the_same_fingerprints(user, hub):
    printed = user.push("digits", "me/digits", "--license", "cc-by-4.0")
    assert "train 1,438, test 359 pictures in 10 classes" in printed
    assert f"{hub.url}/datasets/me/digits (private), commit {hub.log('me/digits', 'dataset')[0][0]}" in printed
    assert hub.repos["dataset", "me/digits"].private
    found = user.ask("load", "me/digits")
    assert found["fingerprints"] == fingerprints("digits")
    assert found["label_names"] == [str(digit) for digit in range(10)]
    card = metadata(hub, "me/digits")
    assert card["license"] == "cc-by-4.0"
    assert card["task_categories"] == ["image-classification"]
    assert card["size_categories"] == ["1K<n<10K"]
    assert [feature["name"] for feature in card["dataset_info"]["features"]] == ["image", "label"]
    assert card["dataset_info"]["features"][0]["dtype"] == "image"
    assert len(card["dataset_info"]["features"][1]["dtype"]["class_label"]["names"]) == 10


def test_the_commands_of_a_card_run(user, hub, tmp_path):
    user.push("digits", "me/digits", "--license", "cc-by-4.0")
    text = hub.files("me/digits", kind="dataset")["README.md"].decode()
    python, bash = (text.split(f"```{language}\n")[1].split("```")[0] for language in ("python", "bash"))
    assert "PIL.PngImagePlugin.PngImageFile" in user.ask("snippet", python)
    command = bash.strip().replace("RECIPE", "digits").split()[1:]
    short = [
        "--max-steps",
        "1",
        "--data.max_train_images",
        "64",
        "--trackers",
        "none",
        "--output",
        str(tmp_path / "run"),
    ]
    found = user.ask("run", [*command, *short])
    assert found["code"] == 0, found["err"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["revision"] == hub.log("me/digits", "dataset")[0][0]
    assert results["data"]["splits"]["test"]["sha256"] == fingerprints("digits")["test"]
    assert results["data"]["splits"]["test"]["sha256"] in text


def test_real_photographs_come_back_byte_by_byte(user, hub, shared_data, tmp_path):
    sample = load_source(shared_data("imagenet-1k-sample"))
    for split, dataset in sample.splits.items():
        for row in range(12):
            name = sample.label_names[dataset[row]["label"] % 4]  # a few classes, whatever they show
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{row}.JPEG").write_bytes(dataset[row]["image"]["bytes"])
    shutil.rmtree(tmp_path / "photos" / "validation")
    printed = user.push(tmp_path / "photos", "me/photos")
    assert "train 12 pictures" in printed
    assert user.ask("load", "me/photos")["fingerprints"] == fingerprints(tmp_path / "photos")


def test_files_go_up_as_they_are_and_without_their_folders(user, hub, class_folders):
    folder = class_folders()
    printed = user.push(folder, "me/insects")
    assert "7 have EXIF, 0 tell where they were taken" in printed
    found = tables(hub, "me/insects")
    assert sorted(found) == ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    images = found["data/train-00000-of-00001.parquet"]["image"].to_pylist()
    assert [image["path"] for image in images] == ["0.jpg", "1.jpg", "2.jpg", "0.jpg", "1.jpg"]
    files = [folder / "train" / place for place in ("ant/0.jpg", "ant/1.jpg", "ant/2.jpg", "bee/0.jpg", "bee/1.jpg")]
    assert [image["bytes"] for image in images] == [file.read_bytes() for file in files]
    assert b"a private folder" not in b"".join(hub.received)
    assert user.ask("load", "me/insects")["fingerprints"] == fingerprints(folder)


def test_folders_written_by_another_system_are_no_file_names(user, hub, tmp_path):
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["ant", "bee"])})
    images = [
        {"bytes": picture(number), "path": path} for number, path in enumerate(["C:\\Users\\ann\\0.jpg", "1.jpg"])
    ]
    Dataset.from_dict({"image": images, "label": [0, 1]}, features=features).to_parquet(tmp_path / "set.parquet")
    user.push(tmp_path / "set.parquet", "me/windows")
    (table,) = tables(hub, "me/windows").values()
    assert [image["path"] for image in table["image"].to_pylist()] == [None, None]
    assert b"ann" not in b"".join(body for body in hub.files("me/windows", kind="dataset").values())
    assert user.ask("load", "me/windows")["fingerprints"] == fingerprints(tmp_path / "set.parquet")


def test_only_pictures_and_labels_are_shared(user, hub, tmp_path):
    features = Features({"note": Value("string"), "img": Image(), "fine_label": ClassLabel(names=["ant", "bee", "cat"]),
                         "coarse_label": ClassLabel(names=["insect", "mammal"])})  # fmt: skip
    images = [{"bytes": picture(number), "path": None} for number in range(3)]
    columns = {"note": ["Ann's"] * 3, "img": images, "fine_label": [0, 1, 2], "coarse_label": [0, 0, 1]}
    DatasetDict({"train": Dataset.from_dict(columns, features=features)}).save_to_disk(tmp_path / "saved")
    assert "left out, neither pictures nor labels: columns note" in user.push(tmp_path / "saved", "me/notes")
    (table,) = tables(hub, "me/notes").values()
    assert table.column_names == ["img", "fine_label", "coarse_label"]
    found = user.ask("load", "me/notes")
    assert found["label_column"] == "fine_label"
    assert found["fingerprints"] == fingerprints(tmp_path / "saved")
    # with another label chosen, what would be taken for the label on the Hub stays away
    user.push(tmp_path / "saved", "me/coarse", "--data.label_column", "coarse_label")
    assert user.ask("load", "me/coarse")["label_column"] == "coarse_label"


def test_a_branch_and_a_public_repo_are_made_when_asked_for(user, hub, class_folders):
    folder = class_folders()
    printed = user.push(folder, "me/branched", "--revision", "v2", "--public")
    assert "(public)" in printed
    assert "--data.revision v2" in printed
    assert not hub.repos["dataset", "me/branched"].private
    assert list(hub.files("me/branched", kind="dataset")) == [".gitattributes"]
    assert user.ask("load", "me/branched", revision="v2")["fingerprints"] == fingerprints(folder)


def test_a_private_repo_stays_private(user, hub, class_folders):
    user.push(class_folders(), "me/hidden")
    printed = user.push(class_folders("others", first=10), "me/hidden", "--public", "--replace")
    assert "(private)" in printed
    assert "stays private; change that in its settings" in printed
    assert hub.repos["dataset", "me/hidden"].private


# ------------------------------------------------------------------------------------------- what is there already
def test_the_same_data_is_sent_once(user, hub, class_folders, sent):
    folder = class_folders()
    user.push(folder, "me/once")
    commits, posted = hub.log("me/once", "dataset"), sent()
    assert len(commits) == 3  # of the Hub, the card, the data
    assert f"holds this already, at commit {commits[0][0]}: nothing was sent" in user.push(folder, "me/once")
    assert (hub.log("me/once", "dataset"), sent()) == (commits, posted)


def test_another_licence_changes_the_card_alone(user, hub, class_folders):
    folder = class_folders()
    user.push(folder, "me/licensed")
    before, commits = hub.files("me/licensed", kind="dataset"), hub.log("me/licensed", "dataset")
    user.push(folder, "me/licensed", "--license", "mit")
    after = hub.files("me/licensed", kind="dataset")
    assert {name for name in after if after[name] != before[name]} == {"README.md", "statistics.json"}
    assert hub.log("me/licensed", "dataset")[1:] == commits
    card = metadata(hub, "me/licensed")
    assert (card["license"], card["dataset_info"]["splits"][0]["num_examples"]) == ("mit", 2)
    assert user.ask("load", "me/licensed")["fingerprints"] == fingerprints(folder)


def test_other_data_is_replaced_only_when_told(user, hub, class_folders, sent):
    user.push(class_folders(), "me/changing")
    other = class_folders("others", first=10)
    shutil.rmtree(other / "test")
    before = sent()
    message = user.fails(other, "me/changing")
    assert "me/changing holds other files (4, such as README.md); expected a new or empty repo" in message
    assert "replace its data with --replace" in message
    assert sent() == before
    user.push(other, "me/changing", "--replace")
    assert list(tables(hub, "me/changing")) == ["data/train-00000-of-00001.parquet"]
    assert [split["name"] for split in metadata(hub, "me/changing")["dataset_info"]["splits"]] == ["train"]
    assert user.ask("load", "me/changing")["fingerprints"] == fingerprints(other)


def test_a_picture_that_the_fingerprint_does_not_sample_is_other_data(user, tmp_path, monkeypatch):
    """Of many pictures the fingerprint takes 1,000; whether the Hub holds the same is asked of all."""
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=["ant", "bee"])})
    images = [{"bytes": picture(number % 7), "path": None} for number in range(1003)]
    for name in ("before", "after"):
        Dataset.from_dict({"image": images, "label": [0, 1, *[0] * 1001]}, features=features).to_parquet(
            tmp_path / f"{name}.parquet"
        )
        sampled = set(np.linspace(0, 1002, 1000).astype(int).tolist())
        changed = min(set(range(1003)) - sampled)
        images[changed] = {"bytes": picture(99), "path": None}
    assert fingerprints(tmp_path / "before.parquet") == fingerprints(tmp_path / "after.parquet")
    user.push(tmp_path / "before.parquet", "me/many")
    assert "holds other files" in user.fails(tmp_path / "after.parquet", "me/many")


def test_a_repo_with_files_of_others_is_left_alone(user, hub, tmp_path, sent):
    (tmp_path / "README.md").write_text("---\n- not: [a mapping\n---\n")
    (tmp_path / "statistics.json").write_text('["of theirs"]')
    hub.add("me/theirs", tmp_path, kind="dataset", private=True)
    assert "me/theirs holds other files (2, such as README.md)" in user.fails("digits", "me/theirs")
    assert sent() == []


def test_private_data_does_not_go_into_a_public_repo(user, hub, tmp_path, class_folders, sent):
    (tmp_path / "empty").mkdir()
    hub.add("me/open", tmp_path / "empty", kind="dataset")
    assert "me/open is public; push there with --public" in user.fails(class_folders(), "me/open")
    assert sent() == []


# ------------------------------------------------------------------------------------------- what goes wrong
def test_all_damaged_pictures_are_named_before_anything_is_sent(user, class_folders, sent):
    folder = class_folders()
    whole = (folder / "train/ant/1.jpg").read_bytes()
    (folder / "train/ant/1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "test/bee/0.jpg").write_text("<html>")
    message = user.fails(folder, "me/damaged")
    assert "2 of 7 pictures are damaged:" in message
    assert f"({folder}/train/ant/1.jpg): the image cannot be decoded" in message
    assert f"({folder}/test/bee/0.jpg): an HTML page instead of an image" in message
    assert sent() == []


def test_a_missing_or_refused_token_is_one_line_with_the_command_to_retry(user, hub, class_folders):
    folder = class_folders()
    command = f"to retry: vit-hf push-data '{folder}' me/denied --license mit"
    words = (folder, "me/denied", "--license", "mit")
    assert user.fails(*words, token="").endswith(f"log in with `hf auth login`, or set HF_TOKEN; {command}")
    message = user.fails(*words, token="hf_wrong")
    assert "the Hub does not accept the token (401)" in message
    assert message.endswith(command)
    assert "\n" not in message
    assert "hf_wrong" not in message
    hub.fail("create", "status", status=403)
    message = user.fails(*words)
    assert "the token may not write to me/denied (403: " in message
    assert message.endswith(command)


@pytest.mark.parametrize(
    ("endpoint", "how", "after", "times"),
    [("create", "reset", 0, 5), ("commit", "status", 0, 1), ("lfs_put", "status", 1, 1), ("commit", "reset", 1, 1)],
)
def test_a_broken_push_is_finished_by_the_same_command(endpoint, how, after, times, user, hub, class_folders):
    folder, repo = class_folders(), f"me/broken-{endpoint}-{how}"
    hub.fail(endpoint, how, after=after, times=times, status=400)  # 400: nobody tries that again
    message = user.fails(folder, repo)
    expected = "it answered 400 (told to fail with 400)" if how == "status" else "no answer from the Hub ("
    assert f"{repo} is not pushed: {expected}" in message
    assert message.endswith(f"push again, it goes on where it stopped; to retry: vit-hf push-data '{folder}' {repo}")
    assert "\n" not in message
    user.push(folder, repo)
    assert user.ask("load", repo)["fingerprints"] == fingerprints(folder)
    assert hub.log(repo, "dataset")[0][1] == "Upload the data"
    assert "holds this already" in user.push(folder, repo)


@pytest.mark.parametrize(("endpoint", "how", "status"), [("create", "reset", 0), ("info", "status", 503)])
def test_a_passing_fault_of_what_the_client_asks_once_is_asked_again(endpoint, how, status, user, hub, class_folders):
    folder, repo = class_folders(), f"me/passing-{endpoint}"
    hub.fail(endpoint, how, times=2, status=status or 500)
    user.push(folder, repo, tries=3)
    assert hub.log(repo, "dataset")[0][1] == "Upload the data"


def test_a_repo_that_cannot_be_looked_at_is_not_pushed_to(user, hub, class_folders):
    folder = class_folders()
    user.push(folder, "me/unseen")
    user.push(folder, "me/unseen", "--license", "mit")  # a commit that the cache does not hold
    hub.fail("head", "status", status=400)
    assert "me/unseen is not pushed: it answered 400" in user.fails(folder, "me/unseen")


def test_a_lost_reply_to_the_last_commit_makes_no_second_one(user, hub, class_folders):
    folder = class_folders()
    hub.fail("commit", "lost_reply", after=1)
    user.fails(folder, "me/lost")
    commits = hub.log("me/lost", "dataset")
    assert "holds this already" in user.push(folder, "me/lost")
    assert hub.log("me/lost", "dataset") == commits


def test_no_token_leaves_the_machine_but_in_the_header(user, hub):
    assert hub.TOKEN.encode() not in b"".join(hub.received)
    files = [hub.files(repo, kind=kind) for kind, repo in hub.repos]
    assert hub.TOKEN.encode() not in b"".join(body for found in files for body in found.values())


def here(*arguments):
    """The error of the command in this process."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert main(["push-data", *map(str, arguments)]) == 1
    return err.getvalue()


def test_what_is_no_repo_or_no_option_is_said_at_once():
    assert "'digits' is no name of a repo; expected OWNER/NAME" in here("digits", "digits")
    assert "--model.pooling is no option of push-data" in here("digits", "me/digits", "--model.pooling", "gap")


def test_an_offline_switch_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    assert "an offline switch is set (HF_HUB_OFFLINE); unset it to push" in here("digits", "me/digits")


def test_the_address_of_an_upload_is_not_shown():
    answer = SimpleNamespace(status_code=400, headers={}, request=None)
    fault = HfHubHTTPError("Client error '400' for url 'https://storage.example/x?Signature=key'", response=answer)
    expected = pytest.raises(ConnectionError, match="me/digits is not pushed: it answered 400")
    with expected as caught, _clear_errors("me/digits"):
        raise RuntimeError("Error while uploading 'x' to the Hub.") from fault
    assert "Signature" not in str(caught.value)
