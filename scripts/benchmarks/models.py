"""Modes `infer` and `train`: the four networks on one batch that lies on the device."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .memory import measure_memory
from .networks import (
    OURS,
    PEERS,
    PREPARED,
    Network,
    block_products,
    build,
    forward_flops,
    network_config,
    their_name,
)
from .timing import FAILURES, first_line, interleave, synchronizer

TOLERANCE = 1e-5  # of logits of about 1, in float32
GRADIENT_TOLERANCE = 1e-4  # of the largest entry of a gradient: a sum over all tokens of a batch
WATCHED = ("vit.embeddings.patch_embeddings.projection.weight", "vit.layers.0.attention.qkv.weight",
           "vit.layers.0.norm1.bias", "vit.norm.weight", "classifier.weight")  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """One thing to measure in all libraries."""

    mode: str
    """"infer" or "train"."""
    model: str
    """As `network_config` takes it."""
    precision: str
    """"fp32", or "bf16": the weights too for inference, by autocast over float32 weights for training."""
    compile: str
    """Mode of torch.compile; "" for none."""
    device: str
    batch: int

    @property
    def libraries(self) -> tuple[str, ...]:
        """Who takes part."""
        return (OURS, *((PREPARED,) if self.mode == "infer" else ()), *PEERS)


def cases(
    modes: Sequence[str],
    models: Sequence[str],
    precisions: Sequence[str],
    compiled: Sequence[str],
    devices: Sequence[str],
    batch: int | None,
) -> list[Case]:
    """Return all combinations; the batch is chosen by device and model where none is given."""
    table = itertools.product(devices, modes, models, precisions, compiled)
    return [
        Case(mode, model, precision, graph, device, batch or _batch(model, mode, device))
        for device, mode, model, precision, graph in table
    ]


def _batch(model: str, mode: str, device: str) -> int:
    small = "@" in model
    if device == "cuda":
        return 1024 if small else 256 if mode == "infer" else 128
    return 64 if small else 8


# ---------------------------------------------------------------------------------------------- one network
def make_batch(case: Case, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels (B, C, H, W) of the case's dtype for inference, else float32, and labels (B,)."""
    config = network_config(case.model)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(case.batch, config.num_channels, *config.image_hw, generator=generator)
    labels = torch.randint(int(config.num_labels or 1), (case.batch,), generator=generator)
    return pixels.to(device, DTYPES[case.precision] if case.mode == "infer" else None), labels.to(device)


def place(network: Network, case: Case, device: torch.device) -> Network:
    """Bring a network to the device, the precision and the mode of a case."""
    if case.mode == "infer":
        network.module.to(device, DTYPES[case.precision]).eval()
        if network.library == PREPARED:
            streams = min(torch.get_num_threads(), 2) if device.type == "cpu" else 1
            network.module.prepare_for_inference(streams=streams)  # type: ignore[operator]
    else:
        network.module.to(device).train()
    if case.compile:
        network.module.compile(mode=case.compile)
    return network


def forward_task(network: Network, pixels: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Return what computes the logits."""
    forward = network.forward()

    def infer() -> torch.Tensor:
        with torch.inference_mode():
            return forward(pixels)

    return infer


class TrainTask:
    """Forward, cross-entropy, backward, AdamW (fused), gradients let go: one call a step."""

    def __init__(self, network: Network, pixels: torch.Tensor, labels: torch.Tensor, precision: str):
        self.forward, self.pixels, self.labels = network.forward(), pixels, labels
        self.autocast: dict[str, Any] = {
            "device_type": pixels.device.type,
            "dtype": torch.bfloat16,
            "enabled": precision == "bf16",
        }
        self.optimizer = torch.optim.AdamW(network.module.parameters(), lr=1e-6, weight_decay=0.05, fused=True)

    def gradients(self) -> torch.Tensor:
        """Run forward and backward, and return the loss."""
        with torch.autocast(**self.autocast):
            logits = self.forward(self.pixels)
        loss = F.cross_entropy(logits.float(), self.labels)
        loss.backward()
        return loss.detach()

    def __call__(self) -> torch.Tensor:
        """Take one step and return its loss."""
        loss = self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss


def one_task(library: str, case: Case) -> Callable[[], object]:
    """Return the task of one library alone, for a process of its own."""
    device = torch.device(case.device)
    network = place(build(network_config(case.model), (library,))[library], case, device)
    pixels, labels = make_batch(case, device)
    return forward_task(network, pixels) if case.mode == "infer" else TrainTask(network, pixels, labels, case.precision)


# ---------------------------------------------------------------------------------------------- agreement
def _watched_gradients(network: Network) -> dict[str, torch.Tensor]:
    """Return the gradients of the watched parameters, in our form."""
    theirs = {name: parameter.grad for name, parameter in network.module.named_parameters()}
    if network.links is None:
        return {name: _present(theirs[name]) for name in WATCHED}
    links = [link for link in network.links if link.ours in WATCHED]
    return {
        link.ours: link.form.read([_present(theirs[their_name(name, network.library)]) for name in link.theirs])
        for link in links
    }


def _present(gradient: torch.Tensor | None) -> torch.Tensor:
    assert gradient is not None
    return gradient.float().clone()


def _difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of two sets of tensors, each in units of the second's largest entry."""
    return max(float((first[name] - tensor).abs().max() / tensor.abs().max()) for name, tensor in second.items())


# ---------------------------------------------------------------------------------------------- a case
def measure(case: Case, *, rounds: int, min_seconds: float, memory: bool) -> dict[str, Any]:
    """Time one case in all libraries, and check that they compute the same.

    Returns:
        "case"; "flops" of one call; "products": FLOPs of the matrix products alone, and seconds by the way they
        are run; "rows": for each
        library the seconds of every round, the largest difference of its logits (and loss and gradients) from ours,
        the peak memory, or why it could not be run; "agrees": whether float32 stays within the tolerances.
    """
    device = torch.device(case.device)
    config = network_config(case.model)
    pixels, labels = make_batch(case, device)
    rows: dict[str, dict[str, Any]] = {library: {} for library in case.libraries}
    tasks: dict[str, Callable[[], object]] = {}
    outputs: dict[str, torch.Tensor] = {}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    torch.compiler.reset()  # what other cases compiled counts towards torch's limit, past which it compiles no more
    for library, network in build(config, case.libraries).items():
        try:
            place(network, case, device)
            if case.mode == "infer":
                tasks[library] = task = forward_task(network, pixels)
                outputs[library] = task().float().clone()  # a CUDA graph writes there again
            else:
                step = TrainTask(network, pixels, labels, case.precision)
                outputs[library] = step.gradients()
                gradients[library] = _watched_gradients(network)
                network.module.zero_grad(set_to_none=True)  # a CUDA graph's next call would write to them
                tasks[library] = step
        except FAILURES as error:
            rows[library]["failure"] = first_line(error)
    agrees = True
    for library in outputs:
        if library != OURS and OURS in outputs:
            rows[library]["difference"] = float((outputs[library] - outputs[OURS]).abs().max())
            if gradients:
                rows[library]["gradient_difference"] = _difference(gradients[library], gradients[OURS])
            if case.precision == "fp32":
                agrees &= rows[library]["difference"] <= TOLERANCE
                agrees &= rows[library].get("gradient_difference", 0.0) <= GRADIENT_TOLERANCE
    dtype = DTYPES[case.precision]
    products, products_flops = block_products(config, case.batch, dtype=dtype, device=device)
    tasks |= products
    timings = interleave(tasks, rounds=rounds, min_seconds=min_seconds, synchronize=synchronizer(device))
    for library, reason in timings.failures.items():
        if library not in products:
            rows[library]["failure"] = reason
    alone = {way: timings.seconds.pop(way) for way in products if way in timings.seconds}
    for library, seconds in timings.seconds.items():
        rows[library]["seconds"] = seconds
    if memory and not (case.compile and device.type == "cpu"):  # there the compiler's own memory would count
        for library in timings.seconds:
            rows[library] |= measure_memory(library, asdict(case))
    factor = 3 if case.mode == "train" else 1  # backward: for each product one for its input and one for its weight
    return {
        "case": asdict(case),
        "pictures": case.batch,
        "flops": factor * case.batch * forward_flops(config),
        "products": {"flops": products_flops, "seconds": alone},
        "rows": rows,
        "agrees": agrees,
    }
