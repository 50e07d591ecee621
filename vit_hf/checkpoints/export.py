"""Write our weights in the form of another library, where it can express the model."""

import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from ..configuration_vit_hf import VitHfConfig
from ..modeling_vit_hf import VitHfForImageClassification
from . import google, timm
from .files import METADATA_KEY
from .links import Tensors
from .load import LIBRARIES, POSITIONS
from .receipt import CheckpointError
from .transformers import PROCESSOR_FIELDS

SUFFIXES = {
    "google": (".npz",),
    "timm": (".safetensors", ".pth"),
    "torchvision": (".safetensors", ".pth"),
    "transformers": (),
}
# Fields that a layout's tensors do not show: kept beside them as text, where the file has a place for it.
UNTOLD = ("image_size", "num_attention_heads", "hidden_act", "layer_norm_eps", "pooling", "prefix_positions",
          "layer_scale_init", "position_interpolation")  # fmt: skip


def export_checkpoint(
    model: VitHfForImageClassification, path: str | Path, *, target: str, processor: Any | None = None
) -> Path:
    """Write a model's weights for another library; reading them back gives the same bits.

    A .pth file holds the weights alone: what they do not tell (number of heads, pooling, activation, image size, ...)
    must then be named to `load_checkpoint` where it differs from the library's own models; a .safetensors file has it.

    Args:
        model: any `VitHfForImageClassification`, of one floating-point dtype.
        path: what to write; it must not exist. "google": a .npz file. "timm", "torchvision": a .safetensors or .pth
            file. Without a suffix a folder: for "timm" one that `timm.create_model("local-dir:FOLDER")` takes, for
            "transformers" one that `from_pretrained` takes.
        target: "google", "timm", "torchvision" or "transformers".
        processor: image processor whose settings go into the folder; the model's own `image_processor` when None, as
            `load_checkpoint` leaves it.

    Returns:
        The path written.

    Raises:
        CheckpointError: (a ValueError) the target cannot express the model; every field that it cannot is named. Or
            the path has another suffix, or the model was prepared for inference.
        FileExistsError: something lies at the path.
    """
    path = Path(path)
    if target not in LIBRARIES:
        raise ValueError(f"target is {target!r}; expected one of {', '.join(LIBRARIES)}")
    if not isinstance(model, VitHfForImageClassification):
        raise TypeError(f"model is a {type(model).__name__}; expected a VitHfForImageClassification")
    if model.encoder.is_prepared:
        raise CheckpointError(
            "a model that was prepared for inference has other weights than its class and cannot be exported; export "
            "the model as it was loaded"
        )
    _check_expressible(model.config, target)
    if path.suffix and path.suffix not in SUFFIXES[target]:
        expected = " or ".join((*SUFFIXES[target], "a folder (no suffix)"))
        raise CheckpointError(f"{path} ends in {path.suffix}; {target} weights go into {expected}")
    if path.exists():
        raise FileExistsError(f"{path} exists; give a new path, or remove it")
    processor = processor if processor is not None else getattr(model, "image_processor", None)
    settings = {} if processor is None else processor.to_dict()
    if target == "transformers":
        return _publish(path, lambda folder: _write_transformers(model, settings, folder))
    tensors = _to_theirs(model, target)
    if path.suffix:
        return _publish(path, lambda made: _write_file(tensors, model.config, made))
    return _publish(path, lambda folder: _write_folder(tensors, model.config, settings, target, folder))


def _check_expressible(config: VitHfConfig, target: str) -> None:
    wrong = LIBRARIES[target].inexpressible(config)
    if wrong:
        reasons = "; ".join(f"{name} is {getattr(config, name)!r}, it needs {need}" for name, need in wrong.items())
        raise CheckpointError(f"{target} cannot express this model: {reasons}. Choose another target")


def _publish(path: Path, write: Callable[[Path], None]) -> Path:
    """Write beside the path, then rename, so that nothing half-written is left under it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as scratch:
        made = Path(scratch) / path.name
        if not path.suffix:
            made.mkdir()
        write(made)
        os.replace(made, path)
    return path


def _to_theirs(model: VitHfForImageClassification, target: str) -> Tensors:
    """Return the model's tensors in the target's names and forms."""
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    ours.setdefault(POSITIONS, model.vit.embeddings.position_embeddings.detach().cpu())  # computed ones, as a table
    if len(dtypes := {tensor.dtype for tensor in ours.values()}) > 1:
        raise CheckpointError(f"the model mixes {', '.join(sorted(map(str, dtypes)))}; bring it to one: model.float()")
    theirs: Tensors = {}
    for link in LIBRARIES[target].links(model.config):
        for name, tensor in zip(link.theirs, link.form.write(ours[link.ours]), strict=True):
            theirs[name] = tensor.clone(memory_format=torch.contiguous_format)
    return google.export_names(theirs, google.export_layout(model.config)) if target == "google" else theirs


def _metadata(config: VitHfConfig) -> str:
    told = {field.name for field in fields(VitHfConfig)} & set(UNTOLD)
    return json.dumps({METADATA_KEY: {name: getattr(config, name) for name in UNTOLD if name in told}})


def _write_file(tensors: Tensors, config: VitHfConfig, path: Path) -> None:
    if path.suffix == ".npz":
        if any(tensor.dtype == torch.bfloat16 for tensor in tensors.values()):
            raise CheckpointError("numpy has no bfloat16; bring the model to float32 first: model.float()")
        with zipfile.ZipFile(path, "w") as archive:  # as numpy.savez, which leaves it open when the disk is full
            for name, tensor in tensors.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, tensor.numpy(), allow_pickle=False)
            archive.comment = _metadata(config).encode()
    elif path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt", METADATA_KEY: _metadata(config)})


def _write_folder(tensors: Tensors, config: VitHfConfig, processor: dict[str, Any], target: str, folder: Path) -> None:
    if target == "timm" and (settings := timm.export_settings(config, processor)) is not None:
        (folder / "config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    _write_file(tensors, config, folder / f"model{SUFFIXES[target][0]}")


def _write_transformers(model: VitHfForImageClassification, processor: dict[str, Any], folder: Path) -> None:
    """Fill a stock model and let it save itself, in the spelling that its version writes."""
    config = model.config
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "qkv_bias",
             "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "image_size", "patch_size",
             "num_channels", "id2label", "label2id")  # fmt: skip
    shared = {name: getattr(config, name) for name in names}
    deit = config.num_register_tokens == 1
    stock: Any
    with torch.device("meta"):  # nothing is drawn: all tensors are replaced
        if config.distilled:
            stock = DeiTForImageClassificationWithTeacher(DeiTConfig(**shared))
        elif deit:
            stock = DeiTForImageClassification(DeiTConfig(**shared))
        else:
            stock = ViTForImageClassification(ViTConfig(**shared))
    base = stock.base_model_prefix
    heads = {"classifier": "cls_classifier"} if config.distilled else {}
    state: Tensors = {}
    for name, tensor in _to_theirs(model, "transformers").items():
        module, _, _ = name.partition(".")
        is_head = module in ("classifier", "distillation_classifier")
        state[name.replace(module, heads.get(module, module), 1) if is_head else f"{base}.{name}"] = tensor
    stock.to(next(iter(state.values())).dtype).load_state_dict(state, strict=True, assign=True)
    stock.save_pretrained(folder)
    if processor:
        kept = {name: processor[name] for name in PROCESSOR_FIELDS if name in processor}
        ViTImageProcessor(**kept, do_convert_rgb=True).save_pretrained(folder)


def write_model_folder(model: VitHfForImageClassification, folder: str | Path) -> Path:
    """Write a loaded model as a model folder: weights, config, code, image processor, receipt.

    Args:
        model: from `load_checkpoint`.
        folder: new folder.

    Raises:
        FileExistsError: something lies there.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give a new folder, or remove it")
    if not {"image_processor", "receipt"} <= set(vars(model)):
        raise TypeError("the model has no image_processor and receipt; expected one from load_checkpoint")

    def write(made: Path) -> None:
        model.save_pretrained(made)
        vars(model)["image_processor"].save_pretrained(made)
        vars(model)["receipt"].save(made)

    return _publish(folder, write)
