"""`vit-hf summary`, `inspect`."""

import argparse
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .words import Add, positive

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..configuration_vit_hf import VitHfConfig

TEST_PICTURES, TEST_DRAWN = 32, 4  # of a run folder's own data: measured, and drawn one by one
DRAWN = 12  # of pictures that are given
RECONSTRUCTIONS = "reconstructions.png"  # of a model for masked images


def add_commands(add: Add) -> None:
    """Add the commands that describe a model."""
    summary = add("summary", _summary, "Print parameters, FLOPs and memory of a network, or compare several.")
    names = "variant such as B/16 or R50+B/16, model folder, weights file or Hub id (default: all variants)"
    summary.add_argument("models", nargs="*", metavar="MODEL", help=names)
    summary.add_argument("--image-size", type=positive, metavar="N", help="pixels (default: 224, or a model's own)")
    summary.add_argument("--num-labels", type=positive, metavar="N", help="classes (default: 1000, or a model's own)")

    inspect = add(
        "inspect",
        _inspect,
        "Draw what a model has learned: filters, positions, attention distance, attention over pictures, patches.",
        epilog="Without pictures, those of the test split of a run folder are taken. Of a model for masked images: "
        "what it sees, predicts and should predict.",
    )
    inspect.add_argument("model", metavar="MODEL", help="model folder, weights file or Hub id")
    inspect.add_argument("images", nargs="*", metavar="IMAGE", help="picture files")
    inspect.add_argument("--output", metavar="DIR", help="new folder (default: MODEL-inspection in this folder)")


def _summary(options: argparse.Namespace) -> int:
    from rich.console import Console, RenderableType
    from rich.markup import escape

    from ..inspection.summary import compare, render, summarise
    from ..variants import VARIANTS

    console = Console()
    sizes = {"image_size": options.image_size, "num_labels": options.num_labels}
    sizes = {name: value for name, value in sizes.items() if value is not None}
    with console.status("counting"):
        configs = {name: _config(name, sizes) for name in options.models or VARIANTS}
        if len(options.models) == 1:
            name, config = next(iter(configs.items()))
            shown: RenderableType = render(summarise(config), title=escape(name))
        else:
            shown = compare(configs)
    console.print(shown)
    return 0


def _config(name: str, sizes: dict[str, int]) -> "VitHfConfig":
    """Return the config of a variant, or of a model: what is on disk, or looks like a Hub id and like no variant."""
    from ..variants import variant

    if not Path(name).exists() and ("/" not in name or re.fullmatch(r"[\w+]+/\d+", name)):
        return variant(name, **sizes)
    from ..checkpoints.load import load_config

    return load_config(name, **sizes)


def _inspect(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape

    from ..checkpoints.load import load_model, our_settings
    from ..evaluation.output import check_output, published
    from ..inspection.folder import write_inspection
    from ..inspection.summary import render, summarise

    path = Path(options.model).resolve()
    output = Path(options.output or f"{path.stem if path.is_file() else path.name}-inspection")
    check_output(output)
    given = _given(options.images)
    if (our_settings(options.model) or {}).get("architectures") == ["VitHfForMaskedImageModeling"]:
        return _reconstruct(options, given, output)
    model, processor = load_model(options.model)
    pictures = given if options.images else _tested(Path(options.model))
    summary = summarise(model.config)
    Console().print(render(summary, title=escape(options.model)))
    with Console(stderr=True).status("drawing") as status, published(output) as folder:
        written = write_inspection(
            model.eval(),
            processor,
            pictures,
            folder,
            summary=summary,
            drawn=DRAWN if options.images else TEST_DRAWN,
            name=options.model,
            on_step=lambda what: status.update(what),
        )
    if model.config.resnet_stem_layers is not None:
        print("\nfilters: none of pixels; the patch projection of a hybrid sees the feature maps of its ResNet stem")
    if (count := len(options.images)) > DRAWN:
        print(f"\nattention distance: over all {count:,} pictures; the other figures are of the first {DRAWN}")
    print(f"\nwritten to {output}:\n  " + "\n  ".join(written))
    return 0


def _reconstruct(options: argparse.Namespace, given: Iterator[tuple[str, "Image"]], output: Path) -> int:
    """Draw what a model for masked images predicts; hidden is what its recipe says, else three quarters."""
    from ..data.mixing import PatchMasking
    from ..evaluation.output import published
    from ..image_processing_vit_hf import VitHfImageProcessor
    from ..inspection.reconstructions import draw_reconstructions
    from ..inspection.style import save_figure
    from ..masked_vit_hf import VitHfForMaskedImageModeling
    from ..training.recipe import Recipe

    model = VitHfForMaskedImageModeling.from_pretrained(options.model).eval()
    path = Path(options.model) / "recipe.yaml"
    ratio, side = 0.75, model.config.patch_hw[0]
    if path.is_file():
        augmentation = Recipe.from_yaml(path).augmentation
        ratio, side = augmentation.mask_ratio, augmentation.mask_patch_size
    pictures = list(islice(given if options.images else _tested(Path(options.model)), DRAWN))
    if not pictures:
        raise ValueError("there is nothing to reconstruct; give IMAGE ...")
    masking = PatchMasking(ratio=ratio, mask_patch_size=side, patch_hw=model.config.patch_hw, seed=0)
    hidden = masking.draw(list(range(len(pictures))), *model.config.image_hw)["bool_masked_pos"]
    processor = VitHfImageProcessor.from_pretrained(options.model)
    figure, errors = draw_reconstructions(model, processor, pictures, hidden)
    with published(output) as folder:
        save_figure(figure, folder / RECONSTRUCTIONS)
    print(f"seen, predicted and real, {ratio:.0%} of each picture hidden: {output / RECONSTRUCTIONS}")
    print(f"{model.error_name}, mean of {len(errors)} pictures: {sum(errors) / len(errors):.4f}")
    return 0


def _given(paths: list[str]) -> Iterator[tuple[str, "Image"]]:
    """Read picture files when they are needed, by their names without suffix; all are looked for at once."""
    from ..data.images import read_rgb

    if missing := [path for path in paths if not Path(path).is_file()]:
        raise FileNotFoundError(f"no picture {missing[0]}; check the path")
    return ((Path(path).stem, read_rgb(path, where=path)) for path in paths)


def _tested(folder: Path) -> Iterator[tuple[str, "Image"]]:
    """Read the first pictures of a run folder's own test split; none of a model that tells no data."""
    from ..data.images import read_rgb
    from ..evaluation.run import open_data

    if not (folder / "recipe.yaml").is_file():
        print("no pictures: give IMAGE ... for attention and patches", file=sys.stderr)
        return iter(())
    try:
        opened = open_data(folder, None)
    except (OSError, ValueError) as error:
        print(f"no pictures ({error}): give IMAGE ... for attention and patches", file=sys.stderr)
        return iter(())
    source, split = opened.source, opened.test_name
    return (
        (
            f"{split}_{row}_is_{opened.id2label[sample[source.label_column]]}",
            read_rgb(sample[source.image_column], where=f"row {row} of split {split}"),
        )
        for row, sample in enumerate(islice(opened.test, TEST_PICTURES))
    )
