"""What training a drafter takes on many GPUs, on paper: memory, traffic and time of a step, from the networks' shapes.

    python benchmarks/train_plan.py --out benchmarks/results/train_plan.md

Parameters are counted on the meta device. Rates are data sheets' times a share that is assumed, not measured. The
layout is that of train/ranks.py: each host's GPUs share the target's layers, the drafter is whole in each GPU, its
float32 weights and momentum lie with one GPU for each matrix.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from flashdraft.bench.published import pair_configs
from flashdraft.gpus import GPUS
from flashdraft.train.forecast import GB, PairSizes, Plan, memory, seconds, traffic

PLANS = [Plan(1, 1, False), Plan(1, 4, False), Plan(4, 1, True)]


def step_seconds(pair: PairSizes, plan: Plan) -> dict[str, float]:
    return seconds(pair, plan, GPUS["H100"], share=0.4)


def table(
    plans: list[Plan],
    of: Callable[[PairSizes, Plan], dict[str, float]],
    pair: PairSizes,
    unit: float,
    form: str,
    total: str | None,
) -> list[str]:
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
    pair, first = PairSizes(*pair_configs(name)), plans[0]
    head = [
        "| | "
        + " | ".join(
            f"{p.rows} row{'s' * (p.rows > 1)} x {p.accumulate}{', recomputed' if p.recompute else ''}"
            for p in plans
        )
        + " |",
        "| --- |" + " ---: |" * len(plans),
    ]
    times = [step_seconds(pair, plan) for plan in plans]
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
        *table(plans, step_seconds, pair, 1, ".2f", None),
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
