"""Optimizers over float32 master weights, whatever type the network computes in."""

from typing import Any

import torch
from torch import Tensor, nn

from flashdraft.errors import UsageError

OPTIMIZERS = ("muon", "adamw")


class Optimizer:
    """Muon for the matrices (Moonlight's scaling, arXiv 2502.16982) and AdamW for the rest, or AdamW for all.

    With a bf16 network the float32 weights live here; after each step they are rounded into the network.
    """

    def __init__(self, model: nn.Module, kind: str, lr: float, weight_decay: float, grad_clip: float) -> None:
        if kind not in OPTIMIZERS:
            raise UsageError(f"optimizer is {kind!r}; expected one of {', '.join(OPTIMIZERS)}")
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        self.masters = [p.detach().float().clone() for p in self.parameters]
        self.lr, self.grad_clip = lr, grad_clip
        matrices = [m for m in self.masters if m.dim() == 2]
        groups: list[dict[str, Any]] = [
            {"params": [m for m in self.masters if m.dim() != 2], "weight_decay": 0.0}
        ]
        self.optimizers: list[torch.optim.Optimizer] = []
        if kind == "muon":
            muon = torch.optim.Muon(
                matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.optimizers.append(muon)
        else:
            groups.append({"params": matrices, "weight_decay": weight_decay})
        fused = self.masters[0].is_cuda
        self.optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=fused))

    def step(self, lr_factor: float) -> None:
        """Clip the parameters' gradients, apply them at ``lr * lr_factor``, and clear them."""
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            assert parameter.grad is not None
            master.grad = parameter.grad.float()
            parameter.grad = None
        nn.utils.clip_grad_norm_(self.masters, self.grad_clip, foreach=True)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * lr_factor
            optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(list[Tensor](self.parameters), self.masters)

    def state_dict(self) -> dict[str, Any]:
        """Master weights by name and the optimizers' states."""
        return {
            "masters": dict(zip(self.names, self.masters, strict=True)),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`, to the bit."""
        with torch.no_grad():
            for name, master, parameter in zip(self.names, self.masters, self.parameters, strict=True):
                master.copy_(state["masters"][name])
                parameter.copy_(master)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
