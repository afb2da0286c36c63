"""One run from prompts to a drafter: answers, packing, training, and the checkpoint that serving loads."""

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from flashdraft.checkpoint.load import (
    eos_token_ids,
    load_drafter,
    load_target,
    load_tokenizer,
    outline_target,
    save_drafter,
)
from flashdraft.data.answerer import Answerer
from flashdraft.data.engine_answers import EngineAnswers, rollout_config
from flashdraft.data.loader import PackedRows, check_token_ids, count_unfit, fits, pack
from flashdraft.data.on_policy import Document, OnPolicyConfig, generate_answers, read_config, read_documents
from flashdraft.data.prompts import Prompt, conversation_of, group_of
from flashdraft.data.server_answers import ServerAnswers
from flashdraft.engine.block_control import MOST_RECORDED_ROWS
from flashdraft.engine.engine import Engine
from flashdraft.errors import DataError, UsageError
from flashdraft.llm import LLM
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig, build_target_layer_ids, one_dimensional
from flashdraft.models.drafter_network import part_of
from flashdraft.provenance import collect_provenance
from flashdraft.train.config import TrainConfig
from flashdraft.train.features import feature_cache
from flashdraft.train.forward import Network
from flashdraft.train.log_file import LOG_FILE, read_log
from flashdraft.train.model_card import write_card
from flashdraft.train.ranks import Ranks
from flashdraft.train.trainer import Trainer
from flashdraft.whole_files import write_whole

NUM_TAPS = 2  # of DFlash 2's convolutions
VALIDATION_SHARE = 0.02  # of the prompts, chosen by their ids: the same ones whatever else is in the data
_SAID = (
    "resumed", "num_documents", "num_answer_tokens", "num_cut_answers", "beyond_seq_len", "held_back", "num_rows",
    "num_anchors",
)  # fmt: skip


@dataclass(frozen=True)
class Rollout:
    """A server that answers in place of a target here. ``model``: its name there; None: the first that it lists."""

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)


def make_answers(
    data: OnPolicyConfig,
    prompts: Sequence[Prompt],
    folder: Path,
    device: str,
    dtype: str,
    draft: str | None = None,
    rollout: Rollout | None = None,
) -> None:
    """Let the target answer ``prompts`` into ``folder`` (see :func:`generate_answers`).

    By ``rollout``, where there is one; else through the engine, with ``draft`` (None: LLM's own choice) where drafting
    pays.
    """
    tokenizer = load_tokenizer(data.target)
    answerer = _answerer(data, device, dtype, draft) if rollout is None else _served(data, rollout, tokenizer)
    generate_answers(answerer, tokenizer, prompts, data, folder)


def _served(data: OnPolicyConfig, rollout: Rollout, tokenizer: Any) -> Callable[[int], Answerer]:
    eos, place = eos_token_ids(data.target), (rollout.model, rollout.api_key)
    sizes = data.max_new_tokens, data.num_rows
    return lambda seed: ServerAnswers(rollout.url, tokenizer, eos, *sizes, seed, *place)


def _answerer(data: OnPolicyConfig, device: str, dtype: str, draft: str | None) -> Callable[[int], Answerer]:
    named: dict[str, Any] = {} if draft is None else {"draft": draft}
    llm = LLM(data.target, dtype=dtype, device=device, **named)
    is_cuda = torch.device(device).type == "cuda"
    longest = data.max_prompt_len + data.max_new_tokens if is_cuda else None
    # Steps of so many rows are bound by their arithmetic: there nobody drafts.
    drafter = None if is_cuda and data.num_rows > MOST_RECORDED_ROWS else llm.drafter
    engine = Engine(llm.target, drafter, rollout_config(data.num_rows, longest), llm.eos_token_ids)
    return lambda seed: EngineAnswers(engine, data.max_new_tokens, seed)


def some_prompts(prompts: Sequence[Prompt], limit: int | None) -> list[Prompt]:
    """``limit`` of the prompts: the same subset for every limit's prefix, spread over all sources."""
    # Not by crc32, of which validation is a range: of ids of one length a range of the one is a range of the other.
    return sorted(prompts, key=lambda prompt: hashlib.sha256(prompt.id.encode()).digest())[:limit]


def train_drafter(
    target_name: str,
    answers: Sequence[Path],
    folder: Path,
    config: TrainConfig,
    device: str,
    dtype: str,
    init: str | None,
    on_report: Callable[[dict[str, Any]], None],
    pause_minutes: float = float("inf"),
    features: str = "fly",
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train on the answers and write ``folder/drafter``; resumes what ``folder`` holds. Returns that path.

    ``init``: a drafter to start from (weights only). ``pause_minutes``: stop by then, to be resumed. ``features``:
    "fly", "cache" or "auto", see :func:`feature_cache`. ``ranks``: each of the run's processes calls this with its own.
    ``stop``: asked between steps, see :meth:`Trainer.train`. Raises UsageError, DataError or CheckpointError.
    """
    _check_ranks(config, features, ranks)
    folder.mkdir(parents=True, exist_ok=True)
    target = load_target(target_name, dtype=dtype, device=device).requires_grad_(False)
    documents = [doc for one in answers for doc in read_documents(one)]
    drafter = _first_drafter(target, target_name, config, device, dtype, init)
    notes = template_notes(answers)
    training, validation = split(documents, config, device)
    check_token_ids(target.config.vocab_size, training, *validation.values())
    cache, plan = feature_cache(
        features, target, drafter, training, config, folder / "features", {"target": target_name}, stop
    )
    trainer = Trainer(target, drafter, training, validation, config, folder, cache, ranks)
    resumed = trainer.resume()
    facts = {
        "config": asdict(config),
        "drafter": drafter.config.to_dict(),
        "resumed": resumed,
        "init": init,
        "num_documents": len(documents),
        "num_answer_tokens": sum(len(doc.answer_token_ids) for doc in documents),
        "num_cut_answers": sum(doc.finish_reason == "length" for doc in documents),
        "beyond_seq_len": _beyond(documents, config.seq_len),
        "held_back": _held_back(documents, config),
        "template": notes.get("chat_template_kwargs", {}),
        "num_rows": len(training),
        "num_anchors": int(training.is_anchor.sum()),
        "features": plan,
        "num_processes": ranks.count,
        "provenance": collect_provenance(device),
    }
    if ranks.is_first:
        write_whole(folder / "run.json", json.dumps(facts, indent=2) + "\n")
        on_report({name: facts[name] for name in _SAID} | {"features": plan["features"]})
    trainer.train(on_report, 60 * pause_minutes, stop)
    if ranks.is_first:
        save_drafter(drafter, folder / "drafter", torch.bfloat16, notes)
        log = read_log(folder) if (folder / LOG_FILE).exists() else []  # stopped before its first line
        write_card(folder / "drafter", target_name, facts, log)
    ranks.wait()
    return folder / "drafter"


def _beyond(documents: Sequence[Document], seq_len: int) -> dict[str, int]:
    """How many documents are left out of rows of ``seq_len`` tokens or cut there, in words."""
    unfit = count_unfit(documents, seq_len)
    return {
        "long prompts left out": unfit.num_long_prompts,
        "answers of one token left out": unfit.num_short_answers,
        "cut": unfit.num_cut,
    }


def _held_back(documents: Sequence[Document], config: TrainConfig) -> dict[str, int]:
    """How many documents are not trained on for evaluations, in words."""
    evaluated = sum(map(len, _evaluated(documents, config).values()))
    others = sum(map(is_held_back, documents)) - evaluated
    return {"evaluated": evaluated, "sampled, unfit or beyond --validation-documents": others}


def check_shape(target_name: str, config: TrainConfig) -> None:
    """Raise UsageError for a new drafter that cannot be made for the target, from its config and tokenizer alone."""
    target, tokenizer = outline_target(target_name), load_tokenizer(target_name)
    with torch.device("meta"):
        _network(target, tokenizer, config)


def _check_ranks(config: TrainConfig, features: str, ranks: Ranks) -> None:
    if config.rows_per_step % (ranks.count * config.accumulate):
        raise UsageError(
            f"rows_per_step is {config.rows_per_step}; expected a multiple of {ranks.count * config.accumulate}"
            " (processes times --accumulate)"
        )
    if ranks.count > 1 and features != "fly":
        raise UsageError(f"--features is {features!r}; expected fly where several processes train")


def _first_drafter(
    target: TargetModel, target_name: str, config: TrainConfig, device: str, dtype: str, init: str | None
) -> Network:
    if init is None:
        new = new_drafter(target, load_tokenizer(target_name), config)
        return new.to(device=device, dtype=target.dtype)
    drafter = load_trainable(init, target, dtype, device)
    if config.head == "dflash2" and isinstance(drafter, DFlashModel):
        drafter = with_dflash2(drafter, config)
    if drafter.method != config.method:
        raise UsageError(f"{init} is no drafter of method {config.method}; give another --init or --method")
    return drafter


def with_dflash2(drafter: DFlashModel, config: TrainConfig) -> DFlashModel:
    """``drafter`` with those of DFlash 2's parts that it lacks: convolutions that change nothing, a random selector.

    A selector of a lower rank than the config's gets ranks that add nothing yet.
    """
    shape = drafter.config
    if not shape.conv_kernel_size:
        shape = replace(shape, conv_kernel_size=NUM_TAPS, conv_group_size=config.conv_group_size)
    if not shape.selector_rank:
        shape = replace(
            shape,
            selector_top_k=config.selector_top_k,
            selector_projects_head=config.selector_projects_head and config.selector_rank > 0,
        )
    shape = replace(shape, selector_rank=max(shape.selector_rank, config.selector_rank))
    weight = drafter.fc.weight
    grown = DFlashModel(shape)
    grown.init_weights(torch.Generator().manual_seed(config.seed))
    if drafter.candidate_selector is not None and grown.candidate_selector is not None:
        grown.candidate_selector.begin_as(drafter.candidate_selector)
    grown.to(device=weight.device, dtype=weight.dtype)
    kept = {name: t for name, t in drafter.state_dict().items() if not name.startswith("candidate_selector.")}
    grown.load_state_dict(kept, strict=False)
    return grown


def template_notes(answers: Sequence[Path]) -> dict[str, Any]:
    """How prompts were told to the target, for the drafter's config.json.

    Raises DataError for folders that were not made alike: no drafter could be served as both.
    """
    told = [read_config(one).chat_template_kwargs for one in answers]
    if len(set(told)) > 1:
        raise DataError(
            f"the answers were made with different values of the chat template: {', '.join(sorted(set(told)))}; train"
            " on folders of one kind"
        )
    return {"chat_template_kwargs": json.loads(told[0])} if told else {}


def load_trainable(name: str, target: TargetModel, dtype: str, device: str) -> Network:
    """A drafter to go on training. Raises UsageError for one with a head of its own."""
    drafter = load_drafter(name, target, dtype=dtype, device=device).requires_grad_(True)
    if isinstance(drafter, DFlashModel) and drafter.lm_head is not None:
        raise UsageError(
            f"drafter {name} has a head of its own over {len(drafter.d2t)} tokens; expected one that drafts through the"
            " target's head, which is what is trained here"
        )
    if isinstance(drafter, DFlashModel) and drafter.config.scales_logits:
        raise UsageError(
            f"drafter {name} multiplies or caps its logits; expected one that drafts by the target's head as it is,"
            " which is what is trained here"
        )
    return drafter


def split(
    documents: Sequence[Document], config: TrainConfig, device: torch.device | str
) -> tuple[PackedRows, dict[str, PackedRows]]:
    """Packed training rows, and validation rows by kind of text (greedy answers alone, so that they can be walked).

    Every answer to a validation prompt stays out of training.
    """
    training = [document for document in documents if not is_held_back(document)]
    evaluated = _evaluated(documents, config)
    if not evaluated:
        raise _nothing_held_back(f"{len(documents)} answers")
    validation = {name: pack(docs, config.seq_len, device) for name, docs in evaluated.items()}
    return pack(training, config.seq_len, device), validation


def _evaluated(documents: Sequence[Document], config: TrainConfig) -> dict[str, list[Document]]:
    """Held-back answers that are evaluated, by kind of text: greedy ones that fit a row, equally many of each kind."""
    held_back: dict[str, list[Document]] = {}
    for document in documents:
        if is_held_back(document) and document.temperature == 0 and fits(document, config.seq_len):
            held_back.setdefault(group_of(document.source), []).append(document)
    share = max(config.validation_documents // max(len(held_back), 1), 1)
    return {name: docs[:share] for name, docs in sorted(held_back.items())}


def check_validation(prompts: Sequence[Prompt], temperatures: Sequence[float]) -> None:
    """Raise UsageError where none of the answers to come could be held back, before any is made."""
    if 0 not in temperatures or not any(_is_validation(prompt.id) for prompt in prompts):
        raise _nothing_held_back(f"the answers to {len(prompts)} prompts")


def _nothing_held_back(what: str) -> UsageError:
    return UsageError(
        f"none of {what} falls into the validation split ({VALIDATION_SHARE:.0%} of the prompts, chosen by their ids,"
        " greedy answers that fit a row); give some hundred prompts (sample: 200 of ours), and 0 among the temperatures"
    )


def is_held_back(document: Document) -> bool:
    """Whether the answer belongs to a validation prompt."""
    return _is_validation(document.id)


def _is_validation(prompt_id: str) -> bool:
    return zlib.crc32(b"validation " + conversation_of(prompt_id).encode()) / 2**32 < VALIDATION_SHARE


def new_drafter(target: TargetModel, tokenizer: Any, config: TrainConfig) -> Network:
    """A drafter with random weights in the shape of the target's own layers."""
    drafter = _network(target, tokenizer, config)
    drafter.init_weights(torch.Generator().manual_seed(config.seed))
    return drafter


def _network(target: TargetModel, tokenizer: Any, config: TrainConfig) -> Network:
    if config.method == "dflash":
        return DFlashModel(dflash_shape(target, tokenizer, config))
    drafter: Network = part_of(config.method, "train").new_network(target, config)
    return drafter


def _dense_width(config: Any) -> int:
    """The target's ``intermediate_size``; where all its layers are sparse and it has none, 3 x the hidden size.

    That is what published drafters of such targets have (z-lab/Qwen3.5-35B-A3B-DFlash).
    """
    return int(getattr(config, "intermediate_size", None) or 3 * config.hidden_size)


def dflash_shape(target: TargetModel, tokenizer: Any, config: TrainConfig) -> DFlashConfig:
    """Of a new DFlash drafter. Raises UsageError where there is no such shape."""
    theirs = target.config
    mask_token_id = config.mask_token_id
    if mask_token_id is None:
        mask_token_id = spare_token_id(tokenizer)
    is_dflash2 = config.head == "dflash2"
    return DFlashConfig(
        conv_kernel_size=NUM_TAPS if is_dflash2 else 0,
        conv_group_size=config.conv_group_size,
        selector_rank=config.selector_rank if is_dflash2 else 0,
        selector_top_k=config.selector_top_k,
        selector_projects_head=is_dflash2 and config.selector_projects_head,
        is_causal=False if is_dflash2 else None,
        hidden_size=theirs.hidden_size,
        intermediate_size=config.intermediate_size or _dense_width(theirs),
        num_hidden_layers=config.num_layers,
        num_attention_heads=theirs.num_attention_heads,
        num_key_value_heads=theirs.num_key_value_heads,
        head_dim=theirs.head_dim,
        vocab_size=theirs.vocab_size,
        block_size=config.block_size,
        mask_token_id=mask_token_id,
        target_layer_ids=build_target_layer_ids(theirs.num_hidden_layers, config.num_features),
        num_target_layers=theirs.num_hidden_layers,
        max_position_embeddings=theirs.max_position_embeddings,
        rms_norm_eps=theirs.rms_norm_eps,
        rope_parameters=one_dimensional(theirs.rope_parameters),
    )


def spare_token_id(tokenizer: Any) -> int:
    """A special token that neither texts nor the chat template use: its embedding stands for MASK.

    Raises UsageError when the tokenizer has none.
    """
    named = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
    template = str(tokenizer.chat_template or "")
    spare = [
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and token_id not in named and token.content not in template
    ]
    if not spare:
        raise UsageError("the tokenizer has no spare special token for MASK; name one with --mask-token-id")
    return int(max(spare))
