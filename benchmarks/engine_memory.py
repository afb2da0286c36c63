"""What the engine keeps in memory and what a found prefix saves: the embedded pair, block size auto.

    python benchmarks/engine_memory.py --out benchmarks/results/engine_memory.json

``cache``: bytes of a token in target's and drafter's pages, as computed from the configs and as the process grew when
the pages were first written. ``growth``: resident memory after each quarter of many requests of random lengths, eight
at a time. ``prefix``: time to first token of a request behind a prefix that is not known, and of the next one behind
the same prefix, with the acceptance lengths of both against the same requests without prefix caching. ``mixed``: what
PyTorch's backend holds for one long request among fifteen short ones, planned and measured; alone with --only mixed.
"""

import argparse
import json
import random
import resource
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from flashdraft.bench.tasks import load_task
from flashdraft.cache import paged_step
from flashdraft.checkpoint.load import load_drafter, load_target, load_tokenizer
from flashdraft.engine.engine import Engine
from flashdraft.engine.memory_plan import plan_memory
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashBatch, DFlashDrafter

_AT_A_TIME = 8


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def new_engine(drafter: DFlashDrafter, **config: Any) -> Engine:
    """Of the embedded pair."""
    return Engine(drafter.target, drafter, EngineConfig(**config))


def cache(drafter: DFlashDrafter, num_tokens: int) -> dict[str, Any]:
    """Bytes of a token, computed and measured over ``num_tokens`` that are written for the first time."""
    engine = new_engine(drafter, num_pages=-(-num_tokens // 16))
    draft_cache = engine.runner.drafter
    assert isinstance(draft_cache, DFlashBatch)
    target, drafts = drafter.target.config, drafter.model.config
    computed = {
        "target": 2 * target.num_hidden_layers * target.num_key_value_heads * target.head_dim * 2,
        "drafter": 2 * drafts.num_hidden_layers * drafts.num_key_value_heads * drafts.head_dim * 2,
    }
    measured = {}
    for name, pages in (("target", engine.runner.cache), ("drafter", draft_cache.cache)):
        before = resident()
        pages.slots.fill_(1.0)
        measured[name] = (resident() - before) / len(pages.slots)
    return {"num_tokens": num_tokens, "computed_bytes_per_token": computed, "measured": measured}


def growth(drafter: DFlashDrafter, num_requests: int, rng: random.Random) -> dict[str, Any]:
    """Resident memory in MB after each eighth of the requests."""
    engine = new_engine(drafter, max_running=_AT_A_TIME)
    for pages in (engine.runner.cache, engine.runner.drafter.cache):  # type: ignore[union-attr]
        pages.slots.fill_(0.0)  # the pool is there from the start, and not only where somebody has written
    finished, started, seen = 0, 0, []
    while finished < num_requests:
        while started < num_requests and len(engine.requests) < _AT_A_TIME:
            prompt = [rng.randrange(1000, 40000) for _ in range(rng.randint(2, 48))]
            params = SamplingParams(temperature=0.0, max_tokens=rng.randint(1, 16), ignore_eos=True)
            engine.add_request(str(started), prompt, params)
            started += 1
        for output in engine.step():
            finished += output.finished
            if output.finished and finished % (num_requests // 8) == 0:
                seen.append({"requests": finished, "rss_mb": round(resident() / 1e6, 1)})
    engine.check_integrity()
    return {"at_a_time": _AT_A_TIME, "seen": seen}


def ask(engine: Engine, prompt: list[int], max_tokens: int) -> dict[str, Any]:
    """One greedy answer: seconds to the first token, tokens, acceptance length, tokens found in the cache."""
    engine.add_request("one", prompt, SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True))
    tokens: list[int] = []
    for output in engine.run():
        tokens += output.token_ids
    return {
        "ttft_s": output.metrics.prefill_s,
        "acceptance_length": output.metrics.acceptance_length,
        "found": output.num_cached_tokens,
        "token_ids": tokens,
    }


def prefix(drafter: DFlashDrafter, length: int, repeats: int) -> dict[str, Any]:
    """Two requests behind each of ``repeats`` prefixes of ``length`` tokens of text, prefix caching on and off."""
    tokenizer = load_tokenizer()
    texts = [prompt.turns[0] for prompt in load_task("humaneval", 40)]
    questions = [prompt.turns[0] for prompt in load_task("gsm8k", 2)]
    ends = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in questions
    ]
    engines = {on: new_engine(drafter, prefix_caching=on) for on in (True, False)}
    rows = []
    for which in range(repeats):
        shared = tokenizer.encode("\n".join(texts[which:] + texts[:which]), add_special_tokens=False)[:length]
        assert len(shared) == length
        rows.append({on: [ask(engine, shared + end, 64) for end in ends] for on, engine in engines.items()})
    first, second = ([row[True][which] for row in rows] for which in (0, 1))
    plain = [row[False][1] for row in rows]
    return {
        "shared_tokens": length,
        "ttft_first_s": median(one["ttft_s"] for one in first),
        "ttft_second_s": median(one["ttft_s"] for one in second),
        "ttft_ratio": median(b["ttft_s"] / a["ttft_s"] for a, b in zip(first, second, strict=True)),
        "same_answers": [
            one["token_ids"] == other["token_ids"] for one, other in zip(second, plain, strict=True)
        ],
        "found_tokens": sorted({one["found"] for one in second}),
        "acceptance_lengths": [one["acceptance_length"] for one in second],
        "acceptance_lengths_without": [one["acceptance_length"] for one in plain],
    }


def mixed(drafter: DFlashDrafter) -> dict[str, Any]:
    """Bytes of pages, spare pages and copies of 16 requests, one of 2,040 tokens and 15 of 240, beside the plan's."""
    copied: list[int] = []
    plain = paged_step.attention

    def counted(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        copied.append(k.nbytes + v.nbytes)
        return plain(q, k, v, *rest)

    num_tokens, lengths = 8192, [240] * 15 + [2040]
    config = EngineConfig(max_running=16, num_pages=num_tokens // 16, attention_backend="eager")
    paged_step.attention = counted  # type: ignore[assignment]
    engine = Engine(drafter.target, drafter, config, block_size=16)
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    for name, length in enumerate(lengths):
        engine.add_request(str(name), [1000 + name] * (length - 8), params)
    list(engine.run())
    paged_step.attention = plain
    pages = engine.runner.cache, engine.runner.drafter.cache  # type: ignore[union-attr]
    held = sum(one.nbytes for one in pages) + max(copied)
    plan = plan_memory("embedded", "embedded", "bfloat16", config, 16)
    planned = plan.storage_bytes(num_tokens) + plan.copied_bytes(lengths)
    least = num_tokens * sum(one.bytes_per_token for one in pages)
    return {"held": held, "planned": planned, "held_by_pages": held / least, "held_by_plan": held / planned}


@torch.inference_mode()
def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache-tokens", type=int, default=16384)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--prefix", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["mixed"])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    target = load_target()
    drafter = DFlashDrafter(load_drafter(target=target), target)
    rng = random.Random(0)
    if args.only == "mixed":
        document = {"mixed": mixed(drafter), "provenance": collect_provenance()}
        print(json.dumps(document, indent=1))
        args.out.write_text(json.dumps(document, indent=1) + "\n")
        return
    document = {
        "mixed": mixed(drafter),
        "prefix": prefix(drafter, args.prefix, args.repeats),
        "cache": cache(drafter, args.cache_tokens),
        "growth": growth(drafter, args.requests, rng),
        "provenance": collect_provenance(),
    }
    print(json.dumps(document, indent=1))
    args.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
