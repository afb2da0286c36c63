"""The processes of one run: which rows of a step each takes, and what they tell one another.

Every process draws the whole step from (seed, step) and takes its part, so a run is the same whatever their number.
The target's layers may be in parts (FSDP2); the drafter is whole in each, its master weights and optimizer state lie
with one process for each matrix (see train/optimizer.py). One process alone sends nothing.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flashdraft.models.base import TargetModel


@dataclass(frozen=True)
class Ranks:
    """This process among ``count``."""

    rank: int = 0
    count: int = 1
    host_count: int = 1  # of them on this host

    @property
    def is_first(self) -> bool:
        """Whether this process writes what there is one of: log, checkpoint, drafter."""
        return self.rank == 0

    def parts(self, num_rows: int, num_parts: int) -> list[slice]:
        """Which rows of a step this process takes, in ``num_parts`` equal parts, one after the other."""
        size = num_rows // (self.count * num_parts)
        first = self.rank * num_parts * size
        return [slice(first + i * size, first + (i + 1) * size) for i in range(num_parts)]

    def sum(self, values: Tensor) -> Tensor:
        """``values`` added up over all processes, in each of them."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def from_first(self, value: float, device: torch.device) -> float:
        """The first process's ``value``: clocks differ, decisions must not."""
        if self.count == 1:
            return value
        return float(self.sum(torch.tensor(value * self.is_first, dtype=torch.float64, device=device)).item())

    def joined(self, part: Tensor) -> Tensor:
        """All processes' parts, of one shape, one after the other along the first dimension."""
        if self.count == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.count)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.count > 1:
            dist.barrier()

    def owners(self, sizes: Sequence[int]) -> list[int]:
        """A process for each of things of ``sizes``: the largest first, each to the one that has least so far."""
        loads, owners = [0] * self.count, [0] * len(sizes)
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            owners[i] = min(range(self.count), key=loads.__getitem__)
            loads[owners[i]] += sizes[i]
        return owners

    def shard_layers(self, target: TargetModel) -> None:
        """Leave each process a part of every layer of the frozen ``target``; the whole is gathered layer by layer.

        Among the processes of one host: without gradients there is nothing to tell other hosts, and the gathering,
        once a forward, would be slow over a network (benchmarks/results/train_plan.md). Embedding, head and final norm
        stay whole: they are read outside of its forward.
        """
        shape = (self.count // self.host_count, self.host_count)
        mesh = init_device_mesh(target.device.type, shape, mesh_dim_names=("hosts", "host"))["host"]
        layers = [module for module in target.modules() if type(module).__name__.endswith("Layer")]
        inside = {parameter for layer in layers for parameter in layer.parameters()}
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        # The root: layers that have one share its streams, so that the next layer arrives while this one computes.
        rest = {parameter for parameter in target.parameters() if parameter not in inside}
        fully_shard(target, mesh=mesh, ignored_params={p for p in target.parameters() if p in rest})


def launched_count() -> int:
    """How many processes torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def ranks_of_launch(device: str) -> Iterator[tuple[Ranks, str]]:
    """The processes that torchrun started, this one's device among them; without torchrun one process."""
    count, rank = launched_count(), int(os.environ.get("RANK", "0"))
    if count == 1:
        yield Ranks(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield Ranks(rank, count, int(os.environ["LOCAL_WORLD_SIZE"])), device
    finally:
        dist.destroy_process_group()
