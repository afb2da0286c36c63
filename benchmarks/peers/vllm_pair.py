"""vLLM with our drafter: are its tokens its own without it, and does it accept what we accept?

    python benchmarks/peers/vllm_pair.py prompts --limit 40 --out prompts.json
    (answers by vllm_tokens.py: plain.json, dflash.json)
    python benchmarks/peers/vllm_pair.py compare --prompts prompts.json --plain plain.json --dflash dflash.json \\
        --block-size 16 --out benchmarks/results/vllm_pair.json

Ours is computed here, in the same float32, on the same token ids. Acceptance lengths are over delivered tokens
(docs/glossary.md); vLLM's own count has those behind an answer's end in it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.checkpoint.load import load_tokenizer
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.metrics import RequestMetrics


def prompts(args: argparse.Namespace) -> None:
    tokenizer = load_tokenizer("embedded")
    asked = {}
    for task in TASKS:
        texts = [[{"role": "user", "content": p.turns[0]}] for p in load_task(task, args.limit)]
        chats = [tokenizer.apply_chat_template(t, add_generation_prompt=True, tokenize=False) for t in texts]
        asked[task] = tokenizer(chats, add_special_tokens=False)["input_ids"]
    args.out.write_text(json.dumps(asked) + "\n")


def compare(args: argparse.Namespace) -> None:
    asked = json.loads(args.prompts.read_text())
    plain, dflash = (json.loads(path.read_text()) for path in (args.plain, args.dflash))
    llm = LLM(draft=args.draft, dtype="float32", block_size=args.block_size)
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    tasks = {}
    for task, ids in asked.items():
        outputs = llm.generate(ids, params)
        ours = RequestMetrics(num_requests=0)
        for output in outputs:
            ours.add(output.metrics)
        theirs, alone = dflash["tasks"][task], plain["tasks"][task]["token_ids"]
        gained = sum(len(tokens) - 1 for tokens in theirs["token_ids"])
        tasks[task] = {
            "num_prompts": len(ids),
            "vllm_dflash_equals_vllm_plain": equal(theirs["token_ids"], alone),
            "vllm_plain_equals_ours": equal(alone, [o.outputs[0].token_ids for o in outputs]),
            "vllm_rounds": int(theirs["num_drafts"]),
            "our_rounds": ours.num_rounds,
            "vllm_acceptance_length": round(gained / theirs["num_drafts"], 4),
            "our_acceptance_length": round(ours.acceptance_length, 4),
            "vllm_own_acceptance_length": round(1 + theirs["num_accepted_tokens"] / theirs["num_drafts"], 4),
        }
        print(task, tasks[task], flush=True)
    theirs, ours = (
        sum(row[kind] for row in tasks.values()) / len(tasks)
        for kind in ("vllm_acceptance_length", "our_acceptance_length")
    )
    result = {
        "vllm": dflash["vllm"],
        "block_size": args.block_size,
        "tasks": tasks,
        "vllm_over_ours": round(theirs / ours, 4),
    }
    args.out.write_text(json.dumps(result | {"provenance": collect_provenance()}, indent=1) + "\n")
    print(f"mean of tasks: vLLM {theirs:.3f}, ours {ours:.3f}, ratio {theirs / ours:.3f}")


def equal(one: list[Any], other: list[Any]) -> int:
    return sum(a == b for a, b in zip(one, other, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    make = commands.add_parser("prompts")
    make.add_argument("--limit", type=int, default=40)
    make.set_defaults(run=prompts)
    check = commands.add_parser("compare")
    for name in ("--prompts", "--plain", "--dflash"):
        check.add_argument(name, type=Path, required=True)
    check.add_argument("--draft", required=True, help="the drafter that vLLM had")
    check.add_argument("--block-size", type=int, default=16)
    check.add_argument("--max-tokens", type=int, default=256)
    check.set_defaults(run=compare)
    for command in (make, check):
        command.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
