"""RandAugment (arXiv 1909.13719) of a batch, operations and strengths drawn for each picture.

The operations, their 31 strengths and their signs are those of torchvision.transforms.v2.RandAugment on uint8 tensors,
with 128 for what comes from outside. torchvision has one fixed strength and carries every operation out; timm, whose
policy "rand-m9-mstd0.5-inc1" DeiT, MAE and CCT train with, draws both (timm `data/auto_augment.py`, `AugmentOp`).

Scales: torchvision's 31 bins run from nothing (0) to shear 0.3, rotation 30 degrees, colours by 0.9, 4 bits (30).
timm (`_LEVEL_DENOM`) and big_vision (`pp/autoaugment.py`, `_MAX_LEVEL`) reach the same at level 10, so that a level
is three bins. Levels above 10, big_vision's randaug(2,15) and (2,20), rotate by 45 and 60 degrees: they have no
equal here. Other differences stay: torchvision has Identity for Invert, SolarizeAdd and big_vision's Cutout;
big_vision's colour operations only strengthen at level 10, torchvision's do either.

Shapes: B pictures, K operations a picture, C channels, H x W pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from . import colours
from .draws import integers, normals, uniforms
from .geometry import inverse_matrix, moved, nearest_places
from .host import change_rows, to_device

MAX_LEVEL = 30
FILL = 128
_SMALL = 48 * 48  # pixels of a picture up to which the places of all affine operations are kept: 16 MB
_LARGE = 2**18  # pixels of a picture up to which a CPU keeps places that were asked for: 128 MiB at most
_CHUNK = 2**18  # pixels and channels of a family's pictures that a CPU changes at a time, to stay in its cache
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
_AFFINE = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


@dataclass(frozen=True)
class Operations:
    """What is done to each picture, one column after the other."""

    kinds: NDArray[np.int64]
    """(B, K) places in `OPERATIONS`; Identity where an operation is left out."""
    levels: NDArray[np.int64]
    """(B, K) strengths, 0 to 30."""
    negative: NDArray[np.bool_]
    """(B, K), whether a strength that has a sign is negative."""


def draw_operations(keys: ArrayLike, *, count: int, level: float, std: float, probability: float) -> Operations:
    """Draw the operations of each picture.

    Args:
        keys: (B,) int64.
        count: K.
        level, std: mean and standard deviation of the strength, which is clipped to 0..30 and rounded.
        probability: with which an operation that was drawn is carried out.
    """
    numbers = uniforms(keys, "randaugment", 3 * count)
    drawn, kept, signs = (numbers[:, part::3] for part in range(3))  # (B, K) each
    kinds = np.where(kept < probability, integers(drawn, len(OPERATIONS)), 0)
    levels = np.full(kinds.shape, float(level))
    if std:
        levels = np.clip(levels + std * normals(keys, "randaugment strength", count), 0, MAX_LEVEL)
    return Operations(kinds, np.rint(levels).astype(np.int64), signs < 0.5)


@lru_cache(maxsize=16)
def strengths(kind: str, size: tuple[int, int]) -> tuple[float, ...]:
    """Return the 31 strengths of an operation on pictures of a size (height, width), in its own unit."""
    ends: dict[str, float] = {
        **{"ShearX": 0.3, "ShearY": 0.3, "Rotate": 30.0},
        **{"TranslateX": 150 / 331 * size[1], "TranslateY": 150 / 331 * size[0]},
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9),
    }
    bins = MAX_LEVEL + 1
    if kind == "Posterize":
        return tuple((8 - torch.arange(bins) / (MAX_LEVEL / 4)).round().tolist())
    if kind == "Solarize":
        return tuple(torch.linspace(1, 0, bins).tolist())
    found = torch.linspace(0, ends[kind], bins).tolist()
    return tuple(map(float, map(int, found))) if kind.startswith("Translate") else tuple(found)


@lru_cache(maxsize=16)
def _matrices(size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the maps of all affine operations, (14, 2, 31, 6): kind, sign, strength; see `inverse_matrix`."""
    found = np.zeros((len(OPERATIONS), 2, MAX_LEVEL + 1, 6), np.float32)
    for kind in _AFFINE:
        for level, strength in enumerate(strengths(kind, size)):
            for negative, by in enumerate((strength, -strength)):
                found[OPERATIONS.index(kind), negative, level] = _matrix(kind, by, size)
    return found


@lru_cache(maxsize=4)
def _all_places(size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Return the places of all affine operations on small pictures, (14 * 2 * 31, H * W); see `nearest_places`."""
    return nearest_places(torch.from_numpy(_matrices(size)).view(-1, 6), size).to(device)


@lru_cache(maxsize=128)
def _places(size: tuple[int, int], kind: int, negative: int, level: int) -> torch.Tensor:
    """Return the places of one affine operation, (H * W,) int32 on the CPU, where to find them takes most of its time.

    A recipe whose strength varies little has 90 of them, of 224 x 224 pixels 18 MB.
    """
    return nearest_places(torch.from_numpy(_matrices(size)[kind, negative, level])[None], size)[0].int()


def _matrix(kind: str, by: float, size: tuple[int, int]) -> tuple[float, ...]:
    if kind == "Rotate":
        return inverse_matrix(size, angle=-by)  # torchvision rotates counter-clockwise
    along = (by, 0.0) if kind.endswith("X") else (0.0, by)
    if kind.startswith("Translate"):
        return inverse_matrix(size, translation=along)
    return inverse_matrix(size, shear=along, about_corner=True)


def randaugment(pixels: torch.Tensor, operations: Operations) -> torch.Tensor:
    """Carry operations out.

    Args:
        pixels: (B, C, H, W) uint8; changed in place.
        operations: of the B pictures.

    Returns:
        (B, C, H, W) uint8.
    """
    chunk = max(1, _CHUNK // pixels[0].numel()) if pixels.device.type == "cpu" else len(pixels)
    for kinds, levels, negative in zip(operations.kinds.T, operations.levels.T, operations.negative.T, strict=True):
        families = _FAMILY_OF[kinds]
        for family, change in enumerate(_CHANGES):
            found = np.flatnonzero(families == family)
            for rows in (found[start : start + chunk] for start in range(0, len(found), chunk)):
                change_rows(
                    pixels, rows, partial(change, kinds=kinds[rows], levels=levels[rows], negative=negative[rows])
                )
    return pixels


# ---------------------------------------------------------------------------------------------- families of operations
# Each takes pictures (b, C, H, W) and their kinds, levels and signs, (b,) each, as `Operations` has them.
def _move(
    pixels: torch.Tensor, *, kinds: NDArray[np.int64], levels: NDArray[np.int64], negative: NDArray[np.bool_]
) -> torch.Tensor:
    size, chosen = (pixels.shape[2], pixels.shape[3]), (kinds, negative.astype(np.int64), levels)
    if size[0] * size[1] <= _SMALL:
        places = _all_places(size, pixels.device)
        number = to_device(np.ravel_multi_index(chosen, (len(OPERATIONS), 2, MAX_LEVEL + 1)), pixels.device)
        return moved(pixels, places.index_select(0, number), FILL)
    if pixels.device.type == "cpu" and size[0] * size[1] <= _LARGE:
        known = [_places(size, *one) for one in np.stack(chosen, axis=1).tolist()]
        return moved(pixels, torch.stack(known), FILL)
    matrices = to_device(_matrices(size)[chosen], pixels.device)
    return moved(pixels, nearest_places(matrices, size), FILL)


def _factors(levels: NDArray[np.int64], negative: NDArray[np.bool_]) -> NDArray[np.float64]:
    by = _TABLES["Brightness"][levels]  # Color, Contrast and Sharpness have the same
    return 1 + np.where(negative, -by, by)


def _blend(
    pixels: torch.Tensor, *, kinds: NDArray[np.int64], levels: NDArray[np.int64], negative: NDArray[np.bool_]
) -> torch.Tensor:
    own = _factors(levels, negative)
    rest = np.where(kinds == OPERATIONS.index("Brightness"), 0, 1 - own)
    from_mean = to_device(kinds == OPERATIONS.index("Contrast"), pixels.device)
    weights = to_device(np.stack([own, rest]).astype(np.float32), pixels.device)
    return colours.blend(pixels, weights[0], weights[1], from_mean)


def _sharpen(
    pixels: torch.Tensor, *, kinds: NDArray[np.int64], levels: NDArray[np.int64], negative: NDArray[np.bool_]
) -> torch.Tensor:
    rest = 1 - _factors(levels, negative)
    return colours.sharpness(pixels, to_device(rest.astype(np.float32), pixels.device))


def _solarize(
    pixels: torch.Tensor, *, kinds: NDArray[np.int64], levels: NDArray[np.int64], negative: NDArray[np.bool_]
) -> torch.Tensor:
    thresholds = np.ceil((255 * _TABLES["Solarize"][levels]).astype(np.float32)).astype(np.uint8)
    return colours.solarize(pixels, to_device(thresholds, pixels.device))


def _posterize(
    pixels: torch.Tensor, *, kinds: NDArray[np.int64], levels: NDArray[np.int64], negative: NDArray[np.bool_]
) -> torch.Tensor:
    masks = (256 - 2 ** (8 - _TABLES["Posterize"][levels])).astype(np.uint8)
    return colours.posterize(pixels, to_device(masks, pixels.device))


_FAMILIES: tuple[tuple[tuple[str, ...], Callable[..., torch.Tensor]], ...] = (
    (_AFFINE, _move),
    (("Brightness", "Color", "Contrast"), _blend),
    (("Sharpness",), _sharpen),
    (("Posterize",), _posterize),
    (("Solarize",), _solarize),
    (("AutoContrast",), lambda pixels, **_: colours.autocontrast(pixels)),
    (("Equalize",), lambda pixels, **_: colours.equalize(pixels)),
)
_CHANGES = [change for _, change in _FAMILIES]
_FAMILY_OF = np.array([next((i for i, (names, _) in enumerate(_FAMILIES) if kind in names), -1) for kind in OPERATIONS])
_TABLES = {kind: np.array(strengths(kind, (1, 1))) for kind in ("Brightness", "Posterize", "Solarize")}
