"""The one-stream benchmark on a tiny pair: what it runs, in which order, and what it finds."""

from dataclasses import replace

import pytest

from flashdraft.bench.offline import Method, OfflineBench, choose_methods
from flashdraft.bench.results import Measurement, aggregate
from flashdraft.bench.tasks import BenchPrompt, load_task
from flashdraft.errors import UsageError
from flashdraft.generate import generate
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from tiny_pair import save_tiny_pair
from toys import ScriptedDrafter

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    target, drafter = save_tiny_pair(tmp_path_factory.mktemp("pair"))
    return LLM(target, drafter, dtype="float32")


def labels(measurements: list[Measurement]) -> list[str]:
    return [f"{m.prompt_id}/{m.turn} {m.method}{m.block_size}" for m in measurements]


def test_methods_are_what_was_asked_for(llm: LLM) -> None:
    methods = choose_methods(llm, ["dflash", "ngram"], [8, 4])
    assert [(m.name, m.block_size) for m in methods] == [
        ("AR", 1),
        ("n-gram", 8),
        ("n-gram", 4),
        ("DFlash", 8),
        ("DFlash", 4),
    ]
    for names, sizes in ((["mtp"], [8]), (["dflash"], [9]), (["dflash"], [1]), (["ngram"], [0])):
        with pytest.raises(UsageError, match="expected"):
            choose_methods(llm, names, sizes)


def test_dflash_needs_a_drafter(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "drafter", None)
    with pytest.raises(UsageError, match="--draft"):
        choose_methods(llm, ["dflash"], [8])


def test_methods_take_turns_at_going_first_and_find_the_same_tokens(llm: LLM) -> None:
    tasks = {"gsm8k": load_task("gsm8k", 2), "mbpp": load_task("mbpp", 1)}
    bench = OfflineBench(llm, choose_methods(llm, ["ngram", "dflash"], [8]), GREEDY)
    heard: list[Measurement] = []
    measured = bench.run(tasks, heard.append)
    assert heard == measured
    assert len(measured) == bench.num_answers(tasks) == 9
    assert [m.method for m in measured] == ["AR", "n-gram", "DFlash"] * 3
    assert [m.order_idx for m in measured] == [0, 1, 2, 2, 0, 1, 1, 2, 0]
    assert {m.prompt_id for m in measured[:3]} == {"gsm8k-test-0"}
    assert all(m.difference is None for m in measured)
    for m in measured:
        assert m.metrics.num_output_tokens == 24 or m.finish_reason == "stop"
        assert 0 < m.metrics.prefill_s + m.metrics.decode_s <= m.total_s
        assert m.metrics.draft_s + m.metrics.verify_s <= m.metrics.decode_s
    rows = aggregate(measured)
    assert [row.num_equal for row in rows] == [row.num_prompts for row in rows] == [2, 2, 2, 1, 1, 1]
    assert {row.acceptance_length for row in rows if row.method == "AR"} == {1.0}


def test_a_drafter_that_knows_the_answer_gains_a_block_a_round(llm: LLM) -> None:
    prompt = BenchPrompt("p", ("Hello",))
    token_ids = llm.chat_token_ids([{"role": "user", "content": "Hello"}])
    params = replace(GREEDY, max_tokens=25, ignore_eos=True)
    answer = generate(llm.target, None, token_ids, params).token_ids
    oracle = ScriptedDrafter([*token_ids, *answer], lambda _: False, max_block_size=4)
    methods = [Method("AR", 1, None), Method("oracle", 4, oracle)]
    row = aggregate(OfflineBench(llm, methods, params).run({"t": [prompt]}))[1]
    assert (row.num_rounds, row.acceptance_length, row.num_equal) == (6, 4.0, 1)
    assert row.accepted_by_position == [1.0, 1.0, 1.0]


def test_the_second_turn_follows_the_first_answer(llm: LLM) -> None:
    prompt = load_task("mt-bench", 1)
    methods = choose_methods(llm, ["dflash"], [8])
    single = OfflineBench(llm, methods, GREEDY).run({"mt-bench": prompt})
    double = OfflineBench(llm, methods, GREEDY, multi_turn=True)
    measured = double.run({"mt-bench": prompt})
    name = prompt[0].id
    assert labels(single) == [f"{name}/0 AR1", f"{name}/0 DFlash8"]
    assert labels(measured) == [f"{name}/0 AR1", f"{name}/0 DFlash8", f"{name}/1 AR1", f"{name}/1 DFlash8"]
    assert double.num_answers({"mt-bench": prompt}) == 4
    first = generate(
        llm.target, None, llm.chat_token_ids(turn(prompt[0].turns[0])), GREEDY, 1, llm.eos_token_ids
    )
    text = llm.tokenizer.decode(first.token_ids, skip_special_tokens=True)
    both = [*turn(prompt[0].turns[0]), {"role": "assistant", "content": text}, *turn(prompt[0].turns[1])]
    assert measured[2].num_prompt_tokens == measured[3].num_prompt_tokens == len(llm.chat_token_ids(both))


def turn(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_sampled_answers_agree_too(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=24)
    methods = choose_methods(llm, ["ngram", "dflash"], [4])
    measured = OfflineBench(llm, methods, params).run({"gsm8k": load_task("gsm8k", 2)})
    assert all(m.difference is None for m in measured)
