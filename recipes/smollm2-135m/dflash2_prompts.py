"""The prompts that dflash2.py trains on: mathematics and code a quarter each, half of them chat of many kinds.

    python recipes/smollm2-135m/dflash2_prompts.py --prompts prompts/ --run runs/dflash2      # once, on any machine

Chat is conversations, summaries, translations and questions about texts, most of them made from the passages that
other prompts bring along. ``prompts.npz`` holds token ids, those that are held back from training first.
"""

import argparse
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from flashdraft.checkpoint.load import load_tokenizer
from flashdraft.data.on_policy import Document
from flashdraft.data.prompts import Prompt, encode_prompts, read_prompts
from flashdraft.train.run import is_held_back

SHARES = {"math": 0.25, "code": 0.25, "chat": 0.5}  # of the answers, by the kind of text
KINDS = {  # of prompts, for the figures
    "math": "math", "code": "code", "medquad": "questions", "interview-questions": "open questions",
    "openassistant": "open questions", "concepts": "open questions", "t0-tasks": "instructions",
    "self-instruct-seeds": "instructions", "pubmedqa": "texts", "texts": "texts", "summaries": "summaries",
    "translation": "translation",
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
HELD_BACK = 48  # prompts of each kind
PLACES = 2  # among which seeds choose where the prompts begin


def kind_of(source: str) -> str:
    """Which of the figures a prompt counts for."""
    group, _, rest = source.partition("-")
    return KINDS.get(rest) or KINDS.get(group) or "chat"


def derived(prompts: Sequence[Prompt], rng: random.Random) -> Iterator[Prompt]:
    """More tasks over the texts that prompts bring along; they are held back where the prompt is."""
    for prompt in prompts:
        if prompt.source not in PASSAGES:
            continue
        text = max(prompt.messages[0]["content"].split("\n\n", 1), key=len).strip()
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
        for number, (name, task) in enumerate(tasks.items(), 1):
            yield Prompt(prompt.id + "+" * number, f"chat-{name}", ({"role": "user", "content": task},))


def prepare(prompts: Path, run: Path, limit: int) -> None:
    """Write ``run/prompts.npz``: the token ids of ``limit`` prompts in the order in which they are to be answered.

    Those that are held back come first. Kinds of text follow each other by their shares.
    """
    rng = random.Random(0)
    found = [
        replace(one, source=one.id.split("/")[0]) for one in read_prompts(prompts)
    ]  # the file that it is from
    found += derived(found, rng)
    rng.shuffle(found)
    queues = {name: [p for p in found if p.source.split("-", 1)[0] == name] for name in SHARES}
    taken = dict.fromkeys(SHARES, 0)
    ordered = [p for name in sorted(set(KINDS.values()) | {"chat"}) for p in _held_back(found, name)]
    while len(ordered) < limit and any(queues.values()):
        name = min((n for n in SHARES if queues[n]), key=lambda n: taken[n] / SHARES[n])
        prompt = queues[name].pop()
        taken[name] += 1
        if not _is_held_back(prompt):
            ordered.append(prompt)
    token_ids = encode_prompts(load_tokenizer("embedded"), ordered, {})
    kept = [(p, ids) for p, ids in zip(ordered, token_ids, strict=True) if len(ids) <= 512]
    run.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        run / "prompts.npz",
        token_ids=np.concatenate([np.array(ids, dtype=np.uint16) for _, ids in kept]),
        lengths=np.array([len(ids) for _, ids in kept]),
        names=np.array([f"{p.source}\t{p.id}" for p, _ in kept]),
    )
    print(f"{len(kept)} prompts, {sum(len(ids) for _, ids in kept)} tokens; taken {taken}")


def _held_back(prompts: Sequence[Prompt], kind: str) -> list[Prompt]:
    return [p for p in prompts if _is_held_back(p) and kind_of(p.source) == kind][:HELD_BACK]


def _is_held_back(prompt: Prompt) -> bool:
    return is_held_back(Document(prompt.id, prompt.source, 0.0, [], [], ""))


def read_prepared(run: Path, seed: int) -> list[Document]:
    """The prompts as documents without answers, those that are held back first and greedy.

    The others begin at another place for each ``seed``, two of three are to be answered greedily and one at 0.7.
    """
    stored = np.load(run / "prompts.npz")
    ends = stored["lengths"].cumsum()
    flat, held_back, others = stored["token_ids"].tolist(), [], []
    for number, (name, length, end) in enumerate(zip(stored["names"], stored["lengths"], ends, strict=True)):
        source, prompt_id = str(name).split("\t")
        one = Document(prompt_id, source, 0.0, flat[end - length : end], [], "")
        if is_held_back(one):
            held_back.append(one)
        else:
            others.append(replace(one, temperature=0.7) if (number + seed) % 3 == 2 else one)
    first = seed % PLACES * len(others) // PLACES
    return held_back + others[first:] + others[:first]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=80_000)
    parser.add_argument("--run", type=Path, default=Path("runs/dflash2"))
    args = parser.parse_args()
    prepare(args.prompts, args.run, args.limit)


if __name__ == "__main__":
    main()
