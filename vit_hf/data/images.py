"""Read one image file safely: the single place where bytes of unknown origin become a PIL image.

Sources keep their image column undecoded (`datasets.Image(decode=False)`), so that everything a hostile, broken or
missing file can do happens here, with one kind of error that says where the image came from. What would take far more
memory or time than it holds is refused before any pixel is decoded (`vit_hf.data.bombs`); only the formats in `FORMATS`
are tried.

The image comes back as the file holds it: its own mode, EXIF orientation not yet applied. Conversion to upright RGB is
the image processor's work (`datasets`' own decoding would turn the pixels first, and drop what was wrong with them).
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from PIL import Image, ImageFile, UnidentifiedImageError

from ..image_processing_vit_hf import FORMATS, orientation_of, to_rgb
from .bombs import MAX_FILE_BYTES, MAX_PIXELS, BombError, refuse_bombs, refuse_sizes

__all__ = ["FORMATS", "MAX_PIXELS", "SUFFIXES", "BadImageError", "read_file", "read_image", "read_rgb"]

# File endings that a folder scan takes for images of those formats (lower case).
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm")
)

_EXPECTED = "expected a complete JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file"
_REMEDY = "replace it or leave it out"


class BadImageError(ValueError):
    """An image that cannot or must not be decoded; the text names its place, what was found and the remedy."""


def read_image(value: Any, *, where: str, draft: Callable[[Image.Image], None] | None = None) -> Image.Image:
    """Decode one image completely (the first frame of an animation), in its own mode and orientation.

    Args:
        value: a path, encoded bytes, a `datasets` dict `{"bytes": ..., "path": ...}` (bytes win where both are given;
            a path there may be an `hf://` address), or a PIL image, which is loaded and handed back.
        where: place of the image for error texts, such as "row 17 of split train"; paths are added to it.
        draft: called before the pixels are decoded; it may set Pillow's draft mode.

    Returns:
        A loaded PIL image of any mode, at most `MAX_PIXELS` large. What Pillow warns of is warned of with the place.

    Raises:
        BadImageError: empty, truncated, fake, of another format, too large, or no image at all.
        FileNotFoundError: the path does not exist.
        MemoryError: this machine has not enough.
    """
    where = _with_path(where, value)
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if data is None and path is None:
            raise BadImageError(f"{where}: no image (neither bytes nor path); {_EXPECTED}; {_REMEDY}")
        value = path if data is None else data
    if isinstance(value, Image.Image):
        return _load(lambda: value, where=where)
    if isinstance(value, bytes | bytearray | memoryview):
        return _decode(bytes(value), where=where, draft=draft)
    if isinstance(value, str | Path):
        return _decode(read_file(str(value), where=where), where=where, draft=draft)
    raise BadImageError(
        f"{where}: found {type(value).__name__} instead of an image; expected a path, bytes, a dict with 'bytes' and "
        "'path', or a PIL image"
    )


def read_rgb(value: Any, *, where: str, draft: Callable[[Image.Image], None] | None = None) -> Image.Image:
    """Decode one image and turn it into upright RGB by the rules of `to_rgb`; arguments and errors as of `read_image`.

    Values that no rule covers (NaN, 32-bit numbers beyond 16 bits) are a `BadImageError` too, and what is wrong with
    its EXIF data is warned of with the place.
    """
    image = read_image(value, where=where, draft=draft)
    where = _with_path(where, value)
    try:
        with _warnings_named(where):
            if image is value or image.mode != "RGB" or image.has_transparency_data or orientation_of(image) != 1:
                return to_rgb(image)
            image.info = {}  # all else that `to_rgb` would do is to copy the pixels
            return image
    except ValueError as error:
        raise BadImageError(f"{where}: {error}") from error
    except (MemoryError, RuntimeError) as error:  # the latter is torch's
        raise MemoryError(f"{where}: not enough memory to turn the image into RGB ({error})") from error


def _with_path(where: str, value: Any) -> str:
    """Add the path that a value is or has, which bytes of a Parquet file often keep too."""
    path = value.get("path") if isinstance(value, Mapping) else value
    return f"{where} ({path})" if isinstance(path, str | Path) and path and where != str(path) else where


def read_file(path: str, *, where: str) -> bytes:
    """Read a local path, or a member of a Hub repository when `path` is an hf:// address (streamed image folders).

    Raises BadImageError or FileNotFoundError, as `read_image`, for what is no file; never waits for a pipe.
    """
    if path.split("::")[-1].startswith("hf://"):
        with fsspec.open(path, "rb") as file:  # a network that fails is no bad image: that error stays as it is
            return file.read(MAX_FILE_BYTES)
    if "\0" in path:
        raise BadImageError(f"{where}: the path holds a NUL character; expected a file name; {_REMEDY}")
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise BadImageError(f"{where}: this is a folder; {_EXPECTED}; name one image file")
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, a device never ends
            raise BadImageError(f"{where}: this is a pipe or a device; {_EXPECTED}; {_REMEDY}")
        if found.st_size > MAX_FILE_BYTES:
            raise BadImageError(
                f"{where}: refused before reading, {found.st_size:,} bytes; expected at most {MAX_FILE_BYTES:,}; "
                "shrink it or leave it out"
            )
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{where}: no such image file; expected it at {Path(path).absolute()}; restore the file, or load the data "
            "again if the folder has moved"
        ) from error
    except (OSError, UnicodeError) as error:
        raise BadImageError(f"{where}: the file cannot be read ({error}); {_EXPECTED}; {_REMEDY}") from error


def _decode(data: bytes, *, where: str, draft: Callable[[Image.Image], None] | None) -> Image.Image:
    """Decode the content of a file, or say what it holds instead."""
    try:
        refuse_bombs(data)
        options: dict[str, Any] = {"num_bytes": len(data), "draft": draft}
        return _load(lambda: Image.open(io.BytesIO(data), formats=FORMATS), where=where, **options)
    except UnidentifiedImageError as error:
        raise BadImageError(f"{where}: {_describe(data[:64])}; {_EXPECTED}; {_REMEDY}") from error
    except BombError as error:
        raise BadImageError(_refused(where, str(error))) from error


def _load(
    opener: Callable[[], Image.Image],
    *,
    where: str,
    num_bytes: int | None = None,
    draft: Callable[[Image.Image], None] | None = None,
) -> Image.Image:
    """Open (header only), check the size, then decode; every failure but "not an image" becomes a `BadImageError`."""
    try:
        with _warnings_named(where):
            image = opener()
            refuse_sizes(image, num_bytes)
            if image.width < 1 or image.height < 1:
                raise ValueError(f"the size is {image.width} x {image.height}")
            _check_cover(image)
            if draft is not None:
                draft(image)
            with _whole_files_only():
                image.load()
    except UnidentifiedImageError:
        raise
    except BombError as error:
        raise BadImageError(_refused(where, str(error))) from error
    except Image.DecompressionBombError as error:  # Pillow comes first to what is twice as large
        raise BadImageError(_refused(where, f"too large ({error}); expected at most {MAX_PIXELS:,} pixels")) from error
    except Warning:  # raised only where the caller turns warnings into errors: it asked for this one
        raise
    except MemoryError as error:  # the machine's fault, not the image's
        raise MemoryError(f"{where}: not enough memory to decode the image") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, struct.error, EOFError, ...
        raise BadImageError(
            f"{where}: the image cannot be decoded ({type(error).__name__}: {error}); {_EXPECTED}; {_REMEDY}"
        ) from error
    return image


def _check_cover(image: Image.Image) -> None:
    """Raise ValueError for a TIFF whose strips end before its picture does, which Pillow would fill with black."""
    if image.format == "TIFF" and isinstance(image, ImageFile.ImageFile) and image.tile:
        right, bottom = (max(entry.extents[axis] for entry in image.tile if entry.extents) for axis in (2, 3))
        width, height = (getattr(image, "tag_v2", {}).get(tag, 0) for tag in (256, 257))  # before any turn
        if right < width or bottom < height:
            raise ValueError(f"{width} x {height} pixels, of which it holds {right} x {bottom}")


def _refused(where: str, why: str) -> str:
    return f"{where}: refused before decoding, {why}; shrink it or leave it out"


@contextmanager
def _warnings_named(where: str) -> Iterator[None]:
    """Let what is warned of within be warned of at the end, each text once, with the place of the image."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text, category in dict.fromkeys((str(entry.message), entry.category) for entry in caught):
        if category is not Image.DecompressionBombWarning:  # that limit is ours, and an error
            warnings.warn(f"{where}: {text}", category, stacklevel=4)


@contextmanager
def _whole_files_only() -> Iterator[None]:
    """Let half a file be an error, even where someone has told Pillow to fill the rest with grey."""
    allowed = ImageFile.LOAD_TRUNCATED_IMAGES
    if not allowed:
        yield
        return
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = allowed


def _describe(head: bytes) -> str:
    """Name what a file that is no admitted image looks like, from its first bytes."""
    if not head:
        return "empty image (0 bytes)"
    if head.startswith(b"version https://git-lfs"):
        return "a Git-LFS pointer instead of an image (fetch the contents with `git lfs pull`)"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page instead of an image (a failed download?)"
    return f"not an image of an admitted format (it begins with {head[:12]!r})"
