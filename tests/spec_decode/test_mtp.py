"""An MTP head as a drafter: against the definition, and lossless alone and in the engine, whatever the block."""

import random

import pytest
import torch

from engine.test_engine import SMALL_VOCAB, check_alone, mixed_cases, run_arriving_at_random
from flashdraft.batch import ForwardBatch
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.models.base import FINAL_HIDDEN, OwnTokens, TargetModel
from flashdraft.ops.attention import FULL_ATTENTION
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.mtp import MTPBatch, MTPDrafter
from toys import Alone, toy_mtp, toy_target


def pair(block_size: int = 8) -> tuple[TargetModel, MTPDrafter]:
    target = toy_target(vocab_size=SMALL_VOCAB)
    return target, MTPDrafter(toy_mtp(target, block_size=block_size), target)


def drafted_by_definition(
    target: TargetModel, drafter: MTPDrafter, text: list[int], num_draft: int
) -> list[int]:
    """One whole causal forward a draft token, positions from 0; ``text`` ends with the anchor."""
    head, known = drafter.model, len(text) - 1
    whole = ForwardBatch.of_row(text, 0)
    hidden = target.forward(whole, OwnTokens(), (FINAL_HIDDEN,)).features
    assert hidden is not None
    states = hidden[:, :known]  # of each token but the last, what the one after it is paired with
    drafted: list[int] = []
    for _ in range(num_draft):
        tokens = torch.tensor([[*text, *drafted][1:]])
        count = tokens.shape[1]
        positions = torch.arange(count).unsqueeze(0)
        [own] = OwnTokens().open(ForwardBatch(tokens, positions, count), [FULL_ATTENTION])
        out = head(target.embed(tokens), states, positions, own)
        drafted.append(int(target.logits(out[0, -1]).argmax()))
        states = torch.cat((states, out[:, -1:]), dim=1)
    return drafted


@torch.no_grad()
def test_drafts_are_the_definitions() -> None:
    target, drafter = pair()
    rng = random.Random(0)
    state, text = Alone(drafter, 200), [3]
    features = None
    cache = target.new_cache(1, 200)
    while len(text) < 60:
        new = [rng.randrange(SMALL_VOCAB) for _ in range(rng.randrange(1, 9))]
        observed = [text[-1], *new[:-1]]
        features = target.forward(
            ForwardBatch.of_row(observed, cache.lengths[0]), cache, drafter.feature_layers
        ).features
        cache.commit(len(observed))
        state.observe(observed, features)
        text += new
        assert state.chain(text[-1], 7) == drafted_by_definition(target, drafter, text, 7)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [2, 3, 7, 16])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_do_not_change_the_tokens(block_size: int, temperature: float) -> None:
    target, drafter = pair(16)
    params = SamplingParams(temperature=temperature, max_tokens=40, seed=1)
    for start in (0, 1, 5, 9):
        prompt = [start, *range(start)]
        plain = generate(target, None, prompt, params).token_ids
        assert generate(target, drafter, prompt, params, block_size).token_ids == plain


@pytest.mark.slow
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_mixed_requests_with_preemptions_equal_the_oracle(prefix_caching: bool) -> None:
    rng = random.Random(5)
    target, drafter = pair(16)
    config = EngineConfig(
        max_running=8, max_step_tokens=96, page_size=4, num_pages=50, prefix_caching=prefix_caching
    )
    engine = Engine(target, drafter, config, eos_token_ids=[2])
    cases = mixed_cases(60, rng, 16)
    tokens, aborted = run_arriving_at_random(engine, cases, rng, abort_share=0.04)
    stats = engine.stats()
    assert stats.num_preemptions >= 3, "the pool is meant to be too small"
    assert (stats.num_cached_tokens > 100) == prefix_caching
    check_alone(target, cases, tokens, aborted)
    assert not engine.runner.drafter.last_hidden  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_drafts_themselves_do_not_depend_on_the_batch_nor_on_a_found_prefix() -> None:
    rng = random.Random(1)
    target, drafter = pair()
    engine = Engine(target, drafter, EngineConfig(page_size=4, max_running=16, max_step_tokens=64))
    cases = [case for case in mixed_cases(14, rng, more=()) if case.block_size != 1]
    for arrival in range(2):
        for idx, case in enumerate(cases):
            engine.add_request(str(idx), case.prompt, case.params, case.block_size)
        last = {int(out.request_id): out for out in engine.run()}
        for idx, case in enumerate(cases):
            alone = generate(target, drafter, case.prompt, case.params, int(case.block_size)).metrics
            assert last[idx].metrics.accepted_histogram == alone.accepted_histogram
        assert arrival == 0 or all(
            last[idx].num_cached_tokens >= len(case.prompt) // 4 * 4 - 4 for idx, case in enumerate(cases)
        )


def test_a_found_prefix_brings_the_hidden_state_of_its_last_token() -> None:
    _, drafter = pair()
    batch = MTPBatch(drafter, num_pages=9, page_size=4, num_rows=2)
    features = torch.randn(11, 48, generator=torch.Generator().manual_seed(0))
    pages = [7, 2, 5]
    batch.join(CacheRow("a", pages, 0), [], 40)
    for start, end in ((0, 3), (3, 4), (4, 11)):
        row = CacheRow("a", pages, start)
        batch.observe([row], [list(range(start, end))], [features[start:end]])
    for count in (4, 8):
        row = CacheRow(f"b{count}", [*pages[: count // 4], 8], count)
        batch.join(row, list(range(count)), 40)
        assert torch.equal(batch.last_hidden[row.key], features[count - 1 : count])
    assert torch.equal(batch.last_hidden["a"], features[10:])
