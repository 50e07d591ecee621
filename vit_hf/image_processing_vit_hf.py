"""Image processor of the Vision Transformer: any picture in, `pixel_values` out, the same on every run.

Evaluation follows the ViT paper (Dosovitskiy et al., 2021) and its official code: resize straight to 224 x 224 without
keeping the aspect ratio, bilinear, then (x / 255 - 0.5) / 0.5. On plain 8-bit RGB both classes equal the ViT processors
of transformers; they differ in what they accept, because one function, `to_rgb`, turns every picture into RGB first:

    input                              rule
    ---------------------------------  ----------------------------------------------------------------------------
    EXIF or XMP orientation            applied; data that cannot be read, or a value outside 1..8: a warning, and the
                                       image is used as it lies
    1, L, one channel                  the grey repeated on three channels
    P                                  the palette looked up
    LA, La, PA, RGBA, RGBa, a palette  composited over white
      or colour marked transparent,
      two or four channels
    CMYK, YCbCr, HSV, LAB, RGBX        Pillow's conversion (LAB by its sRGB profile); no other ICC profile is applied
    I;16 (L, B, N), I, uint16          16 bits to 8: divided by 257 and rounded, so 65535 -> 255; I outside 0..65535 is
                                       an error
    F, any float array                 range decides: within [0, 1] scaled by 255; within [0, 255] taken as it is;
                                       negative, above 255, NaN or Inf is an error. F is rounded to 8 bits
    uint8, bool array                  as it is; False -> 0, True -> 255
    other dtypes                       an error: 8 or 16 bits cannot be told from the numbers
    animation                          the current frame, which is the first one unless `seek` was called
    array layout                       (H, W), (H, W, C) or (C, H, W) with C in 1..4. Where both ends could be C,
                                       `input_data_format` decides; without it the only end that is 3, else the first
                                       (channels first) with a warning

8-bit pictures stay uint8 through a resize with antialiasing (rounded, as in transformers), float pictures stay float32:
the same rule in both classes. A path is opened and follows the table; a URL or a base64 text is decoded to RGB by
transformers itself. `do_convert_rgb=False` hands a picture to transformers untouched: no rule above holds then,
orientation included.

Shapes: B batch, C channels, H x W pixels.
"""

import copy
import os
import struct
import warnings
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict, load_image
from transformers.processing_utils import ImagesKwargs

from .files_vit_hf import MANIFEST, update_manifest

_AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_vit_hf.VitHfImageProcessor",
        "pil": "image_processing_vit_hf.VitHfImageProcessorPil",
    }
}
_TORCH_MODES = {
    PILImageResampling.NEAREST: "nearest-exact",
    PILImageResampling.BILINEAR: "bilinear",
    PILImageResampling.BICUBIC: "bicubic",
}
_TRANSPOSE = {  # EXIF orientation -> what brings the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's names of the formats that a path may have. JPEG covers MPO, which phones write into .jpg files; PPM covers
# PBM, PGM and PNM. Others are not tried: for some of them (EPS) Pillow starts other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

_TAG_TYPE_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_SHARED_TAG_BYTES = 2**20


def to_rgb(image, input_data_format: str | None = None):
    """Turn one picture into RGB by the rules of the module's table; the input is never changed.

    Args:
        image: a PIL image, or a numpy array or torch tensor of shape (H, W), (H, W, C) or (C, H, W), C in 1..4, with
            values uint8, uint16, bool, or float in [0, 1] or [0, 255].
        input_data_format: `"channels_first"` or `"channels_last"` for an array; None infers it.

    Returns:
        For a PIL image a new PIL image of mode RGB, upright and without metadata, so that applying `to_rgb` again
        changes nothing. For an array or tensor a torch tensor (3, H, W) on the input's device: uint8, or float32 in
        [0, 255] where the input was float.

    Raises:
        TypeError: not a PIL image, array or tensor.
        ValueError: no pixels, a shape, channel count, dtype or value range outside the above.
    """
    if isinstance(image, Image.Image):
        return _pil_to_rgb(image)
    colours, _ = _array_to_rgb(image, input_data_format)
    return colours


def _pil_to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise ValueError(f"image has no pixels (width x height {image.size}); expected at least 1 x 1: drop it")
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        rgb = _deep_grey_to_rgb(image)
    elif image.has_transparency_data:
        image_rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image_rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    orientation = orientation_of(image)
    if orientation in _TRANSPOSE:
        rgb = rgb.transpose(_TRANSPOSE[orientation])
    rgb.info = {}  # otherwise the orientation would be applied again by whoever reads it next
    return rgb


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Modes I, I;16* and F to RGB, rounded to 8 bits."""
    values = np.array(image)  # (H, W)
    if image.mode == "I":
        low, high = values.min(), values.max()
        if low < 0 or high > 65535:
            raise ValueError(
                f"image of mode I has values in [{low}, {high}]; expected 16 bits, 0..65535: rescale it to that range"
            )
        values = values.astype(np.uint16)
    if image.mode.startswith("I;16") and isinstance(transparent := image.info.get("transparency"), int):
        values[values == transparent] = 65535  # over white
    colours, _ = _array_to_rgb(values, None)  # (3, H, W)
    return Image.fromarray(colours.round().to(torch.uint8).permute(1, 2, 0).numpy())


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1, with a warning, where it cannot be read."""
    try:
        if raw := _raw_exif(image):
            refuse_shared_tags(raw)
            Image.Exif().load(raw)  # raises for a broken block; `getexif` is silent when the file plugin met it before
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:
        problem = f"EXIF data cannot be read ({error})"
    else:
        if orientation in range(1, 9):
            return orientation
        problem = f"EXIF orientation is {orientation!r}, expected 1..8"
    warnings.warn(f"{problem}; the image is used as it lies: rewrite or strip its EXIF data", stacklevel=2)
    return 1


def _raw_exif(image: Image.Image) -> bytes | None:
    """EXIF data as `getexif` takes it; older programs hide it in a text of PNG, in hexadecimal."""
    raw = image.info.get("exif")
    if raw is None and "Raw profile type exif" in image.info:
        raw = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return raw


def refuse_shared_tags(block: bytes) -> None:
    """Raise ValueError when tags of the first directory of a TIFF or EXIF block claim more bytes than there are.

    Whoever reads them keeps a copy for each tag, and thousands may claim the same megabyte.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 16:
        return
    big = block[2:4] in (b"+\0", b"\0+")  # BigTIFF
    counted, entry = (order + "Q", order + "HHQQ") if big else (order + "H", order + "HHII")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), block, 8 if big else 4)
    first, size = start + struct.calcsize(counted), struct.calcsize(entry)
    if first > len(block):
        return
    (count,) = struct.unpack_from(counted, block, start)
    entries = block[first : first + size * min(count, 65_535)]
    whole = entries[: len(entries) // size * size]
    claims = (_TAG_TYPE_BYTES.get(kind, 0) * number for _, kind, number, _ in struct.iter_unpack(entry, whole))
    claimed = sum(min(claim, len(block)) for claim in claims)  # a claim beyond the end reads to the end
    if claimed > len(block) + _SHARED_TAG_BYTES:
        raise ValueError(f"tags claim {claimed:,} bytes of {len(block):,}")


def _array_to_rgb(image: Any, input_data_format: str | None) -> tuple[torch.Tensor, bool]:
    """Array to ((3, H, W) uint8 or float32 in [0, 255], whether it was float in [0, 1])."""
    if isinstance(image, np.ndarray):
        shape = image.shape
        if image.dtype.kind not in "buf" or image.dtype.itemsize > 8:
            raise ValueError(_dtype_message(image.dtype))
        image = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))
    elif isinstance(image, torch.Tensor):
        shape = tuple(image.shape)
        image = image.detach()
    else:
        raise TypeError(
            f"image is a {type(image).__name__}; expected a PIL image, a numpy array or a torch tensor: convert it"
        )
    if len(shape) not in (2, 3):
        raise ValueError(
            f"image has shape {shape}; expected (H, W), (H, W, C) or (C, H, W): "
            "pass one image, or to the image processor a batch (B, C, H, W)"
        )
    if 0 in shape:
        raise ValueError(f"image has no pixels (shape {shape}); expected at least 1 in every dimension: drop it")
    image = image[None] if len(shape) == 2 else image.movedim(_channel_axis(shape, input_data_format), 0)  # (C, H, W)
    image, was_unit = _to_255(image, shape)
    return _blend_over_white(image).expand(3, -1, -1).contiguous(), was_unit


def _channel_axis(shape: tuple[int, ...], input_data_format: str | None) -> int:
    first, last = shape[0] in (1, 2, 3, 4), shape[2] in (1, 2, 3, 4)
    if input_data_format is not None:
        axis = 0 if ChannelDimension(input_data_format) == ChannelDimension.FIRST else 2
    elif first and last:
        axis = 2 if shape[2] == 3 and shape[0] != 3 else 0
        if (shape[0] == 3) == (shape[2] == 3):
            warnings.warn(
                f"image shape {shape} fits both layouts and is taken as (C, H, W): pass input_data_format",
                stacklevel=2,
            )
    elif first or last:
        axis = 0 if first else 2
    else:
        axis = 0 if shape[0] <= shape[2] else 2
    if shape[axis] not in (1, 2, 3, 4):
        raise ValueError(
            f"image has {shape[axis]} channels (shape {shape}); expected 1, 2, 3 or 4: "
            "select three bands first, or pass input_data_format if the channels are elsewhere"
        )
    return axis


def _to_255(image: torch.Tensor, shape: tuple[int, ...]) -> tuple[torch.Tensor, bool]:
    """Values to uint8, or to float32 in [0, 255] with whether they came in [0, 1]."""
    if image.dtype == torch.uint8:
        return image, False
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255, False
    if image.dtype == torch.uint16:
        return ((image.to(torch.int32) + 128) // 257).to(torch.uint8), False
    if not image.is_floating_point():
        raise ValueError(_dtype_message(image.dtype))
    image = image.to(torch.float32)
    low, high = image.min().item(), image.max().item()
    if not (low >= 0 and high <= 255):  # also where NaN makes every comparison false
        bad = int((~torch.isfinite(image)).sum())
        found = f"{bad} NaN or Inf values" if bad else f"float values in [{low:g}, {high:g}]"
        raise ValueError(
            f"image has {found} (shape {shape}); expected floats in [0, 1] or in [0, 255]: "
            "undo a normalisation, clip it, or divide by the largest possible value"
        )
    if 1 < high < 2:
        warnings.warn(
            f"float image has a largest value of {high:.9g}, just above 1, and is taken as nearly black of 0..255: "
            "if it is meant as [0, 1], clip it",
            stacklevel=2,
        )
    return (image * 255, True) if high <= 1 else (image, False)


def _blend_over_white(image: torch.Tensor) -> torch.Tensor:
    """(C, H, W) to (1 or 3, H, W): alpha, the last of 2 or 4 channels, composited over white."""
    if len(image) in (1, 3):
        return image
    if image.dtype == torch.uint8:
        colours, alpha = image[:-1].int(), image[-1:].int()
        return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)  # rounded, as Pillow does
    colours, alpha = image[:-1], image[-1:] / 255
    return colours * alpha + 255 * (1 - alpha)


def _dtype_message(dtype) -> str:
    return (
        f"image has dtype {dtype}; expected uint8 (0..255), uint16 (0..65535), bool, or float: "
        "cast it to the type that matches its range"
    )


def _flatten(images) -> list:
    """Nested lists, batches (B, C, H, W) or (B, H, W, C) and single images to a flat list of images."""
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in _flatten(item)]
    return list(images) if getattr(images, "ndim", None) == 4 else [images]


class VitHfImageKwargs(ImagesKwargs, total=False):
    """What the processors take beyond those of transformers.

    `crop_rounding`: where a central crop begins if the margin is odd: "floor" (transformers) or "round" to the nearest
    even number (torchvision, timm).
    `antialias`: whether a bilinear or bicubic resize to fewer pixels averages over all that it leaves out (Pillow,
    torchvision) or reads the nearest four or sixteen only, and is not rounded to 8 bits then (`tf.image.resize`,
    which the official ViT code calls).
    """

    crop_rounding: str
    antialias: bool


def _check_rounding(crop_rounding: str) -> str:
    if crop_rounding not in ("floor", "round"):
        raise ValueError(f"crop_rounding is {crop_rounding!r}; expected 'floor' or 'round'")
    return crop_rounding


class _VitHfDefaults:
    """What both backends share: the defaults, the way in and the way to disk."""

    valid_kwargs: Any = VitHfImageKwargs

    _auto_class: Any = "AutoImageProcessor"  # `save_pretrained` copies this file beside the JSON

    do_convert_rgb = True
    do_resize = True
    size: ClassVar[dict[str, int]] = {"height": 224, "width": 224}
    resample = PILImageResampling.BILINEAR
    do_center_crop = False
    crop_size: ClassVar[dict[str, int]] = {"height": 224, "width": 224}
    crop_rounding = "floor"
    antialias = True
    do_rescale = True
    do_normalize = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)

    def __init__(self, **kwargs):
        _check_rounding(kwargs.get("crop_rounding", "floor"))
        super().__init__(**kwargs)

    def preprocess(self, images, *args, crop_rounding: str | None = None, antialias: bool | None = None, **kwargs):
        """Process pictures; `crop_rounding` and `antialias`, too, hold for one call where they are given."""
        if crop_rounding is None and antialias is None:
            return super().preprocess(images, *args, **kwargs)  # type: ignore[misc]
        other: Any = copy.copy(self)
        other.crop_rounding = self.crop_rounding if crop_rounding is None else _check_rounding(crop_rounding)
        other.antialias = self.antialias if antialias is None else antialias
        return other.preprocess(images, *args, **kwargs)

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) in pixels of what the model sees."""
        settings: Any = self
        size = settings.crop_size if settings.do_center_crop else settings.size
        if not size.height or not size.width:
            raise ValueError(f"size is {dict(size)}; expected height and width, or a central crop with both")
        return size.height, size.width

    def set_image_size(self, height: int, width: int) -> None:
        """Give the model images of another size; a resize before a central crop keeps its proportion to the crop.

        Args:
            height: pixels.
            width: pixels.
        """
        settings: Any = self
        old_height, old_width = self.image_hw
        by_height, by_width = height / old_height, width / old_width
        factors = {"height": by_height, "width": by_width, "shortest_edge": max(by_height, by_width)}
        edges = {name: getattr(settings.size, name) for name in factors}
        settings.size = SizeDict(**{name: round(edge * factors[name]) for name, edge in edges.items() if edge})
        if settings.do_center_crop:
            settings.crop_size = SizeDict(height=height, width=width)

    def _rounded_crop(self, image, size: SizeDict):
        """Crop (..., H, W) centrally with the rounding of torchvision; None where that is not asked for or possible."""
        height, width = image.shape[-2:]
        if self.crop_rounding != "round" or not size.height or not size.width:
            return None
        if height < size.height or width < size.width:
            return None
        top, left = round((height - size.height) / 2), round((width - size.width) / 2)
        return image[..., top : top + size.height, left : left + size.width]

    def fetch_images(self, image_url_or_urls):
        """Open paths by the table's rules; URLs and base64 text through transformers; pass everything else on."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(item) for item in image_url_or_urls]
        if isinstance(image_url_or_urls, os.PathLike) or (
            isinstance(image_url_or_urls, str) and os.path.isfile(image_url_or_urls)
        ):
            with Image.open(image_url_or_urls, formats=FORMATS) as image:
                return to_rgb(image)
        return load_image(image_url_or_urls) if isinstance(image_url_or_urls, str) else image_url_or_urls

    def _prepare_images_structure(self, images, expected_ndims: int = 3) -> list:
        flat = _flatten(self.fetch_images(images))
        if not flat:
            raise ValueError("there are no images in the input; expected at least one: skip the empty batch")
        return flat

    def _to_working_format(self, image, input_data_format: str | None, do_rescale: bool | None) -> torch.Tensor:
        """One picture as (3, H, W) uint8, or float32 in [0, 255]; floats in [0, 1] stay so without `do_rescale`."""
        if isinstance(image, Image.Image):
            return torch.from_numpy(np.array(_pil_to_rgb(image))).permute(2, 0, 1).contiguous()
        colours, was_unit = _array_to_rgb(image, input_data_format)
        return colours / 255 if was_unit and not do_rescale else colours

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Write the settings and the code, as transformers does, and their entries in a manifest that is there."""
        saved = super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if os.path.isfile(os.path.join(save_directory, MANIFEST)):
            code = {f"{module.rpartition('.')[2]}.py" for module in (type(self).__module__, __name__)}
            files = {*code, "files_vit_hf.py", "preprocessor_config.json"} & set(os.listdir(save_directory))
            update_manifest(save_directory, sorted(files))
        return saved

    def to_dict(self) -> dict[str, Any]:
        """Settings for the JSON, with an `auto_map` that names the class of either backend."""
        settings = super().to_dict()  # type: ignore[misc]
        if type(self).__module__ == __name__:  # a subclass elsewhere keeps its own entry
            settings["auto_map"] = {auto_class: dict(classes) for auto_class, classes in _AUTO_MAP.items()}
        return settings


class VitHfImageProcessor(_VitHfDefaults, TorchvisionBackend):
    """Image processor on torch tensors: batched, and on a GPU with `device="cuda"`.

    Called with pictures it returns `pixel_values`, float32 (B, 3, 224, 224) in [-1, 1] with the defaults and
    `return_tensors="pt"`. Arguments are those of the processors of transformers; see the module for what is accepted.
    """

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, device=None, **kwargs):
        """One picture to a tensor (3, H, W): uint8, or float32 in [0, 255]; see `to_rgb` for the errors."""
        if not do_convert_rgb:
            return super().process_image(
                image, do_convert_rgb=False, input_data_format=input_data_format, device=device, **kwargs
            )
        image = self._to_working_format(image, input_data_format, kwargs.get("do_rescale"))
        return image if device is None else image.to(device)

    def resize(self, image: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Resize (..., H, W); float results are kept in [0, 255], where uint8 saturates too."""
        image = image if self.antialias else image.float()
        resized = super().resize(image, *args, **{"antialias": self.antialias, **kwargs})
        return resized.clamp(0, 255) if resized.is_floating_point() else resized

    def center_crop(self, image: torch.Tensor, size: SizeDict, **kwargs) -> torch.Tensor:  # type: ignore[override]
        """Crop (..., H, W) centrally, zero-padded where too small; `crop_rounding` decides an odd margin."""
        cropped = self._rounded_crop(image, size)
        return super().center_crop(image, size, **kwargs) if cropped is None else cropped


class VitHfImageProcessorPil(_VitHfDefaults, PilBackend):
    """The same image processor on Pillow and numpy; equal to `VitHfImageProcessor` up to the rounding of a resize."""

    def process_image(self, image, do_convert_rgb=None, input_data_format=None, **kwargs):
        """One picture to an array (3, H, W): uint8, or float32 in [0, 255]; see `to_rgb` for the errors."""
        if not do_convert_rgb:
            return super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format, **kwargs)
        return self._to_working_format(image, input_data_format, kwargs.get("do_rescale")).cpu().numpy()

    def resize(self, image: np.ndarray, size: SizeDict, resample=None, reducing_gap=None, **kwargs) -> np.ndarray:
        """Resize (C, H, W) with Pillow; floats channel by channel as floats, where the base class rounds to 8 bits.

        Without antialiasing, which Pillow always applies, torch does it.
        """
        if self.antialias and not np.issubdtype(image.dtype, np.floating):
            return super().resize(image, size, resample=resample, reducing_gap=reducing_gap, **kwargs)
        dummy = np.zeros((1, *image.shape[1:]), np.uint8)  # lets the base class work the target size out
        height, width = super().resize(dummy, size, resample=PILImageResampling.NEAREST).shape[1:]
        resample = PILImageResampling.BILINEAR if resample is None else resample
        if not self.antialias:
            mode = _TORCH_MODES.get(PILImageResampling(resample))
            if mode is None:
                raise ValueError(f"resample {resample!r} always antialiases; use bilinear, bicubic or nearest without")
            aligned = {} if mode == "nearest-exact" else {"align_corners": False}
            pixels = torch.from_numpy(np.ascontiguousarray(image))[None].float()
            resized = F.interpolate(pixels, (height, width), mode=mode, **aligned)[0].clamp(
                0, 255
            )  # (C, height, width)
            return resized.numpy()
        channels = [Image.fromarray(channel).resize((width, height), resample) for channel in image.astype(np.float32)]
        return np.stack([np.asarray(channel) for channel in channels]).clip(0, 255)  # (C, height, width)

    def center_crop(self, image: np.ndarray, size: SizeDict, **kwargs) -> np.ndarray:  # type: ignore[override]
        """Crop (C, H, W) centrally, zero-padded where too small; an odd pixel of padding goes right or below."""
        if (cropped := self._rounded_crop(image, size)) is not None:
            return cropped
        # The base class would put it left or above, unlike the torchvision backend.
        if size.height is not None and size.width is not None:
            rows, columns = max(size.height - image.shape[1], 0), max(size.width - image.shape[2], 0)  # missing ones
            image = np.pad(image, [(0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)])
        return super().center_crop(image, size, **kwargs)


__all__ = ["VitHfImageProcessor", "VitHfImageProcessorPil", "to_rgb"]
