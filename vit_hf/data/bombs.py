"""Files that cost far more than they hold are refused before a decoder sees them: memory or time from a few bytes.

Pillow has a limit for pixels and one for a text of PNG. It has none for what follows, each of which it takes minutes or
gigabytes for (Pillow 12.3, measured): tags of EXIF, MPF and TIFF that all claim the same bytes (a PNG of 6 kB takes
176 MB, the square of it at ten times the size), tiles of a TIFF far larger than its picture (860 MB for 234 bytes),
progressive JPEGs of thousands of scans, comments of GIF (84 s for 20 MB) and of plain PPM (28 s for 2 MB).

What a file is taken for is decided by its first bytes; whether it is one, the decoder finds out.
"""

from __future__ import annotations

import re
import struct

from PIL import Image

from ..image_processing_vit_hf import refuse_shared_tags

# Pillow's own default for a decompression bomb warning: a quarter of a GiB of RGB. Here it is an error.
MAX_PIXELS = 89_478_485
MAX_FILE_BYTES = 2**30
"""No file of that many pixels needs more: 16 bits and four channels are 0.7 GiB, uncompressed."""
MAX_PIXELS_A_BYTE = 2_000
"""Of a picture of more than `FREE_PIXELS`. A white one takes JPEG at least 1 byte for 512 pixels, PNG one for 1,032
grey ones; photographs take one for some tens at most."""
FREE_PIXELS = 2**24  # 48 MiB of RGB, whatever the file
MAX_SCANS = 100  # of a progressive JPEG; encoders write about ten
MAX_EXIF_BYTES = 2**22  # of JPEG, whose segments Pillow joins one by one
MAX_PARTS = 10_000  # segments of JPEG, chunks of PNG that hold no pixels
MAX_PACKED_TEXTS = 32  # zTXt, iTXt and iCCP of PNG: each may become 1 MiB
MAX_GIF_BLOCKS = 4_000  # of 255 bytes, before the picture
MAX_COMMENTS = 1_000  # of a PPM in plain numbers
MAX_HEADER_BYTES = 2**16  # of a PPM
MAX_RLE_PIXELS = 2**22  # of a run-length encoded BMP, which Pillow unpacks in Python: 0.2 s a million

_PPM_NUMBERS = {b"P1": 2, b"P4": 2, b"Pf": 3, b"PF": 3}  # width, height, and largest value or scale; 3 for others
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)  # kinds of frames
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


class BombError(ValueError):
    """A file that would take too much; the text says what of."""


def refuse_bombs(data: bytes) -> None:
    """Raise BombError for a file whose structure would cost its reader too much; no pixel is decoded."""
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        _check_webp(data)
    elif data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        _check_tags(data, "TIFF")
    elif data[:1] == b"P" and data[1:2] in b"123456fF":
        _check_ppm(data)


def refuse_sizes(image: Image.Image, num_bytes: int | None) -> None:
    """Raise BombError for a picture that is opened, not decoded, and too large, or too large for its file.

    Args:
        image: as `Image.open` gives it.
        num_bytes: of the file; None where the picture comes from elsewhere.
    """
    width, height = image.size
    pixels, what = width * height, f"{width} x {height} pixels"
    tags = getattr(image, "tag_v2", {})
    tile = [max(_whole_numbers(tags.get(tag)), default=0) for tag in (322, 323)]  # TileWidth, TileLength
    if tile[0] * tile[1] > pixels:  # a decoder has room for a whole one
        pixels, what = tile[0] * tile[1], f"tiles of {tile[0]} x {tile[1]} pixels"
    if image.format == "BMP" and image.info.get("compression") in (1, 2) and pixels > MAX_RLE_PIXELS:
        raise BombError(f"{what} of a run-length encoded BMP; expected at most {MAX_RLE_PIXELS:,}")
    _check_pixels(pixels, what, num_bytes)


def _check_pixels(pixels: int, what: str, num_bytes: int | None) -> None:
    if pixels > MAX_PIXELS:
        raise BombError(f"too large ({what}); expected at most {MAX_PIXELS:,} pixels")
    if num_bytes is not None and pixels > max(FREE_PIXELS, MAX_PIXELS_A_BYTE * num_bytes):
        raise BombError(
            f"{what} in {num_bytes:,} bytes; expected at most {MAX_PIXELS_A_BYTE:,} for each byte above "
            f"{FREE_PIXELS:,} pixels"
        )


def _check_tags(block: bytes, what: str) -> None:
    try:
        refuse_shared_tags(block)
    except ValueError as error:
        raise BombError(f"its {what} data is none: {error}") from error


def _check_jpeg(data: bytes) -> None:
    """Walk over the segments to the first scan, and over all scans where there might be too many.

    Only a progressive one may have scans that cost no bytes; to count the marks of others takes 6% of their decoding.
    """
    position, parts, scans, exif, exif_bytes, progressive = 2, 0, 0, [], 0, False
    while (found := _NEXT_MARKER.search(data, position)) is not None:
        position, marker = found.end(), data[found.end() - 1]
        if marker == 0xD9:
            break
        if marker in (0x01, 0xD8):  # alone
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        segment = data[position + 2 : position + length]
        position += length
        progressive = progressive or marker in _PROGRESSIVE
        if marker == 0xDA:
            scans += 1
            if not progressive or (scans == 1 and data.count(b"\xff\xda") <= MAX_SCANS):
                break
        elif not scans:
            parts += 1
        if parts > MAX_PARTS:
            raise BombError(f"more than {MAX_PARTS:,} segments before the picture")
        if scans > MAX_SCANS:
            raise BombError(f"more than {MAX_SCANS} scans")
        if marker == 0xE1 and segment.startswith(b"Exif\0"):
            exif.append(segment[6:])  # a long one continues in the next segment
            exif_bytes += len(segment)
            if exif_bytes > MAX_EXIF_BYTES:
                raise BombError(f"more than {MAX_EXIF_BYTES:,} bytes of EXIF")
        elif marker == 0xE2 and segment.startswith(b"MPF\0"):
            _check_tags(segment[4:], "MPF")
    _check_tags(b"".join(exif), "EXIF")


def _check_png(data: bytes) -> None:
    position, parts, texts = 8, 0, 0
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name != b"IDAT":
            parts += 1
            texts += name in (b"zTXt", b"iTXt", b"iCCP")
            if parts > MAX_PARTS:
                raise BombError(f"more than {MAX_PARTS:,} chunks beside the pixels")
            if texts > MAX_PACKED_TEXTS:
                raise BombError(f"more than {MAX_PACKED_TEXTS} compressed texts")
            if name == b"eXIf":
                _check_tags(data[position + 8 : position + 8 + length], "EXIF")
        position += length + 12


def _check_gif(data: bytes) -> None:
    """Count the blocks of extensions, and whatever else stands before the first picture."""
    colours = 3 * 2 ** ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 128 else 0
    position, blocks = 13 + colours, 0
    while position < len(data) and data[position] != 0x2C:  # of a picture
        blocks += 1
        if data[position] == 0x21:  # of an extension: its kind, then blocks that begin with their length, 0 for none
            position += 2
            while position < len(data) and data[position]:
                position += data[position] + 1
                blocks += 1
        if blocks > MAX_GIF_BLOCKS:
            raise BombError(f"more than {MAX_GIF_BLOCKS:,} blocks before the picture")
        position += 1


def _check_ppm(data: bytes) -> None:
    numbers = _PPM_NUMBERS.get(data[:2], 3)
    if re.match(rb"P.(?:(?:\s|#[^\r\n]*[\r\n])+[^\s#]+){%d}\s" % numbers, data[:MAX_HEADER_BYTES]) is None:
        if len(data) > MAX_HEADER_BYTES:
            raise BombError(f"a header of more than {MAX_HEADER_BYTES:,} bytes")
        return
    if data[:2] in (b"P1", b"P2", b"P3") and data.count(b"#") > MAX_COMMENTS:
        raise BombError(f"more than {MAX_COMMENTS:,} comments")


def _check_webp(data: bytes) -> None:
    """Look at the canvas, which the decoder makes when it opens the file, and at the tags."""
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, position)
        if name == b"VP8X" and position + 18 <= len(data):
            width, height = (1 + int.from_bytes(data[position + at : position + at + 3], "little") for at in (12, 15))
            _check_pixels(width * height, f"{width} x {height} pixels", len(data))
        elif name == b"EXIF":
            _check_tags(data[position + 8 : position + 8 + length], "EXIF")
        position += 8 + length + length % 2


def _whole_numbers(value: object) -> list[int]:
    values = value if isinstance(value, tuple) else (value,)
    return [number for number in values if isinstance(number, int)]
