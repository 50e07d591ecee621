"""The named sizes of the family, one table: "Ti/16" to "H/14" and the hybrids "R50+B/16".

Sizes: ViT paper, Table 1 (B, L, H); DeiT, Table 1 (Ti, S); "How to train your ViT" (arXiv 2106.10270), section 3.1, and
google-research/vision_transformer `vit_jax/configs/models.py` for the hybrids' stems.
"""

import difflib
from collections.abc import Mapping
from dataclasses import fields

from .configuration_vit_hf import VitHfConfig

# name: layers, hidden size, MLP size, heads
SIZES = {
    "Ti": (12, 192, 768, 3),
    "S": (12, 384, 1536, 6),
    "B": (12, 768, 3072, 12),
    "L": (24, 1024, 4096, 16),
    "H": (32, 1280, 5120, 16),
}
# name: residual blocks per stage of the ResNetV2 stem, patch of stem and projection together in pixels
HYBRIDS = {
    "R+Ti/16": ((), 32),  # 8x8 patches on the root block's 1/4 grid: 32 pixels, whatever the official name says
    "R26+S/32": ((2, 2, 2, 2), 32),
    "R26+B/32": ((2, 2, 2, 2), 32),
    "R50+B/16": ((3, 4, 9), 16),
    "R50+L/32": ((3, 4, 6, 3), 32),
}

VARIANTS = (
    *("Ti/16", "S/32", "S/16", "S/8", "B/32", "B/16", "B/8", "L/32", "L/16", "L/14", "H/16", "H/14"),
    *HYBRIDS,
)


def check_fields(overrides: Mapping[str, object]) -> None:
    """Raise a ValueError for a name that is no field of the config; it names the nearest known ones."""
    known = {field.name for field in fields(VitHfConfig)} | {"num_labels"}
    if unknown := sorted(set(overrides) - known):
        near = difflib.get_close_matches(unknown[0], known, n=3)
        raise ValueError(
            f"unknown config field {unknown[0]!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "; see help(vit_hf.VitHfConfig)")
        )


def variant(name: str, **overrides) -> VitHfConfig:
    """Return the config of a named variant at 224 px with 1,000 classes, changed by `overrides`.

    Args:
        name: one of `VARIANTS`, or a plain one with another patch size in pixels ("S/4").
        overrides: fields of `VitHfConfig`, and `num_labels`, `id2label` or `label2id`.

    Raises:
        ValueError: unknown name or field; the message names the nearest known ones.
        StrictDataclassError: (huggingface_hub) the values do not fit together.

    >>> variant("B/16", image_size=384, num_labels=100).grid_hw
    (24, 24)
    """
    stem, _, plain = name.rpartition("+")
    size, _, patch = plain.partition("/")
    if size not in SIZES or not patch.isdecimal() or (stem and name not in HYBRIDS):
        near = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.3)
        raise ValueError(
            f"unknown variant {name!r}; expected one of {', '.join(VARIANTS)}"
            + (f" (did you mean {' or '.join(near)}?)" if near else "")
        )
    check_fields(overrides)
    layers, hidden, mlp, heads = SIZES[size]
    stem_layers, patch_size = HYBRIDS.get(name, (None, int(patch)))
    chosen = {
        "patch_size": patch_size,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "resnet_stem_layers": stem_layers,
    }
    if "id2label" not in overrides:
        chosen["num_labels"] = 1000
    return VitHfConfig(**{**chosen, **overrides})
