"""The receipt of a classifier that starts from weights of this package, read off the tensors themselves."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from ..files_vit_hf import find_weights, readable
from ..modeling_vit_hf import VitHfForImageClassification
from .files import record
from .links import EXACT
from .receipt import Receipt, TensorEntry

RESAMPLED = {
    "vit.embeddings.position_embeddings": "positions, to the new patch grid",
    "vit.embeddings.patch_embeddings.projection.weight": "patch kernel, to the new patch size",
}
_LEFT_OUT = {
    "decoder.": "decoder of the model for masked images",
    "vit.embeddings.mask_token": "mask token of the model for masked images",
    "vit.norm.": "last norm, which stands behind the pooling now",
    "vit.pooler.": "pooling that was replaced",
    "classifier.": "classifier that was replaced",
    "distillation_classifier.": "classifier that was replaced",
}


def own_receipt(path_or_hub_id: str | Path, model: VitHfForImageClassification) -> Receipt:
    """Compare a model that was just loaded with the safetensors files it was loaded from.

    Args:
        path_or_hub_id: model folder or Hub id of this package.
        model: loaded from it, at whatever size and with whatever classes.
    """
    with readable(path_or_hub_id):
        files = [Path(place) for place in find_weights(path_or_hub_id, None, {}, safe=True).values()]
    path = Path(path_or_hub_id)
    origin = path.resolve().name if path.exists() else str(path_or_hub_id)
    receipt = Receipt("vit_hf", origin, [record(file) for file in files])
    ours, seen = model.state_dict(), set()
    for file in files:
        if file.suffix != ".safetensors":  # the index of several
            continue
        with safe_open(file, "pt") as stored:
            for name in stored.keys():  # noqa: SIM118, no mapping
                tensor = stored.get_tensor(name)
                target = name if name in ours else f"vit.{name}"  # a bare encoder has no prefix
                receipt.tensors.append(_entry(name, tensor, target, ours.get(target)))
                seen.add(target)
    for name in ours:
        if name not in seen:
            receipt.tensors.append(_new(name, ours[name]))
    return receipt


def note_changes(receipt: Receipt, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> None:
    """Enter into a receipt what became of the tensors of its model since: replaced, new, or gone.

    Args:
        receipt: of the load, changed in place.
        before: tensors by name, as they were loaded.
        after: as they are now.
    """
    entries = {entry.model: entry for entry in receipt.tensors if entry.model is not None}
    for name, tensor in after.items():
        old = before.get(name)
        if old is None or old.shape != tensor.shape or not torch.equal(old, tensor):
            found = entries.pop(name, None)
            if found is not None:
                receipt.tensors.remove(found)
            receipt.tensors.append(_new(name, tensor, found))
    for name in before:
        if name not in after and (found := entries.get(name)) is not None:
            receipt.tensors.remove(found)
            if found.file:  # else nobody misses it
                receipt.tensors.append(TensorEntry("dropped", None, None, found.file, found.file_shapes, _why(name)))


def _entry(name: str, tensor: torch.Tensor, target: str, ours: torch.Tensor | None) -> TensorEntry:
    shape = tuple(tensor.shape)
    if ours is None:
        plain = name if name.startswith(tuple(_LEFT_OUT)) else f"vit.{name}"
        return TensorEntry("dropped", None, None, (name,), (shape,), _why(plain))
    if shape == tuple(ours.shape) and torch.equal(ours.to(tensor.dtype).cpu(), tensor):
        return TensorEntry("exact", target, shape, (name,), (shape,), EXACT.rule)
    if target in RESAMPLED:
        return TensorEntry("resampled", target, tuple(ours.shape), (name,), (shape,), RESAMPLED[target])
    return _new(target, ours, TensorEntry("dropped", None, None, (name,), (shape,), ""))


def _new(name: str, tensor: torch.Tensor, found: TensorEntry | None = None) -> TensorEntry:
    """Return the entry of a tensor that the file did not give."""
    what = "as in a new model" if tensor.any() else "zeros"
    if name.startswith(("classifier.", "distillation_classifier.")):
        rule = f"new classifier of {tensor.shape[0]:,} classes: {what}"
    else:
        part = {"pooler": "pooling", "norm": "last norm"}.get(name.split(".")[1], "not in the file")
        rule = f"{part}: {what}"
    if found is None:
        return TensorEntry("re-initialised", name, tuple(tensor.shape), (), (), rule)
    return TensorEntry("re-initialised", name, tuple(tensor.shape), found.file, found.file_shapes, rule)


def _why(name: str) -> str:
    return next((rule for start, rule in _LEFT_OUT.items() if name.startswith(start)), "not a part of this model")
