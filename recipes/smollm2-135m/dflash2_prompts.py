"""The prompts that dflash2.py trains on: mathematics and code half of them, chat of many kinds the other half.

    python recipes/smollm2-135m/dflash2_prompts.py --prompts prompts/ --run runs/dflash2      # once, on any machine

Chat is conversations, summaries, translations and questions about texts, most of them made from the passages that
other prompts bring along. Some prompts are beginnings alone: the target writes on as the user, and then answers what it
asked. ``prompts.npz`` holds token ids and temperatures, those that are held back from training first;
``held_back.jsonl`` has these as chat data, for benchmarks/acceptance.py.
"""

import argparse
import json
import random
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from dflash2_variants import FUNCTION, variants

from flashdraft.checkpoint.load import load_tokenizer
from flashdraft.data.on_policy import Document
from flashdraft.data.prompts import Prompt, encode_prompts, read_prompts
from flashdraft.train.run import is_held_back

# Shares of the answers, by the kind of prompt. Run i left mathematics and code at 6.2 and 5.8 tokens a round, and
# questions, instructions, summaries and texts at 3.4 to 3.7, so chat has 55 % where it had 46.
SHARES = {
    "gsm8k": 0.12, "hendrycks": 0.10, "functions": 0.06, "descriptions": 0.01, "code": 0.10, "chat": 0.34,
    "begun-functions": 0.05, "begun-code": 0.01, "begun-chat": 0.21,
}  # fmt: skip
# Shares of the answers at temperature 0 and 0.7; the others are at 1, where run i accepts 2.0 (it had 20 % of them).
GREEDY, WARM = 0.62, 0.10
AGAIN = {
    "functions": 3,
    "descriptions": 3,
    "code": 2,
    "chat": 2,
}  # times that prompts are asked, at other temperatures
KINDS = {  # of prompts, for the figures
    "math": "math", "code": "code", "medquad": "questions", "interview-questions": "open questions",
    "openassistant": "open questions", "concepts": "open questions", "t0-tasks": "instructions",
    "self-instruct-seeds": "instructions", "pubmedqa": "texts", "texts": "texts", "summaries": "summaries",
    "translation": "translation", "begun": "begun",
}  # fmt: skip
PASSAGES = ("chat-book-passages", "chat-pubmedqa", "chat-countries")
LANGUAGES = ("French", "German", "Spanish", "Italian", "Portuguese", "Dutch")
SUMMARIES = (
    "Summarize the following text in two or three sentences:\n\n{}",
    "Please write a short summary of this article.\n\n{}",
    "{}\n\nTL;DR",
    "Give me the key points of the text below as a bulleted list.\n\n{}",
    "Summarize: {}",
)
TRANSLATIONS = ("Translate to {0}: {1}", "Translate this into {0}.\n\n{1}", "How do you say this in {0}? {1}")
QUESTIONS = (
    "What is this text mainly about?",
    "Which facts does the text state? Name three.",
    "Who or what is described, and what happens?",
    "What conclusion can be drawn from it?",
    "What reasons are given, and for what?",
)
GROUNDED = (
    "Answer the question using only the context.\n\nContext: {}\n\nQuestion: {}\nAnswer:",
    "You are given the following document.\n\n{}\n\nBased on the document, answer this: {}",
    "Use the following pieces of information to answer the question at the end.\n\n[1] {}\n\nQuestion: {}",
)
BEGUN_FUNCTIONS = ("Write a function to", "Write a function to", "Write a python function to")
BEGUN_CODE = (FUNCTION.split("{}")[0] + "def", FUNCTION.split("{}")[0] + "from typing import List\n\n\ndef")
BEGUN_CHAT = (
    *[""] * 14, "Write a", "Describe", "Compose a", "Imagine you are", "Explain", "What", "How", "Why", "Suppose",
    "Draft", "Can you", "Could you", "Given", "Which", "Discuss", "Analyze", "Pretend to be", "Provide",
)  # fmt: skip
BEGUN_TEMPERATURE = 0.8
HELD_BACK = 48  # prompts of each kind
TASKS_OVER_A_TEXT = (
    2  # times that a passage is summarised, translated and asked about: whole, then a part of it
)


def kind_of(source: str) -> str:
    """Which of the figures a prompt counts for."""
    group, _, rest = source.partition("-")
    return (KINDS.get(rest) if group != "begun" else None) or KINDS.get(group) or "chat"


def share_of(source: str) -> str:
    """Which of SHARES a prompt is of."""
    group, _, rest = source.partition("-")
    if group == "math":
        return "gsm8k" if rest.startswith("gsm8k") else "hendrycks"
    name = rest.removesuffix("+")
    return name if group == "code" and name in SHARES else group


def derived(prompts: Sequence[Prompt], rng: random.Random) -> Iterator[Prompt]:
    """More tasks over the texts that prompts bring along; they are held back where the prompt is."""
    for prompt in prompts:
        if prompt.source not in PASSAGES:
            continue
        whole = max(prompt.messages[0]["content"].split("\n\n", 1), key=len).strip()
        number = 0
        for part in range(TASKS_OVER_A_TEXT):
            text = _part_of(whole, rng) if part else whole
            sentences = [s for s in re.split(r"(?<=[.!?])\s+", text) if 30 <= len(s) <= 220]
            if len(text) < 200 or not sentences:
                continue
            language = rng.choice(LANGUAGES)
            few = " ".join(rng.sample(sentences, min(len(sentences), rng.choice((1, 1, 2)))))
            tasks = {
                "summaries": rng.choice(SUMMARIES).format(text[:1600]),
                "translation": rng.choice(TRANSLATIONS).format(language, few),
                "texts": rng.choice(GROUNDED).format(text[:1600], rng.choice(QUESTIONS)),
            }
            for name, task in tasks.items():
                number += 1
                yield Prompt(prompt.id + "+" * number, f"chat-{name}", ({"role": "user", "content": task},))


def _part_of(text: str, rng: random.Random) -> str:
    """Some sentences of a text that follow each other."""
    sentences = re.split(r"(?<=[.!?])\s+", text)
    first = rng.randrange(len(sentences))
    return " ".join(sentences[first : first + rng.randint(2, 8)])


def begun(rng: random.Random) -> dict[str, Iterator[Prompt]]:
    """Beginnings of what a user may ask, without end."""

    def of(name: str, texts: Sequence[str]) -> Iterator[Prompt]:
        for number in count():
            message = {"role": "user", "content": rng.choice(texts)}
            yield Prompt(f"{name}-{number}", name, (message,))

    every = {
        "begun-functions": BEGUN_FUNCTIONS,
        "begun-code": BEGUN_CODE,
        "begun-chat": BEGUN_CHAT,
    }
    return {name: of(name, texts) for name, texts in every.items()}


def prepare(prompts: Path, run: Path, limit: int, seed: int, greedy: float = GREEDY) -> None:
    """Write ``run/prompts.npz``: the token ids of ``limit`` prompts in the order in which they are to be answered.

    Those that are held back come first, each greedy and at temperature 1. Kinds of text follow each other by their
    shares. Another ``seed``: other numbers, tasks and beginnings, and other temperatures of the same prompts. A
    share of ``greedy`` is asked at 0 first.
    """
    rng = random.Random(seed)
    found = [
        replace(one, source=one.id.split("/")[0]) for one in read_prompts(prompts)
    ]  # the file that it is from
    found += list(derived(found, rng))
    found += variants(found, rng)
    rng.shuffle(found)
    held_back = [p for name in sorted(set(KINDS.values()) | {"chat"}) for p in _held_back(found, name)]
    queues: dict[str, Iterator[tuple[Prompt, float]]] = {
        name: _queue([p for p in found if share_of(p.source) == name], AGAIN.get(name, 1), seed, greedy)
        for name in SHARES
    }
    queues |= {name: ((p, BEGUN_TEMPERATURE) for p in prompts) for name, prompts in begun(rng).items()}
    taken, ordered = dict.fromkeys(SHARES, 0), [(p, heat) for heat in (0.0, 1.0) for p in held_back]
    while len(ordered) < limit:
        name = min(queues, key=lambda n: taken[n] / SHARES[n])
        following = next(queues[name], None)
        if following is None:
            del queues[name]
            continue
        taken[name] += 1
        ordered.append(following)
    write(ordered, run)
    rows = [
        {"id": f"held-back-{number}", "source": kind_of(p.source), "prompt": p.messages[-1]["content"]}
        for number, p in enumerate(held_back)
    ]
    (run / "held_back.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"taken {taken}")


def _queue(prompts: Sequence[Prompt], again: int, seed: int, greedy: float) -> Iterator[tuple[Prompt, float]]:
    """Prompts that are not held back, at their temperatures."""
    kept = [p for p in prompts if not _is_held_back(p)]
    for number in range(again):
        for prompt in kept:
            place = zlib.crc32(f"{seed} {prompt.source} {prompt.id}".encode()) / 2**32
            first = (0.0, 0.7, 1.0)[(place >= greedy) + (place >= greedy + WARM)]
            yield prompt, (first, 0.0 if first else 1.0, 0.7 if first != 0.7 else 1.0)[number]


def write(asked: Sequence[tuple[Prompt, float]], run: Path) -> None:
    """``run/prompts.npz``. A beginning is cut where the user goes on; what closes a turn of his is kept beside them."""
    tokenizer = load_tokenizer("embedded")
    token_ids = encode_prompts(tokenizer, [p for p, _ in asked], {})
    empty, other = encode_prompts(tokenizer, [_user("one"), _user("two")], {})
    first = next(i for i, (one, two) in enumerate(zip(empty, other, strict=True)) if one != two)
    closing = empty[first + 1 :]  # <|im_end|> and what opens the answer
    kept = [
        (p, heat, ids[: len(ids) - len(closing)] if p.source.startswith("begun") else ids)
        for (p, heat), ids in zip(asked, token_ids, strict=True)
        if len(ids) <= 512
    ]
    run.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        run / "prompts.npz",
        token_ids=np.concatenate([np.array(ids, dtype=np.uint16) for _, _, ids in kept]),
        lengths=np.array([len(ids) for _, _, ids in kept], dtype=np.uint16),
        temperatures=np.array([heat for _, heat, _ in kept], dtype=np.float16),
        names=np.array([f"{p.source}\t{p.id}" for p, _, _ in kept]),
        closing=np.array(closing, dtype=np.uint16),
    )
    print(f"{len(kept)} prompts, {sum(len(ids) for _, _, ids in kept)} tokens")


def _user(content: str) -> Prompt:
    return Prompt("", "", ({"role": "user", "content": content},))


def _held_back(prompts: Sequence[Prompt], kind: str) -> list[Prompt]:
    return [p for p in prompts if _is_held_back(p) and kind_of(p.source) == kind][:HELD_BACK]


def _is_held_back(prompt: Prompt) -> bool:
    return is_held_back(Document(prompt.id, prompt.source, 0.0, [], [], ""))


def read_prepared(run: Path) -> tuple[list[Document], list[int]]:
    """The prompts as documents without answers, in their order, and what closes a turn of the user."""
    stored: dict[str, Any] = dict(np.load(run / "prompts.npz"))
    lengths = stored["lengths"].astype(np.int64)
    flat, documents = stored["token_ids"].tolist(), []
    every = zip(
        stored["names"].tolist(), stored["temperatures"].tolist(), lengths, lengths.cumsum(), strict=True
    )
    for name, heat, length, end in every:
        source, prompt_id = name.split("\t")
        documents.append(Document(prompt_id, source, round(heat, 2), flat[end - length : end], [], ""))
    return documents, stored["closing"].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=160_000)
    parser.add_argument("--run", type=Path, default=Path("runs/dflash2"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--greedy", type=float, default=GREEDY, help="share that is asked at temperature 0")
    args = parser.parse_args()
    prepare(args.prompts, args.run, args.limit, args.seed, args.greedy)


if __name__ == "__main__":
    main()
