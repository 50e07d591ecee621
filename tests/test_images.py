"""Reading one image: every admitted format and form of value, and one kind of error for everything else."""

import contextlib
import io
import resource
import struct
import time
import warnings
import zlib

import numpy as np
import PIL.Image
import pytest

from vit_hf.data.images import MAX_PIXELS, BadImageError, read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def encode(image_format="PNG", pixels=PIXELS, **options):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format=image_format, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG of a few bytes that claims any size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_come_back_exactly(image_format):
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    image = read_image(encode(image_format, **options), where="here")
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("image_format", ["JPEG", "GIF"])
def test_lossy_formats_keep_their_size(image_format):
    assert read_image(encode(image_format), where="here").size == (17, 12)


def test_path_bytes_dict_and_image_give_the_same_pixels(tmp_path):
    data = encode()
    path = tmp_path / "a.png"
    path.write_bytes(data)
    lazy = PIL.Image.open(path)
    forms = [path, str(path), data, bytearray(data), {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    for value in [*forms, lazy]:
        np.testing.assert_array_equal(np.asarray(read_image(value, where="here")), PIXELS)


def test_bytes_win_over_a_path_that_is_elsewhere():
    assert read_image({"bytes": encode(), "path": "/not/here.png"}, where="here").size == (17, 12)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [PIL.Image.new("L", (4, 4), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif", where="here").convert("L").getpixel((0, 0)) == 10


def test_the_two_pictures_of_a_phone_camera_give_the_first(tmp_path):
    frames = [PIL.Image.new("L", (16, 16), value) for value in (10, 200)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.jpg", where="here").getpixel((0, 0)) == 10


def test_a_loaded_image_needs_its_file_no_longer(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode())
    image = read_image(path, where="here")
    path.unlink()
    assert image.convert("RGB").resize((3, 3)).size == (3, 3)


def test_mode_and_orientation_are_left_to_the_processor():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = read_image(encode("JPEG", exif=exif), where="here")
    assert (image.size, image.getexif()[0x0112]) == ((17, 12), 6)
    assert read_image(encode(pixels=PIXELS[..., 0]), where="here").mode == "L"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (b"", "0 bytes"),
        (b"hello, I am no image", "not an image of an admitted format"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git-LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "HTML page"),
        (encode()[:-200], "cannot be decoded"),
        (encode("JPEG")[:-200], "cannot be decoded"),
        (encode()[:20], "cannot be decoded"),
        ({"bytes": None, "path": None}, "neither bytes nor path"),
        ({"bytes": None, "path": "a\0b"}, "NUL"),
        (None, "NoneType"),
        (17, "int"),
    ],
    ids=["empty", "text", "lfs", "html", "cut-png", "cut-jpeg", "cut-header", "nothing", "nul", "none", "int"],
)
def test_what_is_no_image_is_named_with_its_place_and_the_expectation(value, found):
    with pytest.raises(BadImageError, match=r"^row 17 of split train") as caught:
        read_image(value, where="row 17 of split train")
    assert found in str(caught.value)
    assert "expected" in str(caught.value)


def test_an_error_names_row_and_path(tmp_path):
    path = tmp_path / "fake.jpg"
    path.write_text("fake")
    with pytest.raises(BadImageError, match=r"^row 3 of split test \(.*fake\.jpg\): not an image"):
        read_image({"bytes": None, "path": str(path)}, where="row 3 of split test")


def test_a_missing_file_is_a_file_not_found_error_with_a_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"row 3 .*gone\.png.*no such image file.*restore"):
        read_image(tmp_path / "gone.png", where="row 3")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(BadImageError, match="this is a folder"):
        read_image(tmp_path, where="row 3")


def test_a_format_outside_the_list_is_refused():
    with pytest.raises(BadImageError, match="not an image of an admitted format"):
        read_image(encode("ICO"), where="row 3")


@pytest.mark.parametrize("side", [9_460, 14_000, 60_000])
def test_a_bomb_is_refused_at_once_and_without_its_memory(side):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(BadImageError, match=rf"row 3: refused before decoding.*at most {MAX_PIXELS:,} pixels; shrink"):
        read_image(png_header(side, side), where="row 3")
    assert time.perf_counter() - start < 0.1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024  # KiB


def test_the_pixel_limit_holds_when_pillow_is_told_to_have_none(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(BadImageError, match="refused before decoding"):
        read_image(png_header(20_000, 20_000), where="row 3")


def test_a_bomb_is_an_error_where_warnings_are_ignored():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadImageError, match="refused before decoding"):
            read_image(png_header(9_460, 9_460), where="row 3")


def test_two_hundred_damaged_images_raise_nothing_but_the_named_error():
    rng = np.random.default_rng(0)
    originals = [encode("PNG"), encode("JPEG"), encode("GIF"), encode("WEBP")]
    for trial in range(200):
        data = bytearray(originals[trial % 4])
        for position in rng.integers(0, len(data), 8):
            data[position] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(BadImageError):
                read_image(bytes(data[: rng.integers(1, len(data))]), where=f"trial {trial}")
