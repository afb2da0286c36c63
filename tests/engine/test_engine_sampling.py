"""Sampling in the engine: the law of the target, one text a seed, and everything users may ask of the choice.

The chi-square tests draw 20,000 samples with fixed seeds and reject at a false-alarm probability of 1e-6 each, so
a change of torch's random numbers would fail one of the eight by chance less than once in 120,000 times.
"""

import itertools
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.engine import engine as engine_module
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter, DraftShape
from flashdraft.spec_decode.ngram import NgramDrafter
from flashdraft.spec_decode.per_request import PerRequestDrafter
from flashdraft.spec_decode.tree import DraftTree
from flashdraft.spec_decode.verify import verify
from tiny_pair import byte_tokenizer
from toys import toy_dflash, toy_dflash2, toy_target

NUM_SAMPLES = 20_000
FALSE_ALARM = 1e-6
VOCAB, PROMPT = 4, [1, 3, 3]
LAWS = {
    "temperature": SamplingParams(temperature=0.8, max_tokens=4),
    "top_p": SamplingParams(top_p=0.8, max_tokens=4),
    "top_k": SamplingParams(top_k=2, max_tokens=4),
    "min_p": SamplingParams(min_p=0.3, max_tokens=4),
    "penalties": SamplingParams(
        presence_penalty=0.5,
        frequency_penalty=0.4,
        repetition_penalty=1.3,
        logit_bias={2: 0.7},
        max_tokens=4,
    ),
}


class GuessingDrafter(PerRequestDrafter):
    """Guesses: with four tokens, one in four is right."""

    max_block_size = 4

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def begin(self, max_len: int) -> "GuessingDrafter":  # noqa: ARG002
        return self

    def observe(self, token_ids: list[int], features: Tensor | None) -> None:
        """Nothing helps a guess."""

    def propose(self, anchor: int, shape: DraftShape) -> DraftTree:  # noqa: ARG002
        return DraftTree.chain([self.rng.randrange(VOCAB) for _ in range(shape.depth)])


def tiny_target():  # type: ignore[no-untyped-def]
    return toy_target(vocab_size=VOCAB, num_hidden_layers=1, hidden_size=16, intermediate_size=16)


def written_out_probs(logits: Tensor, output: list[int], params: SamplingParams) -> Tensor:
    """The law of one token, from the definitions and independent of sampler.py."""
    values = [float(x) for x in logits]
    for token in range(VOCAB):
        values[token] += params.logit_bias.get(token, 0.0)
        if token in PROMPT + output:
            factor = params.repetition_penalty
            values[token] = values[token] / factor if values[token] > 0 else values[token] * factor
        values[token] -= params.frequency_penalty * output.count(token)
        values[token] -= params.presence_penalty * (token in output)
    probs = torch.tensor(values, dtype=torch.float64).div(params.temperature).softmax(0)
    order = probs.argsort(descending=True).tolist()
    keep, mass = [], 0.0
    for rank, token in enumerate(order):
        too_small = probs[token] < params.min_p * probs[order[0]]
        if too_small or (params.top_k and rank >= params.top_k) or mass >= params.top_p:
            break
        keep.append(token)
        mass += float(probs[token])
    cut = torch.zeros_like(probs)
    cut[keep] = probs[keep]
    return cut / cut.sum()


@torch.inference_mode()
def joint_law(params: SamplingParams) -> Tensor:
    """Exact probabilities [4, 4, 4] of answer tokens 2, 3, 4: one block behind the first token."""
    target = tiny_target()

    def probs(output: tuple[int, ...]) -> Tensor:
        tokens = [*PROMPT, *output]
        hidden = target(ForwardBatch.of_row(tokens, 0), target.new_cache(1, len(tokens))).hidden
        return written_out_probs(target.logits(hidden[0, -1]), list(output), params)

    table = {out: probs(out) for n in range(4) for out in itertools.product(range(VOCAB), repeat=n)}
    law = torch.zeros(VOCAB, VOCAB, VOCAB, dtype=torch.float64)
    for a, x, y, z in itertools.product(range(VOCAB), repeat=4):
        law[x, y, z] += table[()][a] * table[(a,)][x] * table[a, x][y] * table[a, x, y][z]
    return law


def draw(
    params: SamplingParams,
    block_size: int,
    num_samples: int = NUM_SAMPLES,
    drafter: Drafter | None = None,
    tree: int | None = None,
) -> tuple[Tensor, Engine]:
    """Counts [4, 4, 4] of the same three tokens over as many seeds; ``drafter`` None: one that guesses."""
    config = EngineConfig(max_running=250, max_step_tokens=2000)
    engine = Engine(tiny_target(), drafter or GuessingDrafter(), config, draft_tree=tree)
    answers: dict[str, list[int]] = {}
    for one in params.__class__(**{**params.__dict__, "n": num_samples, "seed": 1000}).split():
        answers[str(one.seed)] = []
        engine.add_request(str(one.seed), PROMPT, one, block_size)
    for output in engine.run():
        answers[output.request_id] += output.token_ids
    counts = torch.zeros(VOCAB, VOCAB, VOCAB, dtype=torch.float64)
    for tokens in answers.values():
        counts[tuple(tokens[1:])] += 1
    return counts, engine


def chi_square_p_value(counts: Tensor, law: Tensor) -> float:
    """Pearson's test; cells expected less than five times are pooled."""
    expected, counts = (law * counts.sum()).flatten(), counts.flatten()
    assert counts[expected == 0].sum() == 0, "a token that was cut"
    small = expected < 5
    cells = [(counts[~small], expected[~small])]
    if expected[small].sum() >= 5:
        cells.append((counts[small].sum()[None], expected[small].sum()[None]))
    observed, wanted = (torch.cat(part) for part in zip(*cells, strict=True))
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    return float(torch.special.gammaincc((torch.tensor(len(wanted) - 1.0)).double() / 2, statistic / 2))


@pytest.mark.parametrize("name", LAWS)
def test_the_joint_law_of_a_block_is_the_targets(name: str) -> None:
    counts, engine = draw(LAWS[name], block_size=4)
    assert engine.metrics.num_accepted > NUM_SAMPLES / 4
    assert chi_square_p_value(counts, joint_law(LAWS[name])) > FALSE_ALARM


def test_a_planted_bias_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verification that lets one wrong draft in eight pass."""
    rng = random.Random(0)

    def lenient(draft: list[int], wanted: list[int]) -> tuple[int, int]:
        if draft and rng.random() < 1 / 8:
            wanted = [draft[0], *wanted[1:]]
        return verify(draft, wanted)

    monkeypatch.setattr(engine_module, "verify", lenient)
    counts, _ = draw(LAWS["temperature"], block_size=4, num_samples=5000)
    assert chi_square_p_value(counts, joint_law(LAWS["temperature"])) < FALSE_ALARM


SHARED = SamplingParams(temperature=1.0, max_tokens=4)
TREES = pytest.mark.parametrize("tree", [None, 7])


def sharing_drafter() -> DFlashDrafter:
    """DFlash 2: its drafts depend on the very noise that decides them."""
    target = tiny_target()
    return DFlashDrafter(toy_dflash2(target, selector_top_k=3), target)


@TREES
def test_the_joint_law_behind_drafts_that_share_the_noise_is_the_targets(tree: int | None) -> None:
    counts, engine = draw(SHARED, 4, drafter=sharing_drafter(), tree=tree)
    assert engine.metrics.num_accepted > NUM_SAMPLES / 2
    assert chi_square_p_value(counts, joint_law(SHARED)) > FALSE_ALARM


@TREES
def test_a_planted_bias_of_their_verification_is_caught(
    tree: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One choice in eight is the draft's, whatever the target says."""
    rng, walk = random.Random(0), DraftTree.walk

    def lenient(draft: DraftTree, choose: Callable[[int, list[int]], int]) -> tuple[list[int], int]:
        def biased(place: int, path: list[int]) -> int:
            behind = [t for t, parent in zip(draft.token_ids, draft.parents, strict=True) if parent == place]
            return behind[0] if behind and rng.random() < 1 / 8 else choose(place, path)

        return walk(draft, biased)

    monkeypatch.setattr(DraftTree, "walk", lenient)
    monkeypatch.setattr(DraftTree, "is_chain", False)  # so that chains walk too
    counts, _ = draw(SHARED, 4, 5000, sharing_drafter(), tree)
    assert chi_square_p_value(counts, joint_law(SHARED)) < FALSE_ALARM


SETTINGS = {
    "sampled": SamplingParams(temperature=0.9, max_tokens=25),
    "top_p_k": SamplingParams(top_p=0.7, top_k=9, min_p=0.01, max_tokens=25),
    "penalties": SamplingParams(
        presence_penalty=1.1, frequency_penalty=0.6, repetition_penalty=1.5, max_tokens=25
    ),
    "greedy_penalties": SamplingParams(
        temperature=0, presence_penalty=1.1, frequency_penalty=0.6, repetition_penalty=1.5, max_tokens=25
    ),
    "bias": SamplingParams(temperature=0, logit_bias={5: 3.0, 7: -100.0}, max_tokens=25),
    "min_tokens": SamplingParams(temperature=0.9, min_tokens=12, stop_token_ids=(3, 5, 6, 8), max_tokens=25),
    "logprobs": SamplingParams(temperature=0, logprobs=3, max_tokens=25),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_one_seed_gives_one_text_alone_and_in_a_crowd_at_any_block_size(name: str) -> None:
    target = toy_target(vocab_size=13)
    drafter = DFlashDrafter(toy_dflash(target), target)
    params = [SamplingParams(**{**SETTINGS[name].__dict__, "seed": seed}) for seed in range(16)]
    prompts = [[seed % 13, *range(seed % 5 + 1)] for seed in range(16)]
    alone = [
        generate(target, None, p, one, eos_token_ids=[2]) for p, one in zip(prompts, params, strict=True)
    ]
    for block_sizes, max_running in (
        ([1], 32),
        ([8], 32),
        ([8], 1),
        (["auto"], 1),
        (["auto"], 32),
        ([1, 3, 8, "auto"], 32),
    ):
        engine = Engine(target, drafter, EngineConfig(max_running=max_running), eos_token_ids=[2])
        for idx, (prompt, one) in enumerate(zip(prompts, params, strict=True)):
            engine.add_request(str(idx), prompt, one, block_sizes[idx % len(block_sizes)])
        got: dict[int, list[int]] = {idx: [] for idx in range(16)}
        logprobs: dict[int, list[object]] = {idx: [] for idx in range(16)}
        for output in engine.run():
            got[int(output.request_id)] += output.token_ids
            logprobs[int(output.request_id)] += output.logprobs or []
        assert got == {idx: output.token_ids for idx, output in enumerate(alone)}
        for idx, output in enumerate(alone):
            for ours, theirs in zip(logprobs[idx], output.logprobs or [], strict=True):
                assert ours.token_id == theirs.token_id  # type: ignore[attr-defined]
                assert abs(ours.logprob - theirs.logprob) < 1e-4  # type: ignore[attr-defined]
                assert [t for t, _ in ours.top] == [t for t, _ in theirs.top]  # type: ignore[attr-defined]


def test_stop_texts_end_at_the_same_character_whatever_the_block() -> None:
    tokenizer = byte_tokenizer()
    target = toy_target(vocab_size=len(tokenizer))
    drafter = DFlashDrafter(toy_dflash(target), target)
    stopped = 0
    for seed in range(20):
        free = generate(target, None, [seed], SamplingParams(seed=seed, max_tokens=30), tokenizer=tokenizer)
        stop = free.text[11:13] if seed % 2 else (free.text[9:12], free.text[15:17])
        params = SamplingParams(seed=seed, max_tokens=30, stop=stop, include_stop_str_in_output=seed % 3 == 0)
        alone = generate(target, None, [seed], params, tokenizer=tokenizer)
        cut = min(free.text.find(text) + len(text) for text in params.stop_texts)
        if not params.include_stop_str_in_output:
            cut -= len(str(alone.stop_reason))
        assert alone.text == free.text[:cut]
        stopped += alone.finish_reason == "stop"
        for block_size in (1, 3, 8, "auto"):
            engine = Engine(target, drafter, tokenizer=tokenizer)
            engine.add_request("r", [seed], params, block_size)
            outputs = list(engine.run())
            assert "".join(output.text for output in outputs) == alone.text
            assert outputs[-1].stop_reason == alone.stop_reason
            assert [t for output in outputs for t in output.token_ids] == alone.token_ids
            engine.check_integrity()
    assert stopped == 20


def test_prompt_logprobs_are_the_oracles_whatever_chunks_and_prefixes() -> None:
    target = toy_target(vocab_size=11)
    config = EngineConfig(page_size=4, max_step_tokens=16, num_pages=20)
    engine = Engine(target, NgramDrafter(4), config)
    prompts = [[i % 11, *range(10), *range(3 * i)] for i in range(4)] * 2
    params = SamplingParams(temperature=0, max_tokens=12, prompt_logprobs=2)
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, params, priority=-idx)
    told = {out.request_id: out.prompt_logprobs for out in engine.run() if out.prompt_logprobs is not None}
    assert engine.stats().num_preemptions > 0
    for idx, prompt in enumerate(prompts):
        alone = generate(target, None, prompt, params).prompt_logprobs
        assert alone is not None
        assert [one.token_id for one in alone] == prompt[1:]
        for ours, theirs in zip(told[str(idx)] or [], alone, strict=True):
            assert ours.token_id == theirs.token_id
            assert abs(ours.logprob - theirs.logprob) < 1e-4
            assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
