"""The written part of a card: what the model is, how it is loaded, what it learned from and how, whence it comes."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml
from PIL.Image import Resampling

from ...checkpoints.receipt import ACTIONS
from ...configuration_vit_hf import VitHfConfig
from ...training.recipes import RECIPES
from .markdown import fence, plain, table
from .metadata import data_name
from .records import UNNAMED, Records, public_command, public_recipe
from .results import spread

_SIZES = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
          "num_channels", "pooling")  # fmt: skip
_MANY_LABELS = 20

_PIPELINE = """from transformers import pipeline

classify = pipeline("image-classification", model="{name}", trust_remote_code=True)
print(classify("picture.png"))"""

_CLASSIFIER = """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForImageClassification.from_pretrained("{name}", trust_remote_code=True)
inputs = processor(images=Image.open("picture.png"), return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
print(model.config.id2label[logits.argmax(-1).item()])"""

_ENCODER = """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
inputs = processor(images=Image.open("picture.png"), return_tensors="pt")
with torch.no_grad():
    tokens = model(**inputs).last_hidden_state
print(tokens.shape)"""

_FINE_TUNE = "vit-hf train vit_finetune --model.init_from {name} --data SOURCE"

_CITATION = """@inproceedings{dosovitskiy2021image,
  title     = {An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale},
  author    = {Dosovitskiy, Alexey and Beyer, Lucas and Kolesnikov, Alexander and Weissenborn, Dirk
               and Zhai, Xiaohua and Unterthiner, Thomas and Dehghani, Mostafa and Minderer, Matthias
               and Heigold, Georg and Gelly, Sylvain and Uszkoreit, Jakob and Houlsby, Neil},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  url       = {https://arxiv.org/abs/2010.11929}
}"""


# ---------------------------------------------------------------------------------------------- what it is
def opening(run: Records) -> str:
    """Return title, a warning where the run was shortened, and what the model is."""
    config, labels = run.config, len(run.label_names)
    if run.results is not None:
        title = f"{plain(run.results['recipe'])}: a Vision Transformer trained with vit-hf"
    elif run.receipt is not None:
        title = f"{plain(run.receipt['origin'])}: a Vision Transformer converted by vit-hf"
    else:
        title = "A Vision Transformer of vit-hf"
    learned = ""
    if run.results is not None:
        start = run.results.get("base_model")
        init = run.recipe["model"].get("init_from") if run.recipe is not None else None
        begun = f"fine-tuned from `{plain(start)}`" if start else "fine-tuned" if init else "trained from scratch"
        learned = f", {begun} on {data_name(run.results['data']['source'])}"
    if run.is_classifier:
        classes = f"{labels:,} class{'' if labels == 1 else 'es'}"
        what = f"An image classifier with {classes} and {run.parameters:,} parameters{learned}."
    elif run.is_masked:
        what = (
            f"An encoder of {run.parameters:,} parameters{learned}: without labels, hidden patches are predicted in "
            f"pixels ({_masked_form(config)}). To be fine-tuned."
        )
    else:
        what = f"An encoder of {run.parameters:,} parameters without a trained classifier, to be fine-tuned."
    (height, width), (patch_height, patch_width) = config.image_hw, config.patch_hw
    size = (
        f"It takes pictures of {height} x {width} pixels in patches of {patch_height} x {patch_width}; "
        f"{config.num_hidden_layers} blocks of width {config.hidden_size} with {config.num_attention_heads} heads and "
        f"an MLP of width {config.intermediate_size}; pooling `{config.pooling}`."
    )
    warning = _shortened(run)
    return f"# {title}\n\n{warning}{what}\n{size}{_unusual(config)}"


def _masked_form(config: VitHfConfig) -> str:
    """Name the form of masked image modelling."""
    layers = config.decoder_num_hidden_layers
    if not layers:
        return "SimMIM"
    blocks = f"{layers} block{'' if layers == 1 else 's'} of width {config.decoder_hidden_size}"
    return f"MAE: a decoder of {blocks}, which its parameters include"


def _unusual(config: VitHfConfig) -> str:
    """Name the fields of the config that are not B/16's and no sizes."""
    fields = [field for field in dataclasses.fields(VitHfConfig) if field.name in VitHfConfig.__annotations__]
    other = {field.name: getattr(config, field.name) for field in fields if field.name not in _SIZES}
    changed = [name for name in other if other[name] != getattr(VitHfConfig, name, None)]
    return f" Also {', '.join(f'`{name}` {plain(other[name])}' for name in changed)}." if changed else ""


def _shortened(run: Records) -> str:
    """Return a warning where the run was shortened, else ""."""
    reasons = shortened_by(run)
    if not reasons:
        return ""
    return f"> A shortened run ({'; '.join(reasons)}): its scores say nothing about the full recipe.\n\n"


def shortened_by(run: Records) -> list[str]:
    """Say in what the run had fewer pictures than there are or fewer steps than its recipe has."""
    if run.results is None or run.recipe is None:
        return []
    data, reasons = run.recipe["data"], []
    if data["max_train_images"]:
        reasons.append(f"trained on at most {data['max_train_images']:,} pictures")
    if data["max_test_images"]:
        reasons.append(f"scored on at most {data['max_test_images']:,} pictures")
    if run.results["recipe"] in RECIPES:
        full = RECIPES[run.results["recipe"]]().optimization
        unit, planned = ("epochs", full.epochs) if full.max_steps is None else ("steps", full.max_steps)
        done = run.results[unit] or 0
        if done < 0.99 * planned:  # steps are whole, epochs not quite
            reasons.append(f"{round(done, 1):,} of the recipe's {planned:,} {unit}")
    return reasons


def use_section(run: Records, repo: str | None) -> str:
    """Return how to load the model; the code runs as it stands with a name and a picture put in."""
    name = repo or UNNAMED
    parts = ["## How to use"]
    if run.is_classifier:
        parts += [fence(_PIPELINE.format(name=name), "python"), "Or step by step:"]
        parts.append(fence(_CLASSIFIER.format(name=name), "python"))
    else:
        parts += [fence(_ENCODER.format(name=name), "python"), "To train a classifier on it:"]
        parts.append(fence(_FINE_TUNE.format(name=name), "bash"))
    parts.append(
        "`trust_remote_code=True` runs the model's own code, which lies beside the weights; with the package vit-hf "
        "installed and `import vit_hf` before it, it is not needed."
    )
    return "\n\n".join(parts)


def limits_section(run: Records) -> str:
    """Return what the model is for, and what nobody may expect of it."""
    title = "## Intended use and limits\n\n"
    if not run.is_classifier:
        return f"{title}A start for fine-tuning, and for study. It names nothing by itself. It was not tested for bias."
    every = (
        f"It gives one of its {len(run.label_names):,} classes for any picture, also for one that shows none of them."
    )
    if run.results is None:
        return (
            f"{title}For what its original was made for, and for study. {every}\n"
            "Nothing was measured with these files: `vit-hf evaluate` scores them on data of yours."
        )
    return (
        f"{title}For pictures like those it was trained on, and for study. {every}\nIt has not been tested on other "
        "data, nor for bias."
    )


# ---------------------------------------------------------------------------------------------- what it learned from
def data_section(run: Records) -> str:
    """Return the data with sizes and fingerprints."""
    assert run.results is not None
    data = run.results["data"]
    rows = [
        [plain(name), f"{split['n']:,}" if split["n"] else "streamed", f"`{plain(split['sha256'])}`"]
        for name, split in data["splits"].items()
    ]
    link = f" on the Hub at revision `{plain(data['revision'])}`" if data["kind"] == "hub" and data["revision"] else ""
    names = run.label_names if run.is_classifier else []
    labels = f"\n\nClasses: {', '.join(map(plain, names))}." if 0 < len(names) <= _MANY_LABELS else ""
    if len(names) > _MANY_LABELS:
        labels = "\n\nThe names of the classes are `id2label` of config.json."
    return (
        f"## Data\n\n{data_name(data['source'])}{link}.\n\n"
        + table(["split", "pictures", "fingerprint (SHA-256)"], rows)
        + "\n\nA fingerprint covers every label, and the bytes of pictures spread evenly over the split."
        + labels
    )


def preprocessing_section(run: Records) -> str:
    """Return in words what the image processor beside the weights does."""
    title, settings = "## Preprocessing\n\n", run.preprocessing
    if settings is None:
        return f"{title}Not recorded: there is no preprocessor_config.json."
    same = " The scores above were measured with it." if run.results is not None else ""
    steps = "; ".join(preprocessing_steps(settings))
    return f"{title}A picture is {steps}. The image processor beside the weights does this.{same}"


def preprocessing_steps(settings: dict[str, Any]) -> list[str]:
    """Say what an image processor with these settings does, step by step."""
    steps = []
    if settings.get("do_convert_rgb", True):
        steps.append("turned upright and into RGB (transparency over white)")
    if settings.get("do_resize", True):
        name = Resampling(settings.get("resample", 2)).name.lower()
        smooth = "" if settings.get("antialias", True) else " without antialiasing"
        steps.append(f"resized to {_extent(settings['size'])} ({name}{smooth})")
    if settings.get("do_center_crop"):
        steps.append(f"cropped at the centre to {_extent(settings['crop_size'])}")
    if settings.get("do_rescale", True):
        steps.append(f"divided by {1 / settings.get('rescale_factor', 1 / 255):.6g}")
    if settings.get("do_normalize", True):
        mean, std = (", ".join(f"{value:g}" for value in settings[f"image_{which}"]) for which in ("mean", "std"))
        steps.append(f"less the mean ({mean}), over the standard deviation ({std}) of each channel")
    return steps


def _extent(size: dict[str, int]) -> str:
    if size.get("shortest_edge"):
        return f"{size['shortest_edge']} pixels on the shorter side, keeping its shape"
    return f"{size['height']} x {size['width']} pixels"


# ---------------------------------------------------------------------------------------------- how it learned
def training_section(runs: Sequence[Records]) -> str:
    """Return command, length, hardware, time, energy and the whole recipe."""
    results: list[dict[str, Any]] = [run.results for run in runs if run.results is not None]
    first, recipe = results[0], public_recipe(runs[0])
    epochs = f" ({round(first['epochs'], 1):,} epochs)" if first.get("epochs") else ""
    precision = "float32" if recipe["mixed_precision"] == "no" else recipe["mixed_precision"]
    processes = first["processes"]
    commits = dict.fromkeys(result.get("git_commit") for result in results)
    rows = [
        ["length", f"{first['steps']:,} steps{epochs}, {recipe['optimization']['batch_size']:,} pictures a step"],
        ["hardware", f"{_each(results, 'device')}; {processes} process{'es' if processes > 1 else ''}"],
        ["precision", plain(precision)],
        ["time", spread([result["seconds"] for result in results], "{:,.0f} s".format)],
        *_speed(results),
        ["energy", _energy(results)],
        ["started", _each(results, "started")],
        ["source code", "; ".join(f"commit `{plain(commit)}`" if commit else "not recorded" for commit in commits)],
    ]
    for result in results:
        if result.get("resumed"):
            whose = f" (seed {result['seed']})" if len(results) > 1 else ""
            rows.append([f"resumed{whose}", f"after step {', '.join(str(part['step']) for part in result['resumed'])}"])
    yaml_text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    return "\n\n".join(
        [
            "## Training",
            fence(public_command(runs[0]), "bash"),
            table(["", "of each run" if len(runs) > 1 else "of the run"], rows),
            f"<details><summary>Recipe</summary>\n\n{fence(yaml_text, 'yaml')}\n\n</details>",
        ]
    )


def _each(results: list[dict[str, Any]], key: str) -> str:
    """Return what the runs say, each thing once."""
    found = dict.fromkeys(plain(result[key]) for result in results if result.get(key) is not None)
    return "; ".join(found) or "not recorded"


def _speed(results: list[dict[str, Any]]) -> list[list[str]]:
    """Return the row of the speed, with its share of that of the devices where it is known; none if not recorded."""
    speeds = [result["images_per_second"] for result in results if result.get("images_per_second") is not None]
    if len(speeds) < len(results):
        return []
    said = f"{spread(speeds, '{:,.0f}'.format)} images/s"
    shares = [result["mfu"] for result in results if result.get("mfu") is not None]
    if len(shares) == len(results):
        said += f", MFU {spread(shares, '{:.1%}'.format)} of {_each(results, 'peak_tflops')} TFLOP/s a process"
    return [["speed", said]]


def _energy(results: list[dict[str, Any]]) -> str:
    measured = [result["energy_kwh"] for result in results if result.get("energy_kwh") is not None]
    if len(measured) < len(results):
        why = results[0].get("energy_source")
        return "not recorded" + (f" ({plain(why)})" if why else "")
    return f"{spread(measured, '{:.4g} kWh'.format)} ({_each(results, 'energy_source')})"


def conversion_section(run: Records) -> str:
    """Return the receipt of the weights it came from: what became of the tensors, and what they left open."""
    receipt = run.receipt
    assert receipt is not None
    files = [[plain(entry["name"]), f"{entry['bytes']:,}", f"`{plain(entry['sha256'])}`"] for entry in receipt["files"]]
    groups: Counter[tuple[str, str]] = Counter()
    for entry in receipt["tensors"]:
        groups[entry["action"], entry["rule"]] += 1
    order = {action: place for place, action in enumerate(ACTIONS)}
    rows = [
        [plain(action), f"{count:,}", plain(rule, 200)]
        for (action, rule), count in sorted(groups.items(), key=lambda item: order.get(item[0][0], len(order)))
    ]
    heading, begun = ("Conversion", "Converted") if run.results is None else ("Start", "Training started")
    parts = [
        f"## {heading}",
        f"{begun} from {plain(receipt['origin'])}, weights in the form of {plain(receipt['source'])}:",
        table(["file", "bytes", "SHA-256"], files),
        "What became of the tensors, one by one in receipt.json:",
        table(["tensors", "number", "what was done"], rows),
    ]
    if receipt["facts"]:
        facts = [
            [f"`{plain(fact['field'])}`", plain(fact["value"]), plain(fact["how"], 200)] for fact in receipt["facts"]
        ]
        parts += ["What the tensors leave open:", table(["field", "value", "where it comes from"], facts)]
    return "\n\n".join(parts)


# ---------------------------------------------------------------------------------------------- the end
def versions_section(runs: Sequence[Records]) -> str:
    """Return the versions that were trained with, or that wrote the config."""
    results = [run.results for run in runs if run.results is not None]
    if not results:
        version = runs[0].config.transformers_version
        return (
            f"## Versions\n\nWritten with {f'transformers {plain(version)}' if version else 'versions not recorded'}."
        )
    names = dict.fromkeys(name for result in results for name in result["versions"])
    told = [
        f"{plain(name)} {' and '.join(dict.fromkeys(plain(result['versions'].get(name)) for result in results))}"
        for name in names
    ]
    return f"## Versions\n\n{', '.join(told)}."


def license_section(license: str | None) -> str:
    """Return the licence that was given, or that there is none."""
    return "## Licence\n\n" + (f"`{license}`" if license else "No licence was named by its owner.")


def citation_section() -> str:
    """Return the paper of the architecture."""
    return f"## Citation\n\nThe architecture is that of\n\n{fence(_CITATION, 'bibtex')}"
