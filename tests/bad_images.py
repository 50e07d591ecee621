"""Pictures that are broken, hostile or merely odd, each with what must come of it; made in memory, always the same.

Outcomes: "refused" (an error that names the place, before anything is decoded, in 100 ms and 50 MB), "error" (one that
names the place), "warning" (decoded, and a warning names the place), "picture" (decoded; nothing is said).
"""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import PIL.Image

REFUSED, ERROR, WARNING, PICTURE = "refused", "error", "warning", "picture"
WIDTH, HEIGHT = 23, 17
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)  # noise: no two rows alike


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    data: bytes
    outcome: str
    words: str = ""
    """That the message has, beside the place."""
    size: tuple[int, int] = (WIDTH, HEIGHT)
    """(width, height) of what is decoded."""


def corpus() -> list[Case]:
    """Return all cases."""
    makers = (_fakes, _truncated, _png, _jpeg, _other_formats, _bombs, _tag_bombs, _long_work, _values, _exif, _odd)
    return [case for maker in makers for case in maker()]


def encode(image_format: str, mode: str = "RGB", *, size: tuple[int, int] = (WIDTH, HEIGHT), **options) -> bytes:
    """Encode noise of a mode that Pillow can make from colours and alpha."""
    whole = np.resize(PIXELS, (size[1], size[0], 4))
    picture, buffer = PIL.Image.fromarray(whole), io.BytesIO()
    if mode == "LAB":  # a conversion would add a profile with the time of day
        picture = PIL.Image.merge("LAB", picture.split()[:3])
    elif mode != "RGBA":
        picture = picture.convert("RGB").convert(mode)
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------- parts of files
def chunk(name: bytes, data: bytes = b"") -> bytes:
    """Return a chunk of PNG with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    *parts: bytes,
    width: int = 8,
    height: int = 8,
    depth: int = 8,
    colour: int = 2,
    interlace: int = 0,
    pixels: bytes | None = None,
    after: bytes = b"",
) -> bytes:
    """Return a PNG with those chunks before its pixels, which are grey if not given."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    if pixels is None:
        pixels = zlib.compress(b"".join(b"\0" + b"\x55" * (width * 3) for _ in range(height)))
    body = [chunk(b"IHDR", header), *parts, chunk(b"IDAT", pixels), after, chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def zeros(count: int) -> bytes:
    """Deflate so many zeros: a thousandth of them."""
    return zlib.compress(bytes(count), 9)


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment of JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Put segments in front of all others."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def with_jpeg_size(jpeg: bytes, width: int, height: int) -> bytes:
    """Let the header of a JPEG claim another size."""
    start = max(jpeg.find(b"\xff\xc0\x00\x11"), jpeg.find(b"\xff\xc2\x00\x11"))
    return jpeg[: start + 5] + struct.pack(">HH", height, width) + jpeg[start + 9 :]


def tiff(
    data: bytes = b"\x40" * 64,
    *,
    width: int = 8,
    height: int = 8,
    compression: int = 1,
    bits: int = 8,
    photometric: int = 1,
    tags: dict[int, tuple[int, int, int]] | None = None,
    tile: tuple[int, int] | None = None,
) -> bytes:
    """Return a grey TIFF of one strip, or of one tile; `tags` are number: (type, count, value), more or instead."""
    place = object()
    entries = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, bits), 259: (3, 1, compression)}
    entries |= {262: (3, 1, photometric), 277: (3, 1, 1)}
    if tile is None:
        entries |= {273: (4, 1, place), 278: (4, 1, height), 279: (4, 1, len(data))}
    else:
        entries |= {322: (4, 1, tile[0]), 323: (4, 1, tile[1]), 324: (4, 1, place), 325: (4, 1, len(data))}
    entries |= tags or {}
    start = 8 + 2 + 12 * len(entries) + 4
    body = b"".join(
        struct.pack("<HHII", number, kind, count, start if value is place else value)
        for number, (kind, count, value) in sorted(entries.items())
    )
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + body + bytes(4) + data


def shared_tags(count: int, size: int) -> bytes:
    """Return an EXIF block whose tags all claim the same bytes."""
    start = 8 + 2 + 12 * count + 4
    entries = b"".join(struct.pack(">HHII", 1000 + number, 7, size, start) for number in range(count))
    return struct.pack(">2sHIH", b"MM", 42, 8, count) + entries + bytes(4) + bytes(size)


def exif(kind: int = 3, value: bytes = b"\0\6\0\0", count: int = 1, *, start: int = 8) -> bytes:
    """Return an EXIF block with an orientation only."""
    return struct.pack(">2sHIHHHI", b"MM", 42, start, 1, 0x0112, kind, count) + value + bytes(4)


def webp(width: int, height: int, flags: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return an extended WebP (flags: 2 animated, 8 EXIF)."""
    header = bytes([flags, 0, 0, 0]) + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBP"
    for name, data in ((b"VP8X", header), *chunks):
        body += name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_picture() -> tuple[bytes, bytes]:
    """Return the chunk of a picture of 8 x 8."""
    data = encode("WEBP", size=(8, 8), lossless=True)
    return data[12:16], data[20 : 20 + struct.unpack_from("<I", data, 16)[0]]


def animated_webp(width: int, height: int) -> bytes:
    """Return a WebP with a large canvas and a small frame on it."""
    name, data = webp_picture()
    frame = bytes(6) + struct.pack("<I", 7)[:3] * 2 + struct.pack("<I", 100)[:3] + b"\0"
    frame += name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return webp(width, height, 2, (b"ANIM", bytes(6)), (b"ANMF", frame))


def bmp(
    data: bytes | None = None,
    *,
    width: int = 8,
    height: int = 8,
    bits: int = 24,
    compression: int = 0,
    header: int = 40,
) -> bytes:
    """Return a BMP, with a palette of black when it has 8 bits."""
    data = b"\x40" * 192 if data is None else data
    palette = bytes(1024) if bits == 8 else b""
    start = 54 + len(palette)
    about = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + about + palette + data


def gif(between: bytes = b"", *, screen: tuple[int, int] | None = None, frame: tuple[int, ...] | None = None) -> bytes:
    """Return a GIF with something before its picture, another size of its screen, or another place of its picture."""
    data = encode("GIF", "P")
    if screen is not None:
        data = data[:6] + struct.pack("<HH", *screen) + data[10:]
    start = data.index(struct.pack("<BHHHH", 0x2C, 0, 0, WIDTH, HEIGHT))
    place = data[start : start + 9] if frame is None else struct.pack("<BHHHH", 0x2C, *frame)
    return data[:start] + between + place + data[start + 9 :]


# ------------------------------------------------------------------------------------------- the cases
def _fakes() -> Iterator[Case]:
    """What is no picture, or none of an admitted format."""
    for name, data, words in (
        ("empty", b"", "0 bytes"),
        ("Git-LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        ("HTML", b"<html><body>404</body></html>", "HTML page"),
        ("HTML with space before", b"\n\n  <!DOCTYPE html><title>Sign in</title>", "HTML page"),
    ):
        yield Case(name, data, ERROR, words)
    for name, data in {
        "one byte": b"\xff",
        "zeros": bytes(1000),
        "text": b"this is a text",
        "JSON": b'{"error": "not found"}',
        "XML": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "PDF": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "PostScript": b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch canary) (w) file\n",
        "EPS with a preview": b"\xc5\xd0\xd3\xc6" + bytes(100),
        "Photoshop": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 8, 8, 8, 3) + bytes(300),
        "FITS": b"SIMPLE  =                    T" + b" " * 50 + b"BITPIX  =                    8" + b" " * 2800,
        "JPEG XL": b"\xff\x0a\xfa\x7f\x01\x90\x08\x00",
        "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "DDS": b"DDS " + struct.pack("<I", 124) + bytes(120),
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
        "EMF": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(40),
        "XBM": b"#define a_width 8\n#define a_height 8\nstatic char a_bits[] = {0,0,0,0,0,0,0,0};\n",
        "XPM": b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #000000", "a"};\n',
        "QOI": b"qoif" + struct.pack(">IIBB", 8, 8, 3, 0) + bytes(20),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "GRIB": b"GRIB" + bytes(100),
        "ZIP": b"PK\3\4" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + bytes(100),
        "pickle": b"\x80\4cos\nsystem\n(X\4\0\0\0trueTR.",
        "Parquet": b"PAR1" + bytes(100) + b"PAR1",
        "ELF": b"\x7fELF\2\1\1" + bytes(100),
        "MP4": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2",
        "WAV": b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + bytes(28),
        "WebP without a picture": b"RIFF\4\0\0\0WEBP",
        "PNG magic only": b"\x89PNG\r\n\x1a\n",
        "JPEG magic only": b"\xff\xd8\xff",
        "GIF magic only": b"GIF89a",
        "BMP magic only": b"BM",
        "TIFF magic only": b"II*\0",
        "PPM magic only": b"P6",
        "PAM": b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n\0\0\0",
        "PNG in base64": b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
        "PNG as Windows text": encode("PNG").replace(b"\r\n", b"\n"),
        "PNG as UTF-8": encode("PNG").decode("latin-1").encode(),
    }.items():
        yield Case(name, data, ERROR, "expected a complete JPEG")
    for image_format in ("ICO", "TGA", "PCX", "SGI", "ICNS", "JPEG2000", "DIB", "IM", "SPIDER"):
        mode = "L" if image_format == "SPIDER" else "RGB"
        yield Case(f"whole {image_format}", encode(image_format, mode, size=(32, 32)), ERROR, "admitted format")


def _truncated() -> Iterator[Case]:
    """Whole files cut at several points; the last byte of some formats is not missed."""
    for name, data in {
        "PNG": encode("PNG"),
        "JPEG": encode("JPEG"),
        "progressive JPEG": encode("JPEG", progressive=True),
        "CMYK JPEG": encode("JPEG", "CMYK"),
        "lossy WebP": encode("WEBP"),
        "lossless WebP": encode("WEBP", lossless=True),
        "GIF": encode("GIF", "P"),
        "BMP": encode("BMP"),
        "TIFF": encode("TIFF"),
        "TIFF, LZW": encode("TIFF", compression="tiff_lzw"),
        "TIFF, deflate": encode("TIFF", compression="tiff_adobe_deflate"),
        "TIFF, JPEG": encode("TIFF", compression="jpeg"),
        "PPM": encode("PPM"),
        "PBM": encode("PPM", "1"),
    }.items():
        for share in (0.02, 0.2, 0.5, 0.8, 0.95):
            cut = data[: max(int(len(data) * share), 3)]
            yield Case(f"{name}, {share:.0%} of it", cut, ERROR)


def _png() -> Iterator[Case]:
    whole = encode("PNG")
    for name, data in {
        "checksum of the header": whole[:20] + bytes([whole[20] ^ 1]) + whole[21:],
        "no header": b"\x89PNG\r\n\x1a\n" + whole[33:],
        "no pixels": whole[:33] + chunk(b"IEND"),
        "chunk longer than the file": whole[:33] + struct.pack(">I4s", 2**31 - 1, b"abCd") + whole[33:],
        "chunk of negative length": whole[:33] + b"\xff\xff\xff\xffabCd" + whole[33:],
        "chunk with a name of no letters": png(b"\0\0\0\0\1\2\3\4" + bytes(4)),
        "depth of 3 bits": png(depth=3),
        "colours of kind 5": png(colour=5),
        "no width": png(width=0),
        "no height": png(height=0),
        "pixels that are not deflated": png(pixels=b"these are no pixels at all" * 9),
        "pixels with a broken code": png(pixels=zlib.compress(bytes(200), 0)[:9] + b"\xff" * 50),
        "pixels of half the rows": png(pixels=zlib.compress(bytes(25 * 4))[:-8]),
        "pixels with an unknown filter": png(pixels=zlib.compress((b"\x09" + bytes(24)) * 8)),
        "a profile that bursts": png(chunk(b"iCCP", b"p\0\0" + zeros(2**24))),
        "a text that bursts": png(chunk(b"zTXt", b"t\0\0" + zeros(2**24))),
    }.items():
        yield Case(f"PNG, {name}", data, ERROR)


def _jpeg() -> Iterator[Case]:
    whole = encode("JPEG", quality=95)
    frame, scan = whole.index(b"\xff\xc0"), whole.index(b"\xff\xda")
    without = {name: whole.replace(marker, b"\xff\xfe") for name, marker in (("Huffman", b"\xff\xc4"),)}
    tables = whole.index(b"\xff\xdb")
    for name, data in {
        "no Huffman tables, of 16 bits": without["Huffman"][:frame] + b"\xff\xc1\0\x11\x10" + whole[frame + 5 :],
        "no quantisation tables": whole[:tables] + whole[frame:],
        "size of 0 x 0": with_jpeg_size(whole, 0, 0),
        "no components": whole[: frame + 9] + b"\0" + whole[frame + 10 :],
        "9 components": whole[: frame + 9] + b"\x09" + whole[frame + 10 :],
        "precision of 7 bits": whole[: frame + 4] + b"\7" + whole[frame + 5 :],
        "lossless": whole[:frame] + b"\xff\xc3" + whole[frame + 2 :],
        "no scan": whole[:scan] + b"\xff\xd9",
        "ends with its scan's header": whole[: scan + 14],
        "a quantisation table that is not there": whole[: frame + 12] + b"\3" + whole[frame + 13 :],
        "a Huffman table that is too full": whole.replace(b"\xff\xc4\0\x1f\0", b"\xff\xc4\0\x1f\0" + b"\xff" * 16, 1),
        "a segment beyond the end": with_segments(whole, b"\xff\xe0\xff\xff"),
    }.items():
        yield Case(f"JPEG, {name}", data, ERROR)


def _other_formats() -> Iterator[Case]:
    """Wrong lengths, kinds and places in the other formats."""
    lossy = encode("WEBP")
    picture = gif().index(struct.pack("<BHHHH", 0x2C, 0, 0, WIDTH, HEIGHT))
    codes = gif()[picture:].index(b"\x08") + picture  # size of the LZW codes
    for name, data in {
        "WebP, broken bits": lossy[:30] + b"\xff" * (len(lossy) - 30),
        "WebP, no start code": lossy[:23] + b"\0\0\0" + lossy[26:],
        "WebP, a canvas and no picture": webp(8, 8, 0),
        "WebP, a canvas of another size": webp(9, 9, 0, webp_picture()),
        "GIF, no picture": gif()[:picture] + b";",
        "GIF, codes of 13 bits": gif()[:codes] + b"\x0d" + gif()[codes + 1 :],
        "GIF, codes that are not there yet": gif()[: codes + 1] + b"\xff" + b"\xff" * 255 + b"\0;",
        "GIF, no codes": gif()[: codes + 1] + b"\0;",
        "BMP, 7 bits": bmp(bits=7),
        "BMP, header of 13 bytes": bmp(header=13),
        "BMP, compression 9": bmp(compression=9),
        "BMP, no width": bmp(width=0),
        "BMP, pixels missing": bmp(b"\x40" * 100),
        "BMP, runs that end early": bmp(b"\x08\1\0\1", bits=8, compression=1),
        "TIFF, compression of no name": tiff(compression=999),
        "TIFF, 7 bits": tiff(bits=7),
        "TIFF, no width": tiff(width=0),
        "TIFF, colours of kind 77": tiff(photometric=77),
        "TIFF, pixels beyond the end": tiff(tags={273: (4, 1, 2**32 - 16)}),
        "TIFF, pixels missing": tiff(b"\x40" * 20),
        "TIFF, no strips": tiff(tags={273: (7, 1, 0)}),
        "TIFF, more rows than strips": tiff(height=3000, tags={278: (4, 1, 8)}),
        "TIFF, a billion strips": tiff(tags={273: (4, 2**30, 8), 279: (4, 2**30, 8)}),
        "TIFF, 65,535 samples": tiff(tags={277: (3, 1, 65_535)}),
        "TIFF, JPEG of another size": tiff(encode("JPEG", "L"), compression=7),
        "TIFF, directory beyond the end": b"II*\0" + struct.pack("<I", 2**31),
        "TIFF, directory at -1": b"MM\0*\xff\xff\xff\xff",
        "BigTIFF, directory at the end of the world": b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63),
        "PPM, largest value 0": b"P6 8 8 0\n" + bytes(192),
        "PPM, largest value 99999": b"P6 8 8 99999\n" + bytes(192),
        "PPM, width of -8": b"P6 -8 8 255\n" + bytes(192),
        "PPM, width in letters": b"P6 eight 8 255\n" + bytes(192),
        "PPM, width of eleven digits": b"P6 99999999999 1 255\n" + bytes(192),
        "PPM, no height": b"P6 8",
        "PPM, pixels missing": b"P6 8 8 255\n" + bytes(100),
        "plain PPM, a value above the largest": b"P3 1 1 255\n1 2 999\n",
        "plain PPM, letters": b"P3 1 1 255\n1 2 x\n",
        "plain PBM, a digit 2": b"P1 2 2\n0 1 2 0\n",
        "PFM, scale 0": b"Pf 8 8 0\n" + bytes(256),
        "PFM, scale NaN": b"Pf 8 8 nan\n" + bytes(256),
    }.items():
        yield Case(name, data, ERROR)


def _bombs() -> Iterator[Case]:
    """Sizes beyond any picture, and sizes far beyond the file."""
    jpeg, flat = encode("JPEG"), encode("JPEG", progressive=True)
    for side in (9_460, 20_000, 65_000):
        for name, data in {
            "PNG": png(width=side, height=side, pixels=zeros(100)),
            "1-bit PNG": png(width=side, height=side, depth=1, colour=0, pixels=zeros(100)),
            "JPEG": with_jpeg_size(jpeg, side, side),
            "progressive JPEG": with_jpeg_size(flat, side, side),
            "BMP": bmp(width=side, height=side),
            "BMP upside down": bmp(width=side, height=-side),
            "GIF screen": gif(screen=(side, side)),
            "GIF picture": gif(frame=(0, 0, side, side)),
            "TIFF": tiff(width=side, height=side),
            "PPM": b"P6 %d %d 255\n" % (side, side),
            "plain PPM": b"P3 %d %d 255\n" % (side, side),
            "PBM": b"P4 %d %d\n" % (side, side),
            "PFM": b"Pf %d %d 1\n" % (side, side),
        }.items():
            yield Case(f"{name} of {side} x {side}", data, REFUSED, "refused before decoding")
    for name, data in {
        "PNG of 2**31 - 1": png(width=2**31 - 1, height=2**31 - 1, pixels=zeros(100)),
        "BMP of width -8": bmp(width=-8),
        "BMP of -2**31": bmp(width=-(2**31), height=1),
        "BMP of 1 x 89,000,000": bmp(width=1, height=89_000_000),
        "TIFF of 2**32 - 1": tiff(width=2**32 - 1, height=2**32 - 1),
        "GIF picture far off its screen": gif(frame=(60_000, 60_000, 5_000, 5_000)),
        "PNG, 16 bits, in 70 bytes": png(width=9_000, height=9_900, depth=16, colour=6, pixels=zeros(100)),
        "PNG, 1 bit, in 11 kB": png(width=9_000, height=9_900, depth=1, colour=0, pixels=zeros(1126 * 9_900)),
        "JPEG in 2 kB": with_jpeg_size(jpeg, 9_000, 9_900),
        "GIF in 1 kB": gif(screen=(9_000, 9_900)),
        "animated WebP in 90 bytes": animated_webp(9_000, 9_900),
        "animated WebP of 16,383": animated_webp(16_383, 16_383),
        "TIFF tile of 30,000": tiff(b"\x80\0" * 50, compression=5, tile=(30_000, 30_000)),
        "TIFF tile of 9,000 in 200 bytes": tiff(b"\x80\0" * 50, compression=5, tile=(9_008, 9_008)),
        "TIFF tile of 40,000, deflated": tiff(zeros(40_000 * 500), compression=8, tile=(40_000, 40_000)),
    }.items():
        yield Case(name, data, REFUSED, "refused before decoding")


def _tag_bombs() -> Iterator[Case]:
    """Thousands of tags that claim the same bytes."""
    block, jpeg = shared_tags(2_600, 30_000), encode("JPEG")
    strip = tiff(bytes(64), tags={1000 + number: (7, 200_000, 8) for number in range(2_000)})
    for name, data in {
        "JPEG": with_segments(jpeg, segment(0xE1, b"Exif\0\0" + block)),
        "JPEG, in two segments": with_segments(
            jpeg, segment(0xE1, b"Exif\0\0" + block[:30_000]), segment(0xE1, b"Exif\0\0" + block[30_000:])
        ),
        "JPEG, of an MPF": with_segments(jpeg, segment(0xE2, b"MPF\0" + block)),
        "PNG": png(chunk(b"eXIf", shared_tags(2_000, 200_000))),
        "WebP": webp(8, 8, 8, webp_picture(), (b"EXIF", shared_tags(2_000, 200_000))),
        "TIFF": strip + bytes(200_000),
    }.items():
        yield Case(f"tags that share their bytes, {name}", data, REFUSED, "tags claim")


def _long_work() -> Iterator[Case]:
    """Small pictures that keep a decoder busy."""
    progressive, jpeg = encode("JPEG", progressive=True), encode("JPEG")
    last = progressive.rindex(b"\xff\xda")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 5_000 + b"\0"
    for name, data, words in (
        ("progressive JPEG of 200 scans", progressive[:-2] + progressive[last:-2] * 200, "100 scans"),
        ("JPEG of 10,001 segments", with_segments(jpeg, b"\xff\xe5\0\2" * 10_001), "10,000 segments"),
        (
            "JPEG with 5 MB of EXIF",
            with_segments(jpeg, *[segment(0xE1, b"Exif\0\0" + bytes(60_000))] * 80),
            "bytes of EXIF",
        ),
        ("PNG of 10,001 chunks", png(chunk(b"abCd") * 10_001), "10,000 chunks"),
        ("PNG of 63 texts", png(*[chunk(b"zTXt", b"t\0\0" + zeros(2**20 - 9))] * 63), "32 compressed texts"),
        (
            "PNG of 63 texts after the pixels",
            png(after=b"".join([chunk(b"iTXt", b"t\0\1\0\0\0" + zeros(2**20 - 9))] * 63)),
            "32 compressed texts",
        ),
        ("GIF with a comment of 1 MB", gif(comment), "4,000 blocks"),
        ("GIF of 5,000 comments", gif(b"!\xfe\1c\0" * 5_000), "4,000 blocks"),
        ("GIF with junk", gif(bytes(5_000)), "4,000 blocks"),
        ("PPM with a comment of 1 MB", b"P6 #" + b"x" * 2**20 + b"\n8 8 255\n" + bytes(192), "a header of more"),
        ("PPM with a space of 1 MB", b"P6 8" + b" " * 2**20 + b"8 255\n" + bytes(192), "a header of more"),
        ("plain PPM of 1,001 comments", b"P3 8 8 255\n" + b"#\n" * 1_001 + b"1 " * 192, "1,000 comments"),
        ("BMP of empty runs", bmp(b"\1\1\0\0" * 4096, width=4096, height=4096, bits=8, compression=1), "run-length"),
    ):  # fmt: skip
        yield Case(name, data, REFUSED, words)


def _values() -> Iterator[Case]:
    """Numbers that no rule turns into colours."""
    floats, whole = {339: (3, 1, 3)}, {339: (3, 1, 2)}
    for name, value in (("NaN", float("nan")), ("infinity", float("inf")), ("-1", -1.0), ("300", 300.0)):
        yield Case(
            f"TIFF of {name}", tiff(struct.pack("<f", value) * 64, bits=32, tags=floats), ERROR, "floats in [0, 1]"
        )
    for value in (-5, 70_000):
        data = tiff(struct.pack("<i", value) * 64, bits=32, tags=whole)
        yield Case(f"TIFF of whole {value}", data, ERROR, "expected 16 bits")
    yield Case("PFM of NaN", b"Pf\n8 8\n-1\n" + struct.pack("<f", float("nan")) * 64, ERROR, "NaN")


def _exif() -> Iterator[Case]:
    """Orientations, right and broken, in each format that can hold them."""
    broken = {
        "text": b"garbage that is no TIFF",
        "orientation 0": exif(value=b"\0\0\0\0"),
        "orientation 9": exif(value=b"\0\x09\0\0"),
        "orientation 65,535": exif(value=b"\xff\xff\0\0"),
        "an orientation in letters": exif(2, b"six\0", 4),
    }
    for image_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        for orientation in range(1, 9):
            block = PIL.Image.Exif()
            block[0x0112] = orientation
            size = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
            data = encode(image_format, exif=block)
            yield Case(f"{image_format}, orientation {orientation}", data, PICTURE, size=size)
        if image_format == "TIFF":  # its own tags
            continue
        for name, block in broken.items():
            data = encode(image_format, exif=b"Exif\0\0" + block)
            yield Case(f"{image_format}, EXIF: {name}", data, WARNING, "used as it lies")
        for name, block in (("cut in its directory", exif()[:14]), ("directory beyond the end", exif(start=60_000))):
            data = encode(image_format, exif=b"Exif\0\0" + block)
            yield Case(f"{image_format}, EXIF: {name}", data, WARNING, "Corrupt EXIF data")
    profile = b"\nexif\n  9\n" + (b"Exif\0\0" + shared_tags(2_000, 100_000)).hex().encode()
    data = png(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)))
    yield Case("PNG, EXIF in a text, tags that share their bytes", data, WARNING, "tags claim", (8, 8))
    yield Case("TIFF, orientation 9", tiff(tags={274: (3, 1, 9)}), WARNING, "orientation is 9", (8, 8))
    yield Case("TIFF, a tag longer than the file", tiff(tags={700: (1, 2**32 - 1, 8)}), WARNING, "Truncated", (8, 8))


def _odd() -> Iterator[Case]:
    """Pictures that are unusual and right."""
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        data = _deep_png() if mode == "I;16" else encode("PNG", mode)
        yield Case(f"PNG of mode {mode}", data, PICTURE)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F"):
        yield Case(f"TIFF of mode {mode}", encode("TIFF", mode), PICTURE)
    for mode in ("L", "CMYK", "YCbCr"):
        yield Case(f"JPEG of mode {mode}", encode("JPEG", mode), PICTURE)
    yield Case("WebP of mode RGBA", encode("WEBP", "RGBA"), PICTURE)
    for width, height in ((1, 1), (1, 3000), (3000, 1)):
        for image_format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
            data = encode(image_format, size=(width, height))
            yield Case(f"{image_format} of {width} x {height}", data, PICTURE, size=(width, height))
    frames = [PIL.Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "lime")]
    for image_format in ("GIF", "PNG", "WEBP", "TIFF", "MPO"):
        data = encode(image_format, save_all=True, append_images=frames)
        yield Case(f"{image_format} of three pictures", data, PICTURE)
    for image_format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM"):
        yield Case(f"{image_format} with junk behind it", encode(image_format) + b"junk" * 9, PICTURE)
    loop = bytearray(tiff())
    loop[10 + 12 * loop[8] : 14 + 12 * loop[8]] = struct.pack("<I", 8)
    for name, data in {
        "TIFF, the next directory is the first": bytes(loop),
        "TIFF, 64 bytes that become 2**24": tiff(zeros(2**24), compression=8),
        "PNG, 64 pixels and 2**24 more": png(pixels=zlib.compress(bytes(25 * 8) + bytes(2**24))),
        "BMP upside down": bmp(height=-8),
        "PFM within 0 and 1": b"Pf\n8 8\n-1\n" + struct.pack("<f", 0.5) * 64,
        "PGM of 16 bits": b"P5 8 8 65535\n" + bytes(128),
        "plain PPM with a comment": b"P3 # red\n8 8 255\n" + b"255 0 0 " * 64,
    }.items():
        yield Case(name, data, PICTURE, size=(8, 8))


def _deep_png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(buffer, "PNG")
    return buffer.getvalue()
