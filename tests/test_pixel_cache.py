"""Decoded splits on disk: the pixels the files hold, made once, found by content, never trusted when damaged."""

import hashlib
import io
import json
import logging
import multiprocessing
import os
import resource
import signal
import struct
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, concatenate_datasets
from huggingface_hub import constants
from safetensors import safe_open
from safetensors.numpy import save_file

from vit_hf.data import pixel_cache
from vit_hf.data.cache_folder import cache_folder
from vit_hf.data.images import read_image, read_rgb
from vit_hf.data.pixel_cache import cached_pixels
from vit_hf.data.sources import load_source
from vit_hf.image_processing_vit_hf import to_rgb


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Give each test a cache of its own; return where its files lie."""
    monkeypatch.setenv("VIT_HF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pixels"


def encoded(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()


def noise(row: int, size: tuple[int, int] = (6, 5)) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (*size, 3), dtype=np.uint8)


def split_of(contents: list[bytes | str]) -> Dataset:
    """Return a split of encoded pictures, or of paths."""
    kinds = Features({"image": Image(decode=False), "label": ClassLabel(names=["cat"])})
    images = [
        {"bytes": None, "path": one} if isinstance(one, str) else {"bytes": one, "path": None} for one in contents
    ]
    return Dataset.from_dict({"image": images, "label": [0] * len(images)}, features=kinds)


def pictures(count: int = 40, **replaced: bytes) -> Dataset:
    return split_of([replaced.get(f"row_{row}", encoded(noise(row))) for row in range(count)])


def decoded(split: Dataset, column: str = "image") -> np.ndarray:
    """Decode a split picture by picture: (N, C, h, w)."""
    images = [np.asarray(to_rgb(read_image(row[column], where="test"))) for row in split]
    return np.stack(images).transpose(0, 3, 1, 2)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix != ".lock") if folder.is_dir() else []


def content(split: Dataset) -> Path:
    """Return the file of a split that has been made."""
    return next(path for path in files(cache_folder("pixels")) if path.suffix == ".safetensors" and split)


# ---------------------------------------------------------------------------------------------- what is kept
def test_the_pixels_are_those_of_each_picture_and_the_file_is_safetensors(folder):
    split = pictures()
    found = cached_pixels(split, "image")
    assert found.shape == (40, 3, 6, 5)
    assert found.dtype == torch.uint8
    assert (found.numpy() == np.stack([noise(row) for row in range(40)]).transpose(0, 3, 1, 2)).all()
    (path,) = files(folder)
    with safe_open(path, framework="numpy") as file:
        note = json.loads(file.metadata()["vit_hf.pixels"])
        assert (file.get_tensor("pixels") == found.numpy()).all()
    assert note["owner"].startswith("vit_hf ")
    assert note["sha256"] == hashlib.sha256(found.numpy().tobytes()).hexdigest()


def test_every_mode_and_orientation_comes_out_as_picture_by_picture():
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    grey = np.arange(30, dtype=np.uint8).reshape(6, 5) * 8
    palette = io.BytesIO()
    PIL.Image.fromarray(noise(1)).quantize(7).save(palette, format="GIF")
    contents = [
        encoded(noise(0)),
        encoded(noise(2, (5, 6)), "JPEG", exif=turned),
        encoded(grey),
        encoded(np.dstack([noise(3), grey])),
        encoded(grey.astype(np.uint16) * 200),
        palette.getvalue(),
        encoded(noise(4), "WEBP"),
        encoded(noise(5), "PPM"),
    ]
    split = split_of(contents)
    found = cached_pixels(split, "image")
    assert found.shape == (8, 3, 6, 5)
    assert (found.numpy() == decoded(split)).all()


def test_digits_and_a_shuffled_selection_of_them_equal_the_pictures():
    train = load_source("digits").train
    chosen = train.shuffle(seed=1).select(range(50))
    for split in (train, chosen):
        assert (cached_pixels(split, "image").numpy() == decoded(split)).all()


def test_cifar_equals_the_pictures(shared_data):
    source = load_source(shared_data("cifar100") / "cifar100")
    split = source.test.select(range(0, 10_000, 20))
    column = source.image_column
    assert (cached_pixels(split, column).numpy() == decoded(split, column)).all()


def test_pictures_of_several_sizes_are_not_kept_and_hardly_looked_at(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(pixel_cache, "read_rgb", lambda value, **_: seen.append(1) or read_rgb(value, where=""))
    split = pictures(61, row_4=encoded(noise(4, (6, 6))), row_60=encoded(noise(4, (5, 6))))
    assert cached_pixels(split, "image") is None
    assert len(seen) == 2  # the first row probed, 0, and the second, which is row 4
    assert not files(folder)


def test_another_size_between_the_probes_ends_the_decoding(folder, monkeypatch):
    monkeypatch.setattr(pixel_cache, "_BLOCK_BYTES", 10 * 90)
    split = pictures(100, row_1=encoded(noise(1, (6, 6))))
    assert pixel_cache._common_shape(split, "image") == (100, 3, 6, 5)
    seen = []
    monkeypatch.setattr(pixel_cache, "read_rgb", lambda value, **_: seen.append(1) or read_rgb(value, where=""))
    assert cached_pixels(split, "image") is None
    assert len(seen) == 16 + 2
    assert not files(folder)


@pytest.mark.parametrize("row", [0, 1, 39])
def test_with_a_picture_that_cannot_be_decoded_nothing_is_kept(folder, row):
    assert cached_pixels(pictures(40, **{f"row_{row}": encoded(noise(row))[:60]}), "image") is None
    assert not files(folder)


def test_a_file_that_is_missing_is_left_to_whoever_reads_its_row(folder, tmp_path):
    (tmp_path / "there.png").write_bytes(encoded(noise(0)))
    there = str(tmp_path / "there.png")
    split = split_of([there] * 3 + [str(tmp_path / "gone.png")] + [there] * 30)
    assert cached_pixels(split, "image") is None
    assert not files(folder)


def test_up_to_a_size_in_all_pictures_are_kept(monkeypatch, folder):
    split = pictures(10)
    monkeypatch.setattr(pixel_cache, "MAX_BYTES", 10 * 90 - 1)
    assert cached_pixels(split, "image") is None
    assert not files(folder)
    monkeypatch.setattr(pixel_cache, "MAX_BYTES", 10 * 90)
    assert cached_pixels(pictures(10), "image") is not None


# ---------------------------------------------------------------------------------------------- found again
def test_a_split_is_decoded_once(folder, monkeypatch):
    first = cached_pixels(pictures(), "image")
    before = content(pictures()).stat()
    monkeypatch.setattr(pixel_cache, "_Blocks", None)  # to decode any would fail
    again = pictures()
    found = cached_pixels(again, "image")
    assert torch.equal(found, first)
    assert cached_pixels(again, "image") is found
    assert content(again).stat() == before


def test_pictures_in_files_have_the_cache_of_the_same_pictures_in_a_table(folder, tmp_path, monkeypatch):
    contents = [encoded(noise(row)) for row in range(20)]
    expected = cached_pixels(split_of(contents), "image")
    paths = [tmp_path / f"{row}.png" for row in range(20)]
    for path, one in zip(paths, contents, strict=True):
        path.write_bytes(one)
    monkeypatch.setattr(pixel_cache, "_Blocks", None)
    mixed = [str(path) if row % 3 else contents[row] for row, path in enumerate(paths)]
    for split in (
        split_of([str(path) for path in paths]),
        split_of(mixed),
        split_of(mixed[:1] + mixed).select(range(1, 21)),
    ):
        assert torch.equal(cached_pixels(split, "image"), expected)
    assert len(files(folder)) == 1
    stat = paths[7].stat()
    monkeypatch.undo()
    monkeypatch.setenv("VIT_HF_CACHE", str(folder.parent))
    paths[7].write_bytes(encoded(noise(99)))  # noise: the PNG has the same size
    os.utime(paths[7], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (
        cached_pixels(split_of([str(path) for path in paths]), "image")[7].numpy() == noise(99).transpose(2, 0, 1)
    ).all()


def change_order(contents):
    return contents[::-1]


def change_a_byte(contents):
    return [*contents[:-1], encoded(noise(77))]


def move_a_border(contents):
    """The same bytes one after the other, cut elsewhere: Pillow reads what follows a picture as nothing."""
    return [contents[0] + contents[1][:1], *contents[1:]]


@pytest.mark.parametrize("change", [change_order, change_a_byte, move_a_border], ids=lambda f: f.__name__)
def test_other_pictures_are_not_taken_for_these(folder, change):
    contents = [encoded(noise(row)) for row in range(5)]
    cached_pixels(split_of(contents), "image")
    other = split_of(change(contents))
    assert (cached_pixels(other, "image").numpy() == decoded(other)).all()
    assert len(files(folder)) == 2


def test_every_picture_of_a_long_split_counts_wherever_it_lies_in_the_table():
    """The table is read by the thousand rows."""
    contents = [encoded(noise(row % 7, (1, 2))) for row in range(2300)]
    whole = split_of(contents)
    digest = pixel_cache._encoded_digest(whole, "image")
    parts = concatenate_datasets([split_of(contents[:700]), split_of(contents[700:])])
    turned = split_of(contents[::-1]).select(range(2299, -1, -1))
    assert pixel_cache._encoded_digest(parts, "image") == pixel_cache._encoded_digest(turned, "image") == digest
    for row in (0, 999, 1000, 1500, 2299):
        changed = split_of([*contents[:row], encoded(noise(99, (1, 2))), *contents[row + 1 :]])
        assert pixel_cache._encoded_digest(changed, "image") != digest


@pytest.mark.parametrize(
    ("place", "name"), [(pixel_cache, "FORMAT"), (pixel_cache, "RGB_RULES"), (PIL, "__version__")], ids=lambda v: str(v)
)
def test_another_version_has_another_file(folder, monkeypatch, place, name):
    cached_pixels(pictures(3), "image")
    monkeypatch.setattr(place, name, "another")
    cached_pixels(pictures(3), "image")
    assert len(files(folder)) == 2


def test_the_number_of_the_rules_is_of_these_rules():
    """A picture of each kind by `to_rgb`; where these come out otherwise, raise RGB_RULES and put the new hash here."""
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = np.dstack([ramp, ramp.T, ramp[::-1]])
    deep = ramp.astype(np.uint16) * 257 - 100
    half = np.dstack([colours, ramp.T])
    images = [PIL.Image.fromarray(pixels) for pixels in (ramp, colours, half, deep, ramp / np.float32(255))]
    images += [images[0].convert("1"), images[1].convert("CMYK"), PIL.Image.merge("LA", (images[0], images[0]))]
    images += [images[1].convert("YCbCr"), images[0].copy(), PIL.Image.fromarray(ramp[:8])]
    images[-2].putpalette(bytes(range(255, -1, -1)) * 3)
    images[-1].getexif()[0x0112] = 5
    made = [to_rgb(image) for image in images]
    assert made[-1].size == (8, 16)
    digest = hashlib.sha256(b"".join(image.tobytes() for image in made)).hexdigest()
    assert (pixel_cache.RGB_RULES, digest[:16]) == (1, "d4f79ef8cdd53ca9")


# ---------------------------------------------------------------------------------------------- damage
def flip_a_pixel(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"pixels"', b'"pixel\xff"', 1))


def without_note(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        tensors = {"pixels": file.get_tensor("pixels")}
    save_file(tensors, path)


def of_other_pictures(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'encoded\\": \\"', b'encoded\\": \\"0', 1))


def with_another_shape(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"[40, 3, 6, 5]", b"[40, 3, 5, 6]", 1))


def with_a_shorter_header(path: Path) -> None:
    """Valid safetensors with the same note, but the pixels begin elsewhere."""
    with safe_open(path, framework="numpy") as file:
        tensors, note = {"pixels": file.get_tensor("pixels")}, file.metadata()
    save_file(tensors, path, metadata=note)


def with_a_list_for_a_note(path: Path) -> None:
    with safe_open(path, framework="numpy") as file:
        tensors = {"pixels": file.get_tensor("pixels")}
    save_file(tensors, path, metadata={"vit_hf.pixels": "[]"})


@pytest.mark.parametrize(
    "change",
    [
        *(flip_a_pixel, cut, append, empty, damage_the_header, without_note, of_other_pictures, with_another_shape),
        *(with_a_shorter_header, with_a_list_for_a_note),
    ],
    ids=lambda f: f.__name__,
)
def test_a_damaged_file_is_reported_once_and_made_anew(folder, caplog, change):
    expected = cached_pixels(pictures(), "image").clone()
    (path,) = files(folder)
    good = path.read_bytes()
    change(path)
    assert path.read_bytes() != good
    with caplog.at_level(logging.WARNING):
        found = cached_pixels(pictures(), "image")
    assert torch.equal(found, expected)
    assert [str(path) in record.message for record in caplog.records] == [True]
    assert "decoded again" in caplog.text
    assert files(folder) == [path]
    assert path.read_bytes() == good


# ---------------------------------------------------------------------------------------------- what cannot be written
class Usage:
    free = 17


def test_too_little_space_is_said_before_anything_is_decoded(folder, monkeypatch):
    monkeypatch.setattr(pixel_cache, "_Blocks", None)
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(OSError, match=rf"7,696 bytes .*written to {folder}, where 17 bytes are free .*VIT_HF_CACHE"):
        cached_pixels(pictures(), "image")
    assert not files(folder)


@pytest.mark.parametrize("limit", [0, 100, 4096, 7000, 7695])
def test_a_disk_that_fills_up_is_an_error_and_nothing_is_left(folder, limit):
    cached_pixels(pictures(2), "image")  # the lock's folder, and what must stay
    kept = files(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        with pytest.raises(
            OSError, match=r"7,696 bytes of decoded pictures cannot be written to .* are free .*VIT_HF_CACHE"
        ):
            cached_pixels(pictures(), "image")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(folder) == kept
    assert cached_pixels(pictures(), "image") is not None  # once there is space


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIT_HF_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OSError, match=r"bytes of decoded pictures cannot be written to .*file.pixels, where .*VIT_HF_CACHE"
    ):
        cached_pixels(pictures(), "image")


def test_a_file_in_a_folder_that_can_only_be_read_is_used(folder, monkeypatch):
    expected = cached_pixels(pictures(), "image")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pixel_cache, "FileLock", refuse)
    assert torch.equal(cached_pixels(pictures(), "image"), expected)
    with pytest.raises(OSError, match=r"cannot be written .*Permission denied.*VIT_HF_CACHE"):
        cached_pixels(pictures(5), "image")


def test_where_the_folder_is_read_only_pictures_are_read_one_by_one_and_it_is_said(folder, monkeypatch, caplog):
    monkeypatch.setattr(pixel_cache.os, "access", lambda path, mode: False)  # root may write wherever there is a disk
    assert cached_pixels(pictures(), "image") is None
    assert "is read-only: the pictures are decoded one by one" in caplog.text
    assert "VIT_HF_CACHE" in caplog.text
    assert not files(folder)


def test_the_cache_lies_beside_the_other_caches_or_where_the_variable_says(monkeypatch, tmp_path):
    assert cache_folder("pixels") == tmp_path / "cache" / "pixels"
    monkeypatch.delenv("VIT_HF_CACHE")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    assert cache_folder("pixels") == tmp_path / "home" / "vit-hf" / "pixels"


# ---------------------------------------------------------------------------------------------- several processes
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_of_two_processes_one_decodes_and_the_other_waits(folder, tmp_path, monkeypatch):
    plain, split = pixel_cache._Blocks.__getitem__, pictures(40)
    expected = int(decoded(split).sum())
    monkeypatch.setattr(pixel_cache, "_BLOCK_BYTES", 90)
    monkeypatch.setattr(
        pixel_cache._Blocks, "__getitem__", lambda self, number: time.sleep(0.02) or plain(self, number)
    )
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(2)

    def use(number: int) -> None:
        logging.basicConfig(level=logging.INFO, filename=tmp_path / f"{number}.log", force=True)
        begin.wait()
        assert int(cached_pixels(split, "image").sum(dtype=torch.int64)) == expected

    both = [context.Process(target=use, args=(number,)) for number in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert sum("decoding 40 pictures" in (tmp_path / f"{number}.log").read_text() for number in range(2)) == 1
    assert len(files(folder)) == 1


def test_what_a_killed_process_left_is_removed(folder):
    cached_pixels(pictures(3), "image")
    (path,) = files(folder)
    path.unlink()
    (folder / f".{path.stem}-1234.new").write_bytes(b"half")
    (folder / ".another-1234.new").write_bytes(b"of other pictures")
    cached_pixels(pictures(3), "image")
    assert {file.name for file in files(folder)} == {path.name, ".another-1234.new"}


def test_many_pictures_are_decoded_by_further_processes(monkeypatch):
    monkeypatch.setattr(pixel_cache, "_ALONE_SECONDS", 0.0)
    monkeypatch.setattr(pixel_cache, "_BLOCK_BYTES", 7 * 90)
    split = pictures(40)
    assert (cached_pixels(split, "image").numpy() == decoded(split)).all()


def test_a_header_fits_many_pictures():
    header = pixel_cache._header({"encoded": "f" * 64, "pillow": "12.0.0"}, (10**9, 3, 10**4, 10**4), "f" * 64)
    assert len(header) == 4096
    assert struct.unpack("<Q", header[:8]) == (4088,)
    assert json.loads(header[8:])["pixels"]["shape"] == [10**9, 3, 10**4, 10**4]


def test_what_is_wrong_with_a_picture_that_is_kept_is_said_with_its_row():
    exif = PIL.Image.Exif()
    exif[0x0112] = 9
    buffer = io.BytesIO()
    PIL.Image.fromarray(noise(9, (6, 5))).save(buffer, "PNG", exif=exif)
    with pytest.warns(UserWarning, match="row 3: EXIF orientation is 9"):
        assert cached_pixels(pictures(5, row_3=buffer.getvalue()), "image").shape == (5, 3, 6, 5)
