"""Mixup and CutMix between neighbours, drawn by address.

torchvision's MixUp and CutMix mix each picture with the one before it in the batch of a process, with one weight a
batch: with another number of processes, or another device batch, the pictures and the partners change. Here pictures
2i and 2i + 1 of the stream mix with each other, by numbers drawn from (seed, i): any even slice of a batch mixes in
the same way. On a pair the formulas equal torchvision's.

Shapes: B pictures of a process, even; C channels, H x W pixels, L classes.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import betaincinv

from .draws import integers, sample_keys, uniforms
from .host import one_thread
from .transforms import Augmentation


def cutmix_boxes(
    weights: NDArray[np.float64], y: NDArray[np.int64], x: NDArray[np.int64], height: int, width: int
) -> NDArray[np.int64]:
    """Return the boxes of CutMix, (n, 4): top, left, bottom, right, cut at the edges.

    Args:
        weights: (n,) in [0, 1]; a box has the rest of the area before it is cut.
        y, x: (n,), their centres.
        height, width: of the pictures.
    """
    half = 0.5 * np.sqrt(1 - weights)
    tall, wide = (half * height).astype(np.int64), (half * width).astype(np.int64)
    edges = (
        np.maximum(y - tall, 0),
        np.maximum(x - wide, 0),
        np.minimum(y + tall, height),
        np.minimum(x + wide, width),
    )
    return np.stack(edges, axis=1)


class PairMixing:
    """Mixup (arXiv 1710.09412), CutMix (arXiv 1905.04899), or for each pair one of the two, by the toss of a coin.

    Args:
        augmentation: `mixup_alpha` and `cutmix_alpha`, at least one above 0.
        num_classes: L.
        seed: of all draws.
    """

    def __init__(self, augmentation: Augmentation, *, num_classes: int, seed: int):
        self.kinds = [
            (name, alpha)
            for name, alpha in (("mixup", augmentation.mixup_alpha), ("cutmix", augmentation.cutmix_alpha))
            if alpha
        ]
        self.num_classes, self.seed = num_classes, seed

    def draw(self, positions: list[int], height: int, width: int) -> dict[str, torch.Tensor]:
        """Draw how each picture of a batch is mixed with its neighbour.

        Args:
            positions: B places in the stream; pairs (2i, 2i + 1), each whole.
            height, width: H and W.

        Returns:
            `mix_blend` (B,) float32, weight of the picture's own pixels; `mix_box` (B, 4) int64, top, left, bottom and
            right of what it gets from its neighbour unblended; `mix_share` (B,) float32, weight of its own label.

        Raises:
            ValueError: the positions are no whole pairs.
        """
        first, second = positions[::2], positions[1::2]
        if [position + 1 for position in first] != second or any(position % 2 for position in first):
            raise ValueError(
                f"mixup and CutMix take pictures in pairs, found positions {positions[:4]}... of {len(positions)} "
                "pictures; give an even batch to every process (optimization.batch_size)"
            )
        pairs = np.array(first) // 2
        numbers = uniforms(sample_keys(self.seed, 0 * pairs, pairs, 0 * pairs), "mix", 4)  # (B/2, 4)
        chosen = integers(numbers[:, 0], len(self.kinds))  # (B/2,), of `kinds`
        alphas = np.array([alpha for _, alpha in self.kinds])[chosen]
        weights = betaincinv(alphas, alphas, numbers[:, 1])  # Beta(alpha, alpha), by the inverse of its distribution
        cut = np.array([kind == "cutmix" for kind, _ in self.kinds])[chosen]
        y, x = integers(numbers[:, 2], height), integers(numbers[:, 3], width)
        boxes = np.where(cut[:, None], cutmix_boxes(weights, y, x, height, width), 0)  # (B/2, 4)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        shares = np.where(cut, 1 - area / (height * width), weights)
        return {
            "mix_blend": torch.from_numpy(np.where(cut, 1.0, weights).astype(np.float32).repeat(2)),
            "mix_box": torch.from_numpy(boxes.repeat(2, axis=0)),
            "mix_share": torch.from_numpy(shares.astype(np.float32).repeat(2)),
        }

    def apply(
        self, pixels: torch.Tensor, labels: torch.Tensor, draws: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch as drawn.

        Args:
            pixels: (B, C, H, W), float; on a CPU they are changed in place.
            labels: (B,), int64.
            draws: of `draw`, on the same device.

        Returns:
            Pixels (B, C, H, W) and probabilities (B, L), float32.
        """
        if pixels.device.type == "cpu":
            with one_thread(pixels.device):
                _mix_pairs(pixels, draws)
        else:
            pixels = self._mixed(pixels, draws)
        own = F.one_hot(labels, self.num_classes).float()  # (B, L)
        other = own.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        return pixels, torch.lerp(other, own, draws["mix_share"].view(-1, 1))

    def _mixed(self, pixels: torch.Tensor, draws: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mix all pairs at once, without waiting for the device."""
        height, width = pixels.shape[-2:]
        blend = draws["mix_blend"].to(pixels.dtype).view(-1, 1, 1, 1)
        partner = pixels.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)  # (B, C, H, W), neighbours exchanged
        mixed = torch.lerp(partner, pixels, blend)
        if any(kind == "cutmix" for kind, _ in self.kinds):
            top, left, bottom, right = draws["mix_box"].view(-1, 4, 1, 1).unbind(1)  # (B, 1, 1)
            y = torch.arange(height, device=pixels.device).view(1, -1, 1)
            x = torch.arange(width, device=pixels.device).view(1, 1, -1)
            inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)  # (B, H, W)
            mixed = torch.where(inside.unsqueeze(1), partner, mixed)
        return mixed


def _mix_pairs(pixels: torch.Tensor, draws: dict[str, torch.Tensor]) -> None:
    """Mix pair by pair, in place: a tenth of the time of all at once, which goes five times through the memory."""
    pairs = zip(
        pixels.unflatten(0, (-1, 2)), draws["mix_blend"][::2].tolist(), draws["mix_box"][::2].tolist(), strict=True
    )
    for pair, blend, (top, left, bottom, right) in pairs:  # (2, C, H, W)
        if blend == 1:
            part = pair[:, :, top:bottom, left:right]
            part.copy_(part.flip(0))
        else:
            first, second = pair
            mixed = torch.lerp(second, first, blend)
            torch.lerp(first, second, blend, out=second)
            first.copy_(mixed)


class PatchMasking:
    """Which patches SimMIM hides (arXiv 2111.09886, section 3.2): squares of `mask_patch_size` pixels at random.

    Args:
        ratio: share of the squares that is hidden, rounded up to whole squares.
        mask_patch_size: side of a square in pixels; a multiple of the patch size, and dividing the image.
        patch_hw: patch size of the network.
        seed: of all draws.
    """

    def __init__(self, *, ratio: float, mask_patch_size: int, patch_hw: tuple[int, int], seed: int):
        self.ratio, self.size, self.patch_hw, self.seed = ratio, mask_patch_size, patch_hw, seed

    def draw(self, positions: list[int], height: int, width: int) -> dict[str, torch.Tensor]:
        """Return `bool_masked_pos` (B, h*w), bool: True for patches to hide; drawn from (seed, position).

        Raises:
            ValueError: the sizes do not divide.
        """
        size, (patch_h, patch_w) = self.size, self.patch_hw
        if height % size or width % size or size % patch_h or size % patch_w:
            raise ValueError(
                f"augmentation.mask_patch_size is {size}; expected a divisor of the image size {height}x{width} and a "
                f"multiple of the patch size {patch_h}x{patch_w}"
            )
        rows, columns = height // size, width // size
        places = np.array(positions)
        numbers = uniforms(sample_keys(self.seed, 0 * places, places, 0 * places), "mask", rows * columns)
        count = math.ceil(rows * columns * self.ratio - 1e-9)
        squares = numbers.argsort(axis=1).argsort(axis=1) < count  # (B, squares): those with the lowest numbers
        masks = squares.reshape(-1, rows, columns).repeat(size // patch_h, axis=1).repeat(size // patch_w, axis=2)
        return {"bool_masked_pos": torch.from_numpy(masks.reshape(len(places), -1))}
