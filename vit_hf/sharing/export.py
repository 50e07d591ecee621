"""Export a classifier into a folder that runs without this package, checked against PyTorch before it gets its name."""

import copy
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from .. import __version__
from ..checkpoints.load import load_model
from ..data.pictures import Pictures
from ..evaluation.run import open_data
from ..image_processing_vit_hf import VitHfImageProcessor, to_rgb
from ..inference_vit_hf import normalization
from ..modeling_vit_hf import VitHfForImageClassification
from ..training.state import sync
from .export_readme import render_readme
from .graph import FILES, check_dynamic, check_packages, class_names, open_graph, trace, write_graph
from .quantize import measure, quantize_graph

TOLERANCE = 1e-4  # largest absolute difference of a logit, float32
BATCHES = (1, 2, 5)
DYNAMIC = "dynamic"


@dataclass(frozen=True)
class Parity:
    """PyTorch against the exported graph on one batch of real pictures."""

    batch: int
    height: int
    width: int
    largest_difference: float
    largest_logit: float


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    record: dict[str, Any]
    """What export.json holds: form, input, versions, notes, parity."""
    results: dict[str, Any] | None
    """What results.json holds: the accuracy before and after quantisation."""


def export_model(
    model: str | Path,
    *,
    form: str,
    output: str | Path | None = None,
    image_size: tuple[int, int] | str | None = None,
    quantize: str | None = None,
    images: Sequence[PIL.Image.Image] | None = None,
    data: str | None = None,
) -> Exported:
    """Export a classifier; nothing is left behind unless its logits are those of PyTorch.

    Args:
        model: folder or Hub id, as `load_model` takes it. Weights of other dtypes are exported as float32.
        form: "onnx" or "torch-export".
        output: new folder; None: the model's name and the form, beside a model folder, or here for a Hub id.
        image_size: (height, width) in pixels; "dynamic" for any multiples of the patch; None for the model's own.
        quantize: None, or "int8" for an 8-bit ONNX graph, whose accuracy is measured.
        images: pictures to compare on; the two photographs that come with scikit-learn when None.
        data: what to measure the accuracy of the 8-bit graph on; None for the test split of a run folder's data.

    Raises:
        ValueError: an unknown form or quantisation, a size that does not fit or cannot be dynamic, a model for masked
            images, a missing package, data without which the accuracy cannot be measured; or the logits differ.
        FileExistsError: something lies at `output`.
    """
    if form not in FILES:
        raise ValueError(f"format is {form!r}; expected one of {', '.join(FILES)}")
    if quantize not in (None, "int8") or (quantize and form != "onnx"):
        raise ValueError(f"quantize is {quantize!r} with format {form}; expected int8 with format onnx, or none")
    if form == "onnx":
        check_packages()
    folder = Path(output) if output is not None else _beside(model, form, quantize)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give a new folder with --output, or remove it")
    name = Path(model).resolve().name if Path(model).exists() else str(model)
    network, processor = load_model(model)
    notes = _prepare(network, processor, image_size)
    dynamic = image_size == DYNAMIC
    pictures = _evaluation_pictures(model, data) if quantize else None
    batches = _batches(network, processor, images or _sample_images(), dynamic)
    program = trace(network, dynamic=dynamic)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".writing-") as scratch:
        made, plain = Path(scratch) / "made", Path(scratch) / "float32"
        made.mkdir()
        plain.mkdir()
        file = (plain if quantize else made) / FILES[form]
        metadata = _metadata(network, processor, dynamic)
        opset = write_graph(program, file, form, metadata)
        parity = _compare(network, file, batches)
        record = {
            "model": name,
            "form": form,
            "file": FILES[form],
            "quantize": quantize,
            "opset": opset,
            **{name: metadata[name] for name in ("image_size", "patch_size", "num_channels", "versions")},
            "num_labels": network.config.num_labels,
            "notes": notes,
            "parity": [asdict(row) for row in parity],
        }
        results = None
        if pictures is not None:
            quantize_graph(file, made / FILES[form])
            results = measure(
                file, made / FILES[form], pictures=pictures, processor=processor, config=network.config
            ) | {"model": name, "quantize": quantize}
            _write_json(made / "results.json", results)
        network.config.save_pretrained(made)
        processor.save_pretrained(made)
        _write_json(made / "labels.json", metadata["labels"])
        _write_json(made / "export.json", record)
        (made / "README.md").write_text(render_readme(record, results, processor), encoding="utf-8")
        sync(made)
        os.rename(made, folder)
    return Exported(folder, record, results)


def _beside(model: str | Path, form: str, quantize: str | None) -> Path:
    """The default output: beside a model folder, or here."""
    name = "-".join(part for part in (Path(model).resolve().name, form, quantize) if part)
    return Path(model).resolve().parent / name if Path(model).exists() else Path(name)


def _prepare(
    network: VitHfForImageClassification, processor: VitHfImageProcessor, image_size: tuple[int, int] | str | None
) -> list[str]:
    """Bring the model to float32 and the size; return what was changed."""
    notes = []
    if network.dtype != torch.float32:
        notes.append(f"the weights are {str(network.dtype).removeprefix('torch.')}, exported as float32")
    network.float().eval()
    network.config.dtype = torch.float32
    if image_size == DYNAMIC:
        check_dynamic(network)
    elif isinstance(image_size, str):
        raise ValueError(f"image_size is {image_size!r}; expected (height, width), or {DYNAMIC}")
    elif image_size is not None and image_size != network.config.image_hw:
        old = "x".join(map(str, network.config.image_hw))
        network.set_image_size(image_size)
        notes.append(f"positions resampled from {old} to {image_size[0]}x{image_size[1]} pixels")
    processor.set_image_size(*network.config.image_hw)
    if network.config.num_channels != 3:
        channels = network.config.num_channels
        notes.append(f"the image processor makes RGB, the model takes {channels} channels: prepare pixels yourself")
    return notes


def _evaluation_pictures(model: str | Path, data: str | None) -> Pictures:
    if data is None and not (Path(model) / "recipe.yaml").is_file():
        raise ValueError(
            f"{model} has no recipe.yaml that tells its data; name what the accuracy of the int8 graph is measured on "
            "with --data SOURCE"
        )
    return open_data(model, data)


def _sample_images() -> list[PIL.Image.Image]:
    from sklearn.datasets import load_sample_images

    return [PIL.Image.fromarray(array) for array in load_sample_images().images]


def _batches(
    network: VitHfForImageClassification,
    processor: VitHfImageProcessor,
    images: Sequence[PIL.Image.Image],
    dynamic: bool,
) -> list[torch.Tensor]:
    """Pixels (B, C, H, W) of the pictures in turn, in each batch size; a dynamic graph gets other sizes too."""
    config = network.config
    (rows, columns), (height, width) = config.grid_hw, config.patch_hw
    grids = [(rows, columns)]
    if dynamic:
        grids = [(max(rows, 2), max(columns, 2)), (rows + 1, columns + 3), (max(rows // 2, 2), columns + 1), (2, 2)]
    batches: list[torch.Tensor] = []
    for grid in grids:
        prepared = copy.deepcopy(processor)
        prepared.set_image_size(grid[0] * height, grid[1] * width)
        pixels = prepared([to_rgb(image) for image in images], return_tensors="pt")["pixel_values"]  # (N, 3, H, W)
        pixels = pixels[:, [channel % 3 for channel in range(config.num_channels)]]
        for batch in BATCHES:
            start = len(batches)
            batches.append(pixels[[(start + place) % len(pixels) for place in range(batch)]])
    return batches


def _compare(network: VitHfForImageClassification, file: Path, batches: list[torch.Tensor]) -> list[Parity]:
    """Run the written file and PyTorch on the same pixels; raises where they differ."""
    graph, rows = open_graph(file), []
    for pixels in batches:
        with torch.no_grad():
            expected = network(pixel_values=pixels, interpolate_pos_encoding=True).logits  # (B, L)
        difference = (graph(pixels) - expected).abs().max().item()
        batch, _, height, width = pixels.shape
        rows.append(Parity(batch, height, width, difference, expected.abs().max().item()))
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the exported graph is not the model: its logits differ by {difference:.2e} on {batch} pictures of "
                f"{height}x{width} pixels, expected at most {TOLERANCE:.0e}; nothing was written. Export at a fixed "
                f"--image-size (position_interpolation is {network.config.position_interpolation!r}), with the other "
                "--format, or with a newer torch"
            )
    return rows


def _metadata(network: VitHfForImageClassification, processor: VitHfImageProcessor, dynamic: bool) -> dict[str, Any]:
    """What stands in the file itself."""
    config, settings = network.config, processor.to_dict()
    scaling = {}
    if config.num_channels == 3:  # else the pixels are not the image processor's
        factor, mean, std = normalization(processor, 3)
        scaling = {"rescale_factor": factor, "image_mean": mean, "image_std": std}
    versions = {"vit_hf": __version__, "torch": torch.__version__}
    return {
        "labels": list(class_names(config)),
        "image_size": DYNAMIC if dynamic else list(config.image_hw),
        "patch_size": list(config.patch_hw),
        "num_channels": config.num_channels,
        **scaling,
        "resample": PIL.Image.Resampling(settings["resample"]).name.lower(),
        "versions": versions,
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
