"""``flashdraft chat``: turns, commands, and what is remembered."""

import io
import re
from collections.abc import Callable

import pytest

from command_line import Result, Run
from flashdraft import LLM, SamplingParams

Talk = Callable[..., Result]


@pytest.fixture
def talk(run: Run, pair: list[str], monkeypatch: pytest.MonkeyPatch) -> Talk:
    """Type some lines into a chat."""

    def type_lines(*lines: str) -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run("chat", "--max-tokens", "16", *pair)

    return type_lines


def answers(pair: list[str], *questions: str) -> list[str]:
    llm = LLM(pair[1], None, dtype="float32")
    messages: list[dict[str, str]] = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        output = llm.chat(messages, SamplingParams(temperature=0.0, max_tokens=16))[0]
        messages.append({"role": "assistant", "content": output.outputs[0].text})
    return [message["content"] for message in messages[1::2]]


def test_each_answer_follows_the_conversation_so_far(talk: Talk, pair: list[str]) -> None:
    first, second = answers(pair, "Hello", "And now?")
    said = talk("Hello", "And now?", "/quit", "never read").stdout
    assert said.index(first) < said.index(second)
    assert second not in talk("And now?").stdout


def test_reset_forgets(talk: Talk, pair: list[str]) -> None:
    said = talk("Hello", "/reset", "And now?").stdout
    assert answers(pair, "And now?")[0] in said
    assert answers(pair, "Hello", "And now?")[1] not in said


def test_stats_add_up_the_answers(talk: Talk) -> None:
    result = talk("/stats", "Hello", "", "Again", "/stats")
    assert "There is no answer yet." in result.stdout
    found = re.search(r"answers (\d+) +tokens (\d+) +tokens/s \d", result.stdout)
    assert found
    assert (int(found[1]), int(found[2]) <= 32) == (2, True)
    assert re.search(r"acceptance length \d\.\d\d", result.stdout)


def test_help_and_a_slip(talk: Talk) -> None:
    said = talk("/help", "/sats").stdout
    assert said.count("/reset") == 3  # at the start, asked for, and after the slip
    assert "There is no command /sats" in said


def test_a_question_too_long_is_refused_and_the_chat_goes_on(talk: Talk, pair: list[str]) -> None:
    result = talk("x" * 3000, "Hello")
    assert result.exit_code == 0
    assert "/reset starts afresh" in result.stdout
    assert answers(pair, "Hello")[0] in result.stdout
