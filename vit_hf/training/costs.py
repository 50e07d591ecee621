"""What a training step of a network costs, without allocating any of it: FLOPs, activations, the peak of memory.

Conventions:
    FLOPs: of one picture; 1 multiply-add = 2 FLOPs, matrix products and convolutions only, as in
        `vit_hf.inspection.summary`. The backward pass is counted too, not taken as a multiple: a trained layer costs
        its forward pass once more for the gradient of its input and once more for that of its weights, so a step is 3
        forward passes, less the input gradient of the first layer, which nobody needs. Frozen layers below all trained
        ones cost their forward pass only, frozen layers above a trained one 2 of them. Gradient checkpointing adds a
        forward pass of each block but for its last layer, whose output nobody needs. What fused attention computes
        again by itself is not counted.
    Memory: an estimate for one process on its device, measured on fake (storage-less) tensors: the largest sum of live
        storages in a step at the real device batch, the second step, when the optimiser has its state. Norms compute in
        float32, as autocast has them on a GPU, attention goes backward by its fused kernel, and the optimiser updates
        all weights together, as torch does there.
        Real steps of Ti/16, S/16 and B/16 on a CPU (batches of 2 to 16, float32 and bfloat16, with checkpointing, with
        a frozen trunk) raised the memory of the process by 0.3% to 6% more than the estimate. Activations are the part
        that `torch.autograd.graph.saved_tensors_hooks` sees kept for the backward pass, each storage once, the bfloat16
        copies of the weights included; with gradient checkpointing one block is kept whole, the one that is being
        recomputed. They are what a GPU keeps: a CPU keeps a fifth to a quarter less, as it computes the activation of
        the MLP again. Not in it: what CUDA and its libraries take, the allocator's gaps, the inside of fused kernels,
        and the saving where weights are sharded.

Shapes: B pictures, C channels, H x W pixels, L classes.
"""

import contextlib
import copy
import math
import weakref
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode  # documented, though no public module holds it
from torch.utils._python_dispatch import TorchDispatchMode  # documented likewise
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from transformers import initialization as init

from ..modeling_vit_hf import VitHfAttention, VitHfLayer, VitHfMLP, classification_loss
from .optim import build_optimizer
from .recipe import Recipe
from .setup import enable_checkpointing
from .tasks import count_masked

Network: TypeAlias = Any
"""A `VitHfForImageClassification` or a `VitHfForMaskedImageModeling`."""

PEAK_ERROR = 0.08
"""How far `count_peak` may lie from what a real process takes; the tests hold it."""


def count_flops(network: Network, recipe: Recipe) -> tuple[int, int]:
    """Count the FLOPs of one picture: of the forward pass, and of forward and backward together.

    Args:
        network: a classifier, or a `VitHfForMaskedImageModeling`, frozen as it will be trained.
        recipe: which says whether activations are recomputed.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        twin = _twin(network, recipe)
        loss = step_loss(twin, *random_batch(twin, 1), recipe)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops()


def count_activations(network: Network, recipe: Recipe, batch_size: int) -> int:
    """Count the bytes that the forward pass of a batch keeps for the backward pass, but for the weights themselves.

    Args:
        network: as in `count_flops`.
        recipe: which says in which precision, and whether activations are recomputed.
        batch_size: pictures of one process at once.
    """
    with FakeTensorMode(), torch.device("cpu"):
        twin = _twin(network, recipe)
        batch = random_batch(twin, batch_size)
        if not recipe.gradient_checkpointing:
            return kept_bytes(twin, *batch, recipe)
        found = []
        for block in [twin.vit.layers[0], *getattr(getattr(twin, "decoder", None), "layers", [])[:1]]:
            block.gradient_checkpointing = False  # in the backward pass one block at a time is whole
            found.append(kept_bytes(twin, *batch, recipe))
            block.gradient_checkpointing = True
        return max(found)


def count_peak(network: Network, recipe: Recipe, batch_size: int) -> int:
    """Count the most bytes that tensors hold at once in a step of one process, weights and optimiser state included.

    Args:
        network, recipe, batch_size: as in `count_activations`.
    """
    with FakeTensorMode(), torch.device("cpu"), _LiveBytes() as live:
        twin = _twin(network, recipe)
        for module in twin.modules():
            if isinstance(module, VitHfAttention):  # as a GPU does; thousands of pieces would have to be followed
                module.writes_out_backward = False
        average = None if recipe.optimization.ema_decay is None else _twin(network, recipe)
        optimizer = build_optimizer(twin, recipe.optimization)
        with _float32_norms(twin, recipe):
            for _ in range(2):  # the first makes the optimiser's state
                step_loss(twin, *random_batch(twin, batch_size), recipe, _cpu_autocast(recipe)).backward()
                optimizer.step()
                optimizer.zero_grad()
        del average
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Follows the storages of all tensors that are made; `peak` is the largest sum of those alive at once, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self.now = 0, 0
        self.known: dict[int, int] = {}  # bytes by address

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._note, output)
        return output

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, address: int) -> None:
        self.now -= self.known.pop(address)


def kept_bytes(network: Network, pixels: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> int:
    """Run a forward pass and count the bytes of all storages that autograd keeps, but for those of parameters.

    Args:
        network: on the CPU or fake, as are pixels (B, C, H, W) and labels (B,), int64.
        pixels: a batch of pictures.
        labels: their classes.
        recipe: as in `count_activations`.
    """
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, tuple[Any, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage, tensor  # both held, so that no address is used twice
        return tensor

    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with _float32_norms(network, recipe), saving:
        loss = step_loss(network, pixels, labels, recipe, _cpu_autocast(recipe))
    del loss
    return sum(storage.nbytes() for key, (storage, _) in kept.items() if key not in own)


def _cpu_autocast(recipe: Recipe) -> torch.autocast:
    """Two-byte numbers where the recipe has them; float16 and bfloat16 take the same room."""
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.mixed_precision != "no")


@contextlib.contextmanager
def _float32_norms(network: Network, recipe: Recipe) -> Iterator[None]:
    """Let norms compute in float32 under autocast, which a CPU's autocast does not see to."""
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm | nn.GroupNorm)]
    mixed = recipe.mixed_precision != "no"
    hooks = [norm.register_forward_pre_hook(lambda _, args: (args[0].float(),)) for norm in norms if mixed]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _twin(network: Network, recipe: Recipe) -> Network:
    """Make an uninitialised copy on the current device, frozen alike, with fused attention."""
    config = copy.deepcopy(network.config)
    config._attn_implementation = "sdpa"
    config.attention_probs_dropout_prob = 0.0  # a CPU's fused attention has none, and would keep all weights
    with init.no_init_weights():
        twin = type(network)(config)
    for ours, theirs in zip(twin.parameters(), network.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    for module in twin.modules():
        if isinstance(module, VitHfLayer):
            module.skips_dropped = False  # how many samples that are is known in a real run only
        elif isinstance(module, VitHfMLP):
            module.computes_again = False  # as on a GPU
    if recipe.gradient_checkpointing:
        enable_checkpointing(twin)
    return twin.train()


def random_batch(network: Network, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random pictures (B, C, H, W), float32, and labels (B,), int64, on the current device."""
    return torch.rand(size, network.config.num_channels, *network.config.image_hw), torch.zeros(size, dtype=torch.long)


def step_loss(
    network: Network,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    autocast: contextlib.AbstractContextManager | None = None,
) -> torch.Tensor:
    """Return the loss of a batch by the recipe's task; in masked image modeling the first patches are hidden.

    Args:
        network: on the device of the batch.
        pixels: (B, C, H, W), float32.
        labels: (B,), int64.
        recipe: of the task.
        autocast: precision of the forward pass.
    """
    with autocast or contextlib.nullcontext():
        if recipe.task == "masked_image_modeling":
            config = network.config
            count = count_masked(recipe.augmentation, config.patch_hw, config.image_hw)
            hidden = torch.zeros(len(pixels), math.prod(config.grid_hw), dtype=torch.bool, device=pixels.device)
            hidden[:, :count] = True
            return network(pixel_values=pixels, bool_masked_pos=hidden, num_masked=count).loss
        logits = network(pixel_values=pixels).logits  # (B, L)
    return classification_loss(logits, labels, label_smoothing=recipe.optimization.label_smoothing)
