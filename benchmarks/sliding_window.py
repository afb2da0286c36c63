"""What a sliding draft window saves, and what it costs in acceptance: context 1k, 2k, 4k, 8k, with and without it.

    python benchmarks/sliding_window.py acceptance --out acceptance.json
    python benchmarks/sliding_window.py costs --out costs.json

The contexts are conversations: questions of the five tasks with the target's own greedy answers, turn after turn, up
to the wanted length, then one question more. ``acceptance`` answers it by block drafting, greedy, once with the
drafter as it is and once with a window on all of its layers, unless ``--window`` is 0. ``costs`` times a draft of one
block at each context, the two kinds in turn, both as they serve on the device: on a CPU that can as one C++ call.
"""

import argparse
import json
from itertools import chain, zip_longest
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.checkpoint.load import EMBEDDED, load_drafter
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.build import drafter_of
from flashdraft.spec_decode.drafter import Drafter, DraftShape, OneRequest


def drafters(llm: LLM, args: argparse.Namespace) -> dict[str, Drafter]:
    """The same weights, seeing all of the context, and a window of it; as they serve on this device."""
    found = {}
    for kind, window in {"all": None, f"window {args.window}": args.window}.items():
        if window != 0:
            model = load_drafter(args.draft, llm.target, dtype=args.dtype, device=args.device)
            found[kind] = drafter_of(model, llm.target, window_size=window)
    return found


def conversations(llm: LLM, args: argparse.Namespace) -> dict[int, list[list[int]]]:
    """For each context, ``args.limit`` prompts of about that many tokens."""
    params = SamplingParams(temperature=0.0, max_tokens=args.answer_tokens)
    by_task = [load_task(task, args.questions) for task in TASKS]
    questions = [
        prompt.turns[0] for prompt in chain.from_iterable(zip_longest(*by_task)) if prompt is not None
    ]
    chats = [[{"role": "user", "content": question}] for question in questions]
    answers = llm.chat(chats, params)
    turns = [
        [*chat, {"role": "assistant", "content": out.outputs[0].text}]
        for chat, out in zip(chats, answers, strict=True)
    ]
    found: dict[int, list[list[int]]] = {}
    for context in args.contexts:
        found[context] = []
        for first in range(args.limit):
            messages: list[dict[str, str]] = []
            at = first
            while True:
                question = chats[at % len(chats)]
                longer = llm.chat_token_ids([*messages, *question])
                if len(longer) > context - args.max_tokens:
                    break
                ids, at = longer, at + args.limit
                messages += turns[(at - args.limit) % len(chats)]
            found[context].append(ids)
    return found


def acceptance(llm: LLM, args: argparse.Namespace) -> list[dict[str, Any]]:
    prompts, rows = conversations(llm, args), []
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens, ignore_eos=True)
    for kind, drafter in drafters(llm, args).items():
        answering = LLM(args.model, drafter, args.block_size, dtype=args.dtype, device=args.device)
        answering.engine_config = EngineConfig(max_running=1, prefix_caching=False)
        for context, every in prompts.items():
            outs = answering.generate(every, params)
            tokens = sum(out.metrics.num_output_tokens - 1 for out in outs)
            rounds = sum(out.metrics.num_rounds for out in outs)
            row = {
                "context": context,
                "kind": kind,
                "prompt_tokens": [len(ids) for ids in every],
                "acceptance_length": round(tokens / rounds, 3),
                "num_rounds": rounds,
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    return rows


@torch.inference_mode()
def costs(llm: LLM, args: argparse.Namespace) -> list[dict[str, Any]]:
    kinds, rows = drafters(llm, args), []
    for context in args.contexts:
        size = llm.target.config.hidden_size * len(kinds["all"].feature_layers)
        features = torch.randn(1, context - args.block_size, size).to(llm.target.head_weight())
        states = {kind: OneRequest(drafter, context) for kind, drafter in kinds.items()}
        for state in states.values():
            state.observe([0] * features.shape[1], features)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repeat in range(args.repeats + 1):
            for kind, state in states.items():
                started = perf_counter()
                state.propose(1, DraftShape(args.block_size - 1))
                if repeat:
                    seconds[kind].append(perf_counter() - started)
        row = {"context": context} | {f"{kind}, ms": round(1e3 * median(s), 2) for kind, s in seconds.items()}
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["acceptance", "costs"])
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--draft", default=EMBEDDED)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--window", type=int, default=1024, help="tokens; 0: none")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--limit", type=int, default=4, help="conversations of each length")
    parser.add_argument("--questions", type=int, default=16, help="of each task, to make conversations of")
    parser.add_argument("--answer-tokens", type=int, default=128, help="of a turn in the context")
    parser.add_argument("--max-tokens", type=int, default=128, help="of the answer that is measured")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    llm = LLM(args.model, None, dtype=args.dtype, device=args.device)
    rows = acceptance(llm, args) if args.what == "acceptance" else costs(llm, args)
    document = {
        "rows": rows,
        "settings": {**vars(args), "out": None},
        "provenance": collect_provenance(args.device),
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
