"""``flashdraft chat``: turns, commands, and what is remembered."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import Result, Run
from flashdraft import LLM, SamplingParams
from flashdraft.answer import RoundEvent
from flashdraft.cli.answer_stream import AnswerStream

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


def test_a_system_prompt_opens_every_conversation(
    run: Run, pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = {"role": "system", "content": "You are a pirate."}
    asked = [system, {"role": "user", "content": "Hello"}]
    llm = LLM(pair[1], None, dtype="float32")
    [expected] = llm.chat(asked, SamplingParams(temperature=0.0, max_tokens=16))
    for options, lines in (
        (("--system", system["content"]), "Hello"),
        ((), f"/system {system['content']}\nHello"),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO(f"{lines}\n"))
        assert expected.outputs[0].text in run("chat", "--max-tokens", "16", *pair, *options).stdout
    assert expected.outputs[0].text != answers(pair, "Hello")[0]


def test_a_conversation_is_saved_with_its_system_prompt(talk: Talk, pair: list[str], tmp_path: Path) -> None:
    file = tmp_path / "chat.json"
    said = talk("/system Be brief.", "Hello", f"/save {file}", "/save", f"/save {tmp_path}").stdout
    first = answers(pair, "Hello")[0]
    saved = json.loads(file.read_text())
    assert [message["role"] for message in saved] == ["system", "user", "assistant"]
    assert saved[2]["content"] in said
    assert saved[2]["content"] != first
    assert "/save needs a file's name" in said
    assert "cannot be written" in said


def test_a_message_may_have_several_lines(talk: Talk, pair: list[str], tmp_path: Path) -> None:
    talk('"""one', "", 'two"""', '"""three"""', f"/save {tmp_path / 'chat.json'}")
    saved = [message["content"] for message in json.loads((tmp_path / "chat.json").read_text())]
    assert (saved[0], saved[2]) == ("one\n\ntwo", "three")
    assert [saved[1], saved[3]] == answers(pair, "one\n\ntwo", "three")


def test_an_answer_that_was_cut_is_marked(talk: Talk) -> None:
    assert "… cut after 16 tokens, by --max-tokens 16" in talk("Hello").stdout


def test_an_answer_that_the_context_has_cut_says_so(
    run: Run, pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 1990 + "\n"))
    result = run("chat", "--max-tokens", "100000", *pair)
    assert "--max-tokens is 100000, and the model's context holds 2048 tokens" in result.stderr
    assert re.search(r"cut after \d+ tokens, by the end of the model's context", result.stdout)


def interrupt_at(monkeypatch: pytest.MonkeyPatch, lines: list[str | None]) -> None:
    """Type ``lines``; None is Ctrl-C at the prompt."""
    left = iter(lines)

    def type_next(_prompt: str) -> str:
        line = next(left, "/quit")
        if line is None:
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", type_next)


def test_ctrl_c_at_the_prompt_keeps_the_conversation(
    run: Run, pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(monkeypatch, ["Hello", None, None, "And now?"])
    result = run("chat", "--max-tokens", "16", *pair)
    assert result.exit_code == 0
    assert result.stdout.count("the conversation is kept") == 2
    assert answers(pair, "Hello", "And now?")[1] in result.stdout


def test_ctrl_c_in_an_answer_keeps_what_came_and_counts_it(
    run: Run, pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = AnswerStream.on_round

    def interrupted(stream: AnswerStream, event: RoundEvent) -> None:
        pushed(stream, event)
        if stream.num_tokens > 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(AnswerStream, "on_round", interrupted)
    interrupt_at(monkeypatch, ["Hello", "/stats"])
    result = run("chat", "--max-tokens", "16", *pair)
    assert result.exit_code == 0
    assert "… stopped" in result.stdout
    found = re.search(r"answers 1 +tokens (\d+) .*\nrounds (\d+)", result.stdout)
    assert found
    assert 4 < int(found[1]) < 16
    assert int(found[2]) >= 1


def test_ctrl_c_behind_an_answer_keeps_the_conversation(
    run: Run, pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_num_tokens: int, _max_tokens: int) -> str:
        monkeypatch.undo()
        interrupt_at(monkeypatch, ["And now?"])
        raise KeyboardInterrupt

    monkeypatch.setattr("flashdraft.cli.chat.what_cut", interrupted)
    interrupt_at(monkeypatch, ["Hello"])
    result = run("chat", "--max-tokens", "16", *pair)
    assert result.exit_code == 0
    assert result.stdout.count("the conversation is kept") == 1
    assert answers(pair, "Hello", "And now?")[1] in result.stdout


def test_a_question_too_long_is_refused_and_the_chat_goes_on(talk: Talk, pair: list[str]) -> None:
    result = talk("x" * 3000, "Hello")
    assert result.exit_code == 0
    assert "/reset starts afresh" in result.stdout
    assert answers(pair, "Hello")[0] in result.stdout
