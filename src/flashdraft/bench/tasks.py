"""The five tasks of the DFlash model card, carried as package data (origins and licences: data/LICENSES.md).

These prompts are for measuring. Data for training never comes from here.
"""

import gzip
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from flashdraft.errors import UsageError

TASKS = ("gsm8k", "math500", "humaneval", "mbpp", "mt-bench")


@dataclass(frozen=True)
class BenchPrompt:
    """One question, formatted as z-lab/dflash asks it."""

    id: str
    turns: tuple[str, ...]  # user messages in order; one, or two in MT-Bench
    reference: Any = None  # what the source knows of the answer: a solution, tests, ...
    category: str | None = None


def load_task(name: str, limit: int | None = None) -> list[BenchPrompt]:
    """The first ``limit`` prompts of a task in the source's order, or all of them.

    Raises UsageError for an unknown task.
    """
    if name not in TASKS:
        raise UsageError(f"there is no task {name!r}; expected one of: {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise UsageError(f"the limit of prompts is {limit}; expected 1 or more")
    packed = files("flashdraft.bench").joinpath("data", f"{name}.jsonl.gz").read_bytes()
    rows = [json.loads(line) for line in gzip.decompress(packed).splitlines()[:limit]]
    return [
        BenchPrompt(row["id"], tuple(row["turns"]), row.get("reference"), row.get("category")) for row in rows
    ]
