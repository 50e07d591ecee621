"""Pictures that are there twice: planted copies are found, others are not, and the correlations are the plain ones."""

import io

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import pytest
import sklearn.datasets

from vit_hf.data import duplicates
from vit_hf.data.duplicates import TooManyAlikeError, digest, find_exact, find_near, shrink


@pytest.fixture(scope="module")
def photographs():
    """39 pieces of 80 x 64 pixels of the two photographs that come with scikit-learn, those with some detail."""
    pieces = []
    for image in sklearn.datasets.load_sample_images().images:
        pieces += [image[y : y + 64, x : x + 80] for y in range(0, 384, 64) for x in range(0, 560, 80)]
    return [PIL.Image.fromarray(piece) for piece in pieces if np.abs(np.diff(piece.astype(int), axis=1)).mean() > 5]


def small(pictures) -> np.ndarray:
    return np.stack([shrink(picture) for picture in pictures])


def jpeg(picture, quality):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return PIL.Image.open(buffer).convert("RGB")


CHANGES = {
    "re-encoded": lambda picture: jpeg(picture, 60),
    "scaled": lambda picture: picture.resize((200, 120)),
    "mirrored": lambda picture: picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT),
    "mirrored and re-encoded": lambda picture: jpeg(picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), 60),
    "darker": lambda picture: PIL.ImageEnhance.Brightness(picture).enhance(0.6),
    "duller": lambda picture: PIL.ImageEnhance.Contrast(picture).enhance(0.5),
    "paler": lambda picture: PIL.ImageEnhance.Color(picture).enhance(0.5),
    "shifted": lambda picture: PIL.Image.fromarray(np.pad(picture, ((0, 2), (0, 3), (0, 0)), "edge")[2:, 3:]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_planted_copies_are_found_and_named_with_their_places(photographs, change):
    chosen = list(range(0, len(photographs), 2))
    copies = [CHANGES[change](photographs[place]) for place in chosen]
    pairs = find_near(small(photographs + copies))
    planted = {(place, len(photographs) + number) for number, place in enumerate(chosen)}
    found = {(pair.first, pair.second): pair for pair in pairs}
    share = len(planted & set(found)) / len(planted)
    assert share >= (0.8 if change == "shifted" else 0.95), f"{share:.0%} found"
    assert all(found[place].mirrored == change.startswith("mirrored") for place in planted & set(found))
    assert len(set(found) - planted) <= 0.05 * len(planted)  # pieces of one roof may be alike
    assert [pair.similarity for pair in pairs] == sorted((pair.similarity for pair in pairs), reverse=True)


def test_different_photographs_are_not_taken_for_copies(photographs):
    assert len(find_near(small(photographs))) <= 1


def test_the_layouts_correlate_as_numpys_corrcoef_says_upright_and_mirrored(photographs):
    pictures = small(photographs)
    even, odd, usable = duplicates._layouts(pictures)
    assert usable.all()

    def layout(picture):
        fields = picture.reshape(8, 4, 8, 4, 3).astype(float).mean(axis=(1, 3))
        return (fields - fields.mean(axis=(0, 1))).ravel()

    for a, b in ((0, 1), (5, 30), (17, 17)):
        upright = np.corrcoef(layout(pictures[a]), layout(pictures[b]))[0, 1]
        mirrored = np.corrcoef(layout(pictures[a]), layout(pictures[b][:, ::-1]))[0, 1]
        assert even[a] @ even[b] + odd[a] @ odd[b] == pytest.approx(upright, abs=1e-5)
        assert even[a] @ even[b] - odd[a] @ odd[b] == pytest.approx(mirrored, abs=1e-5)


def test_the_details_equal_a_plain_loop(photographs):
    picture = small(photographs[:1])[0]
    grey = np.pad(picture.astype(float).mean(axis=2), 2, mode="edge")
    local = np.empty((32, 32))
    for y in range(32):
        for x in range(32):
            around = grey[y : y + 5, x : x + 5]
            local[y, x] = (grey[y + 2, x + 2] - around.mean()) / (around.std() + 8)
    local -= local.mean()
    np.testing.assert_allclose(duplicates._details(picture[None])[0], local / np.linalg.norm(local), atol=1e-4)


def test_the_best_shift_is_found_in_any_direction():
    generator = np.random.default_rng(0)
    wide = generator.normal(size=(40, 40)).astype(np.float32)
    for down, right in ((0, 0), (2, -1), (-2, 2), (3, 0)):
        first, second = wide[4:36, 4:36], wide[4 + down : 36 + down, 4 + right : 36 + right]
        first, second = (part / np.linalg.norm(part) for part in (first, second))
        value = duplicates._best_correlation(first[None], second[None])[0]
        assert (value > 0.8) == (down < 3)


def test_blocks_change_nothing(photographs, monkeypatch):
    pictures = small(photographs + [jpeg(picture, 60) for picture in photographs[:20]])
    whole = find_near(pictures)
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    monkeypatch.setattr(duplicates, "_PAIRS_AT_ONCE", 3)
    seen = []
    parts = find_near(pictures, lambda done, total: seen.append((done, total)))
    assert [pair[:2] for pair in parts] == [pair[:2] for pair in whole]
    np.testing.assert_allclose([p.similarity for p in parts], [p.similarity for p in whole], atol=1e-5)
    assert seen[-1] == (len(pictures), len(pictures))


def test_pictures_without_contrast_are_nobodys_copies():
    flat = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (0, 100, 200)])
    noise = np.random.default_rng(0).integers(0, 4, (3, 32, 32, 3))
    assert find_near(flat) == []
    assert find_near((flat // 2 + noise).astype(np.uint8)) == []
    assert find_near((flat[1:] + noise[0]).astype(np.uint8)) == []  # the same noise


@pytest.mark.parametrize(("shared", "found"), [(0.95, 1), (0.5, 0)])
def test_two_horizons_are_copies_only_if_their_details_are_alike(shared, found):
    """Sky above ground, with textures that correlate by `shared`."""
    one, other = np.random.default_rng(0).normal(scale=15, size=(2, 32, 32, 1))
    horizon = np.repeat(np.where(np.arange(32) < 16, 180, 80)[:, None, None], 32, axis=1) * [1, 1.1, 1.2]
    second = shared * one + (1 - shared**2) ** 0.5 * other
    pictures = np.stack([horizon + one, horizon + second]).clip(0, 255).astype(np.uint8)
    even, odd, _ = duplicates._layouts(pictures)
    assert even[0] @ even[1] + odd[0] @ odd[1] > duplicates.LAYOUT
    assert len(find_near(pictures)) == found


def test_pictures_of_one_kind_are_said_to_be_beyond_this_search():
    digits = sklearn.datasets.load_digits(n_class=3).images[:300]
    pictures = [PIL.Image.fromarray((image * 15).astype(np.uint8)).convert("RGB") for image in digits]
    with pytest.raises(TooManyAlikeError, match="pictures of one kind, such as digits"):
        find_near(small(pictures))


def test_equal_pictures_are_grouped_whatever_their_file(photographs):
    one, other = photographs[:2]
    buffer = io.BytesIO()
    one.save(buffer, "PNG")
    again = PIL.Image.open(buffer).convert("RGB")
    changed = np.asarray(one).copy()
    changed[0, 0, 0] ^= 1
    pictures = [one, other, again, PIL.Image.fromarray(changed), other, one]
    assert find_exact(map(digest, pictures)) == [[0, 2, 5], [1, 4]]


def test_pixels_of_another_shape_are_no_equal_picture():
    pixels = np.arange(48, dtype=np.uint8)
    wide, tall = (PIL.Image.fromarray(pixels.reshape(shape)) for shape in ((2, 8, 3), (8, 2, 3)))
    assert digest(wide) != digest(tall)


def test_photographs_of_imagenet_hold_no_copies(shared_data):
    from vit_hf.data.images import read_image
    from vit_hf.data.sources import load_source
    from vit_hf.image_processing_vit_hf import to_rgb

    split = load_source(shared_data("imagenet-1k-sample")).test
    pictures = [to_rgb(read_image(row["image"], where="")) for row in split]
    copies = [jpeg(picture.resize((picture.width // 2, picture.height // 2)), 50) for picture in pictures[:20]]
    pairs = find_near(small(pictures + copies))
    assert {(pair.first, pair.second) for pair in pairs} == {(place, 100 + place) for place in range(20)}
