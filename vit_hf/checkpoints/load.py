"""Load the weights of any library into our model, with a receipt."""

from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers.utils import logging

from ..configuration_vit_hf import VitHfConfig
from ..image_processing_vit_hf import VitHfImageProcessor
from ..modeling_vit_hf import VitHfForImageClassification
from ..variants import check_fields
from . import google, timm, torchvision, transformers
from .facts import AT_LOAD, Facts
from .files import Checkpoint, read_checkpoint
from .links import Link, Tensors
from .own import own_receipt
from .receipt import CheckpointError, Fact, Receipt, TensorEntry

logger = logging.get_logger(__name__)
LIBRARIES: dict[str, ModuleType] = {
    "google": google,
    "timm": timm,
    "torchvision": torchvision,
    "transformers": transformers,
}
POSITIONS, KERNEL = "vit.embeddings.position_embeddings", "vit.embeddings.patch_embeddings.projection.weight"
HEADS = ("classifier.", "distillation_classifier.")


def load_checkpoint(
    path_or_hub_id: str | Path,
    *,
    source: str | None = None,
    revision: str | None = None,
    **config_overrides: Any,
) -> VitHfForImageClassification:
    """Load a ViT of google, timm, torchvision, transformers or the research code that shares timm's names.

    The outputs are those of the original. `model.receipt` tells what became of each tensor and where each setting
    comes from; `model.image_processor` prepares images as the original's evaluation does.

    Args:
        path_or_hub_id: a file (.npz, .safetensors, .pth), a folder with one, or a Hub id "owner/name".
        source: "google", "timm", "torchvision" or "transformers"; found out from the tensors' names when None.
        revision: branch, tag or commit of a Hub repo.
        config_overrides: fields of `VitHfConfig`. What the file does not tell (`num_attention_heads`, `hidden_act`,
            ...) is taken from here first. These change the model after loading: `image_size` and `patch_size` resample
            positions (by `position_interpolation`, the source's own way when not given) and patch kernel; another
            `num_labels`, or an `id2label` with other names than the file's, replaces the classifier by zeros;
            `representation_size=None` drops the representation head, and the classifier behind it.

    Returns:
        The model in eval mode, in the dtype of the file (float32 where the file mixes several).

    Raises:
        CheckpointError: (a ValueError) the file cannot be read, tensors are missing, left over, of another shape or
            not finite (all are listed), or something must be given that it does not tell.
        OSError: there is no such file, or the Hub's own error.
    """
    check_fields(config_overrides)
    checkpoint = read_checkpoint(path_or_hub_id, revision=revision)
    source = source or find_source(checkpoint)
    if source not in LIBRARIES:
        raise ValueError(f"source is {source!r}; expected one of {', '.join(LIBRARIES)}, or None to find it out")
    library = LIBRARIES[source]
    tensors, names, dropped = library.canonical(checkpoint)
    facts = Facts(config_overrides)
    library.describe(tensors, checkpoint, facts)
    _drop_representation(facts, config_overrides)
    for prefix, why in facts.dropped.items():
        for name in [name for name in tensors if name.startswith(prefix)]:
            dropped[names[name]] = why
            del tensors[name]
    config = facts.config(checkpoint.origin)
    receipt = Receipt(source, _public_name(checkpoint), checkpoint.files, list(facts.notes))
    headless = "its classifier was dropped" if facts.dropped else "the file has no classifier"
    model = _build(config, library.links(config, tensors), tensors, names, checkpoint, receipt, headless)
    _record_dropped(checkpoint, dropped, receipt)
    _adapt(model, config_overrides, receipt)
    preprocessing = library.preprocessing(checkpoint)
    described = preprocessing.described(model.config.image_hw, model.config.num_channels)
    receipt.facts.append(Fact("image_processor", "settings", described))
    vars(model)["receipt"] = receipt
    vars(model)["image_processor"] = preprocessing.processor(model.config.image_hw)
    return model.eval()


def load_model(
    path_or_hub_id: str | Path, *, to_train: bool = False, **config_overrides: Any
) -> tuple[VitHfForImageClassification, VitHfImageProcessor]:
    """Load a model of this package, or one of any library by `load_checkpoint`, with its image processor.

    Args:
        path_or_hub_id: model folder, weights file or Hub id.
        to_train: take the encoder of a model for masked images too, with a new classifier; the model's `receipt` then
            tells what became of each tensor, of weights of this package too.
        config_overrides: as in `VitHfForImageClassification.from_pretrained` and `load_checkpoint`.

    Raises:
        ValueError: see those two; or a model for masked images, which names no classes yet.
    """
    if our_settings(path_or_hub_id) is not None:
        settings, _ = VitHfConfig.get_config_dict(path_or_hub_id)
        if not to_train and settings.get("architectures") == ["VitHfForMaskedImageModeling"]:
            raise ValueError(
                f"{path_or_hub_id} is a model for masked images and names no classes; fine-tune it first: "
                f"vit-hf train vit_finetune --model.init_from {path_or_hub_id} --data SOURCE"
            )
        model = VitHfForImageClassification.from_pretrained(path_or_hub_id, **config_overrides)
        if to_train:
            vars(model)["receipt"] = own_receipt(path_or_hub_id, model)
        return model, VitHfImageProcessor.from_pretrained(path_or_hub_id)
    model = load_checkpoint(path_or_hub_id, **config_overrides)
    return model, vars(model)["image_processor"]


def load_config(path_or_hub_id: str | Path, **config_overrides: Any) -> VitHfConfig:
    """Return the config of a model; of one of this package, for masked images too, without reading its weights.

    Args:
        path_or_hub_id: model folder, weights file or Hub id.
        config_overrides: fields of the config, such as `image_size`.

    Raises:
        ValueError: the fields do not fit together; or what `load_checkpoint` raises.
    """
    if our_settings(path_or_hub_id) is not None:
        return VitHfConfig.from_pretrained(path_or_hub_id, **config_overrides)
    return load_checkpoint(path_or_hub_id, **config_overrides).config


def our_settings(path_or_hub_id: str | Path) -> dict[str, Any] | None:
    """Return what config.json of a model of this package says, from a folder or Hub repo; None for anything else."""
    if Path(path_or_hub_id).is_file():
        return None
    try:
        settings, _ = VitHfConfig.get_config_dict(path_or_hub_id)
    except OSError:  # no config.json: load_checkpoint says what is wrong, if anything is
        return None
    return settings if settings.get("model_type") == VitHfConfig.model_type else None


def find_source(checkpoint: Checkpoint) -> str:
    """Return the library whose names the tensors have.

    Raises:
        CheckpointError: none, or the model is one of this package.
    """
    if checkpoint.settings.get("model_type") == "vit_hf":
        raise CheckpointError(
            f"{checkpoint.origin} is a model of this package and needs no conversion: load "
            "it with VitHfForImageClassification.from_pretrained, or give it to a command of vit-hf as it is"
        )
    names = set(checkpoint.tensors)
    for name, library in LIBRARIES.items():
        if library.recognises(names):
            return name
    shown = ", ".join(sorted(names)[:6])
    raise CheckpointError(
        f"{checkpoint.origin} holds no Vision Transformer of {', '.join(LIBRARIES)} (its {len(names)} tensors begin "
        f"{shown}); give a checkpoint of one of these, or name its source="
    )


def _public_name(checkpoint: Checkpoint) -> str:
    """Name a checkpoint without the folders of this machine: the receipt is shared with the model."""
    path = Path(checkpoint.origin)
    return path.resolve().name if path.exists() else checkpoint.origin


def _record_dropped(checkpoint: Checkpoint, dropped: dict[str, str], receipt: Receipt) -> None:
    """Enter what was left out, and log it with what the file lacks."""
    for name, why in dropped.items():
        shapes = (tuple(checkpoint.tensors[name].shape),)
        receipt.tensors.append(TensorEntry("dropped", None, None, (name,), shapes, why))
    for name in checkpoint.left:
        receipt.tensors.append(TensorEntry("dropped", None, None, (name,), (), "not a tensor of the model"))
    counts = Counter(entry.rule for entry in receipt.tensors if entry.action in ("dropped", "re-initialised"))
    for rule, count in counts.items():
        logger.warning(f"{receipt.origin}: {count} tensors: {rule}")


def _drop_representation(facts: Facts, given: dict[str, Any]) -> None:
    """Leave the representation head out where representation_size=None was asked for."""
    size = facts.fields.get("representation_size")
    if "representation_size" not in given or size == given["representation_size"]:
        return
    if given["representation_size"] is not None:
        raise CheckpointError(
            f"representation_size is {size} in the file, not {given['representation_size']}; give None to drop the "
            "representation head, or leave it out"
        )
    facts.fields["representation_size"] = None
    for prefix in ("pre_logits", "heads.pre_logits.", "pooler.dense."):
        facts.drop(prefix, "representation_size=None was given")
    for prefix in ("head/", "head.", "heads.head.", "classifier."):
        facts.drop(prefix, "it reads the representation head, which was to be dropped")


# ---------------------------------------------------------------------------------------------- tensors -> model
def _build(
    config: VitHfConfig,
    table: list[Link],
    tensors: Tensors,
    names: dict[str, str],
    checkpoint: Checkpoint,
    receipt: Receipt,
    headless_because: str,
) -> VitHfForImageClassification:
    """Make the model at the file's own sizes from its tensors, or raise with all that does not fit."""
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in VitHfForImageClassification(config).state_dict().items()}
    headless = not any(name in tensors for link in table if link.ours.startswith(HEADS) for name in link.theirs)
    problems, state, used = [], {}, set()
    for link in table:
        used |= set(link.theirs)
        if headless and link.ours.startswith(HEADS):
            shape = expected[link.ours]
            why = f"{headless_because}: zeros for {config.num_labels} classes"
            receipt.tensors.append(TensorEntry("re-initialised", link.ours, shape, (), (), why))
            state[link.ours] = torch.zeros(shape)
            continue
        missing = [name for name in link.theirs if name not in tensors]
        if missing:
            problems += [f"missing: {name}" for name in missing]
            continue
        parts = [tensors[name] for name in link.theirs]
        shapes = tuple(tuple(part.shape) for part in parts)
        originals = tuple(names[name] for name in link.theirs)
        wrong = _unfit(parts, originals)
        if wrong:
            problems += wrong
            continue
        try:
            ours = link.form.read(parts)
        except (RuntimeError, IndexError) as error:
            problems.append(f"other shape: {', '.join(originals)} {shapes} ({str(error).splitlines()[0]})")
            continue
        if tuple(ours.shape) != expected[link.ours]:
            problems.append(
                f"other shape: {', '.join(originals)} {shapes}, expected {expected[link.ours]} in the model"
            )
            continue
        state[link.ours] = ours.contiguous()
        receipt.tensors.append(
            TensorEntry(link.form.action, link.ours, expected[link.ours], originals, shapes, link.form.rule)
        )
    problems += [
        f"no rule explains: {names[name]} {tuple(tensors[name].shape)}" for name in sorted(set(tensors) - used)
    ]
    problems += [f"the model's {name} has no rule" for name in sorted(set(expected) - {link.ours for link in table})]
    if problems:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"{checkpoint.origin} does not fit a {receipt.source} Vision Transformer of {config.num_hidden_layers} "
            f"layers and width {config.hidden_size}; {len(problems)} tensors:\n  {listed}\nGive the checkpoint of that "
            "model, whole, or another source"
        )
    return _fill(config, state, receipt)


def _unfit(parts: list[torch.Tensor], names: tuple[str, ...]) -> list[str]:
    """Name tensors that are no finite floating-point numbers."""
    found = []
    for part, name in zip(parts, names, strict=True):
        if not part.is_floating_point():
            found.append(f"no floating-point numbers: {name} ({part.dtype})")
        elif not part.isfinite().all():
            found.append(f"NaN or infinite: {name}")
    return found


def _fill(config: VitHfConfig, state: Tensors, receipt: Receipt) -> VitHfForImageClassification:
    """Put the tensors into a new model, in their dtype if they share one that models run in."""
    dtypes = {state[entry.model].dtype for entry in receipt.tensors if entry.model and entry.file}
    dtype = next(iter(dtypes))
    if len(dtypes) > 1 or dtype == torch.float64:
        receipt.facts.append(Fact("dtype", "float32", f"the file has {', '.join(sorted(map(str, dtypes)))}"))
        dtype = torch.float32
    with torch.device("meta"):
        model = VitHfForImageClassification(config)
    model = model.to_empty(device="cpu").to(dtype=dtype)  # type: ignore[call-arg]
    if config.position_embedding == "sincos2d":  # a table that no file holds
        embeddings = model.vit.embeddings
        embeddings.register_buffer(
            "position_embeddings", embeddings.fixed_positions(config.grid_hw).to(dtype), persistent=False
        )
    model.load_state_dict(state, strict=True)
    return model


# ---------------------------------------------------------------------------------------------- other sizes, classes
def _adapt(model: VitHfForImageClassification, given: dict[str, Any], receipt: Receipt) -> None:
    """Change sizes and classes of the loaded model to what was given, openly."""
    config = model.config
    wanted = {name: given[name] for name in AT_LOAD if name in given}
    try:
        changed = VitHfConfig.from_dict(config.to_dict(), **wanted)
    except StrictDataclassError as error:
        raise CheckpointError(f"{receipt.origin}: {error.__cause__ or error}") from error
    if (changed.image_hw, changed.patch_hw) != (config.image_hw, config.patch_hw):
        before, patch = config.grid_hw, config.patch_hw
        model.set_image_size(changed.image_size, changed.patch_size)
        if patch != config.patch_hw:
            shape = tuple(model.get_parameter(KERNEL).shape)
            receipt.replace(KERNEL, "resampled", shape, f"patches of {patch} to {config.patch_hw} px, pseudo-inverse")
        if before != config.grid_hw and config.position_embedding == "learned":
            shape = tuple(model.get_parameter(POSITIONS).shape)
            untouched = f", {config.num_prefix_positions} rows before the grid untouched"
            rule = f"positions {before} to {config.grid_hw}, {config.position_interpolation}{untouched}"
            receipt.replace(POSITIONS, "resampled", shape, rule)
    if changed.id2label != config.id2label:
        old = config.num_labels
        model.set_labels(changed.id2label)
        for name, parameter in model.named_parameters():
            if name.startswith(HEADS):
                why = f"zeros for {config.num_labels} classes that were given; the file has {old} others"
                receipt.replace(name, "re-initialised", tuple(parameter.shape), why)
