"""The target's answers to prepared prompts, and to those that it goes on with itself; kept between calls."""

import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dflash2_prompts import GREEDY

from flashdraft.data.on_policy import Document
from flashdraft.train.run import is_held_back

SHORTEST, LONGEST = 6, 160  # tokens of what the target asks as the user


@dataclass
class Rollout:
    """Answers as long as ``seconds`` let them begin, through ``answerer``, whose requests ``request`` makes."""

    answerer: Any
    request: Callable[[int, Sequence[int], float], Any]
    seconds: float
    window: int  # long prompts come first within so many, so that a prefill pads little
    greedy: float = GREEDY  # share of the prompts that the target made itself

    def run(self, asked: Sequence[Document], closing: Sequence[int]) -> list[Document]:
        """Answers to as many of ``asked`` as time lets begin.

        Where one is a beginning, the target goes on as the user would, and is then asked what it wrote, closed by
        ``closing``; what has no end or is short is dropped.
        """
        every, ready, made = list(asked), deque[int](), list[Document]()
        started = time.monotonic()

        def requests() -> Iterator[Any]:
            order = sorted(
                range(len(asked)), key=lambda i: (i // self.window, -len(asked[i].prompt_token_ids))
            )
            waiting = iter(order)
            while time.monotonic() - started < self.seconds:
                i = ready.popleft() if ready else next(waiting, None)
                if i is None:
                    return
                yield self.request(i, every[i].prompt_token_ids, every[i].temperature)

        for answers in self.answerer.run(requests()):
            for one in answers:
                document = every[one.key]
                if one.key >= len(asked) or not document.source.startswith("begun"):
                    made.append(
                        replace(document, answer_token_ids=one.token_ids, finish_reason=one.finish_reason)
                    )
                elif one.finish_reason == "stop" and SHORTEST <= len(one.token_ids) <= LONGEST:
                    ready.append(len(every))
                    every.append(_asked(document, one.token_ids[:-1], closing, self.greedy))
        return made


def _asked(beginning: Document, token_ids: Sequence[int], closing: Sequence[int], greedy: float) -> Document:
    """The prompt that a ``beginning`` became: a share of ``greedy`` at 0, the others at 1; held back ones greedy."""
    place = zlib.crc32(f"heat {beginning.id}".encode()) / 2**32
    heat = 0.0 if place < greedy or is_held_back(beginning) else 1.0
    return replace(
        beginning, temperature=heat, prompt_token_ids=[*beginning.prompt_token_ids, *token_ids, *closing]
    )


def save_answers(documents: Sequence[Document], folder: Path) -> None:
    """Write ``folder/answers.npz``: names, temperatures, and the token ids of prompts and answers."""
    prompts = [doc.prompt_token_ids for doc in documents]
    answers = [doc.answer_token_ids for doc in documents]
    whole = folder / "answers.part.npz"
    np.savez(
        whole,
        names=np.array([f"{doc.source}\t{doc.id}\t{doc.finish_reason}" for doc in documents]),
        temperatures=np.array([doc.temperature for doc in documents], dtype=np.float16),
        **{f"{name}_lengths": np.array([len(ids) for ids in every], dtype=np.int64)
           for name, every in (("prompt", prompts), ("answer", answers))},
        **{f"{name}_token_ids": np.concatenate([np.array(ids, dtype=np.uint16) for ids in every])
           for name, every in (("prompt", prompts), ("answer", answers))},
    )  # fmt: skip
    whole.replace(folder / "answers.npz")


def saved_answers(folder: Path) -> list[Document]:
    """The answers that ``folder`` keeps; none where it keeps none."""
    file = folder / "answers.npz"
    if not file.exists():
        return []
    stored: dict[str, Any] = dict(np.load(file))

    def texts(name: str) -> Iterator[list[int]]:
        flat, end = stored[f"{name}_token_ids"].tolist(), 0
        for length in stored[f"{name}_lengths"].tolist():
            end += length
            yield flat[end - length : end]

    heats = stored["temperatures"].tolist()
    every = zip(stored["names"].tolist(), heats, texts("prompt"), texts("answer"), strict=True)
    documents = []
    for name, heat, prompt, answer in every:
        source, prompt_id, reason = name.split("\t")
        documents.append(Document(prompt_id, source, round(heat, 2), prompt, answer, reason))
    return documents
