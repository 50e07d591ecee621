"""Several views of a picture: cut as torchvision cuts, averaged as by hand, one of them equal to none bit for bit."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import load_from_disk
from small_scored import NAMES, noise, save_data, save_model
from torchvision.transforms.v2 import functional as tv

from vit_hf import VitHfForImageClassification, VitHfImageProcessor
from vit_hf.evaluation.predictions import read_predictions
from vit_hf.evaluation.run import evaluate
from vit_hf.evaluation.views import ViewCutter, Views, average

OWN = (16, 24)
MIXED = [*noise(4, 20, 30), *noise(3, 31, 22, seed=1), *noise(4, 16, 24, seed=2)]
CROPPED = {  # resized so that the shorter edge is 28, then cropped
    "size": {"shortest_edge": 28},
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 24},
    "crop_rounding": "round",
}


@pytest.fixture(scope="module")
def network(tiny, randomise):
    return randomise(VitHfForImageClassification(tiny(num_labels=None, id2label=dict(enumerate(NAMES)))))


@pytest.fixture(scope="module")
def model(network, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "model", network, crop_rounding="round")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(save_data(tmp_path_factory.mktemp("data") / "data", MIXED))


def scored(model, data, tmp_path, views=None, **options):
    """Return the predictions that an evaluation leaves."""
    evaluate(model, data=data, output=tmp_path, **({} if views is None else {"views": views}), **options)
    return read_predictions(tmp_path / "predictions.parquet")


# ---------------------------------------------------------------------------------------------- the mean
def test_the_mean_is_that_of_the_probabilities():
    logits = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(0)) * 5
    found = average(logits)
    assert found.dtype == torch.float32
    expected = np.exp(logits.double().numpy())
    expected = (expected / expected.sum(-1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(found.double().exp().numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(found.softmax(-1).numpy(), expected, rtol=1e-5)


def test_a_class_that_no_view_gives_any_probability_stays_finite():
    assert average(torch.tensor([[[0.0, -2000.0]], [[0.0, -3000.0]]])).tolist() == [[0.0, pytest.approx(-2000.693)]]


# ---------------------------------------------------------------------------------------------- the cuts
@pytest.mark.parametrize("settings", [{"size": {"height": 16, "width": 24}, "crop_rounding": "round"}, CROPPED])
def test_five_crops_are_those_of_torchvision(settings):
    processor = VitHfImageProcessor(**settings)
    (found,) = ViewCutter([processor], 5)(MIXED)
    assert found.shape == (11, 5, 3, 16, 24)
    for crops, picture in zip(found, MIXED, strict=True):
        pixels = tv.pil_to_tensor(picture)
        to = [28, 28 * picture.width // picture.height] if picture.width > picture.height else None
        to = to or [28 * picture.height // picture.width, 28]
        to = to if "crop_size" in settings else [18, 27]  # 8/7 of 16 and 24
        resized = tv.resize(pixels, to, tv.InterpolationMode.BILINEAR, antialias=True)
        top_left, top_right, low_left, low_right, centre = tv.five_crop(resized, [16, 24])
        expected = torch.stack([centre, top_left, top_right, low_left, low_right])
        torch.testing.assert_close(crops, (expected / 255 - 0.5) / 0.5, atol=1e-6, rtol=0)


def test_the_central_crop_is_the_plain_view_of_a_processor_that_crops():
    processor = VitHfImageProcessor(**{**CROPPED, "crop_rounding": "floor"})
    (found,) = ViewCutter([processor], 5)(MIXED)
    assert torch.equal(found[:, 0], processor(MIXED, return_tensors="pt")["pixel_values"])


def test_crops_larger_than_the_resized_picture_are_an_error():
    processor = VitHfImageProcessor(**{**CROPPED, "size": {"shortest_edge": 20}})
    with pytest.raises(
        ValueError, match=r"five crops of 16x24 pixels do not fit a picture .* resizes to 28x20; expected"
    ):
        ViewCutter([processor], 5)(MIXED)


# ---------------------------------------------------------------------------------------------- the whole
@pytest.mark.parametrize(
    "views",
    [
        Views(image_sizes=((24, 32),)),
        Views(flip=True),
        Views(crops=5),
        Views(image_sizes=(OWN, (8, 40), (32, 32)), crops=5, flip=True),
    ],
)
def test_the_scores_are_those_of_a_loop_over_single_views(model, data, tmp_path, views):
    predictions = scored(model, data, tmp_path / "out", views, batch_size=4)
    split, sizes = load_from_disk(data)["test"], views.image_sizes or (OWN,)
    networks = [VitHfForImageClassification.from_pretrained(model, image_size=list(size)).eval() for size in sizes]
    expected = []
    for sample in split:
        picture, said = tv.pil_to_tensor(sample["image"]), []
        for network, size in zip(networks, sizes, strict=True):
            if views.crops == 5:
                larger = tv.resize(picture, [round(side * 8 / 7) for side in size], antialias=True)
                *corners, centre = tv.five_crop(larger, list(size))
                crops = [centre, *corners]
            else:
                crops = [tv.resize(picture, list(size), antialias=True)]
            for crop in crops:
                for view in [crop, crop.flip(-1)] if views.flip else [crop]:
                    with torch.no_grad():
                        said.append(network(((view / 255 - 0.5) / 0.5)[None]).logits[0].double().softmax(-1))
        assert len(said) == views.count
        expected.append(torch.stack(said).mean(dim=0))
    found = predictions.scores
    assert found.labels.tolist() == split["label"][:]
    torch.testing.assert_close(found.logits.double().softmax(-1), torch.stack(expected), atol=1e-6, rtol=0)
    assert predictions.views == views.describe(OWN)


def test_one_view_at_the_own_size_equals_plain_evaluation_bit_for_bit(model, data, tmp_path):
    plain = scored(model, data, tmp_path / "plain")
    one = scored(model, data, tmp_path / "one", Views(image_sizes=(OWN,)))
    assert torch.equal(plain.scores.logits, one.scores.logits)
    assert plain.views is one.views is None
    assert (tmp_path / "plain" / "results.json").read_bytes() == (tmp_path / "one" / "results.json").read_bytes()


def test_mirroring_changes_nothing_where_the_pictures_are_symmetric(model, tmp_path):
    halves = [np.asarray(picture) for picture in noise(6, 16, 12)]
    pictures = [PIL.Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1)) for half in halves]
    data = str(save_data(tmp_path / "data", pictures))
    plain = scored(model, data, tmp_path / "plain").scores.logits
    mirrored = scored(model, data, tmp_path / "mirrored", Views(flip=True)).scores.logits
    torch.testing.assert_close(mirrored, plain.log_softmax(-1), atol=1e-6, rtol=0)
    other = scored(model, str(save_data(tmp_path / "other", noise(6, 16, 24))), tmp_path / "n").scores.logits
    assert (other.log_softmax(-1) - mirrored).abs().max() > 0.01


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"position_embedding": "sincos2d"}, (20, 16)),
        ({"position_interpolation": "timm"}, (20, 16)),
        ({"image_size": 32, "patch_size": 16, "resnet_stem_layers": [1], "resnet_stem_width": 32}, (48, 32)),
        ({"pooling": "gap", "class_token": False}, (4, 8)),
    ],
)
def test_other_sizes_work_for_every_kind_of_position_and_stem(tiny, randomise, data, tmp_path, changes, size):
    config = tiny(num_labels=None, id2label=dict(enumerate(NAMES)), **changes)
    folder = save_model(tmp_path / "model", randomise(VitHfForImageClassification(config)))
    found = scored(folder, data, tmp_path / "out", Views(image_sizes=(size,)), batch_size=11).scores.logits
    network = VitHfForImageClassification.from_pretrained(folder, image_size=list(size)).eval()
    processor = VitHfImageProcessor(size={"height": size[0], "width": size[1]})
    with torch.no_grad():
        expected = network(processor(list(load_from_disk(data)["test"]["image"]), return_tensors="pt")["pixel_values"])
    assert torch.equal(found, expected.logits)


def test_the_results_say_the_views(model, data, tmp_path):
    measured = evaluate(
        model, data=data, output=tmp_path / "out", views=Views(image_sizes=((8, 8),), crops=5, flip=True)
    )
    assert measured is not None
    assert measured["views"] == {"image_sizes": [[8, 8]], "crops": 5, "flip": True, "count": 10}
    assert json.loads((tmp_path / "out" / "results.json").read_text())["views"] == measured["views"]
    assert measured["n"] == 11


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ({"crops": 3}, "crops is 3; expected 1, or 5"),
        ({"image_sizes": ((8, 8), (8, 8))}, "image sizes 8, 8 name one twice"),
    ],
)
def test_bad_views_are_an_error(views, message):
    with pytest.raises(ValueError, match=message):
        Views(**views)


def test_a_size_that_the_patch_does_not_divide_is_an_error_before_anything_runs(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr("vit_hf.evaluation.run.build_evaluation_loader", None)
    with pytest.raises(ValueError, match=r"image_size .*18.* is not divisible by patch_size"):
        evaluate(model, data=data, output=tmp_path / "out", views=Views(image_sizes=(OWN, (18, 24))))
    assert not (tmp_path / "out").exists()
