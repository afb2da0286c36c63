"""When an answer is over: against the definition, read off the whole text, however its tokens come in blocks."""

import random

import pytest

from flashdraft.errors import UsageError
from flashdraft.sampling_params import SamplingParams
from flashdraft.stopping import Kept, StopCondition

TOKENS = (b"a", b"b", b"ab", b"ba", b"\xc3", b"\xa9", b"", b"aba")  # 4, 5: the halves of an é; 6: special
STOPS = ("a", "b", "ab", "ba", "aba", "é", "bé", "aab", "éa")


class Bytes:
    """A tokenizer of those."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return b"".join(TOKENS[token] for token in token_ids).decode(errors="replace")


def whole_characters(token_ids: list[int]) -> str:
    """What is certain of a text that goes on: no unfinished character, and nothing behind one."""
    told = ""
    for end in range(len(token_ids) + 1):
        text = Bytes().decode(token_ids[:end], skip_special_tokens=True)
        told = told if text.endswith("�") else text
    return told


def defined(params: SamplingParams, eos: set[int], max_tokens: int, token_ids: list[int]) -> list[Kept]:
    """What each token brings, until the answer is over; the text is all that was told so far."""
    kept: list[Kept] = []
    for num in range(1, len(token_ids) + 1):
        said, token = token_ids[:num], token_ids[num - 1]
        text, may_stop = whole_characters(said), num >= params.min_tokens
        every = Bytes().decode(said, skip_special_tokens=True)
        ends = {token: None for token in eos if not params.ignore_eos}
        ends |= {token: token for token in params.stop_token_ids if token not in ends}
        if may_stop and token in ends:
            before = Bytes().decode(said[:-1], skip_special_tokens=True)  # the end is no part of the text
            return [*kept, Kept(1, before, "stop", ends[token])]
        found = [
            (end, -len(stop), stop)
            for end in range(len(whole_characters(said[:-1])) + 1, len(text) + 1)
            for stop in params.stop_texts
            if may_stop and text[:end].endswith(stop)
        ]
        if found:
            end, length, stop = min(found)
            cut = end if params.include_stop_str_in_output else end + length
            return [*kept, Kept(1, text[:cut], "stop", stop)]
        if num == max_tokens:
            return [*kept, Kept(1, every, "length", None)]
        begun = [n for stop in params.stop_texts for n in range(1, len(stop)) if text.endswith(stop[:n])]
        kept.append(Kept(1, text[: len(text) - max(begun, default=0)], None, None))
    return kept


def drawn(rng: random.Random) -> tuple[SamplingParams, set[int], list[int]]:
    most = rng.randrange(1, 16)
    params = SamplingParams(
        max_tokens=most,
        min_tokens=rng.choice([0, 0, rng.randrange(most + 1)]),
        ignore_eos=rng.random() < 0.3,
        stop_token_ids=rng.choice([(), (), (2,), (3, 6)]),
        stop=rng.sample(STOPS, rng.randrange(4)),
        include_stop_str_in_output=rng.random() < 0.3,
    )
    eos = set(rng.choice([(), (), (6,), (2,)]))
    return params, eos, [rng.choice((0, 1, 2, 3, 4, 5, 4, 5, 6, 7)) for _ in range(15)]


def test_an_answer_is_what_its_definition_says_however_it_comes() -> None:
    rng, reasons = random.Random(0), set()
    for _ in range(600):
        params, eos, token_ids = drawn(rng)
        expected = defined(params, eos, params.max_tokens, token_ids)
        condition, at, told = StopCondition(params, eos, params.max_tokens, Bytes()), 0, ""
        while at < len(expected):
            size = rng.randrange(1, 6)
            kept = condition.push(token_ids[at : at + size])
            at, told = at + kept.num_tokens, told + kept.text
            last = expected[at - 1]
            what = f"{params}, {eos}, {token_ids}, {at}: {kept}, {last}"
            assert told == last.text, what
            assert (kept.finish_reason, kept.stop_reason) == (last.finish_reason, last.stop_reason), what
            assert kept.num_tokens == size or last.finish_reason or at == len(token_ids), what
        reasons.add((last.finish_reason, type(last.stop_reason)))
    assert len(reasons) == 4, "by a text, a token, an end token, the length"


def test_without_a_tokenizer_there_are_tokens_and_no_text() -> None:
    condition = StopCondition(SamplingParams(stop_token_ids=(7,)), [8], 4, None)
    assert condition.end_ids == {7, 8}
    assert condition.push([1, 2]) == Kept(2, "", None, None)
    assert condition.push([1, 7, 3]) == Kept(2, "", "stop", 7)
    with pytest.raises(UsageError) as refused:
        StopCondition(SamplingParams(stop="x"), [], 4, None)
    assert str(refused.value) == (
        "stop is ('x',), but there is no tokenizer to find it with; use stop_token_ids"
    )
