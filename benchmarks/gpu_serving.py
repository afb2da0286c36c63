"""What a server on one GPU is expected to do, at a published pair's shape with random weights.

Usage: gpu_serving.py OUT.jsonl [pair]. How long neighbours wait for their next token while 32k tokens of prompts are
computed, four prompts or one, over what they wait without (``p99_ratio``), and a short prompt for its first
(prompt_neighbours.py); a second turn over 8k cached tokens beside the first; prompts of 64 to 512 tokens, with what the
host launches and where its time goes; rollouts of 4,096 rows of the embedded pair. One JSON object a line.
"""

import cProfile
import pstats
import sys
import time

import torch
from gpu_steps import Bench
from prompt_neighbours import greedy, neighbours, rollouts

from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM

RULES_SHOWN = ("512 tokens", "2.5 times")


def engine_of(bench, tokens, caching, **config):
    """An engine of 16 requests in pages for ``tokens``."""
    config = EngineConfig(max_running=16, prefix_caching=caching, num_pages=tokens // 16, **config)
    engine = Engine(bench.target, None, config, (), None, 1)
    engine.runner.record_prompts()  # as at a server's start
    return engine


def four_prompts(bench):
    """Four neighbours, four prompts of 8k tokens and one of 64."""
    neighbours(bench.target, 4, 8192, RULES_SHOWN, 1, bench.row)


def one_prompt(bench):
    """The same with one of 32k."""
    neighbours(bench.target, 1, 32768, RULES_SHOWN, 1, bench.row)


def many_rollouts(bench):
    """The embedded pair's."""
    rollouts(
        LLM(draft=None, device="cuda").target,
        4096,
        30,
        lambda *told, **row: bench.row(*told, **row, of="135m"),
    )


def second_turn(bench):
    """8k tokens, and 8k and 64 more that begin with them."""
    engine = engine_of(bench, 24 * 1024, True)
    seconds, cached = [], []
    for turn in range(2):
        first = bench.prompts(1, 8192)[0]
        first[0] = 1000 + turn
        for ids in (first, first + bench.prompts(1, 64)[0]):
            engine.add_request("turn", ids, greedy(1))
            started = time.perf_counter()
            last = list(engine.run())[-1]
            seconds.append(time.perf_counter() - started)
            cached.append(last.num_cached_tokens)
    bench.row(
        "second turn", 1, cold_s=round(seconds[2], 3), cached_s=round(seconds[3], 3), cached_tokens=cached[3]
    )


def launches_of(work):
    """Kernels, graphs and copies that the host starts in ``work``, by the profiler; None: it saw none."""
    with torch.profiler.profile() as profile:
        work()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    found = {
        "kernels": sum("LaunchKernel" in name for name in names),
        "graphs": names.count("cudaGraphLaunch"),
        "copies": sum(name.startswith(("cudaMemcpy", "cudaMemset")) for name in names),
    }
    return found if any(found.values()) else None


def chunk(bench):
    """Prompts alone: ``step_ms`` until its token is there, ``host_ms`` until the host has started its forward."""
    engine, host_s = engine_of(bench, 4096, False), []
    forward = engine.runner.forward

    def timed(*given):
        began = time.perf_counter()
        step = forward(*given)
        host_s.append(time.perf_counter() - began)
        return step

    engine.runner.forward = timed
    for length in (64, 128, 256, 512):
        host_s.clear()

        def run(name="chunk", length=length):
            engine.add_request(name, bench.prompts(1, length)[0], greedy(1))
            list(engine.run())

        times = []
        for _ in range(4):
            torch.cuda.synchronize()
            began = time.perf_counter()
            run()
            times.append(time.perf_counter() - began)
        step_ms, host_ms = (round(1e3 * min(seconds), 1) for seconds in (times, host_s))
        bench.row("chunk", 1, tokens=length, step_ms=step_ms, host_ms=host_ms, launches=launches_of(run))
    profile = cProfile.Profile()
    profile.runcall(run)
    pstats.Stats(profile).sort_stats("tottime").print_stats(22)


def main():
    bench = Bench(sys.argv[2] if len(sys.argv) > 2 else "qwen3.5-27b", sys.argv[1], 400, "bf16")
    for job in (chunk, second_turn, four_prompts, one_prompt, many_rollouts):
        try:
            job(bench)
        except Exception as error:
            bench.say("failed", job.__name__, repr(error)[:500])


if __name__ == "__main__":
    main()
