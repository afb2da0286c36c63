"""Training answers from a server: its own process, and one that fails, refuses and tells texts alone."""

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import patient
from command_line import Result, Run
from flashdraft.checkpoint.load import eos_token_ids, load_target, load_tokenizer, training_notes
from flashdraft.data.answerer import AnswerRequest, PromptAnswer
from flashdraft.data.on_policy import Document, read_documents
from flashdraft.data.server_answers import ServerAnswers
from flashdraft.errors import DataError
from flashdraft.generate import generate
from flashdraft.sampling_params import SamplingParams
from server_process import server_process
from web_page import Front, serving, web_page


@pytest.fixture(scope="module")
def url(pair: list[str]) -> Iterator[str]:
    with server_process(pair) as (_, url):
        yield url


@contextlib.contextmanager
def poor_server(url: str, num_failures: int) -> Iterator[str]:
    """Another server in front of a real one: fails at first, and knows nothing of token ids."""
    failures = [503] * num_failures

    class Poor(Front):
        def do_POST(self) -> None:  # noqa: N802 - the name that http.server looks for
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if failures:
                self.tell(failures.pop(), b"{}")
            elif "return_token_ids" in body:
                self.tell(400, b'{"error": "return_token_ids is unknown"}')
            else:
                told = patient.post(url + self.path, json=body)
                self.tell(told.status_code, told.content)

    with serving(Poor) as poor:
        yield poor


def train(run: Run, pair: list[str], out: Path, prompts: Path, url: str, *more: str) -> Result:
    return run(
        "train", "--model", pair[1], "--prompts", str(prompts), "--out", str(out), "--rollout-url", url,
        "--max-new-tokens", "16", "--temperature", "0", *more,
    )  # fmt: skip


def expected(pair: list[str], document: Document) -> list[int]:
    target = load_target(pair[1], dtype="float32")
    params = SamplingParams(max_tokens=16, temperature=0)
    prompt = document.prompt_token_ids
    return generate(target, None, prompt, params, eos_token_ids=eos_token_ids(pair[1])).token_ids


def test_answers_of_a_server_are_the_targets_and_are_not_asked_for_twice(
    run: Run, pair: list[str], url: str, tmp_path: Path
) -> None:
    prompts = tmp_path / "p.jsonl"
    lines = [{"turns": ["Say one", "And two?"]}, *({"prompt": f"Tell {i}"} for i in range(60))]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "run"
    first = train(run, pair, out, prompts, url, "--answers-only", "--limit", "20", "--answer-rows", "4")
    assert first.exit_code == 0, first.stderr
    shape = ("--block-size", "4", "--seq-len", "256", "--rows-per-step", "1", "--num-features", "2")
    small = (
        *shape,
        "--blocks-per-row",
        "32",
        "--total-blocks",
        "32",
        "--no-thinking",
        "--served-prompts",
        "0",
    )
    told = train(run, pair, out, prompts, url, *small)
    assert "made with chat_template_kwargs" in told.stderr
    second = train(run, pair, tmp_path / "other", prompts, url, *small)
    assert second.exit_code == 0, second.stderr
    assert training_notes(tmp_path / "other" / "drafter") == {
        "chat_template_kwargs": {"enable_thinking": False}
    }
    documents = read_documents(tmp_path / "other" / "answers")
    assert len(documents) == 62
    for document in documents[::20]:
        assert document.answer_token_ids == expected(pair, document)
    manifest = json.loads((tmp_path / "other" / "answers" / "manifest.json").read_text())
    assert [one["token_ids_told"] for one in manifest["runs"]] == [61, 1]
    assert manifest["runs"][0]["answered_by"] == url


def test_a_poor_server_is_asked_again_and_its_texts_are_tokenized(pair: list[str], url: str) -> None:
    tokenizer, ends = load_tokenizer(pair[1]), eos_token_ids(pair[1])
    prompt = tokenizer.encode("Say one")
    with poor_server(url, num_failures=2) as front:
        answers = ServerAnswers(front, tokenizer, ends, 16, 1, model="tiny", pause_s=0.01)
        [[answer]] = answers.run([AnswerRequest(7, prompt, 0.0)])
    [[exact]] = ServerAnswers(url, tokenizer, ends, 16, 1).run([AnswerRequest(7, prompt, 0.0)])
    told = "".join(tokenizer.convert_ids_to_tokens(answer.token_ids))
    assert isinstance(answer, PromptAnswer)
    assert tokenizer.decode(answer.token_ids) == tokenizer.decode(exact.token_ids), told
    counts = {name: answers.facts[name] for name in ("token_ids_told", "tokenized_anew", "of_another_length")}
    assert sum(counts.values()) == 1
    assert counts["token_ids_told"] == 0


@pytest.mark.parametrize(("model", "part"), [(None, "without models"), ("m", "without choices")])
def test_a_server_of_web_pages_is_told(pair: list[str], model: str | None, part: str) -> None:
    with web_page() as url, pytest.raises(DataError, match=f"a page {part}.*mend --rollout-url"):
        list(
            ServerAnswers(url, load_tokenizer(pair[1]), (), 4, 1, model=model).run(
                [AnswerRequest(0, [1], 0.0)]
            )
        )


def test_answers_come_where_an_event_loop_runs_already(pair: list[str], url: str) -> None:
    """As in a notebook, whose cells run within one."""
    tokenizer, ends = load_tokenizer(pair[1]), eos_token_ids(pair[1])
    asked = [AnswerRequest(key, tokenizer.encode(f"Say {key}"), 0.0) for key in range(4)]

    def answers() -> Iterator[list[PromptAnswer]]:
        return ServerAnswers(url, tokenizer, ends, 8, 2).run(asked)

    def by_key(every: Iterator[list[PromptAnswer]]) -> dict[int, list[int]]:
        return {one.key: one.token_ids for some in every for one in some}

    async def cell() -> dict[int, list[int]]:
        found, left = by_key(answers()), answers()
        next(left)
        left.close()  # type: ignore[attr-defined]
        with pytest.raises(DataError, match="mend --rollout-url"):
            next(ServerAnswers("http://127.0.0.1:9", tokenizer, (), 4, 1, pause_s=0.001).run(asked))
        return found

    before = threading.active_count()
    assert asyncio.run(cell()) == by_key(answers())
    assert threading.active_count() <= before


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_answers_that_are_under_way(pair: list[str]) -> None:
    came, left = threading.Event(), threading.Event()

    class Slow(Front):
        def do_POST(self) -> None:  # noqa: N802 - the name that http.server looks for
            self.rfile.read(int(self.headers["Content-Length"]))
            came.set()
            self.connection.settimeout(20)
            with contextlib.suppress(TimeoutError):
                if not self.connection.recv(1):
                    left.set()

    def interrupt() -> None:
        came.wait()
        os.kill(os.getpid(), signal.SIGINT)

    with serving(Slow) as url:
        answers = ServerAnswers(url, load_tokenizer(pair[1]), (), 4, 2, model="m")
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            list(answers.run([AnswerRequest(key, [1], 0.0) for key in range(3)]))
        assert left.wait(20), "the server hears of it"


def test_a_server_that_is_not_there_is_told(pair: list[str], url: str) -> None:
    tokenizer = load_tokenizer(pair[1])
    with pytest.raises(DataError, match="mend --rollout-url"):
        list(ServerAnswers("http://127.0.0.1:9", tokenizer, (), 4, 1, pause_s=0.001).run([]))
    wrong = ServerAnswers(url, tokenizer, (), 4, 1, model="other", pause_s=0.001)
    with pytest.raises(DataError, match=r"status 404: .*there is no model 'other'"):
        list(wrong.run([AnswerRequest(0, [1], 0.0)]))
