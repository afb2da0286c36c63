"""Optimizers over float32 master weights, whatever type the network computes in."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flashdraft.errors import UsageError
from flashdraft.train.ranks import Ranks

OPTIMIZERS = ("muon", "adamw")


class Optimizer:
    """Muon for the matrices (Moonlight's scaling, arXiv 2502.16982) and AdamW for the rest, or AdamW for all.

    With a bf16 network the float32 weights live here; after each step they are rounded into the network. Among several
    processes each matrix belongs to one: it gets the whole gradient, keeps master weights and optimizer state, and
    sends the result to all. So Muon sees whole matrices, and every process has but its share of the state.
    """

    def __init__(
        self,
        model: nn.Module,
        kind: str,
        lr: float,
        weight_decay: float,
        grad_clip: float,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    ) -> None:
        if kind not in OPTIMIZERS:
            raise UsageError(f"optimizer is {kind!r}; expected one of {', '.join(OPTIMIZERS)}")
        self.ranks, self.lr, self.grad_clip = ranks, lr, grad_clip
        named = dict(model.named_parameters())
        self.parameters = list(named.values())
        self.owners = ranks.owners([parameter.numel() for parameter in self.parameters])
        self.gradients: list[Tensor | None] = [None] * len(named)  # of a step so far, float32
        self.mine = [i for i, owner in enumerate(self.owners) if owner == ranks.rank]
        self.names = [list(named)[i] for i in self.mine]
        self.masters = [self.parameters[i].detach().float().clone() for i in self.mine]
        # A codebook is a table of rows, each moved by its own gradient alone: no matrix in Muon's sense.
        is_matrix = [
            m.dim() == 2 and "codebook" not in n for n, m in zip(self.names, self.masters, strict=True)
        ]
        matrices = [m for m, wanted in zip(self.masters, is_matrix, strict=True) if wanted]
        others = [m for m, wanted in zip(self.masters, is_matrix, strict=True) if not wanted]
        groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
        self.optimizers: list[torch.optim.Optimizer] = []
        if kind == "adamw":
            groups.append({"params": matrices, "weight_decay": weight_decay})
        elif matrices:
            muon = torch.optim.Muon(
                matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self.optimizers.append(muon)
        fused = self.parameters[0].is_cuda
        self.optimizers.append(torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=fused))

    def take_gradients(self) -> None:
        """Add the parameters' gradients to this step's, in float32, and clear them."""
        for i, parameter in enumerate(self.parameters):
            assert parameter.grad is not None
            so_far, new = self.gradients[i], parameter.grad.float()
            self.gradients[i] = new if so_far is None else so_far.add_(new)
            parameter.grad = None

    def step(self, lr_factor: float) -> None:
        """Clip the gradients that were taken, apply them at ``lr * lr_factor``, and forget them."""
        self._gather_gradients()
        norm = nn.utils.get_total_norm([m.grad for m in self.masters if m.grad is not None], foreach=True)
        if self.ranks.count > 1:
            norm = self.ranks.sum(norm.to(self.parameters[0].device) ** 2).sqrt()
        nn.utils.clip_grads_with_norm_(self.masters, self.grad_clip, norm, foreach=True)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * lr_factor
            optimizer.step()
        self._spread_weights()

    def _gather_gradients(self) -> None:
        """Each owner gets the sum over all processes."""
        masters = iter(self.masters)
        for i, (gradient, owner) in enumerate(zip(self.gradients, self.owners, strict=True)):
            assert gradient is not None
            if self.ranks.count > 1:
                dist.reduce(gradient, owner)
            if owner == self.ranks.rank:
                next(masters).grad = gradient
            self.gradients[i] = None

    @torch.no_grad()
    def _spread_weights(self) -> None:
        """Round the master weights into the network, each process's into all."""
        if self.masters:
            torch._foreach_copy_([self.parameters[i].data for i in self.mine], self.masters)
        if self.ranks.count > 1:
            for parameter, owner in zip(self.parameters, self.owners, strict=True):
                dist.broadcast(parameter.data, owner)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Of the matrices that lie here, by name: master weights and what the optimizer knows of them."""
        names = dict(zip(self.masters, self.names, strict=True))
        known = [item for optimizer in self.optimizers for item in optimizer.state.items()]
        return {
            "masters": dict(zip(self.names, self.masters, strict=True)),
            "optimizer": {names[master]: values for master, values in known},
        }

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Go on from the :meth:`state_dict` of all matrices, to the bit, wherever they lay."""
        owned = dict(zip(self.names, self.masters, strict=True))
        for name, master in owned.items():
            master.copy_(state["masters"][name])
        for optimizer in self.optimizers:
            members = {id(one) for group in optimizer.param_groups for one in group["params"]}
            for name, values in state["optimizer"].items():
                if name in owned and id(owned[name]) in members:
                    master = owned[name]
                    optimizer.state[master] = {k: v.to(master.device, copy=True) for k, v in values.items()}
        self._spread_weights()
