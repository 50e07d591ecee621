"""Muon with AdamW as one optimiser: who is moved by which, and that a step is theirs; schedule, scaler, learning."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch import nn

from vit_hf import VitHfForImageClassification, VitHfForMaskedImageModeling, get_recipe, train
from vit_hf.training.muon import MuonAdamW
from vit_hf.training.optim import build_optimizer, build_schedule, freeze_parameters, plan_steps
from vit_hf.training.recipe import Optimization
from vit_hf.training.setup import check_launch

MUON = Optimization(optimizer="muon", learning_rate=0.01, muon_learning_rate=0.03, weight_decay=0.2, betas=(0.8, 0.95))
FAMILY = {
    "plain": {},
    "registers, LayerScale, QK-norm": {"num_register_tokens": 2, "layer_scale_init": 1e-4, "qk_norm": True},
    "map": {"pooling": "map", "representation_size": 8},
    "swiglu": {"hidden_act": "swiglu"},
    "hybrid": {"resnet_stem_layers": [1], "resnet_stem_width": 32, "image_size": 16, "patch_size": 8},
}


def gradients(model: nn.Module, step: int) -> None:
    """Give every parameter a gradient that depends on the step, and on its number."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


# ---------------------------------------------------------------------------------------------- who
@pytest.mark.parametrize("kind", [VitHfForImageClassification, VitHfForMaskedImageModeling])
@pytest.mark.parametrize("fields", FAMILY.values(), ids=FAMILY)
def test_muon_moves_the_matrices_of_the_blocks_and_adamw_all_else(tiny, fields, kind):
    model = kind(tiny(**{**fields, **({"pooling": "cls"} if kind is VitHfForMaskedImageModeling else {})}))
    optimizer = build_optimizer(model, MUON)
    found = [(id(p), group.get("matrices")) for group in optimizer.param_groups for p in group["params"]]
    assert len(dict(found)) == len(found)
    assert dict(found).keys() == {id(parameter) for parameter in model.parameters()}
    by_name = {name: dict(found)[id(parameter)] for name, parameter in model.named_parameters()}
    first = 2 if fields.get("hidden_act") == "swiglu" else 1
    counts = {"attention.qkv.weight": 3, "attention.output.weight": 1, "mlp.fc1.weight": first, "mlp.fc2.weight": 1}
    expected = {f"vit.layers.{block}.{name}": count for block in range(3) for name, count in counts.items()}
    assert {name: count for name, count in by_name.items() if count is not None} == expected


def test_the_blocks_of_a_decoder_are_moved_by_muon_too(tiny):
    model = VitHfForMaskedImageModeling(tiny(decoder_num_hidden_layers=2, decoder_hidden_size=32))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, MUON).param_groups
    by_muon = {names[id(parameter)] for group in groups if "matrices" in group for parameter in group["params"]}
    kinds = ("attention.qkv", "attention.output", "mlp.fc1", "mlp.fc2")
    blocks = [f"{part}.layers.{block}" for part, count in (("vit", 3), ("decoder", 2)) for block in range(count)]
    assert by_muon == {f"{block}.{kind}.weight" for block in blocks for kind in kinds}


def test_groups_have_the_rate_and_decay_of_their_kind_and_the_first_shows_the_recipes(tiny):
    groups = build_optimizer(VitHfForImageClassification(tiny()), MUON).param_groups
    assert [(group["name"], group["lr"], group["weight_decay"]) for group in groups] == [
        ("all, decay", 0.01, 0.2),
        ("all, Muon", 0.03, 0.2),
        ("all, Muon, 3 in one", 0.03, 0.2),
        ("all, no decay", 0.01, 0.0),
    ]


def test_layer_decay_slows_both_alike_and_the_batch_scales_both(tiny):
    fields = {"learning_rate_batch_size": 64, "batch_size": 128, "layer_decay": 0.5, "learning_rate": 0.5}
    model = VitHfForImageClassification(tiny())
    for rate, first in ((2.0, 4.0), (None, 1.0)):
        optimization = Optimization(optimizer="muon", muon_learning_rate=rate, **fields)
        rates = {group["name"]: group["lr"] for group in build_optimizer(model, optimization).param_groups}
        of_blocks = {name: value for name, value in rates.items() if "Muon" in name}
        assert of_blocks == {
            f"block {2 - depth}, Muon{more}": first * 0.5 ** (depth + 1)
            for depth in range(3)
            for more in ("", ", 3 in one")
        }
        assert (rates["head, decay"], rates["block 2, no decay"], rates["embeddings, decay"]) == (1.0, 0.5, 0.0625)


def test_what_is_frozen_stays_and_without_a_matrix_muon_is_refused(tiny):
    model = VitHfForImageClassification(tiny())
    freeze_parameters(model, ["*bias", "*norm*", "vit.embeddings.*", "classifier.*", "*fc?.weight"])
    optimizer = build_optimizer(model, MUON)  # nothing is left for AdamW
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients(model, 0)
    for parameter in model.parameters():
        parameter.grad = parameter.grad if parameter.requires_grad else None
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"vit.layers.{block}.attention.{name}.weight" for block in range(3) for name in ("qkv", "output")}
    freeze_parameters(model, ["vit.layers.*"])
    model.classifier.requires_grad_(True)
    with pytest.raises(ValueError, match="'muon', but no matrix of a block is trained; use adamw, or freeze less"):
        build_optimizer(model, MUON)


# ---------------------------------------------------------------------------------------------- how
def by_hand(model: nn.Module) -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer, torch.optim.Optimizer]:
    """Copy the weights, queries, keys and values apart, and hand them to torch's two optimisers."""
    matrices, decayed, free = {}, {}, {}
    for name, parameter in model.named_parameters():
        copy = parameter.detach().clone()
        if "qkv.weight" in name:
            matrices.update(
                {f"{name}/{part}": nn.Parameter(piece) for part, piece in zip("qkv", copy.split(32), strict=True)}
            )
        elif "layers" in name and copy.ndim == 2:
            matrices[name] = nn.Parameter(copy)
        else:
            kernel = name in ("vit.embeddings.patch_embeddings.projection.weight", "classifier.weight")
            (decayed if kernel else free)[name] = nn.Parameter(copy)
    muon = torch.optim.Muon(matrices.values(), lr=0.03, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": decayed.values(), "weight_decay": 0.2}, {"params": free.values(), "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), fused=True)
    return {**matrices, **decayed, **free}, muon, adamw


def test_steps_are_those_of_torchs_muon_and_adamw_with_query_key_and_value_apart(tiny, randomise):
    model = randomise(VitHfForImageClassification(tiny()))
    optimizer = build_optimizer(model, MUON)
    copies, *parts = by_hand(model)
    start = {name: copy.detach().clone() for name, copy in copies.items()}
    for step in range(4):
        gradients(model, step)
        for name, parameter in model.named_parameters():
            if name in copies:
                copies[name].grad = parameter.grad.clone()
            else:
                for part, piece in zip("qkv", parameter.grad.split(32), strict=True):
                    copies[f"{name}/{part}"].grad = piece.clone()
        for group in [group for one in (optimizer, *parts) for group in one.param_groups]:
            group["lr"] *= 0.7  # as a schedule does
        for one in (optimizer, *parts):
            one.step()
    assert all(not torch.equal(copy, start[name]) for name, copy in copies.items())
    for name, parameter in model.named_parameters():
        apart = [copies[f"{name}/{part}"] for part in "qkv"] if name not in copies else [copies[name]]
        assert torch.equal(parameter, torch.cat(apart)), name


def test_a_first_step_is_close_to_orthogonal_in_each_matrix_by_its_singular_values(tiny):
    """Newton-Schulz leaves nearly all between 0.7 and 1.2; together, query, key and value would each have up to 1.6."""
    model = VitHfForImageClassification(tiny(hidden_act="swiglu", intermediate_size=32))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients(model, 0)
    build_optimizer(model, Optimization(optimizer="muon", learning_rate=0.1)).step()
    for name, count in {"attention.qkv": 3, "attention.output": 1, "mlp.fc1": 2, "mlp.fc2": 1}.items():
        key = f"vit.layers.1.{name}.weight"
        for moved in (model.state_dict()[key] - before[key]).chunk(count):
            values = torch.linalg.svdvals(moved) / (0.1 * 0.2 * 32**0.5)
            assert 0.5 < values[-4] < values[0] < 1.3, name  # of 32; the smallest take more steps
            assert moved.square().mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.2)  # as large as AdamW's


def test_a_parameter_without_a_gradient_stays(tiny):
    model = VitHfForImageClassification(tiny())
    optimizer = build_optimizer(model, MUON)
    gradients(model, 0)
    weight = model.vit.layers[1].attention.qkv.weight
    before, weight.grad = weight.detach().clone(), None
    optimizer.step()
    assert torch.equal(weight, before)
    assert weight not in optimizer.state


def test_the_closure_is_called_once_with_gradients(tiny):
    model = VitHfForImageClassification(tiny())
    optimizer, calls = build_optimizer(model, MUON), []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        gradients(model, 0)
        return torch.tensor(3.0)

    assert optimizer.step(closure) == 3.0
    assert calls == [True]


# ---------------------------------------------------------------------------------------------- with all else
def test_one_schedule_moves_both_rates_and_their_ratio_stays(tiny):
    optimization = Optimization(
        optimizer="muon",
        learning_rate=0.1,
        muon_learning_rate=0.4,
        min_learning_rate=0.02,
        max_steps=10,
        warmup_steps=4,
    )
    optimizer = build_optimizer(VitHfForImageClassification(tiny()), optimization)
    plan = plan_steps(optimization, num_images=100, num_processes=1)
    schedule = build_schedule(optimizer, optimization, plan)
    shown = []
    for _ in range(11):
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        shown.append(schedule.get_last_lr()[0])
        assert rates["all, decay"] == rates["all, no decay"] == shown[-1]
        assert rates["all, Muon"] == rates["all, Muon, 3 in one"] == pytest.approx(4 * shown[-1])
        optimizer.step()
        schedule.step()
    assert (shown[0], shown[4], shown[10]) == (0.0, 0.1, pytest.approx(0.02))


def test_a_gradient_scaler_unscales_and_leaves_a_step_that_overflows_out(tiny):
    models = [VitHfForImageClassification(tiny()) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    plain, scaled = (build_optimizer(model, MUON, scaled=True) for model in models)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    pixels, labels = torch.randn(4, 3, 16, 24), torch.arange(4)
    for overflows in (False, True, False):
        for model, optimizer in zip(models, (plain, scaled), strict=True):
            optimizer.zero_grad()
            loss = model(pixel_values=pixels, labels=labels).loss
            if optimizer is plain:
                loss.backward()
                continue
            scaler.scale(loss).backward()
            if overflows:
                model.vit.layers[0].mlp.fc2.weight.grad[0, 0] = torch.inf
            scaler.step(scaled)
            scaler.update()
        if not overflows:
            plain.step()
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, msg=name)


def test_shards_are_refused():
    recipe = get_recipe("digits").override({"optimization.optimizer": "muon", "optimization.ema_decay": None})
    for kind in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        accelerator = SimpleNamespace(distributed_type=kind, num_processes=1, device=torch.device("cpu"))
        with pytest.raises(ValueError, match=f"muon needs whole matrices in every process, {kind.value} shards them"):
            check_launch(recipe, accelerator)  # type: ignore[arg-type]
        check_launch(recipe.override({"optimization.optimizer": "adamw"}), accelerator)  # type: ignore[arg-type]


def test_a_rate_for_muon_without_muon_is_refused():
    with pytest.raises(ValueError, match=r"muon_learning_rate is 0\.1; expected none with optimizer adamw: set"):
        get_recipe("digits").override({"optimization.muon_learning_rate": 0.1})


def test_digits_are_learned(tmp_path):
    recipe = get_recipe("digits").override(
        {
            "model.num_hidden_layers": 2,
            "model.hidden_size": 32,
            "model.intermediate_size": 64,
            "optimization.optimizer": "muon",
            "optimization.learning_rate": 1e-2,
            "optimization.max_steps": 60,
            "optimization.warmup_steps": 5,
            "optimization.ema_decay": None,
            "augmentation.rotation": 0.0,
            "augmentation.translation": 0.0,
            "augmentation.scaling": 0.0,
            "data.max_test_images": 200,
            "evaluate_every": 100.0,
            "trackers": [],
        }
    )
    done = train(recipe, output=tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert done.results["top1"] > 0.5  # of 10 classes; 0.675 was measured
    assert rows[-1]["learning_rate"] < 1e-4


def test_it_is_one_optimiser_of_torch(tiny):
    optimizer = build_optimizer(VitHfForImageClassification(tiny()), MUON)
    assert type(optimizer) is MuonAdamW
    assert isinstance(optimizer, torch.optim.Optimizer)
    defaults = optimizer.param_groups[1]
    assert (defaults["momentum"], defaults["nesterov"], defaults["ns_steps"]) == (0.95, True, 5)  # Jordan's
