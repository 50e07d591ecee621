"""Model cards rendered from the records of runs: every number comes from `results.json` or `recipe.yaml`."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..training.recipes import RECIPES

_DATASETS = {"digits": "UCI handwritten digits (bundled with scikit-learn)"}

_MASKED = "An encoder pre-trained without labels (SimMIM: hidden patches are predicted in pixels), to fine-tune,"
_USE_CLASSIFIER = """```python
from transformers import pipeline

classify = pipeline("image-classification", model="FOLDER_OR_HUB_ID", trust_remote_code=True)
print(classify("picture.png"))
```
"""
_USE_MASKED = """```bash
vit-hf train vit_finetune --model.init_from FOLDER_OR_HUB_ID --data SOURCE
```

```python
from transformers import AutoModelForMaskedImageModeling

model = AutoModelForMaskedImageModeling.from_pretrained("FOLDER_OR_HUB_ID", trust_remote_code=True)
```
"""
_LIMITS_MASKED = "A start for fine-tuning, and for study. It names nothing by itself. It has not been tested for bias."


def render_card(runs: Sequence[str | Path]) -> str:
    """Render the README.md of a model repo, or of several runs of one recipe.

    Args:
        runs: finished run folders of the same recipe; several give mean and spread over their seeds.

    Returns:
        Markdown with the Hub's metadata block.

    Raises:
        FileNotFoundError: a folder without results.json or recipe.yaml.
        ValueError: no run, runs of different recipes (other than in the seed) or of different data, or a seed twice.
    """
    folders = [Path(run) for run in runs]
    if not folders:
        raise ValueError("there is no run to render a card of; expected at least one finished run folder")
    for folder in folders:
        for name in ("results.json", "recipe.yaml"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}; expected the folder of a finished run")
    results = [json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in folders]
    recipes = [yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")) for folder in folders]
    for folder, recipe, result in zip(folders, recipes, results, strict=True):
        if {**recipe, "seed": 0} != {**recipes[0], "seed": 0} or result["data"] != results[0]["data"]:
            raise ValueError(f"{folder} is not a run of the same recipe and data as {folders[0]}; render them apart")
    seeds = [result["seed"] for result in results]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have the seeds {seeds}; expected each once, or the spread would be too small")
    first, recipe = results[0], recipes[0]
    scored: dict[str, Any] = {}
    if "top1" in first:
        scored["pipeline_tag"] = "image-classification"
        scored["model_name"] = f"vit-hf {first['recipe']}"
        scored["eval_results"] = [_eval_result(first, statistics.fmean(result["top1"] for result in results))]
    task = "image-classification" if "top1" in first else "masked-image-modeling"
    data = ModelCardData(
        datasets=first["data"]["source"] if first["data"]["kind"] == "hub" else None,
        library_name="transformers",
        tags=["vit_hf", "vision-transformer", task],
        **scored,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(results, recipe)}"
    return str(ModelCard(text))


def _eval_result(result: dict[str, Any], top1: float) -> EvalResult:
    source = result["data"]["source"]
    return EvalResult(
        task_type="image-classification",
        dataset_type=source if source != "digits" else "sklearn-digits",
        dataset_name=_DATASETS.get(source, source),
        dataset_revision=result["data"]["revision"],
        dataset_split=result["split"],
        metric_type="accuracy",
        metric_name="top-1",
        metric_value=round(top1, 4),
    )


def _body(results: list[dict[str, Any]], recipe: dict[str, Any]) -> str:
    first = results[0]
    source = first["data"]["source"]
    splits = first["data"]["splits"].items()
    sizes = ", ".join(f"{name} {split['n']:,}" if split["n"] else f"{name} streamed" for name, split in splits)
    held_out = "held out of the training split" if recipe["data"]["validation_fraction"] else "of the validation split"
    kept = f"the best on pictures {held_out}" if first["kept"] == "best" else "the last of the run"
    config = {key: value for key, value in recipe["model"].items() if value not in (None, [])}
    is_classifier = "top1" in first
    kind = f"An image classifier with {first['data']['num_labels']} classes" if is_classifier else _MASKED
    return f"""# {first["recipe"]}: a Vision Transformer trained with vit-hf
{_shortened(first, recipe)}
{kind} and {first["parameters"]:,} parameters, trained on
{_DATASETS.get(source, source)}: {", ".join(f"{key} {value}" for key, value in config.items())}.

## Results

{_table(results)}

Scored on the split "{first["split"]}", every picture once, after training. The weights are {kept}.
{"The spread is the standard deviation over the seeds." if len(results) > 1 else ""}

## Use

{_USE_CLASSIFIER if is_classifier else _USE_MASKED}
With `import vit_hf` before it, `trust_remote_code` is not needed. The image processor beside the weights is the one
that the scores above were measured with.

## Intended use and limits

{_limits(first) if is_classifier else _LIMITS_MASKED}

## Data

{_DATASETS.get(source, source)}: {sizes} pictures. SHA-256 of the content:

{chr(10).join(f"- {name}: `{split['sha256']}`" for name, split in splits)}

## Training

```bash
{_command(first["command"])}
```

{first["steps"]:,} steps{f" ({first['epochs']:.1f} epochs)" if first["epochs"] else ""}, {first["device"]}, \
{first["processes"]} process{"es" if first["processes"] > 1 else ""}, precision {recipe["mixed_precision"]}. \
Versions: {", ".join(f"{name} {number}" for name, number in first["versions"].items())}.

<details><summary>Recipe</summary>

```yaml
{yaml.safe_dump(recipe, sort_keys=False).strip()}
```

</details>

## Reference

Dosovitskiy et al., An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, ICLR 2021,
[arXiv 2010.11929](https://arxiv.org/abs/2010.11929).
"""


def _limits(first: dict[str, Any]) -> str:
    return f"""For pictures like those it was trained on, and for study. It gives one of its \
{first["data"]["num_labels"]} classes
for any picture, also for one that shows none of them. It has not been tested on other data, nor for bias."""


def _command(command: str) -> str:
    """Return the command without the folder of the run, and absolute paths by their last name only."""
    words, kept = iter(command.split()), []
    for word in words:
        if word == "--output":
            next(words, None)
        elif not word.startswith("--output="):
            kept.append(Path(word).name if word.startswith(("/", "~")) else word)
    return " ".join(kept)


def _shortened(result: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Return a warning where the run had fewer pictures than there are or fewer steps than its recipe has, else ""."""
    data, reasons = recipe["data"], []
    if data["max_train_images"]:
        reasons.append(f"trained on at most {data['max_train_images']:,} pictures")
    if data["max_test_images"]:
        reasons.append(f"scored on at most {data['max_test_images']:,} pictures")
    if result["recipe"] in RECIPES:
        full = RECIPES[result["recipe"]]().optimization
        unit, planned = ("epochs", full.epochs) if full.max_steps is None else ("steps", full.max_steps)
        done = result[unit] or 0
        if done < 0.99 * planned:  # steps are whole, epochs not quite
            reasons.append(f"{done:,} of the recipe's {planned:,} {unit}")
    if not reasons:
        return ""
    return f"\n> A shortened run ({'; '.join(reasons)}): its accuracy says nothing about the full recipe.\n"


def _table(results: list[dict[str, Any]]) -> str:
    columns = {"top1": ("top-1", "{:.2%}"), "top5": ("top-5", "{:.2%}"), "loss": ("cross-entropy", "{:.4f}")}
    if "top1" not in results[0]:
        columns = {"loss": ("mean absolute error of hidden pixels", "{:.4f}")}
    names = ["seed", *(name for name, _ in columns.values()), "n", "training time"]
    rows = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for result in results:
        cells = [form.format(result[key]) for key, (_, form) in columns.items()]
        rows.append(_row([str(result["seed"]), *cells, f"{result['n']:,}", f"{result['seconds']:.0f} s"]))
    if len(results) > 1:
        means = []
        for key, (_, form) in columns.items():
            values = [result[key] for result in results]
            spread = f" ± {form.format(statistics.stdev(values))}" if key == "top1" else ""
            means.append(form.format(statistics.fmean(values)) + spread)
        seconds = statistics.fmean(result["seconds"] for result in results)
        rows.append(_row(["mean", *means, f"{results[0]['n']:,}", f"{seconds:.0f} s"]))
    return "\n".join(rows)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
