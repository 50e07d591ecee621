"""Muon for the matrices of the blocks and AdamW for everything else, both torch's own, as one optimiser.

Muon moves a matrix by its momentum made orthogonal, by five steps of Newton-Schulz in bfloat16 (Keller Jordan,
https://kellerjordan.github.io/posts/muon/): all directions alike far, however often the gradient points there. It is
made for hidden matrices; embeddings, the classifier, norms and biases stay with AdamW, as there.

A fused projection is several matrices, one below the other: query, key and value, and both halves of SwiGLU. They are
made orthogonal apart. Together they would share one factor, though their gradients point elsewhere; the post above
finds it worse, and modded-nanogpt's Muon splits them as well ("split grouped QKV parameters"). It is also what a model
whose projections are not fused gets, so that fusing stays a matter of speed. torch's Muon does not do it.

Scale: torch's "match_rms_adamw" (Moonlight, arXiv 2502.16982), by which an update of a matrix is as large as AdamW's
(0.2 in root mean square, times the learning rate). One learning rate and one weight decay then mean the same for both.

Cost: on one core of a busy CPU a step of Ti/4 at 32 pixels, 32 pictures, takes 1.18 times that with AdamW (quartiles
1.15 and 1.24, five rounds); the matrices cost the same whatever the batch. Not yet measured on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..modeling_vit_hf import VitHfAttention, VitHfMLP, VitHfSwiGLU


def count_matrices(model: nn.Module) -> dict[str, int]:
    """Return how many matrices each fused weight of a model is, one below the other, by its name."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, VitHfAttention):
            found[f"{name}.qkv.weight"] = 3
        elif isinstance(module, VitHfMLP) and isinstance(module.activation, VitHfSwiGLU):
            found[f"{name}.fc1.weight"] = 2
    return found


class MuonAdamW(torch.optim.Optimizer):
    """Muon for the groups that have "matrices", AdamW for the others.

    The state of a parameter is that of torch's optimiser: "momentum_buffer", or "step", "exp_avg" and "exp_avg_sq".
    Every process of a run computes all of it: Muon needs whole matrices, and none of them is shared out.

    Args:
        groups: parameter groups. "matrices" says how many matrices each parameter of a group is (see
            `count_matrices`): then they are two-dimensional, and all but "lr" and "weight_decay" is torch's default.
        lr: learning rate of groups without one.
        betas: of AdamW.
        fused: AdamW in one pass over all weights.

    Raises:
        ValueError: no group has matrices, or a parameter of one that has is not two-dimensional.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], *, lr: float, betas: tuple[float, float], fused: bool):
        matrices = [group for group in groups if "matrices" in group]
        others = [group for group in groups if "matrices" not in group]
        if not matrices:
            raise ValueError(
                "optimization.optimizer is 'muon', but no matrix of a block is trained; use adamw, or freeze less"
            )
        # Each puts its defaults into the groups, which all three share.
        self._muon = torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, fused=fused) if others else None
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]  # as torch's own
        """Move all parameters that have a gradient; returns what the closure, called first, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._adamw is not None:  # loading a state makes other groups
            self._adamw.param_groups = [group for group in self.param_groups if "matrices" not in group]
            self._adamw.state = self.state
            self._adamw.step()
        self._muon.param_groups = []
        for group in self.param_groups:
            if "matrices" in group:
                pieces = [piece for parameter in group["params"] for piece in self._cut(parameter, group["matrices"])]
                self._muon.param_groups.append({**group, "params": pieces})
        self._muon.step()
        self._muon.state.clear()  # it is this one's
        return loss

    def _cut(self, parameter: torch.Tensor, count: int) -> list[torch.Tensor]:
        """Return the matrices of a parameter as views of it, with gradient and momentum; none without a gradient."""
        if parameter.grad is None:
            return []
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        whole = (parameter.detach(), parameter.grad, state["momentum_buffer"])
        pieces = []
        for piece, gradient, momentum in zip(*(tensor.chunk(count) for tensor in whole), strict=True):
            piece.grad = gradient
            self._muon.state[piece] = {"momentum_buffer": momentum}
            pieces.append(piece)
        return pieces
