"""Tree drafts: built as brute force builds them, seen path by path, and lossless on the page and in the engine."""

import random
from itertools import product
from math import log
from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, Qwen3Config

from flashdraft.batch import ForwardBatch
from flashdraft.cache.hybrid_cache import HybridCache
from flashdraft.cache.hybrid_rows import HybridRows
from flashdraft.cache.kv_cache import KVCache
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.control.step_costs import Curve, StepCosts
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.grammar import Grammar
from flashdraft.models.base import TargetModel, build_target
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.ngram import NgramDrafter
from flashdraft.spec_decode.simulated import SimulatedAcceptance
from flashdraft.spec_decode.tree import DraftTree, best_first, likeliest
from tiny_pair import byte_tokenizer
from toys import llama_config, toy_dflash, toy_hybrid, toy_target

SMALL_VOCAB = 11  # random drafts are right now and then
SMALL = {
    "vocab_size": SMALL_VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
ROPE = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")}
GEMMA3 = {
    "sliding_window": 3,
    "sliding_window_pattern": 3,
    "query_pre_attn_scalar": 12,
    "rope_parameters": ROPE,
}


def texts(tree: DraftTree) -> list[tuple[int, ...]]:
    """The continuation that ends in each token."""
    found: list[tuple[int, ...]] = [()]
    for token, parent in zip(tree.token_ids, tree.parents, strict=True):
        found.append((*found[parent], token))
    return found[1:]


def random_tree(rng: random.Random, size: int) -> DraftTree:
    tree = DraftTree([], [])
    while len(tree) < size:
        parent, token = rng.randrange(max(len(tree) - 3, 0), len(tree) + 1), rng.randrange(SMALL_VOCAB)
        if (parent, token) not in zip(tree.parents, tree.token_ids, strict=True):
            tree.parents.append(parent)
            tree.token_ids.append(token)
    return tree


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 30, 10_000])
def test_the_best_continuations_are_those_of_brute_force(num_tokens: int) -> None:
    rng = random.Random(num_tokens)
    depth, width = 4, 5
    log_probs = [sorted((log(rng.random()) for _ in range(width)), reverse=True) for _ in range(depth)]
    token_ids = [rng.sample(range(9), width) for _ in range(depth)]
    tree = best_first(token_ids, [[values] for values in log_probs], num_tokens)
    scored = {
        tuple(token_ids[at][rank] for at, rank in enumerate(ranks)): sum(
            log_probs[at][rank] for at, rank in enumerate(ranks)
        )
        for levels in range(1, depth + 1)
        for ranks in product(range(width), repeat=levels)
    }
    assert texts(tree) == sorted(scored, key=lambda text: -scored[text])[:num_tokens]
    assert best_first(token_ids, [[values] for values in log_probs], 5).first(num_tokens) == tree.first(5)
    assert len(best_first([], [], num_tokens)) == 0


@pytest.mark.parametrize("shape", [(3, 128), (2, 4, 1024), (1, 97)])
def test_the_likeliest_tokens_are_found(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    logits[..., 40:60] += 3  # several in one piece
    for count in (1, 2, 16):
        ids, values = likeliest(logits, count)
        expected = logits.log_softmax(-1).topk(count)
        assert torch.equal(ids, expected.indices)
        torch.testing.assert_close(values, expected.values)


def test_parents_stand_before_children_of_the_same_score() -> None:
    tree = best_first([[4, 6]] * 5, [[[0.0, -1.0]]] * 5, 12)
    assert texts(tree)[:5] == [(4,) * n for n in range(1, 6)]
    assert all(parent <= place for place, parent in enumerate(tree.parents))


def test_a_tree_of_width_one_is_the_chain() -> None:
    tree = best_first([[5], [3], [8]], [[[-0.5]]] * 3, 16)
    assert tree == DraftTree.chain([5, 3, 8], [-0.5] * 3)
    assert tree.is_chain
    assert (tree.depth, tree.up_to(2)) == (3, DraftTree.chain([5, 3], [-0.5] * 2))


def test_the_walk_follows_the_targets_choices() -> None:
    #     5 - 7 - 1
    #   /   \ 8 - 1
    # 0 - 6
    tree = DraftTree([5, 6, 7, 8, 1, 1], [0, 0, 1, 1, 3, 4])
    heard: list[tuple[int, list[int]]] = []
    wanted = {0: 5, 1: 8, 4: 1, 6: 9}

    def choose(place: int, path: list[int]) -> int:
        heard.append((place, list(path)))
        return wanted[place]

    assert tree.walk(choose) == ([0, 1, 4, 6], 9)
    assert heard == [(0, []), (1, [5]), (4, [5, 8]), (6, [5, 8, 1])]
    assert tree.up_to(2) == DraftTree([5, 6, 7, 8], [0, 0, 1, 1])
    assert tree.first(3).walk(lambda *_: 5) == ([0, 1], 5)


def small_targets() -> dict[str, TargetModel]:
    torch.manual_seed(0)
    configs = {
        "llama": llama_config(vocab_size=SMALL_VOCAB),
        "qwen3": Qwen3Config(**SMALL),
        "gemma3": Gemma3TextConfig(**SMALL, **GEMMA3),
    }
    targets = {name: build_target(config).eval() for name, config in configs.items()}
    for parameter in (p for target in targets.values() for p in target.parameters() if p.dim() > 1):
        torch.nn.init.normal_(parameter, std=0.2)
    targets["qwen3_5"] = toy_hybrid(vocab_size=SMALL_VOCAB)
    return targets


TARGETS = small_targets()


def deepest(tree: DraftTree) -> list[int]:
    """The places of the path from the root to the deepest token."""
    path = [tree.depths.index(tree.depth) + 1]
    while path[0]:
        path.insert(0, tree.parents[path[0] - 1])
    return path


def rows_over(paged: PagedKVCache, states: KVCache) -> PagedRows:
    """Rows over pages, with the states of a hybrid's cache beside them."""
    return HybridRows(paged, states.states) if isinstance(states, HybridCache) else PagedRows(paged)


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("name", TARGETS)
@torch.inference_mode()
def test_a_token_of_a_tree_sees_its_path_as_if_it_were_alone(name: str, by_layer: bool) -> None:
    target, rng = TARGETS[name], random.Random(5)
    prompts = [[rng.randrange(SMALL_VOCAB) for _ in range(n)] for n in (9, 3, 14)]
    anchors = [prompt.pop() for prompt in prompts]
    trees = [random_tree(rng, size) for size in (12, 5, 1)]

    def alone(row: int, path: tuple[int, ...]) -> torch.Tensor:
        ids = [*prompts[row], anchors[row], *path]
        return target(ForwardBatch.of_row(ids, 0), target.new_cache(1, len(ids))).hidden[0]

    # One row in a cache of its own.
    cache = target.new_cache(1, 40)
    target(ForwardBatch.of_row(prompts[0], 0), cache)
    cache.commit(len(prompts[0]))
    block = [anchors[0], *trees[0].token_ids]
    out = target(ForwardBatch.of_row(block, len(prompts[0]), parents=trees[0].parents), cache, (1,))
    for place, text in enumerate([(), *texts(trees[0])]):
        torch.testing.assert_close(out.hidden[0, place], alone(0, text)[-1], atol=3e-5, rtol=1e-4)

    # Three rows, padded to the widest, in pages.
    paged = PagedKVCache(target.kv_shapes(), 30, 4, torch.float32, "cpu", 60, by_layer)
    pages, states = [list(range(i, 30, 3)) for i in range(3)], target.new_cache(3, 1)
    rows = rows_over(paged, states)

    def forward(
        rows: PagedRows, ids: list[list[int]], starts: list[int], parents: list[list[int]] | None = None
    ) -> tuple[list[CacheRow], torch.Tensor]:
        width = max(map(len, ids))
        # Pages for a path and not for all of a tree.
        lasts = [
            (start + (4 if parents else len(own))) // 4 + 1 for start, own in zip(starts, ids, strict=True)
        ]
        step = [CacheRow(i, pages[i][: lasts[i]], start, slot=i) for i, start in enumerate(starts)]
        positions, kv_len = rows.arrange(step, [len(own) for own in ids])
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        batch = ForwardBatch(padded, positions, kv_len)
        return step, target(batch.as_trees(parents) if parents else batch, rows).hidden

    step, _ = forward(rows, prompts, [0, 0, 0])
    rows.commit(step, [len(prompt) for prompt in prompts])
    starts = [len(prompt) for prompt in prompts]
    blocks = [[anchor, *tree.token_ids] for anchor, tree in zip(anchors, trees, strict=True)]
    step, hidden = forward(rows, blocks, starts, [tree.parents for tree in trees])
    for row, tree in enumerate(trees):
        for place, text in enumerate([(), *texts(tree)]):
            torch.testing.assert_close(hidden[row, place], alone(row, text)[-1], atol=3e-5, rtol=1e-4)

    # The deepest path is made true; what follows sees it, in the rows and from the pages.
    paths = [deepest(tree) for tree in trees]
    rows.commit_paths(step, paths)
    cache.commit_path(paths[0])
    after = [(*texts(tree)[path[-1] - 1], 7) for tree, path in zip(trees, paths, strict=True)]
    starts = [start + len(path) for start, path in zip(starts, paths, strict=True)]
    for known in (rows, rows_over(paged, states)):
        _, hidden = forward(known, [[7]] * 3, starts)
        for row in range(3):
            torch.testing.assert_close(hidden[row, 0], alone(row, after[row])[-1], atol=3e-5, rtol=1e-4)
    out = target(ForwardBatch.of_row([7], starts[0]), cache)
    torch.testing.assert_close(out.hidden[0, 0], alone(0, after[0])[-1], atol=3e-5, rtol=1e-4)


SETTINGS = {
    "greedy": SamplingParams(temperature=0.0, max_tokens=30),
    "sampled": SamplingParams(temperature=0.8, top_p=0.95, seed=3, max_tokens=30),
    "penalties": SamplingParams(
        temperature=0.6,
        seed=4,
        presence_penalty=1.1,
        frequency_penalty=0.6,
        repetition_penalty=1.3,
        logit_bias={4: 1.0},
        min_tokens=12,
        logprobs=2,
        max_tokens=30,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", TARGETS)
def test_a_seed_is_one_text_plain_in_chains_and_in_trees(name: str, setting: str) -> None:
    target, params = TARGETS[name], SETTINGS[setting]
    drafter = DFlashDrafter(toy_dflash(target, head_dim=12), target)
    prompt = [3, 1, 4, 1, 5, 9]
    plain = generate(target, None, prompt, params, eos_token_ids=[2])
    for block_size, draft_tree in ((8, 2), (8, 8), (8, 40), (3, 16), (8, 256)):
        output = generate(target, drafter, prompt, params, block_size, [2], draft_tree=draft_tree)
        assert output.token_ids == plain.token_ids
        for ours, theirs in zip(output.logprobs or [], plain.logprobs or [], strict=True):
            assert (ours.token_id, ours.top[0][0]) == (theirs.token_id, theirs.top[0][0])
            assert abs(ours.logprob - theirs.logprob) < 1e-4


def test_a_grammar_is_kept_along_the_path() -> None:
    tokenizer = byte_tokenizer()
    target = toy_target(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    drafter = DFlashDrafter(toy_dflash(target), target)
    end = [tokenizer.eos_token_id]
    grammar = Grammar("regex", "[ab]{3,9}(cc|d)*e")
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, seed=5, max_tokens=30, grammar=grammar)
        plain = generate(target, None, [1, 2], params, eos_token_ids=end, tokenizer=tokenizer)
        tree = generate(target, drafter, [1, 2], params, 8, end, tokenizer=tokenizer, draft_tree=64)
        assert tree.text == plain.text
        assert tree.metrics.num_rounds <= plain.metrics.num_rounds


def test_a_tree_accepts_no_less_than_its_chain() -> None:
    target = TARGETS["llama"]
    drafter = DFlashDrafter(toy_dflash(target), target)
    params = SamplingParams(temperature=0.0, max_tokens=100)
    chain, tree = (
        generate(target, drafter, [1, 2], params, 8, draft_tree=size).metrics for size in (None, 64)
    )
    assert tree.acceptance_length > 1.3 * chain.acceptance_length
    assert len(tree.accepted_histogram) <= 8
    assert tree.verified_histogram[64] > 0.8 * tree.num_rounds


def test_the_last_tokens_of_context_and_budget_are_reached() -> None:
    target = toy_target(vocab_size=SMALL_VOCAB, max_position_embeddings=32)
    drafter = DFlashDrafter(toy_dflash(target), target)
    for max_tokens in (1, 2, 3, 500):
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        plain = generate(target, None, [5] * 20, params)
        assert generate(target, drafter, [5] * 20, params, draft_tree=30).token_ids == plain.token_ids


def test_in_a_crowd_of_trees_chains_and_plain_requests_every_text_is_its_own() -> None:
    rng = random.Random(1)
    target = TARGETS["llama"]
    drafter = DFlashDrafter(toy_dflash(target), target)
    config = EngineConfig(max_running=8, max_step_tokens=160, page_size=4, num_pages=40)
    costs = StepCosts(Curve([1, 64], [1.0, 2.0]), Curve([2, 8], [0.1, 0.2]))
    engine = Engine(target, drafter, config, eos_token_ids=[2], costs=costs)
    shared = [rng.randrange(SMALL_VOCAB) for _ in range(12)]
    cases = []
    for idx in range(36):
        prompt = rng.choice([[], shared]) + [rng.randrange(SMALL_VOCAB) for _ in range(rng.randrange(1, 20))]
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.9]),
            seed=idx,
            max_tokens=rng.randrange(1, 40),
            presence_penalty=rng.choice([0.0, 0.0, 1.0]),
        )
        cases.append((prompt, params))
        block_size, tree = rng.choice(
            [(1, None), (8, None), ("auto", None), ("auto", 24), (8, 5), (4, 64), (1, 9)]
        )
        engine.add_request(str(idx), prompt, params, block_size, draft_tree=tree)
    got: dict[int, list[int]] = {idx: [] for idx in range(len(cases))}
    while engine.has_unfinished:
        for output in engine.step():
            got[int(output.request_id)] += output.token_ids
        engine.check_integrity()
    assert engine.stats().num_preemptions > 3
    assert engine.stats().num_cached_tokens > 50
    for idx, (prompt, params) in enumerate(cases):
        assert got[idx] == generate(target, None, prompt, params, eos_token_ids=[2]).token_ids, (
            f"request {idx}"
        )


def test_automatic_requests_verify_trees_and_those_with_a_grammar_chains() -> None:
    tokenizer = byte_tokenizer()
    target = toy_target(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    drafter = DFlashDrafter(toy_dflash(target), target)
    costs = StepCosts(Curve([1, 64], [1.0, 1.01]), Curve([2, 8], [0.01, 0.01]))
    engine = Engine(target, drafter, eos_token_ids=[tokenizer.eos_token_id], tokenizer=tokenizer, costs=costs)
    grammar = Grammar("regex", "[ab]{3,90}(cc|d)*e")
    asked = {
        "free": SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True),
        "sampled": SamplingParams(temperature=1.0, seed=3, max_tokens=60, ignore_eos=True),
        "bound": SamplingParams(temperature=0.0, max_tokens=60, grammar=grammar),
    }
    for name, params in asked.items():
        engine.add_request(name, [1, 2], params)
    shapes: dict[str, set[bool]] = {name: set() for name in asked}
    run = engine.runner.run

    def seen(rows: Any, requests: Any, tokens: Any, wanted: Any, parents: Any = None) -> Any:
        for request, own in zip(requests, parents or [], strict=False):
            shapes[request.request_id].add(list(own) == list(range(len(own))))
        return run(rows, requests, tokens, wanted, parents)

    engine.runner.run = seen  # type: ignore[method-assign]
    got: dict[str, list[int]] = {name: [] for name in asked}
    for output in engine.run():
        got[output.request_id] += output.token_ids
    for name, params in asked.items():
        end = [tokenizer.eos_token_id]
        plain = generate(target, None, [1, 2], params, eos_token_ids=end, tokenizer=tokenizer)
        assert got[name] == plain.token_ids
    assert False in shapes["free"]
    assert False in shapes["sampled"]
    assert shapes["bound"] == {True}


def test_the_engine_accepts_what_the_page_accepts() -> None:
    target = TARGETS["llama"]
    drafter = DFlashDrafter(toy_dflash(target), target)
    params = SamplingParams(temperature=0.0, max_tokens=40)
    engine = Engine(target, drafter, draft_tree=20)
    for idx, block_size in enumerate((8, 3, 5)):
        engine.add_request(str(idx), [idx, 4], params, block_size)
    last = {output.request_id: output.metrics for output in engine.run()}
    for idx, block_size in enumerate((8, 3, 5)):
        alone = generate(target, drafter, [idx, 4], params, block_size, draft_tree=20).metrics
        assert last[str(idx)].accepted_histogram == alone.accepted_histogram
        assert last[str(idx)].verified_histogram == alone.verified_histogram


def test_what_cannot_draft_or_verify_a_tree_is_told() -> None:
    target = TARGETS["llama"]
    dflash = DFlashDrafter(toy_dflash(target), target)
    with pytest.raises(UsageError, match="draft_tree is 1; expected 2 to 256"):
        Engine(target, dflash, draft_tree=1)
    with pytest.raises(UsageError, match="there is no drafter; expected a DFlash drafter"):
        generate(target, None, [1], SETTINGS["greedy"], draft_tree=8)
    with pytest.raises(UsageError, match="drafts one token a place; expected a DFlash drafter"):
        Engine(target, NgramDrafter(), draft_tree=8)
    with pytest.raises(UsageError, match="knows chains alone"):
        Engine(target, dflash, draft_tree=8, simulated=SimulatedAcceptance([0.5]))
