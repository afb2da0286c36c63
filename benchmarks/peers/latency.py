"""How long a client waits beside vLLM's server under the same load: to the first token, and from one to the next.

    python benchmarks/peers/compare.py up --systems "auto (bf16),flashdraft AR,vLLM AR"
    python benchmarks/peers/latency.py --out benchmarks/results/latency.json
    python benchmarks/peers/compare.py down

Both kinds of load are asked of every system in turns, with prompts that none has seen: so many requests under way at a
time, and requests that arrive at random. Greedy, answers of one length. An acceptance puts several tokens into one
piece of text, so two figures are told: between pieces, which is what a reader sees, and per token of an answer.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import uvloop
from compare import answers, chosen, groups, label, port_of
from systems import System

from flashdraft.bench.client import Client
from flashdraft.bench.online import Load, Target, measure
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

SYSTEMS = "auto (bf16),flashdraft AR,vLLM AR"  # its CPU build serves no DFlash 2 drafter
FIGURES = {"ttft_ms": "ttft_s", "between_pieces_ms": "itl_s", "per_token_ms": "tpot_s"}


async def ask(system: System, prompts: list[Any], load: Load, num_tokens: int) -> dict[str, Any]:
    """One row."""
    params = SamplingParams(temperature=0.0, seed=0, max_tokens=num_tokens, ignore_eos=True)
    async with Client(f"http://127.0.0.1:{port_of(system)}") as client:
        row = await measure(client, "mixed", prompts, params, load, Target(), system.name)
    if row.num_failed:
        raise SystemExit(f"{label(system)} failed: {row.first_error}")
    told: dict[str, Any] = {"output_tokens_per_s": round(row.output_tokens_per_s, 1)}
    for name, field in FIGURES.items():
        found = getattr(row, field)
        told[name] = {"p50": round(1e3 * found.p50, 1), "p99": round(1e3 * found.p99, 1)}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", default=SYSTEMS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1.5, help="requests a second")
    parser.add_argument("--requests", type=int, default=24, help="of a round and load")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    systems = [system for system in chosen(args.systems) if answers(system)]
    loads = [Load(args.concurrency), Load(rate=args.rate)]
    rows: list[dict[str, Any]] = []
    asked = groups({args.requests: len(loads) * (args.rounds + 1)})
    for round_ in range(-1, args.rounds):  # the first, which is not kept, warms them up
        for load in loads:
            _, idx, prompts = next(asked)
            first = idx % len(systems)
            for system in [*systems[first:], *systems[:first]]:
                row = uvloop.run(ask(system, prompts, load, args.max_tokens))
                kind = f"{args.concurrency} at a time" if load.rate is None else f"{args.rate} a second"
                told = {"system": label(system), "load": kind, "round": round_} | row
                print(json.dumps(told), flush=True)
                rows += [told] if round_ >= 0 else []
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    if args.out:
        figures = {"settings": settings, "rows": rows, "provenance": collect_provenance()}
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
