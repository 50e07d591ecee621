"""The README.md of an exported folder, rendered from its records."""

from typing import Any

import PIL.Image

from ..image_processing_vit_hf import VitHfImageProcessor
from ..inference_vit_hf import normalization


def render_readme(record: dict[str, Any], results: dict[str, Any] | None, processor: VitHfImageProcessor) -> str:
    """Return the text: what it is, how to run it, how near it is to PyTorch, what 8 bits cost.

    Args:
        record: what export.json holds.
        results: what results.json holds, or None.
        processor: for the preprocessing in the code.
    """
    onnx = record["form"] == "onnx"
    kind = f"ONNX, opset {record['opset']}" if onnx else "a program of torch.export"
    size = record["image_size"]
    patch_height, patch_width = record["patch_size"]
    sides = f"{size[0]}, {size[1]}" if isinstance(size, list) else "H, W"
    lines = [
        f"# {record['model']} as {kind}",
        "",
        f"`{record['file']}`: `pixel_values` float32 (B, {record['num_channels']}, {sides}) to `logits` float32 "
        f"(B, {record['num_labels']}), any batch B.",
    ]
    if not isinstance(size, list):
        lines.append(
            f"H is a multiple of {patch_height}, W of {patch_width}, each at least two of them. Keep to that: "
            "nothing checks it, and the rest of another size is dropped."
        )
    pictures = _picture_code(processor, record["num_channels"])
    lines += [*(f"Note: {note}." for note in record["notes"]), "", "## Run", "", "```python"]
    lines += _onnx_code(pictures) if onnx else _torch_code(pictures)
    lines += ["```", ""]
    if "convert" in "".join(pictures):
        lines += [
            "So for opaque pictures of 8 bits; of others the image processor puts what is transparent over white, and "
            "brings 16 bits to 8.",
            "",
        ]
    lines.append(
        "`labels.json` names the classes, `preprocessor_config.json` holds the preprocessing; both stand in "
        f"`{record['file']}` too ({'`metadata_props`' if onnx else 'its extra files'})."
    )
    if not onnx:
        lines += [
            "",
            "`torch.export.load` is not safe: a .pt2 file may hold a pickle that runs code when it is loaded. Load "
            "only files whose origin you trust; the ONNX export and safetensors hold no code.",
        ]
    lines += ["", "## Checked", "", *_parity(record)]
    if results is not None:
        lines += ["", *_cost(results)]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, "", f"Made by vit-hf export with {versions}.", ""])


def _parity(record: dict[str, Any]) -> list[str]:
    float32 = " of the float32 graph, before quantisation," if record["quantize"] else ""
    head = f"Logits{float32} against PyTorch, the same pictures:"
    table = ["| batch | pixels | largest difference | largest logit |", "|---|---|---|---|"]
    for row in record["parity"]:
        numbers = f"{row['largest_difference']:.1e} | {row['largest_logit']:.2f}"
        table.append(f"| {row['batch']} | {row['height']} x {row['width']} | {numbers} |")
    return [head, "", *table]


def _cost(results: dict[str, Any]) -> list[str]:
    before, latency = results["before"], results["latency"]
    return [
        f"8-bit against float32 on {results['n']:,} pictures of {results['data']}, split {results['split']}, one at a "
        "time (the scale of the activations is that of a batch, so in larger batches logits move a little):",
        "",
        "| | float32 | int8 |",
        "|---|---|---|",
        f"| top-1 | {before['top1']:.2%} | {results['top1']:.2%} |",
        f"| cross-entropy | {before['loss']:.4f} | {results['loss']:.4f} |",
        f"| MB | {results['bytes_before'] / 1e6:.2f} | {results['bytes'] / 1e6:.2f} |",
        f"| ms a picture | {latency['ms_before']:.2f} | {latency['ms']:.2f} |",
        "",
        f"Both name the same class for {results['agreement']:.2%}. Time: medians of {latency['rounds']} runs in turns, "
        f"{latency['threads']} threads of this CPU; ratio {latency['ratio']:.2f}.",
    ]


def _picture_code(processor: VitHfImageProcessor, channels: int) -> list[str]:
    """Lines from a file to `pixels` float32 (1, C, H, W), with Pillow and numpy alone where they can do it."""
    settings: Any = processor
    if channels != 3:  # which the image processor makes of every picture
        height, width = settings.image_hw
        shape = f"(1, {channels}, {height}, {width})"
        return [f'pixels = np.zeros({shape}, "float32")  # yours, prepared as for training']
    plain = settings.do_convert_rgb and settings.do_resize and not settings.do_pad
    if not plain or not settings.antialias:  # Pillow always averages
        return [
            "from transformers import AutoImageProcessor",
            'processor = AutoImageProcessor.from_pretrained(".", trust_remote_code=True)',
            'pixels = processor(Image.open("picture.jpg"), return_tensors="np")["pixel_values"]',
        ]
    lines = ['image = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB")']
    size, resample = settings.size, PIL.Image.Resampling(settings.resample).name
    if size.shortest_edge:
        edge = f"[side * {size.shortest_edge} // min(image.size) for side in image.size]"
        lines.append(f"image = image.resize({edge}, Image.Resampling.{resample})")
    else:
        lines.append(f"image = image.resize(({size.width}, {size.height}), Image.Resampling.{resample})")
    if settings.do_center_crop:
        height, width = settings.crop_size.height, settings.crop_size.width
        left, top = f"(image.width - {width}) / 2", f"(image.height - {height}) / 2"
        rounding = "round" if settings.crop_rounding == "round" else "int"
        lines.append(f"left, top = {rounding}({left}), {rounding}({top})")
        lines.append(f"image = image.crop((left, top, left + {width}, top + {height}))")
    factor, mean, std = normalization(settings, 3)
    scaled = "/ 255" if factor == 1 / 255 else f"* {factor}"
    lines.append(f"pixels = (np.asarray(image) {scaled} - {mean}) / {std}")
    lines.append('pixels = pixels.transpose(2, 0, 1)[None].astype("float32")  # (1, 3, H, W)')
    return lines


def _onnx_code(pictures: list[str]) -> list[str]:
    return [
        "import json",
        "from pathlib import Path",
        "import numpy as np, onnxruntime",
        "from PIL import Image, ImageOps",
        *pictures,
        'session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])',
        'logits = session.run(["logits"], {"pixel_values": pixels})[0][0]',
        'labels = json.loads(Path("labels.json").read_text(encoding="utf-8"))',
        "for index in logits.argsort()[::-1][:5]:",
        "    print(labels[index], logits[index])",
    ]


def _torch_code(pictures: list[str]) -> list[str]:
    return [
        "import json",
        "from pathlib import Path",
        "import numpy as np, torch",
        "from PIL import Image, ImageOps",
        *pictures,
        'program = torch.export.load("model.pt2").module()',
        "logits = program(torch.from_numpy(pixels))[0]",
        'labels = json.loads(Path("labels.json").read_text(encoding="utf-8"))',
        "for index in logits.argsort(descending=True)[:5].tolist():",
        "    print(labels[index], logits[index].item())",
    ]
