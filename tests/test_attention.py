"""Attention maps: known answers on models built by hand, the same on every backend, in the geometry of the picture."""

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfImageProcessor, VitHfImageProcessorPil
from vit_hf.inspection.attention import attention_map, attention_maps, lay_over, model_view, probe_attention, rollout

POOLINGS = ("cls", "gap", "map")


@torch.no_grad()
def looks_at_bright_patches(config) -> VitHfForImageClassification:
    """A classifier whose every query, the probe's too, goes to the bright patches alone, and changes no token.

    A bright patch becomes the token (b, -b, 0, ...), everything else a token of zeros; keys read the first component.
    """
    model = VitHfForImageClassification(config).eval()
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    model.vit.embeddings.position_embeddings.zero_()
    projection = model.vit.embeddings.patch_embeddings.projection.weight
    projection[0], projection[1] = 1, -1
    width, heads = config.hidden_size, config.num_attention_heads
    firsts = torch.arange(heads) * (width // heads)  # the first component of each head
    for layer in model.vit.layers:
        layer.attention.qkv.bias[firsts] = 100
        layer.attention.qkv.weight[width + firsts, 0] = 1
    if (pooling := model.vit.pooler.attention_pooling) is not None:
        pooling.query.bias[firsts] = 100
        pooling.key_value.weight[firsts, 0] = 1
    return model


def picture_with_bright_patches(config, *places: tuple[int, int]) -> torch.Tensor:
    """(1, 3, H, W): zeros, and ones in the patches at (row, column)."""
    pixels = torch.zeros(1, 3, *config.image_hw)
    height, width = config.patch_hw
    for row, column in places:
        pixels[..., row * height : (row + 1) * height, column * width : (column + 1) * width] = 1
    return pixels


# ------------------------------------------------------------------------------------------- known answers
@pytest.mark.parametrize("method", ["last", "rollout"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("registers", [0, 3])
def test_the_map_of_one_block_peaks_at_the_patch_that_all_look_at(tiny, pooling, registers, method):
    config = tiny(pooling=pooling, num_register_tokens=registers, num_hidden_layers=1)
    assert config.grid_hw == (4, 3)
    model = looks_at_bright_patches(config)
    for row, column in [(0, 2), (3, 0), (2, 1)]:
        found = attention_map(model, picture_with_bright_patches(config, (row, column)), method=method)
        assert found.shape == (1, 4, 3)
        expected = torch.zeros(4, 3)
        expected[row, column] = 1
        if (method, pooling) == ("rollout", "gap"):  # half of each patch's own row stays at home
            expected = expected / 2 + 1 / 24
        torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_two_bright_patches_share_the_map(tiny):
    config = tiny(pooling="cls")
    found = attention_map(looks_at_bright_patches(config), picture_with_bright_patches(config, (0, 0), (3, 2)))
    expected = torch.zeros(4, 3)
    expected[0, 0] = expected[3, 2] = 0.5
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_rollout_of_two_blocks_is_what_was_worked_out_by_hand(tiny):
    """Both blocks are A = 1 e_p', and A A = A, so (A + I)/2 (A + I)/2 = (3A + I)/4."""
    config = tiny(pooling="gap", num_hidden_layers=2)
    picture = picture_with_bright_patches(config, (1, 2))
    found = attention_map(looks_at_bright_patches(config), picture, method="rollout")
    expected = torch.full((4, 3), 1 / 48)
    expected[1, 2] = 3 / 4 + 1 / 48
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=0)


def test_rollout_multiplies_the_later_block_from_the_left():
    first, second = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    expected = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]])  # [[1, 0], [1/4, 3/4]] @ [[1/2, 1/2], [1/2, 1/2]]
    torch.testing.assert_close(rollout([first, second]), expected)
    third = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    expected = torch.tensor([[[0.5, 0.5], [0.125, 0.875]]])  # [[1, 0], [1/4, 3/4]] @ [[1/2, 1/2], [0, 1]]
    torch.testing.assert_close(rollout([third, second]), expected)


def test_rollout_of_a_model_of_two_blocks_is_the_product_worked_out_by_hand(tiny, monkeypatch):
    """One row of two patches behind the class token; attention is put in by hand, two heads a block.

    Block 1, head means:        (A + I)/2:
        [.50 .30 .20]           [.75 .15 .10]
        [.20 .60 .20]           [.10 .80 .10]
        [.00 .40 .60]           [.00 .20 .80]
    Block 2, class row only:    (A + I)/2, class row:
        [.10 .60 .30]           [.55 .30 .15]
    Class row of the product:   .55 [.75 .15 .10] + .30 [.10 .80 .10] + .15 [.00 .20 .80]
        token 1: .0825 + .24 + .03 = .3525;  token 2: .055 + .03 + .12 = .205
    Patches alone, made to sum to 1: .3525/.5575, .205/.5575
    """
    config = tiny(image_size=[4, 16], num_hidden_layers=2, num_attention_heads=2)
    model = VitHfForImageClassification(config).eval()
    first = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.0, 0.4, 0.6]])
    second = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])
    shift = torch.tensor([[0.1, -0.1, 0.0], [0.1, -0.1, 0.0], [0.0, 0.1, -0.1]])
    blocks = [torch.stack([block + shift, block - shift])[None] for block in (first, second)]  # (1, A, N, N)
    run = type(model.vit).forward

    def with_attention(self, *arguments, **options):
        outputs = run(self, *arguments, **options)
        outputs.attentions = tuple(blocks)
        return outputs

    monkeypatch.setattr(type(model.vit), "forward", with_attention)
    found = attention_map(model, torch.zeros(1, 3, 4, 16), method="rollout")
    torch.testing.assert_close(found, torch.tensor([[[0.3525 / 0.5575, 0.205 / 0.5575]]]))
    last = attention_map(model, torch.zeros(1, 3, 4, 16))
    torch.testing.assert_close(last, torch.tensor([[[0.6 / 0.9, 0.3 / 0.9]]]))
    heads = attention_maps(model, torch.zeros(1, 3, 4, 16)).heads
    torch.testing.assert_close(heads, torch.tensor([[[[0.5 / 0.8, 0.3 / 0.8]], [[0.7 / 1.0, 0.3 / 1.0]]]]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_even_attention_gives_an_even_map_whatever_the_prefix_takes(tiny, pooling):
    model = looks_at_bright_patches(tiny(pooling=pooling, num_register_tokens=5))
    found = attention_map(model, torch.zeros(2, 3, 16, 24), method="rollout")
    torch.testing.assert_close(found, torch.full((2, 4, 3), 1 / 12))


def test_attention_that_no_patch_gets_is_spread_evenly(tiny):
    config = tiny(pooling="cls", num_hidden_layers=1)
    model = looks_at_bright_patches(config)
    with torch.no_grad():  # the class token alone is bright
        model.vit.embeddings.cls_token[..., 0], model.vit.embeddings.cls_token[..., 1] = 1, -1
    torch.testing.assert_close(attention_map(model, torch.zeros(1, 3, 16, 24)), torch.full((1, 4, 3), 1 / 12))


def test_a_distilled_model_counts_both_tokens_that_it_classifies(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(distilled=True, num_register_tokens=2)))
    images = torch.randn(1, 3, 16, 24)
    last = model(images, output_attentions=True).attentions[-1].mean(dim=1)[0]  # (N, N)
    expected = (last[0] + last[1])[3:]
    torch.testing.assert_close(attention_map(model, images)[0].flatten(), (expected / expected.sum()).detach())


# ------------------------------------------------------------------------------------------- any model
@pytest.mark.parametrize("method", ["last", "rollout"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_maps_sum_to_one_and_are_the_same_with_every_backend(tiny, randomise, pooling, method):
    model = randomise(VitHfForImageClassification(tiny(pooling=pooling, num_register_tokens=2)))
    images = torch.randn(3, 3, 16, 24)
    maps = []
    for backend in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(backend)
        maps.append(attention_map(model, images, method=method))
    assert maps[0].shape == (3, 4, 3)
    assert (maps[0] >= 0).all()
    torch.testing.assert_close(maps[0].sum(dim=(1, 2)), torch.ones(3))
    for other in maps[1:]:
        torch.testing.assert_close(maps[0], other, atol=1e-6, rtol=1e-5)
    assert (maps[0][0] - maps[0][1]).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_map_of_a_head_is_its_own_row_of_the_last_step(tiny, randomise, pooling):
    model = randomise(VitHfForImageClassification(tiny(pooling=pooling, num_register_tokens=2)))
    images = torch.randn(2, 3, 16, 24)
    outputs = model.vit(images, output_attentions=True)
    prefix = model.config.num_prefix_tokens
    maps = attention_maps(model, images)
    for method, own in {"last": maps.last, "rollout": maps.rollout}.items():
        assert torch.equal(own, attention_map(model, images, method=method))
    found = maps.heads
    assert found.shape == (2, 4, 4, 3)
    for image in range(2):
        for head in range(4):
            weights = outputs.attentions[-1][image, head].detach()
            if pooling == "map":
                tokens = outputs.last_hidden_state[image : image + 1, prefix:]
                row = probe_attention(model.vit.pooler.attention_pooling, tokens)[0, head].detach()
            else:
                row = weights[0, prefix:] if pooling == "cls" else weights[prefix:, prefix:].mean(dim=0)
            torch.testing.assert_close(found[image, head].flatten(), row / row.sum(), atol=1e-6, rtol=1e-5)


def test_the_maps_of_a_batch_are_those_of_its_images(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(pooling="map")))
    images = torch.randn(3, 3, 16, 24)
    alone = torch.cat([attention_map(model, image[None]) for image in images])
    torch.testing.assert_close(attention_map(model, images), alone, atol=1e-6, rtol=1e-5)


def test_a_resnet_stem_has_the_map_of_its_patch_grid(tiny, randomise):
    config = tiny(image_size=[32, 64], patch_size=16, resnet_stem_layers=[1], resnet_stem_width=32)
    model = randomise(VitHfForImageClassification(config))
    images = torch.randn(1, 3, 32, 64)
    found = attention_map(model, images)
    assert found.shape == (1, 2, 4)
    row = model(images, output_attentions=True).attentions[-1].mean(dim=1)[0, 0, 1:].detach()  # (h*w,)
    torch.testing.assert_close(found[0], (row / row.sum()).view(2, 4))


def test_the_probe_attention_is_what_the_pooling_mixes_by(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(pooling="map")))
    pooling, patches = model.vit.pooler.attention_pooling, torch.randn(2, 12, 32)
    weights = probe_attention(pooling, patches)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4))
    value = pooling.key_value(patches).chunk(2, dim=-1)[1].unflatten(-1, (4, 8))  # (B, h*w, A, K)
    pooled = pooling.output(torch.einsum("bap,bpak->bak", weights, value).flatten(1))
    torch.testing.assert_close(pooled + pooling.mlp(pooling.norm(pooled)), pooling(patches))


def test_half_precision_weights_give_a_map_that_sums_to_one(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(pooling="map"))).to(torch.bfloat16)
    found = attention_map(model, torch.randn(1, 3, 16, 24), method="rollout")
    assert found.dtype == torch.float32
    assert found.sum().item() == pytest.approx(1, abs=1e-6)


def test_what_has_no_map_says_so(tiny):
    images = torch.zeros(1, 3, 16, 24)
    with pytest.raises(ValueError, match="VitHfForMaskedImageModeling pools nothing"):
        attention_map(VitHfForMaskedImageModeling(tiny()), images)
    with pytest.raises(ValueError, match="VitHfForMaskedImageModeling pools nothing"):
        attention_maps(VitHfForMaskedImageModeling(tiny()), images)
    with pytest.raises(ValueError, match="method is 'first'; expected 'last' or 'rollout'"):
        attention_map(VitHfForImageClassification(tiny()), images, method="first")


# ------------------------------------------------------------------------------------------- pictures
def photo(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("processor_class", [VitHfImageProcessor, VitHfImageProcessorPil])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.23, 0.22, 0.225]},
        {"do_normalize": False},
        {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"height": 16, "width": 24}},
    ],
    ids=["plain", "imagenet", "unnormalised", "crop"],
)
def test_the_view_is_what_is_left_of_the_picture_before_normalisation(processor_class, settings):
    processor = processor_class(**{"size": {"height": 16, "width": 24}, **settings})
    view = model_view(processor, processor([photo()], return_tensors="pt")["pixel_values"])[0]
    untouched = processor([photo()], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"][0]
    assert view.size == (24, 16)
    assert np.array_equal(np.asarray(view), untouched.permute(1, 2, 0).numpy().astype(np.uint8))


def test_the_overlay_is_bright_where_the_map_is_and_shows_the_picture_elsewhere():
    attention = torch.zeros(4, 3)
    attention[3, 0] = 1
    grey = 29  # of pure blue, as ITU-R 601 weighs colours
    drawn = np.asarray(lay_over(Image.new("RGB", (24, 16), "blue"), attention, alpha=0.5)).astype(int)
    assert drawn.shape[1] / drawn.shape[0] == 24 / 16
    assert drawn.shape[1] >= 400  # enlarged, to be looked at
    top, bottom = (np.array(matplotlib.colormaps["viridis"](value)[:3]) * 255 for value in (1.0, 0.0))
    height, width = drawn.shape[:2]
    np.testing.assert_allclose(drawn[-1, 0], (top + grey) / 2, atol=1)
    np.testing.assert_allclose(drawn[0, -1], (bottom + grey) / 2, atol=1)
    assert drawn[height // 8, width // 6].sum() < drawn[-height // 8, width // 6].sum()


def test_an_even_map_is_drawn_evenly():
    drawn = np.asarray(lay_over(Image.new("RGB", (32, 32), "grey"), torch.full((4, 4), 1 / 16) + 1e-9))
    assert (drawn == drawn[0, 0]).all()
