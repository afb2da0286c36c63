"""Chat data as it lies on the hub: what the target sees of it, and what is said of rows that cannot be asked."""

import gzip
import json
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from flashdraft.data.conversations import parse_conversation
from flashdraft.data.on_policy import Document
from flashdraft.data.prompts import collect_prompts, encode_prompts, group_of, prompt_text, read_prompts
from flashdraft.errors import DataError
from flashdraft.train.run import is_held_back
from tiny_pair import TOOLS_TEMPLATE, byte_tokenizer

Row = dict[str, Any]
TOKENIZER = byte_tokenizer()
TOKENIZER.chat_template = TOOLS_TEMPLATE


def said(role: str, content: str) -> Row:
    return {"role": role, "content": content}


SYSTEM, ASK, ANSWER = said("system", "Be terse."), said("user", "Capital?"), said("assistant", "Paris.")
MORE, MORE_ANSWER = said("user", "And of Spain?"), said("assistant", "Madrid.")
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "find", "arguments": '{"q": "x"}'}}],
}
FOUND = {"role": "tool", "tool_call_id": "a", "content": "42"}
TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
# What templates read: the arguments as a mapping, no content that is null.
CALLED = CALL | {
    "content": "",
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "find", "arguments": {"q": "x"}}}],
}


def turns(*pairs: str) -> list[Row]:
    return [dict(zip(("from", "value"), pair.split(":"), strict=True)) for pair in pairs]


@pytest.mark.parametrize(
    ("row", "seen", "tools"),
    [
        ({"prompt": "Capital?", "messages": [ASK, ANSWER, MORE, MORE_ANSWER]}, [ASK, ANSWER, MORE], None),
        ({"messages": [SYSTEM, ASK, ANSWER]}, [SYSTEM, ASK], None),
        ({"messages": [SYSTEM, ASK]}, [SYSTEM, ASK], None),
        ({"messages": [ASK, ANSWER, MORE]}, [ASK, ANSWER, MORE], None),
        ({"messages": [ASK, ANSWER, MORE_ANSWER]}, [ASK], None),
        ({"conversations": turns("system:Be terse.", "human:Capital?", "gpt:Paris.")}, [SYSTEM, ASK], None),
        ({"system": "Be terse.", "conversations": turns("human:Capital?", "gpt:x")}, [SYSTEM, ASK], None),
        ({"conversation": [ASK, ANSWER]}, [ASK], None),
        ({"prompt": [SYSTEM, ASK], "completion": [ANSWER]}, [SYSTEM, ASK], None),
        ({"instruction": "Capital?", "input": "", "output": "Paris."}, [ASK], None),
        ({"messages": [ASK, CALL, FOUND, ANSWER], "tools": TOOLS}, [ASK, CALLED, FOUND], TOOLS),
        ({"messages": [ASK, CALL, FOUND, ANSWER], "tools": json.dumps(TOOLS)}, [ASK, CALLED, FOUND], TOOLS),
        ({"messages": [ASK, CALL], "tools": TOOLS}, [ASK], TOOLS),
        (
            {
                "conversations": [
                    *turns("human:Capital?"),
                    {"from": "function_call", "value": '{"name": "find", "arguments": {"q": "x"}}'},
                    *turns("observation:42", "gpt:Paris."),
                ],
                "tools": json.dumps([TOOLS[0]["function"]]),
            },
            [ASK, CALLED, FOUND],
            TOOLS,
        ),
        ({"messages": [said("user", "x") | {"content": [{"type": "text", "text": "Capital?"}]}]}, [ASK], None),
    ],
)  # fmt: skip
def test_the_target_sees_the_conversation_without_its_last_answer(
    row: Row, seen: list[Row], tools: list[Row] | None, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    [prompt] = read_prompts(tmp_path)
    named = {} if tools is None else {"tools": tools}
    expected = TOKENIZER.apply_chat_template(seen, add_generation_prompt=True, tokenize=False, **named)
    assert prompt_text(TOKENIZER, prompt, {}) == expected
    assert encode_prompts(TOKENIZER, [prompt], {}) == [TOKENIZER.encode(expected, add_special_tokens=False)]


def test_which_answers_are_made_anew_is_a_choice() -> None:
    row = {"messages": [SYSTEM, ASK, ANSWER, MORE, MORE_ANSWER]}
    last, every, none = (parse_conversation(row, choice) for choice in ("last", "all", "none"))
    assert (list(last.messages), last.next_turns) == ([SYSTEM, ASK, ANSWER, MORE], ())
    assert (last.num_left_out, last.num_kept) == (1, 1)
    assert (list(every.messages), every.next_turns) == ([SYSTEM, ASK], (MORE["content"],))
    assert (every.num_left_out, every.num_kept) == (2, 0)
    assert (list(none.messages), none.num_left_out, none.num_kept) == (row["messages"], 0, 2)
    called = parse_conversation({"messages": [ASK, CALL, FOUND, ANSWER]}, "all")
    assert (list(called.messages), called.num_kept) == ([ASK, CALLED, FOUND], 1)


BAD_ROWS: list[tuple[Any, str]] = [
    ("{", "not a JSON object"),
    ("[1]", "found a JSON list; expected an object"),
    ('"text"', "found a JSON str"),
    ({"question": "?"}, "found keys ['question']; expected a text under prompt"),
    ({"prompt": ""}, "expected a text under prompt"),
    ({"prompt": 7}, "expected a text under prompt"),
    ({"turns": []}, "expected a text under prompt"),
    ({"turns": ["a", 1]}, "expected a text under prompt"),
    ({"messages": []}, "messages is an empty list"),
    ({"messages": "Hi"}, "messages is a text; expected a list of messages"),
    ({"messages": ["Hi"]}, "messages[0] is a text; expected an object with role and content"),
    ({"messages": [{"content": "Hi"}]}, "messages[0] has no role; expected one of system, user"),
    ({"messages": [said("critic", "Hi")]}, "messages[0] has the role 'critic'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content is null; expected a text"),
    ({"messages": [said("user", " ")]}, "messages[0].content is empty"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content is a number"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "content[0] is 'image'; expected parts"),
    ({"messages": [SYSTEM]}, "messages has no message of the user"),
    ({"messages": [ANSWER]}, "messages has no message of the user"),
    ({"messages": [ASK, SYSTEM]}, "messages[1] is the last to be answered and of role system"),
    ({"messages": [ASK, {"role": "assistant"}]}, "messages[1].content is null"),
    ({"messages": [ASK, ANSWER | {"tool_calls": "find"}]}, "messages[1].tool_calls is a text"),
    ({"messages": [ASK, ANSWER | {"tool_calls": [{"function": {}}]}]}, "expected a function's name and arguments"),
    (
        {"messages": [ASK, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
        "tool_calls[0].arguments is a text that is no JSON",
    ),
    ({"messages": [ASK], "tools": "find"}, "tools is a text that is no JSON"),
    ({"messages": [ASK], "tools": ["find"]}, "tools is a list; expected a list of tools"),
    ({"conversations": [{"from": "alien", "value": "Hi"}]}, "conversations[0] has the role 'alien'"),
    ({"conversations": [{"from": "human"}]}, "conversations[0].value is null"),
    ({"prompt": "Hi", "source": 3}, "source is 3; expected a text"),
    ({"prompt": "again", "id": "good"}, "the id 'rows/good' stands twice, first at"),
    ('{"prompt": "a \\ud800"}', "prompt is not valid Unicode"),
]  # fmt: skip


def test_each_bad_row_is_one_line_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row, _ in BAD_ROWS]
    file.write_text(
        "\n".join([json.dumps({"prompt": "Hi", "id": "good"}), *lines, '{"prompt": "Ho"}']) + "\n"
    )
    found = collect_prompts(file)
    assert [prompt.id for prompt in found.prompts] == ["rows/good", f"rows/{len(BAD_ROWS) + 2}"]
    assert found.num_rows == len(BAD_ROWS) + 2
    for number, (line, (_, message)) in enumerate(zip(found.bad, BAD_ROWS, strict=True), 2):
        assert line.startswith(f"{file}:{number}: ")
        assert message in line
        assert "\n" not in line
    with pytest.raises(DataError, match=r"rows.jsonl:2: not a JSON object .*\(and 30 more such rows\)"):
        read_prompts(file)


def test_a_template_that_refuses_is_told_with_the_row(tmp_path: Path) -> None:
    strict = byte_tokenizer()
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    )
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [SYSTEM, ASK]}) + "\n")
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": [ASK, CALL, FOUND], "tools": TOOLS}) + "\n")
    refused, called = read_prompts(tmp_path)
    with pytest.raises(DataError, match=r"a.jsonl:1: .*template refuses it: no system turns"):
        encode_prompts(strict, [refused], {})
    with pytest.raises(DataError, match=r"b.jsonl:1: the row has tools, but"):
        encode_prompts(strict, [called], {})


def test_the_source_of_a_row_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "source": "math-1"}, {"prompt": "b", "source": None}, {"prompt": "c", "id": 0}]
    (tmp_path / "chat-all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(one.id, one.source) for one in read_prompts(tmp_path)] == [
        ("chat-all/1", "math-1"),
        ("chat-all/2", "chat-all"),
        ("chat-all/0", "chat-all"),
    ]


def test_of_a_source_that_is_a_project_the_file_tells_the_kind(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "source": "owner/name"}, {"prompt": "b"}]
    (tmp_path / "math-sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [one.source for one in read_prompts(tmp_path)]
    assert sources == ["math-owner/name", "math-sums"]
    assert {group_of(source) for source in sources} == {"math"}


ROWS = [{"messages": [ASK, ANSWER], "source": "geo"}, {"messages": [MORE, MORE_ANSWER], "source": "geo"}]


def write(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(ROWS)
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    elif file.suffix == ".arrow":
        with pa.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    elif file.name.endswith(".json.gz"):
        file.write_bytes(gzip.compress(json.dumps(ROWS, indent=1).encode()))
    elif file.name.startswith("lines"):
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        file.write_text(json.dumps(ROWS))


@pytest.mark.parametrize(
    "name", ["train.parquet", "train.arrow", "train.json", "train.json.gz", "lines.json", "lines.jsonl"]
)
def test_every_kind_of_file_gives_the_same_prompts(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    for path in (tmp_path / name, tmp_path):
        prompts = read_prompts(path)
        assert [(one.messages, one.source) for one in prompts] == [((ASK,), "geo"), ((MORE,), "geo")]


def test_a_column_of_another_rows_form_is_null(tmp_path: Path) -> None:
    rows = [{"prompt": "Capital?", "turns": None}, {"prompt": None, "turns": ["And of Spain?"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mixed.parquet")
    assert [one.messages for one in read_prompts(tmp_path)] == [(ASK,), (MORE,)]


@pytest.mark.parametrize("name", ["train.json", "train.json.gz", "lines.json", "lines.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    marked = BOM_UTF8 + (gzip.decompress(content) if name.endswith(".gz") else content)
    (tmp_path / name).write_bytes(gzip.compress(marked) if name.endswith(".gz") else marked)
    assert [one.messages for one in read_prompts(tmp_path)] == [(ASK,), (MORE,)]


def test_folders_of_datasets_and_of_the_hub_have_splits(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    for split in ("train", "test"):
        write(saved / split / "data-00000-of-00001.arrow")
        (saved / split / "state.json").write_text("{}")
        (saved / split / "dataset_info.json").write_text("{}")
    (saved / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    hub = tmp_path / "hub"
    for shard in ("train_sft-00000-of-00002", "train_sft-00001-of-00002", "test_sft-00000-of-00001-a1b2"):
        write(hub / "data" / f"{shard}.parquet")
    assert len(read_prompts(saved / "train")) == 2
    assert len(collect_prompts(saved, split="test").prompts) == 2
    assert len(collect_prompts(hub, split="train_sft").prompts) == 4
    for folder, names in ((saved, "test, train"), (hub, "test_sft, train_sft")):
        with pytest.raises(DataError, match=rf"found the splits {names}; name one \(--split\)"):
            read_prompts(folder)
        with pytest.raises(DataError, match="not 'dev'; name one"):
            collect_prompts(folder, split="dev")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{\n "a": 1\n}', "found one JSON dict; expected an array"),
        ("a.json", "[1,", "not JSON"),
        ("a.parquet", "PAR1", "a.parquet: cannot be read"),
        ("a.arrow", "none", "a.arrow: cannot be read"),
        ("a.jsonl.gz", "none", "a.jsonl.gz: cannot be read"),
        ("a.txt", "none", "no prompts found; expected a .jsonl"),
    ],
)
def test_files_that_are_none_are_told(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path)


def test_the_packages_own_prompts_are_asked_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = read_prompts("sample")
    assert len({one.messages[0]["content"] for one in prompts}) == 200
    kinds = {
        kind: [one for one in prompts if one.source == kind] for kind in ("math", "code", "chat", "write")
    }
    assert all(len(own) == 50 for own in kinds.values())
    held_back = [one.source for one in prompts if is_held_back(Document(one.id, "", 0.0, [], [], "stop"))]
    assert set(held_back) == set(kinds)  # every evaluation tells of each kind
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample").mkdir()
    with pytest.raises(DataError, match="no prompts found"):
        read_prompts("sample")
