"""`vit-hf predict`, `summary`."""

import argparse
import json
import sys
from pathlib import Path

from .words import Add, positive


def add_commands(add: Add) -> None:
    """Add the commands that run or describe a model."""
    predict = add("predict", _predict, "Name what pictures show.")
    predict.add_argument("model", metavar="MODEL", help="model folder or Hub id")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    predict.add_argument("--top-k", type=positive, default=5, metavar="K", help="classes a picture (default: 5)")
    predict.add_argument("--save-plot", metavar="FILE", help="draw pictures and probabilities (png, pdf or svg)")
    predict.add_argument("--json", action="store_true", help="print JSON, one object a picture")

    summary = add("summary", _summary, "Print parameters, FLOPs and memory of a variant, or compare several.")
    summary.add_argument("variants", nargs="*", metavar="VARIANT", help="such as B/16 or R50+B/16 (default: all)")
    summary.add_argument("--image-size", type=positive, default=224, metavar="N", help="pixels (default: 224)")
    summary.add_argument("--num-labels", type=positive, default=1000, metavar="N", help="classes (default: 1000)")


def _predict(options: argparse.Namespace) -> int:
    from ..checkpoints.load import load_model
    from ..data.images import read_image
    from ..evaluation.scoring import classify
    from ..image_processing_vit_hf import to_rgb
    from ..inspection.plots import plot_predictions

    pictures = [to_rgb(read_image(path, where=path)) for path in options.images]
    model, processor = load_model(options.model)
    answers = classify(model, processor, pictures, top_k=options.top_k)
    for path, answer in zip(options.images, answers, strict=True):
        if options.json:
            print(json.dumps({"image": path, "predictions": [{"label": n, "probability": p} for n, p in answer]}))
        else:
            print(path)
            for name, probability in answer:
                print(f"  {probability:7.2%}  {name}")
    if options.save_plot:
        plot_predictions(pictures, answers, options.save_plot, titles=[Path(path).name for path in options.images])
        print(f"plot: {options.save_plot}", file=sys.stderr)
    return 0


def _summary(options: argparse.Namespace) -> int:
    from rich.console import Console, RenderableType

    from ..inspection.summary import compare, render, summarise
    from ..variants import VARIANTS, variant

    console, sizes = Console(), {"image_size": options.image_size, "num_labels": options.num_labels}
    with console.status("counting"):
        if len(options.variants) == 1:
            name = options.variants[0]
            shown: RenderableType = render(summarise(variant(name, **sizes)), title=name)
        else:
            shown = compare(options.variants or VARIANTS, **sizes)
    console.print(shown)
    return 0
