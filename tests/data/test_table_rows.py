"""Rows of tables, Parquet and Arrow, against the same rows as lines of JSON: what a column's one type does to calls."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from flashdraft.data.conversations import parse_conversation
from flashdraft.data.prompt_files import read_rows

Row = dict[str, Any]
TEXT, JSON = pa.string(), pa.json_()


def row(tool: str, parameter: str, value: Any) -> Row:
    """A question and the call that answers it, of a tool of one parameter, which a constraint names too."""
    function = {"name": tool, "arguments": {parameter: value}}
    said = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    schema = {"type": "object", "properties": {parameter: {"enum": [value]}}, "required": [parameter]}
    tools = [{"type": "function", "function": {"name": tool, "parameters": schema}}]
    return {"messages": [{"role": "user", "content": "Go."}, said], "tools": tools}


ROWS = [row("weather", "city", "Rome"), row("book", "days", 3)]


def write(table: pa.Table, file: Path) -> None:
    if file.suffix == ".parquet":
        pq.write_table(table, file)
    else:
        with pa.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)


def json_texts() -> pa.Table:
    """ROWS with each message, and each tool's parameters, as one text of JSON, as datasets 5 lays them out."""
    rows = []
    for asked in ROWS:
        (tool,) = asked["tools"]
        parameters = json.dumps(tool["function"]["parameters"])
        stored = tool | {"function": tool["function"] | {"parameters": parameters}}
        rows.append({"messages": [json.dumps(one) for one in asked["messages"]], "tools": [stored]})
    function = pa.struct([("name", TEXT), ("parameters", JSON)])
    tools = pa.list_(pa.struct([("type", TEXT), ("function", function)]))
    return pa.Table.from_pylist(rows).cast(pa.schema([("messages", pa.list_(JSON)), ("tools", tools)]))


@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
@pytest.mark.parametrize("layout", ["structs", "texts"])
def test_a_call_has_its_own_arguments_alone(name: str, layout: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS) if layout == "structs" else json_texts()
    write(table, tmp_path / name)
    read = [one.values for one in read_rows(tmp_path / name)]
    told = [parse_conversation(one, "none") for one in read if isinstance(one, dict)]
    assert told == [parse_conversation(one, "none") for one in ROWS]


def test_a_text_that_is_no_json_is_told_of_its_row(tmp_path: Path) -> None:
    good, bad = '{"role": "user", "content": "Hi"}', "{"
    stored = pa.array([[good], [bad], [good]], pa.list_(TEXT)).cast(pa.list_(JSON))
    write(pa.table({"messages": stored}), tmp_path / "a.parquet")
    first, second, third = read_rows(tmp_path / "a.parquet")
    assert first.values == third.values == {"messages": [json.loads(good)]}
    assert isinstance(second.values, str)
    assert "not JSON" in second.values
    assert second.place.endswith("row 2")
