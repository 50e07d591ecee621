"""HTML by construction: a page is a tree of elements, and every word of a record is text in it, never markup.

`xml.etree` writes the tree and escapes what it writes, so that no class name, path or recipe can open a tag or leave an
attribute. Words are also rid of control characters and changes of direction, and kept apart from the direction of
their surroundings (`bdi`). Pictures are data URIs; the page asks for nothing, and its own policy forbids it.
"""

import base64
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element, tostring

from ..card.markdown import one_line
from .css import CSS

Child = Element | str | None
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_LIMIT = 80  # characters of a foreign word


def tag(kind: str, /, *children: Child, **attributes: object) -> Element:
    """Return an element; `_` in the names of attributes stands for `-`, and a trailing one is left out (`class_`)."""
    element = Element(kind)
    for key, value in attributes.items():
        if value is not None:
            element.set(key.rstrip("_").replace("_", "-"), one_line(value))
    for child in children:
        append(element, child)
    return element


def append(element: Element, child: Child) -> None:
    """Add an element, or text, behind what is there."""
    if isinstance(child, Element):
        element.append(child)
    elif child is not None:
        last = element[-1] if len(element) else None
        if last is None:
            element.text = (element.text or "") + child
        else:
            last.tail = (last.tail or "") + child


def short(value: object, limit: int = _LIMIT) -> str:
    """Return a foreign word on one line, cut off with "…" after so many characters."""
    text = one_line(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def word(value: object, limit: int = _LIMIT) -> Element:
    """Return a foreign word, apart from the direction of the text around it; it may be broken after an underscore."""
    first, *rest = short(value, limit).split("_")
    whole = tag("bdi", first)
    for part in rest:
        append(whole, "_")
        whole.append(tag("wbr"))
        append(whole, part)
    return whole


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, caption: str, words: int = 1) -> Element:
    """Return a table with a header row; columns behind the first `words` are numbers. It scrolls if it must.

    Args:
        head: names of the columns.
        rows: cells; the first of a row is its header.
        caption: what the table is, read out and shown above it.
        words: how many columns hold words.
    """
    kind = ["w" if place < words else "n" for place in range(len(head))]
    header = tag("tr", *(tag("th", name, scope="col", class_=c) for name, c in zip(head, kind, strict=True)))
    body = tag("tbody")
    for row in rows:
        line = tag("tr")
        for place, (cell, c) in enumerate(zip(row, kind, strict=True)):
            line.append(tag("td" if place else "th", cell, class_=c, scope=None if place else "row"))
        body.append(line)
    whole = tag("table", tag("caption", caption), tag("thead", header), body)
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=caption)


def facts(pairs: Iterable[tuple[str, Child]]) -> Element:
    """Return a list of names and what they are."""
    listed = tag("dl", class_="facts")
    for name, value in pairs:
        listed.append(tag("div", tag("dt", name), tag("dd", value)))
    return listed


def details(summary: str, *children: Child) -> Element:
    """Return what is folded until it is asked for."""
    return tag("details", tag("summary", summary), *children)


@dataclass
class Pictures:
    """The PNG files of a report, by name without suffix; each is shown from within the page."""

    files: dict[str, bytes] = field(default_factory=dict)

    def image(self, name: str, png: bytes, alt: str, *, class_: str | None = None) -> Element:
        """Keep a picture and return how it is shown."""
        self.files[name] = png
        width, height = png_size(png)
        shown = tag("img", alt=alt, width=width, height=height, class_=class_)
        shown.set("src", _uri(png))
        return shown

    def plot(self, name: str, light: bytes, dark: bytes, *, alt: str, caption: Sequence[Child]) -> Element:
        """Keep both renderings of a plot; return the figure that shows the one of the reader's theme."""
        self.files[f"{name}_dark"] = dark
        image = self.image(name, light, alt)
        source = tag("source", media="screen and (prefers-color-scheme: dark)")
        source.set("srcset", _uri(dark))
        return tag("figure", tag("picture", source, image), tag("figcaption", *caption))


def png_size(png: bytes) -> tuple[int, int]:
    """Return width and height of a PNG, in pixels."""
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    """Of the anchor."""
    title: str
    content: tuple[Child, ...]


def section(name: str, title: str, *content: Child) -> Section:
    """Return a part of the page."""
    return Section(name, title, content)


def render(title: str, header: Element, sections: Sequence[Section]) -> str:
    """Return the whole page.

    Args:
        title: of the window; a foreign word.
        header: what stands above the sections.
        sections: in order.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", short(title)),
        tag("link", rel="icon", href="data:,"),
        tag("style", CSS),
    )
    links = tag("ul", *(tag("li", tag("a", part.title, href=f"#{part.name}")) for part in sections))
    main = tag("main", *(_section(part) for part in sections))
    body = tag("body", header, tag("nav", links, aria_label="Sections"), main)
    return "<!DOCTYPE html>\n" + tostring(tag("html", head, body, lang="en"), encoding="unicode", method="html") + "\n"


def _section(part: Section) -> Element:
    title = f"{part.name}-title"
    return tag("section", tag("h2", part.title, id=title), *part.content, id=part.name, aria_labelledby=title)
