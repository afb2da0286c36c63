"""Published measurements of DFlash on GPUs, and the shapes of their pairs: what the roofline is fitted to.

All are greedy answers of SGLang on one B200. DFlash (arXiv 2602.06036v2), tables 3 and 11; table 11 names no GPU in
what we have of it and is read as a B200's. data/card.jsonl: the model card of z-lab/Qwen3.5-27B-DFlash, thinking, at
most 4,096 tokens, speeds of three of its five tasks. How long the answers were is not told; ``job`` is a guess
that matters little (what an output token costs beside its step is fitted for each task).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashdraft.bench.cost_model import Job
from flashdraft.errors import DataError, UsageError

if TYPE_CHECKING:
    from flashdraft.models.dflash_config import DFlashConfig

PUBLISHED_GPU = "B200"
CARD_PAIR = "qwen3.5-27b"
_PAPER_JOB, _CARD_JOB = Job(128, 1024), Job(128, 2500)


@dataclass(frozen=True)
class PublishedRow:
    """One published cell; None: not told."""

    pair: str
    task: str
    method: str  # ar, mtp or dflash
    block_size: int
    concurrency: int
    acceptance_length: float
    tokens_per_s: float | None
    speedup: float | None  # over plain decoding
    source: str
    job: Job

    @property
    def workload(self) -> str:
        """What has its own seconds an output token: a task as one source ran it."""
        return f"{self.source} {self.task}"


def _paper(
    pair: str,
    task: str,
    concurrency: int,
    length: float,
    speedup: float,
    plain: float | None = None,
    table: int = 3,
) -> list[PublishedRow]:
    source = f"table {table}"
    rows = [PublishedRow(pair, task, "dflash", 16, concurrency, length, None, speedup, source, _PAPER_JOB)]
    if plain:
        rows.append(PublishedRow(pair, task, "ar", 1, concurrency, 1.0, plain, None, source, _PAPER_JOB))
    return rows


_TABLES = (
    *_paper("qwen3-4b", "math500", 1, 8.01, 4.8, 316),
    *_paper("qwen3-4b", "math500", 4, 8.01, 4.3),
    *_paper("qwen3-4b", "math500", 8, 8.01, 4.1),
    *_paper("qwen3-4b", "math500", 16, 8.01, 3.5),
    *_paper("qwen3-4b", "math500", 32, 8.01, 2.9, 7136),
    *_paper("qwen3-4b", "humaneval", 1, 6.63, 4.0),
    *_paper("qwen3-4b", "humaneval", 32, 6.63, 2.2),
    *_paper("qwen3-8b", "math500", 1, 8.01, 5.1, 230),
    *_paper("qwen3-8b", "math500", 4, 8.01, 4.5),
    *_paper("qwen3-8b", "math500", 8, 8.01, 4.5),
    *_paper("qwen3-8b", "math500", 16, 8.01, 3.9),
    *_paper("qwen3-8b", "math500", 32, 8.01, 2.8, 5694),
    *_paper("qwen3.5-27b", "math500", 8, 7.7, 3.8, table=11),
    *_paper("qwen3.5-27b", "humaneval", 8, 9.1, 3.9, table=11),
)


@cache
def published_rows() -> tuple[PublishedRow, ...]:
    """All of them: the paper's tables, then the card."""
    return (*_TABLES, *read_card(Path(str(files("flashdraft.bench").joinpath("data", "card.jsonl")))))


def read_card(file: Path) -> list[PublishedRow]:
    """Rows of the card's pair on the card's GPU, as data/card.jsonl has them; rows without a throughput are left out.

    Raises DataError.
    """
    rows = []
    try:
        for line in file.read_text(encoding="utf-8-sig").splitlines():
            told = json.loads(line)
            if "output_tokens_per_s" not in told:
                continue
            rows.append(
                PublishedRow(
                    pair=CARD_PAIR,
                    task=told["task"],
                    method=told["method"],
                    block_size=told["block_size"],
                    concurrency=told["concurrency"],
                    acceptance_length=told["acceptance_length"],
                    tokens_per_s=told["output_tokens_per_s"],
                    speedup=None,
                    source="model card",
                    job=_CARD_JOB,
                )
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: no rows of a model card ({error!r}); expected JSON lines of task, method, block_size,"
            " concurrency, acceptance_length and output_tokens_per_s"
        ) from None
    return rows


@cache
def card_acceptance() -> dict[tuple[str, str, int], float]:
    """Acceptance lengths of the card by task, method and block size: of all five tasks."""
    lines = files("flashdraft.bench").joinpath("data", "card.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {(one["task"], one["method"], one["block_size"]): one["acceptance_length"] for one in rows}


def acceptance_of(rows: Sequence[PublishedRow], pair: str, method: str) -> dict[int, float]:
    """Acceptance lengths of a pair by block size, on math500."""
    return {
        row.block_size: row.acceptance_length
        for row in rows
        if (row.pair, row.method, row.task) == (pair, method, "math500")
    }


_QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}
_QWEN3_8B = _QWEN3 | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
_QWEN3_4B = _QWEN3 | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}
_QWEN35_27B: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "tie_word_embeddings": False,
}
TARGETS = {"qwen3-4b": _QWEN3_4B, "qwen3-8b": _QWEN3_8B, "qwen3.5-27b": _QWEN35_27B}
_DRAFT_LAYERS = {"qwen3-4b": 5, "qwen3-8b": 5, "qwen3.5-27b": 6}


def pair_configs(name: str) -> tuple[Any, Any]:
    """(transformers config, DFlashConfig) of a published pair. Raises UsageError for an unknown one."""
    from transformers import AutoConfig

    if name not in TARGETS:
        raise UsageError(f"there is no pair {name!r}; expected one of: {', '.join(TARGETS)}")
    values = dict(TARGETS[name])
    target = AutoConfig.for_model(values.pop("model_type"), **values)
    return target, usual_drafter(target, _DRAFT_LAYERS[name])


def usual_drafter(target: Any, num_layers: int = 5) -> "DFlashConfig":
    """A DFlash drafter as the published ones are: blocks of 16, five features, 32 heads of 128, the target's width."""
    from flashdraft.models.dflash_config import DFlashConfig, build_target_layer_ids

    return DFlashConfig(
        hidden_size=target.hidden_size,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=target.vocab_size,
        block_size=16,
        mask_token_id=target.vocab_size - 1,
        target_layer_ids=build_target_layer_ids(
            target.num_hidden_layers, min(5, target.num_hidden_layers - 1)
        ),
        num_target_layers=target.num_hidden_layers,
        max_position_embeddings=40960,
    )
