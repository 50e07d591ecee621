"""Markdown made of values that anybody may have chosen: no class name ends a table, begins a line or opens a tag."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

_SPECIAL = str.maketrans({char: f"&#{ord(char)};" for char in '\\`*[]<>&|~$#!"'})
_TURNING = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # text direction, which hides what follows


def plain(value: object, limit: int = 80) -> str:
    """Return a value as one line of text that Markdown and HTML show as it is.

    Args:
        value: anything; its `str` is shown.
        limit: characters, after which it is cut off with "…".
    """
    text = one_line(value)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    text = text.translate(_SPECIAL).replace("://", "&#58;//")  # no link of its own
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", text)  # within a word it is only a character


def one_line(value: object) -> str:
    """Return a value as text without line ends, control characters, half characters and changes of direction."""
    return " ".join(_printable(str(value)).split())


def _printable(text: str, keep: str = "") -> str:
    """Turn control characters but those to `keep` into spaces, and half characters into the sign for it."""
    return "".join(
        " "
        if unicodedata.category(char) in ("Cc", "Zl", "Zp") and char not in keep
        else "\ufffd"
        if unicodedata.category(char) == "Cs"
        else char
        for char in text
        if char not in _TURNING
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; its cells are Markdown already (see `plain`)."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def fence(code: str, language: str) -> str:
    """Return a block of code, between longer fences where the code holds such itself."""
    code = _printable(code, keep="\n\t")
    longest = max(map(len, re.findall("`+", code)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{code.strip()}\n{marks}"
