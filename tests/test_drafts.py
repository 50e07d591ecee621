"""Training pictures are decoded as small as the cut allows, right side up, and never otherwise than whole ones are."""

import io
import warnings

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch

from vit_hf import VitHfImageProcessor
from vit_hf.data.drafts import as_tensor, cut_picture, read_for_cut, reduction
from vit_hf.data.images import BadImageError, read_image
from vit_hf.data.sources import load_source
from vit_hf.data.transforms import Augmentation, TrainTransform
from vit_hf.image_processing_vit_hf import to_rgb


def photo(width: int, height: int) -> PIL.Image.Image:
    """Return noise smoothed over 48 pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 48, width // 48, 3), dtype=np.uint8)
    return PIL.Image.fromarray(noise).resize((width, height), PIL.Image.Resampling.BICUBIC)


def encoded(picture: PIL.Image.Image, kind: str = "JPEG", turned: int | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    if turned is not None:
        options["exif"] = PIL.Image.Exif()
        options["exif"][0x0112] = turned
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def upright(data: bytes) -> torch.Tensor:
    """Decode a whole picture, (3, h, w), as evaluation does."""
    return torch.from_numpy(np.array(to_rgb(read_image(data, where="test")))).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        ((0, 0, 448, 448), (224, 224), 1),
        ((0, 0, 895, 896), (224, 224), 1),
        ((0, 0, 896, 896), (224, 224), 2),
        ((7, 9, 1791, 5000), (224, 224), 2),
        ((0, 0, 1792, 1792), (224, 224), 4),
        ((0, 0, 3583, 3584), (224, 224), 4),
        ((0, 0, 3584, 3584), (224, 224), 8),
        ((0, 0, 9999, 9999), (224, 224), 8),
        ((0, 0, 400, 700), (100, 180), 1),
        ((0, 0, 400, 720), (100, 180), 2),
    ],
)
def test_a_picture_is_reduced_while_the_box_keeps_twice_the_size(box, size, expected):
    assert reduction(box, size) == expected


@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_reduced_picture_is_what_the_whole_one_is_resized_to(by, mode):
    data = encoded(photo(648, 520).convert(mode), quality=95)
    size, whole = (40, 40), upright(data)
    asked = (83, 163, 80 * by, 80 * by)
    if by == 8:
        size, asked = (32, 40), (0, 3, 520, 640)
    pixels, box = read_for_cut(data, lambda _: asked, size, where="test")
    assert pixels.shape[1:] == (-(-520 // by), -(-648 // by))
    top, left, height, width = box
    assert all(abs(by * found - there) <= by / 2 for found, there in zip(box[:2], asked[:2], strict=True))
    assert all(abs(by * found - there) <= by for found, there in zip(box[2:], asked[2:], strict=True))
    small = pixels[:3, top : top + height, left : left + width]
    large = whole[:, by * top : by * (top + height), by * left : by * (left + width)]
    if by == 1:
        assert box == asked
        assert torch.equal(small, large)
        return
    resized = [
        torch.nn.functional.interpolate(p[None].float(), size, mode="bilinear", antialias=True) for p in (small, large)
    ]
    difference = (resized[0] - resized[1]).abs()
    assert difference.mean() < 0.7
    assert difference.max() < 12


def test_every_quarter_of_a_picture_is_found_where_it_is():
    picture = PIL.Image.new("RGB", (1600, 1200))
    colours = {(0, 0): (250, 5, 5), (0, 800): (5, 250, 5), (600, 0): (5, 5, 250), (600, 800): (250, 250, 5)}
    for (top, left), colour in colours.items():
        picture.paste(colour, (left, top, left + 800, top + 600))
    data = encoded(picture, quality=95, subsampling=0)
    for (top, left), colour in colours.items():
        pixels, box = read_for_cut(data, lambda _, at=(top, left): (*at, 600, 800), (50, 50), where="test")
        assert pixels.shape[1:] == (1200 // 4, 1600 // 4)
        assert box == (top // 4, left // 4, 150, 200)
        cut = pixels[:3, box[0] : box[0] + 150, box[1] : box[1] + 200]
        assert (cut.float() - torch.tensor(colour).view(3, 1, 1)).abs().max() <= 6


@pytest.mark.parametrize(("width", "height"), [(643, 517), (641, 515), (647, 519)])
def test_pixels_left_over_at_the_edges_are_left_out(width, height):
    """A column that stands for less than the others would move all of them in the resize."""
    data = encoded(photo(720, 576).crop((0, 0, width, height)))
    for by, size in ((2, (128, 160)), (4, (64, 80)), (8, (32, 40))):
        pixels, box = read_for_cut(data, lambda whole: (0, 0, *whole), size, where="test")
        assert pixels.shape[1:] == (-(-height // by), -(-width // by))
        assert box == (0, 0, height // by, width // by)


@pytest.mark.parametrize("turned", range(2, 9))
def test_a_turned_picture_is_decoded_whole_and_upright(turned):
    data = encoded(photo(400, 240), turned=turned)
    sizes = []
    pixels, box = read_for_cut(data, lambda size: sizes.append(size) or (0, 0, *size), (20, 20), where="test")
    assert torch.equal(pixels[:3], upright(data))
    assert sizes[-1] == tuple(pixels.shape[1:]) == ((400, 240) if turned > 4 else (240, 400))
    assert box == (0, 0, *sizes[-1])


def test_an_upright_picture_with_exif_data_is_reduced():
    pixels, _ = read_for_cut(encoded(photo(400, 240), turned=1), lambda size: (0, 0, *size), (60, 50), where="test")
    assert pixels.shape[1:] == (120, 200)


@pytest.mark.parametrize("kind", ["CMYK", "PNG", "RGBA", "P", "LA", "I;16", "WEBP", "given"])
def test_other_pictures_are_decoded_as_for_evaluation(kind):
    picture = photo(160, 160)
    if kind in ("PNG", "WEBP"):
        value = encoded(picture, kind)
    elif kind == "CMYK":
        value = encoded(picture.convert("CMYK"))
    elif kind == "I;16":
        value = encoded(PIL.Image.fromarray(np.array(picture.convert("L")).astype(np.uint16) * 257), "PNG")
    elif kind == "given":
        value = picture
    else:
        value = encoded(picture.convert(kind), "PNG")
    pixels, box = read_for_cut(value, lambda size: (1, 2, 150, 140), (8, 8), where="test")
    assert torch.equal(pixels[:3], upright(value))
    assert box == (1, 2, 150, 140)


def test_a_cut_is_that_of_the_transform():
    transform = TrainTransform(Augmentation(crop="inception"), VitHfImageProcessor(size={"height": 30, "width": 44}))
    for picture in (photo(96, 80), photo(40, 56)):
        data = encoded(picture)
        for key in range(5):
            expected = transform.picture(read_image(data, where="test"), key)
            assert torch.equal(cut_picture(data, key, transform, where="test"), expected)


def test_pixels_in_several_blocks_of_memory_are_copied():
    small, large = photo(64, 48), photo(3000, 2400)
    for picture, channels in ((small, 4), (large, 3)):
        found = as_tensor(picture)
        assert found.shape == (channels, picture.height, picture.width)
        assert (found[:3].permute(1, 2, 0).numpy() == np.array(picture)).all()


@pytest.mark.parametrize("length", [0, 2, 30, 700, 5000])
def test_a_damaged_picture_is_named_by_its_place(length):
    data = encoded(photo(400, 240))[:length]
    with pytest.raises(BadImageError, match="row 7 of the training split"):
        read_for_cut(data, lambda size: (0, 0, *size), (60, 50), where="row 7 of the training split")


def test_what_is_wrong_with_exif_data_is_said_once():
    data = encoded(photo(400, 240), turned=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pixels, _ = read_for_cut(data, lambda size: (0, 0, *size), (60, 50), where="row 7")
    assert [str(warning.message)[:32] for warning in caught] == ["row 7: EXIF orientation is 0, exp"[:32]]
    assert pixels.shape[1:] == (120, 200)


def test_photographs_reduced_and_whole_differ_by_half_a_level(shared_data):
    source = load_source(shared_data("imagenet-1k-sample"))
    split = next(iter(source.splits.values()))
    transform = TrainTransform(Augmentation(), VitHfImageProcessor(size={"height": 64, "width": 64}))
    means = []
    for row in range(0, len(split), 4):
        value = split[row][source.image_column]
        pixels, box = read_for_cut(value, lambda size: (0, 0, *size), (64, 64), where="test")
        whole = upright(value["bytes"] or value["path"])
        if pixels.shape[1:] != whole.shape[1:]:
            by = round(whole.shape[1] / pixels.shape[1])
            exact = transform.cut(whole, (0, 0, by * box[2], by * box[3]))
            means.append((transform.cut(pixels, box).float() - exact.float()).abs().mean())
    assert len(means) > 20
    assert 0.1 < torch.stack(means).mean() < 0.6
