"""timm's names, and those of the research code that shares them: DeiT, MAE, DINO, DINOv2.

timm: `timm/models/vision_transformer.py`, `deit.py`, `vision_transformer_hybrid.py` (1.0.31). The research files differ
in wrappers, in a few names and in how positions are resized:

- DeiT, MAE (`{"model": ...}`): plain bicubic; MAE's decoder serves pre-training only and is dropped;
- DINO (`{"teacher": {"backbone....": ...}}`) and DINOv2: bicubic by a factor with an offset of 0.1; DINOv2 with
  registers: bicubic with antialias. Projection heads and mask tokens serve pre-training only and are dropped.
"""

from dataclasses import replace
from typing import Any

from ..configuration_vit_hf import VitHfConfig
from .facts import rename
from .files import Checkpoint
from .links import EXACT, Link, Tensors, module
from .preprocessing import IMAGENET, IMAGENET_MEAN, IMAGENET_STD, RESAMPLING, VIT, Preprocessing
from .timm_facts import STEM, describe, flavour

__all__ = ["canonical", "describe", "export_settings", "inexpressible", "links", "preprocessing", "recognises"]

OTHER_NAMES = (  # research code and older timm -> timm today
    (r"^(backbone|encoder_q)\.", ""),
    (r"^register_tokens$", "reg_token"),
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 keeps its blocks in chunks
    (r"\.gamma_([12])$", r".ls\1.gamma"),  # DeiT III
    (r"\.mlp\.w12\.", ".mlp.fc1."),  # DINOv2's SwiGLU
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^pre_logits\.fc\.", "pre_logits."),
)
PRETRAINING_ONLY = (
    (r"^decoder_|^decoder\.", "decoder"),
    (r"^mask_token$", "mask token"),
    (r"^beside\.|^(dino_head|ibot_head)\.|^head\.(mlp2?|last_layer2?)\.", "projection head"),
)
BESIDE_A_BACKBONE = (r"^(head|projector|predictor)\.", r"beside.\1.")
HYBRIDS = {  # stages of the stem: a registered name with that stem
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


def recognises(names: set[str]) -> bool:
    """Whether the names are of this family."""
    found = {name.removeprefix("backbone.") for name in names}
    return "patch_embed.proj.weight" in found and any(name.startswith("blocks.") for name in found)


def canonical(checkpoint: Checkpoint) -> tuple[Tensors, dict[str, str], dict[str, str]]:
    """Bring the names to timm's of today; see `facts.rename`."""
    in_backbone = any(name.startswith("backbone.") for name in checkpoint.tensors)
    return rename(checkpoint, (BESIDE_A_BACKBONE, *OTHER_NAMES) if in_backbone else OTHER_NAMES, PRETRAINING_ONLY)


def preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """Return what pretrained_cfg says; without it that of the research code, or of the ViT paper."""
    cfg = checkpoint.settings.get("pretrained_cfg")
    if not cfg:
        how = flavour(checkpoint)
        return {"timm": VIT, "dino or timm": replace(IMAGENET, how="DINO's, whose files are like this")}.get(
            how, IMAGENET
        )
    said, resample, mode = "pretrained_cfg of config.json", cfg.get("interpolation") or "bicubic", cfg.get("crop_mode")
    if resample not in RESAMPLING:
        said, resample = f"{said} (its interpolation {resample!r} replaced by bicubic)", "bicubic"
    if mode == "border":
        said = f"{said} (its crop_mode 'border' replaced by 'squash': both edges resized, nothing cut off or added)"
    return Preprocessing(
        said,
        mean=tuple(cfg.get("mean") or IMAGENET_MEAN),
        std=tuple(cfg.get("std") or IMAGENET_STD),
        resample=resample,
        crop_pct=cfg.get("crop_pct") or 0.875,
        keep_aspect=mode not in ("squash", "border"),
        crop_rounding="round",
    )


def links(config: VitHfConfig, tensors: Tensors | None = None) -> list[Link]:
    """Return the name map of a model with this config."""
    embeddings = "vit.embeddings."
    table = _stem_links(config)
    table += module(f"{embeddings}patch_embeddings.projection", "patch_embed.proj.", bias=config.patch_bias)
    if config.has_cls_token:
        table.append(Link(f"{embeddings}cls_token", ("cls_token",), EXACT))
    if config.num_register_tokens:
        theirs = "dist_token" if config.distilled else "reg_token"
        table.append(Link(f"{embeddings}register_tokens", (theirs,), EXACT))
    table.append(Link(f"{embeddings}position_embeddings", ("pos_embed",), EXACT))
    if config.embedding_norm:
        table += module(f"{embeddings}norm", "norm_pre.")
    for index in range(config.num_hidden_layers):
        ours, theirs = f"vit.layers.{index}.", f"blocks.{index}."
        table += module(f"{ours}norm1", f"{theirs}norm1.") + module(f"{ours}norm2", f"{theirs}norm2.")
        table += module(f"{ours}attention.qkv", f"{theirs}attn.qkv.", bias=config.qkv_bias)
        table += module(f"{ours}attention.output", f"{theirs}attn.proj.")
        if config.qk_norm:
            for norm in ("q_norm", "k_norm"):
                table += module(f"{ours}attention.{norm}", f"{theirs}attn.{norm}.")
        if config.layer_scale_init is not None:
            for number in (1, 2):
                table.append(Link(f"{ours}scale{number}.scale", (f"{theirs}ls{number}.gamma",), EXACT))
        table += module(f"{ours}mlp.fc1", f"{theirs}mlp.fc1.") + module(f"{ours}mlp.fc2", f"{theirs}mlp.fc2.")
    table += module("vit.pooler.norm", "fc_norm.") if config.fc_norm else module("vit.norm", "norm.")
    if config.pooling == "map":
        ours = "vit.pooler.attention_pooling."
        table.append(Link(f"{ours}probe", ("attn_pool.latent",), EXACT))
        parts = (("query", "q"), ("key_value", "kv"), ("output", "proj"), ("norm", "norm"))
        for part, theirs in (*parts, ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            table += module(ours + part, f"attn_pool.{theirs}.")
    if config.representation_size is not None:
        table += module("vit.pooler.pre_logits", "pre_logits.")
    table += module("classifier", "head.")
    return table + (module("distillation_classifier", "head_dist.") if config.distilled else [])


def _stem_links(config: VitHfConfig) -> list[Link]:
    if config.resnet_stem_layers is None:
        return []
    ours, root = "vit.embeddings.patch_embeddings.stem.", "stem." if config.resnet_stem_layers else ""
    table = module(f"{ours}root_conv", f"{STEM}{root}conv.", bias=False)
    table += module(f"{ours}root_norm", f"{STEM}{root}norm.")
    for stage, count in enumerate(config.resnet_stem_layers):
        for unit in range(count):
            mine, theirs = f"{ours}stages.{stage}.{unit}.", f"{STEM}stages.{stage}.blocks.{unit}."
            for number in (1, 2, 3):
                table += module(f"{mine}conv{number}", f"{theirs}conv{number}.", bias=False)
                table += module(f"{mine}norm{number}", f"{theirs}norm{number}.")
            if unit == 0:
                table += module(f"{mine}conv_proj", f"{theirs}downsample.conv.", bias=False)
                table += module(f"{mine}norm_proj", f"{theirs}downsample.norm.")
    return table


def inexpressible(config: VitHfConfig) -> dict[str, str]:
    """Return the fields that timm's VisionTransformer cannot express, with what it would take."""
    eps = 1e-5 if config.embedding_norm else 1e-6
    all_or_none = config.num_register_tokens == 0 or config.prefix_positions in ("all", "none")
    wanted: dict[str, tuple[bool, str]] = {
        "layer_norm_eps": (config.layer_norm_eps == eps, f"{eps:g}"),
        "patch_bias": (config.patch_bias != config.embedding_norm, "a bias exactly where there is no embedding_norm"),
        "representation_size": (config.representation_size is None, "none"),
        "prefix_positions": (all_or_none, "'all' or 'none' where there are registers"),
        "resnet_stem_style": (config.resnet_stem_layers is None or config.resnet_stem_style == "timm", "'timm'"),
    }
    if config.distilled:
        wanted["num_register_tokens"] = (config.num_register_tokens == 1, "1, the distillation token")
        wanted["prefix_positions"] = (config.prefix_positions == "all", "'all'")
    return {name: remedy for name, (fits, remedy) in wanted.items() if not fits}


def _base_architecture(config: VitHfConfig) -> str | None:
    """Return a registered name of timm from which arguments lead to the model; None for unregistered hybrids."""
    if config.resnet_stem_layers is not None:
        return HYBRIDS.get(tuple(config.resnet_stem_layers)) if config.resnet_stem_width == 64 else None
    if config.distilled:
        return "deit_base_distilled_patch16_224"
    if config.hidden_act == "swiglu":
        return "vit_giant_patch14_dinov2"
    return "vit_base_patch16_clip_224" if config.embedding_norm else "vit_base_patch16_224"


def _mlp_ratio(config: VitHfConfig) -> float:
    """Return the ratio from which timm's int(width * ratio) gives the MLP's first width."""
    wanted = config.intermediate_size * (2 if config.hidden_act == "swiglu" else 1)
    exact = wanted / config.hidden_size
    return exact if int(config.hidden_size * exact) == wanted else (wanted + 0.5) / config.hidden_size


def export_settings(config: VitHfConfig, processor: dict[str, Any]) -> dict[str, Any] | None:
    """Return a config.json with which `timm.create_model("local-dir:FOLDER")` builds the model.

    None for hybrids that timm has not registered: it can build them in code only.
    """
    architecture = _base_architecture(config)
    if architecture is None:
        return None
    size = processor.get("size", {})
    crop = processor.get("crop_size") or {"height": config.image_hw[0], "width": config.image_hw[1]}
    edge = size.get("shortest_edge") or size.get("height") or crop["height"]
    names = {value.value: name for name, value in RESAMPLING.items()}
    patch = [side // config.stem_stride for side in config.patch_hw]
    labels = list((config.id2label or {}).values())
    arguments = {
        "img_size": list(config.image_hw),
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "in_chans": config.num_channels,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": _mlp_ratio(config),
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "init_values": config.layer_scale_init,
        "class_token": config.has_cls_token,
        "no_embed_class": config.num_prefix_positions == 0,
        "reg_tokens": 0 if config.distilled else config.num_register_tokens,
        "pre_norm": config.embedding_norm,
        "fc_norm": config.fc_norm,
        "global_pool": {"cls": "token", "gap": "avg", "map": "map"}[config.pooling],
        "act_layer": {"gelu_pytorch_tanh": "gelu_tanh", "swiglu": "silu"}.get(config.hidden_act, config.hidden_act),
    }
    return {
        "architecture": architecture,
        "num_classes": config.num_labels,
        "num_features": config.hidden_size,
        "global_pool": arguments["global_pool"],
        "label_names": labels,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "",
            "custom_load": False,
            "input_size": [config.num_channels, *config.image_hw],
            "fixed_input_size": True,
            "interpolation": names.get(int(processor.get("resample", 2)), "bilinear"),
            "crop_pct": crop["height"] / (edge + 1e-6),  # timm cuts size / crop_pct off: never below the edge
            "crop_mode": "center" if "shortest_edge" in size else "squash",
            "mean": list(processor.get("image_mean", VIT.mean)),
            "std": list(processor.get("image_std", VIT.std)),
            "num_classes": config.num_labels,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": ["head", "head_dist"] if config.distilled else "head",
        },
    }
