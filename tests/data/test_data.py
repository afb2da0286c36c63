"""Prompts, answers in a batch, and the folder they are kept in."""

import gzip
import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import flashdraft.data.on_policy as on_policy
from flashdraft.data.answerer import AnswerRequest
from flashdraft.data.engine_answers import EngineAnswers, rollout_config
from flashdraft.data.loader import Unfit, count_unfit, pack
from flashdraft.data.on_policy import Document, OnPolicyConfig, generate_answers, read_documents
from flashdraft.data.prompts import Prompt, read_prompts
from flashdraft.engine.engine import Engine
from flashdraft.errors import DataError
from flashdraft.generate import generate
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.train import run
from flashdraft.train.run import is_held_back
from toys import toy_hybrid, toy_target

TARGET = toy_target()
EOS = (5, 9)


class DigitTokenizer:
    """Reads "3 1 4" as token ids: what the data code needs of a tokenizer, without one on disk."""

    chat_template: str | None = "1 and the text"

    def apply_chat_template(self, messages: list[dict[str, str]], **kwargs: object) -> str:
        assert kwargs["add_generation_prompt"]
        return "1 " + " ".join(message["content"] for message in messages)

    def decode(self, token_ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(str(token) for token in token_ids if token not in EOS)

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        start = [7] if add_special_tokens else []
        return {"input_ids": [start + [int(word) for word in text.split()] for text in texts]}


def some_prompts(count: int, seed: int = 0) -> list[Prompt]:
    rng = random.Random(seed)
    contents = [" ".join(str(rng.randrange(97)) for _ in range(rng.randrange(1, 30))) for _ in range(count)]
    return [Prompt(f"p{i}", "toy", ({"role": "user", "content": text},)) for i, text in enumerate(contents)]


@pytest.mark.parametrize("make_target", [toy_target, toy_hybrid])
def test_answers_of_a_batch_are_those_of_one_stream(make_target: Callable[[], TargetModel]) -> None:
    """Also where a layer keeps a state: neither padding nor the answer that had the row before reaches it."""
    rng, target = random.Random(0), make_target()
    requests = [
        AnswerRequest(i, [rng.randrange(97) for _ in range(rng.choice([rng.randrange(1, 30), 70]))], 0.0)
        for i in range(25)
    ]
    answerer = EngineAnswers(Engine(target, None, rollout_config(7, 110), EOS), 40)
    answers = {a.key: a for part in answerer.run(requests) for a in part}
    assert sorted(answers) == list(range(25))
    for request in requests:
        params = SamplingParams(temperature=0.0, max_tokens=40)
        expected = generate(target, None, request.token_ids, params, eos_token_ids=EOS)
        assert answers[request.key].token_ids == expected.token_ids
        assert answers[request.key].finish_reason == expected.finish_reason


def test_temperature_draws_and_a_seed_repeats() -> None:
    request = [AnswerRequest(0, [1, 2, 3], 1.0)]

    def answer(seed: int) -> list[int]:
        parts = EngineAnswers(Engine(TARGET, None, rollout_config(1, 38)), 30, seed).run(request)
        return [token for part in parts for one in part for token in one.token_ids]

    assert answer(1) == answer(1) != answer(2)


def answerer(config: OnPolicyConfig) -> Callable[[int], EngineAnswers]:
    longest = config.max_prompt_len + config.max_new_tokens
    engine = Engine(TARGET, None, rollout_config(config.num_rows, longest), EOS)
    return lambda seed: EngineAnswers(engine, config.max_new_tokens, seed)


def make(folder: Path, prompts: list[Prompt], **changes: Any) -> None:
    settings = {"target": "toy", "max_prompt_len": 24, "max_new_tokens": 20, "num_rows": 4, **changes}
    config = OnPolicyConfig(**settings)
    generate_answers(answerer(config), DigitTokenizer(), prompts, config, folder)


def test_without_a_chat_template_prompts_are_texts_to_go_on_with(tmp_path: Path) -> None:
    tokenizer = DigitTokenizer()
    config = OnPolicyConfig(target="toy", temperatures=(0.0,), max_new_tokens=8, num_rows=2)
    for name, template, first in (("chat", "yes", 1), ("base", None, 7)):
        tokenizer.chat_template = template
        generate_answers(answerer(config), tokenizer, some_prompts(2), config, tmp_path / name)
        told = [" ".join(map(str, doc.prompt_token_ids)) for doc in read_documents(tmp_path / name)]
        assert sorted(told) == sorted(
            f"{first} {prompt.messages[0]['content']}" for prompt in some_prompts(2)
        )


@pytest.mark.parametrize("content", ["", '{"config": {"temp', "[]", '{"config": 3}'])
def test_a_manifest_that_was_cut_is_told_with_the_mend(tmp_path: Path, content: str) -> None:
    make(tmp_path, some_prompts(2))
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read .*; give another folder, or remove"):
        make(tmp_path, some_prompts(2))
    with pytest.raises(DataError, match=r"manifest\.json: cannot be read .*; expected the manifest"):
        on_policy.read_config(tmp_path)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_policy, "ANSWERS_PER_SHARD", 5)
    prompts = some_prompts(20)
    fitting = [p for p in prompts if len(p.messages[0]["content"].split()) + 1 <= 24]
    assert len(fitting) < 20
    make(tmp_path, prompts[:8])
    first = {shard.name: shard.read_bytes() for shard in tmp_path.glob("*.parquet")}
    make(tmp_path, prompts)
    for name, content in first.items():
        assert (tmp_path / name).read_bytes() == content
    documents = read_documents(tmp_path)
    assert sorted((d.id, round(d.temperature, 2)) for d in documents) == sorted(
        (p.id, t) for p in fitting for t in (0.0, 0.7)
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["num_too_long"] == 20 - len(fitting)
    greedy = next(d for d in documents if d.temperature == 0)
    params = SamplingParams(temperature=0.0, max_tokens=20)
    assert (
        greedy.answer_token_ids
        == generate(TARGET, None, greedy.prompt_token_ids, params, eos_token_ids=EOS).token_ids
    )


def test_without_a_terminal_lines_tell_how_many_answers_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_policy, "SECONDS_PER_LINE", 0)
    make(tmp_path, some_prompts(3), max_prompt_len=200)
    lines = re.findall(r"^(\d) of 6 answers, [\d,]+ tokens/s$", capsys.readouterr().out, re.MULTILINE)
    assert lines[-1] == "6"


def test_a_deleted_shard_is_remade_and_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_policy, "ANSWERS_PER_SHARD", 1)
    make(tmp_path, some_prompts(6), max_prompt_len=200, num_rows=1)
    before = {doc.id for doc in read_documents(tmp_path)}
    shards = sorted(tmp_path.glob("*.parquet"))
    assert len(shards) >= 3
    shards[1].unlink()
    make(tmp_path, some_prompts(6), max_prompt_len=200, num_rows=1)
    documents = read_documents(tmp_path)
    assert {doc.id for doc in documents} == before
    assert len(documents) == 2 * len(before)


def test_a_first_turn_that_is_answered_anew_costs_no_later_turn(tmp_path: Path) -> None:
    """Drawn again it is another answer; the later turns' stand behind the old one, which they hold themselves."""
    prompts = [replace(prompt, next_turns=("3 4",)) for prompt in some_prompts(3)]
    settings = {"temperatures": (0.7,), "max_prompt_len": 90}
    make(tmp_path, prompts, **settings)
    first, later = sorted(tmp_path.glob("*.parquet"))
    kept = later.read_bytes()
    first.unlink()
    make(tmp_path, prompts, **settings)
    assert len(read_documents(tmp_path)) == 6
    assert later.read_bytes() == kept
    with pytest.raises(DataError, match="3 prompts have changed"):
        make(tmp_path, [replace(prompt, next_turns=("3 5",)) for prompt in prompts], **settings)


def test_a_prompt_that_has_changed_is_not_taken_for_answered(tmp_path: Path) -> None:
    make(tmp_path, some_prompts(3), max_prompt_len=200)
    make(tmp_path, some_prompts(4), max_prompt_len=200)  # one more: the others stay
    with pytest.raises(
        DataError, match="4 prompts have changed since they were answered, p0 first; give another"
    ):
        make(tmp_path, some_prompts(4, seed=1), max_prompt_len=200)


def test_other_settings_and_damage_are_told(tmp_path: Path) -> None:
    make(tmp_path, some_prompts(3))
    with pytest.raises(DataError, match="max_new_tokens = 20, now it is 21"):
        make(tmp_path, some_prompts(3), max_new_tokens=21)
    shard = next(tmp_path.glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged shard"):
        read_documents(tmp_path)
    with pytest.raises(DataError, match="no answers-"):
        read_documents(tmp_path / "nowhere")


def test_equal_conversations_are_answered_once(tmp_path: Path) -> None:
    [one] = some_prompts(1)
    several = [one, Prompt("again", "toy", one.messages), Prompt("on", "toy", one.messages, ("3",))]
    make(tmp_path, several, max_prompt_len=200)
    assert {doc.id for doc in read_documents(tmp_path)} == {one.id, "on", "on+"}
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["num_prompts"], manifest["num_repeated"]) == (3, 1)
    assert manifest["runs"][0]["answered_by"] == "flashdraft's engine"


def test_later_turns_stand_behind_the_targets_own_answers(tmp_path: Path) -> None:
    said = ({"role": "user", "content": "3 4"},)
    prompts = [Prompt("talk", "toy", said, ("8", "11 12")), Prompt("one", "toy", said)]
    make(tmp_path, prompts, max_prompt_len=400, temperatures=(0.0, 0.7))
    make(tmp_path, prompts, max_prompt_len=400, temperatures=(0.0, 0.7))  # nothing is left to do
    documents = {(doc.id, doc.temperature > 0): doc for doc in read_documents(tmp_path)}
    assert len(documents) == 8
    for sampled in (False, True):
        history = [1, 3, 4]
        for name, said_next in (("talk", [8]), ("talk+", [11, 12]), ("talk++", [])):
            document = documents[name, sampled]
            assert document.prompt_token_ids == history
            answer = [token for token in document.answer_token_ids if token not in EOS]
            history = history + answer + said_next


def test_turns_of_a_conversation_are_held_back_together() -> None:
    documents = [Document(f"p{i}" + "+" * turn, "", 0.0, [], [], "") for i in range(300) for turn in range(3)]
    held_back = {doc.id for doc in documents if is_held_back(doc)}
    assert 0 < len(held_back) < 60
    assert all(name.rstrip("+") + "+" * turn in held_back for name in held_back for turn in range(3))


def test_prompts_of_every_form_are_read(tmp_path: Path) -> None:
    (tmp_path / "a-plain.jsonl").write_text(
        '{"prompt": "hello", "id": 7}\n\n{"turns": ["first", "second"]}\n'
    )
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write('{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}\n')
    prompts = read_prompts(tmp_path)
    assert [(p.id, p.source, p.messages[-1]["content"], p.next_turns) for p in prompts] == [
        ("a-plain/7", "a-plain", "hello", ()),
        ("a-plain/3", "a-plain", "first", ("second",)),
        ("b/1", "b", "u", ()),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object"),
        ("[1]", "found a JSON list"),
        ('{"question": "?"}', r"found keys \['question'\]; expected a text"),
        ('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": 1}', "stands twice"),
    ],
)
def test_bad_prompts_are_told(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path)


def test_no_prompts_and_nothing_to_train_on_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prompts found"):
        read_prompts(tmp_path)
    with pytest.raises(DataError, match="answer of 2 tokens"):
        pack([], 128)


def test_what_packing_leaves_out_and_cuts_is_counted() -> None:
    lengths = [(126, 2), (126, 3), (127, 2), (200, 9), (3, 1), (3, 125), (3, 126)]  # of prompts and answers
    documents = [
        Document(str(i), "", 0.0, [5] * prompt, [6] * answer, "stop")
        for i, (prompt, answer) in enumerate(lengths)
    ]
    assert count_unfit(documents, 128) == Unfit(num_long_prompts=2, num_short_answers=1, num_cut=2)
    packed = pack(documents, 128)
    assert len(packed) == 4
    assert int(packed.is_anchor.sum()) == 1 + 1 + 124 + 124


def test_any_part_of_the_prompts_has_its_share_for_validation(tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"{number:05d}", "prompt": str(number)}) for number in range(8000)]
    (tmp_path / "asked.jsonl").write_text("\n".join(lines))
    asked = read_prompts(tmp_path / "asked.jsonl")
    chosen = run.some_prompts(asked, 1000)
    held_back = [one for one in chosen if is_held_back(Document(one.id, "", 0.0, [], [], "stop"))]
    assert 8 < len(held_back) < 36  # 2 %, within three standard deviations
    assert run.some_prompts(asked, 100) == chosen[:100]
