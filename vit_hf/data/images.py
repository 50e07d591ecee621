"""Read one image file safely: the single place where bytes of unknown origin become a PIL image.

Sources keep their image column undecoded (`datasets.Image(decode=False)`), so that everything a hostile, broken or
missing file can do happens here, with one kind of error that says where the image came from. The size is checked from
the header, before any pixel is decoded; only the formats in `FORMATS` are tried.

The image comes back as the file holds it: its own mode, EXIF orientation not yet applied. Conversion to upright RGB is
the image processor's work (`datasets`' own decoding would turn the pixels first, and drop what was wrong with them).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from PIL import Image, UnidentifiedImageError

# Pillow's names. JPEG covers MPO, which phones write into .jpg files; PPM covers PBM, PGM and PNM.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

# File endings that a folder scan takes for images of those formats (lower case).
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)

# Pillow's own default for a decompression bomb warning: a quarter of a GiB of RGB. Here it is an error.
MAX_PIXELS = 89_478_485

_EXPECTED = "expected a complete JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file"
_REMEDY = "replace the file or remove this row from the data"


class BadImageError(ValueError):
    """An image that cannot or must not be decoded; the text names its place, what was found and the remedy."""


def read_image(value: Any, *, where: str) -> Image.Image:
    """Decode one image completely (the first frame of an animation), in its own mode and orientation.

    Args:
        value: a path, encoded bytes, a `datasets` dict `{"bytes": ..., "path": ...}` (bytes win where both are given;
            a path there may be an `hf://` address), or a PIL image, which is loaded and handed back.
        where: place of the image for error texts, such as "row 17 of split train"; paths are added to it.

    Returns:
        A loaded PIL image of any mode, at most `MAX_PIXELS` large.

    Raises:
        BadImageError: empty, truncated, fake, of another format, too many pixels, or no image at all.
        FileNotFoundError: the path does not exist.
    """
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if data is None and path is None:
            raise BadImageError(f"{where}: no image (neither bytes nor path); {_EXPECTED}; {_REMEDY}")
        value = path if data is None else data
    if isinstance(value, Image.Image):
        return _load(lambda: value, where=where)
    if isinstance(value, bytes | bytearray | memoryview):
        if len(value) == 0:
            raise BadImageError(f"{where}: empty image (0 bytes); {_EXPECTED}; {_REMEDY}")
        return _decode(io.BytesIO(value), where=where)
    if isinstance(value, str | Path):
        where = where if where == str(value) else f"{where} ({value})"
        with _open_file(str(value), where=where) as file:
            return _decode(file, where=where)
    raise BadImageError(
        f"{where}: found {type(value).__name__} instead of an image; expected a path, bytes, a dict with 'bytes' and "
        "'path', or a PIL image"
    )


def _open_file(path: str, *, where: str) -> AbstractContextManager[BinaryIO]:
    """Open a local path, or a member of a Hub repository when `path` is an hf:// address (streamed image folders)."""
    if path.split("::")[-1].startswith("hf://"):
        return fsspec.open(path, "rb")
    if "\0" in path:
        raise BadImageError(f"{where}: the path holds a NUL character; expected a file name; {_REMEDY}")
    try:
        return open(path, "rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{where}: no such image file; expected it at {Path(path).absolute()}; restore the file, or load the data "
            "again if the folder has moved"
        ) from error
    except IsADirectoryError as error:
        raise BadImageError(f"{where}: this is a folder; {_EXPECTED}; name one image file") from error


def _decode(file: BinaryIO, *, where: str) -> Image.Image:
    """Decode the image in an open file, or say what the file holds instead."""
    try:
        return _load(lambda: Image.open(file, formats=FORMATS), where=where)
    except UnidentifiedImageError as error:
        file.seek(0)
        raise BadImageError(f"{where}: {_describe(file.read(64))}; {_EXPECTED}; {_REMEDY}") from error


def _load(opener: Callable[[], Image.Image], *, where: str) -> Image.Image:
    """Open (header only), check the size, then decode; every failure but "not an image" becomes a `BadImageError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = opener()
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
        if image.width * image.height == 0:
            raise ValueError(f"the size is {image.width} x {image.height}")
        image.load()
    except UnidentifiedImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(
            f"{where}: refused before decoding, too large ({error}); expected at most {MAX_PIXELS:,} pixels; "
            "shrink the image or remove this row from the data"
        ) from error
    except Warning:  # raised only where the caller turns warnings into errors: it asked for this one
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError, MemoryError, ...
        raise BadImageError(
            f"{where}: the image cannot be decoded ({type(error).__name__}: {error}); {_EXPECTED}; {_REMEDY}"
        ) from error
    return image


def _describe(head: bytes) -> str:
    """Name what a file that is no admitted image looks like, from its first bytes."""
    if not head:
        return "empty image (0 bytes)"
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer instead of an image (fetch the contents with `git lfs pull`)"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page instead of an image (a failed download?)"
    return f"not an image of an admitted format (it begins with {head[:12]!r})"
