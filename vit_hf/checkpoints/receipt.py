"""What became of every tensor at a load: the receipt, and the error that lists all that did not fit."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

ACTIONS = ("exact", "fused", "transposed", "resampled", "re-initialised", "dropped")
RECEIPT_FILE = "receipt.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded or written as asked; the message lists every reason."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the model with those of the file that made it, or one of the file that was dropped.

    Attributes:
        action: one of `ACTIONS`.
        model: name in the model, None for a dropped one.
        model_shape: its shape there.
        file: names in the file, empty for a re-initialised one.
        file_shapes: their shapes.
        rule: what was done, or why.
    """

    action: str
    model: str | None
    model_shape: tuple[int, ...] | None
    file: tuple[str, ...]
    file_shapes: tuple[tuple[int, ...], ...]
    rule: str


@dataclass(frozen=True)
class Fact:
    """A config field or a setting that the tensors alone do not fix, and where its value comes from."""

    field: str
    value: object
    how: str


@dataclass(frozen=True)
class FileRecord:
    """A file that was read."""

    name: str
    bytes: int
    sha256: str


@dataclass
class Receipt:
    """The record of a load; `str()` of it is a short table, `save` keeps it whole as JSON.

    Attributes:
        source: "google", "timm", "torchvision" or "transformers"; "vit_hf" where a classifier started from weights of
            this package.
        origin: name of the file or folder, or the Hub id.
        files: what was read.
        facts: what the tensors leave open, and where it was taken from.
        tensors: an entry for each tensor of the model, and for each of the file that was dropped.
    """

    source: str
    origin: str
    files: list[FileRecord]
    facts: list[Fact] = field(default_factory=list)
    tensors: list[TensorEntry] = field(default_factory=list)

    def to_json(self) -> str:
        """Return the whole receipt as JSON text."""
        return json.dumps(asdict(self), indent=1, default=str) + "\n"

    def save(self, folder: str | Path) -> Path:
        """Write receipt.json into a folder and return its path."""
        path = Path(folder) / RECEIPT_FILE
        path.write_text(self.to_json(), encoding="utf-8")
        return path

    def counts(self) -> Counter[str]:
        """Number of entries of each action."""
        return Counter(entry.action for entry in self.tensors)

    def replace(self, name: str, action: str, shape: tuple[int, ...], rule: str) -> None:
        """Change what is said of one tensor of the model."""
        for index, entry in enumerate(self.tensors):
            if entry.model == name:
                self.tensors[index] = TensorEntry(action, name, shape, entry.file, entry.file_shapes, rule)

    def __str__(self) -> str:
        lines = [f"{self.origin} ({self.source})"]
        lines += [f"  {record.name}  {record.bytes:,} bytes  sha256 {record.sha256[:16]}…" for record in self.files]
        lines.append(f"  {'action':<14} {'file':>5} {'model':>5}  rule")
        groups: dict[tuple[str, str], list[TensorEntry]] = {}
        for entry in self.tensors:
            groups.setdefault((entry.action, entry.rule), []).append(entry)
        for (action, rule), entries in sorted(groups.items(), key=lambda item: ACTIONS.index(item[0][0])):
            theirs = sum(len(entry.file) for entry in entries)
            ours = sum(entry.model is not None for entry in entries)
            lines.append(f"  {action:<14} {theirs:>5} {ours:>5}  {rule}")
        lines += ["  where the tensors leave it open:"] if self.facts else []
        lines += [f"  {fact.field} = {_short(fact.value)}: {fact.how}" for fact in self.facts]
        return "\n".join(lines)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
