"""A classifier as a graph that runs without this package: ONNX, or a program of torch.export.

The graph takes `pixel_values` float32 (B, C, H, W) for any B and gives `logits` float32 (B, L). H and W are fixed, or
any multiples of the patch of at least two patches each; the positions are then resampled inside the graph.

Shapes: B batch, C channels, H x W pixels, L classes.
"""

import contextlib
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from ..configuration_vit_hf import VitHfConfig
from ..modeling_vit_hf import VitHfForImageClassification, _interpolate_positions, sincos2d_positions

FILES = {"onnx": "model.onnx", "torch-export": "model.pt2"}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
Logits = Callable[[torch.Tensor], torch.Tensor]


def check_packages() -> None:
    """Raise unless the packages of the extra `export` are there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f'an export to ONNX needs {", ".join(missing)}; run: pip install "vit-hf[export]"')


def check_dynamic(model: VitHfForImageClassification) -> None:
    """Raise if the positions of a model cannot be resampled inside a graph."""
    config = model.config
    if config.position_embedding == "learned" and config.position_interpolation == "dino":
        raise ValueError(
            "image_size dynamic cannot be expressed with position_interpolation 'dino', whose scale factor a graph "
            "would fix; export each size that you need with --image-size HxW"
        )


def class_names(config: VitHfConfig) -> tuple[str, ...]:
    """Names of the classes, in the order of the logits."""
    names: dict[int, str] = cast(Any, config.id2label)
    return tuple(names[index] for index in range(len(names)))


class _LogitsOnly(nn.Module):
    """The classifier as a function of pixels alone."""

    def __init__(self, model: VitHfForImageClassification):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits  # (B, L)


@contextlib.contextmanager
def _any_size(model: VitHfForImageClassification) -> Iterator[None]:
    """Resample the positions to any grid without comparing it with the stored one, which a graph cannot ask.

    At the stored size it changes nothing but rounding: each method but "dino" gives back the grid that it gets.
    """
    embeddings, config = model.vit.embeddings, model.config

    def positions(image_hw: tuple[int, int], interpolate: bool) -> torch.Tensor:
        grid = (image_hw[0] // config.patch_hw[0], image_hw[1] // config.patch_hw[1])
        if config.position_embedding == "sincos2d":
            width, prefix = config.hidden_size, config.num_prefix_positions
            return sincos2d_positions(
                grid, width, prefix, dtype=torch.float32
            )  # ONNX Runtime 1.23 has no cos in float64
        return _interpolate_positions(
            embeddings.position_embeddings,
            num_prefix=config.num_prefix_positions,
            source=config.grid_hw,
            target=grid,
            method=config.position_interpolation,
        )

    vars(embeddings)["positions"] = positions
    try:
        yield
    finally:
        del vars(embeddings)["positions"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what torch and ONNX say of their own insides: torch 2.11 uses what it deprecates, onnxscript prints."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def trace(model: VitHfForImageClassification, *, dynamic: bool) -> ExportedProgram:
    """Trace a float32 model in evaluation mode; `dynamic` lets height and width vary too."""
    sizes: dict[int, Any] = {0: Dim("batch", min=1)}
    height, width = model.config.image_hw
    if dynamic:
        patch_height, patch_width = model.config.patch_hw
        sizes |= {2: patch_height * Dim("rows", min=2), 3: patch_width * Dim("columns", min=2)}
        height, width = 5 * patch_height, 7 * patch_width  # an example that no other size resembles
    example = torch.zeros(2, model.config.num_channels, height, width)
    shapes = {"pixel_values": sizes}
    sizing = _any_size(model) if dynamic else contextlib.nullcontext()
    with torch.no_grad(), _quiet(), sizing:
        program = torch.export.export(_LogitsOnly(model), (example,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names the folders of this machine
    return program


def write_graph(program: ExportedProgram, path: Path, form: str, metadata: dict[str, Any]) -> int | None:
    """Write a traced model as a file, with the metadata inside; returns ONNX's opset.

    Args:
        program: from `trace`.
        path: .onnx or .pt2; ONNX of more than 2 GB puts its weights into PATH.data.
        form: "onnx" or "torch-export".
        metadata: written as JSON texts: ONNX's `metadata_props`, or extra files of the program.
    """
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    with _quiet():
        if form == "torch-export":
            torch.export.save(program, path, extra_files=texts)
            return None
        names: dict[str, Any] = {"input_names": ["pixel_values"], "output_names": ["logits"]}
        converted = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        assert converted is not None
        for node in converted.model.graph.all_nodes():
            node.metadata_props.clear()  # where in PyTorch it comes from
        opset = converted.model.opset_imports[""]
        converted.model.metadata_props.update({**texts, "opset": str(opset)})
        converted.save(str(path))
        return opset


def open_graph(path: Path) -> Logits:
    """Return a written file as a function from pixels (B, C, H, W) to logits (B, L), both float32 on the CPU."""
    if path.suffix == ".pt2":
        with _quiet():
            program = torch.export.load(path).module()

        def run(pixels: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return program(pixels)

        return run
    session = open_session(path)
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixel_values": pixels.numpy()})[0])


def open_session(path: Path) -> Any:
    """Return an ONNX Runtime session on the CPU, with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
