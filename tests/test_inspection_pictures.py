"""Figures of single pictures: patches are what the projection sees, maps lie over the picture that belongs to them."""

import numpy as np
import pytest
import torch
from PIL import Image

from vit_hf import VitHfForImageClassification
from vit_hf.inspection.attention_plots import draw_attention, draw_heads
from vit_hf.inspection.patches import cut_patches, draw_patches
from vit_hf.inspection.style import DARK, LIGHT, to_png


def words(figure) -> list[str]:
    texts = [text.get_text() for ax in figure.axes for text in ax.texts]
    return [*texts, figure.get_suptitle(), *(ax.get_title(loc="left") for ax in figure.axes)]


# ------------------------------------------------------------------------------------------- patches
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_projections_weights_on_the_cut_patches_give_the_models_tokens(tiny, randomise, channels, bias):
    model = randomise(VitHfForImageClassification(tiny(num_channels=channels, patch_bias=bias)))
    images = torch.randn(2, channels, 16, 24)
    patches = cut_patches(images, model.config.patch_hw)
    assert patches.shape == (2, 12, channels, 4, 8)
    projection = model.vit.embeddings.patch_embeddings.projection
    tokens = torch.einsum("bncpq,dcpq->bnd", patches, projection.weight)
    if bias:
        tokens = tokens + projection.bias
    torch.testing.assert_close(tokens, model.vit.embeddings.patch_embeddings(images), atol=1e-5, rtol=0)


def test_patches_come_row_by_row_and_hold_every_pixel_once():
    images = torch.arange(2 * 3 * 8 * 18, dtype=torch.float32).view(2, 3, 8, 18)
    patches = cut_patches(images, (4, 6))
    assert patches.shape == (2, 6, 3, 4, 6)
    for number in range(6):
        row, column = divmod(number, 3)
        expected = images[:, :, 4 * row : 4 * row + 4, 6 * column : 6 * column + 6]
        assert torch.equal(patches[:, number], expected)


def test_sizes_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="16 x 20 pixels do not divide into patches of 4 x 8; resize"):
        cut_patches(torch.zeros(1, 3, 16, 20), (4, 8))


def test_the_drawn_patches_are_the_pictures_pixels_between_gaps_of_paper(tiny):
    config = tiny()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    for theme in (LIGHT, DARK):
        figure = draw_patches(Image.fromarray(pixels), config, theme=theme)
        sheet = np.asarray(figure.axes[0].images[0].get_array())  # 38 times enlarged
        times = round(900 / 24)
        tall, wide = sheet.shape[0] // 4, sheet.shape[1] // 3
        gap = tall - 4 * times
        assert gap == wide - 8 * times > 0
        for row in range(4):
            for column in range(3):
                tile = sheet[row * tall + gap : (row + 1) * tall, column * wide + gap : (column + 1) * wide]
                own = pixels[4 * row : 4 * row + 4, 8 * column : 8 * column + 8] / 255
                np.testing.assert_allclose(tile[times // 2 :: times, times // 2 :: times], own, atol=1e-6)
        paper = tuple(round(255 * value) for value in sheet[0, 0])
        assert "#{:02X}{:02X}{:02X}".format(*paper) == theme.paper


def test_patches_are_numbered_row_by_row_from_one(tiny):
    figure = draw_patches(Image.new("RGB", (24, 16)), tiny(num_register_tokens=2))
    places = {}
    for text in figure.axes[0].texts:
        x, y = text.get_position()
        places[int(text.get_text())] = (int(y + 0.5), int(x + 0.5))
    assert places == {3 * row + column + 1: (row + 1, column + 1) for row in range(4) for column in range(3)}
    assert "12 patches of 4 x 8 px, row by row, after 3 other tokens" in words(figure)


def test_of_many_patches_the_first_and_the_last_of_some_rows_are_numbered(tiny):
    figure = draw_patches(Image.new("RGB", (320, 160)), tiny(image_size=[160, 320], patch_size=8, pooling="gap"))
    numbers = [int(text.get_text()) for text in figure.axes[0].texts]
    assert numbers[:2] == [1, 40]
    assert numbers[-2:] == [761, 800]
    assert len(numbers) == 14


def test_a_hybrids_patches_come_with_the_word_that_the_stem_sees_across_them(tiny):
    config = tiny(image_size=[32, 64], patch_size=16, resnet_stem_layers=[1], resnet_stem_width=32)
    assert any("the ResNet stem sees across the cuts" in text for text in words(draw_patches(view(64, 32), config)))


# ------------------------------------------------------------------------------------------- attention
def view(width: int = 24, height: int = 16) -> Image.Image:
    return Image.new("RGB", (width, height), "grey")


def test_the_attention_figure_has_picture_last_step_and_rollout_each_bright_where_its_map_is():
    last, rolled = torch.full((4, 3), 0.01), torch.full((4, 3), 0.02)
    last[0, 0], rolled[3, 2] = 0.89, 0.78
    figure = draw_attention(view(), last, rolled, answer=("a cat", 0.987))
    seen, first, second = (np.asarray(ax.images[0].get_array()).sum(axis=2) for ax in figure.axes[:3])
    assert seen.min() == seen.max() == 3 * 128
    assert np.unravel_index(first.argmax(), first.shape) < (first.shape[0] // 4, first.shape[1] // 3)
    assert np.unravel_index(second.argmax(), second.shape) >= (3 * second.shape[0] // 4, 2 * second.shape[1] // 3)
    told = "\n".join(words(figure))
    for line in ("a cat", "98.7%", "last step 1.00% to 89.0%", "rollout 2.00% to 78.0%", "even 8.33%"):
        assert line in told


@pytest.mark.parametrize(("width", "height"), [(24, 16), (16, 16), (16, 64)])
def test_every_picture_keeps_its_proportions_and_lies_within_the_figure(width, height):
    maps = torch.rand(6, 4, 3)
    for figure in (draw_attention(view(width, height), maps[0], maps[1]), draw_heads(view(width, height), maps)):
        to_png(figure, dpi=50)
        assert figure.get_figwidth() == 4.2
        for ax in figure.axes:
            if ax.images and ax.get_title(loc="left"):
                box = ax.images[0].get_window_extent()
                assert box.height / box.width == pytest.approx(height / width, rel=0.02)
                assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
                assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1


def test_the_heads_are_drawn_in_order():
    maps = torch.full((5, 2, 2), 0.25)
    for head in range(4):
        maps[head, head // 2, head % 2] = 0.9
    figure = draw_heads(view(16, 16), maps)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [f"head {number}" for number in range(1, 6)]
    for head, ax in enumerate(figure.axes[:4]):
        lightness = np.asarray(ax.images[0].get_array()).astype(int).sum(axis=2)
        half = lightness.shape[0] // 2
        quarters = [lightness[:half, :half], lightness[:half, half:], lightness[half:, :half], lightness[half:, half:]]
        assert int(np.argmax([quarter.mean() for quarter in quarters])) == head
