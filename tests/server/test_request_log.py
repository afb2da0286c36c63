"""The opt-in log: what was asked and answered, by token ids; nothing of answers that were cut off."""

import json
from pathlib import Path

import httpx2

from flashdraft.data.request_log import read_requests
from flashdraft.llm import LLM
from server_case import Running, serving


def ask(server: Running, text: str, **more: object) -> httpx2.Response:
    chat = [{"role": "user", "content": text}]
    return server.post("/v1/chat/completions", messages=chat, max_tokens=12, temperature=0, **more)


def test_answers_are_logged_by_their_token_ids(llm: LLM, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    with serving(llm, log_requests=file) as server:
        whole = ask(server, "one").json()
        ask(server, "two", stream=True)
        server.post("/v1/completions", prompt="three", max_tokens=5, temperature=0)
        assert ask(server, "", max_completion_tokens=-1).status_code == 400
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["messages"] for line in lines] == [
        [{"role": "user", "content": "one"}],
        [{"role": "user", "content": "two"}],
        [],
    ]
    first = lines[0]
    assert (
        llm.tokenizer.decode(first["answer_token_ids"], skip_special_tokens=True)
        == (whole["choices"][0]["message"]["content"])
    )
    found = read_requests(file, llm.tokenizer, llm.eos_token_ids)
    assert [len(document.answer_token_ids) for document in found.answered] == [12, 12, 5]
    prompts = [llm.chat_token_ids(line["messages"]) for line in lines[:2]]
    assert [document.prompt_token_ids for document in found.answered[:2]] == prompts


def test_nothing_is_logged_unless_asked(llm: LLM) -> None:
    with serving(llm) as server:
        ask(server, "one")
        assert server.service.request_log is None


def test_a_full_disk_stops_the_log_and_not_the_answers(llm: LLM) -> None:
    with serving(llm, log_requests=Path("/dev/full")) as server:
        assert ask(server, "one").status_code == 200
        assert ask(server, "two").status_code == 200
        assert server.service.request_log is None
