"""How one weight of ours lies in another library's file, in both directions.

A library's name map is a list of `Link`s; loading reads along them, exporting writes along them, so the two cannot
disagree. Shapes: D width, A heads, K head dim (A*K = D), M MLP width, C channels, L layers.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Form:
    """The form in which other tensors hold one of ours.

    Attributes:
        action: what the receipt calls it: "exact", "fused" or "transposed".
        rule: the same in words.
        read: their tensors -> ours.
        write: ours -> their tensors; the exact inverse of `read`.
    """

    action: str
    rule: str
    read: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    write: Callable[[torch.Tensor], Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Link:
    """One tensor of ours and the names, in their file, of the tensors that hold it."""

    ours: str
    theirs: tuple[str, ...]
    form: Form


EXACT = Form("exact", "same values", lambda parts: parts[0], lambda ours: [ours])
MATRIX = Form(
    "transposed", "kernel (in, out) to (out, in)", lambda parts: parts[0].transpose(0, 1), lambda ours: [ours.T]
)
CONVOLUTION = Form(
    "transposed",
    "kernel (height, width, in, out) to (out, in, height, width)",
    lambda parts: parts[0].permute(3, 2, 0, 1),
    lambda ours: [ours.permute(2, 3, 1, 0)],
)
CHANNELS = Form(  # what GroupNorm has in files written before flax's Linen
    "exact", "(1, 1, 1, C) read as (C,)", lambda parts: parts[0].flatten(), lambda ours: [ours.view(1, 1, 1, -1)]
)


def fused(parts: int, what: str) -> Form:
    """Several tensors joined along the first dimension."""
    return Form("fused", f"{what} joined", lambda tensors: torch.cat(list(tensors)), lambda ours: ours.chunk(parts))


def _join_heads(part: torch.Tensor, axis: int, heads: int) -> torch.Tensor:
    """Join the axes A and K that begin at `axis`, if A is right: other heads would fit in size but not in meaning."""
    if part.shape[axis] != heads:
        raise RuntimeError(f"{part.shape[axis]} heads, expected {heads}")
    return part.flatten(axis, axis + 1)


def head_kernels(heads: int, parts: int, what: str) -> Form:
    """Kernels (D, A, K) of flax, each transposed to (A*K, D), joined along the first dimension."""

    def write(ours: torch.Tensor) -> list[torch.Tensor]:
        return [part.T.unflatten(1, (heads, -1)) for part in ours.chunk(parts)]

    rule = f"{what}: kernels (D, heads, head dim) to (D, D)" + (", joined" if parts > 1 else "")
    read = lambda tensors: torch.cat([_join_heads(kernel, 1, heads).transpose(0, 1) for kernel in tensors])  # noqa: E731
    return Form("fused" if parts > 1 else "transposed", rule, read, write)


def head_biases(heads: int, parts: int, what: str) -> Form:
    """Biases (A, K) of flax, flattened, joined."""
    write = lambda ours: [part.view(heads, -1) for part in ours.chunk(parts)]  # noqa: E731
    read = lambda tensors: torch.cat([_join_heads(bias, 0, heads) for bias in tensors])  # noqa: E731
    rule = f"{what}: biases (heads, head dim) flattened" + (", joined" if parts > 1 else "")
    return Form("fused" if parts > 1 else "exact", rule, read, write)


def head_outputs(heads: int) -> Form:
    """Output kernel (A, K, D) of flax to (D, A*K)."""
    return Form(
        "transposed",
        "kernel (heads, head dim, D) to (D, D)",
        lambda parts: _join_heads(parts[0], 0, heads).transpose(0, 1),
        lambda ours: [ours.T.unflatten(0, (heads, -1))],
    )


def module(ours: str, theirs: str, *, bias: bool = True, form: Form = EXACT, names=("weight", "bias")) -> list[Link]:
    """Links of a module with a weight in some form and a bias as it is; `names` are what they call the two."""
    links = [Link(f"{ours}.weight", (theirs + names[0],), form)]
    return links + ([Link(f"{ours}.bias", (theirs + names[1],), EXACT)] if bias else [])


def joined(ours: str, theirs: Iterable[str], what: str, *, bias: bool = True) -> list[Link]:
    """Links of one of our modules whose weight and bias they keep in several."""
    prefixes = tuple(theirs)
    kinds = ("weight", "bias") if bias else ("weight",)
    form = fused(len(prefixes), what)
    return [Link(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in prefixes), form) for kind in kinds]


QKV = "query, key and value"
