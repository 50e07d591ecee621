"""What is known on the host, on its way to the device, which it must not wait for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

_IN_CACHE = 2**18  # numbers


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return the array as a tensor there; on CUDA through pinned memory, so that neither side waits."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def change_rows(pixels: torch.Tensor, rows: np.ndarray, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Replace some rows of a tensor by what a function of them gives, in place; numpy moves them faster on a CPU."""
    if pixels.device.type == "cpu":
        shared = pixels.numpy()
        shared[rows] = change(torch.from_numpy(shared[rows])).numpy()
        return pixels
    places = to_device(rows, pixels.device)
    return pixels.index_copy_(0, places, change(pixels.index_select(0, places)))


def by_pieces(pixels: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return what a function makes of pictures (B, C, H, W) uint8, each by itself: as many, float32.

    Of a large batch on a CPU it gets a few at a time, which stay in the cache, as float32 that it may change in place;
    else all, as they are. What a large batch becomes lies in memory of numpy's, for which Linux is asked for huge
    pages: to come by 19 MB of small ones (32 pictures of 224 pixels) can take as long as all that is done here.
    """
    if pixels.device.type != "cpu" or pixels.numel() <= 2 * _IN_CACHE:
        return change(pixels)
    found = torch.from_numpy(np.empty(pixels.shape, np.float32))
    size = max(1, _IN_CACHE // max(1, pixels.shape[1:].numel()))
    for some, values in zip(pixels.split(size), found.split(size), strict=True):
        made = change(values.copy_(some))
        if made is not values:
            values.copy_(made)
    return found


def to_bytes(values: torch.Tensor) -> torch.Tensor:
    """Drop the fractions of float32 values within 0..255, uint8; a CPU does it faster in two steps."""
    return (values.to(torch.int16) if values.device.type == "cpu" else values).to(torch.uint8)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Let float32 matrix products be of 24 bits within, where a caller has allowed TF32, bfloat16 or autocast."""
    kernels = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [kernel.fp32_precision for kernel in kernels]
    autocasts = torch.amp.is_autocast_available(device.type)
    for kernel in kernels:
        kernel.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False) if autocasts else nullcontext():
            yield
    finally:
        for kernel, precision in zip(kernels, before, strict=True):
            kernel.fp32_precision = precision


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Let one thread of the CPU do what is a hundred short operations.

    Two threads wait for each other after each of them, and where the machine has other work, such as loader processes,
    each wait is a time slice. Measured on two cores: pictures of 224 pixels with two loader processes, mixing included,
    in 0.62 of the time that two threads take; 128 pictures of 32 pixels beside four busy processes in a sixteenth.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
