"""Conversations of thousands of tokens, the later answers given by the target in them, for dflash2.py's long rows.

    python recipes/smollm2-135m/dflash2_conversations.py --run runs/dflash2 --seconds 90   # once answers.npz is there

Each begins with prompts and answers of ``--run``, BEGINS of a row's tokens; then one prompt follows another, and each
is answered behind all that was said, up to ``--seq-len`` tokens. Rows of answers that were given to their own prompts
alone (dflash2_data.long_rows) have texts there that the target would not write behind so much: it repeats what was
said. ``conversations.npz`` holds the rows, with their places from which blocks are drafted: the later answers'.
"""

import argparse
import json
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dflash2_answers import saved_answers
from dflash2_prompts import read_prepared
from torch import Tensor

from flashdraft.checkpoint.load import eos_token_ids, load_target
from flashdraft.data.answerer import AnswerRequest
from flashdraft.data.engine_answers import EngineAnswers
from flashdraft.data.loader import PackedRows
from flashdraft.data.on_policy import Document
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.models.base import TargetModel
from flashdraft.train.run import is_held_back

BEGINS = 0.3, 0.7  # of a row's tokens: a conversation's first share, between these
GREEDY = 0.7  # share of the conversations; the others are at temperature 1
FEWEST = 64  # tokens of answers that make a conversation worth a row


@dataclass
class Conversation:
    """Its token ids so far, and which of them are such an answer's that another token of it follows."""

    token_ids: list[int]
    temperature: float
    is_anchor: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_anchor = [False] * len(self.token_ids)

    def say(self, token_ids: Sequence[int], is_answer: bool = False) -> None:
        """Put ``token_ids`` behind it."""
        last = [False] * min(len(token_ids), 1)
        self.token_ids += token_ids
        self.is_anchor += [is_answer] * (len(token_ids) - len(last)) + last


class Conversations:
    """Made out of ``documents``, greedy answers to prompts with one system prompt, through ``answerer``."""

    def __init__(
        self, answerer: EngineAnswers, documents: Sequence[Document], asked: Sequence[Document], seq_len: int
    ) -> None:
        self.answerer, self.seq_len, self.rng = answerer, seq_len, random.Random(0)
        im_start = documents[0].prompt_token_ids[0]
        ids = documents[0].prompt_token_ids
        self.system = ids[: ids.index(im_start, 1)]  # <|im_start|>system ... <|im_end|>\n
        self.documents = [doc for doc in documents if doc.temperature == 0 and self._is_plain(doc)]
        self.asked = [doc for doc in asked if not doc.source.startswith("begun") and self._is_plain(doc)]

    def _is_plain(self, document: Document) -> bool:
        ids = document.prompt_token_ids
        return ids[: len(self.system)] == self.system and not is_held_back(document)

    def begin(self) -> Conversation:
        """Turns of documents, and a prompt."""
        heat = 0.0 if self.rng.random() < GREEDY else 1.0
        low, high = (int(share * self.seq_len) for share in BEGINS)
        conversation, length = Conversation(list(self.system), heat), self.rng.randint(low, high)
        while len(conversation.token_ids) < length:
            document = self.rng.choice(self.documents)
            conversation.say(document.prompt_token_ids[len(self.system) :])
            self._close(conversation, document.answer_token_ids, document.finish_reason, is_own=False)
        self._ask(conversation)
        return conversation if self._has_room(conversation) else self.begin()

    def _has_room(self, conversation: Conversation) -> bool:
        """For one more answer and what closes it."""
        return len(conversation.token_ids) + self.answerer.max_new_tokens + 2 <= self.seq_len

    def _ask(self, conversation: Conversation) -> None:
        conversation.say(self.rng.choice(self.asked).prompt_token_ids[len(self.system) :])

    def _close(self, conversation: Conversation, answer: Sequence[int], reason: str, is_own: bool) -> None:
        conversation.say(answer, is_own)
        conversation.say(self.system[-1:] if reason == "stop" else self.system[-2:])

    def run(self, seconds: float) -> list[Conversation]:
        """As many as get answers while ``seconds`` let turns begin; those that could be longer are among them."""
        every: list[Conversation] = []
        ready, started = deque[int](), time.monotonic()

        def requests() -> Iterator[AnswerRequest]:
            while time.monotonic() - started < seconds:
                if not ready:
                    ready.append(len(every))
                    every.append(self.begin())
                key = ready.popleft()
                yield AnswerRequest(key, every[key].token_ids, every[key].temperature)

        for answers in self.answerer.run(requests()):
            for one in answers:
                conversation = every[one.key]
                self._close(conversation, one.token_ids, one.finish_reason, is_own=True)
                before = len(conversation.token_ids)
                self._ask(conversation)
                if self._has_room(conversation):
                    ready.append(one.key)
                else:
                    del conversation.token_ids[before:], conversation.is_anchor[before:]
        return [one for one in every if sum(one.is_anchor) >= FEWEST]


def save_conversations(conversations: Sequence[Conversation], seq_len: int, folder: Path) -> None:
    """Write ``folder/conversations.npz``."""
    token_ids, is_anchor = np.zeros((2, len(conversations), seq_len), dtype=np.uint16)
    for row, one in enumerate(conversations):
        token_ids[row, : len(one.token_ids)] = one.token_ids
        is_anchor[row, : len(one.token_ids)] = one.is_anchor
    np.savez(
        folder / "conversations.part.npz",
        token_ids=token_ids,
        is_anchor=is_anchor.astype(bool),
        lengths=np.array([len(one.token_ids) for one in conversations], dtype=np.int64),
        temperatures=np.array([one.temperature for one in conversations], dtype=np.float16),
    )
    (folder / "conversations.part.npz").replace(folder / "conversations.npz")


def saved_conversations(folder: Path, seq_len: int) -> tuple[PackedRows, Tensor]:
    """Rows of ``seq_len`` tokens of ``folder``, and which rows are sampled, bool; none where it keeps none.

    Raises ValueError where they were made for another length.
    """
    file = folder / "conversations.npz"
    if not file.exists():
        return PackedRows(*torch.zeros(2, 0, seq_len, dtype=torch.int32), torch.zeros(0, seq_len).bool()), (
            torch.zeros(0).bool()
        )
    stored: dict[str, Any] = dict(np.load(file))
    token_ids = torch.from_numpy(stored["token_ids"].astype(np.int32))
    if token_ids.shape[1] != seq_len:
        raise ValueError(
            f"{file} has rows of {token_ids.shape[1]} tokens; expected {seq_len}: make them with --seq-len {seq_len}"
        )
    lengths = torch.from_numpy(stored["lengths"]).unsqueeze(1).int()
    place = torch.arange(seq_len, dtype=torch.int32)
    doc_start = torch.where(place < lengths, 0, lengths)
    heats = torch.from_numpy(stored["temperatures"].astype(np.float32))
    return PackedRows(token_ids, doc_start, torch.from_numpy(stored["is_anchor"])), heats > 0


def conversing(target: TargetModel, num_rows: int, seq_len: int, max_new_tokens: int) -> EngineAnswers:
    """What answers ``num_rows`` conversations of ``seq_len`` tokens at a time; a turn finds what was said before."""
    config = EngineConfig(max_running=num_rows, num_scheduler_steps=8)
    pages = 2 * num_rows * -(-seq_len // config.page_size)  # as many wait for their turn
    engine = Engine(target, None, replace(config, num_pages=pages), eos_token_ids("embedded"))
    return EngineAnswers(engine, max_new_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, default=Path("runs/dflash2"))
    parser.add_argument("--seconds", type=float, default=90.0, help="in which turns begin")
    parser.add_argument("--rows", type=int, default=224, help="answers at a time")
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--max-new-tokens", type=int, default=192, help="of an answer")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    started = time.monotonic()
    target = load_target("embedded", dtype=args.dtype, device=args.device).requires_grad_(False)
    asked, _ = read_prepared(args.run)
    answerer = conversing(target, args.rows, args.seq_len, args.max_new_tokens)
    making = Conversations(answerer, saved_answers(args.run), asked, args.seq_len)
    print(json.dumps({"stage": "begins", "at_s": round(time.monotonic() - started, 1)}), flush=True)
    made = making.run(args.seconds)
    save_conversations(made, args.seq_len, args.run)
    lengths = sorted(len(one.token_ids) for one in made)
    facts = {
        "num_conversations": len(made),
        "num_anchors": sum(sum(one.is_anchor) for one in made),
        "median_tokens": lengths[len(lengths) // 2],
        "num_greedy": sum(one.temperature == 0 for one in made),
    }
    print(json.dumps({"stage": "conversations", "at_s": round(time.monotonic() - started, 1), **facts}))


if __name__ == "__main__":
    main()
