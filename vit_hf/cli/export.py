"""`vit-hf export`."""

import argparse
import re

from .words import Add


def add_commands(add: Add) -> None:
    """Add the command that turns a model into a graph."""
    export = add("export", _export, "Write a classifier as ONNX or torch.export, checked against PyTorch.")
    export.add_argument("model", metavar="FOLDER", help="model folder or Hub id")
    export.add_argument("--format", required=True, choices=("onnx", "torch-export"), help="what to write")
    export.add_argument("--output", metavar="OUT", help="new folder (default: FOLDER-FORMAT)")
    export.add_argument(
        "--image-size",
        type=_image_size,
        metavar="SIZE",
        help="pixels, N or HxW, or dynamic for any multiples of the patch (default: the model's)",
    )
    export.add_argument("--quantize", choices=("int8",), help="8-bit weights (onnx), accuracy before and after")
    export.add_argument(
        "--images", nargs="+", metavar="IMAGE", help="pictures to compare on (default: two of scikit-learn's)"
    )
    export.add_argument("--data", metavar="SOURCE", help="data for the accuracy (default: that of a run folder)")


def _image_size(text: str) -> tuple[int, int] | str:
    """Read `N`, `HxW` or `dynamic`; an `argparse` type."""
    if text == "dynamic":
        return text
    if (found := re.fullmatch(r"(\d+)(?:x(\d+))?", text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected N, HxW or dynamic")
    return int(found[1]), int(found[2] or found[1])


def _export(options: argparse.Namespace) -> int:
    from rich.console import Console

    from ..data.images import read_image
    from ..sharing.export import export_model

    images = [read_image(path, where=path) for path in options.images] if options.images else None
    with Console(stderr=True).status("exporting"):
        made = export_model(
            options.model,
            form=options.format,
            output=options.output,
            image_size=options.image_size,
            quantize=options.quantize,
            images=images,
            data=options.data,
        )
    for note in made.record["notes"]:
        print(f"note: {note}")
    for row in made.record["parity"]:
        shape = f"batch {row['batch']}, {row['height']}x{row['width']} pixels"
        print(f"{shape}: logits differ from PyTorch's by at most {row['largest_difference']:.1e}")
    if (results := made.results) is not None:
        before, latency = results["before"], results["latency"]
        print(f"on {results['n']:,} pictures of {results['data']}, split {results['split']}:")
        print(
            f"  top-1 {before['top1']:.2%} float32, {results['top1']:.2%} int8; same class {results['agreement']:.2%}"
        )
        print(f"  {results['bytes_before'] / 1e6:.2f} MB float32, {results['bytes'] / 1e6:.2f} MB int8")
        print(f"  time of int8 / float32: {latency['ratio']:.2f} ({latency['threads']} threads)")
    print(f"written: {made.folder}")
    return 0
