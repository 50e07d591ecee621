"""What the commands share: reading words of the command line, saying scores."""

import argparse
import re
from typing import Protocol


class Add(Protocol):
    """Adds a command to the parser."""

    def __call__(self, name: str, run, text: str, takes_fields: bool = False, **options) -> argparse.ArgumentParser:
        """Return the parser of a new command; `run` gets the parsed options and returns the exit code."""
        ...


def parse_fields(words: list[str]) -> dict[str, object]:
    """Turn `--field value` into config fields; values are read as YAML: 384, [384, 512], null, gelu."""
    import yaml

    fields: dict[str, object] = {}
    for name, text in read_overrides(words).items():
        try:
            fields[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--{name} {text!r} is no YAML value ({error.__class__.__name__})") from error
        if re.fullmatch(r"\d+e-?\d+", text):  # 1e-6 is text in YAML 1.1
            fields[name] = float(text)
    return fields


def read_overrides(words: list[str]) -> dict[str, str]:
    """Turn `--field value --other=value` into a mapping."""
    values: dict[str, str] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        if not word.startswith("--"):
            raise ValueError(
                f"found {word!r} where an option was expected; write --FIELD VALUE, see `vit-hf train --help`"
            )
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not remaining or remaining[0].startswith("--"):
                raise ValueError(f"--{name} has no value; write --{name} VALUE")
            value = remaining.pop(0)
        values[name.replace("-", "_")] = value
    return values


def positive(text: str) -> int:
    """Read a whole number of at least 1; an `argparse` type."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def say_scores(measured: dict) -> str:
    """Say the scores of a classifier, or of a model for masked images."""
    if "top1" not in measured:
        return f"{measured.get('error', 'mean absolute error of hidden pixels')} {measured['loss']:.4f}"
    return f"top-1 {measured['top1']:.2%}, top-5 {measured['top5']:.2%}, cross-entropy {measured['loss']:.4f}"
