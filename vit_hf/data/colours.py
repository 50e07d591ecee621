"""Changes of colour and sharpness, a batch at a time, each picture by its own strength.

Each equals torchvision.transforms.v2.functional on a uint8 tensor, picture by picture, bit for bit on a CPU: the same
float32 steps in the same order, with a tensor of strengths for a number. Nothing waits for the device.

Shapes: B pictures, C channels (3, red, green, blue), H x W pixels.
"""

import torch
import torch.nn.functional as F

from .host import to_bytes

_LARGE = 48 * 48  # pixels of a picture from which on a CPU counts values channel by channel
GREY = (0.2989, 0.587, 0.114)  # torchvision's; Pillow's are 0.299, 0.587, 0.114


def _per_picture(numbers: torch.Tensor) -> torch.Tensor:
    """(B,) to (B, 1, 1, 1)."""
    return numbers.view(-1, 1, 1, 1)


def _clipped(values: torch.Tensor) -> torch.Tensor:
    return to_bytes(values.clamp_(0, 255))


def luma(pixels: torch.Tensor) -> torch.Tensor:
    """Return the brightness of each pixel of (B, C, H, W) float32, (B, 1, H, W), not rounded."""
    red, green, blue = pixels.split(1, dim=1)
    return red.mul(GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def greyscale(pixels: torch.Tensor) -> torch.Tensor:
    """Return pictures without colour, (B, C, H, W) uint8."""
    return to_bytes(luma(pixels.float())).expand_as(pixels)


def blend(pixels: torch.Tensor, own: torch.Tensor, rest: torch.Tensor, from_mean: torch.Tensor) -> torch.Tensor:
    """Change brightness, saturation or contrast of each picture.

    Args:
        pixels: (B, C, H, W) uint8.
        own: (B,) factor of the pixels, from 0 on; 1 changes nothing.
        rest: (B,) factor of what they are mixed with: 0 for brightness, 1 - own for saturation and contrast.
        from_mean: (B,) bool, whether that is the mean brightness of the picture (contrast) or that of the pixel.
    """
    values = pixels.float()
    grey = luma(values).floor_()
    mean = grey.sum(dim=(1, 2, 3), keepdim=True, dtype=torch.float64) / grey[0].numel()  # whole numbers: exact
    other = torch.where(_per_picture(from_mean), mean.float(), grey)
    # The second product is not rounded on its own, as in torchvision's addition with a factor.
    return _clipped(values.mul_(_per_picture(own)).addcmul_(other, _per_picture(rest)))


def sharpness(pixels: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """Mix all but the outermost pixels with their smoothed version (Pillow's `SMOOTH`), by 1 - factor (B,)."""
    if min(pixels.shape[-2:]) <= 2:
        return pixels
    values = pixels.float()
    rows = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    inner = values[..., 1:-1, 1:-1]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    smoothed = sums.div_(13).round_()  # thirteenths are never halves
    inner.copy_(torch.addcmul(inner, smoothed.sub_(inner), _per_picture(rest)))
    return _clipped(values)


def solarize(pixels: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """Invert the values of (B, C, H, W) uint8 from a threshold on, (B,) uint8."""
    inverts = (pixels >= _per_picture(thresholds)).view(torch.uint8).neg_()  # 255 or 0
    return inverts.bitwise_xor_(pixels)


def posterize(pixels: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Keep some bits of the values of (B, C, H, W) uint8, those of a mask (B,) uint8."""
    return pixels.bitwise_and(_per_picture(masks))


def autocontrast(pixels: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to 0..255; one without contrast stays."""
    values = pixels.float()
    low, high = values.amin(dim=(2, 3), keepdim=True), values.amax(dim=(2, 3), keepdim=True)
    flat = low == high
    scale = torch.where(flat, 1.0, (high - low).mul_(1 / 255))
    return _clipped(values.sub_(torch.where(flat, 0.0, low)).div_(scale))


def equalize(pixels: torch.Tensor) -> torch.Tensor:
    """Spread each channel so that all of 0..255 come about as often, as `PIL.ImageOps.equalize` does."""
    batch, channels, height, width = pixels.shape
    count = height * width
    narrow = pixels.reshape(batch * channels, count)
    values = narrow.long()
    if pixels.device.type == "cpu" and count > _LARGE:
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in narrow])  # (B * C, 256)
    else:
        counts = values.new_zeros(batch * channels, 256).scatter_add_(1, values, values.new_ones(()).expand_as(values))
    below = counts.cumsum(1)
    last = counts.gather(1, narrow.amax(1, keepdim=True).long())
    step = (count - last).div_(255, rounding_mode="floor")  # (B * C, 1)
    table = (below + step // 2).div_(step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    table = F.pad(table[:, :-1], (1, 0))
    table = torch.where(step > 0, table, torch.arange(256, device=pixels.device)).to(torch.uint8)
    return table.gather(1, values).view_as(pixels)


def gaussian_blur(pixels: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """Blur each picture, mirrored at its edges.

    Args:
        pixels: (B, C, H, W) uint8.
        kernels: (B, taps), float32, of both sides, odd and at most 2 * min(H, W) - 1 taps; see `gaussian_kernels`.
    """
    values = pixels.float()
    for dim in (3, 2):
        values = _smoothed(values, kernels, dim)
    return to_bytes(values.round_())


def _smoothed(values: torch.Tensor, kernels: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the sum of neighbours along a side by symmetric weights (B, taps), added up tap by tap."""
    size, reach = values.shape[dim], kernels.shape[1] // 2
    padding = [reach, reach, 0, 0] if dim == 3 else [0, 0, reach, reach]
    padded = F.pad(values, padding, mode="reflect")
    found = values * _per_picture(kernels[:, reach])
    for k in range(1, reach + 1):
        pair = padded.narrow(dim, reach - k, size) + padded.narrow(dim, reach + k, size)
        found.addcmul_(pair, _per_picture(kernels[:, reach + k]))
    return found


def gaussian_kernels(taps: int, sigmas: torch.Tensor) -> torch.Tensor:
    """Return the kernels of torchvision's `GaussianBlur`, (B, taps) float32, whose standard deviations are (B,).

    Its exponent is -(x / sigma)**2 with x spread over the taps divided by the square root of 2.
    """
    reach = (taps - 1) / (2 * 2**0.5)
    places = torch.linspace(-reach, reach, taps, dtype=torch.float32, device=sigmas.device)
    return (places / sigmas[:, None]).pow(2).neg().softmax(dim=1)
