"""On-policy data: the target's own answers to prompts, kept as Parquet shards with a manifest (paper, A.1).

A folder holds ``manifest.json`` (what was asked and how) and ``answers-*.parquet``. Interrupted runs resume: what is
in a shard is not generated again.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flashdraft.data.answerer import Answerer, AnswerRequest, PromptAnswer
from flashdraft.data.prompts import Prompt, encode_prompts, group_of
from flashdraft.errors import DataError
from flashdraft.whole_files import put_in_place, write_whole

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "temperature": pa.float32(),
        "prompt_token_ids": pa.list_(pa.int32()),
        "answer_token_ids": pa.list_(pa.int32()),
        "finish_reason": pa.string(),
        "prompt_digest": pa.string(),
    }
)
ANSWERS_PER_SHARD = 4096
SECONDS_PER_SHARD = 300  # of a slow server no more is lost
SECONDS_PER_LINE = 60  # where there is no terminal to show a bar in
MANIFEST = "manifest.json"


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
    prompt_digest: str | None = None  # of the conversation; None: not told


def generate_answers(
    answerer: Callable[[int], Answerer],
    tokenizer: Any,
    prompts: Sequence[Prompt],
    config: OnPolicyConfig,
    folder: str | Path,
) -> None:
    """Answer ``prompts`` into ``folder``, going on where an earlier run stopped; equal conversations once.

    A conversation of several turns is answered turn by turn, each behind the target's own answers before it.
    ``answerer``: what answers, by a seed. Raises DataError when the folder was made with other settings, or when an
    answer in it is to another conversation than the prompt of its id.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _open_manifest(folder, config)
    different = without_repeats(prompts)
    manifest |= {
        "num_prompts": len(prompts),
        "num_repeated": len(prompts) - len(different),
        "num_too_long": 0,
    }
    asked = [(prompt, temperature) for prompt in different for temperature in config.temperatures]
    # Not of later turns: answers before them that were lost may have been made anew, and the first turn tells of all.
    _check_same(read_documents(folder, allow_empty=True), asked, folder)
    while asked:
        done = {(doc.id, round(doc.temperature, 4)) for doc in read_documents(folder, allow_empty=True)}
        requests, owners = _requests(tokenizer, asked, config, done, manifest)
        _write_manifest(folder, manifest)
        if requests:
            answers_of = answerer(config.seed + len(done))
            try:
                _answer_into(folder, answers_of, requests, owners)
            finally:
                manifest["runs"].append(answers_of.facts)
                _write_manifest(folder, manifest)
        asked = _next_turns(asked, tokenizer, folder)


def _answer_into(
    folder: Path, answerer: Answerer, requests: Sequence[AnswerRequest], owners: Sequence[Prompt]
) -> None:
    """Run the requests, and write shards as the answers come, the last one however it ends."""
    pending: list[dict[str, Any]] = []
    num_tokens, written_at, told_at = 0, time.monotonic(), time.monotonic()
    with _progress() as progress:
        bar = progress.add_task("answers", total=len(requests), note="")
        try:
            for answers in answerer.run(requests):
                for answer in answers:
                    pending.append(_row(owners[answer.key], requests[answer.key], answer))
                    num_tokens += len(answer.token_ids)
                if len(pending) >= ANSWERS_PER_SHARD or time.monotonic() - written_at > SECONDS_PER_SHARD:
                    _write_shard(folder, pending)
                    pending, written_at = [], time.monotonic()
                rate = f"{num_tokens / (progress.tasks[bar].elapsed or 1.0):,.0f} tokens/s"
                progress.update(bar, advance=len(answers), note=rate)
                if not progress.console.is_terminal and time.monotonic() - told_at >= SECONDS_PER_LINE:
                    told_at, done = time.monotonic(), f"{progress.tasks[bar].completed:,.0f}"
                    progress.console.print(f"{done} of {len(requests):,} answers, {rate}", highlight=False)
        finally:
            if pending:
                _write_shard(folder, pending)


def _row(prompt: Prompt, request: AnswerRequest, answer: PromptAnswer) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "source": prompt.source,
        "temperature": request.temperature,
        "prompt_token_ids": list(request.token_ids),
        "answer_token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_digest": _digest(prompt),
    }


def _check_same(documents: Sequence[Document], asked: Sequence[tuple[Prompt, float]], folder: Path) -> None:
    """Raise DataError where an answer's prompt has changed: rows without an id have their line's number."""
    told = {(one.id, round(one.temperature, 4)): one.prompt_digest for one in documents if one.prompt_digest}
    changed = sorted(
        {
            prompt.id
            for prompt, temperature in asked
            if (digest := told.get((prompt.id, round(temperature, 4)))) and digest != _digest(prompt)
        }
    )
    if changed:
        raise DataError(
            f"{folder}: {len(changed)} prompts have changed since they were answered, {changed[0]} first; give another"
            " --out folder, or each row an id of its own (without, it is known by its line)"
        )


def _digest(prompt: Prompt) -> str:
    return hashlib.sha256(_content(prompt).encode(errors="surrogatepass")).hexdigest()[:16]


def without_repeats(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The first of equal conversations, in order."""
    return list({_content(prompt): prompt for prompt in reversed(prompts)}.values())[::-1]


def _content(prompt: Prompt) -> str:
    return json.dumps([prompt.messages, prompt.next_turns, prompt.tools], sort_keys=True, default=str)


def _next_turns(
    asked: Sequence[tuple[Prompt, float]], tokenizer: Any, folder: Path
) -> list[tuple[Prompt, float]]:
    """The conversations that have another turn, behind the answers that are there now."""
    going_on = [(prompt, temperature) for prompt, temperature in asked if prompt.next_turns]
    if not going_on:
        return []
    documents = {(doc.id, round(doc.temperature, 4)): doc for doc in read_documents(folder, allow_empty=True)}
    following = []
    for prompt, temperature in going_on:
        document = documents.get((prompt.id, round(temperature, 4)))
        if document is not None:
            said = tokenizer.decode(document.answer_token_ids, skip_special_tokens=True)
            following.append((prompt.after(said), temperature))
    return following


def read_documents(folder: str | Path, allow_empty: bool = False) -> list[Document]:
    """All answers of a folder, in shard order. Raises DataError when there is none or a shard is damaged."""
    folder = Path(folder)
    shards = sorted(folder.glob("answers-*.parquet"))
    if not shards and not allow_empty:
        raise DataError(f"{folder}: no answers-*.parquet found; expected a folder made by `flashdraft train`")
    documents = []
    for shard in shards:
        documents += [Document(**row) for row in _read_shard(shard).to_pylist()]
    return documents


def _read_shard(shard: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return pq.read_table(shard, schema=SCHEMA, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{shard}: a damaged shard ({error}); delete it and run again to remake it"
        ) from error


@dataclass(frozen=True)
class AnswerCounts:
    """Of the answers of one kind of text."""

    num_answers: int
    num_tokens: int
    num_cut: int  # ended by the limit, not by an end token: what follows the cut is never learned


def count_answers(folder: str | Path) -> dict[str, AnswerCounts]:
    """The answers of a folder by kind of text, without reading their tokens. Raises DataError for a damaged shard."""
    counts: dict[str, AnswerCounts] = {}
    for shard in sorted(Path(folder).glob("answers-*.parquet")):
        answers = _read_shard(shard, ["source", "answer_token_ids", "finish_reason"])
        kinds = [group_of(source) for source in answers["source"].to_pylist()]
        lengths = pc.list_value_length(answers["answer_token_ids"]).to_pylist()
        for kind, length, reason in zip(kinds, lengths, answers["finish_reason"].to_pylist(), strict=True):
            before = counts.get(kind, AnswerCounts(0, 0, 0))
            counts[kind] = AnswerCounts(
                before.num_answers + 1, before.num_tokens + length, before.num_cut + (reason == "length")
            )
    return dict(sorted(counts.items()))


def _requests(
    tokenizer: Any,
    asked: Sequence[tuple[Prompt, float]],
    config: OnPolicyConfig,
    done: set[tuple[str, float]],
    manifest: dict[str, Any],
) -> tuple[list[AnswerRequest], list[Prompt]]:
    """What is still to be answered, and whose it is; counts in ``manifest`` which prompts are too long."""
    encoded = encode_prompts(tokenizer, [p for p, _ in asked], json.loads(config.chat_template_kwargs))
    too_long = {p.id for (p, _), ids in zip(asked, encoded, strict=True) if len(ids) > config.max_prompt_len}
    manifest["num_too_long"] += len(too_long)
    wanted = [
        (prompt, ids, temperature)
        for (prompt, temperature), ids in zip(asked, encoded, strict=True)
        if len(ids) <= config.max_prompt_len and (prompt.id, round(temperature, 4)) not in done
    ]
    # Long prompts first within a window, so that rows in flight have much the same length; windows in the given
    # order, so that what an interrupted run leaves is a fair sample.
    window = 8 * config.num_rows
    order = sorted(range(len(wanted)), key=lambda i: (i // window, -len(wanted[i][1])))
    wanted = [wanted[i] for i in order]
    requests = [AnswerRequest(key, ids, temperature) for key, (_, ids, temperature) in enumerate(wanted)]
    return requests, [prompt for prompt, _, _ in wanted]


def _write_shard(folder: Path, rows: list[dict[str, Any]]) -> None:
    # Behind the last: a damaged one may have been deleted.
    numbers = [int(one.stem.removeprefix("answers-")) for one in folder.glob("answers-*.parquet")]
    number = max(numbers, default=-1) + 1
    shard = folder / f"answers-{number:05d}.parquet"
    part = shard.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part, compression="zstd")
    put_in_place(part, shard)


def read_config(folder: str | Path) -> OnPolicyConfig:
    """How the answers of a folder were made. Raises DataError when its manifest cannot be read."""
    file = Path(folder) / MANIFEST
    try:
        told = json.loads(file.read_text())["config"]
        return OnPolicyConfig(**told | {"temperatures": tuple(told["temperatures"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}); expected the manifest that answers come with"
        ) from None


def _open_manifest(folder: Path, config: OnPolicyConfig) -> dict[str, Any]:
    """The folder's manifest, or a new one. Raises DataError when it was made with other settings."""
    wanted = json.loads(json.dumps(asdict(config)))
    file = folder / MANIFEST
    if not file.exists():
        return {"config": wanted, "runs": []}
    try:
        manifest: dict[str, Any] = json.loads(file.read_text())
        told = dict(manifest["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: cannot be read ({error}); give another folder, or remove this one"
        ) from error
    for name in wanted.keys() - {"num_rows"}:
        if told.get(name) != wanted[name]:
            raise DataError(
                f"{folder}: its answers were made with {name} = {told.get(name)!r}, now it is"
                f" {wanted[name]!r}; use the same settings or another folder"
            )
    return {"runs": []} | manifest


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
