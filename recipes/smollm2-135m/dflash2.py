"""DFlash 2 from the shipped drafter within minutes of one CUDA GPU: prompts, the target's answers, training, figures.

    python recipes/smollm2-135m/dflash2.py prepare --prompts prompts/ --run runs/dflash2      # once, on any machine
    python recipes/smollm2-135m/dflash2.py train --run runs/dflash2 --out weights/ --minutes 9

The mixture gives chat, summaries, translations and questions about texts half of the answers, mathematics and code a
quarter each. ``train`` answers as long as --answer-seconds lets it, trains from the shipped weights until the minutes
are over, and writes rows of figures, the shipped drafter's first, and the weights, every minute. Run again it goes on.
"""

import argparse
import gc
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flashdraft.checkpoint.load import eos_token_ids, load_drafter, load_target, load_tokenizer
from flashdraft.data.answer_generator import AnswerGenerator, AnswerRequest
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document
from flashdraft.data.prompts import Prompt, encode_prompts, read_prompts
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.provenance import collect_provenance
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import is_held_back, with_dflash2
from flashdraft.train.served import check_served
from flashdraft.train.trainer import Trainer

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
RESERVE_S = 40.0  # of --minutes, for the last figures and the weights


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


def read_prepared(run: Path) -> list[Document]:
    """The prompts as documents without answers: greedy where held back, else greedy and sampled in turn."""
    stored = np.load(run / "prompts.npz")
    ends = stored["lengths"].cumsum()
    flat, made = stored["token_ids"].tolist(), []
    for number, (name, length, end) in enumerate(zip(stored["names"], stored["lengths"], ends, strict=True)):
        source, prompt_id = str(name).split("\t")
        one = Document(prompt_id, source, 0.0, flat[end - length : end], [], "")
        warm = number % 2 == 1 and not is_held_back(one)
        made.append(replace(one, temperature=0.7) if warm else one)
    return made


def answered(target: TargetModel, asked: Sequence[Document], args: argparse.Namespace) -> list[Document]:
    """The target's answers to as many of ``asked`` as --answer-seconds lets begin."""
    started = time.monotonic()
    sizes = args.answer_rows, 512, args.max_new_tokens
    generator = AnswerGenerator(target, *sizes, eos_token_ids("embedded"), seed=len(asked))
    window = max(args.answer_rows, 64)  # long prompts first within it, so that a prefill pads little
    order = sorted(range(len(asked)), key=lambda i: (i // window, -len(asked[i].prompt_token_ids)))

    def requests() -> Iterator[AnswerRequest]:
        for i in order:
            if time.monotonic() - started > args.answer_seconds:
                return
            yield AnswerRequest(i, asked[i].prompt_token_ids, asked[i].temperature)

    made = [
        replace(asked[one.key], answer_token_ids=one.token_ids, finish_reason=one.finish_reason)
        for answers in generator.run(requests())
        for one in answers
    ]
    del generator
    gc.collect()
    if target.device.type == "cuda":
        torch.cuda.empty_cache()
    return made


class Output:
    """Rows of figures and the weights, under one folder, written as the run goes."""

    def __init__(self, folder: Path, started: float) -> None:
        self.folder, self.started, self.saved_at = folder, started, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def row(self, **values: Any) -> None:
        """Add a row; said too."""
        line = json.dumps({"at_s": round(time.monotonic() - self.started, 1), **values})
        with (self.folder / "rows.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)

    def weights(self, drafter: DFlashModel) -> None:
        """config.json and shards of less than 16 MiB, as load_drafter reads them."""
        from huggingface_hub import save_torch_state_dict

        state = {
            name: tensor.detach().to("cpu", torch.bfloat16 if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in drafter.state_dict().items()
        }
        save_torch_state_dict(state, self.folder, max_shard_size=15_000_000)
        config = drafter.config.to_dict() | {"dtype": "bfloat16"}
        (self.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        self.saved_at = time.monotonic()


def train(args: argparse.Namespace) -> None:
    """Answers, figures of the shipped drafter, training, figures of the new one."""
    started = time.monotonic()
    deadline = started + 60 * args.minutes
    out = Output(args.out, started)
    target = load_target("embedded", dtype=args.dtype, device=args.device).requires_grad_(False)
    answers_file = args.run / "answers.pt"
    if answers_file.exists():
        documents = [Document(*fields) for fields in torch.load(answers_file)]
    else:
        documents = answered(target, read_prepared(args.run), args)
        torch.save([astuple(doc) for doc in documents], answers_file)
    training, validation = rows_of(documents, args)
    out.row(
        stage="answers",
        num_answers=len(documents),
        num_tokens=sum(len(doc.answer_token_ids) for doc in documents),
        num_rows=len(training),
        held_back={name: int(rows.is_anchor.sum()) for name, rows in validation.items()},
    )
    config = config_of(args)
    plain = load_drafter(args.init, target, dtype=args.dtype, device=args.device).requires_grad_(True)
    assert isinstance(plain, DFlashModel)
    drafter = with_dflash2(plain, config) if config.head == "dflash2" else plain
    trainer = Trainer(target, drafter, training, validation, config, args.run / "training")
    resumed = trainer.resume()
    if not resumed:  # DFlash 2 that was not trained is the plain drafter, to the bit
        out.row(stage="figures", drafter=args.init, **figures(trainer))
    left = deadline - time.monotonic() - RESERVE_S
    if args.total_minutes is None:
        trainer.config = replace(config, max_minutes=trainer.progress.elapsed_s / 60 + max(left, 1) / 60)

    def hear(line: dict[str, Any]) -> None:
        if "loss" in line:
            out.row(stage="training", **line)
        if time.monotonic() - out.saved_at > args.save_seconds:
            out.weights(drafter)

    out.row(
        stage="start", resumed=resumed, training_s=round(left, 1), provenance=collect_provenance(args.device)
    )
    trainer.train(hear, max(left, 1))
    out.weights(drafter)
    out.row(stage="figures", drafter="new", **figures(trainer))
    last_figures(trainer, out, deadline)


def last_figures(trainer: Trainer, out: Output, deadline: float) -> None:
    """What the selector brings, and the same prompts while serving, where time is left for it."""
    drafter = trainer.drafter
    assert isinstance(drafter, DFlashModel)
    if drafter.candidate_selector and time.monotonic() < deadline - 15:
        selector, drafter.candidate_selector = drafter.candidate_selector, None
        out.row(stage="figures", drafter="new without selector", **figures(trainer))
        drafter.candidate_selector = selector
    if time.monotonic() < deadline - 15:
        config = replace(trainer.config, served_prompts=6)
        out.row(stage="served", **check_served(trainer.target, drafter, trainer.validation, config))


def figures(trainer: Trainer) -> dict[str, Any]:
    """Simulated acceptance length by kind of prompt, their mean, and over all rounds."""
    lengths = trainer.evaluate(lambda _: None)
    by_kind = {name: value for name, value in lengths.items() if name != "all"}
    return {
        "block_size": trainer.config.block_size,
        "acceptance_length": by_kind,
        "mean_of_kinds": round(sum(by_kind.values()) / len(by_kind), 4),
        "over_all_rounds": lengths["all"],
        "blocks": trainer.progress.step * trainer.config.rows_per_step * trainer.config.blocks_per_row,
    }


def rows_of(
    documents: Sequence[Document], args: argparse.Namespace
) -> tuple[PackedRows, dict[str, PackedRows]]:
    """Training rows, and held-back greedy answers by kind."""
    held_back: dict[str, list[Document]] = {}
    training = []
    for document in documents:
        if not is_held_back(document):
            training.append(document)
        elif len(document.answer_token_ids) > 1:
            held_back.setdefault(kind_of(document.source), []).append(document)
    validation = {name: pack(docs, 1024, args.device) for name, docs in sorted(held_back.items())}
    return pack(training, 1024, args.device), validation


def config_of(args: argparse.Namespace) -> TrainConfig:
    """The run's settings: those of train.sh's drafter, less rate, as it goes on from trained weights."""
    return TrainConfig(
        head=args.head,
        conv_group_size=32,
        selector_rank=args.selector_rank,
        selector_projects_head=True,
        selector_stops=args.selector_stops,
        rows_per_step=args.rows_per_step,
        blocks_per_row=args.blocks_per_row,
        lr=args.lr,
        warmup=0.03,
        total_blocks=10**9,
        max_minutes=args.total_minutes or 1.0,
        eval_minutes=1e9,
        checkpoint_minutes=2.0,
        served_prompts=0,
        seed=args.seed,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    first = stages.add_parser("prepare")
    first.add_argument("--prompts", type=Path, required=True)
    first.add_argument("--limit", type=int, default=80_000)
    first.add_argument("--run", type=Path, default=Path("runs/dflash2"))
    second = stages.add_parser("train")
    second.add_argument(
        "--init", default="embedded", help="the drafter to go on from: it, or a folder of --out"
    )
    second.add_argument(
        "--run", type=Path, default=Path("runs/dflash2"), help="prompts, answers, the run's state"
    )
    second.add_argument("--out", type=Path, required=True, help="rows.jsonl and the weights")
    second.add_argument("--minutes", type=float, default=9.0, help="of this call, all in")
    second.add_argument(
        "--total-minutes", type=float, help="of training, over several calls; else what is left"
    )
    second.add_argument("--answer-seconds", type=float, default=100.0)
    second.add_argument("--answer-rows", type=int, default=4096)
    second.add_argument("--max-new-tokens", type=int, default=384)
    second.add_argument("--head", choices=("dflash", "dflash2"), default="dflash2")
    second.add_argument("--selector-rank", type=int, default=48)
    second.add_argument("--selector-stops", action="store_true")
    second.add_argument("--rows-per-step", type=int, default=48)
    second.add_argument("--blocks-per-row", type=int, default=128)
    second.add_argument("--lr", type=float, default=1.5e-3)
    second.add_argument("--save-seconds", type=float, default=60.0)
    second.add_argument("--seed", type=int, default=0)
    second.add_argument("--device", default="cuda")
    second.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    if args.stage == "prepare":
        prepare(args.prompts, args.run, args.limit)
    else:
        train(args)


if __name__ == "__main__":
    main()
