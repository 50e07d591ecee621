"""The recorded part of a report: what the model is, what was scored and where, how it was trained, by what versions."""

import re
from typing import Any
from xml.etree.ElementTree import Element

import yaml

from ...inspection.charts import draw_speed
from ..card.markdown import one_line
from ..card.metadata import DATASETS
from ..card.records import Records, public_command, public_recipe, public_text
from ..card.sections import preprocessing_steps, shortened_by
from .material import Material
from .page import Child, Pictures, Section, append, details, facts, section, table, tag, word
from .scores import missing, plot

_NOT_RECORDED = "not recorded"


def title_of(run: Records) -> str:
    """Return the name of what is reported on; a foreign word."""
    if run.results is not None:
        return str(run.results["recipe"])
    return public_text(str(run.receipt["origin"])) if run.receipt is not None else "Vision Transformer"


def header(material: Material) -> Element:
    """Return title and first lines of the page."""
    run, config = material.run, material.run.config
    (height, width), (patch_height, patch_width) = config.image_hw, config.patch_hw
    if run.is_classifier:
        kind = f"An image classifier with {len(run.label_names):,} classes and {run.parameters:,} parameters"
    elif run.is_masked:
        kind = f"An encoder of {run.parameters:,} parameters that predicts hidden patches"
    else:
        kind = f"An encoder of {run.parameters:,} parameters"
    lead = tag("p", kind, class_="lead")
    if run.results is not None:
        start = run.results.get("base_model")
        init = material.recipe.model.init_from if material.recipe is not None else None
        for part in (*((", fine-tuned from ", word(start)) if start else (", fine-tuned" if init else
                     ", trained from scratch",)), " on ", _data_name(run.results["data"]["source"])):  # fmt: skip
            append(lead, part)
    append(lead, f". It sees {height} x {width} pixels in patches of {patch_height} x {patch_width}.")
    reasons = shortened_by(run)
    warning = "; ".join(reasons)
    short = f"A shortened run ({warning}): its scores say nothing about the full recipe."
    return tag(
        "header",
        tag("p", "vit-hf report", class_="kicker"),
        tag("h1", word(title_of(run))),
        lead,
        tag("p", short, class_="warning") if reasons else None,
    )


def _data_name(source: str) -> Element:
    return word(DATASETS.get(source, public_text(source)))


def scored_facts(material: Material) -> Element:
    """Return what was scored, when, on what."""
    run, measured, predictions = material.run, material.measured or {}, material.predictions
    results, own = run.results, material.own_scores
    pairs: list[tuple[str, Child]] = []
    data = predictions.data if predictions is not None else results["data"]["source"] if results is not None else None
    split = predictions.split if predictions is not None else measured.get("split")
    if data is not None:
        pairs.append(("data", _data_name(data)))
    if split is not None:
        pairs.append(("split", tag("span", word(split), f", {measured['n']:,} pictures, each scored once")))
    if predictions is not None and predictions.views is not None:
        pairs.append(("views", _views(predictions.views)))
    if results is not None and own:
        kept = {"best": "the best on the validation pictures", "last": "the last of the run"}
        pairs.append(("weights", kept.get(results["kept"], _NOT_RECORDED)))
        pairs.append(("run started", word(results["started"]) if results.get("started") else _NOT_RECORDED))
        pairs.append(("machine", _machine(results)))
    elif predictions is not None:
        pairs.append(("time and machine", _NOT_RECORDED))
    if predictions is not None:
        pairs.append(("fingerprint", tag("code", word(predictions.sha256))))
    return facts(pairs)


def _command(run: Records) -> Element:
    """Return the command of a run; lines break before an option."""
    code = tag("code")
    for place, part in enumerate(re.split(r" (?=--)", public_command(run))):
        append(code, " " if place else None)
        code.append(tag("span", one_line(part)))
    return tag("pre", code, class_="command")


def _views(views: dict[str, Any]) -> Element:
    """Say how each picture was shown, if otherwise than once at the model's own size."""
    sizes = ", ".join(f"{height} x {width}" for height, width in views["image_sizes"])
    mirrored = ", mirrored too" if views["flip"] else ""
    said = f"{views['count']} of each picture, averaged: {sizes} pixels, crops {views['crops']}{mirrored}"
    return word(said, 200)


def _machine(results: dict[str, Any]) -> Element:
    count = results["processes"]
    return tag("span", word(results["device"]), f", {count} process{'es' if count > 1 else ''}")


def training_section(material: Material, pictures: Pictures) -> Section:
    """Return length, time, speed, hardware, preprocessing, data and the whole recipe."""
    run, results = material.run, material.run.results
    content: list[Child] = []
    if results is None:
        content.append(missing("This model was not trained here: no recipe, no time."))
    else:
        recipe, seconds = public_recipe(run), results["seconds"]
        epochs = f" ({round(results['epochs'], 1):,} epochs)" if results.get("epochs") else ""
        batch = recipe["optimization"]["batch_size"]
        energy = results.get("energy_kwh")
        precision = "float32" if recipe["mixed_precision"] == "no" else recipe["mixed_precision"]
        pairs: list[tuple[str, Child]] = [
            ("length", f"{results['steps']:,} steps{epochs}, {batch:,} pictures a step"),
            ("time", f"{_duration(seconds)}, everything included"),
            ("speed", _speed(material.curves)),
            *([("MFU", _mfu(results))] if results.get("mfu") is not None else []),
            ("machine", _machine(results)),
            ("precision", word(precision)),
            ("energy", f"{energy:.4g} kWh" if energy is not None else _NOT_RECORDED),
            ("seed", str(results["seed"])),
            ("started", word(results["started"]) if results.get("started") else _NOT_RECORDED),
            ("source code", tag("code", word(results["git_commit"])) if results.get("git_commit") else _NOT_RECORDED),
        ]
        if results.get("resumed"):
            pairs.append(("resumed", "after step " + ", ".join(str(part["step"]) for part in results["resumed"])))
        listed, figure = facts(pairs), None
        if len({row.get("epoch") for row in material.curves if row.get("images_per_second") is not None} - {None}) > 1:
            figure = plot(
                pictures, "speed", lambda theme: draw_speed(material.curves, theme=theme),
                alt=f"Pictures a second over the epochs: {_speed(material.curves)}.",
                caption=["Training steps only, between two evaluations. A dip is a machine that was busy otherwise."],
            )  # fmt: skip
        content += [
            _command(run),
            tag("div", listed, figure, class_="side"),
            _splits(results["data"]),
        ]
    content += [tag("h3", "Preprocessing"), _preprocessing(run)]
    if results is not None:
        text = yaml.safe_dump(public_recipe(run), sort_keys=False, allow_unicode=True)
        content.append(details("Recipe, whole", tag("pre", tag("code", text), tabindex=0)))
        versions = [[word(name), word(version)] for name, version in results["versions"].items()]
        content.append(details("Versions", table(["package", "version"], versions, caption="Trained with", words=2)))
    elif run.config.transformers_version:
        content.append(tag("p", "Written with transformers ", word(run.config.transformers_version), "."))
    return section("training", "Training and time" if results is not None else "Preprocessing", *content)


def _speed(rows: list[dict[str, Any]]) -> str:
    speeds = sorted(row["images_per_second"] for row in rows if row.get("images_per_second") is not None)
    if not speeds:
        return _NOT_RECORDED
    if len(speeds) == 1:
        return f"{speeds[0]:,.0f} pictures a second"
    return f"{speeds[0]:,.0f} to {speeds[-1]:,.0f} pictures a second"


def _mfu(results: dict[str, Any]) -> str:
    """Say the share of the device's speed that the network's matrix products took."""
    return f"{results['mfu']:.2%} of the {results['peak_tflops']:,.4g} TFLOP/s that its maker states"


def _duration(seconds: float) -> str:
    """Say seconds, and from two minutes on minutes or hours too."""
    said = f"{seconds:,.0f} s"
    if seconds >= 7200:
        return f"{said} ({seconds / 3600:.1f} h)"
    return f"{said} ({seconds / 60:.1f} min)" if seconds >= 120 else said


def _splits(data: dict[str, Any]) -> Element:
    rows = [[word(name), f"{split['n']:,}" if split["n"] else "streamed", tag("code", word(split["sha256"][:16]))]
            for name, split in data["splits"].items()]  # fmt: skip
    return table(["split", "pictures", "fingerprint, first 16 digits"], rows, caption="Data of the run")


def _preprocessing(run: Records) -> Element:
    if run.preprocessing is None:
        return missing("Not recorded: there is no preprocessor_config.json.")
    steps = "; ".join(preprocessing_steps(run.preprocessing))
    return tag("p", f"A picture is {steps}. The image processor beside the weights does this.")
