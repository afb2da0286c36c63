"""Minutes of mixed load on one GPU: is every answer right, is anything lost, does memory stay flat and as planned?

    python benchmarks/gpu_load.py OUT.jsonl PROMPTS.json --seconds 600
    python benchmarks/gpu_load.py OUT.jsonl PROMPTS.json --seconds 15 --device cpu --dtype float32 --num-prompts 4

PROMPTS.json: lists of token ids. The embedded pair in this process, blocks left to ``auto``. More clients than requests
run, of which every few seconds another number is awake, ask for greedy, sampled and constrained answers of random
lengths; a part leaves after some tokens; pages are too few for all. Every answer, also as far as it was read, is
compared with that of plain decoding alone, made before. Memory is read every second, in megabytes. One JSON object;
exits with 1 when an answer is wrong or lost, when an engine fails, or when no request was preempted.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import random
import resource
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

import torch

from flashdraft.engine.async_engine import AsyncEngine
from flashdraft.engine.engine import Engine
from flashdraft.engine.memory_plan import plan_memory
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.grammar import Grammar
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams

RUNNING, CLIENTS = 32, 40
AWAKE = (1, 4, 8, 16, 32, CLIENTS)
PATIENCE_S = 120  # for the next news of a request
GRAMMAR_LIMIT_S = 60  # the first one waits for a process that reads the tokenizer
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "year": {"type": "integer"}},
    "required": ["city", "year"],
    "additionalProperties": False,
}
GRAMMARS = {
    "schema": Grammar("json_schema", json.dumps(SCHEMA)),
    "regex": Grammar("regex", "[A-Z][a-z]{2,12}( [a-z]{1,12}){4,20}\\."),
}
SHARES = {"greedy": 10, "sampled": 5, "schema": 3, "regex": 2}


@dataclass
class Case:
    """A question with the answer that is right."""

    kind: str
    prompt: list[int]
    params: SamplingParams
    token_ids: list[int] = field(default_factory=list)


def cases_of(llm, prompts, max_tokens):
    """Cases of each kind with their answers, plain decoding of one request alone, and why kinds are left out."""
    engine = Engine(llm.target, None, EngineConfig(max_running=1), llm.eos_token_ids, llm.tokenizer, 1)
    grammars, left_out = {}, {}
    for kind, grammar in GRAMMARS.items():
        try:
            engine.begin_grammar(grammar)
            grammars[kind] = grammar
        except Exception as error:  # whatever keeps a package from it
            left_out[kind] = repr(error)
    cases = []
    for number, prompt in enumerate(prompts):
        greedy = SamplingParams(temperature=0.0, max_tokens=max_tokens)
        sampled = replace(greedy, temperature=0.6, top_p=0.95, seed=number)
        cases += [Case("greedy", prompt, greedy), Case("sampled", prompt, sampled)]
        cases += [Case(kind, prompt, replace(greedy, grammar=one)) for kind, one in grammars.items()]
    for case in cases:
        engine.add_request("alone", case.prompt, case.params)
        case.token_ids = [token for news in engine.run() for token in news.token_ids]
    return cases, left_out


class Load:
    """Clients at random until ``end``."""

    def __init__(self, engine, cases, seed, end):
        self.engine, self.end, self.seed = engine, end, seed
        self.of_kind = {kind: [case for case in cases if case.kind == kind] for kind in SHARES}
        self.of_kind = {kind: own for kind, own in self.of_kind.items() if own}
        self.awake, self.num_tokens = CLIENTS, 0
        self.outcomes, self.faults = Counter(), []

    async def run(self):
        """All of them."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._tides())
            for number in range(CLIENTS):
                group.create_task(self._client(number, random.Random(f"{self.seed}-{number}")))

    async def _tides(self):
        dice = random.Random(self.seed)
        while perf_counter() < self.end:
            self.awake = dice.choice(AWAKE)
            await asyncio.sleep(min(5.0, max(self.end - perf_counter(), 0)))

    async def _client(self, number, dice):
        kinds = list(self.of_kind)
        while perf_counter() < self.end:
            if number >= self.awake:
                await asyncio.sleep(0.1)
                continue
            case = dice.choice(self.of_kind[dice.choices(kinds, [SHARES[kind] for kind in kinds])[0]])
            most = dice.randint(1, case.params.max_tokens)
            leaves_at = dice.randint(1, most) if dice.random() < 0.3 else None
            self.outcomes["asked"] += 1
            try:
                await self._ask(case, most, leaves_at)
            except TimeoutError:
                self._fault("lost", f"{case.kind}: no news for {PATIENCE_S} s")
            except Exception as error:
                self._fault("failed", f"{case.kind}: {error!r}")

    async def _ask(self, case, most, leaves_at):
        params, found, is_finished = replace(case.params, max_tokens=most), [], False
        answer = self.engine.generate(case.prompt, params)
        async with contextlib.aclosing(answer):
            while not is_finished and (leaves_at is None or len(found) < leaves_at):
                news = await asyncio.wait_for(anext(answer), PATIENCE_S)
                found += news.token_ids
                is_finished = news.finished
        self.num_tokens += len(found)
        expected = case.token_ids[:most]
        if found != (expected if is_finished else expected[: len(found)]):
            self._fault("wrong", f"{case.kind}, {most} tokens: {found}, alone {expected}")
        else:
            self.outcomes[f"right, {case.kind}" if is_finished else "left, right so far"] += 1

    def _fault(self, outcome, what):
        self.outcomes[outcome] += 1
        if len(self.faults) < 5:
            self.faults.append(what[:1000])


def memory(device):
    """What is held now, in MB: by the process on a CPU, by PyTorch and by everybody on a GPU."""
    if device == "cpu":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"resident": pages * resource.getpagesize() / 1e6}
    free, total = torch.cuda.mem_get_info()
    held = {
        "allocated": torch.cuda.memory_allocated(),
        "reserved": torch.cuda.memory_reserved(),
        "used": total - free,
    }
    return {name: size / 1e6 for name, size in held.items()}


async def sampled_memory(device, samples):
    """A sample each second."""
    while True:
        samples.append(memory(device))
        await asyncio.sleep(1)


def over_time(samples):
    """Of each kind of memory: the largest of the first and of the last minute, their ratio, and of each tenth."""
    minute = min(60, max(len(samples) // 4, 1))
    told = {}
    for name in samples[0]:
        held = [one[name] for one in samples]
        first, last = max(held[:minute]), max(held[-minute:])
        tenth = max(len(held) // 10, 1)
        tenths = [round(max(held[at : at + tenth])) for at in range(0, len(held), tenth)]
        told[name] = {
            "first_mb": round(first, 1),
            "last_mb": round(last, 1),
            "last_over_first": round(last / first, 4),
            "tenths_mb": tenths,
        }
    return told


def beside_plan(llm, engine, config, dtype):
    """What PyTorch held since the load began, in MB and over the plan, and part for part what it holds at its end."""
    num_tokens = config.num_pages * config.page_size
    plan = plan_memory("embedded", "embedded", dtype, config, None)
    planned = plan.device_bytes(1) + num_tokens * (plan.kv_bytes + plan.draft_kv_bytes)
    allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    made = llm.drafter.model.candidate_selector.frozen[:2]  # codebooks, of the head
    every = [*llm.target.parameters(), *llm.drafter.model.parameters(), *made]
    weights = sum(one.nbytes for one in every)
    pages = engine.runner.cache.nbytes + engine.runner.drafter.cache.nbytes
    held = torch.cuda.memory_allocated()
    parts = {
        "weights": (weights, plan.weight_bytes + plan.draft_weight_bytes),
        "pages": (pages, plan.spare_bytes + num_tokens * (plan.kv_bytes + plan.draft_kv_bytes)),
        "beside": (held - weights - pages, plan.beside_bytes + plan.chunk_bytes),
        "transient": (allocated - held, plan.activation_bytes),
    }
    pools, largest = held_in_pools()
    return {
        "planned_mb": _mb(planned),
        "most_allocated_mb": _mb(allocated),
        "most_reserved_mb": _mb(reserved),
        "allocated_over_plan": round(allocated / planned, 3),
        "reserved_over_plan": round(reserved / planned, 3),
        "parts_mb": {name: [_mb(size) for size in both] for name, both in parts.items()},  # found, foretold
        "pools_mb": {name: _mb(size) for name, size in pools.items()},
        "largest": largest,
    }


def _mb(size):
    return round(size / 1e6, 1)


def held_in_pools():
    """Bytes of tensors in each pool of recordings ("none": in no pool), and the 24 sizes that hold most.

    Of these: whether in a pool, MB of one, how many.
    """
    pools, sizes = Counter(), Counter()
    for segment in torch.cuda.memory_snapshot():
        pool = segment.get("segment_pool_id", (0, 0))
        name = "none" if tuple(pool) == (0, 0) else str(pool)
        for block in segment["blocks"]:
            if block["state"].startswith("active"):
                pools[name] += block["size"]
                sizes[name != "none", block["size"]] += 1
    most = sorted(sizes.items(), key=lambda one: -one[0][1] * one[1])[:24]
    return pools, [(in_pool, _mb(size), count) for (in_pool, size), count in most]


def pages_for_some(cases, max_tokens, share):
    """Pages for ``share`` of what so many requests would take at once, and for the longest of them."""
    size = EngineConfig.page_size
    lengths = [len(case.prompt) + max_tokens for case in cases]
    mean = sum(lengths) / len(lengths)
    return -(-max(int(share * RUNNING * mean), 2 * max(lengths)) // size)


async def loaded(llm, cases, args):
    """The row of a load, and of the engine behind it."""
    num_pages = pages_for_some(cases, args.max_tokens, args.share)
    config = EngineConfig(max_running=RUNNING, num_pages=num_pages)
    engine = Engine(llm.target, llm.drafter, config, llm.eos_token_ids, llm.tokenizer)
    engine.runner.record_prompts()
    asynchronous, samples = AsyncEngine(engine, GRAMMAR_LIMIT_S), []
    await asynchronous.start()
    began = perf_counter()
    watching = asyncio.create_task(sampled_memory(args.device, samples))
    load = Load(asynchronous, cases, args.seed, began + args.seconds)
    await load.run()
    took = perf_counter() - began
    watching.cancel()
    while asynchronous.stats().num_running and perf_counter() < began + took + PATIENCE_S:
        await asyncio.sleep(0.05)  # what was left is ended behind its step
    try:
        is_empty = asynchronous.flush_cache()  # asserts that nobody holds a page
    except AssertionError as error:
        is_empty = False
        load.faults.append(repr(error)[:1000])
    stats = asynchronous.stats()
    await asynchronous.stop()
    return {
        "system": "flashdraft", "pair": "135m", "method": "load", "requests": RUNNING, "seconds": round(took, 1),
        "outcomes": dict(load.outcomes), "faults": load.faults, "ends_empty": is_empty,
        "preemptions": stats.num_preemptions, "tokens": load.num_tokens, "pages": num_pages,
        "output_tokens_per_s": round(load.num_tokens / took, 1),
        "acceptance": round(stats.metrics.acceptance_length, 3), "memory": over_time(samples),
        "plan": None if args.device == "cpu" else beside_plan(llm, engine, config, args.dtype),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--num-prompts", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=160, help="of an answer")
    parser.add_argument("--share", type=float, default=0.4, help="of the pages that all requests would take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    began = perf_counter()
    llm = LLM(device=args.device, dtype=args.dtype)
    prompts = json.loads(args.prompts.read_text())[: args.num_prompts]
    cases, left_out = cases_of(llm, prompts, args.max_tokens)
    for kind, why in left_out.items():
        print(f"LEFT OUT, {kind}: {why}", flush=True)
    gc.collect()
    if args.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    print(f"{len(cases)} answers alone, {perf_counter() - began:.0f} s", flush=True)
    row = asyncio.run(loaded(llm, cases, args))
    row |= {"left_out": left_out, "provenance": collect_provenance(args.device)}
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps({name: value for name, value in row.items() if name != "provenance"}), flush=True)
    is_right = not row["faults"] and row["ends_empty"] and row["preemptions"] > 0
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
