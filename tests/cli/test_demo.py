"""``flashdraft demo``: both answers, their figures, and an exit code that tells when they differ."""

import io
import re

import pytest
from rich.console import Console

from command_line import Run
from flashdraft import LLM, SamplingParams
from flashdraft.answer import RoundEvent
from flashdraft.cli.answer_stream import AnswerStream, Piece
from flashdraft.cli.demo_screen import LiveScreen


def test_plain_lines_where_there_is_no_terminal(run: Run, pair: list[str]) -> None:
    result = run("demo", "Hello", "[bold]Bye[/bold]", "--max-tokens", "16", *pair)
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "PROMPT: [bold]Bye[/bold]\n" in result.stdout
    plain, drafted = re.findall(r"^--- .*?tokens/s\n(.*?)\n\n", result.stdout, re.MULTILINE | re.DOTALL)[:2]
    text = LLM(pair[1], None).tokenizer.decode
    llm = LLM(pair[1], None, dtype="float32")
    output = llm.chat([{"role": "user", "content": "Hello"}], SamplingParams(temperature=0.0, max_tokens=16))
    assert plain == drafted == text(output[0].outputs[0].token_ids, skip_special_tokens=True).strip()
    assert len(re.findall(r"^Same tokens: all \d+; speed-up \d", result.stdout, re.MULTILINE)) == 2
    assert "the same tokens in 2 of 2 answers" in result.stdout


def test_its_own_prompts_are_the_benchmarks(run: Run, pair: list[str]) -> None:
    result = run("demo", "--max-tokens", "4", *pair)
    assert result.exit_code == 0
    assert result.stdout.count("PROMPT: ") == 3
    assert "Janet" in result.stdout


def test_a_wrong_token_is_reported_and_fails(
    run: Run, pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A broken rule of acceptance: everything drafted is kept.
    def keep_all(draft: list[int], wanted: list[int]) -> tuple[int, int]:
        return len(draft), wanted[-1]

    monkeypatch.setattr("flashdraft.engine.engine.verify", keep_all)
    result = run("demo", "Hello", "--max-tokens", "16", "--block-size", "4", *pair)
    assert result.exit_code == 1
    assert "WRONG: the tokens differ from token " in result.stdout


def test_live_panels_follow_the_end_of_a_long_text_and_keep_all_of_it_at_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flashdraft.cli.demo_screen._REDRAW_S", -1.0)
    screen_text = io.StringIO()
    console = Console(file=screen_text, force_terminal=True, width=60, height=12, highlight=False)
    screen = LiveScreen(console)
    screen.open("How?", ("plain decoding", "DFlash"))
    for word in range(40):
        screen.show(0, [Piece(f"plain{word} ", False)])
        screen.show(1, [Piece(f"kept{word} ", True), Piece(f"added{word} ", False)])
    screen.title(1, "9.9 tokens/s")
    live = screen_text.getvalue()
    assert max(len(frame.splitlines()) for frame in live.split("\x1b[2K")) <= 12
    assert "plain39" in live
    assert "added39" in live
    screen.close()
    final = screen_text.getvalue()[len(live) :]
    assert all(f"plain{word} " in final for word in range(40))
    assert "DFlash: 9.9 tokens/s" in final
    assert re.search(r"\x1b\[32mkept\d+", final)
    assert re.search(r"\x1b\[1;33madded\d+", final)


def test_the_clock_leaves_the_screen_out_and_colours_follow_acceptance(
    pair: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = LLM(pair[1], None).tokenizer
    shown: list[Piece] = []
    now = [0.0]
    monkeypatch.setattr("flashdraft.cli.answer_stream.perf_counter", lambda: now[0])

    def slow_screen(pieces: list[Piece]) -> None:
        now[0] += 100.0
        shown.extend(pieces)

    stream = AnswerStream(tokenizer, slow_screen)
    now[0] += 1.0
    stream.on_round(RoundEvent(tokenizer.encode("abcé"), num_drafted=5, num_accepted=2))
    now[0] += 0.5
    stream.on_round(RoundEvent(tokenizer.encode("🎉")[:2], num_drafted=5, num_accepted=2))
    stream.finish()
    assert (stream.num_tokens, stream.total_s) == (7, 1.5)
    found = [(piece.text, piece.is_accepted) for piece in shown]
    assert found == [("a", True), ("b", True), ("c", False), ("é", False), ("\ufffd", False)]
