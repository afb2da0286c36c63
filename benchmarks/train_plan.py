"""What training a drafter takes on many GPUs, on paper: memory, traffic and time of a step, from the networks' shapes.

    python benchmarks/train_plan.py --out benchmarks/results/train_plan.md

Parameters are counted on the meta device. Rates are data sheets' times a share that is assumed, not measured. The
layout is that of train/ranks.py: each host's GPUs share the target's layers, the drafter is whole in each GPU, its
float32 weights and momentum lie with one GPU for each matrix.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flashdraft.bench.published import pair_configs
from flashdraft.models.base import build_target
from flashdraft.models.dflash import DFlashModel
from flashdraft.train.ranks import Ranks

GB = 10**9
H100 = {
    "flops": 989e12 * 0.4,
    "nvlink": 450e9 * 0.7,
    "network": 50e9 * 0.7,
}  # bytes a second and GPU, one way
BF16, FLOAT32 = 2, 4


@dataclass(frozen=True)
class Plan:
    """One way to train: rows on each GPU in a forward, forwards in a step."""

    rows: int
    accumulate: int
    recompute: bool
    num_gpus: int = 64
    gpus_per_host: int = 8
    seq_len: int = 4096
    blocks_per_row: int = 512
    slots_per_block: int = 4


PLANS = [Plan(1, 1, False), Plan(1, 4, False), Plan(4, 1, True)]


def sizes(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Pair:
    """Parameters of target and drafter."""

    def __init__(self, name: str) -> None:
        self.target_config, self.config = pair_configs(name)
        with torch.device("meta"):
            target, self.drafter = build_target(self.target_config), DFlashModel(self.config)
        layers = [module for module in target.modules() if type(module).__name__.endswith("Layer")]
        self.layers, self.largest_layer = sum(map(sizes, layers)), max(map(sizes, layers))
        self.whole = sizes(target) - self.layers
        self.head = target.head_weight().numel()
        self.draft = sizes(self.drafter)

    def largest_share(self, num_gpus: int) -> int:
        """Parameters of the drafter whose float32 state lies with the GPU that has most of it."""
        counts = [parameter.numel() for parameter in self.drafter.parameters()]
        loads = [0] * num_gpus
        for count, owner in zip(counts, Ranks(0, num_gpus).owners(counts), strict=True):
            loads[owner] += count
        return max(loads)


def activations(pair: Pair, plan: Plan) -> dict[str, float]:
    """Bytes of a forward's tensors on one GPU, estimated from the widest ones that live together."""
    config, hidden = pair.config, pair.config.hidden_size
    tokens, slots = plan.rows * plan.seq_len, plan.rows * plan.blocks_per_row * pair.config.block_size
    # What a layer keeps of a slot: two norms' and the MLP's inputs, queries and output, gate, up and their product.
    attention = config.num_attention_heads * config.head_dim
    kept = 4 * hidden + 3 * attention + 3 * config.intermediate_size
    layers = config.num_hidden_layers
    of_slots = slots * (layers * hidden + kept if plan.recompute else layers * kept)
    context = tokens * layers * 2 * config.num_key_value_heads * config.head_dim
    loss_rows = plan.rows * plan.blocks_per_row * plan.slots_per_block
    return {
        "features": BF16 * tokens * len(config.target_layer_ids) * hidden,
        "target's widest layer": BF16 * tokens * (2 * hidden + 3 * pair.target_config.intermediate_size),
        "drafter's activations": BF16 * (of_slots + context),
        "logits and their gradient": 2 * BF16 * min(loss_rows, 8192) * config.vocab_size,
    }


def memory(pair: Pair, plan: Plan) -> dict[str, float]:
    """Bytes on the GPU that has most."""
    return {
        "target's layers, this GPU's part": BF16 * pair.layers / plan.gpus_per_host,
        "embedding, head, norms, whole": BF16 * pair.whole,
        "two gathered layers": 2 * BF16 * pair.largest_layer,
        "drafter and its gradient": 2 * BF16 * pair.draft,
        "gradient in float32": FLOAT32 * pair.draft,
        "float32 weights and momentum, this GPU's": 2 * FLOAT32 * pair.largest_share(plan.num_gpus),
        **activations(pair, plan),
    }


def traffic(pair: Pair, plan: Plan) -> dict[str, float]:
    """Bytes that one GPU receives in a step."""
    others = (plan.gpus_per_host - 1) / plan.gpus_per_host
    return {
        "target's layers, within the host": BF16 * pair.layers * others * plan.accumulate,
        "gradients to their owners, between hosts": FLOAT32 * pair.draft,
        "weights from their owners, between hosts": BF16 * pair.draft,
    }


def seconds(pair: Pair, plan: Plan) -> dict[str, float]:
    """Seconds of a step: matrix products without attention scores, and each kind of traffic."""
    tokens, slots = plan.rows * plan.seq_len, plan.rows * plan.blocks_per_row * pair.config.block_size
    loss_rows = plan.rows * plan.blocks_per_row * plan.slots_per_block
    again = 8 if plan.recompute else 6
    flops = plan.accumulate * (
        2 * pair.layers * tokens + again * pair.draft * slots + 4 * pair.head * loss_rows
    )
    sent = list(traffic(pair, plan).values())
    return {
        "computing": flops / H100["flops"],
        "within the host (beside computing)": sent[0] / H100["nvlink"],
        "between hosts (after it)": (sent[1] + sent[2]) / H100["network"],
    }


def table(plans: list[Plan], of: Any, pair: Pair, unit: float, form: str, total: str | None) -> list[str]:
    columns = [of(pair, plan) for plan in plans]
    lines = [
        f"| {name} | " + " | ".join(format(column[name] / unit, form) for column in columns) + " |"
        for name in columns[0]
    ]
    if total:
        sums = " | ".join(f"**{sum(column.values()) / unit:{form}}**" for column in columns)
        lines.append(f"| **{total}** | {sums} |")
    return lines


def document(name: str, plans: list[Plan]) -> str:
    pair, first = Pair(name), plans[0]
    head = [
        "| | "
        + " | ".join(
            f"{p.rows} row{'s' * (p.rows > 1)} x {p.accumulate}{', recomputed' if p.recompute else ''}"
            for p in plans
        )
        + " |",
        "| --- |" + " ---: |" * len(plans),
    ]
    times = [seconds(pair, plan) for plan in plans]
    steps = [max(list(t.values())[:2]) + list(t.values())[2] for t in times]
    tokens = [
        p.num_gpus * p.rows * p.accumulate * p.seq_len / s / 1e3 for p, s in zip(plans, steps, strict=True)
    ]
    lines = [
        f"# Training a drafter for {name} on {first.num_gpus} GPUs, on paper",
        "",
        "Computed by `benchmarks/train_plan.py`, of which `tests/train/test_plan.py` makes sure; nothing is measured.",
        f"Target {(pair.layers + pair.whole) / GB:.1f} G parameters, drafter {pair.draft / GB:.2f} G in"
        f" {pair.config.num_hidden_layers} layers, bf16; {first.num_gpus // first.gpus_per_host} hosts of"
        f" {first.gpus_per_host} H100; rows of {first.seq_len} tokens with {first.blocks_per_row} blocks of"
        f" {pair.config.block_size}, {first.slots_per_block} slots of each in the loss, weighted by decay; columns:"
        " rows on a GPU in a forward x forwards in a step.",
        "",
        "Memory of one GPU, GB (10^9 bytes; activations are estimates):",
        "",
        *head,
        *table(plans, memory, pair, GB, ".1f", "together"),
        "",
        "Received by one GPU in a step, GB:",
        "",
        *head,
        *table(plans, traffic, pair, GB, ".1f", "together"),
        "",
        "Seconds of a step, at 40 % of the data sheet's FLOP/s and 70 % of its bandwidths (assumed):",
        "",
        *head,
        *table(plans, seconds, pair, 1, ".2f", None),
        "| **a step** | " + " | ".join(f"**{s:.2f}**" for s in steps) + " |",
        "| thousand tokens a second, all GPUs | " + " | ".join(f"{t:,.0f}" for t in tokens) + " |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", default="qwen3.5-27b")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.write_text(document(args.pair, PLANS))
    print(args.out.read_text())


if __name__ == "__main__":
    main()
