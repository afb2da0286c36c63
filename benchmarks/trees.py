"""Trees against chains: what each accepts on the five tasks; one request at a time, on an idle machine, what it costs.

    python benchmarks/trees.py --limit 10 --max-tokens 128 --out benchmarks/results/trees.json
    python benchmarks/trees.py --limit 1 --max-tokens 64 --concurrency 1 --out benchmarks/results/trees_speed.json

All ways of drafting answer the same prompts in turn, another one first each time. Whatever drafts, the answers have
to be the same tokens where the target's sums do not depend on the batch; how many are is told. Seconds are those of
the rounds, without prefill; with several prompts at a time they say nothing about one.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.metrics import RequestMetrics


@dataclass
class Way:
    """A way of drafting and what came of it, by task."""

    block_size: int
    draft_tree: int | None
    by_task: dict[str, RequestMetrics] = field(default_factory=dict)
    num_same: int = 0  # answers that are the first way's, token for token

    @property
    def name(self) -> str:
        return f"tree {self.draft_tree}" if self.draft_tree else f"block {self.block_size}"


def measure(llm: LLM, ways: list[Way], args: argparse.Namespace) -> None:
    params = SamplingParams(temperature=args.temperature, seed=0, max_tokens=args.max_tokens)
    turn = 0
    for start in range(0, args.limit, args.concurrency):
        for task in TASKS:
            prompts = load_task(task, args.limit)[start : start + args.concurrency]
            chats = [[{"role": "user", "content": prompt.turns[0]}] for prompt in prompts]
            answers: dict[str, list[list[int]]] = {}
            for way in [*ways[turn % len(ways) :], *ways[: turn % len(ways)]]:
                llm.block_size, llm.draft_tree = way.block_size, way.draft_tree
                outputs = llm.chat(chats, params)
                answers[way.name] = [output.outputs[0].token_ids for output in outputs]
                total = way.by_task.setdefault(task, RequestMetrics(num_requests=0))
                for output in outputs:
                    total.add(output.metrics)
            for way in ways:
                pairs = zip(answers[way.name], answers[ways[0].name], strict=True)
                way.num_same += sum(own == first for own, first in pairs)
            turn += 1


def as_row(way: Way, task: str, total: RequestMetrics) -> dict[str, Any]:
    return {
        "way": way.name,
        "block_size": way.block_size,
        "draft_tree": way.draft_tree,
        "task": task,
        "num_requests": total.num_requests,
        "num_output_tokens": total.num_output_tokens,
        "num_rounds": total.num_rounds,
        "acceptance_length": round(total.acceptance_length, 3),
        "accepted_histogram": total.accepted_histogram,
        "decode_s": round(total.decode_s, 3),
        "draft_s": round(total.draft_s, 3),
        "verify_s": round(total.verify_s, 3),
    }


def table(document: dict[str, Any]) -> str:
    rows, lines = document["rows"], []
    names = list(dict.fromkeys(row["way"] for row in rows))
    for name in names:
        own = [row for row in rows if row["way"] == name]
        lengths = [row["acceptance_length"] for row in own]
        tokens, seconds = (sum(row[key] for row in own) for key in ("num_output_tokens", "decode_s"))
        milliseconds = 1000 * seconds / sum(row["num_rounds"] for row in own)
        mean = sum(lengths) / len(lengths)
        cells = [f"{length:.2f}" for length in (*lengths, mean)]
        same = f"{document['num_same'][name]}/{sum(row['num_requests'] for row in own)}"
        lines.append([name, *cells, f"{milliseconds:.1f}", f"{tokens / seconds:.1f}", same])
    header = ["", *TASKS, "mean", "ms a round", "tokens/s", "same"]
    ruled = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in ruled)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draft", default="embedded")
    parser.add_argument("--limit", type=int, default=10, help="first prompts of each task")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--concurrency", type=int, default=5, help="prompts answered at a time")
    parser.add_argument("--block-sizes", type=int, nargs="*", default=[1, 16, 8])
    parser.add_argument("--tree-sizes", type=int, nargs="*", default=[16, 32, 64])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    llm = LLM(draft=args.draft, dtype=args.dtype, device=args.device)
    ways = [Way(size, None) for size in args.block_sizes]
    ways += [Way(llm.max_block_size, size) for size in args.tree_sizes]
    for way in ways:  # first calls pay for memory and threads
        llm.block_size, llm.draft_tree = way.block_size, way.draft_tree
        llm.generate("Count to ten.", SamplingParams(temperature=0.0, max_tokens=8))
    measure(llm, ways, args)
    document = {
        "settings": {key: str(value) for key, value in vars(args).items()},
        "num_same": {way.name: way.num_same for way in ways},
        "rows": [as_row(way, task, total) for way in ways for task, total in way.by_task.items()],
        "provenance": collect_provenance(args.device),
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()
