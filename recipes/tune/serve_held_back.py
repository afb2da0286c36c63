"""Acceptance length before and after a tuning when the requests that it held back are served again, greedily.

python recipes/tune/serve_held_back.py --from requests.jsonl --tuned tuned --out recipes/tune/served.json
"""

import argparse
import json
from pathlib import Path

from flashdraft import LLM, SamplingParams
from flashdraft.checkpoint.load import eos_token_ids, load_tokenizer
from flashdraft.data.on_policy import Document
from flashdraft.data.request_log import read_requests
from flashdraft.intervals import ratio_interval
from flashdraft.provenance import collect_provenance
from flashdraft.train.tune import divide
from flashdraft.train.tune_config import TuneConfig

BLOCK_SIZE = 16


def served(draft: str, documents: list[Document]) -> list[tuple[int, int]]:
    """Tokens gained and rounds taken, by request; answers no longer than the logged ones."""
    llm = LLM(draft=draft, block_size=BLOCK_SIZE, max_running=8)
    params = [SamplingParams(max_tokens=len(one.answer_token_ids), temperature=0) for one in documents]
    outputs = llm.generate([one.prompt_token_ids for one in documents], params)
    return [(len(one.outputs[0].token_ids) - 1, one.metrics.num_rounds) for one in outputs]


def acceptance_length(counted: list[tuple[int, int]]) -> float:
    return round(sum(tokens for tokens, _ in counted) / sum(rounds for _, rounds in counted), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="requests", type=Path, required=True)
    parser.add_argument("--tuned", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    facts = json.loads((args.tuned / "tune.json").read_text())
    found = read_requests(args.requests, load_tokenizer(), eos_token_ids())
    _, held_back = divide(found.answered, TuneConfig(**facts["config"]))
    before, after = (served(draft, held_back) for draft in (facts["draft"], str(args.tuned / "drafter")))
    result = {
        "num_requests": len(held_back),
        "block_size": BLOCK_SIZE,
        "before": acceptance_length(before),
        "after": acceptance_length(after),
        "ratio_95": ratio_interval(range(len(held_back)), after, before),
        "provenance": collect_provenance(),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
