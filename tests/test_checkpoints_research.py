"""Research checkpoints that share timm's names: DeiT, MAE, DINO and DINOv2, with their wrappers and conventions.

The way in which each repository resizes positions is written out here from its code: facebookresearch/deit `main.py`,
mae `util/pos_embed.py`, dino `vision_transformer.py`, dinov2 `dinov2/models/vision_transformer.py`.
"""

import argparse
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_hf.checkpoints.load import KERNEL, POSITIONS, load_checkpoint
from vit_hf.checkpoints.receipt import CheckpointError

timm = pytest.importorskip("timm")
from timm.layers import SwiGLUPacked  # noqa: E402
from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

CLOSE = 1e-5  # as in test_checkpoints_timm.py: the same sums in another order
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 4, "mlp_ratio": 2, "num_classes": 0}
HEADS = {"num_attention_heads": 4}
NO_DECODER = "the decoder serves pre-training only"
NO_PROJECTION = "the projection head serves pre-training only"
NO_MASK = "the mask token serves pre-training only"


def encode(state, pixels, *, heads=4, norm=True):
    """Return the tokens of an encoder, written out from the equations of the ViT paper (eps 1e-6, GELU by erf)."""
    patch = state["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=patch)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"][:, 1:]
    first = (state["cls_token"] + state["pos_embed"][:, :1]).expand(len(x), -1, -1)
    x = torch.cat([first, x], dim=1)

    def layer_norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    for index in range(1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))):
        block = f"blocks.{index}"
        query, key, value = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in linear(layer_norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        )
        weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1)
        x = x + linear((weights @ value).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = F.gelu(linear(layer_norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(hidden, f"{block}.mlp.fc2")
    return layer_norm(x, "norm") if norm else x


def noise(*shape):
    return torch.randn(*shape) * 0.1


def net(randomise, cls=VisionTransformer, **arguments):
    return randomise(cls(**{**SMALL, **arguments}))


def write(folder, content, name="checkpoint.pth"):
    torch.save(content, folder / name)
    return folder / name


def tokens_differ(theirs, ours):
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        return (theirs.forward_features(pixels) - ours.vit(pixels).last_hidden_state).abs().max().item()


def logits_differ(theirs, ours):
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        return (theirs(pixels) - ours(pixels).logits).abs().max().item()


def facts_of(model):
    return {fact.field: fact for fact in model.receipt.facts}


def dropped_by(model):
    """Return the reason by the name of each dropped tensor."""
    return {entry.file[0]: entry.rule for entry in model.receipt.tensors if entry.action == "dropped"}


# ---------------------------------------------------------------------------------------------- DeiT
def test_deit_is_read_out_of_its_wrapper(tmp_path, randomise):
    theirs = net(randomise, num_classes=7)
    ours = load_checkpoint(write(tmp_path, {"model": theirs.state_dict()}), **HEADS)
    assert max(tokens_differ(theirs, ours), logits_differ(theirs, ours)) < CLOSE
    assert facts_of(ours)["position_interpolation"].value == "transformers"
    assert dropped_by(ours) == {}


def test_a_training_checkpoint_reports_what_was_no_tensor_of_the_model(tmp_path, randomise):
    theirs = net(randomise, num_classes=7)
    content = {"model": theirs.state_dict(), "optimizer": {"state": {0: noise(3)}}, "epoch": 3}
    ours = load_checkpoint(write(tmp_path, {**content, "args": argparse.Namespace(lr=1e-3, model="x")}), **HEADS)
    assert dropped_by(ours) == dict.fromkeys(("optimizer", "epoch", "args"), "not a tensor of the model")


def test_distilled_deit_averages_both_classifiers(tmp_path, randomise):
    theirs = net(randomise, VisionTransformerDistilled, num_classes=7)
    ours = load_checkpoint(write(tmp_path, {"model": theirs.state_dict()}), **HEADS)
    assert max(tokens_differ(theirs, ours), logits_differ(theirs, ours)) < CLOSE
    assert ours.config.distilled
    assert ours.config.num_register_tokens == 1
    assert ours.config.prefix_positions == "all"


def test_distilled_deit_without_classifiers_gets_two_of_zeros(tmp_path, randomise):
    theirs = net(randomise, VisionTransformerDistilled)
    ours = load_checkpoint(write(tmp_path, {"model": theirs.state_dict()}), **HEADS, num_labels=5)
    assert tokens_differ(theirs, ours) < CLOSE
    assert ours.classifier.weight.abs().max() == 0
    assert ours.distillation_classifier.weight.shape == (5, 48)
    assert ours.receipt.counts()["re-initialised"] == 4


# ---------------------------------------------------------------------------------------------- MAE
def mae_pretraining(randomise):
    """Return the state dict of a pre-training run, with its decoder."""
    state = net(randomise).state_dict()
    decoder = {"decoder_embed.weight": noise(32, 48), "decoder_embed.bias": noise(32), "mask_token": noise(1, 1, 32)}
    decoder |= {"decoder_pos_embed": noise(1, 17, 32), "decoder_blocks.0.norm1.weight": noise(32)}
    decoder |= {"decoder_blocks.0.attn.qkv.weight": noise(96, 32), "decoder_norm.weight": noise(32)}
    return state, {**decoder, "decoder_pred.weight": noise(192, 32), "decoder_pred.bias": noise(192)}


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_encoder_of_a_mae_pretraining_is_taken_and_its_decoder_reported(wrapped, tmp_path, randomise):
    encoder, decoder = mae_pretraining(randomise)
    state = {**encoder, **decoder}
    ours = load_checkpoint(write(tmp_path, {"model": state} if wrapped else state), **HEADS)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (encode(encoder, pixels) - ours.vit(pixels).last_hidden_state).abs().max() < CLOSE
    expected = {name: NO_MASK if name == "mask_token" else NO_DECODER for name in decoder}
    assert dropped_by(ours) == expected
    assert facts_of(ours)["position_interpolation"].value == "transformers"


def test_a_fine_tuned_mae_normalises_after_the_mean(tmp_path, randomise):
    theirs = net(randomise, num_classes=7, global_pool="avg")
    state = theirs.state_dict()
    ours = load_checkpoint(write(tmp_path, {"model": state}), **HEADS)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        mean = encode(state, pixels, norm=False)[:, 1:].mean(dim=1)
        pooled = F.layer_norm(mean, (48,), state["fc_norm.weight"], state["fc_norm.bias"], 1e-6)
        logits = F.linear(pooled, state["head.weight"], state["head.bias"])
        assert (logits - ours(pixels).logits).abs().max() < CLOSE
    assert (ours.config.pooling, ours.config.fc_norm, ours.config.has_cls_token) == ("gap", True, True)
    assert "fc_norm" in facts_of(ours)["pooling"].how


# ---------------------------------------------------------------------------------------------- DINO
def dino_head(prefix="head."):
    names = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "last_layer.weight_g", "last_layer.weight_v")
    return {f"{prefix}{name}": noise(5, 5) for name in names}


def test_the_teacher_of_a_dino_run_is_taken(tmp_path, randomise):
    theirs, student = net(randomise), randomise(VisionTransformer(**SMALL), seed=1)
    teacher = {**{f"backbone.{name}": value for name, value in theirs.state_dict().items()}, **dino_head()}
    other = {f"module.backbone.{name}": value for name, value in student.state_dict().items()}
    content = {
        "student": other,
        "teacher": teacher,
        "optimizer": {"state": {}},
        "epoch": 1,
        "args": argparse.Namespace(),
    }
    ours = load_checkpoint(write(tmp_path, {**content, "dino_loss": {"center": noise(1, 5)}}), **HEADS)
    assert tokens_differ(theirs, ours) < CLOSE
    dropped = dropped_by(ours)
    assert {name for name, why in dropped.items() if why == NO_PROJECTION} == set(dino_head())
    assert {"student", "optimizer", "epoch", "args", "dino_loss"} <= dropped.keys()
    assert facts_of(ours)["position_interpolation"] == type(facts_of(ours)["pooling"])(
        "position_interpolation", "dino", "as in the code of dino"
    )


def test_a_teacher_in_modules_of_data_parallel_is_taken(tmp_path, randomise):
    theirs = net(randomise)
    state = {f"module.backbone.{name}": value for name, value in theirs.state_dict().items()}
    state |= {f"module.{name}": value for name, value in dino_head().items()}
    assert tokens_differ(theirs, load_checkpoint(write(tmp_path, {"teacher": state}), **HEADS)) < CLOSE


def test_a_bare_dino_backbone_says_that_it_may_be_timms(tmp_path, randomise):
    theirs = net(randomise)
    path = write(tmp_path, theirs.state_dict())
    ours = load_checkpoint(path, **HEADS)
    assert tokens_differ(theirs, ours) < CLOSE
    assert facts_of(ours)["position_interpolation"].how == "as in the code of dino or timm"
    assert "DINO" in facts_of(ours)["image_processor"].how
    with pytest.raises(CheckpointError, match=r"Give: position_interpolation=\.\.\.$"):
        load_checkpoint(path, **HEADS, image_size=48)
    resized = load_checkpoint(path, **HEADS, image_size=48, position_interpolation="timm")
    assert resized.config.position_interpolation == "timm"
    assert load_checkpoint(path, **HEADS, image_size=32).config.position_interpolation == "dino"


def test_a_classifier_beside_a_backbone_is_not_dropped_silently(tmp_path, randomise):
    state = {f"backbone.{name}": value for name, value in net(randomise).state_dict().items()}
    path = write(tmp_path, {**state, "linear_head.weight": noise(7, 96)})
    with pytest.raises(CheckpointError, match=r"no rule explains: linear_head\.weight"):
        load_checkpoint(path, **HEADS)


# ---------------------------------------------------------------------------------------------- DINOv2
def to_dinov2(state, *, chunk=None):
    """Rename timm's tensors to those of the DINOv2 repository, its blocks in chunks of `chunk` if given."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("reg_token", "register_tokens")
        if chunk and (match := re.match(r"blocks\.(\d+)\.", name)):
            name = f"blocks.{int(match.group(1)) // chunk}.{name.removeprefix('blocks.')}"
        renamed[name] = value
    return {**renamed, "mask_token": noise(1, 48)}


DINOV2 = {
    "plain": ({}, None, "dino"),
    "chunks": ({}, 2, "dino"),
    "registers": ({"reg_tokens": 4}, None, "timm"),
    "SwiGLU": ({"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "mlp_ratio": 4}, 2, "dino"),
}


class RegistersAfterPositions(VisionTransformer):
    """DINOv2's order: positions for class token and patches, then the registers come between them."""

    def _pos_embed(self, x):
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        registers = self.reg_token.expand(len(x), -1, -1)
        return torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)


@pytest.mark.parametrize("kind", DINOV2)
def test_dinov2_is_read_in_its_own_spelling(kind, tmp_path, randomise):
    arguments, chunk, method = DINOV2[kind]
    cls = RegistersAfterPositions if "reg_tokens" in arguments else VisionTransformer
    theirs = cls(**{**SMALL, **arguments, "init_values": 1e-5})
    if "reg_tokens" in arguments:
        theirs.pos_embed = nn.Parameter(torch.empty(1, 17, 48))
    randomise(theirs)
    state = to_dinov2(theirs.state_dict(), chunk=chunk)
    if kind == "SwiGLU":
        state = {
            name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for name, value in state.items()
        }
        assert "blocks.0.0.mlp.w12.weight" in state
    ours = load_checkpoint(write(tmp_path, state), **HEADS)
    assert tokens_differ(theirs, ours) < CLOSE
    assert dropped_by(ours) == {"mask_token": NO_MASK}
    assert facts_of(ours)["position_interpolation"].value == method
    assert ours.config.prefix_positions == "cls"
    assert ours.config.layer_scale_init is not None
    assert ours.config.num_hidden_layers == 4


def test_the_teacher_of_a_dinov2_run_is_taken(tmp_path, randomise):
    theirs = net(randomise, init_values=1e-5)
    state = {f"backbone.{name}": value for name, value in to_dinov2(theirs.state_dict(), chunk=2).items()}
    heads = {**dino_head("dino_head."), **dino_head("ibot_head.")}
    ours = load_checkpoint(write(tmp_path, {"teacher": {**state, **heads}}), **HEADS)
    assert tokens_differ(theirs, ours) < CLOSE
    assert dropped_by(ours) == {"backbone.mask_token": NO_MASK, **dict.fromkeys(heads, NO_PROJECTION)}
    assert facts_of(ours)["position_interpolation"].how == "as in the code of dinov2"


# ---------------------------------------------------------------------------------------------- positions
def plain_bicubic(grid, size):
    """DeiT and MAE at the start of a fine-tuning."""
    return F.interpolate(grid, size=size, mode="bicubic", align_corners=False)


def bicubic_by_offset_factor(grid, size):
    """DINO and DINOv2 without registers: one tenth of a patch more than wanted, by a factor."""
    factors = tuple((new + 0.1) / (grid.shape[-2] * grid.shape[-1]) ** 0.5 for new in size)
    return F.interpolate(grid, scale_factor=factors, mode="bicubic")


def bicubic_with_antialias(grid, size):
    """DINOv2 with registers: no offset, to a size, antialiased."""
    return F.interpolate(grid, size=size, mode="bicubic", antialias=True)


def file_of(kind, randomise):
    """Return a checkpoint of a kind, and its positions (1, 17, 48)."""
    if kind == "dinov2 with registers":
        model = VisionTransformer(**SMALL, init_values=1e-5, reg_tokens=4)
        model.pos_embed = nn.Parameter(torch.empty(1, 17, 48))
        return to_dinov2(randomise(model).state_dict()), model.pos_embed.detach()
    model = net(randomise, num_classes=7 if kind == "deit" else 0, init_values=1e-5 if kind == "dinov2" else None)
    state = model.state_dict()
    content = {
        "deit": lambda: {"model": state},
        "mae": lambda: {"model": {**state, **mae_pretraining(randomise)[1]}},
        "dino": lambda: {"teacher": {**{f"backbone.{name}": value for name, value in state.items()}, **dino_head()}},
        "dinov2": lambda: to_dinov2(state, chunk=2),
    }[kind]()
    return content, model.pos_embed.detach()


FORMULAS = {
    "deit": plain_bicubic,
    "mae": plain_bicubic,
    "dino": bicubic_by_offset_factor,
    "dinov2": bicubic_by_offset_factor,
    "dinov2 with registers": bicubic_with_antialias,
}


@pytest.mark.parametrize("size", [(7, 7), (3, 3), (5, 9), (2, 4), (2, 8)])
@pytest.mark.parametrize("kind", FORMULAS)
def test_positions_are_resized_in_the_way_of_the_repository(kind, size, tmp_path, randomise):
    content, positions = file_of(kind, randomise)
    ours = load_checkpoint(write(tmp_path, content), **HEADS, image_size=[8 * side for side in size])
    grid = positions[:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    expected = FORMULAS[kind](grid, size).flatten(2).transpose(1, 2)
    found = ours.vit.embeddings.position_embeddings
    assert torch.equal(found[:, :1], positions[:, :1])  # the class token's stays
    assert found.shape == (1, 1 + size[0] * size[1], 48)
    assert (found[:, 1:] - expected).abs().max() < 1e-6  # the same call: bit-equal but for the memory layout
    entry = next(entry for entry in ours.receipt.tensors if entry.model == POSITIONS)
    assert entry.action == "resampled"
    assert str(size) in entry.rule
    other = next(formula for formula in FORMULAS.values() if formula is not FORMULAS[kind])
    assert (other(grid, size).flatten(2).transpose(1, 2) - expected).abs().max() > 1e-3


def test_another_way_of_resizing_can_be_chosen(tmp_path, randomise):
    content, positions = file_of("deit", randomise)
    given = {"image_size": 48, "position_interpolation": "timm"}
    ours = load_checkpoint(write(tmp_path, content), **HEADS, **given)
    grid = positions[:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    expected = bicubic_with_antialias(grid, (6, 6)).flatten(2).transpose(1, 2)
    assert (ours.vit.embeddings.position_embeddings[:, 1:] - expected).abs().max() < 1e-6


def test_the_distillation_token_keeps_its_position(tmp_path, randomise):
    theirs = net(randomise, VisionTransformerDistilled, num_classes=7)
    ours = load_checkpoint(write(tmp_path, {"model": theirs.state_dict()}), **HEADS, image_size=[48, 32])
    assert torch.equal(ours.vit.embeddings.position_embeddings[:, :2], theirs.pos_embed[:, :2])


def test_another_patch_size_resamples_the_kernel(tmp_path, randomise):
    content, positions = file_of("dino", randomise)
    ours = load_checkpoint(write(tmp_path, content), **HEADS, image_size=64, patch_size=16)
    assert torch.equal(ours.vit.embeddings.position_embeddings, positions)  # the same grid
    actions = {entry.model: entry.action for entry in ours.receipt.tensors}
    assert (actions[KERNEL], actions[POSITIONS]) == ("resampled", "exact")


# ---------------------------------------------------------------------------------------------- no classifier
@pytest.mark.parametrize(
    ("given", "count"), [({}, 2), ({"num_labels": 5}, 5), ({"id2label": {0: "cat", 1: "dog", 2: "cow"}}, 3)]
)
@pytest.mark.parametrize("kind", ["mae", "dino", "dinov2"])
def test_a_file_without_a_classifier_gets_zeros(kind, given, count, tmp_path, randomise):
    content, _ = file_of(kind, randomise)
    ours = load_checkpoint(write(tmp_path, content), **HEADS, **given)
    assert ours.classifier.weight.shape == (count, 48)
    assert ours.classifier.weight.abs().max() == 0
    assert ours.classifier.bias.abs().max() == 0
    assert ours.config.num_labels == count
    assert given.get("id2label", ours.config.id2label) == ours.config.id2label
    entries = {entry.model: entry for entry in ours.receipt.tensors if entry.action == "re-initialised"}
    assert set(entries) == {"classifier.weight", "classifier.bias"}
    assert entries["classifier.weight"].rule == f"the file has no classifier: zeros for {count} classes"


@pytest.mark.parametrize("kind", FORMULAS)
def test_pictures_are_prepared_as_the_evaluation_code_does(kind, tmp_path, randomise):
    content, _ = file_of(kind, randomise)
    processor = load_checkpoint(write(tmp_path, content), **HEADS).image_processor.to_dict()
    assert processor["size"] == {"shortest_edge": 36}  # 256 to 224, as 36 to 32
    assert processor["crop_size"] == {"height": 32, "width": 32}
    assert processor["resample"] == 3  # bicubic
    assert list(processor["image_mean"]) == [0.485, 0.456, 0.406]
    assert list(processor["image_std"]) == [0.229, 0.224, 0.225]
