"""What a timm or research checkpoint is: read off its tensors, its config.json and the conventions of its code.

Some of timm's models have the tensors of a plain ViT and compute something else: they are refused where a config.json
names them. Without one the receipt says what was taken for granted.
"""

import re
from typing import Any

from torchvision.models import ViT_B_16_Weights

from ..configuration_vit_hf import as_pair
from .facts import Facts, count_indexed, need, size_field
from .files import Checkpoint
from .links import Tensors
from .receipt import CheckpointError, Fact

STEM = "patch_embed.backbone."
# Architectures whose activation differs from timm's default, GELU in its erf form.
GELU_TANH = re.compile(r"(patch32|giantopt_patch16|so400m_patch16)_siglip|large_patch16_siglip(_gap)?_512")
# Without a side file: (width, layers, MLP width, patch) for which timm has attention-pooled or averaged models of both
# GELU forms, or of the tanh form alone; at (1024, ...) only those of 1,024 patches.
TANH_SIZES = {(768, 12, 3072, 32), (1024, 24, 4096, 16), (1152, 27, 4304, 16), (1536, 40, 6144, 16)}
ACTIVATIONS = {  # timm's name: ours
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "silu": "swiglu",
    "swish": "swiglu",
}
POOLINGS = {"token": "cls", "avg": "gap", "map": "map"}
PUBLISHED = {  # heads that the sizes do not tell, by the beginning of the architecture's name
    "vit_base_patch16_gap_224": 16,
    "vit_giantopt": 16,
    "test_vit": 2,
}
UNLIKE = {  # architectures with the tensors of a plain ViT that compute something else
    r"_rpn_": "normalises after each branch instead of before it",
    r"_rope_|^vit_pe_|dinov3": "has rotary positions",
    r"^test_vit3$": "pools over the registers too",
}


def flavour(checkpoint: Checkpoint) -> str:
    """Return whose conventions hold: "timm", "deit" (MAE too), "dino", "dinov2" or "dinov2 with registers".

    "dino or timm": a torch file of a plain ViT without a head, as DINO publishes them, and as timm saves them too.
    """
    names = checkpoint.tensors
    if "architecture" in checkpoint.settings or checkpoint.fields:
        return "timm"
    if any(name.endswith("mask_token") for name in names) and any(name.endswith("ls1.gamma") for name in names):
        return "dinov2 with registers" if any("register_tokens" in name for name in names) else "dinov2"
    if checkpoint.wrapper in ("teacher", "student") or any(name.startswith("backbone.") for name in names):
        return "dino"
    if checkpoint.wrapper == "model" or "decoder_pos_embed" in names:
        return "deit"
    torch_file = bool(checkpoint.files) and not checkpoint.files[0].name.endswith(".safetensors")
    plain = all(re.match(r"(cls_token|pos_embed|patch_embed\.proj\.|norm\.|blocks\.)", name) for name in names)
    scaled = any(re.search(r"ls\d\.gamma|gamma_\d|q_norm", name) for name in names)
    dino = torch_file and plain and not scaled and checkpoint.wrapper is None and "norm.weight" in names
    return "dino or timm" if dino and "cls_token" in names else "timm"


def describe(tensors: Tensors, checkpoint: Checkpoint, facts: Facts) -> None:
    """Read the architecture off the tensors, config.json and the conventions of the code that wrote them."""
    _refuse_unlike(checkpoint)
    need(tensors, "patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight",
         "blocks.0.mlp.fc2.weight", origin=checkpoint.origin, kind="timm")  # fmt: skip
    width, channels, patch_h, patch_w = tensors["patch_embed.proj.weight"].shape
    layers, mlp = count_indexed(tensors, r"blocks\.(\d+)\."), tensors["blocks.0.mlp.fc2.weight"].shape[1]
    facts.fixed("hidden_size", width)
    facts.fixed("num_hidden_layers", layers)
    facts.fixed("intermediate_size", mlp)
    facts.fixed("qkv_bias", "blocks.0.attn.qkv.bias" in tensors)
    facts.fixed("patch_bias", "patch_embed.proj.bias" in tensors)
    facts.fixed("embedding_norm", "norm_pre.weight" in tensors)
    facts.fixed("qk_norm", "blocks.0.attn.q_norm.weight" in tensors)
    if "blocks.0.ls1.gamma" in tensors:
        how = "only what a model from scratch would start from"
        facts.said("layer_scale_init", checkpoint.fields.get("layer_scale_init", 1e-5), how)
    stride = 1
    if any(name.startswith(STEM) for name in tensors):
        stride = _describe_stem(tensors, checkpoint, facts)
    else:
        facts.fixed("num_channels", channels)
    patch = (patch_h * stride, patch_w * stride)
    facts.fixed("patch_size", size_field(*patch))
    settings = checkpoint.settings
    _describe_block(tensors, checkpoint, facts, (width, layers, mlp), patch)
    _describe_tokens(tensors, checkpoint, facts, patch)
    _describe_resizing(checkpoint, facts)
    if not settings:
        _note_unlike(tensors, checkpoint, facts)
    pre_logits, head = tensors.get("pre_logits.weight"), tensors.get("head.weight")
    facts.fixed("representation_size", None if pre_logits is None else pre_logits.shape[0])
    count = None if head is None else head.shape[0]
    facts.labels(count, _label_names(settings, count, facts))


def _label_names(settings: dict[str, Any], count: int | None, facts: Facts) -> dict[int, str] | None:
    """Return the names of the classes from config.json: its own, or ImageNet's where its tag says ImageNet-1k."""
    cfg = settings.get("pretrained_cfg") or {}
    names = settings.get("label_names") or cfg.get("label_names")
    tag = str(cfg.get("tag", ""))
    if not names and count == 1000 and tag.endswith("in1k"):
        names = ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"]
        facts.notes.append(Fact("id2label", "ImageNet-1k", f"the tag {tag}; names as torchvision lists them"))
    return dict(enumerate(map(str, names))) if isinstance(names, list) else None


def _refuse_unlike(checkpoint: Checkpoint) -> None:
    """Raise for what config.json tells and the tensors would not show."""
    arch, arguments = _architecture(checkpoint)
    problems = [f"{arch} {why}" for pattern, why in UNLIKE.items() if re.search(pattern, arch)]
    if arguments.get("pool_include_prefix"):
        problems.append("pool_include_prefix is set: it pools over class token and registers too")
    if arguments.get("norm_layer", "layernorm") != "layernorm":
        problems.append(f"norm_layer is {arguments['norm_layer']!r}; expected layernorm")
    if problems:
        raise CheckpointError(
            f"{checkpoint.origin}: {'; '.join(problems)}, which the model cannot express; give another checkpoint"
        )


def _note_unlike(tensors: Tensors, checkpoint: Checkpoint, facts: Facts) -> None:
    """Say what is taken for granted where models of timm that compute something else have the same tensors."""
    fields, tokens = facts.fields, ("cls_token", "dist_token", "reg_token")
    if fields["fc_norm"] and not fields["qkv_bias"] and not any(name in tensors for name in tokens):
        facts.notes.append(Fact("blocks", "normalise first", "those of timm's rpn models have the same tensors"))
    if any(re.search(r"\.gamma_1$", name) for name in checkpoint.tensors):
        facts.notes.append(Fact("rotary positions", "none", "timm's rope_ape models have the tensors of DeiT III"))
    if "attn_pool.latent" in tensors and ("cls_token" in tensors or "reg_token" in tensors):
        facts.notes.append(Fact("attention pooling", "patch tokens", "timm's default for pool_include_prefix"))


def _describe_resizing(checkpoint: Checkpoint, facts: Facts) -> None:
    """How positions are resized: the way of the code that wrote the file."""
    how, (arch, _) = flavour(checkpoint), _architecture(checkpoint)
    resized = any(
        name in facts.fields and as_pair(facts.given[name]) != as_pair(facts.fields[name])
        for name in ("image_size", "patch_size")
        if facts.given.get(name) is not None
    )
    if how == "dino or timm" and resized:
        facts.ask("position_interpolation", "the file may be DINO's ('dino') or timm's ('timm')")
        return
    method = {"timm": "timm", "deit": "transformers", "dinov2 with registers": "timm"}.get(how, "dino")
    code = f"as in the code of {how}"
    if re.match(r"flexivit|.*radio", arch):
        code = f"nearest to the code of {arch}, which is bilinear without antialias"
    facts.said("position_interpolation", checkpoint.fields.get("position_interpolation", method), code)


def _describe_stem(tensors: Tensors, checkpoint: Checkpoint, facts: Facts) -> int:
    """Read the ResNetV2 stem; returns its stride, in pixels."""
    stages = count_indexed(tensors, rf"{STEM}stages\.(\d+)\.")
    root = tensors.get(f"{STEM}stem.conv.weight", tensors.get(f"{STEM}conv.weight"))
    if root is None:
        found = sorted(name for name in tensors if name.startswith(STEM))
        raise CheckpointError(
            f"{checkpoint.origin} has another network before its patches ({', '.join(found[:3])}, ...); expected the "
            "ResNetV2 of the ViT paper, whose tensors are patch_embed.backbone.stem.conv.weight and so on"
        )
    units = [count_indexed(tensors, rf"{STEM}stages\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)]
    facts.fixed("resnet_stem_layers", units)
    facts.fixed("resnet_stem_width", root.shape[0])
    facts.fixed("num_channels", root.shape[1])
    facts.said("resnet_stem_style", "timm", "timm: variance + 1e-8, GroupNorm eps 1e-5")
    return 4 * 2 ** max(stages - 1, 0)


def _describe_block(
    tensors: Tensors, checkpoint: Checkpoint, facts: Facts, sizes: tuple[int, int, int], patch: tuple[int, int]
) -> None:
    """Heads, activation and eps, which the tensors only hint at; sizes: width, layers and MLP width."""
    arch, arguments = _architecture(checkpoint)
    stored = {**arguments, **checkpoint.fields}
    known = next((heads for name, heads in PUBLISHED.items() if arch.startswith(name)), None)
    if (q_norm := tensors.get("blocks.0.attn.q_norm.weight")) is not None:
        facts.fixed("num_attention_heads", sizes[0] // q_norm.shape[0])
    elif heads := stored.get("num_attention_heads", stored.get("num_heads", known)):
        facts.said("num_attention_heads", heads, "side file" if arch else "the file's metadata")
    elif not arch and sizes == (768, 12, 3072) and "cls_token" not in tensors:
        facts.ask("num_attention_heads", "models of this size without a class token have 12 (SigLIP) or 16 (I-JEPA)")
    else:
        facts.heads(width=sizes[0], layers=sizes[1], mlp=sizes[2])
    told = stored.get("hidden_act", stored.get("act_layer"))
    act = None if told is None else ACTIVATIONS.get(str(told), str(told))
    gated, clip = tensors["blocks.0.mlp.fc1.weight"].shape[0] == 2 * sizes[2], "norm_pre.weight" in tensors
    if act is not None and (act not in ACTIVATIONS.values() or gated != (act == "swiglu")):
        raise CheckpointError(
            f"{checkpoint.origin}: the activation is {act!r}{' in a gated MLP' if gated else ''}; expected "
            f"{'silu' if gated else 'gelu, gelu_tanh or quick_gelu'}"
        )
    if gated:
        facts.fixed("hidden_act", "swiglu")
    elif act:
        facts.said("hidden_act", act, "side file or metadata")
    elif "quickgelu" in arch:
        facts.said("hidden_act", "quick_gelu", f"the code of {arch}")
    elif GELU_TANH.search(arch):
        facts.said("hidden_act", "gelu_pytorch_tanh", f"the code of {arch}")
    elif clip and not arch:
        facts.ask("hidden_act", "with norm_pre it is 'gelu' or, from OpenAI, 'quick_gelu'")
    elif not arch and _may_be_siglip(tensors, sizes, patch):
        facts.ask("hidden_act", "SigLIP's models of this size have 'gelu_pytorch_tanh', others 'gelu'")
    else:
        facts.said("hidden_act", "gelu", f"timm's default{', no side file' if not arch else ''}")
    if clip and not arch and "layer_norm_eps" not in stored:
        facts.ask("layer_norm_eps", "with norm_pre it is 1e-5 in CLIP's models, 1e-6 in timm's default")
    else:
        eps = stored.get("layer_norm_eps", 1e-5 if clip and "norm_layer" not in arguments else 1e-6)
        facts.said("layer_norm_eps", eps, "metadata" if "layer_norm_eps" in stored else "timm's code")


def _describe_tokens(tensors: Tensors, checkpoint: Checkpoint, facts: Facts, patch: tuple[int, int]) -> None:
    """Class token, registers, positions and pooling."""
    has_cls, registers = "cls_token" in tensors, tensors.get("reg_token", tensors.get("dist_token"))
    extra = 0 if registers is None else registers.shape[1]
    _, arguments = _architecture(checkpoint)
    pool = arguments.get("global_pool", checkpoint.settings.get("global_pool"))
    if pool and pool not in POOLINGS:
        raise CheckpointError(f"{checkpoint.origin}: global_pool is {pool!r}; expected one of {', '.join(POOLINGS)}")
    pool = checkpoint.fields.get("pooling", POOLINGS.get(pool or ""))
    fc_norm = "fc_norm.weight" in tensors
    if "attn_pool.latent" in tensors:
        facts.fixed("pooling", "map")
    elif not has_cls:
        facts.fixed("pooling", "gap")
        facts.notes.append(Fact("pooling", "gap", "no class token, and no attention pooling"))
    elif pool in ("cls", "gap"):
        facts.said("pooling", pool, "side file or metadata")
    else:
        how = "fc_norm comes with mean pooling" if fc_norm else "a class token, and no fc_norm"
        facts.said("pooling", "gap" if fc_norm else "cls", how)
    if has_cls != (facts.fields["pooling"] == "cls"):
        facts.fixed("class_token", has_cls)
    facts.fixed("fc_norm", fc_norm)
    facts.fixed("num_register_tokens", extra)
    facts.fixed("distilled", "dist_token" in tensors)
    rows = tensors["pos_embed"].shape[1]
    known = checkpoint.settings.get("pretrained_cfg", {}).get("input_size")
    known = arguments.get("img_size", checkpoint.fields.get("image_size", known[1:] if known else None))
    sizes = [size for size in (known,) if size is not None] or [None, facts.given.get("image_size")]
    choices = {"cls": int(has_cls), "none": 0, "all": int(has_cls) + extra}
    if extra == 0:  # "cls" and "all" are then the same
        choices.pop("all")
    if not has_cls:
        choices.pop("cls" if extra else "none", None)
    stored = facts.given.get("prefix_positions", checkpoint.fields.get("prefix_positions"))
    fitting = [name for name, prefix in choices.items() if any(_fits(rows - prefix, patch, size) for size in sizes)]
    if stored is None and len(fitting) > 1:
        facts.ask("prefix_positions", f"{rows} positions leave open which tokens have one: {' or '.join(fitting)}")
        return
    chosen = stored or (fitting[0] if fitting else "cls" if "cls" in choices else next(iter(choices)))
    facts.fixed("prefix_positions", chosen)
    prefix = {"cls": int(has_cls), "none": 0, "all": int(has_cls) + extra}.get(chosen, 0)
    facts.image_size(positions=rows, prefix=prefix, patch=patch, known=known)


def _may_be_siglip(tensors: Tensors, sizes: tuple[int, int, int], patch: tuple[int, int]) -> bool:
    """Whether a model of these sizes may be one of SigLIP's with the tanh form of GELU."""
    positions = tensors["pos_embed"].shape[1]
    if (*sizes, patch[0]) not in TANH_SIZES or patch[0] != patch[1] or (sizes[0] == 1024 and positions != 1024):
        return False
    return "cls_token" not in tensors and "reg_token" not in tensors and "norm.weight" in tensors


def _fits(cells: int, patch: tuple[int, int], known: Any) -> bool:
    """Whether that many patch positions make the known image, or a square when None."""
    if known is None:
        return cells > 0 and round(cells**0.5) ** 2 == cells
    height, width = as_pair(known)
    return (height // patch[0]) * (width // patch[1]) == cells


def _architecture(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]]:
    """Return timm's architecture name and arguments from config.json, "" and {} without it."""
    arguments = checkpoint.settings.get("model_args") or {}
    return str(checkpoint.settings.get("architecture", "")), arguments if isinstance(arguments, dict) else {}
