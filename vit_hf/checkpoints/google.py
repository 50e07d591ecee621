"""Google's .npz files: google-research/vision_transformer and big_vision.

The official layout (`vit_jax/models_vit.py`, `models_resnet.py`) with the names of before and after flax's Linen, which
its loader accepts both, and big_vision's (`big_vision/models/vit.py`): positions added before the class token is put in
front, MAP head, blocks stacked by scan. The kernels show the number of heads; the code fixes the rest: GELU by its tanh
form, eps 1e-6, positions resized by scipy's zoom of order 1.
"""

import math
import re

from ..configuration_vit_hf import VitHfConfig, as_pair, patch_grid
from .facts import Facts, count_indexed, need, size_field
from .files import Checkpoint
from .links import (
    CHANNELS,
    CONVOLUTION,
    EXACT,
    MATRIX,
    QKV,
    Link,
    Tensors,
    head_biases,
    head_kernels,
    head_outputs,
    module,
)
from .preprocessing import Preprocessing
from .receipt import CheckpointError

BLOCK = "Transformer/encoderblock_"
POSITIONS = {"official": "Transformer/posembed_input/pos_embedding", "big_vision": "pos_embedding"}
PREFIXES = ("opt/target/", "target/", "params/img/", "params/", "img/")
OLD_NAMES = (  # big_vision before 2022 and the names of today (its `fix_old_checkpoints`)
    (r"^Transformer/pos_embedding$", "Transformer/posembed_input/pos_embedding"),
    (r"^probe$", "MAPHead_0/probe"),
    (r"^(MAPHead_0/)?(MultiHeadDotProductAttention|LayerNorm|MlpBlock)_\d/", r"MAPHead_0/\2_0/"),
)
LINEN_NAMES = (  # what Linen calls the parts of a block, and the names in the published files
    ("LayerNorm_1/", "LayerNorm_2/"),
    ("MultiHeadDotProductAttention_0/", "MultiHeadDotProductAttention_1/"),
    ("MlpBlock_0/", "MlpBlock_3/"),
)
OTHER_PARTS = re.compile(r"(opt/|params/txt/|txt/|params/[tb]$|[tb]$|step$|chrono|extra/|rng)")


def recognises(names: set[str]) -> bool:
    """Whether the names are of this family."""
    return any(f"{prefix}embedding/kernel" in names for prefix in ("", *PREFIXES)) or any(
        "Transformer/encoderblock" in name for name in names
    )


def canonical(checkpoint: Checkpoint) -> tuple[Tensors, dict[str, str], dict[str, str]]:
    """Bring the names to those of the published files.

    Returns the tensors, the file's name of each, and the names that are left out with the reason.
    """
    found = checkpoint.tensors
    within = [prefix for prefix in PREFIXES if any(name.startswith(f"{prefix}Transformer/") for name in found)]
    prefix = within[0] if within else ""
    tensors: Tensors = {}
    names: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for original, tensor in found.items():
        name = original.removeprefix(prefix)
        if OTHER_PARTS.match(name):
            dropped[original] = "not of the image encoder (optimiser, text tower, counters)"
            continue
        for pattern, replacement in OLD_NAMES:
            name = re.sub(pattern, replacement, name)
        if name.startswith("Transformer/encoderblock"):
            for theirs, published in LINEN_NAMES:
                name = name.replace(theirs, published)
        parts = {name: (tensor, original)}
        if name.startswith("Transformer/encoderblock/") and tensor.ndim:  # stacked by scan: the blocks are the 1st axis
            parts = {
                name.replace("encoderblock/", f"encoderblock_{index}/"): (part, f"{original}[{index}]")
                for index, part in enumerate(tensor)
            }
        for name, (part, theirs) in parts.items():
            if name in tensors:
                raise CheckpointError(f"{checkpoint.origin}: {names[name]} and {theirs} are the same tensor; keep one")
            tensors[name], names[name] = part, theirs
    official, top = POSITIONS["official"], POSITIONS["big_vision"]
    rows = tensors[top].shape[1] if top in tensors and tensors[top].ndim == 3 else 0
    if "cls" in tensors and rows and _is_square(rows - 1):  # the class token has one, as in official files
        tensors[official], names[official] = tensors.pop(top), names.pop(top)
    return tensors, names, dropped


def layout_of(tensors: Tensors) -> str:
    """Return "official" or "big_vision"."""
    return "official" if POSITIONS["official"] in tensors else "big_vision"


def describe(tensors: Tensors, checkpoint: Checkpoint, facts: Facts) -> None:
    """Read the architecture off the tensors."""
    first = f"{BLOCK}0/"
    query, hidden = first + "MultiHeadDotProductAttention_1/query/kernel", first + "MlpBlock_3/Dense_0/kernel"
    layout = layout_of(tensors)
    wanted = {"embedding/kernel": 4, query: 3, hidden: 2}
    has_stem = any(re.match(r"(conv_root|gn_root|block\d+)/", name) for name in tensors)
    if has_stem:
        wanted["conv_root/kernel"] = 4
    if has_stem or any("/MlpBlock_3/" in name for name in checkpoint.tensors):  # only big_vision computes them
        wanted[POSITIONS[layout if POSITIONS[layout] in tensors else "official"]] = 3
    need(tensors, *wanted, origin=checkpoint.origin, kind="google")
    wanted |= {POSITIONS[layout]: 3, "pre_logits/kernel": 2, "head/kernel": 2}
    _check_axes(tensors, wanted, checkpoint.origin)
    patch_h, patch_w, channels, width = tensors["embedding/kernel"].shape
    facts.fixed("hidden_size", width)
    facts.fixed("num_hidden_layers", count_indexed(tensors, rf"{BLOCK}(\d+)/"))
    facts.fixed("num_attention_heads", tensors[query].shape[1])
    facts.fixed("intermediate_size", tensors[hidden].shape[1])
    stride = 1
    if has_stem:
        stages = count_indexed(tensors, r"block(\d+)/") - 1
        counts = [count_indexed(tensors, rf"block{stage + 1}/unit(\d+)/") - 1 for stage in range(min(stages, 9))]
        root = tensors["conv_root/kernel"]
        facts.fixed("resnet_stem_layers", [max(count, 1) for count in counts])
        facts.fixed("resnet_stem_width", root.shape[3])
        facts.said("resnet_stem_style", "google", "official code: std + 1e-5, GroupNorm eps 1e-6")
        channels, stride = root.shape[2], 4 * 2 ** max(len(counts) - 1, 0)
    facts.fixed("num_channels", channels)
    patch = (patch_h * stride, patch_w * stride)
    facts.fixed("patch_size", size_field(*patch))

    has_map = any(name.startswith("MAPHead_0/") for name in tensors)
    facts.fixed("pooling", "map" if has_map else "cls" if "cls" in tensors else "gap")
    facts.fixed("prefix_positions", "none" if layout == "big_vision" else "cls")
    _describe_positions(tensors, checkpoint, facts, patch)
    method = checkpoint.fields.get("position_interpolation", "google")
    facts.said("position_interpolation", method, "official code: scipy zoom of order 1, or the file's metadata")
    facts.said("hidden_act", "gelu_pytorch_tanh", "flax's default GELU")
    facts.said("layer_norm_eps", 1e-6, "flax's default")
    sizes = {part: _size_behind(tensors, part) for part in ("pre_logits", "head")}
    facts.fixed("representation_size", sizes["pre_logits"])
    facts.labels(sizes["head"])


def _check_axes(tensors: Tensors, wanted: dict[str, int], origin: str) -> None:
    """Raise unless the tensors that tell the architecture, where they are there, have as many axes as they should."""
    wrong = [
        f"{name} {tuple(tensors[name].shape)}, expected {axes} axes"
        for name, axes in wanted.items()
        if name in tensors and (tensors[name].ndim != axes or 0 in tensors[name].shape)
    ]
    if wrong:
        raise CheckpointError(f"{origin}: other shape: {'; '.join(wrong)}; give a whole checkpoint, or another source")


def _size_behind(tensors: Tensors, layer: str) -> int | None:
    """Outputs of a layer of which at least one tensor is there; the other is reported as missing later."""
    found = [tensors[name] for name in (f"{layer}/kernel", f"{layer}/bias") if name in tensors]
    return found[0].shape[-1] if found and found[0].ndim else None


def _describe_positions(tensors: Tensors, checkpoint: Checkpoint, facts: Facts, patch: tuple[int, int]) -> None:
    """Settle the positions and the image size for which they are."""
    layout, known = layout_of(tensors), checkpoint.fields.get("image_size")
    positions = tensors.get(POSITIONS[layout])
    if positions is None:
        facts.said("position_embedding", "sincos2d", "the file has no positions: big_vision's posemb='sincos2d'")
        size = known or facts.given.get("image_size")
        if size is None:
            absent = " or ".join(POSITIONS.values())
            facts.ask("image_size", f"no {absent} in the file: big_vision's posemb='sincos2d', or lost")
        elif known is None and "patch_size" in facts.given:  # the grid at load is that of the other patch size
            grid = patch_grid(as_pair(size), as_pair(facts.given["patch_size"]))
            size = size_field(grid[0] * patch[0], grid[1] * patch[1])
        facts.fields["image_size"] = size
        return
    rows, has_cls = positions.shape[1], "cls" in tensors
    if layout == "official" and not has_cls and not _is_square(rows):  # perhaps one is that of a lost class token
        size = known or facts.given.get("image_size")
        if size is None and _is_square(rows - 1):
            facts.ask("image_size", f"{rows} positions are no square; one is a class token's, but the file has no cls?")
            return
        if size is not None and math.prod(as_pair(size)) == (rows - 1) * math.prod(patch):
            need(tensors, "cls", origin=checkpoint.origin, kind="google")
    facts.image_size(positions=rows, prefix=int(has_cls and layout == "official"), patch=patch, known=known)


def _is_square(cells: int) -> bool:
    return math.isqrt(cells) ** 2 == cells


def preprocessing(checkpoint: Checkpoint) -> Preprocessing:
    """Return the official evaluation's: resized straight to the image size, mean and std 0.5."""
    how = "official code: tf.image.resize to the image size (no antialiasing), mean and std 0.5"
    return Preprocessing(how, extra={"antialias": False})


def links(config: VitHfConfig, tensors: Tensors | None = None) -> list[Link]:
    """Return the name map of a model with this config: in the layout of the tensors, or in that for an export."""
    layout = export_layout(config) if tensors is None else layout_of(tensors)
    heads, names = config.num_attention_heads, ("kernel", "bias")

    def dense(ours: str, theirs: str) -> list[Link]:
        return module(ours, theirs, form=MATRIX, names=names)

    def norm(ours: str, theirs: str) -> list[Link]:
        return module(ours, theirs, names=("scale", "bias"))

    def attention(ours: str, theirs: str, parts: tuple[str, ...], what: str) -> list[Link]:
        kernels = tuple(f"{theirs}{part}/kernel" for part in parts)
        biases = tuple(f"{theirs}{part}/bias" for part in parts)
        return [
            Link(f"{ours}.weight", kernels, head_kernels(heads, len(parts), what)),
            Link(f"{ours}.bias", biases, head_biases(heads, len(parts), what)),
        ]

    def output(ours: str, theirs: str) -> list[Link]:
        return module(ours, theirs, form=head_outputs(heads), names=names)

    def mlp(ours: str, theirs: str) -> list[Link]:
        return dense(f"{ours}.fc1", f"{theirs}Dense_0/") + dense(f"{ours}.fc2", f"{theirs}Dense_1/")

    embeddings = "vit.embeddings."
    table = _stem_links(config)
    table += module(f"{embeddings}patch_embeddings.projection", "embedding/", form=CONVOLUTION, names=names)
    if config.has_cls_token:
        table.append(Link(f"{embeddings}cls_token", ("cls",), EXACT))
    if config.position_embedding == "learned":
        table.append(Link(f"{embeddings}position_embeddings", (POSITIONS[layout],), EXACT))
    for index in range(config.num_hidden_layers):
        ours, theirs = f"vit.layers.{index}.", f"{BLOCK}{index}/"
        inner = f"{theirs}MultiHeadDotProductAttention_1/"
        table += norm(f"{ours}norm1", f"{theirs}LayerNorm_0/") + norm(f"{ours}norm2", f"{theirs}LayerNorm_2/")
        table += attention(f"{ours}attention.qkv", inner, ("query", "key", "value"), QKV)
        table += output(f"{ours}attention.output", f"{inner}out/") + mlp(f"{ours}mlp", f"{theirs}MlpBlock_3/")
    table += norm("vit.norm", "Transformer/encoder_norm/")
    if config.pooling == "map":
        ours, theirs = "vit.pooler.attention_pooling.", "MAPHead_0/"
        inner = f"{theirs}MultiHeadDotProductAttention_0/"
        table.append(Link(f"{ours}probe", (f"{theirs}probe",), EXACT))
        table += attention(f"{ours}query", inner, ("query",), "query")
        table += attention(f"{ours}key_value", inner, ("key", "value"), "key and value")
        table += output(f"{ours}output", f"{inner}out/")
        table += norm(f"{ours}norm", f"{theirs}LayerNorm_0/") + mlp(f"{ours}mlp", f"{theirs}MlpBlock_0/")
    if config.representation_size is not None:
        table += dense("vit.pooler.pre_logits", "pre_logits/")
    return table + dense("classifier", "head/")


def _stem_links(config: VitHfConfig) -> list[Link]:
    if config.resnet_stem_layers is None:
        return []
    stem = "vit.embeddings.patch_embeddings.stem."

    def convolution(ours: str, theirs: str) -> list[Link]:
        return module(f"{stem}{ours}", theirs, form=CONVOLUTION, bias=False, names=("kernel", ""))

    def group_norm(ours: str, theirs: str) -> list[Link]:
        return [
            Link(f"{stem}{ours}.weight", (f"{theirs}scale",), CHANNELS),
            Link(f"{stem}{ours}.bias", (f"{theirs}bias",), CHANNELS),
        ]

    table = convolution("root_conv", "conv_root/") + group_norm("root_norm", "gn_root/")
    for stage, count in enumerate(config.resnet_stem_layers):
        for unit in range(count):
            ours, theirs = f"stages.{stage}.{unit}.", f"block{stage + 1}/unit{unit + 1}/"
            for part in ("1", "2", "3", *(("_proj",) if unit == 0 else ())):
                table += convolution(f"{ours}conv{part}", f"{theirs}conv{part}/")
                table += group_norm(f"{ours}norm{part}", f"{theirs}gn{part}/")
    return table


def inexpressible(config: VitHfConfig) -> dict[str, str]:
    """Return the fields that no google layout can express, with what it would take."""
    official = export_layout(config) == "official"
    wanted: dict[str, tuple[bool, str]] = {
        "hidden_act": (config.hidden_act == "gelu_pytorch_tanh", "GELU by its tanh form"),
        "layer_norm_eps": (config.layer_norm_eps == 1e-6, "1e-6"),
        "qkv_bias": (config.qkv_bias, "biases"),
        "patch_bias": (config.patch_bias, "a bias"),
        "embedding_norm": (not config.embedding_norm, "none"),
        "class_token": (config.has_cls_token == (config.pooling == "cls"), "one with pooling 'cls' only"),
        "fc_norm": (not config.fc_norm, "the last LayerNorm before the pooling"),
        "distilled": (not config.distilled, "one classifier"),
        "num_register_tokens": (config.num_register_tokens == 0, "none"),
        "layer_scale_init": (config.layer_scale_init is None, "none"),
        "qk_norm": (not config.qk_norm, "none"),
        "resnet_stem_style": (config.resnet_stem_layers is None or config.resnet_stem_style == "google", "'google'"),
        "resnet_stem_layers": (config.resnet_stem_layers is None or official, "none with big_vision's layout"),
    }
    return {name: remedy for name, (fits, remedy) in wanted.items() if not fits}


def export_layout(config: VitHfConfig) -> str:
    """Return the layout that can hold the model: the official one where it can."""
    learned = config.position_embedding == "learned"
    plain = config.num_prefix_positions == 1 if config.pooling == "cls" else config.pooling == "gap"
    if config.pooling == "gap" and config.resnet_stem_layers is None:  # both can: that of the file it came from
        plain = config.prefix_positions != "none"
    return "official" if learned and plain else "big_vision"


def export_names(tensors: Tensors, layout: str) -> Tensors:
    """Give the parts of the blocks the names that files of this layout have."""
    if layout == "official":
        return tensors
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith(BLOCK):
            for linen, published in LINEN_NAMES:
                name = name.replace(published, linen)
        renamed[name] = tensor
    return renamed
