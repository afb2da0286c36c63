"""On-policy data: the target's own answers to prompts, kept as Parquet shards with a manifest (paper, A.1).

A folder holds ``manifest.json`` (what was asked and how) and ``answers-*.parquet``. Interrupted runs resume: what is
in a shard is not generated again.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flashdraft.data.answer_generator import AnswerGenerator, AnswerRequest
from flashdraft.data.prompts import Prompt
from flashdraft.errors import DataError
from flashdraft.models.base import TargetModel

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "temperature": pa.float32(),
        "prompt_token_ids": pa.list_(pa.int32()),
        "answer_token_ids": pa.list_(pa.int32()),
        "finish_reason": pa.string(),
    }
)
ANSWERS_PER_SHARD = 4096


@dataclass(frozen=True)
class OnPolicyConfig:
    """How answers are made; saved in the manifest, and a resumed run must agree with it."""

    target: str
    temperatures: tuple[float, ...] = (0.0, 0.7)  # every prompt is answered once at each
    max_prompt_len: int = 512  # tokens, chat template included; longer prompts are left out and counted
    max_new_tokens: int = 384
    num_rows: int = 64  # answers in flight
    seed: int = 0
    chat_template_kwargs: str = "{}"  # JSON: thinking mode and the like, as the drafter will be served


@dataclass(frozen=True)
class Document:
    """A prompt and the target's answer to it."""

    id: str
    source: str
    temperature: float
    prompt_token_ids: list[int]
    answer_token_ids: list[int]
    finish_reason: str


def generate_answers(
    target: TargetModel,
    tokenizer: Any,
    eos_token_ids: Sequence[int],
    prompts: Sequence[Prompt],
    config: OnPolicyConfig,
    folder: str | Path,
) -> None:
    """Answer ``prompts`` into ``folder``, going on where an earlier run stopped.

    Raises DataError when the folder was made with other settings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_manifest(folder, config)
    done = {(doc.id, round(doc.temperature, 4)) for doc in read_documents(folder, allow_empty=True)}
    requests, owners, num_too_long = _requests(tokenizer, prompts, config, done)
    _write_manifest(folder, config, {"num_prompts": len(prompts), "num_too_long": num_too_long})
    generator = AnswerGenerator(
        target,
        config.num_rows,
        config.max_prompt_len,
        config.max_new_tokens,
        eos_token_ids,
        config.seed + len(done),
    )
    pending: list[dict[str, Any]] = []
    num_tokens = 0
    with _progress() as progress:
        bar = progress.add_task("answers", total=len(requests), note="")
        for answers in generator.run(requests):
            for answer in answers:
                prompt, request = owners[answer.key], requests[answer.key]
                pending.append(
                    {
                        "id": prompt.id,
                        "source": prompt.source,
                        "temperature": request.temperature,
                        "prompt_token_ids": list(request.token_ids),
                        "answer_token_ids": answer.token_ids,
                        "finish_reason": answer.finish_reason,
                    }
                )
                num_tokens += len(answer.token_ids)
            if len(pending) >= ANSWERS_PER_SHARD:
                _write_shard(folder, pending)
                pending = []
            elapsed = progress.tasks[bar].elapsed or 1.0
            progress.update(bar, advance=len(answers), note=f"{num_tokens / elapsed:,.0f} tokens/s")
    if pending:
        _write_shard(folder, pending)


def read_documents(folder: str | Path, allow_empty: bool = False) -> list[Document]:
    """All answers of a folder, in shard order. Raises DataError when there is none or a shard is damaged."""
    folder = Path(folder)
    shards = sorted(folder.glob("answers-*.parquet"))
    if not shards and not allow_empty:
        raise DataError(f"{folder}: no answers-*.parquet found; expected a folder made by `flashdraft train`")
    documents = []
    for shard in shards:
        try:
            rows = pq.read_table(shard, schema=SCHEMA).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{shard}: a damaged shard ({error}); delete it and run again to remake it"
            ) from error
        documents += [Document(**row) for row in rows]
    return documents


def _requests(
    tokenizer: Any, prompts: Sequence[Prompt], config: OnPolicyConfig, done: set[tuple[str, float]]
) -> tuple[list[AnswerRequest], list[Prompt], int]:
    kwargs = json.loads(config.chat_template_kwargs)
    if tokenizer.chat_template:
        texts = [
            tokenizer.apply_chat_template(
                list(p.messages), add_generation_prompt=True, tokenize=False, **kwargs
            )
            for p in prompts
        ]
    else:  # a model that was not taught to chat goes on with the text
        texts = ["\n\n".join(message["content"] for message in p.messages) for p in prompts]
    encoded = tokenizer(texts, add_special_tokens=not tokenizer.chat_template)["input_ids"]
    fitting = [(p, ids) for p, ids in zip(prompts, encoded, strict=True) if len(ids) <= config.max_prompt_len]
    wanted = [
        (prompt, ids, temperature)
        for prompt, ids in fitting
        for temperature in config.temperatures
        if (prompt.id, round(temperature, 4)) not in done
    ]
    # Long prompts first within a window, so that rows in flight have much the same length; windows in the given
    # order, so that what an interrupted run leaves is a fair sample.
    window = 8 * config.num_rows
    order = sorted(range(len(wanted)), key=lambda i: (i // window, -len(wanted[i][1])))
    wanted = [wanted[i] for i in order]
    requests = [AnswerRequest(key, ids, temperature) for key, (_, ids, temperature) in enumerate(wanted)]
    return requests, [prompt for prompt, _, _ in wanted], len(prompts) - len(fitting)


def _write_shard(folder: Path, rows: list[dict[str, Any]]) -> None:
    number = len(list(folder.glob("answers-*.parquet")))
    shard = folder / f"answers-{number:05d}.parquet"
    part = shard.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part, compression="zstd")
    os.replace(part, shard)


def _check_manifest(folder: Path, config: OnPolicyConfig) -> None:
    manifest = folder / "manifest.json"
    if not manifest.exists():
        return
    found = json.loads(manifest.read_text())["config"]
    wanted = json.loads(json.dumps(asdict(config)))
    for name in wanted.keys() - {"num_rows"}:
        if found.get(name) != wanted[name]:
            raise DataError(
                f"{folder}: its answers were made with {name} = {found.get(name)!r}, now it is {wanted[name]!r};"
                " use the same settings or another folder"
            )


def _write_manifest(folder: Path, config: OnPolicyConfig, counts: dict[str, int]) -> None:
    part = folder / "manifest.json.part"
    part.write_text(json.dumps({"config": asdict(config), **counts}, indent=2) + "\n")
    os.replace(part, folder / "manifest.json")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
