"""`vit-hf predict`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .words import Add, positive

_AT_ONCE = 8  # pictures in memory: 60 of 12 megapixels then take 2.4 GiB, 32 at once 5.5
_DRAWN = 1024  # pixels of the longer side, of a picture that is drawn


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
    from ..data.bad_images import BAD
    from ..data.images import read_rgb
    from ..evaluation.scoring import classify
    from ..inspection.plots import check_pages, plot_predictions
    from ..inspection.style import check_picture_name

    if options.save_plot:
        check_picture_name(options.save_plot)
        check_pages(len(options.images), options.save_plot)
    model, processor = load_model(options.model)
    drawn: list[tuple[Any, Any, str]] = []  # picture, answer, title
    failed = False
    for start in range(0, len(options.images), _AT_ONCE):
        read = []
        for path in options.images[start : start + _AT_ONCE]:
            try:
                read.append((path, read_rgb(path, where=path)))
            except BAD as error:  # the others have their answers
                print(f"vit-hf predict: error: {error}", file=sys.stderr)
                failed = True
        answers = classify(model, processor, [picture for _, picture in read], top_k=options.top_k)
        for (path, picture), answer in zip(read, answers, strict=True):
            if options.json:
                print(json.dumps({"image": path, "predictions": [{"label": n, "probability": p} for n, p in answer]}))
            else:
                print(path)
                for name, probability in answer:
                    print(f"  {probability:7.2%}  {name}")
            if options.save_plot:
                picture.thumbnail((_DRAWN, _DRAWN))
                drawn.append((picture, answer, Path(path).name))
    if drawn:
        pictures, answers, titles = (list(part) for part in zip(*drawn, strict=True))
        plot_predictions(pictures, answers, options.save_plot, titles=titles)
        print(f"plot: {options.save_plot}", file=sys.stderr)
    return int(failed)
