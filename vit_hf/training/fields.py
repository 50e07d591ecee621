"""The values of recipe fields: read from command-line words and YAML, checked against the field's type, written."""

import contextlib
import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from huggingface_hub.dataclasses import type_validator


def parse(value: Any, annotation: Any, name: str) -> Any:
    """Read a command-line word as the field's type; bring lists to tuples and whole numbers to floats where asked."""
    is_tuple = get_origin(annotation) is tuple
    kinds = (annotation,) if is_tuple else get_args(annotation) or (annotation,)
    if isinstance(value, str) and str not in kinds:
        value = _read_word(value, kinds, name, annotation)
    elif isinstance(value, str) and value.lower() in ("none", "null") and type(None) in kinds:
        value = None
    if isinstance(value, list) and any(get_origin(kind) is tuple for kind in kinds):
        value = tuple(value)
    if float in kinds and int not in kinds and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if is_tuple and isinstance(value, tuple) and float in get_args(annotation):
        value = tuple(parse(item, float, name) for item in value)
    return value


def _read_word(word: str, kinds: tuple, name: str, annotation: Any) -> Any:
    """Read numbers (1e-3 too), true/false, none, and lists with or without brackets."""
    nothing = word.lower() in ("none", "null", "")
    if annotation == tuple[str, ...]:  # brackets and stars may be part of a word: a shell pattern
        bare = word[1:-1] if word[:1] + word[-1:] == "[]" and not set(word[1:-1]) & set("[]") else word
        return [] if nothing or not bare.strip() else [part.strip() for part in bare.split(",")]
    if nothing and type(None) in kinds:
        return None
    for kind in (int, float):
        if kind in kinds:
            with contextlib.suppress(ValueError):
                return kind(word)
    try:
        listed = any(get_origin(kind) in (list, tuple) for kind in kinds) and ("," in word or int not in kinds)
        return yaml.safe_load(f"[{word.strip('[]()')}]" if listed else word)
    except (ValueError, yaml.YAMLError):
        raise ValueError(f"{name} is {word!r}; expected {_type_name(annotation)}") from None


def check_types(section: Any, prefix: str) -> None:
    """Raise ValueError for a field of a dataclass whose value is not of its type; `prefix` goes before its name."""
    hints = get_type_hints(type(section))
    for entry in dataclasses.fields(section):
        check_type(prefix + entry.name, getattr(section, entry.name), hints[entry.name])


def check_type(name: str, value: Any, annotation: Any) -> None:
    """Raise ValueError, naming the field, for a value that is not of the type."""
    kinds = get_args(annotation) or (annotation,)
    number = float(value) if type(value) is int and float in kinds else value  # a whole number will do for a float
    try:
        type_validator(name, number, annotation)
    except TypeError:
        raise ValueError(f"{name} is {value!r}; expected {_type_name(annotation)}") from None


def _type_name(annotation: Any) -> str:
    plain = isinstance(annotation, type) and get_origin(annotation) is None
    return annotation.__name__ if plain else str(annotation)


def plain(value: Any) -> Any:
    """Return a value with mappings as dict and sequences as list, all the way down."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def unknown_field(name: str, known: list[str]) -> str:
    """Return the message for a field name that does not exist, with the nearest that do."""
    leaf = name.rpartition(".")[2]
    near = [other for other in known if other.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`vit-hf recipes digits` prints all fields"
    return f"unknown recipe field {name!r}; {hint}"
