"""The original libraries' models, loaded from a checkpoint: what ours is compared with.

google: the official flax code (`vit_jax`, `big_vision`) where it can be imported, else timm's own reader of .npz files.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..modeling_vit_hf import VitHfForImageClassification
from . import google, timm
from .files import Checkpoint
from .load import LIBRARIES
from .receipt import CheckpointError

FLAX_PACKAGES = {"official": "vit_jax", "big_vision": "big_vision"}


@dataclass
class Original:
    """The original model, loaded.

    Attributes:
        name: library, version and model.
        forward: pixels (B, C, H, W) -> tokens (B, N, D) or None, logits (B, L) or None.
        preprocess: PIL image -> pixels (C, H, W); None if there is none to compare with.
        without: why there is none.
    """

    name: str
    forward: Callable[[torch.Tensor], tuple[torch.Tensor | None, torch.Tensor | None]]
    preprocess: Callable[[Image.Image], torch.Tensor] | None = None
    without: str = "none comes with the file"


def _require(module: str, source: str) -> Any:
    if importlib.util.find_spec(module) is None:
        raise CheckpointError(f"the original of a {source} checkpoint needs {module}: pip install {module}")
    return importlib.import_module(module)


def _timm_original(checkpoint: Checkpoint, model: VitHfForImageClassification, revision: str | None) -> Original:
    peer = _require("timm", "timm")
    tensors, _, _ = timm.canonical(checkpoint)
    settings = checkpoint.settings if "architecture" in checkpoint.settings else None
    built = _build_timm(peer, settings, model, num_classes=0 if "head.weight" not in tensors else None)
    built.load_state_dict(tensors, strict=True)
    preprocess = None
    if settings and settings.get("pretrained_cfg"):
        data = importlib.import_module("timm.data")
        chosen = data.resolve_data_config({}, pretrained_cfg=settings["pretrained_cfg"])
        preprocess = data.create_transform(**chosen)
    name = settings["architecture"] if settings else type(built).__name__
    return Original(f"timm {peer.__version__}, {name}", _timm_forward(built), preprocess)


def _build_timm(peer: Any, settings: dict[str, Any] | None, model: VitHfForImageClassification, num_classes) -> Any:
    """Build timm's model from its config.json, or from what we read off the tensors."""
    settings = settings or timm.export_settings(model.config, {})
    if settings is None:
        raise CheckpointError(f"timm has no model with a stem of {model.config.resnet_stem_layers} blocks")
    arguments = dict(settings.get("model_args") or {})
    arguments["num_classes"] = settings.get("num_classes", 1000) if num_classes is None else num_classes
    return peer.create_model(settings["architecture"], pretrained=False, **arguments).eval()


def _timm_forward(built: Any) -> Callable:
    def forward(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        tokens = built.forward_features(pixels)
        return tokens, built.forward_head(tokens) if built.num_classes else None

    return forward


def _torchvision_original(checkpoint: Checkpoint, model: VitHfForImageClassification, revision: str | None) -> Original:
    import torchvision

    from .torchvision import published

    config, weights = model.config, published(checkpoint)
    built = torchvision.models.VisionTransformer(
        image_size=config.image_hw[0],
        patch_size=config.patch_hw[0],
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        hidden_dim=config.hidden_size,
        mlp_dim=config.intermediate_size,
        num_classes=model.classifier.out_features,
        representation_size=config.representation_size,
    )
    built.load_state_dict(dict(checkpoint.tensors), strict=True)  # it renames the older names itself
    seen: list[torch.Tensor] = []
    built.encoder.register_forward_hook(lambda module, args, output: seen.append(output))

    def forward(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = built.eval()(pixels)
        return seen.pop(), logits

    name = f"torchvision {torchvision.__version__}, " + (weights.name if weights else "VisionTransformer")
    return Original(name, forward, weights.transforms() if weights else None, "not one of the published files")


def _transformers_original(
    checkpoint: Checkpoint, model: VitHfForImageClassification, revision: str | None
) -> Original:
    import transformers

    settings, origin = checkpoint.settings, checkpoint.origin
    names = settings.get("architectures") or []
    if not names or not hasattr(transformers, names[0]):
        raise CheckpointError(f"{origin}: config.json names no class of transformers ({names}); give its folder")
    folder = Path(origin).parent if Path(origin).is_file() else origin
    pinned = {} if revision is None else {"revision": revision}
    built = getattr(transformers, names[0]).from_pretrained(folder, **pinned).eval().float()
    base = getattr(built, built.base_model_prefix, built)
    masking = settings.get("model_type") == "vit_mae"  # stock ViT-MAE always masks and shuffles; not here
    classifies = names[0].endswith(("ForImageClassification", "WithTeacher")) and "dinov2" not in base.config.model_type

    def forward(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        options: dict[str, Any] = {}
        if masking:
            base.config.mask_ratio = base.embeddings.config.mask_ratio = 0.0
            patches = base.embeddings.patch_embeddings.num_patches
            options["noise"] = torch.arange(patches, dtype=torch.float32).expand(len(pixels), -1)
        tokens = base(pixels, **options).last_hidden_state
        return tokens, built(pixels).logits if classifies else None

    preprocess = None
    if "preprocessor_config.json" in checkpoint.side:
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **pinned)

        def preprocess(picture: Image.Image) -> torch.Tensor:
            return processor(picture, return_tensors="pt")["pixel_values"][0]

    return Original(f"transformers {transformers.__version__}, {names[0]}", forward, preprocess)


def _google_original(checkpoint: Checkpoint, model: VitHfForImageClassification, revision: str | None) -> Original:
    tensors, _, _ = google.canonical(checkpoint)
    layout = google.layout_of(tensors)
    package = FLAX_PACKAGES[layout]
    if importlib.util.find_spec(package) and importlib.util.find_spec("flax"):
        tree = _tree(google.export_names(tensors, "big_vision"))  # Linen's names, which the modules ask for
        forward = _flax_official(model, tree) if layout == "official" else _flax_big_vision(model, tree)
        preprocess = _tensorflow_preprocess(model.config.image_hw)
        return Original(f"{package} on flax", forward, preprocess, "needs tensorflow: pip install tensorflow")
    peer = _require("timm", "google (or the official vit_jax and flax)")
    if model.config.representation_size is not None:
        raise CheckpointError(f"timm reads no representation head (pre_logits); install {package} and flax instead")
    built = _build_timm(peer, None, model, num_classes=None if "head/kernel" in tensors else 0)
    built.load_pretrained(str(Path(checkpoint.origin)))
    note = "GELU set to its tanh form" + (", timm's other epsilons in the stem" if layout == "official" else "")
    name = f"timm {peer.__version__}'s reader of .npz files ({note}); {package} and flax are not installed"
    return Original(name, _timm_forward(built), None, f"needs {package}, flax and tensorflow")


def _tree(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Nest names at their slashes, as flax has its parameters; GroupNorm's (1, 1, 1, C) become (C,)."""
    root: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, leaf = name.split("/")
        node = root
        for part in path:
            node = node.setdefault(part, {})
        array = tensor.float().numpy()
        node[leaf] = array.reshape(-1) if path and path[-1].startswith("gn") else array
    return root


def _flax_official(model: VitHfForImageClassification, tree: dict[str, Any]) -> Callable:
    models = importlib.import_module("vit_jax.models_vit")
    ml_collections = importlib.import_module("ml_collections")
    config = model.config
    kernel = [side // config.stem_stride for side in config.patch_hw]
    settings: dict[str, Any] = {}
    if config.resnet_stem_layers is not None:
        stem = {"num_layers": tuple(config.resnet_stem_layers), "width_factor": config.resnet_stem_width / 64}
        settings["resnet"] = ml_collections.ConfigDict(stem)
    has_head = "head" in tree
    network = models.VisionTransformer(
        num_classes=model.classifier.out_features if has_head else None,
        patches=ml_collections.ConfigDict({"size": tuple(kernel)}),
        transformer={
            "num_layers": config.num_hidden_layers,
            "num_heads": config.num_attention_heads,
            "mlp_dim": config.intermediate_size,
            "dropout_rate": 0.0,
            "attention_dropout_rate": 0.0,
        },
        hidden_size=config.hidden_size,
        classifier="token" if config.pooling == "cls" else "gap",
        representation_size=config.representation_size,
        **settings,
    )

    def forward(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        images = pixels.permute(0, 2, 3, 1).numpy()
        is_norm = lambda module, _: module.name == "encoder_norm"  # noqa: E731
        output, seen = network.apply({"params": tree}, images, train=False, capture_intermediates=is_norm)
        tokens = seen["intermediates"]["Transformer"]["encoder_norm"]["__call__"][0]
        return _to_torch(tokens), _to_torch(output) if has_head else None

    return forward


def _flax_big_vision(model: VitHfForImageClassification, tree: dict[str, Any]) -> Callable:
    models = importlib.import_module("big_vision.models.vit")
    config, has_head = model.config, "head" in tree
    network = models.Model(
        num_classes=model.classifier.out_features if has_head else None,
        patch_size=config.patch_hw,
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        mlp_dim=config.intermediate_size,
        num_heads=config.num_attention_heads,
        posemb="learn" if config.position_embedding == "learned" else "sincos2d",
        rep_size=config.representation_size or False,
        pool_type={"cls": "tok", "gap": "gap", "map": "map"}[config.pooling],
    )

    def forward(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output, seen = network.apply({"params": tree}, pixels.permute(0, 2, 3, 1).numpy())
        return _to_torch(seen["encoded"]), _to_torch(output) if has_head else None

    return forward


def _to_torch(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _tensorflow_preprocess(image_hw: tuple[int, int]) -> Callable[[Image.Image], torch.Tensor] | None:
    """Return the official evaluation's preprocessing (`vit_jax/input_pipeline.py`); None without TensorFlow."""
    if importlib.util.find_spec("tensorflow") is None:
        return None
    tensorflow = importlib.import_module("tensorflow")

    def preprocess(picture: Image.Image) -> torch.Tensor:
        resized = tensorflow.image.resize(np.asarray(picture), image_hw).numpy()
        return torch.from_numpy((resized - 127.5) / 127.5).permute(2, 0, 1)

    return preprocess


ORIGINALS: dict[str, Callable[[Checkpoint, VitHfForImageClassification, str | None], Original]] = {
    "google": _google_original,
    "timm": _timm_original,
    "torchvision": _torchvision_original,
    "transformers": _transformers_original,
}
assert ORIGINALS.keys() == LIBRARIES.keys()
