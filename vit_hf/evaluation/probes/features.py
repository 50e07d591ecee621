"""Frozen features: the vector of each picture that a classifier would see, computed once and kept on disk.

What the vector is:

- a classifier, or a bare encoder: the input of its classifier, after pooling ("cls", "gap", "map"), `fc_norm` and
  representation head. With that head it is what big_vision's few-shot evaluator calls `pre_logits`;
- a distilled classifier (DeiT): class token and distillation token side by side, for each has a classifier;
- a model for masked images, which has no pooling: the mean of the patch tokens after the last LayerNorm.

Shapes: B batch, N pictures of a split, W width of a feature (D, R with a representation head, 2*D when distilled).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch import nn
from torch.utils.data import DataLoader

from ... import __version__
from ...checkpoints.load import load_model, our_settings
from ...data.loading import build_evaluation_loader
from ...data.pictures import Split
from ...data.sources import fingerprint
from ...image_processing_vit_hf import VitHfImageProcessor
from ...masked_vit_hf import VitHfForMaskedImageModeling
from ...modeling_vit_hf import VitHfForImageClassification, VitHfModel
from ..scoring import gather_rows
from .cache import check_folder, default_folder, read_features, write_features

MASKED = "VitHfForMaskedImageModeling"
# Fields of the config that no feature depends on: the classes, and notes of transformers.
_NOT_OF_THE_ENCODER = (
    "id2label", "label2id", "num_labels", "architectures", "auto_map", "transformers_version", "_name_or_path", "dtype",
    "problem_type", "output_attentions", "output_hidden_states", "return_dict",
)  # fmt: skip


@dataclass(frozen=True)
class Features:
    """The features of a split, in its order, on the CPU."""

    vectors: np.ndarray
    """(N, W), float32."""
    labels: np.ndarray
    """(N,), int64, in the data's numbering."""


class FeatureEncoder(nn.Module):
    """From pixels to features; see the module's text for what they are."""

    def __init__(self, model: VitHfForImageClassification | VitHfForMaskedImageModeling):
        super().__init__()
        self.vit: VitHfModel = model.vit
        self.prefix = model.config.num_prefix_tokens
        self.kind = "input of the classifier"
        if isinstance(model, VitHfForMaskedImageModeling):
            self.kind = "mean of the patch tokens"
        elif model.distillation_classifier is not None:
            self.kind = "inputs of both classifiers"

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return features (B, W) in the encoder's dtype for pixels (B, C, H, W)."""
        alone = self.kind == "input of the classifier"
        outputs = self.vit(pixel_values, pooled_only=alone, return_dict=True)
        if alone:
            return outputs.pooler_output  # (B, D) or (B, R)
        if self.kind == "inputs of both classifiers":
            return torch.cat([outputs.pooler_output, outputs.last_hidden_state[:, 1]], dim=1)  # (B, 2*D)
        return outputs.last_hidden_state[:, self.prefix :].mean(dim=1)  # (B, D)


@dataclass(frozen=True)
class FrozenModel:
    """A model to take features of."""

    name: str
    encoder: FeatureEncoder
    processor: VitHfImageProcessor
    identity: dict[str, Any]
    """All that its features depend on, apart from the pictures; goes into JSON."""


def load_frozen(path_or_hub_id: str | Path) -> FrozenModel:
    """Load an encoder with its image processor.

    Args:
        path_or_hub_id: what `load_model` takes, and models for masked images.

    Raises:
        ValueError, OSError: as `load_model`.
    """
    model: VitHfForImageClassification | VitHfForMaskedImageModeling
    if (our_settings(path_or_hub_id) or {}).get("architectures") == [MASKED]:
        model = VitHfForMaskedImageModeling.from_pretrained(path_or_hub_id)
        processor = VitHfImageProcessor.from_pretrained(path_or_hub_id)
    else:
        model, processor = load_model(path_or_hub_id)
    return freeze(model, processor, name=str(path_or_hub_id))


def freeze(
    model: VitHfForImageClassification | VitHfForMaskedImageModeling, processor: VitHfImageProcessor, *, name: str
) -> FrozenModel:
    """Wrap a model that is already loaded; `name` is for people only."""
    encoder = FeatureEncoder(model).eval()
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_THE_ENCODER}
    identity = {
        "kind": encoder.kind,
        "weights": digest(encoder.vit),
        "config": config,
        "processor": processor.to_dict(),
        "version": __version__,
    }
    return FrozenModel(name=name, encoder=encoder, processor=processor, identity=identity)


def digest(module: nn.Module) -> str:
    """SHA-256 of all tensors of a module, by name, with dtype and shape."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return sha.hexdigest()


def split_features(
    frozen: FrozenModel,
    split: Split,
    accelerator: Accelerator,
    *,
    image_column: str,
    label_column: str,
    name: str,
    batch_size: int = 64,
    cache: Path | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Features | None:
    """Return the features of every picture of a split, from the cache, or computed over all processes and cached.

    Every process calls this. Looking into the cache and writing to it is the main process's part.

    Args:
        frozen: the model.
        split: a prepared split, its images undecoded and its labels a ClassLabel.
        accelerator: gathers the features; its mixed precision applies.
        image_column, label_column: of the split.
        name: of the split.
        batch_size: pictures a process takes at once.
        cache: folder of the cache; None for `default_folder()`.
        on_batch: called after each batch with the pictures done so far and N; never when the cache has them.

    Returns:
        The features; None on other than the main process.

    Raises:
        ValueError: a streamed split.
        OSError: the cache cannot be written.
        RuntimeError, FloatingPointError: as `gather_rows`.
    """
    if not isinstance(split, Dataset):
        raise ValueError(f"split {name} is streamed, and features are kept of whole splits; load it without streaming")
    columns = {"image_column": image_column, "label_column": label_column}
    folder = default_folder() if cache is None else Path(cache)
    about: dict[str, Any] = {}
    found = None
    if accelerator.is_main_process:
        check_folder(folder)
        data = {"split": name, "n": len(split), "fingerprint": fingerprint(split, **columns)}
        about = {**frozen.identity, "precision": accelerator.mixed_precision, "data": data}
        found = read_features(folder, about)
    if broadcast_object_list([found is not None])[0]:
        return None if found is None else Features(**found)
    loader = build_evaluation_loader(
        split,
        image_column=image_column,
        label_column=label_column,
        name=name,
        processor=frozen.processor,
        batch_size=batch_size,
        workers=0,
    )
    computed = _compute(frozen.encoder, loader, accelerator, total=len(split), on_batch=on_batch)
    if not accelerator.is_main_process:
        return None
    write_features(folder, about, vectors=computed.vectors, labels=computed.labels)
    return computed


def _compute(
    encoder: FeatureEncoder,
    loader: DataLoader,
    accelerator: Accelerator,
    *,
    total: int,
    on_batch: Callable[[int, int], None],
) -> Features:
    """Run the encoder over the batches of a split."""
    loader = accelerator.prepare(loader)
    encoder = encoder.to(accelerator.device)
    done = 0

    def forward(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return batch["labels"], encoder(batch["pixel_values"]).float()  # (B,), (B, W)

    def count(scored: int) -> None:
        nonlocal done
        done = min(done + scored, total)
        on_batch(done, total)

    labels, vectors = gather_rows(encoder, loader, accelerator, forward, num_samples=total, on_batch=count)
    return Features(vectors=vectors.numpy(), labels=labels.numpy())
