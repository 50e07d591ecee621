"""MAE, the second form of the model for masked images: stock's outputs, what it sees, and every way of use."""

import re

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfModel
from vit_hf.masked_vit_hf import find_visible
from vit_hf.modeling_vit_hf import eager_attention_forward
from vit_hf.training.setup import enable_checkpointing

DECODER = {
    "decoder_num_hidden_layers": 2,
    "decoder_hidden_size": 24,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 40,
}
OPTIONS = {
    "plain": {},
    "normalised": {"norm_pix_loss": True},
    "gap": {"pooling": "gap", "position_embedding": "sincos2d"},
    "registers": {"num_register_tokens": 2, "prefix_positions": "all", "qk_norm": True, "layer_scale_init": 0.1},
    "others": {"hidden_act": "swiglu", "qkv_bias": False, "patch_bias": False, "embedding_norm": True, "fc_norm": True},
}
EVERY_OPTION = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


@pytest.fixture
def mae(tiny, randomise):
    """Give a function that makes a small MAE of 4 x 3 patches with noise as weights."""
    return lambda **options: randomise(VitHfForMaskedImageModeling(tiny(**{**DECODER, **options})))


def images(batch: int = 3, height: int = 16, width: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, height, width, generator=generator)


def masks(batch: int = 3, patches: int = 12, hidden: int = 9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(batch, patches, generator=generator).argsort(dim=1) < hidden


def close(found, expected, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


# ------------------------------------------------------------------------------------------- against stock
def from_stock(weights: dict[str, torch.Tensor], layers: int, decoder_layers: int) -> dict[str, torch.Tensor]:
    """Rename the weights of stock's ViTMAEForPreTraining; the table of the decoder's positions is ours to compute."""
    found = {}
    for key, value in weights.items():
        for pattern, name in (
            (r"^decoder\.decoder_pred\.", "decoder.predict."),
            (r"^decoder\.decoder_(embed|norm|layers)\.", r"decoder.\1."),
            (r"^vit\.layernorm\.", "vit.norm."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.attention\.o_proj\.", ".attention.output."),
        ):
            key = re.sub(pattern, name, key)
        found[key] = value
    del found["decoder.decoder_pos_embed"]
    blocks = [f"vit.layers.{i}" for i in range(layers)] + [f"decoder.layers.{i}" for i in range(decoder_layers)]
    for block in blocks:
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{block}.attention.{part}_proj.{kind}") for part in "qkv"]
            found[f"{block}.attention.qkv.{kind}"] = torch.cat(parts)
    return found


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_outputs_are_those_of_stock(norm_pix_loss, randomise):
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {**DECODER, "image_size": 32, "patch_size": 8, "norm_pix_loss": norm_pix_loss, "layer_norm_eps": 1e-6}
    stock = ViTMAEForPreTraining(ViTMAEConfig(**sizes, mask_ratio=0.75))
    with torch.no_grad():  # post_init of transformers 5 leaves zeros, where published files have the table
        vars(stock.decoder.decoder_pos_embed)["_is_hf_initialized"] = False
        stock.decoder.initialize_weights(16)
    tables = {n: p.detach().clone() for n, p in stock.named_parameters() if not p.requires_grad}
    randomise(stock)
    with torch.no_grad():
        for name, table in tables.items():
            stock.get_parameter(name).copy_(table)
    ours = VitHfForMaskedImageModeling(VitHfConfig(**sizes, hidden_act="gelu")).eval()
    ours.load_state_dict(from_stock(stock.state_dict(), 3, 2), strict=True)
    close(ours.decoder.positions, tables["decoder.decoder_pos_embed"])

    pixels, noise = images(3, 32, 32), torch.rand(3, 16, generator=torch.Generator().manual_seed(3))
    pixels[1] *= 2e-3  # variances that 1e-6 counts beside
    theirs = stock(pixels, noise=noise)
    hidden = theirs.mask.bool()
    found = ours(pixels, hidden)
    close(found.loss, theirs.loss, 1e-5)
    predicted = theirs.logits
    if norm_pix_loss:  # stock leaves the predictions in deviations of the target
        target = stock.patchify(pixels)
        predicted = predicted * (target.var(-1, keepdim=True) + 1e-6).sqrt() + target.mean(-1, keepdim=True)
    close(found.reconstruction, stock.unpatchify(predicted), 1e-5)

    visible, _ = find_visible(hidden)
    encoded = ours.vit(pixels, visible_patches=visible).last_hidden_state
    shuffled = stock.vit(pixels, noise=noise).last_hidden_state
    close(encoded[:, 0], shuffled[:, 0], 1e-5)
    order = noise.argsort(dim=1)[:, :4]  # of stock's tokens
    for row in range(3):
        for place, patch in enumerate(order[row].tolist()):
            ours_at = visible[row].tolist().index(patch)
            close(encoded[row, 1 + ours_at], shuffled[row, 1 + place], 1e-5)

    found.loss.backward()
    theirs.loss.backward()
    expected = from_stock({n: p.grad for n, p in stock.named_parameters() if p.grad is not None}
                          | {"decoder.decoder_pos_embed": torch.zeros(())}, 3, 2)  # fmt: skip
    for name, parameter in ours.named_parameters():
        if name != "vit.embeddings.position_embeddings":  # stock's are fixed
            close(parameter.grad, expected[name], 1e-5)


# ------------------------------------------------------------------------------------------- what is seen
@EVERY_OPTION
def test_the_encoder_sees_the_tokens_of_the_visible_patches_and_no_others(options, mae):
    """Those that all patches give, the hidden ones taken out, through blocks that see only what is left."""
    model = mae(**options).vit
    prefix = model.config.num_prefix_tokens
    hidden = masks()
    tokens = model.embeddings(images())
    left = [torch.cat([row[:prefix], row[prefix:][~mask]]) for row, mask in zip(tokens, hidden, strict=True)]
    expected = torch.stack(left)
    for layer in model.layers:
        expected = layer(expected)
    expected = expected if model.norm is None else model.norm(expected)
    found = model(images(), visible_patches=find_visible(hidden)[0])
    close(found.last_hidden_state, expected, 1e-5)


@pytest.mark.parametrize("options", [{}, OPTIONS["registers"], OPTIONS["gap"]], ids=["plain", "registers", "gap"])
def test_hidden_pixels_are_not_seen_and_visible_ones_are(options, mae):
    model, hidden = mae(**options), torch.ones(3, 12, dtype=torch.bool)
    hidden[:, [1, 4]] = False
    expected, changed = model(images(), hidden).reconstruction, images()
    cut = changed.unflatten(3, (3, 8)).unflatten(2, (4, 4))  # (B, C, h, 4, w, 8)
    places = hidden.view(3, 1, 4, 1, 3, 1).expand_as(cut)
    cut[places] += 5
    close(model(changed, hidden).reconstruction, expected, 0)
    changed[:, :, 4, 8] += 5  # of patch 4
    difference = (model(changed, hidden).reconstruction - expected).abs()
    assert (difference.unflatten(3, (3, 8)).unflatten(2, (4, 4)).amax(dim=(1, 3, 5)) > 0).all()


def test_each_patch_is_predicted_in_its_place(mae):
    """A predictor of the positions' own numbers tells which of them a patch was given."""
    model = mae(decoder_num_hidden_layers=1)
    seen = []
    model.decoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    hidden = masks()
    with torch.no_grad():
        reconstruction = model(images(), hidden).reconstruction
        model.decoder.embed.bias.zero_()
        model.decoder.embed.weight.zero_()
        model(images(), hidden)
    mask_token, positions = model.decoder.mask_token[0, 0], model.decoder.positions[0]
    for row in range(3):
        for patch in range(12):
            expected = positions[1 + patch] + (mask_token if hidden[row, patch] else 0)
            close(seen[1][row, 1 + patch], expected)
    last = model.decoder.norm(model.decoder.layers[0](seen[0]))[:, 1:]
    pixels = model.decoder.predict(last[:, 7]).view(3, 4, 8, 3).permute(0, 3, 1, 2)  # row 2, column 1
    close(reconstruction[:, :, 8:12, 8:16], pixels)


def test_the_tables_of_positions_are_those_of_the_paper_s_code(mae):
    """Written from facebookresearch/mae `util/pos_embed.py`: column first, frequencies 1 / 10,000 ** (i / (W / 4))."""
    table = mae(num_register_tokens=1).decoder.positions[0].numpy()
    assert (table[:2] == 0).all()
    omega = 1 / 10_000 ** (np.arange(6) / 6.0)
    for row in range(4):
        for column in range(3):
            angles = column * omega, row * omega
            expected = np.concatenate([np.sin(angles[0]), np.cos(angles[0]), np.sin(angles[1]), np.cos(angles[1])])
            np.testing.assert_allclose(table[2 + 3 * row + column], expected, atol=1e-6)


# ------------------------------------------------------------------------------------------- errors
def by_hand(reconstruction: torch.Tensor, pixels: torch.Tensor, hidden: torch.Tensor, *, normalised: bool) -> float:
    """Mean squared error over the hidden patches of one picture (C, H, W), patch by patch."""
    errors = []
    for patch in hidden.nonzero()[:, 0].tolist():
        row, column = patch // 3 * 4, patch % 3 * 8
        found, target = (x[:, row : row + 4, column : column + 8].double().numpy() for x in (reconstruction, pixels))
        scale = np.sqrt(target.var(ddof=1) + 1e-6) if normalised else 1.0
        errors.append((((found - target) / scale) ** 2).mean())
    return float(np.mean(errors))


@pytest.mark.parametrize("normalised", [False, True])
def test_the_loss_is_the_mean_squared_error_over_hidden_patches(normalised, mae):
    model, pixels, hidden = mae(norm_pix_loss=normalised), 3 * images() + 1, masks()
    outputs = model(pixels, hidden)
    expected = [
        by_hand(outputs.reconstruction[i].detach(), pixels[i], hidden[i], normalised=normalised) for i in range(3)
    ]
    close(outputs.loss.item(), float(np.mean(expected)), 1e-5)
    close(model.picture_errors(outputs.reconstruction, pixels, hidden).tolist(), expected, 1e-5)
    assert ("each normalised" in model.error_name) == normalised


def test_the_means_of_the_patches_have_an_error_of_nearly_one(mae):
    """What the normalised error is measured in: the unbiased variance makes it (n - 1) / n, n numbers a patch."""
    model, hidden = mae(norm_pix_loss=True), masks()
    pixels = images()
    means = pixels.unflatten(3, (3, 8)).unflatten(2, (4, 4)).mean(dim=(1, 3, 5), keepdim=True)
    flat = means.expand(3, 3, 4, 4, 3, 8).reshape(pixels.shape)
    close(model.picture_errors(flat, pixels, hidden), torch.full((3,), 95 / 96), 1e-5)


def test_flat_patches_give_a_finite_loss(mae):
    model, pixels = mae(norm_pix_loss=True), torch.full((2, 3, 16, 24), 0.7)
    outputs = model(pixels, masks(2))
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_pictures_with_other_numbers_of_hidden_patches_raise(mae):
    hidden = masks()
    hidden[1] = torch.arange(12) < 7
    with pytest.raises(
        ValueError, match=r"bool_masked_pos hides 7 to 9 patches of a picture; expected as many in each"
    ):
        mae()(images(), hidden)
    with pytest.raises(ValueError, match=r"12 of 12 patches are hidden; expected 0 to 11"):
        mae()(images(), torch.ones(3, 12, dtype=torch.bool))
    with pytest.raises(ValueError, match=re.escape("bool_masked_pos has shape (3, 11); expected (3, 12): one value a")):
        mae()(images(), torch.ones(3, 11, dtype=torch.bool))


def test_a_number_that_is_told_is_not_counted_and_one_that_is_wrong_shows(mae):
    model, hidden = mae(), masks()
    close(model(images(), hidden, num_masked=9).reconstruction, model(images(), hidden).reconstruction, 0)
    hidden[1] = torch.arange(12) < 8
    outputs = model(images(), hidden, num_masked=9)
    assert outputs.loss.isnan()
    assert [row.isnan().all().item() for row in outputs.reconstruction] == [False, True, False]


def test_nothing_hidden_gives_all_patches_and_no_loss(mae):
    model = mae()
    outputs = model(images())
    assert outputs.loss is None
    none = model(images(), torch.zeros(3, 12, dtype=torch.bool))
    close(none.reconstruction, outputs.reconstruction, 1e-5)
    assert none.loss.item() == 0


# ------------------------------------------------------------------------------------------- ways of use
@EVERY_OPTION
def test_every_parameter_learns(options, tiny):
    model = VitHfForMaskedImageModeling(tiny(**DECODER, **options)).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(2):
        optimizer.zero_grad()
        model(images(), masks().roll(step, 1)).loss.backward()
        optimizer.step()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert [name for name in still if not name.endswith("k_norm.bias")] == []


@EVERY_OPTION
def test_recomputed_activations_give_the_same_gradients(options, mae):
    gradients = []
    for recompute in (False, True):
        model = mae(**options).train()
        if recompute:
            enable_checkpointing(model)
            assert all(layer.gradient_checkpointing for layer in [*model.vit.layers, *model.decoder.layers])
        model(images(), masks()).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient)


def test_it_compiles_as_one_graph_where_the_number_is_told(mae):
    torch._dynamo.reset()
    options = {**OPTIONS["registers"], "norm_pix_loss": True, "num_hidden_layers": 2, "decoder_num_hidden_layers": 1}
    model, losses = mae(**options).train(), []
    for call in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        loss = call(images(), masks(), num_masked=9).loss
        loss.backward()
        losses.append((loss.detach(), model.decoder.embed.weight.grad, model.vit.layers[0].mlp.fc1.weight.grad))
    for found, expected in zip(losses[1], losses[0], strict=True):
        close(found, expected, 1e-5)


def test_an_attention_backend_reaches_the_decoder(mae):
    model, calls = mae(), []

    def counting(module, *args, **kwargs):
        calls.append(module.num_heads)
        return eager_attention_forward(module, *args, **kwargs)

    ALL_ATTENTION_FUNCTIONS.register("counting", counting)
    expected = model(images(), masks()).reconstruction
    model.config._attn_implementation = "counting"
    close(model(images(), masks()).reconstruction, expected, 1e-5)
    assert calls == [4, 4, 4, 2, 2]


def test_hidden_states_and_attentions_are_those_of_the_encoder(mae):
    outputs = mae()(images(), masks(), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, 4, 32)] * 4
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(3, 4, 4, 4)] * 3


@pytest.mark.parametrize("options", [{}, OPTIONS["gap"]], ids=["learned", "sincos"])
def test_it_takes_another_rectangle_at_run_time_and_for_good(options, mae):
    model, pixels, hidden = mae(**options), images(2, 32, 16), masks(2, 16, 12)
    outputs = model(pixels, hidden, interpolate_pos_encoding=True)
    assert outputs.reconstruction.shape == pixels.shape
    with pytest.raises(ValueError, match="the image is 32x16 pixels, the model takes 16x24"):
        model(pixels, hidden)
    model.set_image_size([32, 16])
    close(model(pixels, hidden).reconstruction, outputs.reconstruction)
    assert model.decoder.positions.shape == (1, model.config.num_prefix_tokens + 16, 24)
    with pytest.raises(ValueError, match="in a model for masked images, whose decoder predicts whole patches"):
        model.set_image_size(32, 8)


def test_half_precision_stays_near_float32(mae):
    model = mae(norm_pix_loss=True)
    expected = model(images(), masks()).loss
    with torch.autocast("cpu", torch.bfloat16):
        close(model(images(), masks()).loss, expected, 0.05)
    outputs = model.bfloat16()(images().bfloat16(), masks())
    close(outputs.loss, expected, 0.05)
    assert (outputs.loss.dtype, outputs.reconstruction.dtype) == (torch.float32, torch.float32)


def test_new_weights_are_those_of_the_paper(tiny):
    model = VitHfForMaskedImageModeling(tiny(**{**DECODER, "decoder_hidden_size": 128}))
    decoder = model.decoder
    assert abs(decoder.mask_token.std() / 0.02 - 1) < 5 / (2 * 128) ** 0.5
    for layer, fans in ((decoder.embed, 32 + 128), (decoder.predict, 128 + 96), (decoder.layers[1].mlp.fc1, 128 + 40)):
        bound = (6 / fans) ** 0.5
        assert 0.98 * bound < layer.weight.abs().max() <= bound
    assert (decoder.embed.bias == 0).all()
    assert (decoder.predict.bias == 0).all()
    assert (decoder.norm.weight == 1).all()


def test_the_decoder_has_neither_layer_scale_nor_drop_path(tiny):
    model = VitHfForMaskedImageModeling(tiny(**DECODER, layer_scale_init=1e-4, drop_path_rate=0.5)).train()
    assert {name.split(".")[0] for name, _ in model.named_parameters() if ".scale" in name} == {"vit"}
    assert [layer.scale2.drop_path_rate for layer in model.decoder.layers] == [0, 0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resnet_stem_layers": [1], "patch_size": 16}, "would show hidden pixels to the visible patches beside them"),
        (
            {"decoder_hidden_size": 30},
            r"decoder_hidden_size 30 is not divisible by 4 .* use decoder_hidden_size 24 or 36",
        ),
        ({"decoder_hidden_size": 32}, r"by decoder_num_attention_heads 6; use decoder_hidden_size 24 or 36"),
        ({"decoder_num_hidden_layers": -1}, "decoder_num_hidden_layers is -1; expected 0 to 1,024"),
        ({"decoder_num_hidden_layers": 0, "norm_pix_loss": True}, "SimMIM predicts plain pixels"),
        ({"norm_pix_loss": True, "patch_size": 1, "num_channels": 1}, "patches of one number each"),
    ],
)
def test_fields_that_do_not_fit_raise(fields, message):
    decoder = {**DECODER, "decoder_hidden_size": 24, "decoder_num_attention_heads": 6}
    with pytest.raises(StrictDataclassError, match=message):
        VitHfConfig(**{"image_size": 32, "patch_size": 8, **decoder, **fields})


def test_a_stem_refuses_to_encode_some_patches(tiny):
    model = VitHfModel(tiny(resnet_stem_layers=[1], image_size=32, patch_size=8, pooling="gap"))
    with pytest.raises(ValueError, match="visible_patches needs a model without ResNet stem"):
        model(images(2, 32, 32), visible_patches=torch.zeros(2, 3, dtype=torch.long))


def test_the_forward_pass_counts_what_the_formula_says(mae):
    model = mae(num_register_tokens=1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # torch 2.11 counts no other on a CPU
        model(images(1), masks(1), num_masked=9)

    def blocks(count: int, tokens: int, width: int, mlp: int) -> int:
        return count * (2 * tokens * (4 * width**2 + 2 * width * mlp) + 4 * tokens**2 * width)

    patches = 2 * 3 * 96 * 32 + 2 * 5 * 32 * 24 + 2 * 12 * 24 * 96  # projection, embedding, predictor
    assert counter.get_total_flops() == patches + blocks(3, 5, 32, 64) + blocks(2, 14, 24, 40)


# ------------------------------------------------------------------------------------------- files
@pytest.fixture
def saved(mae, tmp_path):
    def save(**options):
        model = mae(**options)
        model.save_pretrained(tmp_path / "model")
        return tmp_path / "model", model

    return save


@EVERY_OPTION
def test_a_saved_model_loads_equal(options, saved, settled):
    folder, model = saved(**options)
    loaded = AutoModelForMaskedImageModeling.from_pretrained(folder)
    assert type(loaded) is VitHfForMaskedImageModeling
    assert loaded.config.to_dict().items() >= DECODER.items()
    loaded, model = settled(loaded), settled(model)
    assert torch.equal(loaded(images(), masks()).reconstruction, model(images(), masks()).reconstruction)
    larger = VitHfForMaskedImageModeling.from_pretrained(folder, image_size=[32, 48])
    assert larger(images(2, 32, 48), masks(2, 48, 36)).reconstruction.shape == (2, 3, 32, 48)


@EVERY_OPTION
def test_its_encoder_flows_into_a_classifier_and_the_decoder_stays_behind(options, saved):
    folder, model = saved(**options)
    classifier, info = VitHfForImageClassification.from_pretrained(
        folder, num_labels=7, drop_path_rate=0.2, output_loading_info=True
    )
    assert info["unexpected_keys"] == {name for name in model.state_dict() if name.startswith("decoder.")}
    assert info["missing_keys"] >= {"classifier.weight", "classifier.bias"}
    for name, weight in model.vit.state_dict().items():
        assert torch.equal(classifier.vit.state_dict()[name], weight), name
    close(classifier.vit(images()).last_hidden_state, model.vit(images()).last_hidden_state)
    assert classifier.vit.layers[-1].scale1.drop_path_rate == 0.2
    assert (classifier.classifier.weight == 0).all()
    assert classifier.classifier.out_features == 7
    plain = VitHfConfig()
    assert [getattr(classifier.config, name) for name in DECODER] == [getattr(plain, name) for name in DECODER]
    assert classifier.config.norm_pix_loss is False


def test_the_other_way_a_new_decoder_is_made(tiny, randomise, tmp_path):
    classifier = randomise(VitHfForImageClassification(tiny()))
    classifier.save_pretrained(tmp_path)
    model, info = VitHfForMaskedImageModeling.from_pretrained(tmp_path, **DECODER, output_loading_info=True)
    assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("decoder.")}
    close(model.vit(images()).last_hidden_state, classifier.vit(images()).last_hidden_state)
    assert model.decoder.mask_token.std() > 0


def test_weights_that_lack_the_decoder_are_refused(saved):
    folder, _ = saved()
    with pytest.raises(ValueError, match=r"unexpected: decoder\.embed\.bias"):
        VitHfForMaskedImageModeling.from_pretrained(folder, decoder_num_hidden_layers=0)
    with pytest.raises(ValueError, match=r"missing: decoder\.layers\.2\.attention\.output\.bias"):
        VitHfForMaskedImageModeling.from_pretrained(folder, decoder_num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"missing: decoder\.layers\.10\.attention"):  # before a model is built
        VitHfForMaskedImageModeling.from_pretrained(folder, decoder_num_hidden_layers=1000)


def test_the_shapes_of_all_weights_are_known_before_a_model_is_built(mae):
    model = mae(decoder_num_hidden_layers=3)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert VitHfForMaskedImageModeling._expected_shapes(model.config) == shapes


def test_a_table_of_positions_that_only_the_decoder_needs_is_refused(mae, tmp_path):
    """1,742,400 patches: 32 numbers for each pass, 48 do not."""
    mae(**OPTIONS["gap"], decoder_hidden_size=48).save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    text = text.replace('"image_size": [\n    16,\n    24\n  ]', '"image_size": [5280, 10560]')
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="needs a table of 83,635,200 positions"):
        VitHfForMaskedImageModeling.from_pretrained(tmp_path)


def test_a_table_of_positions_that_no_model_of_this_size_has_is_refused(saved):
    folder, _ = saved(**OPTIONS["gap"])
    fields = {"patch_size": [4, 8], "decoder_hidden_size": 24}
    text = (folder / "config.json").read_text()
    assert all(f'"{name}"' in text for name in fields)
    (folder / "config.json").write_text(
        text.replace('"image_size": [\n    16,\n    24\n  ]', '"image_size": [65536, 65536]')
    )
    with pytest.raises(ValueError, match=r"image_size \[65536, 65536\] needs a table of"):
        VitHfForMaskedImageModeling.from_pretrained(folder)


REMOTE = """
import torch
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling

pixels, masks = torch.load("inputs.pt")
model = AutoModelForMaskedImageModeling.from_pretrained("model", trust_remote_code=True)
outputs = model(pixels, masks)
classifier = AutoModelForImageClassification.from_pretrained("model", trust_remote_code=True)
base = AutoModel.from_pretrained("model", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
model.save_pretrained("again")
torch.save((outputs.reconstruction, classifier.vit(pixels).last_hidden_state), "found.pt")
"""


def test_it_loads_by_its_own_code_where_the_package_is_not_installed(saved, run_without_package, tmp_path):
    folder, model = saved(norm_pix_loss=True)
    torch.save((images(), masks()), tmp_path / "inputs.pt")
    run_without_package(REMOTE, tmp_path)
    reconstruction, tokens = torch.load(tmp_path / "found.pt")
    close(reconstruction, model(images(), masks()).reconstruction)
    close(tokens, model.vit(images()).last_hidden_state)
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}
