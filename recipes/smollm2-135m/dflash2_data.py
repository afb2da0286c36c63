"""What dflash2.py trains on: the target's answers, and rows of 8,192 tokens of them.

A row is eight packed rows of 1,024 tokens whose documents do not see each other, or one conversation: documents one
behind the other, turn by turn, as long as the row. So one step has blocks behind short contexts and behind long ones,
and every step the same shape. Where the target's features of all rows fit they are kept on the device.
"""

import gc
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from dflash2_answers import Rollout
from dflash2_prompts import GREEDY, HELD_BACK, kind_of
from torch import Tensor

from flashdraft.checkpoint.load import eos_token_ids
from flashdraft.data.answerer import AnswerRequest
from flashdraft.data.engine_answers import EngineAnswers, rollout_config
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.engine.engine import Engine
from flashdraft.models.base import FINAL_HIDDEN, TargetModel
from flashdraft.train.forward import target_features
from flashdraft.train.run import is_held_back

SHORT = 1024  # tokens of a packed row
LONGEST_PERIOD, SHORTEST_LOOP = 64, 24  # tokens
LOOPS_KEPT = 2  # one looping answer of so many is kept whole
LEFT_FOR_TRAINING = 48 << 30  # bytes of a GPU that features leave alone


@dataclass(frozen=True)
class Sizes:
    """Of what is made: rows of ``seq_len`` tokens, ``long_share`` of the answers in rows of one conversation."""

    seq_len: int
    long_share: float
    answer_rows: int
    answer_seconds: float
    max_new_tokens: int
    greedy: float = GREEDY  # share of the prompts that the target makes itself


def answered(
    target: TargetModel, asked: Sequence[Document], closing: Sequence[int], sizes: Sizes
) -> list[Document]:
    """The target's answers to as many of ``asked`` as ``sizes.answer_seconds`` let begin."""
    config = rollout_config(sizes.answer_rows, 512 + sizes.max_new_tokens)
    engine = Engine(target, None, config, eos_token_ids("embedded"))
    answerer = EngineAnswers(engine, sizes.max_new_tokens)
    window = max(sizes.answer_rows, 64)
    made = Rollout(answerer, AnswerRequest, sizes.answer_seconds, window, sizes.greedy).run(asked, closing)
    del answerer, engine
    gc.collect()
    if target.device.type == "cuda":
        torch.cuda.empty_cache()
    return made


def loop_begins(token_ids: list[int]) -> int:
    """Tokens of an answer until it repeats itself to its end and has done so twice; its length if it never does."""
    for period in range(1, LONGEST_PERIOD + 1):
        repeated = max(period, SHORTEST_LOOP)
        if token_ids[-repeated:] == token_ids[-repeated - period : -period]:
            first = len(token_ids) - period
            while first and token_ids[first - 1] == token_ids[first - 1 + period]:
                first -= 1
            return min(first + period + repeated, len(token_ids))
    return len(token_ids)


def without_loops(documents: Sequence[Document]) -> list[Document]:
    """``documents`` cut where loops begin, but for one in LOOPS_KEPT: there is little to learn and much of it."""
    cut = []
    for number, document in enumerate(documents):
        answer = document.answer_token_ids
        length = loop_begins(answer) if number % LOOPS_KEPT else len(answer)
        cut.append(document if length == len(answer) else replace(document, answer_token_ids=answer[:length]))
    return cut


@dataclass(frozen=True)
class Data:
    """Rows that are trained on, which of their places are sampled answers', and held-back greedy rows by kind."""

    rows: PackedRows
    is_sampled: Tensor  # bool [num_rows, seq_len]
    validation: dict[str, PackedRows]
    sampled: dict[str, PackedRows]  # held-back answers at temperature 1, by kind

    def with_more(self, rows: PackedRows, is_sampled: Tensor, repeats: int) -> "Data":
        """These and ``repeats`` times ``rows``, of which those that are ``is_sampled`` [num_rows] are sampled."""
        device = self.rows.token_ids.device
        flags = is_sampled.to(device).unsqueeze(1).expand(len(rows), rows.token_ids.shape[1])
        more = [_on(device, rows)] * repeats
        sampled = torch.cat([self.is_sampled, *[flags] * repeats])
        return replace(self, rows=_together([self.rows, *more]), is_sampled=sampled)


def rows_of(documents: Sequence[Document], sizes: Sizes, target: TargetModel, rows_per_forward: int) -> Data:
    """Training rows, and rows of held-back answers by kind, on the target's device.

    "long" has the greedy ones behind each other, "seen" as many of each kind that are trained on: what is learned by
    heart.
    """
    device = target.device
    held_back: dict[float, dict[str, list[Document]]] = {0.0: {}, 1.0: {}}
    training = []
    for document in documents:
        if not is_held_back(document):
            training.append(document)
        elif len(document.answer_token_ids) > 1 and document.temperature in held_back:
            few = held_back[document.temperature].setdefault(kind_of(document.source), [])
            few += [document] * (len(few) < HELD_BACK)
    rng = random.Random(0)
    rng.shuffle(training)
    greedy = held_back[0.0]
    seen = {
        name: [one for one in training if one.temperature == 0 and kind_of(one.source) == name]
        for name in greedy
    }
    alike = [one for name, docs in greedy.items() for one in seen[name][: len(docs)]]
    validation, sampled = (
        {name: short_rows([docs], sizes, rng)[0] for name, docs in sorted(some.items())}
        for some in held_back.values()
    )
    validation["seen"], _ = short_rows([alike], sizes, rng)
    training = without_loops(training)
    num_long = int(sizes.long_share * len(training))
    first, is_sampled = short_rows(_by_heat(training[num_long:]), sizes, rng)
    parts, flags = [_on(device, first)], [is_sampled]
    if num_long:
        for heat, docs in enumerate(_by_heat(training[:num_long])):
            rows = _on(device, long_rows(docs, sizes.seq_len))
            if not heat:
                keep_own(target, rows, rows_per_forward)
            parts.append(rows)
            flags.append(torch.full(rows.is_anchor.shape, heat > 0))
        every = list(chain.from_iterable(greedy.values()))
        rng.shuffle(every)
        validation["long"] = long_rows(every, sizes.seq_len)
    by_kind = ({kind: _on(device, some) for kind, some in every.items()} for every in (validation, sampled))
    return Data(_together(parts), torch.cat(flags).to(device), *by_kind)


def _on(device: torch.device, rows: PackedRows) -> PackedRows:
    return PackedRows(*(t.to(device) for t in (rows.token_ids, rows.doc_start, rows.is_anchor)))


def _together(parts: Sequence[PackedRows]) -> PackedRows:
    fields = zip(*((p.token_ids, p.doc_start, p.is_anchor) for p in parts), strict=True)
    return PackedRows(*(torch.cat(list(tensors)) for tensors in fields))


def _by_heat(documents: Sequence[Document]) -> list[list[Document]]:
    """Greedy answers, and sampled ones."""
    return [[doc for doc in documents if (doc.temperature > 0) == heat] for heat in (False, True)]


def short_rows(
    groups: Sequence[Sequence[Document]], sizes: Sizes, rng: random.Random
) -> tuple[PackedRows, Tensor]:
    """Packed rows, some of them joined to one of ``sizes.seq_len`` tokens, in which their documents stay apart.

    No packed row has documents of two ``groups``. Beside the rows which of their places are not the first one's, bool.
    """
    seq_len, length = sizes.seq_len, min(SHORT, sizes.seq_len)
    parts = [(number, pack(docs, length)) for number, docs in enumerate(groups) if docs]
    packed = _together([part for _, part in parts])
    is_other = torch.cat([torch.full_like(part.is_anchor, number > 0) for number, part in parts])
    count = seq_len // length
    order = list(range(len(packed)))
    rng.shuffle(order)  # packing puts documents of one length side by side
    missing = -len(order) % count
    index = torch.tensor(order + [0] * missing)
    is_anchor = packed.is_anchor[index]
    if missing:
        is_anchor[-missing:] = False
    starts = torch.arange(len(index), dtype=packed.doc_start.dtype) % count * length
    rows = (packed.token_ids[index], packed.doc_start[index] + starts.unsqueeze(1), is_anchor)
    return PackedRows(*(t.reshape(-1, seq_len) for t in rows)), is_other[index].reshape(-1, seq_len)


def long_rows(documents: Sequence[Document], seq_len: int) -> PackedRows:
    """Rows of one conversation each: the documents as its turns, the system prompt once.

    An answer was given to its own prompt alone, so in a conversation it is a text that the target may have written.
    """
    if not documents:
        return PackedRows(*torch.zeros(2, 0, seq_len, dtype=torch.int32), torch.zeros(0, seq_len).bool())
    im_start = documents[0].prompt_token_ids[0]
    heads = Counter(_system(doc, im_start) for doc in documents)
    system = list(heads.most_common(1)[0][0])  # <|im_start|>system ... <|im_end|>\n
    rows: list[tuple[list[int], list[bool]]] = []
    for document in documents:
        if _system(document, im_start) != tuple(system) or len(document.answer_token_ids) < 2:
            continue
        prompt, answer = document.prompt_token_ids[len(system) :], document.answer_token_ids
        closing = system[-1:] if document.finish_reason == "stop" else system[-2:]
        anchors = [False] * len(prompt) + [True] * (len(answer) - 1) + [False] * (1 + len(closing))
        if not rows or len(rows[-1][0]) + len(anchors) > seq_len:
            rows.append((list(system), [False] * len(system)))
        rows[-1][0].extend([*prompt, *answer, *closing])
        rows[-1][1].extend(anchors)
    token_ids, is_anchor = np.zeros((2, len(rows), seq_len), dtype=np.int32)
    doc_start = np.zeros_like(token_ids)
    for row, (ids, anchors) in enumerate(rows):
        token_ids[row, : len(ids)], is_anchor[row, : len(ids)] = ids, anchors
        doc_start[row, len(ids) :] = len(ids)
    return PackedRows(
        torch.from_numpy(token_ids), torch.from_numpy(doc_start), torch.from_numpy(is_anchor).bool()
    )


@torch.no_grad()
def keep_own(target: TargetModel, rows: PackedRows, rows_per_forward: int) -> None:
    """Leave out anchors of greedy answers behind which the target's likeliest token is another than the text's.

    In a conversation that an answer was not given in these are 5 to 8 % (4,096 tokens): what is right to draft there
    is not the text's token. Blocks reach up to such a token and no further.
    """
    for first in range(0, len(rows), rows_per_forward):
        index = torch.arange(first, first + rows_per_forward, device=rows.token_ids.device)
        some = rows.rows(index.clamp(max=len(rows) - 1))  # the last one again, so that shapes stay the same
        final = target_features(target, some, (FINAL_HIDDEN,)).flatten(0, 1)
        best = torch.cat([target.argmax(part) for part in final.split(8192)]).view_as(some.token_ids)
        is_own = best[:, :-1] == some.token_ids[:, 1:]
        end = min(first + rows_per_forward, len(rows))
        rows.is_anchor[first:end, :-1] &= is_own[: end - first]


def _system(document: Document, im_start: int) -> tuple[int, ...]:
    """A prompt's token ids before its first turn: the second <|im_start|> on."""
    ids = document.prompt_token_ids
    return tuple(ids[: ids.index(im_start, 1)]) if im_start in ids[1:] else ()


class FeaturesOnDevice:
    """The target's features of all rows, in the device's memory: what Trainer reads in place of a forward."""

    def __init__(
        self, target: TargetModel, rows: PackedRows, layers: Sequence[int], per_forward: int
    ) -> None:
        shape = *rows.token_ids.shape, len(layers) * target.config.hidden_size
        self.values = torch.empty(shape, dtype=target.dtype, device=target.device)
        for first in range(0, len(rows), per_forward):
            # A short last group begins earlier, so that shapes stay the same.
            index = torch.arange(first, first + per_forward, device=target.device)
            index = (index - max(first + per_forward - len(rows), 0)).clamp(min=0)
            self.values[index] = target_features(target, rows.rows(index), layers)

    def read(self, index: Tensor, device: torch.device) -> Tensor:
        """Features [n, seq_len, width] of the rows ``index`` [n]."""
        return self.values[index.to(device)]


def fitting(target: TargetModel, rows: PackedRows, layers: Sequence[int]) -> int:
    """Rows whose features fit beside training; on a CPU all."""
    if target.device.type != "cuda":
        return len(rows)
    row_bytes = rows.token_ids.shape[1] * len(layers) * target.config.hidden_size * target.dtype.itemsize
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(target.device)
    return min(int((free - LEFT_FOR_TRAINING) // row_bytes), len(rows))
