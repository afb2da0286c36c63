"""Conversations of many turns out of single prompts, for training at long contexts.

    python recipes/smollm2-135m/conversations.py --prompts prompts/ --count 700 --turns 14 --out long.jsonl.gz
    flashdraft train --prompts long.jsonl.gz --out runs/long --answers-only --max-prompt-len 3840 ...
    flashdraft train --answers runs/long/answers --init embedded --seq-len 4096 ...

The target answers turn by turn, each behind its own answers before it (data/on_policy.py), so the last turns have the
contexts that a long conversation has when it is served.
"""

import argparse
import gzip
import json
import random
from pathlib import Path

from flashdraft.data.prompts import read_prompts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=700, help="conversations")
    parser.add_argument("--turns", type=int, default=14)
    parser.add_argument("--longest", type=int, default=600, help="characters of a turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    asked = read_prompts(args.prompts)
    texts = [said["content"] for one in asked for said in one.messages if said["role"] == "user"]
    texts = [text for text in texts if len(text) <= args.longest]
    rng = random.Random(args.seed)
    with gzip.open(args.out, "wt") as out:
        for number in range(args.count):
            out.write(json.dumps({"id": str(number), "turns": rng.sample(texts, args.turns)}) + "\n")


if __name__ == "__main__":
    main()
