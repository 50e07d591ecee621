"""The run folder on disk: a model repo that is never seen half-written, and that one process writes at a time.

Files and folders are written beside their place under a temporary name, forced to the disk, and renamed into it: a
reader, or a run that is killed, finds the old one or the new one. Folders under `checkpoints/` bear their step in their
name, so that none has to be replaced, and hold a manifest with the SHA-256 of every file. New is published before old
is removed.
"""

import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ..files_vit_hf import MANIFEST, read_manifest, sha256

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOCK, _WRITER, _WRITING = "checkpoints/.lock", "checkpoints/.writer.json", ".writing-"
_LOADERS_END_S = 15.0  # loader processes share the lock of a killed run, and see its death after some seconds


class DamagedFolderError(ValueError):
    """A published folder does not hold what its manifest says."""


class RunFolder:
    """The folder that `--output` names; see DESIGN for what lies in it.

    Args:
        path: made on construction, parents too.
        resume: go on in a folder that has something in it.

    Raises:
        FileExistsError: the folder is not empty and not to be resumed, or the path is a file.
        BlockingIOError: another process writes to it; names its host and number.
        OSError: it cannot be made or written.
    """

    def __init__(self, path: str | Path, *, resume: bool = False):
        self.path = Path(path)
        if self.path.is_file():
            raise FileExistsError(f"{self.path} is a file; expected a folder: choose another --output, or remove it")
        if not resume and self.path.is_dir() and any(self.path.iterdir()):
            self._refuse_if_written()
            raise FileExistsError(
                f"{self.path} is not empty; expected a new folder: choose another --output, remove it, or go on with "
                "the run in it by --resume auto"
            )
        try:
            (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            self._acquire()
            writer = {"host": socket.gethostname(), "pid": os.getpid()}
            (self.path / _WRITER).write_text(json.dumps(writer) + "\n", encoding="utf-8")
        except BlockingIOError:
            raise
        except OSError as error:
            raise OSError(f"cannot write to {self.path} ({error.strerror}); choose another --output") from error
        for folder in (self.path, self.path / "checkpoints"):
            for left in folder.glob(_WRITING + "*"):  # the lock is ours, so whoever wrote it is gone
                shutil.rmtree(left, ignore_errors=True)

    def close(self) -> None:
        """Let others write."""
        with contextlib.suppress(OSError):  # it may be gone, or no longer writable: the lock is what counts
            (self.path / _WRITER).unlink()
        self._lock.release()

    def _refuse_if_written(self) -> None:
        """Raise BlockingIOError if another process writes: nobody is to be told to remove such a folder."""
        if (self.path / _LOCK).exists():
            try:
                self._acquire()
                self._lock.release()
            except BlockingIOError:
                raise
            except OSError:  # nobody can lock it, such as on a read-only disk
                pass

    def _acquire(self) -> None:
        """Take the lock; wait for it only when the process that had it is gone."""
        self._lock = FileLock(self.path / _LOCK)
        try:
            writer = json.loads((self.path / _WRITER).read_text(encoding="utf-8"))
            name, here = f"process {writer['pid']} on {writer['host']}", writer["host"] == socket.gethostname()
            gone = here and not _is_alive(int(writer["pid"]))
        except (OSError, ValueError, KeyError, TypeError):  # nobody, or it has not said its name yet
            name, gone = "another process", False
        try:
            self._lock.acquire(timeout=_LOADERS_END_S if gone else 0)
        except Timeout:
            raise BlockingIOError(f"{self.path} is being written by {name}; wait for it, or stop it") from None

    def write_file(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Let `write` write one file, given the path to write to, and give it its name at once."""
        target = self.path / name
        with self._guard(target), _TemporaryFolder(target.parent) as temporary:
            write(temporary / "file")
            sync(temporary)
            os.replace(temporary / "file", target)
            _sync_one(target.parent)
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Write one UTF-8 file at once."""
        return self.write_file(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, value: Any) -> Path:
        """Write one JSON file at once; NaN and infinity are refused."""
        return self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Write metrics.jsonl, one line a row, at once."""
        self.write_text("metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def publish(self, name: str, write: Callable[[Path], Any], *, bytes_needed: int = 0) -> Path:
        """Let `write` fill a new folder, add its manifest, and give it its name; an older one of that name goes.

        Args:
            name: such as "checkpoints/step-00000010".
            write: gets the path of an empty folder.
            bytes_needed: for the message when the disk is full.
        """
        target = self.path / name
        with self._guard(target, bytes_needed), _TemporaryFolder(target.parent) as temporary:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
            write(new)
            (new / MANIFEST).write_text(json.dumps(describe_files(new), indent=2) + "\n", encoding="utf-8")
            sync(new)
            if target.exists():
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
            _sync_one(target.parent)
        return target

    def publish_root(self, write: Callable[[Path], Any]) -> None:
        """Let `write` fill a new folder, then move its files into the run folder, each at once."""
        with self._guard(self.path), _TemporaryFolder(self.path) as temporary:
            write(temporary)
            sync(temporary)
            (self.path / MANIFEST).unlink(missing_ok=True)  # it comes last: half of the files are not what it says
            for file in sorted(temporary.iterdir(), key=lambda file: (file.name == MANIFEST, file.name)):
                os.replace(file, self.path / file.name)
            _sync_one(self.path)

    def remove(self, name: str) -> None:
        """Remove a published folder: it loses its name at once, then its files."""
        target = self.path / name
        with _TemporaryFolder(target.parent) as temporary:
            target.rename(temporary / "old")
            _sync_one(target.parent)

    @contextlib.contextmanager
    def _guard(self, target: Path, bytes_needed: int = 0) -> Iterator[None]:
        """Make the folder of `target`; when a write below fails say where, and how much space there is and must be."""
        if not self.path.is_dir():
            raise FileNotFoundError(f"cannot write {target}: the run folder is gone; was it moved or removed?")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield
        except (OSError, SafetensorError) as error:
            code = getattr(error, "errno", None)
            full = code in _FULL or any(f"os error {code})" in str(error) for code in _FULL)  # as safetensors says it
            cause = str(error)
            if full:
                free = shutil.disk_usage(self.path).free / 2**20
                needed = f"{bytes_needed / 2**20:,.1f} MiB needed, " if bytes_needed else ""
                cause = f"no space left ({cause}; {needed}{free:,.0f} MiB free)"
            raise OSError(
                f"cannot write {target}: {cause}; what was there is unchanged: make room, then repeat"
            ) from error


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size in bytes and SHA-256 of every file below a folder, by relative name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }


def check_folder(folder: Path) -> None:
    """Compare a published folder with its manifest.

    Raises:
        DamagedFolderError: names the first file that is missing, has another size or another content, or is a link out
            of the folder; or the manifest is no table of files in the folder.
    """
    for problem in find_damage(folder).values():
        raise DamagedFolderError(problem)


def find_damage(folder: Path) -> dict[str, str]:
    """Return what is wrong with a published folder by file name: all that differs from its manifest.

    Raises:
        DamagedFolderError: the manifest cannot be read, or is no table of files in the folder.
    """
    manifest, wrong = folder / MANIFEST, {}
    try:
        expected = read_manifest(manifest)
    except (OSError, ValueError) as error:
        raise DamagedFolderError(f"{manifest} cannot be read ({error.__class__.__name__}: {error})") from error
    home = folder.resolve()
    for name, entry in expected.items():
        file = folder / name
        try:
            if not file.is_file():
                wrong[name] = f"{file} is missing, its manifest lists it"
            elif home not in file.resolve().parents:
                wrong[name] = f"{file} is a link to a place outside of the folder"
            elif (found := file.stat().st_size) != entry["bytes"]:
                wrong[name] = f"{file} has {found:,} bytes, its manifest says {entry['bytes']:,}"
            elif sha256(file) != entry["sha256"]:
                wrong[name] = f"{file} has another SHA-256 than its manifest says"
        except OSError as error:
            wrong[name] = f"{file} cannot be read ({error})"
    return wrong


class _TemporaryFolder:
    """A hidden folder beside the target, removed with all it still holds."""

    def __init__(self, parent: Path):
        self.parent = parent

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix=_WRITING, dir=self.parent))
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def sync(folder: Path) -> None:
    """Force all that the folder holds to the disk, before it gets its name."""
    for path in [*folder.rglob("*"), folder]:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    """Force one file, or the names in one folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
