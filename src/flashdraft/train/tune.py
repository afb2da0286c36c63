"""A drafter fitted to one's own traffic: minutes of training on logged requests, and an honest account of it.

The account compares the drafter before and after on requests that were held back and on other kinds of text, both
by simulation; a gain counts only where its confidence interval lies above nothing.
"""

import json
import math
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from flashdraft.checkpoint.load import (
    eos_token_ids,
    load_target,
    load_tokenizer,
    outline_drafter,
    outline_target,
    save_drafter,
    training_notes,
)
from flashdraft.data.loader import PackedRows, check_token_ids, count_unfit, fits, pack
from flashdraft.data.on_policy import Document, OnPolicyConfig, read_documents, without_repeats
from flashdraft.data.prompts import Prompt
from flashdraft.data.request_log import SOURCE as REQUESTS
from flashdraft.data.request_log import read_requests
from flashdraft.errors import DataError, UsageError
from flashdraft.intervals import ratio_interval
from flashdraft.models.base import TargetModel
from flashdraft.provenance import collect_provenance
from flashdraft.train.config import TILE, TrainConfig
from flashdraft.train.features import feature_cache
from flashdraft.train.forward import Network
from flashdraft.train.lost import Lost, accepted_of, token_kinds, where_lost, with_replay
from flashdraft.train.model_card import write_tuned_card
from flashdraft.train.run import load_trainable, make_answers
from flashdraft.train.simulate import Walk, accepted_at_anchors, walk, walk_side_by_side
from flashdraft.train.trainer import Trainer
from flashdraft.train.tune_config import TuneConfig
from flashdraft.whole_files import write_whole

FEWEST_REQUESTS = 20  # fewer are neither a domain nor a measurement
_EVAL_BLOCKS = 128  # of a row in one forward
_GENERAL_SEED = 0
_LOOK_SHARE = 0.15  # of the training's time, to find what is trained on again


@dataclass(frozen=True)
class Compared:
    """Simulated acceptance length before and after on the same texts, and the interval of their ratio (95 %).

    None: of one text there is no interval.
    """

    before: float
    after: float
    low: float | None
    high: float | None
    num_texts: int

    @property
    def gain(self) -> float:
        """Share by which it rose."""
        return self.after / self.before - 1


@dataclass(frozen=True)
class Tuned:
    """What came of a tuning. ``drafter``: its folder; None: it is not better and was not kept."""

    domain: Compared
    others: dict[str, Compared]
    drafter: Path | None
    num_requests: int  # that were trained on
    num_blocks: int
    seconds: float
    lost: tuple[Lost, Lost] | None = (
        None  # before and after on held-back requests, where that was looked into
    )
    share_looked: float | None = None  # of the training rows, for drafts to train on again


def tune_drafter(
    target_name: str,
    draft: str,
    requests: Path,
    folder: Path,
    config: TuneConfig,
    others: Sequence[Prompt] = (),
    general: Sequence[Path] = (),
    device: str = "cpu",
    dtype: str = "float32",
    on_report: Callable[[dict[str, Any]], None] = print,
    replays: bool = False,
) -> Tuned:
    """Fit ``draft`` to the requests and write ``folder``/drafter where it got better, ``folder``/tune.json always.

    ``others``: prompts of other kinds, by their sources, on which it is measured too. ``general``: folders of answers
    made before, mixed in. ``replays``: find where drafts are rejected, and train half of the steps on that
    (:func:`with_replay`). Raises UsageError, DataError or CheckpointError.
    """
    started = time.perf_counter()
    if (folder / "tune.json").exists():
        raise UsageError(f"{folder} holds a tuning already; give another --out")
    wanted = _settings(outline_drafter(draft, outline_target(target_name)), config)
    found = read_requests(requests, load_tokenizer(target_name), eos_token_ids(target_name))
    asked = without_repeats([*found.unanswered, *others])
    made = _answered(asked, target_name, draft, folder, config, device, dtype)
    texts = [doc for one in general for doc in read_documents(one)]
    answers = [*found.answered, *made]
    on_report(left_out := _left_out(found.num_repeated, asked, made, [*answers, *texts], config))
    training, held_back, num_unmeasured = divide([doc for doc in answers if doc.source == REQUESTS], config)
    mixed_in = mixed(training, texts, config)
    kinds = {REQUESTS: held_back, **_by_source(made, config)}
    on_report(_parts(training, mixed_in, kinds, num_unmeasured))
    target = load_target(target_name, dtype=dtype, device=device)
    drafter = load_trainable(draft, target, dtype, device)
    packed = {name: pack(documents, config.max_len, device) for name, documents in kinds.items()}
    learned = pack(training + mixed_in, config.max_len, device)
    check_token_ids(target.config.vocab_size, learned, *packed.values())
    measuring = time.perf_counter()
    before = {name: _all_walks(target, drafter, rows) for name, rows in packed.items()}
    left_s = _time_left(config, started, measuring)
    share_looked = None
    if replays:
        learned, share_looked, looked_s = _replayed(target, drafter, learned, _LOOK_SHARE * left_s)
        left_s = max(left_s - looked_s, 1.0)
    num_blocks = _train(target_name, target, drafter, learned, wanted, folder, left_s, on_report)
    after = {name: _all_walks(target, drafter, rows) for name, rows in packed.items()}
    compared = {name: _compared(before[name], after[name]) for name in packed}
    domain = compared.pop(REQUESTS)
    kept = folder / "drafter" if domain.low is not None and domain.low > 1 else None
    if kept:
        save_drafter(drafter, kept, torch.bfloat16, training_notes(draft))
    both = before[REQUESTS], after[REQUESTS]
    lost = _lost(target_name, drafter, packed[REQUESTS], *both) if replays else None
    seconds = time.perf_counter() - started
    tuned = Tuned(domain, compared, kept, len(training), num_blocks, seconds, lost, share_looked)
    facts = {"draft": draft, "config": asdict(config), **left_out, "num_unmeasured": num_unmeasured}
    _write(folder, target_name, tuned, facts | {"provenance": collect_provenance(device)})
    return tuned


def _left_out(
    num_repeated: int,
    asked: Sequence[Prompt],
    made: Sequence[Document],
    texts: Sequence[Document],
    config: TuneConfig,
) -> dict[str, Any]:
    """How many requests and other ``texts`` are not used, by why, and how many are cut.

    ``made``: what came of the prompts ``asked``, which is nothing where they are too long.
    """
    unfit = count_unfit(texts, config.max_len)
    answered = {doc.id for doc in made}
    return {
        "left_out": {
            "equal to another": num_repeated,
            f"to be answered, prompts of over {_longest_asked(config)} tokens": sum(
                prompt.id not in answered for prompt in asked
            ),
            f"answered, prompts of over {config.max_len - 2} tokens": unfit.num_long_prompts,
            "answers of one token": unfit.num_short_answers,
        },
        "num_cut_at_max_len": unfit.num_cut,
    }


def _parts(
    training: Sequence[Document],
    mixed_in: Sequence[Document],
    measured: Mapping[str, Sequence[Document]],
    num_unmeasured: int,
) -> dict[str, Any]:
    """How many documents are for what."""
    return {
        "trained on": len(training),
        "mixed in": len(mixed_in),
        "measured on": {name: len(documents) for name, documents in measured.items()},
        "held back, not measured": num_unmeasured,
    }


def _longest_asked(config: TuneConfig) -> int:
    """Tokens of a prompt that the target is to answer: as much room again is left for the answer."""
    return config.max_len // 2


def _by_source(made: Sequence[Document], config: TuneConfig) -> dict[str, list[Document]]:
    """Answers to other prompts than the requests, those that can be measured."""
    by_source: dict[str, list[Document]] = {}
    for document in made:
        if document.source != REQUESTS and fits(document, config.max_len):
            by_source.setdefault(document.source, []).append(document)
    return by_source


def _time_left(config: TuneConfig, started: float, measuring: float) -> float:
    """Seconds to train in, where measuring, which began then, comes once more. Raises UsageError for none."""
    now = time.perf_counter()
    left_s = 60 * config.max_minutes - (now - started) - (now - measuring)
    if left_s <= 0:
        raise UsageError(
            f"answering and measuring take all of {config.max_minutes:g} minutes; raise --max-minutes, or give"
            " requests with their answers"
        )
    return left_s


def _write(folder: Path, target_name: str, tuned: Tuned, facts: dict[str, Any]) -> None:
    """The account, and the card of a drafter that was kept."""
    if tuned.drafter:
        kinds = {REQUESTS: tuned.domain, **tuned.others}
        told = {name: (one.before, one.after, one.num_texts) for name, one in kinds.items()}
        write_tuned_card(tuned.drafter, target_name, facts["draft"], told)
    document = asdict(tuned) | {"drafter": str(tuned.drafter) if tuned.drafter else None} | facts
    write_whole(folder / "tune.json", json.dumps(document, indent=2) + "\n")


def _lost(
    target_name: str, drafter: Network, rows: PackedRows, before: Sequence[Walk], after: Sequence[Walk]
) -> tuple[Lost, Lost]:
    """Where the rounds ``before`` and ``after`` of ``rows`` lost what they drafted."""
    size, kind_of = drafter.config.block_size, token_kinds(load_tokenizer(target_name))
    return where_lost(rows, before, size, kind_of), where_lost(rows, after, size, kind_of)


def _replayed(
    target: TargetModel, drafter: Network, rows: PackedRows, max_seconds: float
) -> tuple[PackedRows, float, float]:
    """``rows`` with what is lost in them once more, the share that was looked at, and the seconds that took."""
    started = time.perf_counter()
    accepted = accepted_of(target, drafter, rows, max_seconds)
    return with_replay(rows, accepted), len(accepted) / len(rows), time.perf_counter() - started


def divide(documents: Sequence[Document], config: TuneConfig) -> tuple[list[Document], list[Document], int]:
    """Training and held-back requests, chosen by their prompts: the same ones whatever the order.

    And how many more are held back than ``max_measured``. Raises DataError for too few.
    """
    longest = config.max_len - 2
    usable = [document for document in documents if fits(document, config.max_len)]
    if len(usable) < FEWEST_REQUESTS:
        raise DataError(
            f"there are {len(usable)} different requests with answers of 2 tokens or more, and prompts of"
            f" {longest} tokens at most; expected at least {FEWEST_REQUESTS}"
        )
    ordered = sorted(usable, key=lambda doc: zlib.crc32(repr(doc.prompt_token_ids).encode()))
    num_held = min(max(round(config.held_back * len(ordered)), 2), len(ordered) - 2)
    num_measured = min(num_held, config.max_measured)
    return ordered[num_held:], ordered[:num_measured], num_held - num_measured


def mixed(training: Sequence[Document], general: Sequence[Document], config: TuneConfig) -> list[Document]:
    """General texts, drawn at random until they are ``general_share`` of all tokens."""
    own = sum(_num_tokens(document) for document in training)
    wanted = own * config.general_share / (1 - config.general_share)
    general = [document for document in general if fits(document, config.max_len)]
    order = torch.randperm(len(general), generator=torch.Generator().manual_seed(_GENERAL_SEED)).tolist()
    drawn: list[Document] = []
    for idx in order:
        if wanted <= 0:
            break
        drawn.append(general[idx])
        wanted -= _num_tokens(general[idx])
    return drawn


def _num_tokens(document: Document) -> int:
    return len(document.prompt_token_ids) + len(document.answer_token_ids)


def _answered(
    prompts: Sequence[Prompt],
    target_name: str,
    draft: str,
    folder: Path,
    config: TuneConfig,
    device: str,
    dtype: str,
) -> list[Document]:
    """The target's greedy answers; prompts that are too long have none."""
    if not prompts:
        return []
    data = OnPolicyConfig(
        target_name,
        (0.0,),
        _longest_asked(config),
        config.max_new_tokens,
        config.answer_rows,
        config.seed,
    )
    make_answers(data, prompts, folder / "answers", device, dtype, draft)
    return read_documents(folder / "answers", allow_empty=True)


def _settings(drafter: Network, config: TuneConfig) -> TrainConfig:
    """The training's, without its time. Raises UsageError for blocks that do not fill the attention's tiles."""
    block_size = drafter.config.block_size
    if config.blocks_per_step * block_size % TILE:
        raise UsageError(
            f"blocks_per_step is {config.blocks_per_step}, of blocks of {block_size} tokens; expected a multiple of"
            f" {TILE // math.gcd(TILE, block_size)}"
        )
    return TrainConfig(
        method=cast("Literal['dflash', 'mtp']", drafter.method),
        block_size=block_size,
        seq_len=config.max_len,
        rows_per_step=1,
        blocks_per_row=config.blocks_per_step,
        lr=config.lr,
        warmup=0.05,
        total_blocks=config.max_blocks,
        eval_minutes=float("inf"),
        checkpoint_minutes=float("inf"),
        served_prompts=0,
        seed=config.seed,
    )


def _train(
    target_name: str,
    target: TargetModel,
    drafter: Network,
    rows: PackedRows,
    wanted: TrainConfig,
    folder: Path,
    seconds: float,
    on_report: Callable[[dict[str, Any]], None],
) -> int:
    """Train for ``seconds``, features kept on disk where that is cheaper; blocks trained on."""
    started = time.perf_counter()
    kept = folder / "features"
    try:
        # What an earlier tuning was stopped over is of other rows, or soon made again.
        shutil.rmtree(kept, ignore_errors=True)
        timed = replace(wanted, max_minutes=seconds / 60)
        cache, plan = feature_cache("auto", target, drafter, rows, timed, kept, {"target": target_name})
        on_report({"features": plan["features"]})
        left_s = max(seconds - (time.perf_counter() - started), 1.0)
        timed = replace(wanted, max_minutes=left_s / 60)
        trainer = Trainer(target, drafter, rows, {}, timed, folder / "training", cache)
        trainer.train(on_report)
    finally:
        shutil.rmtree(kept, ignore_errors=True)  # they tell what people wrote, and are of no more use
    return trainer.progress.step * wanted.blocks_per_row


def _all_walks(target: TargetModel, drafter: Network, rows: PackedRows) -> list[Walk]:
    """The rounds of each text of ``rows``, by simulation."""
    return [
        one
        for index in range(len(rows))
        for one in _walks(target, drafter, rows.rows(torch.tensor([index], device=rows.token_ids.device)))
    ]


def _walks(target: TargetModel, drafter: Network, row: PackedRows) -> list[Walk]:
    block_size = drafter.config.block_size
    if target.device.type == "cpu":
        return walk_side_by_side(target, drafter, row, block_size)
    accepted = accepted_at_anchors(target, drafter, row, block_size, _EVAL_BLOCKS)
    starts = sorted(set(row.doc_start[row.is_anchor].tolist()))
    return [
        walk(PackedRows(row.token_ids, row.doc_start, row.is_anchor & (row.doc_start == start)), accepted)
        for start in starts
    ]


def _compared(before: Sequence[Walk], after: Sequence[Walk]) -> Compared:
    first, then = ([(one.num_tokens, len(one.num_accepted)) for one in walks] for walks in (before, after))
    low, high = ratio_interval(range(len(first)), then, first) or (None, None)
    return Compared(_acceptance_length(first), _acceptance_length(then), low, high, len(first))


def _acceptance_length(texts: Sequence[tuple[int, int]]) -> float:
    return sum(tokens for tokens, _ in texts) / sum(rounds for _, rounds in texts)
