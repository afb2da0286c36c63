"""Prompts of the user's own: SPEED-Bench's shape, by category, and what is no such file."""

import json
from codecs import BOM_UTF8
from pathlib import Path

import pytest

from flashdraft.bench.config import BenchConfig
from flashdraft.bench.prompt_file import load_prompt_file
from flashdraft.bench.rows_file import RowsFile, read_rows
from flashdraft.errors import DataError, UsageError

ROWS = [
    {"question_id": "a" * 32, "category": "coding", "turns": ["Write f.", "Now g."], "source": "x"},
    {"question_id": "b" * 32, "category": "math", "messages": [{"role": "user", "content": "1+1?"}]},
    {"question_id": "c" * 32, "category": "coding", "turns": ["Mend h."]},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "speed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_each_category_is_a_task(file: Path) -> None:
    found = load_prompt_file(file)
    assert list(found) == ["coding", "math"]
    assert [(one.id[0], one.turns) for one in found["coding"]] == [
        ("a", ("Write f.", "Now g.")),
        ("c", ("Mend h.",)),
    ]
    assert [one.turns for one in found["math"]] == [("1+1?",)]
    assert list(BenchConfig(prompts_file=str(file)).prompts()) == ["coding", "math"]
    assert list(BenchConfig(prompts_file=str(file), tasks="math").prompts()) == ["math"]
    with pytest.raises(UsageError, match=r"names 'law'; .* has the categories coding, math"):
        BenchConfig(prompts_file=str(file), tasks="law").prompts()


def test_a_byte_order_mark_is_no_part_of_the_first_line(file: Path) -> None:
    expected = load_prompt_file(file)
    file.write_bytes(BOM_UTF8 + file.read_bytes())
    assert load_prompt_file(file) == expected


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{", "speed.jsonl:2 is not JSON"),
        ("[1]", "no object"),
        ('{"category": 1}', "no object with a category"),
        ('{"category": "a"}', "no turns"),
        ('{"turns": []}', "no turns"),
        ('{"turns": ["a", ""]}', "no turns"),
        ('{"turns": "a"}', "no turns"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "message of 'system'"),
        ('{"turns": ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"]}', "placeholder"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, part: str) -> None:
    path = tmp_path / "speed.jsonl"
    path.write_text(f'{{"turns": ["a"]}}\n{line}\n')
    with pytest.raises(DataError, match=r"speed.jsonl:2 ") as caught:
        load_prompt_file(path)
    assert part in str(caught.value)


@pytest.mark.parametrize("end", ["\u2028", "\x85"])
def test_other_ends_of_lines_are_of_the_text(tmp_path: Path, end: str) -> None:
    line = json.dumps({"question_id": 1, "category": "c", "turns": [f"one{end}two"]}, ensure_ascii=False)
    (tmp_path / "asked.jsonl").write_text(line + "\n", encoding="utf-8")
    [prompt] = load_prompt_file(tmp_path / "asked.jsonl")["c"]
    assert prompt.turns == (f"one{end}two",)
    rows = RowsFile(tmp_path / "rows.jsonl", {"tasks": f"a{end}b"}, {})
    rows.start([])
    assert read_rows(tmp_path / "rows.jsonl").settings == {"tasks": f"a{end}b"}


def test_a_file_without_prompts_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "nosuch"):
        with pytest.raises(DataError, match=name):
            load_prompt_file(tmp_path / name)
