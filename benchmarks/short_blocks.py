"""What a draft loses when a block shorter than the trained one is drafted: acceptance by position, by block drafted.

    python benchmarks/short_blocks.py --limit 1 --out benchmarks/results/short_blocks.json

Teacher-forced on the greedy answers of benchmarks/results/acceptance.jsonl, a block at every token of each answer.
The controller starts from this (control/acceptance.py) and learns the rest from its own rounds.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

from flashdraft.bench.tasks import load_task
from flashdraft.checkpoint.load import load_drafter, load_target, load_tokenizer
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.provenance import collect_provenance
from flashdraft.train.simulate import accepted_at_anchors

ANSWERS = Path(__file__).parent / "results/acceptance.jsonl"


def documents(limit: int) -> list[PackedRows]:
    """The first answers of each task, each a row of its own."""
    tokenizer, found, rows = load_tokenizer(), Counter[str](), []
    for line in map(json.loads, ANSWERS.read_text().splitlines()):
        task = line["task"]
        if line["block_size"] != 16 or found[task] >= limit:
            continue
        found[task] += 1
        [prompt] = [one for one in load_task(task, 40) if one.id == line["id"]]
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt.turns[0]}], add_generation_prompt=True, return_dict=False
        )
        document = Document(line["id"], task, 0.0, list(ids), line["token_ids"], "length")
        packed = pack([document], len(ids) + len(line["token_ids"]))
        rows.append(replace(packed, token_ids=packed.token_ids.long()))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=3, help="answers of each task")
    parser.add_argument("--block-sizes", type=int, nargs="+", default=[16, 8, 4, 2])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = load_target()
    drafter = load_drafter(target=target)
    answers, rows = documents(args.limit), []
    for block_size in args.block_sizes:
        counts: Counter[int] = Counter()
        for answer in answers:
            accepted = accepted_at_anchors(target, drafter, answer, block_size, 64)
            counts.update(accepted[accepted >= 0].tolist())
        total = sum(counts.values())
        reached = [sum(n for k, n in counts.items() if k > i) / total for i in range(block_size - 1)]
        row = {
            "block_size": block_size,
            "num_blocks": total,
            "accepted_by_position": [round(r, 4) for r in reached],
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    document = {"rows": rows, "settings": {"limit": args.limit}, "provenance": collect_provenance()}
    args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
