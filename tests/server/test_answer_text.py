"""Text out of tokens: whole characters, nothing shown that a stop text may still take back."""

from collections.abc import Sequence

import pytest

from flashdraft.engine.types import StepOutput
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.answer_text import AnswerPieces, AnswerText
from flashdraft.stopping import StopCondition
from server_case import Running
from tiny_pair import byte_tokenizer

TOKENIZER = byte_tokenizer()


def steps(text: str, stop_texts: Sequence[str]) -> tuple[list[str], int]:
    """What is shown after each token (a byte), the last one with the end; how many tokens count."""
    ids = TOKENIZER.encode(text)
    stop = StopCondition(SamplingParams(stop=stop_texts, max_tokens=99), [], len(ids), TOKENIZER)
    answer, shown = AnswerText(TOKENIZER), []
    for token in ids:
        kept = stop.push([token])
        answer.push(token, "plain")
        pieces = answer.end(kept.text) if kept.finish_reason else answer.release(kept.text)
        shown.append("".join(piece.text for piece in pieces))
        if kept.finish_reason:
            break
    return shown, len(shown)


@pytest.mark.parametrize(
    ("text", "stop_texts", "shown"),
    [
        ("abc", [], ["a", "b", "c"]),
        ("é", [], ["", "é"]),
        ("abXc", ["XY"], ["a", "b", "", "Xc"]),  # held while it might have been the stop
        ("aXX", ["XXX"], ["a", "", "XX"]),  # never came: the end gives it back
        ("aXXYb", ["XY"], ["a", "", "X", ""]),
        ("abXYc", ["XY", "bX"], ["a", "", ""]),  # bX is complete first
        ("xabcd", ["bc", "abcd"], ["x", "", "", "a"]),  # bc is complete first, though abcd began before it
        ("ééz", ["éz"], ["", "", "", "é", ""]),
        ("aé", ["!"], ["a", "", "é"]),
    ],
)
def test_what_is_shown_when(text: str, stop_texts: Sequence[str], shown: list[str]) -> None:
    assert steps(text, stop_texts)[0] == shown


def test_tokens_count_up_to_the_one_that_completed_the_stop() -> None:
    assert steps("abXYcd", ["XY"])[1] == 4


def test_an_unfinished_character_is_given_at_the_end() -> None:
    answer = AnswerText(TOKENIZER)
    answer.push(TOKENIZER.encode("é")[0], "bonus")
    assert answer.release("") == []
    assert "".join(piece.text for piece in answer.end("\ufffd")) == "\ufffd"


def test_a_stop_text_within_a_block_ends_counts_and_text_alike_here_and_offline(
    llm: LLM, running: Running
) -> None:
    """Every count behind a stop text is of what was delivered, at the server as in ``LLM.generate``."""
    prompt = "abcabcabcabc"
    free = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=40))[0].outputs[0].text
    stops = [
        free[at : at + 2] for at in range(5, 30, 3) if free[at : at + 2].strip() and "\ufffd" not in free
    ]
    before = running.get("/metrics").text
    num_tokens = num_accepted = 0
    for stop in stops or ["!!"]:
        params = SamplingParams(temperature=0, max_tokens=40, stop=stop)
        [offline] = llm.generate(prompt, params)[0].outputs
        body = {"prompt": prompt, "temperature": 0, "max_tokens": 40, "stop": stop, "block_size": 8}
        told = running.post("/v1/completions", **body, return_meta_info=True, return_token_ids=True).json()
        choice, usage = told["choices"][0], told["usage"]
        assert (choice["text"], choice["finish_reason"]) == (offline.text, offline.finish_reason)
        assert choice["token_ids"] == offline.token_ids
        assert usage["completion_tokens"] == len(offline.token_ids)
        accepted = usage["completion_tokens_details"]["accepted_prediction_tokens"]
        assert accepted < len(offline.token_ids)
        rounds = choice["meta_info"]["spec_verify_ct"]
        assert choice["meta_info"]["spec_accept_length"] == (len(offline.token_ids) - 1) / max(rounds, 1)
        num_tokens, num_accepted = num_tokens + len(offline.token_ids), num_accepted + accepted
    after = running.get("/metrics").text
    assert counted(after, "generation_tokens") - counted(before, "generation_tokens") == num_tokens
    name = "spec_decode_num_accepted_tokens"
    assert counted(after, name) - counted(before, name) == num_accepted


def counted(text: str, name: str) -> float:
    [line] = [one for one in text.splitlines() if one.startswith(f"flashdraft:{name}_total{{")]
    return float(line.split()[-1])


def test_pieces_are_the_same_whenever_they_are_asked_for() -> None:
    ids = TOKENIZER.encode("aéXbé!")
    texts = ["a", "", "éX", "b", "", "é!"]
    at = [0, 1, 2, 4, 5, 6, 8]
    steps = [
        StepOutput("", ids[at[i] : at[i + 1]], text, num_drafted=i % 2, num_accepted=i % 2, finished=i == 5)
        for i, text in enumerate(texts)
    ]
    early, late = AnswerPieces(TOKENIZER), AnswerPieces(TOKENIZER)
    told = [early.of_step(early.take(step)) for step in steps]
    numbers = [late.take(step) for step in steps]
    assert [late.of_step(number) for number in numbers] == told
    assert late.all() == early.all() == [piece for pieces in told for piece in pieces]
    assert ["".join(piece.text for piece in pieces) for pieces in told] == texts
    assert [piece.token_id for piece in late.all()] == ids
    assert {piece.origin for piece in late.all()} == {"plain", "accepted", "bonus"}
