"""The five sets are the published ones, whole and unchanged."""

import gzip
import hashlib
import re
from importlib.resources import files

import pytest

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.errors import UsageError

COUNTS = {"gsm8k": 1319, "math500": 500, "humaneval": 164, "mbpp": 257, "mt-bench": 80}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_whole(name: str) -> None:
    prompts = load_task(name)
    assert len(prompts) == COUNTS[name]
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert {len(prompt.turns) for prompt in prompts} == {2 if name == "mt-bench" else 1}
    assert all(turn.strip() for prompt in prompts for turn in prompt.turns)


def test_the_licence_table_names_every_file_with_its_hash() -> None:
    data = files("flashdraft.bench").joinpath("data")
    table = data.joinpath("LICENSES.md").read_text()
    listed = dict(re.findall(r"^\| `([\w.-]+)\.jsonl\.gz` .*`([0-9a-f]{64})` \|$", table, re.MULTILINE))
    assert set(listed) == set(TASKS)
    for name, digest in listed.items():
        raw = gzip.decompress(data.joinpath(f"{name}.jsonl.gz").read_bytes())
        assert hashlib.sha256(raw).hexdigest() == digest


def test_limit_takes_the_first_ones_in_order() -> None:
    assert load_task("mbpp", 3) == load_task("mbpp")[:3]
    assert load_task("mbpp", 3)[0].id == "mbpp-11"


def test_what_a_prompt_carries() -> None:
    math, chat = load_task("gsm8k", 1)[0], load_task("mt-bench", 1)[0]
    assert math.turns[0].endswith("Please reason step by step, and put your final answer within \\boxed{}.")
    assert math.reference["answer"] == "18"
    assert (chat.category, chat.turns[1][:7]) == ("writing", "Rewrite")


@pytest.mark.parametrize(("name", "limit"), [("gsm9k", 1), ("gsm8k", 0), ("../tasks", 1)])
def test_a_wrong_task_or_limit_is_refused(name: str, limit: int) -> None:
    with pytest.raises(UsageError, match="expected"):
        load_task(name, limit)
