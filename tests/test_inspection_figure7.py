"""Figure 7 of the paper: filters, positions, distances against scikit-learn, loops and models built by hand."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling, variant
from vit_hf.inspection.distance import attention_distance, draw_attention_distance, mean_distance, patch_distances
from vit_hf.inspection.filters import component_tiles, draw_filters, filter_components
from vit_hf.inspection.positions import draw_position_similarity, position_similarity, sampled
from vit_hf.inspection.style import DARK, LIGHT, to_png


def classifier(config) -> VitHfForImageClassification:
    return VitHfForImageClassification(config).eval()


# ------------------------------------------------------------------------------------------- filters
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_the_components_are_those_of_scikit_learn(tiny, randomise, channels):
    model = randomise(classifier(tiny(num_channels=channels, hidden_size=64)))
    filters = model.vit.embeddings.patch_embeddings.projection.weight.detach().double()
    count = min(28, filters[0].numel())
    reference = PCA(n_components=count, svd_solver="full").fit(filters.flatten(1).numpy())
    found = filter_components(model)
    assert found.components.shape == (count, channels, 4, 8)
    assert found.filters == 64
    alike = (found.components.flatten(1).numpy() * reference.components_).sum(axis=1)
    np.testing.assert_allclose(np.abs(alike), 1, atol=1e-9)  # the sign of a component is free
    np.testing.assert_allclose(found.shares, reference.explained_variance_ratio_, rtol=1e-9)


def test_known_filters_come_out_as_the_components_that_they_are_made_of(tiny):
    """Filters along three orthogonal patterns, of spreads 3 : 2 : 1, so of variances 9 : 4 : 1."""
    model = classifier(tiny(hidden_size=64))
    patterns = torch.zeros(3, 3, 4, 8)
    patterns[0, 0] = 1  # red all over
    patterns[1, :, :2], patterns[1, :, 2:] = 1, -1  # light above, dark below
    patterns[2, 2, :, ::2], patterns[2, 2, :, 1::2] = 1, -1  # blue stripes
    patterns = patterns / patterns.flatten(1).norm(dim=1).view(3, 1, 1, 1)
    signs = torch.tensor([[(-1) ** (i // 2**k) for k in range(3)] for i in range(64)])  # mean 0, uncorrelated
    weight = torch.einsum("dk,kcpq->dcpq", signs * torch.tensor([3.0, 2.0, 1.0]), patterns)
    with torch.no_grad():
        model.vit.embeddings.patch_embeddings.projection.weight.copy_(weight + 5)  # the mean filter plays no part
    found = filter_components(model, 3)
    torch.testing.assert_close(found.shares, torch.tensor([9, 4, 1]) / 14, check_dtype=False)
    alike = (found.components * patterns).sum(dim=(1, 2, 3)).abs()
    torch.testing.assert_close(alike, torch.ones(3), check_dtype=False, atol=1e-6, rtol=0)


def test_the_sign_of_a_component_makes_its_largest_weight_positive(tiny, randomise):
    found = filter_components(randomise(classifier(tiny()))).components.flatten(1)
    assert (found.max(dim=1).values >= -found.min(dim=1).values).all()


def test_a_tile_is_grey_at_zero_and_full_at_the_components_own_largest_weight():
    components = torch.zeros(2, 3, 2, 4)
    components[0, 0, 0, 3], components[0, 2, 1, 0] = 0.5, -0.25
    components[1, 1, 1, 1] = -2
    tiles = component_tiles(components)
    assert tiles.shape == (2, 2, 4, 3)
    assert tiles[0, 0, 3].tolist() == [1, 0.5, 0.5]
    assert tiles[0, 1, 0].tolist() == [0.5, 0.5, 0.25]
    assert tiles[1, 1, 1].tolist() == [0.5, 0, 0.5]
    assert component_tiles(torch.zeros(1, 1, 2, 2)).tolist() == np.full((1, 2, 2, 3), 0.5).tolist()


def test_channels_that_are_no_colours_lie_side_by_side_in_grey():
    components = torch.zeros(1, 2, 1, 3)
    components[0, 0, 0, 2], components[0, 1, 0, 0] = 1, -1
    tile = component_tiles(components)[0]
    assert tile.shape == (1, 6, 3)
    assert tile[0, :, 0].tolist() == [0.5, 0.5, 1, 0, 0.5, 0.5]
    assert (tile == tile[..., :1]).all()


def test_a_hybrid_says_that_it_has_no_pixel_filters(tiny):
    model = classifier(tiny(image_size=[32, 64], patch_size=16, resnet_stem_layers=[1], resnet_stem_width=32))
    with pytest.raises(ValueError, match="no pixel filters to show: its patch projection sees the 128 feature maps"):
        draw_filters(model)


# ------------------------------------------------------------------------------------------- positions
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"pooling": "gap"},
        {"num_register_tokens": 2, "prefix_positions": "all", "distilled": True},
        {"prefix_positions": "none"},
        {"position_embedding": "sincos2d"},
    ],
    ids=["learned", "without_prefix", "all_prefixes", "prefix_without_positions", "sincos"],
)
def test_the_similarity_is_the_cosine_of_each_pair_of_patches(tiny, randomise, overrides):
    model = classifier(tiny(**overrides))
    if "position_embedding" not in overrides:
        randomise(model)
    rows = model.vit.embeddings.position_embeddings[0].detach().double().numpy()
    rows = rows[len(rows) - 12 :].reshape(4, 3, -1)  # the patches are the last ones
    found = position_similarity(model)
    assert found.shape == (4, 3, 4, 3)
    for i, j, k, m in np.ndindex(4, 3, 4, 3):
        one, other = rows[i, j], rows[k, m]
        expected = one @ other / np.sqrt((one @ one) * (other @ other))
        assert found[i, j, k, m].item() == pytest.approx(expected, abs=1e-6)


def test_the_model_for_masked_images_has_filters_and_positions_too(tiny, randomise):
    model = randomise(VitHfForMaskedImageModeling(tiny()))
    assert filter_components(model).components.shape == (28, 3, 4, 8)
    diagonal = torch.einsum("ijij->ij", position_similarity(model))
    torch.testing.assert_close(diagonal, torch.ones(4, 3))


def test_of_a_large_grid_seven_rows_are_drawn_the_first_and_the_last_among_them():
    assert sampled(3) == [0, 1, 2]
    assert sampled(8) == list(range(8))
    for size in (9, 14, 37):
        drawn = sampled(size)
        assert (len(drawn), drawn[0], drawn[-1]) == (7, 0, size - 1)
        assert np.diff(drawn).max() - np.diff(drawn).min() <= 1


def test_the_small_grids_stand_where_their_patch_is(tiny):
    """Each position is like those of its own row alone: in every small grid one row is bright, its own."""
    model = classifier(tiny(position_embedding="learned", pooling="gap"))
    with torch.no_grad():
        table = torch.zeros(4, 3, 32)
        for row in range(4):
            table[row, :, row] = 1
        model.vit.embeddings.position_embeddings.copy_(table.view(1, 12, 32))
    axes = draw_position_similarity(model).axes[0]
    assert len(axes.images) == 12
    for image in axes.images:
        left, right, bottom, top = image.get_extent()
        assert (right - left, bottom - top) == pytest.approx((24, 16))  # the picture's pixels, in true proportions
        place = np.searchsorted(np.array(axes.get_yticks()), (top + bottom) / 2 - 1e-6)
        shown = np.asarray(image.get_array())
        assert shown[place].tolist() == [1, 1, 1]
        assert np.delete(shown, place, axis=0).max() == 0
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2", "3", "4"]


# ------------------------------------------------------------------------------------------- distances
def test_patch_distances_are_those_between_the_centres_in_pixels(tiny):
    centres = [(4 * row + 2, 8 * column + 4) for row in range(4) for column in range(3)]
    np.testing.assert_allclose(patch_distances(tiny()), cdist(centres, centres), atol=1e-5)


def test_looking_at_oneself_is_no_distance_and_even_attention_the_mean_of_all_pairs(tiny):
    config = tiny(num_register_tokens=2)
    pairs = [np.hypot(4 * (a - c), 8 * (b - d)) for a in range(4) for b in range(3) for c in range(4) for d in range(3)]
    attention = torch.stack([torch.eye(15), torch.full((15, 15), 1 / 15)])[None]  # (1, A, N, N)
    found = mean_distance(attention, config)
    assert found.shape == (1, 2)
    assert found[0, 0] == 0
    assert found[0, 1].item() == pytest.approx(np.mean(pairs), rel=1e-6)


def test_what_goes_to_the_class_token_is_left_out_and_the_rest_made_whole(tiny):
    """Every patch gives 0.9 to the class token, 0.1 to the patch right of it (the last column: left), 8 px away."""
    config = tiny(image_size=[4, 24])  # three patches in a row
    attention = torch.zeros(1, 1, 4, 4)
    attention[..., 0] = 0.9
    for patch, neighbour in ((1, 2), (2, 3), (3, 2)):
        attention[0, 0, patch, neighbour] = 0.1
    attention[0, 0, 0] = torch.tensor([0, 0, 0, 1])  # what the class token asks for plays no part
    assert mean_distance(attention, config).item() == pytest.approx(8)
    attention[0, 0, 1] = torch.tensor([1, 0, 0, 0])  # gives nothing to patches: left out
    assert mean_distance(attention, config).item() == pytest.approx(8)


@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex_attention"])
@pytest.mark.parametrize(
    "overrides", [{}, {"pooling": "gap", "num_register_tokens": 2}, {"distilled": True, "num_register_tokens": 1}]
)
def test_the_distance_of_a_model_is_that_of_a_loop_over_its_attention(tiny, randomise, overrides, backend):
    config = tiny(**overrides)
    model = randomise(classifier(config))
    images = torch.randn(2, 3, 16, 24)
    attentions = model(images, output_attentions=True).attentions
    model.set_attn_implementation(backend)
    found = attention_distance(model, images)
    assert found.shape == (2, 3, 4)
    prefix = config.num_prefix_tokens
    for image, layer, head in [(0, 0, 0), (1, 2, 3), (0, 1, 2)]:
        weights = attentions[layer][image, head, prefix:, prefix:].detach().double().numpy()
        total = 0.0
        for query in range(12):
            for key in range(12):
                dy, dx = 4 * (query // 3 - key // 3), 8 * (query % 3 - key % 3)
                total += weights[query, key] / weights[query].sum() * (dy * dy + dx * dx) ** 0.5
        assert found[image, layer, head].item() == pytest.approx(total / 12, rel=1e-5)


def test_pictures_are_measured_alike_in_one_go_and_in_parts(tiny, randomise, monkeypatch):
    model, images = randomise(classifier(tiny())), torch.randn(5, 3, 16, 24)
    whole = attention_distance(model, images)
    monkeypatch.setattr("vit_hf.inspection.distance._MEMORY", 2 * 4 * 3 * 4 * 13**2)  # two pictures
    torch.testing.assert_close(attention_distance(model, images), whole)


def test_the_figure_has_a_dot_for_each_head_at_its_block(tiny):
    distances = torch.tensor([[[1.0, 3.0], [5.0, 7.0]], [[3.0, 5.0], [7.0, 9.0]]])  # two pictures, blocks, heads
    axes = draw_attention_distance(classifier(tiny()), distances).axes[0]
    dots = axes.collections[0].get_offsets()
    assert np.asarray(dots).tolist() == [[1, 2], [1, 4], [2, 6], [2, 8]]
    mean = next(line for line in axes.lines if line.get_label() == "mean of the heads")
    assert list(mean.get_ydata()) == [3, 7]
    assert axes.get_ylabel() == "mean attention distance (px)"


# ------------------------------------------------------------------------------------------- drawn
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_the_figures_are_as_wide_as_a_phone_and_of_the_themes_colour(tiny, theme):
    model = classifier(tiny())
    figures = [
        draw_filters(model, theme=theme),
        draw_position_similarity(model, theme=theme),
        draw_attention_distance(model, torch.rand(1, 3, 4), theme=theme),
    ]
    for figure in figures:
        picture = Image.open(io.BytesIO(to_png(figure, dpi=50))).convert("RGB")
        assert picture.width == 210  # 4.2 in
        assert "#{:02X}{:02X}{:02X}".format(*picture.getpixel((1, 1))) == theme.paper


def test_the_patch_of_a_large_model_keeps_seven_components_a_row():
    figure = draw_filters(classifier(variant("Ti/16", num_hidden_layers=1)))
    places = [image.get_extent() for image in figure.axes[0].images]
    assert len(places) == 28
    assert len({round(left, 6) for left, *_ in places}) == 7


def test_filters_are_drawn_in_the_patchs_true_proportions_and_in_order(tiny, randomise):
    model = randomise(classifier(tiny()))
    tiles = component_tiles(filter_components(model).components)
    images = draw_filters(model).axes[0].images
    for tile, image in zip(tiles, images, strict=True):
        left, right, bottom, top = image.get_extent()
        assert (right - left) / (top - bottom) == pytest.approx(8 / 4)
        np.testing.assert_array_equal(np.asarray(image.get_array()), tile)
    tops = [image.get_extent()[3] for image in images]
    assert tops == sorted(tops, reverse=True)
