"""What a recipe's values must be: known words, numbers within their ranges, and fields that agree with each other."""

import math
from typing import TYPE_CHECKING

from ..configuration_vit_hf import VitHfConfig
from ..data.bad_images import POLICIES

if TYPE_CHECKING:
    from .recipe import Recipe


def check_values(recipe: "Recipe") -> None:
    """Raise ValueError for the first value that is unknown, out of range or at odds with another."""
    _check_words(recipe)
    _check_ranges(recipe)
    _check_together(recipe)
    if recipe.task == "masked_image_modeling":
        _check_masked(recipe)


def _check_words(recipe: "Recipe") -> None:
    optimization = recipe.optimization
    for name, value, known in (
        ("optimization.optimizer", optimization.optimizer, ("adamw", "sgd", "muon")),
        ("optimization.schedule", optimization.schedule, ("cosine", "constant")),
        ("mixed_precision", recipe.mixed_precision, ("no", "fp16", "bf16")),
        ("optimization.loss", optimization.loss, ("cross_entropy", "bce")),
        ("task", recipe.task, ("classification", "masked_image_modeling")),
        ("keep", recipe.keep, ("best", "last")),
        ("data.on_bad_image", recipe.data.on_bad_image, POLICIES),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    if "" in recipe.model.freeze:
        raise ValueError(
            f"model.freeze is {recipe.model.freeze}; expected patterns such as vit.embeddings.*, none empty"
        )


def _check_ranges(recipe: "Recipe") -> None:
    optimization, data = recipe.optimization, recipe.data
    for name, number in (
        ("optimization.epochs", optimization.epochs),
        ("optimization.batch_size", optimization.batch_size),
        ("optimization.learning_rate", optimization.learning_rate),
        ("optimization.muon_learning_rate", optimization.muon_learning_rate),
        ("evaluate_every", recipe.evaluate_every),
        ("evaluation_batch_size", recipe.evaluation_batch_size),
        ("optimization.max_steps", optimization.max_steps),
        ("optimization.max_device_batch_size", optimization.max_device_batch_size),
        ("optimization.clip_norm", optimization.clip_norm),
        ("optimization.learning_rate_batch_size", optimization.learning_rate_batch_size),
        ("optimization.layer_decay", optimization.layer_decay),
        ("checkpoint_minutes", recipe.checkpoint_minutes),
        ("checkpoint_steps", recipe.checkpoint_steps),
        ("checkpoint_limit", recipe.checkpoint_limit),
        ("hang_timeout_minutes", recipe.hang_timeout_minutes),
        ("cpu_threads", recipe.cpu_threads),
        ("data.max_train_images", data.max_train_images),
        ("data.max_test_images", data.max_test_images),
    ):
        if number is not None and not 0 < number < math.inf:
            raise ValueError(f"{name} is {number}; expected more than 0")
    for name, number in (
        ("data.validation_fraction", data.validation_fraction),
        ("optimization.label_smoothing", optimization.label_smoothing),
        ("optimization.ema_decay", optimization.ema_decay),
        ("optimization.momentum", optimization.momentum),
        *(("optimization.betas", beta) for beta in optimization.betas),
    ):
        if number is not None and not 0 <= number < 1:
            raise ValueError(f"{name} is {number}; expected 0 <= value < 1")
    for name, number in (
        ("optimization.weight_decay", optimization.weight_decay),
        ("optimization.warmup_epochs", optimization.warmup_epochs),
        ("optimization.warmup_steps", optimization.warmup_steps),
        ("optimization.min_learning_rate", optimization.min_learning_rate),
        ("optimization.warmup_learning_rate", optimization.warmup_learning_rate),
        ("workers", recipe.workers),
    ):
        if number is not None and not 0 <= number < math.inf:
            raise ValueError(f"{name} is {number}; expected 0 or more")
    if optimization.layer_decay is not None and optimization.layer_decay > 1:
        raise ValueError(f"optimization.layer_decay is {optimization.layer_decay}; expected 0 < factor <= 1")


def _check_together(recipe: "Recipe") -> None:
    optimization, augmentation = recipe.optimization, recipe.augmentation
    peak, batch_size = optimization.peak_learning_rate, optimization.batch_size
    for name in ("min_learning_rate", "warmup_learning_rate"):
        value = getattr(optimization, name)
        if value > peak:
            raise ValueError(
                f"optimization.{name} is {value}; expected at most the peak, {peak}, of optimization.learning_rate "
                f"{optimization.learning_rate} (stated for batch size {optimization.learning_rate_batch_size})"
            )
    if optimization.muon_learning_rate is not None and optimization.optimizer != "muon":
        raise ValueError(
            f"optimization.muon_learning_rate is {optimization.muon_learning_rate}; expected none with optimizer "
            f"{optimization.optimizer}: set optimization.optimizer to muon, or leave it out"
        )
    if (augmentation.mixup_alpha or augmentation.cutmix_alpha) and batch_size % 2:
        raise ValueError(
            f"optimization.batch_size is {batch_size}; expected an even number, because mixup and CutMix pair pictures "
            "(augmentation.mixup_alpha, augmentation.cutmix_alpha)"
        )


def _check_masked(recipe: "Recipe") -> None:
    """Pre-training has no labels: what is about labels must be off."""
    optimization, augmentation = recipe.optimization, recipe.augmentation
    for name, value, off in (
        ("augmentation.mixup_alpha", augmentation.mixup_alpha, 0.0),
        ("augmentation.cutmix_alpha", augmentation.cutmix_alpha, 0.0),
        ("optimization.label_smoothing", optimization.label_smoothing, 0.0),
        ("optimization.loss", optimization.loss, "cross_entropy"),
    ):
        if value != off:
            raise ValueError(
                f"{name} is {value!r}; expected {off!r} with task masked_image_modeling, which knows no labels"
            )


def check_network(recipe: "Recipe", config: VitHfConfig) -> None:
    """Raise ValueError where the recipe asks for what the network, known before a run, cannot do."""
    if recipe.task != "masked_image_modeling":
        return
    side = recipe.augmentation.mask_patch_size
    for name, sizes, fits in (
        ("patch_size", config.patch_hw, lambda size: side % size == 0),
        ("image_size", config.image_hw, lambda size: size % side == 0),
    ):
        if not all(fits(size) for size in sizes):
            raise ValueError(
                f"augmentation.mask_patch_size is {side}; expected a multiple of the patch, {config.patch_hw} pixels, "
                f"that divides the picture, {config.image_hw} pixels: model.{name} does not fit"
            )
    squares = config.image_hw[0] // side * (config.image_hw[1] // side)
    ratio = recipe.augmentation.mask_ratio
    if config.decoder_num_hidden_layers and squares - math.ceil(squares * ratio - 1e-9) < 1:
        raise ValueError(
            f"augmentation.mask_ratio is {ratio}, which hides all {squares} squares of a picture; expected at least "
            "one visible square for the encoder (model.decoder_num_hidden_layers is not 0): lower it"
        )
