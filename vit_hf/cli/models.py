"""`vit-hf predict`."""

import argparse
import json
import sys
from pathlib import Path

from .words import Add, positive


def add_commands(add: Add) -> None:
    """Add the command that runs a model."""
    predict = add("predict", _predict, "Name what pictures show.")
    predict.add_argument("model", metavar="MODEL", help="model folder or Hub id")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    predict.add_argument("--top-k", type=positive, default=5, metavar="K", help="classes a picture (default: 5)")
    predict.add_argument("--save-plot", metavar="FILE", help="draw pictures and probabilities (png, pdf or svg)")
    predict.add_argument("--json", action="store_true", help="print JSON, one object a picture")


def _predict(options: argparse.Namespace) -> int:
    from ..checkpoints.load import load_model
    from ..data.images import read_rgb
    from ..evaluation.scoring import classify
    from ..inspection.plots import plot_predictions
    from ..inspection.style import check_picture_name

    if options.save_plot:
        check_picture_name(options.save_plot)
    pictures = [read_rgb(path, where=path) for path in options.images]
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
