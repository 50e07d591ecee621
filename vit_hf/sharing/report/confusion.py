"""What is taken for what, arranged so that it can be read: counts, an order of the classes, and groups of them.

Classes that are confused with each other are put side by side, so that mistakes gather in blocks along the diagonal:
hierarchical clustering (average linkage) of the mistakes gives the order, and cuts through that order the groups.

Shapes: N samples, L classes, G groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform

from ...evaluation.metrics import top_k_correct
from ...evaluation.scoring import Scores

_LEAVES = 300  # up to so many classes the branches of the tree are turned the best way, which takes cubic time


@dataclass(frozen=True)
class Group:
    """Classes that lie side by side."""

    name: str
    members: tuple[int, ...]
    """Class numbers, in order."""


def confusion_counts(scores: Scores) -> np.ndarray:
    """Count the pictures of each class (rows) by what they were taken for (columns).

    A picture that ties counts as a mistake, as in top-1, so that the trace is what top-1 counts.

    Returns:
        (L, L), int64, adding up to N.
    """
    logits, labels = scores.logits, scores.labels
    classes = logits.shape[1]
    right = top_k_correct(logits, labels, 1)
    rival = logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1)
    named = torch.where(right, labels, rival)
    return torch.bincount(labels * classes + named, minlength=classes * classes).reshape(classes, classes).numpy()


def order_classes(counts: np.ndarray) -> list[int]:
    """Return class numbers so that those confused with each other lie together.

    Two classes are as near as the share of their pictures that are taken for the other. Classes without mistakes
    keep their order at the end.

    Args:
        counts: (L, L), whole numbers.
    """
    mistakes = counts - np.diag(np.diag(counts))
    shares = mistakes / np.maximum(counts.sum(axis=1), 1)[:, None]
    near = shares + shares.T
    confused = np.flatnonzero(near.any(axis=1))
    rest = [index for index in range(len(counts)) if not near[index].any()]
    if len(confused) < 3:
        return [*confused.tolist(), *rest]
    part = near[np.ix_(confused, confused)]
    distance = 1 - np.sqrt(part / part.max())
    np.fill_diagonal(distance, 0)
    condensed = squareform(distance, checks=False)
    tree = linkage(condensed, method="average")
    if len(confused) <= _LEAVES:
        tree = optimal_leaf_ordering(tree, condensed)
    return [*confused[leaves_list(tree)].tolist(), *rest]


def cut_into_groups(counts: np.ndarray, order: Sequence[int], groups: int, names: Sequence[str]) -> list[Group]:
    """Cut an order of classes where the fewest mistakes are torn apart, into groups of like size.

    Of all cuts into `groups` runs of 0.6 to twice the mean length, the one that keeps the most mistakes within a run.
    A group is named by its members with the most mistakes within it.

    Args:
        counts: (L, L).
        order: L class numbers.
        groups: G, at least 1 and at most L.
        names: of the classes.
    """
    length = len(order)
    groups = max(1, min(groups, length))
    arranged = counts[np.ix_(order, order)]
    mistakes = arranged - np.diag(np.diag(arranged))
    table = np.zeros((length + 1, length + 1))
    table[1:, 1:] = mistakes.cumsum(axis=0).cumsum(axis=1)
    shortest, longest = max(1, 6 * length // (10 * groups)), -(-2 * length // groups)

    def within(start: int, stop: int) -> float:
        return table[stop, stop] - table[start, stop] - table[stop, start] + table[start, start]

    best = np.full((groups + 1, length + 1), -np.inf)  # most mistakes kept by so many runs of the first so many classes
    came = np.zeros((groups + 1, length + 1), dtype=int)
    best[0, 0] = 0
    for run in range(1, groups + 1):
        for stop in range(run * shortest, min(run * longest, length) + 1):
            starts = range(max(stop - longest, 0), stop - shortest + 1)
            kept = [best[run - 1, start] + within(start, stop) for start in starts]
            place = int(np.argmax(kept))
            best[run, stop], came[run, stop] = kept[place], starts[place]
    edges, stop = [length], length
    for run in range(groups, 0, -1):
        stop = int(came[run, stop])
        edges.append(stop)
    edges.reverse()
    return [name_group([int(index) for index in order[start:stop]], counts, names) for start, stop in pairwise(edges)]


def name_group(members: Sequence[int], counts: np.ndarray, names: Sequence[str]) -> Group:
    """Name a group by the one or two members with the most mistakes within it."""
    part = counts[np.ix_(members, members)]
    mistakes = part - np.diag(np.diag(part))
    busy = sorted(range(len(members)), key=lambda i: (-(mistakes[i].sum() + mistakes[:, i].sum()), i))
    shown = [names[members[place]] for place in busy[:2]]
    more = len(members) - len(shown)
    return Group(", ".join(shown) + (f" +{more}" if more else ""), tuple(members))


def group_known(memberships: Sequence[str], counts: np.ndarray) -> list[Group]:
    """Return groups that are given by name, the most confused with each other side by side, and their members too.

    Args:
        memberships: L names of groups, by class number.
        counts: (L, L).
    """
    known = sorted(set(memberships))
    members = {name: [index for index, other in enumerate(memberships) if other == name] for name in known}
    whole = add_up(counts, [Group(name, tuple(members[name])) for name in known])
    groups = []
    for place in order_classes(whole):
        own = members[known[place]]
        inner = order_classes(counts[np.ix_(own, own)])
        groups.append(Group(known[place], tuple(own[index] for index in inner)))
    return groups


def add_up(counts: np.ndarray, groups: Sequence[Group]) -> np.ndarray:
    """Add up the counts of classes over groups.

    Args:
        counts: (L, L).
        groups: G, which hold each class once.

    Returns:
        (G, G), with the same sum.
    """
    order = [index for group in groups for index in group.members]
    starts = np.cumsum([0, *(len(group.members) for group in groups[:-1])])
    arranged = counts[np.ix_(order, order)]
    return np.add.reduceat(np.add.reduceat(arranged, starts, axis=0), starts, axis=1)


def top_confusions(counts: np.ndarray, limit: int) -> list[tuple[int, int, int, int]]:
    """Return the most frequent mistakes: true class, predicted class, count, pictures of the true class.

    Of equal counts the larger share of the class comes first, then the model's order.
    """
    pictures = counts.sum(axis=1)
    places = zip(*(axis.tolist() for axis in np.nonzero(counts)), strict=True)
    pairs = [(i, j, int(counts[i, j]), int(pictures[i])) for i, j in places if i != j]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[2] / pair[3], pair[0], pair[1]))[:limit]
