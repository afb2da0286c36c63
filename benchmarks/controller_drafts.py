"""Drafts behind every token of greedy answers, recorded: what controllers are replayed on (controller_ablation.py).

    python benchmarks/controller_drafts.py --out benchmarks/results/controller/drafts.npz

Of blocks of 16, 8 and 4 tokens, for each slot: the log-probabilities of its likeliest tokens, and which of them the
answer has.
"""

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from flashdraft.batch import ForwardBatch
from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashBatch, DFlashDrafter
from flashdraft.spec_decode.tree import DraftTree, best_first

BLOCKS, RANKS = (16, 8, 4), 4


class Recording:
    """Drafts behind each token of each answer. ``spoiled``: share of the right tokens that are made wrong."""

    def __init__(self, path: Path, spoiled: float = 0.0) -> None:
        with np.load(path) as file:
            self.hits, self.log_probs, self.lengths = (
                file["hits"],
                file["log_probs"],
                file["lengths"].tolist(),
            )
        # A drafter that is as sure as before and right less often: a pair that no constant was made for.
        wrong = np.random.default_rng(0).random(self.hits.shape) < spoiled
        self.hits = np.where(wrong, -1, self.hits)
        self.first = {block: sum(b - 1 for b in BLOCKS if b > block) for block in BLOCKS}

    def draft(self, answer: int, place: int, block: int, tree_size: int) -> DraftTree:
        """What is drafted behind ``place``; tokens are numbered by slot and rank. ``tree_size``: 0 for a chain."""
        first = self.first[block]
        values = self.log_probs[answer, place, first : first + block - 1].astype(float)
        if not tree_size:
            return DraftTree.chain([RANKS * slot for slot in range(block - 1)], values[:, 0].tolist())
        ids = [[RANKS * slot + rank for rank in range(RANKS)] for slot in range(block - 1)]
        return best_first(ids, [[row] for row in values.tolist()], tree_size - 1)

    def path(self, answer: int, place: int, block: int, draft: DraftTree) -> list[int]:
        """The places of ``draft`` that the answer takes, the anchor's first."""
        hits = self.hits[answer, place, self.first[block] :]
        child = {key: i + 1 for i, key in enumerate(zip(draft.parents, draft.token_ids, strict=True))}
        path = [0]
        while len(path) < block and hits[len(path) - 1] >= 0:
            found = child.get((path[-1], RANKS * (len(path) - 1) + int(hits[len(path) - 1])))
            if found is None:
                break
            path.append(found)
        return path


@torch.inference_mode()
def record(args: argparse.Namespace) -> None:
    """Answer prompts of the five tasks, and draft behind every token of the answers."""
    llm = LLM()
    assert isinstance(llm.drafter, DFlashDrafter)
    prompts = [prompt for task in TASKS for prompt in load_task(task, args.prompts)]
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    outputs = llm.chat([[{"role": "user", "content": one.turns[0]}] for one in prompts], params)
    texts = [(list(one.prompt_token_ids), list(one.outputs[0].token_ids)) for one in outputs]
    shape = len(texts), args.max_tokens, sum(block - 1 for block in BLOCKS)
    hits, log_probs = np.full(shape, -1, np.int8), np.zeros((*shape, RANKS), np.float16)
    for row, (prompt, answer) in enumerate(texts):
        started = perf_counter()
        features = features_of(llm, prompt + answer)
        pages = range(-(-len(prompt + answer) // 16))
        drafts = llm.drafter.open(1, len(pages), 16)
        assert isinstance(drafts, DFlashBatch)
        drafts.observe([CacheRow(0, pages, 0)], [prompt], [features[: len(prompt)]])
        for place in range(len(answer) - 1):
            here, first = CacheRow(0, pages, len(prompt) + place), 0
            for block in BLOCKS:
                found = drafts._candidates([here], [answer[place]], [block], RANKS)
                rest = np.array(answer[place + 1 : place + block])
                same = found.token_ids[0, : len(rest)].numpy() == rest[:, None]
                hits[row, place, first : first + len(rest)] = np.where(same.any(1), same.argmax(1), -1)
                log_probs[row, place, first : first + block - 1] = found.log_probs[0].numpy()
                first += block - 1
            drafts.observe([here], [[answer[place]]], [features[here.start : here.start + 1]])
        print(f"{row + 1} of {len(texts)}: {perf_counter() - started:.1f} s", flush=True)
    lengths = np.array([len(answer) for _, answer in texts])
    np.savez_compressed(args.out, hits=hits, log_probs=log_probs, lengths=lengths)


def features_of(llm: LLM, token_ids: list[int]) -> torch.Tensor:
    """The target's, [num_tokens, feature_size]."""
    assert llm.drafter is not None
    cache = llm.target.new_cache(1, len(token_ids))
    batch = ForwardBatch.of_row(token_ids, 0)
    features = llm.target.forward(batch, cache, llm.drafter.feature_layers).features
    assert features is not None
    return features[0].clone()


def main() -> None:
    """Record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=7, help="of each task")
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--out", type=Path, required=True)
    record(parser.parse_args())


if __name__ == "__main__":
    main()
