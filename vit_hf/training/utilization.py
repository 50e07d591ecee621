"""How much of its cards' speed a run uses: model FLOPs utilisation (MFU) as in PaLM, appendix B (arXiv 2204.02311).

It is what the network's matrix products need a second, over what the maker states for the card. Needed are those of the
forward and backward pass as this network runs them (`vit_hf.training.costs`): not what gradient checkpointing computes
again, nor optimiser, norms, augmentation and scoring. The stated rate is the usual yardstick and no card reaches it; a
measured one would change with the shapes that were measured. Of a CPU, a card that is not listed, or a part of a card
(MIG) it is unknown.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .costs import Network, count_flops
from .recipe import Recipe

# Name as CUDA gives it; dense TFLOP/s (without sparsity) of bfloat16 and float16, of TF32, and of plain float32.
_CARDS: tuple[tuple[str, dict[str, float]], ...] = (
    # NVIDIA H100 Tensor Core GPU Architecture (white paper), specifications; the H200 has the same processor.
    ("NVIDIA (H100 80GB HBM3|H200)", {"half": 989.4, "tf32": 494.7, "float32": 66.9}),
    ("NVIDIA H100 PCIe", {"half": 756.0, "tf32": 378.0, "float32": 51.2}),
    # NVIDIA A100 Tensor Core GPU Architecture (white paper), table 1; all forms alike.
    (r"(NVIDIA )?A100(-SXM4-[48]0GB|-PCIE-40GB| 80GB PCIe)", {"half": 312.0, "tf32": 156.0, "float32": 19.5}),
    # Data sheets; half of what they state with sparsity.
    ("NVIDIA L40S", {"half": 362.05}),
    ("NVIDIA L4", {"half": 121.0}),
    ("NVIDIA B200", {"half": 2250.0}),
)


def peak_flops(card: str, kind: str) -> float | None:
    """Return the operations a second that a card's maker states, a multiply-add being 2.

    Args:
        card: its name, as `torch.cuda.get_device_name` gives it.
        kind: of the numbers that are multiplied: "half" (bfloat16 or float16), "tf32" or "float32".

    Returns:
        None for a card or kind that is not listed.
    """
    stated = next((rates for name, rates in _CARDS if re.fullmatch(name, card)), {})
    return 1e12 * stated[kind] if kind in stated else None


def device_peak(device: torch.device, recipe: Recipe) -> float | None:
    """Return `peak_flops` of a run's device in the run's precision; None where it is unknown."""
    if device.type != "cuda":
        return None
    kind = "half"
    if recipe.mixed_precision == "no":
        kind = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "float32"
    return peak_flops(torch.cuda.get_device_name(device), kind)


class Utilization:
    """What a run's speed is a share of.

    Args:
        network: unwrapped, frozen as it will be trained.
        recipe: of the run.
        device: of this process; the others are taken to have the same.
        processes: of the run.
    """

    def __init__(self, network: Network, recipe: Recipe, device: torch.device, processes: int):
        self.peak = device_peak(device, recipe)
        """Operations a second of one device; None where they are unknown."""
        self._images_per_second: float | None = None  # at the peak of all devices
        if self.peak is not None:
            _, flops = count_flops(network, dataclasses.replace(recipe, gradient_checkpointing=False))
            self._images_per_second = processes * self.peak / flops

    def mfu(self, images_per_second: float | None) -> float | None:
        """Return the share, rounded to 0.01%; None where the peak or the speed of the run is unknown."""
        if self._images_per_second is None or images_per_second is None:
            return None
        return round(images_per_second / self._images_per_second, 4)

    def record(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
        """Return what results.json says of speed.

        Args:
            rows: of metrics.jsonl.
        """
        speed = mean_speed(rows)
        return {
            "images_per_second": None if speed is None else round(speed, 1),
            "mfu": self.mfu(speed),
            "peak_tflops": None if self.peak is None else self.peak / 1e12,
        }


def mean_speed(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return images a second over all steps whose speed was measured: their images over their time.

    Args:
        rows: in order, with "step" (the last that a row tells of) and "images_per_second", which may be None.
    """
    steps, time, before = 0, 0.0, 0
    for row in rows:
        if row.get("images_per_second"):
            steps += row["step"] - before
            time += (row["step"] - before) / row["images_per_second"]  # times the batch, which cancels
        before = row["step"]
    return steps / time if time else None
