"""The run folder: nothing is ever half-written, and a failed write leaves what was there and says what to do."""

import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vit_hf.training.state import RunFolder

OWN = {"checkpoints", "checkpoints/.lock", "checkpoints/.writer.json"}  # what an open run folder holds of itself


def listing(folder: Path) -> dict[str, bytes | None]:
    """Return every path below a folder with its content, but for what an open run folder holds of itself."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items() if name not in OWN}


def files(**contents: str):
    """Return a writer of a folder with those files."""

    def write(folder: Path) -> None:
        for name, content in contents.items():
            (folder / name).write_text(content)

    return write


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "first")
    yield folder
    folder.close()


# ---------------------------------------------------------------------------------------------- the folder
@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_made_with_its_parents_and_holds_the_lock_only(tmp_path, exists):
    path = tmp_path / "a" / "b"
    if exists:
        path.mkdir(parents=True)
    run = RunFolder(path)
    assert {found.relative_to(path).as_posix() for found in path.rglob("*")} == OWN
    run.close()


def test_a_folder_with_anything_in_it_is_refused_and_unchanged(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(
        FileExistsError, match=f"{tmp_path} is not empty; expected a new folder: choose another --output"
    ):
        RunFolder(tmp_path)
    assert listing(tmp_path) == {"notes": b"mine"}


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_is_being_written_is_refused_by_the_name_of_its_writer(resume, tmp_path):
    first = RunFolder(tmp_path / "run")
    first.write_text("recipe.yaml", "name: digits")
    with pytest.raises(BlockingIOError, match=rf"is being written by process {os.getpid()} on .*; wait for it"):
        RunFolder(tmp_path / "run", resume=resume)
    first.close()
    with pytest.raises(FileExistsError, match="is not empty"):
        RunFolder(tmp_path / "run")
    RunFolder(tmp_path / "run", resume=True).close()


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        FileExistsError, match="file is a file; expected a folder: choose another --output, or remove it"
    ):
        RunFolder(tmp_path / "file")


def test_a_folder_that_cannot_be_made_is_an_error_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match=r"cannot write to .*file/run \(.*\); choose another --output"):
        RunFolder(tmp_path / "file" / "run")


def test_a_run_folder_that_vanished_is_an_error_and_is_not_made_anew(run):
    shutil.rmtree(run.path)
    for write in (
        lambda: run.write_json("results.json", {}),
        lambda: run.write_metrics([{}]),
        lambda: run.publish("checkpoints/step-00000001", files(a="1")),
        lambda: run.publish_root(files(a="1")),
    ):
        with pytest.raises(FileNotFoundError, match=f"cannot write {run.path}.*: the run folder is gone"):
            write()
    assert not run.path.exists()


# ---------------------------------------------------------------------------------------------- files
def test_a_file_is_replaced_and_nothing_else_is_left(run):
    for text in ("first", "second: ä"):
        assert run.write_text("recipe.yaml", text) == run.path / "recipe.yaml"
    assert listing(run.path) == {"recipe.yaml": "second: ä".encode()}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [{"loss": -float("inf")}]])
def test_json_refuses_nan_and_infinity_and_keeps_the_old_file(run, value):
    run.write_json("results.json", {"loss": 1.5})
    run.write_metrics([{"loss": 1.5}])
    before = listing(run.path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("results.json", {"loss": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_metrics([{"loss": 1.5}, {"loss": value}])
    assert listing(run.path) == before
    assert json.loads(before["results.json"]) == {"loss": 1.5}


def test_metrics_are_one_line_a_row_in_order(run):
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 6)]
    for count in range(1, 6):
        run.write_metrics(rows[:count])
    assert [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()] == rows
    assert list(listing(run.path)) == ["metrics.jsonl"]


# ---------------------------------------------------------------------------------------------- folders
def test_publish_replaces_the_whole_folder(run):
    run.publish("checkpoints/step-00000001", files(old="1", both="1"))
    target = run.publish("checkpoints/step-00000001", files(new="2", both="2"))
    assert target == run.path / "checkpoints" / "step-00000001"
    found = listing(run.path)
    manifest = json.loads(found.pop("checkpoints/step-00000001/manifest.json"))
    assert found == {
        "checkpoints/step-00000001": None,
        "checkpoints/step-00000001/both": b"2",
        "checkpoints/step-00000001/new": b"2",
    }
    assert manifest == {name: {"bytes": 1, "sha256": hashlib.sha256(b"2").hexdigest()} for name in ("both", "new")}


def test_the_target_shows_nothing_before_the_writer_is_done(run):
    seen = []

    def write(folder: Path) -> None:
        files(a="2", b="2")(folder)
        seen.append(listing(run.path / "checkpoints" / "step-00000001"))

    target = run.publish("checkpoints/step-00000001", files(a="1"))
    before = listing(target)
    run.publish("checkpoints/step-00000001", write)
    assert seen == [before]
    assert before["a"] == b"1"


def test_publish_root_replaces_files_and_keeps_the_others(run):
    run.write_text("recipe.yaml", "name: mine")
    run.publish_root(files(config="1", model="1"))
    run.publish_root(files(model="2"))
    assert listing(run.path) == {"recipe.yaml": b"name: mine", "config": b"1", "model": b"2"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("into_root", [False, True])
def test_a_writer_that_fails_half_way_leaves_the_old_content_and_no_temporary_files(run, into_root, error):
    def failing(folder: Path) -> None:
        files(half="2", old="2")(folder)
        raise error("stopped")

    run.publish("checkpoints/step-00000001", files(old="1"))
    run.publish_root(files(old="1"))
    before = listing(run.path)
    with pytest.raises(error, match="stopped"):
        run.publish_root(failing) if into_root else run.publish("checkpoints/step-00000001", failing)
    assert listing(run.path) == before


def test_a_failing_rename_puts_the_old_folder_back(run, monkeypatch):
    run.publish("checkpoints/step-00000001", files(old="1"))
    before = listing(run.path)
    rename = Path.rename

    def refuse(path: Path, target: Path):
        if path.name == "new":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match=r"step-00000001: .*Permission denied; what was there is unchanged"):
        run.publish("checkpoints/step-00000001", files(new="2"))
    assert listing(run.path) == before


# ---------------------------------------------------------------------------------------------- a full disk
@pytest.fixture
def full_disk():
    """Give a context in which no file grows beyond 64 KiB."""

    @contextlib.contextmanager
    def limit():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, handler)

    return limit


@pytest.mark.parametrize("place", ["checkpoints/step-00000001", ".", "README.md", "metrics.jsonl"])
def test_a_full_disk_is_an_error_that_says_so_and_older_files_stay(run, full_disk, place):
    run.publish(
        "checkpoints/step-00000001", lambda path: save_file({"weight": torch.arange(9.0)}, path / "model.safetensors")
    )
    run.write_metrics([first := {"step": 1, "note": "x" * 60_000}])
    before = listing(run.path)
    write = {
        "checkpoints/step-00000001": lambda: run.publish(
            place, lambda path: save_file({"weight": torch.zeros(100_000)}, path / "model.safetensors")
        ),
        ".": lambda: run.publish_root(lambda path: (path / "code.py").write_text("#" * 100_000)),
        "README.md": lambda: run.write_text(place, "#" * 100_000),
        "metrics.jsonl": lambda: run.write_metrics([first, {"step": 2, "note": "x" * 10_000}]),
    }[place]
    cause = r"no space left \(.*MiB free\); what was there is unchanged: make room, then repeat"
    with full_disk(), pytest.raises(OSError, match=f"cannot write {re.escape(str(run.path / place))}: {cause}"):
        write()
    assert listing(run.path) == before
    weights = load_file(run.path / "checkpoints" / "step-00000001" / "model.safetensors")
    assert torch.equal(weights["weight"], torch.arange(9.0))
