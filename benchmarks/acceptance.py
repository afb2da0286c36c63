"""Acceptance length on the five tasks, served for real, beside prompt lookup on the same texts.

    python benchmarks/acceptance.py --limit 100 --out benchmarks/results/acceptance.jsonl

One JSON line for each prompt and block size, in rounds over the tasks, so that an interrupted run is a balanced
sample and a second run goes on. Several prompts are answered at a time; what a request accepts does not depend on
its neighbours. Prompt lookup needs no model: its rounds are replayed on the answer. The table is
`benchmarks/acceptance.py --table` on the same file, packed or not.

With `--prompts FILE` other prompts are asked, whose `source` is their task; with `--temperature` answers are sampled,
each with a seed of its own.
"""

import argparse
import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

from flashdraft.bench.tasks import TASKS, BenchPrompt, load_task
from flashdraft.data.prompt_files import read_lines
from flashdraft.data.prompts import read_prompts
from flashdraft.llm import LLM, RequestOutput
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import DraftShape
from flashdraft.spec_decode.ngram import NgramDrafter
from flashdraft.spec_decode.verify import verify

LOOP_NGRAM, LOOP_SHARE = 8, 0.10  # an answer loops when this share of its 8-grams are repeats


def loops(token_ids: list[int]) -> bool:
    grams = Counter(tuple(token_ids[i : i + LOOP_NGRAM]) for i in range(len(token_ids) - LOOP_NGRAM + 1))
    total = sum(grams.values())
    return total > 0 and (total - len(grams)) / total >= LOOP_SHARE


def ngram_rounds(prompt: list[int], answer: list[int], block_size: int) -> int:
    """Verifications that prompt lookup takes for ``answer``."""
    state = NgramDrafter(block_size).begin(0)
    state.observe(prompt, None)
    rounds, place = 0, 0  # answer[place] is the anchor
    while place < len(answer) - 1:
        left = answer[place + 1 :]
        draft = state.propose(answer[place], DraftShape(block_size - 1)).token_ids[: len(left) - 1]
        num_accepted, _ = verify(draft, left[: len(draft) + 1])
        state.observe(answer[place : place + 1 + num_accepted], None)
        place += 1 + num_accepted
        rounds += 1
    return rounds


def tasks_of(args: argparse.Namespace) -> dict[str, list[BenchPrompt]]:
    """The first ``args.limit`` prompts of each task, or of each source in ``args.prompts``."""
    if args.prompts is None:
        return {task: load_task(task, args.limit) for task in TASKS}
    found: dict[str, list[BenchPrompt]] = {}
    for prompt in read_prompts(args.prompts):
        some = found.setdefault(prompt.source, [])
        some += [BenchPrompt(prompt.id, (prompt.messages[-1]["content"],))] * (len(some) < args.limit)
    return found


def serve(args: argparse.Namespace) -> None:
    done = set()
    if args.out.exists():
        rows = map(json.loads, args.out.read_text().splitlines())
        done = {(row["task"], row["id"], row["block_size"]) for row in rows}
    llm = LLM(draft=args.draft, dtype=args.dtype, device=args.device)
    args.out.with_suffix(".provenance.json").write_text(
        json.dumps(collect_provenance(args.device), indent=1) + "\n"
    )
    prompts = tasks_of(args)
    with args.out.open("a") as out:
        for block_size in args.block_sizes:
            asked = [
                (task, prompts[task][i])
                for i, task in product(range(args.limit), prompts)
                if i < len(prompts[task])
            ]
            asked = [(task, prompt) for task, prompt in asked if (task, prompt.id, block_size) not in done]
            llm.block_size, llm.draft_tree = block_size, args.draft_tree
            for start in range(0, len(asked), args.concurrency):
                some = asked[start : start + args.concurrency]
                params = [
                    SamplingParams(args.temperature, seed=start + i, max_tokens=args.max_tokens)
                    for i in range(len(some))
                ]
                outputs = llm.chat(
                    [[{"role": "user", "content": prompt.turns[0]}] for _, prompt in some], params
                )
                for (task, prompt), output in zip(some, outputs, strict=True):
                    out.write(json.dumps(as_row(task, prompt.id, block_size, output)) + "\n")
                out.flush()


def as_row(task: str, prompt_id: str, block_size: int, output: RequestOutput) -> dict[str, Any]:
    token_ids, metrics = output.outputs[0].token_ids, output.metrics
    return {
        "task": task,
        "id": prompt_id,
        "block_size": block_size,
        "num_output_tokens": metrics.num_output_tokens,
        "num_rounds": metrics.num_rounds,
        "accepted_histogram": metrics.accepted_histogram,
        "loops": loops(token_ids),
        "ngram_rounds": ngram_rounds(output.prompt_token_ids, token_ids, block_size),
        "token_ids": token_ids,
    }


def ratio(rows: list[dict[str, Any]], rounds: str) -> str:
    total = sum(row[rounds] for row in rows)
    return f"{sum(row['num_output_tokens'] - 1 for row in rows) / total:.2f}" if total else "-"


def table(args: argparse.Namespace) -> None:
    rows = [row for _, _, row in read_lines(args.out)]
    print("| task | block | prompts | DFlash | n-gram | not looping | DFlash | n-gram |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for block_size in args.block_sizes:
        means = []
        for task in dict.fromkeys(row["task"] for row in rows):
            mine = [row for row in rows if row["task"] == task and row["block_size"] == block_size]
            straight = [row for row in mine if not row["loops"]]
            cells = [
                ratio(some, kind) for some in (mine, straight) for kind in ("num_rounds", "ngram_rounds")
            ]
            means.append([float(cell) if cell != "-" else float("nan") for cell in cells])
            print(
                f"| {task} | {block_size} | {len(mine)} | {cells[0]} | {cells[1]} | {len(straight)} |"
                f" {cells[2]} | {cells[3]} |"
            )
        mean = [sum(column) / len(column) for column in zip(*means, strict=True)]
        print(f"| mean | {block_size} | | {mean[0]:.2f} | {mean[1]:.2f} | | {mean[2]:.2f} | {mean[3]:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draft", default="embedded")
    parser.add_argument("--prompts", type=Path, help="other prompts than the five tasks': chat data")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[16, 8])
    parser.add_argument(
        "--draft-tree", type=int, help="tokens of a tree in place of every block, anchor included"
    )
    parser.add_argument("--concurrency", type=int, default=8, help="prompts answered at a time")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="print the table of what is in the file")
    args = parser.parse_args()
    table(args) if args.table else serve(args)


if __name__ == "__main__":
    main()
