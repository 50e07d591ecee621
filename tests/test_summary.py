"""Summaries: parameters and FLOPs against counts by hand, activations against a real run, the text form."""

import contextlib
import copy

import pytest
import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import initialization as init

from vit_hf import VitHfForImageClassification, variant
from vit_hf.inspection import activations
from vit_hf.inspection.summary import Parts, compare, render, summarise
from vit_hf.modeling_vit_hf import VitHfAttention, VitHfMLP


@pytest.fixture(scope="module")
def b16():
    return summarise(variant("B/16"))


@pytest.fixture(scope="module")
def h14():
    return summarise(variant("H/14", representation_size=1280))


def _printed(renderable, width=80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


# ---------------------------------------------------------------------------------------------- parameters
def test_parameters_equal_the_published_counts(b16, h14):
    assert b16.parameters == 86_567_656
    assert h14.parameters == 633_685_480


def test_parts_of_b16_equal_counts_by_hand(b16):
    width, mlp, tokens = 768, 3072, 197
    attention = width * 3 * width + 3 * width + width * width + width
    block = attention + width * mlp + mlp + mlp * width + width + 4 * width
    assert b16.parts == Parts(
        patch_embedding=3 * 16 * 16 * width + width,
        tokens_and_positions=width + tokens * width,
        block=block,
        encoder=12 * block,
        final_norm=2 * width,
        pooling=0,
        classifier=width * 1000 + 1000,
    )


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"pooling": "map", "representation_size": 48, "num_register_tokens": 3},
        {"pooling": "gap", "qk_norm": True, "layer_scale_init": 0.1, "position_embedding": "sincos2d"},
        {"num_hidden_layers": 1},
        {"num_hidden_layers": 2, "patch_size": 8, "resnet_stem_layers": [1, 1], "resnet_stem_width": 32},
        {"pooling": "gap", "class_token": True, "fc_norm": True, "hidden_act": "swiglu"},
        {"distilled": True, "num_register_tokens": 2, "prefix_positions": "all"},
        {"fc_norm": True, "embedding_norm": True, "patch_bias": False, "hidden_act": "quick_gelu"},
    ],
)
def test_parts_and_layers_add_up_to_the_whole_model(tiny, overrides):
    config = tiny(**overrides)
    found = summarise(config)
    rows = [layer for layer in found.layers if layer.depth == 0]
    expected = sum(p.numel() for p in VitHfForImageClassification(config).parameters())
    assert found.parts.total == found.parameters == expected
    assert sum(row.count * row.parameters for row in rows) == expected
    assert sum(row.count * row.flops for row in rows) == found.flops
    assert sum(row.count * row.activation_bytes for row in rows) == found.activation_bytes


def test_the_branches_of_a_block_add_up_to_the_block(tiny):
    block, attention, mlp = summarise(tiny(layer_scale_init=0.1, qk_norm=True)).layers[2:5]
    assert (attention.name, mlp.name) == ("attention", "mlp")
    assert attention.parameters + mlp.parameters == block.parameters
    assert attention.flops + mlp.flops == block.flops
    assert attention.activation_bytes + mlp.activation_bytes == block.activation_bytes


# ---------------------------------------------------------------------------------------------- FLOPs
def _multiply_adds_by_hand(
    *, layers: int, width: int, heads: int, mlp: int, tokens: int, patch: int, classes: int
) -> tuple[int, int]:
    """Return (with the class token alone in the last block, with all tokens there) of a plain ViT."""
    projection = (tokens - 1) * 3 * patch * patch * width
    qkv = tokens * width * 3 * width
    products = 2 * tokens * tokens * width  # queries times keys, weights times values
    output = tokens * width * width
    feed_forward = 2 * tokens * width * mlp
    block = qkv + products + output + feed_forward
    last = 3 * width * width  # one query, and the weights of keys and values once
    last += 2 * heads * tokens * width  # each head's scores and mean of all tokens
    last += width * width + 2 * width * mlp
    head = width * classes
    return projection + (layers - 1) * block + last + head, projection + layers * block + head


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("b16", {"layers": 12, "width": 768, "heads": 12, "mlp": 3072, "tokens": 197, "patch": 16, "classes": 1000}),
        ("h14", {"layers": 32, "width": 1280, "heads": 16, "mlp": 5120, "tokens": 257, "patch": 14, "classes": 1000}),
    ],
)
def test_flops_equal_a_count_by_hand(name, sizes, request):
    found = request.getfixturevalue(name)
    representation = 1280 * 1280 if name == "h14" else 0
    shortcut, full = (count + representation for count in _multiply_adds_by_hand(**sizes))
    assert (found.flops, found.flops_full_last_block) == (2 * shortcut, 2 * full)


def _counted_in_a_real_run(config) -> int:
    """Run one picture through real weights (whatever lies in memory) under torch's counter."""
    with init.no_init_weights():
        model = VitHfForImageClassification(copy.deepcopy(config)).eval()
    # Written out, because torch 2.11 counts nothing for the CPU's fused attention.
    written_out = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), written_out, FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, *config.image_hw))
    return counter.get_total_flops()


def test_flops_of_b16_equal_those_counted_in_a_real_run(b16):
    config = variant("B/16")
    config._attn_implementation = "eager"
    assert b16.flops == _counted_in_a_real_run(config)


@pytest.mark.slow
def test_flops_of_h14_equal_those_counted_in_a_real_run(h14):
    assert h14.flops == _counted_in_a_real_run(variant("H/14", representation_size=1280))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("pooling", ["cls", "map"])
def test_flops_equal_those_counted_in_a_real_run_of_either_backend(tiny, pooling, backend):
    config = tiny(pooling=pooling)
    config._attn_implementation = backend
    assert summarise(config).flops == _counted_in_a_real_run(config)


@pytest.mark.parametrize(
    "overrides",
    [{"pooling": "gap"}, {"pooling": "gap", "class_token": True}, {"distilled": True, "num_register_tokens": 1}],
    ids=["gap", "gap_class_token", "distilled"],
)
def test_where_the_head_sees_other_tokens_the_last_block_has_no_shortcut(tiny, overrides):
    found = summarise(tiny(**overrides))
    assert found.flops == found.flops_full_last_block
    assert "blocks 1-3, each" in [layer.name for layer in found.layers]


def test_a_gated_mlp_counts_its_first_layer_twice_as_wide(tiny):
    plain, gated = summarise(tiny()), summarise(tiny(hidden_act="swiglu"))
    assert gated.parameters - plain.parameters == 3 * (32 * 64 + 64)
    assert gated.flops - plain.flops == 2 * (13 + 13 + 1) * 32 * 64


def test_a_norm_after_the_pooling_is_counted_there(tiny):
    found = summarise(tiny(fc_norm=True))
    names = [layer.name for layer in found.layers]
    assert "final norm" not in names
    assert "class token, norm" in names
    assert (found.parts.final_norm, found.parts.pooling) == (0, 64)


# ---------------------------------------------------------------------------------------------- memory
def test_activations_of_b16_equal_a_count_by_hand():
    tokens, width, mlp, heads = 197, 768, 3072, 12
    norm = tokens * (4 * width + 4 + 4)  # its input in float32, mean and reciprocal deviation
    attention = tokens * 2 * (width + 3 * width + width) + 4 * heads * tokens  # input, q, k, v, output; log-sum-exp
    feed_forward = tokens * 2 * (width + mlp + mlp)  # input, before and after GELU
    pixels, pooled = 2 * 3 * 224 * 224, 2 * width
    expected = pixels + 12 * (2 * norm + attention + feed_forward) + norm + pooled
    assert summarise(variant("B/16", pooling="gap", num_register_tokens=1)).activation_bytes == expected


def test_each_row_of_h14_keeps_what_a_count_by_hand_says(h14):
    tokens, width, mlp, heads = 257, 1280, 5120, 16
    norm = tokens * (4 * width + 4 + 4)
    attention = norm + tokens * 2 * (width + 3 * width + width) + 4 * heads * tokens
    feed_forward = norm + tokens * 2 * (width + mlp + mlp)
    kept = {layer.name: layer.activation_bytes for layer in h14.layers[:5]}  # the last block follows
    assert kept == {
        "patch projection": 2 * 3 * 224 * 224,  # the picture in bfloat16
        "tokens and positions": 0,
        "blocks 1-31, each": attention + feed_forward,
        "attention": attention,
        "mlp": feed_forward,
    }


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"pooling": "map", "layer_scale_init": 0.1},
        {"fc_norm": True, "representation_size": 16},
        {"distilled": True},
    ],
    ids=["cls", "map", "representation", "distilled"],
)
def test_the_rows_add_up_to_what_autograd_keeps_of_a_real_batch(tiny, overrides):
    """Measured anew, without modules: all storages that the hooks see, of batches of 4 and of 3."""
    registers = {"num_register_tokens": 1} if "distilled" in overrides else {}
    config = tiny(**overrides, **registers)
    config._attn_implementation = "sdpa"
    model = VitHfForImageClassification(copy.deepcopy(config)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(lambda module, args: (args[0].float(),))
        if isinstance(module, VitHfAttention):
            module.writes_out_backward = False  # as on a GPU
        if isinstance(module, VitHfMLP):
            module.computes_again = False  # likewise

    def kept_by(batch: int) -> int:
        seen = {}

        def keep(tensor):
            seen[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saving, torch.autocast("cpu", torch.bfloat16):
            output = model(torch.randn(batch, 3, *config.image_hw))
        del output
        return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())

    rows = [layer for layer in summarise(config).layers if layer.depth == 0]
    assert sum(row.count * row.activation_bytes for row in rows) == kept_by(4) - kept_by(3)


@pytest.mark.parametrize(
    "overrides", [{}, {"pooling": "map", "qk_norm": True, "layer_scale_init": 0.1}, {"representation_size": 16}]
)
def test_activations_of_fake_tensors_equal_those_of_real_ones(tiny, overrides, monkeypatch):
    config = tiny(**overrides)
    fake = summarise(config).activation_bytes
    monkeypatch.setattr(activations, "FakeTensorMode", contextlib.nullcontext)
    assert summarise(config).activation_bytes == fake


def test_weights_and_training_state_follow_from_the_parameters(b16):
    assert b16.weights_float32_bytes == 4 * 86_567_656
    assert b16.weights_bfloat16_bytes == 2 * 86_567_656
    assert b16.training_bytes == 16 * 86_567_656


# ---------------------------------------------------------------------------------------------- behaviour
def test_the_config_and_the_random_state_stay_as_they_are(tiny):
    config = tiny(hidden_dropout_prob=0.1, drop_path_rate=0.2)
    before, state = config.to_dict(), torch.get_rng_state()
    summarise(config)
    assert config.to_dict() == before
    assert config._attn_implementation != "sdpa"
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_changes_no_figure(tiny):
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "drop_path_rate": 0.1}
    assert summarise(tiny(**rates)) == summarise(tiny())


def test_tokens_count_patches_registers_and_class_token(tiny):
    found = summarise(tiny(num_register_tokens=2))
    assert found.grid_hw == (4, 3)
    assert found.tokens == 4 * 3 + 2 + 1


def test_output_shapes_are_those_of_one_image(tiny):
    shapes = {layer.name: layer.output_shape for layer in summarise(tiny()).layers if layer.depth == 0}
    assert shapes == {
        "patch projection": (12, 32),
        "tokens and positions": (13, 32),
        "blocks 1-2, each": (13, 32),
        "block 3, class token only": (1, 32),
        "final norm": (1, 32),
        "class token": (32,),
        "classifier": (5,),
    }


# ---------------------------------------------------------------------------------------------- text
def test_rendered_summary_names_the_figures_within_80_columns(b16):
    text = _printed(render(b16, "B/16"))
    assert max(map(len, text.splitlines())) <= 80
    for figure in ("86,567,656", "32.24 GFLOPs", "197 (14 x 14 patches + 1)", "346.3 MB in float32", "1,385.1 MB"):
        assert figure in text
    assert "…" not in text


def test_the_largest_summary_is_not_cut_at_80_columns(h14):
    text = _printed(render(h14, "H/14"))
    for figure in (
        "633,685,480",
        "370.186",
        "11.863",
        "block 32, class token only",
        "class token, linear, tanh",
        "10.1 GB",
    ):
        assert figure in text
    assert "…" not in text


def test_the_stem_of_a_hybrid_has_a_row_of_its_own(tiny):
    found = summarise(tiny(patch_size=8, resnet_stem_layers=[1, 1], resnet_stem_width=32))
    stem, projection = found.layers[:2]
    assert (stem.name, stem.output_shape) == ("ResNet stem", (256, 2, 3))
    assert projection.parameters == 256 * 32 + 32
    assert projection.flops == 2 * 6 * 256 * 32
    assert stem.parameters + projection.parameters == found.parts.patch_embedding


def test_comparison_has_a_row_for_each_variant():
    lines = _printed(compare({name: variant(name, num_labels=10) for name in ("Ti/16", "S/32")})).splitlines()
    assert [line.split()[0] for line in lines] == ["model", "Ti/16", "S/32"]
    assert lines[1].split()[1:] == ["5.5", "2.30", "197", "22", "88"]
