"""torchvision's names, of today and with the older `mlp.linear_1` (`torchvision/models/vision_transformer.py`).

The published files end in the beginning of their SHA-256, so weights, preprocessing and class names of those are known
for sure.
"""

from torchvision import models
from torchvision.models import WeightsEnum

from ..configuration_vit_hf import VitHfConfig
from .facts import Facts, count_indexed, need, rename, size_field
from .files import Checkpoint
from .links import EXACT, Link, Tensors, module
from .preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

OTHER_NAMES = ((r"\.mlp\.linear_1\.", ".mlp.0."), (r"\.mlp\.linear_2\.", ".mlp.3."))
LAYER = "encoder.layers.encoder_layer_"
WEIGHTS = ("ViT_B_16_Weights", "ViT_B_32_Weights", "ViT_L_16_Weights", "ViT_L_32_Weights", "ViT_H_14_Weights")


def recognises(names: set[str]) -> bool:
    """Whether the names are of this family."""
    return any(name.startswith("conv_proj.") for name in names) and any(name.startswith(LAYER) for name in names)


def canonical(checkpoint: Checkpoint) -> tuple[Tensors, dict[str, str], dict[str, str]]:
    """Bring the names to those of today; see `facts.rename`."""
    return rename(checkpoint, OTHER_NAMES)


def published(checkpoint: Checkpoint) -> WeightsEnum | None:
    """Return the published weights that a file is, by the SHA-256 in its address; None for any other."""
    for name in WEIGHTS:
        for weights in getattr(models, name):
            stem = weights.url.rsplit("-", 1)[-1].removesuffix(".pth")
            if any(record.sha256.startswith(stem) for record in checkpoint.files):
                return weights
    return None


def describe(tensors: Tensors, checkpoint: Checkpoint, facts: Facts) -> None:
    """Read the architecture off the tensors."""
    first = f"{LAYER}0.mlp.0.weight"
    need(
        tensors, "conv_proj.weight", "encoder.pos_embedding", first, origin=checkpoint.origin, kind="plain torchvision"
    )
    width, channels, patch_h, patch_w = tensors["conv_proj.weight"].shape
    layers, mlp = count_indexed(tensors, rf"{LAYER.replace('.', '[.]')}(\d+)\."), tensors[first].shape[0]
    facts.fixed("hidden_size", width)
    facts.fixed("num_channels", channels)
    facts.fixed("num_hidden_layers", layers)
    facts.fixed("intermediate_size", mlp)
    facts.fixed("patch_size", size_field(patch_h, patch_w))
    facts.fixed("pooling", "cls")
    stored = checkpoint.fields
    if heads := stored.get("num_attention_heads"):
        facts.said("num_attention_heads", heads, "the file's metadata")
    else:
        facts.heads(width=width, layers=layers, mlp=mlp)
    rows, known = tensors["encoder.pos_embedding"].shape[1], stored.get("image_size")
    facts.image_size(positions=rows, prefix=1, patch=(patch_h, patch_w), known=known)
    facts.said("hidden_act", "gelu", "torchvision's MLPBlock")
    facts.said("layer_norm_eps", stored.get("layer_norm_eps", 1e-6), "torchvision's default")
    method = stored.get("position_interpolation", "torchvision")
    facts.said("position_interpolation", method, "torchvision's interpolate_embeddings, or the file's metadata")
    pre_logits, head = tensors.get("heads.pre_logits.weight"), tensors.get("heads.head.weight")
    facts.fixed("representation_size", None if pre_logits is None else pre_logits.shape[0])
    weights = published(checkpoint)
    names = dict(enumerate(weights.meta["categories"])) if weights is not None else None
    facts.labels(None if head is None else head.shape[0], names)


def preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """Return that of the published weights; of any other file torchvision's reference evaluation at 224 px."""
    weights, how = published(checkpoint), "torchvision's reference evaluation, the file says nothing"
    crop_pct, resample = 224 / 256, "bilinear"
    if weights is not None:
        preset = weights.transforms()
        how, resample = f"{type(weights).__name__}.{weights.name}", preset.interpolation.value
        crop_pct = preset.crop_size[0] / preset.resize_size[0]
    return Preprocessing(how, IMAGENET_MEAN, IMAGENET_STD, resample=resample, crop_pct=crop_pct, crop_rounding="round")


def links(config: VitHfConfig, tensors: Tensors | None = None) -> list[Link]:
    """Return the name map of a model with this config."""
    embeddings = "vit.embeddings."
    table = [
        *module(f"{embeddings}patch_embeddings.projection", "conv_proj."),
        Link(f"{embeddings}cls_token", ("class_token",), EXACT),
        Link(f"{embeddings}position_embeddings", ("encoder.pos_embedding",), EXACT),
    ]
    for index in range(config.num_hidden_layers):
        ours, theirs = f"vit.layers.{index}.", f"{LAYER}{index}."
        attention = f"{theirs}self_attention."
        table += module(f"{ours}norm1", f"{theirs}ln_1.") + module(f"{ours}norm2", f"{theirs}ln_2.")
        table += module(f"{ours}attention.qkv", f"{attention}in_proj_")
        table += module(f"{ours}attention.output", f"{attention}out_proj.")
        table += module(f"{ours}mlp.fc1", f"{theirs}mlp.0.") + module(f"{ours}mlp.fc2", f"{theirs}mlp.3.")
    table += module("vit.norm", "encoder.ln.")
    if config.representation_size is not None:
        table += module("vit.pooler.pre_logits", "heads.pre_logits.")
    return table + module("classifier", "heads.head.")


def inexpressible(config: VitHfConfig) -> dict[str, str]:
    """Return the fields that torchvision's VisionTransformer cannot express, with what it would take."""
    wanted: dict[str, tuple[bool, str]] = {
        "image_size": (config.image_hw[0] == config.image_hw[1], "a square"),
        "patch_size": (config.patch_hw[0] == config.patch_hw[1], "a square"),
        "num_channels": (config.num_channels == 3, "3"),
        "hidden_act": (config.hidden_act == "gelu", "'gelu'"),
        "layer_norm_eps": (config.layer_norm_eps == 1e-6, "1e-6"),
        "qkv_bias": (config.qkv_bias, "biases"),
        "patch_bias": (config.patch_bias, "a bias"),
        "embedding_norm": (not config.embedding_norm, "none"),
        "pooling": (config.pooling == "cls", "'cls'"),
        "fc_norm": (not config.fc_norm, "the last LayerNorm before the pooling"),
        "distilled": (not config.distilled, "one classifier"),
        "num_register_tokens": (config.num_register_tokens == 0, "none"),
        "prefix_positions": (config.num_prefix_positions == 1, "a position for the class token"),
        "layer_scale_init": (config.layer_scale_init is None, "none"),
        "qk_norm": (not config.qk_norm, "none"),
        "resnet_stem_layers": (config.resnet_stem_layers is None, "none"),
    }
    return {name: remedy for name, (fits, remedy) in wanted.items() if not fits}
