"""Acceptance length on the five tasks by simulation: the target's greedy answers, then teacher-forced blocks.

    python benchmarks/simulated_acceptance.py --draft runs/big/drafter --device cuda --out acceptance.json
    python benchmarks/simulated_acceptance.py --served benchmarks/results/acceptance.jsonl --out simulated.json

Minutes of serving become seconds of training forwards; `flashdraft bench` measures the same thing for real. With
``--served``, rows of benchmarks/acceptance.py, the blocks are simulated on the answers that were served, and each
row tells both lengths: are they one?
"""

import argparse
import json
from pathlib import Path
from typing import Any

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.checkpoint.load import eos_token_ids, load_drafter, load_target, load_tokenizer
from flashdraft.data.answerer import AnswerRequest
from flashdraft.data.engine_answers import EngineAnswers, rollout_config
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.data.prompt_files import read_lines
from flashdraft.engine.engine import Engine
from flashdraft.models.base import TargetModel
from flashdraft.provenance import collect_provenance
from flashdraft.train.simulate import simulate
from flashdraft.train.trainer import compile_layers

Served = dict[tuple[str, int], list[dict[str, Any]]]  # rows by task and block size


def greedy_answers(
    target: TargetModel, prompt_ids: dict[str, list[int]], args: argparse.Namespace
) -> dict[str, list[int]]:
    """The target's answers by prompt id."""
    names = list(prompt_ids)
    requests = [AnswerRequest(key, prompt_ids[name], 0.0) for key, name in enumerate(names)]
    config = rollout_config(min(len(names), 64), 1024 + args.max_tokens)
    generator = EngineAnswers(Engine(target, None, config, eos_token_ids(args.target)), args.max_tokens)
    answers = [answer for part in generator.run(requests) for answer in part]
    return {names[answer.key]: answer.token_ids for answer in answers}


def read_served(file: Path) -> Served:
    found: Served = {}
    for _, _, row in read_lines(file):
        found.setdefault((row["task"], row["block_size"]), []).append(row)
    return found


def task_rows(
    task: str, target: TargetModel, drafter: Any, tokenizer: Any, served: Served, args: argparse.Namespace
) -> list[dict[str, Any]]:
    prompt_ids = {
        prompt.id: tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.turns[0]}], add_generation_prompt=True, return_dict=False
        )
        for prompt in load_task(task, args.limit)
    }
    answers = {} if served else greedy_answers(target, prompt_ids, args)
    rows = []
    for block_size in args.block_sizes:
        asked = served.get((task, block_size), [])
        if served:
            answers = {row["id"]: row["token_ids"] for row in asked if row["id"] in prompt_ids}
        documents = [Document(name, task, 0.0, prompt_ids[name], ids, "") for name, ids in answers.items()]
        walk = simulate(target, drafter, pack(documents, 1408, args.device), block_size, 8, 256)
        row = {
            "task": task,
            "block_size": block_size,
            "num_prompts": len(documents),
            "num_rounds": len(walk.num_accepted),
            "acceptance_length": round(walk.acceptance_length, 4),
        }
        if served:
            own = [one for one in asked if one["id"] in prompt_ids]
            tokens, rounds = (sum(one[key] for one in own) for key in ("num_output_tokens", "num_rounds"))
            row["served_acceptance_length"] = round((tokens - len(own)) / rounds, 4)
            row["simulated_to_served"] = round(walk.acceptance_length * rounds / (tokens - len(own)), 4)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="embedded")
    parser.add_argument("--draft", default="embedded")
    parser.add_argument("--served", type=Path, help="simulate on these answers, and compare")
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
    served = read_served(args.served) if args.served else {}
    rows = [row for task in TASKS for row in task_rows(task, target, drafter, tokenizer, served, args)]
    settings = {**vars(args), "out": None, "served": args.served and args.served.name}
    result = {"rows": rows, "provenance": collect_provenance(args.device), "settings": settings}
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
