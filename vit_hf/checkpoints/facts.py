"""What is known of a checkpoint's architecture, from where, and what must be asked for."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..configuration_vit_hf import VitHfConfig, as_pair
from .files import Checkpoint
from .links import Tensors
from .receipt import CheckpointError, Fact

# (width, layers, MLP width): heads, where the published ViTs of that size agree. Read from the ViT paper (Table 1),
# DeiT (Table 1), DINOv2's model card and the entry points of timm 1.0.31.
PUBLISHED_HEADS = {
    (192, 12, 768): 3,
    (256, 10, 1024): 4,
    (256, 14, 1280): 4,
    (320, 14, 1792): 5,
    (384, 36, 1536): 6,
    (512, 20, 2048): 8,
    (832, 21, 2176): 13,
    (896, 12, 3584): 14,
    (896, 18, 2304): 14,
    (384, 12, 1536): 6,
    (512, 12, 2048): 8,
    (640, 12, 2560): 10,
    (768, 12, 3072): 12,
    (1024, 24, 4096): 16,
    (1152, 27, 4304): 16,
    (1280, 32, 5120): 16,
    (1408, 40, 6144): 16,
    (1536, 40, 4096): 24,
    (1664, 48, 8192): 16,
}
AT_LOAD = ("image_size", "patch_size", "num_labels", "id2label", "label2id", "representation_size")


class Facts:
    """Collect the config fields of a checkpoint: fixed by its tensors, said elsewhere, or asked for.

    Args:
        given: config fields from the caller. Those in `AT_LOAD` change the model after it is loaded, the others say
            what the file does not, and must not contradict what it does.
    """

    def __init__(self, given: dict[str, Any]):
        self.given = given
        self.fields: dict[str, Any] = {}
        self.notes: list[Fact] = []
        self.dropped: dict[str, str] = {}  # beginning of a name -> why tensors of that name are left out
        self._asked: dict[str, str] = {}
        self._refuted: list[str] = []

    def fixed(self, name: str, value: Any) -> None:
        """Take a field that the tensors fix."""
        if name in self.given and name not in AT_LOAD and self.given[name] != value:
            self._refuted.append(f"{name} is {value!r} in the file, not {self.given[name]!r}")
        self.fields[name] = value

    def said(self, name: str, value: Any, how: str) -> None:
        """Take a field that the tensors leave open; the caller's word counts more than `value`."""
        if name in self.given and name not in AT_LOAD:
            value, how = self.given[name], "given"
        self.fields[name] = value
        self.notes.append(Fact(name, value, how))

    def ask(self, name: str, why: str) -> None:
        """Take a field from the caller, or note that it must be asked for."""
        if name in self.given:
            self.said(name, self.given[name], "given")
        else:
            self._asked[name] = why

    def drop(self, prefix: str, why: str) -> None:
        """Leave out the tensors whose names begin so."""
        self.dropped[prefix] = why

    def wants(self, name: str) -> bool:
        """Whether a field is still open."""
        return name not in self.fields and name not in self._asked

    def heads(self, *, width: int, layers: int, mlp: int) -> None:
        """Settle the number of heads, which only the sizes hint at."""
        known = PUBLISHED_HEADS.get((width, layers, mlp))
        if known is None:
            self.ask("num_attention_heads", f"the tensors (width {width}) do not show it")
        else:
            self.said("num_attention_heads", known, f"the published ViTs of width {width} with {layers} layers have it")

    def image_size(self, *, positions: int, prefix: int, patch: tuple[int, int], known: Any = None) -> None:
        """Settle the image size for which the file's positions are.

        Args:
            positions: rows of the position embeddings.
            prefix: rows before those of the patch grid.
            patch: (height, width) of a patch in pixels, as stored.
            known: the image size that a side file tells.
        """
        cells, side = positions - prefix, math.isqrt(max(positions - prefix, 0))
        wanted = self.given.get("image_size")
        if known is not None:
            size, how = as_pair(known), "side file"
            covered = (size[0] // patch[0] * patch[0], size[1] // patch[1] * patch[1])
            if covered != size:  # timm then leaves the last rows and columns out of every image
                size, how = covered, f"side file: {size[0]}x{size[1]}, of which whole patches cover as much"
        elif side * side == cells:
            size, how = (side * patch[0], side * patch[1]), f"{cells} positions are a square grid"
        elif wanted is not None:
            size, how = as_pair(wanted), "given"
        else:
            self.ask(
                "image_size", f"{cells} patch positions ({positions} rows, {prefix} before the grid) fit no square"
            )
            return
        if size[0] % patch[0] or size[1] % patch[1] or (size[0] // patch[0]) * (size[1] // patch[1]) != cells:
            self._refuted.append(
                f"{cells} patch positions ({positions} rows, {prefix} of other tokens) do not fit an image of "
                f"{size[0]}x{size[1]} pixels in patches of {patch[0]}x{patch[1]} ({how}); give the image_size that the "
                "file was made for"
            )
        self.fields["image_size"] = size[0] if size[0] == size[1] else list(size)
        self.notes.append(Fact("image_size", self.fields["image_size"], how))

    def labels(self, count: int | None, names: dict[int, str] | None = None) -> None:
        """Settle the classes of the file's head; without a head those that were given, else 2."""
        if count is None:
            names = self.given.get("id2label")
            count = len(names) if names else self.given.get("num_labels") or 2
        if names is not None and len(names) == count:
            self.fields["id2label"] = names
        else:
            self.fields["num_labels"] = count

    def config(self, origin: str) -> VitHfConfig:
        """Return the config at the file's own sizes.

        Raises:
            CheckpointError: something given contradicts the file, or must be given.
        """
        for name in sorted(set(self.given) - set(AT_LOAD)):
            if self.wants(name):
                self.said(name, self.given[name], "given")
        if self._refuted:
            raise CheckpointError(f"{origin}: {'; '.join(self._refuted)}")
        if self._asked:
            reasons = "; ".join(f"{name}: {why}" for name, why in self._asked.items())
            call = ", ".join(f"{name}=..." for name in self._asked)
            raise CheckpointError(f"{origin} does not tell all that is needed ({reasons}). Give: {call}")
        try:
            return VitHfConfig(**self.fields)
        except StrictDataclassError as error:
            raise CheckpointError(f"{origin}: {error.__cause__ or error}") from error


Rules = Sequence[tuple[str, str]]


def rename(
    checkpoint: Checkpoint, rules: Rules, pretraining_only: Rules = ()
) -> tuple[Tensors, dict[str, str], dict[str, str]]:
    """Bring the tensors of a checkpoint to the names of one spelling.

    Args:
        checkpoint: what was read.
        rules: (pattern, replacement), all applied to each name in order.
        pretraining_only: (pattern, what it is) of tensors, by their old or new name, that are left out.

    Returns:
        The tensors by their new name, the file's name of each, and the names that are left out with the reason.

    Raises:
        CheckpointError: two names become one.
    """
    tensors: Tensors = {}
    names: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for original, tensor in checkpoint.tensors.items():
        name = original
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found = (what for pattern, what in pretraining_only if re.search(pattern, original) or re.search(pattern, name))
        if what := next(found, None):
            dropped[original] = f"the {what} serves pre-training only"
        elif name in tensors:
            raise CheckpointError(f"{checkpoint.origin}: {names[name]} and {original} are the same tensor; keep one")
        else:
            tensors[name], names[name] = tensor, original
    return tensors, names, dropped


def count_indexed(names: Iterable[str], pattern: str) -> int:
    """Return 1 + the largest number that a pattern's group finds in the names; 0 if it finds none."""
    found = [int(match.group(1)) for name in names if (match := re.match(pattern, name))]
    return max(found) + 1 if found else 0


def need(tensors: dict, *names: str, origin: str, kind: str) -> None:
    """Raise unless the tensors that the architecture is read from are there."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CheckpointError(
            f"{origin} lacks {', '.join(missing)}, without which it is no {kind} Vision Transformer; give a whole "
            "checkpoint, or another source"
        )


def size_field(height: int, width: int) -> int | list[int]:
    """Return a size as the config keeps it: one int if both sides are equal."""
    return height if height == width else [height, width]
