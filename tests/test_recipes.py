"""The named recipes: their numbers, their documents, and the learning rate that comes out of them."""

import inspect
import re
from pathlib import Path

import PIL.Image
import pytest
import torch
from torch import nn

from vit_hf import VitHfConfig, VitHfForImageClassification, VitHfImageProcessor
from vit_hf.data.transforms import TrainTransform
from vit_hf.training.head import replace_head
from vit_hf.training.optim import build_optimizer, build_schedule, freeze_parameters, plan_steps
from vit_hf.training.recipe import Recipe, field_names
from vit_hf.training.recipes import RECIPES, get_recipe
from vit_hf.variants import variant

TIMM_M9 = {
    "augmentation.randaugment_ops": 2,
    "augmentation.randaugment_magnitude": 27,
    "augmentation.randaugment_std": 1.5,
    "augmentation.randaugment_probability": 0.5,
}
MIXED = {"augmentation.mixup_alpha": 0.8, "augmentation.cutmix_alpha": 1.0, "augmentation.erasing": 0.25}
BIG_VISION_10 = {"augmentation.randaugment_ops": 2, "augmentation.randaugment_magnitude": 30}
CROPPED = {"augmentation.crop": "inception", "augmentation.flip": True}
CIFAR_NET = {
    "model.variant": "Ti/2",
    "model.image_size": 32,
    "model.hidden_size": 256,
    "model.num_hidden_layers": 7,
    "model.num_attention_heads": 4,
    "model.intermediate_size": 1024,
    "model.pooling": "gap",
    "model.position_embedding": "sincos2d",
}
IMAGENET = {"data.source": "ILSVRC/imagenet-1k", "data.test_split": "validation"}
CIFAR = {"data.source": "uoft-cs/cifar100", "data.validation_fraction": 0.02}
SGD = {
    "model.image_size": 384,
    "optimization.optimizer": "sgd",
    "optimization.batch_size": 512,
    "mixed_precision": "bf16",
}

# What differs from the defaults of the dataclasses, whole: a number that is not here is not in the recipe.
NUMBERS: dict[str, dict[str, object]] = {
    "digits": {
        "data.source": "digits",
        "data.validation_fraction": 0.1,
        "model.variant": "Ti/4",
        "model.image_size": 16,
        "model.hidden_size": 64,
        "model.num_hidden_layers": 3,
        "model.num_attention_heads": 4,
        "model.intermediate_size": 128,
        "model.pooling": "gap",
        "model.position_embedding": "sincos2d",
        "augmentation.rotation": 10.0,
        "augmentation.translation": 0.07,
        "augmentation.scaling": 0.1,
        "optimization.epochs": 60.0,
        "optimization.batch_size": 64,
        "optimization.learning_rate": 3e-3,
        "optimization.warmup_epochs": 5.0,
        "optimization.weight_decay": 0.05,
        "optimization.label_smoothing": 0.1,
        "optimization.ema_decay": 0.99,
        "evaluate_every": 10.0,
        "keep": "last",
        "cpu_threads": 1,
    },
    "cifar100_scratch": {
        **CIFAR,
        **CROPPED,
        **TIMM_M9,
        **MIXED,
        **CIFAR_NET,
        "model.drop_path_rate": 0.1,
        "augmentation.crop_area": [0.8, 1.0],
        "optimization.epochs": 400.0,
        "optimization.optimizer": "muon",
        "optimization.learning_rate": 4e-3,
        "optimization.batch_size": 512,
        "optimization.warmup_learning_rate": 1e-6,
        "optimization.min_learning_rate": 1e-5,
        "optimization.warmup_epochs": 10.0,
        "optimization.weight_decay": 0.06,
        "optimization.label_smoothing": 0.1,
        "optimization.ema_decay": 0.9996,
        "mixed_precision": "bf16",
        "evaluate_every": 10.0,
        "keep": "last",
    },
    "cifar100_mae": {
        **CIFAR,
        **CROPPED,
        **CIFAR_NET,
        "model.decoder_num_hidden_layers": 2,
        "model.decoder_hidden_size": 128,
        "model.decoder_num_attention_heads": 4,
        "model.decoder_intermediate_size": 512,
        "model.norm_pix_loss": True,
        "augmentation.crop_area": [0.2, 1.0],
        "augmentation.mask_ratio": 0.75,
        "augmentation.mask_patch_size": 2,
        "optimization.epochs": 800.0,
        "optimization.batch_size": 1024,
        "optimization.learning_rate": 1.5e-4,
        "optimization.learning_rate_batch_size": 256,
        "optimization.warmup_epochs": 40.0,
        "optimization.betas": [0.9, 0.95],
        "optimization.weight_decay": 0.05,
        "optimization.clip_norm": None,
        "task": "masked_image_modeling",
        "mixed_precision": "bf16",
        "evaluate_every": 20.0,
        "keep": "last",
    },
    "cifar100_finetune": {
        **CIFAR,
        **CROPPED,
        **TIMM_M9,
        **MIXED,
        "model.image_size": 32,
        "model.pooling": "gap",
        "model.drop_path_rate": 0.1,
        "augmentation.crop_area": [0.8, 1.0],
        "optimization.epochs": 150.0,
        "optimization.batch_size": 512,
        "optimization.learning_rate_batch_size": 256,
        "optimization.min_learning_rate": 1e-6,
        "optimization.warmup_epochs": 5.0,
        "optimization.weight_decay": 0.05,
        "optimization.layer_decay": 0.75,
        "optimization.label_smoothing": 0.1,
        "optimization.ema_decay": 0.999,
        "mixed_precision": "bf16",
        "evaluate_every": 5.0,
        "keep": "last",
    },
    "deit": {
        **IMAGENET,
        **CROPPED,
        **TIMM_M9,
        **MIXED,
        "model.variant": "S/16",
        "model.hidden_act": "gelu",
        "model.drop_path_rate": 0.1,
        "augmentation.crop_area": [0.08, 1.0],
        "augmentation.repeats": 3,
        "optimization.epochs": 300.0,
        "optimization.batch_size": 1024,
        "optimization.learning_rate": 5e-4,
        "optimization.learning_rate_batch_size": 512,
        "optimization.warmup_learning_rate": 1e-6,
        "optimization.min_learning_rate": 1e-5,
        "optimization.warmup_epochs": 5.0,
        "optimization.weight_decay": 0.05,
        "optimization.clip_norm": None,
        "optimization.label_smoothing": 0.1,
        "optimization.ema_decay": 0.99996,
        "mixed_precision": "bf16",
        "keep": "last",
        "workers": 8,
    },
    "better_plain_vit": {
        **IMAGENET,
        **CROPPED,
        **BIG_VISION_10,
        "data.validation_fraction": 0.01,
        "model.variant": "S/16",
        "model.pooling": "gap",
        "model.position_embedding": "sincos2d",
        "model.representation_size": 384,
        "augmentation.mixup_alpha": 0.2,
        "optimization.epochs": 90.0,
        "optimization.batch_size": 1024,
        "optimization.warmup_steps": 10_000,
        "optimization.weight_decay": 0.1,
        "mixed_precision": "bf16",
        "keep": "last",
        "workers": 8,
    },
    "vit_finetune": {
        **CIFAR,
        **CROPPED,
        **SGD,
        "model.representation_size": None,
        "optimization.max_steps": 10_000,
        "optimization.learning_rate": 0.03,
        "optimization.warmup_steps": 500,
        "workers": 4,
    },
    "vit_finetune_imagenet": {
        **IMAGENET,
        **CROPPED,
        **SGD,
        "data.validation_fraction": 0.01,
        "model.representation_size": None,
        "optimization.max_steps": 20_000,
        "optimization.learning_rate": 0.03,
        "optimization.warmup_steps": 500,
        "workers": 8,
    },
    "augreg_transfer": {
        **CIFAR,
        **SGD,
        "model.hidden_dropout_prob": 0.0,
        "augmentation.crop": "random",
        "augmentation.resize": [448, 448],
        "augmentation.flip": True,
        "optimization.max_steps": 500,
        "optimization.learning_rate": 0.03,
        "optimization.warmup_steps": 100,
        "workers": 4,
    },
    "big_vision_transfer": {
        **CIFAR,
        **SGD,
        "augmentation.crop": "random",
        "augmentation.resize": [448, 448],
        "augmentation.flip": True,
        "optimization.max_steps": 10_000,
        "optimization.learning_rate": 0.01,
        "optimization.warmup_steps": 500,
        "workers": 4,
    },
    "mae_finetune": {
        **IMAGENET,
        **CROPPED,
        **TIMM_M9,
        **MIXED,
        "model.image_size": 224,
        "model.pooling": "gap",
        "model.class_token": True,
        "model.fc_norm": True,
        "model.drop_path_rate": 0.1,
        "augmentation.crop_area": [0.08, 1.0],
        "optimization.batch_size": 1024,
        "optimization.learning_rate": 5e-4,
        "optimization.learning_rate_batch_size": 256,
        "optimization.min_learning_rate": 1e-6,
        "optimization.warmup_epochs": 5.0,
        "optimization.weight_decay": 0.05,
        "optimization.layer_decay": 0.65,
        "optimization.clip_norm": None,
        "optimization.label_smoothing": 0.1,
        "mixed_precision": "bf16",
        "keep": "last",
        "workers": 8,
    },
    "linear_probe": {
        **IMAGENET,
        **CROPPED,
        "model.image_size": 224,
        "model.freeze": ["vit.*"],
        "augmentation.crop_area": [0.08, 1.0],
        "optimization.batch_size": 1024,
        "optimization.optimizer": "sgd",
        "optimization.learning_rate_batch_size": 256,
        "optimization.clip_norm": None,
        "mixed_precision": "bf16",
        "keep": "last",
        "workers": 8,
    },
    "head_only": {
        **CIFAR,
        **CROPPED,
        **SGD,
        "model.freeze": ["vit.[!p]*"],
        "optimization.max_steps": 10_000,
        "optimization.learning_rate": 0.03,
        "optimization.warmup_steps": 500,
        "workers": 4,
    },
    "vit_i21k_pretrain": {
        **CROPPED,
        **BIG_VISION_10,
        "data.source": "imagenet21k",
        "model.variant": "B/16",
        "model.pooling": "gap",
        "model.representation_size": 768,
        "augmentation.mixup_alpha": 0.2,
        "optimization.epochs": 300.0,
        "optimization.batch_size": 4096,
        "optimization.warmup_steps": 10_000,
        "optimization.weight_decay": 0.1,
        "optimization.loss": "bce",
        "mixed_precision": "bf16",
        "keep": "last",
        "workers": 16,
    },
    "simmim_pretrain": {
        **IMAGENET,
        **CROPPED,
        "model.variant": "B/16",
        "model.hidden_act": "gelu",
        "model.layer_scale_init": 0.1,
        "model.drop_path_rate": 0.1,
        "augmentation.crop_area": [0.67, 1.0],
        "optimization.epochs": 800.0,
        "optimization.batch_size": 2048,
        "optimization.learning_rate": 1e-4,
        "optimization.learning_rate_batch_size": 512,
        "optimization.warmup_learning_rate": 2e-6,
        "optimization.min_learning_rate": 2e-5,
        "optimization.warmup_epochs": 10.0,
        "optimization.weight_decay": 0.05,
        "optimization.clip_norm": 5.0,
        "task": "masked_image_modeling",
        "mixed_precision": "bf16",
        "keep": "last",
        "workers": 8,
    },
}


def flat(tree: dict) -> dict[str, object]:
    """Return the fields of a recipe by their dotted names."""
    fields: dict[str, object] = {}
    for name, value in tree.items():
        fields |= (
            {f"{name}.{leaf}": inner for leaf, inner in value.items()} if isinstance(value, dict) else {name: value}
        )
    return fields


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_these_numbers_and_no_others(name):
    found = flat(get_recipe(name).to_dict())
    defaults = flat(Recipe.from_dict({"name": "x", "data": {"source": "x"}}).to_dict())
    differing = {field: value for field, value in found.items() if field not in defaults or value != defaults[field]}
    assert differing == {"name": name, **NUMBERS[name]}


def test_the_mask_of_simmim_is_the_papers():
    augmentation = get_recipe("simmim_pretrain").augmentation
    assert (augmentation.mask_ratio, augmentation.mask_patch_size) == (0.6, 32)


@pytest.mark.parametrize("name", RECIPES)
def test_every_docstring_tells_source_command_expectation_and_result(name):
    text = inspect.getdoc(RECIPES[name])
    heads = re.findall(r"^(\w+): ", text, flags=re.MULTILINE)
    assert heads == ["Source", "Command", "Expected", "Result"]
    assert f"\nCommand: vit-hf train {name}" in text
    measured = name == "digits"
    assert ("Result: not yet run here" in text) is not measured


@pytest.mark.parametrize("name", RECIPES)
def test_the_fields_that_a_docstring_sets_exist_and_its_values_are_accepted(name):
    found = re.findall(r"--([\w.]*\w)(?: ([\w./+-]*\w))?", inspect.getdoc(RECIPES[name]))
    words = {field: value for field, value in found if "." in field}
    assert set(words) <= set(field_names())
    assert get_recipe(name).override({field: value for field, value in words.items() if re.match(r"\d", value)})


def test_digits_and_the_readme_say_what_its_card_says():
    root = Path(__file__).resolve().parents[1]
    card = (root / "model_cards" / "digits.md").read_text(encoding="utf-8")
    mean, spread = re.search(r"^\| mean \| ([\d.]+%) ± ([\d.]+%) ", card, flags=re.MULTILINE).groups()
    assert f"Result: {mean} +- {spread} test top-1 (mean and standard deviation of seeds 0, 1, 2" in inspect.getdoc(
        RECIPES["digits"]
    )
    assert f"{mean} ± {spread} on 359 test pictures" in (root / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_after_yaml_and_after_a_second_call(name, tmp_path):
    recipe = get_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert get_recipe(path) == recipe == get_recipe(name)


# ---------------------------------------------------------------------------------------------- learning rate
# Pictures to train on; steps; learning rates at step 0, after the warm-up, half way down, at the end.
CURVES = {
    "digits": (1293, 1212, [0.0, 3e-3, 1.5e-3, 0.0]),
    "cifar100_scratch": (49_000, 38_281, [1e-6, 4e-3, 2.005e-3, 1e-5]),
    "cifar100_mae": (49_000, 38_281, [0.0, 6e-4, 3e-4, 0.0]),
    "cifar100_finetune": (49_000, 14_355, [0.0, 2e-3, 1.0005e-3, 1e-6]),
    "deit": (1_281_167, 375_342, [1e-6, 1e-3, 5.05e-4, 1e-5]),
    "better_plain_vit": (1_268_355, 111_477, [0.0, 1e-3, 5e-4, 0.0]),
    "vit_finetune": (49_000, 10_000, [0.0, 0.03, 0.015, 0.0]),
    "vit_finetune_imagenet": (1_268_355, 20_000, [0.0, 0.03, 0.015, 0.0]),
    "augreg_transfer": (49_000, 500, [0.0, 0.03, 0.015, 0.0]),
    "big_vision_transfer": (49_000, 10_000, [0.0, 0.01, 0.005, 0.0]),
    "mae_finetune": (1_281_167, 125_114, [0.0, 2e-3, 1.0005e-3, 1e-6]),
    "linear_probe": (1_281_167, 125_114, [4e-3, 4e-3, 2e-3, 0.0]),
    "head_only": (49_000, 10_000, [0.0, 0.03, 0.015, 0.0]),
    "vit_i21k_pretrain": (14_146_397, 1_036_113, [0.0, 1e-3, 5e-4, 0.0]),
    "simmim_pretrain": (1_281_167, 500_456, [2e-6, 4e-4, 2.1e-4, 2e-5]),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_learning_rate_runs_through_its_stations(name):
    images, total, expected = CURVES[name]
    optimization = get_recipe(name).optimization
    plan = plan_steps(optimization, num_images=images, num_processes=1)
    assert plan.total_steps == total
    optimizer = build_optimizer(small(), optimization)
    curve = build_schedule(optimizer, optimization, plan).lr_lambdas[0]
    half = (plan.warmup_steps + total) // 2
    found = [curve(step) * optimization.peak_learning_rate for step in (0, plan.warmup_steps, half, total)]
    assert found == pytest.approx(expected, rel=2e-3, abs=1e-12)  # half way is a whole step


def test_recipes_that_mix_have_batches_that_pair_on_eight_processes():
    for name in RECIPES:
        recipe = get_recipe(name)
        mixes = bool(recipe.augmentation.mixup_alpha or recipe.augmentation.cutmix_alpha)
        plan = plan_steps(recipe.optimization, num_images=100_000, num_processes=8, even=mixes)
        assert plan.device_batch_size * 8 == recipe.optimization.batch_size


def test_the_overrides_that_big_vision_names_for_other_sets_are_accepted():
    words = {"augmentation.crop": "inception", "augmentation.resize": "none", "optimization.learning_rate": "0.003"}
    changed = get_recipe("big_vision_transfer").override(words)
    assert (changed.augmentation.crop, changed.augmentation.resize) == ("inception", None)
    assert changed.override({"augmentation.crop": "random", "augmentation.resize": "448,512"}).augmentation.resize == (
        448,
        512,
    )


# ---------------------------------------------------------------------------------------------- what they run on
@pytest.mark.parametrize("name", RECIPES)
def test_the_augmentation_of_a_recipe_gives_pictures_for_its_model(name):
    recipe = get_recipe(name)
    config = variant(recipe.model.variant or "B/16", **recipe.model.config)
    height, width = config.image_hw
    processor = VitHfImageProcessor(size={"height": height, "width": width})
    pixels = torch.randint(256, (40, 50, 3), dtype=torch.uint8).numpy()
    transform = TrainTransform(recipe.augmentation, processor)
    cut = transform.picture(PIL.Image.fromarray(pixels), 5)[None]
    for given, is_cut in ((cut, True), (torch.from_numpy(pixels).permute(2, 0, 1)[None], False)):
        found = transform.batch(given, [5], cut=is_cut)
        assert found.shape == (1, 3, height, width)
        assert found.isfinite().all()


def small(**fields) -> VitHfForImageClassification:
    sizes = {"image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return VitHfForImageClassification(VitHfConfig(**sizes, intermediate_size=64, num_labels=3, **fields))


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("linear_probe", {"classifier"}),
        ("head_only", {"vit.pooler.pre_logits", "classifier"}),
    ],
)
def test_frozen_recipes_train_what_they_say(name, trained):
    model = small(representation_size=16)
    freeze_parameters(model, get_recipe(name).model.freeze)
    found = {key.rpartition(".")[0] for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == trained


@pytest.mark.parametrize("fields", [{}, {"pooling": "gap", "class_token": True, "fc_norm": True}])
def test_frozen_recipes_fit_every_pooling(fields):
    for name in ("linear_probe", "head_only"):
        model = small(**fields)
        freeze_parameters(model, get_recipe(name).model.freeze)
        assert model.classifier.weight.requires_grad
        assert not any(parameter.requires_grad for parameter in model.vit.layers.parameters())


# ---------------------------------------------------------------------------------------------- another head
def test_mae_gets_mean_pooling_and_a_new_norm_over_the_same_encoder():
    model = small()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    wanted = {"pooling": "gap", "class_token": True, "fc_norm": True}
    new = replace_head(model.eval(), wanted)
    assert {name: getattr(new.config, name) for name in wanted} == wanted
    assert not new.training
    pixels = torch.randn(2, 3, 32, 32)
    tokens = model.vit(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]  # before the last norm
    expected = nn.functional.layer_norm(tokens.mean(dim=1), (32,), eps=model.config.layer_norm_eps)
    torch.testing.assert_close(new.vit(pixels).pooler_output, expected, rtol=1e-5, atol=1e-5)
    assert not new.classifier.weight.any()
    assert new.config.id2label == model.config.id2label


def test_the_representation_head_is_dropped_and_the_rest_kept():
    model = small(representation_size=16)
    new = replace_head(model, {"representation_size": None})
    assert new.vit.pooler.pre_logits is None
    assert new.classifier.in_features == 32
    assert all(torch.equal(tensor, model.state_dict()[f"vit.{name}"]) for name, tensor in new.vit.state_dict().items())


def test_a_model_that_has_the_head_already_is_returned_as_it_is():
    model = small(pooling="gap", class_token=True, fc_norm=True)
    wanted = {name: get_recipe("mae_finetune").model.config[name] for name in ("pooling", "class_token", "fc_norm")}
    assert replace_head(model, wanted) is model
    assert replace_head(model, {"representation_size": None}) is model


def test_a_head_that_needs_other_tokens_is_an_error():
    with pytest.raises(ValueError, match=r"pooling 'gap' would change vit\.embeddings\.cls_token, .*class_token true"):
        replace_head(small(), {"pooling": "gap"})
