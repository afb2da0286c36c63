"""What foretells whether a draft token is accepted: its position, or the drafter's own confidence in it?

    python benchmarks/confidence.py --limit 8 --out benchmarks/results/confidence.json

The embedded pair on the five tasks, greedy, whole blocks. Of every draft token that was reached: the mean of minus the
logarithm of the chance that logistic regression gives what happened ("nats", the less the better), fitted on the even
answers and read on the odd ones. How much one draft tells of a later one of the same answer. And of tokens in trees of
32, whether a slot's second guess and later ones come true as often as its first ones with the same confidence.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashdraft.bench.closed_loop import answer_all
from flashdraft.bench.config import BenchConfig
from flashdraft.control.acceptance import Acceptance, Drafted, confidence
from flashdraft.control.step_costs import Array
from flashdraft.engine.block_control import Seen
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

LAGS = (1, 2, 4, 8, 16)
TREE = 32


def rounds_of(limit: int, block_size: int, max_tokens: int, tree: int | None = None) -> list[list[Drafted]]:
    """Of each answer its drafts, chains or trees of ``tree`` tokens, and what came of them."""
    llm = LLM()
    engine = Engine(
        llm.target, llm.drafter, EngineConfig(prefix_caching=False), llm.eos_token_ids, draft_tree=tree
    )
    found: dict[str, list[Drafted]] = defaultdict(list)
    task = ""

    def learn(seen: Sequence[Seen], *_: Any) -> None:
        for request, _, draft, _, path in seen:
            if len(draft) == (tree or block_size) - 1:
                one = Drafted(Acceptance(), block_size, draft, len(draft), len(draft), path)
                found[f"{task} {request.request_id}"].append(one)

    engine.control.learn = learn  # type: ignore[method-assign]
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    for name, prompts in BenchConfig(limit=limit).prompts().items():
        task = name
        asked = [llm.chat_token_ids([{"role": "user", "content": one.turns[0]}]) for one in prompts[:limit]]
        answer_all(engine, asked, params, block_size, 8)
    return list(found.values())


def guesses(rounds: Sequence[Drafted]) -> list[tuple[int, float, bool]]:
    """Of each token whose fate is known: the how manieth guess of its place it is, confidence, whether it was right."""
    found = []
    for one in rounds:
        parents = one.draft.parents
        found += [
            (parents[:token].count(parents[token]), confidence(one.draft.log_probs[token]), hit)
            for token, hit in one.tried()
        ]
    return found


def fitted(terms: Array, hits: Array) -> Array:
    """Weights of logistic regression, by Newton's method."""
    weights: Array = np.zeros(terms.shape[1])
    for _ in range(30):
        chances = 1 / (1 + np.exp(-terms @ weights))
        hessian = (terms * (chances * (1 - chances))[:, None]).T @ terms + 1e-3 * np.eye(len(weights))
        weights = weights + np.linalg.solve(hessian, terms.T @ (hits - chances) - 1e-3 * weights)
    return weights


def nats(weights: Array, terms: Array, hits: Array) -> float:
    """Mean surprise at what happened."""
    signs = 2 * hits - 1
    return float(np.log1p(np.exp(-signs * (terms @ weights))).mean())


def by_rank(every: Sequence[tuple[int, float, bool]], of_chains: tuple[float, float]) -> dict[str, Any]:
    """Of first, second, ... guesses: how often they are right, and how well the line of chains foretells that."""
    found = {}
    for rank, name in enumerate(("first", "second", "third", "fourth")):
        own = [(sure, hit) for at, sure, hit in every if at == rank]
        terms = np.array([(1.0, sure) for sure, _ in own])
        right = np.array([hit for _, hit in own], dtype=float)
        line = fitted(terms, right)
        found[name] = {
            "tokens": len(own),
            "right": float(right.mean()),
            "foretold": float((1 / (1 + np.exp(-terms @ np.array(of_chains)))).mean()),
            "nats by the line of chains": nats(np.array(of_chains), terms, right),
            "nats by its own line": nats(line, terms, right),
            "its own line": line.tolist(),
        }
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=8, help="prompts of each task")
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    answers = rounds_of(args.limit, args.block_size, args.max_tokens)
    tokens: list[list[tuple[int, float, bool]]] = [[], []]
    for idx, rounds in enumerate(answers):
        for one in rounds:
            depths, log_probs = one.draft.depths, one.draft.log_probs
            tokens[idx % 2] += [
                (depths[token] - 1, confidence(log_probs[token]), hit) for token, hit in one.tried()
            ]
    places, sure, hits = (
        [np.array([one[i] for one in half], dtype=float) for half in tokens] for i in range(3)
    )
    one_hot = [np.eye(args.block_size - 1)[place.astype(int)] for place in places]
    by_confidence = [np.stack((np.ones_like(one), one), axis=1) for one in sure]
    both = [
        np.concatenate((place, one[:, 1:]), axis=1) for place, one in zip(one_hot, by_confidence, strict=True)
    ]
    found: dict[str, Any] = {"tokens": [len(half) for half in tokens], "accepted": float(hits[1].mean())}
    for name, terms in (("position", one_hot), ("confidence", by_confidence), ("both", both)):
        found[f"nats by {name}"] = nats(fitted(terms[0], hits[0]), terms[1], hits[1])
    found["offset, slope"] = fitted(by_confidence[0], hits[0]).tolist()
    offset, slope = found["offset, slope"]
    # Of each draft the expected number of accepted tokens, by confidence.
    expected = [
        np.array(
            [
                np.cumprod(
                    [1 / (1 + np.exp(-offset - slope * confidence(sure))) for sure in one.draft.log_probs]
                ).sum()
                for one in rounds
            ]
        )
        for rounds in answers
    ]
    found["correlation of drafts"] = {
        lag: float(
            np.corrcoef(
                np.concatenate([one[:-lag] for one in expected if len(one) > lag]),
                np.concatenate([one[lag:] for one in expected if len(one) > lag]),
            )[0, 1]
        )
        for lag in LAGS
    }
    trees = rounds_of(args.limit, args.block_size, args.max_tokens, TREE)
    found["guesses"] = by_rank([guess for rounds in trees for guess in guesses(rounds)], (offset, slope))
    print(json.dumps(found, indent=1))
    if args.out:
        args.out.write_text(json.dumps({**found, "provenance": collect_provenance()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
