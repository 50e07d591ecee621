"""From a batch of the training loader to what the model takes of it, on the device.

What travels there are bytes: pictures as the loader cut them, or, of a split whose pixels are cached, the numbers of
its rows, where a CUDA device holds all pixels itself (if they take an eighth of its memory at most). Augmentation runs
there, by the batch, so a batch may be cut into pieces first: each picture comes out the same.

Shapes: B pictures, C channels, h x w pixels as they come, H x W as the model sees them.
"""

import torch

from .host import one_thread
from .transforms import TrainTransform

Batch = dict[str, torch.Tensor]

_SHARE_OF_DEVICE = 8


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return a batch that is ready as it is, on the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


class Preparation:
    """Makes batches ready for the model.

    Args:
        transform: of the training pictures.
        pixels: of the whole split, uint8 (N, C, h, w), if they are cached (`vit_hf.data.pixel_cache`).
    """

    def __init__(self, transform: TrainTransform, pixels: torch.Tensor | None):
        self.transform, self.pixels = transform, pixels
        self._resident: torch.Tensor | None = None

    @torch.no_grad()
    def __call__(self, batch: Batch, device: torch.device) -> Batch:
        """Prepare a batch, or a piece of one.

        Args:
            batch: of `build_train_loader`, on the CPU.
            device: where to.

        Returns:
            `pixel_values` (B, C, H, W) float32 in the place of `pixels` and `keys`, and the rest, on the device.
        """
        rest = moved({name: tensor for name, tensor in batch.items() if name not in ("keys", "pixels")}, device)
        if self.pixels is None:
            pixels = batch["pixels"].to(device, non_blocking=True)
        else:
            pixels = self._gathered(self.pixels, batch["rows"], rest["rows"])
        with one_thread(device):
            values = self.transform.batch(pixels, batch["keys"].numpy(), cut=self.pixels is None)
        return {"pixel_values": values, **rest}

    def _gathered(self, pixels: torch.Tensor, rows: torch.Tensor, rows_there: torch.Tensor) -> torch.Tensor:
        """Return the pixels of some rows, which are given on the CPU and on the device, on the device."""
        device = rows_there.device
        if device.type != "cuda":
            return rows_of(pixels, rows).to(device)
        if self._resident is None and _SHARE_OF_DEVICE * pixels.nbytes <= _memory(device):
            self._resident = pixels.to(device)
        if self._resident is not None:
            return self._resident.index_select(0, rows_there)
        return rows_of(pixels, rows).pin_memory().to(device, non_blocking=True)


def rows_of(pixels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of pixels on the CPU, a copy; by numpy, for one thread is enough for it."""
    return torch.from_numpy(pixels.numpy().take(rows.numpy(), axis=0))


def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory
