"""Boxes have torchvision's distribution; cutting and resizing a batch equals its resized_crop picture by picture."""

import numpy as np
import PIL.Image
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from vit_hf.data import cropping
from vit_hf.data.cropping import (
    BICUBIC,
    BILINEAR,
    LANCZOS,
    NEAREST,
    cut_and_resize,
    inception_box,
    inception_boxes,
    resize,
)
from vit_hf.data.draws import sample_keys
from vit_hf.data.host import exact_products

MODES = {
    NEAREST: InterpolationMode.NEAREST_EXACT,
    BILINEAR: InterpolationMode.BILINEAR,
    BICUBIC: InterpolationMode.BICUBIC,
}


def keys_of(count: int) -> np.ndarray:
    rows = np.arange(count)
    return sample_keys(0, 0 * rows, rows, 0 * rows)


def noise(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def torchvisions(pixels: torch.Tensor, boxes: np.ndarray, size: tuple[int, int], resample: int) -> torch.Tensor:
    options = {"size": list(size), "interpolation": MODES[resample], "antialias": True}
    return torch.stack(
        [functional.resized_crop(picture, *box, **options) for picture, box in zip(pixels, boxes.tolist(), strict=True)]
    )


# ---------------------------------------------------------------------------------------------- boxes
@pytest.mark.parametrize(
    ("size", "area"),
    [((375, 500), (0.08, 1.0)), ((32, 32), (0.8, 1.0)), ((100, 260), (0.5, 1.0)), ((40, 20), (0.9, 1.0))],
)
def test_boxes_have_the_distribution_of_torchvision(size, area):
    reference = v2.RandomResizedCrop(32, scale=area)
    torch.manual_seed(0)
    image = torch.empty(3, *size)
    params = [reference.make_params([image]) for _ in range(2500)]
    theirs = np.array([[found[name] for name in ("top", "left", "height", "width")] for found in params])
    ours = inception_boxes(size, keys_of(25_000), area)
    # Places within the room there is: shares of it, where there is any.
    for measure in (
        lambda boxes: boxes[:, 2] * boxes[:, 3],
        lambda boxes: np.log(boxes[:, 3] / boxes[:, 2]),
        lambda boxes: boxes[:, 2],
        lambda boxes: boxes[:, 0] / np.maximum(size[0] - boxes[:, 2], 1),
        lambda boxes: boxes[:, 1] / np.maximum(size[1] - boxes[:, 3], 1),
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 0.001


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (7, 500), (33, 32)])
@pytest.mark.parametrize("area", [(0.05, 1.0), (1.0, 1.0)])
def test_boxes_lie_within_the_picture(size, area):
    boxes = inception_boxes(size, keys_of(2000), area)
    assert boxes.shape == (2000, 4)
    assert boxes.min(axis=0).tolist() >= [0, 0, 1, 1]
    assert (boxes[:, 0] + boxes[:, 2]).max() <= size[0]
    assert (boxes[:, 1] + boxes[:, 3]).max() <= size[1]


@pytest.mark.parametrize("size", [(375, 500), (32, 32), (1, 50), (7, 500), (20, 100)])
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.9, 1.0)])
def test_a_box_drawn_alone_is_that_of_the_batch(size, area):
    keys = keys_of(3000)
    assert [list(inception_box(size, key, area)) for key in keys.tolist()] == inception_boxes(size, keys, area).tolist()


def test_where_nothing_fits_the_box_is_torchvisions_central_one():
    for size in ((20, 100), (100, 20), (31, 101)):
        reference = v2.RandomResizedCrop(32, scale=(1.0, 1.0)).make_params([torch.empty(3, *size)])
        expected = [reference[name] for name in ("top", "left", "height", "width")]
        assert inception_boxes(size, keys_of(50), (1.0, 1.0)).tolist() == [expected] * 50


# ---------------------------------------------------------------------------------------------- resampling
@pytest.mark.parametrize("resample", MODES)
@pytest.mark.parametrize(
    ("source", "target"),
    [((32, 32), (32, 32)), ((50, 37), (24, 32)), ((20, 20), (48, 64)), ((60, 64), (40, 43)), ((5, 3), (8, 8))],
)
@pytest.mark.parametrize("table", [True, False])
def test_cutting_and_resizing_equals_torchvision_bit_for_bit(resample, source, target, table, monkeypatch):
    if not table:
        monkeypatch.setattr(cropping, "_MOST_BYTES", 0)
    pixels, boxes = noise(64, *source), inception_boxes(source, keys_of(64), (0.02, 1.0))
    found = cut_and_resize(pixels, boxes, target, resample=resample)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torchvisions(pixels, boxes, target, resample))


@pytest.mark.parametrize("resample", MODES)
def test_every_box_of_a_small_picture_equals_torchvision(resample):
    boxes = [(top, left, tall, wide) for tall in range(1, 8) for wide in range(1, 7)
             for top in range(8 - tall) for left in range(7 - wide)]  # fmt: skip
    pixels = noise(1, 7, 6).expand(len(boxes), -1, -1, -1)
    found = cut_and_resize(pixels, np.array(boxes), (5, 8), resample=resample)
    assert torch.equal(found, torchvisions(pixels, np.array(boxes), (5, 8), resample))


@pytest.mark.parametrize("resample", MODES)
def test_strong_shrinking_is_within_one_level_of_torchvision(resample, monkeypatch):
    """There torch has more bits for a weight than float32 can add up."""
    monkeypatch.setattr(cropping, "_LARGE", 10**9)
    pixels, boxes = noise(20, 300, 260), inception_boxes((300, 260), keys_of(20), (0.02, 1.0))
    found = cut_and_resize(pixels, boxes, (12, 16), resample=resample)
    difference = (found.int() - torchvisions(pixels, boxes, (12, 16), resample).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.03


@pytest.mark.parametrize("resample", MODES)
def test_a_large_picture_is_the_same_with_and_without_matrices(resample, monkeypatch):
    pixels, boxes = noise(8, 120, 100), inception_boxes((120, 100), keys_of(8), (0.3, 1.0))
    mirrored = np.arange(8) % 2 == 0
    one_by_one = cut_and_resize(pixels, boxes, (40, 48), resample=resample, mirrored=mirrored)
    monkeypatch.setattr(cropping, "_LARGE", 10**9)
    found = cut_and_resize(pixels, boxes, (40, 48), resample=resample, mirrored=mirrored)
    assert (found.int() - one_by_one.int()).abs().max() <= 1
    assert (found != one_by_one).float().mean() < 0.01


@pytest.mark.parametrize("resample", [*MODES, LANCZOS])
@pytest.mark.parametrize(("source", "target"), [((70, 90), (40, 48)), ((20, 30), (32, 32))])
def test_resizing_is_within_one_level_of_pillow_with_and_without_matrices(resample, source, target, monkeypatch):
    pixels = noise(3, *source)
    code = PIL.Image.Resampling(resample)
    expected = [
        np.array(PIL.Image.fromarray(picture.permute(1, 2, 0).numpy()).resize(target[::-1], code)) for picture in pixels
    ]
    expected = torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2)
    boxes = np.tile([0, 0, *source], (3, 1))
    monkeypatch.setattr(cropping, "_LARGE", 10**9)
    for found in (resize(pixels, target, resample=resample), cut_and_resize(pixels, boxes, target, resample=resample)):
        difference = (found.int() - expected.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.05  # Pillow has 22 bits for a weight


@pytest.mark.parametrize("precision", ["highest", "medium"])
def test_the_result_does_not_depend_on_how_a_caller_lets_matrices_be_multiplied(precision):
    pixels, boxes = noise(16, 32, 32), inception_boxes((32, 32), keys_of(16), (0.3, 1.0))
    before = torch.get_float32_matmul_precision()
    expected = torchvisions(pixels, boxes, (32, 32), BICUBIC)
    try:
        torch.set_float32_matmul_precision(precision)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(cut_and_resize(pixels, boxes, (32, 32), resample=BICUBIC), expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_exact_products_are_asked_for_within_only(precision):
    before = torch.get_float32_matmul_precision()
    kernels = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    try:
        torch.set_float32_matmul_precision(precision)
        outside = [kernel.fp32_precision for kernel in kernels]
        with exact_products(torch.device("cpu")):
            assert [kernel.fp32_precision for kernel in kernels] == ["ieee", "ieee"]
        assert [kernel.fp32_precision for kernel in kernels] == outside
        assert torch.get_float32_matmul_precision() == precision
        assert torch.backends.cuda.matmul.allow_tf32 == (precision != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("resample", MODES)
def test_mirrored_pictures_are_mirrors_of_the_others(resample):
    pixels, boxes = noise(30, 32, 28), inception_boxes((32, 28), keys_of(30), (0.3, 1.0))
    mirrored = np.arange(30) % 3 == 0
    upright = cut_and_resize(pixels, boxes, (20, 24), resample=resample)
    found = cut_and_resize(pixels, boxes, (20, 24), resample=resample, mirrored=mirrored)
    mask = torch.from_numpy(mirrored)
    assert torch.equal(found[mask], upright[mask].flip(-1))
    assert torch.equal(found[~mask], upright[~mask])
