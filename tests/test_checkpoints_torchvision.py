"""Weights of torchvision: outputs against its VisionTransformer, pixels against its presets.

Tolerance 1e-5 on logits of order 1: float32, added in another order. Measured: at most 1e-6 on the small models.
"""

import io

import pyarrow.parquet
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torchvision.models import VisionTransformer
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from vit_hf import VitHfImageProcessorPil
from vit_hf.checkpoints import files
from vit_hf.checkpoints import torchvision as bridge
from vit_hf.checkpoints.files import Checkpoint
from vit_hf.checkpoints.load import load_checkpoint
from vit_hf.checkpoints.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from vit_hf.checkpoints.receipt import CheckpointError, FileRecord

TOLERANCE = {"atol": 1e-5, "rtol": 0}
SIZES = {"image_size": 32, "patch_size": 8, "num_layers": 3, "num_heads": 4, "hidden_dim": 48, "mlp_dim": 96}
PUBLISHED = [weights for name in bridge.WEIGHTS for weights in getattr(torchvision.models, name)]


@pytest.fixture
def build(randomise):
    """Give a function that builds a small torchvision model of random weights."""
    return lambda **fields: randomise(VisionTransformer(**{**SIZES, "num_classes": 7, **fields}))


def old_names(state):
    """Names that files had before torchvision 0.13."""
    return {name.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): tensor.clone()
            for name, tensor in state.items()}  # fmt: skip


@torch.no_grad()
def assert_same_logits(ours, model, pixel_values, **tolerance):
    expected = model(pixel_values)
    torch.testing.assert_close(ours(pixel_values).logits, expected, **(tolerance or TOLERANCE))


# ---------------------------------------------------------------------------------------------- outputs
@pytest.mark.parametrize("names", ["today", "old"])
@pytest.mark.parametrize("representation_size", [None, 40])
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_logits_equal_torchvisions(build, tmp_path, representation_size, names, suffix):
    model = build(representation_size=representation_size)
    state = model.state_dict() if names == "today" else old_names(model.state_dict())
    assert any(".mlp.linear_1." in name for name in state) == (names == "old")
    path = tmp_path / f"vit.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    ours = load_checkpoint(path, num_attention_heads=4)
    assert ours.receipt.source == "torchvision"
    assert ours.config.representation_size == representation_size
    assert_same_logits(ours, model, torch.randn(2, 3, 32, 32) * 2)


def test_eps_is_1e_6_even_for_tokens_of_little_variance(build, tmp_path):
    model = build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("conv_proj", "class_token", "encoder.pos")):
                parameter.mul_(3e-3)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    ours = load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4)
    pixel_values = torch.randn(2, 3, 32, 32)
    assert_same_logits(ours, model, pixel_values)
    wrong = load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4, layer_norm_eps=1e-5)
    with torch.no_grad():
        assert (wrong(pixel_values).logits - model(pixel_values)).abs().max() > 1e-3  # the test would see it


@pytest.mark.parametrize("image_size", [64, 48, 24])
def test_positions_at_another_size_equal_interpolate_embeddings(build, tmp_path, image_size):
    model = build()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    ours = load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4, image_size=image_size)
    larger = build(image_size=image_size)
    larger.load_state_dict(interpolate_embeddings(image_size, 8, model.state_dict()))
    assert torch.equal(ours.vit.embeddings.position_embeddings, larger.encoder.pos_embedding)
    assert_same_logits(ours, larger, torch.randn(2, 3, image_size, image_size))


def test_model_without_classifier_gets_zeros_and_says_so(build, tmp_path):
    state = {name: tensor for name, tensor in build().state_dict().items() if not name.startswith("heads")}
    torch.save(state, tmp_path / "vit.pth")
    ours = load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4, num_labels=3)
    assert ours.config.num_labels == 3
    assert not ours.classifier.weight.any()
    assert ours.receipt.counts()["re-initialised"] == 2


def test_dropped_representation_head_leaves_class_token_and_zeros(build, tmp_path):
    model = build(representation_size=40)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    ours = load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4, representation_size=None)
    assert ours.classifier.weight.shape == (7, 48)
    assert not ours.classifier.weight.any()
    dropped = {entry.file[0] for entry in ours.receipt.tensors if entry.action == "dropped"}
    assert dropped == {name for name in model.state_dict() if name.startswith("heads.")}


def test_heads_of_an_unpublished_size_are_asked_for(build, tmp_path):
    torch.save(build().state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"num_attention_heads: the tensors \(width 48\).*Give: num_att"):
        load_checkpoint(tmp_path / "vit.pth")


def test_old_and_new_name_of_one_tensor_are_refused(build, tmp_path):
    state = {**build().state_dict(), **old_names(build().state_dict())}
    torch.save(state, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"mlp.0.weight and .*mlp.linear_1.weight are the same tensor"):
        load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4)


def test_missing_and_unexplained_tensors_are_all_listed(build, tmp_path):
    state = dict(build().state_dict())
    del state["encoder.ln.weight"], state["class_token"]
    torch.save({**state, "encoder.adapter": torch.zeros(2)}, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4)
    for words in ("3 tensors", "missing: encoder.ln.weight", "missing: class_token", "no rule explains: encoder.ad"):
        assert words in str(caught.value)


def test_convolutional_stem_is_refused(randomise, tmp_path):
    convolution = torchvision.models.vision_transformer.ConvStemConfig(out_channels=16, kernel_size=3, stride=8)
    model = VisionTransformer(**SIZES, conv_stem_configs=[convolution])
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"lacks conv_proj.weight, without which it is no plain torchvision"):
        load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"])
def test_real_sizes_need_nothing_but_the_bare_state_dict(randomise, tmp_path, name):
    model = randomise(getattr(torchvision.models, name)())
    path = tmp_path / f"{name}.pth"
    torch.save(model.state_dict(), path)
    ours = load_checkpoint(path)
    path.unlink()
    # The bound that the bridge promises for real sizes; measured 6e-7 at logits of up to 2.
    assert_same_logits(ours, model, torch.randn(1, 3, 224, 224), atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------- published weights
def checkpoint_of(weights) -> Checkpoint:
    """A checkpoint whose file has the SHA-256 that the address of published weights promises."""
    beginning = weights.url.rsplit("-", 1)[1].removesuffix(".pth")
    assert len(beginning) == 8
    return Checkpoint("file.pth", [FileRecord("file.pth", 1, beginning + "0" * 56)], {})


@pytest.mark.parametrize("weights", PUBLISHED, ids=str)
def test_published_weights_are_recognised_by_their_hash(weights):
    checkpoint = checkpoint_of(weights)
    assert bridge.published(checkpoint) is weights
    assert bridge.preprocessing(checkpoint).how.startswith(str(weights))


def test_other_files_are_not_taken_for_published_ones():
    other = Checkpoint("file.pth", [FileRecord("file.pth", 1, "0" * 64)], {})
    assert bridge.published(other) is None
    assert "the file says nothing" in bridge.preprocessing(other).how


def test_published_file_brings_its_class_names_and_preset(build, tmp_path, monkeypatch):
    weights = torchvision.models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1
    torch.save(build(num_classes=1000).state_dict(), tmp_path / "vit.pth")
    monkeypatch.setattr(files, "record", lambda path: checkpoint_of(weights).files[0])
    ours = load_checkpoint(tmp_path / "vit.pth", num_attention_heads=4, image_size=518 // 8 * 8)
    assert list(ours.config.id2label.values()) == weights.meta["categories"]
    assert ours.config.id2label[0] == "tench"
    settings = ours.image_processor.to_dict()
    assert (settings["size"], settings["resample"]) == ({"shortest_edge": 512}, 3)
    assert (settings["crop_size"], settings["crop_rounding"]) == ({"height": 512, "width": 512}, "round")
    fact = next(fact for fact in ours.receipt.facts if fact.field == "image_processor")
    assert fact.how.startswith("ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1")


# ---------------------------------------------------------------------------------------------- pixels
@pytest.fixture(scope="module")
def photographs():
    """Photographs with even and odd margins around the crop, at both orientations."""
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    turned = pictures[0].transpose(Image.Transpose.ROTATE_90)
    return [*pictures, turned, pictures[1].crop((0, 0, 455, 301)), turned.crop((1, 2, 390, 640))]


def assert_same_pixels(preprocessing, preset, pictures, side: int):
    """Compare in 8-bit levels, on Pillow as the presets are meant, and on tensors.

    Pillow's pixels are the same. On tensors torchvision rounds the weights of a resize otherwise. Measured on 60 JPEGs
    of ImageNet: one level on at most 1.3% of the values, and with bicubic two levels on 3 values in a million.
    """
    on_tensors = preprocessing.processor((side, side))
    on_pillow = VitHfImageProcessorPil(**{k: v for k, v in on_tensors.to_dict().items() if k != "auto_map"})
    std, bicubic = torch.tensor(IMAGENET_STD)[:, None, None], preset.interpolation == InterpolationMode.BICUBIC
    for picture in pictures:
        expected = preset(picture)
        exact = on_pillow(picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(exact, expected, atol=1e-6, rtol=0)
        ours = on_tensors(picture, return_tensors="pt")["pixel_values"][0]
        levels = ((ours - expected).abs() * std * 255).round()
        assert levels.max() <= (2 if bicubic else 1)
        assert (levels > 0).float().mean() < 0.02
        assert (levels > 1).float().mean() < 1e-4


@pytest.mark.parametrize("weights", PUBLISHED, ids=str)
def test_pixels_equal_the_presets_of_published_weights(photographs, weights):
    preset = weights.transforms()
    assert_same_pixels(bridge.preprocessing(checkpoint_of(weights)), preset, photographs, preset.crop_size[0])


@pytest.mark.parametrize(
    "weights",
    [torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1, torchvision.models.ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1],
    ids=str,
)
def test_pixels_equal_the_presets_on_imagenet_jpegs(shared_data, weights):
    table = pyarrow.parquet.read_table(shared_data("imagenet-1k-sample") / "data" / "validation-00000-of-00001.parquet")
    jpegs = [Image.open(io.BytesIO(cell["bytes"])) for cell in table["image"][:16].to_pylist()]
    jpegs = [jpeg for jpeg in jpegs if jpeg.mode == "RGB" and jpeg.getexif().get(274, 1) == 1]
    assert len(jpegs) > 10
    preset = weights.transforms()
    assert_same_pixels(bridge.preprocessing(checkpoint_of(weights)), preset, jpegs, preset.crop_size[0])


def test_any_other_file_gets_the_reference_evaluation(photographs):
    reference = ImageClassification(
        crop_size=224, resize_size=256, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation=InterpolationMode.BILINEAR
    )
    unknown = Checkpoint("file.pth", [FileRecord("file.pth", 1, "0" * 64)], {})
    assert_same_pixels(bridge.preprocessing(unknown), reference, photographs, 224)
