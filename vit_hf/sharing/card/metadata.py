"""What the Hub reads of a model: the metadata of its card, and files of evaluation results."""

import re
import statistics
from collections.abc import Sequence
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from ...data.hub_source import is_hub_id
from .markdown import one_line, plain
from .records import Records
from .results import score_columns

DATASETS = {"digits": "UCI handwritten digits (bundled with scikit-learn)"}
_TYPES = {"digits": "sklearn-digits"}  # `digits` on the Hub would be another


def card_metadata(runs: Sequence[Records], *, license: str | None, repo: str | None) -> ModelCardData:
    """Return the metadata of a card: only what the records state, and the licence that was given.

    Args:
        runs: as `render_card`; one folder, or several runs.
        license: the Hub's identifier, such as "apache-2.0".
        repo: Hub id under which the model is to be found.
    """
    run, results = runs[0], [run.results for run in runs if run.results is not None]
    fields: dict[str, Any] = {"model_name": repo}
    if results:
        data = results[0]["data"]
        is_on_hub = data["kind"] == "hub" and is_hub_id(data["source"])
        fields["datasets"] = [data["source"]] if is_on_hub else None
        start = str(results[0].get("base_model"))
        fields["base_model"] = start if start != "None" and is_hub_id(start) else None
    if run.is_classifier and results:
        fields["metrics"] = ["accuracy"]
        fields["model_name"] = repo or f"vit-hf {results[0]['recipe']}"
        fields["eval_results"] = _eval_results(results)
    pipeline = "image-classification" if run.is_classifier else "image-feature-extraction"
    return ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=pipeline,
        tags=["vit_hf", "vision-transformer", *(["masked-image-modeling"] if run.is_masked else [])],
        **fields,
    )


def _eval_results(results: list[dict[str, Any]]) -> list[EvalResult]:
    """Top-1 and top-5, means over the runs."""
    first = results[0]
    source = one_line(first["data"]["source"])[:80]
    common = {
        "task_type": "image-classification",
        "dataset_type": _TYPES.get(source) or re.sub(r"[^\w./-]+", "-", source, flags=re.ASCII).strip("-") or "data",
        "dataset_name": DATASETS.get(source, source),
        "dataset_revision": first["data"]["revision"],
        "dataset_split": one_line(first["split"])[:80],
        "metric_type": "accuracy",
    }
    return [
        EvalResult(
            **common, metric_name=name, metric_value=round(statistics.fmean(result[key] for result in results), 4)
        )
        for key, (name, _) in score_columns(first).items()
        if key in ("top1", "top5")
    ]


def eval_result_entries(run: Records) -> dict[str, str]:
    """Return `.eval_results/NAME.yaml` and its text; {} for a run without top-1, or on data that is not on the Hub.

    The Hub shows these results where the data set is one of its benchmarks. Its format names data by Hub id and task,
    and leaves the unit of a value open: it is a fraction here, and the notes say so. The task is the data set's
    configuration, "default" where it has but one.
    """
    results, recipe = run.results, run.recipe
    if results is None or recipe is None or "top1" not in results:
        return {}
    data = results["data"]
    if data["kind"] != "hub" or not is_hub_id(data["source"]):
        return {}
    interval = results.get("intervals", {}).get("top1")
    held = f", 95% interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
    entry = EvalResultEntry(
        dataset_id=data["source"],
        task_id=recipe["data"].get("config_name") or "default",
        value=round(results["top1"], 4),
        dataset_revision=data["revision"],
        notes=f"top-1 accuracy as a fraction{held}, split {one_line(results['split'])[:80]}, {results['n']} pictures",
    )
    name = data["source"].replace("/", "__")
    text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
    return {f".eval_results/{name}.yaml": text}


def data_name(source: str) -> str:
    """Return the name of the data as Markdown."""
    return plain(DATASETS.get(source, source))
