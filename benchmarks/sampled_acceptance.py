"""Acceptance length of sampled answers, beside an oracle's that drafts the target's own likeliest tokens.

    python benchmarks/sampled_acceptance.py --limit 40 --device cuda --out benchmarks/results/sampled_acceptance.json

At temperature 1 no draft is always right: the text is a draw, and a drafter that knew the target could do no better
than to guess its likeliest token at every place. The oracle's rounds are counted on the very texts that were served:
a block of it is accepted up to the first token that is not the target's likeliest behind the tokens before it.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flashdraft.batch import ForwardBatch
from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.llm import LLM
from flashdraft.models.base import TargetModel
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams


@dataclass
class Count:
    """Rounds of a task's answers."""

    num_tokens: int = 0  # after each answer's first
    num_rounds: int = 0
    oracle_histogram: list[int] = field(default_factory=list)  # rounds by number of accepted tokens


@torch.inference_mode()
def is_likeliest(target: TargetModel, prompt: list[int], answer: list[int]) -> list[bool]:
    """For each token of ``answer``: is it the target's likeliest behind what stands before it?"""
    tokens = prompt + answer[:-1]
    batch = ForwardBatch.of_row(tokens, 0, target.device)
    hidden = target.forward(batch, target.new_cache(1, len(tokens))).hidden[0, len(prompt) - 1 :]
    best = target.argmax(hidden)
    found: list[bool] = (best == torch.tensor(answer, device=best.device)).tolist()
    return found


def oracle_rounds(likeliest: list[bool], block_size: int) -> list[int]:
    """Tokens that each round of the oracle gets accepted, in an answer of as many tokens as are told of."""
    rounds, anchor, last = [], 0, len(likeliest) - 1
    while anchor < last:
        num_accepted, most = 0, min(block_size - 1, last - anchor - 1)
        while num_accepted < most and likeliest[anchor + 1 + num_accepted]:
            num_accepted += 1
        rounds.append(num_accepted)
        anchor += num_accepted + 1
    return rounds


def serve(llm: LLM, task: str, block_size: int, args: argparse.Namespace) -> dict[str, Any]:
    llm.block_size = block_size
    prompts = load_task(task, args.limit)
    params = [
        SamplingParams(temperature=args.temperature, seed=args.seed + i, max_tokens=args.max_tokens)
        for i in range(len(prompts))
    ]
    outputs = llm.chat([[{"role": "user", "content": prompt.turns[0]}] for prompt in prompts], params)
    count = Count(oracle_histogram=[0] * block_size)
    for output in outputs:
        answer = output.outputs[0].token_ids
        count.num_tokens += len(answer) - 1
        count.num_rounds += output.metrics.num_rounds
        for accepted in oracle_rounds(is_likeliest(llm.target, output.prompt_token_ids, answer), block_size):
            count.oracle_histogram[accepted] += 1
    served, oracle = (count.num_tokens / rounds for rounds in (count.num_rounds, sum(count.oracle_histogram)))
    row = {
        "task": task,
        "block_size": block_size,
        "num_prompts": len(outputs),
        "num_tokens": count.num_tokens,
        "acceptance_length": round(served, 4),
        "oracle_acceptance_length": round(oracle, 4),
        "share": round(served / oracle, 4),
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draft", default="embedded")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[16, 8])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    llm = LLM(draft=args.draft, dtype=args.dtype, device=args.device)
    rows = [serve(llm, task, block_size, args) for block_size in args.block_sizes for task in TASKS]
    settings = {**vars(args), "out": None}
    document = {"rows": rows, "settings": settings, "provenance": collect_provenance(args.device)}
    args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
