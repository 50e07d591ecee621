"""transformers' own ViTs in all spellings of their names: 4.x and the disk of 5.x, and the memory of 5.x.

ViT, DeiT, the encoder of ViT-MAE and ViT-MSN, DINOv2 with and without registers (`transformers/models/*/modeling_*.py`,
5.23). config.json beside the weights tells what the tensors do not.
"""

import re
from typing import Any

from transformers import BitImageProcessor, DeiTImageProcessor, ViTImageProcessor

from ..configuration_vit_hf import ACTIVATIONS, VitHfConfig, as_pair
from .facts import Facts, count_indexed, need, rename, size_field
from .files import Checkpoint
from .links import EXACT, QKV, Link, Tensors, joined, module
from .preprocessing import RESAMPLING, VIT, Preprocessing
from .receipt import CheckpointError

MODEL_TYPES = ("vit", "deit", "vit_mae", "vit_msn", "dinov2", "dinov2_with_registers")
OTHER_NAMES = (  # 4.x and the disk of 5.x -> the memory of 5.x without the base model's prefix
    (r"^(vit|deit|dinov2|dinov2_with_registers)\.", ""),
    (r"^encoder\.layers?\.", "layers."),
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^(layers\.\d+)\.norm1\.", r"\1.layernorm_before."),
    (r"^(layers\.\d+)\.norm2\.", r"\1.layernorm_after."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.(weights_out|down_proj)\.", ".mlp.fc2."),
    (r"^cls_classifier\.", "classifier."),
)
SAME_ACTIVATIONS = {"gelu_new": "gelu_pytorch_tanh", "gelu_fast": "gelu_pytorch_tanh", "gelu_python": "gelu"}
EPS = {"vit_msn": 1e-6, "dinov2": 1e-6, "dinov2_with_registers": 1e-6}  # defaults of the configs, 1e-12 elsewhere
PROCESSORS: dict[str, Any] = {"ViT": ViTImageProcessor, "DeiT": DeiTImageProcessor, "Bit": BitImageProcessor}
PROCESSOR_FIELDS = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
                    "do_normalize", "image_mean", "image_std")  # fmt: skip
PRETRAINING_ONLY = (
    (r"^decoder\.", "decoder"),
    (r"^embeddings\.mask_token$", "mask token"),
)


def recognises(names: set[str]) -> bool:
    """Whether the names are of this family."""
    short = {re.sub(OTHER_NAMES[0][0], "", name) for name in names}
    return "embeddings.patch_embeddings.projection.weight" in short


def canonical(checkpoint: Checkpoint) -> tuple[Tensors, dict[str, str], dict[str, str]]:
    """Bring the names to those in the memory of transformers 5, without a prefix; see `facts.rename`."""
    return rename(checkpoint, OTHER_NAMES, PRETRAINING_ONLY)


def describe(tensors: Tensors, checkpoint: Checkpoint, facts: Facts) -> None:
    """Read the architecture off the tensors and config.json."""
    settings, patches = checkpoint.settings, "embeddings.patch_embeddings.projection.weight"
    model_type = settings.get("model_type", "vit")
    if model_type not in MODEL_TYPES:
        raise CheckpointError(
            f"{checkpoint.origin}: config.json has model_type {model_type!r}; expected one of {', '.join(MODEL_TYPES)}"
        )
    gated = "layers.0.mlp.gate_proj.weight" in tensors
    need(tensors, patches, "layers.0.mlp.fc2.weight", "embeddings.position_embeddings",
         origin=checkpoint.origin, kind="transformers")  # fmt: skip
    width, channels, patch_h, patch_w = tensors[patches].shape
    layers, mlp = count_indexed(tensors, r"layers\.(\d+)\."), tensors["layers.0.mlp.fc2.weight"].shape[1]
    shown = {"hidden_size": width, "num_channels": channels, "num_hidden_layers": layers, "intermediate_size": mlp,
             "patch_size": size_field(patch_h, patch_w),
             "qkv_bias": "layers.0.attention.q_proj.bias" in tensors}  # fmt: skip
    for name, value in shown.items():
        facts.fixed(name, value)
    if model_type.startswith("dinov2"):
        del shown["intermediate_size"]  # stored, but mlp_ratio is what counts there
    wrong = [
        f"{name} is {settings[name]} in config.json, {value} in the tensors"
        for name, value in shown.items()
        if name in settings and as_pair(settings[name]) != as_pair(value)
    ]
    facts.fixed("pooling", "cls")
    _describe_tokens(tensors, checkpoint, facts, (patch_h, patch_w))
    _describe_block(tensors, settings, facts, gated, (width, layers, mlp))
    pooler, head = tensors.get("pooler.dense.weight"), tensors.get("classifier.weight")
    if pooler is not None and settings.get("pooler_act", "tanh") != "tanh":
        raise CheckpointError(f"{checkpoint.origin}: pooler_act is {settings['pooler_act']!r}; expected 'tanh'")
    if pooler is not None and head is not None:
        facts.drop("pooler.", "transformers' classifiers read the class token, not the pooler")
        pooler = None
    facts.fixed("representation_size", None if pooler is None else pooler.shape[0])
    if head is not None and head.shape[1] == 2 * width:
        if not {"num_labels", "id2label"} & set(facts.given):
            raise CheckpointError(
                f"{checkpoint.origin}: its classifier reads class token and mean of the patches together, which no "
                "config field expresses; give num_labels or id2label to replace it"
            )
        facts.drop("classifier.", "reads class token and mean together; num_labels or id2label was given")
        head = None
    stored_names = settings.get("id2label")
    names = {int(index): name for index, name in stored_names.items()} if isinstance(stored_names, dict) else None
    if names and head is not None and len(names) != head.shape[0]:
        wrong.append(f"id2label names {len(names)} classes in config.json, the classifier has {head.shape[0]}")
    if wrong:
        raise CheckpointError(f"{checkpoint.origin}: {'; '.join(wrong)}. Give the config.json saved with the weights")
    facts.labels(None if head is None else head.shape[0], names)


def _describe_tokens(tensors: Tensors, checkpoint: Checkpoint, facts: Facts, patch: tuple[int, int]) -> None:
    """Registers, DeiT's distillation token, positions."""
    registers = tensors.get("embeddings.register_tokens")
    deit = "embeddings.distillation_token" in tensors
    facts.fixed("num_register_tokens", 1 if deit else 0 if registers is None else registers.shape[1])
    facts.fixed("prefix_positions", "all" if deit else "cls")
    facts.fixed("distilled", "distillation_classifier.weight" in tensors)
    known = checkpoint.settings.get("image_size", checkpoint.fields.get("image_size"))
    rows = tensors["embeddings.position_embeddings"].shape[1]
    facts.image_size(positions=rows, prefix=1 + deit, patch=patch, known=known)
    method, how = "transformers", "transformers' interpolate_pos_encoding"
    if registers is not None:
        method, how = "timm", "bicubic with antialias in Dinov2WithRegistersEmbeddings"
    facts.said("position_interpolation", method, how)


def _describe_block(
    tensors: Tensors, settings: dict[str, Any], facts: Facts, gated: bool, sizes: tuple[int, int, int]
) -> None:
    """Heads, activation, eps and rates, which config.json tells."""
    if "num_attention_heads" in settings:
        facts.said("num_attention_heads", settings["num_attention_heads"], "config.json")
    else:
        facts.heads(width=sizes[0], layers=sizes[1], mlp=sizes[2])
    scaled = "layers.0.layer_scale1.lambda1" in tensors
    default = EPS.get(settings.get("model_type", "dinov2" if scaled else "vit"), 1e-12)
    where = "config.json" if "layer_norm_eps" in settings else "transformers' default, no config.json"
    facts.said("layer_norm_eps", float(settings.get("layer_norm_eps", default)), where)
    first = tensors.get("layers.0.mlp.fc1.weight")
    if gated or (first is not None and first.shape[0] == 2 * sizes[2]):
        facts.fixed("hidden_act", "swiglu")
    else:
        act = settings.get("hidden_act", "gelu")
        act = SAME_ACTIVATIONS.get(act, act)
        if act not in ACTIVATIONS:
            raise CheckpointError(f"config.json has hidden_act {act!r}; expected one of {', '.join(ACTIVATIONS)}")
        where = "config.json" if "hidden_act" in settings else "transformers' default, no config.json"
        facts.said("hidden_act", act, where)
    if scaled:
        facts.said("layer_scale_init", float(settings.get("layerscale_value", 1.0)), "config.json or its default")
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
        if settings.get(name):
            facts.said(name, settings[name], "config.json")


def preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """Return what preprocessor_config.json says, older forms too; the ViT paper's without it."""
    stored = checkpoint.side.get("preprocessor_config.json")
    if not stored:
        return VIT
    told = str(stored.get("image_processor_type") or stored.get("feature_extractor_type") or "")
    kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", told)
    given = {name: stored[name] for name in PROCESSOR_FIELDS if name in stored}
    stock = PROCESSORS.get(kind, ViTImageProcessor)(**given)  # knows the defaults and the older forms of sizes
    extra: dict[str, Any] = {name: getattr(stock, name) for name in ("do_resize", "do_rescale", "do_normalize")}
    extra["rescale_factor"] = stock.rescale_factor
    names = {value.value: name for name, value in RESAMPLING.items()}
    if stock.resample not in names:
        raise CheckpointError(
            f"{checkpoint.origin}: preprocessor_config.json has resample {stock.resample!r}; expected one of "
            f"{', '.join(f'{value} ({name})' for value, name in sorted(names.items()))}: mend or remove it"
        )
    how, crop_pct = "preprocessor_config.json", None
    if stock.do_center_crop:
        edge, crop = stock.size.shortest_edge or stock.size.height, stock.crop_size.height
        if not edge or not crop:
            raise CheckpointError(
                f"{checkpoint.origin}: preprocessor_config.json resizes to {given.get('size')} and crops "
                f"{given.get('crop_size')}; expected a shortest_edge, or a height and a width: mend or remove it"
            )
        how, crop_pct = f"{how}: the central {crop} of {edge} px", crop / (edge + 1e-6)  # floor(crop / it) is edge
    return Preprocessing(
        how,
        mean=tuple(stock.image_mean),
        std=tuple(stock.image_std),
        resample=names[stock.resample],
        crop_pct=crop_pct,
        keep_aspect=stock.size.shortest_edge is not None,
        extra=extra,
    )


def links(config: VitHfConfig, tensors: Tensors | None = None) -> list[Link]:
    """Return the name map of a model with this config, without the base model's prefix."""
    split_gate = tensors is not None and "layers.0.mlp.gate_proj.weight" in tensors
    theirs_of, deit = "embeddings.", config.num_register_tokens == 1 and config.prefix_positions == "all"
    embeddings = "vit.embeddings."
    table = module(f"{embeddings}patch_embeddings.projection", f"{theirs_of}patch_embeddings.projection.")
    table.append(Link(f"{embeddings}cls_token", (f"{theirs_of}cls_token",), EXACT))
    table.append(Link(f"{embeddings}position_embeddings", (f"{theirs_of}position_embeddings",), EXACT))
    if config.num_register_tokens:
        token = "distillation_token" if deit else "register_tokens"
        table.append(Link(f"{embeddings}register_tokens", (theirs_of + token,), EXACT))
    for index in range(config.num_hidden_layers):
        ours, theirs = f"vit.layers.{index}.", f"layers.{index}."
        parts = [f"{theirs}attention.{part}_proj" for part in "qkv"]
        table += joined(f"{ours}attention.qkv", parts, QKV, bias=config.qkv_bias)
        table += module(f"{ours}attention.output", f"{theirs}attention.o_proj.")
        table += module(f"{ours}norm1", f"{theirs}layernorm_before.")
        table += module(f"{ours}norm2", f"{theirs}layernorm_after.")
        if split_gate:
            table += joined(f"{ours}mlp.fc1", (f"{theirs}mlp.gate_proj", f"{theirs}mlp.up_proj"), "gate and value")
        else:
            table += module(f"{ours}mlp.fc1", f"{theirs}mlp.fc1.")
        table += module(f"{ours}mlp.fc2", f"{theirs}mlp.fc2.")
        if config.layer_scale_init is not None:
            for number in (1, 2):
                table.append(Link(f"{ours}scale{number}.scale", (f"{theirs}layer_scale{number}.lambda1",), EXACT))
    table += module("vit.norm", "layernorm.")
    if config.representation_size is not None:
        table += module("vit.pooler.pre_logits", "pooler.dense.")
    table += module("classifier", "classifier.")
    return table + (module("distillation_classifier", "distillation_classifier.") if config.distilled else [])


def inexpressible(config: VitHfConfig) -> dict[str, str]:
    """Return the fields that transformers' ViT and DeiT cannot express, with what it would take."""
    deit = config.num_register_tokens == 1 and config.prefix_positions == "all"
    wanted: dict[str, tuple[bool, str]] = {
        "pooling": (config.pooling == "cls", "'cls'"),
        "hidden_act": (config.hidden_act != "swiglu", "an activation without gate"),
        "patch_bias": (config.patch_bias, "a bias"),
        "embedding_norm": (not config.embedding_norm, "none"),
        "fc_norm": (not config.fc_norm, "the last LayerNorm before the pooling"),
        "representation_size": (config.representation_size is None, "none"),
        "num_register_tokens": (config.num_register_tokens == 0 or deit, "none, or DeiT's distillation token"),
        "prefix_positions": (config.num_prefix_positions == config.num_prefix_tokens, "a position for every token"),
        "layer_scale_init": (config.layer_scale_init is None, "none"),
        "qk_norm": (not config.qk_norm, "none"),
        "resnet_stem_layers": (config.resnet_stem_layers is None, "none"),
    }
    return {name: remedy for name, (fits, remedy) in wanted.items() if not fits}
