"""Bad pictures: each is one clear error, a warning or a picture; none is a hang, a crash, or a gigabyte."""

import contextlib
import io
import mmap
import os
import signal
import subprocess
import time
import warnings

import numpy as np
import PIL.EpsImagePlugin
import PIL.Image
import pytest
from bad_images import ERROR, PICTURE, REFUSED, Case, chunk, corpus, encode, png, tiff, with_segments, zeros
from image_trials import CRASH, HANG, OTHER, PLACE, try_all
from PIL import ImageFile

from vit_hf import VitHfImageProcessor
from vit_hf.data import bombs, images
from vit_hf.data.images import BadImageError, read_image, read_rgb

CASES = corpus()


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What came of each case, by its name."""
    found = try_all(CASES, tmp_path_factory.mktemp("pictures"))
    return {finding.case.name: finding for finding in found}


# ---------------------------------------------------------------------------------------------- the corpus
def test_the_corpus_has_more_than_two_hundred_bad_pictures_and_no_two_are_alike():
    assert len({case.name for case in CASES}) == len({case.data for case in CASES}) == len(CASES)
    assert sum(case.outcome in (ERROR, REFUSED) for case in CASES) > 250
    assert corpus() == CASES  # made the same each time


@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_what_comes_of_a_picture(name, findings):
    assert findings[name].problem() is None


@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda path, where: time.sleep(60), HANG),
        (lambda path, where: os.kill(os.getpid(), signal.SIGKILL), CRASH),
        (lambda path, where: mmap.mmap(-1, 2**30), OTHER),
        (lambda path, where: PIL.Image.open(path), OTHER),
    ],
    ids=["hangs", "dies", "takes a gigabyte", "lets every error through"],
)
def test_a_reader_that_does_worse_is_found_out(tmp_path, read, found):
    cases = [Case("one", b"no picture", ERROR), Case("two", b"none either", ERROR)]
    outcomes = try_all(cases, tmp_path, patience_s=0.3, read=read)
    assert [finding.outcome for finding in outcomes] == [found, found]
    assert all(finding.problem() for finding in outcomes)


def test_what_pillow_alone_would_take_for_a_bomb_is_measured(tmp_path):
    """The memory of a picture is seen, so that 50 MiB are not held because nothing is measured."""
    for _ in range(2):  # the allocator keeps what was freed, as after the tests before it
        freed = [bytearray(15 * 2**20) for _ in range(4)] + [bytearray(31 * 2**20)]
        del freed
    [large] = try_all([Case("large", encode("BMP", size=(4000, 3000)), PICTURE, size=(4000, 3000))], tmp_path)
    assert large.problem() is None
    assert 30 * 2**20 < large.peak_bytes < 200 * 2**20


# ---------------------------------------------------------------------------------------------- what is not refused
@pytest.mark.parametrize(
    "data",
    [
        lambda: encode("JPEG", progressive=True, quality=95),
        lambda: encode("JPEG", size=(1200, 900), progressive=True),
        lambda: _flat("JPEG", "RGB", 5_000),
        lambda: _flat("JPEG", "L", 5_000, progressive=True),
        lambda: _flat("PNG", "L", 5_000),
        lambda: _flat("PNG", "1", 4_000),
        lambda: _flat("WEBP", "RGB", 4_000, lossless=True),
        lambda: tiff(bytes(256 * 256), tile=(256, 256)),
        lambda: encode("TIFF", compression="tiff_lzw", size=(300, 200), tiffinfo={322: 64, 323: 64}),
        lambda: with_segments(encode("JPEG"), *[b"\xff\xe2\0\x12ICC_PROFILE\0\1\1xx"] * 255),
        lambda: _with_texts(30),
    ],
    ids=range(11),
)
def test_pictures_that_look_like_bombs_and_are_none_are_read(data):
    assert min(read_rgb(data(), where="here").size) >= 8


def _flat(image_format: str, mode: str, side: int, **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new(mode, (side, side), "white").save(buffer, image_format, **options)
    return buffer.getvalue()


def _with_texts(count: int) -> bytes:
    return png(*[chunk(b"zTXt", b"k\0\0" + zeros(1000))] * count)


def test_two_pictures_of_a_phone_with_many_scans_each_are_read():
    one = encode("JPEG", progressive=True)
    assert one.count(b"\xff\xda") == 10
    assert read_rgb(one + one * 20, where="here").size == (23, 17)  # scans of those behind it do not count


# ---------------------------------------------------------------------------------------------- places
@pytest.mark.parametrize("value", ["pipe", "folder", "/dev/zero", "a\0b", "x" * 5000, "\ud800"])
def test_a_path_that_is_no_file_is_an_error_at_once(value, tmp_path):
    if value == "pipe":
        os.mkfifo(tmp_path / "pipe")
    if value in ("pipe", "folder"):
        (tmp_path / "folder").mkdir()
        value = str(tmp_path / value)
    with pytest.raises(BadImageError, match=rf"^{PLACE} \("):
        read_image({"bytes": None, "path": value}, where=PLACE)


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").write_bytes(encode("PNG"))
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(BadImageError, match=r"row 3 of split test \(.*a\.png\): the file cannot be read .*denied"):
        read_image(tmp_path / "a.png", where=PLACE)


def test_a_file_of_more_than_a_gibibyte_is_not_read(tmp_path):
    with (tmp_path / "a.webp").open("wb") as file:
        file.write(encode("WEBP"))
        file.truncate(2**30 + 1)  # takes no room
    with pytest.raises(BadImageError, match=r"a\.webp\): refused before reading, 1,073,741,825 bytes"):
        read_image(tmp_path / "a.webp", where=PLACE)


def test_bytes_that_remember_their_file_name_it():
    with pytest.raises(BadImageError, match=r"^row 3 of split test \(cat/7\.jpg\): an HTML page"):
        read_image({"bytes": b"<html>", "path": "cat/7.jpg"}, where=PLACE)


@pytest.mark.parametrize("error", [ConnectionError("no route"), TimeoutError("timed out")])
def test_a_network_that_fails_is_no_bad_image(error, monkeypatch):
    @contextlib.contextmanager
    def fail(*_):
        raise error
        yield

    monkeypatch.setattr(images.fsspec, "open", fail)
    with pytest.raises(type(error), match=str(error)):
        read_image({"bytes": None, "path": "hf://datasets/a/b/c.png"}, where=PLACE)


def test_too_little_memory_is_no_bad_image(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(MemoryError, match="row 3 of split test: not enough memory"):
        read_image(encode("PNG"), where=PLACE)


# ---------------------------------------------------------------------------------------------- settings of others
def test_half_a_file_is_an_error_even_where_pillow_is_told_to_go_on(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for data in (encode("JPEG"), encode("PNG")):
        with pytest.raises(BadImageError, match="cannot be decoded"):
            read_image(data[: len(data) // 2], where=PLACE)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_the_warning_of_pillow_comes_once_with_the_place_and_as_an_error_where_that_is_asked_for():
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        read_image({"bytes": encode("JPEG", exif=exif), "path": "a.jpg"}, where=PLACE)
    assert [str(entry.message).startswith(f"{PLACE} (a.jpg): Corrupt EXIF") for entry in said] == [True]
    with pytest.raises(UserWarning, match=r"row 3 of split test: Corrupt EXIF"):  # of these tests
        read_image(encode("JPEG", exif=exif), where=PLACE)


@pytest.mark.parametrize("by_path", [False, True])
def test_no_format_that_starts_another_program_is_opened(by_path, tmp_path, monkeypatch):
    def ran(*_, **__):
        pytest.fail("a program was started")

    monkeypatch.setattr(PIL.EpsImagePlugin, "Ghostscript", ran)
    monkeypatch.setattr(subprocess, "Popen", ran)
    path = tmp_path / "a.png"
    PIL.Image.new("RGB", (8, 8)).save(path, "EPS")
    assert path.read_bytes().startswith(b"%!PS")
    if by_path:
        with pytest.raises(PIL.UnidentifiedImageError):
            VitHfImageProcessor()(str(path))
    with pytest.raises(BadImageError, match="not an image of an admitted format"):
        read_image(path if by_path else path.read_bytes(), where=PLACE)


def test_every_admitted_format_is_in_the_corpus_and_no_other_is_decoded():
    decoded = {PIL.Image.open(io.BytesIO(case.data)).format for case in CASES if case.outcome == PICTURE}
    assert decoded == {*images.FORMATS, "MPO"}
    for pillow_format in PIL.Image.SAVE:  # whatever else this Pillow writes
        if pillow_format in decoded:
            continue
        buffer = io.BytesIO()
        try:
            PIL.Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(buffer, pillow_format)
        except Exception:  # it is for other modes, or needs a file
            continue
        if buffer.getvalue():
            with pytest.raises(BadImageError):
                read_image(buffer.getvalue(), where=PLACE)


def test_the_limit_of_scans_costs_a_common_jpeg_nothing(monkeypatch):
    """Its scans are not counted: each costs as many bytes as it says."""
    data, progressive = encode("JPEG"), encode("JPEG", progressive=True)
    monkeypatch.setattr(bombs, "MAX_SCANS", 0)
    read_image(data, where=PLACE)
    with pytest.raises(BadImageError, match="more than 0 scans"):
        read_image(progressive, where=PLACE)


@pytest.mark.parametrize(("side", "refused"), [(9_459, False), (9_460, True)])
def test_the_pixel_limit_holds_for_a_file_that_is_as_large_as_its_picture(side, refused, monkeypatch):
    monkeypatch.setattr(PIL.Image.Image, "load", lambda image: None)  # which takes a while
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: None)
    data = b"P4 %d %d\n" % (side, side) + bytes(side * -(-side // 8))
    if not refused:
        assert read_image(data, where=PLACE).size == (side, side)
        return
    with pytest.raises(BadImageError, match=r"too large \(9460 x 9460 pixels\); expected at most 89,478,485 pixels"):
        read_image(data, where=PLACE)
