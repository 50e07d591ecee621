"""One thing that was recorded, beside the same thing found anew."""

import math
from dataclasses import dataclass
from typing import Any

_ROUNDING = 1e-9
"""Relative: of a mean in float64, which other processors add in another order."""


@dataclass(frozen=True)
class Check:
    """A row of the report."""

    what: str
    recorded: str
    found: str
    equal: bool | None
    """None where there is nothing to compare."""


def compare(what: str, recorded: Any, found: Any) -> Check:
    """Compare two values of JSON; where lists or mappings differ the check names the first place."""
    for place, one, other in _differences(recorded, found, what):
        return Check(place, say(one), say(other), False)
    return Check(what, say(recorded), "the same", True)


def is_close(one: float, other: float) -> bool:
    """Whether two numbers are equal but for the order of a sum."""
    return math.isclose(one, other, rel_tol=_ROUNDING, abs_tol=1e-12)


def say(value: Any) -> str:
    """Return a value as text, a long one by its size."""
    if isinstance(value, dict) or (isinstance(value, list) and len(str(value)) > 40):
        return f"{len(value)} entries"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _differences(one: Any, other: Any, place: str):
    """Yield place and both values wherever two values of JSON differ; a missing one is "nothing"."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from _differences(one.get(key, "nothing"), other.get(key, "nothing"), f"{place}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, f"{place}[{index}]")
    elif isinstance(one, float) and isinstance(other, int | float):
        if not is_close(one, other):
            yield place, one, other
    elif one != other or isinstance(one, bool) != isinstance(other, bool):
        yield place, one, other
