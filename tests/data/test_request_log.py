"""Logged requests: as our server writes them, and as other people's logs have them."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flashdraft.data.request_log import RequestLog, Requests, read_requests
from flashdraft.errors import DataError, UsageError
from tiny_pair import byte_tokenizer

TOKENIZER = byte_tokenizer()
END = TOKENIZER.eos_token_id
CHAT = [{"role": "user", "content": "Hi"}]


def read(folder: Path, *lines: object) -> Requests:
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_requests(folder / "log.jsonl", TOKENIZER, (END,))


def test_what_is_written_is_read_and_only_its_owner_may(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    for prompt in ([1, 2], [3]):  # opened twice: it is appended to
        log = RequestLog(file)
        log.write(CHAT, prompt, [4, 5], "length", 0.7)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = read_requests(file, TOKENIZER, (END,))
    assert [(doc.prompt_token_ids, doc.answer_token_ids) for doc in found.answered] == [
        ([1, 2], [4, 5]),
        ([3], [4, 5]),
    ]
    assert {(doc.temperature, doc.finish_reason) for doc in found.answered} == {(0.7, "length")}
    with pytest.raises(UsageError, match="cannot be written"):
        RequestLog(tmp_path / "nowhere" / "log.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        {"messages": [*CHAT, {"role": "assistant", "content": "Yes"}]},
        {"messages": CHAT, "choices": [{"message": {"content": "Yes"}}]},
        {"messages": CHAT, "response": {"choices": [{"message": {"content": "Yes"}}]}},
        {"prompt": "Hi", "answer": "Yes"},
    ],
)
def test_answers_of_every_form_are_tokenized_behind_the_template(
    tmp_path: Path, line: dict[str, object]
) -> None:
    [document] = read(tmp_path, line).answered
    expected = TOKENIZER.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    assert document.prompt_token_ids == expected
    assert document.answer_token_ids == [*TOKENIZER.encode("Yes"), END]
    [cut] = read(tmp_path, line | {"finish_reason": "length"}).answered
    assert cut.answer_token_ids == TOKENIZER.encode("Yes")


def test_equal_prompts_count_once_and_an_answer_wins(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        {"prompt": "Hi"},
        {"prompt": "Hi"},
        {"prompt": "Hi", "answer": "Yes"},
        {"prompt": "Hi", "answer": "No"},
        {"prompt": "Ho"},
    )
    assert [TOKENIZER.decode(doc.answer_token_ids[:-1]) for doc in found.answered] == ["Yes"]
    assert [prompt.messages[0]["content"] for prompt in found.unanswered] == ["Ho"]
    assert found.num_repeated == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "Hi"}, r"log.jsonl:1: found keys \['text'\]"),
        ({"prompt_token_ids": "12", "answer_token_ids": [1]}, "prompt_token_ids is no list"),
        ({"messages": CHAT, "choices": [{}]}, "not as OpenAI has them"),
        (
            {"messages": CHAT, "choices": [{"message": {"content": 5}}]},
            r"log.jsonl:1: choices\[0\].message.content is 5; expected a text, or leave it out",
        ),
        (
            {"prompt": "Hi", "answer": "Yes", "temperature": "warm"},
            "log.jsonl:1: temperature is 'warm'; expected a number, or leave it out",
        ),
        ({"prompt": "Hi", "temperature": [1]}, r"log.jsonl:1: temperature is \[1\]; expected a number"),
        ({"prompt": "Hi", "answer": 5}, "log.jsonl:1: answer is 5; expected a text"),
        ({"prompt": "Hi", "finish_reason": 5}, "log.jsonl:1: finish_reason is 5; expected a text"),
    ],
)
def test_lines_that_are_no_requests_are_told(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, line)
    with pytest.raises(DataError, match="no requests found"):
        read(tmp_path)


def write_one(log: RequestLog, text: str) -> None:
    log.write([{"role": "user", "content": text}], [1, 2], [3], "stop", 0.0)


@pytest.mark.parametrize(("end", "num_kept"), [("", 2), ("\n", 2), ('\n{"messages": [{"ro', 2), ("x", 1)])
def test_a_log_that_was_cut_off_goes_on_with_whole_lines(tmp_path: Path, end: str, num_kept: int) -> None:
    file = tmp_path / "log.jsonl"
    write_one(RequestLog(file), "a" * 100_000)
    file.write_text(file.read_text().rstrip("\n") + end)
    write_one(RequestLog(file), "b")
    lines = [json.loads(line)["messages"][0]["content"] for line in file.read_text().splitlines()]
    assert lines == ["a" * 100_000, "b"][-num_kept:]


def test_half_a_surrogate_pair_is_logged_as_json_has_it(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    write_one(RequestLog(file), "a\ud800é")
    assert json.loads(file.read_text())["messages"][0]["content"] == "a\ud800é"


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    """A limit of the file's size stands for the disk: a part of the line is written, then none."""
    program = f"""
import resource, signal
from pathlib import Path
from flashdraft.data.request_log import RequestLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = RequestLog(Path({str(tmp_path / "log.jsonl")!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for i in range(20):
    try:
        log.write([], [i] * 50, [3], "stop", 0.0)
    except OSError as error:
        print(i, error.strerror)
        break
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    number, _, reason = done.stdout.strip().partition(" ")
    assert reason in ("No space left on device", "File too large")
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert len([json.loads(line) for line in lines]) == int(number) > 0
