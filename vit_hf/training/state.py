"""The run folder on disk: a model repo that is never seen half-written.

Files and folders are written beside their place under a temporary name and renamed into it, so a reader, or a run that
is killed, finds the old one or the new one. (Replacing a folder takes two renames: killed between them, the run leaves
no folder of that name, and the old one whole under the temporary name.)
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFolder:
    """The folder that `--output` names; see DESIGN for what lies in it.

    Args:
        path: made on construction, parents too.

    Raises:
        FileExistsError: the folder exists and is not empty, or the path is a file.
        OSError: it cannot be made or written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_file() or (self.path.is_dir() and any(self.path.iterdir())):
            kind = "is a file" if self.path.is_file() else "is not empty"
            raise FileExistsError(f"{self.path} {kind}; expected a new folder: choose another --output, or remove it")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(f"cannot write to {self.path} ({error.strerror}); choose another --output") from error

    def write_text(self, name: str, text: str) -> Path:
        """Write one UTF-8 file at once."""
        return self._publish_file(name, lambda path: path.write_text(text, encoding="utf-8"))

    def write_json(self, name: str, value: Any) -> Path:
        """Write one JSON file at once; NaN and infinity are refused."""
        return self.write_text(name, json.dumps(value, indent=2, allow_nan=False) + "\n")

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl, at once: no reader finds half a line."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8") if file.exists() else ""
        self.write_text(file.name, lines + json.dumps(row, allow_nan=False) + "\n")

    def publish(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Let `write` fill a new folder, then put it in the place of folder `name`."""
        target = self.path / name
        with self._guard(target), _TemporaryFolder(target.parent) as temporary:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
            write(new)
            _sync(new)
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
            _sync(temporary)
            for file in sorted(temporary.iterdir()):
                os.replace(file, self.path / file.name)
            _sync_one(self.path)

    def _publish_file(self, name: str, write: Callable[[Path], Any]) -> Path:
        target = self.path / name
        with self._guard(target), _TemporaryFolder(target.parent) as temporary:
            write(temporary / "file")
            _sync(temporary)
            os.replace(temporary / "file", target)
            _sync_one(target.parent)
        return target

    @contextlib.contextmanager
    def _guard(self, target: Path) -> Iterator[None]:
        """Make the folder of `target`; when a write below fails say where, and how much space there is."""
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
                cause = f"no space left ({cause}; {shutil.disk_usage(self.path).free / 2**20:,.0f} MiB free)"
            raise OSError(
                f"cannot write {target}: {cause}; what was there is unchanged: make room, then repeat"
            ) from error


class _TemporaryFolder:
    """A hidden folder beside the target, removed with all it still holds."""

    def __init__(self, parent: Path):
        self.parent = parent

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix=".writing-", dir=self.parent))
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path, ignore_errors=True)


def _sync(folder: Path) -> None:
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
