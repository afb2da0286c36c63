"""Engines whose steps run as on a GPU (pages, states, fused layers) against the decoding loop of generate.py.

Triton's interpreter takes seconds for what a GPU does in microseconds: on a CPU the models and the requests are few.
"""

import random
from dataclasses import replace

import pytest
import torch
from transformers import Ministral3Config

from flashdraft.engine.engine import Engine
from flashdraft.engine.memory_plan import staged_bytes
from flashdraft.engine.recorded_trees import NO_TREES
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.generate import generate
from flashdraft.models.base import build_target
from flashdraft.ops.quantized import SYMMETRIC_ZERO, UNIT, QuantizedLinear, QuantizedWeight, arranged, packed
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.ngram import NgramDrafter
from toys import toy_dflash, toy_dflash2, toy_hybrid, toy_target

pytest.importorskip("triton")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
NUM_PROMPTS, MAX_TOKENS = (8, 24) if ON_GPU else (2, 4)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """A CPU computes padding too; tests/kernels/test_recorded_chunk.py has chunks of the true lengths."""
    if not ON_GPU:
        monkeypatch.setattr("flashdraft.cuda.recorded_chunk.CHUNK_LENGTHS", (4, 12, 24))


def _llama():
    return toy_target(**({} if ON_GPU else {"num_hidden_layers": 2})).to(DEVICE)


def _hybrid():
    return toy_hybrid(**({} if ON_GPU else {"num_hidden_layers": 2, "full_attention_interval": 2})).to(DEVICE)


def _drafter(target):
    changes = {} if ON_GPU else {"num_hidden_layers": 1}
    return DFlashDrafter(toy_dflash(target, **changes).to(DEVICE), target)


def _prompts(count, vocab, longest=12, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(3, vocab) for _ in range(rng.randrange(1, longest))] for _ in range(count)]


def _check(target, drafter, prompts, block_size, config, draft_tree=None):
    """Every answer is the loop's; returns the engine."""
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    expected = [generate(target, None, prompt, params).token_ids for prompt in prompts]
    engine = Engine(target, drafter, config, (), None, block_size, draft_tree=draft_tree)
    assert type(engine.runner.backend).__name__ == "CudaBackend", "this is about steps on a GPU"
    found = {}
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, params)
    for output in engine.run():
        found.setdefault(output.request_id, []).extend(output.token_ids)
    engine.check_integrity()
    assert engine.overlap.in_flight is None, "a round that runs for nobody is forgotten"
    assert [found[str(idx)] for idx in range(len(prompts))] == expected
    return engine


@pytest.mark.parametrize("make", [_llama, _hybrid])
def test_blocks(make):
    target = make()
    prompts = _prompts(NUM_PROMPTS, target.config.vocab_size)
    _check(target, _drafter(target), prompts, 4, EngineConfig(max_running=3, page_size=4, num_pages=96))


def test_plain_steps_of_a_hybrid():
    target = _hybrid()
    prompts = _prompts(NUM_PROMPTS, target.config.vocab_size, seed=1)
    _check(target, None, prompts, 1, EngineConfig(max_running=3, page_size=4, num_pages=96))


def _in_codes(target):
    """Matrices of layers in codes: FP8, the gated delta layers' of 4 bits in groups of 128, their gates in floats."""
    for name, module in list(target.named_modules()):
        if type(module) is not torch.nn.Linear or ".layers." not in name or name.endswith(("_a", "_b")):
            continue
        weight = module.weight.detach()
        if weight.shape[1] % UNIT:
            continue
        if ".linear_attn.in" in name:
            groups = weight.unflatten(1, (-1, 128))
            scales = (groups.abs().amax(2) / 7).bfloat16()
            codes = (groups / scales[:, :, None].float()).round().int() + SYMMETRIC_ZERO
            codes = packed(codes.flatten(1))
            scales, counted = scales.float(), torch.bfloat16
        else:
            scales = weight.abs().amax(1, keepdim=True) / 448
            codes = (weight / scales).to(torch.float8_e4m3fn)
            codes, counted = arranged(codes), torch.float32
        held = QuantizedWeight(codes, scales.T.contiguous(), None, weight.dtype, counted)
        target.set_submodule(name, QuantizedLinear(held.in_tiles().in_pairs(), module.bias))
    return target


def test_weights_in_codes():
    """Plain steps and blocks; some matrices of one product are in codes of 8 or 4 bits, others in floats."""
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "full_attention_interval": 2}
    target = _in_codes(toy_hybrid(**sizes)).to(DEVICE)
    mixed = target.model.layers[0].linear_attn
    assert [type(one) for one in (mixed.in_proj_qkv, mixed.in_proj_b)] == [QuantizedLinear, torch.nn.Linear]
    config = EngineConfig(max_running=2, page_size=4, num_pages=96)
    prompts = _prompts(NUM_PROMPTS, target.config.vocab_size, seed=5)
    _check(target, None, prompts, 1, config)
    _check(target, _drafter(target), prompts, 4, config)


def test_a_hybrids_prefixes_chunks_and_preemption():
    """Prompts that share a beginning, in chunks, states kept at page borders, pages for less than all."""
    target = _hybrid()
    common = [5] * 17
    tails = _prompts(2 * NUM_PROMPTS if ON_GPU else 1, target.config.vocab_size, 6, seed=3)
    prompts = [common + tail for tail in [*tails, [9]]]
    config = EngineConfig(
        max_running=2, page_size=4, num_pages=24 if ON_GPU else 14, max_step_tokens=16, checkpoint_pages=2
    )
    engine = _check(target, _drafter(target), prompts, 4, config)
    assert engine.stats().num_cached_tokens


def test_trees():
    target = _llama()
    prompts = _prompts(NUM_PROMPTS, target.config.vocab_size, seed=4)
    config = EngineConfig(max_running=2, page_size=4, num_pages=96)
    _check(target, _drafter(target), prompts, 4, config, draft_tree=6)


def test_trees_of_a_hybrid():
    """In rounds, and in steps where states are kept at page borders; a tree is cut to what is kept of a step."""
    changes = {"num_hidden_layers": 2, "full_attention_interval": 2}
    target = toy_hybrid(vocab_size=11, eos_token_id=None, **changes).to(DEVICE)
    drafter = DFlashDrafter(toy_dflash(target, num_hidden_layers=1, block_size=4).to(DEVICE), target)
    config = EngineConfig(max_running=2, max_step_tokens=12, page_size=4, num_pages=96, checkpoint_pages=4)
    engine = Engine(target, drafter, config, (), None, 4, draft_tree=7)
    assert engine.control.trees == NO_TREES, "of itself auto has none"
    assert engine.runner.backend.most_tree(2) == 4
    states = engine.runner.states
    staged = states.staged.nbytes + states.convolved.nbytes + states.scalars.nbytes
    assert (states.most_kept, staged) == (12, 12 * staged_bytes(target))
    forward, launch, sizes = (
        engine.runner.forward,
        engine.runner.rounds.launch,
        {"round": set(), "step": set()},
    )

    def stepped(rows, placed, token_ids, parents=None, with_head=True):
        sizes["step"] |= {len(own) + 1 for own in parents or [] if list(own) != list(range(len(own)))}
        return forward(rows, placed, token_ids, parents, with_head)

    def launched(rows):
        sizes["round"] |= {(len(rows), row.tree_size) for row in rows}
        return launch(rows)

    engine.runner.forward, engine.runner.rounds.launch = stepped, launched
    found, lengths = {}, [16, 4]
    every = [
        SamplingParams(temperature=0.8 * idx, seed=4, max_tokens=length, ignore_eos=True)
        for idx, length in enumerate(lengths)
    ]
    for idx, (prompt, params) in enumerate(zip(([8, 7, 5, 5], [10, 4, 8]), every, strict=True)):
        engine.add_request(str(idx), prompt, params)
    for output in engine.run():
        found.setdefault(output.request_id, []).extend(output.token_ids)
    engine.check_integrity()
    assert found["0"] == generate(target, None, [8, 7, 5, 5], every[0]).token_ids
    assert found["1"] == generate(target, None, [10, 4, 8], every[1]).token_ids
    assert sizes["step"], "where a border is passed"
    assert {(1, 7), (2, 4)} <= sizes["round"]
    assert engine.metrics.num_accepted > 3, "choose another seed: no path is kept"


@pytest.mark.parametrize("kind", ["dflash", "ngram", None])
def test_rounds_recorded_before_there_are_requests(kind):
    """They leave nothing behind; a drafter that does not draft in rounds is left out."""
    target = _llama()
    drafter = {"dflash": _drafter(target), "ngram": NgramDrafter(4), None: None}[kind]
    engine = Engine(target, drafter, EngineConfig(max_running=2, page_size=4, num_pages=8), (), None, 1)
    engine.overlap.record({1, 4}, 2)
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    engine.add_request("one", [5, 6, 7], params, 1 if kind is None else 4)
    made = [token for output in engine.run() for token in output.token_ids]
    assert made == generate(target, None, [5, 6, 7], params).token_ids
    assert engine.overlap.runner.drafts_in_rounds == (kind == "dflash")


def test_the_host_is_one_step_behind():
    """Requests that come, stop and are given up while a round is in flight; each answer is the loop's."""
    target = _llama()
    vocab, num = target.config.vocab_size, 60 if ON_GPU else 3
    drafter, rng = _drafter(target), random.Random(5)
    waiting = dict(enumerate(_prompts(num, vocab, seed=5)))
    whole = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    ends = {idx: generate(target, None, prompt, whole).token_ids[-2:] for idx, prompt in waiting.items()}
    params = {  # every second one stops at a token that may lie within a block
        idx: replace(whole, stop_token_ids=[ids[idx % 2]] if idx % 2 else []) for idx, ids in ends.items()
    }
    expected = {idx: generate(target, None, prompt, params[idx]).token_ids for idx, prompt in waiting.items()}
    config = EngineConfig(max_running=4, page_size=4, num_pages=96, max_prefill_slowdown=2.0)  # as a server's
    engine = Engine(target, drafter, config)
    found, aborted, num_behind = {idx: [] for idx in waiting}, set(), 0
    while waiting or engine.has_unfinished:
        if waiting and rng.random() < 0.7:
            idx, prompt = waiting.popitem()
            engine.add_request(str(idx), prompt, params[idx], rng.choice([1, 4]))
        for output in engine.step():
            found[int(output.request_id)] += output.token_ids
        engine.check_integrity()
        num_behind += engine.overlap.in_flight is not None
        if rng.random() < (0.05 if ON_GPU else 0.1) and engine.requests:
            aborted.add(int(name := rng.choice(list(engine.requests))))
            engine.abort(name)
    assert num_behind
    assert len(aborted) < num
    for idx, made in found.items():
        assert made == (expected[idx][: len(made)] if idx in aborted else expected[idx])


@pytest.mark.parametrize(("make", "make_drafter"), [(_llama, toy_dflash2), (_hybrid, toy_dflash)])
def test_sampled_rows_beside_greedy_ones(make, make_drafter):
    """In rounds, of blocks and plain; each seed's text is the loop's. A penalty takes a step out of the rounds."""
    target = make()
    drafter = DFlashDrafter(make_drafter(target, num_hidden_layers=1).to(DEVICE), target)
    whole = {"max_tokens": MAX_TOKENS, "ignore_eos": True}
    every = [
        SamplingParams(temperature=0.6, top_p=0.95, seed=5, **whole),
        SamplingParams(temperature=0.0, **whole),
        SamplingParams(temperature=1.4, top_k=9, min_p=0.01, seed=6, **whole),
        SamplingParams(temperature=1.0, seed=7, presence_penalty=0.5, **{**whole, "max_tokens": 2}),
    ]
    prompts = _prompts(len(every), target.config.vocab_size, 6, seed=8)
    expected = [generate(target, None, *one).token_ids for one in zip(prompts, every, strict=True)]
    engine = Engine(target, drafter, EngineConfig(max_running=4, page_size=4, num_pages=96), (), None, 4)
    found, num_rounds, num_steps = {}, 0, 0
    for idx, one in enumerate(zip(prompts, every, strict=True)):
        engine.add_request(str(idx), *one, block_size=1 if idx == 2 else 4)
    while engine.has_unfinished:
        for output in engine.step():
            found.setdefault(int(output.request_id), []).extend(output.token_ids)
        num_rounds += engine.overlap.in_flight is not None
        num_steps += 1
    assert num_rounds
    assert num_rounds < num_steps - 1, "the penalty has to run in steps"
    assert [found[idx] for idx in range(len(every))] == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_round_whose_logits_are_no_numbers_ends_the_answer(temperature):
    """As in separate steps: the request is told of it, and nothing of it is delivered."""
    target = _llama()
    engine = Engine(target, None, EngineConfig(max_running=1, page_size=4, num_pages=8), (), None, 1)
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=MAX_TOKENS, ignore_eos=True)
    engine.add_request("one", [5, 6, 7], params)
    while not engine.overlap.in_flight:
        engine.step()
    request = engine.requests["one"]
    target.model.norm.weight.data.fill_(float("nan"))
    outputs = list(engine.run())
    assert outputs[-1].finish_reason == "abort"
    assert "no number" in request.error


def test_an_ngram_drafter_hears_what_plain_rounds_brought():
    """Its requests decode plainly in rounds, and draft later where the controller says so."""
    target = _llama()
    config = EngineConfig(max_running=1, page_size=4, num_pages=8)
    engine = Engine(target, NgramDrafter(4), config, (), None, 1)
    heard = []
    observe = engine.runner.drafter.observe
    engine.runner.drafter.observe = lambda rows, ids, given: (heard.extend(*ids), observe(rows, ids, given))
    engine.add_request("one", [5, 6, 7], SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True))
    for _ in range(4):
        engine.step()
    assert engine.overlap.in_flight, "this is about rounds"
    request = engine.requests["one"]
    request.block_size = 4
    engine.step()
    assert heard == request.token_ids[: request.num_observed]


def test_a_state_that_a_round_came_past_is_not_kept():
    """A slot is free again only when the round that may pass the border is under way: it kept no state there."""
    target = _hybrid()
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    config = EngineConfig(max_running=2, page_size=4, num_pages=8, num_checkpoints=1, checkpoint_pages=1)
    engine = Engine(target, None, config, (), None, 1)
    other = engine.scheduler.slots.take()
    engine.add_request("one", [5, 6], params)
    request = engine.requests["one"]
    while request.num_committed + request.num_in_flight < 4:
        engine.step()
    assert request.num_committed < 4, "the round has to be in flight"
    engine.scheduler.slots.free(other)
    for _ in engine.run():
        pass
    prompt = [5, 6, *request.answer.output.token_ids[:3]]
    engine.add_request("two", prompt, params)
    answer = [token for output in engine.run() for token in output.token_ids]
    assert answer == generate(target, None, prompt, params).token_ids


def test_seconds_of_prompts_are_none_of_rounds():
    """The controller learns no price from a round that the device ran a prompt's chunk before."""
    target = _llama()
    config = EngineConfig(max_running=2, page_size=4, num_pages=16)
    engine = Engine(target, None, config, (), None, 1)
    learned = []
    engine.control.learn = lambda *told: learned.append(told[-1] == 0.0)  # seconds of the round
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    engine.add_request("one", [5, 6], params)
    for _ in range(6):
        engine.step()
    engine.add_request("two", [7, 8, 9], replace(params, max_tokens=1))
    for _ in engine.run():
        pass
    # Of the round that ran when the chunk was started the host may hear late; the next one ran behind it.
    at = [idx for idx, tells_nothing in enumerate(learned) if tells_nothing]
    assert at[0] == 0, "it waits for its launch"
    at = [idx for idx in at if idx > 1]  # a GPU records the second one
    assert len(at) == 2
    assert at[1] == at[0] + 1


def test_what_it_does_not_run_is_named():
    """Ministral 3 multiplies its queries."""
    from flashdraft.cuda.target import why_not

    with torch.device("meta"):
        target = build_target(Ministral3Config(num_hidden_layers=1, hidden_size=64, vocab_size=97))
    assert why_not(target) == "it does not know layers as Ministral3Layer"


def test_logits_of_a_whole_prompt_are_not_held_through_a_step():
    """A chunk is read a step late where a round is in flight, but not with the logits of all its tokens."""
    target = _llama()
    engine = Engine(target, None, EngineConfig(max_running=2, page_size=4, num_pages=16), (), None, 1)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    engine.add_request("one", [5, 6], params)
    while not engine.overlap.in_flight:
        engine.step()
    engine.add_request("two", [7, 8, 9], replace(params, max_tokens=1, prompt_logprobs=0))
    scored = engine.requests["two"].answer.output.prompt_logprobs
    engine.step()
    assert engine.overlap.in_flight, "the chunk has to run behind a round"
    assert len(scored) == 2


@pytest.mark.skipif(not ON_GPU, reason="the interpreter is too slow for it")
def test_200_mixed_requests():
    """Lengths, block sizes and abortions as they come, in float32."""
    target = _hybrid()
    drafter, rng = _drafter(target), random.Random(7)
    prompts = _prompts(200, target.config.vocab_size, 60, seed=7)
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    engine = Engine(
        target, drafter, EngineConfig(max_running=8, page_size=4, num_pages=64, max_step_tokens=64)
    )
    found, aborted = {}, set()
    for idx, prompt in enumerate(prompts):
        engine.add_request(str(idx), prompt, params, rng.choice([1, 4, 8, "auto"]))
    while engine.has_unfinished:
        for output in engine.step():
            found.setdefault(output.request_id, []).extend(output.token_ids)
        if rng.random() < 0.05 and engine.requests:
            aborted.add(name := rng.choice(list(engine.requests)))
            engine.abort(name)
    engine.check_integrity()
    assert engine.stats().num_preemptions
    assert engine.overlap.runner.rounds
    for idx, prompt in enumerate(prompts):
        if str(idx) not in aborted:
            assert found[str(idx)] == generate(target, None, prompt, params).token_ids
