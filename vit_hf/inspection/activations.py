"""What a forward pass keeps for the backward pass, in bytes and by module: measured without allocating any of it.

`torch.autograd.graph.saved_tensors_hooks` sees each tensor that a forward pass of fake (storage-less) tensors saves,
under bfloat16 autocast with fused attention. Norms compute in float32, as autocast has them on a GPU. Each storage
counts once, for the module that saves it first; batches of 3 and of 2 are subtracted, so that weights and their
bfloat16 copies drop out. Not in it: dropout masks, temporaries, the allocator's rounding.
"""

from collections import Counter

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode  # documented, though no public module holds it
from transformers import initialization as init

from ..configuration_vit_hf import VitHfConfig
from ..modeling_vit_hf import VitHfAttention, VitHfForImageClassification, VitHfMLP


def build_empty(config: VitHfConfig) -> VitHfForImageClassification:
    """Make the classifier with uninitialised weights, so that no random numbers are drawn."""
    with init.no_init_weights():
        return VitHfForImageClassification(config)


def kept_bytes(config: VitHfConfig) -> Counter[str]:
    """Measure the bytes that a forward pass of one image keeps for the backward pass, by the module that saves them."""
    three, two = _kept_by_batch(config, 3), _kept_by_batch(config, 2)
    return Counter({name: three[name] - two[name] for name in three})


def kept_within(kept: Counter[str], name: str) -> int:
    """Add up what a module and the modules inside it keep."""
    return sum(size for inner, size in kept.items() if inner == name or inner.startswith(f"{name}."))


def _kept_by_batch(config: VitHfConfig, batch: int) -> Counter[str]:
    """Measure what `kept_bytes` does for `batch` images, weights included."""
    kept: dict[int, tuple] = {}
    inside: list[str] = [""]  # the modules whose forward runs now

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage._cdata, (inside[-1], storage, tensor))  # both held, so that no address is used twice
        return tensor

    def enter(name: str):
        def hook(module: nn.Module, args: tuple) -> None:
            inside.append(name)

        return hook

    with FakeTensorMode(), torch.device("cpu"):
        model = build_empty(config).train()
        for name, module in model.named_modules():
            if isinstance(module, VitHfAttention):
                module.writes_out_backward = False  # as on a GPU, whose kernel keeps a number a query and head
            if isinstance(module, VitHfMLP):
                module.computes_again = False  # likewise
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                module.register_forward_pre_hook(lambda module, args: (args[0].float(),))
            if not name.endswith(".qkv"):  # where it has a hook it is called, and the last block takes no shortcut
                module.register_forward_pre_hook(enter(name))
                module.register_forward_hook(lambda module, args, output: inside.pop() and None)
        images = torch.empty(batch, config.num_channels, *config.image_hw)
        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.enable_grad(), saving, torch.autocast("cpu", torch.bfloat16):
            output = model(images)
        del output
    sizes: Counter[str] = Counter()
    for name, storage, _ in kept.values():
        sizes[name] += storage.nbytes()
    return sizes


__all__ = ["build_empty", "kept_bytes", "kept_within"]
