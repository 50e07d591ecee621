"""How large a classifier is and what it costs: parameters, FLOPs and memory, without allocating any of it.

Conventions:
    FLOPs: forward pass of one image; 1 multiply-add = 2 FLOPs; matrix products and convolutions only, as
        torch.utils.flop_counter counts them (norms, softmax, GELU and additions count nothing).
        Counted on the meta device, where scaled dot-product attention falls apart into the two products that it is
        (for the fused one of a CPU torch 2.11 counts nothing).
    Activations: bytes that autograd keeps for the backward pass of one image; see `activations`.
    Units: MB and GB are 10^6 and 10^9 bytes.

Shapes: D width, N tokens, L classes; output shapes are those of one image.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from rich.console import Group
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..configuration_vit_hf import VitHfConfig
from ..modeling_vit_hf import VitHfForImageClassification
from .activations import build_empty, kept_bytes, kept_within


@dataclass(frozen=True)
class Parts:
    """Parameters of the parts of a classifier; `block` is one of the encoder's blocks, the others add up to `total`."""

    patch_embedding: int  # projection, and the ResNet stem of a hybrid
    tokens_and_positions: int  # class token, registers, learned positions
    block: int
    encoder: int  # all blocks
    final_norm: int
    pooling: int  # attention pooling, norm after the pooling, representation head; 0 for a bare class token or mean
    classifier: int  # both of a distilled model

    @property
    def total(self) -> int:
        """All parameters of the classifier."""
        parts = (self.patch_embedding, self.tokens_and_positions, self.encoder, self.final_norm, self.pooling)
        return sum(parts) + self.classifier


@dataclass(frozen=True)
class Layer:
    """One row of the layer table, in forward order; where `count` > 1 the figures are those of one of equal layers."""

    name: str
    output_shape: tuple[int, ...]  # of one image
    parameters: int
    flops: int
    activation_bytes: int  # kept for the backward pass of one image
    count: int = 1
    depth: int = 0  # 1: a part of the row of depth 0 above it


@dataclass(frozen=True)
class Summary:
    """Sizes and costs of one classifier; see the head of this module for what exactly is counted."""

    image_hw: tuple[int, int]  # pixels
    patch_hw: tuple[int, int]  # pixels
    grid_hw: tuple[int, int]  # patches
    tokens: int  # per image in the encoder: patches, registers, class token
    classes: int
    parts: Parts
    flops: int  # per image, as the classifier runs: with pooling "cls" the last block computes the class token alone,
    # but for a distilled model, which sees two tokens
    flops_full_last_block: int  # per image, when all tokens pass the last block (features, attention maps)
    activation_bytes: (
        int  # per image, kept for the backward pass; the rows of depth 0, times their counts, add up to it
    )
    layers: tuple[Layer, ...]

    @property
    def parameters(self) -> int:
        """All parameters, counted once each."""
        return self.parts.total

    @property
    def weights_float32_bytes(self) -> int:
        """Bytes of the weights in float32, 4 a parameter: the size of `model.safetensors` but for its header."""
        return 4 * self.parameters

    @property
    def weights_bfloat16_bytes(self) -> int:
        """Bytes of the weights in bfloat16, 2 a parameter."""
        return 2 * self.parameters

    @property
    def training_bytes(self) -> int:
        """Bytes of training state with AdamW in mixed precision, 16 a parameter.

        Weights, gradients and AdamW's two moments, all float32. While a step runs, autocast adds bfloat16 copies of
        the weights (2 a parameter), and the batch its activations: `activation_bytes` an image.
        """
        return 16 * self.parameters


def summarise(config: VitHfConfig) -> Summary:
    """Summarise the image classifier of a config; takes about a second and no memory, H/14 included.

    Args:
        config: any classifier's config; it is copied, never changed, and its dropout rates play no part.

    Returns:
        The parameters, FLOPs and bytes of `VitHfForImageClassification(config)`, whatever attention backend runs it.
    """
    config = copy.deepcopy(config)
    config._attn_implementation = "sdpa"
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = config.drop_path_rate = 0.0
    with torch.device("meta"):
        model = build_empty(config).eval()
        image = torch.empty(1, config.num_channels, *config.image_hw)
    shapes, flops = _trace(model, image)
    total = flops[""]
    full = total
    if _has_shortcut(model):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.classifier(model.vit(image).pooler_output)
        full = counter.get_total_flops()
    kept = kept_bytes(config)
    return Summary(
        image_hw=config.image_hw,
        patch_hw=config.patch_hw,
        grid_hw=config.grid_hw,
        tokens=shapes["vit.embeddings"][0],
        classes=model.classifier.out_features,
        parts=_parts(model),
        flops=total,
        flops_full_last_block=full,
        activation_bytes=sum(kept.values()),
        layers=_layers(model, shapes, flops, kept),
    )


def _has_shortcut(model: VitHfForImageClassification) -> bool:
    """Whether the last block computes the class token alone."""
    return model.config.pooling == "cls" and not model.config.distilled


def _count(*modules: nn.Module | None) -> int:
    """Count the parameters of modules; None counts 0."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def _parts(model: VitHfForImageClassification) -> Parts:
    vit = model.vit
    patch_embedding = _count(vit.embeddings.patch_embeddings)
    return Parts(
        patch_embedding=patch_embedding,
        tokens_and_positions=_count(vit.embeddings) - patch_embedding,
        block=_count(vit.layers[0]),
        encoder=_count(vit.layers),
        final_norm=_count(vit.norm),
        pooling=_count(vit.pooler),
        classifier=_count(model.classifier, model.distillation_classifier),
    )


def _trace(model: nn.Module, image: torch.Tensor) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Run one image of shape (1, C, H, W); return output shapes (no batch) and FLOPs by module name, "" for all."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note_shape(name: str):
        def hook(module, args, output):
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, torch.Tensor):
                shapes[name] = tuple(first.shape[1:])

        return hook

    handles = [
        module.register_forward_hook(note_shape(name))
        for name, module in model.named_modules()
        if name and not name.endswith(".qkv")  # where it has a hook it is called, and the last block takes no shortcut
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    for handle in handles:
        handle.remove()
    root = type(model).__name__
    counts = counter.get_flop_counts()
    flops = {name: sum(counts.get(f"{root}.{name}", {}).values()) for name in shapes}
    return shapes, {**flops, "": counter.get_total_flops()}


def _layers(
    model: VitHfForImageClassification,
    shapes: dict[str, tuple[int, ...]],
    flops: dict[str, int],
    kept: Counter[str],
) -> tuple[Layer, ...]:
    """Make the layer table; the rows of depth 0, times their counts, add up to the whole model."""
    vit = model.vit

    def row(label: str, name: str, *members: str, without: str = "", **options) -> Layer:
        """Make the row of a module, or of those of its `members` that there are, less a part of it."""
        members = members or (name,)
        parameters = _count(*map(model.get_submodule, members))
        inside, done = sum(kept_within(kept, member) for member in members), flops[name]
        if without:
            parameters -= _count(model.get_submodule(without))
            inside, done = inside - kept_within(kept, without), done - flops[without]
        return Layer(label, shapes[name], parameters, done, inside, **options)

    def block(label: str, index: int, count: int = 1) -> list[Layer]:
        """Make the rows of an encoder block and of its two branches, each with its norm and LayerScale."""
        name = f"vit.layers.{index}"
        rows = [row(label, name, count=count)]
        for branch, members in {"attention": ("norm1", "scale1"), "mlp": ("norm2", "scale2")}.items():
            inner = f"{name}.{branch}"
            rows.append(row(branch, inner, inner, *(f"{name}.{member}" for member in members), count=count, depth=1))
        return rows

    embeddings = "vit.embeddings"
    patches, stem = f"{embeddings}.patch_embeddings", f"{embeddings}.patch_embeddings.stem"
    has_stem = vit.embeddings.patch_embeddings.stem is not None
    rows = [row("ResNet stem", stem)] if has_stem else []
    rows.append(row("patch projection", patches, without=stem if has_stem else ""))
    rows.append(row("tokens and positions", embeddings, without=patches))
    last = len(vit.layers)
    equal = last - 1 if _has_shortcut(model) else last
    if equal:
        rows += block("block 1" if equal == 1 else f"blocks 1-{equal}, each", 0, count=equal)
    if equal < last:
        rows += block(f"block {last}, class token only", last - 1)
    if vit.norm is not None:
        rows.append(row("final norm", "vit.norm"))
    pooling = {"cls": "class token", "gap": "mean of the patches", "map": "attention pooling"}[model.config.pooling]
    if model.config.fc_norm:
        pooling += ", norm"
    if model.config.representation_size is not None:
        pooling += ", linear, tanh"
    rows.append(row(pooling, "vit.pooler"))
    if model.distillation_classifier is None:
        rows.append(row("classifier", "classifier"))
    else:
        one, other = row("classifier", "classifier"), row("", "distillation_classifier")
        both = (one.parameters + other.parameters, one.flops + other.flops)
        rows.append(Layer("two classifiers", one.output_shape, *both, one.activation_bytes + other.activation_bytes))
    return tuple(rows)


def render(summary: Summary, title: str = "") -> Group:
    """Return what `rich.print` shows of a summary: the figures, then the layer table; at most 80 columns wide.

    Args:
        summary: what to show.
        title: the line above, such as "B/16".
    """
    return Group(_figures(summary, title), "", _layer_table(summary))


def _figures(summary: Summary, title: str) -> Table:
    table = Table(title=title or None, title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    (height, width), (patch_h, patch_w), (h, w) = summary.image_hw, summary.patch_hw, summary.grid_hw
    table.add_row("image", f"{height} x {width} px in patches of {patch_h} x {patch_w} px")
    extra = summary.tokens - h * w
    table.add_row("tokens", f"{summary.tokens:,} ({h} x {w} patches{f' + {extra}' if extra else ''})")
    table.add_row("parameters", f"{summary.parameters:,}")
    table.add_row("forward", f"{_flops(summary.flops)} an image (a multiply-add is 2)")
    if summary.flops_full_last_block != summary.flops:
        table.add_row("", f"{_flops(summary.flops_full_last_block)} with all tokens in the last block")
    weights = f"{_size(summary.weights_float32_bytes)} in float32, {_size(summary.weights_bfloat16_bytes)} in bfloat16"
    table.add_row("weights", weights)
    table.add_row("training", f"{_size(summary.training_bytes)} for weights, gradients, AdamW's moments")
    table.add_row("", f"{_size(summary.activation_bytes)} an image for activations (bfloat16 autocast)")
    return table


def _layer_table(summary: Summary) -> Table:
    table = Table(box=None, header_style="bold", show_footer=True, footer_style="bold")
    table.add_column("layer", "total")
    table.add_column("output", justify="right", no_wrap=True)
    table.add_column("parameters", f"{summary.parameters:,}", justify="right", no_wrap=True)
    small = summary.flops < 1e9
    flops, unit = (1e6, "MFLOPs") if small else (1e9, "GFLOPs")
    kept, size = (1e3, "kept, kB") if small else (1e6, "kept, MB")
    table.add_column(unit, f"{summary.flops / flops:,.3f}", justify="right", no_wrap=True)
    table.add_column(size, f"{summary.activation_bytes / kept:,.3f}", justify="right", no_wrap=True)
    for layer in summary.layers:
        table.add_row(
            "  " * layer.depth + layer.name,
            " x ".join(f"{size:,}" for size in layer.output_shape),
            f"{layer.parameters:,}" if layer.parameters else "",
            f"{layer.flops / flops:,.3f}" if layer.flops else "",
            f"{layer.activation_bytes / kept:,.3f}" if layer.activation_bytes else "",
            style="dim" if layer.depth else None,
        )
    return table


def compare(configs: Mapping[str, VitHfConfig]) -> Table:
    """Return a table of several classifiers, one a row.

    Args:
        configs: what to summarise, by the name that it is shown by.
    """
    table = Table(box=None, header_style="bold")
    table.add_column("model", overflow="fold")
    for head in ("parameters, M", "GFLOPs", "tokens", "weights, MB", "training, MB"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, config in configs.items():
        summary = summarise(config)
        table.add_row(
            name,
            f"{summary.parameters / 1e6:,.1f}",
            f"{summary.flops / 1e9:,.3g}" if summary.flops < 1e8 else f"{summary.flops / 1e9:,.2f}",
            f"{summary.tokens:,}",
            f"{summary.weights_float32_bytes / 1e6:,.0f}",
            f"{summary.training_bytes / 1e6:,.0f}",
        )
    return table


def _flops(count: int) -> str:
    """Write FLOPs in GFLOPs, of a small network in MFLOPs."""
    return f"{count / 1e9:,.2f} GFLOPs" if count >= 1e9 else f"{count / 1e6:,.2f} MFLOPs"


def _size(count: int) -> str:
    """Write bytes in MB, in GB from 10 GB on, in kB below 1 MB."""
    if count < 1e6:
        return f"{count / 1e3:,.1f} kB"
    return f"{count / 1e9:,.1f} GB" if count >= 10e9 else f"{count / 1e6:,.1f} MB"


__all__ = ["Layer", "Parts", "Summary", "compare", "render", "summarise"]
