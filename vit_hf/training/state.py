"""The run folder on disk: a model repo that is never seen half-written.

Files and folders are written beside their place under a temporary name and renamed into it, so a reader, or a run that
is killed, finds the old one or the new one.
"""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


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
        """Add one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def publish(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Let `write` fill a new folder, then put it in the place of folder `name`."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with _TemporaryFolder(target.parent) as temporary:
            new, old = temporary / "new", temporary / "old"
            new.mkdir()
            self._guard(lambda: write(new), target)
            _sync(new)
            if target.exists():
                target.rename(old)
            new.rename(target)
        return target

    def publish_root(self, write: Callable[[Path], Any]) -> None:
        """Let `write` fill a new folder, then move its files into the run folder, each at once."""
        with _TemporaryFolder(self.path) as temporary:
            self._guard(lambda: write(temporary), self.path)
            _sync(temporary)
            for file in sorted(temporary.iterdir()):
                os.replace(file, self.path / file.name)

    def _publish_file(self, name: str, write: Callable[[Path], Any]) -> Path:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with _TemporaryFolder(target.parent) as temporary:
            self._guard(lambda: write(temporary / "file"), target)
            _sync(temporary)
            os.replace(temporary / "file", target)
        return target

    def _guard(self, action: Callable[[], Any], target: Path) -> None:
        """Run a write; when it fails say where, and how much space there is."""
        try:
            action()
        except (OSError, SafetensorError) as error:
            free = shutil.disk_usage(self.path).free / 2**20
            code = getattr(error, "errno", None)
            full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space" in str(error)
            cause = f"no space left ({free:,.0f} MiB free)" if full else str(error)
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
    """Force the folder's files to the disk before they get their names."""
    for path in [file for file in folder.rglob("*") if file.is_file()] + [folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
