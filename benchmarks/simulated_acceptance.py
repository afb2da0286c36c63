"""Acceptance length on the five tasks by simulation: the target's greedy answers, then teacher-forced blocks.

    python benchmarks/simulated_acceptance.py --draft runs/big/drafter --device cuda --out acceptance.json

Minutes of serving become seconds of training forwards; `flashdraft bench` measures the same thing for real.
"""

import argparse
import json
from pathlib import Path

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.checkpoint.load import eos_token_ids, load_drafter, load_target, load_tokenizer
from flashdraft.data.answer_generator import AnswerGenerator, AnswerRequest
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.provenance import collect_provenance
from flashdraft.train.simulate import simulate
from flashdraft.train.trainer import compile_layers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--draft", default="embedded")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[16, 8])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = load_target(args.target, dtype=args.dtype, device=args.device)
    drafter = load_drafter(args.draft, target, dtype=args.dtype, device=args.device)
    tokenizer = load_tokenizer(args.target)
    if args.device == "cuda":
        compile_layers(target, drafter)
    rows = []
    for task in TASKS:
        prompts = load_task(task, args.limit)
        ids = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": p.turns[0]}], add_generation_prompt=True, return_dict=False
            )
            for p in prompts
        ]
        generator = AnswerGenerator(
            target, min(len(ids), 64), 1024, args.max_tokens, eos_token_ids(args.target)
        )
        requests = [AnswerRequest(key, one, 0.0) for key, one in enumerate(ids)]
        answers = sorted((a for part in generator.run(requests) for a in part), key=lambda a: a.key)
        documents = [
            Document(prompts[a.key].id, task, 0.0, list(ids[a.key]), a.token_ids, a.finish_reason)
            for a in answers
        ]
        for block_size in args.block_sizes:
            walk = simulate(target, drafter, pack(documents, 1408, args.device), block_size, 8, 256)
            row = {
                "task": task,
                "block_size": block_size,
                "num_prompts": len(documents),
                "num_rounds": len(walk.num_accepted),
                "acceptance_length": round(walk.acceptance_length, 4),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    result = {
        "rows": rows,
        "provenance": collect_provenance(args.device),
        "settings": vars(args) | {"out": None},
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
