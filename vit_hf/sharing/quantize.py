"""A smaller, 8-bit ONNX graph, and what that costs: accuracy before and after on the same pictures.

ONNX Runtime's dynamic quantisation of the matrix products with constant weights: weights int8 with a scale a column,
activations uint8 with a scale found while running. It needs no pictures to calibrate on, and was nearer to float32 than
the static ways calibrated on 256 training pictures (digits recipe, AVX-512, 8 bits: mean difference of logits 0.0065
against 0.0147 to 0.0195). Convolutions stay float32 (the patch projection, a ResNet stem), and so do the weights that a
last block of one query has a matrix a head of.

Weights take 7 of the 8 bits: processors without VNNI add two products in 16 bits, where 8 bits do not fit. Measured on
one (AVX2), 359 test pictures of a run of the digits recipe, float32 99.44% top-1:

| weights | mean difference of logits | top-1 | time of S/16 over float32 |
|---|---|---|---|
| 7 bits | 0.0098 | 99.44% | 0.62 |
| 8 bits | 0.0883 | 98.61% | 0.62 |
| 8 bits, unsigned, each column with a zero of its own | 0.0059 | 99.44% | 0.74 |

The scale of the activations is that of a batch, so the pictures of a batch move each other's logits a little. Measured
is one picture at a time.

Shapes: N pictures of the split, B batch, L classes.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..configuration_vit_hf import VitHfConfig
from ..data.loading import build_evaluation_loader
from ..data.pictures import Pictures, num_rows
from ..evaluation.scoring import Scores, align_labels, gather_rows
from ..image_processing_vit_hf import VitHfImageProcessor
from .graph import Logits, class_names, open_graph, open_session

LATENCY_ROUNDS = 51  # pairs of runs, one of each model, of which the median counts


def quantize_graph(path: Path, target: Path) -> None:
    """Write the 8-bit form of an ONNX file; its metadata goes with it.

    Args:
        path: float32 ONNX file.
        target: file to write; weights go beside it where those of `path` do.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    external = Path(f"{path}.data").exists()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        bare, prepared = path.with_name("bare.onnx"), Path(scratch) / "prepared.onnx"
        model = onnx.load(path, load_external_data=False)
        del model.graph.value_info[:]  # the quantiser transposes weights under their old names: it infers shapes anew
        onnx.save(model, bare)  # beside `path`, whose external weights it names
        quant_pre_process(
            bare,
            prepared,
            skip_symbolic_shape=True,
            save_as_external_data=external,
            all_tensors_to_one_file=True,
        )
        bare.unlink()
        graph = onnx.load(prepared, load_external_data=False).graph
        stacks = {weights.name for weights in graph.initializer if len(weights.dims) > 2}  # ONNX Runtime refuses them
        quantize_dynamic(
            prepared,
            target,
            nodes_to_exclude=[node.name for node in graph.node if stacks.intersection(node.input)],
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
            use_external_data_format=external,
        )


def measure(
    before: Path, after: Path, *, pictures: Pictures, processor: VitHfImageProcessor, config: VitHfConfig
) -> dict[str, Any]:
    """Score two ONNX files on the test split, one picture at a time, and time them against each other.

    Args:
        before: float32 file.
        after: 8-bit file.
        pictures: whose test split is scored.
        processor: the model's.
        config: the model's, for its classes.

    Returns:
        The scores of the 8-bit graph (top1, top5: fractions; loss: nats; n), those of the float one in `before`,
        `agreement` (share of pictures with the same first class), bytes of both, latency of both (milliseconds a
        picture, medians) and its ratio.

    Raises:
        ValueError: the data has classes that the model does not know.
    """
    graphs = (open_graph(before), open_graph(after))

    def forward(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        pixels = batch["pixel_values"].cpu()  # (B, C, H, W)
        return batch["labels"], *(_one_by_one(graph, pixels).to(batch["labels"].device) for graph in graphs)

    accelerator = Accelerator()
    loader = build_evaluation_loader(
        pictures.test, **pictures.columns, name=pictures.test_name, processor=processor, batch_size=64, workers=0
    )
    samples = num_rows(pictures.test)
    labels, *logits = gather_rows(
        nn.Identity(), accelerator.prepare(loader), accelerator, forward, num_samples=samples
    )  # (N,), two of (N, L)
    names = class_names(config)
    labels = align_labels(labels, pictures.source.label_names, names)
    agreement = (logits[0].argmax(dim=1) == logits[1].argmax(dim=1)).double().mean().item()
    return {
        **Scores(logits[1], labels).measure(),
        "before": Scores(logits[0], labels).measure(),
        "agreement": agreement,
        "bytes": _size(after),
        "bytes_before": _size(before),
        "latency": _time(before, after, torch.zeros(1, config.num_channels, *config.image_hw)),
        "data": pictures.source.name,
        "split": pictures.test_name,
    }


def _one_by_one(graph: Logits, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([graph(one) for one in pixels.split(1)])  # (B, L)


def _size(path: Path) -> int:
    """Bytes of an ONNX file, with the weights beside it."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _time(before: Path, after: Path, pixels: torch.Tensor) -> dict[str, Any]:
    """Time two files in turns on one picture, so that what else the machine does meets both."""
    sessions = [open_session(path) for path in (before, after)]
    feed = {"pixel_values": pixels.numpy()}
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(-5, LATENCY_ROUNDS):  # the first five warm up
        for session, taken in zip(sessions, seconds, strict=True):
            start = time.perf_counter()
            session.run(None, feed)
            if round_ >= 0:
                taken.append(time.perf_counter() - start)
    ratios = [new / old for old, new in zip(*seconds, strict=True)]
    return {
        "ms_before": 1000 * statistics.median(seconds[0]),
        "ms": 1000 * statistics.median(seconds[1]),
        "ratio": statistics.median(ratios),
        "rounds": LATENCY_ROUNDS,
        "threads": torch.get_num_threads(),
    }
