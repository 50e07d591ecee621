"""The model does what its docstrings promise: initialisation, attention, shortcut, losses, masking, compilation."""

import copy
import math
import pickle
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForMaskedImageModeling
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling, VitHfModel
from vit_hf.configuration_vit_hf import POSITION_INTERPOLATIONS
from vit_hf.modeling_vit_hf import (
    VitHfLayer,
    VitHfMLP,
    VitHfPreTrainedModel,
    VitHfResidualScale,
    _attend_by_products,
    _GELUComputedAgain,
    _WrittenOutBackward,
    classification_loss,
    eager_attention_forward,
    resample_patch_kernel,
    resample_positions,
    sincos2d_positions,
)

SUMS = 2e-6  # float32, values of order 1: only the order of sums differs
ALL_OPTIONS = {"num_register_tokens": 2, "qk_norm": True, "layer_scale_init": 0.1, "representation_size": 12}
THREE_KINDS = [{}, {"position_embedding": "sincos2d"}, ALL_OPTIONS]
MAE = {"pooling": "gap", "class_token": True, "fc_norm": True, "hidden_act": "swiglu"}
DEIT = {"distilled": True, "num_register_tokens": 2, "prefix_positions": "all"}
CLIP = {"embedding_norm": True, "patch_bias": False, "hidden_act": "quick_gelu", "prefix_positions": "none"}


def images(*batch_and_size: int, seed: int = 1) -> torch.Tensor:
    batch, height, width = batch_and_size or (3, 16, 24)
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def close(found, expected, tolerance=SUMS):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def checkpointing(model, **options):
    """Turn on gradient checkpointing under the name that this version of transformers wants."""
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(options or None)
    else:
        model.gradient_checkpointing_enable(options or None)


# ------------------------------------------------------------------------------------------- initialisation
WIDTH, MLP, REPRESENTATION, PIXELS = 128, 256, 96, 3 * 8 * 16
INIT_SIZES = {
    "image_size": [64, 128],
    "patch_size": [8, 16],
    "hidden_size": WIDTH,
    "intermediate_size": MLP,
    "num_hidden_layers": 1,
    "representation_size": REPRESENTATION,
    "num_register_tokens": 4,
    "layer_scale_init": 0.25,
    "qk_norm": True,
}


def lecun(fan_in):
    return "truncated", fan_in**-0.5, 2 * fan_in**-0.5 / 0.87962566103423978


def xavier(fan_in, fan_out):
    bound = math.sqrt(6 / (fan_in + fan_out))
    return "uniform", bound / math.sqrt(3), bound


# First pattern that matches a parameter's name: kind, standard deviation or value, largest magnitude.
INIT_RULES = [
    (r"norm\w*\.weight", ("constant", 1.0)),
    (r"projection\.weight", lecun(PIXELS)),
    (r"pre_logits\.weight", lecun(WIDTH)),
    (r"(attention\.qkv|attention\.output|attention_pooling\.(query|key_value|output))\.weight", xavier(WIDTH, WIDTH)),
    (r"fc[12]\.weight", xavier(WIDTH, MLP)),
    (r"fc[12]\.bias", ("normal", 1e-6)),
    (r"attention_pooling\.probe", xavier(WIDTH, WIDTH)),
    (r"position_embeddings", ("normal", 0.02)),
    (r"register_tokens", ("normal", 1e-6)),
    (r"mask_token", ("normal", 0.02)),
    (r"scale[12]\.scale", ("constant", 0.25)),
    (r"decoder\.weight", xavier(WIDTH, PIXELS)),
    (r"cls_token|classifier\.weight|bias", ("constant", 0.0)),
]


def assert_initialised(name: str, parameter: torch.Tensor) -> None:
    """Compare mean, spread and range with the closed form; five standard errors are allowed."""
    rule = next(rule for pattern, rule in INIT_RULES if re.search(pattern, name))
    values, count = parameter.detach().double().flatten(), parameter.numel()
    if rule[0] == "constant":
        assert (values == rule[1]).all(), name
        return
    kind, std = rule[:2]
    assert abs(values.mean()) < 5 * std / count**0.5, name
    assert abs(values.pow(2).mean().sqrt() / std - 1) < 5 / (2 * count) ** 0.5, name
    if kind != "normal":
        assert values.abs().max() <= rule[2] * (1 + 1e-6), name
    if kind == "uniform" and count > 10_000:
        assert values.abs().max() > 0.99 * rule[2], name


@pytest.mark.parametrize("pooling", ["cls", "map"])
@pytest.mark.parametrize(
    "build",
    [
        VitHfForImageClassification,
        VitHfForMaskedImageModeling,
        VitHfModel,
        AutoModel.from_config,
        AutoModelForImageClassification.from_config,
        AutoModelForMaskedImageModeling.from_config,
    ],
    ids=["classifier", "masked", "base", "auto_base", "auto_classifier", "auto_masked"],
)
def test_every_parameter_is_initialised_as_in_the_official_code(build, pooling, tiny):
    for name, parameter in build(tiny(**INIT_SIZES, pooling=pooling)).named_parameters():
        assert_initialised(name, parameter)


def test_the_stem_is_initialised_with_lecun_normal_and_zero_last_norms(tiny):
    model = VitHfModel(tiny(resnet_stem_layers=[1, 1], patch_size=8, hidden_size=128, pooling="gap"))
    stem = model.embeddings.patch_embeddings.stem
    convolutions = [module for module in stem.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 9
    for weight in (convolution.weight.detach() for convolution in convolutions):
        fan_in, count = weight[0].numel(), weight.numel()
        assert abs(weight.pow(2).mean().sqrt() * fan_in**0.5 - 1) < 5 / (2 * count) ** 0.5
        assert weight.abs().max() <= 2 * fan_in**-0.5 / 0.8796
    for stage in stem.stages:
        assert (stage[0].norm3.weight == 0).all()
        assert (stage[0].norm1.weight == 1).all()


def test_each_part_of_the_fused_projection_has_the_bound_of_a_square_layer(tiny):
    weight = VitHfModel(tiny(**INIT_SIZES)).layers[0].attention.qkv.weight.detach()
    reference = torch.nn.init.xavier_uniform_(torch.empty(WIDTH, WIDTH))
    for part in weight.chunk(3):
        assert part.shape == reference.shape
        assert part.std() == pytest.approx(reference.std().item(), rel=0.02)
        assert part.abs().max() == pytest.approx(reference.abs().max().item(), rel=0.01)


def test_a_new_classifier_answers_with_zeros(tiny):
    assert (VitHfForImageClassification(tiny())(images()).logits == 0).all()


# ------------------------------------------------------------------------------------------- positions
def sincos_by_hand(height: int, width: int, size: int) -> np.ndarray:
    table = np.zeros((height * width, size))
    quarter = size // 4
    for row in range(height):
        for column in range(width):
            for k in range(quarter):
                frequency = 10_000 ** (-k / (quarter - 1))
                token = table[row * width + column]
                token[k], token[quarter + k] = math.sin(column * frequency), math.cos(column * frequency)
                token[2 * quarter + k], token[3 * quarter + k] = math.sin(row * frequency), math.cos(row * frequency)
    return table


def test_fixed_positions_equal_a_computation_by_hand():
    table = sincos2d_positions((3, 5), 16, num_prefix=1)
    assert table.shape == (1, 16, 16)
    assert table.dtype == torch.float32
    assert (table[0, 0] == 0).all()
    np.testing.assert_allclose(table[0, 1:].numpy(), sincos_by_hand(3, 5, 16), atol=1e-6)


def test_fixed_positions_are_no_parameters_and_not_saved(tiny):
    model = VitHfModel(tiny(position_embedding="sincos2d"))
    assert "embeddings.position_embeddings" not in model.state_dict()
    assert "embeddings.position_embeddings" in dict(model.named_buffers())


def test_bilinear_resampling_with_aligned_corners_equals_a_computation_by_hand():
    grid = torch.tensor([[0.0, 1.0], [10.0, 11.0]]).reshape(1, 4, 1)
    found = resample_positions(grid, num_prefix=0, source=(2, 2), target=(5, 2), method="google")
    assert found.flatten().tolist() == [0, 1, 2.5, 3.5, 5, 6, 7.5, 8.5, 10, 11]


@pytest.mark.parametrize("method", POSITION_INTERPOLATIONS)
def test_resampling_keeps_the_prefix_and_a_constant_grid(method):
    positions = torch.cat([torch.tensor([[[7.0, -7.0]]]), torch.full((1, 6, 2), 3.0)], dim=1)
    found = resample_positions(positions, num_prefix=1, source=(2, 3), target=(5, 4), method=method)
    assert found.shape == (1, 21, 2)
    assert found[0, 0].tolist() == [7, -7]
    close(found[0, 1:], torch.full((20, 2), 3.0))


@pytest.mark.parametrize("method", POSITION_INTERPOLATIONS)
def test_resampling_a_rectangle_does_not_mix_rows_and_columns(method):
    """A grid that varies along the rows only still does so in a grid of another shape."""
    rows = torch.arange(4.0)[:, None].expand(4, 2).reshape(1, 8, 1)
    found = resample_positions(rows, num_prefix=0, source=(4, 2), target=(6, 5), method=method).reshape(6, 5)
    close(found, found[:, :1].expand(6, 5))
    assert (found[1:, 0] > found[:-1, 0]).all()


def cubic(distance: float) -> float:
    """The kernel of cubic convolution with a = -0.75, which torch's bicubic resizing uses."""
    d, a = abs(distance), -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def dino_axis(source: int, target: int) -> np.ndarray:
    """Weights (target, source) along one axis as DINO v1 has them: the factor is (target + 0.1) / source."""
    weights = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * source / (target + 0.1) - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weights[i, min(max(tap, 0), source - 1)] += cubic(centre - tap)
    return weights


@pytest.mark.parametrize("target", [(6, 6), (3, 3), (7, 5), (2, 8), (4, 9)])
def test_dino_resampling_equals_the_formula_of_its_code(target):
    """facebookresearch/dino `interpolate_pos_encoding`: bicubic by (w + 0.1) / sqrt(N), the class token set aside."""
    positions = torch.randn(1, 17, 3)
    found = resample_positions(positions, num_prefix=1, source=(4, 4), target=target, method="dino")
    grid = positions[0, 1:].reshape(4, 4, 3).double().numpy()
    rows, columns = dino_axis(4, target[0]), dino_axis(4, target[1])
    expected = np.einsum("ir,jc,rcd->ijd", rows, columns, grid).reshape(-1, 3)
    assert torch.equal(found[:, :1], positions[:, :1])
    np.testing.assert_allclose(found[0, 1:].numpy(), expected, atol=5e-6)  # float32 sums of 16 values of order 1
    plain = resample_positions(positions, num_prefix=1, source=(4, 4), target=target, method="transformers")
    assert (found - plain).abs().max() > 1e-3


def test_dino_resampling_gives_the_grid_asked_for_whatever_the_sizes():
    """torch cuts source * factor to an integer: the 0.1 keeps that from falling below."""
    for source in (1, 2, 3, 7, 14, 16, 37):
        for target in range(1, 130):
            positions = torch.zeros(1, source, 1)
            found = resample_positions(positions, num_prefix=0, source=(source, 1), target=(target, 1), method="dino")
            assert found.shape == (1, target, 1)


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("method", POSITION_INTERPOLATIONS)
def test_all_rows_before_the_grid_are_set_aside(method, prefix):
    positions = torch.randn(1, prefix + 6, 2)
    found = resample_positions(positions, num_prefix=prefix, source=(2, 3), target=(4, 2), method=method)
    alone = resample_positions(positions[:, prefix:], num_prefix=0, source=(2, 3), target=(4, 2), method=method)
    assert torch.equal(found[:, :prefix], positions[:, :prefix])
    assert torch.equal(found[:, prefix:], alone)


@pytest.mark.parametrize("which", ["cls", "none", "all"])
def test_prefix_positions_are_added_to_the_chosen_tokens_only(which, tiny, randomise):
    model = randomise(VitHfModel(tiny(num_register_tokens=2, prefix_positions=which)))
    embeddings = model.embeddings
    count = {"cls": 1, "none": 0, "all": 3}[which]
    positions = embeddings.position_embeddings
    assert positions.shape == (1, count + 12, 32)
    prefix = torch.cat([embeddings.cls_token, embeddings.register_tokens], dim=1)
    added = torch.cat([positions[:, :count], torch.zeros(1, 3 - count, 32)], dim=1)
    patches = embeddings.patch_embeddings(images()) + positions[:, count:]
    close(embeddings(images()), torch.cat([(prefix + added).expand(3, -1, -1), patches], dim=1), 0)


@pytest.mark.parametrize("which", ["cls", "none", "all"])
def test_fixed_positions_before_the_grid_are_zeros(which, tiny):
    table = VitHfModel(
        tiny(num_register_tokens=2, prefix_positions=which, position_embedding="sincos2d")
    ).embeddings.position_embeddings
    count = {"cls": 1, "none": 0, "all": 3}[which]
    assert (table[:, :count] == 0).all()
    np.testing.assert_allclose(table[0, count:].numpy(), sincos_by_hand(4, 3, 32), atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [*THREE_KINDS, DEIT, {**CLIP, "position_interpolation": "dino"}],
    ids=["plain", "sincos", "all", "deit", "clip"],
)
def test_another_image_size_at_run_time_equals_a_model_of_that_size(options, tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(**options)))
    resized = copy.deepcopy(model)
    resized.set_image_size((32, 16))
    assert resized.config.image_size == [32, 16]
    assert resized.config.grid_hw == (8, 2)
    picture = images(2, 32, 16)
    close(model(picture, interpolate_pos_encoding=True).logits, resized(picture).logits, 0)


def test_fixed_positions_at_another_size_are_the_table_of_that_size(tiny):
    model = VitHfModel(tiny(position_embedding="sincos2d", pooling="gap"))
    model.set_image_size([32, 16])
    np.testing.assert_allclose(model.embeddings.position_embeddings[0].numpy(), sincos_by_hand(8, 2, 32), atol=1e-6)


def test_set_image_size_refuses_sizes_that_do_not_divide_and_changes_nothing(tiny):
    model = VitHfModel(tiny())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"image_size 30 \(width\) is not divisible by patch_size 8; use 24 or 32"):
        model.set_image_size((16, 30))
    assert model.config.image_size == [16, 24]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (((16, 24), 5), "image_size 16 (height) is not divisible by patch_size 5; use 15 or 20"),
        (((16, 24), (4, 0)), "patch_size is 0; expected 1 to 65,536"),
        ((0, None), "image_size is 0; expected 1 to 65,536"),
        (((16, 24, 3), None), "image_size has 3 numbers ([16, 24, 3]); give one int or (height, width)"),
    ],
    ids=str,
)
def test_set_image_size_refuses_sizes_that_do_not_fit_and_changes_nothing(sizes, message, tiny):
    model = VitHfForImageClassification(tiny())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        model.set_image_size(*sizes)
    assert (model.config.image_size, model.config.patch_size) == ([16, 24], [4, 8])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_set_image_size_refuses_a_patch_that_the_stem_cannot_make(tiny):
    model = VitHfModel(tiny(resnet_stem_layers=[], resnet_stem_width=32))
    with pytest.raises(ValueError, match=r"patch_size 2 is not divisible by the stride 4 of a ResNet stem"):
        model.set_image_size((16, 24), 2)
    assert model.config.patch_size == [4, 8]


def test_positions_resampled_while_frozen_stay_frozen(tiny):
    model = VitHfModel(tiny())
    model.embeddings.position_embeddings.requires_grad_(False)
    model.set_image_size((32, 24))
    assert not model.embeddings.position_embeddings.requires_grad


# ------------------------------------------------------------------------------------------- patch kernels
def bilinear_axis(source: int, target: int) -> np.ndarray:
    """Weights (target, source) of bilinear resizing along one axis: pixel centres at half, borders repeated."""
    weights = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        left = math.floor(centre)
        for tap, share in ((left, left + 1 - centre), (left + 1, centre - left)):
            weights[i, min(max(tap, 0), source - 1)] += share
    return weights


@pytest.mark.parametrize(
    ("source", "target"), [((4, 8), (8, 16)), ((4, 4), (5, 7)), ((3, 5), (7, 5)), ((2, 6), (6, 7)), ((1, 1), (3, 2))]
)
def test_a_larger_kernel_gives_an_enlarged_patch_the_same_token(source, target):
    """FlexiViT, section 3.4: the resized kernel undoes the enlargement of the patch."""
    kernel, patch = torch.randn(16, 3, *source), torch.randn(5, 3, *source)
    enlarged = F.interpolate(patch, size=target, mode="bilinear", align_corners=False)
    new = resample_patch_kernel(kernel, target)
    assert new.shape == (16, 3, *target)
    close(F.conv2d(enlarged, new), F.conv2d(patch, kernel), 2e-5)  # float32 sums of up to 96 products of order 1


@pytest.mark.parametrize(
    ("source", "target"),
    [((8, 8), (4, 4)), ((7, 9), (5, 4)), ((16, 16), (5, 3)), ((4, 8), (8, 4)), ((4, 4), (6, 9)), ((16, 16), (32, 32))],
)
def test_kernels_of_any_size_follow_the_formula_of_the_paper(source, target):
    """w' = pinv(B^T) w, where B resizes a flattened patch: the least-squares answer where patches shrink."""
    kernel = torch.randn(6, 2, *source)
    resize = np.kron(bilinear_axis(source[0], target[0]), bilinear_axis(source[1], target[1]))
    flat = kernel.double().numpy().reshape(12, -1)
    expected = (np.linalg.pinv(resize.T) @ flat.T).T.reshape(6, 2, *target)
    np.testing.assert_allclose(resample_patch_kernel(kernel, target).numpy(), expected, atol=1e-5, rtol=1e-5)


def test_a_kernel_of_the_size_asked_for_stays_itself():
    kernel = torch.randn(4, 3, 4, 8)
    assert resample_patch_kernel(kernel, (4, 8)) is kernel


def test_a_kernel_in_half_precision_is_worked_out_in_double():
    kernel = torch.randn(4, 3, 4, 8).bfloat16()
    assert torch.equal(resample_patch_kernel(kernel, (6, 9)), resample_patch_kernel(kernel.double(), (6, 9)).bfloat16())


@pytest.mark.parametrize("options", [{}, {"patch_bias": False}], ids=["bias", "no_bias"])
def test_another_patch_size_keeps_bias_dtype_and_what_is_frozen(options, tiny, randomise):
    model = randomise(VitHfModel(tiny(**options))).bfloat16()
    patches = model.embeddings.patch_embeddings
    patches.projection.weight.requires_grad_(False)
    bias = patches.projection.bias
    model.set_image_size((32, 24), patch_size=8)
    projection = patches.projection
    assert projection.weight.shape == (32, 3, 8, 8)
    assert projection.kernel_size == projection.stride == (8, 8)
    assert projection.weight.dtype == torch.bfloat16
    assert not projection.weight.requires_grad
    assert projection.bias is bias
    assert (model.config.patch_hw, model.config.grid_hw) == ((8, 8), (4, 3))
    assert model(images(1, 32, 24)).last_hidden_state.shape == (1, 13, 32)


def test_a_patch_size_that_changed_back_gives_the_kernel_back(tiny, randomise):
    """pinv(B^T) of the enlargement, then its own inverse on the same space: exact but for rounding."""
    model = randomise(VitHfModel(tiny()))
    kernel = model.embeddings.patch_embeddings.projection.weight
    model.set_image_size((32, 48), patch_size=(8, 16))
    grown = model.embeddings.patch_embeddings.projection.weight
    resize = torch.from_numpy(np.kron(bilinear_axis(4, 8), bilinear_axis(8, 16))).float()
    close((grown.flatten(2) @ resize).unflatten(2, (4, 8)), kernel, 1e-5)


# ------------------------------------------------------------------------------------------- stochastic depth
def test_stochastic_depth_drops_whole_samples_at_its_rate_and_keeps_the_mean(tiny):
    module = VitHfResidualScale(tiny(), drop_path_rate=0.3).train()
    branch = torch.ones(20_000, 2, 3)
    out = module(branch, module.draw(branch))
    per_sample = out[:, 0, 0]
    assert (out == per_sample[:, None, None]).all()
    close(per_sample.unique(), torch.tensor([0, 1 / 0.7]))
    # five standard errors of a proportion over 20,000 samples
    assert (per_sample == 0).float().mean().item() == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / 20_000))


def test_stochastic_depth_is_off_in_evaluation(tiny):
    branch, module = torch.randn(8, 2, 32), VitHfResidualScale(tiny(), drop_path_rate=0.9).eval()
    assert torch.equal(module(branch, module.draw(branch)), branch)


@pytest.mark.parametrize(("layers", "rates"), [(5, [0, 0.05, 0.1, 0.15, 0.2]), (2, [0, 0.2]), (1, [0])])
def test_the_rate_grows_linearly_from_zero_to_the_given_one(layers, rates, tiny):
    model = VitHfModel(tiny(num_hidden_layers=layers, drop_path_rate=0.2))
    for branch in ("scale1", "scale2"):
        assert [getattr(layer, branch).drop_path_rate for layer in model.layers] == pytest.approx(rates)


def test_samples_of_a_batch_are_dropped_independently(tiny, randomise):
    model = randomise(VitHfModel(tiny(drop_path_rate=0.5))).train()
    outputs = model(images(1, 16, 24).expand(16, -1, -1, -1)).pooler_output
    assert 2 <= len(outputs.unique(dim=0)) <= 16


@pytest.mark.parametrize("options", [{}, {"pooling": "gap"}, ALL_OPTIONS], ids=["cls", "gap", "all"])
def test_samples_that_skip_a_branch_do_not_compute_it_and_nothing_else_changes(options, tiny, randomise, monkeypatch):
    """The pictures are more than one, so that some skip and some do not; float32 sums are of other sizes."""
    rates = {"drop_path_rate": 0.6, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = randomise(VitHfForImageClassification(tiny(**{**options, **rates}))).train()
    computed: list[int] = []
    model.vit.layers[-1].mlp.register_forward_pre_hook(lambda module, args: computed.append(len(args[0])))
    labels, found = torch.arange(8) % 5, []
    for skips in (False, True):
        monkeypatch.setattr(VitHfLayer, "skips_dropped", skips)
        torch.manual_seed(1)
        outputs = model(images(8, 16, 24), labels=labels)
        found.append((outputs.logits, gradients(model, outputs.loss)))
    assert computed[0] == 8
    assert 0 < computed[1] < 8
    close(found[1][0], found[0][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        assert gradient.any()
        close(found[1][1][name], gradient)


def test_where_all_samples_skip_a_branch_its_weights_have_gradients_of_zero(tiny, randomise):
    """Other processes of a group wait for them."""
    model = randomise(VitHfForImageClassification(tiny(drop_path_rate=1 - 1e-7))).train()
    outputs = model(images(), labels=torch.tensor([0, 4, 2]))
    found = gradients(model, outputs.loss)
    assert found.keys() == dict(model.named_parameters()).keys()
    last = {name: gradient for name, gradient in found.items() if name.startswith("vit.layers.2.")}
    assert len(last) > 8
    assert not any(gradient.any() for gradient in last.values())


def test_attention_maps_are_those_of_all_samples_in_training_too(tiny, randomise):
    model = randomise(VitHfModel(tiny(drop_path_rate=0.5))).train()
    outputs = model(images(8, 16, 24), output_attentions=True)
    assert [len(maps) for maps in outputs.attentions] == [8, 8, 8]


# ------------------------------------------------------------------------------------------- attention
@pytest.mark.parametrize("numbers", [2**18, 50], ids=["whole_batch", "in_pieces"])
def test_gradients_by_written_out_weights_are_right_twice(numbers, monkeypatch):
    monkeypatch.setattr(_WrittenOutBackward, "NUMBERS", numbers)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    generator = torch.Generator().manual_seed(5)
    shapes = ((3, 2, 3, 4), (3, 2, 5, 4), (3, 2, 5, 4))  # (B, A, Q, K), (B, A, N, K), (B, A, N, K)
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def attend(*parts):
        return _WrittenOutBackward.apply(*parts, 0.4)

    close(attend(*parts), F.scaled_dot_product_attention(*parts, scale=0.4), 0)
    assert torch.autograd.gradcheck(attend, parts)
    assert torch.autograd.gradgradcheck(attend, parts)


@pytest.mark.parametrize("spread", [1.0, 2.5])
def test_gradients_by_written_out_weights_round_no_worse_than_those_of_the_kernel(spread):
    generator = torch.Generator().manual_seed(6)
    query, key, value, gradient = (torch.randn(2, 3, 65, 32, generator=generator).bfloat16() for _ in range(4))
    parts = [part.requires_grad_() for part in (spread * query, spread * key, value)]
    wide = [part.detach().double().requires_grad_() for part in parts]
    exact = torch.autograd.grad(F.scaled_dot_product_attention(*wide), wide, gradient.double())
    kernel = torch.autograd.grad(F.scaled_dot_product_attention(*parts), parts, gradient)
    with torch.autocast("cpu", torch.bfloat16):  # must not reach into the backward pass
        found = torch.autograd.grad(_WrittenOutBackward.apply(*parts, 32**-0.5), parts, gradient)
    for ours, theirs, expected in zip(found, kernel, exact, strict=True):
        assert (ours - expected).norm() < 1.5 * (theirs - expected).norm() < 0.01 * expected.norm()


def test_weights_are_written_out_for_gradients_in_bfloat16_alone(tiny, randomise, monkeypatch):
    calls = []
    apply = _WrittenOutBackward.apply
    monkeypatch.setattr(_WrittenOutBackward, "apply", lambda *args: calls.append(args) or apply(*args))
    model = with_backend(randomise(VitHfForImageClassification(tiny())), "sdpa")
    model(images())
    with torch.no_grad():
        model.bfloat16()(images())
    assert not calls
    model(images())
    assert len(calls) == 2  # the last block forms no keys
    with_backend(model, "eager")(images())
    assert len(calls) == 2


@pytest.mark.parametrize("queries", [1, 7, 50])
@pytest.mark.parametrize("spread", [1.0, 4.0])  # scores of up to 5 and 80
def test_attention_by_products_rounds_no_worse_than_eager(queries, spread, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(4, 50, 3, 6, 16, generator=generator) * spread
    query, key, value = (part.transpose(1, 2) for part in whole.bfloat16().unbind(2))  # as `heads` cuts them
    query = query[:, :, :queries]
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double()).transpose(1, 2)
    eager, _ = eager_attention_forward(torch.nn.Identity(), query, key, value)
    with torch.autocast("cpu", torch.bfloat16):
        found = _attend_by_products(query, key, value, 16**-0.5)
    assert found.shape == exact.shape == (4, queries, 6, 16)
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.2 * (eager - exact).norm()
    monkeypatch.setattr("vit_hf.modeling_vit_hf._SCORES", 5 * queries * 50)  # heads of a picture fall in two pieces
    assert torch.equal(_attend_by_products(query, key, value, 16**-0.5), found)


@pytest.mark.parametrize(
    ("case", "expected"),
    [("inference", 2), ("autocast", 2), ("float32", 0), ("eager", 0), ("training", 0), ("gradients", 0), ("amx", 0)],
)
def test_attention_is_by_products_in_inference_in_bfloat16_alone(case, expected, tiny, randomise, monkeypatch):
    calls = []
    monkeypatch.setattr("vit_hf.modeling_vit_hf._attend_by_products",
                        lambda *parts: calls.append(case) or _attend_by_products(*parts))  # fmt: skip
    features = {"avx512_bf16": True, "amx_tile": case == "amx"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    model = with_backend(randomise(VitHfForImageClassification(tiny())), "eager" if case == "eager" else "sdpa")
    model.train(case == "training")
    if case not in ("float32", "autocast"):
        model.bfloat16()
    with torch.set_grad_enabled(case == "gradients"), torch.autocast("cpu", enabled=case == "autocast"):
        logits = model(images()).logits
    assert len(calls) == expected  # the last block of three has one query, which forms no keys
    features["amx_tile"] = True
    with torch.autocast("cpu", enabled=case == "autocast"):
        close(model(images()).logits, logits, 0.05)


def test_attention_written_out_equals_sums_by_hand(tiny):
    query, key, value = (torch.randn(1, 1, n, 2) for n in (2, 3, 3))
    mixed, weights = eager_attention_forward(torch.nn.Identity().eval(), query, key, value)
    for q in range(2):
        scores = [math.exp(sum(query[0, 0, q, d] * key[0, 0, k, d] for d in range(2)) / 2**0.5) for k in range(3)]
        share = [score / sum(scores) for score in scores]
        assert weights[0, 0, q].tolist() == pytest.approx(share, rel=1e-5)
        expected = [sum(share[k] * value[0, 0, k, d].item() for k in range(3)) for d in range(2)]
        assert mixed[0, q, 0].tolist() == pytest.approx(expected, rel=1e-4)


def with_backend(model, backend):
    changed = copy.deepcopy(model)
    changed.set_attn_implementation(backend)
    return changed


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "qkv_bias": False}, {"pooling": "gap"}], ids=str)
def test_eager_and_sdpa_attention_agree(options, tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(**options)))
    assert model.config._attn_implementation == "sdpa"
    close(with_backend(model, "eager")(images()).logits, model(images()).logits)


@torch.no_grad()
def test_flex_attention_agrees(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny()))
    flex = with_backend(model, "flex_attention")
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises to compile it
        found = flex(images()).logits
    close(found, model(images()).logits)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_flex_attention_agrees(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = with_backend(model, "flex_attention")(images()).logits
    close(found, model(images()).logits)


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention"])
def test_attention_maps_are_those_of_eager_whatever_the_backend(backend, tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(num_register_tokens=2)))
    expected = with_backend(model, "eager")(images(), output_attentions=True).attentions
    found = with_backend(model, backend)(images(), output_attentions=True).attentions
    assert len(found) == 3
    for a, b in zip(found, expected, strict=True):
        assert a.shape == (3, 4, 15, 15)
        close(a, b, 0)
        close(a.sum(dim=-1), torch.ones(3, 4, 15))


@pytest.mark.parametrize("model_class", [VitHfModel, VitHfForImageClassification, VitHfForMaskedImageModeling])
def test_attention_maps_by_the_config_are_those_by_the_argument(model_class, tiny, randomise):
    model = randomise(model_class(tiny()))
    by_argument = model(images(), output_attentions=True)
    model.config.output_attentions = True
    by_config = model(images())
    assert len(by_config.attentions) == 3
    for a, b in zip(by_config.attentions, by_argument.attentions, strict=True):
        close(a, b, 0)
    assert model(images(), output_attentions=False).attentions is None


@pytest.mark.parametrize("model_class", [VitHfModel, VitHfForImageClassification, VitHfForMaskedImageModeling])
def test_hidden_states_are_the_embeddings_and_each_block_before_the_last_norm(model_class, tiny, randomise):
    model = randomise(model_class(tiny()))
    outputs = model(images(), output_hidden_states=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, 13, 32)] * 4
    encoder = model.encoder
    close(outputs.hidden_states[0], encoder.embeddings(images()), 0)
    close(outputs.hidden_states[2], encoder.layers[1](outputs.hidden_states[1]), 0)
    close(encoder.norm(outputs.hidden_states[-1]), encoder(images()).last_hidden_state, 0)


def test_nothing_is_recorded_unless_asked_for(tiny):
    outputs = VitHfForImageClassification(tiny())(images())
    assert outputs.hidden_states is None
    assert outputs.attentions is None


def test_outputs_come_as_a_tuple_on_request(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny()))
    labels = torch.tensor([0, 1, 2])
    named = model(images(), labels=labels)
    loss, logits = model(images(), labels=labels, return_dict=False)
    assert torch.equal(loss, named.loss)
    assert torch.equal(logits, named.logits)
    tokens, pooled = model.vit(images(), return_dict=False)
    assert (tokens.shape, pooled.shape) == ((3, 13, 32), (3, 32))


# ------------------------------------------------------------------------------------------- what the head sees
@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_fc_norm_comes_after_the_pooling(pooling, tiny, randomise):
    model = randomise(VitHfModel(tiny(pooling=pooling, class_token=True, fc_norm=True)))
    outputs = model(images(), output_hidden_states=True)
    tokens = outputs.last_hidden_state
    assert model.norm is None
    assert torch.equal(tokens, outputs.hidden_states[-1])
    pooled = tokens[:, 0] if pooling == "cls" else tokens[:, 1:].mean(dim=1)
    close(outputs.pooler_output, model.pooler.norm(pooled))


@pytest.mark.parametrize("pooling", ["gap", "map"])
def test_class_token_and_registers_are_not_pooled_with_the_patches(pooling, tiny, randomise):
    model = randomise(VitHfModel(tiny(pooling=pooling, class_token=True, num_register_tokens=2)))
    tokens = torch.randn(2, 15, 32)
    changed = tokens.clone()
    changed[:, :3] += 1
    assert torch.equal(model.pooler(changed), model.pooler(tokens))
    changed[:, 3] += 1
    assert not torch.equal(model.pooler(changed), model.pooler(tokens))


def test_the_logits_of_a_distilled_model_are_the_mean_of_both_classifiers(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(**DEIT)))
    tokens = model.vit(images()).last_hidden_state
    expected = (model.classifier(tokens[:, 0]) + model.distillation_classifier(tokens[:, 1])) / 2
    close(model(images()).logits, expected)
    close(model(images(), output_hidden_states=True).logits, expected)


def test_swiglu_gates_by_the_first_half(tiny):
    mlp = VitHfModel(tiny(hidden_act="swiglu")).layers[0].mlp
    assert (mlp.fc1.weight.shape, mlp.fc2.weight.shape) == ((128, 32), (32, 64))
    x = torch.randn(2, 128)
    gate, value = x[:, :64], x[:, 64:]
    close(mlp.activation(x), gate / (1 + (-gate).exp()) * value)


# ------------------------------------------------------------------------------------------- GELU computed again
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, once


@FORWARD_MODE
@pytest.mark.parametrize("form", ["none", "tanh"])
def test_gradients_by_gelu_computed_again_are_right_twice(form):
    generator = torch.Generator().manual_seed(7)
    shapes = ((2, 3, 6), (4, 6), (4,))  # (B, N, M), (D, M), (D,)
    parts = [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def project(*parts):
        return _GELUComputedAgain.apply(*parts, form)

    close(project(*parts), F.linear(F.gelu(parts[0], approximate=form), *parts[1:]), 0)
    assert torch.autograd.gradcheck(project, parts, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(project, parts, check_fwd_over_rev=True)


@FORWARD_MODE
def test_products_with_the_hessian_are_the_same_by_either_mode(tiny, randomise):
    """torch's fused attention knows no forward mode; attention written out does."""
    model = randomise(VitHfForImageClassification(tiny())).double()
    model.set_attn_implementation("eager")
    pixels, direction = images().double(), torch.randn(3, 3, 16, 24).double()

    def gradient(pixels):
        return torch.func.grad(lambda x: model(x).logits.sin().sum())(pixels)

    _, forward = torch.func.jvp(gradient, (pixels,), (direction,))
    _, pull = torch.func.vjp(gradient, pixels)
    close(forward, pull(direction)[0], 1e-6)  # the softmax is in float32
    step = 1e-2 * direction
    close(forward, (gradient(pixels + step) - gradient(pixels - step)) / 2e-2, 1e-3)
    assert forward.abs().max() > 1e-3


def kept_for(model, *, dtype: torch.dtype) -> int:
    """Count the bytes of the storages that a forward pass of 3 pictures keeps more than that of 2."""

    def kept_by(batch: int) -> int:
        seen = {}

        def keep(tensor):
            seen[tensor.untyped_storage()._cdata] = tensor  # held, so that no address is used twice
            return tensor

        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saving, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = model(images(batch, 16, 24))
        del output
        return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())

    return kept_by(3) - kept_by(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("options", "tokens"),  # of a picture, in all MLPs; the last block computes one
    [({}, 27), ({"hidden_act": "gelu"}, 27), ({"pooling": "map"}, 37), (ALL_OPTIONS, 31), (CLIP, 0), (MAE, 0)],
    ids=["tanh", "erf", "map", "all", "quick", "swiglu"],
)
def test_gelu_computed_again_is_not_kept_and_changes_no_bit(options, tokens, dtype, tiny, randomise, monkeypatch):
    model = randomise(VitHfForImageClassification(tiny(**options))).train()
    found, kept = [], []
    for again in (False, True):
        monkeypatch.setattr(VitHfMLP, "computes_again", again)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = model(images(), labels=torch.tensor([0, 4, 2]))
        found.append({"logits": outputs.logits, **gradients(model, outputs.loss)})
        kept.append(kept_for(model, dtype=dtype))
    assert found[0].keys() == found[1].keys()
    assert {"logits", *dict(model.named_parameters())} == found[0].keys()
    for name, tensor in found[0].items():
        assert torch.equal(found[1][name], tensor), name
    assert kept[0] - kept[1] == dtype.itemsize * tokens * model.config.intermediate_size


def with_hook(mlp):
    mlp.fc2.register_forward_hook(lambda module, args, output: output * 2)


def with_adapter(mlp):
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    mlp.fc2.__class__ = Adapted


def with_forward(mlp):
    """As Accelerate's `add_hook_to_module` does."""
    forward = mlp.fc2.forward
    mlp.fc2.forward = lambda x: forward(x) * 2


@pytest.mark.parametrize("change", [with_hook, with_adapter, with_forward])
def test_whoever_looks_at_the_second_layer_of_the_mlp_is_not_passed_by(change, tiny, randomise):
    mlp = randomise(VitHfModel(tiny())).layers[0].mlp
    tokens = torch.randn(2, 7, 32, requires_grad=True)
    expected = 2 * mlp(tokens)
    assert mlp.can_compute_again
    change(mlp)
    assert not mlp.can_compute_again
    assert torch.equal(mlp(tokens), expected)


@pytest.mark.parametrize("options", [{}, {"pooling": "map"}], ids=["cls", "map"])
@pytest.mark.parametrize("grad", [False, True])
def test_weights_that_wait_on_disk_are_fetched_for_each_layer(grad, options, tiny, randomise, tmp_path):
    """Each layer that Accelerate fetches for is called; a weight taken from it otherwise is an empty one."""
    model = randomise(VitHfForImageClassification(tiny(**options)))
    model.save_pretrained(tmp_path / "model")
    folders = {"pretrained_model_name_or_path": tmp_path / "model", "offload_folder": tmp_path / "offload"}
    offloaded = VitHfForImageClassification.from_pretrained(**folders, device_map={"": "disk"})
    assert all(parameter.is_meta for parameter in offloaded.parameters())
    with torch.set_grad_enabled(grad):
        close(offloaded(images()).logits, model(images()).logits)


def test_pixels_wait_on_disk_for_masked_images_too(tiny, randomise, tmp_path):
    model = randomise(VitHfForMaskedImageModeling(tiny(decoder_num_hidden_layers=1, decoder_num_attention_heads=2)))
    model.save_pretrained(tmp_path / "model")
    folders = {"pretrained_model_name_or_path": tmp_path / "model", "offload_folder": tmp_path / "offload"}
    offloaded = VitHfForMaskedImageModeling.from_pretrained(**folders, device_map={"": "disk"})
    mask = torch.arange(12).expand(3, 12) % 3 == 0
    close(offloaded(images(), mask).reconstruction, model(images(), mask).reconstruction)


@pytest.mark.parametrize("change", [{"num_labels": 4}, {"image_size": [32, 24]}, {"patch_size": 8}], ids=str)
def test_a_model_on_disk_cannot_be_changed_while_it_is_loaded(change, tiny, tmp_path):
    VitHfForImageClassification(tiny()).save_pretrained(tmp_path / "model")
    folders = {"pretrained_model_name_or_path": tmp_path / "model", "offload_folder": tmp_path / "offload"}
    with pytest.raises(ValueError, match=r"load it without device_map, save it as changed, and load that"):
        VitHfForImageClassification.from_pretrained(**folders, **change, device_map={"": "disk"})
    VitHfForImageClassification.from_pretrained(tmp_path / "model", **change, device_map="cpu")  # nothing waits there


class Segmenter(VitHfPreTrainedModel):
    """A head of a user's own."""

    def __init__(self, config):
        super().__init__(config)
        self.vit = VitHfModel(config)
        self.decode_head = torch.nn.Linear(config.hidden_size, 4)
        self.post_init()


def test_a_head_of_ones_own_starts_anew_and_the_encoder_is_loaded_whole(tiny, randomise, tmp_path):
    model = randomise(VitHfForImageClassification(tiny()))
    model.save_pretrained(tmp_path)
    found, info = Segmenter.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"decode_head.weight", "decode_head.bias"}
    assert found.decode_head.weight.abs().sum() > 0
    for name, tensor in model.vit.state_dict().items():
        assert torch.equal(found.vit.state_dict()[name], tensor)
    found.save_pretrained(tmp_path / "own")  # and its own weights must all be there
    Segmenter.from_pretrained(tmp_path / "own")
    kept = {name: tensor for name, tensor in found.state_dict().items() if name != "decode_head.bias"}
    found.save_pretrained(tmp_path / "less", state_dict=kept)
    with pytest.raises(ValueError, match=r"missing: decode_head\.bias"):
        Segmenter.from_pretrained(tmp_path / "less")
    kept = {name: tensor for name, tensor in model.state_dict().items() if name != "vit.norm.weight"}
    model.save_pretrained(tmp_path / "hole", state_dict=kept)
    with pytest.raises(ValueError, match=r"missing: vit\.norm\.weight"):
        Segmenter.from_pretrained(tmp_path / "hole")


def test_gelu_is_computed_again_where_that_saves_memory(tiny, randomise, monkeypatch):
    calls = []
    apply = _GELUComputedAgain.apply
    monkeypatch.setattr(_GELUComputedAgain, "apply", lambda *args: calls.append(args) or apply(*args))
    model = randomise(VitHfForImageClassification(tiny())).train()
    model(images())
    assert len(calls) == 3
    with torch.no_grad():
        model(images())
    model.vit.embeddings.requires_grad_(False)
    model.vit.layers[0].requires_grad_(False)  # below all that is trained
    model.vit.layers[1].mlp.fc2.requires_grad_(False)  # keeps no activation
    model(images())
    assert len(calls) == 4
    dropping = randomise(VitHfForImageClassification(tiny(hidden_dropout_prob=0.5)))
    dropping.train()(images())
    assert len(calls) == 4
    dropping.eval()(images())
    assert len(calls) == 7


# ------------------------------------------------------------------------------------------- last-block shortcut
SHORTCUT_OPTIONS = [
    {},
    ALL_OPTIONS,
    {"qkv_bias": False, "hidden_act": "gelu"},
    {"num_hidden_layers": 1},
    {"fc_norm": True, "hidden_act": "swiglu", "num_register_tokens": 2, "prefix_positions": "all"},
    CLIP,
]


def tokens_out_of_the_last_block(model, *args, **kwargs) -> int:
    shapes = []
    handle = model.encoder.layers[-1].register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    model(*args, **kwargs)
    handle.remove()
    (shape,) = shapes
    return shape[1]


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("sdpa", torch.float64, 1e-12), ("eager", torch.float32, 5e-6)]
)
@pytest.mark.parametrize(
    "options", SHORTCUT_OPTIONS, ids=["plain", "all_options", "no_bias", "one_layer", "fc_norm", "clip"]
)
def test_the_shortcut_gives_the_logits_and_gradients_of_the_full_block(
    options, backend, dtype, tolerance, tiny, randomise
):
    model = with_backend(randomise(VitHfForImageClassification(tiny(**options))), backend).to(dtype)
    labels = torch.tensor([0, 4, 2])
    short = model(images()).logits
    full = model.classifier(model.vit(images()).pooler_output)
    close(short, full, tolerance)
    found = gradients(model, F.cross_entropy(short, labels))
    expected = gradients(model, F.cross_entropy(full, labels))
    assert found.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name in expected:
        close(found[name], expected[name], tolerance)


class Doubled(torch.nn.Linear):
    """Stands in for an adapter: more than the product with its weight."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_the_shortcut_goes_through_what_stands_in_place_of_the_projection(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny()))
    plain = model(images()).logits
    model.vit.layers[-1].attention.qkv.__class__ = Doubled
    adapted = model(images()).logits
    close(adapted, model.classifier(model.vit(images()).pooler_output), 5e-6)
    assert (adapted - plain).abs().max() > 1e-3


def test_the_shortcut_drops_attention_weights_in_training(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(num_hidden_layers=1, attention_probs_dropout_prob=0.5)))
    close(model(images()).logits, model(images()).logits, 0)
    model.train()
    assert (model(images()).logits - model(images()).logits).abs().max() > 1e-3


def test_the_shortcut_returns_the_weights_of_its_queries(tiny, randomise):
    attention = randomise(VitHfForImageClassification(tiny())).vit.layers[0].attention
    tokens = torch.randn(3, 13, 32)
    mixed, weights = attention(tokens, num_queries=2)
    expected, maps = attention(tokens, output_attentions=True)
    close(mixed, expected[:, :2])
    close(weights, maps[:, :, :2])


def test_the_shortcut_computes_one_token_in_the_last_block(tiny):
    model = VitHfForImageClassification(tiny(num_register_tokens=2))
    assert tokens_out_of_the_last_block(model, images()) == 1
    assert model.vit(images(), pooled_only=True).last_hidden_state is None


@pytest.mark.parametrize("flag", ["output_hidden_states", "output_attentions"])
def test_the_shortcut_is_off_when_the_last_layer_is_asked_for(flag, tiny):
    model = VitHfForImageClassification(tiny())
    assert tokens_out_of_the_last_block(model, images(), **{flag: True}) == 13
    setattr(model.config, flag, True)
    assert tokens_out_of_the_last_block(model, images()) == 13
    assert tokens_out_of_the_last_block(model, images(), **{flag: False}) == 1


@pytest.mark.parametrize("pooling", ["gap", "map"])
def test_the_shortcut_is_off_when_the_head_sees_all_tokens(pooling, tiny):
    assert tokens_out_of_the_last_block(VitHfForImageClassification(tiny(pooling=pooling)), images()) == 12


def test_the_shortcut_is_off_for_a_distilled_model(tiny):
    model = VitHfForImageClassification(tiny(**DEIT))
    assert tokens_out_of_the_last_block(model, images()) == 15


def test_the_shortcut_is_off_when_a_class_token_is_not_what_the_head_sees(tiny):
    assert tokens_out_of_the_last_block(VitHfForImageClassification(tiny(**MAE)), images()) == 13


def test_the_base_model_gives_all_tokens(tiny):
    model = VitHfModel(tiny())
    assert tokens_out_of_the_last_block(model, images()) == 13
    assert model(images()).last_hidden_state.shape == (3, 13, 32)


# ------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("pooling", ["cls", "gap"])
def test_gradient_checkpointing_gives_equal_gradients(pooling, reentrant, tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(pooling=pooling, drop_path_rate=0.3))).train()
    labels = torch.tensor([0, 4, 2])
    torch.manual_seed(3)
    expected = gradients(model, model(images(), labels=labels).loss)
    checkpointing(model, use_reentrant=reentrant)
    assert all(layer.gradient_checkpointing for layer in model.vit.layers)
    calls = []
    for layer in model.vit.layers:
        layer.norm1.register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(3)
    if reentrant:  # the first block needs an input with a gradient
        model.enable_input_require_grads()
    found = gradients(model, model(images(), labels=labels).loss)
    assert len(calls) == 6  # each block runs again in the backward pass
    assert found.keys() == expected.keys()
    for name in expected:
        close(found[name], expected[name])


def test_gradient_checkpointing_gives_equal_gradients_in_bfloat16(tiny, randomise):
    model, labels = randomise(VitHfForImageClassification(tiny())).train(), torch.tensor([0, 4, 2])
    found = []
    for prepare in (lambda model: None, checkpointing):
        prepare(model)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(gradients(model, model(images(), labels=labels).loss))
    for name in found[0]:
        close(found[1][name], found[0][name], 0)


def test_input_embeddings_are_the_patch_embeddings(tiny):
    model = VitHfForImageClassification(tiny())
    assert model.get_input_embeddings() is model.vit.embeddings.patch_embeddings


# ------------------------------------------------------------------------------------------- compilation
@pytest.fixture
def fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


COMPILED = [{}, ALL_OPTIONS, {"pooling": "gap", "position_embedding": "sincos2d"}, {"pooling": "map"}, MAE, DEIT, CLIP]
COMPILED_IDS = ["shortcut", "all_options", "gap_sincos", "map", "mae", "deit", "clip"]


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("options", COMPILED, ids=COMPILED_IDS)
def test_the_model_compiles_as_one_graph(options, tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(**options)))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(images()).logits, model(images()).logits)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("flag", ["output_hidden_states", "output_attentions"])
def test_recorded_outputs_compile_as_one_graph(flag, tiny, randomise):
    """After one call outside the compiler: transformers installs its hooks there, under a lock."""
    model = randomise(VitHfForImageClassification(tiny()))
    expected = model(images(), **{flag: True})
    found = torch.compile(model, fullgraph=True, backend="eager")(images(), **{flag: True})
    name = flag.removeprefix("output_")
    assert len(found[name]) == len(expected[name]) > 0
    for a, b in zip(found[name], expected[name], strict=True):
        close(a, b)


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_training_step_compiles_as_one_graph(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(num_hidden_layers=2)))
    labels = torch.tensor([0, 4, 2])
    expected = gradients(model, model(images(), labels=labels).loss)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = gradients(model, compiled(images(), labels=labels).loss)
    for name in expected:
        close(found[name], expected[name])
    model.train()
    model.vit.layers[1].scale1.drop_path_rate = 0.5
    assert torch.compile(model, fullgraph=True, backend="eager")(images(), labels=labels).loss.isfinite()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.11's own compiler
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_steps_in_bfloat16_take_the_gradients_written_out_too(dynamic, tiny, randomise):
    model = with_backend(randomise(VitHfForImageClassification(tiny(num_hidden_layers=2))), "sdpa")
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (3, 5):
        found = []
        for network in (model, compiled):
            with torch.autograd.profiler.profile() as profile:
                with torch.autocast("cpu", torch.bfloat16):
                    loss = network(images(batch, 16, 24), labels=torch.arange(batch) % 5).loss
                found.append(gradients(model, loss))
            kernels = [event.name for event in profile.function_events if "flash_attention_for_cpu" in event.name]
            assert kernels
            assert not any("backward" in name for name in kernels)
        for name, expected in found[0].items():
            close(found[1][name] / expected.abs().max(), expected / expected.abs().max(), 0.03)


@pytest.mark.usefixtures("fresh_dynamo")
def test_masked_modelling_and_another_size_compile_as_one_graph(tiny, randomise):
    model = randomise(VitHfForMaskedImageModeling(tiny(num_hidden_layers=2)))
    picture, mask = images(3, 32, 16), torch.rand(3, 16) < 0.5
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found = compiled(picture, mask, interpolate_pos_encoding=True)
    close(found.loss, model(picture, mask, interpolate_pos_encoding=True).loss)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_the_default_compiler_gives_the_same_logits(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = torch.compile(model, fullgraph=True)(images()).logits
    close(found, model(images()).logits, 1e-5)


@pytest.mark.parametrize("options", [*COMPILED, {"resnet_stem_layers": [1]}], ids=[*COMPILED_IDS, "stem"])
def test_an_exported_model_takes_any_batch_size(options, tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(**options)))
    shapes = {"pixel_values": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (), {"pixel_values": images()}, dynamic_shapes=shapes)
    for batch in (2, 5):
        picture = images(batch, 16, 24)
        close(program.module()(pixel_values=picture).logits, model(picture).logits)


def test_a_static_export_gives_the_same_logits(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(num_hidden_layers=2)))
    close(torch.export.export(model, (images(),)).module()(images()).logits, model(images()).logits)


# ------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "gap"},
        {"pooling": "map"},
        ALL_OPTIONS,
        {"position_embedding": "sincos2d"},
        {"resnet_stem_layers": [1], "image_size": 32, "patch_size": 8},
        MAE,
        DEIT,
        CLIP,
    ],
    ids=["cls", "gap", "map", "all_options", "sincos", "stem", "mae", "deit", "clip"],
)
def test_training_moves_every_parameter(options, tiny):
    """Three steps: the head and the last norms of the stem start at zero, so that gradients come in one by one."""
    model = VitHfForImageClassification(tiny(**options)).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    picture = images(5, *model.config.image_hw)
    for _ in range(3):
        optimizer.zero_grad()
        model(picture, labels=torch.arange(5)).loss.backward()
        optimizer.step()
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    # softmax does not see a constant that is added to all keys
    assert [name for name in still if not name.endswith("k_norm.bias")] == []


def test_masked_modelling_moves_every_parameter(tiny):
    model = VitHfForMaskedImageModeling(tiny(num_register_tokens=1)).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model(images(), torch.arange(36).reshape(3, 12) % 2 == 0).loss.backward()
    optimizer.step()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


def test_a_few_images_are_learnt_by_heart(tiny):
    model = VitHfForImageClassification(tiny(drop_path_rate=0.1)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    picture, labels = images(10, 16, 24), torch.arange(10) % 5
    for _ in range(60):
        optimizer.zero_grad()
        model(picture, labels=labels).loss.backward()
        optimizer.step()
    assert (model.eval()(picture).logits.argmax(dim=1) == labels).all()


# ------------------------------------------------------------------------------------------- losses
def test_integer_labels_give_the_mean_negative_log_probability():
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
    by_hand = 0.0
    for row, label in zip(logits.tolist(), (1, 0), strict=True):
        by_hand -= math.log(math.exp(row[label]) / sum(map(math.exp, row)))
    assert classification_loss(logits, torch.tensor([1, 0])).item() == pytest.approx(by_hand / 2, rel=1e-6)


def test_soft_labels_give_the_mean_cross_entropy():
    logits, targets = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]]), [[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]]
    by_hand = 0.0
    for row, target in zip(logits.tolist(), targets, strict=True):
        total = sum(map(math.exp, row))
        by_hand -= sum(share * math.log(math.exp(value) / total) for share, value in zip(target, row, strict=True))
    assert classification_loss(logits, torch.tensor(targets)).item() == pytest.approx(by_hand / 2, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_hot_soft_labels_equal_integer_labels(smoothing):
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 1])
    hard = classification_loss(logits, labels, label_smoothing=smoothing)
    close(classification_loss(logits, F.one_hot(labels, 4).float(), label_smoothing=smoothing), hard)


def test_label_smoothing_is_torchs():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, -100, 3, 1, 1])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    close(classification_loss(logits, labels, label_smoothing=0.1), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_integer_labels_of_any_width_are_taken(dtype):
    logits, labels = torch.randn(3, 4), torch.tensor([0, 3, 1])
    close(classification_loss(logits, labels.to(dtype)), F.cross_entropy(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_loss_is_float32_whatever_the_dtype_of_soft_labels_and_logits(dtype):
    labels = torch.tensor([[0.5, 0.5, 0], [0.25, 0.25, 0.5]])
    loss = classification_loss(torch.zeros(2, 3, dtype=dtype), labels.to(dtype))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(3))


def test_ignored_labels_count_neither_above_nor_below_the_line():
    logits, labels = torch.randn(4, 3), torch.tensor([0, -100, 2, -100])
    close(classification_loss(logits, labels), F.cross_entropy(logits[[0, 2]], labels[[0, 2]]))


def test_a_batch_of_ignored_labels_gives_zero_loss_and_zero_gradients(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny()))
    loss = model(images(), labels=torch.full((3,), -100)).loss
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(model, loss).values())


@pytest.mark.parametrize("kind", ["integers", "probabilities"])
def test_four_accumulated_batches_of_four_equal_one_of_sixteen(kind, tiny, randomise):
    """`num_items_in_batch` counts label elements over all batches of a step, as transformers' Trainer counts them."""
    model = randomise(VitHfForImageClassification(tiny()))
    picture = images(16, 16, 24)
    labels = torch.arange(16) % 5 if kind == "integers" else torch.rand(16, 5).softmax(dim=1)
    expected = gradients(model, model(picture, labels=labels).loss)
    items = torch.tensor(sum((part != -100).sum().item() for part in labels.split(4)))
    parts = zip(picture.split(4), labels.split(4), strict=True)
    losses = [model(part, labels=target, num_items_in_batch=items).loss for part, target in parts]
    close(sum(losses), model(picture, labels=labels).loss)
    found = gradients(model, sum(losses))
    for name in expected:
        close(found[name], expected[name], 5e-6)


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [(torch.zeros(3, 5, dtype=torch.int64), "int64"), (torch.zeros(3), "float32"), (torch.zeros(2).long(), "int64")],
    ids=["integers_of_two_axes", "probabilities_of_one_axis", "too_few"],
)
def test_labels_of_another_shape_raise_with_both_forms(labels, dtype, tiny):
    expected = (
        f"labels have shape {tuple(labels.shape)} and dtype torch.{dtype} for logits of shape (3, 5); expected int64 "
        "class indices of shape (3,) or float probabilities of shape (3, 5)"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        VitHfForImageClassification(tiny())(images(), labels=labels)


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 2]), torch.full((3, 5), 0.2)], ids=["integers", "soft"])
def test_training_never_changes_the_config(labels, tiny):
    model = VitHfForImageClassification(tiny()).train()
    before = model.config.to_dict()
    model(images(), labels=labels).loss.backward()
    model(images(), labels=torch.tensor([0, 1, 2])).loss.backward()
    assert model.config.to_dict() == before
    assert model.config.problem_type is None


@pytest.mark.parametrize(
    ("problem_type", "num_labels", "labels"),
    [
        ("multi_label_classification", 5, torch.tensor([[1.0, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])),
        ("regression", 5, torch.linspace(-3, 3, 15).view(3, 5)),
        ("regression", 1, torch.tensor([5.0, 7.0, -1.0])),
        ("single_label_classification", 5, torch.tensor([4, 0, 2])),
    ],
)
def test_a_problem_type_in_the_config_gives_the_loss_of_transformers(problem_type, num_labels, labels, tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(problem_type=problem_type, num_labels=num_labels)))
    found = model(images(), labels=labels)
    close(found.loss, ForSequenceClassificationLoss(labels, found.logits, model.config))
    parts = [model(images()[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=labels.numel()) for i in range(3)]
    close(sum(part.loss for part in parts), found.loss)  # accumulated as by transformers' Trainer
    found.loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.classifier.parameters())


@pytest.mark.parametrize(
    ("problem_type", "labels", "words"),
    [
        ("multi_label_classification", torch.zeros(3, dtype=torch.int64), r"shape \(3,\) .*expected float of shape"),
        ("multi_label_classification", torch.zeros(3, 5, dtype=torch.int64), r"int64; expected float of shape"),
        ("regression", torch.zeros(3), r"shape \(3,\) .*expected float of shape \(3, 5\), as problem_type is 'regr"),
    ],
)
def test_labels_that_do_not_fit_the_problem_type_raise(problem_type, labels, words, tiny):
    model = VitHfForImageClassification(tiny(problem_type=problem_type))
    with pytest.raises(ValueError, match=words):
        model(images(), labels=labels)


def test_an_unknown_problem_type_raises_with_those_there_are():
    expected = "problem_type is 'ranking'; expected None or one of single_label_classification, multi_label_class"
    with pytest.raises(ValueError, match=expected):  # some versions of transformers refuse it in the config already
        classification_loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), problem_type="ranking")


def test_label_smoothing_goes_with_classes_only():
    with pytest.raises(ValueError, match=r"label_smoothing is 0.1; expected 0, as problem_type is 'regression'"):
        classification_loss(torch.zeros(2, 1), torch.zeros(2), label_smoothing=0.1, problem_type="regression")


# ------------------------------------------------------------------------------------------- masked modelling
def test_reconstructions_put_each_patch_in_its_place(tiny):
    """A decoder that answers with the same little picture for each patch tiles the image with it."""
    model = VitHfForMaskedImageModeling(tiny())
    patch = torch.randn(4, 8, 3)
    with torch.no_grad():
        model.decoder.weight.zero_()
        model.decoder.bias.copy_(patch.flatten())
    tiled = patch.permute(2, 0, 1).repeat(1, 4, 3)
    close(model(images()).reconstruction, tiled.expand(3, -1, -1, -1), 0)


def test_reconstructions_follow_the_order_of_the_tokens(tiny, randomise):
    model = randomise(VitHfForMaskedImageModeling(tiny(num_register_tokens=2)))
    outputs = model(images())
    tokens = model.vit(images()).last_hidden_state[:, 3:]
    row, column = 2, 1
    expected = model.decoder(tokens[:, row * 3 + column]).reshape(3, 4, 8, 3).permute(0, 3, 1, 2)
    found = outputs.reconstruction[:, :, row * 4 : row * 4 + 4, column * 8 : column * 8 + 8]
    close(found, expected)
    assert outputs.loss is None


def test_the_loss_is_the_mean_absolute_error_over_hidden_pixels(tiny, randomise):
    model = randomise(VitHfForMaskedImageModeling(tiny()))
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[0, 0] = mask[0, 4] = mask[2, 11] = True
    outputs = model(images(), mask)
    error = (outputs.reconstruction - images()).abs()
    hidden = [error[0, :, 0:4, 0:8], error[0, :, 4:8, 8:16], error[2, :, 12:16, 16:24]]
    close(outputs.loss, torch.stack(hidden).mean())


@pytest.mark.parametrize(
    "options", [{}, {"num_register_tokens": 2, "prefix_positions": "all"}], ids=["plain", "registers_with_positions"]
)
def test_hidden_pixels_are_not_seen(options, tiny, randomise):
    model = randomise(VitHfForMaskedImageModeling(tiny(**options)))
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[:, 4] = True  # rows 4 to 8, columns 8 to 16
    changed = images()
    changed[:, :, 4:8, 8:16] += 5
    close(model(changed, mask).reconstruction, model(images(), mask).reconstruction, 0)
    changed[:, :, 0, 0] += 5
    assert not torch.equal(model(changed, mask).reconstruction, model(images(), mask).reconstruction)


def test_an_empty_mask_gives_zero_loss_and_the_plain_reconstruction(tiny, randomise):
    model = randomise(VitHfForMaskedImageModeling(tiny()))
    outputs = model(images(), torch.zeros(3, 12, dtype=torch.bool))
    assert outputs.loss.item() == 0
    close(outputs.reconstruction, model(images()).reconstruction, 0)


@pytest.mark.parametrize("options", [{}, DEIT, MAE, CLIP], ids=["plain", "deit", "mae", "clip"])
def test_masked_modelling_takes_another_rectangle_at_run_time(options, tiny, randomise):
    model = randomise(VitHfForMaskedImageModeling(tiny(**options)))
    picture = images(2, 32, 16)
    outputs = model(picture, torch.ones(2, 16, dtype=torch.bool), interpolate_pos_encoding=True)
    assert outputs.reconstruction.shape == picture.shape
    close(outputs.loss, (outputs.reconstruction - picture).abs().mean())


def test_the_loss_counts_hidden_pixels_exactly_in_half_precision(tiny, randomise):
    """bfloat16 has no 259: counted in it, a mean over 259 patches is off by 0.4%."""
    model = randomise(VitHfForMaskedImageModeling(tiny())).bfloat16()
    picture, mask = images(30, 16, 24).bfloat16(), torch.arange(360).reshape(30, 12) < 259
    outputs = model(picture, mask)
    pixels = mask.reshape(30, 1, 4, 3).repeat_interleave(4, 2).repeat_interleave(8, 3).expand(30, 3, 16, 24)
    expected = (outputs.reconstruction.float() - picture.float()).abs()[pixels].mean()
    close(outputs.loss, expected, 1e-5)


# ------------------------------------------------------------------------------------------- precision, copies
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", THREE_KINDS, ids=["plain", "sincos", "all"])
def test_half_precision_stays_near_float32(options, dtype, tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(**options)))
    expected = model(images()).logits
    found = copy.deepcopy(model).to(dtype)(images()).logits
    assert found.dtype == dtype
    # logits of order 1 after three blocks with the 8 significant bits of bfloat16
    close(found.float(), expected, 0.1)


@pytest.mark.parametrize("options", [{}, {"position_embedding": "sincos2d"}], ids=["learned", "sincos"])
def test_a_model_built_in_half_precision_runs(options, tiny):
    model = AutoModelForImageClassification.from_config(tiny(**options), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in [*model.parameters(), *model.buffers()]} == {torch.bfloat16}
    assert model(images()).logits.dtype == torch.bfloat16


def test_autocast_stays_near_float32_and_trains_in_float32(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(drop_path_rate=0.2)))
    expected = model(images()).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.train()(images(), labels=torch.tensor([0, 1, 2]))
        close(model.eval()(images()).logits.float(), expected, 0.1)
    assert outputs.loss.dtype == torch.float32
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model, outputs.loss).values())


def test_pictures_of_another_dtype_are_cast_to_that_of_the_weights(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny()))
    close(model(images().double()).logits, model(images()).logits, 0)


def test_pickled_and_copied_models_give_equal_logits(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(**ALL_OPTIONS)))
    expected = model(images()).logits
    for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert torch.equal(twin(images()).logits, expected)


def test_evaluation_is_deterministic_and_uses_no_dropout(tiny, randomise):
    rates = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "drop_path_rate": 0.5}
    model = randomise(VitHfForImageClassification(tiny(**rates)))
    plain = VitHfForImageClassification(tiny())
    plain.load_state_dict(model.state_dict())
    expected = plain.eval()(images()).logits
    assert torch.equal(model(images()).logits, expected)
    assert torch.equal(model(images()).logits, expected)


@pytest.mark.parametrize("rate", ["hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_each_kind_of_dropout_is_at_work_in_training(rate, backend, tiny, randomise):
    model = with_backend(randomise(VitHfForImageClassification(tiny(**{rate: 0.5}))), backend).train()
    assert not torch.equal(model(images()).logits, model(images()).logits)


@pytest.mark.parametrize("pooling", ["cls", "gap", "map"])
def test_each_image_is_classified_on_its_own(pooling, tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(pooling=pooling)))
    together = model(images()).logits
    close(model(images().flip(0)).logits.flip(0), together)
    close(torch.cat([model(picture[None]).logits for picture in images()]), together)


@pytest.mark.parametrize("pooling", ["cls", "gap", "map"])
def test_patches_moved_with_their_positions_change_nothing(pooling, tiny, randomise):
    """The encoder sees a set: swapping the two halves of the image and of the positions leaves the logits."""
    model = randomise(VitHfForImageClassification(tiny(pooling=pooling)))
    expected = model(images()).logits
    swapped = torch.cat([images()[:, :, 8:], images()[:, :, :8]], dim=2)
    assert (model(swapped).logits - expected).abs().max() > 1e-3
    prefix = model.config.num_prefix_tokens
    with torch.no_grad():
        positions = model.vit.embeddings.position_embeddings
        positions[:, prefix:] = positions[:, prefix:].roll(6, dims=1)
    close(model(swapped).logits, expected)


# ------------------------------------------------------------------------------------------- wrong inputs
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 16, 24), "pixel_values has shape (2, 1, 16, 24); expected (batch, 3, height, width): prepare images"),
        ((3, 16, 24), "pixel_values has shape (3, 16, 24); expected (batch, 3, height, width)"),
        (
            (2, 3, 24, 16),
            "the image is 24x16 pixels, the model takes 16x24; resize it with the model's image processor, pass "
            "interpolate_pos_encoding=True, or load with image_size=[24, 16]",
        ),
    ],
)
def test_images_that_do_not_fit_raise_with_the_remedy(shape, message, tiny):
    with pytest.raises(ValueError, match=re.escape(message)):
        VitHfForImageClassification(tiny())(torch.zeros(shape))


def test_a_size_at_run_time_that_does_not_divide_raises_with_sizes_that_do(tiny):
    with pytest.raises(ValueError, match=r"image_size 18 \(height\) is not divisible by patch_size 4; use 16 or 20"):
        VitHfForImageClassification(tiny())(images(1, 18, 24), interpolate_pos_encoding=True)


def test_a_mask_of_another_shape_raises(tiny):
    message = "bool_masked_pos has shape (3, 11); expected (3, 12): one value a patch, row by row"
    with pytest.raises(ValueError, match=re.escape(message)):
        VitHfForMaskedImageModeling(tiny())(images(), torch.zeros(3, 11, dtype=torch.bool))


def test_a_mask_without_a_mask_token_raises(tiny):
    with pytest.raises(ValueError, match="no mask token; mask patches with VitHfForMaskedImageModeling"):
        VitHfModel(tiny())(images(), torch.zeros(3, 12, dtype=torch.bool))


def test_set_labels_gives_a_zero_classifier_of_the_same_dtype_and_its_names(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny())).bfloat16()
    model.set_labels({"0": "cat", "1": "dog"})
    assert model.classifier.weight.shape == (2, 32)
    assert (model.classifier.weight == 0).all()
    assert model.classifier.weight.dtype == torch.bfloat16
    assert model.config.id2label == model.vit.config.id2label == {0: "cat", 1: "dog"}
    assert model.config.label2id == {"cat": 0, "dog": 1}


def test_set_labels_replaces_both_classifiers_of_a_distilled_model(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny(**DEIT)))
    model.set_labels({0: "cat", 1: "dog"})
    for classifier in (model.classifier, model.distillation_classifier):
        assert classifier.weight.shape == (2, 32)
        assert (classifier.weight == 0).all()
        assert (classifier.bias == 0).all()
    assert (model(images()).logits == 0).all()
    model(images(), labels=torch.tensor([0, 1, 1])).loss.backward()
    gradient, other = model.classifier.weight.grad, model.distillation_classifier.weight.grad
    assert gradient.abs().max() > 0
    assert not torch.equal(gradient, other)


def test_set_labels_refuses_gaps_and_changes_nothing(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny()))
    head = model.classifier
    with pytest.raises(StrictDataclassError, match=r"id2label has the indices \[1, 2\]; expected 0 to 1, each once"):
        model.set_labels({1: "cat", 2: "dog"})
    assert model.classifier is head
    assert model.config.num_labels == 5


def test_an_attention_mask_of_nothing_is_taken_and_any_other_refused(tiny, randomise):
    """PEFT's classes for texts hand one on."""
    for model in (
        randomise(VitHfForImageClassification(tiny())),
        randomise(VitHfForMaskedImageModeling(tiny())),
        randomise(VitHfForMaskedImageModeling(tiny(decoder_num_hidden_layers=1, decoder_num_attention_heads=2))),
    ):
        found, expected = model(images(), attention_mask=None), model(images())
        name = "logits" if hasattr(expected, "logits") else "reconstruction"
        assert torch.equal(found[name], expected[name])
        with pytest.raises(ValueError, match=r"attention_mask: every patch attends to all; choose .* visible_patches"):
            model(images(), attention_mask=torch.ones(3, 12))


def test_the_number_of_classes_is_an_attribute_as_in_transformers(tiny):
    model = VitHfForImageClassification(tiny())
    assert model.num_labels == 5
    model.set_labels({0: "a", 1: "b"})
    assert model.num_labels == 2


def test_attention_pooling_is_differentiated_twice_where_attention_is_written_out(tiny, randomise):
    model, pixels = randomise(VitHfForImageClassification(tiny(pooling="map"))), images().requires_grad_()
    expected = model(pixels).logits
    model.set_attn_implementation("eager")
    found = model(pixels).logits
    close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), pixels, create_graph=True)
    gradient.square().sum().backward()  # torch's fused attention has no second derivative
    assert pixels.grad.abs().max() > 0
