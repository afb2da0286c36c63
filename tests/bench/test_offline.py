"""The offline benchmark on a tiny pair: what it runs, in which order, and what it finds."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import Qwen3_5ForCausalLM

from against_transformers import save_and_load
from flashdraft.bench.closed_loop import answer_all
from flashdraft.bench.config import BenchConfig
from flashdraft.bench.methods import Method, choose_methods
from flashdraft.bench.offline import Chunk, OfflineBench, record_lengths, split
from flashdraft.bench.results import Measurement, aggregate
from flashdraft.bench.rows_file import RowsFile, read_rows, rows_in
from flashdraft.bench.tasks import BenchPrompt, load_task
from flashdraft.cache.paged_kv_cache import power_of_two
from flashdraft.engine.engine import Engine
from flashdraft.errors import DataError, UsageError
from flashdraft.generate import generate
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from models.test_qwen3_5 import flat
from tiny_pair import byte_tokenizer, save_tiny_pair
from toys import ScriptedDrafter

GREEDY = SamplingParams(temperature=0.0, max_tokens=24)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    target, drafter = save_tiny_pair(tmp_path_factory.mktemp("pair"))
    return LLM(target, drafter, dtype="float32")


def methods(llm: LLM, names: list[str], sizes: list[int]) -> list[Method]:
    assert llm.drafter is not None
    return choose_methods(names, sizes, {"dflash": llm.drafter})


def chunk_of(prompts: list[BenchPrompt], concurrency: int = 1, index: int = 0, task: str = "t") -> Chunk:
    return Chunk(task, concurrency, 0, index, tuple(prompts))


def test_methods_are_what_was_asked_for(llm: LLM) -> None:
    assert [(m.name, m.block_size) for m in methods(llm, ["ar", "dflash", "ngram", "auto"], [8, 4])] == [
        ("AR", 1),
        ("DFlash", 8),
        ("DFlash", 4),
        ("n-gram", 8),
        ("n-gram", 4),
        ("auto", "auto"),
    ]
    assert llm.drafter is not None
    assert [(m.name, m.block_size) for m in methods(llm, ["auto"], [8])][1:] == [("auto", "auto")]
    trees = choose_methods(["tree"], [4], {"dflash": llm.drafter}, [16, 64])
    assert [(m.name, m.block_size, m.draft_tree) for m in trees[1:]] == [
        ("tree 16", 8, 16),
        ("tree 64", 8, 64),
    ]
    own = choose_methods(["ngram:8", "dflash"], [4, 2], {"dflash": llm.drafter})
    assert [(method.name, method.block_size) for method in own[1:]] == [
        ("n-gram", 8),
        ("DFlash", 4),
        ("DFlash", 2),
    ]
    for asked in ("ngram:many", "auto:8"):
        with pytest.raises(UsageError, match=f"{asked} names no block size"):
            methods(llm, [asked], [4])
    named = choose_methods(["mtp", "mine"], [4], {"mtp": llm.drafter, "mine": llm.drafter})
    assert [m.name for m in named] == ["AR", "MTP", "mine"]
    for names, sizes in ((["mtp"], [8]), (["dflash"], [9]), (["dflash"], [1]), (["ngram"], [0])):
        with pytest.raises(UsageError, match="expected"):
            methods(llm, names, sizes)


def test_perfect_drafts_are_accepted_whole(llm: LLM) -> None:
    bench = OfflineBench(llm, methods(llm, ["replay"], [8, 4]), GREEDY, concurrencies=(3,), multi_turn=True)
    prompts = load_task("mt-bench", 3)
    for index in (0, 1):  # methods take turns, but perfect drafts need plain decoding's answer
        rows = bench.measure(chunk_of(prompts, 3, index))
        assert {row.method for row in rows} == {"AR", "perfect drafts"}
        for row in rows:
            if row.method != "AR":
                told = row.metrics
                assert row.difference is None
                assert told.num_accepted == told.num_drafted
                assert told.num_rounds <= -(-told.num_output_tokens // int(row.block_size)) + 1


def test_chunks_are_even_and_long_enough_for_their_concurrency() -> None:
    prompts = load_task("gsm8k", 40)
    lengths = {c: [len(part) for part in split(prompts, c)] for c in (1, 8, 16, 32)}
    assert lengths == {1: [4] * 10, 8: [20, 20], 16: [40], 32: [40]}
    assert [prompt for part in split(prompts[:7], 2) for prompt in part] == prompts[:7]


def test_as_many_prompts_are_asked_as_are_under_way(llm: LLM) -> None:
    bench = OfflineBench(llm, methods(llm, [], []), GREEDY, concurrencies=(1, 6), repeats=2)
    chunks = bench.chunks({"gsm8k": load_task("gsm8k", 10)}, limit=3)
    assert [(c.repeat, c.concurrency, len(c.prompts)) for c in chunks] == [
        (0, 1, 3),
        (0, 6, 6),
        (1, 1, 3),
        (1, 6, 6),
    ]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_methods_take_turns_at_going_first_and_find_the_same_tokens(llm: LLM, concurrency: int) -> None:
    heard: list[str] = []
    bench = OfflineBench(
        llm,
        methods(llm, ["ngram", "dflash"], [8]),
        GREEDY,
        [concurrency],
        on_answer=lambda _, method: heard.append(method.name),
    )
    prompts = load_task("gsm8k", 5)
    chunks = [chunk_of(prompts[:4], concurrency), chunk_of(prompts[4:], concurrency, 1)]
    measured = [m for chunk in chunks for m in bench.measure(chunk)]
    assert len(measured) == sum(map(bench.num_answers, chunks)) == 15
    assert heard == ["AR"] * 4 + ["n-gram"] * 4 + ["DFlash"] * 4 + ["n-gram", "DFlash", "AR"]
    assert [m.order_idx for m in measured[:3]] == [0, 1, 2]
    assert [m.order_idx for m in measured[12:]] == [2, 0, 1]
    assert all(m.difference is None for m in measured)
    for m in measured:
        assert m.metrics.num_output_tokens == 24 or m.finish_reason == "stop"
        assert 0 < m.ttft_s < m.total_s
        assert m.metrics.prefill_s + m.metrics.decode_s <= m.wall_s * 1.001
        assert sum(m.gaps.values()) == m.metrics.num_rounds
        assert m.is_correct is False
    rows = aggregate(measured)
    assert [row.num_equal for row in rows] == [row.num_answers for row in rows] == [5, 5, 5]
    assert {row.acceptance_length for row in rows if row.method == "AR"} == {1.0}


def test_no_more_than_the_concurrency_are_under_way_and_shares_add_up(llm: LLM) -> None:
    engine = Engine(llm.target, None, eos_token_ids=())
    most = 0
    add = engine.add_request

    def counted(*args: object, **named: object) -> None:
        nonlocal most
        add(*args, **named)  # type: ignore[arg-type]
        most = max(most, len(engine.requests))

    engine.add_request = counted  # type: ignore[method-assign, assignment]
    prompts = [[5, 6, 7 + i] for i in range(7)]
    answers = answer_all(engine, prompts, GREEDY, 1, 3)
    assert most == 3
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.token_ids == generate(llm.target, None, prompt, GREEDY).token_ids
    wall_s = max(a.delivered_at[-1] for a in answers) - answers[0].asked_at
    assert sum(a.wall_s for a in answers) == pytest.approx(wall_s, rel=0.05)


def test_a_drafter_that_knows_the_answer_gains_a_block_a_round(llm: LLM) -> None:
    token_ids = llm.chat_token_ids(turn("Hello"))
    params = replace(GREEDY, max_tokens=25, ignore_eos=True)
    answer = generate(llm.target, None, token_ids, params).token_ids
    oracle = ScriptedDrafter([*token_ids, *answer], lambda _: False, max_block_size=4)
    bench = OfflineBench(llm, [Method("AR", 1, None), Method("oracle", 4, oracle)], params)
    bench._warm.add(1)
    row = aggregate(bench.measure(chunk_of([BenchPrompt("p", ("Hello",))])))[1]
    assert (row.num_rounds, row.acceptance_length, row.num_equal) == (6, 4.0, 1)
    assert row.accepted_by_position == [1.0, 1.0, 1.0]


def test_recordings_are_made_behind_every_power_of_two_of_contexts() -> None:
    assert record_lengths(768, 48) == [513, 257, 129, 32]
    assert record_lengths(4096 + 512, 48)[0] == 4097
    for longest in (100, 768, 4608):
        lengths = record_lengths(longest, 48)
        assert sorted(power_of_two(length + 48) for length in lengths) == [
            128 << k for k in range(len(lengths))
        ]
        assert max(lengths) + 48 <= max(longest, 128)


def test_the_second_turn_follows_the_first_answer(llm: LLM) -> None:
    prompt = load_task("mt-bench", 1)
    chosen = methods(llm, ["dflash"], [8])
    single = OfflineBench(llm, chosen, GREEDY).measure(chunk_of(prompt))
    double = OfflineBench(llm, chosen, GREEDY, multi_turn=True)
    measured = double.measure(chunk_of(prompt))
    assert [(m.turn, m.method) for m in single] == [(0, "AR"), (0, "DFlash")]
    assert [(m.turn, m.method) for m in measured] == [(0, "AR"), (0, "DFlash"), (1, "AR"), (1, "DFlash")]
    assert double.num_answers(chunk_of(prompt)) == 4
    question, second = prompt[0].turns
    first = generate(llm.target, None, llm.chat_token_ids(turn(question)), GREEDY, 1, llm.eos_token_ids)
    text = llm.tokenizer.decode(first.token_ids, skip_special_tokens=True)
    both = [*turn(question), {"role": "assistant", "content": text}, *turn(second)]
    assert measured[2].num_prompt_tokens == measured[3].num_prompt_tokens == len(llm.chat_token_ids(both))


def turn(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_sampled_answers_agree_too(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=24)
    bench = OfflineBench(llm, methods(llm, ["ngram", "dflash", "auto"], [4]), params, [2])
    assert all(m.difference is None for m in bench.measure(chunk_of(load_task("gsm8k", 3), 2)))


def measured_rows(llm: LLM) -> list[Measurement]:
    return OfflineBench(llm, methods(llm, ["dflash"], [8]), GREEDY).measure(chunk_of(load_task("mbpp", 2)))


def test_rows_come_back_as_they_were_and_a_torn_line_goes(llm: LLM, tmp_path: Path) -> None:
    path, rows = tmp_path / "deep" / "rows.jsonl", measured_rows(llm)
    file = RowsFile(path, {"limit": 2}, {"git_sha": "abc"})
    file.start([])
    file.append(rows[:2])
    file.append(rows[2:])
    assert read_rows(path).measurements == rows
    packed = path.with_name("rows.jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert rows_in(path.parent) == packed
    assert read_rows(packed).measurements == rows
    packed.write_bytes(packed.read_bytes()[:10] + bytes([255] * 40))
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(packed)
    path.write_text(path.read_text()[:-9])
    again = RowsFile(path, {"limit": 2}, {"git_sha": "def"})
    assert again.results.measurements == rows[:-1]
    again.start(rows[:2])
    found = read_rows(path)
    assert found.measurements == rows[:2]
    assert [run["provenance"]["git_sha"] for run in found.runs] == ["abc", "def"]
    assert found.settings == {"limit": 2}


def test_rows_of_other_settings_or_another_form_are_refused(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowsFile(path, {"limit": 2, "tasks": "a"}, {}).start(measured_rows(llm))
    with pytest.raises(UsageError, match=r"limit 2 \(now 3\).*--out"):
        RowsFile(path, {"limit": 3, "tasks": "a"}, {})
    path.write_text(json.dumps({"task": "old"}) + "\n")
    with pytest.raises(DataError, match=r"line 1.*measure again"):
        read_rows(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_a_chunk_knows_its_own_answers(llm: LLM) -> None:
    prompts = load_task("mbpp", 2)
    rows = measured_rows(llm)
    own = [replace(m, task="t") for m in rows]
    assert chunk_of(prompts).own(own) == own
    assert chunk_of(prompts[1:]).own(own) == own[2:]
    assert not chunk_of(prompts, concurrency=8).own(own)
    assert not chunk_of(prompts, task="other").own(own)


def test_a_target_with_states_is_measured_as_any_other(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    config = flat(
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, max_position_embeddings=2048
    )
    save_and_load(tmp_path, Qwen3_5ForCausalLM, config, 0.1)
    tokenizer.save_pretrained(tmp_path)
    hybrid = LLM(str(tmp_path), dtype="float32")
    bench = OfflineBench(hybrid, choose_methods(["ngram"], [4], {}), GREEDY, [2])
    rows = aggregate(bench.measure(chunk_of(load_task("gsm8k", 2), concurrency=2)))
    assert [(row.method, row.num_equal) for row in rows] == [("AR", 2), ("n-gram", 2)]
    assert rows[0].itl_s is not None
    assert rows[0].num_rounds == rows[0].num_output_tokens - 2


def test_the_chat_template_is_told_of_thinking(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "chat_template", "{{ enable_thinking }}{{ messages[0].content }}")
    for thinking, said in (("on", "True"), ("off", "False"), ("default", "")):
        config = BenchConfig(thinking=thinking)  # type: ignore[arg-type]
        token_ids = llm.chat_token_ids(turn("hi"), **config.template)
        assert llm.tokenizer.decode(token_ids) == said + "hi"
        bench = OfflineBench(llm, methods(llm, [], []), GREEDY, template=config.template)
        assert bench.measure(chunk_of([BenchPrompt("p", ("hi",))]))[0].num_prompt_tokens == len(said) + 2
