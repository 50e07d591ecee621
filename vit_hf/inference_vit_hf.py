"""The same network in less time, for inference only: what `prepare_for_inference` of a model does to it.

Exact in the maths, so that logits differ by rounding alone (below 1e-5 in float32):

- the factors of LayerScale go into the rows of the product before them;
- rescaling and normalisation of the image processor go into the patch projection, which then takes uint8 pixels;
- on a CPU with AVX-512 the weights of the blocks are laid out once as oneDNN reads them, and its product adds the bias,
  applies GELU and adds the residual while it writes the result (torch's own inductor uses these operators, torch
  `_inductor/fx_passes/mkldnn_fusion.py`). Otherwise each is a pass over memory of its own;
- in float32 on another CPU the weights of the blocks lie by columns, which torch's product reads a little faster,
  residuals are what it adds to, and GELU is applied in place;
- on request parts of a batch go through the blocks side by side, which throughput modes of other runtimes call streams.

Tried and left out, on an AMD EPYC with AVX-512: the factors of LayerNorm in the product after it (torch's kernel
without them takes 1.7 times as long in float32, 0.85 times in bfloat16, where all norms are 7% of B/16); the patch
projection as a product of unfolded patches (0.73 to 1.16 times as long as the convolution, which is 1% of B/16);
channels-last pixels (no faster). torch.compile passes over packed blocks.

Shapes: B batch, N tokens, Q query tokens, D width, A heads, K head dim, C channels.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import cast

import torch
from torch import nn
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from .modeling_vit_hf import _GELU_FORMS, VitHfLayer, VitHfPreTrainedModel, _is_watched

_FUSED = {"gelu": ("gelu", "none"), "gelu_pytorch_tanh": ("gelu", "tanh")}  # hidden_act -> oneDNN's name and form


class VitHfPackedLinear(nn.Module):
    """A linear layer laid out for oneDNN, on the CPU, without gradients.

    Args:
        linear: float32 or bfloat16; it is not kept.
        scale: (outputs,): a factor on each output, or None.
        activation: name in the config of a GELU to apply to the output, or None.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        scale: torch.Tensor | None = None,
        activation: str | None = None,
    ):
        super().__init__()
        weight, bias = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        if scale is not None:
            weight, bias = weight * scale[:, None], None if bias is None else bias * scale
        self.dtype = weight.dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.bias = None if bias is None else bias.clone()
        self.activation, self.form = _FUSED.get(activation or "", ("none", ""))

    def __deepcopy__(self, memo: dict) -> "VitHfPackedLinear":
        return self  # nothing in it ever changes

    def __getstate__(self) -> dict:
        return {**self.__dict__, "weight": self.weight.to_dense()}  # packed ones have no storage to be written

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({**state, "weight": torch.ops.mkldnn._reorder_linear_weight(state["weight"])})

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return x @ weight.T + bias, activated, or with (..., outputs) `residual` added; in the weight's dtype."""
        product, x = torch.ops.mkldnn._linear_pointwise, x.to(self.dtype).contiguous()  # autocast gives others
        if residual is not None:
            return product.binary(x, residual.to(self.dtype).contiguous(), self.weight, self.bias, "add")
        return product(x, self.weight, self.bias, self.activation, [], self.form)


class VitHfPackedLayer(VitHfLayer):
    """An encoder block of packed products; a `VitHfLayer` becomes one, and keeps its hooks."""

    qkv: VitHfPackedLinear
    output: VitHfPackedLinear
    fc1: VitHfPackedLinear
    fc2: VitHfPackedLinear
    activation: nn.Module
    absorbs: bool
    """Whether few queries do without keys and values; the attention then has its plain projection still."""

    @classmethod
    def convert(cls, layer: VitHfLayer, *, shortcut: bool) -> None:
        """Pack a block in place; `shortcut`: whether it may be asked for its first tokens only."""
        attention, mlp, scales = layer.attention, layer.mlp, (layer.scale1.scale, layer.scale2.scale)
        activation = attention.config.hidden_act
        layer.__class__ = cls
        packed = cast(VitHfPackedLayer, layer)
        packed.qkv = VitHfPackedLinear(attention.qkv)
        packed.output = VitHfPackedLinear(attention.output, scale=scales[0])
        packed.fc1 = VitHfPackedLinear(mlp.fc1, activation=activation)
        packed.activation = nn.Identity() if activation in _FUSED else mlp.activation
        packed.fc2 = VitHfPackedLinear(mlp.fc2, scale=scales[1])
        packed.absorbs = shortcut and attention.can_absorb
        if not packed.absorbs:
            del attention.qkv
        del attention.output, layer.mlp, layer.scale1, layer.scale2

    @torch.compiler.disable  # inductor takes packed weights as constants only
    def forward(self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs) -> torch.Tensor:
        """As `VitHfLayer.forward`; no attention maps."""
        if kwargs.get("output_attentions"):
            raise ValueError(
                "a model that was prepared for inference gives no attention maps; load it again without "
                "prepare_for_inference"
            )
        normed, hidden_states = self.norm1(hidden_states), hidden_states[:, :num_queries]  # (B, N, D), (B, Q, D)
        if num_queries is not None and self.absorbs:
            mixed, _ = self.attention.absorb(normed, num_queries)  # (B, Q, A, K)
        else:
            parts = self.attention.heads(self.qkv(normed), num_queries)
            mixed, _ = self.attention.attend(*parts, **kwargs)  # (B, Q, A, K)
        hidden_states = self.output(mixed.flatten(2), hidden_states)  # (B, Q, D)
        return self.fc2(self.activation(self.fc1(self.norm2(hidden_states))), hidden_states)

    def _apply(self, fn, recurse=True):
        """Refuse to move or to change dtype, which packed weights cannot; a move to where it lies changes nothing."""
        moved = fn(torch.empty(0, dtype=self.fc2.dtype))
        if moved.device.type != "cpu" or moved.dtype != self.fc2.dtype:
            raise RuntimeError(
                f"a model that was prepared for inference stays on the CPU in {self.fc2.dtype}; load it again, move "
                "it, and prepare it then"
            )
        return super()._apply(fn, recurse)


class VitHfInPlaceLayer(VitHfLayer):
    """An encoder block that, in float32 on a CPU, writes where a product has just written; a `VitHfLayer` becomes one.

    For a result in fresh memory the system has to find and clear pages, unless the heap happens to hold some. What goes
    into a block and what comes out of it is not written to.
    """

    @classmethod
    def convert(cls, layer: VitHfLayer) -> None:
        """Take a block over in place; its weights keep shapes and values, and lie by columns."""
        layer.__class__ = cls
        for linear in _linears(layer).values():
            linear.weight = nn.Parameter(linear.weight.T.contiguous().T, requires_grad=False)

    def forward(self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs) -> torch.Tensor:
        """As `VitHfLayer.forward`, which does what cannot be done in place."""
        if kwargs.get("output_attentions") or not self._can_overwrite(hidden_states):
            return super().forward(hidden_states, num_queries, **kwargs)
        attention, mlp = self.attention, self.mlp
        normed, hidden_states = self.norm1(hidden_states), hidden_states[:, :num_queries]  # (B, N, D), (B, Q, D)
        if num_queries is not None and attention.can_absorb:
            mixed, _ = attention.absorb(normed, num_queries)  # (B, Q, A, K)
        else:
            mixed, _ = attention.attend(*attention.heads(attention.qkv(normed), num_queries), **kwargs)
        hidden_states = _add_product(hidden_states, mixed.flatten(2), attention.output)  # (B, Q, D)
        hidden = mlp.fc1(self.norm2(hidden_states))  # (B, Q, M)
        form = _GELU_FORMS.get(type(mlp.activation))
        hidden = mlp.activation(hidden) if form is None else torch.ops.aten.gelu_(hidden, approximate=form)
        return _add_product(hidden_states, hidden, mlp.fc2)

    def _can_overwrite(self, hidden_states: torch.Tensor) -> bool:
        """Whether the products are torch's own in float32, and nobody else looks at what they write."""
        attention, mlp = self.attention, self.mlp
        seen = any(map(_is_watched, (attention, attention.output, mlp, mlp.activation, mlp.fc1, mlp.fc2)))
        if seen or self.training or hidden_states.requires_grad or torch.compiler.is_compiling():
            return False
        narrow = hidden_states.dtype != torch.float32 or torch.is_autocast_enabled("cpu")
        return hidden_states.device.type == "cpu" and not narrow and not any(map(_is_unusual, _linears(self).values()))


def _add_product(residual: torch.Tensor, x: torch.Tensor, linear: nn.Linear) -> torch.Tensor:
    """Return residual (B, Q, D) + linear(x), where the product adds to what it finds."""
    total = (residual + linear.bias).contiguous()  # without prefix tokens the first block's are not yet
    total.view(-1, total.shape[-1]).addmm_(x.flatten(0, 1), linear.weight.T)
    return total


def _linears(layer: VitHfLayer) -> dict[str, nn.Linear]:
    """Return the four linear layers of a block by their names."""
    attention, mlp = layer.attention, layer.mlp
    return {
        "attention.qkv": attention.qkv,
        "attention.output": attention.output,
        "mlp.fc1": mlp.fc1,
        "mlp.fc2": mlp.fc2,
    }


def _is_unusual(linear: nn.Module) -> bool:
    """Whether a linear layer is more than its weight: an adapter, quantised, or offloaded."""
    return type(linear) is not nn.Linear or type(linear.weight) is not nn.Parameter or linear.weight.is_meta


def run_in_streams(
    blocks: Callable[[torch.Tensor], torch.Tensor], encoder: nn.Module, hidden_states: torch.Tensor, *, streams: int
) -> torch.Tensor:
    """Return blocks(hidden_states), (B, N, D) to (B, Q, D), computed for parts of the batch side by side.

    Args:
        blocks: passes tokens through the blocks; called by several threads at once.
        encoder: whose blocks they are; it is left in peace where they are watched.
        hidden_states: (B, N, D), on the CPU.
        streams: the most parts; never more than torch has threads.
    """
    if torch.compiler.is_compiling() or not _may_split(encoder, hidden_states):
        return blocks(hidden_states)
    threads = torch.get_num_threads()
    streams = min(streams, threads, len(hidden_states))
    if streams < 2:
        return blocks(hidden_states)
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.set_grad_enabled
    enabled = torch.is_inference_mode_enabled() or torch.is_grad_enabled()

    def run(part: torch.Tensor) -> torch.Tensor:
        with mode(enabled):  # a thread has a mode of its own
            return blocks(part)

    pool = _threads(streams, threads // streams)
    parts = [pool.submit(run, part) for part in hidden_states.tensor_split(streams)]
    wait(parts)  # one that fails leaves no other at work
    return torch.cat([part.result() for part in parts])


def _may_split(encoder: nn.Module, hidden_states: torch.Tensor) -> bool:
    """Whether nobody sees that blocks are called by parts in other threads, where modes of this one do not reach."""
    modes = (
        hidden_states.requires_grad,
        torch.is_autocast_enabled("cpu"),
        torch.jit.is_tracing(),
        torch._C._functorch.peek_interpreter_stack() is not None,
        bool(torch.overrides._get_current_function_mode_stack()),
        bool(_get_current_dispatch_mode_stack()),
        torch.autograd._profiler_enabled(),
    )
    plain = type(hidden_states) is torch.Tensor and hidden_states.device.type == "cpu"
    return plain and not any(modes) and not any(map(_is_watched, cast(nn.ModuleList, encoder.layers).modules()))


@functools.cache
def _threads(count: int, share: int) -> ThreadPoolExecutor:
    """Return so many threads, started, each of which gives its operations `share` threads of torch."""
    before, started = torch.get_num_threads(), threading.Barrier(count)

    def take_share() -> None:
        torch.get_num_threads()  # asked later for the first time, it would take what others begin with
        torch.set_num_threads(share)  # this thread's, and what threads begin with that come later
        started.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="vit_hf_stream")
    wait([pool.submit(take_share) for _ in range(count)])
    torch.set_num_threads(before)  # what those begin with
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # threads stay behind


@torch.no_grad()
def prepare_for_inference(model: VitHfPreTrainedModel, image_processor=None, streams: int = 1) -> None:
    """Rewrite a network in place; see `VitHfPreTrainedModel.prepare_for_inference`."""
    encoder = model.encoder
    if encoder.is_prepared:
        raise ValueError("the model is prepared for inference already; load it again to prepare it otherwise")
    layers = cast(list[VitHfLayer], list(encoder.layers))
    where = layers[0].mlp.fc2.weight.device.type
    if not isinstance(streams, int) or streams < 1 or (streams > 1 and where != "cpu"):
        raise ValueError(
            f"streams={streams!r} for a model on {where}; expected a number of parts of a batch, 1 or more, and no "
            "more than 1 unless the model is on a CPU"
        )
    for index, layer in enumerate(layers):
        for name, linear in _linears(layer).items():
            if _is_unusual(linear):
                raise ValueError(
                    f"layers.{index}.{name} is a {type(linear).__name__} with a {type(linear.weight).__name__} on "
                    f"{linear.weight.device}, and cannot be prepared for inference; expected a plain nn.Linear: merge "
                    "adapters into the weights first, load the model whole, and quantise it after this"
                )
    if image_processor is not None:
        _take_uint8(model, image_processor)
    model.requires_grad_(False)
    weight = layers[0].mlp.fc2.weight
    packed, in_place = _can_pack(weight), weight.device.type == "cpu" and weight.dtype == torch.float32
    for index, layer in enumerate(layers):
        if packed:
            shortcut = index == len(layers) - 1 and model.config.pooling == "cls"
            VitHfPackedLayer.convert(layer, shortcut=shortcut)
        else:
            for linear, branch in ((layer.attention.output, layer.scale1), (layer.mlp.fc2, layer.scale2)):
                if branch.scale is not None:
                    linear.weight.mul_(branch.scale[:, None])
                    linear.bias.mul_(branch.scale)
                    branch.scale = None
            if in_place:
                VitHfInPlaceLayer.convert(layer)
    encoder.is_prepared = True
    encoder.in_streams = functools.partial(run_in_streams, streams=streams) if streams > 1 else None
    model.eval()


def _can_pack(weight: torch.Tensor) -> bool:
    """Whether this build of torch, on this machine, has oneDNN's product for weights like these, and gains by it."""
    here = weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and _has_avx512()
    if not here or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def _has_avx512() -> bool:
    """Whether this processor has AVX-512.

    With AVX2 alone (AMD EPYC) oneDNN's products take 0.94 to 1.4 times as long as torch's own and the passes after
    them, B/16 1.10 times.
    """
    return bool(torch.cpu.get_capabilities().get("avx512_f"))


def _take_uint8(model: VitHfPreTrainedModel, image_processor) -> None:
    """Fold ((pixel + 128) * rescale - mean) / std into the projection of pixels less 128, worked out in float64."""
    patches, config = model.encoder.embeddings.patch_embeddings, model.config
    if patches.stem is not None:
        raise ValueError(
            "the image processor cannot be folded into a ResNet stem, which pads with zeros between its layers; "
            "leave out image_processor, and hand normalised pixel_values to the model"
        )
    if model.encoder.embeddings.mask_token is not None:
        raise ValueError("a model for masked images compares with normalised pixels; leave out image_processor")
    if not getattr(image_processor, "antialias", True) or getattr(image_processor, "do_pad", False):
        raise ValueError(
            "an image processor with antialias=False or do_pad=True cannot be folded in: without antialiasing it gives "
            "no uint8, and what it pads is not normalised; leave out image_processor, and hand normalised pixel_values "
            "to the model"
        )
    factor, mean, std = normalization(image_processor, config.num_channels)
    old = patches.projection
    shift, divisor = (torch.tensor(values, dtype=torch.float64, device="cpu").view(-1, 1, 1) for values in (mean, std))
    kernel = old.weight.to("cpu", torch.float64)  # (D, C, h, w)
    bias = torch.zeros(len(kernel), dtype=torch.float64) if old.bias is None else old.bias.to("cpu", torch.float64)
    new = nn.Conv2d(old.in_channels, old.out_channels, old.kernel_size, stride=old.stride, bias=True)  # type: ignore[arg-type]
    new.weight = nn.Parameter((kernel * (factor / divisor)).to(old.weight))
    new.bias = nn.Parameter((bias + (kernel * ((128 * factor - shift) / divisor)).sum(dim=(1, 2, 3))).to(old.weight))
    patches.projection, patches.takes_uint8 = new, True
    patches.register_buffer("for_uint8", torch.ones((), dtype=torch.bool))  # not loaded into a plain model unnoticed


def normalization(image_processor, num_channels: int) -> tuple[float, list[float], list[float]]:
    """Return factor, mean and std of what an image processor makes of a pixel 0..255: (pixel * factor - mean) / std.

    Raises:
        ValueError: mean and std are those of another number of channels.
    """
    numbers = (image_processor.image_mean, image_processor.image_std) if image_processor.do_normalize else (0.0, 1.0)
    mean, std = ([each] * num_channels if isinstance(each, (int, float)) else list(each) for each in numbers)
    if len(mean) != num_channels or len(std) != num_channels:
        raise ValueError(
            f"the image processor normalises {len(mean)} channels, the model takes {num_channels}; expected the "
            "processor that was saved with the model"
        )
    return (image_processor.rescale_factor if image_processor.do_rescale else 1.0), mean, std
