"""Recipes: the same after YAML, typed overrides, and errors that name field, value and expectation."""

import ast
import dataclasses
import inspect
import itertools
import re

import pytest
import yaml

from vit_hf.data import pictures, transforms
from vit_hf.data.pictures import DataFields
from vit_hf.data.transforms import Augmentation
from vit_hf.training import recipe as recipe_module
from vit_hf.training.recipe import ModelFields, Optimization, Recipe, field_names
from vit_hf.training.recipes import RECIPES, get_recipe

SECTIONS = {"data": DataFields, "model": ModelFields, "augmentation": Augmentation, "optimization": Optimization}


@pytest.fixture(scope="module")
def digits():
    return get_recipe("digits")


def value_of(recipe: Recipe, name: str):
    section, _, leaf = name.rpartition(".")
    tree = recipe.to_dict()
    return (tree[section] if section else tree)[leaf]


def write(folder, content: str):
    path = folder / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------- YAML
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_same_after_yaml(name, tmp_path):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert Recipe.from_yaml(write(tmp_path, recipe.to_yaml())) == recipe
    assert get_recipe(write(tmp_path, recipe.to_yaml())) == recipe


def test_changed_fields_of_every_kind_are_the_same_after_yaml(digits, tmp_path):
    changed = digits.override(
        {
            "model.image_size": "16,24",
            "model.layer_scale_init": "1e-4",
            "optimization.betas": "0.9,0.95",
            "optimization.clip_norm": None,
            "data.streaming": True,
            "data.revision": "1e3",
            "trackers": [],
        }
    )
    assert Recipe.from_yaml(write(tmp_path, changed.to_yaml())) == changed


def test_yaml_holds_every_field(digits):
    tree = yaml.safe_load(digits.to_yaml())
    for section, kind in SECTIONS.items():
        fields = {field.name for field in dataclasses.fields(kind)} - {"config"}
        assert fields <= set(tree[section])
    assert set(tree) == {field.name for field in dataclasses.fields(Recipe)}
    assert tree["model"]["hidden_size"] == digits.model.config["hidden_size"]


def test_no_needs_no_quotes_in_yaml(tmp_path):
    """YAML reads the bare word as false."""
    path = tmp_path / "recipe.yaml"
    path.write_text("name: mine\ndata: {source: digits}\nmixed_precision: no\n")
    assert Recipe.from_yaml(path).mixed_precision == "no"


def test_what_yaml_leaves_out_has_its_default(tmp_path):
    path = write(tmp_path, "name: mine\ndata: {source: digits}\noptimization: {learning_rate: 1e-4, epochs: 3}\n")
    expected = Recipe(name="mine", data=DataFields("digits"), optimization=Optimization(learning_rate=1e-4, epochs=3.0))
    assert Recipe.from_yaml(path) == expected


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "needs at least name and data.source"),
        ("- name\n- data\n", "needs at least name and data.source"),
        ("just words", "needs at least name and data.source"),
        ("data: {source: digits}", "needs at least name and data.source"),
        ("name: mine", "needs at least name and data.source"),
        ("name: mine\ndata: {}", "data.source is missing"),
        ("name: mine\ndata: digits", "data is 'digits'; expected a mapping"),
        ("name: mine\ndata: {source: digits}\nmodel:", "model is None; expected a mapping"),
        ("name: mine\ndata: {source: digits}\nmodle: {}", "unknown recipe field 'modle'; did you mean"),
        ("name: mine\ndata: {source: digits}\n1: 2", "unknown recipe field '1'"),
        ("name: mine\ndata: {source: digits}\nmodel: {config: {image_size: 8}}", "unknown recipe field 'model.config'"),
        ("name: mine\ndata: {source: digits}\nmodel: {1: 2}", "unknown recipe field 'model.1'"),
        ("name: mine\ndata: {source: digits, split: x}", "unknown recipe field 'data.split'"),
        ("name: 5\ndata: {source: digits}", "name is 5; expected str"),
        ("name: mine\ndata: {source: 5}", "data.source is 5; expected str"),
        ("name: ../../mine\ndata: {source: digits}", "name is '../../mine'; expected letters, digits"),
        ("name: mine\ndata: {source: digits}\naugmentation: {crop_area: 5}", "augmentation.crop_area is 5; expected"),
        (
            "name: mine\ndata: {source: digits}\naugmentation: {crop_area: [1]}",
            r"augmentation.crop_area is (1.0,); exp",
        ),
        (
            "name: mine\ndata: {source: digits}\naugmentation: {erasing: }",
            "augmentation.erasing is None; expected float",
        ),
        ("name: mine\ndata: {source: digits}\naugmentation: {flip: 1}", "augmentation.flip is 1; expected bool"),
        ("name: mine\ndata: {source: digits}\nmodel: {hidden_size: big}", "hidden_size' expected int, got str"),
        ("name: mine\ndata: {source: digits}\nmodel: {variant: B16}", "unknown variant 'B16'"),
        ("name: [mine\n", "expected ',' or ']'"),
        ("name: !!python/object/apply:os.getcwd []\ndata: {source: digits}", "could not determine a constructor"),
    ],
)
def test_a_faulty_file_is_one_error_that_names_file_and_fault(tmp_path, content, fault):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=f"(?s)^{re.escape(str(path))}: .*{re.escape(fault)}") as caught:
        Recipe.from_yaml(path)
    assert type(caught.value) is ValueError


# ---------------------------------------------------------------------------------------------- overrides
@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("seed", "7", 7),
        ("seed", 7, 7),
        ("seed", "007", 7),
        ("name", "other-2", "other-2"),
        ("optimization.learning_rate", "1e-3", 1e-3),
        ("optimization.learning_rate", "1", 1.0),
        ("optimization.learning_rate", 1, 1.0),
        ("optimization.max_steps", "20", 20),
        ("optimization.max_steps", "none", None),
        ("optimization.clip_norm", "None", None),
        ("optimization.clip_norm", "2", 2.0),
        ("optimization.betas", "0.9,1e-2", [0.9, 0.01]),
        ("optimization.betas", "[0.9, 0.99]", [0.9, 0.99]),
        ("optimization.betas", [0, 0.99], [0.0, 0.99]),
        ("augmentation.flip", "true", True),
        ("augmentation.flip", "no", False),
        ("augmentation.crop_area", "0.1,1", [0.1, 1.0]),
        ("augmentation.crop_area", "(0.1, 1)", [0.1, 1.0]),
        ("data.source", "folder/of/1e3", "folder/of/1e3"),
        ("data.source", "none", "none"),
        ("data.train_split", "null", None),
        ("data.revision", "1234", "1234"),
        ("trackers", "none", []),
        ("trackers", "wandb", ["wandb"]),
        ("trackers", "wandb,mlflow", ["wandb", "mlflow"]),
        ("trackers", [], []),
        ("model.freeze", "vit.*", ["vit.*"]),
        ("model.freeze", "vit.embeddings.*,vit.layers.[01].*", ["vit.embeddings.*", "vit.layers.[01].*"]),
        ("model.freeze", "*.bias, [!v]*.weight", ["*.bias", "[!v]*.weight"]),
        ("model.freeze", "[!v]*.[01]", ["[!v]*.[01]"]),
        ("model.freeze", "[vit.*, x]", ["vit.*", "x"]),
        ("model.freeze", "[]", []),
        ("model.freeze", "none", []),
        ("checkpoint_minutes", "none", None),
        ("optimization.layer_decay", "0.65", 0.65),
        ("optimization.learning_rate_batch_size", "256", 256),
        ("model.variant", "S/16", "S/16"),
        ("model.image_size", "32", 32),
        ("model.image_size", "32,64", [32, 64]),
        ("model.layer_norm_eps", "1e-5", 1e-5),
        ("model.drop_path_rate", "0.1", 0.1),
        ("model.qk_norm", "true", True),
        ("model.representation_size", "none", None),
        ("model.hidden_act", "gelu", "gelu"),
        ("model.init_from", "runs/first", "runs/first"),
    ],
)
def test_an_override_is_read_as_the_type_of_its_field(digits, name, word, value):
    found = value_of(digits.override({name: word}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("word", "value"), [("3,4,9", [3, 4, 9]), ("3", [3]), ("[]", []), ("none", None)])
def test_lists_of_the_stem_are_read_with_one_entry_or_none(digits, word, value):
    fields = {"model.image_size": 64, "model.patch_size": 16, "model.resnet_stem_layers": word}
    assert value_of(digits.override(fields), "model.resnet_stem_layers") == value


def test_an_override_changes_nothing_else_and_leaves_the_recipe_alone(digits):
    before = digits.to_yaml()
    changed = digits.override({"optimization.epochs": 5, "seed": 3})
    assert digits.to_yaml() == before
    differing = {name for name in field_names() if name.split(".")[0] != "model"}
    differing = {name for name in differing if value_of(changed, name) != value_of(digits, name)}
    assert differing == {"optimization.epochs", "seed"}
    assert digits.override({}) == digits


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("optimization.lerning_rate", "optimization.learning_rate"),
        ("learning_rate", "optimization.learning_rate"),
        ("flip", "augmentation.flip"),
        ("data.validation_fractoin", "data.validation_fraction"),
        ("model.hiden_size", "model.hidden_size"),
        ("sed", "seed"),
    ],
)
def test_an_unknown_field_names_the_nearest(digits, name, nearest):
    with pytest.raises(ValueError, match=f"unknown recipe field '{name}'; did you mean .*{nearest}"):
        digits.override({name: "1"})


def test_a_field_like_no_other_points_to_the_list(digits):
    with pytest.raises(ValueError, match="`vit-hf recipes digits` prints all fields"):
        digits.override({"qqqqqq": 1})


# ---------------------------------------------------------------------------------------------- checks
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("seed", "one", "seed is 'one'; expected int"),
        ("seed", "1.5", "seed is 1.5; expected int"),
        ("seed", True, "seed is True; expected int"),
        ("name", "a/b", "name is 'a/b'; expected letters"),
        ("name", "..", "name is '..'; expected letters"),
        ("name", "", "name is ''; expected letters"),
        ("compile", "maybe", "compile is 'maybe'; expected bool"),
        ("trackers", 5, "trackers is 5; expected tuple[str, ...]"),
        ("mixed_precision", "fp8", "mixed_precision is 'fp8'; expected one of no, fp16, bf16"),
        ("keep", "all", "keep is 'all'; expected one of best, last"),
        ("workers", "-1", "workers is -1; expected 0 or more"),
        ("evaluate_every", "0", "evaluate_every is 0.0; expected more than 0"),
        ("evaluation_batch_size", "0", "evaluation_batch_size is 0; expected more than 0"),
        ("optimization.learning_rate", "fast", "optimization.learning_rate is 'fast'; expected float"),
        ("optimization.learning_rate", "nan", "optimization.learning_rate is nan; expected more than 0"),
        ("optimization.learning_rate", "0", "optimization.learning_rate is 0.0; expected more than 0"),
        ("optimization.epochs", "inf", "optimization.epochs is inf; expected more than 0"),
        ("optimization.batch_size", "-8", "optimization.batch_size is -8; expected more than 0"),
        ("optimization.batch_size", "8.5", "optimization.batch_size is 8.5; expected int"),
        ("optimization.max_steps", "0", "optimization.max_steps is 0; expected more than 0"),
        ("optimization.optimizer", "lamb", "optimization.optimizer is 'lamb'; expected one of adamw, sgd, muon"),
        ("optimization.schedule", "step", "optimization.schedule is 'step'; expected one of cosine, constant"),
        ("optimization.betas", "0.9", "optimization.betas is (0.9,); expected tuple[float, float]"),
        ("optimization.betas", "0.9,1.0", "optimization.betas is 1.0; expected 0 <= value < 1"),
        ("optimization.momentum", "1.5", "optimization.momentum is 1.5; expected 0 <= value < 1"),
        ("optimization.weight_decay", "-0.1", "optimization.weight_decay is -0.1; expected 0 or more"),
        ("optimization.weight_decay", "nan", "optimization.weight_decay is nan; expected 0 or more"),
        ("optimization.warmup_steps", "-1", "optimization.warmup_steps is -1; expected 0 or more"),
        ("optimization.label_smoothing", "1", "optimization.label_smoothing is 1.0; expected 0 <= value < 1"),
        ("optimization.ema_decay", "1", "optimization.ema_decay is 1.0; expected 0 <= value < 1"),
        ("optimization.clip_norm", "0", "optimization.clip_norm is 0.0; expected more than 0"),
        ("data.validation_fraction", "1", "data.validation_fraction is 1.0; expected 0 <= value < 1"),
        ("data.max_train_images", "0", "data.max_train_images is 0; expected more than 0"),
        ("augmentation.flip", "perhaps", "augmentation.flip is 'perhaps'; expected bool"),
        ("augmentation.erasing", "2", "augmentation.erasing is 2.0; expected a probability"),
        ("augmentation.rotation", "left", "augmentation.rotation is 'left'; expected float"),
        ("augmentation.crop_area", "0.1,x", "augmentation.crop_area is (0.1, 'x'); expected tuple[float, float]"),
        ("model.hidden_size", "65", "hidden_size 65 is not divisible by num_attention_heads"),
        ("model.hidden_size", "large", "hidden_size' expected int, got str (value: 'large')"),
        ("model.pooling", "max", "pooling is 'max'; expected one of cls, gap, map"),
        ("model.freeze", [1, "vit.*"], "model.freeze is (1, 'vit.*'); expected tuple[str, ...]"),
        ("model.freeze", ["vit.*", ""], "model.freeze is ('vit.*', ''); expected patterns"),
        ("task", "detection", "task is 'detection'; expected one of classification, masked_image_modeling"),
        ("optimization.loss", "mse", "optimization.loss is 'mse'; expected one of cross_entropy, bce"),
        ("optimization.layer_decay", "0", "optimization.layer_decay is 0.0; expected more than 0"),
        ("optimization.layer_decay", "1.1", "optimization.layer_decay is 1.1; expected 0 < factor <= 1"),
        ("optimization.layer_decay", "nan", "optimization.layer_decay is nan; expected more than 0"),
        ("optimization.learning_rate_batch_size", "0", "optimization.learning_rate_batch_size is 0; expected more"),
        ("optimization.warmup_learning_rate", "-1", "optimization.warmup_learning_rate is -1.0; expected 0 or more"),
        (
            "optimization.warmup_learning_rate",
            "1",
            "optimization.warmup_learning_rate is 1.0; expected at most the peak",
        ),
        ("optimization.min_learning_rate", "1", "optimization.min_learning_rate is 1.0; expected at most the peak"),
        ("checkpoint_minutes", "0", "checkpoint_minutes is 0.0; expected more than 0"),
        ("checkpoint_steps", "0", "checkpoint_steps is 0; expected more than 0"),
        ("checkpoint_limit", "0", "checkpoint_limit is 0; expected more than 0"),
        ("hang_timeout_minutes", "-1", "hang_timeout_minutes is -1.0; expected more than 0"),
        ("augmentation.repeats", "0", "augmentation.repeats is 0; expected 1 or more"),
        ("augmentation.crop", "random", "augmentation.resize is None and augmentation.crop 'random'; expected a size"),
        ("augmentation.resize", "20", "augmentation.resize is (20,); expected"),
    ],
)
def test_a_wrong_value_names_field_value_and_expectation(digits, name, value, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        digits.override({name: value})


def test_the_ends_of_the_learning_rate_are_held_against_the_scaled_peak(digits):
    scaled = {"optimization.learning_rate": 1e-3, "optimization.learning_rate_batch_size": 16}  # batch 64
    assert digits.override({**scaled, "optimization.min_learning_rate": 4e-3}).optimization.peak_learning_rate == 4e-3
    with pytest.raises(ValueError, match=r"warmup_learning_rate is 0\.005; expected at most the peak, 0\.004, .* 16\)"):
        digits.override({**scaled, "optimization.warmup_learning_rate": 5e-3})


@pytest.mark.parametrize("field", ["mixup_alpha", "cutmix_alpha"])
def test_mixing_needs_an_even_batch(digits, field):
    words = {f"augmentation.{field}": 0.5}
    assert digits.override({**words, "optimization.batch_size": 6})
    with pytest.raises(ValueError, match=r"batch_size is 7; expected an even number, because mixup and CutMix pair"):
        digits.override({**words, "optimization.batch_size": 7})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("augmentation.mixup_alpha", 0.2),
        ("augmentation.cutmix_alpha", 1.0),
        ("optimization.label_smoothing", 0.1),
        ("optimization.loss", "bce"),
    ],
)
def test_pre_training_without_labels_refuses_what_is_about_labels(name, value):
    masked = get_recipe("simmim_pretrain")
    with pytest.raises(ValueError, match=rf"{name} is {value!r}; expected .* with task masked_image_modeling"):
        masked.override({name: value})


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("augmentation.mask_patch_size", 24, "patch"),
        ("augmentation.mask_patch_size", 48, "image"),
        ("model.image_size", 240, "image"),
    ],
)
def test_hidden_squares_are_whole_patches_and_fill_the_picture(name, value, other):
    masked = get_recipe("simmim_pretrain")
    with pytest.raises(
        ValueError, match=rf"mask_patch_size is \d+; expected a multiple .*model\.{other}_size does not fit"
    ):
        masked.override({name: value})
    assert get_recipe("deit").override({"augmentation.mask_patch_size": 24})  # nothing is hidden there


def test_a_masked_autoencoder_sees_at_least_one_square():
    fields = {"model.decoder_num_hidden_layers": 1, "augmentation.mask_patch_size": 112}
    assert get_recipe("simmim_pretrain").override({**fields, "augmentation.mask_ratio": 0.75})
    with pytest.raises(ValueError, match=r"mask_ratio is 0\.8, which hides all 4 squares of a picture; expected at"):
        get_recipe("simmim_pretrain").override({**fields, "augmentation.mask_ratio": 0.8})
    assert get_recipe("simmim_pretrain").override({"augmentation.mask_patch_size": 112, "augmentation.mask_ratio": 0.8})


def test_a_start_replaces_the_network_of_a_recipe_from_scratch_and_not_the_wishes_of_a_fine_tuning_one():
    scratch = get_recipe("deit").override({"model.init_from": "x", "model.freeze": "vit.*"})
    assert scratch.model == ModelFields(init_from="x", config={"drop_path_rate": 0.1}, freeze=("vit.*",))
    tuning = get_recipe("mae_finetune")
    assert tuning.override({"model.init_from": "x"}).model == dataclasses.replace(tuning.model, init_from="x")
    again = tuning.override({"model.init_from": "x"}).override({"model.init_from": "y"})
    assert again.model == dataclasses.replace(tuning.model, init_from="y")


def test_a_section_of_another_kind_is_an_error():
    with pytest.raises(ValueError, match="data is 'digits'; expected DataFields"):
        Recipe(name="mine", data="digits")


def test_whole_numbers_do_for_floats_in_code():
    optimization = Optimization(epochs=3, learning_rate=1, clip_norm=2)
    recipe = Recipe(name="mine", data=DataFields("digits"), optimization=optimization)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_a_recipe_cannot_be_changed(digits):
    for target, name in ((digits, "seed"), *((getattr(digits, section), "x") for section in SECTIONS)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(target, name, 1)


# ---------------------------------------------------------------------------------------------- names and documents
@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (recipe_module, Recipe),
        (recipe_module, ModelFields),
        (recipe_module, Optimization),
        (pictures, DataFields),
        (transforms, Augmentation),
    ],
)
def test_every_field_is_followed_by_its_description(module, kind):
    tree = ast.parse(inspect.getsource(module))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    described = [
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    ]
    assert described == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_tells_its_source_and_command(name):
    text = inspect.getdoc(RECIPES[name])
    assert "Source: " in text
    assert f"Command: vit-hf train {name}" in text


def test_every_field_name_can_be_overridden_with_the_value_it_has(digits):
    tree = digits.to_dict()
    for name in field_names():
        section, _, leaf = name.rpartition(".")
        target = tree[section] if section else tree
        if leaf in target:
            assert digits.override({name: target[leaf]}) == digits


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown recipe 'digit'; expected one of digits, .*did you mean digits\?"):
        get_recipe("digit")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no recipe file {tmp_path}/mine.yaml"):
        get_recipe(tmp_path / "mine.yaml")
