"""`vit-hf convert`, `export-weights`, `verify-conversion`."""

import argparse
import shlex
from pathlib import Path

from .words import Add, parse_fields

SOURCES = ("google", "timm", "torchvision", "transformers")


def add_commands(add: Add) -> None:
    """Add the commands about weights of other libraries."""
    fields = (
        "Config fields can be set as --FIELD VALUE: what the file does not tell (--num_attention_heads 6), or what is "
        "to change (--image_size 384, --patch_size 8, --num_labels 10)."
    )
    convert = add(
        "convert",
        _convert,
        "Turn weights of google, timm, torchvision or transformers into a model folder, with a receipt.",
        takes_fields=True,
        epilog=fields,
    )
    convert.add_argument("input", metavar="IN", help=".npz, .safetensors or .pth file, folder, or Hub id")
    convert.add_argument("output", metavar="OUT", help="new model folder")
    _add_source(convert)

    export = add("export-weights", _export_weights, "Write a model's weights for another library.")
    export.add_argument("model", metavar="MODEL", help="model folder or Hub id")
    export.add_argument("output", metavar="OUT", help="new .npz, .safetensors or .pth file, or folder (no suffix)")
    export.add_argument("--target", required=True, choices=SOURCES, help="library to write for")

    verify = add(
        "verify-conversion",
        _verify_conversion,
        "Run the original library and ours on the same images and print the largest differences.",
        takes_fields=True,
        epilog=fields,
    )
    verify.add_argument("input", metavar="IN", help=".npz, .safetensors or .pth file, folder, or Hub id")
    verify.add_argument("--images", nargs="+", metavar="IMAGE", help="picture files (default: two of scikit-learn's)")
    _add_source(verify)


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument("--source", choices=SOURCES, help="library of the file (default: found out)")
    command.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub id")


def _convert(options: argparse.Namespace) -> int:
    from ..checkpoints.export import write_model_folder
    from ..checkpoints.facts import AT_LOAD
    from ..checkpoints.load import load_checkpoint

    folder = Path(options.output)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give a new folder, or remove it")
    fields = parse_fields(options.overrides)
    model = load_checkpoint(options.input, source=options.source, revision=options.revision, **fields)
    write_model_folder(model, folder)
    print(f"{vars(model)['receipt']}\n\nmodel, image processor and receipt.json: {folder}\n\nnext:")
    told = [word for name in fields if name not in AT_LOAD for word in (f"--{name}", str(fields[name]))]
    told += ["--source", options.source] if options.source else []
    told += ["--revision", options.revision] if options.revision else []
    print(f"  {shlex.join(['vit-hf', 'verify-conversion', options.input, *told])}")
    print(f"  vit-hf predict {shlex.quote(str(folder))} PICTURE.jpg")
    return 0


def _export_weights(options: argparse.Namespace) -> int:
    from ..checkpoints.export import export_checkpoint
    from ..image_processing_vit_hf import VitHfImageProcessor
    from ..modeling_vit_hf import VitHfForImageClassification

    model = VitHfForImageClassification.from_pretrained(options.model)
    processor = VitHfImageProcessor.from_pretrained(options.model)
    print(f"written: {export_checkpoint(model, options.output, target=options.target, processor=processor)}")
    return 0


def _verify_conversion(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from ..checkpoints.verify import verify_conversion
    from ..data.images import read_rgb

    images = [read_rgb(path, where=path) for path in options.images] if options.images else None
    fields = parse_fields(options.overrides)
    found = verify_conversion(options.input, images, source=options.source, revision=options.revision, **fields)
    print(f"{options.input}\nagainst {found.original}\non {found.images} images")
    table = Table()
    for name in ("quantity", "largest difference", "largest value", "note"):
        table.add_column(name, justify="right" if name.startswith("largest") else "left", no_wrap=name == "quantity")
    for row in found.differences:
        numbers = ["-" if value is None else f"{value:.2e}" for value in (row.largest, row.scale)]
        table.add_row(row.quantity, *numbers, row.note)
    Console().print(table)
    print("the outputs agree" if found.agrees else "the outputs DIFFER by more than rounding")
    return 0 if found.agrees else 1
